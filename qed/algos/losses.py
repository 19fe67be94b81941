"""Per-token losses, and the one scalar that their sum is divided by.

A loss takes arrays [B, T] aligned with `targets` and returns what each token
adds to the sum that is minimised, float32 [B, T], with a dictionary of metrics:

  loss = Σ (policy + kl_coef · kl + entropy_coef · entropy_bonus) / normalizer

`normalizer` is taken once, over the mask of the whole global batch, so that
microbatches, packing and sharding cannot change the gradient.

Off the mask a loss is exactly 0 and sends exactly no gradient, whatever stands
there, NaN included. On the mask nothing is patched up: a missing behavior
log-probability makes the loss NaN and is counted in `policy/missing_logprobs`,
and whoever runs the step has to stop.

Metrics are float32 scalars to be added over microbatches and devices, never
means: `x_sum` adds x up over the tokens of the mask and `x_tokens` counts some
of them; divide by `policy/tokens` (`loss/tokens` for `cross_entropy`).

Symbols: π the policy being trained, μ the behavior policy, ρ = π / μ the ratio
of a token, A its advantage, y_i the unmasked tokens of sequence i. Every
function raises ValueError when its arrays are not of one shape [B, T].
"""

from typing import Literal

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]

# exp(20) = 4.9e8: far outside any clip, and far inside float32 when summed.
MAX_LOG_RATIO = 20.0


def cross_entropy(
  logprobs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
  """-log π(y_t), the loss of supervised fine-tuning.

  Args:
    logprobs: float [B, T].
    mask: bool [B, T], where the loss applies.

  Returns:
    float32 [B, T], and `loss/nll_sum`, `loss/tokens`.
  """
  mask, logprobs = _on_mask(mask, logprobs)
  loss = -logprobs
  return loss, {'loss/nll_sum': jnp.sum(loss), 'loss/tokens': _count(mask)}


def policy_loss(
  logprobs: jax.Array,
  behavior_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  segment_ids: jax.Array,
  *,
  kind: Literal['ppo', 'reinforce', 'cispo', 'gspo'],
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """The policy gradient's surrogate, to be minimised.

    ppo        -min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A)
    reinforce  -sg(min(ρ, 1 + clip_high)) A log π
    cispo      -sg(clip(ρ, 1 - clip_low, 1 + clip_high)) A log π
    gspo       ppo with the ratio of the sequence instead of the token's:
               s_i = (Π_t ρ_t)^(1 / |y_i|), the geometric mean

  sg is stop_gradient; it also holds the behavior policy and the advantages.

  ppo: arXiv 1707.06347; with clip_low < clip_high ("clip-higher"): DAPO, arXiv
  2503.14476; dual clip, max(ppo's objective, dual_clip A) where A < 0, bounds
  the loss of bad tokens that became likely: arXiv 1912.09729. QED-Nano (arXiv
  2604.04898) is ppo with 4 and 4: the interval [-3, 5], which only ever binds
  for good tokens that became over five times as likely. reinforce: truncated
  importance sampling as in PipelineRL, arXiv 2509.19128. cispo: arXiv
  2506.13585. gspo: arXiv 2507.18071. Every token of y_i carries the term of its
  sequence, so that a plain sum weighs long sequences up, as PipelineRL's does;
  times `sequence_weights`, over `sequences`, it is the paper's objective.

  Args:
    logprobs: float [B, T], under the policy.
    behavior_logprobs: float [B, T], of the same tokens as they were drawn.
    advantages: float [B, T], constant over a sequence.
    mask: bool [B, T], the tokens that the policy wrote and that count.
    segment_ids: int [B, T], which sequence of its row a token belongs to.
    kind: see above.
    clip_low: >= 0, how far below 1 a ratio counts; reinforce has no such bound.
    clip_high: >= 0, how far above 1.
    dual_clip: > 1, for ppo and gspo; None for none.

  Returns:
    float32 [B, T], and under `policy/` tokens, loss_sum, clipped_tokens (whose
    gradient the clip took away, or whose weight it changed), and what `drift`
    reports of the token ratios.

  Raises:
    ValueError: an unknown kind, a bound out of its range.
  """
  _check_clips(kind, clip_low, clip_high, dual_clip)
  mask = _flags(mask, segment_ids)
  mask, logprobs, behavior_logprobs, advantages = _on_mask(
    mask,
    logprobs,
    jax.lax.stop_gradient(behavior_logprobs),
    jax.lax.stop_gradient(advantages),
  )
  log_ratio = logprobs - behavior_logprobs
  if kind == 'gspo':
    # Its value is the sequence's and its slope the token's own (the paper's
    # GSPO-token): the gradient of the sum is the same, without a scatter.
    mean = _sequence_mean(log_ratio, mask, segment_ids)
    slope = logprobs - jax.lax.stop_gradient(logprobs)
    log_ratio = jax.lax.stop_gradient(mean) + slope
  ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  low, high = 1 - clip_low, 1 + clip_high
  if kind in ('ppo', 'gspo'):
    objective, clipped = _clip_objective(
      ratio, advantages, low=low, high=high, dual_clip=dual_clip
    )
  else:
    low = low if kind == 'cispo' else 0.0
    clipped = (ratio < low) | (ratio > high)
    weights = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
    objective = weights * advantages * logprobs
  loss = jnp.where(mask, -objective, 0.0)
  return loss, drift(logprobs, behavior_logprobs, mask) | {
    'policy/tokens': _count(mask),
    'policy/loss_sum': jnp.sum(loss),
    'policy/clipped_tokens': _count(mask & clipped),
  }


def drift(
  logprobs: jax.Array, behavior_logprobs: jax.Array, mask: jax.Array
) -> Metrics:
  """How far π is from μ; without a lag log-ratios are 0 and ratios 1.

  Args:
    logprobs: float [B, T], under the policy.
    behavior_logprobs: float [B, T], of the same tokens as they were drawn.
    mask: bool [B, T].

  Returns:
    Under `policy/`, of tokens, whatever the kind of the loss: ratio_sum,
    squared_ratio_sum (the effective sample size is the first squared over the
    second), abs_log_ratio_sum, behavior_kl_sum (KL(μ ‖ π) by k3),
    clamped_tokens and missing_logprobs.
  """
  mask, logprobs, behavior_logprobs = _on_mask(
    mask, logprobs, behavior_logprobs
  )
  log_ratio = logprobs - behavior_logprobs
  clamped = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  ratio = jnp.where(mask, jnp.exp(clamped), 0.0)
  return {
    'policy/ratio_sum': jnp.sum(ratio),
    'policy/squared_ratio_sum': jnp.sum(ratio**2),
    'policy/abs_log_ratio_sum': jnp.sum(jnp.abs(log_ratio)),
    'policy/behavior_kl_sum': jnp.sum(jnp.expm1(clamped) - clamped),
    'policy/clamped_tokens': _count(jnp.abs(log_ratio) > MAX_LOG_RATIO),
    'policy/missing_logprobs': _count(jnp.isnan(behavior_logprobs)),
  }


def kl(
  logprobs: jax.Array,
  reference_logprobs: jax.Array,
  mask: jax.Array,
  *,
  estimator: Literal['k1', 'k2', 'k3'],
) -> tuple[jax.Array, Metrics]:
  """An estimate of KL(π ‖ reference) from tokens that π drew.

  With d = log π - log reference of a token (Schulman 2020, joschu.net/blog/
  kl-approx.html; k3 is that of GRPO, arXiv 2402.03300, and of QED-Nano):

    k1 = d                   unbiased, noisy
    k2 = d² / 2              biased, of low variance
    k3 = exp(-d) - 1 + d     unbiased, of low variance, >= 0

  That is about their values. As losses, their gradients are in expectation

    k1: 0                    so it is a metric and no penalty at all
    k2: ∇ KL(π ‖ reference)
    k3: ∇ KL(reference ‖ π)  equal to k2's to first order in d

  Args:
    logprobs: float [B, T], under the policy.
    reference_logprobs: float [B, T], of the same tokens; held constant.
    mask: bool [B, T].
    estimator: see above; k3 clamps d to ±MAX_LOG_RATIO.

  Returns:
    float32 [B, T], and under `policy/` kl_sum, kl_clamped_tokens and
    kl_missing_logprobs (NaN on the mask, which makes the loss NaN).

  Raises:
    ValueError: an unknown estimator.
  """
  mask, logprobs, reference_logprobs = _on_mask(
    mask, logprobs, jax.lax.stop_gradient(reference_logprobs)
  )
  d = logprobs - reference_logprobs
  if estimator == 'k1':
    loss = d
  elif estimator == 'k2':
    loss = d**2 / 2
  elif estimator == 'k3':
    clamped = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1: near d = 0 the result is of order d², below exp's rounding.
    loss = jnp.expm1(-clamped) + clamped
  else:
    raise ValueError(f'estimator: expected k1, k2 or k3, got {estimator!r}')
  return loss, {
    'policy/kl_sum': jnp.sum(loss),
    'policy/kl_clamped_tokens': _count(jnp.abs(d) > MAX_LOG_RATIO),
    'policy/kl_missing_logprobs': _count(jnp.isnan(reference_logprobs)),
  }


def entropy_bonus(
  entropy: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
  """-H(π), so that a positive coefficient keeps the policy from collapsing.

  Args:
    entropy: float [B, T], exact, in nats, as `token_logprobs` returns it.
    mask: bool [B, T].

  Returns:
    float32 [B, T], and `policy/entropy_sum`.
  """
  mask, entropy = _on_mask(mask, entropy)
  return -entropy, {'policy/entropy_sum': jnp.sum(entropy)}


def importance_weights(
  logprobs: jax.Array,
  behavior_logprobs: jax.Array,
  mask: jax.Array,
  *,
  kind: Literal['truncate', 'mask'],
  low: float = 0.0,
  high: float,
) -> tuple[jax.Array, Metrics]:
  """Weights that correct a loss for a sampler that computes differently.

  The sampler draws from μ while the trainer, on the very same weights, computes
  π_old. With ρ = π_old / μ of a token:

    truncate  clip(ρ, low, high)            TIS: Yao et al. 2025, fengyao.notion
                                            .site/off-policy-rl
    mask      ρ if low <= ρ <= high else 0  IcePop: arXiv 2510.18855, with 0.5
                                            and 5

  They multiply a loss whose own ratio is π / π_old. They are per token, since a
  product over a sequence vanishes or explodes with its length. A token of
  weight 0 still counts in `normalizer`; where it should not, `weights > 0`
  belongs into the mask.

  Args:
    logprobs: float [B, T], the trainer's, under the behavior policy's weights.
    behavior_logprobs: float [B, T], the sampler's.
    mask: bool [B, T].
    kind: see above.
    low: >= 0.
    high: > low.

  Returns:
    float32 [B, T], constant, 0 off the mask; `policy/weight_sum`, and
    `policy/outside_tokens`, whose ratio was not in [low, high].

  Raises:
    ValueError: an unknown kind, bounds out of order.
  """
  if kind not in ('truncate', 'mask'):
    raise ValueError(f"kind: expected 'truncate' or 'mask', got {kind!r}")
  if not 0 <= low < high:
    raise ValueError(f'expected 0 <= low < high, got {low} and {high}')
  mask, logprobs, behavior_logprobs = jax.lax.stop_gradient(
    _on_mask(mask, logprobs, behavior_logprobs)
  )
  log_ratio = logprobs - behavior_logprobs
  ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  outside = mask & ((ratio < low) | (ratio > high))
  if kind == 'truncate':
    weights = jnp.clip(ratio, low, high)
  else:
    weights = jnp.where(outside, 0.0, ratio)
  weights = jnp.where(mask, weights, 0.0)
  return weights, {
    'policy/weight_sum': jnp.sum(weights),
    'policy/outside_tokens': _count(outside),
  }


def mask_truncated(
  mask: jax.Array, segment_ids: jax.Array, truncated: jax.Array
) -> jax.Array:
  """Takes sequences that ran out of their budget out of the mask, whole.

  Overlong filtering (DAPO, arXiv 2503.14476). It comes before `normalizer`.

  Args:
    mask: bool [B, T].
    segment_ids: int [B, T].
    truncated: bool [B, T], true on at least one token of every sequence whose
      finish reason was 'length'.

  Returns:
    bool [B, T].
  """
  mask = _flags(mask, segment_ids, truncated)
  return mask & (_segment_sum(truncated, segment_ids) == 0)


def sequence_weights(mask: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """1 / |y_i| on every token of y_i, 0 off the mask.

  A loss times these, over the normalizer `sequences`, is the mean over the
  sequences of their token means: GRPO and GSPO as published.

  Args:
    mask: bool [B, T].
    segment_ids: int [B, T].

  Returns:
    float32 [B, T].
  """
  mask = _flags(mask, segment_ids)
  lengths = _segment_sum(mask, segment_ids)
  return jnp.where(mask, 1 / jnp.maximum(lengths, 1), 0.0)


def normalizer(
  mask: jax.Array,
  segment_ids: jax.Array,
  *,
  kind: Literal['sequences', 'tokens', 'constant'],
  constant: float | None = None,
) -> jax.Array:
  """What the sum of a loss over the whole global batch is divided by.

    sequences  how many sequences have an unmasked token: QED-Nano
    tokens     how many tokens are unmasked: DAPO, arXiv 2503.14476
    constant   `constant` times the sequences: Dr. GRPO, arXiv 2503.20783,
               where it is the token budget of a completion

  It wants the final mask of all microbatches, so that masking a sequence is the
  same as leaving it out.

  Args:
    mask: bool [..., T], every leading axis being rows.
    segment_ids: int [..., T].
    kind: see above.
    constant: tokens per sequence, > 0; for the kind of that name alone.

  Returns:
    float32 []; of an empty mask that of one token, so that 0 / 0 is 0.

  Raises:
    ValueError: an unknown kind, or a constant that is missing, not positive, or
      given to another kind.
  """
  kinds = ('sequences', 'tokens', 'constant')
  if kind not in kinds:
    raise ValueError(f'kind: expected one of {kinds}, got {kind!r}')
  in_range = constant is not None and constant > 0
  if not (in_range if kind == 'constant' else constant is None):
    raise ValueError(
      "constant: expected a number > 0 with kind 'constant' and None with the "
      f'others, got {constant} with {kind!r}'
    )
  rows = (-1, mask.shape[-1])
  mask, segment_ids = mask.reshape(rows), segment_ids.reshape(rows)
  mask = _flags(mask, segment_ids)
  if kind == 'tokens':
    return jnp.maximum(_count(mask), 1)
  lengths = _segment_table(mask, segment_ids)
  return jnp.maximum(_count(lengths > 0), 1) * (constant or 1)


def _clip_objective(ratio, advantages, *, low, high, dual_clip):
  """PPO's objective, and where the clip took its gradient away.

  `where` and not `minimum`: within the clip both sides are equal, and how the
  gradient of a tie is split is the library's choice.
  """
  free = ratio * advantages
  bound = jnp.clip(ratio, low, high) * advantages
  clipped = bound < free
  objective = jnp.where(clipped, bound, free)
  if dual_clip is not None:
    floor = dual_clip * advantages
    floored = (advantages < 0) & (objective < floor)
    objective = jnp.where(floored, floor, objective)
    clipped |= floored
  return objective, clipped


def _segment_table(values, segment_ids):
  """float32 [B, T + 1]: the sum over each segment, by row and id."""
  num_segments = values.shape[1] + 1  # A row of T tokens has ids 0 to T.
  return jax.vmap(
    lambda v, s: jax.ops.segment_sum(v, s, num_segments=num_segments)
  )(values.astype(jnp.float32), segment_ids)


def _segment_sum(values, segment_ids):
  """float32 [B, T]: for each token the sum over its segment."""
  table = _segment_table(values, segment_ids)
  return jnp.take_along_axis(table, segment_ids, axis=1)


def _sequence_mean(values, mask, segment_ids):
  """float32 [B, T]: for each token the mean over its segment, on the mask."""
  lengths = _segment_sum(mask, segment_ids)
  return _segment_sum(values, segment_ids) / jnp.maximum(lengths, 1)


def _count(flags):
  return jnp.sum(flags, dtype=jnp.float32)


def _on_mask(mask, *arrays):
  """The mask, and `arrays` in float32 with 0 for whatever is off the mask."""
  mask = _flags(mask, *arrays)
  zeroed = [jnp.where(mask, x.astype(jnp.float32), 0.0) for x in arrays]
  return mask, *zeroed


def _flags(mask, *arrays):
  """The mask as bool, after the check that all arrays have its shape."""
  shapes = [x.shape for x in (mask, *arrays)]
  if mask.ndim != 2 or len(set(shapes)) > 1:
    raise ValueError(f'expected arrays of one shape [B, T], got {shapes}')
  return mask.astype(bool)


def _check_clips(kind, clip_low, clip_high, dual_clip):
  kinds = ('ppo', 'reinforce', 'cispo', 'gspo')
  if kind not in kinds:
    raise ValueError(f'kind: expected one of {kinds}, got {kind!r}')
  if clip_low < 0 or clip_high < 0:
    raise ValueError(
      'clip_low and clip_high are distances from 1: expected numbers >= 0, got '
      f'{clip_low} and {clip_high}'
    )
  if dual_clip is not None and (kind not in ('ppo', 'gspo') or dual_clip <= 1):
    raise ValueError(
      "dual_clip: expected a number > 1 with kind 'ppo' or 'gspo', or None, "
      f'got {dual_clip} with {kind!r}'
    )
