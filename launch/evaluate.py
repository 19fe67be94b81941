r"""Launches evaluations: a work unit for each arm, sweep and checkpoint.

  python -m launch.evaluate --config=FILE[:ARM] [--checkpoint=DIR] [--sweep=...]

With --checkpoint, which may be repeated, `qed serve` serves it beside the run;
without, the solver is the one of the config:

  python -m launch.evaluate --config=experiments/eval_scaffolds.py --arms='*' \
    --checkpoint=runs/sft/checkpoints --checkpoint=runs/rl/checkpoints

With --dry_run it prints what would be done. The same command goes on with what
was stopped; `qed report` makes a leaderboard of the runs.
"""

import sys

from absl import flags

from launch import command
from launch.experiment import Job, sweep
from qed import cli


def main(argv: list[str]) -> int:
  """Adds the work units and launches them."""
  values = flags.FlagValues()
  flags.DEFINE_multi_string(
    'checkpoint', [], 'a checkpoint to serve', flag_values=values
  )
  flags.DEFINE_string(
    'variant',
    'qwen3-4b-2507',
    'the model that these are of, which says which slice serves them',
    flag_values=values,
  )
  given = command.parse(argv, values, usage=__doc__, program='evaluate')
  for source in given.sources:
    for checkpoint in values['checkpoint'].value or ['']:
      for overrides in sweep(given.axes):
        addresses, services = {}, ()
        if checkpoint:
          place, _ = given.place(values['variant'].value, 'sampler')
          # The name tells the checkpoints apart, on the leaderboard too.
          overrides = {'model_name': checkpoint} | overrides
          addresses = {
            'config.solver.kind': 'chat',
            'config.solver.model': 'policy',
            'config.solver.base_url': '{url:solver}/v1',
            'config.solver.api_key_env': '',
          }
          services = (_server(checkpoint, place),)
        given.experiment.add(
          source, overrides=overrides, flags=addresses, services=services
        )
  return given.launch()


def _server(checkpoint, place):
  return Job(
    name='solver',
    program='serve',
    flags={'checkpoint': checkpoint},
    requirements=place,
    is_service=True,
    port_flag='port',
    host_flag='host',
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
