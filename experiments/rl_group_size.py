"""How many rollouts of a problem, if rollouts are what is paid for?

  qed grpo --config=experiments/rl_group_size.py --workdir=DIR

Cost: 5 arms, each that of experiments/rl_main.py: all have 1,024 rollouts a
step.

The report says of 16 that only 2 to 3 % of the problems are then left without a
success; it shows no table. The arms keep the product of group size and
problems.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  **{
    f'group_size={size}': {
      'rollout.group_size': size,
      'rollout.problems_per_step': 1024 // size,
      'rollout.max_groups_waiting': 2048 // size,
    }
    for size in (4, 8, 32, 64)
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
