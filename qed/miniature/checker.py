"""The exact grader: what a proof of a chain earns by the problem's rubric.

A line is a step (`e=d*2=3*2=1`), the conclusion (`Hence f=0.`), the start
(`d=3`), which is given, or no part of the proof; white space does not matter.
Steps count for as long as they are the right ones in the right order: what
comes after a false line or a gap rests on an error and earns nothing, so that
guessing twice does not help. A brief proof is the right conclusion alone, or
earns nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from qed.miniature import problems
from qed.miniature.problems import Chain

_MAX_LINES = 4 * problems.MAX_STEPS  # Nobody needs more; the rest is not read.
_STEP = re.compile(r'[a-z]=[a-z][*+][0-9]=[0-9][*+][0-9]=[0-9]')


class Breakdown(NamedTuple):
  """What was earned, and by what."""

  score: int  # 0..7
  points: int  # Of the steps, before deductions.
  num_steps: int  # Right ones, from the first on.
  error: str  # The first thing that is wrong; '' if nothing is.
  deductions: tuple[str, ...]  # A point each.


def score(chain: Chain, proof: str) -> int:
  """The points 0..7 that a proof earns; any text is a proof."""
  return breakdown(chain, proof).score


def breakdown(chain: Chain, proof: str) -> Breakdown:
  """Grades a proof.

  Args:
    chain: what the problem is about.
    proof: any text.

  Returns:
    The score: the points of the leading right steps, less a point each if the
    conclusion is missing or not last, and if there are lines that are no part
    of the proof; at least 0.
  """
  *steps, conclusion = problems.proof(chain).split('\n')
  start = f'{chain.first}={chain.start}'
  steps = [_compact(step) for step in steps]
  lines = [line for line in map(_compact, proof.split('\n')) if line]
  if chain.is_brief:
    return _brief(chain, lines, _compact(conclusion))
  num_right, error, has_others = 0, '', len(lines) > _MAX_LINES
  for line in lines[:_MAX_LINES]:
    if line in (start, _compact(conclusion)):
      continue
    if num_right < len(steps) and line == steps[num_right] and not error:
      num_right += 1
    elif num_right == len(steps) or not _STEP.fullmatch(line):
      has_others = True
    elif not error:
      error = f'{line} is not the step that is due'
  if not error and num_right < len(steps):
    error = f'{steps[num_right]} is missing'
  deductions = []
  if not lines or lines[-1] != _compact(conclusion):
    deductions.append('the conclusion is missing or is not the last line')
  if has_others:
    deductions.append('there are lines that are no part of the proof')
  points = sum(chain.points[:num_right])
  return Breakdown(
    max(points - len(deductions), 0),
    points,
    num_right,
    error,
    tuple(deductions),
  )


def _brief(chain: Chain, lines: list[str], conclusion: str) -> Breakdown:
  if lines == [conclusion]:
    return Breakdown(
      problems.MAX_POINTS, problems.MAX_POINTS, len(chain.steps), '', ()
    )
  return Breakdown(0, 0, 0, 'it is not one line, with the right value', ())


def _compact(line: str) -> str:
  return ''.join(line.split())
