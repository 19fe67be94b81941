"""Losses by hand and against float64 NumPy loops; masks, splits and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qed.algos import losses
from qed.algos.logprobs import token_logprobs

policy_loss = jax.jit(
  losses.policy_loss,
  static_argnames=('kind', 'clip_low', 'clip_high', 'dual_clip'),
)
kl = jax.jit(losses.kl, static_argnames='estimator')
importance_weights = jax.jit(
  losses.importance_weights, static_argnames=('kind', 'low', 'high')
)
normalizer = jax.jit(losses.normalizer, static_argnames=('kind', 'constant'))

KINDS = ('ppo', 'reinforce', 'cispo', 'gspo')
NORMALIZERS = {
  'sequences': {'kind': 'sequences'},
  'tokens': {'kind': 'tokens'},
  'constant': {'kind': 'constant', 'constant': 8.0},
}
CLIPS = {'clip_low': 0.2, 'clip_high': 0.28}

# Two rows of three and two sequences: prompts are off the mask, 0 is padding.
SEGMENT_IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0],
                        [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]])  # fmt: skip
MASK = np.array([[0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0],
                 [0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0]], bool)  # fmt: skip


def random_batch(seed=0, spread=0.4):
  """logprobs, behavior_logprobs and advantages of the rows above, float32."""
  rng = np.random.default_rng(seed)
  behavior = -rng.exponential(1, MASK.shape)
  logprobs = behavior + spread * rng.normal(size=MASK.shape)
  of_segment = rng.normal(size=(2, 4))
  advantages = np.take_along_axis(of_segment, SEGMENT_IDS, axis=1)
  return tuple(x.astype(np.float32) for x in (logprobs, behavior, advantages))


def one_token(ratio, advantage, **options):
  """Loss, d loss / d logprob and metrics of a row of one token."""
  row = jnp.ones((1, 1))

  def loss_fn(logprobs):
    loss, metrics = policy_loss(
      logprobs,
      row * -1.0,
      row * advantage,
      row > 0,
      row.astype(int),
      **options,
    )
    return loss.sum(), metrics

  logprobs = row * (-1.0 + np.log(ratio))
  (loss, metrics), grad = jax.value_and_grad(loss_fn, has_aux=True)(logprobs)
  return float(loss), float(grad[0, 0]), metrics


def total(kind, batch, mask=MASK, segment_ids=SEGMENT_IDS, **options):
  logprobs, behavior, advantages = batch
  options = {**CLIPS, **options}
  loss, _ = policy_loss(
    logprobs, behavior, advantages, mask, segment_ids, kind=kind, **options
  )
  return loss.sum()


# --- The values of one token ------------------------------------------------


@pytest.mark.parametrize(
  ('advantage', 'ratio', 'dual_clip', 'objective', 'slope'),
  [
    (1, 1.5, None, 1.28, 0),
    (1, 0.5, None, 0.5, 0.5),
    (-1, 0.5, None, -0.8, 0),
    (-1, 1.5, None, -1.5, -1.5),
    (1, 1.0, None, 1.0, 1.0),
    (-1, 1.5, 3.0, -1.5, -1.5),
    (-1, 2.9, 3.0, -2.9, -2.9),
    (-1, 4.0, 3.0, -3.0, 0),
    (1, 4.0, 3.0, 1.28, 0),
  ],
)
@pytest.mark.parametrize('kind', ['ppo', 'gspo'])
def test_ppo_clips_what_would_go_further_than_it_should(
  kind, advantage, ratio, dual_clip, objective, slope
):
  loss, grad, metrics = one_token(
    ratio, advantage, kind=kind, dual_clip=dual_clip, **CLIPS
  )
  assert loss == pytest.approx(-objective, rel=1e-5)
  assert grad == pytest.approx(-slope, rel=1e-5)
  assert metrics['policy/clipped_tokens'] == (slope == 0)


@pytest.mark.parametrize(
  ('advantage', 'ratio', 'objective', 'slope'),
  [
    (1, 0.01, 0.01, 0.01),
    (1, 4.9, 4.9, 4.9),
    (1, 6.0, 5.0, 0),
    (-1, 0.01, -0.01, -0.01),
    (-1, 50.0, -50.0, -50.0),
  ],
)
def test_clips_of_four_bind_only_for_good_tokens_above_five(
  advantage, ratio, objective, slope
):
  loss, grad, _ = one_token(
    ratio, advantage, kind='ppo', clip_low=4.0, clip_high=4.0
  )
  assert loss == pytest.approx(-objective, rel=1e-5)
  assert grad == pytest.approx(-slope, rel=1e-5)


@pytest.mark.parametrize(
  ('kind', 'ratio', 'weight'),
  [
    ('cispo', 1.5, 1.28),
    ('cispo', 1.1, 1.1),
    ('cispo', 0.5, 0.8),
    ('reinforce', 1.5, 1.28),
    ('reinforce', 1.1, 1.1),
    ('reinforce', 0.5, 0.5),
  ],
)
@pytest.mark.parametrize('advantage', [1, -2])
def test_a_clipped_weight_still_sends_a_gradient(
  kind, ratio, weight, advantage
):
  loss, grad, metrics = one_token(ratio, advantage, kind=kind, **CLIPS)
  assert grad == pytest.approx(-weight * advantage, rel=1e-5)
  logprob = -1.0 + np.log(ratio)
  assert loss == pytest.approx(-weight * advantage * logprob, rel=1e-5)
  assert metrics['policy/clipped_tokens'] == (weight != ratio)


@pytest.mark.parametrize('kind', KINDS)
def test_without_lag_every_kind_is_the_plain_policy_gradient(kind):
  logprobs, _, advantages = random_batch()

  def loss_fn(current):
    loss, metrics = policy_loss(
      current, logprobs, advantages, MASK, SEGMENT_IDS, kind=kind, **CLIPS
    )
    return loss.sum(), metrics

  grad, metrics = jax.grad(loss_fn, has_aux=True)(logprobs)
  np.testing.assert_allclose(grad, -advantages * MASK, rtol=1e-5)
  assert metrics['policy/tokens'] == MASK.sum()
  assert metrics['policy/ratio_sum'] == MASK.sum()
  assert metrics['policy/squared_ratio_sum'] == MASK.sum()
  assert metrics['policy/abs_log_ratio_sum'] == 0
  assert metrics['policy/behavior_kl_sum'] == 0
  assert metrics['policy/clipped_tokens'] == 0
  assert metrics['policy/clamped_tokens'] == 0


@pytest.mark.parametrize('kind', KINDS)
def test_logprobs_may_be_their_own_behavior_policy(kind):
  logprobs, _, advantages = random_batch()
  grad = jax.grad(lambda x: total(kind, (x, x, advantages)))(logprobs)
  np.testing.assert_allclose(grad, -advantages * MASK, rtol=1e-5)


def test_the_ratio_is_to_the_policy_that_drew_the_tokens():
  """A sampler one update behind: ratio 2 on a token and 1/2 on another."""
  behavior = np.log([[0.25, 0.5]]).astype(np.float32)
  current = np.log([[0.5, 0.25]]).astype(np.float32)
  ones = np.ones((1, 2))
  _, metrics = policy_loss(
    current, behavior, ones, ones > 0, ones.astype(int), kind='ppo', **CLIPS
  )
  assert metrics['policy/ratio_sum'] == pytest.approx(2.5)
  assert metrics['policy/squared_ratio_sum'] == pytest.approx(4.25)
  assert metrics['policy/abs_log_ratio_sum'] == pytest.approx(2 * np.log(2))
  # k3 of KL(mu || pi): rho - 1 - log(rho), of both tokens.
  assert metrics['policy/behavior_kl_sum'] == pytest.approx(0.5)
  assert metrics['policy/clipped_tokens'] == 1


# --- Against float64 --------------------------------------------------------


def reference_loss(kind, batch, constant_logprobs, dual_clip=None):
  """The formulae token by token; `constant_logprobs` is under stop_gradient."""
  logprobs, behavior, advantages = (np.asarray(x, np.float64) for x in batch)
  low, high = 1 - CLIPS['clip_low'], 1 + CLIPS['clip_high']
  result = 0.0
  for row, segment in sorted({*zip(*np.nonzero(MASK), strict=True)}):
    token = row, segment
    ratio = np.exp(logprobs[token] - behavior[token])
    if kind == 'gspo':
      here = MASK[row] & (SEGMENT_IDS[row] == SEGMENT_IDS[token])
      ratio = np.exp(np.mean((logprobs[row] - behavior[row])[here]))
    advantage = advantages[token]
    if kind in ('reinforce', 'cispo'):
      weight = np.exp(constant_logprobs[token] - behavior[token])
      weight = min(weight, high)
      if kind == 'cispo':
        weight = max(weight, low)
      result -= weight * advantage * logprobs[token]
      continue
    clipped = min(max(ratio, low), high)
    objective = min(ratio * advantage, clipped * advantage)
    if dual_clip is not None and advantage < 0:
      objective = max(objective, dual_clip * advantage)
    result -= objective
  return result


@pytest.mark.parametrize(
  ('kind', 'dual_clip'),
  [*((kind, None) for kind in KINDS), ('ppo', 1.4), ('gspo', 1.1)],
)
@pytest.mark.parametrize('seed', range(2))
def test_values_and_gradients_are_those_of_float64(kind, dual_clip, seed):
  batch = random_batch(seed)
  constant = batch[0].astype(np.float64)
  value, grad = jax.jit(
    jax.value_and_grad(
      lambda x: total(kind, (x, *batch[1:]), dual_clip=dual_clip)
    )
  )(batch[0])
  expected = reference_loss(kind, batch, constant, dual_clip)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  differences = np.zeros(MASK.shape)
  for token in np.ndindex(MASK.shape):
    sides = []
    for step in (1e-6, -1e-6):
      moved = constant.copy()
      moved[token] += step
      moved = moved, *batch[1:]
      sides.append(reference_loss(kind, moved, constant, dual_clip))
    differences[token] = (sides[0] - sides[1]) / 2e-6
  np.testing.assert_allclose(grad, differences, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_minus_the_logprob_on_the_mask():
  logprobs = random_batch()[0]
  loss, metrics = losses.cross_entropy(logprobs, MASK)
  np.testing.assert_array_equal(loss, np.where(MASK, -logprobs, 0))
  grad = jax.grad(lambda x: losses.cross_entropy(x, MASK)[0].sum())(logprobs)
  np.testing.assert_array_equal(grad, -1.0 * MASK)
  assert metrics['loss/tokens'] == MASK.sum()
  np.testing.assert_allclose(
    metrics['loss/nll_sum'], -logprobs[MASK].sum(dtype=np.float64), rtol=1e-6
  )


def test_the_entropy_bonus_rewards_entropy():
  entropy = -random_batch()[1]
  loss, metrics = losses.entropy_bonus(entropy, MASK)
  np.testing.assert_array_equal(loss, np.where(MASK, -entropy, 0))
  np.testing.assert_allclose(
    metrics['policy/entropy_sum'], entropy[MASK].sum(), rtol=1e-6
  )


def test_following_the_entropy_bonus_flattens_the_distribution():
  ones, head = np.ones((1, 1)), np.array([[2.0], [0.0], [-1.0]], np.float32)

  @jax.jit
  @jax.value_and_grad
  def bonus(head):
    hidden = ones[..., None].astype(np.float32)
    _, entropy = token_logprobs(hidden, head, ones.astype(int))
    return losses.entropy_bonus(entropy, ones > 0)[0].sum()

  value, grad = bonus(head)
  assert bonus(head - 0.1 * np.asarray(grad))[0] < value < 0


def test_one_step_of_qed_nano():
  """Σ (-min(ρA, clip(ρ, -3, 5) A) - 1e-4 H) / samples, with r - mean(r)."""
  rng = np.random.default_rng(3)
  logprobs, behavior, _ = random_batch(3, spread=1.5)
  entropy = rng.random(MASK.shape).astype(np.float32)
  rewards = {(0, 1): 1.0, (0, 2): 3 / 7, (0, 3): 0.0, (1, 1): 0.0, (1, 2): 1.0}
  mean = sum(rewards.values()) / 5
  advantages = np.zeros(MASK.shape, np.float32)
  expected = 0.0
  for (row, segment), reward in rewards.items():
    advantages[row, SEGMENT_IDS[row] == segment] = reward - mean
    for t in np.nonzero(MASK[row] & (SEGMENT_IDS[row] == segment))[0]:
      ratio = np.exp(float(logprobs[row, t]) - float(behavior[row, t]))
      gain = ratio * (reward - mean)
      if reward > mean:
        gain = min(ratio, 5) * (reward - mean)
      expected -= (gain + 1e-4 * float(entropy[row, t])) / 5
  policy, _ = policy_loss(
    *(logprobs, behavior, advantages, MASK, SEGMENT_IDS),
    kind='ppo',
    clip_low=4.0,
    clip_high=4.0,
  )
  bonus, _ = losses.entropy_bonus(entropy, MASK)
  divisor = normalizer(MASK, SEGMENT_IDS, kind='sequences')
  loss = (policy + 1e-4 * bonus).sum() / divisor
  assert float(loss) == pytest.approx(expected, rel=1e-5)


# --- KL ---------------------------------------------------------------------


@pytest.mark.parametrize(
  ('estimator', 'value', 'slope'),
  [('k1', -0.5, 1), ('k2', 0.125, -0.5), ('k3', np.expm1(0.5) - 0.5, None)],
)
def test_kl_of_one_token(estimator, value, slope):
  """log pi - log reference = -0.5."""
  logprob, mask = jnp.full((1, 1), -1.5), jnp.ones((1, 1), bool)

  def loss_fn(logprob):
    reference = jnp.full((1, 1), -1.0)
    return kl(logprob, reference, mask, estimator=estimator)[0].sum()

  loss, grad = jax.value_and_grad(loss_fn)(logprob)
  assert float(loss) == pytest.approx(value, rel=1e-6)
  slope = 1 - np.exp(0.5) if slope is None else slope
  assert float(grad[0, 0]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize('estimator', ['k1', 'k2', 'k3'])
def test_kl_in_expectation_over_three_words(estimator):
  """All outcomes, weighted by pi: what the value and the gradient estimate."""
  logits = np.array([0.3, -0.5, 0.9])
  reference = np.array([0.5, 0.2, 0.3])
  pi = np.exp(logits) / np.exp(logits).sum()

  def loss_fn(logits):
    logprobs = jax.nn.log_softmax(logits)[None]
    loss, _ = kl(
      logprobs,
      np.log(reference)[None],
      np.ones((1, 3), bool),
      estimator=estimator,
    )
    # Tokens are drawn, so their probabilities carry no gradient here.
    return (pi * loss[0]).sum()

  value, grad = jax.value_and_grad(loss_fn)(jnp.asarray(logits, jnp.float32))
  divergence = (pi * np.log(pi / reference)).sum()
  to_reference = pi * (np.log(pi / reference) - divergence)
  from_reference = pi - reference
  expected = {'k1': np.zeros(3), 'k2': to_reference, 'k3': from_reference}
  np.testing.assert_allclose(grad, expected[estimator], atol=1e-6)
  if estimator != 'k2':
    assert float(value) == pytest.approx(divergence, rel=1e-5)


def test_k3_of_nearly_equal_policies_is_not_rounding():
  d, mask = jnp.full((1, 1), 1e-4), jnp.ones((1, 1), bool)
  loss, _ = kl(d, jnp.zeros((1, 1)), mask, estimator='k3')
  assert float(loss[0, 0]) == pytest.approx(np.expm1(-1e-4) + 1e-4, rel=1e-2)
  assert float(loss[0, 0]) > 0


def test_the_reference_policy_is_constant():
  logprobs, reference, _ = random_batch()
  grad = jax.grad(lambda x: kl(logprobs, x, MASK, estimator='k3')[0].sum())(
    reference
  )
  np.testing.assert_array_equal(grad, np.zeros(MASK.shape))


# --- Denominators -----------------------------------------------------------


TWO_SEQUENCES = np.array([[1, 2, 2, 2]])
TWO_LOSSES = np.array([[4.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('tokens', 7 / 4), ('sequences', 7 / 2), ('constant', 7 / 16)],
)
@pytest.mark.parametrize('rows', [1, 2, 4])
def test_a_sequence_of_one_token_and_one_of_three(name, expected, rows):
  """Losses 4 and (1, 1, 1), in a row, a row each, or in four with padding."""
  if rows == 1:
    loss, segment_ids = TWO_LOSSES, TWO_SEQUENCES
  else:
    loss = np.zeros((rows, 4))
    loss[0, 0], loss[1, :3] = 4, 1
    segment_ids = (loss > 0).astype(int)
  divisor = normalizer(loss > 0, segment_ids, **NORMALIZERS[name])
  parts = [row.sum() / float(divisor) for row in loss]
  assert sum(parts) == pytest.approx(expected)


def test_the_mean_over_sequences_of_token_means():
  mask = TWO_LOSSES > 0
  weights = losses.sequence_weights(mask, TWO_SEQUENCES)
  np.testing.assert_allclose(weights, [[1, 1 / 3, 1 / 3, 1 / 3]])
  divisor = normalizer(mask, TWO_SEQUENCES, kind='sequences')
  loss = (weights * TWO_LOSSES).sum() / divisor
  assert float(loss) == pytest.approx(5 / 2)


def test_gspo_with_sequence_weights_is_the_objective_of_its_paper():
  logprobs, behavior, advantages = random_batch(5)
  loss, _ = policy_loss(
    logprobs, behavior, advantages, MASK, SEGMENT_IDS, kind='gspo', **CLIPS
  )
  loss = loss * losses.sequence_weights(MASK, SEGMENT_IDS)
  expected = []
  for row, segment in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2)):
    here = MASK[row] & (SEGMENT_IDS[row] == segment)
    log_ratio = (logprobs - behavior)[row, here].astype(np.float64)
    s, advantage = np.exp(log_ratio.mean()), advantages[row, here][0]
    expected.append(-min(s * advantage, np.clip(s, 0.8, 1.28) * advantage))
  divisor = normalizer(MASK, SEGMENT_IDS, kind='sequences')
  assert float(loss.sum() / divisor) == pytest.approx(np.mean(expected))


def test_normalizer_counts_over_all_microbatches():
  """5 sequences with 14 tokens, then 2 with 6."""
  masks = np.stack([MASK, MASK & (SEGMENT_IDS == 2)])
  segment_ids = np.stack([SEGMENT_IDS, SEGMENT_IDS])
  for name, expected in (('sequences', 7), ('tokens', 20), ('constant', 56)):
    divisor = normalizer(masks, segment_ids, **NORMALIZERS[name])
    assert divisor == expected
    assert divisor.dtype == jnp.float32
    assert divisor.shape == ()


@jax.jit
def grad_of_rows(features, behavior, advantages, mask, segment_ids, divisor):
  """The gradient in one weight, which makes every log-probability."""

  def loss_fn(weight):
    batch = weight * features, behavior, advantages
    return total('ppo', batch, mask, segment_ids) / divisor

  return jax.grad(loss_fn)(0.9)


@pytest.mark.parametrize('name', NORMALIZERS)
def test_microbatches_of_unequal_counts_give_one_gradient(name):
  rng = np.random.default_rng(0)
  rows, time = 8, 16
  mask = np.arange(time) < rng.integers(1, time + 1, (rows, 1))
  segment_ids = np.where(mask, 1 + (np.arange(time) > 4), 0)
  divisor = normalizer(mask, segment_ids, **NORMALIZERS[name])
  batch = (*rng.normal(size=(3, rows, time)), mask, segment_ids)
  expected = grad_of_rows(*batch, divisor)
  for num_microbatches in (2, 4, 8):
    parts = np.split(np.arange(rows), num_microbatches)
    grads = [grad_of_rows(*(x[p] for x in batch), divisor) for p in parts]
    np.testing.assert_allclose(sum(grads), expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['ppo', 'gspo'])
@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_every_mesh_gives_the_loss_gradient_and_metrics_of_one_device(
  kind, shape
):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  mesh = Mesh(devices, ('data', 'context', 'tensor'))
  sharding = NamedSharding(mesh, PartitionSpec('data', 'context'))

  @jax.jit
  def step(logprobs, behavior, advantages, mask, segment_ids):
    def loss_fn(logprobs):
      loss, metrics = policy_loss(
        *(logprobs, behavior, advantages, mask, segment_ids),
        kind=kind,
        **CLIPS,
      )
      divisor = normalizer(mask, segment_ids, kind='sequences')
      return loss.sum() / divisor, metrics

    return jax.value_and_grad(loss_fn, has_aux=True)(logprobs)

  batch = (*random_batch(), MASK, SEGMENT_IDS)
  batch = [np.tile(x, (4, 1)) for x in batch]  # 8 rows of 12 tokens.
  expected = step(*batch)
  result = step(*jax.device_put(batch, sharding))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    result,
    expected,
  )


def test_dr_grpo_does_not_feel_the_length_of_the_other_samples():
  rng = np.random.default_rng(0)
  behavior = rng.normal(size=(2, 8)).astype(np.float32)
  segment_ids = np.ones((2, 8), int)

  def grad_of_first_row(length_of_second):
    mask = np.arange(8) < np.array([[3], [length_of_second]])
    divisor = normalizer(mask, segment_ids, **NORMALIZERS['constant'])
    batch = behavior, np.ones((2, 8), np.float32)
    grad = jax.grad(
      lambda x: total('ppo', (x, *batch), mask, segment_ids) / divisor
    )(behavior)
    return grad[0]

  np.testing.assert_array_equal(grad_of_first_row(2), grad_of_first_row(8))


# --- The mask ---------------------------------------------------------------


LOSSES = (*KINDS, 'k1', 'k2', 'k3', 'cross_entropy', 'entropy')


@jax.jit
def every_loss(logprobs, behavior, advantages, mask, segment_ids):
  """Per-token values and gradients of the sums, [len(LOSSES), B, T] each."""

  def per_token(logprobs):
    policy = [
      policy_loss(
        logprobs, behavior, advantages, mask, segment_ids, kind=kind, **CLIPS
      )
      for kind in KINDS
    ]
    penalties = [
      kl(logprobs, behavior, mask, estimator=estimator)
      for estimator in ('k1', 'k2', 'k3')
    ]
    others = [
      losses.cross_entropy(logprobs, mask),
      losses.entropy_bonus(-logprobs, mask),
    ]
    return jnp.stack([loss for loss, _ in policy + penalties + others])

  return per_token(logprobs), jax.jacrev(
    lambda x: per_token(x).sum(axis=(1, 2))
  )(logprobs)


def test_nothing_off_the_mask_has_a_value_or_a_gradient():
  junk = np.where(MASK, 0, np.nan).astype(np.float32)
  batch = [x + junk for x in random_batch()]
  loss, grad = map(np.asarray, every_loss(*batch, MASK, SEGMENT_IDS))
  expected, expected_grad = every_loss(*random_batch(), MASK, SEGMENT_IDS)
  np.testing.assert_array_equal(loss, expected)
  np.testing.assert_array_equal(grad, expected_grad)
  assert not loss[:, ~MASK].any()
  assert not grad[:, ~MASK].any()
  assert loss[:, MASK].all()
  assert grad[:, MASK].any(axis=1).all()


@pytest.mark.parametrize('name', NORMALIZERS)
def test_masking_one_sample_equals_removing_it(name):
  gone = np.zeros(MASK.shape, bool)
  gone[0] = SEGMENT_IDS[0] == 2
  mask, options = MASK & ~gone, NORMALIZERS[name]
  removed_ids = np.where(gone, 0, SEGMENT_IDS)
  removed = [np.where(gone, 7, x).astype(np.float32) for x in random_batch()]
  expected = every_loss(*removed, mask, removed_ids)
  divisor = normalizer(mask, removed_ids, **options)
  result = every_loss(*random_batch(), mask, SEGMENT_IDS)
  same_divisor = normalizer(mask, SEGMENT_IDS, **options)
  for x, y in zip(result, expected, strict=True):
    np.testing.assert_allclose(x / same_divisor, y / divisor, rtol=1e-6)
    assert not np.asarray(x)[:, gone].any()


@pytest.mark.parametrize('name', NORMALIZERS)
def test_a_batch_without_a_mask_is_zero_with_a_zero_gradient(name):
  nothing = np.zeros(MASK.shape, bool)
  batch = [x * np.float32(np.nan) for x in random_batch()]
  divisor = normalizer(nothing, SEGMENT_IDS, **NORMALIZERS[name])
  for x in every_loss(*batch, nothing, SEGMENT_IDS):
    np.testing.assert_array_equal(x / divisor, np.zeros(x.shape))


def test_a_completion_of_one_token_has_a_loss():
  batch = [x[:, :1] for x in random_batch()]
  mask = np.ones((2, 1), bool)
  for x in every_loss(*batch, mask, mask.astype(int)):
    assert np.asarray(x).any(axis=(1, 2)).all()


def test_samples_of_no_advantage_count_and_pay_until_they_are_masked():
  """They weigh in the denominator and in entropy; masking ends both."""
  logprobs, behavior, advantages = random_batch()
  idle = SEGMENT_IDS == 1
  advantages = np.where(idle, 0, advantages)
  entropy = np.ones(MASK.shape, np.float32)

  def terms(mask):
    policy = total('ppo', (logprobs, behavior, advantages), mask)
    bonus, _ = losses.entropy_bonus(entropy, mask)
    divisor = normalizer(mask, SEGMENT_IDS, kind='sequences')
    return float(policy), float(bonus.sum()), float(divisor)

  policy, bonus, divisor = terms(MASK)
  assert (bonus, divisor) == (-14, 5)
  policy_without, bonus, divisor = terms(MASK & ~idle)
  assert (bonus, divisor) == (-7, 3)
  assert policy == pytest.approx(policy_without)


def test_truncated_completions_leave_the_mask_and_the_denominator():
  """The flag stands on one token and takes the whole sequence."""
  truncated = np.zeros(MASK.shape, bool)
  truncated[1, 10] = True
  mask = losses.mask_truncated(MASK, SEGMENT_IDS, truncated)
  expected = MASK & ~((SEGMENT_IDS == 2) & (np.arange(2) == 1)[:, None])
  np.testing.assert_array_equal(mask, expected)
  batch = random_batch()
  before, after = total('ppo', batch), total('ppo', batch, mask)
  assert float(before) != pytest.approx(float(after), rel=1e-3)
  assert normalizer(mask, SEGMENT_IDS, kind='sequences') == 4


def test_without_truncated_completions_the_mask_stays():
  nothing = np.zeros(MASK.shape, bool)
  mask = losses.mask_truncated(MASK, SEGMENT_IDS, nothing)
  np.testing.assert_array_equal(mask, MASK)


# --- Sequences --------------------------------------------------------------


def test_gspo_of_two_lengths_with_one_ratio_per_token_has_that_ratio():
  """A geometric mean: the product would be 1.1 and 1.1 ** 4."""
  segment_ids = np.array([[1, 2, 2, 2, 2]])
  mask = np.ones((1, 5), bool)
  logprobs = np.full((1, 5), np.log(1.1), np.float32)
  loss, metrics = policy_loss(
    *(logprobs, np.zeros((1, 5)), np.ones((1, 5)), mask, segment_ids),
    kind='gspo',
    clip_low=0.2,
    clip_high=0.2,
  )
  np.testing.assert_allclose(loss, np.full((1, 5), -1.1), rtol=1e-6)
  assert metrics['policy/clipped_tokens'] == 0


def test_gspo_of_fifty_thousand_tokens_does_not_underflow():
  length = 50_000
  log_ratio = jnp.full((1, length), -0.5)  # Their product is exp(-25,000).

  def loss_fn(logprobs):
    ones = jnp.ones((1, length))
    loss, _ = policy_loss(
      *(logprobs, 0 * ones, ones, ones > 0, ones.astype(int)),
      kind='gspo',
      clip_low=1.0,
      clip_high=1.0,
    )
    return loss.mean()

  value, grad = jax.jit(jax.value_and_grad(loss_fn))(log_ratio)
  assert float(value) == pytest.approx(-np.exp(-0.5), rel=1e-4)
  expected = np.full((1, length), -np.exp(-0.5) / length)
  np.testing.assert_allclose(grad, expected, rtol=1e-4)


def test_gspo_keeps_equal_ids_of_different_rows_apart():
  logprobs = np.array([[0.1, 0.1], [-0.1, -0.1]], np.float32)
  ones = np.ones((2, 2))
  loss, _ = policy_loss(
    *(logprobs, 0 * ones, ones, ones > 0, ones.astype(int)),
    kind='gspo',
    **CLIPS,
  )
  np.testing.assert_allclose(loss, -np.exp(logprobs), rtol=1e-6)


# --- Limits -----------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_enormous_ratios_stay_finite_and_are_counted(kind):
  gaps = np.array([[50, -50, 1000, -1000] * 2], np.float32)
  advantages = np.array([[1] * 4 + [-1] * 4])

  def loss_fn(logprobs):
    loss, metrics = policy_loss(
      *(logprobs, 0 * gaps, advantages, gaps != 0, np.arange(1, 9)[None]),
      kind=kind,
      **CLIPS,
    )
    return loss.sum(), metrics

  (value, metrics), grad = jax.value_and_grad(loss_fn, has_aux=True)(gaps)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  assert metrics['policy/clamped_tokens'] == 8
  assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize('estimator', ['k1', 'k2', 'k3'])
@pytest.mark.parametrize('gap', [50.0, -50.0])
def test_enormous_divergences_stay_finite_and_are_counted(estimator, gap):
  ones = jnp.ones((1, 2))

  def loss_fn(logprobs):
    loss, metrics = kl(logprobs, 0 * ones, ones > 0, estimator=estimator)
    return loss.sum(), metrics

  (value, metrics), grad = jax.value_and_grad(loss_fn, has_aux=True)(gap * ones)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  assert metrics['policy/kl_clamped_tokens'] == 2


@pytest.mark.parametrize('kind', KINDS)
def test_a_missing_behavior_logprob_is_counted_and_spoils_the_loss(kind):
  logprobs, behavior, advantages = random_batch()
  behavior[1, 3] = np.nan  # On the mask, where 0.0 would mean certainty.
  behavior[0, 0] = np.nan  # Off the mask, where there is none.
  loss, metrics = policy_loss(
    logprobs, behavior, advantages, MASK, SEGMENT_IDS, kind=kind, **CLIPS
  )
  assert metrics['policy/missing_logprobs'] == 1
  assert np.isnan(loss[1, 3])
  assert np.isfinite(loss[0]).all()
  assert not np.asarray(loss)[~MASK].any()


def test_a_missing_reference_logprob_is_counted_and_spoils_the_loss():
  logprobs, reference, _ = random_batch()
  reference[1, 3] = reference[0, 0] = np.nan
  loss, metrics = kl(logprobs, reference, MASK, estimator='k3')
  assert metrics['policy/kl_missing_logprobs'] == 1
  assert np.isnan(loss.sum())


@pytest.mark.parametrize('kind', KINDS)
def test_metrics_of_parts_add_up_to_the_metrics_of_the_whole(kind):
  batch = (*random_batch(spread=3), MASK, SEGMENT_IDS)

  def metrics(rows):
    _, metrics = policy_loss(*(x[rows] for x in batch), kind=kind, **CLIPS)
    logprobs, reference = batch[0][rows], batch[1][rows]
    _, more = kl(logprobs, reference, MASK[rows], estimator='k3')
    return metrics | more

  whole, first, second = metrics([0, 1]), metrics([0]), metrics([1])
  for name, value in whole.items():
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(first[name] + second[name], value, rtol=1e-5)
  assert whole['policy/clipped_tokens'] > 0


# --- Importance weights -----------------------------------------------------


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [('truncate', [0.5, 0.5, 1, 4, 5, 5, 0]), ('mask', [0, 0.5, 1, 4, 5, 0, 0])],
)
def test_importance_weights_at_their_bounds(kind, expected):
  ratios = np.array([[0.4, 0.5001, 1, 4, 4.999, 6, 1]])
  mask = np.array([[1, 1, 1, 1, 1, 1, 0]], bool)
  weights, metrics = importance_weights(
    np.log(ratios), np.zeros((1, 7)), mask, kind=kind, low=0.5, high=5.0
  )
  np.testing.assert_allclose(weights, [expected], rtol=1e-3)
  assert metrics['policy/outside_tokens'] == 2
  assert float(metrics['policy/weight_sum']) == pytest.approx(
    sum(expected), rel=1e-3
  )


def test_truncation_has_no_lower_bound_unless_it_is_given_one():
  weights, metrics = importance_weights(
    np.log([[0.001]]), np.zeros((1, 1)), np.ones((1, 1)), kind='truncate',
    high=2.0,
  )  # fmt: skip
  assert float(weights[0, 0]) == pytest.approx(0.001)
  assert metrics['policy/outside_tokens'] == 0


@pytest.mark.parametrize('kind', ['truncate', 'mask'])
def test_importance_weights_are_constant_and_blind_off_the_mask(kind):
  logprobs, behavior, _ = random_batch()
  junk = np.where(MASK, 0, np.nan).astype(np.float32)
  options = {'kind': kind, 'low': 0.5, 'high': 2.0}
  weights, _ = importance_weights(
    logprobs + junk, behavior + junk, MASK, **options
  )
  assert np.isfinite(weights).all()
  assert not np.asarray(weights)[~MASK].any()
  grad = jax.grad(
    lambda x: importance_weights(x, behavior, MASK, **options)[0].sum()
  )(logprobs)
  np.testing.assert_array_equal(grad, np.zeros(MASK.shape))


def test_importance_weights_of_a_missing_logprob_are_missing():
  logprobs, behavior, _ = random_batch()
  behavior[1, 3] = np.nan
  weights, _ = importance_weights(
    logprobs, behavior, MASK, kind='mask', low=0.5, high=5.0
  )
  assert np.isnan(weights[1, 3])
  assert np.isnan(np.asarray(weights)).sum() == 1


# --- The chunked path -------------------------------------------------------


def test_every_term_acts_alike_on_plain_and_on_chunked_logprobs():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(*MASK.shape, 6)).astype(np.float32)
  head = rng.normal(size=(11, 6)).astype(np.float32)
  targets = rng.integers(0, 11, MASK.shape)

  @jax.jit
  def plain(head):
    table = jax.nn.log_softmax(jnp.einsum('btd,vd->btv', hidden, head) / 0.8)
    picked = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
    return picked, -jnp.sum(jnp.exp(table) * table, axis=-1)

  @jax.jit
  def chunked(head):
    return token_logprobs(hidden, head, targets, temperature=0.8, chunk_size=7)

  behavior = np.asarray(plain(head)[0]) + rng.normal(size=MASK.shape) * 0.5
  advantages = random_batch()[2]

  def terms(*, kl_coef=0.0, entropy_coef=0.0, high=9.0, mask=MASK, **options):
    def loss_fn(logprobs, entropy):
      loss, _ = policy_loss(
        *(logprobs, behavior, advantages, mask, SEGMENT_IDS),
        **{'kind': 'ppo', 'clip_low': 0.2, 'clip_high': 9.0, **options},
      )
      weights, _ = importance_weights(
        logprobs, behavior, mask, kind='truncate', high=high
      )
      penalty, _ = kl(logprobs, behavior, mask, estimator='k3')
      bonus, _ = losses.entropy_bonus(entropy, mask)
      loss = weights * loss + kl_coef * penalty + entropy_coef * bonus
      return loss.sum() / normalizer(mask, SEGMENT_IDS, kind='tokens')

    return jax.jit(jax.value_and_grad(loss_fn, (0, 1)))

  def step(loss_fn, outputs, pullback):
    value, cotangents = loss_fn(*outputs)
    return np.append(pullback(cotangents)[0], value)

  paths = jax.vjp(plain, head), jax.vjp(chunked, head)
  base = step(terms(), *paths[0])
  for change in (
    {},
    {'kl_coef': 0.1},
    {'entropy_coef': 0.1},
    {'high': 1.0},
    {'clip_low': 0.9},
    {'clip_high': 0.1},
    {'dual_clip': 1.1},
    {'kind': 'gspo'},
    {'mask': MASK & (SEGMENT_IDS != 2)},
  ):
    loss_fn = terms(**change)
    on_plain, on_chunked = (step(loss_fn, *path) for path in paths)
    np.testing.assert_allclose(on_chunked, on_plain, rtol=1e-4, atol=1e-6)
    assert (np.abs(on_plain - base).max() > 1e-3) == bool(change), change


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'grpo'}, "kind: expected one of .* got 'grpo'"),
    ({'kind': 'ppo', 'clip_low': -0.2}, 'distances from 1.* -0.2'),
    ({'kind': 'ppo', 'dual_clip': 1.0}, 'dual_clip: expected a number > 1'),
    ({'kind': 'cispo', 'dual_clip': 3.0}, "got 3.0 with 'cispo'"),
  ],
)
def test_policy_loss_names_the_argument_it_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    total(options.pop('kind'), random_batch(), **options)


@pytest.mark.parametrize('which', range(5))
def test_policy_loss_refuses_arrays_of_different_shapes(which):
  batch = [*random_batch(), MASK, SEGMENT_IDS]
  batch[which] = batch[which][:, :3]
  with pytest.raises(ValueError, match='expected arrays of one shape'):
    policy_loss(*batch, kind='ppo', **CLIPS)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'mean'}, "got 'mean'"),
    ({'kind': 'constant'}, 'constant: expected a number > 0'),
    ({'kind': 'constant', 'constant': 0}, 'constant: expected a number > 0'),
    ({'kind': 'tokens', 'constant': 8}, "got 8 with 'tokens'"),
  ],
)
def test_normalizer_names_the_argument_it_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    normalizer(MASK, SEGMENT_IDS, **options)


def test_kl_and_importance_weights_name_the_argument_they_refuse():
  logprobs, behavior, _ = random_batch()
  with pytest.raises(ValueError, match="expected k1, k2 or k3, got 'k4'"):
    kl(logprobs, behavior, MASK, estimator='k4')
  with pytest.raises(ValueError, match="expected 'truncate' or 'mask'"):
    importance_weights(logprobs, behavior, MASK, kind='clip', high=2)
  with pytest.raises(ValueError, match='0 <= low < high, got 3 and 2'):
    importance_weights(logprobs, behavior, MASK, kind='mask', low=3, high=2)
