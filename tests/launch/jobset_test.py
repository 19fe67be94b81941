import copy
import pathlib

import pytest
import yaml

from launch import curate, evaluate, grpo, jobset, sft
from launch.experiment import Cpu, Job, Tpu, WorkUnit
from tests.launch.jobset_faults import Expected, faults, schema_faults
from tests.launch.units import GROUP, SAMPLER, TRAINER, make_unit

REPOSITORY = pathlib.Path(__file__).parents[2]
EXECUTOR = jobset.JobSet(image='registry/qed:1', volume_claim='shared')
FLAGS = (
  '--executor=jobset', '--jobset.image=registry/qed:1',
  '--jobset.volume_claim=shared', '--dry_run',
)  # fmt: skip

# GKE's names for slices, and how many hosts and chips per host they have:
# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
SLICES = {
  Tpu('v4', '2x2x1'): ('tpu-v4-podslice', 1, 4),
  Tpu('v4', '4x4x4'): ('tpu-v4-podslice', 16, 4),
  Tpu('v5e', '1x1'): ('tpu-v5-lite-podslice', 1, 1),
  Tpu('v5e', '2x2'): ('tpu-v5-lite-podslice', 1, 4),
  Tpu('v5e', '2x4'): ('tpu-v5-lite-podslice', 1, 8),
  Tpu('v5e', '4x4'): ('tpu-v5-lite-podslice', 4, 4),
  Tpu('v5e', '8x8'): ('tpu-v5-lite-podslice', 16, 4),
  Tpu('v5e', '16x16'): ('tpu-v5-lite-podslice', 64, 4),
  Tpu('v5p', '2x2x1'): ('tpu-v5p-slice', 1, 4),
  Tpu('v5p', '2x2x2'): ('tpu-v5p-slice', 2, 4),
  Tpu('v5p', '2x4x4'): ('tpu-v5p-slice', 8, 4),
  Tpu('v5p', '4x4x8'): ('tpu-v5p-slice', 32, 4),
  Tpu('v6e', '2x4'): ('tpu-v6e-slice', 1, 8),
  Tpu('v6e', '4x4'): ('tpu-v6e-slice', 4, 4),
  Tpu('v6e', '8x8'): ('tpu-v6e-slice', 16, 4),
  Tpu('tpu7x', '2x2x1'): ('tpu7x', 1, 4),
  Tpu('tpu7x', '4x4x4'): ('tpu7x', 16, 4),
}


def expected(tpu=None, **others):
  if tpu is None:
    return Expected(**others)
  accelerator, num_hosts, chips = SLICES[tpu]
  return Expected(
    accelerator=accelerator,
    topology=tpu.topology,
    num_hosts=num_hosts,
    chips_per_host=chips,
    **others,
  )


SECRETS = ('GEMINI_API_KEY', 'QED_API_KEY')
GROUP_EXPECTED = {
  'main': expected(TRAINER, secrets=SECRETS),
  'judge': Expected(is_service=True, secrets=('JUDGE_KEY',)),
  'sampler0': expected(SAMPLER, is_service=True, secrets=('QED_API_KEY',)),
}


def manifest_of(unit, executor=EXECUTOR):
  ((_, text),) = executor.render(unit).files.items()
  return yaml.safe_load(text)


RIGHT = manifest_of(GROUP)


# Show: what is rendered.


def test_a_group_of_trainer_sampler_and_judge_has_no_fault():
  assert faults(RIGHT, GROUP_EXPECTED) == []


@pytest.mark.parametrize('tpu', SLICES, ids=lambda tpu: str(tpu.topology))
def test_every_slice_is_asked_for_by_its_name_and_all_its_hosts(tpu):
  unit = WorkUnit(
    name='sft-0a1b2c3d',
    workdir='runs/sft-0a1b2c3d',
    jobs=(Job(name='main', program='sft', flags={}, requirements=tpu),),
  )
  found = manifest_of(unit)
  assert faults(found, {'main': expected(tpu)}) == []


def test_processes_on_cpus_are_told_who_is_who():
  found = manifest_of(make_unit(Cpu(), None, num_processes=2))
  judge = GROUP_EXPECTED['judge']
  want = {'main': Expected(num_hosts=2, secrets=SECRETS), 'judge': judge}
  assert faults(found, want) == []
  pod = found['spec']['replicatedJobs'][0]['template']['spec']['template']
  environment = {e.pop('name'): e for e in pod['spec']['containers'][0]['env']}
  assert environment['JAX_NUM_PROCESSES'] == {'value': '2'}
  address = environment['JAX_COORDINATOR_ADDRESS']['value']
  assert address == 'rl-0a1b2c3d-main-0-0.rl-0a1b2c3d:8476'
  (reference,) = environment['JAX_PROCESS_ID'].values()
  assert 'job-completion-index' in reference['fieldRef']['fieldPath']


def run_script(script, capsys, *flags):
  """What a script would do, as manifests."""
  assert script.main(['script', *flags, *FLAGS]) == 0
  texts = capsys.readouterr().out.split('--- ')[1:]
  loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
  return [
    yaml.load(text.partition('\n')[2].partition('\nkubectl ')[0], loader)
    for text in texts
  ]


@pytest.mark.parametrize(
  ('script', 'flags', 'jobs'),
  [
    (sft, ['--config=experiments/sft_main.py', f'--tpu={kind}'], [tpu])
    for kind, tpu in (
      ('', Tpu('v5p', '2x4x4')),
      ('v5p', Tpu('v5p', '2x4x4')),
      ('v6e', Tpu('v6e', '8x8')),
      ('v5e', Tpu('v5e', '8x8')),
      ('v5p:4x4x8', Tpu('v5p', '4x4x8')),
    )
  ]
  + [
    (
      grpo,
      ['--config=experiments/rl_main.py', f'--tpu={kind}', '--samplers=2'],
      tpus,
    )
    for kind, tpus in (
      ('v5p', [Tpu('v5p', '2x4x4'), Tpu('v5p', '2x2x1'), Tpu('v5p', '2x2x1')]),
      ('v6e', [Tpu('v6e', '8x8'), Tpu('v6e', '2x4'), Tpu('v6e', '2x4')]),
    )
  ]
  + [
    (evaluate, ['--config=experiments/eval_main.py'], [None]),
    (
      evaluate,
      [
        '--config=experiments/eval_main.py',
        '--tpu=v6e',
        '--checkpoint=checkpoints/a',
      ],
      [None, Tpu('v6e', '2x4')],
    ),
    (curate, ['--config=experiments/data_main.py'], [None]),
  ],
)  # fmt: skip
def test_what_a_script_renders_has_no_fault(
  script, flags, jobs, capsys, monkeypatch
):
  monkeypatch.chdir(REPOSITORY)
  (manifest,) = run_script(script, capsys, *flags)
  names = [job['name'] for job in manifest['spec']['replicatedJobs']]
  want = {
    name: expected(
      tpu, is_service=name != 'main', secrets=_secrets_of(manifest, name)
    )
    for name, tpu in zip(names, jobs, strict=True)
  }
  assert faults(manifest, want) == []


def test_a_sampler_reads_its_key_where_the_trainer_sends_one(
  capsys, monkeypatch
):
  monkeypatch.chdir(REPOSITORY)
  flags = ('--config=experiments/rl_main.py', '--tpu=v6e', '--samplers=1')
  key = '--sweep=sampler.api_key_env=,QED_API_KEY'
  without, given = run_script(grpo, capsys, *flags, key)
  for manifest, secrets in ((without, ()), (given, ('QED_API_KEY',))):
    assert _secrets_of(manifest, 'sampler0') == secrets
    assert {*secrets} <= {*_secrets_of(manifest, 'main')}


def _secrets_of(manifest, name):
  """Whatever it refers to: which they are is another test's to know."""
  (job,) = (j for j in manifest['spec']['replicatedJobs'] if j['name'] == name)
  pod = job['template']['spec']['template']['spec']
  return tuple(
    entry['name']
    for entry in pod['containers'][0]['env']
    if 'secretKeyRef' in entry.get('valueFrom', {})
  )


@pytest.mark.slow
def test_every_arm_of_every_file_renders_on_every_slice(capsys, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  num_manifests = 0
  for script, pattern, kinds in (
    (sft, 'sft_*.py', ('v5p', 'v6e', 'v5e')),
    (grpo, 'rl_*.py', ('v5p', 'v6e')),
    (evaluate, 'eval_*.py', ('',)),
    (curate, 'data_*.py', ('',)),
  ):
    for path in sorted((REPOSITORY / 'experiments').glob(pattern)):
      for kind in kinds:
        name = path.relative_to(REPOSITORY)
        flags = [f'--config={name}', '--arms=*', f'--tpu={kind}']
        for manifest in run_script(script, capsys, *flags):
          assert schema_faults(manifest) == [], (path, kind)
          num_manifests += 1
  assert num_manifests > 100


# Show: planted mistakes.


def at(manifest, path):
  for key in path:
    manifest = manifest[key]
  return manifest


JOB = ('spec', 'replicatedJobs', 0, 'template')
BATCH = (*JOB, 'spec')
POD = (*BATCH, 'template', 'spec')
MAIN = (*POD, 'containers', 0)
SERVICE = ('spec', 'replicatedJobs', 1, 'template', 'spec')
RULES = (*BATCH, 'podFailurePolicy', 'rules')


def renamed(path, old, new):
  def plant(manifest):
    place = at(manifest, path)
    place[new] = place.pop(old)

  return plant


def changed(path, key, value):
  def plant(manifest):
    at(manifest, path)[key] = value

  return plant


def removed(path, key):
  def plant(manifest):
    del at(manifest, path)[key]

  return plant


TPU_SELECTOR = 'cloud.google.com/gke-tpu-accelerator'
TOPOLOGY_SELECTOR = 'cloud.google.com/gke-tpu-topology'
MISTAKES = {
  'misspelt key': renamed(BATCH, 'backoffLimit', 'backofLimit'),
  'key of Python': renamed(BATCH, 'backoffLimit', 'backoff_limit'),
  'misspelt key of a container': renamed(MAIN, 'volumeMounts', 'volumesMounts'),
  'misspelt policy': renamed(('spec',), 'failurePolicy', 'failurePolicies'),
  'text for a number': changed(BATCH, 'parallelism', '8'),
  'number for a text': changed((*POD, 'nodeSelector'), TOPOLOGY_SELECTOR, 244),
  'list for a text': changed(MAIN, 'image', ['registry/qed:1']),
  'another generation': changed(
    (*POD, 'nodeSelector'), TPU_SELECTOR, 'tpu-v6e-slice'
  ),
  'selector without its prefix': renamed(
    (*POD, 'nodeSelector'), TOPOLOGY_SELECTOR, 'gke-tpu-topology'
  ),
  'a host too few': changed(BATCH, 'completions', 7),
  'chips of the whole slice': changed(
    (*MAIN, 'resources', 'limits'), 'google.com/tpu', '32'
  ),
  'pods without an index': changed(BATCH, 'completionMode', 'NonIndexed'),
  'missing secret': removed((*MAIN, 'env'), -1),
  'secret by another key': changed(
    (*MAIN, 'env', -1, 'valueFrom', 'secretKeyRef'), 'key', 'KEY'
  ),
  'secret as it is': changed(
    (*MAIN, 'env'), -1, {'name': 'QED_API_KEY', 'value': 'hush'}
  ),
  '42 is permanent': changed(
    (*RULES, 1, 'onExitCodes'), 'values', [*range(128, 256)]
  ),
  '134 is permanent': changed(
    (*RULES, 1, 'onExitCodes'), 'values', [42, 137, 143]
  ),
  'a bug is started again': changed(
    (*RULES, 1, 'onExitCodes'), 'values', [1, 42, *range(128, 256)]
  ),
  'codes the wrong way round': changed(
    (*RULES, 1, 'onExitCodes'), 'operator', 'In'
  ),
  'codes of another container': changed(
    (*RULES, 1, 'onExitCodes'), 'containerName', 'main'
  ),
  'a lost machine is a bug': removed(RULES, 0),
  'a lost machine of the trainer': changed((*RULES, 0), 'action', 'Ignore'),
  'a bug is for JobSet to start again': changed(
    ('spec', 'failurePolicy', 'rules', 0), 'action', 'RestartJobSet'
  ),
  'restarts in the pod': changed(POD, 'restartPolicy', 'OnFailure'),
  'few restarts': changed(('spec', 'failurePolicy'), 'maxRestarts', 3),
  'trainer replaced pod by pod': changed(BATCH, 'backoffLimit', 200),
  'service that ends all': changed(SERVICE, 'backoffLimit', 0),
  'success of everybody': removed(
    ('spec', 'successPolicy'), 'targetReplicatedJobs'
  ),
  'address of nobody': changed(('spec', 'replicatedJobs', 1), 'name', 'judge1'),
  'another subdomain': changed(('spec', 'network'), 'subdomain', 'other'),
  'shared slice': removed(JOB, 'metadata'),
  'volume without a mount': changed(
    MAIN, 'volumeMounts', [{'name': 'shm', 'mountPath': '/dev/shm'}]
  ),
  'no grace': changed(POD, 'terminationGracePeriodSeconds', 0),
}


@pytest.mark.parametrize('plant', MISTAKES.values(), ids=[*MISTAKES])
def test_a_planted_mistake_is_found(plant):
  manifest = copy.deepcopy(RIGHT)
  plant(manifest)
  assert faults(manifest, GROUP_EXPECTED)


def test_no_value_of_a_secret_is_rendered(monkeypatch):
  for name in GROUP.secrets:
    monkeypatch.setenv(name, 'hush-0123456789')
  rendered = EXECUTOR.render(GROUP)
  (text,) = rendered.files.values()
  assert 'hush' not in text + str(rendered.commands)
  assert 'GEMINI_API_KEY' in text


# What a work unit must be.


def test_a_service_on_several_hosts_is_refused():
  with pytest.raises(ValueError, match=r'sampler0: .* v6e:4x4 has 4 hosts'):
    EXECUTOR.render(make_unit(sampler=Tpu('v6e', '4x4')))


@pytest.mark.parametrize(
  'workdir', ['elsewhere/a', 'runs', '/tmp/runs/a', 'gs://b/runs', 'runs/../a']
)
def test_a_run_directory_that_pods_do_not_share_is_refused(workdir):
  job = Job(name='main', program='sft', flags={})
  unit = WorkUnit(name='sft-0a1b2c3d', workdir=workdir, jobs=(job,))
  with pytest.raises(ValueError, match='expected it below one of checkpoints'):
    EXECUTOR.render(unit)


def test_a_pod_name_that_kubernetes_would_cut_is_refused():
  name = 'a' * 31 + '-0a1b2c3d'
  job = Job(name='a-name-of-16-abc', program='sft', flags={})
  unit = WorkUnit(name=name, workdir='runs/a', jobs=(job,))
  with pytest.raises(ValueError, match='shorten the name of the job'):
    EXECUTOR.render(unit)


def test_too_few_restarts_are_refused():
  with pytest.raises(ValueError, match='max_restarts = 49'):
    jobset.JobSet(image='a', volume_claim='b', max_restarts=49)


def test_kubernetes_expands_nothing_in_a_flag():
  job = Job(name='main', program='sft', flags={'config.x': 'a$(HOME)b'})
  unit = WorkUnit(name='sft-0a1b2c3d', workdir='runs/a', jobs=(job,))
  found = at(manifest_of(unit), (*MAIN, 'command'))
  assert found[-1] == '--config.x=a$$(HOME)b'


def test_spot_queue_and_account_are_asked_for():
  executor = jobset.JobSet(
    image='a', volume_claim='b', queue='tpus', spot=True, service_account='me',
    namespace='team', grace_secs=30, secret='keys',
  )  # fmt: skip
  found = manifest_of(GROUP, executor)
  assert faults(found, GROUP_EXPECTED) == []
  labels = found['metadata']['labels']
  assert labels == {'kueue.x-k8s.io/queue-name': 'tpus'}
  assert found['metadata']['namespace'] == 'team'
  pod = at(found, POD)
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert pod['tolerations'][0]['key'] == 'cloud.google.com/gke-spot'
  assert pod['serviceAccountName'] == 'me'
  assert pod['terminationGracePeriodSeconds'] == 30
  assert at(found, MAIN)['env'][-1]['valueFrom']['secretKeyRef'] == {
    'name': 'keys',
    'key': 'QED_API_KEY',
  }
