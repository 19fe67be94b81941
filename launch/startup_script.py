"""What a machine of a TPU slice does from its first boot on.

The script runs as root at every boot, on every machine of a slice alike. What
it must know about itself (its number, and the addresses of all) it asks the
metadata server; secrets it asks Secret Manager.
"""

from __future__ import annotations

import dataclasses
import shlex

from launch import container, exit_codes, run_dirs, topologies
from launch.experiment import Cpu, Job, Tpu, WorkUnit

OUTCOME = 'qed-outcome'
_STATE = '/var/lib/qed'
# How the watcher asks a machine for its number and its exit code.
ASK = f'echo "{OUTCOME}: $(cat {_STATE}/outcome 2>/dev/null || echo running)"'
_MOUNT = '/mnt/qed'
_DOMAIN = 'qed.internal'
# Of several machines one may end as with a bug because another has gone. Where
# it is a bug, it comes again.
_MAX_STRIKES = 3

_HEAD = """\
#!/bin/bash
# {name}, job {job}: rendered by launch/startup_script.py.
set -u
mkdir -p {state}
[ ! -e {state}/outcome ] || exit 0  # It has ended; this is a reboot.
metadata() {{
  curl --silent --fail --header 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
until index=$(metadata agent-worker-number) &&
  endpoints=$(metadata worker-network-endpoints); do sleep 5; done
# Each endpoint is NAME:PORT:ADDRESS, the first one that of machine 0.
first=$(echo "$endpoints" | cut -d, -f1 | cut -d: -f3)

# What all machines share.
command -v mount.nfs >/dev/null ||
  until apt-get update -q && apt-get install -qy nfs-common; do sleep 5; done
mkdir -p {mount}
until mountpoint -q {mount} || mount -t nfs -o hard {share} {mount}; do
  sleep 5
done
mkdir -p {folders} {logs}
"""
_DISTRIBUTED = """\
# Who is who, for jax.distributed.
export JAX_COORDINATOR_ADDRESS="$first:{port}"
export JAX_NUM_PROCESSES={num_hosts}
export JAX_PROCESS_ID="$index"
"""
_REGISTER = """\
# Where the main job finds this service, now that it runs here.
mkdir -p {addresses}
echo "$first" > {addresses}/.{job}
mv {addresses}/.{job} {addresses}/{job}
"""
_RESOLVE = """\
# Names of services with machines of their own, which may change.
[ -e {state}/hosts ] || cp /etc/hosts {state}/hosts
resolve() {{
  for name in {names}; do
    [ -e {addresses}/$name ] || return 1
    echo "$(cat {addresses}/$name) $name.{domain}"
  done > {state}/names
  cat {state}/hosts {state}/names > {state}/hosts.new
  # In place: containers have this very file mounted.
  cmp -s {state}/hosts.new /etc/hosts || cat {state}/hosts.new > /etc/hosts
}}
until resolve; do sleep 5; done
while sleep 10; do resolve; done &
"""
_BESIDE = """\
# {job} needs no TPU, and runs beside machine 0.
[ "$index" -ne 0 ] || while true; do
  docker rm --force {container} >/dev/null 2>&1
  {command} >> {log} 2>&1
  sleep 5
done &
"""
# A service is stopped from outside; by itself it never is done.
_SERVICE = f'[ "$code" -ne {exit_codes.DONE} ] || code={exit_codes.RESTART}\n  '
# A line of attempts.jsonl, as launch/run_dirs.py writes and reads it.
_ATTEMPT = (
  '{{"time": "%s", "job": "{job}", "exit_codes": [%d], "verdict": "%s", '
  '"secs": %d}}\\n'
)
_LOOP = """\
strikes=0
while true; do
  docker rm --force {container} >/dev/null 2>&1
  began=$SECONDS
  {command} >> {log} 2>&1
  code=$?
  {rule}verdict=permanent
  if [ "$code" -eq {done} ]; then
    verdict=done
  elif [ "$code" -eq {restart} ] || [ "$code" -ge {first_signal} ]; then
    verdict=restart
    strikes=0
  else
    strikes=$((strikes + 1))
    [ "$strikes" -ge {max_strikes} ] || verdict=restart
  fi
  echo "{job} on machine $index ended with code $code: $verdict"
  [ "$index" -ne 0 ] || printf '{attempt}' \\
    "$(date --utc --iso-8601=seconds)" "$code" "$verdict" \\
    "$((SECONDS - began))" >> {attempts}
  [ "$verdict" = restart ] || break
  sleep 5
done
echo "$index $code" > {state}/outcome
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartupScript:
  """How machines run containers; the fields are those of QueuedResource."""

  image: str
  project: str
  share: str
  grace_secs: int

  def render(self, unit: WorkUnit, job: Job) -> str:
    """The script of one job, in bash.

    Raises:
      ValueError: the work unit cannot be executed so.
    """
    container.check_workdir(unit)
    num_hosts, _ = topologies.hosts(job.requirements)
    if job.is_service and num_hosts > 1:
      raise ValueError(
        f'job {job.name}: a service is one process, and '
        f'{topologies.name_of(job.requirements)} has {num_hosts} hosts'
      )
    parts = [self._head(unit, job), self._image(), self._secrets(unit, job)]
    if num_hosts > 1:
      parts.append(
        _DISTRIBUTED.format(
          port=container.COORDINATOR_PORT, num_hosts=num_hosts
        )
      )
    if job.is_service:
      parts.append(_REGISTER.format(job=job.name, addresses=_addresses(unit)))
    else:
      parts += [self._resolve(unit), *self._beside(unit)]
    parts.append(self._loop(unit, job, num_hosts))
    return '\n'.join(part for part in parts if part)

  def _head(self, unit: WorkUnit, job: Job) -> str:
    return _HEAD.format(
      name=unit.name,
      job=job.name,
      state=_STATE,
      mount=_MOUNT,
      share=shlex.quote(self.share),
      folders=' '.join(f'{_MOUNT}/{name}' for name in container.SHARED),
      logs=shlex.quote(_logs(unit)),
    )

  def _image(self) -> str:
    registry = self.image.partition('/')[0]
    lines = []
    if registry.endswith('-docker.pkg.dev'):
      lines.append(f'gcloud auth configure-docker {registry} --quiet')
    lines.append(
      f'until docker pull {shlex.quote(self.image)}; do sleep 10; done\n'
    )
    return '\n'.join(lines)

  def _secrets(self, unit: WorkUnit, job: Job) -> str:
    """Puts values into the environment, from which docker takes them."""
    local = [] if job.is_service else _local(unit)
    names = dict.fromkeys(name for j in (job, *local) for name in j.secrets)
    return ''.join(
      f'until {name}=$(gcloud secrets versions access latest '
      f'--secret={name} --project={shlex.quote(self.project)}); do\n'
      f'  sleep 10\ndone\nexport {name}\n'
      for name in names
    )

  def _resolve(self, unit: WorkUnit) -> str:
    remote = [s.name for s in unit.services if isinstance(s.requirements, Tpu)]
    if not remote:
      return ''
    return _RESOLVE.format(
      names=' '.join(remote),
      addresses=_addresses(unit),
      state=_STATE,
      domain=_DOMAIN,
    )

  def _beside(self, unit: WorkUnit) -> list[str]:
    return [
      _BESIDE.format(
        job=job.name,
        container=f'qed-{job.name}',
        command=self._docker(unit, job),
        log=_log(unit, job),
      )
      for job in _local(unit)
    ]

  def _loop(self, unit: WorkUnit, job: Job, num_hosts: int) -> str:
    return _LOOP.format(
      container=f'qed-{job.name}',
      command=self._docker(unit, job),
      log=_log(unit, job),
      job=job.name,
      done=exit_codes.DONE,
      rule=_SERVICE if job.is_service else '',
      attempt=_ATTEMPT.format(job=job.name),
      attempts=shlex.quote(f'{_workdir(unit)}/{run_dirs.ATTEMPTS}'),
      restart=exit_codes.RESTART,
      first_signal=exit_codes.FIRST_SIGNAL,
      max_strikes=_MAX_STRIKES if num_hosts > 1 else 1,
      state=_STATE,
    )

  def _docker(self, unit: WorkUnit, job: Job) -> str:
    """The command line that runs a job's container to its end."""
    words = [
      'docker', 'run', '--rm', f'--name=qed-{job.name}', '--network=host',
      f'--stop-timeout={self.grace_secs}',
      '--volume=/etc/hosts:/etc/hosts:ro',
      *(f'--volume={_MOUNT}/{name}:{container.ROOT}/{name}'
        for name in container.SHARED),
    ]  # fmt: skip
    if isinstance(job.requirements, Tpu):
      # The devices belong to root; shared memory is that of the machine.
      words += ['--privileged', '--user=0', '--ipc=host']
      words.append('--env=JAX_PLATFORMS=tpu,cpu')
      for name in ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID'):
        words.append(f'--env=JAX_{name}')  # Not set means: not passed on.
    else:
      words.append('--env=JAX_PLATFORMS=cpu')
      words.append(f'--env=JAX_NUM_CPU_DEVICES={job.requirements.devices}')
    words += [f'--env={name}' for name in job.secrets]
    urls = {
      s.name: f'http://127.0.0.1:{_port(unit, s)}'
      if isinstance(s.requirements, Cpu)
      else f'http://{s.name}.{_DOMAIN}:{container.PORT}'
      for s in unit.services
    }
    if job.is_service:
      host = '127.0.0.1' if isinstance(job.requirements, Cpu) else '0.0.0.0'
      argv = job.argv(urls=urls, port=_port(unit, job), host=host)
    else:
      argv = job.argv(urls=urls)
    return shlex.join([*words, self.image, *argv])


def _local(unit: WorkUnit) -> list[Job]:
  """The services that run beside the first machine of the main job."""
  return [s for s in unit.services if isinstance(s.requirements, Cpu)]


def _port(unit: WorkUnit, job: Job) -> int:
  """Services that share a machine have ports of their own."""
  local = _local(unit)
  return container.PORT + (local.index(job) if job in local else 0)


def _workdir(unit: WorkUnit) -> str:
  relative = unit.workdir.removeprefix(f'{container.ROOT}/')
  return f'{_MOUNT}/{relative}'


def _addresses(unit: WorkUnit) -> str:
  return shlex.quote(f'{_workdir(unit)}/addresses')


def _logs(unit: WorkUnit) -> str:
  return f'{_workdir(unit)}/logs'


def _log(unit: WorkUnit, job: Job) -> str:
  """One file for each machine; the shell fills in which."""
  return f'{shlex.quote(f"{_logs(unit)}/{job.name}-")}"$index".log'
