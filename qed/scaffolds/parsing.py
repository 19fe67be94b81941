r"""Reads verdicts and sections out of what a model wrote; never raises.

A verdict has one of three forms:

  <verdict>B</verdict>   a choice among names
  \boxed{0.5}            a number
  <keep>1, 3</keep>      a list of numbers, counted from 1

One rule holds for all. The last well-formed verdict counts, so that a model may
change its mind, and if that is not one of those asked for, there is none: no
earlier one takes its place. Case and white space do not matter. What is quoted
between the marker lines of a fence (qed/data/templates.py) does not count. A
reply without a verdict gives None, and what that means is the scaffold's to
say; it is never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from qed.data import templates

# ASCII alone: '٣' is no digit.
_CHOICE = re.compile(
  r'<\s*verdict\s*>\s*([a-z0-9]{1,16})\s*<\s*/\s*verdict\s*>',
  re.IGNORECASE | re.ASCII,
)
# \boxed{5}, \boxed{ 0.5 }, \boxed{5/7}, \boxed{\text{1}}; not \boxed{x = 5}.
_NUMBER = re.compile(
  r'\\boxed\s*\{\s*(?:\\(?:text|mathrm|mathbf)\s*\{\s*)?'
  r'([+-]?\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(\s*/\s*\d{1,9})?\s*\}',
  re.ASCII,
)
_KEEP = re.compile(
  r'<\s*keep\s*>([\d\s,;[\]]*)<\s*/\s*keep\s*>', re.IGNORECASE | re.ASCII
)
_HEADING = re.compile(
  r'^[ \t]{0,3}(?:#{1,6}[ \t]+|\*\*)(.{1,80}?)[ \t:#*]*$', re.MULTILINE
)
_FOLD = re.compile(r'[\s_-]+')


def choice(text: str, options: Collection[str]) -> str | None:
  """The option that a verdict tag names.

  Args:
    text: a reply.
    options: of which a verdict must be one, whatever its case.
  """
  found = _CHOICE.findall(templates.outside_fences(text))
  by_name = {option.lower(): option for option in options}
  return by_name.get(found[-1].lower()) if found else None


def number(text: str, allowed: Collection[float]) -> float | None:
  """The number in a box.

  Out of the largest that is allowed, `5/7` is 5; and where that is 1, `1/2` is
  0.5.

  Args:
    text: a reply.
    allowed: of which a verdict must be one.
  """
  found = _NUMBER.findall(templates.outside_fences(text))
  if not found:
    return None
  value, divisor, largest = float(found[-1][0]), found[-1][1], max(allowed)
  if divisor:
    maximum = float(divisor.strip().removeprefix('/'))
    if not maximum or largest not in (1, maximum):
      return None
    value *= largest / maximum
  return value if value in allowed else None


def keep(text: str, size: int) -> tuple[int, ...] | None:
  """The numbers in a keep tag, each once, in order, counted from 0.

  An empty list is none, and so is one with a number that does not exist.

  Args:
    text: a reply.
    size: how many there are to keep: 1 to `size` may be named.
  """
  found = _KEEP.findall(templates.outside_fences(text))
  places = {str(place + 1): place for place in range(size)}
  numbers = re.findall(r'[0-9]+', found[-1]) if found else []
  if not numbers or not set(numbers) <= set(places):
    return None
  return tuple(dict.fromkeys(places[number] for number in numbers))


def section(
  text: str, heading: str, *, until: Sequence[str] = ()
) -> str | None:
  """What stands under a heading, without surrounding white space.

  A heading is a line `## Name` or `**Name**`, of any level, in any case, with
  spaces, hyphens or nothing between its words. The name must be all of it:
  'Evaluation of the integral' is not 'Evaluation'.

  Args:
    text: a reply.
    heading: the name; its last occurrence counts.
    until: the names of headings that end the section; all others are a part of
      it, as a proof has headings of its own.

  Returns:
    None where there is no such heading, or nothing under it.
  """
  names = [(_fold(line[1]), line) for line in _HEADING.finditer(text)]
  starts = [line.end() for name, line in names if name == _fold(heading)]
  if not starts:
    return None
  ends = [line.start() for name, line in names if name in map(_fold, until)]
  end = min((end for end in ends if end >= starts[-1]), default=len(text))
  return text[starts[-1] : end].strip() or None


def _fold(heading: str) -> str:
  return _FOLD.sub('', heading).lower()
