"""Drawing one token per slot, and its log-probability.

A draw takes two uniform numbers: the first picks one of the blocks that the
vocabulary is cut into, by the mass of each, the second a token within it. Each
has 24 bits; a single one could reach only some of the tokens of a long tail.
The Gumbel trick would take V numbers, which at a vocabulary of 150,000 cost
more than the model's last product.

Letters: `B` slots, `V` vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BLOCK_SIZE = 128
# One implementation whatever jax's default is: others give a batch of draws
# that differ from the same draws made alone.
_IMPLEMENTATION = 'threefry2x32'
_HIGHEST = jnp.iinfo(jnp.int32).max


def keys(seeds: jax.Array, num_drawn: jax.Array) -> jax.Array:
  """The key of each slot's next draw; it depends on the request alone.

  Args:
    seeds: uint32 [B], of the requests.
    num_drawn: int32 [B], completion tokens that each request already has.

  Returns:
    Keys [B]: fold_in(fold_in(base, seed), num_drawn).
  """
  base = jax.random.key(0, impl=_IMPLEMENTATION)

  def one(seed, count):
    return jax.random.fold_in(jax.random.fold_in(base, seed), count)

  return jax.vmap(one)(seeds, num_drawn)


def draw(
  logits: jax.Array,
  keys: jax.Array,
  temperature: jax.Array,
  top_p: jax.Array,
  top_k: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Draws a token from softmax(logits / temperature), possibly truncated.

  First `top_k` keeps the k most probable tokens, then `top_p` the fewest of
  these whose share of their mass is at least p. Tokens as probable as the last
  one kept are kept too.

  Args:
    logits: float32 [B, V].
    keys: [B], one for each slot.
    temperature: float32 [B]; 0 takes the most probable token.
    top_p: float32 [B], above 0; 1 keeps every token.
    top_k: int32 [B]; 0 keeps every token.

  Returns:
    (tokens int32 [B], logprobs float32 [B]). A log-probability is that of the
    whole distribution, before truncation; a greedy one is at temperature 1.
  """
  scores = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
  # How far below the best: 0 or above, and its bits are ordered as integers.
  gap = jnp.max(scores, axis=-1, keepdims=True) - scores
  weights = jnp.exp(-gap)
  total = jnp.sum(weights, axis=-1)
  kept = jax.lax.cond(
    jnp.any((top_p < 1) | (top_k > 0)), _truncate, _keep, gap, weights,
    top_p, top_k,
  )  # fmt: skip
  bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
  uniform = (bits >> 8).astype(jnp.float32) * 2.0**-24
  drawn = _invert(kept, uniform)
  tokens = jnp.where(temperature > 0, drawn, jnp.argmax(scores, axis=-1))
  tokens = tokens.astype(jnp.int32)
  below = jnp.take_along_axis(gap, tokens[:, None], axis=-1)[:, 0]
  return tokens, -below - jnp.log(total)


def _keep(gap, weights, top_p, top_k):
  del gap, top_p, top_k
  return weights


def _truncate(gap, weights, top_p, top_k):
  """The weights [B, V], zero where truncation removes a token."""
  order = jax.lax.bitcast_convert_type(gap, jnp.int32)

  def mass(limit):
    return jnp.sum(jnp.where(order <= limit[:, None], weights, 0.0), axis=-1)

  def count(limit):
    return jnp.sum(order <= limit[:, None], axis=-1, dtype=jnp.int32)

  wanted = jnp.where(top_k > 0, top_k, gap.shape[-1])
  limit = _smallest(lambda x: count(x) >= wanted, top_k)
  within_k = jnp.where(top_k > 0, limit, _HIGHEST)
  share = top_p * mass(within_k)
  limit = _smallest(lambda x: mass(jnp.minimum(x, within_k)) >= share, within_k)
  limit = jnp.where(top_p < 1, jnp.minimum(limit, within_k), within_k)
  return jnp.where(order <= limit[:, None], weights, 0.0)


def _smallest(holds, like: jax.Array) -> jax.Array:
  """The smallest int32 >= 0, per slot, from which a monotone claim holds."""

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    true = holds(middle)
    return jnp.where(true, low, middle + 1), jnp.where(true, middle, high)

  low = jnp.zeros_like(like, jnp.int32)
  high = jnp.full_like(like, _HIGHEST, jnp.int32)
  return jax.lax.fori_loop(0, 31, halve, (low, high))[1]


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Token ids [B] drawn by weights [B, V] with uniform [B, 2]."""
  padding = -weights.shape[-1] % _BLOCK_SIZE
  blocks = jnp.pad(weights, ((0, 0), (0, padding)))
  blocks = blocks.reshape(weights.shape[0], -1, _BLOCK_SIZE)
  block = _pick(jnp.sum(blocks, axis=-1), uniform[:, 0])
  within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * _BLOCK_SIZE + _pick(within, uniform[:, 1])


def _pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Indices [B] drawn by weights [B, n], never one of weight 0."""
  reached = jnp.cumsum(weights, axis=-1)
  target = uniform * jnp.max(reached, axis=-1)
  # Sums in parallel are not quite monotone, and the target may be rounded up
  # to the last of them.
  possible = (reached > target[:, None]) & (weights > 0)
  return jnp.where(
    jnp.any(possible, axis=-1),
    jnp.argmax(possible, axis=-1),
    jnp.argmax(weights, axis=-1),
  )
