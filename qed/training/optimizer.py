"""AdamW with warm-up, schedules and global-norm clipping.

Weights, moments and updates are float32, whatever the dtype of the arithmetic
in the model: near 1.0 the spacing of bfloat16 is 0.008, and an update of 1e-6
would vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qed.models import specs


class RateState(NamedTuple):
  """What the learning rate was in the last update."""

  learning_rate: jax.Array  # float32 []


def make(
  *,
  num_steps: int,
  model: specs.Config,
  beta1: float,
  beta2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
  **rate,
) -> optax.GradientTransformationExtraArgs:
  """AdamW (arXiv 1711.05101) of the clipped gradient.

    g <- g min(1, clip_norm / |g|), |g| over all weights together
    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g²
    w <- w - rate (m̂ / (√v̂ + eps) + weight_decay w), without the last term
    for weights that start as ones: those of norms

  `update` takes the step as an extra argument, `update(grads, state, params,
  step=...)`, and no count of its own: a step that is skipped because its
  gradient is not finite moves the schedule on with the data.

  Args:
    num_steps: of the run.
    model: whose weights these are.
    beta1: of the first moment.
    beta2: of the second moment.
    eps: outside the root.
    weight_decay: times the learning rate, per update.
    clip_norm: 0 for no clipping.
    **rate: the other arguments of `schedule`.

  Raises:
    ValueError: as `schedule` does.
  """
  decays = jax.tree.map(
    lambda spec: spec.init != 'ones',
    specs.declare(model),
    is_leaf=specs.is_spec,
  )
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    optax.scale_by_adam(beta1, beta2, eps),
    optax.add_decayed_weights(weight_decay, mask=decays),
    _scale_by_rate(schedule(num_steps=num_steps, **rate)),
  )


def schedule(
  *,
  peak_lr: float,
  schedule: Literal['cosine', 'constant', 'linear'],
  warmup_steps: int,
  warmup_frac: float,
  num_steps: int,
) -> Callable[[jax.Array | int], jax.Array]:
  """The learning rate of each step, counted from 0.

  W is warmup_steps, or warmup_frac num_steps, rounded; and of the steps after
  the warm-up, x = (step - W) / (num_steps - W) are done:

    step < W   peak_lr (step + 1) / (W + 1)
    constant   peak_lr
    linear     peak_lr (1 - x)
    cosine     peak_lr (1 + cos πx) / 2

  No step of the run has a rate of 0: the line of the warm-up starts, and the
  decay ends, one step outside it.

  Args:
    peak_lr: > 0.
    schedule: see above.
    warmup_steps: >= 0.
    warmup_frac: of the run, in [0, 1).
    num_steps: of the run.

  Returns:
    step -> float32 [].

  Raises:
    ValueError: an unknown schedule, or a warm-up that leaves no step.
  """
  warmup = max(warmup_steps, round(warmup_frac * num_steps))
  if warmup >= num_steps:
    raise ValueError(
      f'expected a warm-up shorter than the run of {num_steps} steps, got '
      f'{warmup}; lower optim.warmup_steps or optim.warmup_frac'
    )
  if schedule not in ('cosine', 'constant', 'linear'):
    raise ValueError(
      f"schedule: expected 'cosine', 'constant' or 'linear', got {schedule!r}"
    )

  def rate(step: jax.Array | int) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    done = (step - warmup) / (num_steps - warmup)
    factor = {
      'constant': jnp.ones_like(step),
      'linear': 1 - done,
      'cosine': (1 + jnp.cos(jnp.pi * done)) / 2,
    }[schedule]
    rising = (step + 1) / (warmup + 1)
    return peak_lr * jnp.where(step < warmup, rising, factor)

  return rate


def _scale_by_rate(
  rate: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
  """Scales by -rate(step), and keeps the rate where metrics can read it."""

  def init(params):
    del params
    return RateState(jnp.zeros([], jnp.float32))

  def update(updates, state, params=None, *, step, **others):
    del state, params, others
    value = rate(step)
    return jax.tree.map(lambda u: -value * u, updates), RateState(value)

  return optax.GradientTransformationExtraArgs(init, update)
