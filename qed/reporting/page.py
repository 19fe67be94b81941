"""One static page about runs; it opens from disk, without a network.

Whatever a model or a judge wrote reaches the page as JSON and is put there as
text; only KaTeX turns what stands between its delimiters into formulas.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from qed.reporting import cells, leaderboard, plots, score_plots, sweep

_ASSETS = pathlib.Path(__file__).with_name('assets')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
  """What a page tells about one run."""

  name: str
  config: Mapping[str, Any]  # The content of config.json.
  metrics: plots.Metrics
  summary: Mapping[str, Any]  # The content of summary.json.
  groups: Sequence[Mapping[str, Any]]  # As `rollouts.choose` gives them.
  num_groups: int  # That there were to choose from.
  # Of `qed evaluate`: what `naming` calls entries.
  evaluations: Sequence[Mapping[str, Any]] = ()


def write(
  folder: str | os.PathLike[str],
  runs: Sequence[Run],
  compared: Sequence[Mapping[str, Any]] = (),
) -> pathlib.Path:
  """Writes index.html and assets/ into a folder.

  Evaluations are also written as tables to leaderboard.md.

  Args:
    folder: created if need be; the files of an earlier page are replaced.
    runs: at least one. Their curves share the axes.
    compared: pairs of evaluations, as `leaderboard.comparison_table` has them.

  Returns:
    The path of index.html.
  """
  import jinja2  # Slow to import, and only here.

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shutil.copytree(
    _ASSETS,
    folder / 'assets',
    dirs_exist_ok=True,
    ignore=shutil.ignore_patterns('page.html'),
  )
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  environment.filters |= {'figure': cells.figure, 'cell': _cell}
  template = environment.from_string(
    (_ASSETS / 'page.html').read_text(encoding='utf-8')
  )
  # Steps of different programs are no common axis.
  programs: dict[str, list[Run]] = {}
  for run in runs:
    program = run.config.get('config', {}).get('program', '')
    programs.setdefault(program, []).append(run)
  panels = [
    (
      program if len(programs) > 1 else '',
      panel,
      plots.draw(panel, {run.name: run.metrics for run in members}),
    )
    for program, members in programs.items()
    for panel in plots.PANELS
  ]
  entries = [entry for run in runs for entry in run.evaluations]
  board = leaderboard.tables(entries, compared)
  html = template.render(
    runs=runs,
    sweeps=_sweeps(runs),
    board=board,
    figures=score_plots.figures(entries),
    panels=[panel for panel in panels if panel[-1]],
    tables=[_table(run) for run in runs],
    settings=_settings(runs),
    data=_embed([_viewed(run) for run in runs if run.groups]),
  )
  target = folder / 'index.html'
  partial = folder / 'index.html.partial'
  partial.write_text(html, encoding='utf-8')
  partial.replace(target)
  if board:
    text = leaderboard.markdown(board)
    (folder / 'leaderboard.md').write_text(text, encoding='utf-8')
  return target


def _sweeps(runs: Sequence[Run]) -> list[dict[str, Any]]:
  outcomes = [
    sweep.outcome(run.name, run.config, run.metrics, run.summary)
    for run in runs
  ]
  found = []
  for item in sweep.find([o for o in outcomes if o is not None]):
    header, rows = sweep.rows(item)
    found.append(
      {
        'title': f'{item.program}: {item.metric}',
        'note': sweep.note(item),
        'svg': sweep.draw(item),
        'header': header,
        'rows': rows,
      }
    )
  return found


def _viewed(run: Run) -> dict[str, Any]:
  return {'name': run.name, 'groups': run.groups, 'num_groups': run.num_groups}


def _embed(value: Any) -> str:
  """JSON that cannot end the <script> it stands in, whatever it contains."""
  text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
  # In JSON these three occur in strings alone, where an escape says the same.
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _finite(value: Any) -> Any:
  """The value with null for numbers that JSON does not have."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {name: _finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return value


def _table(run: Run) -> list[tuple[str, float, float, float, float]]:
  """(name, first, last, lowest, highest) of every metric."""
  columns: dict[str, list[float]] = {}
  for values in run.metrics.values():
    for name, value in values.items():
      if math.isfinite(value):
        columns.setdefault(name, []).append(value)
  return [
    (name, column[0], column[-1], min(column), max(column))
    for name, column in sorted(columns.items())
  ]


def _settings(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
  """(field, its value in every run), those that differ first."""
  flat = [cells.flatten(run.config.get('config', {})) for run in runs]
  names = dict.fromkeys(name for values in flat for name in values)
  rows = [(name, [values.get(name, '') for values in flat]) for name in names]
  return sorted(rows, key=lambda row: len({repr(v) for v in row[1]}) == 1)


def _cell(value: Any) -> str:
  return ', '.join(map(str, value)) if isinstance(value, list) else str(value)
