"""The part of the trainer of `qed grpo` that lies on the whole mesh.

Every process of the run has one, and all call the same methods with the same
arguments in the same order (qed/gang.py sees to that). Everything here blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from qed import samplers
from qed.preparation import Run
from qed.training import initial, scoring, steps
from qed.training.checkpoints import Checkpointer
from qed.types import GrpoBatch, PackedBatch, TrainState


class Learner:
  """Owns the state of the run, and the programs that change it."""

  def __init__(self, run: Run, state: TrainState, checkpointer: Checkpointer):
    """Takes over a state.

    Args:
      run: what is trained.
      state: at any step; do not use it afterwards.
      checkpointer: of the run; `close` closes it.
    """
    self._run, self._state, self._checkpointer = run, state, checkpointer
    config = run.config
    settings = dict(
      model=run.model, compute=steps.Compute.from_config(config, run.mesh)
    )
    objective = steps.PolicyLoss.from_config(
      config.loss, temperature=config.sampling.temperature
    )
    abstract = steps.abstract_state(run.model, run.tx, run.mesh)
    self._step = steps.compile_step(
      functools.partial(
        steps.grpo_step, tx=run.tx, objective=objective, **settings
      ),
      run.mesh,
      abstract,
    )
    self._score = scoring.compile_score(
      run.mesh,
      abstract.params,
      temperature=config.sampling.temperature,
      **settings,
    )
    self._reference = None
    if config.loss.kl_coef:
      self._reference = initial.read_params(
        config.model.path, run.model, run.mesh, seed=config.training.seed
      )
    dtype = jnp.dtype(config.model.dtype)
    self._copy = jax.jit(
      # Without the copy, jit would hand out the state's own arrays, which the
      # next step donates.
      lambda params: jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), params),
      out_shardings=jax.tree.map(lambda x: x.sharding, abstract.params),
    )

  def step(
    self, batch: GrpoBatch, inspected: PackedBatch | None
  ) -> tuple[dict[str, float], np.ndarray | None]:
    """Takes a step.

    Args:
      batch: numpy arrays [A, B, T], without reference log-probabilities.
      inspected: what to score under the weights that the step starts from.

    Returns:
      The metrics of the step, and the scores of `inspected` as [A, B, T].
    """
    mesh, scores = self._run.mesh, None
    if inspected is not None:
      scores = _whole(
        self._score(self._state.params, steps.place_batch(inspected, mesh))
      )
    placed = steps.place_batch(batch, mesh)
    if self._reference is not None:
      placed = placed._replace(
        reference_logprobs=self._score(self._reference, placed.packed)
      )
    self._state, values = self._step(self._state, placed)
    return {k: float(v) for k, v in jax.device_get(values).items()}, scores

  def hand_out(self, version: int) -> dict[str, Any] | None:
    """The weights for samplers, in the dtype that those compute in.

    Several processes write them where samplers find them, now: each has a part
    only, and no other collective may come between.

    Args:
      version: the step that made them.

    Returns:
      A copy, or None where they are published already.
    """
    if jax.process_count() == 1:
      return self._copy(self._state.params)
    samplers.publish(self._run, self._state.params, version)
    return None

  def save(self, step: int, extra: Mapping[str, Any]) -> None:
    """Saves the state as the checkpoint of a step; extra as it has it."""
    self._checkpointer.save(step, self._state, extra)

  def close(self) -> None:
    """Waits for the last save."""
    self._checkpointer.close()


def _whole(x: jax.Array) -> np.ndarray:
  """An array of which every process may have a part only."""
  if not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)
