"""A group of programs, each of which is killed once while they all work.

Two processes of a trainer, two samplers and a judge are launched as a user
does it, by `python -m launch.grpo`. Every one is killed in its turn, in the
middle of a step. The run ends all the same, its ledger closes, and no verdict
that was paid for is asked for again.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sqlite3
import statistics
import subprocess
import sys
import time

import pytest

from launch import run_dirs
from qed import cli
from tests.grpo_rig import (
  assert_ledger_closes,
  batches,
  make_config,
  read_metrics,
  rollouts,
  write_chains,
)

REPOSITORY = pathlib.Path(__file__).parents[2]
NUM_STEPS = 18
VICTIMS = (
  ('qed.grpo', '0'),
  ('qed.grpo', '1'),
  ('qed.serve', 'sampler0'),
  ('qed.serve', 'sampler1'),
  ('qed.miniature.judge_server', ''),
)
# How many steps lie between two deaths, of which some measure a step.
STEPS_BETWEEN = 3
CONFIG = """
from ml_collections import ConfigDict
ARMS = {'baseline': {}}
def get_config(arm='baseline'):
  return ConfigDict(VALUES)
"""


def write_config(folder):
  """A run of `launch.grpo`, of seconds but for what starts and compiles."""
  values = make_config(
    write_chains(folder),
    **{
      'packing.num_rows': 4,
      'judge.model': 'miniature',
      'judge.effort': '',
      'judge.max_tokens': 256,
      'judge.deadline_secs': 10.0,
      'judge.max_concurrency': 8,
      'judge.cooldown_secs': 0.5,
      'training.total_steps': NUM_STEPS,
      'training.checkpoint_interval_steps': 1,
      'training.eval_interval_steps': 0,
      'evaluation.paths': (),
      'health.max_ungraded_frac': 1.0,
      'health.stall_secs': 3_000.0,
    },
  )
  path = folder / 'chains.py'
  path.write_text(CONFIG.replace('VALUES', repr(dataclasses.asdict(values))))
  return path


@contextlib.contextmanager
def launched(folder):
  """The launcher of the group; yields (the process, the work unit's folder)."""
  command = [
    *(sys.executable, '-m', 'launch.grpo', '--executor=local'),
    *(f'--config={write_config(folder)}', f'--root={folder / "runs"}'),
    *('--num_processes=2', '--samplers=2', '--judge_server'),
  ]
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  with (folder / 'launcher.log').open('w') as log:
    process = subprocess.Popen(
      command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log
    )
    try:
      while not (found := [*(folder / 'runs').glob('chains-*')]):
        assert process.poll() is None, (folder / 'launcher.log').read_text()
        time.sleep(0.1)
      yield process, found[0]
    finally:
      process.terminate()
      process.wait(120)


def pid_of(launcher, workdir, program, which):
  """The child of the launcher that runs a program: of its rank, or its log."""
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      parent = int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
      words = (folder / 'cmdline').read_bytes().split(b'\0')
      if parent != launcher.pid or program.encode() not in words:
        continue
      rank = b'JAX_PROCESS_ID=' + which.encode()
      log = os.readlink(folder / 'fd' / '1')
      if not which or log == str(workdir / 'logs' / f'{which}.log'):
        return int(folder.name)
      if rank in (folder / 'environ').read_bytes().split(b'\0'):
        return int(folder.name)
  raise LookupError(f'no {program} {which}')


def num_done(workdir):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  *lines, _ = path.read_text().split('\n')
  return max((json.loads(line)['step'] for line in lines), default=0)


def wait_for_step(launcher, workdir, step):
  """Waits for a step to be done; returns when that was."""
  until = time.monotonic() + 1800
  while num_done(workdir) < step:
    assert launcher.poll() is None
    assert time.monotonic() < until
    time.sleep(0.02)
  return time.monotonic()


def stage(launcher, workdir):
  """Kills one program after another; the seconds that each death cost."""
  lost = {}
  for turn, (program, which) in enumerate(VICTIMS):
    first = STEPS_BETWEEN * turn + 1
    ends = [
      wait_for_step(launcher, workdir, first + i)
      for i in range(STEPS_BETWEEN - 1)
    ]
    usual = statistics.median(b - a for a, b in itertools.pairwise(ends))
    step = num_done(workdir)
    os.kill(pid_of(launcher, workdir, program, which), signal.SIGKILL)
    killed = time.monotonic()
    # Two steps: a sampler's death may come after its part of the next one.
    end = wait_for_step(launcher, workdir, step + 2)
    lost[f'{program} {which}'] = round(end - killed - 2 * usual, 1)
  return lost


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_program_of_a_group_may_be_killed(tmp_path, capsys):
  with launched(tmp_path) as (launcher, workdir):
    lost = stage(launcher, workdir)
    launcher.wait(900)
    text = (tmp_path / 'launcher.log').read_text()
    assert launcher.returncode == cli.DONE, text
  with capsys.disabled():
    print('\nseconds lost by a death:', json.dumps(lost))
  # Each was killed once, and started again once.
  ends = [
    attempt['job']
    for attempt in run_dirs.read_attempts(workdir)
    if attempt['verdict'] == 'restart'
  ]
  assert sorted(ends) == ['judge', 'main', 'main', 'sampler0', 'sampler1']
  # Every group is used once, and nothing of what was drawn is unaccounted for.
  used = [group for step in batches(workdir).values() for group in step]
  assert used == list(range(2 * NUM_STEPS))
  book = assert_ledger_closes(workdir)
  assert book['trained'] > 0
  assert len(read_metrics(workdir)) == NUM_STEPS
  assert all(
    {*row['versions']} == {group // 2}
    for (group, _), row in rollouts(workdir).items()
  )
  # Nothing is paid for twice.
  with contextlib.closing(sqlite3.connect(workdir / 'verdicts.sqlite')) as db:
    twice = db.execute(
      "SELECT key, count(*) FROM calls WHERE outcome = 'answer' "
      'GROUP BY key HAVING count(*) > 1'
    ).fetchall()
    (answered,) = db.execute(
      "SELECT count(*) FROM calls WHERE outcome = 'answer'"
    ).fetchone()
  assert not twice
  assert answered > 0
