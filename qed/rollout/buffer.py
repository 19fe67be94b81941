"""Finished groups that wait for a step, and how many may be under way.

The budget is a function of versions, not a counter that events add to: a group
that is dropped is no longer alive, and so its place is free again by itself.
"""

from __future__ import annotations

import sys

from qed.rollout import groups
from qed.types import RolloutGroup


def max_alive(
  *, version: int, step: int, groups_per_step: int, max_lag: int
) -> int:
  """How many groups may be sampled, graded or waiting at the same time.

  Steps take groups in the order in which they were begun. If this many are
  alive, the last of them is trained on by the update from version
  `version + max_lag`, and so lags by `max_lag` if it is drawn now.

  Args:
    version: of the weights that draw now.
    step: of the trainer, at least `version`.
    groups_per_step: that a step takes.
    max_lag: in steps; 0: synchronous, -1: unbounded.

  Raises:
    ValueError: samplers that are ahead of the trainer.
  """
  if version > step:
    raise ValueError(
      f"expected samplers at the trainer's step {step} or behind it, got "
      f'version {version}'
    )
  if max_lag == groups.UNBOUNDED:
    return sys.maxsize
  return max(0, version + max_lag + 1 - step) * groups_per_step


class Buffer:
  """Finished groups by number; the oldest leaves first."""

  def __init__(self):
    self._groups: dict[int, RolloutGroup] = {}

  def __len__(self) -> int:
    return len(self._groups)

  def add(self, group: RolloutGroup) -> None:
    """Takes a group in.

    Raises:
      ValueError: one of that number is here already.
    """
    if group.group_id in self._groups:
      raise ValueError(f'group {group.group_id} is in the buffer already')
    self._groups[group.group_id] = group

  def evict(self, *, step: int, max_lag: int) -> list[RolloutGroup]:
    """Takes out the groups of which a step could use nothing any more."""
    stale = [
      group
      for group in self._groups.values()
      if all(
        rollout.reward is None
        or groups.is_stale(rollout, step=step, max_lag=max_lag)
        for rollout in group.rollouts
      )
    ]
    for group in stale:
      del self._groups[group.group_id]
    return stale

  def take(self, count: int) -> list[RolloutGroup]:
    """Takes out the `count` oldest groups, in the order of their numbers.

    Raises:
      ValueError: there are fewer.
    """
    if count > len(self._groups):
      raise ValueError(
        f'expected {count} groups in the buffer, got {len(self._groups)}'
      )
    return [self._groups.pop(number) for number in sorted(self._groups)[:count]]
