r"""Marking schemes: what a well-formed one is, and how a model is asked for it.

A rubric is a text in one of three forms, told apart by what is in it:

  sections    what we ask for: `## Checkpoints` worth 7 points, `## Zero-credit
              items`, `## Deductions`. Checkpoints may fork into chains, headed
              `Chain A`, `Chain B`, ..., of which the best one counts.
  items       a list of items with points, as older data has it (`title`,
              `points` or `max_points`, ...; rendered by data.problems)
  guidelines  IMO-ProofBench's: what is `(Partial)` and what `(Almost)`, and
              sometimes first what is `(Incorrect)`

`faults` says what is wrong with one. A model's rubric that has faults goes back
to it with their list, `max_repairs` times at most, and is then rejected.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

from qed.curation import asking
from qed.curation.records import Item, Outcome, note
from qed.data import problems, templates
from qed.types import Message

NAME = 'rubrics'
MAX_POINTS = 7
Form = Literal['sections', 'items', 'guidelines']

_SECTION = re.compile(
  r'(?im)^\s*(?:#+\s*)?(?:\*\*\s*)?(?:\d+[.)]\s*)?'
  r'(checkpoints|zero[- ]credit items?|deductions)'
  r'\s*(?:\([^()\n]*\))?\s*:?\s*(?:\*\*)?\s*:?\s*$'
)
_CHAIN = re.compile(
  r'(?im)^\s*(?:#+\s*)?(?:\*\*\s*)?chain\s+([a-z\d]+)\b[^\n]*$'
)
_ITEM = re.compile(r'(?m)^[ \t]*(?:[-*•]|\(?\d+[.)])[ \t]+\S')
_POINTS = re.compile(
  r'[\[(*]+\s*(\d+(?:\.\d+)?)\s*(?:points?|pts?\.?|p)\s*[\])*]+'
  r'|(?<![\w.])(\d+(?:\.\d+)?)\s*(?:points?|pts?\.?)\s*[:–-]',
  re.IGNORECASE,
)
_TOTAL = re.compile(r'(?im)^\W*total\b[^\n\d]*(\d+)')
_HEADING_POINTS = re.compile(r'(\d+(?:\.\d+)?)\s*(?:points?|pts?)', re.I)
_FLAT = re.compile(r'[-−–]\s*(\d+(?:\.\d+)?)')
_CAP = re.compile(r'(?i)\b(?:cap(?:ped)?|at most|max(?:imum)?)\b[^\d\n]*(\d+)')
_LIST_ITEM = re.compile(r'(?m)^.*\((\d+(?:\.\d+)?) points?\)$')
_GRADES = ('Partial', 'Almost')


def form(rubric: str) -> Form:
  """Which of the three forms a rubric has, or comes nearest to."""
  if re.search(r'(?m)^\s*\((?:Incorrect|Partial|Almost)\)', rubric):
    return 'guidelines'
  if _SECTION.search(rubric) or not _LIST_ITEM.search(rubric):
    return 'sections'
  return 'items'


def faults(rubric: str) -> list[str]:
  """What is wrong with a rubric, in words; nothing where it is well formed."""
  checks = {
    'sections': _section_faults,
    'items': _item_faults,
    'guidelines': _guideline_faults,
  }
  return checks[form(rubric)](rubric)


def tidy(text: str) -> str:
  """The rubric in a model's answer: without a preface, or a fence around it.

  Older data has lists of items, also as json; they become texts.

  Raises:
    ValueError: an item of a list has no title or no points.
  """
  text = re.split(r'</(?:thought|think)>', text)[-1].strip()
  fenced = re.fullmatch(r'```\w*\n(.*?)\n?```', text, re.DOTALL)
  if fenced:
    text = fenced[1].strip()
  if text.startswith('[') and text.endswith(']'):
    try:
      return problems.rubric_text(json.loads(text))
    except json.JSONDecodeError:
      pass
  first = _SECTION.search(text)
  if first and first[1].lower().startswith('checkpoint'):
    text = text[first.start() :].strip()
  return text


async def write_rubrics(
  items: Iterable[Item], model: asking.Model, config: Any
) -> AsyncIterator[Outcome]:
  """Gives every item a well-formed rubric, or removes it.

  A rubric that came with an item is kept if it is well formed. The number of
  repairs goes to the notes.

  Args:
    items: with solutions, where they have no good rubric.
    model: writes rubrics.
    config: a `qed.config.RubricsConfig`.
  """

  async def work(item: Item) -> Outcome:
    return await _with_rubric(item, model, config)

  async for outcome in asking.in_order(
    items, work, max_concurrency=config.writer.max_concurrency
  ):
    yield outcome


async def _with_rubric(item: Item, model: asking.Model, config: Any) -> Outcome:
  if item.rubric and not faults(item.rubric):
    return Outcome(item=item, remarks=('given',))
  if not item.solution:
    return Outcome(
      item=item, reason='no_rubric', detail='and no solution to write one from'
    )
  fields = {
    'problem': templates.fence('problem', item.statement),
    'solution': templates.fence('solution', item.solution),
  }
  question = templates.render(config.template, **fields)
  found = ['there was no answer']
  for attempt in range(config.max_repairs + 1):
    answer = await model.answer(
      [Message(role='user', content=question)],
      about=item.item_id,
      draw=attempt,
    )
    if answer is None:
      continue
    try:
      rubric = tidy(answer)
      found = faults(rubric)
    except ValueError as error:
      rubric, found = answer, [str(error)]
    if not found:
      item = dataclasses.replace(item, rubric=rubric)
      remarks = ('repaired',) if attempt else ()
      return Outcome(
        item=note(item, NAME, {'model': model.name, 'repairs': attempt}),
        remarks=remarks,
      )
    question = templates.render(
      config.repair_template,
      **fields,
      rubric=templates.fence('rubric', rubric),
      faults='\n'.join(f'- {fault}' for fault in found),
    )
  return Outcome(item=item, reason='bad_rubric', detail='; '.join(found))


def _section_faults(rubric: str) -> list[str]:
  sections = _sections(rubric)
  names = [name for name, _, _ in sections]
  expected = ['checkpoints', 'zero-credit items', 'deductions']
  if names != expected:
    return [
      f'expected the sections {expected}, each once and in this order, got '
      f'{names}'
    ]
  (_, heading, checkpoints), (_, _, zero), (_, _, deductions) = sections
  found = _checkpoint_faults(heading, checkpoints)
  if not _ITEM.search(zero) and not _says_none(zero):
    found.append('expected items, or the word "none", under zero-credit items')
  if not _ITEM.search(deductions) and not _says_none(deductions):
    found.append('expected items, or the word "none", under deductions')
  for item in _items(deductions):
    found += _deduction_faults(item)
  return found


def _checkpoint_faults(heading: str, text: str) -> list[str]:
  """Points that are whole and add up to 7, over one chain where there are."""
  found = []
  told = [
    float(n) for n in _HEADING_POINTS.findall(heading) + _TOTAL.findall(text)
  ]
  if any(total != MAX_POINTS for total in told):
    found.append(f'expected a total of {MAX_POINTS}, got {max(told):g}')
  pieces = _CHAIN.split(_TOTAL.sub('', text))
  shared, labels, chains = pieces[0], pieces[1::2], pieces[2::2]
  sums = []
  for name, piece in [('', shared), *zip(labels, chains, strict=True)]:
    where = f'in chain {name}' if name else 'among the checkpoints'
    items = _items(piece)
    points = [_points(item) for item in items]
    for item, value in zip(items, points, strict=True):
      if value is None:
        found.append(
          f'expected points like "(2 points)" in the checkpoint {item[:60]!r}'
        )
      elif value <= 0 or value != int(value):
        found.append(
          f'expected a whole number of points of at least 1, got {value:g} in '
          f'the checkpoint {item[:60]!r}'
        )
    if name and not items:
      found.append(f'expected checkpoints {where}, got none')
    sums.append(sum(value or 0 for value in points))
  if len(chains) == 1:
    found.append('expected two or more chains, or none, got one')
  if len(labels) != len({label.upper() for label in labels}):
    found.append(f'expected a name of its own for each chain, got {labels}')
  totals = [sums[0] + value for value in sums[1:]] or sums
  if max(totals) != MAX_POINTS:
    words = 'the best chain' if chains else 'the checkpoints'
    found.append(
      f'expected {words} to add up to {MAX_POINTS} points, got {max(totals):g}'
    )
  return found


def _deduction_faults(item: str) -> list[str]:
  """A deduction takes 1 or 2 points away, or caps the score below 7."""
  cap, flat = _CAP.search(item), _FLAT.search(item)
  if cap and int(cap[1]) < MAX_POINTS:
    return []
  if flat and not cap and float(flat[1]) in (1, 2):
    return []
  return [
    'expected a deduction of -1 or -2, or a cap below 7 like "cap at 5/7", got '
    f'{item[:60]!r}'
  ]


def _item_faults(rubric: str) -> list[str]:
  points = [float(value) for value in _LIST_ITEM.findall(rubric)]
  found = [
    f'expected whole numbers of points, got {value:g}'
    for value in points
    if value != int(value)
  ]
  if sum(points) != MAX_POINTS:
    found.append(
      f'expected the items to add up to {MAX_POINTS} points, got '
      f'{sum(points):g}'
    )
  return found


def _guideline_faults(rubric: str) -> list[str]:
  """Both grades, each once, in order, with at least one numbered item."""
  pieces = re.split(r'(?m)^\s*\((\w+)\)', rubric)
  names, texts = pieces[1::2], pieces[2::2]
  if names not in ([*_GRADES], ['Incorrect', *_GRADES]):
    return [
      f'expected the grades {[*_GRADES]}, each once and in this order, got '
      f'{names}'
    ]
  found = []
  for name, text in zip(names, texts, strict=True):
    numbers = [int(n) for n in re.findall(r'(?m)^\s*(\d+)\s*[.)]\s*\S', text)]
    if numbers != list(range(1, len(numbers) + 1)) or not numbers:
      found.append(
        f'expected items numbered from 1 on under ({name}), got {numbers}'
      )
  return found


def _sections(rubric: str) -> list[tuple[str, str, str]]:
  """(name, heading, text) of each section, in order."""
  matches = list(_SECTION.finditer(rubric))
  ends = [*(match.start() for match in matches), len(rubric)][1:]
  names = {'c': 'checkpoints', 'z': 'zero-credit items', 'd': 'deductions'}
  return [
    (names[match[1][0].lower()], match[0], rubric[match.end() : end])
    for match, end in zip(matches, ends, strict=True)
  ]


def _items(text: str) -> list[str]:
  """The items of a list, each with the lines that continue it."""
  starts = [match.start() for match in _ITEM.finditer(text)]
  # What is indented further than the first belongs to the one above it.
  indents = [len(text[s:]) - len(text[s:].lstrip(' \t')) for s in starts]
  tops = [s for s, i in zip(starts, indents, strict=True) if i == min(indents)]
  return [
    ' '.join(text[start:end].split())
    for start, end in zip(tops, [*tops, len(text)][1:], strict=True)
  ]


def _points(item: str) -> float | None:
  match = _POINTS.search(item)
  return None if match is None else float(match[1] or match[2])


def _says_none(text: str) -> bool:
  return bool(re.fullmatch(r'\W*none\W*', text.strip(), re.IGNORECASE))
