"""The requests that wait for a slot, and the prefixes that they share."""

from __future__ import annotations

import collections
import heapq
from collections.abc import Hashable

from qed.rollout.engine import Prefix
from qed.rollout.requests import Request


class Waiting:
  """Who waits, in order of submission; not thread-safe.

  The prefix of a group is kept as long as one of its members waits or runs, so
  that a group which is submitted or admitted in pieces is read once.
  """

  def __init__(self, max_prefixes: int):
    """Nobody waits.

    Args:
      max_prefixes: that are kept; the one used longest ago goes first.
    """
    self._max_prefixes = max_prefixes
    self._requests: dict[int, Request] = {}
    # Numbers in a heap, also some that do not wait any more.
    self._order: list[int] = []
    self._num_open: collections.Counter[Hashable] = collections.Counter()
    self._prefixes: collections.OrderedDict[Hashable, Prefix] = (
      collections.OrderedDict()
    )

  def __len__(self) -> int:
    return len(self._requests)

  def join(self, request: Request) -> None:
    """Counts a new request among those who share its prefix."""
    self._num_open[request.key] += 1

  def part(self, request: Request) -> None:
    """Counts one off that is finished; the last one takes the prefix along."""
    self._num_open[request.key] -= 1
    if not self._num_open[request.key]:
      del self._num_open[request.key]
      self._prefixes.pop(request.key, None)

  def push(self, request: Request) -> None:
    """Adds one, at the place that its submission gives it."""
    self._requests[request.number] = request
    heapq.heappush(self._order, request.number)

  def head(self) -> Request | None:
    """Who has waited longest."""
    while self._order and self._order[0] not in self._requests:
      heapq.heappop(self._order)
    return self._requests[self._order[0]] if self._order else None

  def remove(self, request: Request) -> None:
    """Takes one out, wherever it stands; no-op for one that does not wait."""
    self._requests.pop(request.number, None)

  def keep(self, request: Request, prefix: Prefix) -> None:
    """Keeps what was read for a member of a group, for the others."""
    if request.is_fresh and request.has_group:
      self._prefixes[request.key] = prefix
      if len(self._prefixes) > self._max_prefixes:
        self._prefixes.popitem(last=False)

  def prefix(self, request: Request) -> Prefix | None:
    """What was read for a request, where that is at hand."""
    if not request.is_fresh or request.key not in self._prefixes:
      return None
    self._prefixes.move_to_end(request.key)
    return self._prefixes[request.key]

  def forget_prefixes(self) -> None:
    """To be called when the weights change, or the device failed."""
    self._prefixes.clear()
