"""Log-probabilities of a batch under given weights, without gradients.

For the reference policy, which a penalty compares with, and for looking at
single tokens of the policy itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from qed.algos.logprobs import token_logprobs
from qed.models import qwen3, specs
from qed.training import steps
from qed.types import PackedBatch

Params = dict[str, Any]


def score(
  params: Params,
  batch: PackedBatch,
  *,
  model: specs.Config,
  compute: steps.Compute,
  temperature: float,
) -> jax.Array:
  """Log π of the targets under softmax(logits / temperature).

  Args:
    params: weights, in any dtype.
    batch: arrays [A, B, T].
    model: the model.
    compute: how.
    temperature: the sampler's.

  Returns:
    float32 [A, B, T].
  """

  def score_microbatch(packed: PackedBatch) -> jax.Array:
    hidden = qwen3.apply(
      params,
      packed.tokens,
      packed.positions,
      packed.segment_ids,
      config=model,
      dtype=jnp.dtype(compute.dtype),
      remat='none',
      attention_kernel=compute.attention,
      mesh=compute.mesh,
    )
    logprobs, _ = token_logprobs(
      hidden,
      qwen3.output_head(params),
      packed.targets,
      temperature=temperature,
      chunk_size=compute.chunk_size,
      mesh=compute.mesh,
    )
    return logprobs

  return jax.lax.map(score_microbatch, batch)


def compile_score(
  mesh: Mesh, params: Params, **settings: Any
) -> Callable[[Params, PackedBatch], jax.Array]:
  """Jits `score`, once per number of microbatches.

  Args:
    mesh: of the settings' `compute`.
    params: an example with shardings.
    **settings: the other keywords of `score`.

  Returns:
    A function of weights, which remain usable, and a batch.
  """
  places = jax.tree.map(lambda x: x.sharding, params)
  batch = NamedSharding(mesh, steps.BATCH_SPEC)
  return jax.jit(
    functools.partial(score, **settings),
    in_shardings=(places, batch),
    out_shardings=batch,
  )
