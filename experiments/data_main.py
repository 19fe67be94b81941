"""What remains of forums and contests that a model can practise proofs on?

  qed curate --config=experiments/data_main.py --workdir=runs/data_main

Cost: the stages without a model, minutes of one core for 100,000 rows. Then for
some 5,000 problems a call of the quality model each, one or two of the rubric
model (10k tokens), 128 rollouts of up to 49k tokens with as many verdicts: days
of an 8-GPU node; and two proofs of the teacher, of up to 125k tokens.

Section 3 and appendices D and F of the QED-Nano report: 5,227 problems for RL
and 4,281 proofs for SFT. No script for most of it was published; the thresholds
of filters, duplicates and decontamination are ours.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  # What needs no model: to look at before anything is paid for.
  'deterministic': {'model_stages': ()},
  # No problem is dropped for its difficulty, as the released loader does not.
  'all_difficulties': {
    'selection.max_mean_reward': 1.0,
    'selection.min_pass_rate': 0.0,
    'selection.tail_decay': 0.0,
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.curation(), ARMS[arm])
