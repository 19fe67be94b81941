"""Completions kept for good: what was paid for is not paid for again.

One SQLite file in WAL mode, as for verdicts, which several processes may use
and any of them may be killed at. A completion is on record before its caller
gets it. What is lost with a process are the calls that it had in flight.

The file must lie on a local disk: WAL does not work on a network file system.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
import zlib
from collections.abc import Sequence

import numpy as np

from qed import types

_BUSY_SECS = 60.0  # How long a writer waits for those of other processes.
_LAYOUT = 1  # Number of this table, for when there are others.
_TABLE = """
  CREATE TABLE IF NOT EXISTS completions (
    key TEXT NOT NULL,
    member INTEGER NOT NULL,
    name TEXT NOT NULL,
    problem_id TEXT NOT NULL,
    text BLOB NOT NULL,
    finish_reason TEXT NOT NULL,
    usage TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    logprobs BLOB NOT NULL,
    versions BLOB NOT NULL,
    PRIMARY KEY (key, member)
  ) WITHOUT ROWID
"""
_ARRAYS = {
  'token_ids': np.int32,
  'logprobs': np.float32,
  'versions': np.int32,
}
# Of a completion that says nothing about the prompt.
_NOT_STORED = ('error', 'abort')


def key(
  name: str, prompt: types.Prompt, params: types.SamplingParams, n: int
) -> str:
  """A SHA-256 of all that completions depend on, as hex.

  Args:
    name: of what completes: weights, or endpoint, model and its settings.
    prompt: its messages and ids count, its problem does not.
    params: with the seed.
    n: completions.
  """
  parts = {
    'name': name,
    'messages': [[m.role, m.content] for m in prompt.messages],
    'token_ids': np.asarray(prompt.token_ids).tolist(),
    'params': dataclasses.asdict(params),
    'n': n,
  }
  text = json.dumps(parts, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


class Journal:
  """The completions in one file. For one thread; close it."""

  def __init__(self, path: str | os.PathLike[str]):
    """Opens or creates the file, and its folder if need be.

    Raises:
      ValueError: the file is no database, or one of another layout.
    """
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._db = sqlite3.connect(
      self._path, timeout=_BUSY_SECS, isolation_level=None
    )
    try:
      self._db.execute('PRAGMA journal_mode = WAL')
      self._db.execute('PRAGMA synchronous = NORMAL')
      self._make_table()
    except sqlite3.DatabaseError as error:
      self._db.close()
      raise ValueError(
        f'{self._path}: expected a journal of completions, or no file: {error}'
      ) from error

  def __enter__(self) -> Journal:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def __len__(self) -> int:
    (count,) = self._db.execute('SELECT count(*) FROM completions').fetchone()
    return count

  def close(self) -> None:
    """Closes the file."""
    self._db.close()

  def get(self, key: str) -> list[types.Completion] | None:
    """What was stored under a key, or None."""
    rows = self._db.execute(
      f'SELECT text, finish_reason, usage, {", ".join(_ARRAYS)} '
      'FROM completions WHERE key = ? ORDER BY member',
      (key,),
    ).fetchall()
    return [_completion(*row) for row in rows] or None

  def put(
    self,
    key: str,
    completions: Sequence[types.Completion],
    *,
    name: str,
    problem_id: str,
  ) -> list[types.Completion]:
    """Stores completions, all or none of them.

    Args:
      key: of `key`.
      completions: that were drawn together.
      name: of what completed, and
      problem_id: what about, for people who read the file.

    Returns:
      What is stored now: where another process was first, its completions, so
      that all agree.
    """
    rows = [
      (key, member, name, problem_id, *_row(completion))
      for member, completion in enumerate(completions)
    ]
    self._db.execute('BEGIN IMMEDIATE')
    with self._db:  # Commits, or rolls back.
      stored = self.get(key)
      if stored is not None:
        return stored
      self._db.executemany(
        'INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)', rows
      )
    return list(completions)

  def _make_table(self) -> None:
    """Makes the table of a new file; of several processes, one does."""
    self._db.execute('BEGIN IMMEDIATE')
    with self._db:
      (layout,) = self._db.execute('PRAGMA user_version').fetchone()
      (size,) = self._db.execute(
        'SELECT count(*) FROM sqlite_master'
      ).fetchone()
      if layout != _LAYOUT and (layout or size):
        raise sqlite3.DatabaseError(f'it has layout {layout}, not {_LAYOUT}')
      self._db.execute(_TABLE)
      self._db.execute(f'PRAGMA user_version = {_LAYOUT}')


class Journaled:
  """An `Llm` that draws from another only what the journal does not have.

  Two equal calls at the same time are one. A call of which a member failed or
  was aborted is handed on, and not stored.
  """

  def __init__(self, llm: types.Llm, journal: Journal, name: str):
    """Takes what it needs.

    Args:
      llm: is asked.
      journal: holds what it answered; whoever made it closes it.
      name: of the Llm, different for all that answer differently.
    """
    self._llm, self._journal, self._name = llm, journal, name
    self._in_flight: dict[str, asyncio.Task] = {}
    self._waiting: collections.Counter[str] = collections.Counter()
    self.num_paid = 0  # Completions that were drawn.
    self.num_recalled = 0  # That were there already, or on their way.

  async def sample(
    self, prompt: types.Prompt, params: types.SamplingParams, *, n: int = 1
  ) -> list[types.Completion]:
    """The `n` completions of an earlier call, or else new ones."""
    call = key(self._name, prompt, params, n)
    stored = self._journal.get(call)
    if stored is not None:
      self.num_recalled += n
      return stored
    if call in self._in_flight:
      self.num_recalled += n
    else:
      self._in_flight[call] = asyncio.ensure_future(
        self._draw(call, prompt, params, n)
      )
    self._waiting[call] += 1
    try:
      # Of several who wait, one may give up.
      return await asyncio.shield(self._in_flight[call])
    finally:
      self._waiting[call] -= 1
      if not self._waiting[call]:
        del self._waiting[call]
        self._in_flight.pop(call).cancel()

  async def _draw(self, call, prompt, params, n):
    completions = await self._llm.sample(prompt, params, n=n)
    self.num_paid += n
    if any(x.finish_reason in _NOT_STORED for x in completions):
      return completions
    return self._journal.put(
      call, completions, name=self._name, problem_id=prompt.problem_id
    )


def _row(completion: types.Completion) -> tuple[str | bytes, ...]:
  arrays = (
    zlib.compress(np.asarray(getattr(completion, name), kind).tobytes(), 1)
    for name, kind in _ARRAYS.items()
  )
  usage = completion.usage
  return (
    # A text may hold halves of surrogate pairs, which TEXT does not take.
    completion.text.encode('utf-8', 'surrogatepass'),
    completion.finish_reason,
    json.dumps(None if usage is None else dict(usage)),
    *arrays,
  )


def _completion(
  text: bytes, finish_reason: str, usage: str, *arrays: bytes
) -> types.Completion:
  return types.Completion(
    text=text.decode('utf-8', 'surrogatepass'),
    finish_reason=finish_reason,
    usage=json.loads(usage),
    **{
      name: np.frombuffer(zlib.decompress(array), kind).copy()
      for (name, kind), array in zip(_ARRAYS.items(), arrays, strict=True)
    },
  )
