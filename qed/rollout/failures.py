"""Whose fault it is when the engine fails, and when to give it up."""

from __future__ import annotations

from collections.abc import Iterable

from qed.rollout.requests import Request

# Of a request that was present in as many, the last alone, since it last drew.
_MAX_FAILURES = 3
# Of the engine, without a token drawn or a request lost between them.
_MAX_RESTARTS = 5
# Requests lost without a token between them: the fault is not theirs.
_MAX_LOSSES = 3


def is_on_trial(request: Request) -> bool:
  """Whether a request was present in all but the last failure it may have.

  It comes in as the only such one and nobody after it, until it has drawn a
  token. A failure is then its own, and those who were merely present go on.
  """
  return request.num_failures >= _MAX_FAILURES - 1


class Failures:
  """The failures of one engine since it last drew a token."""

  def __init__(self):
    self._num_chunks = 0
    self._num_failures = self._num_since_loss = self._num_losses = 0

  def blame(
    self, error: Exception, suspects: Iterable[Request], num_chunks: int
  ) -> list[Request]:
    """Counts one more.

    Args:
      error: what the engine raised.
      suspects: those it worked on.
      num_chunks: that it has brought since the start.

    Returns:
      Those who are to fail, so that the others can go on.

    Raises:
      RuntimeError: the engine does not come back.
    """
    if num_chunks > self._num_chunks:
      self._num_chunks = num_chunks
      self._num_failures = self._num_since_loss = self._num_losses = 0
    self._num_failures += 1
    self._num_since_loss += 1
    lost = []
    for request in suspects:
      request.num_failures += 1
      if request.num_failures >= _MAX_FAILURES:
        lost.append(request)
    if lost:
      self._num_since_loss = 0
      self._num_losses += 1
    if self._num_since_loss >= _MAX_RESTARTS or self._num_losses >= _MAX_LOSSES:
      raise RuntimeError(
        f'the engine failed {self._num_failures} times in a row, at last with: '
        f'{error}'
      ) from error
    return lost
