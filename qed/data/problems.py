"""Problems and teacher traces, read from jsonl, csv and parquet files.

One table per record says which columns fill which field. It covers our own
files and the published ones: FineProofs-RL and FineProofs-SFT (parquet, or
jsonl of the same columns) and IMO-Bench (csv). Files are read one line at a
time. A line that cannot be understood is refused or skipped, by choice, and
every skip is counted and told with file, line and field.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from qed.types import Message, Problem, Role

OnMalformed = Literal['skip', 'refuse']
Path = str | os.PathLike
_Row = Mapping[str, Any]
_Record = TypeVar('_Record')

# Field of the record -> columns that may hold it; the first that is not blank
# counts.
PROBLEM_COLUMNS = {
  'problem_id': ('problem_id', 'Problem ID'),
  'statement': ('statement', 'problem', 'Problem'),
  'rubric': (
    'rubric',
    'rubrics',
    'grading_scheme',
    'Grading guidelines',
    'schema_0',
  ),
  'reference': ('reference', 'solution', 'Solution'),
  'answer': ('answer', 'Short Answer'),
  'source': ('source', 'Source'),
  'difficulty': ('difficulty', 'reward_mean', 'qwen3-4b-thinking-reward@128'),
}
TRACE_COLUMNS = {
  'problem_id': ('problem_id',),
  'statement': ('statement', 'problem'),
  'reasoning': ('reasoning', 'reasoning_content'),
  'proof': ('proof',),
  'score': ('score', 'gemini-3-pro-grade'),
  'difficulty': ('difficulty', 'qwen3-4b-thinking-reward@128'),
  'source': ('source',),
  'competition': ('competition',),
  'prompt_messages': ('prompt_messages',),
}
RUBRIC_ITEM_KEYS = {
  'title': ('title',),
  'points': ('points', 'max_points'),
  'description': ('desc', 'description', 'grading_scheme_desc'),
}

# Misprinted lines of published files, and what they should be. In IMO-Bench's
# answerbench_v2.csv, the quote that ends the statement of imo-bench-algebra-036
# comes after the comma; read as it is, the statement tells its own answer.
MISPRINTS = {
  ',"$Y(x)=A+\\frac{B}{x}-x$",Algebra,Functional Equation,Iran 2002': (
    '","$Y(x)=A+\\frac{B}{x}-x$",Algebra,Functional Equation,Iran 2002'
  ),
}

# Benchmarks whose terms forbid training, by a word that their source, dataset
# or file is called after (in small letters, without signs). Neither of the
# readers of training data below takes them; `qed judge` does.
EVALUATION_ONLY = ('qedbench',)

_NUM_SKIPS_TOLD = 5
_PARQUET_BATCH_ROWS = 64  # A trace may weigh half a megabyte.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
  """A teacher's reasoning and proof for one problem; material for SFT."""

  problem_id: str
  statement: str
  reasoning: str  # What goes inside the think block; may be empty.
  proof: str  # What follows it.
  score: int | None = None  # 0..7, of the proof.
  difficulty: float | None = None  # Mean reward of the base model, 0..1.
  source: str = ''
  competition: str = ''
  # What was asked, where it was not the problem alone (a summary, a review,
  # ...); (): whatever prompt the run asks for proofs with.
  prompt_messages: tuple[Message, ...] = ()


@dataclasses.dataclass(slots=True)
class ReadReport:
  """What came of reading; complete once the data has been read to its end."""

  num_read: int = 0
  num_skipped: int = 0
  skipped: list[str] = dataclasses.field(default_factory=list)  # The first few.
  mended: list[str] = dataclasses.field(default_factory=list)
  unused_columns: set[str] = dataclasses.field(default_factory=set)

  def __str__(self) -> str:
    lines = [f'{self.num_read} records read, {self.num_skipped} skipped']
    lines += [f'skipped: {message}' for message in self.skipped]
    if self.num_skipped > len(self.skipped):
      lines.append(f'... and {self.num_skipped - len(self.skipped)} more')
    lines += [f'mended: {message}' for message in self.mended]
    if self.unused_columns:
      lines.append(
        f'columns not used: {", ".join(sorted(self.unused_columns))}'
      )
    return '\n'.join(lines)


def load_problems(
  *paths: Path, malformed: OnMalformed
) -> tuple[list[Problem], ReadReport]:
  """Reads problems from one or more files (.jsonl, .csv, .parquet).

  A problem without an id gets one from its statement (`statement_id`), so that
  files that share problems can be joined. A blank optional field is None.

  Args:
    *paths: Files, read in this order.
    malformed: What to do with a line that is not a problem: 'skip' counts it
      in the report, 'refuse' raises.

  Returns:
    The problems in file order, and the report.

  Raises:
    ValueError: A malformed line under 'refuse', a repeated problem_id or a
      problem of a benchmark in `EVALUATION_ONLY` (under either), a file that
      cannot be parsed further, or nothing readable.
    ImportError: A parquet file without pyarrow.
  """
  report = ReadReport()
  problems: list[Problem] = []
  first_place: dict[str, str] = {}
  for place, problem in read_records(
    paths, PROBLEM_COLUMNS, _problem, malformed=malformed, report=report
  ):
    if problem.problem_id in first_place:
      raise ValueError(
        f'{place}: field problem_id: expected a new id, got '
        f'{problem.problem_id!r}, which {first_place[problem.problem_id]} has '
        'already; remove one of the two lines or give them different ids.'
      )
    first_place[problem.problem_id] = place
    problems.append(problem)
  return problems, report


def stream_traces(
  *paths: Path, malformed: OnMalformed
) -> tuple[Iterator[Trace], ReadReport]:
  """Reads teacher traces one at a time; a problem may have several.

  Args:
    *paths: Files (.jsonl, .csv, .parquet), read in this order.
    malformed: As in `load_problems`.

  Returns:
    An iterator, which raises as `load_problems` does (but for repeated ids),
    and a report that it fills as it goes.
  """
  report = ReadReport()
  records = read_records(
    paths, TRACE_COLUMNS, _trace, malformed=malformed, report=report
  )
  return (trace for _, trace in records), report


def write_jsonl(path: Path, records: Iterable[Problem | Trace]) -> None:
  """Writes records in the form that the readers above take back unchanged.

  The file appears under its name only when it is complete.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  with partial.open('w', encoding='utf-8', newline='\n') as file:
    for record in records:
      row = dataclasses.asdict(record)
      file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')
  partial.replace(path)


def statement_id(statement: str) -> str:
  """An id that depends on a statement's words and not on its white space."""
  normal = ' '.join(statement.split())
  return 'p-' + hashlib.sha256(normal.encode()).hexdigest()[:16]


def rubric_text(items: Sequence[Mapping[str, Any]]) -> str:
  """Renders a rubric that is a list of items as text, in the same order.

  Args:
    items: Dictionaries with 'title', 'points' (or 'max_points') and perhaps
      'desc' (or 'description', 'grading_scheme_desc').

  Returns:
    Per item a line with title and points and a line with the description;
    a blank line between items.

  Raises:
    ValueError: An item without a title or a number of points.
  """
  rendered = []
  for number, item in enumerate(items, start=1):
    with _naming(f'item {number}'):
      if not isinstance(item, Mapping):
        raise ValueError(f'expected a dictionary, got {reprlib.repr(item)}')
      line = Line(item, RUBRIC_ITEM_KEYS)
      title = line.text('title')
      points = line.number('points', 0, 7)
      if points is None:
        raise ValueError(line.expected('points', 'a number', None))
      description = line.text('description', default='')
    unit = 'point' if points == 1 else 'points'
    rendered.append(f'{title} ({points:g} {unit})\n{description}'.strip())
  return '\n\n'.join(rendered)


def _problem(row: _Row) -> Problem:
  line = Line(row, PROBLEM_COLUMNS)
  statement = line.text('statement')
  rubric = line.value('rubric')
  if isinstance(rubric, list):
    with _naming('field rubric'):
      rubric = rubric_text(rubric)
  elif rubric is not None and not isinstance(rubric, str):
    raise ValueError(
      line.expected('rubric', 'a string or a list of items', rubric)
    )
  return Problem(
    problem_id=line.text('problem_id', default=statement_id(statement)),
    statement=statement,
    rubric=rubric,
    reference=line.text('reference', default=None),
    answer=line.text('answer', default=None),
    source=line.text('source', default=''),
    difficulty=line.number('difficulty', 0, 1),
  )


def _trace(row: _Row) -> Trace:
  line = Line(row, TRACE_COLUMNS)
  statement = line.text('statement')
  score = line.number('score', 0, 7)
  if score is not None and not score.is_integer():
    raise ValueError(line.expected('score', 'a whole number', score))
  if not any(name in row for name in TRACE_COLUMNS['reasoning']):
    # It may be empty, but a column with another name must not pass for that.
    raise ValueError(line.expected('reasoning', 'such a column', None))
  return Trace(
    problem_id=line.text('problem_id', default=statement_id(statement)),
    statement=statement,
    reasoning=line.text('reasoning', default=''),
    proof=line.text('proof'),
    score=None if score is None else int(score),
    difficulty=line.number('difficulty', 0, 1),
    source=line.text('source', default=''),
    competition=line.text('competition', default=''),
    prompt_messages=_messages(line),
  )


def _messages(line: Line) -> tuple[Message, ...]:
  """The conversation in the field prompt_messages, () where there is none."""
  value = line.value('prompt_messages')
  try:
    messages = tuple(Message(**message) for message in value or ())
    is_sound = all(
      message.role in get_args(Role) and isinstance(message.content, str)
      for message in messages
    )
  except TypeError:  # No list, no dictionaries in it, or with other keys.
    is_sound = False
  if not is_sound:
    what = f'a list of messages (role, one of {get_args(Role)}, and content)'
    raise ValueError(line.expected('prompt_messages', what, value))
  return messages


_REQUIRED = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
  """One row under a table of columns, such as those above."""

  row: _Row
  columns: Mapping[str, Sequence[str]]

  def value(self, field: str) -> Any:
    """What the first column of the field that is not blank holds, or None."""
    for name in self.columns[field]:
      value = self.row.get(name)
      blank = value in (None, []) or (
        isinstance(value, str) and not value.strip()
      )
      if not blank:
        return value
    return None

  def text(self, field: str, default: Any = _REQUIRED) -> Any:
    """The text of a field, verbatim; the default where it is blank."""
    value = self.value(field)
    if value is None and default is not _REQUIRED:
      return default
    if not isinstance(value, str):
      raise ValueError(self.expected(field, 'a non-empty string', value))
    return value

  def number(self, field: str, low: float, high: float) -> float | None:
    """A number in [low, high] (csv has it as text), or None where blank."""
    value = self.value(field)
    if value is None:
      return None
    number = math.nan
    if not isinstance(value, bool):
      with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
    if not low <= number <= high:
      raise ValueError(
        self.expected(field, f'a number from {low} to {high}', value)
      )
    return number

  def expected(self, field: str, what: str, value: Any) -> str:
    """The message that says what this field should have held."""
    others = [name for name in self.columns[field] if name != field]
    also = f' (or {", ".join(others)})' if others else ''
    got = reprlib.repr(value)
    if value is None:
      columns = ', '.join(map(str, itertools.islice(self.row, 12))) or 'nothing'
      got = f'nothing there; the columns are: {columns}'
    return f'field {field}{also}: expected {what}, got {got}'


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Puts `where` in front of the message of a ValueError raised inside."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from None


def read_records(
  paths: Sequence[Path],
  columns: Mapping[str, Sequence[str]],
  convert: Callable[[Mapping[str, Any]], _Record],
  *,
  malformed: OnMalformed,
  report: ReadReport,
  for_training: bool = True,
  on_skip: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[str, _Record]]:
  """Checks the request at once, then yields (place, record) lazily.

  Args:
    paths: Files, read in this order.
    columns: Field -> columns that may hold it.
    convert: A row -> a record; a ValueError says that it is malformed. `Line`
      reads a row's fields.
    malformed: As in `load_problems`.
    report: Filled as the records are read.
    for_training: Refuses the benchmarks in `EVALUATION_ONLY`.
    on_skip: Told (place, what is wrong) of every skip; the report names the
      first few alone.

  Raises:
    ValueError, FileNotFoundError: As `load_problems`.
  """
  if malformed not in ('skip', 'refuse'):
    raise ValueError(
      f"malformed: expected 'skip' or 'refuse', got {malformed!r}."
    )
  if not paths:
    raise ValueError('expected at least one file to read, got none.')
  files = [pathlib.Path(path) for path in paths]
  for file in files:
    if file.suffix not in ('.jsonl', '.csv', '.parquet'):
      raise ValueError(
        f'{file}: expected a file that ends in .jsonl, .csv or .parquet.'
      )
    if not file.is_file():
      raise FileNotFoundError(f'{file}: no such file.')
  known = set(itertools.chain.from_iterable(columns.values()))

  def read() -> Iterator[tuple[str, _Record]]:
    for file in files:
      for place, row in _rows(file, known, report):
        if for_training:
          _refuse_evaluation_only(place, file, row)
        try:
          if isinstance(row, ValueError):
            raise row
          report.unused_columns |= row.keys() - known
          record = convert(row)
        except ValueError as error:
          message = f'{place}: {error}'
          if malformed == 'refuse':
            raise ValueError(
              f"{message}. Mend the line, or read with malformed='skip'."
            ) from None
          report.num_skipped += 1
          if on_skip is not None:
            on_skip(place, str(error))
          if len(report.skipped) < _NUM_SKIPS_TOLD:
            report.skipped.append(message)
          continue
        report.num_read += 1
        yield place, record
    if not report.num_read:
      raise ValueError(
        f'{", ".join(map(str, files))}: expected at least one record.\n{report}'
      )

  return read()


def _refuse_evaluation_only(
  place: str, file: pathlib.Path, row: _Row | ValueError
) -> None:
  """Raises if a row may be evaluated on but never trained on."""
  names = [file.name]
  if not isinstance(row, ValueError):
    keys = ('source', 'dataset', 'benchmark')
    names += [str(row[key]) for key in row if str(key).lower() in keys]
  for name in names:
    letters = ''.join(filter(str.isalnum, name.lower()))
    for benchmark in EVALUATION_ONLY:
      if benchmark in letters:
        raise ValueError(
          f'{place}: expected data that may be trained on, got {name!r}, whose '
          'terms allow evaluation only. `qed judge` reads it.'
        )


def _rows(
  path: pathlib.Path, known: set[str], report: ReadReport
) -> Iterator[tuple[str, _Row | ValueError]]:
  """Yields (place, row), with an error for a row where there is none."""
  if path.suffix == '.jsonl':
    return _jsonl_rows(path)
  if path.suffix == '.csv':
    return _csv_rows(path, report)
  return _parquet_rows(path, known, report)


def _jsonl_rows(
  path: pathlib.Path,
) -> Iterator[tuple[str, _Row | ValueError]]:
  with path.open('rb') as file:  # Bytes, so that a bad one spoils one line.
    for number, line in enumerate(file, start=1):
      line = line.strip()
      if not line:
        continue
      try:
        row = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
      except json.JSONDecodeError as error:
        where = f'{error.msg} at character {error.pos + 1}'
        row = ValueError(f'expected a JSON object, got bad JSON: {where}')
      except UnicodeDecodeError as error:
        row = ValueError(f'expected UTF-8, got: {error}')
      else:
        if not isinstance(row, dict):
          row = ValueError(f'expected a JSON object, got {reprlib.repr(row)}')
      yield f'{path}:{number}', row


def _csv_rows(
  path: pathlib.Path, report: ReadReport
) -> Iterator[tuple[str, _Row | ValueError]]:
  def mended(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
      body = line.rstrip('\r\n')
      if body in MISPRINTS:
        report.mended.append(f'{path}:{number}: a known misprint: {body}')
        line = MISPRINTS[body] + line[len(body) :]
      yield line

  with path.open(encoding='utf-8-sig', newline='') as file:
    # Not strict, a stray quote would silently merge cells, or whole rows.
    reader = csv.reader(mended(file), strict=True)
    header = None
    while True:
      place = f'{path}:{reader.line_num + 1}'
      try:
        cells = next(reader, None)
      except (csv.Error, UnicodeDecodeError) as error:
        # Where the next row begins cannot be known, so this is never a skip.
        raise ValueError(
          f'{place}: expected quoted UTF-8 csv, got: {error} (line '
          f'{reader.line_num}). Mend the file; the rest of it cannot be read.'
        ) from None
      if cells is None:
        return
      if header is None:
        header = cells
      elif len(cells) == len(header):
        yield place, dict(zip(header, cells, strict=True))
      elif cells:  # A blank line has none.
        error = ValueError(f'expected {len(header)} cells, got {len(cells)}')
        yield place, error


def _parquet_rows(
  path: pathlib.Path, known: set[str], report: ReadReport
) -> Iterator[tuple[str, _Row | ValueError]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise ImportError(
      f"{path}: reading parquet needs pyarrow: pip install 'qed[hf]', or "
      'convert the file to jsonl with the same columns.'
    ) from error
  try:
    file = parquet.ParquetFile(path)
  except pyarrow.ArrowInvalid as error:
    raise ValueError(f'{path}: expected a parquet file, got: {error}') from None
  with file:
    names = set(file.schema_arrow.names)
    report.unused_columns |= names - known
    number = 0
    for group in range(file.num_row_groups):  # Or it would read far ahead.
      for batch in file.iter_batches(
        batch_size=_PARQUET_BATCH_ROWS,
        row_groups=[group],
        columns=sorted(names & known),
      ):
        for row in batch.to_pylist():
          number += 1
          yield f'{path}: row {number}', row
