"""Checksums of arrays, taken where the arrays are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_BLOCK_BYTES = 1 << 26  # Of an array that are summed together.
_MAX_BLOCKS = 1024
_ODD = np.uint32(0x9E3779B1)


def fingerprint(x: jax.Array) -> int:
  """A checksum of an array's bits that is the same on every mesh.

  The sum of w_i bits_i modulo 2^32, with odd pseudo-random weights w_i that
  depend on the position i. A single flipped bit always changes it; other damage
  goes unseen once in 2^32.

  Args:
    x: of any shape and of a type of 1, 2 or 4 bytes.

  Returns:
    An integer in [0, 2^32), on every process.
  """
  x = jnp.atleast_1d(x)
  if not x.size:
    return 0
  rows = _block_rows(x)
  sums = [
    _weighted_sum(x, np.uint32(start), rows=rows)
    for start in range(0, x.shape[0], rows)
  ]
  return sum(int(part) for part in sums) % 2**32


def _block_rows(x: jax.Array) -> int:
  """How many rows are summed at once: XLA on CPU makes a copy of them."""
  num_rows = x.shape[0]
  if x.sharding.shard_shape(x.shape)[0] != num_rows:
    return num_rows  # The blocks of a sharded axis would have to move.
  most = max(1, _BLOCK_BYTES * num_rows // (x.size * x.dtype.itemsize))
  rows = next(n for n in range(min(most, num_rows), 0, -1) if num_rows % n == 0)
  return rows if num_rows // rows <= _MAX_BLOCKS else num_rows


@functools.partial(jax.jit, static_argnames='rows')
def _weighted_sum(x: jax.Array, start: jax.Array, *, rows: int) -> jax.Array:
  total = _words(lax.dynamic_slice_in_dim(x, start, rows))
  for axis in range(total.ndim - 1, -1, -1):
    index = lax.iota(jnp.uint32, total.shape[axis])
    index = (index + (start if axis == 0 else np.uint32(0))) * _ODD
    index += np.uint32(axis)
    index = (index ^ (index >> 15)) * np.uint32(0x85EBCA6B)
    weights = (index ^ (index >> 13)) | np.uint32(1)
    weights = weights.reshape((1,) * axis + (-1,))
    total = jnp.sum(total * weights, axis=axis, dtype=jnp.uint32)
  return total


def _words(x: jax.Array) -> jax.Array:
  """The bits of an array as uint32, two bfloat16 in one where they pair up."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  bits = lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
  if x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0:
    pairs = bits.reshape(*x.shape[:-1], -1, 2)
    return lax.bitcast_convert_type(pairs, jnp.uint32)
  return bits.astype(jnp.uint32)
