"""Grouped-query attention behind one interface, one implementation a platform.

The rule everywhere: a query sees a key when both carry the same segment id and
the key's position is not beyond the query's. In a packed row that is causal
attention inside each sample; over a cache it is attention to the filled prefix.

No implementation holds a [T, S] array beyond one block:

* `dense` is one block, for short rows and for decoding a single token;
* `blockwise` is flash attention (arXiv 2205.14135; backward of 2307.08691) as
  two XLA loops that skip the blocks nobody sees, for CPU and GPU;
* `splash` is jax's Pallas kernel for TPU.

Letters: `B` rows, `T` queries, `S` keys, `N` query heads, `K` key/value heads,
`R` = N / K, `H` head size.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from qed.models import sharding

# Rows of one block of scores. 512 x 512 float32 scores of a head are 1 MB.
BLOCK_SIZE = 512
# Scores that may not be seen; finite, so that a fully masked row is not NaN.
MASKED = -1e30
# The name under which remat policies save the output and its logsumexp, so
# that the backward pass does not run the forward kernel again.
SAVED = 'attention'


def attend_packed(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: jax.Array,
  segment_ids: jax.Array,
  *,
  mesh: Mesh | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Attention inside the samples of packed rows, forward and backward.

  With a `context` mesh axis, heads and positions trade places around the
  kernel (Ulysses, arXiv 2309.14509): every device attends over whole rows for
  its share of the heads, which balances causal work without reordering.
  Key/value heads are repeated where there are fewer of them than shards.

  Args:
    q: [B, T, N, H] rotated queries.
    k: [B, T, K, H] rotated keys.
    v: [B, T, K, H] values.
    positions: int32 [B, T], increasing inside a sample.
    segment_ids: int32 [B, T], equal inside a sample, whose tokens are adjacent.
    mesh: rows are split over `data`, positions over `context`, heads over
      `tensor`; None on one device.
    implementation: a key of `IMPLEMENTATIONS`; None picks the platform's.

  Returns:
    [B, T, N, H] in q's dtype.

  Raises:
    ValueError: the implementation is unknown, or the heads of a `tensor` shard
      cannot be divided over `context`.
  """
  if implementation is None:
    implementation = (
      'splash' if sharding.platform(mesh) == 'tpu' else 'blockwise'
    )
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'unknown attention implementation {implementation!r}; there are '
      f'{sorted(IMPLEMENTATIONS)}'
    )
  kernel = IMPLEMENTATIONS[implementation]
  if mesh is None:
    return kernel(q, k, v, positions, segment_ids)
  heads = PartitionSpec('data', 'context', 'tensor', None)
  tokens = PartitionSpec('data', 'context')
  return jax.shard_map(
    functools.partial(_attend_shard, kernel, mesh.shape['context']),
    mesh=mesh,
    in_specs=(heads, heads, heads, tokens, tokens),
    out_specs=heads,
    check_vma=False,
  )(q, k, v, positions, segment_ids)


def _attend_shard(kernel, num_shards, q, k, v, positions, segment_ids):
  """One device's part of `attend_packed`."""
  if num_shards == 1:
    return kernel(q, k, v, positions, segment_ids)
  num_q, num_kv = q.shape[2], k.shape[2]
  if num_q % num_shards:
    raise ValueError(
      f'{num_q} query heads per tensor shard cannot be divided over '
      f'context={num_shards}; lower context or tensor'
    )
  repeats = num_shards // math.gcd(num_kv, num_shards)

  def scatter_heads(x):
    return jax.lax.all_to_all(
      x, 'context', split_axis=2, concat_axis=1, tiled=True
    )

  def gather_tokens(x):
    return jax.lax.all_gather(x, 'context', axis=1, tiled=True)

  out = kernel(
    scatter_heads(q),
    scatter_heads(jnp.repeat(k, repeats, axis=2)),
    scatter_heads(jnp.repeat(v, repeats, axis=2)),
    gather_tokens(positions),
    gather_tokens(segment_ids),
  )
  return jax.lax.all_to_all(
    out, 'context', split_axis=1, concat_axis=2, tiled=True
  )


def attend_cache(
  q: jax.Array, k: jax.Array, v: jax.Array, q_positions: jax.Array
) -> jax.Array:
  """Attention of new tokens over a cache that already holds them.

  Args:
    q: [B, T, N, H] rotated queries.
    k: [B, S, K, H] rotated keys; entry s is the token at position s.
    v: [B, S, K, H] values.
    q_positions: int32 [B, T]; entries of the cache beyond are not seen.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  kv_positions = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
  one = jnp.ones_like
  kernel = dense if q.shape[1] == 1 else blockwise
  return kernel(
    q, k, v, q_positions, one(q_positions), kv_positions, one(kv_positions)
  )


def attend_heads(
  q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array
) -> jax.Array:
  """Attention of one new token per slot over a cache that holds it already.

  Args:
    q: [B, 1, N, H] rotated queries.
    k: [B, K, S, H] rotated keys; entry s is the token at position s.
    v: [B, K, S, H] values.
    positions: int32 [B], of the tokens; what lies beyond is not seen.

  Returns:
    [B, 1, N, H] in q's dtype.
  """
  B, _, N, H = q.shape
  K, S = k.shape[1:3]
  scores = jnp.einsum(
    'bkrh,bksh->bkrs',
    q.reshape(B, K, N // K, H),
    k,
    preferred_element_type=jnp.float32,
  )
  visible = jnp.arange(S)[None] <= positions[:, None]
  scores = jnp.where(visible[:, None, None], scores * H**-0.5, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum(
    'bkrs,bksh->bkrh', weights, v, preferred_element_type=jnp.float32
  )
  return out.reshape(B, 1, N, H).astype(q.dtype)


def dense(
  q,
  k,
  v,
  positions,
  segment_ids,
  kv_positions=None,
  kv_segment_ids=None,
):
  """The rule in one block: holds [B, N, T, S] scores in float32."""
  kv_positions = positions if kv_positions is None else kv_positions
  kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
  B, T, N, H = q.shape
  K = k.shape[2]
  q = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum(
    'btkrh,bskh->bkrts', q, k, preferred_element_type=jnp.float32
  )
  visible = _visible(positions, segment_ids, kv_positions, kv_segment_ids)
  scores = jnp.where(visible[:, None, None], scores * H**-0.5, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum(
    'bkrts,bskh->btkrh', weights, v, preferred_element_type=jnp.float32
  )
  return checkpoint_name(out.reshape(B, T, N, H).astype(q.dtype), SAVED)


def _visible(q_positions, q_segment_ids, kv_positions, kv_segment_ids):
  """Bool [B, T, S]: which query sees which key."""
  same = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
  return same & (q_positions[:, :, None] >= kv_positions[:, None, :])


def blockwise(
  q,
  k,
  v,
  positions,
  segment_ids,
  kv_positions=None,
  kv_segment_ids=None,
):
  """Flash attention as XLA loops over blocks of queries and of keys."""
  kv_positions = positions if kv_positions is None else kv_positions
  kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
  if max(q.shape[1], k.shape[1]) <= BLOCK_SIZE:
    return dense(q, k, v, positions, segment_ids, kv_positions, kv_segment_ids)
  B, T, N, H = q.shape
  K = k.shape[2]
  # [B, K, R, T, H]: a block of queries of one key head is one matrix.
  q_heads = jnp.moveaxis(q.reshape(B, T, K, N // K, H), 1, 3)
  k_heads, v_heads = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
  # Padding belongs to segments that no real token has.
  queries = jnp.stack([positions, segment_ids])
  keys = jnp.stack([kv_positions, kv_segment_ids])
  out = _flash(
    _pad_axis(q_heads * jnp.asarray(H**-0.5, q.dtype), 3),
    _pad_axis(k_heads, 2),
    _pad_axis(v_heads, 2),
    _pad_axis(queries, 2, value=-1),
    _pad_axis(keys, 2, value=-2),
  )
  out = jnp.moveaxis(out[:, :, :, :T], 3, 1)
  return out.reshape(B, T, N, H)


def _pad_axis(x, axis, value=0):
  """Pads one axis to a whole number of blocks."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % BLOCK_SIZE)
  return jnp.pad(x, widths, constant_values=value)


@jax.custom_vjp
def _flash(q, k, v, queries, keys):
  """softmax(q k' + mask) v; q is already scaled.

  Args:
    q: [B, K, R, T, H].
    k: [B, K, S, H].
    v: [B, K, S, H].
    queries: int32 [2, B, T], positions and segment ids.
    keys: int32 [2, B, S], likewise.

  Returns:
    [B, K, R, T, H] in q's dtype.
  """
  return _flash_forward(q, k, v, queries, keys)[0]


def _block(x, index, axis):
  return jax.lax.dynamic_slice_in_dim(x, index * BLOCK_SIZE, BLOCK_SIZE, axis)


def _key_ranges(queries, keys):
  """For each block of queries the range of key blocks that it may see.

  Returns:
    (first, last) int32 [num_query_blocks]; last is exclusive. Blocks outside
    are certainly masked: their segments or positions do not meet.
  """

  def bounds(x):
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK_SIZE)
    # Padding, segment 0 or below, is read by nobody and reads nobody.
    real = blocks[1:] > 0
    lowest = jnp.where(real, blocks, jnp.iinfo(jnp.int32).max).min(-1)
    return lowest, jnp.where(real, blocks, -1).max(-1)

  (_, q_first), (q_position, q_last) = bounds(queries)
  (kv_position, kv_first), (_, kv_last) = bounds(keys)
  needed = (
    (q_position[:, :, None] >= kv_position[:, None, :])
    & (q_first[:, :, None] <= kv_last[:, None, :])
    & (q_last[:, :, None] >= kv_first[:, None, :])
  ).any(0)
  first = jnp.argmax(needed, axis=1)
  last = needed.shape[1] - jnp.argmax(needed[:, ::-1], axis=1)
  return first, jnp.where(needed.any(1), last, first)


def _scores(q_block, k_block, query_block, key_block):
  """Masked float32 scores [B, K, R, block, block]."""
  scores = jnp.einsum(
    'bkrth,bksh->bkrts', q_block, k_block, preferred_element_type=jnp.float32
  )
  return scores + _bias(query_block, key_block)[:, None, None]


def _bias(query_block, key_block):
  """Float32 [B, block, block]: 0 where a query sees a key, else MASKED.

  One bias serves all heads. The condition saves the comparisons where every
  query sees every key; and XLA on CPU would make them again for each score and
  head, at several times the cost of the softmax, did they not end in one.
  """

  def compare():
    return jnp.where(_visible(*query_block, *key_block), 0.0, MASKED)

  def zeros():
    return jnp.zeros(query_block.shape[1:] + key_block.shape[2:], jnp.float32)

  segments = jnp.stack([query_block[1], key_block[1]])
  sees_all = (query_block[0].min() >= key_block[0].max()) & (
    segments.min() == segments.max()
  )
  return jax.lax.cond(sees_all, zeros, compare)


def _flash_forward(q, k, v, queries, keys):
  first, last = _key_ranges(queries, keys)

  def query_block(_, index):
    q_block, query = _block(q, index, 3), _block(queries, index, 2)

    def key_block(j, carry):
      out, top, total = carry
      scores = _scores(q_block, _block(k, j, 2), query, _block(keys, j, 2))
      new_top = jnp.maximum(top, scores.max(-1))
      shrink = jnp.exp(top - new_top)
      # A row that sees nothing yet has top = MASKED and counts the block; what
      # it collected is multiplied by 0 as soon as it sees something.
      weights = jnp.exp(scores - new_top[..., None])
      total = total * shrink + weights.sum(-1)
      update = jnp.einsum(
        'bkrts,bksh->bkrth',
        weights.astype(v.dtype),
        _block(v, j, 2),
        preferred_element_type=jnp.float32,
      )
      return out * shrink[..., None] + update, new_top, total

    shape = q_block.shape
    start = (
      jnp.zeros(shape, jnp.float32),
      jnp.full(shape[:-1], MASKED, jnp.float32),
      jnp.zeros(shape[:-1], jnp.float32),
    )
    out, top, total = jax.lax.fori_loop(
      first[index], last[index], key_block, start
    )
    total = jnp.maximum(total, 1e-30)  # Padding may have no block at all.
    out = (out / total[..., None]).astype(q.dtype)
    return None, (out, top + jnp.log(total))

  num_blocks = q.shape[3] // BLOCK_SIZE
  _, (out, logsumexp) = jax.lax.scan(query_block, None, jnp.arange(num_blocks))
  out = jnp.moveaxis(out, 0, 3).reshape(q.shape)
  logsumexp = jnp.moveaxis(logsumexp, 0, 3).reshape(q.shape[:-1])
  out = checkpoint_name(out, SAVED)
  logsumexp = checkpoint_name(logsumexp, SAVED)
  return out, (q, k, v, queries, keys, out, logsumexp)


def _flash_backward(residuals, d_out):
  q, k, v, queries, keys, out, logsumexp = residuals
  first, last = _key_ranges(queries, keys)
  # d scores = weights * (d weights - sum_s weights d weights), whose sum is
  # the product of the output with its cotangent.
  inner = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)

  def query_block(carry, index):
    q_block, query = _block(q, index, 3), _block(queries, index, 2)
    d_block = _block(d_out, index, 3)
    lse, mean = _block(logsumexp, index, 3), _block(inner, index, 3)

    def key_block(j, carry):
      dq, dk, dv = carry
      k_block, v_block = _block(k, j, 2), _block(v, j, 2)
      scores = _scores(q_block, k_block, query, _block(keys, j, 2))
      weights = jnp.exp(scores - lse[..., None])
      d_weights = jnp.einsum(
        'bkrth,bksh->bkrts',
        d_block,
        v_block,
        preferred_element_type=jnp.float32,
      )
      d_scores = weights * (d_weights - mean[..., None])
      d_scores, weights = d_scores.astype(q.dtype), weights.astype(q.dtype)
      dq += jnp.einsum(
        'bkrts,bksh->bkrth',
        d_scores,
        k_block,
        preferred_element_type=jnp.float32,
      )
      # Transposed, with the block of scores on the right: on the left it would
      # be computed again, down its columns, by XLA on CPU.
      dk = _add_block(dk, j, 'bkrth,bkrts->bkhs', q_block, d_scores)
      dv = _add_block(dv, j, 'bkrth,bkrts->bkhs', d_block, weights)
      return dq, dk, dv

    dk, dv = carry
    dq = jnp.zeros(q_block.shape, jnp.float32)
    dq, dk, dv = jax.lax.fori_loop(
      first[index], last[index], key_block, (dq, dk, dv)
    )
    return (dk, dv), dq.astype(q.dtype)

  zeros = jnp.zeros(jnp.swapaxes(k, 2, 3).shape, jnp.float32)
  (dk, dv), dq = jax.lax.scan(
    query_block, (zeros, zeros), jnp.arange(q.shape[3] // BLOCK_SIZE)
  )
  dq = jnp.moveaxis(dq, 0, 3).reshape(q.shape)
  dk, dv = jnp.swapaxes(dk, 2, 3), jnp.swapaxes(dv, 2, 3)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


def _add_block(total, index, equation, a, b):
  update = jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
  return jax.lax.dynamic_update_slice_in_dim(
    total, _block(total, index, 3) + update, index * BLOCK_SIZE, 3
  )


_flash.defvjp(_flash_forward, _flash_backward)


def splash(q, k, v, positions, segment_ids, *, interpret: bool = False):
  """The Pallas kernel for TPU; rows are padded to whole lanes of 128."""
  # Imported here: the kernel's module is for TPU programs alone.
  from jax.experimental.pallas.ops.tpu import splash_attention as library

  del positions  # Samples are contiguous, so causal by index is causal.
  T, N, H = q.shape[1:]
  length = T + -T % 128
  block = math.gcd(length, 1024)
  kernel = library.make_splash_mha(
    mask=library.MultiHeadMask([library.CausalMask((length, length))] * N),
    block_sizes=library.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=math.gcd(block, 512),
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=math.gcd(block, 512),
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=SAVED,
    interpret=interpret,
  )

  def heads_first(x):
    x = jnp.pad(x, ((0, 0), (0, length - T), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2)

  segments = jnp.pad(segment_ids, ((0, 0), (0, length - T)))
  out = jax.vmap(kernel)(
    heads_first(q * jnp.asarray(H**-0.5, q.dtype)),
    heads_first(k),
    heads_first(v),
    library.SegmentIds(q=segments, kv=segments),
  )
  return jnp.swapaxes(out, 1, 2)[:, :T].astype(q.dtype)


IMPLEMENTATIONS = {
  'dense': dense,
  'blockwise': blockwise,
  'splash': splash,
}
