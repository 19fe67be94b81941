"""Removes what a benchmark asks, in whatever spelling it comes back.

An item that reaches a bound is removed. One that comes near is kept and put
before a person, and so is one that merely mentions a year of the excluded ones.
QED-Nano (section 3 of its report) matched fuzzily against its benchmarks and
left out the contests of 2025; how it matched was not published.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qed.curation.likeness import Index, Match
from qed.curation.records import Item, Outcome, note
from qed.data import problems
from qed.types import Problem

NAME = 'decontaminate'
_BATCH_ROWS = 256
_YEAR = re.compile(r'(?<!\d)(?:19|20)\d\d(?!\d)')
# What stands beside a year that dates a statement, and does not count in it.
_CONTEST = re.compile(
  r'(?i)\b(?:(?-i:I[MP]O|ISL|[A-Z]{1,5}MO|TST)|olympiad|shortlist|contest|'
  r'competition|putnam|cup|tournament|olimpiada)\b'
)


def load_benchmarks(paths: Sequence[problems.Path]) -> list[Problem]:
  """The statements of benchmarks, each with an id that names its file.

  Raises:
    ValueError: a row without a statement: what cannot be read cannot be
      compared with either.
  """
  columns = {
    name: problems.PROBLEM_COLUMNS[name] for name in ('problem_id', 'statement')
  }
  found = []
  for path in paths:
    rows = problems.read_records(
      [path],
      columns,
      functools.partial(_benchmark_problem, columns, pathlib.Path(path).stem),
      malformed='refuse',
      report=problems.ReadReport(),
      for_training=False,
    )
    found += [problem for _, problem in rows]
  return found


def _benchmark_problem(
  columns: Mapping[str, Sequence[str]], name: str, row: Mapping[str, Any]
) -> Problem:
  line = problems.Line(row, columns)
  statement = line.text('statement')
  number = line.text('problem_id', default=problems.statement_id(statement))
  return Problem(problem_id=f'{name}/{number}', statement=statement)


def decontaminate(
  items: Iterable[Item], index: Index, config: Any
) -> Iterator[Outcome]:
  """Removes items that are in a benchmark, or too young.

  A removed item has the match, or the year, in its notes; so has a kept one
  that a person should look at, with the remark 'review'.

  Args:
    items: any number; they are taken a batch at a time.
    index: of the benchmarks.
    config: a `qed.config.DecontaminationConfig`.
  """
  batch: list[Item] = []
  for item in items:
    batch.append(item)
    if len(batch) == _BATCH_ROWS:
      yield from _outcomes(batch, index, config)
      batch = []
  yield from _outcomes(batch, index, config)


def year_of(item: Item) -> int | None:
  """When an item was set: its year, or the last that its origin names.

  In the statement a year counts only beside the name of a contest.
  """
  if item.year is not None:
    return item.year
  years = [int(year) for year in _YEAR.findall(item.origin)]
  for match in _YEAR.finditer(item.statement):
    start, end = match.span()
    if _CONTEST.search(item.statement[max(0, start - 40) : end + 40]):
      years.append(int(match[0]))
  return max(years, default=None)


def _outcomes(
  batch: Sequence[Item], index: Index, config: Any
) -> Iterator[Outcome]:
  if not batch:
    return
  for item, match in zip(batch, index.matches(batch), strict=True):
    yield _outcome(item, match, config)


def _outcome(item: Item, match: Match | None, config: Any) -> Outcome:
  year = year_of(item)
  remarks = () if year else ('undated',)
  if match is not None:
    found = dataclasses.asdict(match)
    found = {name: found[name] for name in found if 'statement' not in name}
    item = note(item, NAME, found)
  if match is not None and match.is_removed:
    if item.item_id not in config.cleared:
      detail = (
        f'{match.benchmark_id}: {match.how} (ratio {match.ratio:.2f}, renamed '
        f'{match.renamed:.2f}, overlap {match.overlap:.2f}, content '
        f'{match.content:.2f})'
      )
      return Outcome(item=item, reason='in_benchmark', detail=detail)
    remarks += ('cleared',)
  elif match is not None:
    remarks += ('review',)
  if year is not None and year > config.last_year:
    return Outcome(item=item, reason='too_recent', detail=f'of {year}')
  if match is None and _mentions_later(item.statement, config.last_year):
    item = note(item, NAME, {'how': 'year'})
    remarks += ('review',)
  return Outcome(item=item, remarks=remarks)


def _mentions_later(statement: str, last_year: int) -> bool:
  """Whether a number in it may be the year that it was set in."""
  years = (int(year) for year in _YEAR.findall(statement))
  return any(last_year < year <= last_year + 5 for year in years)
