r"""What the teacher writes in each role that a scaffold gives to a model.

All of it is about brief problems, where reasoning is long and a proof is one
line. Reasoning works out a step in two lines, of which the second states its
value; a summary is the last value that is known:

    reasoning      summary    proof
    e=d*2=3*2      f=0        Hence f=0.
    e=1
    f=e+4=1+4
    f=0

So a budget that holds the reasoning about a few steps is enough for long
chains, over several turns of reasoning and summary.

A review derives the value of a proof again; its verdict is one of those that
qed/scaffolds/parsing.py reads:

    e=d*2=3*2      f=3 is wrong.
    ...            \boxed{0}
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qed.miniature import problems, teacher
from qed.miniature.problems import MAX_POINTS, Chain

# Shares of a hundred lessons. Whoever can reason can do most of the others, and
# learns to from short chains, in a fraction of the steps.
FIRST = {'reason': 85, 'summarize': 15}
ALL = {
  'reason': 34,
  'summarize': 16,
  'verify': 14,
  'rate': 6,
  'confirm': 2,
  'correct': 4,
  'merge': 12,
  'select': 5,
  'compare': 4,
  'consolidate': 3,
}
# No turn of the miniature gets further: three steps and a half.
_MAX_TURN_CHARS = 52
_MAX_CANDIDATES = 4

_VALUE = re.compile(r'[a-z]=[0-9]')


class Lesson(NamedTuple):
  """A demonstration in one role."""

  role: str
  # What the role's prompt is filled in with: a text, or several by name.
  fields: Mapping[str, str | Mapping[str, str]]
  reasoning: str
  answer: str


def draw(
  num_lessons: int,
  *,
  shares: Mapping[str, int],
  max_steps: int,
  max_reviewed_steps: int,
  error_rate: float,
  seed: int,
) -> list[tuple[Chain, Lesson]]:
  """Lessons about random chains.

  A quarter of the reasoning, and of what is summed up, begins with the problem
  and the rest anywhere. Reviews and the like are about proofs that are
  as wrong as any; with two looks at a step they err half as often.

  Args:
    num_lessons: how many.
    shares: of each role, `FIRST` or `ALL`.
    max_steps: of a chain.
    max_reviewed_steps: of a chain in the other roles.
    error_rate: of a step.
    seed: decides everything.
  """
  rng = np.random.default_rng(seed)
  roles = [role for role, share in shares.items() for _ in range(share)]
  drawn = []
  while len(drawn) < num_lessons:
    role = roles[rng.integers(len(roles))]
    is_long = role in ('reason', 'summarize')
    size = rng.integers(1, (max_steps if is_long else max_reviewed_steps) + 1)
    chain = problems.draw(int(size), rng, is_brief=True)
    lesson = _draw_one(role, chain, error_rate, rng)
    if lesson.answer:  # A summary may have nothing to say.
      drawn.append((chain, lesson))
  return drawn


def _draw_one(
  role: str, chain: Chain, error_rate: float, rng: np.random.Generator
) -> Lesson:
  """A lesson in a role."""
  values = teacher.derive(chain, rng, error_rate=error_rate)
  if role in ('reason', 'summarize'):
    num_known = int(rng.integers(len(chain.steps) + 1))
    if rng.random() < 0.25:
      num_known = 0
    if role == 'reason':
      return reason(chain, values, num_known)
    length = min(len(_turn(chain, values, num_known)), _MAX_TURN_CHARS)
    # Most reasoning that is summed up was cut off.
    cut = int(rng.integers(length + 1)) if rng.random() < 0.7 else length
    return summarize(chain, values, num_known, cut)
  found = teacher.derive(chain, rng, error_rate=error_rate / 2)
  if role in ('verify', 'confirm', 'correct'):
    review = verify(chain, values, found)
    if role == 'verify':
      return review
    if role == 'confirm':
      return confirm(review.answer)
    # A first improvement has no report to go by.
    report = review.answer if rng.random() < 0.7 else ''
    return correct(chain, values, report, found)
  if role == 'rate':
    return verify(chain, values, found, role='rate', full=1)
  others = [
    teacher.derive(chain, rng, error_rate=error_rate)
    for _ in range(rng.integers(1, _MAX_CANDIDATES))
  ]
  if role == 'merge':
    return merge(chain, [values, *others])
  if role == 'consolidate':
    return consolidate(chain, [values, *others], found)
  choose = select if role == 'select' else compare
  return choose(chain, (values, others[0]), found)


def working(
  chain: Chain,
  values: Sequence[int],
  num_known: int = 0,
) -> str:
  """The reasoning about the steps after the first `num_known`.

  Args:
    chain: whose rules are used.
    values: what they are found to give, from the start on.
    num_known: steps that it leaves out.
  """
  lines = []
  for step, (operation, constant) in enumerate(chain.steps):
    if step >= num_known:
      operand, name = chain.names[step : step + 2]
      rule = f'{operation}{constant}'
      lines += [
        f'{name}={operand}{rule}={values[step]}{rule}',
        f'{name}={values[step + 1]}',
      ]
  return '\n'.join(lines)


def known(chain: Chain, values: Sequence[int], num_known: int) -> str:
  """The value after the first `num_known` steps; of none, nothing is said."""
  if not num_known:
    return ''
  return f'{chain.names[num_known]}={values[num_known]}'


def reason(chain: Chain, values: Sequence[int], num_known: int) -> Lesson:
  """Goes on from a summary of the first `num_known` steps to the proof."""
  return Lesson(
    'reason',
    {
      'problem': problems.statement(chain),
      'summary': known(chain, values, num_known),
    },
    working(chain, values, num_known),
    problems.proof(chain, values),
  )


def summarize(
  chain: Chain, values: Sequence[int], num_known: int, num_chars: int
) -> Lesson:
  """Sums up a turn, which may have been cut off.

  Args:
    chain: what it is about.
    values: of the steps.
    num_known: steps in the summary that the turn went on from. If those are
      all, it was no reasoning but the proof at once, and adds nothing.
    num_chars: after which it was cut off.
  """
  summary = known(chain, values, num_known)
  reasoning = _turn(chain, values, num_known)[:num_chars]
  lines = [line for line in reasoning.split('\n') if _VALUE.fullmatch(line)]
  return Lesson(
    'summarize',
    {
      'problem': problems.statement(chain),
      'summary': summary,
      'reasoning': reasoning,
    },
    '',
    lines[-1] if lines else summary,
  )


def _turn(chain: Chain, values: Sequence[int], num_known: int) -> str:
  """What a turn has to say: its reasoning, or its answer if it had none."""
  return working(chain, values, num_known) or problems.proof(chain, values)


def verify(
  chain: Chain,
  values: Sequence[int],
  found: Sequence[int],
  *,
  role: str = 'verify',
  full: int = MAX_POINTS,
) -> Lesson:
  """Reviews a proof: its value is the one that comes out, or is wrong.

  Args:
    chain: what it is about.
    values: those behind the proof, which states the last.
    found: those that the review comes to, from the start on.
    role: who reviews.
    full: the number for a right proof; 0 for any other.
  """
  answer = _number(full)
  if values[-1] != found[-1]:
    answer = f'{chain.names[-1]}={values[-1]} is wrong.\n{_number(0)}'
  return Lesson(
    role,
    {
      'problem': problems.statement(chain),
      'proof': problems.proof(chain, values),
    },
    working(chain, found),
    answer,
  )


def confirm(report: str) -> Lesson:
  """Says whether the report of a review finds the proof right."""
  verdict = 'no' if report.endswith(_number(0)) else 'yes'
  return Lesson('confirm', {'report': report}, '', _choice(verdict))


def correct(
  chain: Chain, values: Sequence[int], report: str, found: Sequence[int]
) -> Lesson:
  """Mends a proof after a review of it.

  Args:
    chain: what it is about.
    values: those of the proof.
    report: of the review; '' where there was none.
    found: the values that it is mended to.
  """
  return Lesson(
    'correct',
    {
      'problem': problems.statement(chain),
      'proof': problems.proof(chain, values),
      'report': report,
    },
    working(chain, found),
    problems.proof(chain, found),
  )


def merge(chain: Chain, candidates: Sequence[Sequence[int]]) -> Lesson:
  """Takes what most proofs say; of equally many, what is said first."""
  last = [values[-1] for values in candidates]
  return Lesson(
    'merge',
    {
      'problem': problems.statement(chain),
      'candidates': _lettered(chain, candidates),
    },
    '',
    problems.proof(chain, candidates[last.index(max(last, key=last.count))]),
  )


def select(
  chain: Chain,
  candidates: tuple[Sequence[int], Sequence[int]],
  found: Sequence[int],
) -> Lesson:
  """Chooses the proof that is right: A, B, or equal.

  Args:
    chain: what they are about.
    candidates: the values of both.
    found: those that the comparison comes to.
  """
  return Lesson(
    'select',
    {
      'problem': problems.statement(chain),
      'candidates': _lettered(chain, candidates),
    },
    working(chain, found),
    _choice(_better(candidates, found, ('A', 'B', 'equal'))),
  )


def compare(
  chain: Chain,
  candidates: tuple[Sequence[int], Sequence[int]],
  found: Sequence[int],
) -> Lesson:
  """`select` under other names: 1, 2, or tie."""
  first, second = (problems.proof(chain, values) for values in candidates)
  return Lesson(
    'compare',
    {'problem': problems.statement(chain), 'first': first, 'second': second},
    working(chain, found),
    _choice(_better(candidates, found, ('1', '2', 'tie'))),
  )


def consolidate(
  chain: Chain, candidates: Sequence[Sequence[int]], found: Sequence[int]
) -> Lesson:
  """Keeps the proofs that their reviews found right; all, if none is.

  Args:
    chain: what they are about.
    candidates: the values of each.
    found: those that the reviews come to.
  """
  submissions, right = {}, []
  for number, values in enumerate(candidates, 1):
    report = verify(chain, values, found).answer
    submissions[f'Solution {number}'] = problems.proof(chain, values)
    submissions[f'The grader of solution {number}'] = report
    if report == _number(MAX_POINTS):
      right.append(number)
  kept = ', '.join(map(str, right or range(1, len(candidates) + 1)))
  return Lesson(
    'consolidate',
    {'problem': problems.statement(chain), 'submissions': submissions},
    '',
    f'<keep>{kept}</keep>',
  )


def _lettered(
  chain: Chain, candidates: Sequence[Sequence[int]]
) -> dict[str, str]:
  """The proofs, called A, B, ..."""
  return {
    letter: problems.proof(chain, values)
    for letter, values in zip(string.ascii_uppercase, candidates, strict=False)
  }


def _better(
  candidates: tuple[Sequence[int], Sequence[int]],
  found: Sequence[int],
  names: tuple[str, str, str],
) -> str:
  """The name of the proof that is right; the third is for both or neither."""
  first, second = (values[-1] == found[-1] for values in candidates)
  return names[2 if first == second else 0 if first else 1]


def _number(value: int) -> str:
  return rf'\boxed{{{value}}}'


def _choice(name: str) -> str:
  return f'<verdict>{name}</verdict>'
