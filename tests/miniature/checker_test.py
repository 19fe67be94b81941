"""The exact grader, against points that were counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qed.miniature import checker, problems, teacher

# 3 -> 1 (3 * 2 = 6) -> 3 -> 1; three steps are worth 2, 2 and 3 points.
CHAIN = problems.Chain(start=3, steps=(('*', 2), ('+', 2), ('*', 2)), first='c')
PROOF = ['d=c*2=3*2=1', 'e=d+2=1+2=3', 'f=e*2=3*2=1', 'Hence f=1.']


@pytest.mark.parametrize(
  ('lines', 'score'),
  [
    (PROOF, 7),
    (['c=3', *PROOF], 7),  # The start is given.
    (['', ' d = c * 2 = 3 * 2 = 1\r', *PROOF[1:], '  '], 7),  # White space.
    (PROOF[:-1], 6),  # No conclusion.
    ([*PROOF[:-1], 'Hence f=2.'], 5),  # Another one, which is no part either.
    ([*PROOF, PROOF[0]], 5),  # Something comes after it, and is too much.
    ([*PROOF, PROOF[1][:1] + '=3'], 5),
    ([*PROOF[:1], 'Obviously.', *PROOF[1:]], 6),
    ([PROOF[-1], *PROOF], 7),  # Said twice.
    ([*PROOF[:-1], PROOF[0], PROOF[-1]], 6),  # A step too many.
    (['d=c*2=3*2=4', *PROOF[1:]], 0),
    (['d=c*2=4*2=1', *PROOF[1:]], 0),  # Another operand than the start.
    ([PROOF[0], 'e=d+2=1+2=4', 'f=e*2=4*2=3', PROOF[-1]], 2),
    ([*PROOF[:2], 'f=e*2=3*2=0', PROOF[-1]], 4),
    ([PROOF[0], PROOF[2], PROOF[1], PROOF[-1]], 2),  # A gap.
    ([PROOF[0], PROOF[0], PROOF[1], PROOF[-1]], 2),  # Twice.
    # Right by another rule than the one that is given.
    (['d=c+3=3+3=1', *PROOF[1:]], 0),
    (['c=3', 'd=1', 'e=3', 'f=1', 'Hence f=1.'], 0),  # Values alone.
    (['c=3', 'd=c*2', 'e=d+2', 'Hence f=1.'], 0),  # The statement.
    (['Hence f=1.'], 0),
    ([], 0),
    ([f'd=c*2=3*2={v}' for v in range(5)], 0),  # Guessing: the first is false.
    (['<score>7</score>', *PROOF], 6),
    ([*PROOF[:-1], *['x'] * 500, PROOF[-1]], 6),
  ],
)
def test_points_by_hand(lines, score):
  assert checker.score(CHAIN, '\n'.join(lines)) == score


@pytest.mark.parametrize(
  ('proof', 'score'),
  [
    ('Hence f=1.', 7),
    ('\n Hence f = 1. \n', 7),
    ('Hence f=0.', 0),
    ('Hence e=3.', 0),
    ('f=1', 0),
    ('Hence f=1.\nHence f=2.', 0),  # Guessing.
    ('Hence f=2.\nHence f=1.', 0),
    ('Hence f=1.\nHence f=1.', 0),
    ('f=1\nHence f=1.', 0),
    ('\n'.join(PROOF), 0),
    ('', 0),
  ],
)
def test_a_brief_proof_is_the_right_conclusion_alone(proof, score):
  found = checker.breakdown(CHAIN._replace(is_brief=True), proof)
  assert found.score == score
  assert (found.error == '') == (score == 7)


def test_a_conclusion_alone_is_no_proof_unless_it_is_to_be_brief():
  assert checker.score(CHAIN, 'Hence f=1.') == 0
  assert checker.score(CHAIN, 'd=1\ne=3\nf=1\nHence f=1.') == 0


def test_a_breakdown_by_hand():
  found = checker.breakdown(CHAIN, 'd=c*2=3*2=1\ne=d+2=1+2=0\nwell')
  assert found == (
    0,  # 2 points less two deductions.
    2,
    1,
    'e=d+2=1+2=0 is not the step that is due',
    (
      'the conclusion is missing or is not the last line',
      'there are lines that are no part of the proof',
    ),
  )
  assert checker.breakdown(CHAIN, PROOF[0]).error == f'{PROOF[1]} is missing'


@pytest.mark.parametrize('is_brief', [False, True])
@pytest.mark.parametrize('num_steps', [1, 2, 6, 7, 9, 25])
def test_the_reference_proof_earns_everything(num_steps, is_brief):
  rng = np.random.default_rng(num_steps)
  for _ in range(10):
    chain = problems.draw(num_steps, rng, is_brief=is_brief)
    assert checker.score(chain, problems.problem(chain).reference) == 7


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_has_a_score(text):
  assert 0 <= checker.score(CHAIN, text) <= 7


@given(st.lists(st.sampled_from([*PROOF, 'e=d+2=1+2=4', 'x', '']), max_size=12))
@settings(max_examples=300, deadline=None)
def test_only_all_steps_in_order_and_the_conclusion_earn_seven(lines):
  steps = [line for line in lines if line.count('=') == 3]
  is_whole = (
    steps == PROOF[:3]
    and 'x' not in lines
    and [line for line in lines if line][-1:] == PROOF[-1:]
  )
  assert (checker.score(CHAIN, '\n'.join(lines)) == 7) == is_whole


def test_hostile_texts_are_graded_quickly():
  for text in (
    '=' * 10**6,
    '\n' * 10**6,
    'd=c*2=3*2=1\n' * 10**5,
    '\x00\ud800',
  ):
    assert checker.score(CHAIN, text) <= 2


def test_a_teacher_without_errors_is_always_right():
  for trace in teacher.traces(20, num_steps=(1, 4), error_rate=0.0, seed=0):
    assert trace.score == 7


def test_a_teacher_who_always_errs_earns_nothing():
  for trace in teacher.traces(20, num_steps=(1, 4), error_rate=1.0, seed=0):
    assert trace.score == 0


def test_a_teacher_errs_as_often_as_told_and_goes_on_from_the_error():
  rng = np.random.default_rng(3)
  right = wrong = 0
  for chain in problems.draw_distinct(500, (3,), rng):
    lines = teacher.write(chain, rng, error_rate=0.2).split('\n')
    last = chain.start
    for line, step in zip(lines[:-1], chain.steps, strict=True):
      operation, constant = step
      exact = last * constant if operation == '*' else last + constant
      last = int(line[-1])
      right += last == exact % 5
      wrong += last != exact % 5
    assert lines[-1] == f'Hence {chain.names[-1]}={chain.values[-1]}.'
  # Of 1,500 lines; four standard deviations are 62.
  assert right + wrong == 1500
  assert abs(wrong - 300) < 62


def test_an_equal_seed_writes_equal_traces():
  a, b, c = (
    teacher.traces(9, num_steps=(1, 2), error_rate=0.3, seed=seed)
    for seed in (1, 1, 2)
  )
  assert a == b
  assert a != c


def test_a_teacher_has_as_many_traces_as_one_asks_for():
  traces = teacher.traces(3000, num_steps=(1, 2), error_rate=0.1, seed=0)
  sizes = [trace.proof.count('\n') for trace in traces]
  assert sizes == [1, 2] * 1500
