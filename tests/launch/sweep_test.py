"""A sweep as a user launches it, two of whose runs are interrupted.

Six runs of `qed sft` go through `python -m launch.sft`, two at a time. One is
killed and one is told to end, each once it has made some progress; both must
come to the very bits of a run that nobody disturbed.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import run_dirs, status
from qed import report
from tests.sft_test import arm, read_metrics, read_summary, tiny

__all__ = ['tiny']  # A fixture.

REPOSITORY = pathlib.Path(__file__).parents[2]
NUM_STEPS, PROGRESS = 120, 12
RATES, SEEDS = (1e-3, 1e-2, 5e-2), (1, 2)
SECRET = 'sk-planted-1f0e'
CONFIG = """
from experiments import base
ARMS = {'baseline': {}}
def get_config(arm='baseline'):
  return base.override(base.sft(), VALUES)
"""


@pytest.fixture
def launch(tiny, tmp_path):
  """Launches a sweep: (exit code, what was printed)."""
  values = arm(
    tiny,
    **{
      'training.total_steps': NUM_STEPS,
      'training.checkpoint_interval_steps': 5,
      'training.eval_interval_steps': 20,
    },
  )
  path = tmp_path / 'rates.py'
  path.write_text(CONFIG.replace('VALUES', repr(values)))
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'JUDGE_KEY': SECRET,
    'QED_API_KEY': SECRET,
    'WANDB_API_KEY': SECRET,
  }

  def call(root, *sweeps):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'launch.sft', f'--config={path}'),
        *(f'--root={root}', '--executor=local', '--local.n=2'),
        *(f'--sweep={sweep}' for sweep in sweeps),
      ],
      cwd=REPOSITORY,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    return done.returncode, done.stdout + done.stderr

  return call


def strike(workdir, number):
  """Sends a run's process a signal once it has made progress."""
  path = workdir / 'metrics.jsonl'
  until = time.monotonic() + 600
  while not path.exists() or path.read_bytes().count(b'\n') < PROGRESS:
    if time.monotonic() > until:
      return
    time.sleep(0.01)
  flag = f'--workdir={workdir}'.encode()
  for process in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      words = (process / 'cmdline').read_bytes().split(b'\0')
    except OSError:
      continue
    if flag in words and b'qed.sft' in words:
      os.kill(int(process.name), number)


def fingerprints(workdir):
  """Of every array of the last checkpoint."""
  folder = workdir / 'checkpoints' / str(NUM_STEPS) / 'manifest'
  return json.loads((folder / 'metadata').read_text())['arrays']


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_survives_its_interruptions_bit_for_bit(launch, tmp_path):
  sweeps = (
    f'optim.peak_lr={",".join(map(repr, RATES))}',
    f'training.seed={",".join(map(repr, SEEDS))}',
  )
  root = tmp_path / 'runs'
  names = []

  def find(rate, seed):
    pattern = f'rates-peak_lr-{rate!r}-seed-{seed}-*'
    while not (found := [*root.glob(pattern)]):
      time.sleep(0.05)
    names.append(found[0].name)
    return found[0]

  struck = {(1e-3, 1): signal.SIGKILL, (5e-2, 2): signal.SIGTERM}
  strikers = [
    threading.Thread(
      target=lambda run=run, number=number: strike(find(*run), number),
      daemon=True,
    )
    for run, number in struck.items()
  ]
  for striker in strikers:
    striker.start()
  code, out = launch(root, *sweeps)
  assert code == 0, out
  for striker in strikers:
    striker.join(10)

  workdirs = status.find([root])
  rows = [
    dict(zip(status.table([w]).header, status.table([w]).rows[0], strict=True))
    for w in workdirs
  ]
  assert len(rows) == len(RATES) * len(SEEDS)
  assert {row['state'] for row in rows} == {'done'}
  assert {row['saved'] for row in rows} == {f'{NUM_STEPS}/{NUM_STEPS}'}
  restarted = {row['work unit'] for row in rows if row['restarts'] == '1'}
  assert restarted == {*names}
  assert sum(row['restarts'] == '0' for row in rows) == 4
  first_ends = {}
  for workdir in workdirs:
    first, *_ = run_dirs.read_attempts(workdir)
    first_ends[workdir.name] = first['exit_codes']
    if workdir.name in restarted:
      assert 0 < first['saved'] < NUM_STEPS
  assert sorted(first_ends[name] for name in restarted) == [[42], [137]]

  quiet = tmp_path / 'quiet'
  for rate, seed in struck:
    code, out = launch(
      quiet, f'optim.peak_lr={rate!r}', f'training.seed={seed}'
    )
    assert code == 0, out
  for name in restarted:
    assert read_metrics(root / name) == read_metrics(quiet / name)
    assert fingerprints(root / name) == fingerprints(quiet / name)
    assert read_summary(root / name) == read_summary(quiet / name)
  assert len({json.dumps(fingerprints(w)) for w in workdirs}) == len(rows)

  page = report.write([root], tmp_path / 'report', 0).read_text()
  (section,) = re.findall(r'<section id="sweep">.*?</section>', page, re.S)
  for rate in RATES:
    assert f'<td>{rate:g}</td><td>2</td>' in section
  for path in tmp_path.rglob('*'):
    if path.is_file():
      assert SECRET.encode() not in path.read_bytes(), path
