"""Should a half-right proof be paid for?

  qed grpo --config=experiments/rl_reward.py --workdir=DIR

Cost: 4 arms, each that of experiments/rl_main.py.

The report rewards score / 7. Its code has, switched off, the table of the arm
`no_middle`: points from 1 to 5 count as one. `success` pays for a 6 or a 7
only; `discount` makes long proofs worth less, by half at 35,000 tokens.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'no_middle': {'reward.points': (0, 1, 1, 1, 1, 1, 6, 7)},
  'success': {'reward.points': (0, 0, 0, 0, 0, 0, 7, 7)},
  'discount': {'reward.discount': 0.99998},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
