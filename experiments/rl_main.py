"""Does GRPO with a rubric-following judge improve the SFT model's proofs?

  qed grpo --config=experiments/rl_main.py --workdir=runs/rl_main

Cost: 150 steps of 64 problems x 16 rollouts of up to 49,152 tokens; published
as 9,216 H100-hours (four days on 7 sampling, 4 training and 1 judging nodes).

The RL stage of QED-Nano (section 4.2 of the report, without the reasoning
cache). The arms change one published setting each: the two-sided clip at 4,
which hardly ever binds, against a narrow one; the group's mean as the baseline
against the mean of the other members; no entropy bonus; no lag.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'clip_higher': {'loss.clip_low': 0.2, 'loss.clip_high': 0.28},
  'leave_one_out': {'loss.advantage': 'leave_one_out'},
  'no_entropy': {'loss.entropy_coef': 0.0},
  'synchronous': {'rollout.max_lag': 0},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
