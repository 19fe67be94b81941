"""The numbers of a summary, counted by hand."""

import math

import pytest

from qed.evals import summary
from qed.evals.benchmarks import Item
from qed.evals.records import Record
from qed.types import Problem

IDENTITY = {'benchmark': 'b', 'content': 'c', 'judge': 'j'}


def item(number, split):
  problem = Problem(problem_id=f'p{number}', statement='?', rubric='7')
  return Item(problem=problem, split=split)


def record(number, attempt, score, status='ok', *, has_text=True, **usage):
  usages = {
    'usage': {'calls': 2, 'prompt_tokens': 100, 'completion_tokens': 10},
    'judge_usage': {'prompt_tokens': 7, 'completion_tokens': 3},
  }
  if status == 'failed':
    usages, has_text = {'usage': {}, 'judge_usage': {}}, False
  usages['usage'] |= usage
  return Record(
    problem_id=f'p{number}',
    attempt=attempt,
    judge='j',
    judge_name='a judge',
    score=score,
    status=status,
    has_text=has_text,
    secs=1.0,
    error='',
    **usages,
  )


# Of six attempts one failed, one has no grade, and one was not made. The third
# problem has no score.
ITEMS = [item(0, 'easy'), item(1, 'hard'), item(2, 'hard')]
RECORDS = [
  record(0, 0, 7, calls=4, truncated=1, failed=2),
  record(0, 1, 3, truncated=1),
  record(1, 0, 1, has_text=False),
  record(1, 1, None, 'failed'),
  record(2, 0, None, 'unparseable', ties=3),
]


def summarized(items=ITEMS):
  return summary.summarize(
    items,
    {(found.problem_id, found.attempt): found for found in RECORDS},
    num_attempts=2,
    pass_score=3.0,
    solver_prices=(1.0, 10.0),
    judge_prices=(100.0, 1000.0),
  )


def test_a_problem_counts_once_and_what_is_not_graded_not_at_all():
  found = summarized()
  # 7 and 3, and 1: the mean of 5 and 1.
  assert found['score']['value'] == 3
  assert found['score']['n'] == found['best_of']['1']['n'] == 2
  assert found['score']['percent']['value'] == pytest.approx(300 / 7)
  assert found['problem_scores'] == {
    'p0': [7, 3],
    'p1': [1, None],
    'p2': [None, None],
  }
  assert found['attempt_means'] == [4, 3]
  assert found['spread']['value'] == pytest.approx(math.sqrt(0.5))
  assert found['splits']['easy']['value'] == 5
  assert found['splits']['hard']['value'] == 1
  # One problem alone has two graded attempts.
  assert found['best_of']['2']['value'] == 7
  assert found['pass_at']['1']['value'] == 0.5
  assert found['pass_at']['2']['n'] == 1


def test_an_interval_of_a_share_does_not_leave_0_to_1():
  found = summarized([item(0, 'easy'), item(0, 'easy')])
  # Both problems were solved: 1 less a mass of 0.025 ** (1 / 2) on failure.
  bounds = found['pass_at']['1']
  assert bounds['high'] == 1
  assert bounds['low'] == pytest.approx(math.sqrt(0.025))


def test_what_is_not_graded_is_said():
  found = summarized()
  assert (found['num_problems'], found['num_attempts']) == (3, 2)
  assert found['num_graded'] == 3
  assert found['num_failed'] == 1
  assert found['num_missing'] == 1
  assert found['num_incomplete'] == 1
  assert found['statuses'] == {'ok': 3, 'failed': 1, 'unparseable': 1}
  assert found['counts'] == {'failed': 2, 'ties': 3}


def test_shares_are_of_calls_and_of_attempts_with_a_solution():
  found = summarized()
  assert found['truncated'] == 2 / 10
  assert found['no_proof'] == 1 / 4
  assert found['tokens'] == {
    'prompt': 100,
    'completion': 10,
    'reasoning': 0,
    'answer': 0,
    'total': 110,
    'calls': 2.5,
  }
  assert found['secs'] == 1


def test_money_is_at_the_prices_of_each():
  usd = summarized()['usd']
  assert usd['solver'] == pytest.approx(4 * (100 * 1 + 10 * 10) / 1e6)
  assert usd['judge'] == pytest.approx(4 * (7 * 100 + 3 * 1000) / 1e6)


def test_two_evaluations_are_compared_problem_by_problem():
  a = {'p0': [7, 5], 'p1': [3, 3], 'p2': [None, None], 'p3': [1, 1]}
  b = {'p3': [1, None], 'p1': [1, 1], 'p2': [7, 7], 'p0': [0, 0]}
  found = summary.compare(
    {'identity': IDENTITY, 'problem_scores': a},
    {'identity': IDENTITY, 'problem_scores': b},
  )
  assert found.difference.value == pytest.approx((6 + 2 + 0) / 3)
  assert (found.num_better, found.num_equal, found.num_worse) == (2, 1, 0)


@pytest.mark.parametrize('name', IDENTITY)
def test_what_was_asked_or_graded_otherwise_is_not_compared(name):
  scores = {'p0': [7]}
  with pytest.raises(ValueError, match=f"the same {name}, got '.' and 'other'"):
    summary.compare(
      {'identity': IDENTITY, 'problem_scores': scores},
      {'identity': IDENTITY | {name: 'other'}, 'problem_scores': scores},
    )
