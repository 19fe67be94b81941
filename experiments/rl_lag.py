"""How far may samplers run ahead, and does the ratio make up for it?

  qed grpo --config=experiments/rl_lag.py --workdir=DIR

Cost: 10 arms, each that of experiments/rl_main.py in tokens; the more lag, the
less time.

The report trains with a lag of at most 5 steps; the released configuration has
no bound. The first arm is the published bound. The loss weighs every token by
its ratio to the sampler's policy; `uncorrected` weighs all by 1, since its clip
leaves no room.
"""

from ml_collections import ConfigDict

from experiments import base

LAGS = [0, 1, 4, 16, -1]

ARMS = {'baseline': {}}
for _lag in LAGS:
  ARMS[f'max_lag={_lag}'] = {'rollout.max_lag': _lag}
  ARMS[f'max_lag={_lag},uncorrected'] = {
    'rollout.max_lag': _lag,
    'loss.kind': 'cispo',
    'loss.clip_low': 0.0,
    'loss.clip_high': 0.0,
  }


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  return base.override(base.grpo(), ARMS[arm])
