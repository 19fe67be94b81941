r"""Reads the verdict out of what a judge wrote.

A verdict is a score tag with a number: `<score>5</score>`. Case and spaces do
not matter, and `5/7` and `5.0` are 5. The last one in the reply counts, so that
a judge may change its mind; what it quotes between the marker lines of a fence
(qed/data/templates.py) does not count. Anything else is no score, and the
reason is told: a failure is never taken for a 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from qed.data import templates

MAX_SCORE = 7

# ASCII alone: 'ſ' is no s here, and '٣' is no digit.
_TAG = re.compile(
  r'<\s*score\s*>([^<>]*)<\s*/\s*score\s*>', re.IGNORECASE | re.ASCII
)
_NUMBER = re.compile(
  r'\s*([+-]?\d{1,9})(?:\.(\d{0,9}))?\s*(?:/\s*(\d{1,9})(?:\.0{0,9})?\s*)?',
  re.ASCII,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
  """A judge's score, or None and why there is none."""

  score: int | None
  reason: str  # '' where there is a score.


def score(text: str) -> int | None:
  """Returns the score in a judge's reply, 0..7, or None; never raises."""
  return verdict(text).score


def verdict(
  text: str, *, scores: Collection[int] = range(MAX_SCORE + 1)
) -> Verdict:
  """Returns the score in a judge's reply, or the reason why there is none.

  Args:
    text: the reply. What is not a string (an endpoint's null) has no verdict.
    scores: those that the judge was asked for; the largest is what `N/7` is
      measured against.

  Returns:
    The last well-formed verdict outside quoted fences, if it is in `scores`.
    A number that is out of range, fractional or out of another maximum is
    not passed over in favor of an earlier one.
  """
  if not isinstance(text, str) or not text.strip():
    return Verdict(None, 'the reply is empty')
  outside = templates.outside_fences(text)
  numbers = _numbers(outside)
  if not numbers:
    return Verdict(None, _why_none(text, outside))
  whole, decimals, maximum = numbers[-1].groups()
  shown = numbers[-1][0].strip()
  value = int(whole)
  if (decimals or '').strip('0'):
    return Verdict(None, f'expected a whole number, got {shown}')
  if maximum is not None and int(maximum) != max(scores):
    return Verdict(None, f'expected a score out of {max(scores)}, got {shown}')
  if value not in scores:
    return Verdict(None, f'expected one of {[*scores]}, got {shown}')
  return Verdict(value, '')


def _numbers(text: str) -> list[re.Match[str]]:
  """The contents of the score tags that are numbers, in order."""
  contents = (_NUMBER.fullmatch(tag[1]) for tag in _TAG.finditer(text))
  return [content for content in contents if content]


def _why_none(text: str, outside: str) -> str:
  """What is wrong with a reply in which no verdict was found."""
  if _numbers(text):
    return 'the only verdicts stand in a quotation of the proof'
  tag = _TAG.search(outside)
  if tag:
    return f'expected a number in the score tag, got {tag[1].strip()[:40]!r}'
  if re.search(r'<\s*score\s*>', outside, re.IGNORECASE | re.ASCII):
    return 'the score tag is not closed'
  return 'there is no score tag'
