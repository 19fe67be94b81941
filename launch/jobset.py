"""Executes work units on Google Kubernetes Engine, each as one JobSet.

A JobSet is a set of Kubernetes Jobs with stable names. Every job of a work unit
is one of them: the main job with a pod per host of its slice, and each service
with one pod. The codes of exit_codes.py become its policies. The main job fails
as a whole when a pod does, whereupon the JobSet starts everything again, from
the last checkpoint; a service's pod is replaced alone, since the main job waits
for it; a code that says "permanent" fails the JobSet at once. It has succeeded
when the main job has.

Kubernetes finds the machines. Secrets are keys of one Secret object, called as
their environment variables are; only those names are rendered.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from absl import app

from launch import container, exit_codes, topologies
from launch.experiment import Job, Rendered, Tpu, WorkUnit, label

_MIN_RESTARTS = 50  # Every preemption of the main job takes one.
_MAX_POD_NAME_CHARS = 63
_POD_SUFFIX_CHARS = 6  # A dash and five letters, which Kubernetes adds.
_CONTAINER = 'qed'
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

# A service is stopped from outside when the main job is done. Where it ends by
# itself, in good order even, as `qed serve` does when its machine is taken
# away, it is to come again. The shell waits once more after every signal.
_SERVICE = (
  f"trap 'kill -TERM $! || exit {exit_codes.RESTART}' TERM; "
  '"$@" & while wait $!; code=$?; kill -0 $! 2>/dev/null; do :; done; '
  f'[ "$code" -ne {exit_codes.DONE} ] || exit {exit_codes.RESTART}; '
  'exit "$code"'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSet:
  """The executor.

  Attributes:
    image: the one of launch/Dockerfile, built from this very tree.
    volume_claim: a PersistentVolumeClaim that many pods may write to, with the
      folders of container.SHARED.
    namespace: of Kubernetes.
    secret: the Secret object, if a job has any secrets.
    queue: a LocalQueue of Kueue; '': none.
    service_account: of Kubernetes; '': the namespace's own.
    spot: whether slices may be taken away, for a lower price.
    grace_secs: between SIGTERM and SIGKILL. On spot machines GKE gives 15 s
      whatever this says, or up to 120 s where the node pool was made so.
    max_restarts: of the main job, and of each service.
    files_dir: where manifests are written.
  """

  image: str
  volume_claim: str
  namespace: str = 'default'
  secret: str = 'qed'
  queue: str = ''
  service_account: str = ''
  spot: bool = False
  grace_secs: int = 120
  max_restarts: int = 200
  files_dir: str = 'runs/launch'

  def __post_init__(self):
    if not (self.image and self.volume_claim):
      raise ValueError(
        f'JobSet: image = {self.image!r}, volume_claim = {self.volume_claim!r}:'
        ' expected both'
      )
    if self.max_restarts < _MIN_RESTARTS:
      raise ValueError(
        f'JobSet: max_restarts = {self.max_restarts}: expected at least '
        f'{_MIN_RESTARTS}, as every preemption takes one'
      )

  def render(self, unit: WorkUnit) -> Rendered:
    """A manifest, and the command that applies it.

    Raises:
      ValueError: the work unit cannot be executed so.
    """
    path = f'{self.files_dir}/{label(unit.name)}.yaml'
    text = yaml.safe_dump(
      self._manifest(unit), sort_keys=False, default_flow_style=None, width=80
    )
    apply = ('kubectl', 'apply', f'--namespace={self.namespace}')
    return Rendered(
      files={path: text}, commands=((*apply, f'--filename={path}'),)
    )

  def submit(self, units: Sequence[WorkUnit]) -> int:
    """Applies manifests.

    One that is applied already stays as it is. One whose JobSet has failed is
    applied anew, and its run goes on from the last checkpoint.

    Returns:
      0, or 2 where kubectl refused one.
    """
    code = exit_codes.DONE
    for unit, rendered in [(unit, self.render(unit)) for unit in units]:
      target = (label(unit.name), f'--namespace={self.namespace}')
      state = _kubectl(
        'get', 'jobset', *target,
        '--ignore-not-found', '--output=jsonpath={.status.terminalState}',
      )  # fmt: skip
      if state == 'Completed':
        print(f'{unit.name}: done')
        continue
      if state == 'Failed':
        _kubectl('delete', 'jobset', *target, '--cascade=foreground')
      for path, text in rendered.files.items():
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text, encoding='utf-8')
      for command in rendered.commands:
        if subprocess.run(command, check=False).returncode:
          code = exit_codes.USAGE
    return code

  def _manifest(self, unit: WorkUnit) -> dict[str, Any]:
    container.check_workdir(unit)
    name = label(unit.name)
    urls = {
      job.name: f'http://{name}-{job.name}-0-0.{name}:{container.PORT}'
      for job in unit.services
    }
    metadata: dict[str, Any] = {
      'name': name,
      'namespace': self.namespace,
      'annotations': {'qed/work-unit': unit.name, 'qed/workdir': unit.workdir},
    }
    if self.queue:
      metadata['labels'] = {'kueue.x-k8s.io/queue-name': self.queue}
    return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2',
      'kind': 'JobSet',
      'metadata': metadata,
      'spec': {
        'network': {'enableDNSHostnames': True, 'subdomain': name},
        'successPolicy': {
          'operator': 'All',
          'targetReplicatedJobs': [unit.main.name],
        },
        'failurePolicy': {
          'maxRestarts': self.max_restarts,
          'rules': [
            {
              'name': 'permanent',
              'action': 'FailJobSet',
              'onJobFailureReasons': ['PodFailurePolicy'],
            }
          ],
        },
        'replicatedJobs': [
          {
            'name': job.name,
            'replicas': 1,
            'template': self._job(job, name, urls),
          }
          for job in unit.jobs
        ],
      },
    }

  def _job(self, job: Job, name: str, urls: Mapping[str, str]) -> dict:
    num_hosts, num_chips = job.num_processes, 0
    if isinstance(job.requirements, Tpu):
      num_hosts, num_chips = topologies.hosts(job.requirements)
    if job.is_service and num_hosts > 1:
      raise ValueError(
        f'job {job.name}: a service is one process, and '
        f'{topologies.name_of(job.requirements)} has {num_hosts} hosts'
      )
    longest = f'{name}-{job.name}-0-{num_hosts - 1}'
    if len(longest) + _POD_SUFFIX_CHARS > _MAX_POD_NAME_CHARS:
      raise ValueError(
        f'job {job.name}: a pod would be called {longest}-12345; expected at '
        f'most {_MAX_POD_NAME_CHARS} characters; shorten the name of the job'
      )
    template: dict[str, Any] = {
      'spec': {
        'completionMode': 'Indexed',
        'completions': num_hosts,
        'parallelism': num_hosts,
        'backoffLimit': self.max_restarts if job.is_service else 0,
        'podFailurePolicy': {'rules': _pod_failure_rules(job)},
        'template': {'spec': self._pod(job, name, urls, num_hosts, num_chips)},
      }
    }
    if num_chips and num_hosts > 1:
      # All hosts of the slice, and nobody else there.
      key = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
      node_pool = 'cloud.google.com/gke-nodepool'
      template = {'metadata': {'annotations': {key: node_pool}}, **template}
    return template

  def _pod(
    self,
    job: Job,
    name: str,
    urls: Mapping[str, str],
    num_hosts: int,
    num_chips: int,
  ) -> dict[str, Any]:
    pod: dict[str, Any] = {
      'restartPolicy': 'Never',  # The policies above are to decide.
      'terminationGracePeriodSeconds': self.grace_secs,
    }
    if self.service_account:
      pod['serviceAccountName'] = self.service_account
    if num_chips:
      tpu = job.requirements
      accelerator = topologies.GKE_ACCELERATORS[tpu.generation]
      pod['nodeSelector'] = {
        'cloud.google.com/gke-tpu-accelerator': accelerator,
        'cloud.google.com/gke-tpu-topology': tpu.topology,
      }
      if self.spot:
        pod['nodeSelector']['cloud.google.com/gke-spot'] = 'true'
        pod['tolerations'] = [
          {
            'key': 'cloud.google.com/gke-spot',
            'operator': 'Equal',
            'value': 'true',
            'effect': 'NoSchedule',
          }
        ]
    pod['containers'] = [
      {
        'name': _CONTAINER,
        'image': self.image,
        'workingDir': container.ROOT,
        'command': _command(job, urls),
        'env': self._environment(job, name, num_hosts, num_chips),
        'resources': _resources(job, num_chips),
        'securityContext': _security(num_chips),
        'volumeMounts': [
          *(
            {
              'name': 'shared',
              'mountPath': f'{container.ROOT}/{folder}',
              'subPath': folder,
            }
            for folder in container.SHARED
          ),
          {'name': 'shm', 'mountPath': '/dev/shm'},
        ],
      }
    ]
    if job.is_service:
      ports = [{'name': 'http', 'containerPort': container.PORT}]
      pod['containers'][0]['ports'] = ports
    pod['volumes'] = [
      {
        'name': 'shared',
        'persistentVolumeClaim': {'claimName': self.volume_claim},
      },
      {'name': 'shm', 'emptyDir': {'medium': 'Memory'}},
    ]
    return pod

  def _environment(
    self, job: Job, name: str, num_hosts: int, num_chips: int
  ) -> list[dict[str, Any]]:
    """What jax must know, and where secrets are.

    On a slice of several hosts GKE tells jax who is who.
    """
    if num_chips:
      values = {'JAX_PLATFORMS': 'tpu,cpu'}  # Not the CPU in silence.
    else:
      devices = job.requirements.devices
      values = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    found: list[dict[str, Any]] = []
    if not num_chips and num_hosts > 1:
      first = f'{name}-{job.name}-0-0.{name}'
      values |= {
        'JAX_COORDINATOR_ADDRESS': f'{first}:{container.COORDINATOR_PORT}',
        'JAX_NUM_PROCESSES': str(num_hosts),
      }
      found.append(
        {
          'name': 'JAX_PROCESS_ID',
          'valueFrom': {'fieldRef': {'fieldPath': _INDEX}},
        }
      )
    found += [{'name': key, 'value': value} for key, value in values.items()]
    found += [
      {
        'name': key,
        'valueFrom': {'secretKeyRef': {'name': self.secret, 'key': key}},
      }
      for key in job.secrets
    ]
    return found


def _pod_failure_rules(job: Job) -> list[dict[str, Any]]:
  """exit_codes.py in Kubernetes' words; the first rule that fits decides.

  FailJob makes the reason PodFailurePolicy, at which the JobSet fails too;
  Count leads to another reason once backoffLimit is exceeded, at which the
  JobSet starts again; Ignore replaces the pod at no cost.
  """
  restarting = [
    code
    for code in range(1, exit_codes.LAST + 1)
    if exit_codes.verdict(code) == 'restart'
  ]
  return [
    {
      'action': 'Ignore' if job.is_service else 'Count',
      'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
    },
    {
      'action': 'FailJob',
      'onExitCodes': {
        'containerName': _CONTAINER,
        'operator': 'NotIn',
        'values': restarting,
      },
    },
  ]


def _command(job: Job, urls: Mapping[str, str]) -> list[str]:
  """The command line, which Kubernetes would expand $(NAME) in."""
  if job.is_service:
    argv = job.argv(urls=urls, port=container.PORT, host='0.0.0.0')
    argv = ('/bin/sh', '-c', _SERVICE, job.name, *argv)
  else:
    argv = job.argv(urls=urls)
  return [word.replace('$(', '$$(') for word in argv]


def _resources(job: Job, num_chips: int) -> dict[str, Any]:
  if num_chips:
    return {'limits': {'google.com/tpu': str(num_chips)}}
  return {'requests': {'cpu': str(job.requirements.devices)}}


def _security(num_chips: int) -> dict[str, Any]:
  """The devices of TPUs belong to root, and pin more memory than others may."""
  if num_chips:
    return {'privileged': True, 'runAsUser': 0}
  return {'allowPrivilegeEscalation': False, 'runAsNonRoot': True}


def _kubectl(*arguments: str) -> str:
  """What kubectl answers.

  Raises:
    UsageError: it is not there, or knows no cluster, or refuses.
  """
  try:
    done = subprocess.run(
      ('kubectl', *arguments), capture_output=True, text=True, check=False
    )
  except FileNotFoundError as error:
    raise app.UsageError('kubectl is not installed') from error
  if done.returncode:
    words = ' '.join(('kubectl', *arguments))
    raise app.UsageError(f'{words}: {done.stderr.strip()}')
  return done.stdout.strip()
