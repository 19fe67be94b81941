"""Chains of modular arithmetic, with their proofs: the smallest theorems.

A problem gives a start and one operation per step, all modulo a small number,
and asks to prove the last value. A proof is one line per step and a conclusion:

    Work modulo 7. x0 = 3, x1 = x0 * 2, x2 = x1 + 5. Prove that x2 = 4.

    x1 = 3 * 2 = 6
    x2 = 6 + 5 = 4
    Hence x2 = 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qed.types import Problem

MODULUS = 7
_MAX_POINTS = 7


class Chain(NamedTuple):
  """x[0] = start and x[i + 1] = x[i] op constant, modulo MODULUS."""

  start: int
  steps: tuple[tuple[str, int], ...]  # ('*' or '+', constant)

  @property
  def values(self) -> list[int]:
    """x[0], x[1], ... x[number of steps]."""
    values = [self.start]
    for operation, constant in self.steps:
      last = values[-1]
      value = last * constant if operation == '*' else last + constant
      values.append(value % MODULUS)
    return values


def draw(num_steps: int, rng: np.random.Generator) -> Chain:
  """A random chain whose multiplications never lose information."""
  return Chain(
    start=int(rng.integers(MODULUS)),
    steps=tuple(
      (
        str(rng.choice(['*', '+'])),
        int(rng.integers(2, MODULUS)),
      )
      for _ in range(num_steps)
    ),
  )


def problem(chain: Chain) -> Problem:
  """The chain as a problem, with a rubric whose points add up to 7."""
  rules = ''.join(
    f', x{i} = x{i - 1} {operation} {constant}'
    for i, (operation, constant) in enumerate(chain.steps, 1)
  )
  last = len(chain.steps)
  statement = (
    f'Work modulo {MODULUS}. x0 = {chain.start}{rules}. '
    f'Prove that x{last} = {chain.values[-1]}.'
  )
  return Problem(
    problem_id=f'chain-{chain.start}-'
    + '-'.join(f'{operation}{constant}' for operation, constant in chain.steps),
    statement=statement,
    rubric=_rubric(chain),
    reference=proof(chain),
    source='miniature',
  )


def proof(chain: Chain) -> str:
  """The proof: a line per step and the conclusion."""
  values = chain.values
  lines = [
    f'x{i} = {values[i - 1]} {operation} {constant} = {values[i]}'
    for i, (operation, constant) in enumerate(chain.steps, 1)
  ]
  last = len(chain.steps)
  return '\n'.join([*lines, f'Hence x{last} = {values[-1]}.'])


def _rubric(chain: Chain) -> str:
  """Seven points spread over the steps; the earlier steps get the remainder."""
  count = len(chain.steps)
  share, extra = divmod(_MAX_POINTS, count)
  lines = ['Checkpoints (7 points in total):']
  lines += [
    f'- {share + (i <= extra)} points: x{i} = {chain.values[i]} is derived '
    f'from x{i - 1}'
    for i in range(1, count + 1)
  ]
  lines += [
    'Zero credit: repeating the statement; a value without its step.',
    'Deductions: -1 if the conclusion is missing.',
  ]
  return '\n'.join(lines)
