"""Processes of this machine: their ports, their output, and their end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from launch import exit_codes

_MAX_LINE_BYTES = 1 << 16


class Process:
  """A child in a process group of its own, whose output goes to a file.

  It writes there itself, so that it does not depend on its launcher; what it
  writes is shown on the terminal line by line.
  """

  def __init__(
    self,
    argv: Sequence[str],
    *,
    log: pathlib.Path,
    environment: Mapping[str, str],
    inherited: IO[str],
    show: Callable[[str], None],
  ):
    """Starts it.

    Args:
      argv: the command line.
      log: receives its output, after what is already there.
      environment: all of it.
      inherited: an open file that stays open in the child.
      show: is given each line of its output.
    """
    self._show = show
    self._partial = b''
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as output:
      self._output = log.open('rb')
      self._output.seek(0, os.SEEK_END)
      self._child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        pass_fds=(inherited.fileno(),),
        start_new_session=True,
      )

  @property
  def pid(self) -> int:
    """Its id, and that of its process group."""
    return self._child.pid

  def exit_code(self) -> int | None:
    """As in exit_codes.py; None while it runs."""
    code = self._child.poll()
    return None if code is None else exit_codes.of_returncode(code)

  def send(self, number: signal.Signals) -> None:
    """Sends a signal to it and to what it started, if it still runs."""
    if self._child.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._child.pid, number)

  def kill(self) -> None:
    """Ends it, and does not return before."""
    self.send(signal.SIGKILL)
    self._child.wait()

  def forward(self, *, everything: bool = False) -> None:
    """Shows the lines that are new.

    Args:
      everything: whether a last line without its newline counts.
    """
    self._partial += self._output.read()
    *lines, self._partial = self._partial.split(b'\n')
    if self._partial and (everything or len(self._partial) > _MAX_LINE_BYTES):
      lines.append(self._partial)
      self._partial = b''
    for line in lines:
      self._show(line.decode('utf-8', 'replace').rstrip('\r'))

  def close(self) -> None:
    """Shows what is left, once it has ended."""
    self.forward(everything=True)
    self._output.close()


class Gang:
  """The processes of one job, none of which goes on without the others."""

  def __init__(self, processes: Sequence[Process], *, began: float):
    """Takes over processes that were started at this time."""
    self.processes = tuple(processes)
    self._began = began
    self._first_end: float | None = None

  @property
  def secs(self) -> float:
    """Since it began, on the clock of time.monotonic()."""
    return time.monotonic() - self._began

  def is_running(self) -> bool:
    """Whether any process is."""
    return None in self._codes()

  def forward(self) -> None:
    """Shows new lines of all processes."""
    for process in self.processes:
      process.forward()

  def send(self, number: signal.Signals) -> None:
    """Sends a signal to all that run."""
    for process in self.processes:
      process.send(number)

  def close(self) -> None:
    """Kills what still runs, and shows what is left of the output."""
    for process in self.processes:
      process.kill()
      process.close()

  def ended(self, grace_secs: float) -> tuple[int | None, ...] | None:
    """The exit codes once it is over; None before.

    The first process that fails ends the others at once: they could only wait
    for it. Where the first one ends well, or with its state saved, the others
    have some time to follow.

    Args:
      grace_secs: that time.

    Returns:
      An exit code for each process; None for those that were killed here.
    """
    codes = self._codes()
    if codes.count(None) == len(codes):
      return None
    # A process that died first may have been asked first, while it was alive.
    codes = self._codes()
    if None not in codes:
      return codes
    now = time.monotonic()
    self._first_end = self._first_end or now
    has_failed = {*codes} - {None, exit_codes.DONE, exit_codes.RESTART}
    if has_failed or now - self._first_end > grace_secs:
      for process in self.processes:
        process.kill()
      return codes
    return None

  def _codes(self) -> tuple[int | None, ...]:
    return tuple(process.exit_code() for process in self.processes)


def free_port(taken: Sequence[int] = ()) -> int:
  """A port that nobody listens at, other than those that are promised."""
  while True:
    with socket.socket() as listener:
      listener.bind(('127.0.0.1', 0))
      port = listener.getsockname()[1]
    if port not in taken:
      return port


def is_listening(port: int) -> bool:
  """Whether somebody accepts connections at a port of this machine."""
  try:
    with socket.create_connection(('127.0.0.1', port), timeout=1.0):
      return True
  except OSError:
    return False
