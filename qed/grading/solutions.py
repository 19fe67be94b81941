"""Solutions that people have graded: what a judge is measured against.

One record for every source, and one table per source of what its columns are
called. QEDBench is read from a file that the user supplies; its terms allow
evaluation only, so it lives here and nowhere near training data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from qed.data import problems
from qed.types import Problem

MAX_SCORE = 7.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GradedSolution:
  """A proof with the scores that people (or a reference judge) gave it."""

  item_id: str
  problem: Problem  # Its rubric is the one that was graded by.
  proof: str
  human_scores: tuple[float, ...]  # 0..7, of each grader; at least one.
  source: str
  domain: str = ''
  solver: str = ''  # Who wrote the proof.
  rubric_kind: str = ''  # 'expert' or 'course', where there are two rubrics.

  @property
  def human_score(self) -> float:
    """The mean over the graders."""
    return sum(self.human_scores) / len(self.human_scores)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
  """How a source writes graded solutions."""

  columns: Mapping[str, tuple[str, ...]]  # Field -> columns; the first counts.
  max_score: float = MAX_SCORE  # Where no column says so.


_FIELDS = (
  'item_id',
  'problem_id',
  'statement',
  'rubric',
  'reference',
  'proof',
  'human_score',
  'human_scores',
  'max_score',
  'domain',
  'solver',
  'rubric_kind',
)
FORMATS = {
  # Ours: the columns are called as the fields.
  'graded': Format(columns={}),
  # wenjiema02/ProofBench (arXiv 2510.13888).
  'proofbench': Format(
    columns={
      'statement': ('problem',),
      'rubric': ('marking_scheme',),
      'reference': ('reference_solution',),
      'proof': ('model_solution',),
      'human_score': ('expert_rating',),
      'solver': ('generator',),
    }
  ),
  # imobench/gradingbench.csv of google-deepmind/superhuman.
  'imo_gradingbench': Format(
    columns={
      'item_id': ('Grading ID',),
      'problem_id': ('Problem ID',),
      'statement': ('Problem',),
      'rubric': ('Grading guidelines',),
      'reference': ('Solution',),
      'proof': ('Response',),
      'human_score': ('Points',),
    }
  ),
  # lm-provers/matharena-gradingbench.
  'matharena': Format(
    columns={
      'problem_id': ('problem_idx',),
      'statement': ('problem',),
      'rubric': ('details',),
      'reference': ('reference_solution',),
      'proof': ('answer',),
      'human_score': ('points',),
      'max_score': ('max_points',),
      'solver': ('model_name',),
    }
  ),
  # lm-provers/olympiads-proof-graderbench; graded by a model.
  'olympiads': Format(
    columns={
      'statement': ('text',),
      'rubric': ('schema_0',),
      'reference': ('solution',),
      'proof': ('model_solution',),
      'human_score': ('points',),
    }
  ),
  # The user's own file of QEDBench (arXiv 2602.20629), in its terms: scores
  # from 0 to 1, and two rubrics.
  'qedbench': Format(
    columns={
      'statement': ('problem',),
      'rubric': ('rubric_text',),
      'rubric_kind': ('rubric',),
      'proof': ('solution',),
    },
    max_score=1.0,
  ),
}


def load(
  paths: Sequence[problems.Path],
  *,
  source: str,
  columns: Iterable[str] = (),
  malformed: problems.OnMalformed,
) -> tuple[list[GradedSolution], problems.ReadReport]:
  """Reads graded solutions (.jsonl, .csv, .parquet).

  Args:
    paths: files, read in this order.
    source: one of `FORMATS`.
    columns: 'field=column' for a file that calls a column otherwise.
    malformed: 'skip' counts a line that is no graded solution in the report,
      'refuse' raises.

  Returns:
    The solutions in file order with scores brought to 0..7, and the report. A
    solution without an id gets one from its problem, rubric and proof.

  Raises:
    ValueError: an unknown source or field, a repeated id, or as
      `problems.load_problems` but for benchmarks that may only be evaluated on.
  """
  if source not in FORMATS:
    raise ValueError(
      f'expected the source of graded solutions, one of {[*FORMATS]}, got '
      f'{source!r}'
    )
  form = FORMATS[source]
  table = {field: form.columns.get(field, (field,)) for field in _FIELDS}
  for pair in columns:
    field, _, column = pair.partition('=')
    if field not in table or not column:
      raise ValueError(
        f'expected FIELD=COLUMN with a field of {[*table]}, got {pair!r}'
      )
    table[field] = (column,)

  def convert(row: Mapping[str, Any]) -> GradedSolution:
    return _solution(problems.Line(row, table), source, form.max_score)

  report = problems.ReadReport()
  places: dict[str, str] = {}
  solutions = []
  for place, solution in problems.read_records(
    paths,
    table,
    convert,
    malformed=malformed,
    report=report,
    for_training=False,
  ):
    if not solution.item_id:
      solution = _with_id(solution, places)
    if solution.item_id in places:
      raise ValueError(
        f'{place}: expected a new item_id, got {solution.item_id!r}, which '
        f'{places[solution.item_id]} has already'
      )
    places[solution.item_id] = place
    solutions.append(solution)
  return solutions, report


def _solution(
  line: problems.Line, source: str, max_score: float
) -> GradedSolution:
  """A row as a record."""
  statement = line.text('statement')
  problem_id = _name(line, 'problem_id') or problems.statement_id(statement)
  rubric = line.value('rubric')
  if isinstance(rubric, list):
    rubric = problems.rubric_text([_scheme_item(item) for item in rubric])
  elif rubric is not None and not isinstance(rubric, str):
    raise ValueError(
      line.expected('rubric', 'a string or a list of items', rubric)
    )
  return GradedSolution(
    item_id=_name(line, 'item_id'),
    problem=Problem(
      problem_id=problem_id,
      statement=statement,
      rubric=rubric,
      reference=line.text('reference', default=None),
      source=source,
    ),
    proof=line.text('proof'),
    human_scores=_scores(line, max_score),
    source=source,
    domain=_name(line, 'domain'),
    solver=_name(line, 'solver'),
    rubric_kind=_name(line, 'rubric_kind'),
  )


def _with_id(
  solution: GradedSolution, taken: Collection[str]
) -> GradedSolution:
  """The solution with an id from what it consists of, and a number if need be.

  A problem's solutions may be equal word for word: "no solution found".
  """
  texts = [solution.problem.statement, solution.problem.rubric, solution.proof]
  content = '\0'.join(text or '' for text in texts)
  digest = hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()
  first = f'{solution.problem.problem_id}/{digest[:12]}'
  names = itertools.chain([first], (f'{first}#{n}' for n in itertools.count(2)))
  item_id = next(name for name in names if name not in taken)
  return dataclasses.replace(solution, item_id=item_id)


def _scores(line: problems.Line, max_score: float) -> tuple[float, ...]:
  """Every grader's score, on the scale 0..7."""
  most = line.number('max_score', 1e-9, 1e9) or max_score
  several = line.value('human_scores')
  if several is not None:
    if not isinstance(several, list | tuple):
      raise ValueError(line.expected('human_scores', 'a list', several))
    rows = [{'human_score': score} for score in several]
    lines = [
      problems.Line(row, {'human_score': ['human_score']}) for row in rows
    ]
  else:
    lines = [line]
  scores = [each.number('human_score', 0, most) for each in lines]
  if None in scores:
    raise ValueError(line.expected('human_score', 'a number', None))
  return tuple(score * MAX_SCORE / most for score in scores)


def _name(line: problems.Line, field: str) -> str:
  """A short text; a number stands for its digits."""
  value = line.value(field)
  return '' if value is None else str(value).strip()


def _scheme_item(item: Any) -> Any:
  """An item of a marking scheme, without what a grader wrote into it.

  Published gradings repeat the scheme with the awarded `points` and the
  grader's comment in `desc` beside `max_points` and `grading_scheme_desc`; a
  judge that saw them would only have to copy.
  """
  if not isinstance(item, Mapping) or 'max_points' not in item:
    return item
  hidden = {'points'}
  if 'grading_scheme_desc' in item:
    hidden |= {'desc', 'description'}
  return {key: value for key, value in item.items() if key not in hidden}
