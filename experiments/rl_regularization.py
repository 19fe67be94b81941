"""Does the policy need an entropy bonus, or to be held near where it began?

  qed grpo --config=experiments/rl_regularization.py --workdir=DIR

Cost: 6 arms, each that of experiments/rl_main.py, and a forward pass more with
a KL penalty.

The value of the entropy coefficient is lost from the report; the code says
1e-4. It has no KL penalty, nor a reference policy.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'entropy=0': {'loss.entropy_coef': 0.0},
  'entropy=1e-3': {'loss.entropy_coef': 1e-3},
  'kl=1e-3': {'loss.kl_coef': 1e-3},
  'kl=1e-2': {'loss.kl_coef': 1e-2},
  'kl=1e-3,k2': {'loss.kl_coef': 1e-3, 'loss.kl_estimator': 'k2'},
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
