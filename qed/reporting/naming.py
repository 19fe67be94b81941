"""What runs and entries of a leaderboard are called; which belong together.

An entry is one of `evaluations` in the summary.json of `qed evaluate`, with the
name of its run: {'run': ..., 'model': ..., 'scaffold': ..., 'identity': ...}.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from qed.reporting import published

Entry = Mapping[str, Any]
BENCHMARKS = {
  'imo_proofbench': 'IMO-ProofBench',
  'proofbench': 'ProofBench',
  'imo_answerbench': 'IMO-AnswerBench',
  'fineproofs_rl_test': 'FineProofs-RL-test',
}
SCAFFOLDS = {
  'single': 'Single turn',
  'best_of_n': 'Best of n, verified',
  'reasoning_cache': 'Reasoning cache',
  'rsa': 'RSA',
  'selfcheck': 'Self-check',
  'deepseek_math': 'DeepSeekMath-V2',
  'nomos': 'Nomos',
}


def run_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
  """The end of each path, as long as it takes to be no other's.

  Args:
    paths: run directories.
  """
  parts = [pathlib.Path(path).resolve().parts for path in paths]

  def name(own: tuple[str, ...]) -> str:
    others = {other for other in parts if other != own}
    count = 1
    while own[-count:] in {other[-count:] for other in others}:
      count += 1
    return pathlib.PurePath(*own[-count:]).as_posix()

  return [name(own) for own in parts]


def column_key(entry: Entry) -> tuple[tuple[str, str, str, int], str]:
  """What scores must have in common to stand in one column."""
  about = entry['identity']
  problems = (
    about['benchmark'],
    about['content'],
    entry['split'],
    entry['num_problems'],
  )
  return problems, about['judge']


def groups(entries: Sequence[Entry], names: Sequence[str]) -> list[list[Entry]]:
  """Entries of one column that share these fields, in order of appearance."""
  groups: dict[Any, list[Entry]] = {}
  for entry in entries:
    values = [entry.get(name, entry['identity'].get(name)) for name in names]
    groups.setdefault((*values, column_key(entry)), []).append(entry)
  return [*groups.values()]


def by_tokens(entries: Sequence[Entry]) -> list[Entry]:
  """The entries, those that wrote the fewest tokens first."""
  return sorted(entries, key=lambda e: e['tokens']['completion'] or 0)


def is_published_subject(entry: Entry) -> bool:
  """Whether Tables 2 and 6 are about this model and these problems."""
  about = entry['model'], entry['identity']['benchmark'], entry['num_problems']
  return about == (
    published.MODEL,
    published.BENCHMARK,
    published.NUM_PROBLEMS,
  )


def benchmark_name(entry: Entry) -> str:
  """Such as IMO-ProofBench (advanced), 30 problems."""
  about = entry['identity']
  name = BENCHMARKS.get(about['benchmark'], about['benchmark'])
  parts = [entry['split']] if entry['split'] else []
  if entry['is_published_content'] is False:
    parts.append(f'content {about["content"][:8]}')
  details = f' ({", ".join(parts)})' if parts else ''
  return f'{name}{details}, {entry["num_problems"]} problems'


def judge_name(entry: Entry, entries: Sequence[Entry]) -> str:
  """The judge's name, with its digest where another has the same name."""
  name, digest = (entry['identity'][x] for x in ('judge_name', 'judge'))
  others = {
    other['identity']['judge']
    for other in entries
    if other['identity']['judge_name'] == name
  }
  return name if len(others) < 2 else f'{name} #{digest[:6]}'


def with_turns(scaffold: str, turns: int) -> str:
  """Such as Reasoning cache, 3 turns; other scaffolds have none."""
  name = SCAFFOLDS[scaffold]
  return f'{name}, {turns} turns' if scaffold == 'reasoning_cache' else name


def scaffold_name(entry: Entry, entries: Sequence[Entry]) -> str:
  """The scaffold with what it was given, and the run where these are equal."""
  name = with_turns(entry['scaffold'], entry['turns'])
  if entry['max_tokens']:
    name += f', at most {entry["max_tokens"]:,} tokens'
  return distinct(name, entry, entries, ('scaffold', 'turns', 'max_tokens'))


def distinct(
  name: str, entry: Entry, entries: Sequence[Entry], fields: Sequence[str]
) -> str:
  """The name, with that of the run where another entry has the same."""
  same = [e for e in entries if all(e[f] == entry[f] for f in fields)]
  return name if len(same) < 2 else f'{name} ({entry["run"]})'
