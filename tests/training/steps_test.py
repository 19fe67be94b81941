"""One batch gives one update, however it is cut up, and a bad one gives none.

The reference of a gradient is the sum over samples, each alone in a row, on one
device; a tolerance is in parts of the largest entry of a weight's gradient.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import base
from qed import config
from qed.data import packing
from qed.models import sharding, specs
from qed.training import optimizer, steps
from qed.training.checkpoints import Checkpointer
from qed.types import GrpoBatch, PackedBatch, TrainingSample

V, T = 64, 32
MODEL = specs.Config(
  vocab_size=V,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=8,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=1e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
UNTIED = dataclasses.replace(MODEL, tie_word_embeddings=False)
OPTIM = dict(
  peak_lr=1e-2,
  schedule='linear',
  warmup_steps=0,
  warmup_frac=0.0,
  beta1=0.9,
  beta2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip_norm=0.5,
)
PPO = steps.PolicyLoss(
  kind='ppo',
  clip_low=0.2,
  clip_high=0.3,
  dual_clip=0.0,
  correction='none',
  correction_low=0.0,
  correction_high=0.0,
  sequence_mean=False,
  entropy_coef=0.01,
  kl_coef=0.0,
  kl_estimator='k3',
  normalizer='sequences',
  normalizer_constant=0.0,
  temperature=0.8,
)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)]
CHUNKS = [1, 7, 128, 10**6]
# The largest deviation that was seen is 6e-7.
TOLERANCE = 5e-6
# Compiles in a third of the time; what is compared has one setting.
QUICK = {'xla_backend_optimization_level': 0}


def make_samples(num_samples=24, seed=0):
  rng = np.random.default_rng(seed)
  made = []
  for index, length in enumerate(rng.integers(4, T + 2, num_samples)):
    mask = np.arange(length) >= rng.integers(1, length)
    made.append(
      TrainingSample(
        token_ids=rng.integers(0, V, length).astype(np.int32),
        loss_mask=mask,
        behavior_logprobs=np.where(
          mask, rng.normal(-4, 0.5, length), np.nan
        ).astype(np.float32),
        advantage=float(rng.normal()),
        group_id=index,
      )
    )
  return made


SAMPLES = make_samples()
ROWS = 32  # Of a batch, for the packed samples and for one in each row.


def make_batch(samples=SAMPLES, num_microbatches=1, packed=True, rows=ROWS):
  """A GrpoBatch [A, rows / A, T]."""
  if packed:
    shape = packing.BatchShape(
      num_rows=rows, row_length=T, microbatch_counts=(1,)
    )
    batch = packing.pack_grpo(samples, shape)
  else:
    row = packing.BatchShape(num_rows=1, row_length=T, microbatch_counts=(1,))
    parts = [packing.pack_grpo([sample], row) for sample in samples]
    parts += [packing.pack_grpo([], row)] * (rows - len(parts))
    batch = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
  return jax.tree.map(
    lambda x: x.reshape(num_microbatches, -1, x.shape[-1]), batch
  )


def make_compute(mesh=None, chunk_size=16, **changes):
  settings = dict(dtype='float32', remat='none', attention=None)
  return steps.Compute(
    **{**settings, **changes}, chunk_size=chunk_size, mesh=mesh
  )


@functools.cache
def make_tx(model=MODEL, **changes):
  return optimizer.make(num_steps=10, model=model, **{**OPTIM, **changes})


def make_params(model=MODEL, seed=0):
  """Weights large enough for attention and entropies to matter."""
  params = specs.init(model, jax.random.key(seed))
  return jax.tree.map(lambda x: x if x.ndim < 3 else x * 10, params)


def make_step(mesh, kind='sft', model=MODEL, tx=None, **settings):
  """A compiled step of 2 x 8 rows, and what makes a state for it."""
  tx = make_tx(model) if tx is None else tx
  arguments = dict(model=model, tx=tx, compute=make_compute(mesh, **settings))
  function = functools.partial(steps.sft_step, **arguments)
  if kind == 'grpo':
    function = functools.partial(steps.grpo_step, objective=PPO, **arguments)
  abstract = steps.abstract_state(model, tx, mesh)
  compiled = (
    steps.compile_step(function, mesh, abstract)
    .lower(abstract, steps.abstract_batch(2, 8, T, mesh, kind))
    .compile(compiler_options=QUICK)
  )

  def step(state, batch):
    state, metrics = compiled(state, batch)
    return state, {name: float(value) for name, value in metrics.items()}

  def start(params=None):
    return steps.init_state(
      make_params(model) if params is None else params, model, tx, mesh
    )

  return step, start


def copy(tree):
  return jax.tree.map(np.array, tree)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, tolerance=TOLERANCE):
  def compare(path, x, y):
    scale = np.abs(y).max()
    deviation = np.abs(np.float64(x) - y).max() / scale
    assert deviation <= tolerance, (jax.tree_util.keystr(path), deviation)

  jax.tree_util.tree_map_with_path(compare, found, expected)


# One batch, one gradient.


@pytest.fixture(scope='module')
def by_sample():
  """Sum of loss and gradient, in float64, of one sample at a time."""

  def compute(loss, pick):
    grad = jax.jit(
      jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK
    )
    params = make_params()
    total, grads = 0.0, None
    for sample in SAMPLES:
      batch = jax.tree.map(lambda x: x[0], make_batch([sample], rows=1))
      (value, _), part = grad(params, pick(batch))
      total += float(value)
      part = jax.tree.map(np.float64, part)
      grads = part if grads is None else jax.tree.map(np.add, grads, part)
    return total, grads

  settings = dict(model=MODEL, compute=make_compute())
  num_tokens = sum(int(sample.loss_mask.sum()) for sample in SAMPLES)
  found = {}
  for kind, loss, pick, normalizer in (
    ('sft', steps.sft_loss, lambda batch: batch.packed, num_tokens),
    (
      'grpo',
      functools.partial(steps.grpo_loss, objective=PPO),
      lambda batch: batch,
      len(SAMPLES),
    ),
  ):
    total, grads = compute(functools.partial(loss, **settings), pick)
    found[kind] = (
      total / normalizer,
      jax.tree.map(lambda g, n=normalizer: g / n, grads),
    )
  return found


def check_gradient(
  expected, kind, mesh_shape, num_microbatches, chunk_size, packed
):
  """Loss and gradient of a step whose optimizer hands the gradient on."""
  mesh = sharding.make_mesh(*mesh_shape)
  arguments = dict(model=MODEL, compute=make_compute(mesh, chunk_size))
  loss = functools.partial(steps.sft_loss, **arguments)
  if kind == 'grpo':
    loss = functools.partial(steps.grpo_loss, objective=PPO, **arguments)

  def gradient(params, batch):
    packed = batch if kind == 'sft' else batch.packed
    normalizer = steps.losses.normalizer(
      packed.loss_mask,
      packed.segment_ids,
      kind='tokens' if kind == 'sft' else 'sequences',
    )
    return steps.accumulate(loss, params, batch, normalizer)[:2]

  batch = make_batch(num_microbatches=num_microbatches, packed=packed)
  batch = batch.packed if kind == 'sft' else batch
  params = jax.device_put(make_params(), sharding.param_shardings(MODEL, mesh))
  value, grads = jax.jit(gradient, compiler_options=QUICK)(
    params, steps.place_batch(batch, mesh)
  )
  np.testing.assert_allclose(value, expected[0], rtol=TOLERANCE)
  assert_close(grads, expected[1])


@pytest.mark.parametrize(
  ('kind', 'mesh_shape', 'num_microbatches', 'chunk_size', 'packed'),
  [
    ('sft', (1, 1, 1), 1, 10**6, True),
    ('sft', (8, 1, 1), 2, 7, True),
    ('sft', (2, 2, 2), 4, 128, False),
    ('sft', (1, 4, 2), 2, 1, True),
    ('grpo', (2, 2, 2), 2, 7, True),
    ('grpo', (1, 4, 2), 4, 128, False),
  ],
)
def test_one_batch_gives_one_gradient(
  by_sample, kind, mesh_shape, num_microbatches, chunk_size, packed
):
  check_gradient(
    by_sample[kind], kind, mesh_shape, num_microbatches, chunk_size, packed
  )


@pytest.mark.slow
@pytest.mark.parametrize('mesh_shape', MESHES)
@pytest.mark.parametrize('kind', ['sft', 'grpo'])
def test_one_batch_gives_one_gradient_in_every_combination(
  by_sample, kind, mesh_shape
):
  for settings in itertools.product([1, 2, 4], CHUNKS, [True, False]):
    check_gradient(by_sample[kind], kind, mesh_shape, *settings)


@pytest.mark.parametrize('remat', ['full', 'attention'])
def test_what_is_recomputed_does_not_change_the_gradient(by_sample, remat):
  loss = functools.partial(
    steps.sft_loss, model=MODEL, compute=make_compute(remat=remat)
  )
  batch = make_batch().packed
  found = jax.jit(
    lambda p, b: steps.accumulate(loss, p, b, b.loss_mask.sum()),
    compiler_options=QUICK,
  )(make_params(), batch)
  assert_close(found[1], by_sample['sft'][1])


# The step.


@pytest.fixture(scope='module')
def one_device():
  """An SFT step on one device, of a model whose head is its own."""
  mesh = sharding.make_mesh(1, 1, 1)
  compiled, start = make_step(mesh, model=UNTIED)
  return mesh, compiled, start


@pytest.fixture
def batch(one_device):
  def make(samples=SAMPLES):
    packed = make_batch(samples, num_microbatches=2, rows=16).packed
    return steps.place_batch(packed, one_device[0])

  return make


def test_a_step_updates_in_float32_and_counts(one_device, batch):
  _, step, start = one_device
  before = start()
  old = copy(before.params)
  state, metrics = step(before, batch())
  assert int(state.step) == 1
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))
  num_tokens = sum(int(sample.loss_mask.sum()) for sample in SAMPLES)
  assert metrics['tokens'] == metrics['loss/tokens'] == num_tokens
  # Fresh weights know nothing.
  assert metrics['loss'] == pytest.approx(np.log(V), rel=0.05)
  assert metrics['loss'] == pytest.approx(
    metrics['loss/nll_sum'] / num_tokens, rel=1e-6
  )
  assert metrics['optim/skipped'] == 0
  assert metrics['optim/lr'] == pytest.approx(1e-2)

  def norm(tree):
    return np.sqrt(
      sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(tree))
    )

  new = copy(state.params)
  assert metrics['optim/param_norm'] == pytest.approx(norm(new), rel=1e-5)
  change = jax.tree.map(np.subtract, new, old)
  assert metrics['optim/update_norm'] == pytest.approx(norm(change), rel=1e-4)


def test_a_step_takes_over_the_memory_of_the_state(one_device, batch):
  mesh, step, start = one_device
  before = start()
  after, _ = step(before, batch())
  assert all(x.is_deleted() for x in jax.tree.leaves(before))
  abstract = steps.abstract_state(UNTIED, make_tx(UNTIED), mesh)
  described = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), after
  )
  assert described == abstract


def poisoned(start):
  """A state in which reading token 5 gives NaN."""
  params = make_params(UNTIED)
  params['embedding'] = params['embedding'].at[5].set(jnp.nan)
  return start(params)


def without(token):
  def replace(sample):
    ids = sample.token_ids
    return dataclasses.replace(
      sample, token_ids=np.where(ids == token, token + 1, ids)
    )

  return [replace(sample) for sample in SAMPLES]


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_step(
  one_device, batch
):
  _, step, start = one_device
  state, _ = step(poisoned(start), batch(without(5)))
  before = copy(state)
  state, metrics = step(state, batch())
  assert metrics['optim/skipped'] == 1
  assert not np.isfinite(metrics['optim/grad_norm'])
  assert int(state.step) == 2
  assert_same(copy(state.params), before.params)
  assert_same(copy(state.opt_state), before.opt_state)
  assert metrics['optim/update_norm'] == 0


def test_after_a_skipped_step_the_rate_is_that_of_the_next(one_device, batch):
  _, step, start = one_device
  state, metrics = step(poisoned(start), batch())
  assert metrics['optim/skipped'] == 1
  assert metrics['optim/lr'] == pytest.approx(1e-2)
  state, metrics = step(state, batch(without(5)))
  assert metrics['optim/skipped'] == 0
  assert metrics['optim/lr'] == pytest.approx(0.9e-2)
  assert int(state.step) == 2


def test_a_batch_with_nothing_to_train_on_is_harmless(one_device, batch):
  _, step, start = one_device
  state, _ = step(start(), batch())
  before = copy(state)
  silent = [
    dataclasses.replace(s, loss_mask=np.zeros_like(s.loss_mask))
    for s in SAMPLES
  ]
  for samples in (silent, []):
    state, metrics = step(state, batch(samples))
    assert metrics['loss'] == metrics['tokens'] == 0
    assert metrics['optim/grad_norm'] == metrics['optim/skipped'] == 0
    assert_same(copy(state.params), before.params)
    assert_same(copy(state.opt_state), before.opt_state)


def test_padding_and_silent_samples_change_nothing(one_device, batch):
  _, step, start = one_device
  few = SAMPLES[:12]
  silent = [
    dataclasses.replace(s, loss_mask=np.zeros_like(s.loss_mask))
    for s in SAMPLES[12:]
  ]
  first, _ = step(start(), batch(few))
  second, _ = step(start(), batch(few + silent))
  assert_close(copy(first.opt_state), copy(second.opt_state), 2e-4)


def test_two_steps_and_two_after_a_restore_are_four(
  one_device, batch, tmp_path
):
  mesh, step, start = one_device
  batches = [batch(make_samples(24, seed=seed)) for seed in range(4)]
  straight, expected = start(), []
  for one in batches:
    straight, metrics = step(straight, one)
    expected.append(metrics)
  for cut in range(5):
    state, found = start(), []
    for one in batches[:cut]:
      state, metrics = step(state, one)
      found.append(metrics)
    saver = Checkpointer(tmp_path / str(cut))
    saver.save(cut, state)
    saver.close()
    abstract = steps.abstract_state(UNTIED, make_tx(UNTIED), mesh)
    state = Checkpointer(tmp_path / str(cut)).restore_latest_valid(abstract)[1]
    for one in batches[cut:]:
      state, metrics = step(state, one)
      found.append(metrics)
    assert_same(copy(state), copy(straight))
    assert found == expected


def test_an_evaluation_is_the_loss_of_the_step_that_follows(one_device, batch):
  mesh, step, start = one_device
  state = start()
  function = functools.partial(
    steps.sft_eval, model=UNTIED, compute=make_compute(mesh)
  )
  evaluate = steps.compile_eval(function, mesh, state.params)
  sums = evaluate(state.params, batch())
  assert not any(x.is_deleted() for x in jax.tree.leaves(state.params))
  _, metrics = step(state, batch())
  mean = float(sums['loss/nll_sum'] / sums['loss/tokens'])
  assert mean == pytest.approx(metrics['loss'], rel=1e-6)


def test_the_norm_that_is_clipped_is_the_same_on_one_and_eight_devices(
  one_device, batch
):
  _, step, start = one_device
  tx = make_tx(UNTIED)
  mesh = sharding.make_mesh(8, 1, 1)
  compiled, start_on_eight = make_step(mesh, model=UNTIED, tx=tx)
  on_one, one = step(start(), batch())
  on_eight, eight = compiled(
    start_on_eight(),
    steps.place_batch(make_batch(num_microbatches=2, rows=16).packed, mesh),
  )
  assert one['optim/grad_norm'] > OPTIM['clip_norm']
  for name in one:
    assert one[name] == pytest.approx(eight[name], rel=1e-5), name
  moments = on_one.opt_state[1].mu, on_eight.opt_state[1].mu
  assert_close(*map(copy, moments))


def test_bfloat16_arithmetic_leaves_float32_weights(batch):
  mesh = sharding.make_mesh(1, 1, 1)
  step, start = make_step(mesh, model=UNTIED, dtype='bfloat16', remat='full')
  before = start()
  old = copy(before.params)
  state, metrics = step(before, batch())
  floats = [x for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
  assert {x.dtype for x in floats} == {np.dtype(np.float32)}
  assert metrics['loss'] == pytest.approx(np.log(V), rel=0.05)
  is_rounded = jax.tree.map(
    lambda x: np.array_equal(x, x.astype(jnp.bfloat16).astype(np.float32)),
    copy(state.params),
  )
  assert not any(jax.tree.leaves(is_rounded))
  assert not np.array_equal(old['embedding'], state.params['embedding'])


# The policy loss, from given log-probabilities.


def policy_terms(monkeypatch, batch=None, **changes):
  """`grpo_loss` of one row of four tokens, all of it to be done by hand."""
  logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.5, 0.9]]))
  entropy = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  seen = {}

  def model(params, batch, **settings):
    seen.update(settings)
    return logprobs, entropy

  monkeypatch.setattr(steps, '_token_logprobs', model)
  packed = PackedBatch(
    tokens=jnp.zeros((1, 4), jnp.int32),
    targets=jnp.zeros((1, 4), jnp.int32),
    positions=jnp.arange(4)[None],
    segment_ids=jnp.ones((1, 4), jnp.int32),
    loss_mask=jnp.array([[True, True, True, False]]),
  )
  reference = jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.9]]))
  batch = GrpoBatch(
    packed=packed,
    behavior_logprobs=jnp.log(jnp.array([[0.25, 0.5, 0.5, 0.9]])),
    advantages=changes.pop('advantage', 1.0) * jnp.array([[1.0, 1, 1, 0]]),
    reference_logprobs=reference if changes.get('kl_coef') else None,
  )
  if changes.pop('loses_reference', False):
    batch = batch._replace(reference_logprobs=None)
  objective = dataclasses.replace(PPO, **{'entropy_coef': 0.0, **changes})
  loss, metrics = steps.grpo_loss(
    {}, batch, model=MODEL, compute=make_compute(), objective=objective
  )
  return float(loss), metrics, seen


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    # Ratios 2, 1/2, 1; with advantage 1 only the upper bound binds, 1.3.
    ({}, -(1.3 + 0.5 + 1.0)),
    ({'clip_high': 4.0}, -(2.0 + 0.5 + 1.0)),
    ({'kind': 'cispo', 'clip_low': 0.1, 'clip_high': 4.0}, None),
    ({'entropy_coef': 0.1}, -2.8 - 0.1 * 6),
    # Advantages of -1 turn ratios 2, 1/2, 1 to losses; 0.8 is the lower bound.
    ({'dual_clip': 1.5, 'advantage': -1.0}, 1.5 + 0.8 + 1.0),
    # The ratio to the policy itself is 1; the weights are 2, 1/2, 1.
    (
      {
        'correction': 'truncate',
        'correction_low': 0.6,
        'correction_high': 1.7,
      },
      -(1.7 + 0.6 + 1.0),
    ),
    (
      {'correction': 'mask', 'correction_low': 0.6, 'correction_high': 2.5},
      -(2.0 + 0.0 + 1.0),
    ),
    ({'sequence_mean': True, 'entropy_coef': 0.1}, (-2.8 - 0.1 * 6) / 3),
    # k2 = d² / 2 with d = log 2, 0, log 2.
    ({'kl_coef': 2.0, 'kl_estimator': 'k2'}, -2.8 + 2 * np.log(2) ** 2),
    # k3 = exp(-d) - 1 + d.
    (
      {'kl_coef': 1.0, 'kl_estimator': 'k3'},
      -2.8 + 2 * (0.5 - 1 + np.log(2)),
    ),
  ],
)
def test_every_term_of_the_policy_loss_counts(monkeypatch, changes, expected):
  if expected is None:  # Weights 2, 0.9 (clipped from below), 1.
    expected = -(2 * np.log(0.5) + 0.9 * np.log(0.25) + np.log(0.5))
  loss, _, _ = policy_terms(monkeypatch, **changes)
  assert loss == pytest.approx(expected, rel=1e-6)


def test_a_correction_weights_the_gradient_and_not_the_ratio(monkeypatch):
  """-w A ∇ log π with w of the sampler's log-probabilities; the clip is off."""

  def loss(logprobs):
    monkeypatch.setattr(
      steps, '_token_logprobs', lambda *_, **__: (logprobs, 0.0 * logprobs)
    )
    objective = dataclasses.replace(
      PPO,
      entropy_coef=0.0,
      correction='mask',
      correction_low=0.6,
      correction_high=2.5,
    )
    packed = PackedBatch(
      *[jnp.zeros((1, 3), jnp.int32)] * 3,
      segment_ids=jnp.ones((1, 3), jnp.int32),
      loss_mask=jnp.ones((1, 3), bool),
    )
    behavior = jnp.log(jnp.array([[0.25, 0.5, 0.5]]))
    batch = GrpoBatch(packed, behavior, jnp.array([[3.0, 5.0, -7.0]]), None)
    return steps.grpo_loss(
      {}, batch, model=MODEL, compute=make_compute(), objective=objective
    )

  logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.5]]))
  grads, metrics = jax.grad(loss, has_aux=True)(logprobs)
  np.testing.assert_allclose(grads, [[-2.0 * 3, 0.0, 7.0]], rtol=1e-6)
  # The ratios that are told are still those to the sampler.
  assert metrics['policy/ratio_sum'] == pytest.approx(2 + 0.5 + 1)
  assert metrics['policy/outside_tokens'] == 1
  assert metrics['policy/loss_sum'] == pytest.approx(-2 * 3 + 7)


def test_an_objective_takes_from_the_config_what_a_step_computes():
  loss = config.build(base.grpo()).loss
  objective = steps.PolicyLoss.from_config(loss, temperature=0.8)
  assert (
    dataclasses.asdict(objective).items()
    <= (dataclasses.asdict(loss) | {'temperature': 0.8}).items()
  )
  host = {'advantage', 'z_score_eps', 'z_score_ddof'}
  assert {f.name for f in dataclasses.fields(loss)} - host == {
    f.name for f in dataclasses.fields(objective)
  } - {'temperature'}


def test_how_a_step_is_computed_is_what_the_config_says():
  for values in (base.sft(), base.grpo()):
    run = config.build(values)
    compute = steps.Compute.from_config(run, None)
    assert dataclasses.asdict(compute) == {
      'dtype': run.model.dtype,
      'remat': run.model.remat,
      'attention': None,  # The platform's.
      'chunk_size': run.training.logprob_chunk_size,
      'mesh': None,
    }
  dense = config.build(base.override(base.sft(), {'model.attention': 'dense'}))
  assert steps.Compute.from_config(dense, None).attention == 'dense'


def test_the_temperature_is_the_sampler_s(monkeypatch):
  seen = policy_terms(monkeypatch, temperature=0.6)[2]
  assert seen['temperature'] == 0.6


def test_a_penalty_without_a_reference_is_refused(monkeypatch):
  with pytest.raises(ValueError, match='reference_logprobs, got None'):
    policy_terms(monkeypatch, kl_coef=0.1, loses_reference=True)


def test_a_policy_step_divides_by_what_the_config_says(monkeypatch):
  """Losses of 1 per token: 3 sequences of 2 + 3 + 1 tokens, in 2 rows."""
  packed = PackedBatch(
    tokens=np.zeros((2, 1, 6), np.int32),
    targets=np.zeros((2, 1, 6), np.int32),
    positions=np.zeros((2, 1, 6), np.int32),
    segment_ids=np.array([[[1, 1, 2, 2, 2, 3]], [[1, 1, 1, 0, 0, 0]]]),
    loss_mask=np.array([[[1, 1, 1, 1, 1, 0]], [[0, 0, 1, 0, 0, 0]]], bool),
  )
  zeros = np.zeros((2, 1, 6), np.float32)
  batch = GrpoBatch(packed, zeros, zeros, None)

  def loss(params, batch, *, model, compute, objective):
    count = jnp.sum(batch.packed.loss_mask, dtype=jnp.float32)
    return count + 0.0 * params['x'].sum(), {'counted': count}

  monkeypatch.setattr(steps, 'grpo_loss', loss)
  tx = steps.optax.chain(optimizer._scale_by_rate(lambda step: 0.0 * step))
  params = {'x': jnp.zeros(2)}
  state = steps.TrainState(jnp.int32(0), params, tx.init(params))
  for changes, expected in (
    ({'normalizer': 'sequences'}, 6 / 3),
    ({'normalizer': 'tokens'}, 6 / 6),
    ({'normalizer': 'constant', 'normalizer_constant': 4.0}, 6 / 12),
  ):
    objective = dataclasses.replace(PPO, **changes)
    _, metrics = steps.grpo_step(
      state,
      batch,
      model=MODEL,
      compute=make_compute(),
      objective=objective,
      tx=tx,
    )
    assert metrics['loss'] == pytest.approx(expected)
    assert metrics['counted'] == 6


# Places.


@pytest.mark.parametrize('mesh_shape', MESHES)
def test_every_device_gets_its_part_of_the_batch(mesh_shape):
  mesh = sharding.make_mesh(*mesh_shape)
  batch = make_batch(num_microbatches=2)
  placed = steps.place_batch(batch, mesh)
  assert_same(copy(placed), batch)
  shape = (2, ROWS // 2 // mesh_shape[0], T // mesh_shape[1])
  assert all(
    shard.data.shape == shape
    for x in jax.tree.leaves(placed)
    for shard in x.addressable_shards
  )
  described = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    placed,
  )
  assert described == steps.abstract_batch(2, ROWS // 2, T, mesh, 'grpo')
  assert described.packed == steps.abstract_batch(2, ROWS // 2, T, mesh, 'sft')


def test_a_described_batch_has_a_reference_on_request():
  mesh = sharding.make_mesh(1, 1, 1)
  batch = steps.abstract_batch(2, 4, 8, mesh, 'grpo', with_reference=True)
  assert batch.reference_logprobs.shape == (2, 4, 8)


@pytest.mark.parametrize('mesh_shape', MESHES)
def test_a_described_state_is_the_one_that_training_starts_with(mesh_shape):
  mesh, tx = sharding.make_mesh(*mesh_shape), make_tx()
  state = steps.init_state(make_params(), MODEL, tx, mesh)
  described = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  assert described == steps.abstract_state(MODEL, tx, mesh)
  size = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state))
  whole = sum(x.size for x in jax.tree.leaves(state))
  # Matrices are divided over all devices, norms are everywhere.
  assert size < whole / mesh.size + 1000
