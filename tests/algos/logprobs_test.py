"""Against float64 under every mesh and chunk size, and in little memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qed.algos import logprobs

token_logprobs = jax.jit(
  logprobs.token_logprobs,
  static_argnames=('temperature', 'chunk_size', 'mesh'),
)

# V is prime, so that no mesh divides it; T over 4 shards leaves 3 per device.
B, T, D, V = 8, 12, 8, 37
TEMPERATURE = 0.8
# How far float32 may be from float64 here, where gradients are of order 10.
TOLERANCE = {'rtol': 2e-5, 'atol': 2e-5}


def mesh_of(*shape):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  return Mesh(devices, ('data', 'context', 'tensor'))


def random_inputs(batch=B, time=T, width=D, vocab=V, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(batch, time, width)).astype(np.float32)
  head = rng.normal(size=(vocab, width)).astype(np.float32)
  return hidden, head, rng.integers(0, vocab, (batch, time))


def reference(hidden, head, targets, temperature=TEMPERATURE):
  """Log-probabilities, entropies and the whole table, in float64."""
  hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
  logits = hidden @ head.T / temperature
  table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  logprobs = np.take_along_axis(table, targets[..., None], -1)[..., 0]
  return logprobs, -(np.exp(table) * table).sum(-1), table


def reference_gradients(hidden, head, targets, g, h, temperature=TEMPERATURE):
  """Of Σ g logprob + h entropy, through the Jacobian of softmax."""
  _, _, table = reference(hidden, head, targets, temperature)
  p = np.exp(table)
  by_table = np.eye(head.shape[0])[targets] * g[..., None]
  by_table -= h[..., None] * p * (table + 1)
  by_logits = by_table - p * by_table.sum(-1, keepdims=True)
  by_logits /= temperature
  return by_logits @ head, np.einsum('btv,btd->vd', by_logits, hidden)


@functools.cache
def case():
  """Inputs, cotangents, and what float64 makes of them."""
  inputs = random_inputs()
  g, h = np.random.default_rng(1).normal(size=(2, B, T)).astype(np.float32)
  results = reference(*inputs)[:2]
  return inputs, (g, h), (*results, *reference_gradients(*inputs, g, h))


@pytest.mark.parametrize('chunk_size', [1, 7, 128])
@pytest.mark.parametrize(
  'shape', [None, (1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)]
)
def test_every_mesh_and_chunk_size_is_float64_in_value_and_gradient(
  shape, chunk_size
):
  (hidden, head, targets), cotangents, expected = case()
  mesh = shape and mesh_of(*shape)
  if mesh is not None:
    tokens = NamedSharding(mesh, PartitionSpec('data', 'context'))
    hidden, targets = jax.device_put((hidden, targets), tokens)

  @jax.jit
  def run(hidden, head):
    results, pullback = jax.vjp(
      lambda *x: token_logprobs(
        *(*x, targets),
        temperature=TEMPERATURE,
        chunk_size=chunk_size,
        mesh=mesh,
      ),
      hidden,
      head,
    )
    return *results, *pullback(cotangents)

  results = run(hidden, head)
  for result, value in zip(results, expected, strict=True):
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, value, **TOLERANCE)


@pytest.mark.parametrize('time', [1, 5, 13])
@pytest.mark.parametrize('batch', [1, 3])
def test_the_tokens_of_a_last_short_chunk_count(batch, time):
  inputs = random_inputs(batch, time)
  logprobs, entropy = token_logprobs(
    *inputs, temperature=TEMPERATURE, chunk_size=4
  )
  expected = reference(*inputs)
  assert logprobs.shape == entropy.shape == (batch, time)
  np.testing.assert_allclose(logprobs, expected[0], **TOLERANCE)
  np.testing.assert_allclose(entropy, expected[1], **TOLERANCE)


def test_a_width_that_the_mesh_does_not_divide_is_served_too():
  inputs = random_inputs(width=5)
  ones = np.ones((B, T), np.float32)

  def loss_fn(hidden, head):
    outputs = token_logprobs(
      *(hidden, head, inputs[2]), temperature=TEMPERATURE, mesh=mesh_of(8, 1, 1)
    )
    return sum(x.sum() for x in outputs)

  grads = jax.jit(jax.grad(loss_fn, (0, 1)))(*inputs[:2])
  expected = reference_gradients(*inputs, ones, ones)
  for grad, value in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, value, rtol=2e-5, atol=1e-4)


def test_works_within_a_scan_over_rematerialised_microbatches():
  (hidden, head, targets), _, _ = case()

  def loss_fn(head):
    @jax.checkpoint
    def microbatch(total, arrays):
      logprobs, entropy = token_logprobs(arrays[0], head, arrays[1])
      return total + logprobs.sum() + entropy.sum(), None

    parts = [x.reshape(2, B // 2, *x.shape[1:]) for x in (hidden, targets)]
    return jax.lax.scan(microbatch, 0.0, parts)[0]

  ones = np.ones((B, T), np.float32)
  _, expected = reference_gradients(hidden, head, targets, ones, ones, 1.0)
  np.testing.assert_allclose(jax.grad(loss_fn)(head), expected, **TOLERANCE)


# --- What it means ----------------------------------------------------------


def test_a_model_that_knows_every_target_has_logprob_zero():
  """Shifted by one token, the same model is certain of the wrong ones."""
  targets = np.array([[3, 1, 4, 1, 5]])
  hidden = 60 * np.eye(6, dtype=np.float32)[targets]
  head = np.eye(6, dtype=np.float32)
  logprobs, entropy = token_logprobs(hidden, head, targets)
  np.testing.assert_array_equal(logprobs, np.zeros((1, 5)))
  np.testing.assert_allclose(entropy, np.zeros((1, 5)), atol=1e-6)
  shifted, _ = token_logprobs(hidden[:, :-1], head, targets[:, 1:])
  np.testing.assert_array_equal(shifted, np.full((1, 4), -60.0))


def test_equal_logits_give_the_uniform_distribution():
  logprobs, entropy = token_logprobs(
    jnp.zeros((1, 2, 4)), jnp.ones((10, 4)), jnp.zeros((1, 2), int)
  )
  np.testing.assert_allclose(logprobs, np.full((1, 2), -np.log(10)), rtol=1e-6)
  np.testing.assert_allclose(entropy, np.full((1, 2), np.log(10)), rtol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 0.8, 1.0, 1.5])
def test_temperature_divides_the_logits_once(temperature):
  hidden, head, targets = random_inputs()
  logprobs, entropy = token_logprobs(
    hidden, head, targets, temperature=temperature
  )
  expected = reference(hidden, head, targets, temperature)
  np.testing.assert_allclose(logprobs, expected[0], **TOLERANCE)
  np.testing.assert_allclose(entropy, expected[1], **TOLERANCE)
  # Between two words the normalizer cancels: differences scale as 1 / T.
  other, _ = token_logprobs(
    hidden, head, (targets + 1) % V, temperature=temperature
  )
  hot, _ = token_logprobs(hidden, head, targets)
  hot_other, _ = token_logprobs(hidden, head, (targets + 1) % V)
  np.testing.assert_allclose(
    (logprobs - other) * temperature, hot - hot_other, **TOLERANCE
  )


def test_a_target_outside_the_vocabulary_is_missing_and_sends_no_gradient():
  hidden, head, targets = random_inputs()
  targets[0, :2] = -100, V
  (logprobs, entropy), pullback = jax.vjp(
    lambda x: token_logprobs(x, head, targets, chunk_size=7), hidden
  )
  (grad,) = pullback((np.ones_like(logprobs), np.zeros_like(entropy)))
  assert np.isnan(logprobs[0, :2]).all()
  assert np.isnan(np.asarray(logprobs)).sum() == 2
  assert np.isfinite(entropy).all()
  assert not np.asarray(grad)[0, :2].any()
  assert np.asarray(grad)[0, 2:].any(axis=-1).all()


@pytest.mark.parametrize('shape', [None, (1, 4, 2)])
def test_enormous_logits_stay_finite(shape):
  hidden, head, targets = random_inputs()
  run = functools.partial(token_logprobs, mesh=shape and mesh_of(*shape))

  def loss_fn(hidden):
    logprobs, entropy = run(hidden, head, targets)
    return logprobs.sum() + entropy.sum(), (logprobs, entropy)

  grad, results = jax.grad(loss_fn, has_aux=True)(1e4 * hidden)
  assert all(np.isfinite(x).all() for x in (grad, *results))


# --- Precision --------------------------------------------------------------


def test_bfloat16_operands_lose_nothing_after_the_product():
  """At Qwen3's vocabulary; logits kept in bfloat16 would be off by 0.01."""
  inputs = random_inputs(1, 4, 32, 151_936)
  hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in inputs[:2])
  logprobs, entropy = token_logprobs(hidden, head, inputs[2])
  expected = reference(hidden, head, inputs[2], 1.0)
  assert logprobs.dtype == entropy.dtype == jnp.float32
  np.testing.assert_allclose(logprobs, expected[0], rtol=2e-6, atol=2e-5)
  np.testing.assert_allclose(entropy, expected[1], rtol=2e-6, atol=2e-5)


def test_no_logit_is_ever_rounded_to_bfloat16():
  """Read from the program: a compiler may hide the rounding, or not."""
  hidden, head, targets = random_inputs()
  hidden = jnp.asarray(hidden, jnp.bfloat16)

  def run(hidden, head):
    results, pullback = jax.vjp(
      lambda *x: logprobs.token_logprobs(*x, targets), hidden, head
    )
    return pullback(results)

  program = str(jax.make_jaxpr(run)(hidden, head))
  products = re.findall(r'(\w+)\[[\d,]+\] = dot_general', program)
  assert products == ['f32'] * 4  # Logits, again backward, and two gradients.
  # The gradient in the logits is the one thing of their shape in bfloat16.
  assert len(re.findall(rf'bf16\[{B * T},{V}\] = ', program)) == 1


def test_a_float32_head_is_multiplied_in_the_dtype_of_hidden():
  hidden, head, targets = random_inputs()
  hidden = jnp.asarray(hidden, jnp.bfloat16)
  rounded = jnp.asarray(head, jnp.bfloat16)
  for x, y in zip(
    token_logprobs(hidden, head, targets),
    token_logprobs(hidden, rounded, targets),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)


def test_gradients_have_the_dtypes_of_what_they_are_of():
  hidden, head, targets = random_inputs()
  hidden = jnp.asarray(hidden, jnp.bfloat16)
  grads = jax.grad(lambda *x: token_logprobs(*x, targets)[0].sum(), (0, 1))(
    hidden, head
  )
  assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32]
  ones, zeros = np.ones((B, T)), np.zeros((B, T))
  head = jnp.asarray(head, jnp.bfloat16)
  expected = reference_gradients(
    *(np.asarray(x, np.float64) for x in (hidden, head)),
    *(targets, ones, zeros, 1.0),
  )
  for grad, value in zip(grads, expected, strict=True):
    np.testing.assert_allclose(
      np.asarray(grad, np.float64), value, rtol=2e-2, atol=5e-2
    )


def test_the_gradient_of_a_bfloat16_head_is_added_up_in_float32():
  """4,096 equal parts: a sum kept in bfloat16 stops growing at 256 of them."""
  length = 4096
  hidden = jnp.ones((1, length, 1), jnp.bfloat16)
  head = jnp.zeros((2, 1), jnp.bfloat16)
  targets = jnp.zeros((1, length), int)
  grad = jax.grad(
    lambda head: token_logprobs(hidden, head, targets, chunk_size=1)[0].sum()
  )(head)
  np.testing.assert_array_equal(
    np.asarray(grad, np.float32), [[length / 2], [-length / 2]]
  )


# --- Memory -----------------------------------------------------------------


def temporary_bytes(time, vocab, chunk_size, mesh=None):
  """What value and gradient need beside their arguments, per device."""
  hidden = jax.ShapeDtypeStruct((1, time, 8), jnp.float32)
  head = jax.ShapeDtypeStruct((vocab, 8), jnp.float32)
  targets = jax.ShapeDtypeStruct((1, time), jnp.int32)

  def loss_fn(hidden, head, targets):
    logprobs, entropy = token_logprobs(
      hidden, head, targets, chunk_size=chunk_size, mesh=mesh
    )
    return (logprobs + 0.1 * entropy).sum()

  step = jax.jit(jax.value_and_grad(loss_fn, (0, 1)))
  compiled = step.lower(hidden, head, targets).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_chunk_and_not_with_the_length():
  vocab, chunk_size = 8192, 64
  chunk = 4 * chunk_size * vocab  # Bytes of one chunk's logits.
  base = temporary_bytes(1024, vocab, chunk_size)
  assert base < 5 * chunk
  assert temporary_bytes(4096, vocab, chunk_size) - base < chunk / 2
  assert temporary_bytes(1024, vocab, 4 * chunk_size) - base > 3 * chunk
  assert temporary_bytes(1024, 2 * vocab, chunk_size) > 1.7 * base


def test_memory_shrinks_with_the_shards_of_the_vocabulary():
  base = temporary_bytes(1024, 8192, 64, mesh_of(1, 1, 1))
  assert temporary_bytes(1024, 8192, 64, mesh_of(1, 1, 8)) < base / 5
  # Over `context` every device scores the tokens of all: as many logits.
  assert temporary_bytes(1024, 8192, 64, mesh_of(1, 4, 2)) < base / 1.6


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'hidden': np.ones((T, D))}, r'hidden \[B, T, D\].*\(12, 8\)'),
    ({'targets': np.zeros((B, T + 1), int)}, r'targets \[B, T\].*\(8, 13\)'),
    ({'head': np.ones((D, V))}, r'D = 8, got \(8, 37\).*transposed'),
    ({'temperature': 0.0}, 'temperature: expected a number > 0, got 0.0'),
    ({'chunk_size': 0}, 'chunk_size: expected tokens >= 1, got 0'),
    ({'mesh': Mesh(jax.devices(), 'x')}, r"expected axes .*got \('x',\)"),
    ({'mesh': mesh_of(1, 8, 1)}, "T = 12 .* 8 devices of mesh axis 'context'"),
  ],
)
def test_an_argument_that_does_not_fit_is_named(change, message):
  hidden, head, targets = random_inputs()
  arguments = {'hidden': hidden, 'head': head, 'targets': targets, **change}
  with pytest.raises(ValueError, match=message):
    token_logprobs(**arguments)
