"""Files of one JSON object per line, which a killed process may leave half."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Path = str | os.PathLike[str]


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Appends a line for each row; the file is made if need be."""
  with pathlib.Path(path).open('a', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')


def read(path: Path) -> list[dict[str, Any]]:
  """All rows; none where there is no file."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  text = path.read_text(encoding='utf-8')
  # Not splitlines: JSON may hold other characters that end a line.
  return [json.loads(line) for line in text.split('\n') if line]


class Log:
  """A file of rows that are found again by where they begin, in bytes."""

  def __init__(self, path: Path):
    """Opens or creates the file; what a killed process left half is cut."""
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut_partial_line(self.path)
    self._file = self.path.open('ab+')

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  @property
  def size(self) -> int:
    """Of the file, which is where the next row will begin."""
    return self._file.seek(0, os.SEEK_END)

  def write(self, row: Mapping[str, Any]) -> int:
    """Appends a row, safe from the death of the process; where it begins."""
    place = self.size
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n'
    self._file.write(line.encode('utf-8', 'replace'))
    self._file.flush()
    return place

  def read(self, place: int) -> dict[str, Any]:
    """The row that begins at a place."""
    self._file.seek(place)
    return json.loads(self._file.readline())

  def check_size(self, size: int, *, step: int) -> None:
    """Refuses a file that is shorter than it was.

    Args:
      size: of the file at a checkpoint.
      step: of the checkpoint.

    Raises:
      ValueError: it is.
    """
    if size > self.size:
      raise ValueError(
        f'{self.path}: expected the {size} bytes that it had at step {step}, '
        f'got {self.size}; bring the file back, or use another --workdir'
      )

  def rows_since(self, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """What was written behind a size; use nothing else meanwhile.

    Yields:
      A place and its row.
    """
    self._file.seek(size)
    place = size
    for line in self._file:
      yield place, json.loads(line)
      place += len(line)


class Once:
  """A file with one line for each record of a kind, whenever it comes."""

  def __init__(self, path: Path, key: str):
    """Looks up which records are in the file.

    Args:
      path: of the file, which need not exist.
      key: the field that tells records apart.
    """
    self._path, self._key = path, key
    self._seen = {row[key] for row in read(path)}

  def write(self, record: Any) -> None:
    """Appends a dataclass, if the file does not have it."""
    row = dataclasses.asdict(record)
    if row[self._key] not in self._seen:
      self._seen.add(row[self._key])
      append(self._path, [row])


def cut_partial_line(path: str | os.PathLike[str]) -> None:
  """Removes what a killed process wrote after the last newline, if anything."""
  path = pathlib.Path(path)
  if not path.exists():
    return
  with path.open('rb+') as file:
    position = file.seek(0, os.SEEK_END)
    while position:
      length = min(position, 1 << 16)
      position -= length
      file.seek(position)
      newline = file.read(length).rfind(b'\n')
      if newline >= 0:
        file.truncate(position + newline + 1)
        return
    file.truncate(0)
