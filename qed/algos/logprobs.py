"""Log-probabilities of given tokens under a large vocabulary, in little memory.

49,152 tokens times 151,936 logits times 4 bytes are 30 GB, and as much again
for their gradient. Here the tokens go through the head a chunk at a time,
forward and backward, so that the logits of one chunk are the largest array
there ever is.

The backward pass is written out. It recomputes a chunk's logits and needs no
second maximum or sum, since the forward pass keeps every token's logsumexp; it
multiplies in the dtype of `hidden`, as the model's other matmuls do, and adds
the head's gradient up in float32 whatever the dtype of the head.

Shapes: B rows, T tokens per row, D width, V vocabulary; on one device b of B,
t of T, v of V and C tokens per chunk, with C' = C times the size of `context`.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec


class _Axes(NamedTuple):
  """Mesh axes per array axis; a collective over no axes does nothing."""

  rows: tuple[str, ...] = ()
  time: tuple[str, ...] = ()
  vocab: tuple[str, ...] = ()


_ON_ONE_DEVICE = _Axes()
# `tensor` is the major axis of the vocabulary, as it is in the stored head, so
# that no word has to move between devices that differ in `tensor`.
_ON_MESH = _Axes(('data',), ('context',), ('tensor', 'context'))


def token_logprobs(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  temperature: float = 1.0,
  chunk_size: int = 1024,
  mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of `targets` and the entropies of their distributions.

    z = hidden · headᵀ / temperature
    logprob = z_target - logsumexp(z)
    entropy = logsumexp(z) - Σ_v softmax(z)_v z_v

  The product is taken in the dtype of `hidden`, accumulated in float32, and
  everything after it is float32. Both results are exact over the whole
  vocabulary and differentiable (reverse mode) in `hidden` and `head`.

  With a mesh, rows are sharded over `data` and time over `context`, and the
  vocabulary is sharded over `tensor` and `context`: the hidden states of a
  chunk travel along `context`, which are few, and the head stays. A vocabulary
  that its shards do not divide is padded, which copies the head.

  Args:
    hidden: float [B, T, D], after the final norm.
    head: float [V, D], the output matrix (a tied embedding as it is).
    targets: int [B, T]. One outside [0, V) has log-probability NaN and sends
      no gradient.
    temperature: divides the logits, > 0; the sampler's, so that both sides mean
      the same distribution.
    chunk_size: tokens per device whose logits exist at a time, >= 1. With a
      mesh a device holds chunk_size x V / (size of `tensor`) logits.
    mesh: with axes `data`, `context`, `tensor`; None for arrays on one device.

  Returns:
    Log-probabilities and entropies in nats, float32 [B, T] each.

  Raises:
    ValueError: on shapes that do not fit each other or the mesh, or on
      arguments outside the ranges above.
  """
  _check(hidden, head, targets, temperature, chunk_size, mesh)
  with jax.named_scope('token_logprobs'):
    return _token_logprobs(hidden, head, targets, temperature, chunk_size, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _token_logprobs(hidden, head, targets, temperature, chunk_size, mesh):
  results, _ = _forward(hidden, head, targets, temperature, chunk_size, mesh)
  return results


def _forward(hidden, head, targets, temperature, chunk_size, mesh):
  """Returns the results and what the backward pass needs."""
  vocab_size = head.shape[0]
  axes = _ON_ONE_DEVICE if mesh is None else _ON_MESH

  def on_device(hidden, head, targets):
    words = _words(head, axes)

    def chunk(_, arrays):
      hidden, targets = _gather(arrays, axes)
      logits = _logits(hidden, head, words, vocab_size, temperature)
      peak = jax.lax.pmax(jnp.max(logits, axis=-1), axes.vocab)
      shifted = logits - peak[:, None]
      weights = jnp.exp(shifted)
      is_target = words == targets[:, None]
      total, dot, selected = jax.lax.psum(
        (
          jnp.sum(weights, axis=-1),
          jnp.sum(weights * shifted, axis=-1),
          jnp.sum(jnp.where(is_target, shifted, 0.0), axis=-1),
        ),
        axes.vocab,
      )
      log_total = jnp.log(total)
      exists = (targets >= 0) & (targets < vocab_size)
      logprobs = jnp.where(exists, selected - log_total, jnp.nan)
      entropy = log_total - dot / total
      return None, _own((logprobs, entropy, peak + log_total), axes)

    chunks = _split((hidden, targets), chunk_size)
    _, results = jax.lax.scan(chunk, None, chunks)
    return _join(results, targets.shape)

  tokens = PartitionSpec(axes.rows, axes.time)
  logprobs, entropy, logsumexp = _run(
    on_device,
    mesh,
    in_specs=(tokens, PartitionSpec(axes.vocab), tokens),
    out_specs=(tokens, tokens, tokens),
  )(hidden, _shardable(head, hidden.dtype, mesh), targets)
  residuals = hidden, head, targets, logsumexp, entropy
  return (logprobs, entropy), residuals


def _backward(temperature, chunk_size, mesh, residuals, cotangents):
  """Gradients in `hidden` and `head`, by the chain rule at the logits.

  With p = softmax(z), H its entropy, and g and h the cotangents of the
  log-probability and the entropy:

    dL/dz_v = g (1[v = target] - p_v) - h p_v (log p_v + H)
  """
  hidden, head, targets, logsumexp, entropy = residuals
  vocab_size, width = head.shape
  axes = _ON_ONE_DEVICE if mesh is None else _ON_MESH
  # A head that is sharded over `data` (FSDP) wants its part of the sum alone.
  scatter = mesh is not None and width % mesh.shape['data'] == 0

  def on_device(head, hidden, targets, *statistics):
    words = _words(head, axes)

    def chunk(head_grad, arrays):
      hidden, targets, *statistics = _gather(arrays, axes)
      logsumexp, entropy, g, h = (x[:, None] for x in statistics)
      logits = _logits(hidden, head, words, vocab_size, temperature)
      logp = logits - logsumexp
      p = jnp.exp(logp)
      one_hot = jnp.where(words == targets[:, None], 1.0, 0.0)
      grad = g * (one_hot - p) - h * p * (logp + entropy)
      grad = (grad / temperature).astype(hidden.dtype)
      hidden_grad = _scatter(_matmul('cv,vd->cd', grad, head), axes)
      head_grad += _matmul('cv,cd->vd', grad, hidden)
      return head_grad, hidden_grad.astype(hidden.dtype)

    chunks = _split((hidden, targets, *statistics), chunk_size)
    head_grad = jnp.zeros(head.shape, jnp.float32)
    head_grad, hidden_grad = jax.lax.scan(chunk, head_grad, chunks)
    if scatter:
      # Not tiled: parts that do not fill whole lanes compile for minutes.
      parts = head_grad.reshape(len(head_grad), mesh.shape['data'], -1)
      head_grad = jax.lax.psum_scatter(parts, axes.rows, scatter_dimension=1)
    else:
      head_grad = jax.lax.psum(head_grad, axes.rows)
    return _join(hidden_grad, targets.shape), head_grad

  g, h = cotangents
  g = jnp.where((targets >= 0) & (targets < vocab_size), g, 0.0)
  tokens = PartitionSpec(axes.rows, axes.time)
  hidden_grad, head_grad = _run(
    on_device,
    mesh,
    in_specs=(PartitionSpec(axes.vocab), *[tokens] * 6),
    out_specs=(tokens, PartitionSpec(axes.vocab, 'data' if scatter else None)),
  )(
    _shardable(head, hidden.dtype, mesh),
    *(hidden, targets, logsumexp, entropy, g, h),
  )
  return hidden_grad, head_grad[:vocab_size].astype(head.dtype), None


_token_logprobs.defvjp(_forward, _backward)


def _matmul(formula, left, right):
  return jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)


def _logits(hidden, head, words, vocab_size, temperature):
  """float32 [C', v]; words that only pad the vocabulary are never drawn."""
  logits = _matmul('cd,vd->cv', hidden, head) / temperature
  # The lowest finite number and not -inf: 0 · -inf would be NaN.
  return jnp.where(words < vocab_size, logits, jnp.finfo(jnp.float32).min)


def _shardable(head, dtype, mesh):
  """`head` in the compute dtype, padded to shards of one size."""
  head = head.astype(dtype)
  if mesh is None:
    return head
  num_shards = math.prod(mesh.shape[axis] for axis in _ON_MESH.vocab)
  return jnp.pad(head, ((0, -len(head) % num_shards), (0, 0)))


def _run(on_device, mesh, *, in_specs, out_specs):
  if mesh is None:
    return on_device
  # Nothing is differentiated through the map, both directions being written
  # out, so its check of what is replicated has nothing to protect.
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def _words(head, axes):
  """int32 [1, v]: the words of the vocabulary that this device scores."""
  size = len(head)
  return (jnp.arange(size) + jax.lax.axis_index(axes.vocab) * size)[None]


def _gather(arrays, axes):
  """[C, ...] -> [C', ...]: the chunks of all devices along time."""
  return jax.tree.map(
    lambda x: jax.lax.all_gather(x, axes.time, tiled=True), arrays
  )


def _own(arrays, axes):
  """[C'] -> [C]: this device's part of what `_gather` put together."""
  count = jax.lax.axis_size(axes.time)
  index = jax.lax.axis_index(axes.time)
  return jax.tree.map(lambda x: x.reshape(count, -1)[index], arrays)


def _scatter(partial, axes):
  """[C', D] -> [C, D]: sums over the vocabulary, keeps this device's tokens."""
  partial = jax.lax.psum_scatter(partial, axes.time, tiled=True)
  rest = tuple(axis for axis in axes.vocab if axis not in axes.time)
  return jax.lax.psum(partial, rest)


def _split(arrays, chunk_size):
  """[b, t, ...] -> [number of chunks, C, ...], the last one padded with 0."""

  def split(x):
    x = x.reshape(-1, *x.shape[2:])
    size = min(chunk_size, len(x))
    x = jnp.pad(x, ((0, -len(x) % size), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(-1, size, *x.shape[1:])

  return jax.tree.map(split, arrays)


def _join(arrays, shape):
  """[number of chunks, C, ...] -> [b, t, ...], without the padding."""

  def join(x):
    x = x.reshape(-1, *x.shape[2:])[: math.prod(shape)]
    return x.reshape(*shape, *x.shape[1:])

  return jax.tree.map(join, arrays)


def _check(hidden, head, targets, temperature, chunk_size, mesh):
  if hidden.ndim != 3 or targets.shape != hidden.shape[:2]:
    raise ValueError(
      'expected hidden [B, T, D] and targets [B, T], got '
      f'{hidden.shape} and {targets.shape}'
    )
  if head.ndim != 2 or head.shape[1] != hidden.shape[2]:
    raise ValueError(
      f'expected head [V, D] with D = {hidden.shape[2]}, got {head.shape}; '
      'a [D, V] matrix has to be transposed'
    )
  if not temperature > 0:
    raise ValueError(f'temperature: expected a number > 0, got {temperature}')
  if chunk_size < 1:
    raise ValueError(f'chunk_size: expected tokens >= 1, got {chunk_size}')
  if mesh is None:
    return
  expected = ('data', 'context', 'tensor')
  if not set(expected) <= set(mesh.axis_names):
    raise ValueError(f'mesh: expected axes {expected}, got {mesh.axis_names}')
  for name, size, axis in (('B', 0, 'data'), ('T', 1, 'context')):
    if hidden.shape[size] % mesh.shape[axis]:
      raise ValueError(
        f'{name} = {hidden.shape[size]} does not divide over the '
        f'{mesh.shape[axis]} devices of mesh axis {axis!r}'
      )
