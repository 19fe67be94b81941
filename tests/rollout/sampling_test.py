"""Draws follow the distribution they claim, and depend on the request alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qed.rollout import sampling

_draw = jax.jit(
  lambda logits, seeds, num_drawn, *params: sampling.draw(
    logits, sampling.keys(seeds, num_drawn), *params
  )
)


def draw(
  logits, *, seeds=None, num_drawn=0, temperature=1.0, top_p=1.0, top_k=0
):
  """Tokens and log-probabilities for logits [B, V]; numbers serve all slots."""
  B = len(logits)
  seeds = np.arange(B) if seeds is None else seeds
  return jax.tree.map(
    np.asarray,
    _draw(
      np.asarray(logits, np.float32),
      np.asarray(seeds, np.uint32),
      np.full(B, num_drawn, np.int32),
      np.full(B, temperature, np.float32),
      np.full(B, top_p, np.float32),
      np.full(B, top_k, np.int32),
    ),
  )


def softmax(logits, temperature=1.0):
  """float64."""
  scores = np.asarray(logits, np.float64) / temperature
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def truncated(probabilities, top_p, top_k):
  """By sorting: the renormalised distribution, float64 [V]."""
  order = np.argsort(-probabilities)
  kept = order[: top_k or None]
  if top_p < 1:
    shares = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
    kept = kept[: np.argmax(shares >= top_p) + 1]
  out = np.zeros_like(probabilities)
  out[kept] = probabilities[kept] / probabilities[kept].sum()
  return out


def assert_drawn_from(tokens, probabilities):
  """A chi-square test, with rare tokens in one cell, at 4.5 sigma."""
  assert (probabilities[tokens] > 0).all()
  expected = probabilities * len(tokens)
  observed = np.bincount(tokens, minlength=len(probabilities))
  common = expected >= 10
  expected = np.append(expected[common], expected[~common].sum())
  observed = np.append(observed[common], observed[~common].sum())
  filled = expected > 1
  chi2 = ((observed - expected)[filled] ** 2 / expected[filled]).sum()
  freedom = filled.sum() - 1
  assert abs(chi2 - freedom) < 4.5 * np.sqrt(2 * freedom), (chi2, freedom)


LOGITS = np.random.default_rng(0).normal(
  0, 2, 300
)  # Three blocks, one partial.


@pytest.mark.parametrize('temperature', [0.5, 0.8, 1.0, 1.5])
def test_frequencies_are_those_of_the_tempered_softmax(temperature):
  tokens, _ = draw(np.tile(LOGITS, (20_000, 1)), temperature=temperature)
  assert_drawn_from(tokens, softmax(LOGITS, temperature))


@pytest.mark.parametrize(('top_p', 'top_k'), [(0.7, 0), (1.0, 12), (0.6, 40)])
def test_frequencies_are_those_of_the_truncated_softmax(top_p, top_k):
  tokens, _ = draw(
    np.tile(LOGITS, (20_000, 1)), temperature=0.8, top_p=top_p, top_k=top_k
  )
  expected = truncated(softmax(LOGITS, 0.8), top_p, top_k)
  assert set(tokens) == set(np.flatnonzero(expected > 1e-3)) | set(tokens)
  assert_drawn_from(tokens, expected)


def test_the_kept_tokens_are_those_that_sorting_keeps():
  rng = np.random.default_rng(1)
  for _ in range(5):
    logits = rng.normal(0, 3, (1, 300))
    top_p, top_k = rng.uniform(0.05, 0.99), int(rng.integers(1, 200))
    gap = (logits.max() - logits).astype(np.float32)
    kept = sampling._truncate(
      jnp.asarray(gap),
      jnp.exp(-gap),
      jnp.array([top_p], jnp.float32),
      jnp.array([top_k], jnp.int32),
    )
    expected = truncated(softmax(-gap[0]), np.float32(top_p), top_k)
    np.testing.assert_array_equal(np.asarray(kept[0]) > 0, expected > 0)


@pytest.mark.parametrize('temperature', [0.5, 0.8, 1.0, 1.5])
def test_the_logprob_is_of_the_tempered_softmax_before_truncation(temperature):
  logits = np.random.default_rng(2).normal(0, 4, (64, 1000))
  for top_p, top_k in ((1.0, 0), (0.5, 10)):
    tokens, logprobs = draw(
      logits, temperature=temperature, top_p=top_p, top_k=top_k
    )
    expected = np.log(softmax(logits, temperature))[np.arange(64), tokens]
    np.testing.assert_allclose(logprobs, expected, atol=2e-6, rtol=1e-6)


def test_greedy_takes_the_best_at_its_logprob_at_temperature_one():
  logits = np.random.default_rng(3).normal(0, 2, (16, 300))
  tokens, logprobs = draw(logits, temperature=0.0, top_k=5)
  np.testing.assert_array_equal(tokens, logits.argmax(-1))
  np.testing.assert_allclose(
    logprobs, np.log(softmax(logits).max(-1)), atol=2e-6
  )


def test_a_draw_depends_on_seed_and_count_alone():
  rng = np.random.default_rng(4)
  logits = rng.normal(0, 2, (8, 300))
  seeds = rng.integers(0, 2**32, 8)
  crowd, _ = draw(logits, seeds=seeds, num_drawn=5)
  for slot in range(8):
    alone, _ = draw(logits[[slot]], seeds=seeds[[slot]], num_drawn=5)
    assert alone[0] == crowd[slot]
  moved, _ = draw(logits[::-1], seeds=seeds[::-1], num_drawn=5)
  np.testing.assert_array_equal(moved[::-1], crowd)


def test_every_draw_of_a_request_has_its_own_key():
  # Independent draws from 1,000 equal tokens coincide once in 1,000.
  logits = np.zeros((64, 1000))
  draws = [draw(logits, num_drawn=i)[0] for i in range(4)]
  for i in range(4):
    assert len(set(draws[i])) > 55
    for j in range(i):
      assert (draws[i] == draws[j]).sum() <= 2


def test_draws_do_not_depend_on_the_default_generator():
  expected, _ = draw(np.tile(LOGITS, (64, 1)))
  with jax.default_prng_impl('unsafe_rbg'):
    jax.clear_caches()
    got, _ = draw(np.tile(LOGITS, (64, 1)))
  np.testing.assert_array_equal(got, expected)


def test_impossible_tokens_are_never_drawn():
  logits = np.full((4096, 300), -np.inf)
  possible = [0, 127, 128, 299]
  logits[:, possible] = [0.0, 1.0, 2.0, -1.0]
  tokens, logprobs = draw(logits)
  assert set(tokens) == set(possible)
  assert np.isfinite(logprobs).all()


def test_the_ends_of_the_uniform_numbers_pick_possible_tokens():
  weights = jnp.array([[0.0, 1.0 + 2**-23, 0.0, 0.5, 0.0]])
  for uniform, index in ((0.0, 1), (1 - 2**-24, 3)):
    picked = sampling._pick(weights, jnp.array([uniform], jnp.float32))
    assert int(picked[0]) == index


def test_a_long_tail_is_reached_in_proportion():
  # Half the mass on one token, the rest on 150,000; 24 bits alone would have
  # left tokens of the tail unreachable or twice too frequent.
  logits = np.zeros(150_001)
  logits[0] = np.log(150_000)
  tokens, _ = draw(np.tile(logits, (64, 1)), seeds=np.arange(64) + 1000)
  assert 16 <= (tokens == 0).sum() <= 48
  tail = tokens[tokens > 0]
  assert len(set(tail)) == len(tail)
