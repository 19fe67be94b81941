"""Figures of evaluations: score against tokens by scaffold, score by turn.

What was published is drawn hollow, beside ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qed.reporting import naming, plots, published
from qed.reporting.naming import Entry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
  """A score in percent of 7 points, at x."""

  x: float
  y: float
  label: str
  low: float | None = None  # Of the interval.
  high: float | None = None
  is_published: bool = False


def figures(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
  """Score against tokens, and by turn: (title, note, <svg>), where there is."""
  found = []
  for group in naming.groups(entries, ('model', 'checkpoint')):
    first = group[0]
    about = f'{first["model"]} on {naming.benchmark_name(first)}'
    judge = f'Judge: {naming.judge_name(first, group)}.'
    if naming.is_published_subject(first):
      judge += f' Hollow: published, judged by {published.JUDGE}.'
    points = _token_points(group)
    if {entry['scaffold'] for entry in group} != {'single'} and points:
      svg = draw(
        points,
        x='tokens of an attempt',
        y='% of 7 points',
        is_logarithmic=True,
      )
      found.append((f'Score against tokens: {about}', judge, svg))
    cached = [e for e in group if e['scaffold'] == 'reasoning_cache']
    points = _turn_points(cached)
    if len({point.x for point in points}) > 1:
      svg = draw(points, x='turns', y='% of 7 points', is_connected=True)
      found.append((f'Score by turn: {about}', judge, svg))
  return found


def _token_points(entries: Sequence[Entry]) -> list[Point]:
  points = [
    _point(
      entry, entry['tokens']['completion'], naming.scaffold_name(entry, entries)
    )
    for entry in naming.by_tokens(entries)
    if entry['tokens']['completion'] and entry['score']['value'] is not None
  ]
  if points and naming.is_published_subject(entries[0]):
    points += [
      Point(
        x=tokens, y=percent, label=naming.with_turns(*key), is_published=True
      )
      for key, (percent, tokens) in published.SCAFFOLDS.items()
    ]
  return points


def _turn_points(entries: Sequence[Entry]) -> list[Point]:
  points = [
    _point(entry, entry['turns'], 'ours')
    for entry in sorted(entries, key=lambda entry: entry['turns'])
    if entry['score']['value'] is not None
  ]
  if points and naming.is_published_subject(entries[0]):
    points += [
      Point(x=turns, y=percent, label='published', is_published=True)
      for turns, (percent, _) in published.TURNS.items()
    ]
  return points


def _point(entry: Entry, x: float, label: str) -> Point:
  percent = entry['score']['percent']
  return Point(
    x=x,
    y=percent['value'],
    low=percent['low'],
    high=percent['high'],
    label=label,
  )


def draw(
  points: Sequence[Point],
  *,
  x: str,
  y: str,
  is_logarithmic: bool = False,
  is_connected: bool = False,
) -> str:
  """Draws points with their intervals.

  Args:
    points: at least one. Those of one label share a colour.
    x: what the axis of x says, and
    y: that of y.
    is_logarithmic: of the axis of x.
    is_connected: whether lines join the points of a label.

  Returns:
    An <svg> element.
  """
  figure, axes = plots.quiet_axes(y, x=x)
  if is_logarithmic:
    axes.set_xscale('log')
    # Its own choice fails where all points have one x.
    xs = [point.x for point in points]
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
  labels = [*dict.fromkeys((p.label, p.is_published) for p in points)]
  colors = {
    label: i for i, label in enumerate(dict.fromkeys(l for l, _ in labels))
  }
  for label, is_published in labels:
    mine = [
      p for p in points if (p.label, p.is_published) == (label, is_published)
    ]
    color = plots.COLORS[colors[label] % len(plots.COLORS)]
    axes.errorbar(
      [p.x for p in mine],
      [p.y for p in mine],
      yerr=[
        [0 if p.low is None else p.y - p.low for p in mine],
        [0 if p.high is None else p.high - p.y for p in mine],
      ],
      color=color,
      marker='o',
      markersize=5,
      markerfacecolor='white' if is_published else color,
      linestyle=('--' if is_published else '-') if is_connected else 'none',
      linewidth=1.2,
      elinewidth=1,
      capsize=2.5,
      label=f'{label}, published'
      if is_published and not is_connected
      else label,
    )
  axes.set_ylim(0, 103)  # A marker at 100 is seen whole.
  figure.legend(loc='outside upper left', frameon=False, fontsize=7.5, ncols=2)
  return plots.svg(figure)
