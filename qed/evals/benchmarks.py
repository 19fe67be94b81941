"""Benchmarks: public files of problems, checked against what they should hold.

A table says of each public format which columns fill which field, how many
problems each of its splits has, and, where the published file was at hand, a
digest of its content. A file with other numbers is refused; so is one with
another content, unless it is asked for by its digest. A digest that is not
known here is '': it is told, to be compared with somebody else's, and nothing
is claimed about it.

Names: imo_proofbench and imo_answerbench (IMO-Bench v2, google-deepmind/
superhuman, or their mirrors), proofbench (lm-provers/ProofBench, the problems
of arXiv 2510.13888), fineproofs_rl_test (lm-provers/FineProofs-RL-test),
matharena_CONTEST (the problem sets of MathArena/CONTEST), and own_proofs and
own_answers for files of one's own in the columns of `data.problems`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qed.data import problems
from qed.types import Problem

Kind = Literal['proof', 'answer']
_MAX_SCORE = 7.0
_YEAR = re.compile(r'(?<!\d)20\d\d(?!\d)')
_MIN_DIGEST_LENGTH = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
  """A problem of a benchmark, with what tables are divided by."""

  problem: Problem
  split: str = ''  # 'basic', 'advanced', '24_25', ...; '': there is but one.
  category: str = ''  # Algebra, ...
  level: str = ''  # IMO-easy, ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
  """The problems that a score is of."""

  name: str
  kind: Kind
  split: str  # Of the items; '': all of them.
  items: tuple[Item, ...]
  # Hexadecimal SHA-256 of the whole file's content (`digest`), and whether it
  # is the published one: None where that one's digest is not known.
  digest: str
  is_published: bool | None
  report: problems.ReadReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
  """How a benchmark is published."""

  kind: Kind
  # Field -> columns; the first that is not blank counts.
  columns: Mapping[str, tuple[str, ...]]
  sizes: Mapping[str, int] | None  # Split -> problems; None: any number.
  split: str = ''  # How an item's is told: a key of _SPLITS; '': by its column.
  digest: str = ''  # Of the content; '': the file was not at hand.


def _columns(**changes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """Those of one's own files, with what a format calls otherwise."""
  own = {
    name: problems.PROBLEM_COLUMNS[name]
    for name in (
      'problem_id',
      'statement',
      'rubric',
      'reference',
      'answer',
      'source',
    )
  }
  labels = {name: (name, name.title()) for name in ('category', 'level')}
  return own | labels | {'split': ('split',)} | changes


def _matharena(num_problems: int) -> Format:
  """A contest's problem set: its marking scheme is a list of items."""
  return Format(
    kind='proof',
    columns=_columns(
      problem_id=('problem_idx',),
      reference=('sample_solution',),
      rubric=('grading_scheme',),
    ),
    sizes={'': num_problems},
  )


FORMATS = {
  'imo_proofbench': Format(
    kind='proof',
    columns=_columns(rubric=('Grading guidelines', 'grading_guidelines')),
    sizes={'basic': 30, 'advanced': 30},
    split='imo_proofbench',
    digest='17599a9e116be0cb4a7cad15f6a0cdd521eae23f177d910b76060ca1a9217178',
  ),
  'imo_answerbench': Format(
    kind='answer',
    columns=_columns(),
    sizes={
      'algebra': 100,
      'combinatorics': 100,
      'geometry': 100,
      'number_theory': 100,
    },
    split='imo_answerbench',
    digest='4d3bd6eb0dd5cf22b2faa7747e03bb56b915860094844dcf5b4223ea74902599',
  ),
  'proofbench': Format(
    kind='proof',
    columns=_columns(rubric=('grading_scheme',), reference=('solution',)),
    sizes={'24_25': 70, 'other': 75},
    split='proofbench',
  ),
  'fineproofs_rl_test': Format(
    kind='proof', columns=_columns(), sizes={'': 128}
  ),
  'matharena_usamo_2025': _matharena(6),
  'matharena_imo_2025': _matharena(6),
  'matharena_imc_2025': _matharena(10),
  'matharena_miklos_2025': _matharena(10),
  'matharena_putnam_2025': _matharena(12),
  'matharena_usamo_2026': _matharena(6),
  'own_proofs': Format(kind='proof', columns=_columns(), sizes=None),
  'own_answers': Format(kind='answer', columns=_columns(), sizes=None),
}


def load(
  name: str,
  path: problems.Path,
  *,
  split: str = '',
  content: str = '',
  max_problems: int = 0,
) -> Benchmark:
  """Reads a benchmark (.csv, .jsonl, .parquet) and checks it.

  Args:
    name: one of `FORMATS`.
    path: its file.
    split: takes the problems of this one alone; '': all.
    content: the digest that the content must have, or its beginning; '': the
      published one, where that is known; 'any': whatever it is.
    max_problems: takes the first so many, for a trial; 0: all.

  Raises:
    ValueError: a line is no problem of this kind; the file has other numbers
      of problems than the benchmark, or another content; or there is no such
      benchmark or split.
    FileNotFoundError: there is no such file.
    ImportError: a parquet file without pyarrow.
  """
  if name not in FORMATS:
    raise ValueError(
      f'expected the name of a benchmark, one of {[*FORMATS]}, got {name!r}'
    )
  form = FORMATS[name]
  items, report = _read(form, path)
  _check_sizes(name, form, path, items)
  found = digest(items, form.kind)
  is_published = found == form.digest if form.digest else None
  _check_content(name, path, found, is_published, content)
  splits = [*dict.fromkeys(item.split for item in items)]
  if split:
    items = [item for item in items if item.split == split]
    if not items:
      raise ValueError(
        f'{path}: expected the split {split!r} of {name}, got a file with the '
        f'splits {splits}'
      )
  return Benchmark(
    name=name,
    kind=form.kind,
    split=split,
    items=tuple(items[: max_problems or None]),
    digest=found,
    is_published=is_published,
    report=report,
  )


def digest(items: Sequence[Item], kind: Kind) -> str:
  """Returns a SHA-256 of what solver and judge are shown, in hexadecimal.

  It depends neither on the order of the problems nor on white space, nor on
  what a mirror may leave out: categories, levels, sources and, of proof
  problems, the final answer.
  """
  lines = []
  for item in items:
    problem = item.problem
    texts = [problem.problem_id, problem.statement, item.split]
    if kind == 'answer':
      texts.append(problem.answer)
    else:
      texts += [problem.rubric, problem.reference]
    words = [None if text is None else ' '.join(text.split()) for text in texts]
    lines.append(json.dumps(words, ensure_ascii=True))
  return hashlib.sha256('\n'.join(sorted(lines)).encode()).hexdigest()


def _read(
  form: Format, path: problems.Path
) -> tuple[list[Item], problems.ReadReport]:
  """The items of a file; a malformed line is never passed over."""
  report = problems.ReadReport()
  items: list[Item] = []
  places: dict[str, str] = {}
  records = problems.read_records(
    [path],
    form.columns,
    lambda row: _item(problems.Line(row, form.columns), form),
    malformed='refuse',
    report=report,
    for_training=False,
  )
  for place, item in records:
    problem_id = item.problem.problem_id
    if problem_id in places:
      raise ValueError(
        f'{place}: expected a new problem_id, got {problem_id!r}, which '
        f'{places[problem_id]} has already'
      )
    places[problem_id] = place
    items.append(item)
  return items, report


def _item(line: problems.Line, form: Format) -> Item:
  statement = line.text('statement')
  problem_id = line.value('problem_id')
  if problem_id is None:
    problem_id = problems.statement_id(statement)
  problem = Problem(
    problem_id=str(problem_id),
    statement=statement,
    rubric=_rubric(line),
    reference=line.text('reference', default=None),
    answer=_answer(line, form.kind),
    source=line.text('source', default=''),
  )
  needed = {'proof': 'rubric', 'answer': 'answer'}[form.kind]
  if getattr(problem, needed) is None:
    what = f'what a benchmark of {form.kind}s is graded by'
    raise ValueError(line.expected(needed, what, None))
  labels = {
    name: line.text(name, default='') for name in ('split', 'category', 'level')
  }
  if form.split:
    labels['split'] = _SPLITS[form.split](problem.problem_id)
  return Item(problem=problem, **labels)


def _rubric(line: problems.Line) -> str | None:
  """The marking scheme as text, with points that add up to 7 where it lists."""
  value = line.value('rubric')
  if value is None or isinstance(value, str):
    return value
  if not isinstance(value, list) or not all(
    isinstance(item, Mapping) for item in value
  ):
    raise ValueError(
      line.expected('rubric', 'a string or a list of items', value)
    )
  lines = [problems.Line(x, problems.RUBRIC_ITEM_KEYS) for x in value]
  points = [x.number('points', 0, 1000) for x in lines]
  if None in points or not sum(points):
    raise ValueError(line.expected('rubric', 'items with points', value))
  total = sum(points)
  if total == _MAX_SCORE:
    return problems.rubric_text(value)
  # Contests that give 10 points: judges are asked for 0 to 7.
  scaled = [
    {
      'title': x.text('title'),
      'points': round(p * _MAX_SCORE / total, 3),
      'desc': x.text('description', default=''),
    }
    for x, p in zip(lines, points, strict=True)
  ]
  note = (
    f'The contest gives {total:g} points for this problem. The points below '
    'are brought to 7 in all; round their sum to a whole score.'
  )
  return f'{note}\n\n{problems.rubric_text(scaled)}'


def _answer(line: problems.Line, kind: Kind) -> str | None:
  """The final answer; a bare number stands for its digits."""
  value: Any = line.value('answer')
  if isinstance(value, int | float) and not isinstance(value, bool):
    return f'{value:g}' if isinstance(value, float) else str(value)
  if kind == 'proof' and not isinstance(value, str):
    return None
  return line.text('answer', default=None)


def _imo_proofbench_split(problem_id: str) -> str:
  """Of PB-Basic-001, basic."""
  for split in ('basic', 'advanced'):
    if split in problem_id.lower():
      return split
  raise ValueError(
    'field problem_id: expected an id with Basic or Advanced in it, got '
    f'{problem_id!r}'
  )


def _imo_answerbench_split(problem_id: str) -> str:
  """Of imo-bench-number_theory-001, number_theory."""
  area = re.fullmatch(r'imo-bench-([a-z_]+)-\d+', problem_id)
  if not area:
    raise ValueError(
      'field problem_id: expected an id such as imo-bench-algebra-001, got '
      f'{problem_id!r}'
    )
  return area[1]


def _proofbench_split(problem_id: str) -> str:
  """The contests of 2024 and 2025 apart from the others, as it is published."""
  years = _YEAR.findall(problem_id)
  if not years:
    raise ValueError(
      'field problem_id: expected an id with the year of a contest in it, got '
      f'{problem_id!r}'
    )
  return '24_25' if years[0] in ('2024', '2025') else 'other'


_SPLITS = {
  'imo_proofbench': _imo_proofbench_split,
  'imo_answerbench': _imo_answerbench_split,
  'proofbench': _proofbench_split,
}


def _check_sizes(
  name: str, form: Format, path: problems.Path, items: Sequence[Item]
) -> None:
  found = dict(Counter(item.split for item in items))
  if form.sizes is not None and found != dict(form.sizes):
    raise ValueError(
      f'{path}: expected the {sum(form.sizes.values())} problems of {name} '
      f'(split: number {dict(form.sizes)}), got {len(items)} ({found}); for a '
      f'file of your own take own_{form.kind}s'
    )


def _check_content(
  name: str,
  path: problems.Path,
  found: str,
  is_published: bool | None,
  expected: str,
) -> None:
  if expected == 'any':
    return
  if expected:
    if len(expected) < _MIN_DIGEST_LENGTH or not found.startswith(expected):
      raise ValueError(
        f'{path}: expected content with the digest {expected!r} (at least '
        f"{_MIN_DIGEST_LENGTH} digits of it, '' or 'any'), got {found}"
      )
  elif is_published is False:
    raise ValueError(
      f'{path}: expected the content of {name} as published (digest '
      f'{FORMATS[name].digest}), got {found}: another version, or an edited '
      "file. Give that digest, or 'any', to take it all the same."
    )
