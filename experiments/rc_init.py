"""What should training from summaries begin with?

  qed grpo --config=experiments/rc_init.py:rl --workdir=runs/rc_init_rl

Cost: as rc_main.py, and for `rl` that of rl_main.py before it.

The report tells of SFT, then RL with the reasoning cache; the model card's run
has one stage, and the released configuration begins with the published weights.
Here all three orders: after SFT, after SFT and plain RL, and with neither.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'rl': {'model.path': 'runs/rl_main/checkpoints'},
  'published': {'model.path': 'checkpoints/qwen3-4b-thinking-2507'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo_rc(), ARMS[arm])
