"""How many turns should training lead through?

  qed grpo --config=experiments/rc_turns.py:turns=1 --workdir=runs/rc_turns_1

Cost: as rc_main.py; a turn more is two thirds of a rollout more for each 32.

The reasoning cache's authors found three better than two and four (arXiv
2602.03773); the report trained with three. With more turns, states are drawn
from a longer chain, and the early ones come less often.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'turns=3': {},
  'turns=1': {'cache.num_turns': 1},
  'turns=2': {'cache.num_turns': 2},
  'turns=4': {'cache.num_turns': 4},
}


def get_config(arm: str = 'turns=3') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo_rc(), ARMS[arm])
