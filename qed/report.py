"""One static page about runs: plots, graded proofs, configuration.

  qed report RUN_DIR...

  qed report runs/rl_main
  qed report --out=comparison runs/rl_main runs/rl_lag

The page of a single run goes into its own folder: RUN_DIR/report/index.html.
It opens from disk and needs no network. A folder whose subfolders are runs,
such as that of `qed demo`, stands for all of them. A run is called by the end
of its path, with as many folders as tell it apart. Of runs that differ in their
config the page has the sweep, too: the final metric against what was swept.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from qed import cli
from qed.evals import summary
from qed.reporting import naming, page, rollouts


def main(argv: Sequence[str]) -> int:
  """Writes the page and prints where it is."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'out',
    '',
    'the folder of the page; for one RUN_DIR it is RUN_DIR/report if not given',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_groups',
    48,
    'how many groups of rollouts the viewer of a run holds',
    lower_bound=0,
    flag_values=values,
  )
  given = cli.parse_flags(
    argv, values, usage=__doc__, arguments=('RUN_DIR...',)
  )
  out = values['out'].value
  if len(given) > 1 and not out:
    raise app.UsageError(
      f'a page about {len(given)} runs needs a folder: --out=FOLDER'
    )
  folder = pathlib.Path(out or pathlib.Path(given[0]) / 'report')
  print(write([*map(pathlib.Path, given)], folder, values['max_groups'].value))
  return cli.DONE


def write(
  paths: Sequence[pathlib.Path], folder: pathlib.Path, max_groups: int
) -> pathlib.Path:
  """Writes a page about runs.

  Args:
    paths: run directories, or folders of run directories.
    folder: of the page.
    max_groups: of each run, in the viewer.

  Returns:
    The path of index.html.

  Raises:
    app.UsageError: a folder that is no run and holds none.
  """
  folders = []
  for path in paths:
    found = [path] if _is_run(path) else []
    if path.is_dir():
      children = sorted(child for child in path.iterdir() if _is_run(child))
      # In the order in which they were begun: the stages of a demo.
      found += sorted(children, key=_begun)
    if not found:
      raise app.UsageError(
        f'{path}: expected a run directory, with metrics.jsonl, config.json or '
        'summary.json'
      )
    folders += found
  names = naming.run_names(folders)
  runs = [
    _read(run, name, max_groups)
    for run, name in zip(folders, names, strict=True)
  ]
  return page.write(folder, runs, _compare(runs))


def _is_run(path: pathlib.Path) -> bool:
  files = ('metrics.jsonl', 'summary.json')
  return any((path / name).is_file() for name in files) or (
    (path / 'config.json').is_file()
    and 'config' in _read_json(path / 'config.json')
  )


def _begun(path: pathlib.Path) -> float:
  config = path / 'config.json'
  return config.stat().st_mtime if config.exists() else 0.0


def _read(path: pathlib.Path, name: str, max_groups: int) -> page.Run:
  # The reader of metrics.jsonl imports jax.
  from qed.training import metrics

  choose = rollouts.choose
  found = _read_json(path / 'summary.json')
  if found.get('program') == 'evaluate':
    choose = rollouts.choose_attempts
  groups, num_groups = choose(path, max_groups=max_groups)
  record = path / 'metrics.jsonl'
  return page.Run(
    name=name,
    config=_read_json(path / 'config.json'),
    metrics=metrics.read(record) if record.exists() else {},
    summary=found,
    groups=groups,
    num_groups=num_groups,
    evaluations=[{'run': name} | x for x in found.get('evaluations', ())],
  )


def _compare(runs: Sequence[page.Run]) -> list[dict[str, Any]]:
  """Every evaluation less the first of the same problems and judge."""
  entries = [entry for run in runs for entry in run.evaluations]
  compared = []
  for first, *others in naming.groups(entries, ()):
    for other in others:
      found = summary.compare(other, first)
      value = found.difference
      compared.append(
        {
          'first': other['run'],
          'second': first['run'],
          'difference': _known(value.value),
          'low': _known(value.low),
          'high': _known(value.high),
          'p_value': _known(found.p_value),
          'better': found.num_better,
          'equal': found.num_equal,
          'worse': found.num_worse,
        }
      )
  return compared


def _known(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _read_json(path: pathlib.Path) -> dict:
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise app.UsageError(f'{path} is not JSON: {error}') from error


if __name__ == '__main__':
  sys.exit(cli.run(main))
