"""What a data set says of itself: where it is from and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qed.curation.stages import Report


def make(
  name: str,
  *,
  about: str,
  rows: int,
  sha256: str,
  inputs: Sequence[Mapping[str, Any]],
  reports: Sequence[Report],
  versions: Mapping[str, str],
) -> dict[str, Any]:
  """The card of one output, as json has it.

  Args:
    name: of the file.
    about: what is in it.
    rows: in it.
    sha256: of it.
    inputs: 'source', 'path', 'sha256', 'bytes' and 'license' of each file.
    reports: of the stages before it, in order.
    versions: of the code and of what it used.
  """
  return {
    'name': name,
    'about': about,
    'rows': rows,
    'sha256': sha256,
    'inputs': [dict(row) for row in inputs],
    'stages': [
      {
        'stage': report.stage,
        'in': report.num_in,
        'kept': report.num_kept,
        'removed': dict(report.removed),
        'remarks': dict(report.remarks),
        'settings': dict(report.settings),
        'sha256': report.sha256,
      }
      for report in reports
    ],
    'versions': dict(versions),
  }


def markdown(card: Mapping[str, Any]) -> str:
  """The card for people."""
  lines = [f'# {card["name"]}', '', card['about'], '']
  lines += [f'{card["rows"]:,} rows, sha256 `{card["sha256"]}`.', '']
  lines += ['## Where it is from', '']
  lines += _table(
    ('source', 'file', 'bytes', 'license', 'sha256'),
    [
      (
        r['source'],
        r['path'],
        f'{r["bytes"]:,}',
        r['license'],
        r['sha256'][:16],
      )
      for r in card['inputs']
    ],
  )
  lines += ['## What was removed, and why', '']
  rows = []
  for stage in card['stages']:
    rows.append((stage['stage'], '', f'{stage["in"]:,}', f'{stage["kept"]:,}'))
    rows += [
      ('', reason, f'-{count:,}', '')
      for reason, count in stage['removed'].items()
    ]
    rows += [
      ('', f'({remark}: {count:,})', '', '')
      for remark, count in stage['remarks'].items()
    ]
  lines += _table(('stage', 'reason', 'in', 'kept'), rows)
  lines += ['## By which bounds', '']
  lines += _table(
    ('stage', 'setting', 'value'),
    [
      (stage['stage'], name, _shown(value))
      for stage in card['stages']
      for name, value in _flat(stage['settings'])
    ],
  )
  lines += ['## With which code', '']
  lines += _table(('package', 'version'), list(card['versions'].items()))
  return '\n'.join(lines).rstrip() + '\n'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  cells = [header, ['---'] * len(header), *rows]
  return ['| ' + ' | '.join(_cell(c) for c in row) + ' |' for row in cells] + [
    ''
  ]


def _cell(text: str) -> str:
  return ' '.join(str(text).replace('|', r'\|').split())


def _flat(
  settings: Mapping[str, Any], prefix: str = ''
) -> list[tuple[str, Any]]:
  found = []
  for name, value in settings.items():
    if isinstance(value, Mapping):
      found += _flat(value, f'{prefix}{name}.')
    else:
      found.append((prefix + name, value))
  return found


def _shown(value: Any) -> str:
  return ', '.join(map(str, value)) if isinstance(value, list) else str(value)
