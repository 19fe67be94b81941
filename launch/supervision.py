"""One work unit on this machine, from its first process to its last.

`Supervisor.run` is a generator: whoever drives it calls it again and again, and
each time it looks at its processes, does what is due, and yields. So one thread
looks after any number of work units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO

from launch import exit_codes, run_dirs
from launch.experiment import Job, WorkUnit
from launch.processes import Gang, Process, free_port, is_listening

# (name of a job, index of the process) -> command line with {port:NAME} in it.
Commands = Mapping[tuple[str, int], Sequence[str]]
_KILLED = exit_codes.FIRST_SIGNAL + signal.SIGKILL
# What no job gets unless it names it: that of another program under
# jax.distributed, and the key that a server asks its clients for.
_FOREIGN = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
  'QED_API_KEY',
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
  """How long to wait, and how often to try.

  Attributes:
    max_restarts: one after the other of a job, without anything new saved.
    backoff_secs: before the first of these; twice as long before each next.
    grace_secs: from SIGTERM to SIGKILL.
  """

  max_restarts: int
  backoff_secs: float
  grace_secs: float


class Stop:
  """Whether the work is to stop: 1 for soon, 2 for at once."""

  def __init__(self):
    self.level = 0


class _ServiceFailure(Exception):
  """A service ended for good, with this code."""

  def __init__(self, code: int):
    self.code = code


class Supervisor:
  """Starts the jobs of a work unit, restarts them, and ends them."""

  def __init__(
    self,
    unit: WorkUnit,
    commands: Commands,
    *,
    patience: Patience,
    stop: Stop,
    say: Callable[[str, str], None],
  ):
    """Starts nothing yet.

    Args:
      unit: the work unit.
      commands: of all its processes.
      patience: see there.
      stop: is looked at all the time.
      say: is given (who speaks, a line); '' is the launcher.
    """
    self._unit, self._commands = unit, commands
    self._patience, self._stop, self._say = patience, stop, say
    self._workdir = pathlib.Path(unit.workdir)
    self._ports: dict[str, int] = {}
    self._services: dict[str, Gang] = {}
    self._due: dict[str, float] = {}  # Service -> when to start it again.
    self._tries: dict[str, _Tries] = {}
    self._ids: dict[str, int] = {}  # Of processes.
    self._lock: IO[str] | None = None
    self._main: Gang | None = None

  def run(self) -> Generator[None, None, int]:
    """Runs the work unit; the generator returns an exit code."""
    self._say('', self._unit.workdir)
    with contextlib.ExitStack() as stack:
      try:
        self._lock = stack.enter_context(run_dirs.locked(self._workdir))
      except run_dirs.RunningError as error:
        self._say('', str(error))
        return exit_codes.USAGE
      try:
        return (yield from self._run())
      finally:  # Also where the driver goes away in the middle.
        for gang in [*self._services.values(), self._main]:
          if gang is not None:
            gang.close()

  def _run(self) -> Generator[None, None, int]:
    try:
      for job in self._unit.services:
        self._ports[job.name] = free_port([*self._ports.values()])
        self._start_service(job)
      yield from self._until_served()
      code = yield from self._run_main()
    except _ServiceFailure as failure:
      code = failure.code
      yield from self._end_main()
    yield from self._end_services()
    return code

  # The main job.

  def _run_main(self) -> Generator[None, None, int]:
    """Runs the main job until it is done, or is not to be run again."""
    job = self._unit.main
    self._tries[job.name] = _Tries(self._patience, self._saved())
    while not self._stop.level:
      self._ports[job.name] = free_port([*self._ports.values()])
      self._say('', f'starts {job.name}; {self._saved()} saved')
      self._main = self._start(job)
      code, wait_secs = yield from self._attend(job, self._main)
      self._main = None
      if wait_secs is None:
        return code
      yield from self._rest(wait_secs)
    return exit_codes.RESTART

  def _attend(
    self, job: Job, gang: Gang
  ) -> Generator[None, None, tuple[int, float | None]]:
    """Waits for the end of the main job; passes a stop on to it."""
    told, kill_at = 0, 0.0
    while (codes := gang.ended(self._patience.grace_secs)) is None:
      level = self._stop.level
      if level > told:
        gang.send(signal.SIGTERM if level == 1 else signal.SIGKILL)
        told, kill_at = level, time.monotonic() + self._patience.grace_secs
      elif told and time.monotonic() > kill_at:
        gang.send(signal.SIGKILL)
      yield from self._look_around(gang)
    return self._conclude(job, gang, codes)

  def _end_main(self) -> Generator[None, None, None]:
    """Lets the main job save its state, since a service has failed."""
    gang, self._main = self._main, None
    if gang is None:
      return
    gang.send(signal.SIGTERM)
    yield from self._await_end([gang])
    self._conclude(self._unit.main, gang, gang.ended(0.0))

  def _conclude(
    self, job: Job, gang: Gang, codes: Sequence[int | None]
  ) -> tuple[int, float | None]:
    """Puts the end of a job on file.

    Returns:
      The code that speaks for all of its processes, and how long to wait before
      it is started again: None if it is not to be.
    """
    gang.close()
    known = [code for code in codes if code is not None]
    if not any(known):  # Those that hung were killed, and may not be done.
      known = [_KILLED if code is None else code for code in codes]
    code = exit_codes.of_processes(known)
    verdict, wait_secs = exit_codes.verdict(code), None
    if job.is_service and verdict == 'done':
      verdict = 'restart'  # It is to end when it is told to.
    if verdict == 'restart':
      tries = self._tries[job.name]
      wait_secs = 0.0 if self._stop.level else tries.next(self._saved())
      if wait_secs is None:
        code, verdict = exit_codes.BUG, 'permanent'
        self._say(
          '',
          f'{job.name} was started again {self._patience.max_restarts} times '
          'and saved nothing new: it is given up',
        )
    run_dirs.record_attempt(
      self._workdir,
      job=job.name,
      exit_codes=codes,
      verdict=verdict,
      secs=gang.secs,
    )
    shown = ', '.join('killed' if c is None else str(c) for c in codes)
    self._say('', f'{job.name} ended: {shown} ({verdict})')
    return code, wait_secs

  # Services.

  def _start_service(self, job: Job) -> None:
    self._say('', f'starts {job.name} at port {self._ports[job.name]}')
    self._services[job.name] = self._start(job)
    self._tries.setdefault(job.name, _Tries(self._patience, self._saved()))

  def _until_served(self) -> Generator[None, None, None]:
    """Waits until all services accept connections, or the work is to stop."""
    waiting = {job.name for job in self._unit.services}
    while waiting and not self._stop.level:
      waiting = {
        name
        for name in waiting
        if name in self._due or not is_listening(self._ports[name])
      }
      yield from self._look_around()

  def _check_services(self) -> None:
    """Starts services again that have died, alone.

    Raises:
      _ServiceFailure: one cannot be helped.
    """
    for job in self._unit.services:
      if self._stop.level:
        return
      if job.name in self._due:
        if time.monotonic() >= self._due[job.name]:
          del self._due[job.name]
          self._start_service(job)
        continue
      gang = self._services[job.name]
      gang.forward()
      codes = gang.ended(0.0)
      if codes is None:
        continue
      del self._services[job.name]
      code, wait_secs = self._conclude(job, gang, codes)
      if wait_secs is None:
        raise _ServiceFailure(code)
      self._due[job.name] = time.monotonic() + wait_secs

  def _end_services(self) -> Generator[None, None, None]:
    gangs = [*self._services.values()]
    for gang in gangs:
      gang.send(signal.SIGTERM)
    yield from self._await_end(gangs)

  # All jobs.

  def _start(self, job: Job) -> Gang:
    ports = {f'{{port:{n}}}': str(p) for n, p in self._ports.items()}
    environment = child_environment(os.environ, self._unit, job)
    processes, began = [], time.monotonic()
    for index in range(job.num_processes):
      argv = []
      for word in self._commands[job.name, index]:
        for token, port in ports.items():
          word = word.replace(token, port)
        argv.append(word)
      who = f'{job.name}.{index}' if job.num_processes > 1 else job.name
      process = Process(
        argv,
        log=self._workdir / run_dirs.LOGS / f'{who}.log',
        environment=environment,
        inherited=self._lock,
        show=lambda line, who=who: self._say(who, line),
      )
      processes.append(process)
      self._ids[who] = process.pid
    run_dirs.name_holders(self._lock, self._ids)
    return Gang(processes, began=began)

  def _look_around(
    self, gang: Gang | None = None
  ) -> Generator[None, None, None]:
    if gang is not None:
      gang.forward()
    self._check_services()
    yield

  def _rest(self, secs: float) -> Generator[None, None, None]:
    until = time.monotonic() + secs
    while time.monotonic() < until and not self._stop.level:
      yield from self._look_around()

  def _await_end(self, gangs: Sequence[Gang]) -> Generator[None, None, None]:
    """Waits for gangs that have been told to end, and then kills them."""
    until = time.monotonic() + self._patience.grace_secs
    while any(gang.is_running() for gang in gangs):
      if time.monotonic() > until or self._stop.level > 1:
        for gang in gangs:
          gang.send(signal.SIGKILL)
      for gang in gangs:
        gang.forward()
      yield

  def _saved(self) -> int:
    return run_dirs.saved(self._workdir)


class _Tries:
  """Counts restarts of a job between which nothing new was saved."""

  def __init__(self, patience: Patience, saved: int):
    self._patience, self._saved, self._count = patience, saved, 0

  def next(self, saved: int) -> float | None:
    """How long to wait before the next restart; None: there is none."""
    if saved != self._saved:
      self._saved, self._count = saved, 0
      return 0.0
    self._count += 1
    if self._count > self._patience.max_restarts:
      return None
    return self._patience.backoff_secs * 2 ** (self._count - 1)


def child_environment(
  environment: Mapping[str, str], unit: WorkUnit, job: Job
) -> dict[str, str]:
  """What a job finds in its environment before `env` adds to it.

  A secret of the work unit is there for the jobs that name it alone.
  """
  hidden = {*_FOREIGN, *unit.secrets} - {*job.secrets}
  return {k: v for k, v in environment.items() if k not in hidden}
