"""Work units for TPU VMs, and the executor that is asked to run them."""

from launch.experiment import Job, Tpu, WorkUnit
from launch.queued_resource import QueuedResource

NAME = 'rl-0a1b2c3d'
EXECUTOR = QueuedResource(
  image='eu-docker.pkg.dev/mine/qed:1',
  project='mine',
  zones=('v5p=us-east5-a', 'v6e=us-east5-b'),
  share='10.0.0.2:/qed',
  service_account='qed@mine',
  network='lab',
  spot=True,
)


def make_unit(main=None, with_sampler=True):
  main = main or Tpu('v5p', '2x4x4')
  jobs = [
    Job(
      name='main', program='grpo', requirements=main,
      flags={
        'workdir': f'runs/{NAME}', 'config.judge.base_url': '{url:judge}/v1'
      } | (
        {'config.sampler.urls': '{url:sampler0}/v1'} if with_sampler else {}
      ),
      secrets=('GEMINI_API_KEY',),
    ),
    Job(
      name='judge', program='miniature.judge_server', flags={}, is_service=True,
      port_flag='port', secrets=('JUDGE_KEY',),
    ),
  ]  # fmt: skip
  if with_sampler:
    jobs.append(
      Job(
        name='sampler0', program='serve', flags={'checkpoint': 'checkpoints/a'},
        requirements=Tpu('v6e', '2x4'), is_service=True, port_flag='port',
        host_flag='host', secrets=('QED_API_KEY',),
      )
    )  # fmt: skip
  return WorkUnit(name=NAME, workdir=f'runs/{NAME}', jobs=tuple(jobs))


GROUP = make_unit()
ALONE = make_unit(Tpu('v5p', '2x2x1'), with_sampler=False)
