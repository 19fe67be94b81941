r"""Launches the curation of problems: a work unit for each arm and sweep.

  python -m launch.curate --config=FILE[:ARM] [--sweep=FIELD=A,B]

  python -m launch.curate --config=experiments/data_main.py \
    --arms=deterministic --executor=local

It needs no accelerator: models write and judge behind endpoints, whose keys the
jobs read from the environment. With --dry_run it prints what would be done.
"""

import sys

from absl import flags

from launch import command
from launch.experiment import sweep
from qed import cli


def main(argv: list[str]) -> int:
  """Adds the work units and launches them."""
  values = flags.FlagValues()
  given = command.parse(argv, values, usage=__doc__, program='curate')
  for source in given.sources:
    for overrides in sweep(given.axes):
      given.experiment.add(source, overrides=overrides)
  return given.launch()


if __name__ == '__main__':
  sys.exit(cli.run(main))
