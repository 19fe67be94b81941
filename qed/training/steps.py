"""A training step: from a global batch [A, B, T] to the next state.

A batch comes as A microbatches of B rows. The loss of each is a sum over
tokens; the sums and their gradients are added up in float32 and divided once,
by a scalar taken over the whole batch before anything is split. So neither the
number of microbatches, nor the packing, nor the mesh can change the update.

`state.step` counts batches. A batch whose gradient is NaN or infinite, or that
has nothing to train on, is skipped: weights and moments stay as they were, and
the step still goes up by one, so that the next batch and the next learning
rate are those of a run in which it had been harmless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qed.algos import losses
from qed.algos.logprobs import token_logprobs
from qed.models import qwen3, sharding, specs
from qed.types import GrpoBatch, PackedBatch, TrainState

Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Batch = PackedBatch | GrpoBatch
# (params, microbatch) -> (sum over tokens, metrics that add up)
Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]

# [A, B, T]: rows over `data`, positions over `context`.
BATCH_SPEC = PartitionSpec(None, 'data', 'context')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
  """How a loss is computed; none of it changes what is computed."""

  dtype: str  # Of the model's arithmetic: 'bfloat16' or 'float32'.
  remat: str  # A key of qwen3.REMAT.
  attention: str | None  # A kernel; None picks the platform's.
  chunk_size: int  # Tokens per device whose logits exist at the same time.
  mesh: Mesh | None  # None on one device.

  @classmethod
  def from_config(cls, config: Any, mesh: Mesh) -> Compute:
    """Of a config.SftConfig or config.GrpoConfig."""
    kernel = config.model.attention
    return cls(
      dtype=config.model.dtype,
      remat=config.model.remat,
      attention=None if kernel == 'auto' else kernel,
      chunk_size=config.training.logprob_chunk_size,
      mesh=mesh,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
  """What `grpo_loss` minimises; the terms are those of algos.losses."""

  kind: Literal['ppo', 'reinforce', 'cispo', 'gspo']
  clip_low: float
  clip_high: float
  dual_clip: float  # 0 for none.
  correction: Literal['none', 'truncate', 'mask']
  correction_low: float
  correction_high: float
  sequence_mean: bool
  entropy_coef: float
  kl_coef: float  # 0: the batch needs no reference log-probabilities.
  kl_estimator: Literal['k1', 'k2', 'k3']
  normalizer: Literal['sequences', 'tokens', 'constant']
  normalizer_constant: float  # Tokens per sequence; 0 but for 'constant'.
  temperature: float  # The sampler's.

  @classmethod
  def from_config(cls, loss: Any, *, temperature: float) -> PolicyLoss:
    """Of a config.LossConfig, whose other fields are the host's to read."""
    names = {field.name for field in dataclasses.fields(cls)} - {'temperature'}
    values = {name: getattr(loss, name) for name in names}
    return cls(temperature=temperature, **values)


# Losses: of one microbatch [B, T], summed.


def sft_loss(
  params: Params, batch: PackedBatch, *, model: specs.Config, compute: Compute
) -> tuple[jax.Array, Metrics]:
  """Cross-entropy of the tokens that the assistant wrote.

  Args:
    params: weights, in any dtype.
    batch: arrays [B, T].
    model: the model.
    compute: how.

  Returns:
    The sum over the tokens of the mask, and metrics to be added up.
  """
  logprobs, _ = _token_logprobs(
    params, batch, model=model, compute=compute, temperature=1.0
  )
  loss, metrics = losses.cross_entropy(logprobs, batch.loss_mask)
  return jnp.sum(loss), metrics


def grpo_loss(
  params: Params,
  batch: GrpoBatch,
  *,
  model: specs.Config,
  compute: Compute,
  objective: PolicyLoss,
) -> tuple[jax.Array, Metrics]:
  """The policy gradient, with an entropy bonus and a KL penalty.

  Args:
    params: weights, in any dtype.
    batch: arrays [B, T]; with `reference_logprobs` where kl_coef > 0.
    model: the model.
    compute: how.
    objective: which loss.

  Returns:
    The sum over the tokens of the mask, and metrics to be added up.

  Raises:
    ValueError: kl_coef > 0 and no reference log-probabilities.
  """
  packed = batch.packed
  mask = packed.loss_mask
  logprobs, entropy = _token_logprobs(
    params,
    packed,
    model=model,
    compute=compute,
    temperature=objective.temperature,
  )
  loss, metrics = _policy_term(logprobs, batch, objective)
  bonus, entropy_metrics = losses.entropy_bonus(entropy, mask)
  loss += objective.entropy_coef * bonus
  metrics |= entropy_metrics
  if objective.kl_coef:
    if batch.reference_logprobs is None:
      raise ValueError(
        f'kl_coef = {objective.kl_coef}: expected a batch with '
        'reference_logprobs, got None'
      )
    penalty, kl_metrics = losses.kl(
      logprobs,
      batch.reference_logprobs,
      mask,
      estimator=objective.kl_estimator,
    )
    loss += objective.kl_coef * penalty
    metrics |= kl_metrics
  if objective.sequence_mean:
    loss *= losses.sequence_weights(mask, packed.segment_ids)
  return jnp.sum(loss), metrics


def _policy_term(
  logprobs: jax.Array, batch: GrpoBatch, objective: PolicyLoss
) -> tuple[jax.Array, Metrics]:
  """The policy loss, float32 [B, T], and its metrics.

  A correction takes the policy at the start of the step as the old one, which
  is the present one, since a batch makes one update: the weights then hold all
  that lies between it and the sampler, lag as well as rounding.
  """
  behavior, mask = batch.behavior_logprobs, batch.packed.loss_mask
  is_corrected = objective.correction != 'none'
  loss, metrics = losses.policy_loss(
    logprobs,
    jax.lax.stop_gradient(logprobs) if is_corrected else behavior,
    batch.advantages,
    mask,
    batch.packed.segment_ids,
    kind=objective.kind,
    clip_low=objective.clip_low,
    clip_high=objective.clip_high,
    dual_clip=objective.dual_clip or None,
  )
  if not is_corrected:
    return loss, metrics
  weights, weight_metrics = losses.importance_weights(
    logprobs,
    behavior,
    mask,
    kind=objective.correction,
    low=objective.correction_low,
    high=objective.correction_high,
  )
  loss *= weights
  return loss, {
    **metrics,
    **losses.drift(logprobs, behavior, mask),
    **weight_metrics,
    'policy/loss_sum': jnp.sum(loss),
  }


def _token_logprobs(
  params: Params,
  batch: PackedBatch,
  *,
  model: specs.Config,
  compute: Compute,
  temperature: float,
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of the targets and entropies, float32 [B, T]."""
  hidden = qwen3.apply(
    params,
    batch.tokens,
    batch.positions,
    batch.segment_ids,
    config=model,
    dtype=jnp.dtype(compute.dtype),
    remat=compute.remat,
    attention_kernel=compute.attention,
    mesh=compute.mesh,
  )
  return token_logprobs(
    hidden,
    qwen3.output_head(params),
    batch.targets,
    temperature=temperature,
    chunk_size=compute.chunk_size,
    mesh=compute.mesh,
  )


# Steps: of a global batch [A, B, T].


def sft_step(
  state: TrainState,
  batch: PackedBatch,
  *,
  model: specs.Config,
  compute: Compute,
  tx: optax.GradientTransformationExtraArgs,
) -> tuple[TrainState, Metrics]:
  """One update towards the tokens of the mask; loss: their mean.

  Args:
    state: the state before.
    batch: arrays [A, B, T].
    model: the model.
    compute: how.
    tx: of `optimizer.make`.

  Returns:
    The state after, and the metrics of `_update` beside those of `sft_loss`.
  """
  normalizer = losses.normalizer(
    batch.loss_mask, batch.segment_ids, kind='tokens'
  )

  def loss(params, microbatch):
    return sft_loss(params, microbatch, model=model, compute=compute)

  mean, grads, metrics = accumulate(loss, state.params, batch, normalizer)
  return _update(state, mean, grads, metrics, batch.loss_mask, tx)


def grpo_step(
  state: TrainState,
  batch: GrpoBatch,
  *,
  model: specs.Config,
  compute: Compute,
  objective: PolicyLoss,
  tx: optax.GradientTransformationExtraArgs,
) -> tuple[TrainState, Metrics]:
  """One policy-gradient update; loss: the sum over the normalizer.

  Args:
    state: the state before.
    batch: arrays [A, B, T].
    model: the model.
    compute: how.
    objective: which loss.
    tx: of `optimizer.make`.

  Returns:
    The state after, and the metrics of `_update` beside those of `grpo_loss`.
  """
  packed = batch.packed
  normalizer = losses.normalizer(
    packed.loss_mask,
    packed.segment_ids,
    kind=objective.normalizer,
    constant=objective.normalizer_constant or None,
  )

  def loss(params, microbatch):
    return grpo_loss(
      params, microbatch, model=model, compute=compute, objective=objective
    )

  mean, grads, metrics = accumulate(loss, state.params, batch, normalizer)
  return _update(state, mean, grads, metrics, packed.loss_mask, tx)


def sft_eval(
  params: Params, batch: PackedBatch, *, model: specs.Config, compute: Compute
) -> Metrics:
  """The metrics of `sft_loss` over a batch [A, B, T], without gradients."""

  def add(total, microbatch):
    _, metrics = sft_loss(params, microbatch, model=model, compute=compute)
    return jax.tree.map(jnp.add, total, metrics), None

  first = jax.tree.map(lambda x: x[0], batch)
  _, shapes = jax.eval_shape(
    lambda b: sft_loss(params, b, model=model, compute=compute), first
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, batch)[0]


def accumulate(
  loss: Loss, params: Params, batch: Batch, normalizer: jax.Array
) -> tuple[jax.Array, Params, Metrics]:
  """Adds a loss and its gradient up over microbatches, in float32.

  Args:
    loss: of one microbatch [B, T].
    params: weights.
    batch: arrays [A, B, T].
    normalizer: float32 []; the sums are divided by it, once.

  Returns:
    The loss, its gradient, and the sums of the metrics.
  """
  grad = jax.value_and_grad(loss, has_aux=True)

  def add(total, microbatch):
    return jax.tree.map(
      lambda t, x: t + x.astype(t.dtype), total, grad(params, microbatch)
    ), None

  shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], batch))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
  ((loss_sum, metrics), grads), _ = jax.lax.scan(add, zeros, batch)
  grads = jax.tree.map(lambda g: g / normalizer, grads)
  return loss_sum / normalizer, grads, metrics


def _update(
  state: TrainState,
  loss: jax.Array,
  grads: Params,
  metrics: Metrics,
  mask: jax.Array,
  tx: optax.GradientTransformationExtraArgs,
) -> tuple[TrainState, Metrics]:
  """The optimizer's part of a step, and what every step reports.

  `loss`, `tokens` (trained on), and under `optim/` grad_norm (before it is
  clipped), update_norm, param_norm (after the update), lr, and skipped (1 where
  a gradient was not finite; where there are no tokens it is 0, and nothing is
  updated either).
  """
  tokens = jnp.sum(mask, dtype=jnp.float32)
  grad_norm = optax.tree.norm(grads)
  is_finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
  applies = is_finite & (tokens > 0)
  updates, opt_state = tx.update(
    grads, state.opt_state, state.params, step=state.step
  )
  lr = optax.tree.get(opt_state, 'learning_rate')
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(applies, new, old),
    (optax.apply_updates(state.params, updates), opt_state),
    (state.params, state.opt_state),
  )
  update_norm = jnp.where(applies, optax.tree.norm(updates), 0.0)
  return TrainState(state.step + 1, params, opt_state), metrics | {
    'loss': loss,
    'tokens': tokens,
    'optim/grad_norm': grad_norm,
    'optim/update_norm': update_norm,
    'optim/param_norm': optax.tree.norm(params),
    'optim/lr': lr,
    'optim/skipped': 1.0 - is_finite.astype(jnp.float32),
  }


# Where things live.


def init_state(
  params: Params,
  model: specs.Config,
  tx: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """A state at step 0, of which `params` may become a part.

  A step donates its state: do not use `params` afterwards.
  """
  abstract = abstract_state(model, tx, mesh)
  places = jax.tree.map(lambda x: x.sharding, abstract)
  params = jax.tree.map(
    lambda x, target: jax.device_put(x.astype(target.dtype), target.sharding),
    params,
    abstract.params,
  )
  opt_state = jax.jit(tx.init, out_shardings=places.opt_state)(params)
  step = jax.device_put(jnp.zeros([], jnp.int32), places.step)
  return TrainState(step, params, opt_state)


def abstract_state(
  model: specs.Config, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """The state as jax.ShapeDtypeStruct with shardings; nothing is allocated.

  Moments lie where their weights do, and scalars everywhere.

  Raises:
    ValueError: the mesh does not divide the weights.
  """
  replicated = NamedSharding(mesh, PartitionSpec())
  places = sharding.param_shardings(model, mesh)
  params = jax.tree.map(_struct, specs.abstract(model), places)
  opt_state = optax.tree.map_params(
    tx,
    _struct,
    jax.eval_shape(tx.init, params),
    places,
    transform_non_params=lambda x: _struct(x, replicated),
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
  return TrainState(step, params, opt_state)


def abstract_batch(
  num_microbatches: int,
  num_rows: int,
  row_length: int,
  mesh: Mesh,
  kind: Literal['sft', 'grpo'],
  *,
  with_reference: bool = False,
) -> Batch:
  """A batch [A, B, T] as jax.ShapeDtypeStruct with shardings.

  Args:
    num_microbatches: A.
    num_rows: B, over the whole mesh.
    row_length: T.
    mesh: rows lie over `data`, positions over `context`.
    kind: of step.
    with_reference: whether a 'grpo' batch has reference log-probabilities.
  """

  def array(dtype):
    return jax.ShapeDtypeStruct(
      (num_microbatches, num_rows, row_length),
      dtype,
      sharding=NamedSharding(mesh, BATCH_SPEC),
    )

  packed = PackedBatch(
    tokens=array(jnp.int32),
    targets=array(jnp.int32),
    positions=array(jnp.int32),
    segment_ids=array(jnp.int32),
    loss_mask=array(jnp.bool_),
  )
  if kind == 'sft':
    return packed
  return GrpoBatch(
    packed=packed,
    behavior_logprobs=array(jnp.float32),
    advantages=array(jnp.float32),
    reference_logprobs=array(jnp.float32) if with_reference else None,
  )


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
  """Puts a batch on the devices.

  Args:
    batch: numpy arrays [A, B, T], the whole global batch on every process, each
      of which copies the part of its own devices.
    mesh: its axes `data` and `context` divide B and T.
  """
  place = NamedSharding(mesh, BATCH_SPEC)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, place, lambda index: np.asarray(x[index])
    ),
    batch,
  )


def compile_step(
  step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
  mesh: Mesh,
  state: TrainState,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Jits a step, once per number of microbatches.

  Args:
    step: `sft_step` or `grpo_step` with its keywords filled in.
    mesh: of its `Compute`.
    state: an example with shardings, such as `abstract_state`.

  Returns:
    The step; it takes over the state's memory, which cannot be used any more.
    Its metrics are on every device.
  """
  places = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    step,
    in_shardings=(places, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=(places, NamedSharding(mesh, PartitionSpec())),
    donate_argnums=0,
  )


def compile_eval(
  evaluate: Callable[[Params, Batch], Metrics], mesh: Mesh, params: Params
) -> Callable[[Params, Batch], Metrics]:
  """Jits `sft_eval` likewise; the weights remain usable."""
  places = jax.tree.map(lambda x: x.sharding, params)
  return jax.jit(
    evaluate,
    in_shardings=(places, NamedSharding(mesh, BATCH_SPEC)),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )


def _struct(x, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
