"""What is wrong with a JobSet: by its schema, and by what it is to do.

Expectations stand here as they are in the documentation of Kubernetes and GKE,
and owe nothing to launch/jobset.py.
"""

import dataclasses
import re

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import (
  JobsetV1alpha2JobSet,
)
from pydantic import ValidationError

EXCLUSIVE = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
LABEL = re.compile(r'[a-z0-9]([-a-z0-9]*[a-z0-9])?')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
  """What a job of a JobSet is to be; accelerator '' is a CPU."""

  accelerator: str = ''
  topology: str = ''
  num_hosts: int = 1
  chips_per_host: int = 0
  is_service: bool = False
  secrets: tuple = ()


def schema_faults(manifest):
  """Values of a wrong type, and keys that no model knows."""
  try:
    model = JobsetV1alpha2JobSet.from_dict(manifest)
  except (ValidationError, ValueError, TypeError, AttributeError) as error:
    return [f'schema: {error}']
  dropped = paths(manifest) - paths(model.to_dict())
  return [f'{path} is known to no model' for path in sorted(dropped)]


def paths(value, prefix=''):
  """The path of every key and leaf."""
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  else:
    return {f'{prefix}={value!r}'}
  found = {prefix}
  for key, child in items:
    found |= paths(child, f'{prefix}.{key}')
  return found


def faults(manifest, expected):
  """Everything that is wrong with a manifest.

  Args:
    manifest: as it was read from YAML.
    expected: name of a replicated job -> Expected, the main job first.
  """
  found = schema_faults(manifest)
  return found or [*_semantic_faults(manifest, expected)]


def _semantic_faults(manifest, expected):
  spec, name = manifest['spec'], manifest['metadata']['name']
  jobs = {job['name']: job for job in spec['replicatedJobs']}
  main = next(iter(expected))
  yield from _unless(
    ('kind', (manifest['apiVersion'], manifest['kind'])
     == ('jobset.x-k8s.io/v1alpha2', 'JobSet')),
    ('name', LABEL.fullmatch(name) and len(name) <= 40),
    ('success', spec['successPolicy']
     == {'operator': 'All', 'targetReplicatedJobs': [main]}),
    ('maxRestarts', spec['failurePolicy']['maxRestarts'] >= 50),
    ('jobs', [*jobs] == [*expected]),
    ('hostnames', spec['network']['enableDNSHostnames']),
  )  # fmt: skip
  known = _addresses(spec, name)
  for job_name, want in expected.items():
    job = jobs.get(job_name)
    if job:
      for fault in _job_faults(job, want, spec, name, known):
        yield f'{job_name}: {fault}'


def _job_faults(job, want, spec, name, known):
  batch = job['template']['spec']
  pod = batch['template']['spec']
  (main,) = pod['containers']
  annotations = job['template'].get('metadata', {}).get('annotations', {})
  selector = pod.get('nodeSelector', {})
  longest = f'{name}-{job["name"]}-0-{want.num_hosts - 1}-12345'
  mounts = {mount['name']: mount for mount in main['volumeMounts']}
  volumes = {volume['name']: volume for volume in pod['volumes']}
  yield from _unless(
    ('replicas', job['replicas'] == 1),
    ('pod name', len(longest) <= 63),
    ('Indexed', batch['completionMode'] == 'Indexed'),
    ('hosts', batch['completions'] == batch['parallelism'] == want.num_hosts),
    ('restartPolicy', pod['restartPolicy'] == 'Never'),
    ('grace', pod['terminationGracePeriodSeconds'] >= 15),
    ('accelerator', selector.get('cloud.google.com/gke-tpu-accelerator', '')
     == want.accelerator),
    ('topology', selector.get('cloud.google.com/gke-tpu-topology', '')
     == want.topology),
    ('chips', main['resources'].get('limits', {}).get('google.com/tpu', '0')
     == str(want.chips_per_host)),
    ('exclusive', annotations.get(EXCLUSIVE)
     == ('cloud.google.com/gke-nodepool' if want.num_hosts > 1
         and want.accelerator else None)),
    ('mounts', {*mounts} == {*volumes}),
    ('shm', mounts['shm']['mountPath'] == '/dev/shm'
     and volumes['shm']['emptyDir'] == {'medium': 'Memory'}),
    ('backoffLimit', (batch['backoffLimit'] >= 50) == want.is_service),
  )  # fmt: skip
  yield from _code_faults(batch, spec, want)
  yield from _environment_faults(main['env'], want)
  words = ' '.join(main['command'])
  for address in re.findall(r'http://([^\s/\'"]+)', words):
    if address not in known:
      yield f'http://{address} is nobody; there are {sorted(known)}'


def _code_faults(batch, spec, want):
  """Goes through all exit codes as Kubernetes and JobSet would."""
  for code in range(1, 256):
    right = 'restart' if code == 42 or code >= 128 else 'fail'
    got = _consequence(batch, spec, code=code)
    if got != right:
      yield f'exit code {code}: expected {right}, got {got}'
  right = 'replace' if want.is_service else 'restart'
  got = _consequence(batch, spec, code=1, is_disrupted=True)
  if got != right:
    yield f'a pod whose machine is taken away: expected {right}, got {got}'
  if want.is_service != (batch['backoffLimit'] > 0):
    yield 'a service, and nothing else, is to be replaced alone'


def _consequence(batch, spec, *, code, is_disrupted=False):
  """What comes of the first pod that fails.

  Either of all ('restart' or 'fail'), or of itself alone ('replace').
  """
  reason = 'BackoffLimitExceeded'
  for rule in batch['podFailurePolicy']['rules']:
    if 'onPodConditions' in rule:
      matches = is_disrupted and rule['onPodConditions'] == [
        {'type': 'DisruptionTarget', 'status': 'True'}
      ]
    else:
      codes = rule['onExitCodes']
      if codes['containerName'] != 'qed':
        continue
      is_in = code in codes['values']
      matches = is_in == (codes['operator'] == 'In')
    if matches:
      if rule['action'] == 'Ignore':
        return 'replace'
      if rule['action'] == 'FailJob':
        reason = 'PodFailurePolicy'
      break
  for rule in spec['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons']:
      return 'fail' if rule['action'] == 'FailJobSet' else 'restart'
  return 'restart'


def _environment_faults(environment, want):
  names = [entry['name'] for entry in environment]
  if len(names) != len({*names}):
    yield 'a variable is set twice'
  refs = {
    entry['name']: entry['valueFrom']['secretKeyRef']
    for entry in environment
    if 'secretKeyRef' in entry.get('valueFrom', {})
  }
  if {*refs} != {*want.secrets}:
    yield f'secrets: expected {want.secrets}, got {[*refs]}'
  for name, ref in refs.items():
    if ref['key'] != name or not ref['name']:
      yield f'secret {name} comes from {ref}'
  platforms = 'tpu,cpu' if want.accelerator else 'cpu'
  if {'name': 'JAX_PLATFORMS', 'value': platforms} not in environment:
    yield f'JAX_PLATFORMS is not {platforms}'
  is_gang = want.num_hosts > 1 and not want.accelerator
  if is_gang != ('JAX_COORDINATOR_ADDRESS' in names):
    yield 'JAX_COORDINATOR_ADDRESS'


def _addresses(spec, name):
  """HOST:PORT of every port that a pod listens at."""
  subdomain = spec['network'].get('subdomain', name)
  return {
    f'{name}-{job["name"]}-0-0.{subdomain}:{port["containerPort"]}'
    for job in spec['replicatedJobs']
    for main in job['template']['spec']['template']['spec']['containers']
    for port in main.get('ports', ())
  }


def _unless(*claims):
  """Names of the claims that do not hold."""
  return [name for name, holds in claims if not holds]
