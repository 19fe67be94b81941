"""What every stage of a run is doing, for how long, and which one is stuck.

A stage is stuck if something is inside it and nothing has come in or gone out
for too long. A stage that is empty waits for the one before it, and is not to
blame. If all of them are empty, the loop itself is stuck.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence


class Stages:
  """The clocks of all stages; for one thread."""

  def __init__(
    self, names: Sequence[str], *, clock: Callable[[], float] = time.monotonic
  ):
    """Starts with all stages empty."""
    now = clock()
    self._clock = clock
    self._inside: dict[str, dict[int, tuple[str, float]]] = {
      name: {} for name in names
    }
    self._moved = dict.fromkeys(names, now)
    self._busy = dict.fromkeys(names, 0.0)  # Secs since `lap`, until `_since`.
    self._since = dict.fromkeys(names, now)
    self._lap = now
    self._count = 0

  @contextlib.contextmanager
  def inside(self, stage: str, what: str) -> Iterator[None]:
    """A piece of work passes through a stage.

    Args:
      stage: its name.
      what: is worked on or waited for, such as 'group 7, rollout 2'.
    """
    self._settle(stage)
    self._count += 1
    key = self._count
    self._inside[stage][key] = (what, self._clock())
    try:
      yield
    finally:
      self._settle(stage)
      del self._inside[stage][key]

  def num_inside(self, stage: str) -> int:
    """How many pieces of work are in a stage."""
    return len(self._inside[stage])

  def lap(self) -> tuple[dict[str, float], float]:
    """Seconds that each stage was not empty since the last lap, and all."""
    for stage in self._inside:
      self._account(stage)
    now = self._clock()
    busy, elapsed = self._busy, now - self._lap
    self._busy, self._lap = dict.fromkeys(busy, 0.0), now
    return busy, elapsed

  def stuck(self, limit_secs: float) -> str | None:
    """A sentence about the stage that has been stuck longest, if any is.

    Args:
      limit_secs: how long nothing may move.
    """
    now = self._clock()
    busy = [stage for stage, work in self._inside.items() if work]
    candidates = {stage: now - self._moved[stage] for stage in busy}
    if not busy:
      idle = now - max(self._moved.values())
      if idle <= limit_secs:
        return None
      return (
        f'nothing is under way in any stage ({", ".join(self._inside)}) and '
        f'nothing has been for {idle:.0f} s'
      )
    stage = max(candidates, key=candidates.get)
    if candidates[stage] <= limit_secs:
      return None
    what, began = min(self._inside[stage].values(), key=lambda work: work[1])
    return (
      f'stage {stage!r} has not moved for {candidates[stage]:.0f} s; inside: '
      f'{self.num_inside(stage)}, of which {what} has waited longest '
      f'({now - began:.0f} s)'
    )

  def _settle(self, stage: str) -> None:
    self._account(stage)
    self._moved[stage] = self._clock()

  def _account(self, stage: str) -> None:
    now = self._clock()
    if self._inside[stage]:
      self._busy[stage] += now - self._since[stage]
    self._since[stage] = now
