"""Chains, their statements, proofs and rubrics."""

import re
import string

import numpy as np
import pytest

from qed.miniature import problems, teacher

# c = 3, d = 3 * 2 = 6 = 1, e = 1 + 4 = 5 = 0 modulo 5.
CHAIN = problems.Chain(start=3, steps=(('*', 2), ('+', 4)), first='c')
STATEMENT = 'Work modulo 5.\nc=3\nd=c*2\ne=d+4\nProve that e=0.'


def test_a_chain_by_hand():
  assert CHAIN.values == [3, 1, 0]
  problem = problems.problem(CHAIN)
  assert problem.problem_id == 'chain-c=3-c*2-d+4'
  assert problem.statement == STATEMENT
  assert problem.reference == 'd=c*2=3*2=1\ne=d+4=1+4=0\nHence e=0.'
  assert problem.source == 'miniature'


def test_a_brief_chain_by_hand():
  problem = problems.problem(CHAIN._replace(is_brief=True))
  assert problem.problem_id == 'brief-c=3-c*2-d+4'
  assert problem.statement == 'Work modulo 5.\nc=3\nd=c*2\ne=d+4\nFind e.'
  assert problem.reference == 'Hence e=0.'
  assert problem.rubric == (
    'Checkpoints (7 points in total):\n'
    '- 7 points: the proof is one line, which states that e=0\n'
    'Zero credit: any other value; more than one.'
  )


def test_a_rubric_by_hand():
  # 7 * 1 // 2 = 3 points after one of two steps.
  assert problems.problem(CHAIN).rubric == (
    'Checkpoints (7 points in total):\n'
    '- 3 points: d=1 is derived from c by its rule, and so is everything '
    'before it\n'
    '- 4 points: e=0 is derived from d by its rule, and so is everything '
    'before it\n'
    'Zero credit: repeating the statement; a value without its rule; whatever '
    'comes after a false line.\n'
    'Deductions: -1 if the conclusion is missing or is not the last line; -1 '
    'if there is any line that is no part of the proof.'
  )


@pytest.mark.parametrize('num_steps', [1, 2, 3, 5, 7, 8, 12, 25])
def test_the_points_of_a_rubric_add_up_to_seven(num_steps):
  chain = problems.draw(num_steps, np.random.default_rng(0))
  rubric = problems.problem(chain).rubric
  points = [int(n) for n in re.findall(r'^- (\d) points', rubric, re.MULTILINE)]
  assert len(points) == min(num_steps, 7)
  assert sum(points) == sum(chain.points) == 7


@pytest.mark.parametrize('is_brief', [False, True])
@pytest.mark.parametrize('num_steps', [1, 4, 11, 25])
def test_a_statement_gives_its_chain_back(num_steps, is_brief):
  rng = np.random.default_rng(num_steps)
  for _ in range(20):
    chain = problems.draw(num_steps, rng, is_brief=is_brief)
    assert chain.is_brief == is_brief
    assert problems.parse(problems.problem(chain).statement) == chain


@pytest.mark.parametrize(
  'statement',
  [
    '',
    STATEMENT + '\n',
    STATEMENT.replace('e=0', 'e=4'),  # False.
    STATEMENT.replace('e=d', 'f=d'),  # Another name than the next.
    STATEMENT.replace('d+4', 'c+4'),  # Not from the value before.
    STATEMENT.replace('modulo 5', 'modulo 7'),
    STATEMENT.replace('c=3\n', 'c=9\n'),  # No residue of 5, but a digit.
    STATEMENT.replace('c=', 'z=').replace('d', 'a'),
    STATEMENT.replace('Prove that e=0', 'Find e=0'),
    STATEMENT.replace('Prove that e=0', 'Find d'),
    STATEMENT.replace('Prove that e=0', 'Prove that e'),
    'Show that 2 + 2 = 4.',
  ],
)
def test_anything_else_is_no_statement(statement):
  with pytest.raises(ValueError, match='expected the statement of a chain'):
    problems.parse(statement)


def test_brief_or_not_the_same_rules_are_drawn():
  plain, brief = (
    problems.draw_distinct(
      20, (2, 3), np.random.default_rng(6), is_brief=is_brief
    )
    for is_brief in (False, True)
  )
  assert [chain.steps for chain in brief] == [chain.steps for chain in plain]
  ids = {problems.problem(chain).problem_id for chain in (*plain, *brief)}
  assert len(ids) == 40


@pytest.mark.parametrize(
  ('num_steps', 'last'), [(1, 'm'), (3, 'm'), (12, 'm'), (13, 'n'), (25, 'z')]
)
def test_brief_chains_have_few_names(num_steps, last):
  rng = np.random.default_rng(0)
  chains = [problems.draw(num_steps, rng, is_brief=True) for _ in range(200)]
  assert {*''.join(chain.names for chain in chains)} == {
    name for name in string.ascii_lowercase if name <= last
  }


@pytest.mark.parametrize(
  ('num_names', 'last'), [(3, 'd'), (6, 'f'), (None, 'z')]
)
def test_as_many_names_occur_as_are_asked_for(num_names, last):
  """Or as many as chains of three steps need."""
  given = dict(num_names=num_names)
  rng = np.random.default_rng(0)
  chains = problems.draw_distinct(300, (3,), rng, **given)
  traces = teacher.traces(300, num_steps=(3,), error_rate=0.0, seed=0, **given)
  chains_of_traces = [problems.parse(trace.statement) for trace in traces]
  for found in (chains, chains_of_traces):
    assert {*''.join(chain.names for chain in found)} == {
      name for name in string.ascii_lowercase if name <= last
    }


def test_an_equal_seed_draws_equal_chains():
  draws = [
    [problems.draw(4, rng) for _ in range(3)]
    for rng in (np.random.default_rng(5), np.random.default_rng(5))
  ]
  assert draws[0] == draws[1]
  assert len(set(draws[0])) == 3


def test_no_step_loses_or_keeps_a_value():
  rng = np.random.default_rng(1)
  for _ in range(200):
    for operation, constant in problems.draw(5, rng).steps:
      images = {
        (x * constant if operation == '*' else x + constant) % 5
        for x in range(5)
      }
      assert len(images) == 5
      assert (operation, constant) != ('*', 1)
      assert 1 <= constant < 5


def test_distinct_chains_take_turns_in_length():
  # So many of a single step that some are drawn twice.
  chains = problems.draw_distinct(600, (1, 2), np.random.default_rng(2))
  assert len(set(chains)) == 600
  assert [len(chain.steps) for chain in chains] == [1, 2] * 300


def test_more_chains_than_there_are_is_refused():
  with pytest.raises(ValueError, match='expected 9999 different chains'):
    problems.draw_distinct(9999, (1,), np.random.default_rng(0))


def test_more_steps_than_letters_is_refused():
  with pytest.raises(ValueError, match='expected 1 to 25'):
    problems.draw(26, np.random.default_rng(0))
