"""Copies with the beginning of a proof and without, told apart everywhere."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from qed.algos import advantages
from qed.data.guidance import Prefix
from qed.rollout import groups, guided, prompts
from qed.types import Problem, Prompt, RolloutGroup
from tests.rollout import rollouts

NUM_PROBLEMS = 6
PROBLEMS = [Problem(problem_id=f'p{n}', statement=f'{n}') for n in range(6)]


def make_prompt(problem, prefix=''):
  """A token for the problem, and one for each letter of the beginning."""
  ids = [int(problem.statement), *map(ord, prefix)]
  return Prompt(
    problem_id=problem.problem_id,
    messages=(),
    token_ids=np.array(ids, np.int32),
    kind='guided' if prefix else 'plain',
  )


SELECTION = prompts.select(
  PROBLEMS,
  make_prompt,
  max_prompt_tokens=4,
  min_difficulty=0.0,
  max_difficulty=1.0,
)


def beginnings(**texts):
  return {
    name: Prefix(
      problem_id=name,
      prefix=text,
      fraction=0.5,
      num_successes=1,
      num_trials=4,
      oracle='',
    )
    for name, text in texts.items()
  }


def mix(prefixes, num_guided=1, num_unguided=1):
  return guided.mix(
    SELECTION,
    prefixes,
    make_prompt,
    guided_per_problem=num_guided,
    unguided_per_problem=num_unguided,
    max_prompt_tokens=4,
  )


def tried(selection, num_groups, seed=0):
  """(problem, beginning) of each group."""
  source = prompts.Plain(selection, seed=seed)
  return [
    (source.problem(group).problem_id, source.prefix(group))
    for group in range(num_groups)
  ]


async def test_each_problem_has_a_group_with_its_beginning_and_one_without():
  given = {f'p{n}': chr(97 + n) for n in range(NUM_PROBLEMS)}
  selection = mix(beginnings(**given)).selection
  source = prompts.Plain(selection, seed=0)
  assert source.num_groups_per_epoch == 2 * NUM_PROBLEMS
  for epoch in range(3):
    first = 2 * NUM_PROBLEMS * epoch
    found = collections.Counter()
    for group in range(first, first + 2 * NUM_PROBLEMS):
      problem, prefix = source.problem(group), source.prefix(group)
      prompt = await source.pose(group, None)
      expected = make_prompt(problem, prefix)
      assert prompt.token_ids.tolist() == expected.token_ids.tolist()
      assert prompt.kind == ('guided' if prefix else 'plain')
      assert prefix in ('', given[problem.problem_id])
      found[problem.problem_id, bool(prefix)] += 1
    assert set(found.values()) == {1}
    assert len(found) == 2 * NUM_PROBLEMS


def test_both_groups_of_a_problem_fall_into_one_step():
  selection = mix(beginnings(p0='a', p3='d')).selection
  found = tried(selection, 60)
  for first, second in zip(found[::2], found[1::2], strict=True):
    assert first[0] == second[0]
    assert second[1] == ''


def test_a_problem_without_a_beginning_keeps_its_share_unguided():
  mixed = mix(beginnings(p0='a', p3='ddd', p4='long', other='x'))
  found = collections.Counter(tried(mixed.selection, 12))
  assert found == {
    ('p0', 'a'): 1,
    ('p0', ''): 1,
    ('p3', 'ddd'): 1,  # Its prompt has just 4 tokens.
    ('p3', ''): 1,
    **{(f'p{n}', ''): 2 for n in (1, 2, 4, 5)},
  }
  assert (mixed.num_guided, mixed.num_too_long) == (2, 1)
  assert str(mixed).startswith('2 of 6 problems have')
  assert str(mixed.selection).startswith('6 problems')


@pytest.mark.parametrize('counts', [(1, 0), (2, 1), (0, 3)])
def test_the_shares_are_as_asked(counts):
  found = collections.Counter(
    tried(mix(beginnings(p2='c'), *counts).selection, 6 * sum(counts))
  )
  assert (found['p2', 'c'], found['p2', '']) == counts
  assert found['p1', ''] == sum(counts)


def test_without_beginnings_everything_is_as_it_was():
  mixed = mix({}, 0, 1).selection
  assert tried(mixed, 20) == tried(SELECTION, 20)
  assert prompts.digest(mixed) == prompts.digest(SELECTION)


def test_a_run_cannot_go_on_with_other_beginnings():
  digests = {
    prompts.digest(mix(beginnings(**given)).selection)
    for given in ({'p0': 'a'}, {'p0': 'b'}, {'p1': 'a'})
  }
  assert len(digests) == 3


@pytest.mark.parametrize('given', [{'other': 'x'}, {'p1': 'long'}])
def test_beginnings_of_no_problem_are_refused(given):
  with pytest.raises(ValueError, match='beginnings of proofs'):
    mix(beginnings(**given))


GUIDED = dataclasses.replace(rollouts.PROMPT, kind='guided')


def test_the_beginning_is_no_target():
  """The samples of a guided group train what was drawn, and no more."""
  prompt = make_prompt(PROBLEMS[1], 'abc')
  group = rollouts.group([0.0, 1.0, None], prompt=prompt)
  share = groups.share(
    group,
    advantages.mean_baseline,
    step=0,
    max_lag=0,
    mask_truncated=False,
    drop_zero_signal=False,
  )
  assert len(share.samples) == 2
  for sample, rollout in zip(share.samples, group.rollouts, strict=False):
    drawn = rollout.completion.token_ids.tolist()
    assert sample.token_ids[:4].tolist() == [1, *map(ord, 'abc')]
    assert sample.token_ids[sample.loss_mask].tolist() == drawn
    assert not sample.loss_mask[:4].any()


def of_kinds(*kinds_and_rewards):
  return [
    rollouts.group(rewards, prompt=GUIDED if kind == 'g' else rollouts.PROMPT)
    for kind, rewards in kinds_and_rewards
  ]


def test_each_kind_has_metrics_of_its_own():
  finished = of_kinds(
    ('g', [6 / 7, 6 / 7, 0.0]),
    ('g', [1.0, 1.0, 1.0]),
    ('u', [0.0, 0.0, 3 / 7]),
    ('u', [0.0, 0.0, None]),
  )
  found = guided.metrics(finished, pass_score=6)
  assert found['guided/reward_mean'] == pytest.approx((3 + 12 / 7) / 6)
  assert found['unguided/reward_mean'] == pytest.approx(3 / 7 / 5)
  assert found['guided/solve_rate'] == pytest.approx(5 / 6)
  assert found['unguided/solve_rate'] == 0
  assert (found['guided/solved'], found['unguided/solved']) == (1, 0)
  assert found['guided/zero_signal'] == found['unguided/zero_signal'] == 0.5
  assert found['guided/groups'] == found['unguided/groups'] == 2
  # Log-probabilities of the two tokens are -1/3 and -2/3.
  assert found['guided/entropy'] == pytest.approx(0.5)
  stricter = guided.metrics(finished, pass_score=7)
  assert stricter['guided/solve_rate'] == stricter['guided/solved'] == 0.5


def test_a_kind_that_was_not_finished_has_no_metrics():
  found = guided.metrics(of_kinds(('u', [0.0, 1.0])), pass_score=6)
  assert not [name for name in found if name.startswith('guided/')]
  assert guided.metrics([], pass_score=6) == {}


def test_what_is_not_known_is_left_out():
  """A sampler without log-probabilities, a judge without verdicts."""
  blind = rollouts.group([None, None], prompt=GUIDED)
  blind = RolloutGroup(
    group_id=0,
    rollouts=tuple(
      dataclasses.replace(
        rollout,
        completion=dataclasses.replace(
          rollout.completion, logprobs=np.full(2, np.nan, np.float32)
        ),
      )
      for rollout in blind.rollouts
    ),
  )
  found = guided.metrics([blind], pass_score=6)
  assert not {'guided/entropy', 'guided/reward_mean'} & {*found}
  assert all(math.isfinite(value) for value in found.values())
