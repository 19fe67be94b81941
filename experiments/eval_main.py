"""How good are the base model, SFT, RL and scaffolds, on three benchmarks?

  qed evaluate --config=experiments/eval_main.py --workdir=DIR

Cost: of 180 attempts without a scaffold about 17 million tokens, with RSA 22
times as many; and 180 verdicts of the judge, whose thinking costs 12 usd for a
million tokens. `qed report DIR DIR ...` makes the leaderboard of several arms.

Table 1 of the QED-Nano report. IMO-ProofBench and ProofBench have 3 attempts,
IMO-AnswerBench one; the judge is Gemini 3 Pro. Each arm needs the model that it
names at solver.base_url. `judge=gpt-oss-20b` is the judge of the training: its
scores are another column, and comparable to no published figure.
"""

from ml_collections import ConfigDict

from experiments import base

_MODELS = {
  '': {},
  'sft': {
    'model_name': 'QED-Nano SFT',
    'solver.model': 'lm-provers/QED-Nano-SFT',
  },
  'base': {
    'model_name': 'Qwen3-4B-Thinking-2507',
    'solver.model': 'Qwen/Qwen3-4B-Thinking-2507',
  },
  'rsa': {'scaffold': 'rsa'},
  'deepseek_math': {'scaffold': 'deepseek_math'},
}
_BENCHMARKS = {
  '': {},
  'proofbench': {
    'benchmark.name': 'proofbench',
    'benchmark.path': 'data/proofbench.parquet',
    'judge.template': 'proofbench_strict',
    'judge.with_reference': False,
  },
  'answerbench': {
    'benchmark.name': 'imo_answerbench',
    'benchmark.path': 'data/imo_answerbench_v2.csv',
    'benchmark.num_attempts': 1,
    'benchmark.pass_score': 7,
    'scaffolds.single.solve': 'answer',
    'scaffolds.rsa.solve': 'answer',
  },
}

ARMS = {
  ','.join(filter(None, (model, benchmark))) or 'baseline': {
    **_MODELS[model],
    **_BENCHMARKS[benchmark],
  }
  for model in _MODELS
  for benchmark in _BENCHMARKS
  # Its prompts ask for proofs, and in the report it makes answers worse.
  if (model, benchmark) != ('deepseek_math', 'answerbench')
}
ARMS['judge=gpt-oss-20b'] = {
  'judge.base_url': 'http://localhost:8000/v1',
  'judge.api_key_env': '',
  'judge.model': 'openai/gpt-oss-20b',
  'judge.effort': 'medium',
  'judge.max_tokens': 81_920,
  'judge.max_concurrency': 512,
  'judge.usd_per_million_prompt': 0.0,
  'judge.usd_per_million_completion': 0.0,
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.evaluation(), ARMS[arm])
