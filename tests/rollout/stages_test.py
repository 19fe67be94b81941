"""Which stage is stuck, and how busy each was."""

import pytest

from qed.rollout.stages import Stages


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def stages(clock):
  return Stages(['generate', 'grade', 'train'], clock=clock)


def test_the_stage_that_holds_work_without_moving_is_named(stages, clock):
  with stages.inside('generate', 'group 1, rollout 0'):
    clock.now += 5
    with stages.inside('grade', 'group 0, rollout 3'):
      clock.now += 8
      assert stages.stuck(13) is None
      text = stages.stuck(12)  # The other has held its work for 8 s.
  assert "stage 'generate'" in text
  assert 'for 13 s' in text
  assert 'group 1, rollout 0' in text


def test_a_stage_that_moves_is_not_stuck_however_long_its_work_takes(
  stages, clock
):
  with stages.inside('generate', 'a long one'):
    for _ in range(10):
      clock.now += 9
      with stages.inside('generate', 'a short one'):
        clock.now += 1
      assert stages.stuck(10) is None
    clock.now += 11
    assert 'a long one has waited longest (111 s)' in stages.stuck(10)


def test_an_empty_stage_is_not_to_blame(stages, clock):
  with stages.inside('train', 'step 1'):
    clock.now += 1
  with stages.inside('grade', 'x'):
    clock.now += 50
    assert "stage 'grade'" in stages.stuck(10)


def test_if_all_are_empty_the_loop_is_stuck(stages, clock):
  assert stages.stuck(10) is None
  clock.now += 11
  assert 'nothing is under way in any stage' in stages.stuck(10)


def test_a_lap_counts_the_time_that_a_stage_was_not_empty(stages, clock):
  with stages.inside('generate', 'a'):
    clock.now += 2
    with stages.inside('generate', 'b'):
      clock.now += 3
    clock.now += 1
    busy, elapsed = stages.lap()
    assert (busy['generate'], busy['train'], elapsed) == (6, 0, 6)
    clock.now += 4
  clock.now += 6
  busy, elapsed = stages.lap()
  assert (busy['generate'], elapsed) == (4, 10)


def test_work_that_fails_leaves_its_stage(stages):
  with pytest.raises(KeyError), stages.inside('train', 'step 1'):
    raise KeyError
  assert stages.num_inside('train') == 0
