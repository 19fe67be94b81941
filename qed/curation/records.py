"""What passes from one stage of curation to the next.

A stage is a function from items to outcomes, in the same order, one for each: a
kept item, perhaps with something added, or the reason why it is removed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from qed.types import Problem


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
  """A problem on its way into the training set; '' and () are unknown."""

  item_id: str
  statement: str
  solution: str = ''  # The one that its source holds to be right.
  answer: str = ''
  source: str = ''  # The name of the collection: 'aops', 'olympiads', ...
  origin: str = ''  # Where the collection has it from: a contest, a path.
  year: int | None = None
  tags: tuple[str, ...] = ()
  comments: tuple[str, ...] = ()  # Other replies, which may contradict it.
  place: str = ''  # File and line.
  rubric: str = ''
  scores: tuple[int, ...] = ()  # 0..7, of the base model's attempts.
  difficulty: float | None = None  # Mean reward of the base model, 0..1.
  # What stages found out, under their names; json.
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def problem(self) -> Problem:
    """The item as everything behind curation knows it."""
    return Problem(
      problem_id=self.item_id,
      statement=self.statement,
      rubric=self.rubric or None,
      reference=self.solution or None,
      answer=self.answer or None,
      source=self.source,
      difficulty=self.difficulty,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
  """What a stage made of an item."""

  item: Item
  reason: str = ''  # Why it is removed, a word that can be counted; '': kept.
  detail: str = ''  # The evidence, for people.
  # Counted beside the reasons; says something of kept items too.
  remarks: tuple[str, ...] = ()


def note(item: Item, stage: str, found: Any) -> Item:
  """The item with what a stage found out."""
  return dataclasses.replace(item, notes={**item.notes, stage: found})


def to_json(item: Item) -> str:
  """One line; equal items give equal lines."""
  row = {
    field.name: getattr(item, field.name) for field in dataclasses.fields(Item)
  }
  return json.dumps(row, ensure_ascii=False, allow_nan=False)


def from_json(line: str) -> Item:
  """The inverse of `to_json`.

  Raises:
    ValueError: the line is no item.
  """
  row = json.loads(line)
  try:
    for name in ('tags', 'comments', 'scores'):
      row[name] = tuple(row[name])
    return Item(**row)
  except (KeyError, TypeError) as error:
    raise ValueError(f'expected an item, got {line[:80]!r}: {error}') from None
