"""Which base model and which learning rate make the best SFT checkpoint?

  qed sft --config=experiments/sft_lr.py:instruct,peak_lr=6e-05 --workdir=DIR

Cost: 24 arms, each that of experiments/sft_main.py.

Table 7 of the QED-Nano report: three bases x eight rates, ProofBench score of
the last checkpoint. The eight rates of that table are lost; only 3e-5, the best
for Thinking-2507, is known. The grid here is ours: 3e-5 and its neighbors by
factors of two.
"""

from ml_collections import ConfigDict

from experiments import base

BASES = {
  'thinking': {},
  'instruct': {'model.path': 'checkpoints/qwen3-4b-instruct-2507'},
  'base': {
    'model.path': 'checkpoints/qwen3-4b-base',
    'model.variant': 'qwen3-4b',
  },
}
RATES = [1.875e-6, 3.75e-6, 7.5e-6, 1.5e-5, 3e-5, 6e-5, 1.2e-4, 2.4e-4]

ARMS = {'baseline': {}}
for _start, _overrides in BASES.items():
  for _name, _arm in base.product(('optim.peak_lr', RATES)).items():
    ARMS[f'{_start},{_name}'] = {**_overrides, **_arm}
del ARMS['thinking,peak_lr=3e-05']  # This is the baseline.


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.sft(), ARMS[arm])
