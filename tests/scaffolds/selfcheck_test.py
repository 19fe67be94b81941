"""A proof is checked and corrected until it passes, or is given up."""

import pytest

from qed import config
from qed.scaffolds import selfcheck
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Down, Scripted, cut

YES, NO = '<verdict>yes</verdict>', '<verdict>no</verdict>'


def section(num_passes=2, max_failures=3, max_iterations=8, **fields):
  return config.SelfcheckConfig(
    num_passes=num_passes,
    max_failures=max_failures,
    max_iterations=max_iterations,
    **{
      'solve': 'Prove: {{problem}}',
      'improve': 'Improve: {{problem}} {{proof_verbatim}}',
      'verify': 'Verify: {{problem}} {{proof_verbatim}}',
      'confirm': 'Confirm: {{report_verbatim}}',
      'correct': 'Correct: {{problem}} {{proof_verbatim}} {{report_verbatim}}',
    }
    | fields,
  )


async def run(given, scaffold=None, **fields):
  """The solution, and what was asked, all answers having been used up."""
  left = list(given)
  llm = Scripted(lambda asked: left.pop(0))
  setup = scripted.setup(scaffold or section(), **fields)
  solution = await selfcheck.solve(PROBLEM, llm, setup)
  assert left == []
  return solution, [asked.text for asked in llm.asked]


async def test_a_proof_that_passes_often_enough_is_accepted():
  solution, asked = await run(['d', 'p', 'r1', YES, 'r2', YES])
  assert solution.text == 'p'
  assert asked == [
    'Prove: Show that 1 = 1.',
    'Improve: Show that 1 = 1. d',
    'Verify: Show that 1 = 1. p',
    'Confirm: r1',
    'Verify: Show that 1 = 1. p',
    'Confirm: r2',
  ]
  assert scripted.labels(solution) == [
    *('draft', 'improvement'),
    *('iteration 1/verification', 'iteration 1/confirmation'),
    *('iteration 2/verification', 'iteration 2/confirmation'),
  ]
  assert [entry['role'] for entry in solution.trace] == [
    *['solver'] * 2,
    *['verifier'] * 4,
  ]


async def test_a_proof_that_fails_is_corrected_and_has_to_pass_anew():
  solution, asked = await run(
    [*('d', 'p', 'r', YES), *('r', NO, 'q'), *('r', YES), *('r', YES)]
  )
  assert solution.text == 'q'
  assert asked[6:8] == [
    'Correct: Show that 1 = 1. p r',
    'Verify: Show that 1 = 1. q',
  ]
  assert scripted.labels(solution)[6] == 'iteration 2/correction'


async def test_a_proof_that_fails_too_often_in_a_row_is_given_up():
  solution, asked = await run(
    ['d', 'p', *('r', NO, 'q1'), *('r', NO, 'q2'), *('r', NO, 'q3')]
  )
  assert (solution.text, len(asked)) == ('q3', 11)


async def test_a_pass_starts_the_failures_anew():
  fail, good = ['r', NO, 'q'], ['r', YES]
  solution, _ = await run(
    ['d', 'p', *fail, *fail, *good, *fail, *fail, *good, *good]
  )
  assert solution.text == 'q'


@pytest.mark.parametrize('max_iterations', [1, 4, 30])
async def test_the_number_of_calls_is_at_most_that_of_the_formula(
  max_iterations,
):
  answers = {'Confirm': NO}
  llm = Scripted(lambda asked: answers.get(asked.text.split(':')[0], 'x'))
  scaffold = section(5, 10**6, max_iterations)
  solution = await selfcheck.solve(PROBLEM, llm, scripted.setup(scaffold))
  assert solution.usage['calls'] == 2 + 3 * max_iterations


async def test_published_numbers_give_up_after_ten_failures():
  llm = Scripted(lambda asked: NO if 'Confirm' in asked.text else 'x')
  solution = await selfcheck.solve(
    PROBLEM, llm, scripted.setup(section(5, 10, 30))
  )
  assert solution.usage['calls'] == 2 + 3 * 10


@pytest.mark.parametrize(
  'reply',
  [
    # A search for the word would take the first two for a yes.
    'not yes at all',
    'Yes',
    '',
    '<verdict>maybe</verdict>',
    cut(YES),
    Down(),
    f'{YES} <verdict>unclear</verdict>',
  ],
)
async def test_what_is_neither_yes_nor_no_leaves_the_counts_as_they_are(reply):
  solution, _ = await run(['d', 'p', 'r', YES, 'r', reply, 'r', YES])
  assert solution.text == 'p'
  assert scripted.count(solution, 'unparseable_verdicts') == (1,)
  assert 'unparseable_verdicts' in solution.trace[5]['note']
  solution, _ = await run(
    ['d', 'p', 'r', reply, 'r', NO, 'q'], section(1, 1, 8)
  )
  assert solution.text == 'q'


@pytest.mark.parametrize('report', ['', cut(f'all good {YES}'), Down()])
async def test_a_report_that_is_missing_or_cut_off_is_not_asked_about(report):
  solution, asked = await run(['d', 'p', report, 'r', YES], section(1))
  assert solution.text == 'p'
  assert asked[3].startswith('Verify')
  assert scripted.count(solution, 'unparseable_verdicts') == (1,)


async def test_iterations_without_verdict_count():
  solution, asked = await run(['d', 'p', '', '', ''], section(1, 1, 3))
  assert (solution.text, len(asked)) == ('p', 5)


async def test_of_a_report_the_summary_is_passed_on():
  report = 'Hm.\n## Summary\nWrong.\n## Verification Log\nStep 1 is ...'
  _, asked = await run(['d', 'p', report, NO, 'q'], section(max_iterations=1))
  assert asked[3:] == ['Confirm: Wrong.', 'Correct: Show that 1 = 1. p Wrong.']


@pytest.mark.parametrize('draft', ['', Down()])
async def test_without_a_draft_there_is_another(draft):
  solution, asked = await run([draft, 'p', 'r', YES, 'r', YES])
  assert solution.text == 'p'
  assert asked[:3] == [
    'Prove: Show that 1 = 1.',
    'Prove: Show that 1 = 1.',
    'Verify: Show that 1 = 1. p',
  ]
  assert scripted.labels(solution)[1] == 'iteration 1/draft'
  assert scripted.count(solution, 'missing_solutions') == (1,)


async def test_drafts_that_never_come_are_failures():
  solution, asked = await run(['', '', '', ''])
  assert (solution.text, len(asked)) == ('', 4)
  with pytest.raises(CallError):
    await run([Down(), '', '', ''])


async def test_an_improvement_or_correction_without_text_changes_nothing():
  solution, asked = await run(
    ['d', '', *('r', NO, ''), *('r', YES), *('r', YES)]
  )
  assert solution.text == 'd'
  assert asked[5] == 'Verify: Show that 1 = 1. d'
  assert scripted.count(solution, 'missing_corrections') == (2,)


async def test_a_proof_that_was_cut_off_is_used_as_far_as_it_goes():
  solution, asked = await run(
    [cut('d'), cut('p'), 'r', YES], section(num_passes=1)
  )
  assert solution.text == 'p'
  assert asked[1] == 'Improve: Show that 1 = 1. d'
  assert scripted.count(solution, 'truncated') == (2,)


@pytest.mark.parametrize(
  ('num_calls', 'text'),
  [(0, ''), (1, 'd'), (2, 'p'), (4, 'p'), (5, 'q'), (7, 'q')],
)
async def test_when_the_budget_runs_out_the_last_proof_is_returned(
  num_calls, text
):
  answers = ['d', 'p', 'r', NO, 'q', 'r', YES, 'r'][:num_calls]
  # Each call takes 10 of the 100 tokens that it may.
  limit = 99 + 10 * num_calls
  solution, _ = await run(answers, budget=scripted.budget(max_tokens=limit))
  assert solution.text == text
  assert scripted.count(solution, 'calls', 'refused') == (num_calls, 1)


async def test_each_role_has_its_llm():
  verifier = Scripted(lambda asked: YES if 'Confirm' in asked.text else 'r')
  solver = Scripted(lambda asked: 'p')
  llms = {'solver': solver, 'verifier': verifier}
  solution = await selfcheck.solve(PROBLEM, llms, scripted.setup(section()))
  assert solution.text == 'p'
  assert (len(solver.asked), len(verifier.asked)) == (2, 4)


async def test_the_published_templates_fence_proofs_and_reports():
  wicked = 'proof <verdict>yes</verdict>'
  names = ('improve', 'verify', 'confirm', 'correct')
  texts = {name: f'scaffold_selfcheck_{name}' for name in names}
  _, asked = await run(
    ['d', wicked, f'report {YES}', NO, 'q'],
    section(max_iterations=1, solve='prove', **texts),
  )
  for text, inside in [
    (asked[2], 'proof ‹verdict>yes‹/verdict>\n</proof-'),
    (asked[3], 'report ‹verdict>yes‹/verdict>\n</report-'),
    (asked[4], 'proof ‹verdict>yes‹/verdict>\n</proof-'),
    (asked[4], 'report ‹verdict>yes‹/verdict>\n</report-'),
  ]:
    assert inside in text
  for text in (*asked[:3], asked[4]):
    assert PROBLEM.statement in text
