"""What is said about a run's health, by hand computation."""

import dataclasses

import numpy as np
import pytest

from qed.rollout import groups, health
from tests.rollout import rollouts


def limits(**changes):
  settings = dict(
    max_mismatch=0.1, min_entropy=0.5, max_ungraded_frac=0.2, patience_steps=1
  )
  return health.Limits(**settings | changes)


WELL = {'mismatch/mean': 0.1, 'entropy': 0.5, 'rollouts/ungraded': 0.2}


def test_of_groups_counts_every_rollout():
  found = health.of_groups(
    [
      rollouts.group([1.0, 1.0], [(0,), (0,) * 3]),
      rollouts.group([0.0, None], [(0,) * 5, (0,) * 7], finish='length'),
    ]
  )
  assert found['length/mean'] == 4
  assert found['length/max'] == 7
  assert found['length/by_score/7'] == 2
  assert found['length/by_score/0'] == 5
  assert found['rollouts/truncated'] == 0.5
  assert found['rollouts/ungraded'] == 0.25
  assert found['reward/mean'] == pytest.approx(2 / 3)
  assert found['groups/zero_signal'] == 0.5
  assert found['groups/all_correct'] == 0.5
  assert found['groups/invalid'] == 0.5
  assert health.of_groups([]) == {}


def test_turns_are_told_apart_where_there_are_several():
  later = dataclasses.replace(rollouts.PROMPT, kind='cached', turn=2)
  first = rollouts.group([1.0, 0.0], [(0,), (0,) * 3])
  second = rollouts.group([0.5, None], [(0,) * 5, (0,) * 7], prompt=later)
  found = health.of_groups([first, second])
  assert found['reward/by_turn/0'] == 0.5
  assert found['reward/by_turn/2'] == 0.5  # Of the valid one.
  assert found['length/by_turn/0'] == 2
  assert found['length/by_turn/2'] == 6
  assert not any('by_turn' in name for name in health.of_groups([first]))


def test_lag_is_of_samples_and_only_of_those_that_are_trained_on():
  share = groups.share(
    rollouts.group([1.0, 0.5, 0.0], [(1,), (4, 5), (5,)]),
    lambda rewards, valid: rewards - 0.5,
    step=5,
    max_lag=2,
    mask_truncated=False,
    drop_zero_signal=False,
  )
  found = health.of_batch([share], step=5)
  assert (found['lag/min'], found['lag/mean'], found['lag/max']) == (0, 0.5, 1)
  assert found['lag/mixed'] == 0.5
  assert found['advantage/max'] == 0.5


def test_sums_become_means_per_token():
  found = health.of_loss(
    {
      'policy/tokens': 4.0,
      'policy/entropy_sum': 8.0,
      'policy/clipped_tokens': 1.0,
      'policy/abs_log_ratio_sum': 2.0,
      'policy/behavior_kl_sum': 0.4,
      # Ratios 1, 1, 1, 3.
      'policy/ratio_sum': 6.0,
      'policy/squared_ratio_sum': 12.0,
    }
  )
  assert found == {
    'entropy': 2.0,
    'clip_frac': 0.25,
    'mismatch/mean': 0.5,
    'mismatch/kl': 0.1,
    'ratio/mean': 1.5,
    'ess': 0.75,
  }


def test_the_distance_to_the_reference_is_told_only_where_there_is_one():
  """Defect 6: a distance to the sampler's policy is called `mismatch`."""
  sums = dict.fromkeys(
    ['tokens', 'entropy_sum', 'clipped_tokens', 'abs_log_ratio_sum'], 2.0
  ) | dict.fromkeys(['behavior_kl_sum', 'ratio_sum', 'squared_ratio_sum'], 2.0)
  sums = {f'policy/{name}': value for name, value in sums.items()}
  assert 'kl' not in health.of_loss(sums)
  assert health.of_loss(sums | {'policy/kl_sum': 1.0})['kl'] == 0.5


def test_differences_of_tokens_by_position_and_by_age():
  trainer = np.zeros(300)
  behavior = np.zeros(300)
  behavior[0] = 0.5  # Drawn by the weights of step 3.
  behavior[256:] = -0.1
  versions = np.full(300, 2)
  versions[:2] = 3
  found = health.of_tokens([trainer], [behavior], [versions], step=3)
  assert found['mismatch/max'] == 0.5
  assert found['mismatch/fresh_mean'] == 0.25
  assert found['mismatch/fresh_max'] == 0.5
  assert found['mismatch/from_0'] == pytest.approx(0.5 / 256)
  assert found['mismatch/from_256'] == pytest.approx(0.1)
  assert 'mismatch/from_1024' not in found
  assert found['ratio/p50'] == 1
  assert found['ratio/p99'] == pytest.approx(np.exp(0.1))


def test_at_the_limits_a_run_is_well():
  checked = limits(patience_steps=0)
  assert checked.check(1, WELL) is None
  assert checked.check(1, {}) is None


@pytest.mark.parametrize(
  ('name', 'value', 'word'),
  [
    ('mismatch/mean', 0.11, 'max_mismatch = 0.1'),
    ('entropy', 0.49, 'min_entropy = 0.5'),
    ('rollouts/ungraded', 0.21, 'max_ungraded_frac = 0.2'),
    ('mismatch/mean', float('nan'), 'max_mismatch'),
  ],
)
def test_a_run_beyond_a_limit_for_too_long_ends_with_the_reason(
  name, value, word
):
  checked = limits()
  ill = WELL | {name: value}
  assert checked.check(7, ill) is None
  assert checked.check(7, WELL) is None  # In a row, that is.
  assert checked.check(7, ill) is None
  error = checked.check(7, ill)
  assert str(error).startswith('step 7: ')
  assert word in str(error)
  assert error.remedy


def test_limits_that_are_off_never_bind():
  off = limits(
    max_mismatch=0.0, min_entropy=0.0, max_ungraded_frac=1.0, patience_steps=0
  )
  worst = {'mismatch/mean': 9.0, 'entropy': 0.0, 'rollouts/ungraded': 1.0}
  assert off.check(7, worst) is None
