"""Evaluations as tables in the shape of the QED-Nano report.

What was published stands beside ours in columns of its own, and so do the
grades of every judge: scores of different judges are of different things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qed.reporting import naming, published
from qed.reporting.naming import Entry

_NONE = '–'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
  """A column and whose figures it has."""

  title: str
  by: str = ''  # The judge.
  is_published: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
  """Texts in columns; the first column names the row."""

  title: str
  columns: Sequence[Column]
  rows: Sequence[Sequence[str]]
  note: str = ''


def tables(
  entries: Sequence[Entry], compared: Iterable[Mapping[str, Any]] = ()
):
  """All tables that the entries give something for.

  Args:
    entries: as `naming` describes them.
    compared: pairs of runs, as `comparison_table` takes them.
  """
  if not entries:
    return []
  found = [main_table(entries)]
  for group in naming.groups(entries, ('model', 'checkpoint')):
    if {entry['scaffold'] for entry in group} != {'single'}:
      found.append(scaffold_table(group))
    cached = [e for e in group if e['scaffold'] == 'reasoning_cache']
    if cached:
      found.append(turns_table(cached))
  compared = [*compared]
  if compared:
    found.append(comparison_table(compared))
  return found


def main_table(entries: Sequence[Entry]) -> Table:
  """Models and scaffolds by benchmarks: Table 1.

  A row is a model with a scaffold; runs of it that would share a cell get rows
  of their own, named after the run.
  """
  keys = _column_keys(entries)
  columns = [Column(title='Model')]
  for key in keys:
    benchmark, judge = key if isinstance(key, tuple) else (key, None)
    if judge is None:
      columns.append(
        Column(
          title=naming.BENCHMARKS[benchmark],
          by=published.JUDGE,
          is_published=True,
        )
      )
    else:
      first = next(e for e in entries if naming.column_key(e) == key)
      columns.append(
        Column(
          title=naming.benchmark_name(first),
          by=naming.judge_name(first, entries),
        )
      )
  rows = _main_rows(entries)
  cells = [
    [label, *(row.get(key, _NONE) for key in keys)] for label, row in rows
  ]
  return Table(
    title='Scores by model and benchmark',
    columns=columns,
    rows=cells,
    note='Percent of 7 points: mean (standard deviation of the attempts as '
    'runs, ddof 1) [95 % interval over problems]; k/n where only k of n '
    'attempts are graded. Published: Table 1 of the QED-Nano report.',
  )


def scaffold_table(entries: Sequence[Entry]) -> Table:
  """One model's scaffolds: score, tokens and their multiple of one turn."""
  first = entries[0]
  has_published = naming.is_published_subject(first)
  single = next(
    (e['tokens']['completion'] for e in entries if e['scaffold'] == 'single'),
    None,
  )
  judge = naming.judge_name(first, entries)
  columns = [
    Column(title='Scaffold'),
    Column(title='Score, %', by=judge),
    Column(title='Tokens'),
    Column(title='× single'),
    *(_published_columns('Score, %', 'Tokens', '× single') * has_published),
  ]
  rows = []
  for entry in naming.by_tokens(entries):
    tokens = entry['tokens']['completion']
    row = [
      naming.scaffold_name(entry, entries),
      _score(entry),
      _count(tokens),
      _ratio(tokens, single),
    ]
    if has_published:
      row += _published_scaffold(_published_key(entry))
    rows.append(row)
  if has_published:
    ours = [*map(_published_key, entries)]
    rows += [
      [naming.with_turns(*key), *[_NONE] * 3, *_published_scaffold(key)]
      for key in published.SCAFFOLDS
      if key not in ours
    ]
  return Table(
    title=f'Scaffolds: {first["model"]} on {naming.benchmark_name(first)}',
    columns=columns,
    rows=rows,
    note='Tokens that were written, of an attempt in the mean.'
    + (' Published: Table 2 of the report.' if has_published else ''),
  )


def turns_table(entries: Sequence[Entry]) -> Table:
  """One model's reasoning cache by the number of turns: Table 6."""
  first = entries[0]
  has_published = naming.is_published_subject(first)
  columns = [
    Column(title='Turns'),
    Column(title='Score, %', by=naming.judge_name(first, entries)),
    Column(title='Tokens'),
    *(_published_columns('Score, %', 'Tokens') * has_published),
  ]
  rows = []
  entries = sorted(entries, key=lambda entry: entry['turns'])
  for entry in entries:
    row = [
      naming.distinct(str(entry['turns']), entry, entries, ('turns',)),
      _score(entry),
      _count(entry['tokens']['completion']),
    ]
    if has_published:
      row += _published_turns(entry['turns'])
    rows.append(row)
  if has_published:
    ours = {entry['turns'] for entry in entries}
    rows += [
      [str(turns), _NONE, _NONE, *_published_turns(turns)]
      for turns in published.TURNS
      if turns not in ours
    ]
    rows.sort(key=lambda row: int(row[0].split()[0]))
  return Table(
    title=f'Turns of the reasoning cache: {first["model"]} on '
    f'{naming.benchmark_name(first)}',
    columns=columns,
    rows=rows,
    note='Published: Table 6 of the report; its Table 2 has 44.0 % for three '
    'turns.'
    if has_published
    else '',
  )


def comparison_table(compared: Sequence[Mapping[str, Any]]) -> Table:
  """Pairs of runs, problem by problem.

  Args:
    compared: `first` and `second` (names), `difference`, `low`, `high` (points
      of 7, None where there is none), `p_value`, `better`, `equal`, `worse`.
  """
  rows = []
  for pair in compared:
    low, high = pair['low'], pair['high']
    interval = _NONE
    if low is not None:
      interval = f'{_signed(low)} .. {_signed(high)}'
    rows.append(
      [
        f'{pair["first"]} − {pair["second"]}',
        _signed(pair['difference']),
        interval,
        _NONE if pair['p_value'] is None else f'{pair["p_value"]:.3g}',
        f'{pair["better"]} / {pair["equal"]} / {pair["worse"]}',
      ]
    )
  return Table(
    title='Differences between runs on the same problems, by the same judge',
    columns=[
      Column(title='Runs'),
      Column(title='Difference, %'),
      Column(title='95 % interval'),
      Column(title='p'),
      Column(title='Better / equal / worse'),
    ],
    rows=rows,
    note='Paired by problem; p by random signs.',
  )


def markdown(found: Sequence[Table]) -> str:
  """The tables as one Markdown document; published figures are in italics."""
  parts = ['# Leaderboard']
  for table in found:
    lines = [
      _line(_heading(column) for column in table.columns),
      _line('---' if i == 0 else '---:' for i in range(len(table.columns))),
    ]
    for row in table.rows:
      lines.append(
        _line(
          f'*{text}*' if column.is_published and text != _NONE else text
          for column, text in zip(table.columns, map(_plain, row), strict=True)
        )
      )
    parts += [f'## {_plain(table.title)}', '\n'.join(lines)]
    if table.note:
      parts.append(_plain(table.note))
  return '\n\n'.join(parts) + '\n'


def _main_rows(
  entries: Sequence[Entry],
) -> list[tuple[str, dict[Any, str]]]:
  """(label, column key -> cell): ours first, then what is only published."""
  rows: dict[tuple, tuple[str, dict[Any, str]]] = {}
  for entry in entries:
    names = ('model', 'scaffold', 'turns', 'max_tokens')
    checkpoint = entry['identity']['checkpoint']
    key = (*(entry[name] for name in names), checkpoint)
    label = _row_name(entry['model'], naming.scaffold_name(entry, [entry]))
    if key not in rows:
      # Two checkpoints or settings of one name are told apart by their runs.
      if label in {name for name, _ in rows.values()}:
        label = f'{label} ({entry["run"]})'
      rows[key] = (label, {})
    elif naming.column_key(entry) in rows[key][1]:
      key += (entry['run'],)
      rows[key] = (f'{label} ({entry["run"]})', {})
    rows[key][1][naming.column_key(entry)] = _score(entry)
  others = []
  known = {label: cells for label, cells in rows.values()}
  for (model, scaffold), figures_ in published.MAIN.items():
    label = _row_name(model, naming.SCAFFOLDS[scaffold])
    cells = known.get(label)
    if cells is None:
      cells = {}
      others.append((label, cells))
    for benchmark, (mean, std) in figures_.items():
      cells[benchmark] = f'{mean:.1f}' + (f' ({std:.1f})' if std else '')
  return [*rows.values(), *others]


def _column_keys(entries: Sequence[Entry]) -> list[Any]:
  """Benchmarks, each with its published column before those of our judges.

  A published column is keyed by the benchmark's name alone.
  """
  ours = [*dict.fromkeys(map(naming.column_key, entries))]
  names = dict.fromkeys(entry['identity']['benchmark'] for entry in entries)
  keys: list[Any] = []
  for name in names:
    if any(name in row for row in published.MAIN.values()):
      keys.append(name)
    keys += [key for key in ours if key[0][0] == name]
  return keys


def _published_columns(*titles: str) -> list[Column]:
  return [
    Column(title=title, by=published.JUDGE, is_published=True)
    for title in titles
  ]


def _published_key(entry: Entry) -> tuple[str, int] | None:
  """The row of Table 2 that an entry may stand in; None: under a budget."""
  return None if entry['max_tokens'] else (entry['scaffold'], entry['turns'])


def _published_scaffold(key: tuple[str, int] | None) -> list[str]:
  if key not in published.SCAFFOLDS:
    return [_NONE] * 3
  percent, tokens = published.SCAFFOLDS[key]
  single = published.SCAFFOLDS['single', 1][1]
  return [f'{percent:.1f}', _count(tokens), _ratio(tokens, single)]


def _published_turns(turns: int) -> list[str]:
  if turns not in published.TURNS:
    return [_NONE] * 2
  percent, tokens = published.TURNS[turns]
  return [f'{percent:.1f}', _count(tokens)]


def _row_name(model: str, scaffold: str) -> str:
  single = naming.SCAFFOLDS['single']
  return model if scaffold == single else f'{model} + {scaffold}'


def _score(entry: Entry) -> str:
  """Such as 41.2 (0.9) [36.0, 46.5]."""
  percent, spread = entry['score']['percent'], entry['spread']['percent']
  if percent['value'] is None:
    return _NONE
  text = f'{percent["value"]:.1f}'
  if spread is not None:
    text += f' ({spread:.1f})'
  if percent['low'] is not None:
    text += f' [{percent["low"]:.1f}, {percent["high"]:.1f}]'
  asked = entry['num_problems'] * entry['num_attempts']
  if entry['num_graded'] < asked:
    text += f' {entry["num_graded"]}/{asked}'
  return text


def _count(value: float | None) -> str:
  return _NONE if value is None else f'{value:,.0f}'


def _ratio(value: float | None, whole: float | None) -> str:
  return f'{value / whole:.2f}' if value and whole else _NONE


def _signed(points: float | None) -> str:
  """Points of 7 as percent, with a sign."""
  if points is None:
    return _NONE
  return f'{100 * points / 7:+.1f}'.replace('-', '−')


def _heading(column: Column) -> str:
  by = f'published, {column.by}' if column.is_published else column.by
  return _plain(f'{column.title} ({by})' if by else column.title)


def _line(cells: Iterable[str]) -> str:
  return f'| {" | ".join(cells)} |'


def _plain(text: str) -> str:
  """Text that is nothing else in Markdown."""
  for character in '\\|*_<>`':
    text = text.replace(character, f'\\{character}')
  return ' '.join(text.split())
