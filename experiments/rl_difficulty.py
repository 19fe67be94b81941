"""Which problems teach: all, those sometimes solved, or hard ones?

  qed grpo --config=experiments/rl_difficulty.py --workdir=DIR

Cost: 5 arms, each that of experiments/rl_main.py.

The report describes a filter of easy problems and a curriculum; the released
code has neither, and no table compares them. Difficulty is the base model's
mean reward of 128 attempts, which comes with the problems. `pass_rate` drops a
problem for good once its group in this run was solved, or had no point at all.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'not_easy': {'problems.max_difficulty': 0.9},
  'not_hopeless': {'problems.min_difficulty': 0.05},
  'between': {
    'problems.min_difficulty': 0.05,
    'problems.max_difficulty': 0.9,
  },
  'pass_rate': {
    'problems.min_pass_rate': 0.01,
    'problems.max_pass_rate': 0.95,
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
