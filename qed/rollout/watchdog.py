"""Reports an engine that does not come back."""

from __future__ import annotations

import collections
import contextlib
import logging
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator

# A turn is long when it takes so many median chunks.
_NUM_MEDIANS = 20


class Watchdog:
  """Watches the turns of one thread from another; reports, and no more.

  A hung collective cannot be interrupted from within the process; whoever runs
  it sees `stalled` in the metrics, or the log, and restarts it.
  """

  def __init__(
    self, watched: threading.Thread, *, stall_secs: float, compile_secs: float
  ):
    """Starts watching.

    Args:
      watched: the thread whose stack is logged.
      stall_secs: the least that counts as a stall.
      compile_secs: the same until the first chunk has come.
    """
    self._watched = watched
    self._stall_secs, self._compile_secs = stall_secs, compile_secs
    self._chunk_secs: collections.deque[float] = collections.deque(maxlen=64)
    self._began: float | None = None
    self._reported: float | None = None
    self._num_stalls = 0
    self._stopped = threading.Event()
    threading.Thread(
      target=self._watch, name='qed-watchdog', daemon=True
    ).start()

  @contextlib.contextmanager
  def turn(self) -> Iterator[None]:
    """To be watched; what comes next may be another turn, or rest."""
    self._began = time.monotonic()
    try:
      yield
    finally:
      self._began = None

  def chunk(self, secs: float) -> None:
    """A chunk has come."""
    self._chunk_secs.append(secs)

  def stop(self) -> None:
    """Ends the watch."""
    self._stopped.set()

  def stats(self) -> dict[str, float]:
    """Seconds per chunk (median and longest of the last ones), and stalls."""
    secs = list(self._chunk_secs) or [0.0]
    return {
      'chunk_secs': statistics.median(secs),
      'chunk_secs_max': max(secs),
      'stalled': float(
        self._began is not None and self._began == self._reported
      ),
      'stalls_total': float(self._num_stalls),
    }

  def _limit(self) -> float:
    if not self._chunk_secs:
      return max(self._compile_secs, self._stall_secs)
    median = statistics.median(list(self._chunk_secs))
    return max(self._stall_secs, _NUM_MEDIANS * median)

  def _watch(self) -> None:
    while not self._stopped.wait(min(self._stall_secs, self._limit()) / 4):
      began, limit = self._began, self._limit()
      if began is None or began == self._reported:
        continue
      if time.monotonic() - began > limit:
        logging.error(
          'the engine has not returned for %.0f s (a chunk takes %.3f s); it '
          'hangs, or compiles what was not warmed up. It is here:\n%s',
          time.monotonic() - began,
          self.stats()['chunk_secs'],
          self._stack(),
        )
        self._num_stalls += 1
        self._reported = began

  def _stack(self) -> str:
    frame = sys._current_frames().get(self._watched.ident)
    return ''.join(traceback.format_stack(frame)) if frame else '(ended)'
