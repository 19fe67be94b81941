"""Does the beginning of a proof open up problems that are never solved?

  qed grpo --config=experiments/rl_pope.py --workdir=DIR

Cost: 4 arms, each that of experiments/rl_main.py: 64 groups of 16 rollouts in a
step, whatever their prompts. `qed curate` writes both files; the beginnings
take up to 64 more rollouts of every problem that none of its 128 solved.

No table of the QED-Nano report; its README names a configuration for POPE that
was not published. POPE (arXiv 2601.18779) practises problems that the base
model solves in none of 128 attempts, each in two groups: the prompt of one has
the shortest beginning of a proof from which an attempt succeeds, that of the
other has the problem alone. It brought AIME 2025 from 49.6 to 53.1 % and HMMT
2025 from 31.0 to 37.8 % (pass@1, against GRPO on the same problems).

`unguided` is that GRPO, and in `guided` no group is without a beginning. As in
POPE the reward is success; in `partial_credit` it is score / 7 as in the rest
of the recipe, so that a group may have a signal where no proof is complete. In
metrics.jsonl, 'guided/...' and 'unguided/...' are of the problems practised;
evaluations are unguided in all arms.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'unguided': {
    'rollout.problems_per_step': 64,
    'rollout.guided_per_problem': 0,
    'guidance.paths': (),
  },
  'guided': {
    'rollout.problems_per_step': 64,
    'rollout.unguided_per_problem': 0,
  },
  'partial_credit': {'reward.points': (0, 1, 2, 3, 4, 5, 6, 7)},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  config = base.override(
    base.grpo(),
    {
      'problems.paths': ('runs/data_main/unsolved.jsonl',),
      # A problem, and up to a quarter of its proof.
      'problems.max_prompt_tokens': 3_072,
      'packing.row_length': 52_224,
      'rollout.problems_per_step': 32,
      'rollout.guided_per_problem': 1,
      'guidance.paths': ('runs/data_main/prefixes.jsonl',),
      'reward.points': (0, 0, 0, 0, 0, 0, 7, 7),
    },
  )
  return base.override(config, ARMS[arm])
