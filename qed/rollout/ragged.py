"""The cache as jax's ragged paged attention for TPU reads it.

The kernel follows the block tables itself, so nothing is gathered: a step
writes its token into the pool and attends over the pages in place, at the cost
of reading what each slot holds and no more. It wants tokens before heads, and
keys beside their values: entry 2j of the combined heads is key head j, 2j + 1
its value. It reads float pages alone, and heads of whole lanes.

Layers are folded into the page index, since a slice of the pool as operand of a
kernel would be copied.

Letters as in `paged_cache`; `N` query heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from qed.models import sharding, specs
from qed.rollout import paged_cache

_LANES = 128
_QUERIES_PER_BLOCK = 32
# The kernel issues one copy for each page of a block, and more of them than
# this spill its scalar registers (MAX_PAGES_PER_SEQ in its table of sizes).
_MAX_PAGES_PER_BLOCK = 16
# Of VMEM a kernel has 16 MiB on the generations with the least. With heads
# unsplit (Qwen3-4B) 8 MiB of pages need 16.7 MiB in all, by the compiler's word
# for v5p and v5e; half of that leaves room for models with more query heads.
_BLOCK_BYTES = 4 * 2**20

POOL = PartitionSpec(None, 'data', None, 'tensor', None)
_HEADS = PartitionSpec('data', 'tensor', None)
_SLOT = PartitionSpec('data')
_SLOTS = PartitionSpec('data', None)


class Pool(NamedTuple):
  """The pages of all layers."""

  values: jax.Array  # [L, P, page_size, 2K, H]


def is_possible(config: specs.Config, kv_dtype: str, mesh: Mesh | None) -> bool:
  """Whether the kernel can be used; what it cannot, `paged_cache` can."""
  return (
    sharding.platform(mesh) == 'tpu'
    and kv_dtype != 'int8'
    and config.head_dim % _LANES == 0
  )


def zeros(
  config: specs.Config, num_tokens: tuple[int, int], kv_dtype: str
) -> Pool:
  """A pool for num_tokens = (P, page_size)."""
  heads = 2 * config.num_key_value_heads
  shape = (config.num_hidden_layers, *num_tokens, heads, config.head_dim)
  return Pool(jnp.zeros(shape, kv_dtype))


def insert(
  pool: Pool,
  prefix: paged_cache.Entries,
  pages: jax.Array,
  sources: jax.Array,
  mesh: Mesh | None,
) -> Pool:
  """As `paged_cache.insert`."""

  def copy(pool, k, v, pages, sources):
    num_pages, page_size = pool.shape[1:3]
    both = _combine(*(jnp.swapaxes(x, 1, 2) for x in (k, v)))  # [L, S, 2K, H]
    cut = both.reshape(both.shape[0], -1, page_size, *both.shape[2:])
    pages = paged_cache.local(pages, num_pages, mesh)
    return pool.at[:, pages].set(cut[:, sources], mode='drop')

  whole, prefixes = PartitionSpec(), paged_cache.PREFIX
  specs_in = (POOL, prefixes, prefixes, whole, whole)
  return Pool(
    paged_cache.on_parts(copy, mesh, specs_in, POOL)(
      pool.values, prefix.k.values, prefix.v.values, pages, sources
    )
  )


def attend(
  pool: Pool,
  layer: jax.Array,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  tables: jax.Array,
  positions: jax.Array,
  active: jax.Array,
  mesh: Mesh | None,
) -> tuple[jax.Array, Pool]:
  """Writes one token of every slot and attends over what the slots hold.

  Args:
    pool: [L, P, page_size, 2K, H].
    layer: int32 [].
    q: [B, N, H] rotated queries.
    k: [B, K, H] rotated keys.
    v: [B, K, H] values.
    tables: int32 [B, W].
    positions: int32 [B], of the tokens.
    active: bool [B]; the others write nothing, and their output means nothing.
    mesh: None on one device.

  Returns:
    (output [B, N, H], the pool).
  """

  def run(pool, layer, q, k, v, tables, positions, active):
    num_pages, page_size = pool.shape[1:3]
    folded = pool.reshape(-1, *pool.shape[2:])
    column = (positions // page_size)[:, None]
    page = jnp.take_along_axis(tables, column, axis=1, mode='clip')[:, 0]
    page = paged_cache.local(page, num_pages, mesh)
    page = jnp.where(
      active & (page < num_pages), page + layer * num_pages, len(folded)
    )
    folded = folded.at[page, positions % page_size].set(
      _combine(k, v).astype(pool.dtype), mode='drop'
    )
    rows = paged_cache.local(tables, num_pages, mesh)
    rows = jnp.where(rows < num_pages, rows, 0) + layer * num_pages
    out = _kernel(q, folded, jnp.where(active, positions + 1, 1), rows)
    return out, folded.reshape(pool.shape)

  specs_in = (POOL, PartitionSpec(), *(_HEADS,) * 3, _SLOTS, _SLOT, _SLOT)
  out, values = paged_cache.on_parts(run, mesh, specs_in, (_HEADS, POOL))(
    pool.values, layer, q, k, v, tables, positions, active
  )
  return out, Pool(values)


def pages_per_block(pages: jax.Array, max_pages: int) -> int:
  """How many pages the kernel should read at once.

  It has two buffers, one to be filled while the other is used:

    2 x pages_per_block x page_size x 2K x H x bytes of a number <= 4 MiB

  Args:
    pages: [P, page_size, 2K, H], with the heads that one device has.
    max_pages: in a row of the tables.
  """
  page_bytes = math.prod(pages.shape[1:]) * pages.dtype.itemsize
  fitting = _BLOCK_BYTES // (2 * page_bytes)
  return max(1, min(fitting, _MAX_PAGES_PER_BLOCK, max_pages))


def _combine(k: jax.Array, v: jax.Array) -> jax.Array:
  """[..., 2K, H] of keys and values [..., K, H]."""
  both = jnp.stack([k, v], axis=-2)
  return both.reshape(*k.shape[:-2], -1, k.shape[-1])


def _kernel(q, pages, lengths, tables):
  """Attention of one query per slot: [B, N, H]."""
  # Imported here: the kernel's module is for TPU programs alone.
  from jax.experimental.pallas.ops.tpu import ragged_paged_attention as library

  num_slots = len(q)
  # Block sizes are given, since the kernel would look them up by the device at
  # hand, which is not the one that a plan compiles for.
  return library.ragged_paged_attention(
    q,
    pages,
    lengths,
    tables,
    jnp.arange(num_slots + 1, dtype=jnp.int32),
    jnp.array([num_slots], jnp.int32),
    sm_scale=q.shape[-1] ** -0.5,
    num_kv_pages_per_block=pages_per_block(pages, tables.shape[1]),
    num_queries_per_block=min(_QUERIES_PER_BLOCK, num_slots),
  )
