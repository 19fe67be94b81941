"""A solve that is killed goes on where it was, and pays for nothing twice."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest

from qed.llm.journal import Journal

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# More calls than a solve makes.
ALL = 100


def run(folder, num_calls):
  """The exit status; negative where a signal ended it."""
  folder.mkdir(exist_ok=True)
  command = ('-m', 'tests.scaffolds.killed_rsa', str(folder), str(num_calls))
  return subprocess.run(
    [sys.executable, *command], cwd=REPOSITORY, check=False
  ).returncode


def paid(folder):
  return (folder / 'paid').read_text().split()


@pytest.mark.timeout(120)
def test_a_solve_of_39_calls_that_is_killed_five_times_pays_for_39(tmp_path):
  killed, calm = tmp_path / 'killed', tmp_path / 'calm'
  so_far = 0
  # In the first solutions, at their end, in two rounds, and in the knockout.
  for num_calls in (3, 5, 9, 13, 5):
    assert run(killed, num_calls) == -signal.SIGKILL
    so_far += num_calls
    assert len(paid(killed)) == so_far
    with Journal(killed / 'calls.sqlite') as journal:
      assert len(journal) == so_far
    assert not (killed / 'solution.json').exists()
  assert run(killed, ALL) == 0
  assert len(paid(killed)) == len(set(paid(killed))) == 39
  assert run(calm, ALL) == 0
  assert sorted(paid(calm)) == sorted(paid(killed))
  solutions = [
    json.loads((folder / 'solution.json').read_text())
    for folder in (killed, calm)
  ]
  assert solutions[0] == solutions[1]
  assert solutions[0]['usage']['calls'] == 39
  # And nothing more is paid for by another start.
  assert run(killed, 0) == 0
  assert len(paid(killed)) == 39
