"""A model reads a problem with its solution and says what is wrong with it.

Its answer is a JSON object with exactly the fields of `Assessment`. The drop
rule: an item is removed if any flag of the config's `drop_flags` is true, for
the first such reason. One whose assessment could not be had stays, with the
remark 'unassessed', as in QED-Nano (appendix D of its report).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from qed.curation import asking
from qed.curation.records import Item, Outcome, note
from qed.data import templates
from qed.types import Message

NAME = 'quality'
_FENCED = re.compile(r'```(?:json)?\s*\n(.*?)```', re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
  """What a model thinks of an item."""

  incomplete: bool  # Problem or solution break off.
  gaps: bool  # The solution waves large steps away.
  wrong: bool  # The statement is false or ambiguous.
  disagreement: bool  # A comment disputes the solution.
  computational: bool  # Reckoning rather than proving.
  difficulty: int  # 1 (a first round) to 10 (the hardest of the IMO).


def parse(text: str) -> Assessment:
  """The last JSON object in a reply, fenced or bare, as an assessment.

  Raises:
    ValueError: there is none, or a field is missing, unknown or of another
      type.
  """
  candidates = _FENCED.findall(text) or [text[text.find('{') :]]
  try:
    row = json.loads(candidates[-1].strip())
  except json.JSONDecodeError as error:
    raise ValueError(f'expected a JSON object: {error}') from None
  names = [field.name for field in dataclasses.fields(Assessment)]
  if not isinstance(row, dict) or sorted(row) != sorted(names):
    raise ValueError(f'expected an object with {names}, got {row!r}')
  for name, value in row.items():
    kind = int if name == 'difficulty' else bool
    if type(value) is not kind:
      raise ValueError(f'expected {kind.__name__} in {name}, got {value!r}')
  if not 1 <= row['difficulty'] <= 10:
    raise ValueError(f'expected difficulty 1 to 10, got {row["difficulty"]}')
  return Assessment(**row)


async def assess(
  items: Iterable[Item], model: asking.Model, config: Any
) -> AsyncIterator[Outcome]:
  """Removes what a model holds to be faulty; the assessment is noted.

  Args:
    items: any number.
    model: reads them.
    config: a `qed.config.QualityConfig`.
  """

  async def work(item: Item) -> Outcome:
    return await _assessed(item, model, config)

  async for outcome in asking.in_order(
    items, work, max_concurrency=config.writer.max_concurrency
  ):
    yield outcome


async def _assessed(item: Item, model: asking.Model, config: Any) -> Outcome:
  question = templates.render(
    config.template,
    problem=templates.fence('problem', item.statement),
    solution=templates.fence('solution', item.solution or 'There is none.'),
    origin=templates.fence('origin', item.origin or 'unknown'),
    comments=_comments(item),
  )
  for draw in range(config.max_draws):
    answer = await model.answer(
      [Message(role='user', content=question)], about=item.item_id, draw=draw
    )
    try:
      found = parse(answer or '')
    except ValueError:
      continue
    item = note(item, NAME, dataclasses.asdict(found))
    for flag in config.drop_flags:
      if getattr(found, flag):
        return Outcome(item=item, reason=flag, detail=f'says {model.name}')
    return Outcome(item=item)
  return Outcome(item=item, remarks=('unassessed',))


def _comments(item: Item) -> str:
  if not item.comments:
    return 'There are no comments.'
  return '\n\n'.join(
    templates.fence('comment', comment) for comment in item.comments
  )
