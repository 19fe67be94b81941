"""How long may a rollout be, and what becomes of one that is longer?

  qed grpo --config=experiments/rl_length.py --workdir=DIR

Cost: 6 arms; the short ones cost about as much less as they are shorter.

The report trains at 49,152 tokens, within which 95 % of the base model's
answers end; truncated proofs are graded as they are. `masked` leaves truncated
rollouts out of the loss (DAPO), `penalty` makes the reward fall by 1 over the
last 4,096 tokens, `zero` gives them nothing.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'max_tokens=16384': {'sampling.max_tokens': 16_384},
  'max_tokens=32768': {'sampling.max_tokens': 32_768},
  'masked': {'rollout.mask_truncated': True},
  'penalty': {'reward.overlong_buffer_tokens': 4_096},
  'zero': {'reward.truncated': 'zero'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
