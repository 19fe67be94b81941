"""How far sampling may run ahead, and what waits for a step."""

import sys

import pytest

from qed.rollout import buffer
from tests.rollout import rollouts


def allowed(version, step, max_lag, groups_per_step=4):
  return buffer.max_alive(
    version=version,
    step=step,
    groups_per_step=groups_per_step,
    max_lag=max_lag,
  )


def test_without_a_lag_a_step_is_sampled_once_its_weights_are_there():
  assert allowed(3, 3, 0) == 4
  assert allowed(3, 4, 0) == 0  # Step 4 is done, its weights not yet there.


@pytest.mark.parametrize('max_lag', [0, 1, 5])
def test_the_last_group_that_may_be_begun_lags_by_the_bound(max_lag):
  """Steps take groups in order: the n-th alive one is used at step + n // 4."""
  for step in range(8):
    for version in range(max(0, step - max_lag), step + 1):
      last = allowed(version, step, max_lag) - 1
      assert step + last // 4 - version == max_lag


def test_the_budget_does_not_remember_how_versions_came():
  """Two versions between two looks give what one by one would have given."""
  assert allowed(7, 7, 2) == allowed(5, 5, 2) == 12
  assert allowed(5, 7, 2) == 4


def test_unbounded_is_unbounded():
  assert allowed(0, 1000, -1) == sys.maxsize


def test_samplers_ahead_of_the_trainer_are_refused():
  with pytest.raises(ValueError, match='got version 5'):
    allowed(5, 4, 1)


def make_buffer(*ids, versions=((0, 0), (0, 0))):
  kept = buffer.Buffer()
  for number in ids:
    kept.add(rollouts.group([0.0, 1.0], [*versions], group_id=number))
  return kept


def test_the_oldest_leave_first_whatever_the_order_of_arrival():
  kept = make_buffer(5, 1, 3)
  assert [g.group_id for g in kept.take(2)] == [1, 3]
  assert len(kept) == 1
  with pytest.raises(ValueError, match='expected 2 groups'):
    kept.take(2)
  assert [g.group_id for g in kept.take(1)] == [5]


def test_a_group_cannot_come_in_twice():
  with pytest.raises(ValueError, match='group 5'):
    make_buffer(5, 5)


def test_a_group_is_evicted_once_none_of_its_rollouts_can_be_used():
  kept = make_buffer(0, versions=((2, 4), (3, 4)))
  assert kept.evict(step=4, max_lag=-1) == []
  assert kept.evict(step=4, max_lag=1) == []  # One rollout lags by 1 only.
  (gone,) = kept.evict(step=5, max_lag=1)
  assert gone.group_id == 0
  assert len(kept) == 0
