"""Is it worth going on from the summaries of earlier epochs?

  qed grpo --config=experiments/rc_replay.py:replay --workdir=runs/rc_replay

Cost: as rc_main.py; use enough steps for several epochs, of which 150 steps of
32 problems are one (--config.training.total_steps=450).

The report has no replay; the reasoning cache's authors do in their second stage
(arXiv 2602.03773: one summary of each problem, the newest), which gained most
where evaluations had many turns. `four` draws from the last four; `half` begins
every other chain anew; `fresh` forgets what the policy of 100 steps ago wrote;
`bounded` begins a problem anew after nine turns.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'replay': {'replay.max_summaries': 1},
  'four': {'replay.max_summaries': 4},
  'half': {'replay.max_summaries': 1, 'replay.start_frac': 0.5},
  'fresh': {'replay.max_summaries': 1, 'replay.max_age_steps': 100},
  'bounded': {'replay.max_summaries': 1, 'replay.max_turn': 9},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo_rc(), ARMS[arm])
