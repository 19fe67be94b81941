"""The forward pass: equal to transformers', under any layout."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qed.models import attention, kv_cache, qwen3, sharding, specs
from tests.golden import qwen3_cases as cases

GOLDEN = pathlib.Path(cases.__file__).with_name('qwen3.npz')
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2))


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as arrays:
    return dict(arrays)


def tree_of(named, config):
  """The weight tree of tensors by Hugging Face name."""

  def stack(spec):
    if '{layer}' not in spec.hf_name:
      return jnp.asarray(named[spec.hf_name].reshape(spec.shape))
    layers = [
      named[spec.hf_name.format(layer=layer)].reshape(spec.shape[1:])
      for layer in range(spec.shape[0])
    ]
    return jnp.asarray(np.stack(layers))

  return jax.tree.map(stack, specs.declare(config), is_leaf=specs.is_spec)


def model_of(name):
  hf = cases.CONFIGS[name]
  config = qwen3.Config.from_hf(hf)
  return config, tree_of(cases.weights(hf), config)


def pack(documents, row_length):
  """Documents in one row: tokens, positions and segment ids [1, T]."""
  row = np.zeros((3, 1, row_length), np.int32)
  start = 0
  for segment, (tokens, positions) in enumerate(documents, 1):
    stop = start + len(tokens)
    row[:, 0, start:stop] = tokens, positions, np.full_like(tokens, segment)
    start = stop
  return tuple(row)


@functools.partial(
  jax.jit, static_argnames=('config', 'mesh', 'remat', 'attention_kernel')
)
def forward(params, tokens, positions, segment_ids, *, config, **options):
  hidden = qwen3.apply(
    params, tokens, positions, segment_ids, config=config, **options
  )
  return qwen3.logits(params, hidden, config=config, mesh=options.get('mesh'))


@functools.partial(
  jax.jit, static_argnames=('config', 'mesh', 'remat', 'attention_kernel')
)
def _loss_and_gradients(
  params, tokens, positions, segment_ids, targets, **opts
):
  def loss(params):
    out = forward(params, tokens, positions, segment_ids, **opts)
    logprobs = jax.nn.log_softmax(out)
    picked = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(segment_ids > 0, picked, 0.0))

  return jax.value_and_grad(loss)(params)


def loss_and_gradients(params, tokens, positions, segment_ids, **options):
  """Next-token loss where the next token of a document is its roll."""
  targets = np.array(tokens)
  for row, segments in zip(targets, segment_ids, strict=True):
    for segment in range(1, segments.max() + 1):
      row[segments == segment] = np.roll(row[segments == segment], -1)
  return _loss_and_gradients(
    params, tokens, positions, segment_ids, targets, **options
  )


def small(**changes):
  """A config whose sizes divide over every mesh of the tests."""
  values = {
    'vocab_size': 64,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 16,
    'rope_theta': 1e6,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
    'initializer_range': 0.15,
  }
  return qwen3.Config(**{**values, **changes})


def batch_of(config, num_rows=8, row_length=32, seed=0):
  """Random packed rows: tokens, positions, segment ids, with padding."""
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(num_rows):
    cuts = np.sort(rng.choice(np.arange(1, row_length - 4), 3, replace=False))
    lengths = np.diff(np.concatenate([[0], cuts]))
    rows.append(
      pack(
        [
          (
            rng.integers(0, config.vocab_size, n).astype(np.int32),
            np.arange(n, dtype=np.int32),
          )
          for n in lengths
        ],
        row_length,
      )
    )
  return tuple(np.concatenate(field) for field in zip(*rows, strict=True))


# Equality with transformers, from numbers that it wrote.


@pytest.mark.parametrize('name', cases.CONFIGS)
def test_packed_logits_equal_transformers_alone(name, golden):
  # float32, logits of order 1, positions to 40,012: 2e-4 is the bound.
  config, params = model_of(name)
  documents = cases.documents(cases.CONFIGS[name])
  row = pack(documents, 64)
  out = np.asarray(forward(params, *row, config=config))[0]
  start = 0
  for index, (tokens, _) in enumerate(documents):
    expected = golden[f'{name}/logits/{index}']
    assert 0.3 < expected.std() < 5
    got = out[start : start + len(tokens)]
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)
    start += len(tokens)


@pytest.mark.parametrize('name', cases.WITH_GRADIENTS)
def test_gradients_equal_transformers(name, golden):
  config, params = model_of(name)
  row = pack(cases.documents(cases.CONFIGS[name]), 64)
  _, gradients = loss_and_gradients(params, *row, config=config)
  expected = tree_of(
    {
      key.removeprefix(f'{name}/gradient/'): value
      for key, value in golden.items()
      if key.startswith(f'{name}/gradient/')
    },
    config,
  )
  for path, want in jax.tree_util.tree_leaves_with_path(expected):
    got = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < 1e-4, (path, error)


# Layouts that must not be seen.


@pytest.fixture(scope='module')
def one_device():
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  batch = batch_of(config)
  value = loss_and_gradients(params, *batch, config=config)
  return config, params, batch, value


@pytest.mark.parametrize('sizes', MESHES)
def test_every_mesh_gives_one_loss_and_one_gradient(sizes, one_device):
  # Sums in another order: 2e-5 of each gradient's largest entry, in float32.
  config, params, batch, (loss, gradients) = one_device
  mesh = sharding.make_mesh(*sizes)
  placed = jax.device_put(params, sharding.param_shardings(config, mesh))
  got_loss, got = loss_and_gradients(placed, *batch, config=config, mesh=mesh)
  np.testing.assert_allclose(got_loss, loss, rtol=2e-6)
  for want, have in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(got), strict=True
  ):
    scale = np.abs(want).max()
    np.testing.assert_allclose(have, want, atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize('sizes', MESHES[1:])
def test_weights_at_rest_are_divided_over_all_devices(sizes):
  config = small()
  mesh = sharding.make_mesh(*sizes)
  places = sharding.param_shardings(config, mesh)
  declared = specs.declare(config)
  for name in ('q', 'k', 'v', 'o', 'gate', 'up', 'down'):
    spec = declared['layers'][name]
    shard = places['layers'][name].shard_shape(spec.shape)
    assert np.prod(shard) * 8 == np.prod(spec.shape), name


@pytest.mark.parametrize('remat', ['full', 'attention', 'offload'])
def test_remat_changes_no_gradient(remat, one_device):
  config, params, batch, (_, gradients) = one_device
  if remat == 'offload' and jax.default_backend() == 'cpu':
    # XLA for CPU has one memory; tracing the policy is what can be checked.
    jax.make_jaxpr(
      lambda p: loss_and_gradients(p, *batch, config=config, remat=remat)
    )(params)
    return
  _, got = loss_and_gradients(params, *batch, config=config, remat=remat)
  for want, have in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(got), strict=True
  ):
    np.testing.assert_allclose(have, want, atol=1e-5, rtol=1e-5)


def test_a_neighbour_in_the_row_is_never_seen():
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  tokens, positions, segments = batch_of(config, num_rows=2)
  before = forward(params, tokens, positions, segments, config=config)
  for segment in (1, 2, 3):
    others = tokens.copy()
    others[segments != segment] = (others[segments != segment] + 7) % 64
    after = forward(params, others, positions, segments, config=config)
    here = segments == segment
    np.testing.assert_array_equal(after[here], before[here])
    assert np.abs(after - before)[(segments > 0) & ~here].max() > 0.1


def test_padding_and_the_order_of_rows_change_nothing():
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  batch = batch_of(config, num_rows=4)
  before = np.asarray(forward(params, *batch, config=config))
  order = np.array([2, 0, 3, 1])
  shuffled = forward(params, *(x[order] for x in batch), config=config)
  real = batch[2] > 0
  np.testing.assert_allclose(
    np.asarray(shuffled)[real[order]], before[order][real[order]], atol=2e-6
  )
  longer = tuple(np.pad(x, ((0, 0), (0, 16))) for x in batch)
  padded = forward(params, *longer, config=config)
  np.testing.assert_allclose(
    np.asarray(padded)[:, :32][real], before[real], atol=2e-6
  )


# The config reaches the arithmetic.


@pytest.mark.parametrize(
  ('field', 'value'),
  [('rope_theta', 10_000.0), ('rms_norm_eps', 1e-2)],
)
def test_a_number_of_the_config_reaches_the_logits(field, value):
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  batch = batch_of(config, num_rows=1)
  before = forward(params, *batch, config=config)
  changed = dataclasses.replace(config, **{field: value})
  after = forward(params, *batch, config=changed)
  assert np.abs(after - before)[batch[2] > 0].max() > 1e-3


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vocab_size', 80),
    ('hidden_size', 40),
    ('intermediate_size', 64),
    ('num_hidden_layers', 3),
    ('num_attention_heads', 4),
    ('num_key_value_heads', 2),
    ('head_dim', 8),
    ('tie_word_embeddings', True),
    ('initializer_range', 0.3),
  ],
)
def test_a_size_of_the_config_reaches_the_logits(field, value):
  config = small()
  changed = dataclasses.replace(config, **{field: value})
  batch = batch_of(config, num_rows=1)
  outs = [
    forward(qwen3.init(c, jax.random.key(0)), *batch, config=c)
    for c in (config, changed)
  ]
  if field == 'vocab_size':
    assert [out.shape[-1] for out in outs] == [64, 80]
  else:
    assert np.abs(outs[0] - outs[1])[batch[2] > 0].max() > 1e-3


def test_every_field_is_in_one_of_the_two_tests_above():
  tested = {
    mark.args[1][i][0]
    for test in (
      test_a_number_of_the_config_reaches_the_logits,
      test_a_size_of_the_config_reaches_the_logits,
    )
    for mark in test.pytestmark
    for i in range(len(mark.args[1]))
  }
  fields = {field.name for field in dataclasses.fields(qwen3.Config)}
  assert tested == fields - {'carried'}


# Generation is the forward pass.


def test_prefill_and_decode_are_the_forward_pass_for_ragged_prompts():
  # Greedy, 64 tokens, three prompts of different lengths in one batch; the
  # prompts are read in two chunks.
  config = small(tie_word_embeddings=True)
  params = qwen3.init(config, jax.random.key(3))
  lengths = np.array([1, 5, 12], np.int32)
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, config.vocab_size, (3, 12)).astype(np.int32)
  cache = kv_cache.init(config, 3, 96, dtype=jnp.float32)
  prefill = jax.jit(functools.partial(qwen3.prefill, config=config))
  decode = jax.jit(functools.partial(qwen3.decode_step, config=config))

  first = np.minimum(lengths, 4)
  hidden, cache = prefill(params, prompts[:, :4], first, cache)
  last = np.array(hidden[np.arange(3), first - 1])
  hidden, cache = prefill(params, prompts[:, 4:], lengths - first, cache)
  more = lengths > 4
  last[more] = np.asarray(hidden)[more, lengths[more] - 5]
  np.testing.assert_array_equal(cache.lengths, lengths)

  rows = [list(prompt[:n]) for prompt, n in zip(prompts, lengths, strict=True)]
  steps = [np.asarray(qwen3.logits(params, jnp.asarray(last), config=config))]
  for _ in range(64):
    tokens = steps[-1].argmax(-1).astype(np.int32)
    for row, token in zip(rows, tokens, strict=True):
      row.append(token)
    hidden, cache = decode(params, tokens, cache)
    steps.append(np.asarray(qwen3.logits(params, hidden, config=config)))

  for index, row in enumerate(rows):
    tokens = np.zeros((1, 80), np.int32)
    tokens[0, : len(row)] = row
    segments = (np.arange(80) < len(row)).astype(np.int32)[None]
    positions = np.arange(80, dtype=np.int32)[None]
    whole = np.asarray(
      forward(params, tokens, positions, segments, config=config)
    )[0, lengths[index] - 1 : len(row)]
    generated = np.stack([step[index] for step in steps])
    np.testing.assert_allclose(generated, whole, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(whole[:-1].argmax(-1), row[lengths[index] :])


def test_a_slot_of_length_zero_is_left_alone():
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  cache = kv_cache.init(config, 2, 16, dtype=jnp.float32)
  tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
  _, cache = qwen3.prefill(
    params, tokens, np.array([4, 3], np.int32), cache, config=config
  )
  _, after = qwen3.prefill(
    params, tokens, np.array([2, 0], np.int32), cache, config=config
  )
  np.testing.assert_array_equal(after.lengths, [6, 3])
  np.testing.assert_array_equal(after.k[:, 1], cache.k[:, 1])
  np.testing.assert_array_equal(after.v[:, 1], cache.v[:, 1])


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 1, 4)])
def test_decoding_on_a_mesh_gives_the_same_logits(sizes):
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  tokens = np.arange(32, dtype=np.int32).reshape(8, 4)
  lengths = np.full(8, 4, np.int32)
  expected = None
  for mesh in (None, sharding.make_mesh(*sizes)):
    cache = kv_cache.init(config, 8, 16, dtype=jnp.float32, mesh=mesh)
    placed = params
    if mesh is not None:
      placed = jax.device_put(params, sharding.param_shardings(config, mesh))
    step = jax.jit(
      functools.partial(qwen3.decode_step, config=config, mesh=mesh)
    )
    fill = jax.jit(functools.partial(qwen3.prefill, config=config, mesh=mesh))
    _, cache = fill(placed, tokens, lengths, cache)
    hidden, _ = step(placed, tokens[:, 0], cache)
    if expected is None:
      expected = hidden
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


# Precision and refusals.


def test_float32_where_it_matters_in_a_bfloat16_model():
  config = small()
  params = qwen3.init(config, jax.random.key(0))
  batch = batch_of(config, num_rows=1)
  hidden = qwen3.apply(params, *batch, config=config, dtype=jnp.bfloat16)
  assert hidden.dtype == jnp.bfloat16
  out = qwen3.logits(params, hidden, config=config)
  assert out.dtype == jnp.float32
  # Rounding the logits to bfloat16 would leave few distinct values.
  real = np.asarray(out)[batch[2] > 0]
  assert len(np.unique(real)) > 0.9 * real.size


def test_rotary_tables_equal_float64_at_position_50000():
  config = small(rope_theta=5e6, head_dim=128)
  positions = np.array([[0, 1, 50_000, 262_143]], np.int32)
  cos, sin = jax.jit(qwen3._rotary_tables, static_argnums=1)(positions, config)
  assert cos.dtype == jnp.float32
  frequencies = 5e6 ** -(np.arange(0, 128, 2) / 128)
  angles = positions[..., None] * frequencies
  # A float32 angle of 262,143 is only known to 2**-6 of a radian.
  tolerance = np.maximum(np.abs(angles) * 2.0**-23, 2e-6)[:, :, None]
  assert (np.abs(cos - np.cos(angles)[:, :, None]) <= tolerance).all()
  assert (np.abs(sin - np.sin(angles)[:, :, None]) <= tolerance).all()


def test_rows_that_a_mesh_does_not_divide_are_refused():
  config = small()
  mesh = sharding.make_mesh(8, 1, 1)
  batch = batch_of(config, num_rows=3)
  with pytest.raises(ValueError, match='3 rows cannot be divided over data=8'):
    qwen3.apply(
      qwen3.init(config, jax.random.key(0)), *batch, config=config, mesh=mesh
    )


def test_an_unknown_remat_policy_names_those_that_exist():
  config = small()
  with pytest.raises(ValueError, match=r"'everything'.*'attention'"):
    qwen3.apply(
      specs.abstract(config),
      *batch_of(config),
      config=config,
      remat='everything',
    )


def test_heads_that_context_does_not_divide_are_refused():
  config = small(num_attention_heads=6, num_key_value_heads=6)
  mesh = sharding.make_mesh(1, 4, 2)
  batch = batch_of(config)
  with pytest.raises(ValueError, match=r'3 query heads.*context=4'):
    qwen3.apply(
      qwen3.init(config, jax.random.key(0)), *batch, config=config, mesh=mesh
    )


def test_key_heads_fewer_than_context_are_repeated():
  config = small(num_attention_heads=8, num_key_value_heads=2)
  params = qwen3.init(config, jax.random.key(0))
  batch = batch_of(config)
  expected = forward(params, *batch, config=config)
  mesh = sharding.make_mesh(2, 4, 1)
  placed = jax.device_put(params, sharding.param_shardings(config, mesh))
  got = forward(placed, *batch, config=config, mesh=mesh)
  real = batch[2] > 0
  np.testing.assert_allclose(
    np.asarray(got)[real], np.asarray(expected)[real], atol=1e-5
  )


def test_a_profile_reads_in_the_words_of_the_paper():
  config = small()
  text = (
    jax.jit(functools.partial(qwen3.apply, config=config))
    .lower(specs.abstract(config), *batch_of(config, num_rows=1))
    .as_text(debug_info=True)
  )
  for scope in ('embedding', 'attention', 'mlp'):
    assert f'/{scope}/' in text or f'{scope}/' in text
  assert attention.SAVED == 'attention'


def test_the_gate_s_derivative_is_that_of_silu_everywhere():
  gate = np.array([-200.0, -30.0, -2.0, -1e-3, 0.0, 0.5, 3.0, 30.0, 200.0])
  up = np.linspace(-2, 2, gate.size)
  with np.errstate(over='ignore'):
    sigmoid = 1 / (1 + np.exp(-gate))
  expected = up * sigmoid * (1 + gate * (1 - sigmoid)), gate * sigmoid
  found = jax.grad(lambda g, u: qwen3._gated(g, u).sum(), argnums=(0, 1))(
    jnp.float32(gate), jnp.float32(up)
  )
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-12)
