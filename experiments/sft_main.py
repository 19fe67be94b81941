"""Does imitating a large prover's proofs teach a 4B model to write its own?

  qed sft --config=experiments/sft_main.py --workdir=runs/sft_main

Cost: 620 steps of 32 proofs, at most 0.9 billion tokens (all as long as the
cap). By arithmetic that is 6e19 FLOPs, most of them attention, or 90 hours of
one v5p chip at 40 % of its peak.

The SFT stage of QED-Nano (section 4.1 of the report), whose checkpoint after
372 of the 620 steps starts RL.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {'baseline': {}}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.sft(), ARMS[arm])
