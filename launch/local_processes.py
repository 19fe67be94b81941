"""Executes work units as processes of this machine.

It is for a laptop, for one machine with an accelerator, and for trying out what
will run on many machines: a job of several processes is one program under
jax.distributed. The output of each process goes to WORKDIR/logs/, and to the
terminal with the process's name in front.

When a process of a job dies, the others are killed, and its exit code says
whether the job is started again; a service is started again alone. SIGTERM,
SIGHUP and Ctrl-C are passed on as SIGTERM, upon which programs save their
state; a second one kills. To launch again is to go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence

from absl import app

from launch import exit_codes
from launch.experiment import Job, Rendered, Tpu, WorkUnit
from launch.supervision import Patience, Stop, Supervisor

_POLL_SECS = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalProcesses:
  """Runs some work units at a time.

  Attributes:
    n: work units at a time.
    devices_per_process: what jax sees of the CPU; 0: what the job requires.
    platform: of jax, such as cpu or cuda; '' leaves the choice to it.
    max_restarts: of a job, one after the other, without anything new saved.
    backoff_secs: before the first of these restarts; twice as long before each
      of the next.
    grace_secs: from SIGTERM to SIGKILL.
    python: the interpreter of the programs.
  """

  n: int = 1
  devices_per_process: int = 0
  platform: str = 'cpu'
  max_restarts: int = 3
  backoff_secs: float = 1.0
  grace_secs: float = 120.0
  python: str = sys.executable

  def __post_init__(self):
    if self.n < 1 or self.max_restarts < 0 or self.devices_per_process < 0:
      raise ValueError(
        'expected n of at least 1, max_restarts and devices_per_process of at '
        f'least 0, got {self}'
      )

  def render(self, unit: WorkUnit) -> Rendered:
    """The command line of every process, in the order of their start.

    Ports are known when processes start: {port:NAME} stands for that of a
    service, or of the coordinator of a job with several processes.

    Raises:
      UsageError: the work unit needs more than this machine.
    """
    return Rendered(files={}, commands=tuple(self._commands(unit).values()))

  def submit(self, units: Sequence[WorkUnit]) -> int:
    """Runs work units until all have ended; returns an exit code for all.

    Raises:
      UsageError: a secret is not in the environment, or a work unit is running
        already.
    """
    commands = {unit.name: self._commands(unit) for unit in units}
    _check_secrets(units)
    patience = Patience(
      max_restarts=self.max_restarts,
      backoff_secs=self.backoff_secs,
      grace_secs=self.grace_secs,
    )
    with _signals() as stop:
      lives = [
        Supervisor(
          unit,
          commands[unit.name],
          patience=patience,
          stop=stop,
          say=_speaker(number),
        ).run()
        for number, unit in enumerate(units, start=1)
      ]
      return exit_codes.of_work_units(_drive(lives, self.n, stop))

  def _commands(self, unit: WorkUnit) -> dict[tuple[str, int], tuple[str, ...]]:
    """(job, index of the process) -> command line; services first."""
    _check_place(unit)
    return {
      (job.name, index): self._command(unit, job, index)
      for job in (*unit.services, unit.main)
      for index in range(job.num_processes)
    }

  def _command(self, unit: WorkUnit, job: Job, index: int) -> tuple[str, ...]:
    settings = {'PYTHONUNBUFFERED': '1'}
    if self.platform:
      settings['JAX_PLATFORMS'] = self.platform
    if self.platform == 'cpu':
      devices = self.devices_per_process or job.requirements.devices
      settings['JAX_NUM_CPU_DEVICES'] = str(devices)
    if job.num_processes > 1:
      settings |= {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{{port:{job.name}}}',
        'JAX_NUM_PROCESSES': str(job.num_processes),
        'JAX_PROCESS_ID': str(index),
      }
    argv = job.argv(
      python=self.python,
      urls={
        service.name: f'http://127.0.0.1:{{port:{service.name}}}'
        for service in unit.services
      },
      port=f'{{port:{job.name}}}' if job.is_service else '',
    )
    return ('env', *(f'{k}={v}' for k, v in settings.items()), *argv)


def _drive(
  lives: Sequence[Generator[None, None, int]], n: int, stop: Stop
) -> list[int]:
  """Goes through so many supervised work units at a time; their codes."""
  waiting, running, codes = [*lives], [], []
  try:
    while running or (waiting and not stop.level):
      while waiting and len(running) < n and not stop.level:
        running.append(waiting.pop(0))
      for life in [*running]:
        try:
          next(life)
        except StopIteration as end:
          running.remove(life)
          codes.append(end.value)
      time.sleep(_POLL_SECS)
  finally:
    for life in running:
      life.close()  # Which ends its processes.
  return codes + [exit_codes.RESTART for _ in waiting]


def _check_place(unit: WorkUnit) -> None:
  if '://' in unit.workdir:
    raise app.UsageError(
      f'{unit.workdir}: processes of this machine need a folder of it as root'
    )
  for job in unit.jobs:
    if isinstance(job.requirements, Tpu):
      raise app.UsageError(
        f'{unit.name}: job {job.name} requires {job.requirements}, which this '
        'machine is not'
      )


def _check_secrets(units: Sequence[WorkUnit]) -> None:
  names = {name for unit in units for name in unit.secrets}
  missing = sorted(name for name in names if not os.environ.get(name))
  if missing:
    raise app.UsageError(
      f'not in the environment: {", ".join(missing)}; the jobs read it there'
    )


def _speaker(number: int):
  """Prints a line of a work unit's launcher or processes."""

  def say(who: str, line: str) -> None:
    place = f'{number} {who}' if who else f'{number}'
    with contextlib.suppress(OSError):  # Work goes on without a terminal.
      print(f'[{place}] {line}', flush=True)

  return say


@contextlib.contextmanager
def _signals() -> Iterator[Stop]:
  """Counts signals that ask to stop, and puts back who had them before.

  What is ignored, as `nohup` does with SIGHUP, stays so.
  """
  stop = Stop()

  def count(*_):
    stop.level = min(stop.level + 1, 2)

  before = {
    number: signal.signal(number, count)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
