"""A group of trainer, sampler and judge, of which launchers are asked."""

from launch.experiment import Cpu, Job, Requirements, Tpu, WorkUnit

NAME = 'rl-0a1b2c3d'
TRAINER = Tpu('v5p', '2x4x4')
SAMPLER = Tpu('v6e', '2x4')


def make_unit(
  main: Requirements = TRAINER,
  sampler: Requirements | None = SAMPLER,
  *,
  num_processes: int = 1,
) -> WorkUnit:
  """The group; sampler None: without one."""
  flags = {
    'config': 'experiments/rl_main.py',
    'workdir': f'runs/{NAME}',
    'config.judge.base_url': '{url:judge}/v1',
  }
  services = [
    Job(
      name='judge',
      program='miniature.judge_server',
      flags={},
      requirements=Cpu(),
      is_service=True,
      port_flag='port',
      secrets=('JUDGE_KEY',),
    )
  ]
  if sampler:
    flags['config.sampler.urls'] = "('{url:sampler0}/v1',)"
    services.append(
      Job(
        name='sampler0',
        program='serve',
        flags={'checkpoint': 'checkpoints/a'},
        requirements=sampler,
        is_service=True,
        port_flag='port',
        host_flag='host',
        secrets=('QED_API_KEY',),
      )
    )
  trainer = Job(
    name='main',
    program='grpo',
    flags=flags,
    requirements=main,
    num_processes=num_processes,
    secrets=('GEMINI_API_KEY', 'QED_API_KEY'),
  )
  return WorkUnit(name=NAME, workdir=f'runs/{NAME}', jobs=(trainer, *services))


GROUP = make_unit()
