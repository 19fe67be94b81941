"""Chains of modular arithmetic, with their proofs: the smallest theorems.

A problem gives a start and one rule per step, all modulo a small number, and
asks to prove the last value. Values are named by consecutive letters, from any
letter on, so that short chains show every name. A proof derives one value per
line (rule, operands, value) and concludes:

    Work modulo 5.        e=d*2=3*2=1
    d=3                   f=e+4=1+4=0
    e=d*2                 Hence f=0.
    f=e+4
    Prove that f=0.

Brief problems ask for the last value alone, and how it comes about is the
prover's own business:

    Work modulo 5.        Hence f=0.
    ...
    Find f.

The statement says all there is to know: `parse` gets the chain back from it.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qed.types import Problem

MODULUS = 5
MAX_STEPS = len(string.ascii_lowercase) - 1
MAX_POINTS = 7
# The fewer there are, the sooner a model learns to find the one that is due.
FEW_NAMES = 13

_STATEMENT = re.compile(
  rf'Work modulo {MODULUS}\.\n'
  r'([a-z])=([0-9])\n((?:[a-z]=[a-z][*+][0-9]\n)+)'
  r'(?:Prove that [a-z]=[0-9]|(Find) [a-z])\.'
)


class Chain(NamedTuple):
  """value[0] = start and value[i + 1] = value[i] op constant, mod MODULUS."""

  start: int
  steps: tuple[tuple[str, int], ...]  # ('*' or '+', constant)
  first: str = 'a'  # The name of the start; the others follow it.
  is_brief: bool = False  # Whether only the last value is asked for.

  @property
  def values(self) -> list[int]:
    """Of the start and after every step."""
    values = [self.start]
    for operation, constant in self.steps:
      last = values[-1]
      value = last * constant if operation == '*' else last + constant
      values.append(value % MODULUS)
    return values

  @property
  def names(self) -> str:
    """One letter for each value."""
    first = string.ascii_lowercase.index(self.first)
    return string.ascii_lowercase[first : first + len(self.steps) + 1]

  @property
  def points(self) -> list[int]:
    """What the rubric gives for each step; they add up to `MAX_POINTS`."""
    count = len(self.steps)
    reached = [MAX_POINTS * i // count for i in range(count + 1)]
    return [b - a for a, b in itertools.pairwise(reached)]


def draw(
  num_steps: int,
  rng: np.random.Generator,
  *,
  is_brief: bool = False,
  num_names: int | None = None,
) -> Chain:
  """A random chain in which no step loses or keeps a value.

  Args:
    num_steps: 1 to `MAX_STEPS`.
    rng: advanced.
    is_brief: of the chain.
    num_names: how many of the alphabet's letters occur, or as many as the chain
      needs; all by default, and `FEW_NAMES` where a chain is brief.

  Raises:
    ValueError: another number of steps.
  """
  if not 1 <= num_steps <= MAX_STEPS:
    raise ValueError(
      f'num_steps: expected 1 to {MAX_STEPS}, since values are named by '
      f'letters, got {num_steps}'
    )
  if num_names is None:
    num_names = FEW_NAMES if is_brief else len(string.ascii_lowercase)
  num_names = max(num_names, num_steps + 1)
  operations = rng.integers(2, size=num_steps)
  return Chain(
    start=int(rng.integers(MODULUS)),
    steps=tuple(
      ('+', int(rng.integers(1, MODULUS)))
      if is_sum
      else ('*', int(rng.integers(2, MODULUS)))
      for is_sum in operations
    ),
    first=string.ascii_lowercase[rng.integers(num_names - num_steps)],
    is_brief=is_brief,
  )


def draw_distinct(
  num_chains: int,
  num_steps: Sequence[int],
  rng: np.random.Generator,
  *,
  is_brief: bool = False,
  num_names: int | None = None,
) -> list[Chain]:
  """Different chains, whose numbers of steps take turns.

  Raises:
    ValueError: there are hardly so many chains that short.
  """
  chains: dict[Chain, None] = {}
  for _ in range(3 * num_chains + 1000):
    if len(chains) == num_chains:
      return list(chains)
    size = num_steps[len(chains) % len(num_steps)]
    chain = draw(size, rng, is_brief=is_brief, num_names=num_names)
    chains[chain] = None
  raise ValueError(
    f'expected {num_chains} different chains of {tuple(num_steps)} steps, '
    f'found {len(chains)}; ask for fewer, or for longer ones'
  )


def problem(chain: Chain) -> Problem:
  """The chain as a problem, with a rubric and a reference proof."""
  kind = 'brief' if chain.is_brief else 'chain'
  first, *rules = _rules(chain)
  return Problem(
    problem_id='-'.join([kind, f'{chain.first}={first}', *rules]),
    statement=statement(chain),
    rubric=_rubric(chain),
    reference=proof(chain),
    source='miniature',
  )


def statement(chain: Chain) -> str:
  """What is given and what is to be proved."""
  names = chain.names
  claim = f'{names[-1]}={chain.values[-1]}'
  task = f'Find {names[-1]}.' if chain.is_brief else f'Prove that {claim}.'
  lines = [
    f'Work modulo {MODULUS}.',
    *(
      f'{name}={rule}' for name, rule in zip(names, _rules(chain), strict=True)
    ),
    task,
  ]
  return '\n'.join(lines)


def proof(chain: Chain, values: Sequence[int] | None = None) -> str:
  """The proof: a line per step, and the conclusion; of a brief one, only that.

  Args:
    chain: what it is about.
    values: those that the lines derive, from the start on, in place of the
      right ones. The conclusion is what was to be proved in any case; a brief
      problem does not say it, so that there it is the last of them.
  """
  names = chain.names
  _, *rules = _rules(chain)
  derived = chain.values if values is None else values
  claim = derived[-1] if chain.is_brief else chain.values[-1]
  lines = [
    f'{name}={rule}={last}{rule[1:]}={value}'
    for name, rule, (last, value) in zip(
      names[1:], rules, itertools.pairwise(derived), strict=True
    )
    if not chain.is_brief
  ]
  return '\n'.join([*lines, f'Hence {names[-1]}={claim}.'])


def parse(text: str) -> Chain:
  """The chain that a statement is about.

  Raises:
    ValueError: the text is not, to the letter, the statement of a chain.
  """
  match = _STATEMENT.fullmatch(text)
  if match:
    first, start, rules, brief = match.groups()
    chain = Chain(
      start=int(start),
      steps=tuple((rule[3], int(rule[4:])) for rule in rules.splitlines()),
      first=first,
      is_brief=bool(brief),
    )
    # The right names in the right order, and a true claim.
    if len(chain.names) == len(chain.steps) + 1 and statement(chain) == text:
      return chain
  raise ValueError(
    f'expected the statement of a chain modulo {MODULUS}, as '
    f'qed.miniature.problems writes it, got {text[:80]!r}'
  )


def _rules(chain: Chain) -> list[str]:
  """The right-hand sides: the start, then a rule per step."""
  steps = zip(chain.names, chain.steps, strict=False)
  return [
    str(chain.start),
    *(f'{last}{operation}{constant}' for last, (operation, constant) in steps),
  ]


def _rubric(chain: Chain) -> str:
  """Points spread over the steps, and what is worth nothing or taken off."""
  title = f'Checkpoints ({MAX_POINTS} points in total):'
  if chain.is_brief:
    claim = f'{chain.names[-1]}={chain.values[-1]}'
    return (
      f'{title}\n- {MAX_POINTS} points: the proof is one line, which states '
      f'that {claim}\nZero credit: any other value; more than one.'
    )
  rows = zip(
    chain.points, chain.names[1:], chain.names, chain.values[1:], strict=False
  )
  lines = [
    title,
    *(
      f'- {points} points: {name}={value} is derived from {last} by its rule, '
      'and so is everything before it'
      for points, name, last, value in rows
      if points
    ),
    'Zero credit: repeating the statement; a value without its rule; whatever '
    'comes after a false line.',
    'Deductions: -1 if the conclusion is missing or is not the last line; -1 '
    'if there is any line that is no part of the proof.',
  ]
  return '\n'.join(lines)
