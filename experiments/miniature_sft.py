"""Does imitation of a noisy teacher leave something for reinforcement learning?

  qed sft --config=experiments/miniature_sft.py --workdir=runs/demo/sft

The files it names are written by `qed demo`, which also runs this.

Cost: three to four minutes on two CPU cores. No table of the report. What is
learnt comes in jumps: the layout of a proof, then what stands in the problem
(by step 500), then the arithmetic (by step 900). A run that ends before the
last jump earns nothing, and reinforcement learning has no signal from it.
"""

from ml_collections import ConfigDict

from experiments import base

_ROLES = {
  'data.chat_style': 'thinking',
  'data.prompt': '{{problem}}\n',
  'data.max_tokens': 192,
  # Reasoning about many steps is learnt as far as it goes.
  'data.overlong': 'truncate',
  'packing.num_rows': 4,
  'packing.row_length': 320,
  'packing.microbatch_counts': (1, 2, 3, 4),
}
ARMS = {
  'baseline': {},
  'low_lr': {'optim.peak_lr': 1e-3},
  # Of `qed demo --full`: reasoning about short chains, which jumps as above,
  'short_chains': {
    **_ROLES,
    'model.path': 'runs/demo-full/model',
    'data.paths': ('runs/demo-full/traces-first.jsonl',),
  },
  # and then about long ones, and all that scaffolds ask for.
  'roles': {
    **_ROLES,
    'model.path': 'runs/demo-full/sft-first/checkpoints',
    'data.paths': ('runs/demo-full/traces.jsonl',),
    'data.samples_per_step': 12,
    'training.total_steps': 2_000,
  },
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
      # The problem says what to prove; a longer prompt only costs time.
      'data.prompt': '{{problem}}',
      # Many small steps: a jump takes steps more than it takes samples.
      'data.samples_per_step': 14,
      'data.num_epochs': 0,
      'data.max_tokens': 160,
      # `qed demo` has new problems of its own.
      'data.validation_frac': 0.0,
      'packing.num_rows': 6,
      'packing.row_length': 256,
      'packing.microbatch_counts': (1, 2, 3),
      'mesh.data': 1,
      'optim.peak_lr': 4e-3,
      'optim.warmup_frac': 0.05,
      'optim.beta2': 0.95,
      'training.total_steps': 1_600,
      'training.logprob_chunk_size': 4_096,
      'training.checkpoint_interval_steps': 800,
      'training.eval_interval_steps': 0,
    },
  )
  return base.override(config, ARMS[arm])
