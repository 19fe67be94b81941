"""What `qed plan` prints: with rich on a terminal, aligned text elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TextIO

_UNITS = (('P', 1e15), ('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
  """Rows of texts under a title."""

  title: str
  rows: Sequence[tuple[str, ...]]
  header: tuple[str, ...] = ()
  note: str = ''


def gib(num_bytes: float) -> str:
  """Such as 32.78 GiB."""
  return f'{num_bytes / 2**30:.2f} GiB'


def amount(value: float, unit: str) -> str:
  """Such as 2.13 TB, in powers of a thousand."""
  for prefix, size in _UNITS:
    if value >= size:
      return f'{value / size:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'


def secs(value: float) -> str:
  """Such as 5.10 s or 12.3 ms."""
  return f'{value:.2f} s' if value >= 1 else f'{value * 1e3:.3g} ms'


def show(tables: Sequence[Table], file: TextIO | None = None) -> None:
  """Prints tables to `file`, standard output if None."""
  file = sys.stdout if file is None else file
  if not file.isatty():
    print('\n\n'.join(map(plain, tables)), file=file, flush=True)
    return
  from rich import console, table, text

  screen = console.Console(file=file, highlight=False)
  for item in tables:
    grid = table.Table(*item.header, show_header=bool(item.header))
    for row in item.rows:
      grid.add_row(*map(text.Text, row))
    for index, column in enumerate(grid.columns):
      is_edge = index in (0, len(grid.columns) - 1)
      column.justify = 'left' if is_edge else 'right'
    for part in (text.Text(item.title, style='bold'), grid, item.note):
      if part:
        screen.print(part)


def plain(item: Table) -> str:
  """A table as text: first and last column to the left, others to the right."""
  rows = [item.header, *item.rows] if item.header else list(item.rows)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

  def line(row):
    cells = [
      text.ljust(width) if index in (0, len(row) - 1) else text.rjust(width)
      for index, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return ('  ' + '  '.join(cells)).rstrip()

  note = [item.note] if item.note else []
  return '\n'.join([item.title, *map(line, rows), *note])
