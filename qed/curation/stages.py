"""Runs a stage on files, so that it can be killed anywhere and goes on.

A stage has a folder:

  kept.jsonl     the items that go on, in order
  removed.jsonl  the others, each with its reason and the evidence
  report.json    counts, settings and hashes; written last, so that a stage is
                 done if and only if it is there
  progress.json  how far it came; only while it is not done

A stage whose input, settings or code changed is done again. One that looks at
each item alone goes on where it was; any other starts over, and what it asked
of models is on record there.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from qed.curation import records
from qed.curation.records import Item, Outcome
from qed.data import templates

# Of what stages compute: raise it with any change to what comes out of one.
CODE_VERSION = 1
_SAVED_EVERY = 2_000  # Items.
_FILES = ('kept.jsonl', 'removed.jsonl')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
  """What a stage did; the same for the same input, but for `secs`."""

  stage: str
  num_in: int
  num_kept: int
  removed: Mapping[str, int]  # Reason -> items.
  remarks: Mapping[str, int]  # Remark -> items, kept or removed.
  settings: Mapping[str, Any]
  fingerprint: str  # Of input, settings and code.
  sha256: str  # Of kept.jsonl.
  secs: float


@dataclasses.dataclass(slots=True)
class _Progress:
  """The counts so far, and the sizes of the files that go with them."""

  fingerprint: str
  num_in: int = 0
  num_kept: int = 0
  sizes: tuple[int, ...] = (0, 0)
  removed: dict[str, int] = dataclasses.field(default_factory=dict)
  remarks: dict[str, int] = dataclasses.field(default_factory=dict)
  secs: float = 0.0


Outcomes = Iterable[Outcome] | AsyncIterator[Outcome]


async def run(
  folder: str | os.PathLike[str],
  name: str,
  items: Callable[[int], Iterable[Item]],
  stage: Callable[[Iterable[Item]], Outcomes],
  *,
  source: str,
  settings: Mapping[str, Any],
  is_rowwise: bool,
  told: Callable[[int], None] = lambda num_in: None,
) -> Report:
  """Runs a stage, or what is left of it.

  Args:
    folder: of the stage; created if need be.
    name: of the stage.
    items: gives the input from an item's number on.
    stage: makes of items as many outcomes, in order.
    source: a hash of the input.
    settings: all else that the outcomes depend on; json.
    is_rowwise: whether an outcome depends on its item alone.
    told: called with the number of items that are done.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  settings = json.loads(json.dumps(settings))  # As it will be read back.
  fingerprint = digest(
    {'stage': name, 'source': source, 'settings': settings, 'v': CODE_VERSION}
  )
  done = read_report(folder)
  if done and done.fingerprint == fingerprint and _is_whole(folder, done):
    return done
  (folder / 'report.json').unlink(missing_ok=True)
  progress = _Progress(fingerprint)
  if is_rowwise:
    progress = _read_progress(folder, fingerprint) or progress
  began = time.monotonic() - progress.secs
  removed = collections.Counter(progress.removed)
  remarks = collections.Counter(progress.remarks)
  kept_file, removed_file = files = [
    _open_at(folder / file, size)
    for file, size in zip(_FILES, progress.sizes, strict=True)
  ]
  try:
    async for outcome in _as_async(stage(items(progress.num_in))):
      progress.num_in += 1
      remarks.update(outcome.remarks)
      if outcome.reason:
        removed[outcome.reason] += 1
        removed_file.write(_removed_line(outcome))
      else:
        progress.num_kept += 1
        kept_file.write(_kept_line(outcome))
      if progress.num_in % _SAVED_EVERY == 0:
        for file in files:
          file.flush()
        progress.sizes = tuple(file.tell() for file in files)
        progress.removed, progress.remarks = dict(removed), dict(remarks)
        progress.secs = time.monotonic() - began
        write_json(folder / 'progress.json', dataclasses.asdict(progress))
        await asyncio.sleep(0)  # A stage that never waits can be stopped here.
      told(progress.num_in)
  finally:
    for file in files:
      file.close()
  report = Report(
    stage=name,
    num_in=progress.num_in,
    num_kept=progress.num_kept,
    removed=dict(sorted(removed.items())),
    remarks=dict(sorted(remarks.items())),
    settings=settings,
    fingerprint=fingerprint,
    sha256=sha256(folder / 'kept.jsonl'),
    secs=time.monotonic() - began,
  )
  write_json(folder / 'report.json', dataclasses.asdict(report))
  (folder / 'progress.json').unlink(missing_ok=True)
  return report


def settings_of(section: Any) -> dict[str, Any]:
  """What the outcomes of a stage depend on; not how it gets at them.

  Args:
    section: of the config; a dataclass.
  """
  values = dataclasses.asdict(section)
  values.pop('num_threads', None)
  writer = values.get('writer')
  if writer is not None:
    names = ('base_url', 'model', 'effort', 'sampling')
    values['writer'] = {name: writer[name] for name in names}
  for name in ('template', 'repair_template', 'prompt'):
    if name in values:  # The text counts, not only what it is called.
      slots = {slot: slot for slot in templates.slots(values[name])}
      text = templates.render(values[name], **slots)
      values[f'{name}_sha256'] = digest({'text': text})
  return values


def read_kept(folder: str | os.PathLike[str], start: int = 0) -> Iterator[Item]:
  """The items that a stage kept, from a number on, one at a time.

  Raises:
    ValueError: a line is no item: the file was changed by hand.
  """
  path = pathlib.Path(folder) / 'kept.jsonl'
  with path.open('rb') as file:
    for number, line in enumerate(file):
      if number < start:
        continue
      try:
        yield records.from_json(line.decode())
      except ValueError as error:
        raise ValueError(
          f'{path}:{number + 1}: {error}. Remove the folder of this stage, and '
          'it is done again.'
        ) from None


def read_report(folder: str | os.PathLike[str]) -> Report | None:
  """The report of a stage that is done; else None."""
  try:
    text = (pathlib.Path(folder) / 'report.json').read_text(encoding='utf-8')
  except FileNotFoundError:
    return None
  return Report(**json.loads(text))


def sha256(path: str | os.PathLike[str]) -> str:
  """Of a file, as hex."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def digest(parts: Mapping[str, Any]) -> str:
  """A SHA-256 of json, as hex, that does not depend on the order of keys."""
  text = json.dumps(parts, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a file that appears under its name when it is complete."""
  partial = path.with_name(path.name + '.partial')
  text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
  partial.write_text(text + '\n', encoding='utf-8')
  partial.replace(path)


def _kept_line(outcome: Outcome) -> bytes:
  # JSON may escape half of a character, which UTF-8 does not have.
  return f'{records.to_json(outcome.item)}\n'.encode('utf-8', 'replace')


def _removed_line(outcome: Outcome) -> bytes:
  row = {
    'item_id': outcome.item.item_id,
    'reason': outcome.reason,
    'detail': outcome.detail,
  }
  head = json.dumps(row, ensure_ascii=False)[:-1]
  line = f'{head}, "item": {records.to_json(outcome.item)}}}\n'
  return line.encode('utf-8', 'replace')


def _is_whole(folder: pathlib.Path, report: Report) -> bool:
  """Whether what a report speaks of is still there, unchanged."""
  path = folder / 'kept.jsonl'
  return path.exists() and sha256(path) == report.sha256


def _read_progress(folder: pathlib.Path, fingerprint: str) -> _Progress | None:
  try:
    text = (folder / 'progress.json').read_text(encoding='utf-8')
  except FileNotFoundError:
    return None
  progress = _Progress(**json.loads(text))
  sizes = [
    path.stat().st_size if path.exists() else -1
    for path in (folder / file for file in _FILES)
  ]
  fits = all(a >= b for a, b in zip(sizes, progress.sizes, strict=True))
  return progress if fits and progress.fingerprint == fingerprint else None


def _open_at(path: pathlib.Path, size: int):
  """The file without what was written after its first `size` bytes."""
  file = path.open('ab')
  file.truncate(size)
  file.seek(size)
  return file


async def _as_async(outcomes: Outcomes) -> AsyncIterator[Outcome]:
  if isinstance(outcomes, AsyncIterator):
    async for outcome in outcomes:
      yield outcome
  else:
    for outcome in outcomes:
      yield outcome
