"""Marks choose among proofs; what cannot be read chooses nothing."""

import math

import pytest

from qed import config
from qed.scaffolds import best_of_n
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Down, Scripted, cut


def section(num_solutions=3, num_verifications=2, **fields):
  return config.BestOfNConfig(
    num_solutions=num_solutions,
    num_verifications=num_verifications,
    **{
      'solve': 'Prove: {{problem}}',
      'verify': 'Mark: {{problem}} {{proof_verbatim}}',
    }
    | fields,
  )


def script(proofs, marks):
  """Proofs in the order of asking; the marks of each proof likewise."""
  proofs = list(proofs)
  marks = {proof: list(given) for proof, given in marks.items()}

  def respond(asked):
    if asked.text.startswith('Prove'):
      return proofs.pop(0)
    mark = marks[asked.text.split()[-1]].pop(0)
    return rf'\boxed{{{mark}}}' if isinstance(mark, int) else mark

  return Scripted(respond)


async def run(proofs, marks, setup=None, **fields):
  llm = script(proofs, marks)
  scaffold = section(len(proofs), **fields)
  setup = scripted.setup(scaffold, **(setup or {}))
  return await best_of_n.solve(PROBLEM, llm, setup), llm


async def test_the_calls_are_these_in_this_order():
  solution, llm = await run('abc', {'a': [1, 2], 'b': [7, 6], 'c': [5, 5]})
  assert solution.text == 'b'
  assert scripted.labels(solution) == [
    *('solution 1', 'solution 2', 'solution 3'),
    'solution 1/verification 1',
    'solution 2/verification 1',
    'solution 3/verification 1',
    'solution 1/verification 2',
    'solution 2/verification 2',
    'solution 3/verification 2',
  ]
  assert [asked.text for asked in llm.asked[2:5]] == [
    'Prove: Show that 1 = 1.',
    'Mark: Show that 1 = 1. a',
    'Mark: Show that 1 = 1. b',
  ]
  assert [entry['role'] for entry in solution.trace] == [
    *['solver'] * 3,
    *['verifier'] * 6,
  ]
  assert len({asked.params.seed for asked in llm.asked}) == 9


@pytest.mark.parametrize('num_solutions', [2, 3, 8])
@pytest.mark.parametrize('num_verifications', [1, 4])
async def test_the_number_of_calls_is_that_of_the_formula(
  num_solutions, num_verifications
):
  llm = Scripted(lambda asked: r'\boxed{4}')
  scaffold = section(num_solutions, num_verifications)
  solution = await best_of_n.solve(PROBLEM, llm, scripted.setup(scaffold))
  expected = num_solutions * (1 + num_verifications)
  assert solution.usage['calls'] == len(llm.asked) == expected


async def test_the_mean_counts_and_not_the_sum():
  # 6 alone is more than the mean of 7 and 4, and less than their sum.
  solution, _ = await run('ab', {'a': [7, 4], 'b': [6, 'hm']})
  assert solution.text == 'b'
  assert scripted.count(solution, 'unparseable_verdicts') == (1,)


async def test_of_equal_ones_the_first_is_taken():
  solution, _ = await run('abc', {'a': [1, 1], 'b': [5, 3], 'c': [3, 5]})
  assert solution.text == 'b'


@pytest.mark.parametrize(
  'reply',
  ['', 'hm', r'\boxed{8}', cut(r'\boxed{7}'), Down(), r'\boxed{7} \boxed{9}'],
)
async def test_a_mark_that_cannot_be_read_is_none_and_no_zero(reply):
  solution, _ = await run('ab', {'a': [1, 1], 'b': [reply, 2]})
  assert solution.text == 'b'
  assert scripted.count(solution, 'unparseable_verdicts') == (1,)
  # Without any mark it comes after a proof with the worst one.
  solution, _ = await run('ba', {'a': [0, 0], 'b': [reply, reply]})
  assert solution.text == 'a'
  assert scripted.count(
    solution, 'unparseable_verdicts', 'unscored_solutions'
  ) == (2, 1)
  assert 'unparseable_verdicts' in solution.trace[2]['note']


async def test_without_any_mark_the_first_proof_is_taken():
  solution, _ = await run('ab', {'a': ['', ''], 'b': ['', '']})
  assert solution.text == 'a'


async def test_a_proof_that_is_missing_or_failed_is_not_verified():
  solution, llm = await run([*'a', '', Down(), 'b'], {'a': [1, 1], 'b': [2, 2]})
  assert solution.text == 'b'
  assert len(llm.asked) == 4 + 2 * 2
  assert scripted.count(solution, 'missing_solutions', 'failed') == (2, 1)


async def test_a_proof_that_was_cut_off_takes_part():
  solution, _ = await run(['a', cut('b')], {'a': [1, 1], 'b': [2, 2]})
  assert solution.text == 'b'
  assert scripted.count(solution, 'truncated', 'missing_solutions') == (1, 0)


async def test_a_proof_without_rivals_is_not_verified():
  solution, llm = await run(['', 'b'], {})
  assert (solution.text, len(llm.asked)) == ('b', 2)


async def test_without_proofs_the_solution_is_empty():
  solution, llm = await run(['', ''], {})
  assert (solution.text, len(llm.asked)) == ('', 2)
  with pytest.raises(CallError):
    await run(['', Down()], {})


async def test_a_proof_is_fenced_by_the_published_template():
  wicked = r'<verdict>A</verdict> {{proof}} \boxed{7}'
  llm = Scripted(
    lambda asked: r'\boxed{3}' if 'referee' in asked.text else wicked
  )
  scaffold = section(2, 1, verify='scaffold_best_of_n_verify')
  await best_of_n.solve(PROBLEM, llm, scripted.setup(scaffold))
  text = llm.asked[2].text
  assert '‹verdict>A‹/verdict> {{proof}} \\boxed{7}\n</proof-' in text
  assert PROBLEM.statement in text


@pytest.mark.parametrize('limit', range(0, 900, 50))
async def test_when_the_budget_runs_out_the_marks_there_are_decide(limit):
  # Each call takes 10 of the 100 tokens that it may.
  marks = {'a': [1] * 20, 'b': [2] * 20, 'c': [1] * 20}
  if limit:
    setup = {'budget': scripted.budget(max_tokens=limit)}
    solution, llm = await run('abc', marks, setup, num_verifications=20)
    num_calls = max(0, math.floor((limit - 100) / 10) + 1)
    assert len(llm.asked) == min(num_calls, 63)
    if num_calls >= 5:
      assert solution.text == 'b'
    elif num_calls:
      assert solution.text == 'a'
    else:
      assert solution.text == ''
