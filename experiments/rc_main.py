"""Does practising from summaries of earlier turns make later turns better?

  qed grpo --config=experiments/rc_main.py --workdir=runs/rc_main

Cost: as rl_main.py, which has as many rollouts, and 7 % more tokens for the
turns that lead to the states: 2.3 of them for each 32 rollouts. They come one
after another, so that a step takes longer where there is no lag. The report had
19 samplers, 4 for turns and 1 for summaries, beside 8 trainers.

The stage that the report ends with (section 4.2, figures 4 to 6): three turns,
two of the four states of each problem, 16 rollouts of each. Compare with
rl_main.py at equal steps, in one turn and in several (qed evaluate). `many`
practises all states of half as many problems; `short` sums up in fewer tokens;
`append` keeps every summary, as far as there is room.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'many': {
    'rollout.problems_per_step': 16,
    'rollout.states_per_problem': 4,
  },
  'short': {'cache.summary.max_tokens': 512},
  'append': {
    'cache.mode': 'append',
    'problems.max_prompt_tokens': 7_936,
    'packing.row_length': 57_344,
    'summarizer.max_prompt_tokens': 57_600,
  },
  'synchronous': {'rollout.max_lag': 0},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo_rc(), ARMS[arm])
