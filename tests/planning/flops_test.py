"""FLOPs against counts by hand, of a model whose N H differs from D."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh, PartitionSpec

from qed.algos.logprobs import token_logprobs
from qed.models import attention, qwen3, specs
from qed.planning import flops

# N H = 6 x 16 = 96 and D = 32; every size is different.
MODEL = specs.Config(
  vocab_size=40,
  hidden_size=32,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=2,
  head_dim=16,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
B, T = 2, 10

# Multiplications and additions per token, by hand.
QKV = 2 * 32 * (6 + 2 + 2) * 16
OUT = 2 * 6 * 16 * 32
GATE_UP = 2 * 2 * 32 * 24
DOWN = 2 * 24 * 32
HEAD = 2 * 32 * 40
# Scores and values of all T x T pairs, which dense attention computes.
SCORES = 2 * (2 * 6 * 16 * T)
LAYER = QKV + SCORES + OUT + GATE_UP + DOWN


def loss(params, *, remat, kernel, shape):
  tokens = jnp.zeros(shape, jnp.int32)
  hidden = qwen3.apply(
    params,
    tokens,
    tokens,
    tokens,
    config=MODEL,
    remat=remat,
    attention_kernel=kernel,
  )
  logprobs, _ = token_logprobs(hidden, qwen3.output_head(params), tokens)
  return jnp.sum(logprobs)


def trace(*, grad=True, remat='none', kernel='dense', shape=(B, T)):
  f = functools.partial(loss, remat=remat, kernel=kernel, shape=shape)
  f = jax.value_and_grad(f) if grad else f
  return jax.jit(f).trace(specs.abstract(MODEL)).jaxpr


def test_a_forward_pass_is_the_products_of_its_tokens():
  counted = flops.count(trace(grad=False))
  assert counted.matmul == B * T * (3 * LAYER + HEAD)
  assert counted.attention == 0
  assert not counted.uncounted


def test_a_backward_pass_is_twice_the_forward_and_the_logits_again():
  counted = flops.count(trace())
  assert counted.matmul == B * T * (3 * 3 * LAYER + 4 * HEAD)


def test_full_remat_adds_a_forward_pass_without_its_last_product():
  # The output of the down projection is the next layer's input, which is saved.
  counted = flops.count(trace(remat='full'))
  again = 3 * (LAYER - DOWN)
  assert counted.matmul == B * T * (3 * 3 * LAYER + 4 * HEAD + again)


def test_xla_counts_the_same_where_it_can_count():
  one_layer = functools.partial(
    loss, remat='none', kernel='dense', shape=(4, 64)
  )

  def f(params):
    first = jax.tree.map(lambda x: x[:1], params['layers'])
    return one_layer({**params, 'layers': first})

  traced = jax.jit(f).trace(specs.abstract(MODEL))
  cost = traced.lower().compile().cost_analysis()
  # XLA also counts what is done element by element.
  ratio = flops.count(traced.jaxpr).matmul / cost['flops']
  assert 0.75 < ratio <= 1


def splash_products(length, block):
  """FLOPs of one product [T, T] x [T, H] for all heads of a row, causal."""
  num_blocks = length // block
  num_visited = num_blocks * (num_blocks + 1) // 2
  return 2 * 6 * 16 * num_visited * block * block


def test_splash_attention_is_nine_products_of_the_blocks_under_the_diagonal():
  def f(q, k, v):
    ids = jnp.ones((2, 2048), jnp.int32)
    return jnp.sum(attention.splash(q, k, v, ids, ids))

  shapes = [
    jax.ShapeDtypeStruct((2, 2048, n, 16), jnp.float32) for n in (6, 2, 2)
  ]
  traced = jax.jit(jax.grad(f, argnums=(0, 1, 2))).trace(*shapes)
  counted = flops.count(traced.jaxpr)
  assert counted.attention == 2 * 9 * splash_products(2048, 1024)
  # The backward pass also needs the output times its gradient, row by row.
  assert counted.matmul == 2 * 2 * 6 * 2048 * 16


@pytest.mark.parametrize(
  ('remat', 'products'), [('none', 9), ('attention', 9), ('full', 11)]
)
def test_only_full_remat_runs_the_forward_kernel_twice(remat, products):
  counted = flops.count(trace(remat=remat, kernel='splash', shape=(1, 1024)))
  assert counted.attention == 3 * products * splash_products(1024, 1024)


def count(f, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return flops.count(jax.make_jaxpr(f)(*arrays))


def test_a_product_counts_batch_axes_once():
  counted = count(
    lambda x, y: jnp.einsum('bij,bkj->bik', x, y), (3, 4, 5), (3, 6, 5)
  )
  assert counted.matmul == 2 * 3 * 4 * 5 * 6


def test_scans_multiply_also_inside_scans():
  def f(x):
    def inner(x, _):
      return x @ x, None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=7)

    return jax.lax.scan(outer, x, None, length=5)[0]

  assert count(f, (4, 4)).matmul == 5 * 7 * 2 * 4**3


def test_a_carry_that_the_next_iteration_reads_is_not_dead():
  # Only `total` is returned; it is fed by `x`, which only the loop reads.
  def body(carry, _):
    x, total, unused = carry
    return (x @ x, total + x, unused @ unused), None

  def f(x):
    (_, total, _), _ = jax.lax.scan(body, (x, x, x), None, length=5)
    return total

  assert count(f, (4, 4)).matmul == 5 * 2 * 4**3


def test_what_nothing_depends_on_is_left_out():
  inner = jax.jit(lambda x: (x @ x, x + 1))
  assert count(lambda x: inner(x)[1], (4, 4)).matmul == 0
  assert count(lambda x: inner(x)[0], (4, 4)).matmul == 2 * 4**3


def test_a_conditional_counts_its_most_expensive_branch():
  def f(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert count(f, (4, 4)).matmul == 2 * 2 * 4**3


def test_what_runs_on_every_device_counts_once_per_device():
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2),
    ('a', 'b'),
    axis_types=(AxisType.Auto,) * 2,
  )
  f = jax.shard_map(
    lambda x: x @ x.T,
    mesh=mesh,
    in_specs=PartitionSpec('a'),
    out_specs=PartitionSpec('a'),
    check_vma=False,
  )
  # A shard is [2, 4], the same on both devices of `b`.
  assert count(f, (8, 4)).matmul == 8 * 2 * 2 * 4 * 2


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  def f(x):
    return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

  counted = count(f, (4, 4))
  assert counted.matmul == 2 * 4**3
  assert counted.uncounted == {'while'}


def test_an_unknown_kernel_is_named():
  def double(x, y):
    y[...] = 2 * x[...]

  def f(x):
    return pl.pallas_call(
      double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), name='doubling'
    )(x)

  assert count(f, (8, 128)).uncounted == {'doubling'}
