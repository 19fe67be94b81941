import asyncio
import concurrent.futures
import csv
import json
import os
import signal
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from qed.grading import answers, rubrics
from qed.types import Grade, Problem

# Towers of powers: sympy would compute for years.
TOWERS = ('9^{9^{9^{9^9}}}', '8^{9^{9^{9^9}}}')


class TestBoxed:
  @pytest.mark.parametrize(
    ('text', 'expected'),
    [
      (r'so \boxed{5}.', '5'),
      (r'\boxed{1}, no, \boxed{2}', '2'),
      (r'\boxed{\frac{1}{2^{3}}}', r'\frac{1}{2^{3}}'),
      (r'\boxed {x}', 'x'),
      (r'\boxed{ x }', 'x'),
      (r'\boxed{\boxed{5}}', '5'),
      (r'\boxed{ \boxed{5} }', '5'),
      (r'\boxed{\boxed{5} + \boxed{6}}', r'\boxed{5} + \boxed{6}'),
      (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
      (r'\boxed{\left\{ x \right.}', r'\left\{ x \right.'),
      (r'\boxed{\text{a } b}', r'\text{a } b'),
      # What is not closed is no box; one inside it is.
      (r'\boxed{\frac{1}{', None),
      (r'\boxed{3} then \boxed{4', '3'),
      (r'\boxed{ \boxed{4}', '4'),
      (r'}} \boxed{4} {{', '4'),
      (r'\\boxed{4}', None),  # A line break, and a word.
      (r'\boxed{}', ''),
      ('5', None),
      ('', None),
    ],
  )
  def test_the_last_complete_box_counts(self, text, expected):
    assert answers.boxed(text) == expected

  @hypothesis.given(
    st.recursive(
      st.text('ab $', max_size=4),
      lambda inner: st.lists(inner, max_size=3).map(
        lambda parts: '{' + '}{'.join(parts) + '}'
      ),
      max_leaves=8,
    )
  )
  def test_whatever_is_balanced_can_be_boxed(self, content):
    text = f'a {{b}} \\boxed{{{content}}} c'
    assert answers.boxed(text) == content.strip()

  @hypothesis.given(st.text('\\boxed{} ', max_size=60))
  def test_never_raises(self, text):
    answers.boxed(text)

  @pytest.mark.timeout(10)
  def test_takes_no_time(self):
    assert answers.boxed('\\boxed{' * 100_000) is None
    assert answers.boxed('\\boxed{' * 1_000 + '}' * 1_000) == ''


@pytest.fixture(scope='module')
def comparer():
  with answers.Comparer(timeout_secs=3.0) as comparer:
    yield comparer


@pytest.mark.timeout(60)
class TestComparer:
  @pytest.mark.parametrize(
    ('expected', 'given', 'same'),
    [
      ('5', '5', True),
      ('5', '$ 5 $', True),
      (r'\frac{1}{2}', '0.5', True),
      (r'\frac12', '1/2', True),
      ('2x+1', '1+2x', True),
      (r'\{1,2\}', r'\{2,1\}', True),
      ('(1,2)', '(2,1)', False),
      ('2^{10}', '1024', True),
      (r'\sqrt{8}', r'2\sqrt{2}', True),
      ('5', '6', False),
      ('12', '1 2', False),
      ('all primes', ' all  primes', True),
      ('5', '', None),
    ],
  )
  def test_formulas_are_compared_by_what_they_mean(
    self, comparer, expected, given, same
  ):
    assert comparer.same(expected, given) is same

  def test_a_comparison_that_hangs_is_killed_and_the_next_one_works(
    self, comparer
  ):
    comparer.same('1', '2')  # The worker has started.
    began = time.monotonic()
    assert comparer.same(*TOWERS) is None
    assert 2.9 < time.monotonic() - began < 8
    assert comparer.same('1/2', '0.5') is True

  def test_a_worker_that_dies_is_replaced(self, comparer):
    comparer.same('1', '2')
    os.kill(comparer._worker._process.pid, signal.SIGKILL)
    assert comparer.same('1', '2') is None
    assert comparer.same('1', '2') is False

  def test_threads_share_it(self, comparer):
    given = [f'{n + n % 2} + 0' for n in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      results = pool.map(comparer.same, map(str, range(12)), given)
    assert list(results) == [n % 2 == 0 for n in range(12)]

  def test_text_that_no_parser_likes_is_undecided_or_different(self, comparer):
    for given in ('\\', '{', '}' * 50, '\0', '"', '\n', '\\boxed{', 'é' * 9):
      assert comparer.same('5', given) is not True

  def test_a_closed_one_says_so(self):
    comparer = answers.Comparer(timeout_secs=1.0)
    comparer.close()
    comparer.close()
    with pytest.raises(RuntimeError, match='closed'):
      comparer.same('1', '2')

  def test_a_worker_whose_owner_is_gone_ends_in_the_middle_of_a_computation(
    self,
  ):
    worker = subprocess.Popen(
      [sys.executable, '-m', 'qed.grading.answers', '0.5'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    assert worker.stdout.readline() == b'ready\n'
    worker.stdin.write(json.dumps(TOWERS).encode() + b'\n')
    worker.stdin.close()
    assert worker.wait(timeout=10) == -signal.SIGALRM
    assert worker.stdout.read() == b''
    worker.stdout.close()


@pytest.mark.timeout(60)
class TestGrade:
  problem = Problem(problem_id='p', statement='s', answer=r'$\frac{1}{2}$')

  def grade(self, comparer, text, ask_judge=None):
    return asyncio.run(answers.grade(self.problem, text, comparer, ask_judge))

  def test_a_formula_that_is_the_same_needs_no_judge(self, comparer):
    async def ask_judge(*_):
      raise AssertionError('asked')

    answer = self.grade(comparer, r'So \boxed{0.5}.', ask_judge)
    assert answer == answers.Answer(
      given='0.5', correct=True, decided_by='formulas'
    )

  @pytest.mark.parametrize('text', ['It is 1/2.', r'\boxed{}', ''])
  def test_without_an_answer_it_is_wrong_and_nobody_is_asked(
    self, comparer, text
  ):
    answer = self.grade(comparer, text)
    assert (answer.correct, answer.decided_by) == (False, 'absence')

  @pytest.mark.parametrize('opinion', [True, False])
  def test_the_judge_has_the_last_word_on_what_differs(self, comparer, opinion):
    asked = []

    async def ask_judge(problem, expected, given):
      asked.append((problem.problem_id, expected, given))
      return opinion

    answer = self.grade(comparer, r'\boxed{\text{a half}}', ask_judge)
    assert asked == [('p', r'$\frac{1}{2}$', r'\text{a half}')]
    assert (answer.correct, answer.decided_by) == (opinion, 'judge')

  def test_a_judge_that_fails_leaves_it_undecided(self, comparer):
    async def ask_judge(*_):
      return None

    answer = self.grade(comparer, r'\boxed{3}', ask_judge)
    assert (answer.correct, answer.decided_by) == (None, 'nobody')

  @pytest.mark.parametrize(
    ('score', 'opinion'), [(1, True), (0, False), (None, None)]
  )
  def test_a_judge_is_asked_in_the_words_of_the_template(self, score, opinion):
    asked = []

    async def verdict(messages, *, scores, about):
      asked.append((messages, set(scores), about))
      return Grade(
        score=score, status='ok', feedback='', judge='judge', usage={}
      )

    ask = answers.second_opinion(verdict)
    assert asyncio.run(ask(self.problem, '1/2', 'a half')) is opinion
    ((messages, scores, about),) = asked
    assert messages == rubrics.render_answer(self.problem, '1/2', 'a half')
    assert (scores, about) == ({0, 1}, 'p')

  def test_without_a_judge_another_formula_is_wrong(self, comparer):
    answer = self.grade(comparer, r'\boxed{3}')
    assert (answer.correct, answer.decided_by) == (False, 'formulas')

  def test_without_a_judge_a_comparison_that_hangs_is_undecided(self):
    with answers.Comparer(timeout_secs=0.3) as comparer:
      answer = self.grade(comparer, rf'\boxed{{{TOWERS[0]}}}')
    assert (answer.correct, answer.decided_by) == (None, 'nobody')

  def test_a_problem_without_an_answer_is_an_error(self, comparer):
    problem = Problem(problem_id='p9', statement='s')
    with pytest.raises(ValueError, match="'p9': expected an answer"):
      asyncio.run(answers.grade(problem, r'\boxed{1}', comparer, None))


@pytest.mark.timeout(120)
def test_the_answers_of_answerbench_equal_themselves_in_other_words(
  comparer, shared_data
):
  path = shared_data / 'imobench' / 'answerbench_v2.csv'
  with path.open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))[::8]
  found = [
    comparer.same(row['Short Answer'], f'{row["Short Answer"].strip(" $")} + 0')
    for row in rows
    if row['Short Answer'].strip(' $').isdigit()
  ]
  assert len(found) > 10
  assert all(found)
