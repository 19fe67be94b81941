"""Beginnings of proofs, and what a model is asked to make of them.

POPE (privileged on-policy exploration, arXiv 2601.18779): where a model never
proves a problem, it is given the beginning of a proof that is known. Curation
chooses the beginnings and training practises behind them; both ask the same
question and show their judge the same proof, by the functions here.
"""

from __future__ import annotations

import dataclasses

from qed.data import problems, templates

PREFIX_COLUMNS = {
  'problem_id': ('problem_id',),
  'prefix': ('prefix',),
  'fraction': ('fraction',),
  'num_successes': ('num_successes',),
  'num_trials': ('num_trials',),
  'oracle': ('oracle',),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
  """A beginning of a reference proof, and how far it helps."""

  problem_id: str
  prefix: str
  fraction: float  # Of the characters of the proof.
  num_successes: int
  num_trials: int  # With a score.
  oracle: str  # Where the proof is from.


def question(statement: str, prefix: str, template: str) -> str:
  """What a model is asked with the beginning of a proof at hand.

  Args:
    statement: of the problem.
    prefix: the beginning.
    template: a name, or a text, with the slots problem and prefix.
  """
  return templates.render(template, problem=statement, prefix=prefix)


def whole_proof(prefix: str, rest: str | None) -> str | None:
  """What is graded: the beginning and the rest, as one proof.

  Half a proof would be graded as such.

  Args:
    prefix: '' where there was none.
    rest: None where the model came to no proof.
  """
  if not prefix or rest is None:
    return rest
  return f'{prefix}\n\n{rest}'


def load(
  *paths: problems.Path, malformed: problems.OnMalformed
) -> tuple[dict[str, Prefix], problems.ReadReport]:
  """Reads what `qed curate` writes as prefixes.jsonl.

  Args:
    *paths: files, read in this order.
    malformed: as in `problems.load_problems`.

  Returns:
    The prefix of each problem_id, and what came of reading.

  Raises:
    ValueError: as `problems.load_problems`; two prefixes of one problem too.
  """
  report = problems.ReadReport()
  found: dict[str, Prefix] = {}
  for place, prefix in problems.read_records(
    paths, PREFIX_COLUMNS, _prefix, malformed=malformed, report=report
  ):
    if prefix.problem_id in found:
      raise ValueError(
        f'{place}: field problem_id: expected a new id, got '
        f'{prefix.problem_id!r}, of which there is a prefix already; remove '
        'one of the two lines.'
      )
    found[prefix.problem_id] = prefix
  return found, report


def _prefix(row) -> Prefix:
  line = problems.Line(row, PREFIX_COLUMNS)
  return Prefix(
    problem_id=line.text('problem_id'),
    prefix=line.text('prefix'),
    fraction=line.number('fraction', 0, 1) or 0.0,
    num_successes=int(line.number('num_successes', 0, 1e9) or 0),
    num_trials=int(line.number('num_trials', 0, 1e9) or 0),
    oracle=line.text('oracle', default=''),
  )
