"""How a stage of a curation gets on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_TOLD_EVERY_SECS = 10.0


@contextlib.contextmanager
def shown(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
  """Yields what to call with the number done: a bar, or a line now and then.

  Args:
    name: of what is done.
    total: how many there are, if that is known.
  """
  if sys.stdout.isatty():
    from rich import progress

    with progress.Progress(
      progress.TextColumn(name),
      progress.MofNCompleteColumn(),
      progress.BarColumn(bar_width=None),
      progress.TimeRemainingColumn(),
      transient=True,
    ) as bar:
      task = bar.add_task('', total=total)
      yield lambda done: bar.update(task, completed=done)
    return
  began = last = time.monotonic()

  def tell(done: int) -> None:
    nonlocal last
    now = time.monotonic()
    if now - last > _TOLD_EVERY_SECS:
      last = now
      rate = done / (now - began)
      eta = f', eta {(total - done) / rate:,.0f} s' if total and rate else ''
      print(f'{name}: {done:,} done, {rate:,.0f}/s{eta}', flush=True)

  yield tell
