r"""Launches supervised fine-tuning: a work unit for each arm and sweep.

  python -m launch.sft --config=FILE[:ARM] [--arms=PATTERN] [--sweep=FIELD=A,B]

Two rates with two seeds each on this machine, two runs at a time:

  python -m launch.sft --config=experiments/sft_main.py \
    --sweep=optim.peak_lr=1e-5,3e-5 --sweep=training.seed=0,1 \
    --executor=local --local.n=2

With --dry_run it prints what would be done. The same command goes on with what
was stopped. See how far they are, and what came of it:

  python -m launch.status runs
  qed report runs/sft_main-* --out=runs/report
"""

import sys

from absl import flags

from launch import command
from launch.experiment import sweep
from qed import cli


def main(argv: list[str]) -> int:
  """Adds the work units and launches them."""
  values = flags.FlagValues()
  flags.DEFINE_integer(
    'num_processes',
    1,
    'of each run on CPUs, under jax.distributed; slices have one per host',
    lower_bound=1,
    flag_values=values,
  )
  given = command.parse(argv, values, usage=__doc__, program='sft')
  for source in given.sources:
    for overrides in sweep(given.axes):
      place = given.trainer(source, overrides, values['num_processes'].value)
      given.experiment.add(source, overrides=overrides, **place)
  return given.launch()


if __name__ == '__main__':
  sys.exit(cli.run(main))
