"""What is to run: an experiment, its work units, and the jobs of each.

The words are XManager's. An experiment is a set of work units; a work unit is
one configured run with a run directory of its own; its jobs are the programs
that this run consists of, the main one first. An executor renders a work unit
to files and command lines, and submits it.

  experiment = Experiment('sft_lr', root='runs')
  for overrides in sweep({'optim.peak_lr': [1e-5, 3e-5], 'training.seed': [0]}):
    experiment.add('experiments/sft_lr.py:instruct', overrides=overrides)

A work unit's name says what is special about it and ends with a digest of its
resolved config, and the run directory derives from the name: to launch an
experiment again is to go on with it. Where it lies, which machines it takes and
at which addresses its services are found is not part of the config, and so not
of the name.

Nothing here touches a file but the config, or imports jax.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import app

from experiments import base
from launch import names
from qed import cli, config

MAX_LABEL_CHARS = 40
_URL = re.compile(r'\{url:([^{}]*)\}')


@dataclasses.dataclass(frozen=True, slots=True)
class Cpu:
  """The processors of the machine at hand.

  Attributes:
    devices: how many jax sees in each process.
  """

  devices: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Tpu:
  """A slice of TPUs, such as Tpu('v5p', '4x4x4').

  Attributes:
    generation: v4, v5e, v5p, v6e, ...
    topology: chips along each axis of the torus.
  """

  generation: str
  topology: str


Requirements = Cpu | Tpu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
  """One program: `python -m qed.PROGRAM --FLAG=VALUE ...`.

  It is started in the root of the repository, to which relative paths in its
  flags and in its config refer.

  Attributes:
    name: within the work unit; lower-case letters, digits and dashes.
    program: a module of qed, such as 'sft' or 'miniature.judge_server'.
    flags: without dashes, in their order. `{url:NAME}` in a value stands for
      the address, http://HOST:PORT, of the service NAME of the same work unit.
    requirements: of the whole job.
    num_processes: that are one program under jax.distributed. On a slice of
      TPUs there is one per host, whatever this says.
    is_service: whether it runs beside the main job, which finds it at an
      address, and is stopped when that is done.
    port_flag: the flag that tells a service its port.
    host_flag: the flag that tells a service which address to listen at; '' if
      it has none.
    secrets: names of the environment variables that it may read.
  """

  name: str
  program: str
  flags: Mapping[str, str]
  requirements: Requirements = dataclasses.field(default_factory=Cpu)
  num_processes: int = 1
  is_service: bool = False
  port_flag: str = ''
  host_flag: str = ''
  secrets: tuple[str, ...] = ()

  def __post_init__(self):
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,14}[a-z0-9])?', self.name):
      raise ValueError(
        f'job {self.name!r}: expected up to 16 lower-case letters, digits and '
        'dashes, a letter first'
      )
    if self.is_service != bool(self.port_flag):
      raise ValueError(
        f'job {self.name}: a service, and nothing else, has a port_flag; got '
        f'is_service={self.is_service}, port_flag={self.port_flag!r}'
      )
    if self.num_processes < 1 or (self.is_service and self.num_processes > 1):
      raise ValueError(
        f'job {self.name}: num_processes = {self.num_processes}; expected 1 '
        'for a service, and at least 1'
      )

  def argv(
    self,
    *,
    python: str = 'python',
    urls: Mapping[str, str] | None = None,
    port: int | str = '',
    host: str = '',
  ) -> tuple[str, ...]:
    """The command line.

    Args:
      python: the interpreter.
      urls: name of a service -> its address, without a path.
      port: for a service: where to listen.
      host: for a service with a host_flag: at which address; '': its default.

    Raises:
      ValueError: a flag names a service that has no address, or a service gets
        no port.
    """

    def address(found: re.Match[str]) -> str:
      if found[1] not in (urls or {}):
        raise ValueError(
          f'job {self.name}: {found[0]} is the address of no service; there '
          f'are {[*(urls or {})]}'
        )
      return urls[found[1]]

    given = {name: _URL.sub(address, v) for name, v in self.flags.items()}
    if self.is_service:
      if port == '':
        raise ValueError(f'job {self.name}: a service needs a port')
      given[self.port_flag] = str(port)
      if self.host_flag and host:
        given[self.host_flag] = host
    flags = (f'--{name}={value}' for name, value in given.items())
    return (python, '-m', f'qed.{self.program}', *flags)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkUnit:
  """One configured run.

  Attributes:
    name: as `Experiment.add` makes it; valid as the name of a folder. `label`
      makes one of it that Kubernetes and Google Cloud take.
    workdir: the run directory, root/name.
    jobs: the main job first, then the services.
  """

  name: str
  workdir: str
  jobs: tuple[Job, ...]

  def __post_init__(self):
    counts = collections.Counter(job.name for job in self.jobs)
    problems = [f'{n} jobs are called {x}' for x, n in counts.items() if n > 1]
    if [job.is_service for job in self.jobs] != [False] + [True] * (
      len(self.jobs) - 1
    ):
      problems.append('expected one main job and then services')
    services = {job.name for job in self.services}
    for job in self.jobs:
      asked = {
        name for value in job.flags.values() for name in _URL.findall(value)
      }
      problems += [
        f'job {job.name} asks for the address of {name!r}; the services are '
        f'{sorted(services)}'
        for name in sorted(asked - services)
      ]
    if problems:
      raise ValueError(f'work unit {self.name}: ' + '; '.join(problems))

  @property
  def main(self) -> Job:
    """The job that the others serve."""
    return self.jobs[0]

  @property
  def services(self) -> tuple[Job, ...]:
    """The jobs that run for as long as the main one does."""
    return self.jobs[1:]

  @property
  def secrets(self) -> tuple[str, ...]:
    """The names of all environment variables that a job may read."""
    names = (name for job in self.jobs for name in job.secrets)
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
  """What an executor would do, and nothing else: `--dry_run` prints it.

  Attributes:
    files: relative path -> content.
    commands: command lines, in their order.
  """

  files: Mapping[str, str]
  commands: tuple[tuple[str, ...], ...]


class Executor(Protocol):
  """What executes work units; a frozen dataclass of its options."""

  def render(self, unit: WorkUnit) -> Rendered:
    """Pure: no file is read, no clock, no environment."""

  def submit(self, units: Sequence[WorkUnit]) -> int:
    """Does what was rendered; returns an exit code of exit_codes.py."""


class Experiment:
  """Work units that belong together.

  Attributes:
    name: the beginning of every work unit's name.
    root: the folder of all run directories; one that machines share if there
      are several.
    work_units: in the order in which they were added.
  """

  def __init__(self, name: str, *, root: str):
    if not re.fullmatch(r'[a-z][a-z0-9_-]{0,23}', name):
      raise ValueError(
        f'experiment {name!r}: expected up to 24 of a-z, 0-9, _ and -, a '
        'letter first'
      )
    self.name, self.root = name, root.rstrip('/') or '/'
    self.work_units: list[WorkUnit] = []

  def add(
    self,
    source: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    requirements: Requirements | None = None,
    num_processes: int = 1,
    services: Sequence[Job] | Callable[[str], Sequence[Job]] = (),
  ) -> WorkUnit:
    """Adds a run of the program that a config is for.

    Args:
      source: of the config, FILE[:ARM].
      overrides: dotted path -> value, on top of it.
      flags: more flags of the main job, which are not part of its identity:
        addresses of services, how to divide work over machines.
      requirements: of the main job.
      num_processes: of the main job.
      services: what runs beside it, or a function that makes them for a run
        directory.

    Raises:
      UsageError, ConfigError: no run can have this config, or it is that of
        another work unit.
    """
    overrides = dict(overrides or {})
    resolved = dataclasses.asdict(resolve(source, overrides))
    digest = names.digest(resolved)
    for unit in self.work_units:
      if unit.name.endswith(f'-{digest}'):
        raise app.UsageError(
          f'{source} with {overrides} is already there as {unit.name}: both '
          'come to the same config'
        )
    plain = dataclasses.asdict(resolve(source, {}))
    changes = names.changes(plain, resolved, overrides)
    arm = source.partition(':')[2]
    name = names.compose(self.name, arm, changes, digest)
    workdir = f'{self.root.rstrip("/")}/{name}'
    texts = {f'config.{k}': flag_value(v) for k, v in overrides.items()}
    job = Job(
      name='main',
      program=resolved['program'],
      flags={
        'config': source,
        'workdir': workdir,
        **texts,
        **(flags or {}),
      },
      requirements=requirements or Cpu(),
      num_processes=num_processes,
      secrets=_secrets(resolved, flags or {}),
    )
    if callable(services):
      services = services(workdir)
    unit = WorkUnit(name=name, workdir=workdir, jobs=(job, *services))
    self.work_units.append(unit)
    return unit


def resolve(source: str, overrides: Mapping[str, Any]) -> config.RunConfig:
  """The config of a run, as its program will see it.

  Args:
    source: FILE[:ARM].
    overrides: dotted path -> value.

  Raises:
    UsageError, ConfigError: there is no such config.
  """
  values = cli.load_config(source)
  try:
    values = base.override(values, overrides)
  except (ValueError, TypeError) as error:
    raise app.UsageError(f'--config={source}: {error}') from error
  return config.build(values)


def sweep(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
  """Overrides for every combination; the values of the last vary fastest.

  Args:
    axes: dotted path -> values. Without any there is one combination, {}.
  """
  return [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]


def label(name: str) -> str:
  """The name of a work unit for Kubernetes and Google Cloud.

  Returns:
    A DNS-1123 label of at most 40 characters, which begins with a letter and
    ends with the digest.
  """
  head, _, digest = name.rpartition('-')
  head = re.sub('[^a-z0-9]+', '-', head.lower())
  room = MAX_LABEL_CHARS - len(digest) - 1
  return f'{head[:room].rstrip("-")}-{digest}'


def flag_value(value: Any) -> str:
  """The text of a flag that a program reads back as the same value."""
  return value if isinstance(value, str) else repr(value)


def _secrets(
  values: Mapping[str, Any], flags: Mapping[str, str], path: str = 'config'
) -> tuple[str, ...]:
  """The environment variables with keys that a run's config and flags name."""
  found = {}
  for name, value in values.items():
    value = flags.get(f'{path}.{name}', value)
    if isinstance(value, Mapping):
      found |= dict.fromkeys(_secrets(value, flags, f'{path}.{name}'))
    elif name == 'api_key_env' and value:
      found[value] = None
    elif name == 'wandb_project' and value:
      found['WANDB_API_KEY'] = None
  return tuple(found)
