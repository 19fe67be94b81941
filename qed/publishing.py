"""The publisher of `qed grpo`: from the trainer's weights to the samplers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from qed.rollout.stages import Stages
from qed.samplers import Sampler


class Publisher:
  """Brings the newest weights to the samplers; for one event loop."""

  def __init__(self, sampler: Sampler, stages: Stages, *, version: int):
    """Begins with what the samplers have.

    Args:
      sampler: draws with the weights.
      stages: has 'publish'.
      version: of the weights that it draws with now.
    """
    self._sampler, self._stages = sampler, stages
    self.in_effect = version  # That samplers draw with.
    self._is_in_effect = asyncio.Event()
    self._unpublished: tuple[int, Any] | None = None
    self._has_unpublished = asyncio.Event()

  def hand_out(self, weights: Any, version: int) -> None:
    """Leaves weights for `run`; those that it did not come to are forgotten."""
    self._unpublished = (version, weights)
    self._has_unpublished.set()

  async def run(self, on_version: Callable[[int], None]) -> None:
    """Publishes whatever is handed out, until it is cancelled.

    Args:
      on_version: is told of every version that is in effect.
    """
    while True:
      await self._has_unpublished.wait()
      self._has_unpublished.clear()
      version, weights = self._unpublished
      self._unpublished = None
      with self._stages.inside('publish', f'version {version}'):
        await self._sampler.update(weights, version)
      del weights  # The next ones may take their place.
      self.in_effect = version
      self._is_in_effect.set()
      on_version(version)

  async def wait_for(self, version: int) -> None:
    """Returns when this version, or a newer one, is in effect."""
    while self.in_effect < version:
      self._is_in_effect.clear()
      await self._is_in_effect.wait()
