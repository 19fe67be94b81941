"""The keys and values of sequences that are being generated.

Entry s of a slot holds the token at position s. What lies beyond `lengths` is
left over from earlier use and is never seen: a query sees positions up to its
own, and every position is written before it is first seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from qed.models import sharding, specs
from qed.types import KVCache

_AXES = ('layers', 'batch', None, 'kv_heads', None)


def init(
  config: specs.Config,
  num_slots: int,
  max_length: int,
  *,
  dtype: jnp.dtype = jnp.bfloat16,
  mesh: Mesh | None = None,
) -> KVCache:
  """An empty cache: k and v [L, num_slots, max_length, K, H], lengths 0."""
  shape = (
    config.num_hidden_layers,
    num_slots,
    max_length,
    config.num_key_value_heads,
    config.head_dim,
  )
  if mesh is None:
    place, place_lengths = None, None
  else:
    place = NamedSharding(mesh, sharding.partition(_AXES))
    place_lengths = NamedSharding(mesh, sharding.partition(('batch',)))
  return KVCache(
    k=jnp.zeros(shape, dtype, device=place),
    v=jnp.zeros(shape, dtype, device=place),
    lengths=jnp.zeros((num_slots,), jnp.int32, device=place_lengths),
  )


def write(
  stacked: jax.Array,
  layer: jax.Array,
  values: jax.Array,
  positions: jax.Array,
) -> jax.Array:
  """Puts new keys or values of one layer into a stacked cache.

  Args:
    stacked: [L, B, S, K, H].
    layer: int32 [], the layer to write.
    values: [B, T, K, H].
    positions: int32 [B, T]; those outside 0..S-1 are dropped.

  Returns:
    The cache with the new entries; in place where `stacked` is donated.
  """
  rows = jnp.arange(values.shape[0])[:, None]
  return stacked.at[layer, rows, positions].set(
    values.astype(stacked.dtype), mode='drop', unique_indices=True
  )
