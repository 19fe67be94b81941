"""What a curation leaves behind: outputs with their cards, pages for people."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qed.curation import (
  card,
  decontaminate,
  difficulty,
  duplicates,
  likeness,
  stages,
)
from qed.curation.records import Item
from qed.planning import tables
from qed.reporting import matches
from qed.types import Problem

_MAX_ROWS_OF_A_PAGE = 500
_PACKAGES = ('qed', 'numpy', 'rapidfuzz')


def write_output(
  path: pathlib.Path,
  rows: Iterable[Mapping[str, Any]],
  *,
  about: str,
  inputs: Sequence[Mapping[str, Any]],
  reports: Sequence[stages.Report],
) -> int:
  """Writes a file of rows with its card, as json and as Markdown.

  Args:
    path: of the file; the cards go beside it.
    rows: json.
    about: what they are.
    inputs: as `card.make` takes them.
    reports: of the stages that they went through.

  Returns:
    The number of rows.
  """
  count = write_rows(path, rows)
  content = card.make(
    path.name,
    about=about,
    rows=count,
    sha256=stages.sha256(path),
    inputs=inputs,
    reports=reports,
    versions=_versions(),
  )
  stages.write_json(path.with_suffix('.card.json'), content)
  path.with_suffix('.card.md').write_text(
    card.markdown(content), encoding='utf-8'
  )
  return count


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> int:
  """Writes a line for each row, under the file's name once all are there."""
  partial = path.with_name(path.name + '.partial')
  count = 0
  with partial.open('w', encoding='utf-8', newline='\n') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')
      count += 1
  partial.replace(path)
  return count


def read_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The rows of a file, one at a time."""
  with path.open(encoding='utf-8') as file:
    yield from map(json.loads, file)


def first_of_each(
  rows: Iterable[Mapping[str, Any]],
) -> Iterator[Mapping[str, Any]]:
  """The first row of each problem_id."""
  seen = set()
  for row in rows:
    if row['problem_id'] not in seen:
      seen.add(row['problem_id'])
      yield row


def problems(folder: pathlib.Path) -> tuple[Iterator[dict[str, Any]], str]:
  """The items that a stage kept, in the columns of FineProofs-RL and more."""
  rows = map(problem_row, stages.read_kept(folder))
  return rows, 'Problems for reinforcement learning.'


def write_duplicates(folder: pathlib.Path, stage: pathlib.Path) -> None:
  """Writes the page of near-duplicates, each beside what it resembles.

  Args:
    folder: of the run.
    stage: that removed them.
  """
  removed = [
    row
    for row in read_rows(stage / 'removed.jsonl')
    if row['reason'] == 'near_duplicate'
  ]
  wanted = {row['item']['notes'][duplicates.NAME]['of'] for row in removed}
  kept = {
    item.item_id: item.statement
    for item in stages.read_kept(stage)
    if item.item_id in wanted
  }
  rows = []
  for row in removed:
    note = row['item']['notes'][duplicates.NAME]
    rows.append(
      {
        'name': f'{row["item_id"]} ({row["item"]["place"]})',
        'text': row['item']['statement'],
        'other_name': note['of'],
        'other_text': kept[note['of']],
        'how': note['how'],
        'is_removed': True,
      }
    )
  matches.write(
    folder / 'duplicates.html',
    'Problems that the set has already',
    rows,
    max_rows=_MAX_ROWS_OF_A_PAGE,
  )


def write_review(
  folder: pathlib.Path, stage: pathlib.Path, benchmark: Sequence[Problem]
) -> None:
  """Writes what resembles a benchmark, removed or not, as a file and a page.

  What was kept comes first, since there a person has to decide.

  Args:
    folder: of the run.
    stage: that compared.
    benchmark: what it compared with.
  """
  statements = {problem.problem_id: problem.statement for problem in benchmark}
  kept = ((dataclasses.asdict(x), False) for x in stages.read_kept(stage))
  removed = ((row['item'], True) for row in read_rows(stage / 'removed.jsonl'))
  rows = [
    _review_row(item, statements, is_removed=is_removed)
    for item, is_removed in itertools.chain(kept, removed)
    if decontaminate.NAME in item['notes']
  ]
  write_rows(folder / 'review.jsonl', rows)
  matches.write(
    folder / 'review.html',
    'Problems that resemble a benchmark',
    rows,
    max_rows=_MAX_ROWS_OF_A_PAGE,
  )


def _review_row(
  item: Mapping[str, Any], statements: Mapping[str, str], *, is_removed: bool
) -> dict[str, Any]:
  note = item['notes'][decontaminate.NAME]
  benchmark_id = note.get('benchmark_id', '')
  evidence = ', '.join(
    f'{name} {note[name]:.2f}' for name in likeness.WAYS if name in note
  )
  return {
    'name': f'{item["item_id"]} ({item["place"]})',
    'text': item['statement'],
    'other_name': benchmark_id or 'no match; a late year stands in it',
    'other_text': statements.get(benchmark_id, ''),
    'how': ': '.join(filter(None, (note['how'], evidence))),
    'is_removed': is_removed,
  }


def write_summary(
  folder: pathlib.Path, reports: Sequence[stages.Report]
) -> None:
  """Writes the counts of all stages to summary.json, and prints them.

  Args:
    folder: of the run.
    reports: of the stages, in order.
  """
  rows = []
  for report in reports:
    rows.append(
      (report.stage, f'{report.num_in:,}', f'{report.num_kept:,}', '')
    )
    rows += [
      ('', '', f'-{count:,}', reason)
      for reason, count in report.removed.items()
    ]
  tables.show(
    [
      tables.Table(
        title='What became of the problems',
        header=('stage', 'in', 'kept', 'removed because'),
        rows=rows,
        note='',
      )
    ]
  )
  stages.write_json(
    folder / 'summary.json',
    {'stages': [dataclasses.asdict(report) for report in reports]},
  )


def problem_row(item: Item) -> dict[str, Any]:
  """An item in the columns of FineProofs-RL and more."""
  rewards = [score / difficulty.MAX_SCORE for score in item.scores]
  return {
    'problem_id': item.item_id,
    'problem': item.statement,
    'source': item.source,
    'rubrics': item.rubric or None,
    'reference': item.solution or None,
    'answer': item.answer or None,
    'scores': list(item.scores),
    'rewards': rewards,
    'num_rewards': len(rewards),
    'reward_mean': item.difficulty,
    'reward_std': statistics.pstdev(rewards) if rewards else None,
  }


def _versions() -> dict[str, str]:
  from qed.training import rundir  # It imports jax, which takes a second.

  return {
    'commit': rundir.git_commit(),
    'stages': str(stages.CODE_VERSION),
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }
