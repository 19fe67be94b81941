"""What does each scaffold make of the same model, and for how many tokens?

  qed evaluate --config=experiments/eval_scaffolds.py --workdir=DIR

Cost: from 17 million tokens of the baseline to 370 million of RSA, for 180
attempts; 180 verdicts of the judge, whatever the scaffold.

Table 2 of the QED-Nano report: a single turn 40.0 % at 93,690 tokens, three
turns of the reasoning cache 44.0 % at 2.5 times as many, the scaffold of
DeepSeekMath-V2 54.0 % at 17 times, RSA 56.9 % at 22 times. It has no figures
for the other three.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  **{
    name: {'scaffold': name}
    for name in (
      'reasoning_cache',
      'deepseek_math',
      'rsa',
      'best_of_n',
      'selfcheck',
      'nomos',
    )
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.evaluation(), ARMS[arm])
