"""What a group teaches, and what of it is trained on."""

import numpy as np
import pytest

from qed.rollout import groups
from tests.rollout import rollouts


def mean_baseline(rewards, valid):
  """By hand: r - mean over the valid, 0 elsewhere."""
  mean = sum(r for r, v in zip(rewards, valid, strict=True) if v) / sum(valid)
  return [r - mean if v else 0.0 for r, v in zip(rewards, valid, strict=True)]


def share(group, *, step=0, max_lag=0, mask=False, drop=False):
  return groups.share(
    group,
    mean_baseline,
    step=step,
    max_lag=max_lag,
    mask_truncated=mask,
    drop_zero_signal=drop,
  )


@pytest.mark.parametrize(
  ('rewards', 'expected'),
  [
    ([0.0, 1.0], 'some'),
    ([0.0, 1.0, None], 'some'),
    ([0.5, 0.5, None], 'none'),
    ([0.0, 0.0], 'none'),
    ([1.0, None], 'invalid'),
    ([None, None], 'invalid'),
  ],
)
def test_a_signal_is_a_difference_between_two_valid_rewards(rewards, expected):
  assert groups.signal(rollouts.group(rewards)) == expected


def test_an_ungraded_rollout_is_no_part_of_the_baseline():
  found = share(rollouts.group([1.0, None, 0.0]))
  assert [s.advantage for s in found.samples] == [0.5, -0.5]
  assert found.members == (0, 2)
  assert found.num_invalid == 2
  assert groups.mean_reward(rollouts.group([1.0, None, 0.0])) == 0.5


def test_a_missing_reward_is_marked_and_not_a_number_that_counts():
  values, valid = groups.rewards(rollouts.group([1.0, None]))
  assert values.tolist() == [1.0, 0.0]
  assert valid.tolist() == [True, False]


def test_the_age_of_a_sample_is_that_of_its_oldest_token():
  assert groups.lag(rollouts.rollout(1.0, (3, 4, 5)), 5) == 2
  assert groups.lag(rollouts.rollout(1.0, (5, 5)), 5) == 0
  assert groups.lag(rollouts.rollout(1.0, ()), 5) == 0


@pytest.mark.parametrize('versions', [(6,), (5, 6), (-1, 5)])
def test_rollouts_from_the_future_and_from_nowhere_are_refused(versions):
  with pytest.raises(ValueError, match='versions from 0 to'):
    groups.lag(rollouts.rollout(1.0, versions), 5)


@pytest.mark.parametrize(
  ('max_lag', 'members', 'num_stale'),
  [(0, (2,), 4), (1, (1, 2), 2), (2, (0, 1, 2), 0), (-1, (0, 1, 2), 0)],
)
def test_lag_is_enforced_for_each_sample_by_itself(max_lag, members, num_stale):
  group = rollouts.group([1.0, 0.5, 0.0], [(3, 5), (4, 5), (5, 5)])
  found = share(group, step=5, max_lag=max_lag)
  assert found.members == members
  assert found.num_stale == num_stale
  # The baseline is still that of the whole group.
  assert [s.advantage for s in found.samples] == [
    (0.5, 0.0, -0.5)[member] for member in members
  ]


def test_every_token_is_trained_stale_invalid_masked_or_unused():
  group = rollouts.group(
    [1.0, 0.5, None, 0.0, 0.0], [(5,), (1,) * 2, (5,) * 4, (5,) * 8, (5,) * 16]
  )
  late = rollouts.rollout(0.0, (5,) * 32, finish='length')
  group = type(group)(group_id=0, rollouts=(*group.rollouts, late))
  found = share(group, step=5, max_lag=1, mask=True)
  counts = [
    found.num_trained,
    found.num_stale,
    found.num_invalid,
    found.num_masked,
    found.num_unused,
  ]
  assert counts == [1 + 8 + 16, 2, 4, 32, 0]
  assert sum(counts) == groups.total_tokens(group.rollouts)


def test_a_masked_truncated_rollout_stays_in_the_baseline():
  group = rollouts.group([1.0, 0.0])
  late = rollouts.rollout(0.5, (0,), finish='length')
  group = type(group)(group_id=0, rollouts=(*group.rollouts, late))
  assert [s.advantage for s in share(group, mask=True).samples] == [0.5, -0.5]
  assert len(share(group).samples) == 3


def test_a_group_without_a_signal_is_kept_or_left_out():
  flat = rollouts.group([0.5, 0.5])
  assert [s.advantage for s in share(flat).samples] == [0.0, 0.0]
  dropped = share(flat, drop=True)
  assert dropped.samples == ()
  assert dropped.num_unused == 4
  # Only a group without a signal is.
  assert len(share(rollouts.group([0.0, 1.0]), drop=True).samples) == 2


def test_samples_carry_their_group_and_their_own_tokens():
  (sample, _) = share(rollouts.group([1.0, 0.0], group_id=9)).samples
  assert sample.group_id == 9
  assert sample.token_ids.tolist() == [5, 6, 10, 11]
  assert sample.loss_mask.tolist() == [False, False, True, True]
  np.testing.assert_allclose(sample.behavior_logprobs[2:], [-1 / 3, -2 / 3])
