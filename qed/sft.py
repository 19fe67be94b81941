r"""Supervised fine-tuning on teacher proofs.

  qed sft --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

Reads traces (problem, reasoning, proof), packs them into rows, and trains on
the assistant's tokens. DIR receives the resolved config, the metrics of every
step and the checkpoints; the same command with the same DIR goes on where it
was stopped.

  qed sft --config=experiments/sft_main.py --workdir=runs/sft
  qed sft --config=experiments/sft_main.py --workdir=runs/low \
    --config.optim.peak_lr=1e-5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from qed import cli
from qed.config import SftConfig


def main(argv: Sequence[str]) -> int:
  """Checks the command line and the config, then trains."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  config = cli.parse_config(argv, values, run=SftConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    ('model.path', config.model.path),
    ('data.tokenizer', config.data.tokenizer),
    *(('data.paths', path) for path in config.data.paths),
  )
  return train(config, values['workdir'].value)


def train(config: SftConfig, workdir: str) -> int:
  """Trains until the run is complete or is stopped; returns the exit code."""
  raise NotImplementedError('training is not written yet')


if __name__ == '__main__':
  sys.exit(cli.run(main))
