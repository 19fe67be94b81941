"""Who should write the summaries that training starts from?

  qed grpo --config=experiments/rc_summarizer.py:policy --workdir=runs/rc_policy

Cost: as rc_main.py. `policy` needs no other model than the one that is trained,
`frozen` loads one beside it, and the baseline asks a server of such a one.

The report trained with summaries by Qwen3-4B-Instruct-2507, and had the trained
model sum up for itself when it was evaluated; with `policy` the two agree.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'policy': {
    'summarizer.source': 'policy',
    'summarizer.base_url': '',
    'summarizer.model': '',
  },
  'frozen': {
    'summarizer.source': 'frozen',
    'summarizer.path': 'checkpoints/qwen3-4b-instruct-2507',
    'summarizer.base_url': '',
    'summarizer.model': '',
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo_rc(), ARMS[arm])
