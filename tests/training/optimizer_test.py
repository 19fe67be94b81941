"""AdamW against float64 NumPy, and the schedules against hand-made values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qed.models import specs
from qed.training import optimizer

MODEL = specs.Config(
  vocab_size=6,
  hidden_size=4,
  intermediate_size=6,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=2,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
)
RATE = dict(peak_lr=0.1, schedule='constant', warmup_steps=0, warmup_frac=0.0)
ADAM = dict(
  beta1=0.9, beta2=0.99, eps=1e-3, weight_decay=0.0, clip_norm=0.0, **RATE
)


def rates(num_steps, **changes):
  rate = optimizer.schedule(num_steps=num_steps, **{**RATE, **changes})
  return [float(rate(step)) for step in range(num_steps)]


def random_tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, scale, x.shape), jnp.float32),
    specs.abstract(MODEL),
  )


def apply(grads, params, first_step=0, num_steps=10, **changes):
  """The weights after one update for each tree of gradients."""
  tx = optimizer.make(num_steps=num_steps, model=MODEL, **{**ADAM, **changes})
  state = tx.init(params)
  for step, grad in enumerate(grads, start=first_step):
    updates, state = tx.update(grad, state, params, step=jnp.int32(step))
    params = jax.tree.map(jnp.add, params, updates)
  return params


def adamw_in_numpy(grads, params, *, decays, clip_norm=0.0, weight_decay=0.0):
  """ADAM's updates of a list of arrays, in float64."""
  params = [np.float64(p) for p in params]
  m = [np.zeros_like(p) for p in params]
  v = [np.zeros_like(p) for p in params]
  for t, grad in enumerate(grads, start=1):
    grad = [np.float64(g) for g in grad]
    norm = math.sqrt(sum((g**2).sum() for g in grad))
    if clip_norm and norm > clip_norm:
      grad = [g * clip_norm / norm for g in grad]
    for i, g in enumerate(grad):
      m[i] = 0.9 * m[i] + 0.1 * g
      v[i] = 0.99 * v[i] + 0.01 * g**2
      direction = m[i] / (1 - 0.9**t)
      direction /= np.sqrt(v[i] / (1 - 0.99**t)) + 1e-3
      if decays[i]:
        direction = direction + weight_decay * params[i]
      params[i] = params[i] - 0.1 * direction
  return params


def test_the_warm_up_rises_by_equal_parts_and_the_peak_follows_it():
  got = rates(6, warmup_steps=3)
  np.testing.assert_allclose(got, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], 1e-6)


def test_a_linear_decay_would_be_zero_one_step_after_the_last():
  got = rates(6, schedule='linear', warmup_steps=1)
  np.testing.assert_allclose(got, [0.05, 0.1, 0.08, 0.06, 0.04, 0.02], 1e-5)


def test_a_cosine_is_at_half_in_the_middle_and_falls_to_zero():
  got = rates(4, schedule='cosine')
  half = math.sqrt(0.5)
  expected = [0.1, 0.05 * (1 + half), 0.05, 0.05 * (1 - half)]
  np.testing.assert_allclose(got, expected, 1e-5)


def test_a_warm_up_can_be_a_part_of_the_run():
  assert rates(620, warmup_frac=0.1) == rates(620, warmup_steps=62)
  assert rates(7, warmup_frac=0.1) == rates(7, warmup_steps=1)


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'constant'])
def test_no_step_of_a_run_has_a_rate_of_zero(kind):
  assert min(rates(20, schedule=kind, warmup_frac=0.3)) > 0


def test_a_warm_up_as_long_as_the_run_is_refused():
  with pytest.raises(ValueError, match='run of 3 steps, got 3'):
    rates(3, warmup_steps=3)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="got 'cosin'"):
    rates(3, schedule='cosin')


def test_updates_are_adamw_in_float64():
  params, grads = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
  leaves, tree = jax.tree.flatten(params)
  names = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  for clip_norm in (0.0, 2.0, 1e3):
    got = apply(grads, params, clip_norm=clip_norm, weight_decay=0.3)
    expected = adamw_in_numpy(
      [jax.tree.leaves(grad) for grad in grads],
      leaves,
      decays=['norm' not in name for name in names],
      clip_norm=clip_norm,
      weight_decay=0.3,
    )
    for x, y in zip(jax.tree.leaves(got), expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)
  assert jax.tree.structure(got) == tree


def test_norms_do_not_decay_and_everything_else_does():
  ones = jax.tree.map(lambda x: jnp.ones(x.shape), specs.abstract(MODEL))
  zeros = jax.tree.map(jnp.zeros_like, ones)
  after = apply([zeros], ones, weight_decay=0.5)
  for path, x in jax.tree_util.tree_leaves_with_path(after):
    is_norm = 'norm' in jax.tree_util.keystr(path)
    np.testing.assert_allclose(x, 1.0 if is_norm else 0.95, rtol=1e-6)


def test_clipping_is_by_the_norm_of_all_weights_together():
  """One huge weight shrinks the others, as no clip of single arrays would."""
  params = random_tree(0)
  small = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), params)
  huge = {**small, 'embedding': jnp.full((6, 4), 1e3)}
  first = apply([small], params, clip_norm=1.0)
  second = apply([huge], params, clip_norm=1.0)
  # Under eps = 1e-3, gradients of 1e-3 / 4,899 hardly move a weight.
  moved = np.abs(first['head'] - params['head']).max()
  assert moved > 0.04
  assert np.abs(second['head'] - params['head']).max() < moved / 100


def test_the_rate_is_that_of_the_step_and_not_of_the_number_of_updates():
  params, grad = random_tree(0), random_tree(1)
  late = apply([grad], params, first_step=7, schedule='linear')
  same = apply([grad], params, peak_lr=0.1 * (1 - 7 / 10))
  for x, y in zip(jax.tree.leaves(late), jax.tree.leaves(same), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_thousand_steps_of_1e_6_move_a_weight_by_1e_3():
  """In bfloat16 it would not move at all."""
  params = jax.tree.map(lambda x: jnp.ones(x.shape), specs.abstract(MODEL))
  grads = jax.tree.map(lambda x: jnp.full(x.shape, 1e-4), params)
  tx = optimizer.make(
    num_steps=1000, model=MODEL, **{**ADAM, 'peak_lr': 1e-6, 'eps': 1e-12}
  )

  def step(i, carry):
    params, state = carry
    updates, state = tx.update(grads, state, params, step=i)
    return jax.tree.map(jnp.add, params, updates), state

  run = jax.jit(lambda p: jax.lax.fori_loop(0, 1000, step, (p, tx.init(p))))
  for x in jax.tree.leaves(run(params)[0]):
    assert x.dtype == jnp.float32
    # 1e-6 is 16.8 spacings of float32 below 1, which round to 17.
    np.testing.assert_allclose(1.0 - x, 1e-3, rtol=0.02)


@pytest.mark.parametrize(
  'change',
  [
    {'beta1': 0.5},
    {'beta2': 0.5},
    {'eps': 0.1},
    {'weight_decay': 0.1},
    {'clip_norm': 0.1},
    {'peak_lr': 0.2},
    {'schedule': 'linear'},
    {'warmup_steps': 1},
    {'warmup_frac': 0.5},
    {'num_steps': 20, 'schedule': 'linear'},
  ],
  ids=lambda change: '-'.join(change),
)
def test_every_argument_reaches_the_weights(change):
  params, grads = random_tree(0), [random_tree(1), random_tree(2)]
  before = apply(grads, params)
  if len(change) > 1:
    before = apply(grads, params, schedule='linear')
  after = apply(grads, params, **change)
  assert np.abs(before['embedding'] - after['embedding']).max() > 1e-4
