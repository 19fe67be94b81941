"""Does the whole path train: can a tiny model learn short proofs by heart?

  qed sft --config=experiments/miniature_sft.py --workdir=runs/demo/sft

The files it names are written by `qed demo`, which also runs this.

Cost: about two minutes on two CPU cores. No table of the report.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'low_lr': {'optim.peak_lr': 3e-4},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  config = base.override(
    base.sft(),
    {
      'model.path': 'runs/demo/model',
      'model.variant': '',
      'model.dtype': 'float32',
      'model.remat': 'none',
      'data.paths': ('runs/demo/traces.jsonl',),
      'data.chat_style': 'instruct',
      'data.samples_per_step': 32,
      'data.num_epochs': 0,
      'data.max_tokens': 160,
      # `qed demo` has new problems of its own.
      'data.validation_frac': 0.0,
      'packing.num_rows': 8,
      'packing.row_length': 512,
      'packing.microbatch_counts': (1, 2, 4),
      'mesh.data': 1,
      'optim.peak_lr': 3e-3,
      'training.total_steps': 200,
      'training.checkpoint_interval_steps': 100,
      'training.eval_interval_steps': 0,
    },
  )
  return base.override(config, ARMS[arm])
