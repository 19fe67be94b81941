"""`qed grpo` as several processes: alike to one, and ending together.

Process 0 draws by itself here, from the weights that all have published
(tests/grpo_member.py). What is compared is compared as floats: sums over the
devices of several processes are taken in another order.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from qed import cli
from qed.training import checkpoints
from tests.grpo_rig import (
  NUM_STEPS,
  assert_ledger_closes,
  batches,
  cache,
  lines,
  read_metrics,
  rollouts,
  tiny,
)

__all__ = ['cache', 'tiny']  # Fixtures.
REPOSITORY = pathlib.Path(__file__).parents[1]
# Seconds on a machine that is idle. Where many share it, all takes longer.
END_SECS = 300
START_SECS = 900
RESTARTABLE = (cli.RESTART, -signal.SIGABRT)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Members:
  """The processes of a run, of some devices each."""

  def __init__(self, tiny, cache, workdir, count, *, devices=1, **given):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    together = {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
    }
    given = {
      'tiny': str(tiny),
      'workdir': str(workdir),
      'cache': cache,
      'changes': {},
      **given,
    }
    self.workdir = workdir
    self.logs = [workdir.parent / f'{workdir.name}.{i}' for i in range(count)]
    self.processes = []
    for index, log in enumerate(self.logs):
      settings = {
        'PYTHONPATH': str(REPOSITORY),
        'JAX_NUM_CPU_DEVICES': str(devices),
      }
      if count > 1:
        settings |= together | {'JAX_PROCESS_ID': str(index)}
      with log.open('w') as file:
        process = subprocess.Popen(
          [sys.executable, '-m', 'tests.grpo_member', json.dumps(given)],
          cwd=REPOSITORY,
          env=os.environ | settings,
          stdout=file,
          stderr=subprocess.STDOUT,
        )
      self.processes.append(process)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    for process in self.processes:
      process.kill()
      process.wait()
    if exception[0]:
      print(self.text())

  def text(self):
    return '\n'.join(f'-- {log}\n{log.read_text()}' for log in self.logs)

  def wait_for(self, text):
    """Waits until the first process says something."""
    deadline = time.monotonic() + START_SECS
    while text not in self.logs[0].read_text():
      assert None in self.codes()
      assert time.monotonic() < deadline
      time.sleep(0.1)

  def codes(self):
    return [process.poll() for process in self.processes]

  def ended(self, secs=START_SECS):
    """The exit codes, which are to come within some seconds."""
    deadline = time.monotonic() + secs
    for process in self.processes:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, deadline - time.monotonic()))
    return self.codes()


def run(tiny, cache, workdir, count, **given):
  """The exit codes of processes that nobody disturbs."""
  with Members(tiny, cache, workdir, count, **given) as members:
    return members.ended()


@pytest.fixture(scope='module')
def alone(cache, tiny, tmp_path_factory):
  """One process with two devices."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  assert run(tiny, cache, workdir, 1, devices=2) == [cli.DONE]
  return workdir


def assert_like(found, expected):
  """The same tokens, and metrics to what float32 keeps."""
  assert batches(found) == batches(expected)
  theirs, ours = rollouts(expected), rollouts(found)
  assert ours.keys() == theirs.keys()
  for key, row in theirs.items():
    assert ours[key]['token_ids'] == row['token_ids']
    assert ours[key]['versions'] == row['versions']
    assert ours[key]['logprobs'] == pytest.approx(row['logprobs'], abs=2e-5)
  theirs, ours = (
    read_metrics(expected, 'tokens/'),
    read_metrics(found, 'tokens/'),
  )
  assert sorted(ours) == list(range(1, NUM_STEPS + 1))
  for step, record in theirs.items():
    assert ours[step].keys() == record.keys()
    for name, value in record.items():
      assert ours[step][name] == pytest.approx(value, rel=1e-4, abs=2e-5), name
  assert lines(found, 'evaluations') == lines(expected, 'evaluations')
  assert_ledger_closes(found)


@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_train_like_one(alone, cache, tiny, tmp_path, count):
  workdir = tmp_path / 'run'
  with Members(tiny, cache, workdir, count) as members:
    assert members.ended() == [cli.DONE] * count
    # The others have nothing to say.
    said = [log.read_text() for log in members.logs]
  assert said[0].count('complete: ') == 1
  for text in said[1:]:
    assert not re.search(r'^(step \d|to practise|complete: )', text, re.M), text
  assert_like(workdir, alone)
  assert assert_ledger_closes(workdir) == assert_ledger_closes(alone)
  # Each line once.
  for name in ('batches', 'rollouts', 'problems', 'evaluations', 'metrics'):
    assert len(lines(workdir, name)) == len(lines(alone, name))


def test_a_run_goes_on_with_another_number_of_processes(
  alone, cache, tiny, tmp_path
):
  """Asked to end while it waits for samples, by SIGTERM to any of them."""
  workdir = tmp_path / 'run'
  for count, told, step in ((2, 1, 1), (4, 0, 2), (1, 0, 3)):
    given = {'fault': 'wait', 'step': step}
    with Members(tiny, cache, workdir, count, **given) as members:
      members.wait_for('waiting')
      members.processes[told].send_signal(signal.SIGTERM)
      assert members.ended(END_SECS) == [cli.RESTART] * count
    assert checkpoints.steps(workdir / 'checkpoints')[-1] == step
    assert_ledger_closes(workdir)
  assert run(tiny, cache, workdir, 2) == [cli.DONE] * 2
  assert_like(workdir, alone)


@pytest.mark.parametrize('killed', [0, 1])
def test_where_one_is_killed_the_others_end_and_can_be_started_again(
  alone, cache, tiny, tmp_path, killed
):
  workdir = tmp_path / 'run'
  with Members(tiny, cache, workdir, 2, fault='wait', step=3) as members:
    members.wait_for('waiting')
    members.processes[killed].kill()
    codes = members.ended(END_SECS)
  assert codes.pop(killed) == -signal.SIGKILL
  assert codes[0] in RESTARTABLE
  assert run(tiny, cache, workdir, 2) == [cli.DONE] * 2
  assert_like(workdir, alone)


def test_a_run_that_stops_itself_ends_all_with_its_state_saved(
  cache, tiny, tmp_path
):
  given = {
    'fault': 'ungraded',
    'changes': {'health.max_dropped_groups': 3},
  }
  with Members(tiny, cache, tmp_path / 'run', 2, **given) as members:
    assert members.ended() == [cli.USAGE] * 2
    assert 'max_dropped_groups = 3' in members.text()
  assert checkpoints.steps(tmp_path / 'run' / 'checkpoints') == [1]


@pytest.mark.parametrize(
  ('fault', 'codes'),
  [
    ('bug', [(cli.BUG,), (cli.BUG,)]),
    ('bug of one', [RESTARTABLE, (cli.BUG,)]),
  ],
)
def test_a_bug_in_one_process_ends_all(cache, tiny, tmp_path, fault, codes):
  with Members(tiny, cache, tmp_path / 'run', 2, fault=fault) as members:
    found = members.ended()
    text = members.text()
  assert 'RuntimeError: a bug of the' in text
  for code, expected in zip(found, codes, strict=True):
    assert code in expected


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'sampler.placement': 'shared', 'sampler.urls': ()},
      r"sampler.placement = 'shared': the 2 processes",
    ),
    ({'mesh.data': 1}, 'must be all of the 2 devices of 2 processes'),
  ],
)
def test_what_several_processes_cannot_do_is_refused_by_all(
  cache, tiny, tmp_path, changes, message
):
  with Members(tiny, cache, tmp_path / 'run', 2, changes=changes) as members:
    assert members.ended() == [cli.USAGE] * 2
    for log in members.logs:
      assert message in log.read_text()
