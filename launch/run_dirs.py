"""A work unit's run directory, as launchers use it.

attempts.jsonl has a line for every time that a job of the work unit ended, and
launch.lock keeps two launchers from running it at the same time. Everything
else there belongs to the program.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

ATTEMPTS = 'attempts.jsonl'
LOCK = 'launch.lock'
LOGS = 'logs'
# What a program adds to as it works, where it has no checkpoints.
_JOURNALS = ('records.jsonl', 'calls.sqlite', 'stages/*/*.jsonl')
_NUM_LOOKS = 5
_LOOK_SECS = 0.05


class RunningError(RuntimeError):
  """A work unit that somebody else runs."""


def saved(workdir: pathlib.Path) -> int:
  """How much of a run would survive if it were killed now.

  Returns:
    The step of the newest complete checkpoint; for a program without
    checkpoints the size of what it has put on file, in bytes. It grows, and
    only that counts.
  """
  checkpoints = workdir / 'checkpoints'
  if checkpoints.is_dir():
    steps = (
      int(path.name)
      for path in checkpoints.iterdir()
      # One that is being written has another name.
      if path.name.isdigit() and any(path.iterdir())
    )
    return max(steps, default=0)
  return sum(
    path.stat().st_size
    for pattern in _JOURNALS
    for path in workdir.glob(pattern)
  )


def record_attempt(
  workdir: pathlib.Path,
  *,
  job: str,
  exit_codes: Sequence[int | None],
  verdict: str,
  secs: float,
) -> None:
  """Puts on file that a job ended.

  Args:
    workdir: of the work unit.
    job: its name.
    exit_codes: of its processes; None for one that was killed because another
      one had ended.
    verdict: of exit_codes.py, on the job.
    secs: that it ran.
  """
  line = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'job': job,
    'exit_codes': list(exit_codes),
    'verdict': verdict,
    'saved': saved(workdir),
    'secs': round(secs, 3),
  }
  with (workdir / ATTEMPTS).open('a', encoding='utf-8') as file:
    file.write(json.dumps(line) + '\n')


def read_attempts(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """What `record_attempt` wrote; a line in the making is left out."""
  path = workdir / ATTEMPTS
  if not path.exists():
    return []
  *lines, _ = path.read_text(encoding='utf-8').split('\n')
  return [json.loads(line) for line in lines]


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[IO[str]]:
  """Holds a work unit; the yielded file is for the processes to inherit.

  The lock is the file's, not the launcher's: should the launcher be killed, it
  holds for as long as a process lives that inherited the file.

  Raises:
    RunningError: somebody else holds it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / LOCK).open('a+', encoding='utf-8') as file:
    # `is_locked` may hold it for an instant.
    for look in range(_NUM_LOOKS):
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError as error:
        if look == _NUM_LOOKS - 1:
          file.seek(0)
          raise RunningError(
            f'{workdir} is running; of these at least one holds {LOCK}: '
            f'{file.read()}. Wait for their end, or end them'
          ) from error
        time.sleep(_LOOK_SECS)
    name_holders(file, {})
    yield file


def name_holders(file: IO[str], processes: Mapping[str, int]) -> None:
  """Says in the lock who holds it, for people who are refused.

  Args:
    file: what `locked` yields.
    processes: name -> id of those that inherited it.
  """
  holders = {f'launcher on {socket.gethostname()}': os.getpid(), **processes}
  file.truncate(0)
  file.write(
    ', '.join(f'{name} ({number})' for name, number in holders.items())
  )
  file.flush()


def is_locked(workdir: pathlib.Path) -> bool:
  """Whether a launcher of this machine runs the work unit."""
  try:
    with (workdir / LOCK).open(encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
      return False
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
