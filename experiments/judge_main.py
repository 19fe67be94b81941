"""How far does the judge that trains agree with people?

  qed judge --config=experiments/judge_main.py --workdir=runs/judge_main

Cost: 438 verdicts, of some 10k tokens each with the thinking; about an hour of
one 8-GPU node, and nothing when the same command is given again.

The first row of Table 4 of the QED-Nano report (strict template, gpt-oss-20b at
medium effort: advantage MAE 1.21) on MathArena's human gradings. The arms ask
the same of other gradings, and how much the verdict varies when it is asked for
again. The file for `qedbench` is the user's own: its terms allow evaluation
only.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'replicas': {'agreement.replicas': 5},
  'proofbench': {
    'solutions.source': 'proofbench',
    'solutions.paths': ('data/proofbench/train.parquet',),
  },
  'imo_gradingbench': {
    'solutions.source': 'imo_gradingbench',
    'solutions.paths': ('data/imobench/gradingbench.csv',),
    'judge.template': 'imo_proofbench',
    'judge.with_reference': True,
  },
  'qedbench': {
    'solutions.source': 'qedbench',
    'solutions.paths': ('data/qedbench/graded.jsonl',),
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.judging(), ARMS[arm])
