"""The graded groups of a run that a page shows.

rollouts.jsonl may have millions of lines; they are read one by one, and only
the chosen groups are kept.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

Record = dict[str, Any]


def choose(
  run_dir: str | os.PathLike[str], *, max_groups: int
) -> tuple[list[Record], int]:
  """Reads the groups of a run, evenly from its beginning to its end.

  Groups with trainer log-probabilities (inspected.jsonl) come before others.

  Args:
    run_dir: of `qed grpo`; its rollouts.jsonl may be missing or in the making.
    max_groups: how many at most.

  Returns:
    (groups, how many there were to choose from). A group has `group_id`,
    `problem_id`, `problem` (the record, or None), `step` (or None) and
    `rollouts`: lines of rollouts.jsonl with, where they were inspected,
    `trainer_logprobs`, `tokens` and `advantage`.

  Raises:
    ValueError: a line that is no JSON object with a group_id.
  """
  run_dir = pathlib.Path(run_dir)
  # After a restart a rollout may be there twice, and the last one counts.
  offsets: dict[int, dict[int, int]] = {}
  for offset, record in _records(run_dir / 'rollouts.jsonl'):
    members = offsets.setdefault(record['group_id'], {})
    members[record.get('rollout', len(members))] = offset
  inspected: dict[int, dict[int, Record]] = {}
  for _, record in _records(run_dir / 'inspected.jsonl'):
    inspected.setdefault(record['group_id'], {})[record['rollout']] = record
  # In the order in which their first rollout was graded, as dicts keep it.
  candidates = [group for group in offsets if group in inspected]
  others = [group for group in offsets if group not in inspected]
  chosen = {*spread(candidates, max_groups)}
  chosen |= {*spread(others, max_groups - len(chosen))}
  problems = {
    record['problem_id']: record
    for _, record in _records(run_dir / 'problems.jsonl', key='problem_id')
  }
  groups = []
  for group in (group for group in offsets if group in chosen):
    places = [offset for _, offset in sorted(offsets[group].items())]
    rollouts = _read_at(run_dir / 'rollouts.jsonl', places)
    seen = inspected.get(group, {})
    for rollout in rollouts:
      extra = seen.get(rollout.get('rollout'), {})
      rollout.update(
        {
          name: extra[name]
          for name in ('trainer_logprobs', 'tokens', 'advantage')
          if name in extra
        }
      )
    first = rollouts[0]
    groups.append(
      {
        'group_id': group,
        'problem_id': first.get('problem_id', ''),
        'problem': problems.get(first.get('problem_id')),
        'step': next((r['step'] for r in seen.values()), None),
        'rollouts': rollouts,
      }
    )
  return groups, len(offsets)


def choose_attempts(
  run_dir: str | os.PathLike[str], *, max_groups: int
) -> tuple[list[Record], int]:
  """Reads the graded attempts of an evaluation, problem by problem.

  Args:
    run_dir: of `qed evaluate`.
    max_groups: problems at most, evenly from the first to the last.

  Returns:
    (groups, how many there were to choose from), as `choose` has them; what
    stands beside a rollout's name is in `facts`.
  """
  path = pathlib.Path(run_dir) / 'records.jsonl'
  # Of several lines about an attempt and a judge, the last one.
  offsets: dict[str, dict[tuple[int, str], int]] = {}
  for offset, record in _records(path, key='problem_id'):
    if record['solution']:
      key = (record['attempt'], record['judge'])
      offsets.setdefault(record['problem_id'], {})[key] = offset
  problems = {
    record['problem_id']: record
    for _, record in _records(
      path.with_name('problems.jsonl'), key='problem_id'
    )
  }
  groups = []
  for problem_id in spread([*offsets], max_groups):
    places = [place for _, place in sorted(offsets[problem_id].items())]
    groups.append(
      {
        'group_id': problem_id,
        'problem_id': problem_id,
        'problem': problems.get(problem_id),
        'step': None,
        'rollouts': [_attempt(record) for record in _read_at(path, places)],
      }
    )
  return groups, len(offsets)


def _attempt(record: Record) -> Record:
  """A line of records.jsonl as the viewer takes it."""
  solution, grade = record['solution'], record['grade']
  score = grade['score']
  names = {
    'completion_tokens': 'tokens',
    'calls': 'call(s)',
    'truncated': 'truncated',
    'failed': 'failed',
  }
  usage = solution['usage']
  return {
    'name': f'attempt {record["attempt"]}',
    'text': solution['text'] or 'There is no proof.',
    'reward': None if score is None else score / 7,
    'grade': grade,
    'facts': [
      *(
        f'{usage[key]:,} {name}'
        for key, name in names.items()
        if usage.get(key)
      ),
      f'judge: {record["judge_name"]}',
    ],
  }


def spread(items: list, count: int) -> list:
  """At most `count` of the items, evenly, with the first and the last."""
  if count <= 0:
    return []
  if len(items) <= count:
    return list(items)
  if count == 1:
    return items[-1:]
  last = len(items) - 1
  return [items[round(i * last / (count - 1))] for i in range(count)]


def _records(
  path: pathlib.Path, key: str = 'group_id'
) -> Iterator[tuple[int, Mapping[str, Any]]]:
  """(offset, record) of every whole line; nothing where there is no file."""
  if not path.exists():
    return
  with path.open('rb') as file:
    offset = 0
    for number, line in enumerate(file, start=1):
      if not line.endswith(b'\n'):
        return  # Still in the making.
      try:
        record = json.loads(line)
        record[key]
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{path}:{number}: expected a JSON object with {key}, got '
          f'{line[:80]!r}'
        ) from error
      yield offset, record
      offset += len(line)


def _read_at(path: pathlib.Path, offsets: list[int]) -> list[Record]:
  records = []
  with path.open('rb') as file:
    for offset in offsets:
      file.seek(offset)
      records.append(json.loads(file.readline()))
  return records
