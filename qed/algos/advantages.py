"""Advantages: how much better one completion is than its group.

Every function takes the `rewards` of one group, float [G], and `valid`, bool
[G], and returns float32 [G]; `jax.vmap` runs it over groups. A reward that is
not valid may hold anything, NaN included: it takes no part in any statistic and
its advantage is 0. The same goes for a valid reward that is not finite, so that
the result always is. A group that teaches nothing (fewer than two valid rewards
or only equal ones) has advantages that are exactly 0, whatever the divisor.

In the formulae r_i are the n valid rewards of a group and r̄ is their mean.
"""

import jax
import jax.numpy as jnp


def mean_baseline(rewards: jax.Array, valid: jax.Array) -> jax.Array:
  """A_i = r_i - r̄, own reward included: what QED-Nano trains with.

  Dr. GRPO (arXiv 2503.20783): GRPO without the division by the deviation.

  Args:
    rewards: float [G].
    valid: bool [G].

  Returns:
    float32 [G].

  Raises:
    ValueError: the shapes are not both [G].
  """
  centered, _, active = _center(rewards, valid)
  return jnp.where(active, centered, 0.0)


def leave_one_out(rewards: jax.Array, valid: jax.Array) -> jax.Array:
  """A_i = r_i - mean of the other rewards = n / (n - 1) (r_i - r̄).

  RLOO (arXiv 2402.14740); PipelineRL's present default.

  Args:
    rewards: float [G].
    valid: bool [G].

  Returns:
    float32 [G].

  Raises:
    ValueError: the shapes are not both [G].
  """
  centered, count, active = _center(rewards, valid)
  scale = count / jnp.maximum(count - 1, 1)
  return jnp.where(active, scale * centered, 0.0)


def z_score(
  rewards: jax.Array, valid: jax.Array, *, eps: float, ddof: int
) -> jax.Array:
  """A_i = (r_i - r̄) / (σ + eps), σ² = Σ_j (r_j - r̄)² / (n - ddof).

  GRPO as published (arXiv 2402.03300), which does not say which deviation it
  means: PyTorch code bases divide by n - 1, NumPy and JAX ones by n.

  Args:
    rewards: float [G].
    valid: bool [G].
    eps: added to the deviation, outside the root.
    ddof: 0 for the population's deviation, 1 for the sample's.

  Returns:
    float32 [G].

  Raises:
    ValueError: the shapes are not both [G], `eps` < 0, or another `ddof`.
  """
  if ddof not in (0, 1):
    raise ValueError(f'ddof: expected 0 (population) or 1 (sample), got {ddof}')
  if eps < 0:
    raise ValueError(f'eps: expected a number >= 0, got {eps}')
  centered, count, active = _center(rewards, valid)
  variance = jnp.sum(centered**2) / jnp.maximum(count - ddof, 1)
  divisor = jnp.sqrt(variance) + eps
  active = active & (divisor > 0)  # Squares of tiny differences underflow.
  return jnp.where(active, centered / jnp.where(active, divisor, 1.0), 0.0)


def max_rl(rewards: jax.Array, valid: jax.Array) -> jax.Array:
  """A_i = (r_i - r̄) / r̄, and 0 where r̄ is 0.

  MaxRL (arXiv 2602.02710): with rewards 0 and 1 and more and more samples this
  becomes the gradient of log p(success) instead of p(success), which weighs
  hard prompts up. It is meant for rewards >= 0, where A_i lies in [-1, n - 1];
  penalties that make r̄ negative turn its sign.

  Args:
    rewards: float [G].
    valid: bool [G].

  Returns:
    float32 [G].

  Raises:
    ValueError: the shapes are not both [G].
  """
  centered, count, active = _center(rewards, valid)
  used = jnp.where(active, rewards.astype(jnp.float32), 0.0)
  mean = jnp.sum(used) / jnp.maximum(count, 1)
  # Rewards of both signs can cancel to a rest that is rounding, not a mean.
  rounding = jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(used), initial=0.0)
  active = active & (jnp.abs(mean) > rounding)
  return jnp.where(active, centered / jnp.where(active, mean, 1.0), 0.0)


def _center(
  rewards: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns r - r̄ (0 where invalid), n, and which advantages are not 0."""
  if rewards.ndim != 1 or rewards.shape != valid.shape:
    raise ValueError(
      'expected rewards [G] and valid [G], the rows of one group (jax.vmap '
      f'goes over groups), got {rewards.shape} and {valid.shape}'
    )
  rewards = rewards.astype(jnp.float32)
  valid = valid.astype(bool) & jnp.isfinite(rewards)
  rewards = jnp.where(valid, rewards, 0.0)
  count = jnp.sum(valid, dtype=jnp.float32)
  centered = rewards - jnp.sum(rewards) / jnp.maximum(count, 1)
  # Equal rewards are found by comparing them: their mean may be off by a
  # rounding, which a division by a tiny deviation would blow up.
  largest = jnp.max(rewards, initial=-jnp.inf, where=valid)
  smallest = jnp.min(rewards, initial=jnp.inf, where=valid)
  active = valid & (largest > smallest)
  return jnp.where(valid, centered, 0.0), count, active
