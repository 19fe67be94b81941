"""Draws how hard a set of problems is, before and after a choice."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


def draw(
  before: Sequence[float],
  after: Sequence[float],
  path: str | os.PathLike[str],
  *,
  num_bins: int,
) -> None:
  """Writes two histograms of mean reward, hard problems on the left.

  Args:
    before: mean rewards of the base model, 0..1.
    after: of those that were chosen.
    path: of the picture.
    num_bins: of equal width.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  edges = np.linspace(0, 1, num_bins + 1)
  for values, label, color in (
    (before, 'before', '0.8'),
    (after, 'after', 'C0'),
  ):
    axes.hist(
      values, bins=edges, color=color, label=f'{label}: {len(values):,}'
    )
  axes.set(
    title='How hard the problems are',
    xlabel='mean reward of the base model (hard on the left)',
    ylabel='problems',
    xlim=(0, 1),
  )
  axes.legend()
  figure.savefig(path, dpi=150)
