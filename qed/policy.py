"""The trainer of `qed grpo`: from the groups of a step to the next weights.

Everything here blocks, and is called from one thread at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from qed.algos import advantages
from qed.config import GrpoConfig
from qed.data import packing
from qed.models import specs
from qed.rollout import groups, health
from qed.rollout.groups import Share
from qed.training import initial, metrics, scoring, steps
from qed.types import RolloutGroup, TrainingSample, TrainState


class Update(NamedTuple):
  """What a step did."""

  record: dict[str, float]
  # Trainer's log-probabilities of the completion tokens of some rollouts:
  # (share, member, float32 [n]).
  inspected: list[tuple[Share, int, np.ndarray]]


class Trainer:
  """Owns the state of the run, and the programs that change it."""

  def __init__(
    self,
    config: GrpoConfig,
    model: specs.Config,
    tx: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    state: TrainState,
  ):
    """Takes over a state.

    Args:
      config: of the run.
      model: the model.
      tx: the optimizer.
      mesh: of the state.
      state: at any step; do not use it afterwards.
    """
    self._config, self._model, self._mesh = config, model, mesh
    self.state = state
    self.num_done = int(state.step)
    self._advantage = _advantage(config)
    kernel = config.model.attention
    settings = dict(
      model=model,
      compute=steps.Compute(
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=None if kernel == 'auto' else kernel,
        chunk_size=config.training.logprob_chunk_size,
        mesh=mesh,
      ),
    )
    objective = steps.PolicyLoss.from_config(
      config.loss, temperature=config.sampling.temperature
    )
    abstract = steps.abstract_state(model, tx, mesh)
    self._step = steps.compile_step(
      functools.partial(
        steps.grpo_step, tx=tx, objective=objective, **settings
      ),
      mesh,
      abstract,
    )
    self._score = scoring.compile_score(
      mesh,
      abstract.params,
      temperature=config.sampling.temperature,
      **settings,
    )
    self._reference = None
    if config.loss.kl_coef:
      self._reference = initial.read_params(
        config.model.path, model, mesh, seed=config.training.seed
      )
    dtype = jnp.dtype(config.model.dtype)
    self._copy = jax.jit(
      # Without the copy, jit would hand out the state's own arrays, which the
      # next step donates.
      lambda params: jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), params),
      out_shardings=jax.tree.map(lambda x: x.sharding, abstract.params),
    )
    self._is_compiled = False

  def weights(self) -> dict[str, Any]:
    """A copy of the weights, in the dtype that samplers compute in."""
    return self._copy(self.state.params)

  def share(self, group: RolloutGroup) -> Share:
    """What the next step gets of a group."""
    rollout = self._config.rollout
    return groups.share(
      group,
      self._advantage,
      step=self.num_done,
      max_lag=rollout.max_lag,
      mask_truncated=rollout.mask_truncated,
      drop_zero_signal=rollout.zero_signal == 'drop',
    )

  def update(self, shares: Sequence[Share]) -> Update:
    """Takes a step.

    Args:
      shares: of all groups of the step, of `share`.

    Returns:
      The step's own metrics, and those of `rollout.health`.
    """
    samples = [sample for share in shares for sample in share.samples]
    batch = packing.pack_grpo(samples, self._shape())
    inspected = self._inspect(shares)
    placed = steps.place_batch(batch, self._mesh)
    if self._reference is not None:
      placed = placed._replace(
        reference_logprobs=self._score(self._reference, placed.packed)
      )
    self.state, values = self._step(self.state, placed)
    sums = {k: float(v) for k, v in jax.device_get(values).items()}
    record = {k: v for k, v in sums.items() if not k.startswith('policy/')}
    record |= health.of_loss(sums) | health.of_batch(shares, step=self.num_done)
    record |= health.of_tokens(
      [logprobs for *_, logprobs in inspected],
      [_completion(s, m).logprobs for s, m, _ in inspected],
      [_completion(s, m).versions for s, m, _ in inspected],
      step=self.num_done,
    )
    record |= packing.packing_metrics(batch.packed)
    self.num_done += 1
    return Update(record, inspected)

  def throughput(
    self, shares: Sequence[Share], secs: float
  ) -> dict[str, float]:
    """Of a step that took so long; nothing of the first, which compiles."""
    lengths = [len(x.token_ids) - 1 for share in shares for x in share.samples]
    if not self._is_compiled:
      self._is_compiled = True
      return {}
    return metrics.throughput(self._model, np.array(lengths), secs)

  def _inspect(
    self, shares: Sequence[Share]
  ) -> list[tuple[Share, int, np.ndarray]]:
    """Scores some groups under the weights that the step starts from.

    Other groups at every step, so that all positions of a batch come round.
    """
    count = min(self._config.health.max_inspected_groups, len(shares))
    first = self.num_done * count
    chosen = [
      (share, member, sample)
      for share in (shares[(first + i) % len(shares)] for i in range(count))
      for member, sample in zip(share.members, share.samples, strict=True)
    ]
    if not chosen:
      return []
    samples = [sample for *_, sample in chosen]
    shape = self._inspection_shape()
    packed = packing.pack(samples, shape)
    scores = np.asarray(
      self._score(self.state.params, steps.place_batch(packed, self._mesh))
    ).reshape(-1, shape.row_length)
    return [
      (share, member, _of_completion(scores[row, start:], sample))
      for (share, member, sample), (row, start) in zip(
        chosen, _places(samples, shape.row_length), strict=True
      )
    ]

  def _shape(self) -> packing.BatchShape:
    return packing.BatchShape(**dataclasses.asdict(self._config.packing))

  def _inspection_shape(self) -> packing.BatchShape:
    """One microbatch, or as many as the inspected groups may need."""
    config = self._config
    longest = config.problems.max_prompt_tokens + config.sampling.max_tokens
    num_samples = config.health.max_inspected_groups * config.rollout.group_size
    per_row = config.packing.row_length // (longest - 1)
    most = -(-num_samples // (per_row * config.packing.num_rows))
    return packing.BatchShape(
      num_rows=config.packing.num_rows,
      row_length=config.packing.row_length,
      microbatch_counts=tuple(sorted({1, most})),
    )


def _places(
  samples: Sequence[TrainingSample], row_length: int
) -> list[tuple[int, int]]:
  """The row of each sample in a packed batch, and where in it it begins."""
  lengths = [len(sample.token_ids) - 1 for sample in samples]
  places = {}
  for row, indices in enumerate(packing.first_fit(lengths, row_length)):
    start = 0
    for index in indices:
      places[index] = (row, start)
      start += lengths[index]
  return [places[index] for index in range(len(samples))]


def _of_completion(scores: np.ndarray, sample: TrainingSample) -> np.ndarray:
  """The scores at the completion, of scores by target from the sample on."""
  return scores[: len(sample.token_ids) - 1][sample.loss_mask[1:]]


def _completion(share: Share, member: int):
  return share.group.rollouts[member].completion


def _advantage(config: GrpoConfig) -> groups.Advantage:
  """The advantage over one group, compiled for its size."""
  loss, settings = config.loss, {}
  if loss.advantage == 'z_score':
    settings = {'eps': loss.z_score_eps, 'ddof': loss.z_score_ddof}
  return jax.jit(
    functools.partial(getattr(advantages, loss.advantage), **settings)
  )
