"""How many turns of the reasoning cache are worth their tokens?

  qed evaluate --config=experiments/eval_rc_turns.py --workdir=DIR

Cost: 47, 78 and 104 million tokens for the 180 attempts of the three arms, and
180 verdicts of the judge for each.

Table 6 of the QED-Nano report: 3 turns 40.0 %, 5 turns 42.4 %, 7 turns 54.0 %
of IMO-ProofBench. Its Table 2 has 44.0 % for 3 turns, and its text calls 3 the
best trade-off: look at the intervals.
"""

from ml_collections import ConfigDict

from experiments import base

_CACHE = {'scaffold': 'reasoning_cache'}

ARMS = {
  'baseline': {},  # 3 turns.
  'turns=5': {'scaffolds.reasoning_cache.num_turns': 5},
  'turns=7': {'scaffolds.reasoning_cache.num_turns': 7},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.override(base.evaluation(), _CACHE), ARMS[arm])
