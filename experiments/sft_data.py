"""Is it better to see each problem once, and to leave long proofs out?

  qed sft --config=experiments/sft_data.py:all --workdir=runs/sft_data_all

Cost: that of experiments/sft_main.py for each arm, 1.8 times it for `all`.

Figure 7 of the QED-Nano report: 7,777 proofs, several for a problem, against
4,281 proofs of different problems, which won. `all` has the same number of
epochs, `all_equal_steps` the same number of updates. The length caps ask what
the long tail of the traces is worth, since after SFT many failed proofs are
hundreds of thousands of tokens long; the report has no figures for them.
"""

from ml_collections import ConfigDict

from experiments import base

_ALL = {'data.paths': ('data/fineproofs-sft/all.jsonl',)}
_STEPS = {'data.num_epochs': 0, 'training.total_steps': 620}

ARMS = {
  'baseline': {},
  'all': _ALL,
  'all_equal_steps': {**_ALL, **_STEPS},
  'truncate': {'data.overlong': 'truncate'},
  **base.product(('data.max_tokens', [8_192, 16_384, 32_768])),
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.sft(), ARMS[arm])
