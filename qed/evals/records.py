"""records.jsonl: every attempt of an evaluation as it ends, good or bad.

A line holds what the attempt was (problem, attempt), what it came to (solution,
grade, or the failure), and digests of all that decided it: the benchmark's
content, the checkpoint, the scaffold's configuration and the judge. The file
only grows; of several lines about one attempt and one judge the last one with a
score counts, or else the last; and what a killed process left of a line is cut
off.

An attempt is settled once it has a grade of a solution none of whose calls
failed. Everything else is tried again when the evaluation goes on, and has no
part in a score until then. (A solution that came about with failed calls keeps
its grade meanwhile, and is counted as incomplete.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from qed.evals.benchmarks import Item
from qed.types import EvalRecord, Solution

_PLAIN = re.compile(r'[A-Za-z0-9._-]+')
_MAX_NAME = 80


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
  """What decides the outcome of an evaluation, as its records hold it.

  All but the two names are digests. What a solution came from must be the same
  in all records of a file; judges may be several.
  """

  benchmark: str
  content: str  # Of the problems.
  checkpoint: str  # Of the weights, or the name of the model at an endpoint.
  config: str  # Of the scaffold, its prompts, sampling, budget and seed.
  judge: str  # Of its model, sampling, templates and replicas.
  judge_name: str  # What people call it.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
  """A line about one attempt, without the solution's text."""

  problem_id: str
  attempt: int
  judge: str  # Digest.
  judge_name: str
  score: int | None  # 0..7
  status: str  # Of the grade; 'failed' where there is no solution.
  usage: Mapping[str, int]  # Of the solution.
  judge_usage: Mapping[str, int]
  has_text: bool
  secs: float
  error: str  # Of what failed; ''.

  @property
  def is_settled(self) -> bool:
    """Whether another try can bring nothing."""
    return self.status == 'ok' and not self.usage.get('failed', 0)


class ForeignRecordsError(ValueError):
  """The file holds records of another evaluation."""


class Records:
  """The file, open for appending; close it with `close`."""

  def __init__(self, path: str | os.PathLike[str], identity: Identity):
    """Reads what is there.

    Args:
      path: of the file, which need not exist; its folder is created.
      identity: of the evaluation that goes on, or begins.

    Raises:
      ForeignRecordsError: a record's solution came from something else.
      ValueError: a whole line is no record.
    """
    self.identity = identity
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    # (judge, problem_id, attempt) -> the last record.
    self._found: dict[tuple[str, str, int], Record] = {}
    # (problem_id, attempt) -> where a record with a whole solution begins.
    self._solved: dict[tuple[str, int], int] = {}
    self._file = self._path.open('a+b')
    try:
      self._read()
    except BaseException:
      self._file.close()
      raise

  def __enter__(self) -> Records:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file; every record was on its way to the disk before."""
    self._file.close()

  def add(self, item: Item, outcome: EvalRecord, *, secs: float) -> Record:
    """Appends an attempt that has a solution and a grade, whichever."""
    solution, grade = outcome.solution, outcome.grade
    trace = self._write_trace(solution) if solution.trace else ''
    row = self._row(item, solution.attempt, secs) | {
      'solution': {
        'text': solution.text,
        'usage': dict(solution.usage),
        'trace': trace,
      },
      'grade': dataclasses.asdict(grade),
      'error': '',
    }
    return self._append(row)

  def add_failure(
    self, item: Item, attempt: int, error: Exception, *, secs: float
  ) -> Record:
    """Appends an attempt that came to no solution, through no fault of it."""
    told = f'{type(error).__name__}: {error}'
    row = self._row(item, attempt, secs)
    return self._append(row | {'solution': None, 'grade': None, 'error': told})

  def is_settled(self, problem_id: str, attempt: int) -> bool:
    """Whether this judge's grade of an attempt is there to stay."""
    found = self._found.get((self.identity.judge, problem_id, attempt))
    return found is not None and found.is_settled

  def solution(self, problem_id: str, attempt: int) -> Solution | None:
    """A solution that needs no other try, for a judge that has none of it.

    Its trace is left out.
    """
    offset = self._solved.get((problem_id, attempt))
    if offset is None:
      return None
    stored = self._row_at(offset)['solution']
    return Solution(
      problem_id=problem_id,
      attempt=attempt,
      text=stored['text'],
      usage=stored['usage'],
      trace=(),
    )

  def judges(self) -> dict[str, str]:
    """Digest -> name of all judges on record, in order of appearance."""
    return {record.judge: record.judge_name for record in self._found.values()}

  def of_judge(self, judge: str) -> dict[tuple[str, int], Record]:
    """(problem_id, attempt) -> the record that counts."""
    return {
      (problem_id, attempt): record
      for (by, problem_id, attempt), record in self._found.items()
      if by == judge
    }

  def _row(self, item: Item, attempt: int, secs: float) -> dict[str, Any]:
    return dataclasses.asdict(self.identity) | {
      'problem_id': item.problem.problem_id,
      'split': item.split,
      'attempt': attempt,
      'secs': round(secs, 3),
    }

  def _append(self, row: dict[str, Any]) -> Record:
    line = json.dumps(row, ensure_ascii=False) + '\n'
    offset = self._file.seek(0, os.SEEK_END)
    # Lone surrogates, which a model's bytes may decode to, are no UTF-8.
    self._file.write(line.encode('utf-8', 'backslashreplace'))
    self._file.flush()
    return self._remember(row, offset)

  def _remember(self, row: Mapping[str, Any], offset: int) -> Record:
    record = _record(row)
    key = (record.judge, record.problem_id, record.attempt)
    before = self._found.get(key)
    # Another try at what was incomplete may come to less than it.
    if record.score is not None or before is None or before.score is None:
      self._found[key] = record
    if record.status != 'failed' and not record.usage.get('failed', 0):
      self._solved[record.problem_id, record.attempt] = offset
    return record

  def _read(self) -> None:
    self._file.seek(0)
    number = 0
    while True:
      offset = self._file.tell()
      line = self._file.readline()
      if not line.endswith(b'\n'):
        self._file.truncate(offset)  # Torn, or the end.
        return
      number += 1
      try:
        row = json.loads(line)
        self._check(row, number)
        self._remember(row, offset)
      except ForeignRecordsError:
        raise
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{self._path}:{number}: expected a record of an evaluation, got '
          f'{line[:80]!r}'
        ) from error

  def _check(self, row: Mapping[str, Any], number: int) -> None:
    expected = dataclasses.asdict(self.identity)
    del expected['judge'], expected['judge_name']
    others = [
      f'{name} {row[name]!r} instead of {value!r}'
      for name, value in expected.items()
      if row[name] != value
    ]
    if others:
      raise ForeignRecordsError(
        f'{self._path}:{number}: expected records of this evaluation, got one '
        f'of another: {"; ".join(others)}'
      )

  def _row_at(self, offset: int) -> dict[str, Any]:
    with self._path.open('rb') as file:
      file.seek(offset)
      return json.loads(file.readline())

  def _write_trace(self, solution: Solution) -> str:
    """Every call of a solution, in a file of its own beside the records."""
    name = file_name(solution.problem_id, solution.attempt)
    folder = self._path.parent / 'traces'
    folder.mkdir(exist_ok=True)
    partial = folder / f'{name}.partial'
    text = json.dumps(solution.trace, ensure_ascii=False, default=str)
    partial.write_text(text, encoding='utf-8', errors='backslashreplace')
    partial.replace(folder / name)
    return f'traces/{name}'


def file_name(problem_id: str, attempt: int) -> str:
  """A file name for an attempt; ids that are no file names are hashed."""
  stem = problem_id
  if not _PLAIN.fullmatch(stem) or len(stem) > _MAX_NAME:
    digest = hashlib.sha256(
      problem_id.encode('utf-8', 'backslashreplace')
    ).hexdigest()[:12]
    stem = f'{"".join(_PLAIN.findall(stem))[:_MAX_NAME]}-{digest}'
  return f'{stem}.{attempt}.json'


def digest(content: Any) -> str:
  """A short SHA-256 of anything that JSON can hold, in hexadecimal."""
  text = json.dumps(content, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _record(row: Mapping[str, Any]) -> Record:
  solution, grade = row['solution'] or {}, row['grade'] or {}
  return Record(
    problem_id=row['problem_id'],
    attempt=row['attempt'],
    judge=row['judge'],
    judge_name=row['judge_name'],
    score=grade.get('score'),
    status=grade['status'] if solution else 'failed',
    usage=solution.get('usage', {}),
    judge_usage=grade.get('usage', {}),
    has_text=bool(solution.get('text', '').strip()),
    secs=row['secs'],
    error=row['error'] or (_told(grade) if grade.get('score') is None else ''),
  )


def _told(grade: Mapping[str, Any]) -> str:
  return f'{grade.get("status")}: {grade.get("feedback", "")[:200]}'
