"""What came of a sweep: the final metric against what differs between runs.

Runs of one program are compared that have ended, differ in some field of their
config, and report the same metric. Runs that differ in nothing but the seed are
points of one setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qed.reporting import cells, plots

# Program -> (metric, whether a step of it says little), the first there is.
METRICS = {
  'sft': (('validation/loss', False), ('loss', True)),
  'grpo': (('eval/score_mean', False), ('reward/mean', True)),
}
# Of the steps, at the end, whose mean stands for a metric that says little.
_LAST_SHARE = 0.1
_SEEDS = ('seed',)
# Where something is to be found is no property of a run.
_ADDRESSES = ('base_url', 'urls', 'api_key_env', 'wandb_project')
_LOGARITHMIC_RATIO = 8.0  # Of the largest value to the smallest.


class Outcome(NamedTuple):
  """What one run came to."""

  name: str
  config: Mapping[str, Any]  # Dotted path -> value.
  metric: str
  value: float | None  # None as long as it has not ended.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
  """Runs that differ in the seed alone.

  Attributes:
    values: of the fields of the sweep, in their order.
    outcomes: final metric of each run; NaN where it came to none.
  """

  values: tuple[Any, ...]
  outcomes: tuple[float, ...]

  @property
  def finite(self) -> list[float]:
    """The outcomes that are numbers."""
    return [value for value in self.outcomes if math.isfinite(value)]

  @property
  def mean(self) -> float:
    """Of the outcomes; NaN as soon as one of them is."""
    return sum(self.outcomes) / len(self.outcomes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
  """Settings that were compared by a metric.

  Attributes:
    program: that was run.
    metric: its name.
    fields: dotted paths of what differs.
    settings: in the order of their values.
    unfinished: names of runs that have not ended.
  """

  program: str
  metric: str
  fields: tuple[str, ...]
  settings: tuple[Setting, ...]
  unfinished: tuple[str, ...]


def outcome(
  name: str,
  config: Mapping[str, Any],
  metrics: plots.Metrics,
  summary: Mapping[str, Any],
) -> Outcome | None:
  """What a run came to; None if its program has no metric.

  Args:
    name: of the run.
    config: the content of its config.json.
    metrics: step -> name -> value.
    summary: the content of its summary.json, {} if it has not ended.
  """
  flat = cells.flatten(config.get('config', {}))
  if 'score' in summary and summary.get('program') == 'evaluate':
    return Outcome(name, flat, 'score', summary['score']['mean'])
  for metric, is_noisy in METRICS.get(flat.get('program'), ()):
    steps = [step for step in sorted(metrics) if metric in metrics[step]]
    if not steps:
      continue
    count = math.ceil(_LAST_SHARE * len(steps)) if is_noisy else 1
    last = [metrics[step][metric] for step in steps[-count:]]
    title = metric
    if is_noisy:
      title += f', mean of the last {_LAST_SHARE:.0%} of the steps'
    value = sum(last) / len(last) if summary else None
    return Outcome(name, flat, title, value)
  return None


def find(outcomes: Sequence[Outcome]) -> list[Sweep]:
  """The sweeps among runs, one for each program and metric."""
  groups: dict[tuple[str, str], list[Outcome]] = {}
  for item in outcomes:
    key = item.config.get('program', ''), item.metric
    groups.setdefault(key, []).append(item)
  found = []
  for (program, metric), members in groups.items():
    ended = [item for item in members if item.value is not None]
    fields = _differing([item.config for item in ended])
    settings: dict[tuple, list[float]] = {}
    for item in ended:
      values = tuple(_hashable(item.config.get(field)) for field in fields)
      settings.setdefault(values, []).append(item.value)
    if len(settings) > 1:
      found.append(
        Sweep(
          program=program,
          metric=metric,
          fields=fields,
          settings=tuple(
            Setting(values=values, outcomes=tuple(settings[values]))
            for values in sorted(settings, key=_order)
          ),
          unfinished=tuple(i.name for i in members if i.value is None),
        )
      )
  return found


def rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
  """A table: its header, and a row for each setting."""
  header = [*sweep.fields, 'runs', 'mean', 'lowest', 'highest']
  return header, [
    [
      *map(_text, setting.values),
      str(len(setting.outcomes)),
      cells.figure(setting.mean),
      cells.figure(min(setting.finite, default=math.nan)),
      cells.figure(max(setting.finite, default=math.nan)),
    ]
    for setting in sweep.settings
  ]


def note(sweep: Sweep) -> str:
  """What a reader has to know."""
  parts = ['A circle for each run; lines are the means.']
  if sweep.unfinished:
    parts.append(f'Not ended, and left out: {", ".join(sweep.unfinished)}.')
  return ' '.join(parts)


def draw(sweep: Sweep) -> str:
  """The metric against a field of numbers, or else against each setting.

  Settings that differ in other fields, too, are curves of their own.

  Returns:
    An <svg> element.
  """
  column = _axis(sweep)
  name = ', '.join(sweep.fields) if column is None else sweep.fields[column]
  figure, axes = plots.quiet_axes(sweep.metric.partition(',')[0], x=name)
  curves: dict[tuple, list[tuple[float, Setting]]] = {}
  for index, setting in enumerate(sweep.settings):
    x = index if column is None else setting.values[column]
    others = tuple(
      (field.rpartition('.')[2], value)
      for i, (field, value) in enumerate(
        zip(sweep.fields, setting.values, strict=True)
      )
      if i != column
    )
    curves.setdefault(() if column is None else others, []).append((x, setting))
  for number, (others, points) in enumerate(curves.items()):
    color = plots.COLORS[number % len(plots.COLORS)]
    axes.plot(
      [x for x, setting in points for _ in setting.finite],
      [value for _, setting in points for value in setting.finite],
      **{'color': color, 'marker': 'o', 'markersize': 4, 'linestyle': 'none'},
      markerfacecolor='white',
    )
    axes.plot(
      [x for x, _ in points],
      [setting.mean for _, setting in points],
      color=color,
      linewidth=1.4,
      linestyle='none' if column is None else '-',
      marker='_' if column is None else None,
      markersize=14,
      label=', '.join(f'{field} {_text(value)}' for field, value in others),
    )
  _mark(axes, sweep, column)
  if len(curves) > 1:
    figure.legend(
      loc='outside upper left', frameon=False, fontsize=7.5, ncols=2
    )
  return plots.svg(figure)


def _mark(axes, sweep: Sweep, column: int | None) -> None:
  """Ticks at what was tried, and nowhere else."""
  if column is None:
    places = range(len(sweep.settings))
    texts = ['\n'.join(map(_text, s.values)) for s in sweep.settings]
  else:
    places = sorted({setting.values[column] for setting in sweep.settings})
    texts = [_text(place) for place in places]
    if places[0] > 0 and places[-1] / places[0] >= _LOGARITHMIC_RATIO:
      axes.set_xscale('log')
      axes.minorticks_off()
  axes.set_xticks(list(places), texts)
  axes.margins(x=0.1)


def _axis(sweep: Sweep) -> int | None:
  """Which field is the axis of x: of those of numbers, that with the most."""
  counts = {}
  for column in range(len(sweep.fields)):
    values = [setting.values[column] for setting in sweep.settings]
    if all(type(value) in (int, float) for value in values):
      counts[column] = len({*values})
  return max(counts, key=counts.get) if counts else None


def _differing(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """The fields that runs differ in, but for seeds and addresses."""
  names = dict.fromkeys(name for config in configs for name in config)
  return tuple(
    name
    for name in names
    if name.rpartition('.')[2] not in (*_SEEDS, *_ADDRESSES)
    and len({repr(config.get(name)) for config in configs}) > 1
  )


def _hashable(value: Any) -> Any:
  return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _order(values: tuple[Any, ...]) -> list[tuple]:
  """Numbers by size and before everything else."""
  return [
    (0, value, '') if type(value) in (int, float) else (1, 0, repr(value))
    for value in values
  ]


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:g}'
  return ', '.join(map(_text, value)) if type(value) is tuple else str(value)
