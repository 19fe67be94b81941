"""Does GRPO with a rubric-following judge improve the SFT model's proofs?

  qed grpo --config=experiments/rl_main.py --workdir=runs/rl_main

Cost: 150 steps of 64 problems x 16 rollouts of up to 49,152 tokens; published
as 9,216 H100-hours (four days on 7 sampling, 4 training and 1 judging nodes).

The RL stage of QED-Nano (section 4.2 of the report, without the reasoning
cache). The arms change one published setting each: the two-sided clip at 4,
which hardly ever binds, against a narrow one; the group's mean as the baseline
against the mean of the other members, or the z-score of GRPO as first
published; no entropy bonus; no lag; weights for the sampler's mismatch that are
truncated, or masked (IcePop), in the place of the ratio.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'clip_higher': {'loss.clip_low': 0.2, 'loss.clip_high': 0.28},
  'leave_one_out': {'loss.advantage': 'leave_one_out'},
  'z_score': {
    'loss.advantage': 'z_score',
    'loss.z_score_eps': 1e-4,
    'loss.z_score_ddof': 1,
    'loss.sequence_mean': True,
  },
  'no_entropy': {'loss.entropy_coef': 0.0},
  'synchronous': {'rollout.max_lag': 0},
  'truncated_weights': {
    'loss.correction': 'truncate',
    'loss.correction_high': 2.0,
  },
  'masked_weights': {
    'loss.correction': 'mask',
    'loss.correction_low': 0.5,
    'loss.correction_high': 5.0,
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
