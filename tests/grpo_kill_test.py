"""`qed grpo` in processes of its own, killed in every phase of a step."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from qed import cli
from tests.grpo_rig import (
  NUM_STEPS,
  PHASES,
  assert_ledger_closes,
  assert_same_run,
  batches,
  cache,
  read_metrics,
  straight,
  tiny,
)

__all__ = ['cache', 'straight', 'tiny']  # Fixtures.
REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('max_lag', [0, 2])
@pytest.mark.parametrize('seed', [0, 1])
def test_a_run_that_dies_in_every_phase_ends_like_one_that_does_not(
  cache, tiny, tmp_path, straight, max_lag, seed
):
  """SIGKILL and SIGTERM once in each phase, one start after another."""
  chance = random.Random(seed)
  plan = [(phase, name) for phase in PHASES for name in ('SIGKILL', 'SIGTERM')]
  chance.shuffle(plan)
  workdir, landed = tmp_path / 'run', []
  # Where samplers run ahead, more steps pass until a signal is noticed.
  num_steps = 3 * NUM_STEPS if max_lag else NUM_STEPS

  def start(phase, name, step):
    given = {
      'tiny': str(tiny),
      'workdir': str(workdir),
      'cache': cache,
      'phase': phase,
      'signal': name,
      'step': step,
      'changes': {
        'rollout.max_lag': max_lag,
        'training.total_steps': num_steps,
      },
    }
    found = subprocess.run(
      [sys.executable, '-m', 'tests.grpo_victim', json.dumps(given)],
      cwd=REPOSITORY,
      env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
      stdout=subprocess.PIPE,
      text=True,
      timeout=300,
    )
    print(found.stdout)
    return found

  for phase, name in plan:
    saved = [
      int(path.name)
      for path in (workdir / 'checkpoints').glob('*')
      if path.name.isdigit()
    ]
    done = max(saved, default=0)
    # Neither the first publication of a start nor its first save, if it makes
    # one of the step that it begins with, is of something new.
    found = start(phase, name, done + (phase in ('publish', 'checkpoint')))
    if f'{name} in {phase}, step' not in found.stdout:
      # The run is over without another such phase.
      assert found.returncode == cli.DONE, found.stdout
      break
    landed.append((phase, name))
    if name == 'SIGKILL':
      assert found.returncode == -signal.SIGKILL, found.stdout
      continue  # What is lost is booked at the next start.
    assert_ledger_closes(workdir)
    if found.returncode == cli.DONE:  # It came with the last checkpoint.
      break
    assert found.returncode == cli.RESTART, found.stdout
  found = start('none', 'SIGTERM', 0)
  assert found.returncode == cli.DONE, found.stdout
  assert len(landed) >= 4, landed
  used = [group for step in batches(workdir).values() for group in step]
  assert len(used) == len({*used}) == 2 * num_steps
  assert_ledger_closes(workdir)
  records = read_metrics(workdir)
  assert len(records) == num_steps
  assert all(record['lag/max'] <= max_lag for record in records.values())
  if max_lag == 0:
    assert_same_run(workdir, straight)
