r"""Launches reinforcement learning: trainer, samplers and perhaps a judge.

  python -m launch.grpo --config=FILE[:ARM] [--arms=PATTERN] [--sweep=FIELD=A,B]

A work unit is a group of jobs: `qed grpo`, --samplers times `qed serve`, and
with --judge_server the miniature's judge. Samplers take their weights from the
run directory, and the trainer finds them and the judge at their addresses:

  python -m launch.grpo --config=experiments/miniature_rl.py \
    --sweep=optim.peak_lr=1e-3,3e-4 --samplers=2 --num_processes=2 \
    --judge_server

With --dry_run it prints what would be done. The same command goes on with what
was stopped, also with another number of samplers or processes.
"""

import sys

from absl import flags

from launch import command
from launch.experiment import Job, flag_value, resolve, sweep
from qed import cli

_SERVER_KEY = 'QED_API_KEY'  # What `qed serve` reads its own from.


def main(argv: list[str]) -> int:
  """Adds the work units and launches them."""
  values = flags.FlagValues()
  for name, low, about in (
    ('num_processes', 1, 'of the trainer on CPUs, under jax.distributed'),
    ('samplers', 0, 'how many `qed serve`; 0: the trainer samples itself'),
  ):
    flags.DEFINE_integer(name, 1, about, low, flag_values=values)
  flags.DEFINE_boolean(
    'judge_server', False, "start the miniature's judge", flag_values=values
  )
  given = command.parse(argv, values, usage=__doc__, program='grpo')
  num_samplers = values['samplers'].value
  addresses = {}
  if num_samplers:
    urls = tuple(f'{{url:sampler{i}}}/v1' for i in range(num_samplers))
    addresses['config.sampler.placement'] = 'remote'
    addresses['config.sampler.urls'] = flag_value(urls)
  if values['judge_server'].value:
    addresses['config.judge.base_url'] = '{url:judge}/v1'

  def services(source, overrides, workdir):
    config = resolve(source, {**overrides, **given.layout})
    place, layout = given.place(config.model.variant, 'sampler')
    values_there = {**overrides, **layout, **given.layout}
    texts = {f'config.{k}': flag_value(v) for k, v in values_there.items()}
    for index in range(num_samplers):
      yield Job(
        name=f'sampler{index}',
        program='serve',
        flags={
          'checkpoint': config.model.path,
          'config': source,
          'weights_dir': f'{workdir}/weights',
          **texts,
        },
        requirements=place,
        is_service=True,
        port_flag='port',
        host_flag='host',
        secrets=(_SERVER_KEY,) if config.sampler.api_key_env else (),
      )
    if values['judge_server'].value:
      yield Job(
        name='judge',
        program='miniature.judge_server',
        flags={},
        is_service=True,
        port_flag='port',
        host_flag='host',
      )

  for source in given.sources:
    for overrides in sweep(given.axes):
      place = given.trainer(source, overrides, values['num_processes'].value)
      place['flags'] |= addresses
      given.experiment.add(
        source,
        overrides=overrides,
        **place,
        services=lambda workdir, run=(source, overrides): tuple(
          services(*run, workdir)
        ),
      )
  return given.launch()


if __name__ == '__main__':
  sys.exit(cli.run(main))
