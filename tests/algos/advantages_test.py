"""What each estimator is, by hand and against float64 NumPy loops."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from qed.algos import advantages

ESTIMATORS = {
  'mean_baseline': advantages.mean_baseline,
  'leave_one_out': advantages.leave_one_out,
  'z_score_sample': functools.partial(advantages.z_score, eps=1e-4, ddof=1),
  'z_score_population': functools.partial(advantages.z_score, eps=0, ddof=0),
  'max_rl': advantages.max_rl,
}
JITTED = {name: jax.jit(f) for name, f in ESTIMATORS.items()}


def reference(name, rewards, valid):
  """The definitions, reward by reward."""
  used = [float(r) for r, v in zip(rewards, valid, strict=True) if v]
  result = np.zeros(len(rewards))
  if len(used) < 2 or min(used) == max(used):
    return result
  mean = sum(used) / len(used)
  squares = sum((r - mean) ** 2 for r in used)
  for i, reward in enumerate(rewards):
    if not valid[i]:
      continue
    if name == 'leave_one_out':
      others = (sum(used) - reward) / (len(used) - 1)
      result[i] = reward - others
    elif name == 'z_score_sample':
      result[i] = (reward - mean) / ((squares / (len(used) - 1)) ** 0.5 + 1e-4)
    elif name == 'z_score_population':
      result[i] = (reward - mean) / (squares / len(used)) ** 0.5
    elif name == 'max_rl':
      result[i] = (reward - mean) / mean if mean else 0
    else:
      result[i] = reward - mean
  return result


def run(name, rewards, valid=None):
  rewards = jnp.asarray(rewards, jnp.float32)
  if valid is None:
    valid = jnp.ones(rewards.shape, bool)
  result = ESTIMATORS[name](rewards, jnp.asarray(valid))
  jitted = JITTED[name](rewards, jnp.asarray(valid))
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(jitted, result, rtol=1e-6, atol=1e-7)
  return np.asarray(result)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('mean_baseline', [3 / 4, -1 / 4, -1 / 4, -1 / 4]),
    ('leave_one_out', [1, -1 / 3, -1 / 3, -1 / 3]),
    ('z_score_population', [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
    ('max_rl', [3, -1, -1, -1]),
  ],
)
def test_one_success_in_four(name, expected):
  np.testing.assert_allclose(run(name, [1, 0, 0, 0]), expected, rtol=1e-6)


def test_sample_deviation_of_one_success_in_four_is_a_half():
  rewards, valid = jnp.array([1.0, 0, 0, 0]), jnp.ones(4, bool)
  score = advantages.z_score(rewards, valid, eps=0.0, ddof=1)
  np.testing.assert_allclose(score, [1.5, -0.5, -0.5, -0.5], rtol=1e-6)


def test_eps_is_added_to_the_deviation_and_not_under_the_root():
  rewards, valid = jnp.array([1.0, 0, 0, 0]), jnp.ones(4, bool)
  score = advantages.z_score(rewards, valid, eps=0.25, ddof=1)
  np.testing.assert_allclose(score, np.array([3, -1, -1, -1]) / 3, rtol=1e-6)


def test_an_invalid_reward_takes_no_part_in_the_baseline():
  result = run('mean_baseline', [1, 0, 0, np.nan], [True, True, True, False])
  np.testing.assert_allclose(result, [2 / 3, -1 / 3, -1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('junk', [np.nan, np.inf, -1e30])
def test_what_stands_in_an_invalid_row_does_not_matter(name, junk):
  valid = [True, False, True, True]
  expected = run(name, [1, 0, 0.5, 0], valid)
  np.testing.assert_array_equal(run(name, [1, junk, 0.5, 0], valid), expected)
  np.testing.assert_allclose(
    np.delete(expected, 1), run(name, [1, 0.5, 0]), rtol=1e-6
  )


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('reward', [0.0, 0.1, 6 / 7])
@pytest.mark.parametrize('size', [3, 16])
def test_a_group_of_equal_rewards_teaches_exactly_nothing(name, reward, size):
  np.testing.assert_array_equal(run(name, [reward] * size), np.zeros(size))


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('num_valid', [0, 1])
def test_fewer_than_two_valid_rewards_teach_exactly_nothing(name, num_valid):
  valid = np.arange(4) < num_valid
  result = run(name, [1, 0, np.nan, 0.5], valid)
  np.testing.assert_array_equal(result, np.zeros(4))


@pytest.mark.parametrize('name', ESTIMATORS)
def test_a_valid_reward_that_is_not_finite_counts_as_invalid(name):
  expected = run(name, [1, 0, 0, 0], [True, True, False, True])
  np.testing.assert_array_equal(run(name, [1, 0, np.nan, 0]), expected)


def test_max_rl_of_rewards_that_cancel_is_zero():
  np.testing.assert_array_equal(run('max_rl', [1, -1, 1, -1]), np.zeros(4))


@pytest.mark.parametrize('name', ESTIMATORS)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  rewards=st.lists(
    st.one_of(
      st.sampled_from([0.0, 1.0, *(k / 7 for k in range(1, 7))]),
      st.floats(0, 1, width=32),
    ),
    min_size=8,
    max_size=8,
  ),
  valid=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_any_group_is_finite_and_as_defined(name, rewards, valid):
  rewards = np.array(rewards, np.float32)
  result = np.asarray(JITTED[name](rewards, np.array(valid)))
  assert np.isfinite(result).all()
  assert not result[~np.array(valid)].any()
  used = rewards[np.array(valid)]
  # Differences near float32's rounding or underflow have no exact quotient.
  if (
    len(used) < 2 or used.max() - used.min() > 1e-3 or used.min() == used.max()
  ):
    expected = reference(name, rewards, valid)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', ESTIMATORS)
def test_advantages_follow_their_rows_when_rows_are_shuffled(name):
  rng = np.random.default_rng(0)
  rewards, valid = rng.random(16), rng.random(16) < 0.8
  order = rng.permutation(16)
  shuffled = run(name, rewards[order], valid[order])
  np.testing.assert_allclose(
    shuffled, run(name, rewards, valid)[order], rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('name', ESTIMATORS)
def test_vmap_keeps_groups_apart(name):
  rng = np.random.default_rng(1)
  rewards = rng.random((3, 5)).astype(np.float32)
  rewards[1] = 0.5
  valid = rng.random((3, 5)) < 0.7
  batched = jax.vmap(ESTIMATORS[name])(rewards, valid)
  for row in range(3):
    np.testing.assert_allclose(
      batched[row], run(name, rewards[row], valid[row]), rtol=1e-5, atol=1e-6
    )


def test_rows_of_several_groups_are_refused():
  with pytest.raises(ValueError, match=r'rewards \[G\].*got \(2, 3\)'):
    advantages.mean_baseline(jnp.ones((2, 3)), jnp.ones((2, 3), bool))


def test_rewards_and_validity_of_different_groups_are_refused():
  with pytest.raises(ValueError, match=r'got \(3,\) and \(4,\)'):
    advantages.leave_one_out(jnp.ones(3), jnp.ones(4, bool))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'eps': 0, 'ddof': 2}, 'ddof: expected 0'),
    ({'eps': -1, 'ddof': 1}, 'eps'),
  ],
)
def test_z_score_refuses_what_it_has_no_meaning_for(arguments, message):
  with pytest.raises(ValueError, match=message):
    advantages.z_score(jnp.ones(3), jnp.ones(3, bool), **arguments)
