"""Is a group without a signal worth its place in the batch?

  qed grpo --config=experiments/rl_zero_signal.py --workdir=DIR

Cost: 3 arms; `refill` samples more, by the share of groups without a signal.

A group whose rewards are all equal has no advantage, but an entropy bonus and a
place in the divisor. The report keeps them; DAPO replaces them (dynamic
sampling).
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'drop': {'rollout.zero_signal': 'drop'},
  'refill': {'rollout.zero_signal': 'refill'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
