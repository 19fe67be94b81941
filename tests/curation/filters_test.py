"""Each filter takes what it is for, names the evidence, and leaves the rest."""

import csv
import pathlib

import pytest

from experiments import base
from qed import config
from qed.curation import filters
from qed.curation.records import Item

DATA = pathlib.Path(__file__).parents[3] / 'shared/data/imobench'
SETTINGS = config.FiltersConfig(**base.curation().filters.to_dict())
PROOF = (
  'Suppose that the claim fails, and let n be the least counterexample. Then '
  'n is composite, since primes satisfy it, hence n = ab with a, b < n, which '
  'is a contradiction to the choice of n.'
)
STATEMENT = 'Prove that every positive integer $n$ is interesting to someone.'


def reason(statement=STATEMENT, solution=PROOF, **fields):
  item = Item(item_id='i', statement=statement, solution=solution, **fields)
  (outcome,) = filters.filter_items([item], SETTINGS)
  assert outcome.item == item
  assert bool(outcome.reason) == bool(outcome.detail)
  return outcome.reason


def test_a_sound_problem_is_kept():
  assert reason() == ''


@pytest.mark.parametrize(
  'addition',
  [
    '![](https://x.org/1.png)',
    '<img src="a">',
    r'\includegraphics[width=3cm]{fig}',
    '[asy]draw((0,0)--(1,1));[/asy]',
    r'\begin{tikzpicture}',
    'as shown in the figure',
    'See the diagram below.',
    'The points lie as in the attached figure.',
  ],
)
def test_a_picture_is_found(addition):
  assert reason(f'{STATEMENT} {addition}') == 'image'


@pytest.mark.parametrize(
  'statement',
  [
    'Prove that the image of the function $f$ is an open set of the plane.',
    'A plane figure is called nice if it has an axis. Prove that it exists.',
  ],
)
def test_the_words_of_mathematics_are_no_picture(statement):
  assert reason(statement) == ''


def test_choices_are_found():
  statement = 'What is the value of $2+2$ over the integers? (A) 3 (B) 4 (C) 5'
  assert reason(statement) == 'multiple_choice'


@pytest.mark.parametrize(
  ('statement', 'expected'),
  [
    ('Prove it for $n$.', 'short_statement'),
    ('The numbers from 1 to 100 stand on a board in a row.', 'ill_posed'),
    ('Prove that for all positive integers $n$ such that', 'ill_posed'),
    ('Prove that $a+b is at least $2$ for all $a, b$ above one.', 'ill_posed'),
    (f'{STATEMENT} Please help me!', 'ill_posed'),
    (f'{STATEMENT} Answer: every one', 'answer_in_statement'),
    (f'{STATEMENT} [hide=Solution]', 'answer_in_statement'),
  ],
)
def test_what_is_wrong_with_a_statement_is_named(statement, expected):
  assert reason(statement) == expected


def test_an_escaped_dollar_opens_no_formula():
  assert reason(rf'{STATEMENT} It is worth \$ 5 to each of us.') == ''


def test_a_short_answer_may_be_there_by_chance():
  question = 'Find the number of pairs $(a, b)$ with $a + b = 12$ and $a < b$.'
  assert reason(question, answer='12') == ''


def test_a_long_answer_in_a_question_gives_it_away():
  question = 'Find all functions $f$ such that $f(x)=2x+c$ or so for real $x$.'
  assert reason(question, answer='$f(x) = 2x + c$') == 'answer_in_statement'
  assert reason(question, answer='$f(x) = 3x + c$') == ''
  proof = question.replace('Find all functions', 'Prove of those')
  assert reason(proof, answer='$f(x) = 2x + c$') == ''


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'origin': 'Contests/AMC 10/2010'}, 'easy_contest'),
    ({'tags': ('AMC_8',)}, 'easy_contest'),
    ({'origin': 'AMCO of somewhere'}, ''),
  ],
)
def test_easy_contests_are_known_by_name(fields, expected):
  assert reason(**fields) == expected


def test_a_rubric_stands_in_for_a_solution():
  assert reason(solution='') == 'no_solution'
  assert reason(solution='', rubric='7 points for all') == ''


def test_short_and_computational_solutions_go():
  assert reason(solution='Trivial by AM-GM.') == 'short_solution'
  steps = ' '.join(f'${n} + {n} = {2 * n}$.' for n in range(60))
  assert reason(solution=f'We get {steps}') == 'computational'
  assert reason(solution=f'Thus we get {steps}') == 'computational'
  assert reason(solution=f'We get {steps} Therefore it holds. {PROOF}') == ''


def test_the_problems_of_a_benchmark_pass():
  path = DATA / 'proofbench_v2.csv'
  if not path.exists():
    pytest.skip('needs ../shared/data/imobench')
  with path.open(encoding='utf-8-sig', newline='') as file:
    rows = list(csv.DictReader(file))
  found = [reason(row['Problem'], row['Solution']) for row in rows]
  # None is easy; one solution is a sketch of two lines.
  assert sum(map(bool, found)) <= 3, [r for r in found if r]
