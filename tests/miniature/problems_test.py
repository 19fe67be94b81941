"""Chains, their proofs and their rubrics."""

import re

import numpy as np
import pytest

from qed.miniature import problems


def test_a_chain_by_hand():
  chain = problems.Chain(start=3, steps=(('*', 2), ('+', 5)))
  assert chain.values == [3, 6, 4]
  problem = problems.problem(chain)
  assert problem.statement == (
    'Work modulo 7. x0 = 3, x1 = x0 * 2, x2 = x1 + 5. Prove that x2 = 4.'
  )
  assert problem.reference == 'x1 = 3 * 2 = 6\nx2 = 6 + 5 = 4\nHence x2 = 4.'


@pytest.mark.parametrize('num_steps', [1, 2, 3, 5, 7])
def test_the_points_of_a_rubric_add_up_to_seven(num_steps):
  chain = problems.draw(num_steps, np.random.default_rng(0))
  rubric = problems.problem(chain).rubric
  points = [int(n) for n in re.findall(r'^- (\d) points', rubric, re.MULTILINE)]
  assert len(points) == num_steps
  assert sum(points) == 7


def test_an_equal_seed_draws_equal_chains():
  draws = [
    [problems.draw(4, rng) for _ in range(3)]
    for rng in (np.random.default_rng(5), np.random.default_rng(5))
  ]
  assert draws[0] == draws[1]
  assert len(set(draws[0])) == 3
