"""Qwen3 (arXiv 2505.09388) as functions of weights, tokens and a config.

One layer function serves training (`apply`, packed rows), prompt processing
(`prefill`) and generation (`decode_step`); they differ only in what attention
looks at. Weights are the tree that `specs.declare` describes.

Norm statistics, rotary tables, softmax and head products are float32;
everything else runs in the compute dtype.

Letters: `B` rows, `T` tokens per row, `D` model width, `N` query heads, `K`
key/value heads, `H` head size, `F` mlp width, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from qed.models import attention, kv_cache, sharding, specs
from qed.models.specs import VARIANTS, Config, init
from qed.types import KVCache

__all__ = [
  'REMAT',
  'VARIANTS',
  'Config',
  'apply',
  'decode_step',
  'init',
  'logits',
  'output_head',
  'prefill',
  'read',
  'unstack',
]

Params = dict[str, Any]

_LAYER_INPUT = 'layer_input'
_policies = jax.checkpoint_policies
# What the backward pass finds saved; the rest of a layer is recomputed.
REMAT = {
  'none': _policies.everything_saveable,
  'full': _policies.nothing_saveable,  # Saves each layer's input only.
  'attention': _policies.save_only_these_names(attention.SAVED),
  'offload': _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[attention.SAVED],
    names_which_can_be_offloaded=[_LAYER_INPUT],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


def apply(
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  segment_ids: jax.Array,
  *,
  config: Config,
  dtype: jnp.dtype | None = None,
  remat: str = 'none',
  attention_kernel: str | None = None,
  mesh: Mesh | None = None,
) -> jax.Array:
  """The forward pass over packed rows.

  Args:
    params: weights as in `specs.declare`, in any float dtype.
    tokens: int32 [B, T].
    positions: int32 [B, T], restarting at 0 with every sample.
    segment_ids: int32 [B, T]: 1, 2, ... within a row; 0 is padding.
    config: the model.
    dtype: compute dtype; None takes the dtype of the weights.
    remat: a key of `REMAT`.
    attention_kernel: a key of `attention.IMPLEMENTATIONS`; None picks the
      platform's.
    mesh: rows are split over `data`, positions over `context`; None on one
      device.

  Returns:
    [B, T, D] after the final norm, in the compute dtype.

  Raises:
    ValueError: unknown `remat` or `attention_kernel`, or a mesh that does not
      divide the arrays.
  """
  if remat not in REMAT:
    raise ValueError(f'unknown remat policy {remat!r}; there are {list(REMAT)}')
  _check_divides(tokens.shape, mesh)
  dtype = params['embedding'].dtype if dtype is None else dtype
  tables = _rotary_tables(positions, config)
  attend = functools.partial(
    attention.attend_packed,
    positions=positions,
    segment_ids=segment_ids,
    mesh=mesh,
    implementation=attention_kernel,
  )

  def block(x, weights):
    x = checkpoint_name(x, _LAYER_INPUT)
    weights = _in_use(weights, config, dtype, mesh)
    x, _ = _layer(x, weights, tables, config, lambda *qkv: (attend(*qkv), None))
    return sharding.constrain(x, ('batch', 'time', None), mesh), None

  if remat != 'none':
    block = jax.checkpoint(block, policy=REMAT[remat])
  x = _embed(params['embedding'].astype(dtype), tokens, mesh)
  x, _ = jax.lax.scan(block, x, params['layers'])
  return _rms_norm(x, params['final_norm'], config)


def prefill(
  params: Params,
  tokens: jax.Array,
  lengths: jax.Array,
  cache: KVCache,
  *,
  config: Config,
  dtype: jnp.dtype | None = None,
  mesh: Mesh | None = None,
) -> tuple[jax.Array, KVCache]:
  """Reads the next `lengths[b]` tokens of each slot into the cache.

  A long prompt may be read in several calls.

  Args:
    params: weights as in `specs.declare`.
    tokens: int32 [B, T], of which row b uses the first `lengths[b]`.
    lengths: int32 [B], 0..T; a slot with 0 is left as it is.
    cache: B slots; `cache.lengths + lengths` must not exceed its size.
    config: the model.
    dtype: compute dtype; None takes the dtype of the weights.
    mesh: slots are split over `data`, heads over `tensor`; None on one device.

  Returns:
    (hidden, cache): [B, T, D] after the final norm, meaningful where t <
    lengths[b], and the cache with `lengths` advanced.
  """
  steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  positions = cache.lengths[:, None] + steps
  # Beyond its length a row writes nowhere.
  targets = jnp.where(steps < lengths[:, None], positions, cache.k.shape[2])

  def attend(layer, q, k, v, cached):
    cached_k, cached_v = cached
    cached_k = kv_cache.write(cached_k, layer, k, targets)
    cached_v = kv_cache.write(cached_v, layer, v, targets)
    out = attention.attend_cache(
      q,
      cached_k[layer].astype(q.dtype),
      cached_v[layer].astype(q.dtype),
      positions,
    )
    return out, (cached_k, cached_v)

  hidden, (k, v) = read(
    params,
    tokens,
    positions,
    (cache.k, cache.v),
    attend,
    config=config,
    dtype=dtype,
    mesh=mesh,
  )
  return hidden, KVCache(k, v, cache.lengths + lengths)


def read(
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  cache: Any,
  attend: Callable[..., tuple[jax.Array, Any]],
  *,
  config: Config,
  dtype: jnp.dtype | None = None,
  mesh: Mesh | None = None,
) -> tuple[jax.Array, Any]:
  """The forward pass over a cache of any layout.

  Args:
    params: weights as in `specs.declare`, or with `layers` as `unstack` makes
      them; the layers are then written out one by one instead of scanned.
    tokens: int32 [B, T].
    positions: int32 [B, T].
    cache: what `attend` reads and writes, any tree.
    attend: (layer, q, k, v, cache) -> (output [B, T, N, H], cache); `layer` is
      an int32 [] in a scan and a Python number otherwise.
    config: the model.
    dtype: compute dtype; None takes the dtype of the weights.
    mesh: as for `prefill`.

  Returns:
    (hidden [B, T, D] after the final norm, cache).
  """
  dtype = params['embedding'].dtype if dtype is None else dtype
  tables = _rotary_tables(positions, config)

  def block(carry, layer):
    x, cache = carry
    index, weights = layer
    weights = _in_use(weights, config, dtype, mesh)
    x, cache = _layer(
      x, weights, tables, config, lambda *qkv: attend(index, *qkv, cache)
    )
    return (sharding.constrain(x, axes, mesh), cache), None

  # A single prompt is read by every device of `data`, and time is never split.
  is_split = mesh is not None and tokens.shape[0] % mesh.shape['data'] == 0
  axes = ('batch' if is_split else None, None, None)
  x = _embed(params['embedding'].astype(dtype), tokens, mesh)
  carry = sharding.constrain(x, axes, mesh), cache
  if isinstance(params['layers'], tuple):
    for layer in enumerate(params['layers']):
      carry, _ = block(carry, layer)
  else:
    layers = (jnp.arange(config.num_hidden_layers), params['layers'])
    carry, _ = jax.lax.scan(block, carry, layers)
  x, cache = carry
  return _rms_norm(x, params['final_norm'], config), cache


def unstack(params: Params) -> Params:
  """The same weights with `layers` a tuple of one tree for each layer.

  On CPU and GPU a product can not read a slice of a stacked weight in place;
  where it is used many times, it is cheaper to cut it out once.
  """
  layers = params['layers']
  return {
    **params,
    'layers': tuple(
      {name: weight[i] for name, weight in layers.items()}
      for i in range(layers['q'].shape[0])
    ),
  }


def decode_step(
  params: Params,
  tokens: jax.Array,
  cache: KVCache,
  *,
  config: Config,
  dtype: jnp.dtype | None = None,
  mesh: Mesh | None = None,
) -> tuple[jax.Array, KVCache]:
  """Reads one token int32 [B] per slot: `prefill` of length 1.

  Returns:
    (hidden, cache): [B, D] after the final norm, and the cache one longer.
  """
  hidden, cache = prefill(
    params,
    tokens[:, None],
    jnp.ones_like(tokens),
    cache,
    config=config,
    dtype=dtype,
    mesh=mesh,
  )
  return hidden[:, 0], cache


def output_head(params: Params) -> jax.Array:
  """The output matrix [V, D]: the embedding itself where they are tied."""
  return params.get('head', params['embedding'])


def logits(
  params: Params,
  hidden: jax.Array,
  *,
  config: Config,
  mesh: Mesh | None = None,
) -> jax.Array:
  """float32 [..., V] from hidden [..., D]; accumulated in float32.

  For whole training rows use `algos.logprobs`, which never holds [B, T, V].
  """
  assert ('head' in params) != config.tie_word_embeddings
  head = output_head(params).astype(hidden.dtype)
  with jax.named_scope('head'):
    out = jnp.einsum(
      '...d,vd->...v', hidden, head, preferred_element_type=jnp.float32
    )
  if mesh is None:
    return out
  axes = ('batch', 'time')[: out.ndim - 1]
  return sharding.constrain(out, (*axes, 'vocab'), mesh)


def _layer(
  x: jax.Array,
  weights: Params,
  tables: tuple[jax.Array, jax.Array],
  config: Config,
  attend: Callable[..., tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any]:
  """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x)).

  Args:
    x: [B, T, D].
    weights: one layer's slice of `params['layers']`, in the compute dtype.
    tables: rotary cosine and sine.
    config: the model.
    attend: (q, k, v) -> (output [B, T, N, H], anything to hand on).

  Returns:
    ([B, T, D], what `attend` handed on).
  """
  with jax.named_scope('attention'):
    h = _rms_norm(x, weights['attention_norm'], config)
    q = jnp.einsum('btd,nhd->btnh', h, weights['q'])
    k = jnp.einsum('btd,khd->btkh', h, weights['k'])
    v = jnp.einsum('btd,khd->btkh', h, weights['v'])
    q = _rotate(_rms_norm(q, weights['q_norm'], config), tables)
    k = _rotate(_rms_norm(k, weights['k_norm'], config), tables)
    out, extra = attend(q, k, v)
    x = x + jnp.einsum('btnh,dnh->btd', out, weights['o'])
  with jax.named_scope('mlp'):
    h = _rms_norm(x, weights['mlp_norm'], config)
    gate = jnp.einsum('btd,fd->btf', h, weights['gate'])
    up = jnp.einsum('btd,fd->btf', h, weights['up'])
    x = x + jnp.einsum('btf,df->btd', _gated(gate, up), weights['down'])
  return x, extra


@jax.custom_vjp
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) up."""
  return jax.nn.silu(gate) * up


def _gated_forward(gate, up):
  return _gated(gate, up), (gate, up)


def _gated_backward(residuals, d_out):
  """The chain rule in float32, with silu(g) = g / u and u = 1 + exp(-g).

  Both results end in a division, which XLA takes to be dear and so computes
  once. A product it computes again for the weights' gradient, down the columns:
  a third of the time of a training step on CPU.
  """
  gate, up, d_out = (x.astype(jnp.float32) for x in (*residuals, d_out))
  u = 1 + jnp.exp(-gate)
  d_gate = d_out * up * (1 + gate * (1 - 1 / u)) / u
  d_up = d_out * gate / u
  return tuple(
    x.astype(y.dtype) for x, y in zip((d_gate, d_up), residuals, strict=True)
  )


_gated.defvjp(_gated_forward, _gated_backward)


def _rms_norm(x: jax.Array, scale: jax.Array, config: Config) -> jax.Array:
  """X / rms(x) * scale over the last axis; statistics in float32."""
  wide = x.astype(jnp.float32)
  variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  normed = wide * jax.lax.rsqrt(variance + config.rms_norm_eps)
  scale = scale.astype(jnp.float32)
  return (normed * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(
    x.dtype
  )


def _rotary_tables(
  positions: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array]:
  """float32 cosine and sine [B, T, 1, H/2] (arXiv 2104.09864)."""
  # On the host in float32, as the published models were trained: at position
  # 40,000 one rounding more or less would move an angle by 2e-3.
  powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(
    config.head_dim
  )
  frequencies = np.float32(1.0) / np.power(
    np.float32(config.rope_theta), powers, dtype=np.float32
  )
  angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
  return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def _rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the pairs (x[i], x[i + H/2]) of every head of [B, T, N, H]."""
  cos, sin = tables
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _in_use(
  weights: Params, config: Config, dtype: jnp.dtype, mesh: Mesh | None
) -> Params:
  """One layer's weights as the products need them.

  Matrices are cast and then gathered over the axes that only store them, so
  that the gather moves the compute dtype; norm scales stay as they are.
  """
  declared = specs.declare(config)['layers']

  def prepare(name, weight):
    if weight.ndim == 1:
      return weight
    axes = [axis if axis != 'embed' else None for axis in declared[name].axes]
    return sharding.constrain(weight.astype(dtype), axes[1:], mesh)

  return {name: prepare(name, weight) for name, weight in weights.items()}


def _embed(table: jax.Array, tokens: jax.Array, mesh: Mesh | None) -> jax.Array:
  """Rows of `table` [V, D] for tokens [B, T]: [B, T, D]."""
  with jax.named_scope('embedding'):
    if mesh is None or not _divides(tokens.shape, mesh):
      return table[tokens]
    return jax.shard_map(
      _embed_shard,
      mesh=mesh,
      in_specs=(
        sharding.partition(('vocab', 'embed')),
        PartitionSpec('data', 'context'),
      ),
      out_specs=PartitionSpec('data', 'context', None),
      check_vma=False,
    )(table, tokens)


def _embed_shard(table: jax.Array, tokens: jax.Array) -> jax.Array:
  """One device's part of the look-up.

  It holds some of the vocabulary and some of the width: it looks up that part
  for every token of the batch (token ids are small), and then trades width for
  tokens. The table is never gathered.
  """
  axes = ('data', 'context')  # In the order in which they split the width.
  everyones = jax.lax.all_gather(tokens, axes)  # [devices, b, t]
  local = everyones - jax.lax.axis_index('tensor') * table.shape[0]
  mine = (local >= 0) & (local < table.shape[0])
  x = jnp.where(mine[..., None], table[jnp.where(mine, local, 0)], 0)
  x = jax.lax.psum(x, 'tensor')
  # Along an axis of their own: pieces of the width seldom fill whole lanes, and
  # a collective that joins them compiles for half an hour on TPU.
  x = jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0)
  return jnp.moveaxis(x, 0, 2).reshape(*tokens.shape, -1)


def _divides(shape: tuple[int, ...], mesh: Mesh) -> bool:
  ways = mesh.shape['data'], mesh.shape['context']
  return all(size % way == 0 for size, way in zip(shape, ways, strict=True))


def _check_divides(shape: tuple[int, ...], mesh: Mesh | None) -> None:
  if mesh is None:
    return
  for size, name, axis in zip(
    shape, ('rows', 'tokens per row'), ('data', 'context'), strict=True
  ):
    if size % mesh.shape[axis]:
      raise ValueError(
        f'{size} {name} cannot be divided over {axis}={mesh.shape[axis]}; '
        f'use a multiple of {mesh.shape[axis]}'
      )
