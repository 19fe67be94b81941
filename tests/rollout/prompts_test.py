"""Which problem comes when, and with which seeds."""

import collections

import numpy as np
import pytest

from qed.rollout import prompts
from qed.types import Problem, Prompt


def problem(number, difficulty=None):
  return Problem(
    problem_id=f'p{number}', statement=f'{number}', difficulty=difficulty
  )


def make_prompt(problem):
  """As many tokens as the statement says."""
  return Prompt(
    problem_id=problem.problem_id,
    messages=(),
    token_ids=np.arange(int(problem.statement), dtype=np.int32),
  )


def select(problems, **changes):
  settings = dict(max_prompt_tokens=9, min_difficulty=0.0, max_difficulty=1.0)
  return prompts.select(problems, make_prompt, **settings | changes)


def test_every_epoch_has_every_problem_once_in_an_order_of_its_own():
  epochs = [
    [prompts.index_at(7 * epoch + i, 7, seed=3) for i in range(7)]
    for epoch in range(6)
  ]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert len({*map(tuple, epochs)}) > 1


def test_the_order_depends_on_the_seed_and_on_nothing_else():
  def orders(seed):
    return [prompts.index_at(i, 50, seed=seed) for i in range(50)]

  assert orders(1) == orders(1) != orders(2)


def test_members_of_all_groups_have_seeds_of_their_own():
  seeds = collections.Counter(
    prompts.seed_of(group, member, seed=0)
    for group in range(200)
    for member in range(16)
  )
  assert len(seeds) == 200 * 16
  assert all(0 <= seed < 2**32 for seed in seeds)
  assert prompts.seed_of(1, 2, seed=0) != prompts.seed_of(1, 2, seed=1)
  assert prompts.seed_of(1, 2, seed=0) != prompts.seed_of(2, 1, seed=0)


def test_what_is_left_out_is_counted_by_reason():
  problems = [
    problem(3),
    problem(10),  # Too long by a token.
    problem(9, 0.1),  # Fits exactly.
    problem(4, 0.05),
    problem(5, 0.95),
    problem(6, 0.9),
  ]
  chosen = select(problems, min_difficulty=0.1, max_difficulty=0.9)
  assert [p.problem_id for p in chosen.problems] == ['p3', 'p9', 'p6']
  assert [p.problem_id for p in chosen.prompts] == ['p3', 'p9', 'p6']
  assert (chosen.num_too_long, chosen.num_too_easy, chosen.num_too_hard) == (
    (1, 1, 1)
  )
  assert str(chosen) == (
    '3 problems; left out: 1 too long, 1 too easy, 1 too hard'
  )


def test_a_selection_of_nothing_is_refused():
  with pytest.raises(ValueError, match='at most 2 tokens'):
    select([problem(3)], max_prompt_tokens=2)


def test_a_digest_tells_other_prompts_and_another_order():
  digests = {
    prompts.digest(select(problems))
    for problems in (
      [problem(3), problem(4)],
      [problem(4), problem(3)],
      [problem(3)],
      [problem(3), problem(5)],
    )
  }
  assert len(digests) == 4


@pytest.mark.parametrize(
  ('rate', 'is_skipped'),
  [(0.0, True), (0.1, False), (0.5, False), (0.9, False), (1.0, True)],
)
def test_a_problem_is_skipped_outside_the_bounds_of_its_last_pass_rate(
  rate, is_skipped
):
  rates = prompts.PassRates(low=0.1, high=0.9)
  assert not rates.skips('a')  # Nothing is known yet.
  rates.put('a', 0.5)
  rates.put('a', rate)
  assert rates.skips('a') is is_skipped
  assert not rates.skips('b')


def test_open_bounds_skip_nothing():
  rates = prompts.PassRates(low=0.0, high=1.0)
  rates.put('a', 0.0)
  rates.put('b', 1.0)
  assert not rates.skips('a')
  assert not rates.skips('b')
