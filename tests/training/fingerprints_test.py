"""A fingerprint sees every change of an array and nothing of its layout."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qed.models import sharding
from qed.training import fingerprints
from qed.training.fingerprints import fingerprint

BF16 = np.dtype(ml_dtypes.bfloat16)


def weight(index, axis):
  """The documented weight of a position on an axis, with Python integers."""
  index = (index * 0x9E3779B1 + axis) % 2**32
  index = (index ^ (index >> 15)) * 0x85EBCA6B % 2**32
  return (index ^ (index >> 13)) | 1


def reference(x):
  """The sum of weighted words, in integers without a bound."""
  words = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
  if x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0:
    words = words.view(np.uint32)  # Little-endian, as all of jax's platforms.
  total = 0
  for position, word in np.ndenumerate(words):
    for axis, index in enumerate(position):
      word = int(word) * weight(index, axis)
    total += int(word)
  return total % 2**32


def random_array(shape, dtype, seed=0):
  bits = np.random.default_rng(seed).integers(0, 256, [*shape, 8], np.uint8)
  dtype = np.dtype(dtype)
  return bits[..., : dtype.itemsize].copy().view(dtype).reshape(shape)


@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [
    ((4, 3, 6), np.float32),
    ((5, 6), BF16),
    ((4, 3), BF16),
    ((7,), np.int32),
    ((2, 8), np.uint8),
  ],
)
def test_it_is_the_documented_sum(shape, dtype):
  x = random_array(shape, dtype)
  assert fingerprint(jnp.asarray(x)) == reference(x)


@pytest.mark.parametrize('value', [0, 1, 7])
def test_a_scalar_has_one(value):
  assert fingerprint(jnp.int32(value)) == value * weight(0, 0) % 2**32


def test_blocks_do_not_change_it(monkeypatch):
  x = random_array((12, 5, 4), np.float32)
  found = set()
  for block_bytes in (1, 80, 200, 10**6):
    monkeypatch.setattr(fingerprints, '_BLOCK_BYTES', block_bytes)
    found.add(fingerprint(jnp.asarray(x)))
  assert found == {reference(x)}
  # Not even where there would be too many of them.
  monkeypatch.setattr(fingerprints, '_BLOCK_BYTES', 1)
  monkeypatch.setattr(fingerprints, '_MAX_BLOCKS', 2)
  assert fingerprint(jnp.asarray(x)) == reference(x)


@pytest.mark.parametrize('dtype', [np.float32, BF16])
def test_the_mesh_does_not_change_it(dtype):
  x = random_array((8, 4, 8), dtype)
  expected = fingerprint(jnp.asarray(x))
  for axes in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
    mesh = sharding.make_mesh(*axes)
    for spec in (
      PartitionSpec(),
      PartitionSpec(('data', 'context'), None, 'tensor'),
      PartitionSpec(None, 'tensor', ('data', 'context')),
    ):
      placed = jax.device_put(x, NamedSharding(mesh, spec))
      assert fingerprint(placed) == expected


def test_any_flipped_bit_changes_it():
  x = random_array((3, 4, 6), BF16)
  expected = fingerprint(jnp.asarray(x))
  for position in range(x.size):
    for bit in range(16):
      flipped = x.copy()
      flipped.view(np.uint16).reshape(-1)[position] ^= 1 << bit
      # jax may quieten a NaN, which says that this bit is of no consequence.
      if np.isnan(flipped.reshape(-1)[position].astype(np.float32)):
        continue
      assert fingerprint(jnp.asarray(flipped)) != expected


def test_exchanged_and_zeroed_parts_change_it():
  x = random_array((6, 8, 4), np.float32)
  expected = fingerprint(jnp.asarray(x))
  for changed in (
    np.roll(x, 1, 0),
    np.roll(x, 1, 1),
    np.roll(x, 1, 2),
    np.concatenate([x[:3], np.zeros_like(x[3:])]),
    x.swapaxes(0, 1).copy().reshape(x.shape),
  ):
    assert fingerprint(jnp.asarray(changed)) != expected


def test_an_empty_array_has_none():
  assert fingerprint(jnp.zeros((0, 3))) == 0
