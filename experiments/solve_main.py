"""How is one problem solved as in the main result, and otherwise?

  qed solve --config=experiments/solve_main.py --problem=FILE --workdir=DIR

Cost: with RSA 39 calls of some 52k tokens, two million together, as the report
measured; `single` takes one call, and the arms between are what else it tries.

The scaffolds of the QED-Nano report, with the sampling of its Table 1, on a
problem of your own. Without --config `qed solve` reads this file; --scaffold
and --llm stand for its arms and for the model.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'rsa': {},
  'single': {'scaffold': 'single'},
  'best_of_n': {'scaffold': 'best_of_n'},
  'reasoning_cache': {'scaffold': 'reasoning_cache'},
  'selfcheck': {'scaffold': 'selfcheck'},
  'deepseek_math': {'scaffold': 'deepseek_math'},
  'nomos': {'scaffold': 'nomos'},
}


def get_config(arm: str = 'rsa') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.solving(), ARMS[arm])
