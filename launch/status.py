"""How far the work units of an experiment are, from their directories alone.

  python -m launch.status runs [runs/sft_lr-*] [--watch=10]

A folder that is no run directory stands for those in it. What is shown of each:

saved     the newest step with a checkpoint, of how many
step      the newest with metrics; a run does again what it has not saved
metric    the latest of what its program is about
restarts  of the main job + of services
tokens    that samplers or solvers wrote
usd       for solver and judge, at the prices of the config
state     running: a launcher of this machine holds it; stopped: none does any
          more; failed: it takes a person; done
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags

from launch import run_dirs
from qed import cli
from qed.grading import verdicts
from qed.planning import tables
from qed.reporting import sweep

_HEADER = (
  'work unit', 'saved', 'step', 'metric', 'restarts', 'tokens', 'usd', 'state',
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
  """Prints the table, once or again and again."""
  values = flags.FlagValues()
  flags.DEFINE_float(
    'watch',
    0.0,
    'seconds from one table to the next; 0: one',
    flag_values=values,
  )
  given = cli.parse_flags(argv, values, usage=__doc__, arguments=('DIR...',))
  while True:
    found = find(map(pathlib.Path, given))
    if not found:
      raise app.UsageError(f'{" ".join(given)}: there is no run directory')
    tables.show([table(found)])
    if not values['watch'].value:
      return cli.DONE
    time.sleep(values['watch'].value)


def find(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """The run directories among paths and right below them."""
  found = []
  for path in paths:
    if _is_run(path):
      found.append(path)
    elif path.is_dir():
      found += sorted(child for child in path.iterdir() if _is_run(child))
  return found


def table(workdirs: Sequence[pathlib.Path]) -> tables.Table:
  """A row for each run directory."""
  return tables.Table(
    title=f'{len(workdirs)} work unit' + ('s' if len(workdirs) != 1 else ''),
    header=_HEADER,
    rows=[_row(workdir) for workdir in workdirs],
  )


def _is_run(path: pathlib.Path) -> bool:
  names = ('config.json', run_dirs.ATTEMPTS, run_dirs.LOCK)
  return any((path / name).is_file() for name in names)


def _row(workdir: pathlib.Path) -> tuple[str, ...]:
  config = _read_json(workdir / 'config.json').get('config', {})
  metrics = _metrics(workdir)
  attempts = run_dirs.read_attempts(workdir)
  saved = ''
  if training := config.get('training'):
    saved = str(run_dirs.saved(workdir))
    if training['total_steps']:
      saved += f'/{training["total_steps"]}'
  return (
    workdir.name,
    saved,
    str(max(metrics)) if metrics else '',
    _metric(workdir, config.get('program', ''), metrics),
    _restarts(attempts),
    *_spend(workdir, config),
    _state(workdir, attempts),
  )


def _state(workdir: pathlib.Path, attempts: Sequence[Mapping[str, Any]]) -> str:
  if run_dirs.is_locked(workdir):
    return 'running'
  ends = [end['verdict'] for end in attempts if end['job'] == 'main']
  if ends:
    return {'done': 'done', 'permanent': 'failed'}.get(ends[-1], 'stopped')
  # Nobody of this machine launched it.
  return 'done' if (workdir / 'summary.json').exists() else ''


def _restarts(attempts: Sequence[Mapping[str, Any]]) -> str:
  jobs = [end['job'] for end in attempts if end['verdict'] == 'restart']
  of_main = jobs.count('main')
  others = len(jobs) - of_main
  return f'{of_main} + {others}' if others else f'{of_main}'


def _metric(
  workdir: pathlib.Path,
  program: str,
  metrics: Mapping[int, Mapping[str, float]],
) -> str:
  for name, _ in sweep.METRICS.get(program, ()):
    for step in sorted(metrics, reverse=True):
      value = metrics[step].get(name, math.nan)
      if math.isfinite(value):
        return f'{name} {value:.4g}'
  summary = _read_json(workdir / 'summary.json')
  if 'score' in summary:
    return f'score {summary["score"]["mean"]:.1%}'
  return ''


def _spend(workdir: pathlib.Path, config: Mapping[str, Any]) -> tuple[str, str]:
  """Tokens that were written, and what they and the judge cost, as texts."""
  usages = _usages(workdir / 'records.jsonl')
  tokens = sum(usage.get('completion_tokens', 0) for usage in usages)
  tokens += _read_json(workdir / 'ledger.json').get('generated', 0)
  usd, store = 0.0, workdir / 'verdicts.sqlite'
  prices = config.get('budget', {})  # Of the solver of an evaluation.
  for name in ('prompt', 'completion'):
    count = sum(usage.get(f'{name}_tokens', 0) for usage in usages)
    usd += count * prices.get(f'usd_per_million_{name}', 0.0) / 1e6
  judge = config.get('judge')
  if judge and store.exists():
    price = judge['usd_per_million_prompt'], judge['usd_per_million_completion']
    with verdicts.Verdicts(store) as found:
      usd += found.ledger({judge['model']: price}).usd
  has_spent = usages or store.exists()
  return f'{tokens:,}' if tokens else '', f'{usd:.2f}' if has_spent else ''


def _usages(records: pathlib.Path) -> list[Mapping[str, int]]:
  """Of every solution that an evaluation has on file."""
  if not records.exists():
    return []
  *lines, _ = records.read_text(encoding='utf-8').split('\n')
  solutions = (json.loads(line)['solution'] for line in lines)
  return [solution['usage'] for solution in solutions if solution]


def _metrics(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
  from qed.training import metrics  # It imports jax.

  path = workdir / 'metrics.jsonl'
  return metrics.read(path) if path.exists() else {}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  return json.loads(path.read_text(encoding='utf-8'))


if __name__ == '__main__':
  sys.exit(cli.run(main))
