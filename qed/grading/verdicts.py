"""What judges replied, kept for good: nothing paid for is paid for twice.

One SQLite file in WAL mode, which several processes may use at the same time
and any of them may be killed at. A call is put on record before it is made, and
closed, together with its reply, in one transaction before anything looks into
the reply. What the reply means is decided on reading, so that a better parser
needs no new calls.

The file must lie on a local disk: WAL does not work on a network file system.
A commit is safe from the death of the process, and from that of the machine a
moment later (synchronous = NORMAL).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qed.types import Message

# usd per million tokens: (of the prompt, of the completion).
Price = tuple[float, float]

_BUSY_SECS = 60.0  # How long a writer waits for those of other processes.
_LAYOUT = 1  # Number of these tables, for when there are others.
_TABLES = (
  """
  CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    about TEXT NOT NULL,
    text TEXT NOT NULL,
    refusal TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
  ) WITHOUT ROWID
  """,
  """
  CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    began REAL NOT NULL,
    secs REAL,
    outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
  )
  """,
  """
  CREATE TABLE IF NOT EXISTS hits (
    run TEXT NOT NULL,
    model TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (run, model)
  )
  """,
)
_OPEN, _ANSWERED = 'open', 'answer'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
  """A reply as it came, and what it cost."""

  text: str
  refusal: str
  finish_reason: str
  prompt_tokens: int
  completion_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
  """What a run asked its judges, and what that cost.

  It closes: calls = answered + sum(failed) + open, where `open` are those in
  flight, or that were when their process died.
  """

  calls: int
  answered: int
  failed: Mapping[str, int]  # Kind of failure -> calls.
  open: int
  cache_hits: int
  prompt_tokens: int
  completion_tokens: int
  usd: float


def key(
  messages: Sequence[Message],
  *,
  model: str,
  sampling: Mapping[str, Any],
  replica: int,
  draw: int = 0,
) -> str:
  """Returns a SHA-256 of all that a reply may depend on, as hex.

  Args:
    messages: what the judge is sent, to the letter: the text of the template
      with rubric, problem and proof in it.
    model: that is asked.
    sampling: the other settings of the request.
    replica: which of several independent verdicts on the same question.
    draw: which of the replies that were asked for because the one before could
      not be read.
  """
  parts = {
    'model': model,
    'sampling': dict(sampling),
    'messages': [[m.role, m.content] for m in messages],
    'replica': replica,
    'draw': draw,
  }
  text = json.dumps(parts, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


class Verdicts:
  """The replies and the ledger in one file. For one thread; close it."""

  def __init__(self, path: str | os.PathLike[str], *, run: str = ''):
    """Opens or creates the file.

    Args:
      path: its folder is created if need be.
      run: whose ledger this is, where several runs share a file.

    Raises:
      ValueError: the file is no database, or one of another layout.
    """
    self._path, self._run = pathlib.Path(path), run
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._db = sqlite3.connect(
      self._path, timeout=_BUSY_SECS, isolation_level=None
    )
    try:
      self._db.execute('PRAGMA journal_mode = WAL')
      self._db.execute('PRAGMA synchronous = NORMAL')
      self._make_tables()
    except sqlite3.DatabaseError as error:
      self._db.close()
      raise ValueError(
        f'{self._path}: expected a file of verdicts, or none: {error}'
      ) from error

  def __enter__(self) -> Verdicts:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file."""
    self._db.close()

  def get(self, key: str) -> Stored | None:
    """The reply to a question, if it was ever answered."""
    row = self._db.execute(
      'SELECT text, refusal, finish_reason, prompt_tokens, completion_tokens '
      'FROM replies WHERE key = ?',
      (key,),
    ).fetchone()
    if row is None:
      return None
    names = [field.name for field in dataclasses.fields(Stored)]
    return Stored(**dict(zip(names, row, strict=True)))

  def count_hit(self, model: str) -> None:
    """Puts on record that a reply was used again instead of a call."""
    self._db.execute(
      'INSERT INTO hits VALUES (?, ?, 1) '
      'ON CONFLICT (run, model) DO UPDATE SET count = count + 1',
      (self._run, model),
    )

  def begin(self, key: str, model: str) -> int:
    """Puts a call on record that is about to be made; returns its number."""
    cursor = self._db.execute(
      'INSERT INTO calls VALUES (NULL, ?, ?, ?, ?, NULL, ?, 0, 0)',
      (self._run, key, model, time.time(), _OPEN),
    )
    return cursor.lastrowid

  def fail(self, call: int, kind: str) -> None:
    """Closes a call that brought no answer, with the kind of its failure."""
    self._db.execute(
      'UPDATE calls SET outcome = ?, secs = ? - began WHERE id = ?',
      (kind, time.time(), call),
    )

  def put(self, call: int, reply: Stored, *, about: str) -> Stored:
    """Closes an answered call and stores its reply, both or neither.

    Args:
      call: of `begin`.
      reply: what came back.
      about: what was asked, for people who read the file.

    Returns:
      What is stored now: where another process answered the same question
      first, its reply, so that all agree.
    """
    tokens = (reply.prompt_tokens, reply.completion_tokens)
    self._db.execute('BEGIN IMMEDIATE')
    with self._db:  # Commits, or rolls back.
      row = self._db.execute(
        'UPDATE calls SET outcome = ?, secs = ? - began, prompt_tokens = ?, '
        'completion_tokens = ? WHERE id = ? RETURNING key, model',
        (_ANSWERED, time.time(), *tokens, call),
      ).fetchone()
      if row is None:
        raise ValueError(f'{self._path}: expected a call of begin, got {call}')
      self._db.execute(
        'INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?) '
        'ON CONFLICT DO NOTHING',
        (*row, about, reply.text, reply.refusal, reply.finish_reason, *tokens),
      )
    return self.get(row[0])

  def ledger(self, prices: Mapping[str, Price]) -> Ledger:
    """What this run did so far, over all its processes and restarts.

    Args:
      prices: of each model; one that is missing costs nothing.
    """
    rows = self._db.execute(
      'SELECT model, outcome, count(*), sum(prompt_tokens), '
      'sum(completion_tokens) FROM calls WHERE run = ? '
      'GROUP BY model, outcome',
      (self._run,),
    ).fetchall()
    (hits,) = self._db.execute(
      'SELECT coalesce(sum(count), 0) FROM hits WHERE run = ?', (self._run,)
    ).fetchone()
    outcomes: dict[str, int] = {}
    usd = 0.0
    for model, outcome, count, prompt_tokens, completion_tokens in rows:
      outcomes[outcome] = outcomes.get(outcome, 0) + count
      of_prompt, of_completion = prices.get(model, (0.0, 0.0))
      usd += prompt_tokens * of_prompt + completion_tokens * of_completion
    return Ledger(
      calls=sum(outcomes.values()),
      answered=outcomes.pop(_ANSWERED, 0),
      open=outcomes.pop(_OPEN, 0),
      failed=outcomes,
      cache_hits=hits,
      prompt_tokens=sum(row[3] for row in rows),
      completion_tokens=sum(row[4] for row in rows),
      usd=usd / 1e6,
    )

  def _make_tables(self) -> None:
    """Makes the tables of a new file; of several processes, one does."""
    self._db.execute('BEGIN IMMEDIATE')
    with self._db:
      (layout,) = self._db.execute('PRAGMA user_version').fetchone()
      (size,) = self._db.execute(
        'SELECT count(*) FROM sqlite_master'
      ).fetchone()
      if layout != _LAYOUT and (layout or size):
        raise sqlite3.DatabaseError(f'it has layout {layout}, not {_LAYOUT}')
      for table in _TABLES:
        self._db.execute(table)
      self._db.execute(f'PRAGMA user_version = {_LAYOUT}')
