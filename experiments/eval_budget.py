"""Which scaffold makes the most of the same number of tokens?

  qed evaluate --config=experiments/eval_budget.py --workdir=DIR

Cost: 180 attempts of up to the budget each: 47, 94, 189 and 377 million tokens
for the four budgets; 180 verdicts of the judge for each arm.

The report compares scaffolds at their own price (Table 2 and Figure 1); here
all of them stop at the same one, with the best proof that they have by then. A
single completion ends long before, and is the baseline.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {'baseline': {}} | base.product(
  ('scaffold', ['reasoning_cache', 'best_of_n', 'deepseek_math', 'rsa']),
  ('budget.max_tokens', [262_144, 524_288, 1_048_576, 2_097_152]),
)


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  config = base.evaluation()
  # So many turns that the budget ends them, and not their number.
  config.scaffolds.reasoning_cache.num_turns = 64
  return base.override(config, ARMS[arm])
