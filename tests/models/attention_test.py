"""Every implementation of attention against one in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qed.models import attention


def reference(q, k, v, positions, segment_ids):
  """float64, one query at a time."""
  B, T, N, H = q.shape
  group = N // k.shape[2]
  out = np.zeros((B, T, N, H))
  for b in range(B):
    for t in range(T):
      seen = (segment_ids[b] == segment_ids[b, t]) & (
        positions[b] <= positions[b, t]
      )
      for n in range(N):
        scores = k[b, seen, n // group].astype(float) @ q[b, t, n] / H**0.5
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
  return out


def rows(lengths, row_length):
  """Positions and segment ids [B, T] of rows of samples of these lengths."""
  positions = np.zeros((len(lengths), row_length), np.int32)
  segments = np.zeros_like(positions)
  for row, samples in enumerate(lengths):
    start = 0
    for segment, n in enumerate(samples, 1):
      positions[row, start : start + n] = np.arange(n)
      segments[row, start : start + n] = segment
      start += n
  return positions, segments


def inputs(T, N=4, K=2, H=16, B=2, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return tuple(
    jax.random.normal(key, (B, T, heads, H))
    for key, heads in zip(keys, (N, K, K), strict=True)
  )


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 16, so that short rows have many."""
  monkeypatch.setattr(attention, 'BLOCK_SIZE', 16)


# One sample; many; boundaries inside, on and beside a block edge; padding.
LENGTHS = {
  'whole row': ((70,), (70,)),
  'many samples': ((5, 1, 27, 16, 21), (33, 31, 2)),
  'edges of blocks': ((16, 32, 22), (15, 17, 1, 37)),
  'padding': ((3, 20), (1,)),
  # Later blocks are beyond every position of a block with a piece of another.
  'a long one after a short one': ((5, 65), (7, 63)),
}


@pytest.mark.parametrize('name', LENGTHS)
@pytest.mark.parametrize('implementation', ['dense', 'blockwise'])
def test_it_is_attention_in_float64(name, implementation, small_blocks):
  q, k, v = inputs(70)
  positions, segments = rows(LENGTHS[name], 70)
  out = attention.attend_packed(
    q, k, v, positions, segments, implementation=implementation
  )
  expected = reference(*map(np.asarray, (q, k, v)), positions, segments)
  real = segments > 0
  np.testing.assert_allclose(np.asarray(out)[real], expected[real], atol=2e-6)


@pytest.mark.parametrize('name', LENGTHS)
def test_blockwise_gradients_are_those_of_dense(name, small_blocks):
  q, k, v = inputs(70, N=6, K=3)
  positions, segments = rows(LENGTHS[name], 70)
  real = (segments > 0)[..., None, None]

  def loss(implementation, q, k, v):
    out = attention.attend_packed(
      q, k, v, positions, segments, implementation=implementation
    )
    return jnp.sum(jnp.where(real, jnp.sin(3 * out), 0.0))

  got = jax.grad(loss, argnums=(1, 2, 3))('blockwise', q, k, v)
  expected = jax.grad(loss, argnums=(1, 2, 3))('dense', q, k, v)
  for have, want in zip(got, expected, strict=True):
    np.testing.assert_allclose(have, want, atol=2e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_scores_are_float32_in_any_dtype(dtype, small_blocks):
  q, k, v = (x.astype(dtype) for x in inputs(40))
  positions, segments = rows(((40,), (40,)), 40)
  out = attention.attend_packed(
    q, k, v, positions, segments, implementation='blockwise'
  )
  assert out.dtype == dtype
  wide = [np.asarray(x.astype(jnp.float32)) for x in (q, k, v)]
  expected = reference(*wide, positions, segments)
  tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
  np.testing.assert_allclose(
    np.asarray(out, np.float32), expected, atol=tolerance
  )


def test_the_cache_is_seen_up_to_each_query(small_blocks):
  q, k, v = inputs(48)
  positions = np.array([[7, 8, 9], [0, 1, 2]], np.int32)
  out = attention.attend_cache(q[:, :3], k, v, positions)
  later = jnp.arange(48)[None, :, None, None] > 9
  unseen = attention.attend_cache(
    q[:, :3], jnp.where(later, 9.0, k), jnp.where(later, -9.0, v), positions
  )
  np.testing.assert_array_equal(out, unseen)
  for b in range(2):
    for t in range(3):
      n = positions[b, t] + 1
      expected = reference(
        *(np.asarray(x)[b : b + 1, :n] for x in (q, k, v)),
        np.arange(n)[None],
        np.ones((1, n)),
      )
      last = reference(
        np.broadcast_to(np.asarray(q)[b, t], (1, n, 4, 16)),
        *(np.asarray(x)[b : b + 1, :n] for x in (k, v)),
        np.arange(n)[None],
        np.ones((1, n)),
      )[:, -1]
      assert expected.shape[1] == n
      np.testing.assert_allclose(out[b, t], last[0], atol=2e-6)


def test_a_single_token_and_a_chunk_read_the_cache_alike(small_blocks):
  q, k, v = inputs(48)
  positions = np.broadcast_to(np.arange(20, 40, dtype=np.int32), (2, 20))
  chunk = attention.attend_cache(q[:, :20], k, v, positions)
  for t in (0, 7, 19):
    one = attention.attend_cache(q[:, t : t + 1], k, v, positions[:, t : t + 1])
    np.testing.assert_allclose(one[:, 0], chunk[:, t], atol=2e-6)


def test_blocks_that_nobody_sees_are_not_computed(small_blocks):
  positions, segments = rows(((64,),), 64)
  first, last = attention._key_ranges(*[jnp.stack([positions, segments])] * 2)
  np.testing.assert_array_equal(first, [0, 0, 0, 0])
  np.testing.assert_array_equal(last, [1, 2, 3, 4])
  positions, segments = rows(((16, 16, 24),), 64)
  first, last = attention._key_ranges(*[jnp.stack([positions, segments])] * 2)
  np.testing.assert_array_equal(first, [0, 1, 2, 2])
  np.testing.assert_array_equal(last, [1, 2, 3, 4])
  positions, segments = rows(((10,),), 64)
  first, last = attention._key_ranges(*[jnp.stack([positions, segments])] * 2)
  np.testing.assert_array_equal((last - first) > 0, [True, False, False, False])


@pytest.mark.parametrize('backward', [False, True])
def test_memory_grows_with_the_row_and_not_with_its_square(backward):
  def temporary_bytes(T):
    def loss(q, k, v, positions, segments):
      return attention.attend_packed(
        q, k, v, positions, segments, implementation='blockwise'
      ).sum()

    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else loss
    shapes = [
      jax.ShapeDtypeStruct((1, T, heads, 16), jnp.float32)
      for heads in (4, 2, 2)
    ] + [jax.ShapeDtypeStruct((1, T), jnp.int32)] * 2
    analysis = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  small, large = temporary_bytes(8_192), temporary_bytes(49_152)
  scores = 49_152**2 * 4 * 4
  assert large < 0.01 * scores
  # Six times the row: a constant for the blocks, and at most six times the
  # rest.
  assert large < 6.2 * small


@pytest.mark.parametrize('T', [128, 200])
def test_the_tpu_kernel_computes_the_same(T):
  # Interpreted on CPU: what it computes, not that it compiles for TPU.
  q, k, v = inputs(T, H=128, B=1)
  positions, segments = rows(((T // 3, T // 2),), T)
  real = (segments > 0)[..., None, None]

  def loss(kernel, q, k, v):
    out = kernel(q, k, v, positions, segments)
    return jnp.sum(jnp.where(real, jnp.sin(out), 0.0)), out

  kernels = (
    functools.partial(attention.splash, interpret=True),
    attention.dense,
  )
  (_, out), gradients = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(
    kernels[0], q, k, v
  )
  (_, expected), expected_gradients = jax.value_and_grad(
    loss, (1, 2, 3), has_aux=True
  )(kernels[1], q, k, v)
  np.testing.assert_allclose(
    np.where(real, out, 0), np.where(real, expected, 0), atol=3e-3
  )
  for have, want in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(have, want, atol=3e-3)


def test_an_unknown_implementation_names_those_that_exist():
  q, k, v = inputs(4)
  positions, segments = rows(((4,), (4,)), 4)
  with pytest.raises(ValueError, match=r"'flash'.*'blockwise'"):
    attention.attend_packed(
      q, k, v, positions, segments, implementation='flash'
    )
