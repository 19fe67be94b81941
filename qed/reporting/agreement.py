"""Draws a judge's scores against those that people gave."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence

import numpy as np


def draw(
  human_scores: Sequence[float],
  scores: np.ndarray,
  problem_ids: Sequence[str],
  path: str | os.PathLike[str],
) -> None:
  """Plots the judge's scores against people's, and the same as advantages.

  Left, the area of a dot is the number of verdicts. Right, both less their
  mean over the problem's solutions: what GRPO would learn from.

  Args:
    human_scores: 0..7, of each solution.
    scores: float [num_solutions, num_replicas], NaN where there is none.
    problem_ids: of each solution.
    path: of the picture.
  """
  from matplotlib.figure import Figure

  human = np.array(human_scores)
  figure = Figure(figsize=(9, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  ok = np.isfinite(scores)
  pairs = np.stack([np.broadcast_to(human[:, None], ok.shape)[ok], scores[ok]])
  dots, counts = np.unique(pairs, axis=1, return_counts=True)
  left.plot([0, 7], [0, 7], color='0.7', linewidth=1)
  left.scatter(*dots, s=300 * counts / max(counts.max(initial=1), 1), alpha=0.6)
  left.set(
    title='Score',
    xlabel='people',
    ylabel='judge',
    xlim=(-0.5, 7.5),
    ylim=(-0.5, 7.5),
  )
  by_problem: dict[str, list[int]] = collections.defaultdict(list)
  for index, problem_id in enumerate(problem_ids):
    by_problem[problem_id].append(index)
  for indices in by_problem.values():
    for replica in scores[indices].T:
      valid = np.isfinite(replica)
      if valid.sum() > 1:
        a, b = human[indices][valid], replica[valid]
        right.plot(
          a - a.mean(), b - b.mean(), '.', color='C0', alpha=0.4, markersize=5
        )
  right.plot([-7, 7], [-7, 7], color='0.7', linewidth=1)
  right.set(title='Advantage', xlabel='people', ylabel='judge')
  figure.savefig(path, dpi=150)
