"""Plots of a run's metrics, as SVG; several runs share the axes."""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import math
from collections.abc import Mapping, Sequence

# Step -> name -> value, as in metrics.jsonl.
Metrics = Mapping[int, Mapping[str, float]]

COLORS = (
  '#1f5fa8',
  '#c2491d',
  '#3b7d3a',
  '#7b4ba3',
  '#a8811f',
  '#20808d',
  '#b03a6b',
  '#5c5c5c',
)
_DASHES = ('-', '--', ':', '-.')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
  """One pair of axes; `names` are patterns of metrics, drawn in their order."""

  title: str
  unit: str
  names: tuple[str, ...]
  note: str = ''
  logarithmic: bool = False
  skips_first: bool = False  # Step of a run, which compiles.


# In the order of the page. A panel without data is left out.
PANELS = (
  Panel(
    title='Reward',
    unit='of 1',
    names=('reward/mean', 'eval/score_mean'),
    note='What the judge gave in training, and on held-out problems.',
  ),
  Panel(
    title='With the beginning of a proof, and without',
    unit='of 1',
    names=('*guided/reward_mean', '*guided/solve_rate'),
    note='Of the groups of problems that are practised; see rollout/guided.py.',
  ),
  Panel(title='Loss', unit='nats per token', names=('loss', 'eval/loss')),
  Panel(
    title='Length',
    unit='tokens of a completion',
    names=('length/mean', 'length/p90', 'length/by_score/*'),
  ),
  Panel(
    title='Entropy',
    unit='nats per token',
    names=('entropy', 'entropy/mean'),
    note='Of the policy at the sampling temperature.',
  ),
  Panel(
    title='Sampler against trainer',
    unit='|difference| of log-probabilities',
    names=('mismatch/mean', 'mismatch/p99', 'mismatch/max'),
    note='Of the tokens that were drawn with the weights being trained.',
    logarithmic=True,
  ),
  Panel(
    title='Lag',
    unit='optimiser steps',
    names=('lag/min', 'lag/mean', 'lag/max'),
    note="The trainer's step less the oldest version in a sample.",
  ),
  Panel(
    title='Time of a step by stage',
    unit='seconds',
    names=('secs/*', 'time/step_secs'),
    note='Without the first step, which compiles.',
    skips_first=True,
  ),
  Panel(title='Idle', unit='share of the time', names=('idle/*',)),
  Panel(
    title='Rollouts that teach nothing',
    unit='of a step',
    names=(
      'groups/zero_signal',
      'groups/all_correct',
      'rollouts/truncated',
      'rollouts/ungraded',
    ),
  ),
  Panel(title='Ratio', unit='share, or ratio', names=('clip*', 'ratio/*')),
  Panel(title='Gradient', unit='global norm', names=('grad_norm',)),
  Panel(title='Learning rate', unit='', names=('learning_rate', 'lr')),
  Panel(
    title='Tokens', unit='of a step', names=('tokens', 'tokens/*'), note=''
  ),
)


def match(panel: Panel, names: Sequence[str]) -> list[str]:
  """Returns the metrics that a panel shows, each once."""
  found = {}
  for pattern in panel.names:
    for name in sorted(fnmatch.filter(names, pattern)):
      found[name] = None
  return list(found)


def draw(panel: Panel, runs: Mapping[str, Metrics]) -> str | None:
  """Draws one panel for all runs.

  Args:
    panel: what to draw.
    runs: name of a run -> its metrics. Colours tell metrics apart and dashes
      the runs; if there is one metric, colours tell runs apart, too.

  Returns:
    An <svg> element, or None where no run has a finite value for it.
  """
  names = match(
    panel,
    sorted({n for run in runs.values() for step in run.values() for n in step}),
  )
  curves = []
  shown = [
    (run, metrics)
    for run, metrics in runs.items()
    if any(name in values for values in metrics.values() for name in names)
  ]
  for index, (run, metrics) in enumerate(shown):
    for color, name in enumerate(names):
      points = [
        (step, values[name])
        for step, values in metrics.items()
        if math.isfinite(values.get(name, math.nan))
        and (values[name] > 0 or not panel.logarithmic)
        and not (panel.skips_first and step == min(metrics))
      ]
      if points:
        label = name if len(runs) == 1 else f'{run}: {name}'
        if len(names) == 1:
          color = index
        curves.append((index, color, label, *zip(*points, strict=True)))
  if not curves:
    return None
  figure, axes = quiet_axes(panel.unit, x='step')
  for index, color, label, steps, values in curves:
    axes.plot(
      steps,
      values,
      color=COLORS[color % len(COLORS)],
      linestyle=_DASHES[index % len(_DASHES)],
      marker='.' if len(steps) < 40 else None,
      markersize=4,
      linewidth=1.4,
      label=label,
    )
  if panel.logarithmic:
    axes.set_yscale('log')
  # Above the axes, where it hides no curve, and takes no height from them.
  longest = max(len(curve[2]) for curve in curves)
  num_columns = 1 if longest > 34 else 2 if longest > 16 else 3
  num_more_rows = max(0, -(-len(curves) // num_columns) - 3)
  figure.set_figheight(figure.get_figheight() + 0.16 * num_more_rows)
  figure.legend(
    loc='outside upper left',
    frameon=False,
    fontsize=7.5,
    ncols=num_columns,
  )
  return svg(figure)


def quiet_axes(unit: str, *, x: str):
  """A figure with one pair of quiet axes, made without a display."""
  from matplotlib.figure import Figure  # Slow to import, and only here.

  figure = Figure(figsize=(4.6, 2.7), layout='constrained')
  axes = figure.add_subplot()
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#e4e4e0', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=8, colors='#444444')
  axes.set_xlabel(x, fontsize=8, color='#444444')
  axes.set_ylabel(unit, fontsize=8, color='#444444')
  axes.xaxis.get_major_locator().set_params(integer=True)
  return figure, axes


def svg(figure) -> str:
  """The <svg> element alone; the text in it stays text."""
  import matplotlib

  target = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'qed'}):
    figure.savefig(target, format='svg', metadata={'Date': None})
  text = target.getvalue()
  return text[text.index('<svg') :]
