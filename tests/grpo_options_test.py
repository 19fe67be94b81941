"""Every advantage and loss option in runs of 20 steps of `qed grpo`.

`off` runs draw from other weights than the trainer's and say with which
probability, as a sampler with rounding of its own does; so that ratios differ
from 1 in a synchronous run, whose first step sees the same rollouts whatever
the options are.
"""

import collections
import contextlib
import itertools

import jax
import numpy as np
import pytest

from qed import cli, grpo
from qed.training import metrics
from tests.grpo_rig import (
  Parts,
  cache,
  lines,
  make_config,
  rollouts,
  tiny,
)

__all__ = ['cache', 'tiny']  # Fixtures.
# The first test that asks for runs makes them, eight at most.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 20
OPTIONS = {
  'baseline': {},
  'leave_one_out': {'advantage': 'leave_one_out'},
  'z_score': {'advantage': 'z_score', 'z_score_eps': 1e-4},
  'z_score,ddof=1': {
    'advantage': 'z_score',
    'z_score_eps': 1e-4,
    'z_score_ddof': 1,
  },
  'max_rl': {'advantage': 'max_rl'},
  'reinforce': {'kind': 'reinforce'},
  'cispo': {'kind': 'cispo'},
  'gspo': {'kind': 'gspo'},
  'dual_clip': {'dual_clip': 2.0},
  'sequence_mean': {'sequence_mean': True},
  'tokens': {'normalizer': 'tokens'},
  'constant': {'normalizer': 'constant', 'normalizer_constant': 8.0},
  'entropy': {'entropy_coef': 0.3},
  'k2': {'kl_coef': 1.0, 'kl_estimator': 'k2'},
  'k3': {'kl_coef': 1.0, 'kl_estimator': 'k3'},
  'no penalty': {'kl_coef': 1e-6},
}
NARROW = {'clip_low': 0.2, 'clip_high': 0.2}
OFF = {
  'ppo': NARROW,
  'reinforce': NARROW | {'kind': 'reinforce'},
  'cispo': NARROW | {'kind': 'cispo'},
  'gspo': NARROW | {'kind': 'gspo'},
  'dual_clip': NARROW | {'dual_clip': 1.05},
  'wide': {'clip_low': 4.0, 'clip_high': 4.0},
  'truncate': NARROW
  | {'correction': 'truncate', 'correction_low': 0.9, 'correction_high': 1.1},
  'mask': NARROW
  | {'correction': 'mask', 'correction_low': 0.9, 'correction_high': 1.1},
}


class OffParts(Parts):
  """A sampler whose weights are not quite the trainer's."""

  @contextlib.asynccontextmanager
  async def open_sampler(self, run, params, version):
    def disturb(params):
      leaves, tree = jax.tree.flatten(params)
      keys = jax.random.split(jax.random.key(7), len(leaves))
      return tree.unflatten(
        [
          x + 0.02 * jax.random.normal(key, x.shape)
          for x, key in zip(leaves, keys, strict=True)
        ]
      )

    async with super().open_sampler(run, disturb(params), version) as sampler:
      update = sampler.update

      async def update_disturbed(params, version):
        await update(disturb(params), version)

      sampler.update = update_disturbed
      yield sampler


@pytest.fixture(scope='module')
def run(cache, tiny, tmp_path_factory):
  """The run of an option, made once: (folder, metrics by step)."""
  made = {}

  def of(name, *, off=False):
    if (name, off) not in made:
      options = {'entropy_coef': 0.0} | (OFF if off else OPTIONS)[name]
      changes = {f'loss.{key}': value for key, value in options.items()}
      workdir = tmp_path_factory.mktemp('run')
      parts = OffParts() if off else Parts()
      code = grpo.train(
        make_config(
          tiny,
          **{
            'training.total_steps': NUM_STEPS,
            'training.checkpoint_interval_steps': NUM_STEPS,
            'training.eval_interval_steps': 0,
            'evaluation.paths': (),
            'optim.peak_lr': 3e-3,
            'optim.clip_norm': 0.0,
            'health.max_inspected_groups': 2,
          }
          | changes,
        ),
        str(workdir),
        open_sampler=parts.open_sampler,
        open_grader=parts.open_grader,
      )
      assert code == cli.DONE
      made[name, off] = workdir, metrics.read(workdir / 'metrics.jsonl')
    return made[name, off]

  return of


def norms(records):
  return np.array(
    [records[step]['optim/grad_norm'] for step in sorted(records)]
  )


@pytest.mark.parametrize(
  ('name', 'off'),
  [(name, False) for name in OPTIONS] + [(name, True) for name in OFF],
)
def test_twenty_steps_go_through(run, name, off):
  _, records = run(name, off=off)
  assert sorted(records) == list(range(1, NUM_STEPS + 1))
  for record in records.values():
    assert np.isfinite(record['loss'])
    assert record['optim/skipped'] == 0


def reference_advantages(name, rewards):
  centred = rewards - rewards.mean()
  if name == 'leave_one_out':
    return np.array(
      [
        reward - np.delete(rewards, index).mean()
        for index, reward in enumerate(rewards)
      ]
    )
  if name == 'z_score':
    return centred / (rewards.std() + 1e-4)
  if name == 'z_score,ddof=1':
    return centred / (rewards.std(ddof=1) + 1e-4)
  if name == 'max_rl':
    return centred / rewards.mean() if rewards.mean() else centred * 0
  return centred


@pytest.mark.parametrize(
  'name',
  ['baseline', 'leave_one_out', 'z_score', 'z_score,ddof=1', 'max_rl'],
)
def test_an_advantage_is_that_of_the_rewards_of_its_group(run, name):
  workdir, _ = run(name)
  rewards = collections.defaultdict(dict)
  for (group, member), row in rollouts(workdir).items():
    rewards[group][member] = row['reward']
  found = lines(workdir, 'inspected')
  assert len({row['step'] for row in found}) == NUM_STEPS
  for row in found:
    group = rewards[row['group_id']]
    expected = reference_advantages(
      name, np.array([group[member] for member in sorted(group)])
    )
    assert row['advantage'] == pytest.approx(expected[row['rollout']], abs=1e-5)


@pytest.mark.parametrize('kind', ['reinforce', 'cispo', 'gspo', 'dual_clip'])
def test_on_policy_all_kinds_are_one(run, kind):
  """The ratio is 1, and so is whatever is made of it."""
  _, baseline = run('baseline')
  _, records = run(kind)
  np.testing.assert_allclose(norms(records), norms(baseline), rtol=1e-3)
  assert all(record['clip_frac'] == 0 for record in records.values())


@pytest.mark.parametrize(
  'name', ['leave_one_out', 'z_score', 'max_rl', 'sequence_mean']
)
def test_other_options_change_the_first_step_already(run, name):
  _, baseline = run('baseline')
  _, records = run(name)
  assert abs(norms(records)[0] / norms(baseline)[0] - 1) > 1e-2


def test_leaving_one_out_is_a_longer_step_in_the_same_direction(run):
  """Of 3 members: 3 / 2 times the centred reward."""
  _, baseline = run('baseline')
  _, records = run('leave_one_out')
  np.testing.assert_allclose(
    norms(records)[0], 1.5 * norms(baseline)[0], rtol=1e-4
  )


def test_the_divisor_is_what_it_is_called(run):
  _, by_sequences = run('baseline')
  _, by_tokens = run('tokens')
  _, by_constant = run('constant')
  sequences, tokens = 6, by_tokens[1]['tokens']  # 2 groups of 3.
  total = norms(by_sequences)[0] * sequences
  np.testing.assert_allclose(norms(by_tokens)[0] * tokens, total, rtol=1e-4)
  np.testing.assert_allclose(
    norms(by_constant)[0] * sequences * 8, total, rtol=1e-4
  )


def test_a_bonus_keeps_the_entropy_up(run):
  def last(name):
    _, records = run(name)
    return np.mean([records[step]['entropy'] for step in range(16, 21)])

  assert last('entropy') > last('baseline') + 0.02


@pytest.mark.parametrize('estimator', ['k2', 'k3'])
def test_a_penalty_keeps_the_policy_near_where_it_began(run, estimator):
  _, free = run('no penalty')
  _, held = run(estimator)
  assert held[1]['kl'] == pytest.approx(0, abs=1e-6)
  assert free[1]['kl'] == pytest.approx(0, abs=1e-6)
  assert free[NUM_STEPS]['kl'] > 1e-3
  assert held[NUM_STEPS]['kl'] < 0.7 * free[NUM_STEPS]['kl']


def test_off_policy_every_kind_is_another(run):
  found = {name: norms(run(name, off=True)[1]) for name in OFF}
  for one, other in itertools.combinations(found, 2):
    # Of a few steps, since two norms may be alike by chance.
    ratio = found[one][:5] / found[other][:5]
    assert np.abs(ratio - 1).max() > 1e-2, (one, other)


def test_off_policy_the_first_step_sees_the_same_ratios(run):
  found = [run(name, off=True)[1][1] for name in OFF]
  for record in found:
    assert record['mismatch/mean'] > 0.05
    assert record['mismatch/mean'] == pytest.approx(found[0]['mismatch/mean'])
    assert record['ess'] == pytest.approx(found[0]['ess'])


def test_off_policy_clips_are_counted_as_each_kind_says(run):
  """The same ratios, and which of them lie outside for whom."""
  clipped = {name: run(name, off=True)[1][1]['clip_frac'] for name in OFF}
  workdir, _ = run('ppo', off=True)
  behavior = rollouts(workdir)
  ratios, signs = [], []
  for row in lines(workdir, 'inspected'):
    if row['step'] != 1:
      continue
    drawn = behavior[row['group_id'], row['rollout']]['logprobs']
    ratio = np.exp(np.array(row['trainer_logprobs']) - np.array(drawn))
    ratios.extend(ratio)
    signs.extend([np.sign(row['advantage'])] * len(ratio))
  ratios, signs = np.array(ratios), np.array(signs)
  above, below = ratios > 1.2, ratios < 0.8
  assert clipped['cispo'] == pytest.approx(np.mean(above | below))
  assert clipped['reinforce'] == pytest.approx(np.mean(above))
  ppo = (above & (signs > 0)) | (below & (signs < 0))
  assert clipped['ppo'] == pytest.approx(np.mean(ppo))
  floored = ppo | ((signs < 0) & (ratios > 1.05))
  assert clipped['dual_clip'] == pytest.approx(np.mean(floored))
  assert clipped['wide'] == 0
