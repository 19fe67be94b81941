"""The keys and values of all slots, in pages strung together by block tables.

A page holds `page_size` consecutive tokens of one request, in all layers; row b
of a block table lists the pages of slot b in order. Who owns which page is the
host's business.

Each step of a chunk reads everything that its slots remember. Outside TPU no
product can read through a table, and gathering the pages for every step would
cost more than attention itself; so a chunk gathers them once, works on the
result, and appends its few new tokens to the pool in the end. Heads stand
before tokens, so that a page is copied in whole runs: this is six times as fast
on CPU as tokens before heads.

With int8 each vector of H numbers has a float32 scale, its largest magnitude
over 127. What attention sees is always what was stored, also for tokens of the
same call, so that a request resumed from its tokens sees the same cache.

On a mesh the pages are split over `data` in as many parts as the slots, and a
slot uses pages of its own part only; the heads are split over `tensor`.

Letters: `L` layers, `P` pages, `B` slots, `W` pages in a row of the table, `S`
tokens in them, `K` key/value heads, `H` head size, `X` H or, for scales, 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from qed.models import specs

KV_DTYPES = ('bfloat16', 'float32', 'int8')
# How the axes of a pool, a prefix, new tokens and gathered pages are split.
POOL = PartitionSpec(None, 'data', 'tensor', None, None)
PREFIX = PartitionSpec(None, 'tensor', None, None)
_NEW = PartitionSpec(None, None, 'data', 'tensor', None)
_VIEW = PartitionSpec('data', 'tensor', None, None)
_SLOTS = PartitionSpec('data', None)


class Vectors(NamedTuple):
  """Stored vectors; which axes they have depends on the place."""

  values: jax.Array  # [..., H]
  scales: jax.Array | None  # float32 [..., 1], with int8 alone.


class Entries(NamedTuple):
  """Stored keys and values.

  [L, P, K, page_size, X] in a pool, [L, K, S, X] in a prefix.
  """

  k: Vectors
  v: Vectors


def zeros(
  config: specs.Config, num_tokens: tuple[int, ...], kv_dtype: str
) -> Entries:
  """A pool for num_tokens = (P, page_size), a prefix for (S,); all zero."""
  *pages, length = num_tokens
  shape = (
    config.num_hidden_layers,
    *pages,
    config.num_key_value_heads,
    length,
    config.head_dim,
  )

  def vectors():
    if kv_dtype != 'int8':
      return Vectors(jnp.zeros(shape, kv_dtype), None)
    scales = jnp.zeros((*shape[:-1], 1), jnp.float32)
    return Vectors(jnp.zeros(shape, jnp.int8), scales)

  return Entries(vectors(), vectors())


def store(x: jax.Array, kv_dtype: str) -> Vectors:
  """Vectors [..., X] of x [..., H]."""
  if kv_dtype != 'int8':
    return Vectors(x.astype(kv_dtype), None)
  wide = x.astype(jnp.float32)
  scales = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / 127
  rounded = jnp.round(wide / jnp.where(scales > 0, scales, 1.0))
  return Vectors(rounded.astype(jnp.int8), scales)


def load(vectors: Vectors, dtype: jnp.dtype) -> jax.Array:
  """What attention sees of stored vectors: [..., H]."""
  if vectors.scales is None:
    return vectors.values.astype(dtype)
  return (vectors.values.astype(jnp.float32) * vectors.scales).astype(dtype)


def insert(
  pool: Entries,
  prefix: Entries,
  pages: jax.Array,
  sources: jax.Array,
  mesh: Mesh | None,
) -> Entries:
  """Copies pages of a prefix into the pool.

  Args:
    pool: [L, P, K, page_size, X].
    prefix: [L, K, S, X]; S is a multiple of page_size.
    pages: int32 [M], where to; numbers beyond P - 1 are dropped.
    sources: int32 [M], which page of the prefix.
    mesh: None on one device.
  """

  def copy(pool, prefix, pages, sources):
    num_pages, page_size = pool.k.values.shape[1::2]
    pages = local(pages, num_pages, mesh)

    def one(pool, prefix):
      L, K, _, X = prefix.shape
      cut = prefix.reshape(L, K, -1, page_size, X)[:, :, sources]
      return pool.at[:, pages].set(jnp.swapaxes(cut, 1, 2), mode='drop')

    return jax.tree.map(one, pool, prefix)

  whole = PartitionSpec()
  return on_parts(copy, mesh, (POOL, PREFIX, whole, whole), POOL)(
    pool, prefix, pages, sources
  )


def append(
  pool: Entries,
  new: Entries,
  tables: jax.Array,
  positions: jax.Array,
  valid: jax.Array,
  mesh: Mesh | None,
) -> Entries:
  """Writes new tokens of every slot.

  Args:
    pool: [L, P, K, page_size, X].
    new: [T, L, B, K, X].
    tables: int32 [B, W].
    positions: int32 [B, T], within the pages of the table where valid.
    valid: bool [B, T]; the others are dropped.
    mesh: None on one device.
  """

  def write(pool, new, tables, positions, valid):
    num_pages, page_size = pool.k.values.shape[1::2]
    columns = positions // page_size
    pages = jnp.take_along_axis(tables, columns, axis=1, mode='clip')
    pages = jnp.where(valid, local(pages, num_pages, mesh), num_pages)

    def one(pool, new):
      # Indices on both sides of a slice come first: [B, T, L, K, X].
      new = jnp.transpose(new, (2, 0, 1, 3, 4))
      return pool.at[:, pages, :, positions % page_size].set(new, mode='drop')

    return jax.tree.map(one, pool, new)

  return on_parts(write, mesh, (POOL, _NEW, _SLOTS, _SLOTS, _SLOTS), POOL)(
    pool, new, tables, positions, valid
  )


def gather(
  pool: Entries, tables: jax.Array, dtype: jnp.dtype, mesh: Mesh | None
) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """The pages of every slot strung together.

  Args:
    pool: [L, P, K, page_size, X].
    tables: int32 [B, W].
    dtype: of the result.
    mesh: None on one device.

  Returns:
    For each layer keys and values [B, K, S, H].
  """

  def string(pool, tables):
    num_pages = pool.k.values.shape[1]
    pages = jnp.minimum(local(tables, num_pages, mesh), num_pages - 1)

    def one(vectors, layer):
      taken = jax.tree.map(lambda x: x[layer, pages], vectors)
      taken = jnp.swapaxes(load(taken, dtype), 1, 2)  # [B, K, W, page_size, H]
      B, K, _, _, H = taken.shape
      return taken.reshape(B, K, -1, H)

    layers = range(pool.k.values.shape[0])
    return tuple((one(pool.k, i), one(pool.v, i)) for i in layers)

  return on_parts(string, mesh, (POOL, _SLOTS), _VIEW)(pool, tables)


def on_parts(function: Any, mesh: Mesh | None, in_specs: Any, out_specs: Any):
  """`function` for each device's part of the pages and of the heads."""
  if mesh is None:
    return function
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def local(pages: jax.Array, num_pages: int, mesh: Mesh | None) -> jax.Array:
  """Page numbers within this device's part of the pool; P: not one of them."""
  if mesh is not None:
    pages = pages - jax.lax.axis_index('data') * num_pages
  return jnp.where((pages >= 0) & (pages < num_pages), pages, num_pages)
