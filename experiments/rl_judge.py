"""How good must the judge be that gives the reward?

  qed grpo --config=experiments/rl_judge.py --workdir=DIR

Cost: 6 arms, each that of experiments/rl_main.py; judge time differs.

Figure 3 and Table 2 of the report compare judges by their agreement with
people, not by what they teach. The arms ask another rubric prompt, show the
reference proof, or take the worse of several verdicts.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'lenient': {'judge.template': 'proofbench'},
  'simple': {'judge.template': 'simple'},
  'with_reference': {'judge.with_reference': True},
  'high_effort': {'judge.effort': 'high'},
  'minimum_of_3': {'judge.replicas': 3, 'judge.aggregate': 'minimum'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
