"""Does a larger judge, more thinking or a reference proof grade better?

  qed judge --config=experiments/judge_model.py:20b,high --workdir=runs/high

Cost: six arms of 60 problems with 4 proofs each; minutes to an hour of one
8-GPU node per arm.

Table 5 of the QED-Nano report: advantage MAE on proofs of training problems,
against Gemini 3 Pro. Without and with a reference proof: 20b at medium effort
1.19 (the baseline) and 1.26, 20b at high effort 1.17 and 1.19, 120b at medium
effort 1.16 and 1.24.
"""

from ml_collections import ConfigDict

from experiments import base

_JUDGES = {
  '20b,medium': {},
  '20b,high': {'judge.effort': 'high'},
  '120b,medium': {'judge.model': 'openai/gpt-oss-120b'},
}
_SOLUTIONS = {
  'solutions.source': 'olympiads',
  'solutions.paths': ('data/olympiads-proof-graderbench/train.parquet',),
}

ARMS = {'baseline': {}}
for _name, _judge in _JUDGES.items():
  ARMS[_name] = _judge
  ARMS[f'{_name},reference'] = {**_judge, 'judge.with_reference': True}
del ARMS['20b,medium']  # This is the baseline.


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.override(base.judging(), _SOLUTIONS), ARMS[arm])
