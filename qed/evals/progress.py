"""How an evaluation gets on: attempts, the score so far, calls and tokens."""

from __future__ import annotations

import collections
import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from qed.evals.records import Record

_TOLD_EVERY_SECS = 10.0


class Progress:
  """Attempts, the score so far, calls and tokens: a bar, or lines."""

  def __init__(self, num_left: int):
    self._num_left = num_left
    self._done: set[tuple[str, int]] = set()
    self._scores: dict[tuple[str, int], int] = {}
    self._num_ungraded = 0
    self._states: collections.Counter[str] = collections.Counter()
    self._num_tokens = 0
    self._began = time.monotonic()

  def on_call(self, event: Any) -> None:
    """Takes note of a call that starts or ends (a `scaffolds.calls.Event`)."""
    self._states[event.state] += 1
    self._num_tokens += event.completion_tokens

  @contextlib.contextmanager
  def shown(self) -> Iterator[Callable[[Record], None]]:
    """Yields what to call with every record."""
    if not sys.stdout.isatty():
      yield self._tell_in_lines()
      return
    from rich import progress

    with progress.Progress(
      progress.TextColumn('attempts'),
      progress.MofNCompleteColumn(),
      progress.BarColumn(bar_width=None),
      progress.TextColumn('{task.description}'),
      progress.TimeRemainingColumn(),
    ) as bar:
      task = bar.add_task('', total=self._num_left)

      def advance(record: Record) -> None:
        self._take(record)
        bar.update(task, completed=len(self._done), description=self._text())

      yield advance

  def _tell_in_lines(self) -> Callable[[Record], None]:
    last = self._began

    def tell(record: Record) -> None:
      nonlocal last
      self._take(record)
      done, now = len(self._done), time.monotonic()
      if done == self._num_left or now - last > _TOLD_EVERY_SECS:
        last = now
        secs = (now - self._began) / max(done, 1) * (self._num_left - done)
        eta = datetime.timedelta(seconds=round(secs))
        print(
          f'attempt {done}/{self._num_left}  {self._text()}  eta {eta}',
          flush=True,
        )

    return tell

  def _take(self, record: Record) -> None:
    key = (record.problem_id, record.attempt)
    if record.score is None:
      self._num_ungraded += 1
    else:
      self._scores[key] = record.score
      self._done.add(key)

  def _text(self) -> str:
    secs = max(time.monotonic() - self._began, 1e-9)
    ended = sum(n for state, n in self._states.items() if state != 'started')
    parts = []
    if self._scores:
      mean = sum(self._scores.values()) / len(self._scores)
      parts.append(f'score {mean / 7:.1%}')
    truncated = self._states['length'] / max(ended, 1)
    parts += [
      f'{ended} calls, {self._states["started"] - ended} running',
      f'truncated {truncated:.1%}',
      f'failed {self._states["error"] + self._num_ungraded}',
      f'{self._num_tokens / secs:,.0f} tokens/s',
    ]
    return '  '.join(parts)
