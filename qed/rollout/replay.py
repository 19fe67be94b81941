"""Summaries of earlier epochs, from which the turns of a problem go on.

After T turns an epoch, the next one begins at turn T, and so practises states
that no single visit of the problem would come to (arXiv 2602.03773, stage II).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Summary(NamedTuple):
  """Where the chain of a visit ended."""

  problem_id: str
  turn: int
  summary: str
  version: int  # That drew when it was made.


class Replay:
  """The newest summaries of every problem."""

  def __init__(
    self,
    *,
    max_summaries: int,
    start_frac: float,
    max_age_steps: int,
    max_turn: int,
  ):
    """Begins with nothing.

    Args:
      max_summaries: of a problem; the oldest make room for a new one. 0: none
        is kept.
      start_frac: of the visits of a problem that has a summary, those that
        begin with one.
      max_age_steps: since its version; what is older is purged. 0: nothing is.
      max_turn: summaries of later turns are not kept; 0: all are.
    """
    self._max_summaries, self._start_frac = max_summaries, start_frac
    self._max_age_steps, self._max_turn = max_age_steps, max_turn
    self._kept: dict[str, list[Summary]] = {}

  def __len__(self) -> int:
    return sum(map(len, self._kept.values()))

  def add(self, summary: Summary) -> None:
    """Keeps a summary, if there is one and it is of use.

    Where it is not, because its turn is too late, those that led there go too:
    the problem begins anew.
    """
    if not self._max_summaries or not summary.summary:
      return
    if 0 < self._max_turn < summary.turn:
      self._kept.pop(summary.problem_id, None)
      return
    kept = [*self._kept.get(summary.problem_id, []), summary]
    self._kept[summary.problem_id] = kept[-self._max_summaries :]

  def draw(
    self, problem_id: str, version: int, rng: np.random.Generator
  ) -> Summary | None:
    """A summary that a visit begins with, or None: with nothing.

    Args:
      problem_id: of the problem; what of it is too old is purged.
      version: of the weights that draw now.
      rng: of the visit.
    """
    kept = [
      summary
      for summary in self._kept.pop(problem_id, [])
      if not 0 < self._max_age_steps < version - summary.version
    ]
    if not kept:
      return None
    self._kept[problem_id] = kept
    if rng.random() >= self._start_frac:
      return None
    return kept[rng.integers(len(kept))]

  def snapshot(self) -> dict[str, Any]:
    """For a checkpoint: json."""
    return {
      problem_id: [[s.turn, s.summary, s.version] for s in kept]
      for problem_id, kept in self._kept.items()
    }

  def restore(self, snapshot: Mapping[str, Any]) -> None:
    """Takes up what a checkpoint knew."""
    self._kept = {
      problem_id: [Summary(problem_id, *values) for values in kept]
      for problem_id, kept in snapshot.items()
    }
