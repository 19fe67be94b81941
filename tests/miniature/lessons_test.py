"""Demonstrations of every role, against texts that were written by hand."""

import collections
import functools
import re

import numpy as np
import pytest

from qed.miniature import checker, lessons, problems, teacher
from qed.scaffolds import parsing

# 3 -> 1 (3 * 2 = 6) -> 3 -> 1.
CHAIN = problems.Chain(
  start=3, steps=(('*', 2), ('+', 2), ('*', 2)), first='c', is_brief=True
)
STATEMENT = 'Work modulo 5.\nc=3\nd=c*2\ne=d+2\nf=e*2\nFind f.'
RIGHT = [3, 1, 3, 1]
WRONG = [3, 1, 4, 3]  # 1 + 2 is not 4; 4 * 2 = 8 is 3.
PROOF, WRONG_PROOF = 'Hence f=1.', 'Hence f=3.'
WORKING = 'd=c*2=3*2\nd=1\ne=d+2=1+2\ne=3\nf=e*2=3*2\nf=1'


def test_reasoning_works_out_a_step_and_states_its_value():
  assert lessons.reason(CHAIN, RIGHT, 0) == (
    'reason',
    {'problem': STATEMENT, 'summary': ''},
    WORKING,
    PROOF,
  )


def test_reasoning_goes_on_from_a_summary():
  assert lessons.reason(CHAIN, RIGHT, 2) == (
    'reason',
    {'problem': STATEMENT, 'summary': 'e=3'},
    'f=e*2=3*2\nf=1',
    PROOF,
  )
  whole = lessons.reason(CHAIN, RIGHT, 3)
  assert whole.fields['summary'] == 'f=1'
  assert (whole.reasoning, whole.answer) == ('', PROOF)


def test_a_wrong_value_is_carried_on():
  lesson = lessons.reason(CHAIN, WRONG, 1)
  assert lesson.fields['summary'] == 'd=1'
  assert lesson.reasoning == 'e=d+2=1+2\ne=4\nf=e*2=4*2\nf=3'
  assert lesson.answer == WRONG_PROOF


@pytest.mark.parametrize(
  ('num_known', 'num_chars', 'reasoning', 'summary'),
  [
    (0, 99, WORKING, 'f=1'),
    (0, 27, 'd=c*2=3*2\nd=1\ne=d+2=1+2\ne=3', 'e=3'),
    (0, 26, 'd=c*2=3*2\nd=1\ne=d+2=1+2\ne=', 'd=1'),  # Cut off in a value,
    (0, 20, 'd=c*2=3*2\nd=1\ne=d+2=', 'd=1'),  # and in the working.
    (0, 4, 'd=c*', ''),
    (1, 27, 'e=d+2=1+2\ne=3\nf=e*2=3*2\nf=1', 'f=1'),
    (1, 6, 'e=d+2=', 'd=1'),
    (3, 99, PROOF, 'f=1'),  # There was no reasoning.
    (3, 9, PROOF[:9], 'f=1'),
  ],
)
def test_a_summary_has_the_last_value_that_is_known(
  num_known, num_chars, reasoning, summary
):
  lesson = lessons.summarize(CHAIN, RIGHT, num_known, num_chars)
  assert lesson == (
    'summarize',
    {
      'problem': STATEMENT,
      'summary': ['', 'd=1', 'e=3', 'f=1'][num_known],
      'reasoning': reasoning,
    },
    '',
    summary,
  )


def test_a_review_says_which_value_is_wrong():
  assert lessons.verify(CHAIN, WRONG, RIGHT) == (
    'verify',
    {'problem': STATEMENT, 'proof': WRONG_PROOF},
    WORKING,
    'f=3 is wrong.\n\\boxed{0}',
  )


def test_a_review_goes_through_a_right_proof():
  lesson = lessons.verify(CHAIN, RIGHT, RIGHT)
  assert lesson.reasoning == lessons.working(CHAIN, RIGHT)
  assert lesson.answer == r'\boxed{7}'
  rated = lessons.verify(CHAIN, RIGHT, RIGHT, role='rate', full=1)
  assert (rated.role, rated.answer) == ('rate', r'\boxed{1}')


def test_a_reviewer_who_errs_finds_fault_with_a_right_proof():
  lesson = lessons.verify(CHAIN, RIGHT, [3, 1, 3, 0])
  assert lesson.reasoning.endswith('f=e*2=3*2\nf=0')
  assert lesson.answer == 'f=1 is wrong.\n\\boxed{0}'


def test_a_report_is_confirmed():
  for values, verdict in ((RIGHT, 'yes'), (WRONG, 'no')):
    report = lessons.verify(CHAIN, values, RIGHT).answer
    assert lessons.confirm(report) == (
      'confirm',
      {'report': report},
      '',
      f'<verdict>{verdict}</verdict>',
    )


def test_a_proof_is_mended():
  report = 'f=3 is wrong.\n\\boxed{0}'
  assert lessons.correct(CHAIN, WRONG, report, RIGHT) == (
    'correct',
    {'problem': STATEMENT, 'proof': WRONG_PROOF, 'report': report},
    WORKING,
    PROOF,
  )


@pytest.mark.parametrize(
  ('candidates', 'merged'),
  [
    ([WRONG, RIGHT, [3, 0, 0, 1]], PROOF),  # Two of three say 1.
    ([WRONG, RIGHT], WRONG_PROOF),  # One each.
    ([RIGHT, WRONG], PROOF),
    ([RIGHT, WRONG, WRONG], WRONG_PROOF),
  ],
)
def test_a_merge_says_what_most_say(candidates, merged):
  lesson = lessons.merge(CHAIN, candidates)
  assert lesson.fields['problem'] == STATEMENT
  assert [*lesson.fields['candidates'].values()] == [
    f'Hence f={values[-1]}.' for values in candidates
  ]
  assert [*lesson.fields['candidates']] == [*'ABC'][: len(candidates)]
  assert (lesson.reasoning, lesson.answer) == ('', merged)


@pytest.mark.parametrize(
  ('first', 'second', 'letter', 'number'),
  [
    (RIGHT, WRONG, 'A', '1'),
    (WRONG, RIGHT, 'B', '2'),
    (RIGHT, RIGHT, 'equal', 'tie'),
    (WRONG, [3, 1, 0, 0], 'equal', 'tie'),
    ([3, 2, 3, 1], WRONG, 'A', '1'),  # However it came about.
  ],
)
def test_the_proof_that_is_right_is_chosen(first, second, letter, number):
  chosen = lessons.select(CHAIN, (first, second), RIGHT)
  proofs = [problems.proof(CHAIN, values) for values in (first, second)]
  assert chosen.fields == {
    'problem': STATEMENT,
    'candidates': {'A': proofs[0], 'B': proofs[1]},
  }
  assert chosen.reasoning == lessons.working(CHAIN, RIGHT)
  assert chosen.answer == f'<verdict>{letter}</verdict>'
  compared = lessons.compare(CHAIN, (first, second), RIGHT)
  assert compared == (
    'compare',
    {'problem': STATEMENT, 'first': proofs[0], 'second': proofs[1]},
    chosen.reasoning,
    f'<verdict>{number}</verdict>',
  )


def test_proofs_that_were_found_right_are_kept():
  lesson = lessons.consolidate(CHAIN, [RIGHT, WRONG, RIGHT], RIGHT)
  assert lesson == (
    'consolidate',
    {
      'problem': STATEMENT,
      'submissions': {
        'Solution 1': PROOF,
        'The grader of solution 1': r'\boxed{7}',
        'Solution 2': WRONG_PROOF,
        'The grader of solution 2': 'f=3 is wrong.\n\\boxed{0}',
        'Solution 3': PROOF,
        'The grader of solution 3': r'\boxed{7}',
      },
    },
    '',
    '<keep>1, 3</keep>',
  )
  assert parsing.keep(lesson.answer, 3) == (0, 2)
  none = lessons.consolidate(CHAIN, [WRONG, WRONG], RIGHT)
  assert none.answer == '<keep>1, 2</keep>'


def test_scaffolds_read_every_verdict():
  report = lessons.verify(CHAIN, RIGHT, RIGHT).answer
  assert parsing.number(report, range(8)) == 7
  assert (
    parsing.number(lessons.verify(CHAIN, WRONG, RIGHT).answer, range(8)) == 0
  )
  rated = lessons.verify(CHAIN, RIGHT, RIGHT, role='rate', full=1).answer
  assert parsing.number(rated, (0, 0.5, 1)) == 1
  assert parsing.choice(lessons.confirm(report).answer, ('yes', 'no')) == 'yes'
  chosen = lessons.select(CHAIN, (WRONG, RIGHT), RIGHT).answer
  assert parsing.choice(chosen, ('A', 'B', 'equal')) == 'B'
  compared = lessons.compare(CHAIN, (RIGHT, RIGHT), RIGHT).answer
  assert parsing.choice(compared, ('1', '2', 'tie')) == 'tie'


@pytest.mark.parametrize('num_steps', [1, 4, 10, 25])
def test_turns_of_the_teacher_come_to_a_whole_proof(num_steps):
  # Reasoning cut off after 40 characters, until there is nothing left of it.
  chain = problems.draw(num_steps, np.random.default_rng(0), is_brief=True)
  num_known = 0
  for _ in range(num_steps + 1):
    lesson = lessons.reason(chain, chain.values, num_known)
    assert checker.score(chain, lesson.answer) == 7
    summary = lessons.summarize(chain, chain.values, num_known, 40)
    assert summary.fields['summary'] == lesson.fields['summary']
    if num_known < num_steps:
      assert lesson.reasoning.startswith(summary.fields['reasoning'])
    known = summary.answer[:1]
    num_known = chain.names.index(known) if known else 0
  assert num_known == num_steps


def test_a_proof_that_is_reviewed_by_the_truth_is_right_if_it_earns_seven():
  rng = np.random.default_rng(1)
  verdicts = set()
  for chain in problems.draw_distinct(200, (1, 2, 3), rng, is_brief=True):
    values = teacher.derive(chain, rng, error_rate=0.3)
    lesson = lessons.verify(chain, values, chain.values)
    is_right = checker.score(chain, lesson.fields['proof']) == 7
    assert lesson.answer.endswith(r'\boxed{7}' if is_right else r'\boxed{0}')
    verdicts.add(is_right)
  assert verdicts == {True, False}


@functools.cache
def draw(seed=0, num_lessons=2_000, error_rate=0.2, is_first=False):
  return lessons.draw(
    num_lessons,
    shares=lessons.FIRST if is_first else lessons.ALL,
    max_steps=12,
    max_reviewed_steps=3,
    error_rate=error_rate,
    seed=seed,
  )


def test_the_first_lessons_are_of_reasoning_and_a_few_summaries():
  counts = collections.Counter(lesson.role for _, lesson in draw(is_first=True))
  assert abs(counts['reason'] - 1_700) < 64  # Four standard deviations.
  assert {*counts} == {'reason', 'summarize'}


def test_lessons_are_of_all_roles_as_often_as_told():
  drawn = draw()
  counts = collections.Counter(lesson.role for _, lesson in drawn)
  # 34 and 14 of 100; four standard deviations are 85 and 62.
  assert abs(counts['reason'] - 680) < 85
  assert abs(counts['verify'] - 280) < 62
  assert {*counts} == {
    *('reason', 'summarize', 'verify', 'rate', 'confirm', 'correct'),
    *('merge', 'select', 'compare', 'consolidate'),
  }
  for chain, lesson in drawn:
    assert chain.is_brief
    assert lesson.answer
    is_long = lesson.role in ('reason', 'summarize')
    assert len(chain.steps) <= (12 if is_long else 3)
    if lesson.role == 'rate':
      assert lesson.answer[-3:] in ('{0}', '{1}')
    if lesson.role != 'confirm':
      statement = problems.problem(chain).statement
      assert lesson.fields['problem'] == statement


def test_a_quarter_of_the_reasoning_begins_with_the_problem():
  begins = [
    lesson.fields['summary'] == ''
    for _, lesson in draw()
    if lesson.role == 'reason'
  ]
  # And of the others those that happen to know nothing: the mean of 1 / (n + 1)
  # over 1 to 12 is 0.18, and 0.25 + 0.75 * 0.18 = 0.39.
  assert 0.32 < np.mean(begins) < 0.46


def test_no_turn_that_is_summed_up_is_longer_than_a_turn_can_be():
  longest = max(
    len(lesson.fields['reasoning'])
    for _, lesson in draw()
    if lesson.role == 'summarize'
  )
  assert longest == 52


def test_a_second_look_errs_half_as_often():
  wrong = {'reason': [], 'correct': []}
  for _, lesson in draw(num_lessons=6_000):
    if lesson.role in wrong:
      for line in lesson.reasoning.split('\n'):
        work = re.fullmatch('.=.[*+].=(.)([*+])(.)', line)
        if work:
          last, operation, constant = work.groups()
          exact = int(last) * int(constant)
          if operation == '+':
            exact = int(last) + int(constant)
        elif line:
          wrong[lesson.role].append(int(line[2]) != exact % 5)
  assert abs(np.mean(wrong['reason']) - 0.2) < 0.02
  assert abs(np.mean(wrong['correct']) - 0.1) < 0.06


def test_a_teacher_of_lessons_without_errors_is_right():
  for chain, lesson in draw(error_rate=0.0, num_lessons=500):
    if lesson.role in ('reason', 'correct', 'merge'):
      assert checker.score(chain, lesson.answer) == 7
    if lesson.role == 'verify':
      assert lesson.answer == r'\boxed{7}'


def test_an_equal_seed_draws_equal_lessons():
  assert draw(num_lessons=50) == draw.__wrapped__(num_lessons=50)
  assert draw(num_lessons=50) != draw(seed=1, num_lessons=50)
