"""Items from the published collections, and from files of one's own.

A collection is a set of files (.jsonl, .csv, .parquet) with columns of its own;
one table says which column fills which field, as in `qed.data.problems`, whose
readers are used. Rows are read one at a time. One that cannot be read is an
outcome like any other: removed as 'malformed', with its line, its field and
what was expected there, and the rest of the file goes on.

  aops           AI-MO/aops: problem, solution, candidates, tags, metadata.path
  olympiads      AI-MO/olympiads: problem, solution, exam, year, tier, metadata
  fineproofs_rl  lm-provers/FineProofs-RL: problem, rubrics, scores, reward_mean
  fineproofs_sft lm-provers/FineProofs-SFT: problem, proof, competition
  imobench       IMO-Bench: Problem, Solution, Grading guidelines, Source
  own            statement (or problem) and any of the fields of an `Item`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qed.curation.records import Item, Outcome
from qed.data import problems

COLUMNS = {
  'item_id': ('item_id', 'problem_id', 'Problem ID', 'id'),
  'statement': ('statement', 'problem', 'Problem'),
  'solution': ('solution', 'reference', 'proof', 'Solution'),
  'answer': ('answer', 'Short Answer'),
  'source': ('source',),
  'origin': (
    'origin',
    'exam',
    'competition',
    'path',
    'resource_path',
    'contest',
    'Source',
  ),
  'year': ('year', 'contest_year'),
  'tags': ('tags', 'problem_type', 'category', 'Category', 'tier'),
  'comments': ('comments', 'candidates'),
  'rubric': (
    'rubric',
    'rubrics',
    'grading_scheme',
    'Grading guidelines',
    'schema_0',
  ),
  'scores': ('scores',),
  'difficulty': ('difficulty', 'reward_mean', 'qwen3-4b-thinking-reward@128'),
  'metadata': ('metadata',),
}
# Columns that a row of a collection must have, even if there is nothing in
# them: with others, it is not a file of that collection.
REQUIRED = {
  'olympiads': ('problem', 'solution'),
  'aops': ('problem', 'solution'),
  'fineproofs_rl': ('problem', 'rubrics', 'scores'),
  'fineproofs_sft': ('problem', 'proof'),
  'imobench': ('Problem', 'Problem ID'),
  'own': (),
}
_FIRST_YEAR, _LAST_YEAR = 1800, 2100
_MAX_SCORE = 7


def read(
  collections: Mapping[str, Sequence[problems.Path]],
  *,
  malformed: problems.OnMalformed,
) -> Iterator[Outcome]:
  """All rows of all collections, one at a time.

  Args:
    collections: name -> files; where several have a problem, the first one's
      will be kept.
    malformed: 'skip' makes a row that cannot be read an outcome with the reason
      'malformed', 'refuse' raises.

  Raises:
    ValueError: a malformed row under 'refuse', a file that cannot be read any
      further, a benchmark that must not be trained on, or a file without rows.
    FileNotFoundError: there is no such file.
    ImportError: a parquet file without pyarrow.
  """
  for name, paths in collections.items():
    for path in paths:
      yield from _read_file(name, path, malformed)


def _read_file(
  name: str, path: problems.Path, malformed: problems.OnMalformed
) -> Iterator[Outcome]:
  skipped: list[Outcome] = []

  def on_skip(place: str, error: str) -> None:
    item = Item(item_id=place, statement='', source=name, place=place)
    skipped.append(Outcome(item=item, reason='malformed', detail=error))

  rows = problems.read_records(
    [path],
    COLUMNS,
    lambda row: _item(name, row),
    malformed=malformed,
    report=problems.ReadReport(),
    on_skip=on_skip,
  )
  last = 'its beginning'
  while True:
    try:
      place, fields = next(rows)
    except StopIteration:
      break
    except OSError as error:  # A damaged page of a parquet file.
      raise ValueError(
        f'{path}: expected rows to its end, got, after {last}: {error}. What '
        'follows cannot be read; bring the file again.'
      ) from error
    finally:
      # What was skipped comes before the row that ended the search.
      yield from skipped
      skipped.clear()
    last = place
    yield Outcome(item=Item(**fields, place=place))


def _item(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of an item; a ValueError names the field that is wrong."""
  missing = [column for column in REQUIRED[name] if column not in row]
  if missing:
    raise ValueError(
      f'expected a row of {name}, with {list(REQUIRED[name])}; '
      f'{missing} missing'
    )
  metadata = row.get('metadata')
  if isinstance(metadata, Mapping):
    row = {**metadata, **row}
  line = problems.Line(row, COLUMNS)
  statement = line.text('statement')
  year, origin = _dated(line)
  return {
    'item_id': _identifier(line, statement),
    'statement': statement,
    'solution': line.text('solution', default=''),
    'answer': _plain(line, 'answer'),
    'source': line.text('source', default=name),
    'origin': origin,
    'year': year,
    'tags': _texts(line, 'tags'),
    'comments': _texts(line, 'comments'),
    'rubric': _rubric(line),
    'scores': _scores(line),
    'difficulty': line.number('difficulty', 0, 1),
  }


def _identifier(line: problems.Line, statement: str) -> str:
  value = line.value('item_id')
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if value is None:
    return problems.statement_id(statement)
  if not isinstance(value, str):
    raise ValueError(line.expected('item_id', 'a text or a number', value))
  return value


def _plain(line: problems.Line, field: str) -> str:
  """A text, or a number as text."""
  value = line.value(field)
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  return line.text(field, default='')


def _dated(line: problems.Line) -> tuple[int | None, str]:
  """Year and origin; a year like '2016/17' says something of the origin."""
  origin = line.text('origin', default='')
  value = line.value('year')
  if isinstance(value, str) and not re.fullmatch(r'\s*\d{4}\s*', value):
    return None, f'{origin} {value}'.strip()
  year = line.number('year', _FIRST_YEAR, _LAST_YEAR)
  return None if year is None else int(year), origin


def _texts(line: problems.Line, field: str) -> tuple[str, ...]:
  """One text or a list of them, with tags from all columns of the field."""
  value = line.value(field)
  if value is None:
    return ()
  if isinstance(value, str):
    return (value,)
  if not isinstance(value, list | tuple) or not all(
    isinstance(text, str) for text in value
  ):
    raise ValueError(line.expected(field, 'a text or a list of texts', value))
  return tuple(value)


def _rubric(line: problems.Line) -> str:
  value = line.value('rubric')
  if isinstance(value, list):
    try:
      return problems.rubric_text(value)
    except ValueError as error:
      raise ValueError(f'field rubric: {error}') from None
  return line.text('rubric', default='')


def _scores(line: problems.Line) -> tuple[int, ...]:
  value = line.value('scores')
  if value is None:
    return ()
  fits = isinstance(value, list) and all(
    isinstance(score, int | float) and score in range(_MAX_SCORE + 1)
    for score in value
  )
  if not fits:
    raise ValueError(
      line.expected('scores', f'a list of whole numbers to {_MAX_SCORE}', value)
    )
  return tuple(int(score) for score in value)
