"""Processes of a job: when it is over, and what speaks for it."""

import pytest

from launch import exit_codes, processes
from launch.processes import Gang


class Scripted:
  """A process that has these exit codes, one after the other."""

  def __init__(self, *codes):
    self.codes = [*codes]

  def exit_code(self):
    return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

  def kill(self):
    self.codes = [137]


def test_what_another_death_took_along_does_not_make_it_a_bug():
  """The one that died first is asked first, while it is still alive."""
  gang = Gang([Scripted(None, 134), Scripted(1), Scripted(None)], began=0.0)
  codes = gang.ended(grace_secs=10.0)
  assert codes == (134, 1, None)
  assert exit_codes.of_processes(c for c in codes if c is not None) == 134


@pytest.mark.parametrize('first', [0, 42])
def test_others_may_follow_the_first_that_has_saved_but_not_forever(
  monkeypatch, first
):
  now = 100.0
  monkeypatch.setattr(processes.time, 'monotonic', lambda: now)
  others = Scripted(None), Scripted(None)
  patient, impatient = (
    Gang([Scripted(first), other], began=now) for other in others
  )
  assert patient.ended(5.0) is impatient.ended(5.0) is None
  now += 4.0
  others[0].codes = [first]
  assert patient.ended(5.0) == (first, first)
  assert impatient.ended(5.0) is None
  now += 2.0
  assert impatient.ended(5.0) == (first, None)
  assert impatient.secs == 6.0
  assert others[1].codes == [137]


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [([], 0), ([0, 0], 0), ([0, 42], 42), ([1, 137], 137), ([2, 1], 2)],
)
def test_processes_of_a_job_are_restarted_if_any_asks(codes, expected):
  assert exit_codes.of_processes(codes) == expected


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [([], 0), ([0, 42], 42), ([137, 0], 42), ([42, 2, 1], 2), ([7, 0], 1)],
)
def test_work_units_fail_if_any_does(codes, expected):
  assert exit_codes.of_work_units(codes) == expected


def test_a_signal_is_no_exit_code():
  assert exit_codes.of_returncode(-9) == 137
  with pytest.raises(ValueError, match='from 0 to 255, got -9'):
    exit_codes.verdict(-9)
