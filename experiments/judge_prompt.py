"""Which instructions make a small judge grade as people do?

  qed judge --config=experiments/judge_prompt.py:simple --workdir=runs/simple

Cost: five arms, each that of experiments/judge_main.py.

Table 4 of the QED-Nano report, advantage MAE of gpt-oss-20b at medium effort on
MathArena's gradings: simple 1.56, opc 1.57, proofbench 1.43, proofbench_strict
1.21 (the baseline), gimo 1.36. The templates are of the same kinds, in our own
words, so that the order is to be compared rather than the numbers.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'simple': {'judge.template': 'simple'},
  'opc': {'judge.template': 'opc'},
  'proofbench': {'judge.template': 'proofbench'},
  'gimo': {'judge.template': 'gimo'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.judging(), ARMS[arm])
