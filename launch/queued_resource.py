"""Executes work units on TPU VMs, each job on a queued resource of its own.

A queued resource is a request for a slice, which Cloud TPU fills when it can. A
slice that is taken away does not come back by itself, so that `submit` stays,
watches, and asks anew. Each machine runs the start-up script of its job: it
mounts the shared folder, starts the container, looks at its exit code, and
starts it again or notes the code down, where the watcher reads it.

Services that need no TPU run on the first machine of the main job. Those with a
slice of their own write their address into the run directory, and the machines
of the main job keep the names NAME.qed.internal pointing there: a sampler that
comes back elsewhere is found under the same name, by the same process.

Secrets are fetched from Secret Manager by the machine, under the names of their
environment variables: a machine that was created anew has no file with them,
and everybody who may look at a machine sees its metadata.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Sequence

from absl import app

from launch import exit_codes, startup_script, topologies
from launch.experiment import Job, Rendered, Tpu, WorkUnit, label

_GCLOUD = ('gcloud', 'compute', 'tpus')
_LOST = ('SUSPENDED', 'FAILED')
_CODE = re.compile(rf'^{startup_script.OUTCOME}: (\d+) (\d+)\s*$', re.M)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueuedResource:
  """The executor.

  Attributes:
    image: the one of launch/Dockerfile, built from this very tree.
    project: the one of Google Cloud.
    zones: where the slices are: a zone, or GENERATION=ZONE for each generation
      of TPU, as v5p=us-east5-a,v6e=us-east5-b.
    share: HOST:/PATH of an NFS share with the folders of container.SHARED.
    service_account: of the machines; '': the project's own.
    network: '': the project's own.
    spot: whether slices may be taken away, for a lower price.
    grace_secs: that a container has between SIGTERM and SIGKILL.
    max_recreations: of each queued resource by one watcher.
    poll_secs: between looks at all of them.
    files_dir: where start-up scripts are written.
  """

  image: str
  project: str
  zones: tuple[str, ...]
  share: str
  service_account: str = ''
  network: str = ''
  spot: bool = False
  grace_secs: int = 120
  max_recreations: int = 200
  poll_secs: float = 60.0
  files_dir: str = 'runs/launch'

  def __post_init__(self):
    for name in ('image', 'project', 'zones', 'share'):
      if not getattr(self, name):
        raise ValueError(f'QueuedResource: {name} is missing')

  def render(self, unit: WorkUnit) -> Rendered:
    """A start-up script for each slice, and the commands that ask for them.

    Raises:
      ValueError: the work unit cannot be executed so.
    """
    script = startup_script.StartupScript(
      image=self.image,
      project=self.project,
      share=self.share,
      grace_secs=self.grace_secs,
    )
    jobs = _with_slices(unit)
    return Rendered(
      files={self._path(unit, job): script.render(unit, job) for job in jobs},
      commands=tuple(self.create(unit, job) for job in jobs),
    )

  def submit(
    self,
    units: Sequence[WorkUnit],
    *,
    sleep: Callable[[float], None] = time.sleep,
  ) -> int:
    """Asks for slices, and watches until every main job has ended.

    Queued resources that are there already are watched as they are. Those of a
    work unit are deleted once its main job is done, or cannot be.

    Args:
      units: what to run.
      sleep: waits for so many seconds.

    Returns:
      0; else the code of the first job that failed for good, or 42 where a
      slice was lost too often.
    """
    for unit in units:
      for path, text in self.render(unit).files.items():
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text, encoding='utf-8')
    codes: dict[str, int] = {}
    num_created: dict[str, int] = {}
    try:
      while True:
        for unit in units:
          if unit.name not in codes:
            code = self._look(unit, num_created)
            if code is not None:
              codes[unit.name] = code
              self._delete_all(unit)
              print(f'{unit.name}: ended with code {code}', flush=True)
        if len(codes) == len(units):
          return exit_codes.of_work_units(codes.values())
        sleep(self.poll_secs)
    except KeyboardInterrupt:
      print('the machines go on, and cost; the same command watches them again')
      return exit_codes.RESTART

  def create(self, unit: WorkUnit, job: Job) -> tuple[str, ...]:
    """The command that asks for the slice of a job."""
    name, tpu = _resource_name(unit, job), job.requirements
    return (
      *_GCLOUD, 'queued-resources', 'create', name, f'--node-id={name}',
      *self._where(job),
      f'--accelerator-type={topologies.accelerator_type(tpu)}',
      f'--runtime-version={topologies.PRODUCTS[tpu.generation][2]}',
      f'--metadata-from-file=startup-script={self._path(unit, job)}',
      '--scopes=https://www.googleapis.com/auth/cloud-platform',
      *((f'--service-account={self.service_account}',)
        if self.service_account else ()),
      *((f'--network={self.network}',) if self.network else ()),
      *(('--spot',) if self.spot else ()),
      '--async', '--quiet',
    )  # fmt: skip

  def describe(self, unit: WorkUnit, job: Job) -> tuple[str, ...]:
    """The command that prints the state of a queued resource."""
    name = _resource_name(unit, job)
    return (
      *_GCLOUD, 'queued-resources', 'describe', name, *self._where(job),
      '--format=value(state.state)',
    )  # fmt: skip

  def delete(self, unit: WorkUnit, job: Job) -> tuple[str, ...]:
    """The command that gives a slice back, and forgets the request."""
    name = _resource_name(unit, job)
    return (
      *_GCLOUD, 'queued-resources', 'delete', name, *self._where(job),
      '--force', '--quiet',
    )  # fmt: skip

  def ask(self, unit: WorkUnit, job: Job) -> tuple[str, ...]:
    """The command that prints how a job ended on each of its machines."""
    name = _resource_name(unit, job)
    return (
      *_GCLOUD, 'tpu-vm', 'ssh', name, *self._where(job), '--worker=all',
      f'--command={startup_script.ASK}', '--quiet',
    )  # fmt: skip

  def _look(self, unit: WorkUnit, num_created: dict[str, int]) -> int | None:
    """Mends what was lost; returns the code of a work unit that has ended."""
    codes = {}
    for job in _with_slices(unit):
      name = _resource_name(unit, job)
      state = self._state(unit, job)
      if state == 'ACTIVE':
        codes[job.name] = self._outcome(unit, job)
      elif state in ('', *_LOST):
        num_created[name] = num_created.get(name, 0) + 1
        if num_created[name] > 1 + self.max_recreations:
          print(f'{name}: lost {self.max_recreations} times', flush=True)
          return exit_codes.RESTART
        try:
          if state:
            print(f'{name}: {state}; asking for another', flush=True)
            _gcloud(self.delete(unit, job))
          _gcloud(self.create(unit, job))
        except _RefusedError as error:
          if num_created[name] == 1:
            raise
          print(error, flush=True)  # The next look tries again.
    ended = [codes.get(unit.main.name)]
    ended += [codes.get(job.name) for job in unit.services]
    return next((code for code in ended if code is not None), None)

  def _state(self, unit: WorkUnit, job: Job) -> str:
    """Of a queued resource; '' if there is none, UNKNOWN if nobody says."""
    try:
      return _gcloud(self.describe(unit, job)) or 'UNKNOWN'
    except _RefusedError as error:
      if 'NOT_FOUND' in str(error):
        return ''
      if 'account' in str(error) or 'PERMISSION_DENIED' in str(error):
        raise
      print(error, flush=True)
      return 'UNKNOWN'

  def _outcome(self, unit: WorkUnit, job: Job) -> int | None:
    """The code of a job; None while it is at work."""
    try:
      found = _CODE.findall(_gcloud(self.ask(unit, job)))
    except _RefusedError as error:  # It boots, or has just been taken away.
      print(error, flush=True)
      return None
    codes = {int(index): int(code) for index, code in found}
    # Machine 0 is the last to be done; others may have missed its farewell.
    if codes.get(0) == exit_codes.DONE:
      return exit_codes.DONE
    failed = [code for code in codes.values() if code != exit_codes.DONE]
    return failed[0] if failed else None

  def _delete_all(self, unit: WorkUnit) -> None:
    for job in _with_slices(unit):
      try:
        _gcloud(self.delete(unit, job))
      except _RefusedError as error:
        print(f'{error}\nIt may still be there, and cost.', flush=True)

  def _path(self, unit: WorkUnit, job: Job) -> str:
    return f'{self.files_dir}/{_resource_name(unit, job)}.sh'

  def _where(self, job: Job) -> tuple[str, str]:
    """Project and zone.

    Raises:
      ValueError: there is no zone for this generation.
    """
    generation = job.requirements.generation
    pairs = [zone.rpartition('=') for zone in self.zones]
    for name, _, zone in pairs:
      if name in ('', generation):
        return f'--project={self.project}', f'--zone={zone}'
    raise ValueError(
      f'QueuedResource: zones = {self.zones}: expected one for {generation}, '
      f'such as {generation}=us-east5-a'
    )


class _RefusedError(app.UsageError):
  """gcloud answered with an error."""


def _with_slices(unit: WorkUnit) -> list[Job]:
  """The jobs with a queued resource of their own, the main one first.

  Raises:
    ValueError: the main job has none.
  """
  if not isinstance(unit.main.requirements, Tpu):
    raise ValueError(
      f'work unit {unit.name}: its main job needs no TPU, which a queued '
      'resource is; give it a slice, or take another executor'
    )
  return [job for job in unit.jobs if isinstance(job.requirements, Tpu)]


def _resource_name(unit: WorkUnit, job: Job) -> str:
  return f'{label(unit.name)}-{job.name}'


def _gcloud(command: Sequence[str]) -> str:
  """What gcloud answers.

  Raises:
    UsageError: it is not there, or refuses.
  """
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except FileNotFoundError as error:
    raise app.UsageError('gcloud is not installed') from error
  if done.returncode:
    raise _RefusedError(f'{" ".join(command[:6])}: {done.stderr.strip()}')
  return done.stdout.strip()
