"""What a step says about the run's health, and when that is too bad.

Everything here is host arithmetic on what is known anyway: the rollouts of the
step, the sums that the loss returns, and the trainer's log-probabilities of a
part of the batch. Names are those of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qed.rollout import groups
from qed.rollout.groups import Share
from qed.types import Rollout, RolloutGroup

# Where a bucket of positions begins, in tokens of the completion.
POSITIONS = (0, 256, 1024, 4096, 16_384)
_PERCENTILES = (10, 50, 90)
_RATIO_PERCENTILES = (1, 50, 99)
Metrics = dict[str, float]


def of_groups(
  finished: Sequence[RolloutGroup], *, max_score: int = 7
) -> Metrics:
  """Of all rollouts that were finished since the last step, used or not.

  Args:
    finished: the groups.
    max_score: that a perfect proof gets.
  """
  rollouts = [rollout for group in finished for rollout in group.rollouts]
  if not rollouts:
    return {}
  lengths = np.array([groups.num_tokens(r) for r in rollouts], np.float64)
  reasons = [rollout.completion.finish_reason for rollout in rollouts]
  scores = np.array(
    [-1 if r.grade.score is None else r.grade.score for r in rollouts]
  )
  rewards = np.array([r.reward for r in rollouts if r.reward is not None])
  signals = [groups.signal(group) for group in finished]
  perfect = [
    all(rollout.grade.score == max_score for rollout in group.rollouts)
    for group in finished
  ]
  metrics = {
    'length/mean': float(lengths.mean()),
    'length/max': float(lengths.max()),
    'rollouts/truncated': reasons.count('length') / len(rollouts),
    'rollouts/unfinished': (reasons.count('abort') + reasons.count('error'))
    / len(rollouts),
    'rollouts/ungraded': float(np.mean(scores < 0)),
    'rollouts/count': float(len(rollouts)),
    'groups/zero_signal': signals.count('none') / len(finished),
    'groups/invalid': signals.count('invalid') / len(finished),
    'groups/all_correct': float(np.mean(perfect)),
    'groups/count': float(len(finished)),
  }
  if rewards.size:
    metrics |= {'reward/mean': float(rewards.mean())}
    metrics |= _percentiles('reward', rewards)
  for score in np.unique(scores[scores >= 0]):
    metrics[f'length/by_score/{score}'] = float(lengths[scores == score].mean())
  return metrics | _of_turns(rollouts)


def _of_turns(rollouts: Sequence[Rollout]) -> Metrics:
  """By the turn of a reasoning cache, where there is more than the first."""
  metrics = {}
  turns = np.array([rollout.prompt.turn for rollout in rollouts])
  for turn in np.unique(turns) if turns.any() else ():
    here = [r for r in rollouts if r.prompt.turn == turn]
    rewards = [r.reward for r in here if r.reward is not None]
    lengths = [groups.num_tokens(rollout) for rollout in here]
    metrics[f'length/by_turn/{turn}'] = float(np.mean(lengths))
    if rewards:
      metrics[f'reward/by_turn/{turn}'] = float(np.mean(rewards))
  return metrics


def of_batch(shares: Sequence[Share], *, step: int) -> Metrics:
  """Of what the update from `step` to `step + 1` is trained on."""
  chosen = [
    (share, member, sample)
    for share in shares
    for member, sample in zip(share.members, share.samples, strict=True)
  ]
  lags = [groups.lag(s.group.rollouts[m], step) for s, m, _ in chosen]
  advantages = np.array([sample.advantage for *_, sample in chosen])
  mixed = [
    np.ptp(share.group.rollouts[member].completion.versions) > 0
    for share, member, _ in chosen
  ]
  if not chosen:
    return {}
  return {
    'lag/min': float(min(lags)),
    'lag/mean': float(np.mean(lags)),
    'lag/max': float(max(lags)),
    'lag/mixed': float(np.mean(mixed)),  # Drawn by more than one version.
    'advantage/std': float(advantages.std()),
    'advantage/max': float(np.abs(advantages).max()),
  }


def of_loss(sums: Mapping[str, float]) -> Metrics:
  """Means per token of what the loss summed up (algos.losses).

  `mismatch` is |log π - log μ| of a token, with π the trainer's weights and μ
  what drew it; `ess` the effective sample size of the ratios π / μ, relative to
  the number of tokens, before anything is clipped or clamped.
  """
  tokens = max(sums['policy/tokens'], 1.0)
  squares = sums['policy/squared_ratio_sum']
  found = {
    'entropy': sums['policy/entropy_sum'] / tokens,
    'clip_frac': sums['policy/clipped_tokens'] / tokens,
    'mismatch/mean': sums['policy/abs_log_ratio_sum'] / tokens,
    'mismatch/kl': sums['policy/behavior_kl_sum'] / tokens,
    'ratio/mean': sums['policy/ratio_sum'] / tokens,
    'ess': sums['policy/ratio_sum'] ** 2 / (squares * tokens)
    if squares
    else 0.0,
  }
  if 'policy/kl_sum' in sums:  # To the reference policy, where there is one.
    found['kl'] = sums['policy/kl_sum'] / tokens
  return found


def of_tokens(
  trainer: Sequence[np.ndarray],
  behavior: Sequence[np.ndarray],
  versions: Sequence[np.ndarray],
  *,
  step: int,
) -> Metrics:
  """How far trainer and sampler are apart on the tokens of some completions.

  Args:
    trainer: per completion float [n], log-probabilities under the weights that
      the step starts from.
    behavior: likewise, as they were drawn.
    versions: per completion int [n].
    step: whose tokens are `fresh`: drawn by the very same weights.
  """
  if not trainer:
    return {}
  log_ratio = np.concatenate(trainer) - np.concatenate(behavior)
  distance = np.abs(log_ratio)
  positions = np.concatenate([np.arange(len(values)) for values in trainer])
  fresh = np.concatenate(versions) == step
  metrics = {
    'mismatch/p99': float(np.percentile(distance, 99)),
    'mismatch/max': float(distance.max()),
  }
  if fresh.any():
    metrics['mismatch/fresh_mean'] = float(distance[fresh].mean())
    metrics['mismatch/fresh_max'] = float(distance[fresh].max())
  for start, end in zip(POSITIONS, (*POSITIONS[1:], np.inf), strict=True):
    here = (positions >= start) & (positions < end)
    if here.any():
      metrics[f'mismatch/from_{start}'] = float(distance[here].mean())
  ratio = np.exp(log_ratio)
  for percent in _RATIO_PERCENTILES:
    metrics[f'ratio/p{percent}'] = float(np.percentile(ratio, percent))
  return metrics


class HealthError(RuntimeError):
  """A run that should not go on as it is; its state is saved.

  The text says what was measured, and against which limit.
  """

  def __init__(self, text: str, *, remedy: str):
    """Takes the text, and what somebody could do about it: a sentence."""
    super().__init__(text)
    self.remedy = remedy


class Limits:
  """Stops a run that has been ill for some steps in a row."""

  def __init__(
    self,
    *,
    max_mismatch: float,
    min_entropy: float,
    max_ungraded_frac: float,
    patience_steps: int,
  ):
    """Takes the limits.

    Args:
      max_mismatch: of 'mismatch/mean'; 0: none.
      min_entropy: of 'entropy'; 0: none.
      max_ungraded_frac: of 'rollouts/ungraded'; 1: none.
      patience_steps: in a row that may be beyond a limit.
    """
    self._patience = patience_steps
    self._rules = {
      'mismatch/mean': (
        lambda x: 0 < max_mismatch < x,
        f'health.max_mismatch = {max_mismatch}: sampler and trainer compute '
        'different probabilities, or the lag is too long',
        'inspected.jsonl has the differences token by token; a shorter '
        'rollout.max_lag or the same kernel on both sides makes them smaller',
      ),
      'entropy': (
        lambda x: x < min_entropy,
        f'health.min_entropy = {min_entropy}: the policy has collapsed',
        'begin again with a lower optim.peak_lr or a higher loss.entropy_coef',
      ),
      'rollouts/ungraded': (
        lambda x: x > max_ungraded_frac,
        f'health.max_ungraded_frac = {max_ungraded_frac}: the judge is not '
        'there, or gives no verdict that can be read',
        'the grades in rollouts.jsonl say which; see to the judge at '
        'judge.base_url, or raise judge.max_tokens if its replies are cut off',
      ),
    }
    self.counts = dict.fromkeys(self._rules, 0)

  def check(
    self, step: int, metrics: Mapping[str, float]
  ) -> HealthError | None:
    """Why the run should end after a step with these metrics, if it should."""
    for name, (is_beyond, text, remedy) in self._rules.items():
      value = metrics.get(name)
      ill = value is not None and (np.isnan(value) or is_beyond(value))
      self.counts[name] = self.counts[name] + 1 if ill else 0
      if self.counts[name] > self._patience:
        return HealthError(
          f'step {step}: {name} = {value:.4g}: {self.counts[name]} steps in a '
          f'row were beyond {text}',
          remedy=remedy,
        )
    return None


def _percentiles(name: str, values: np.ndarray) -> Metrics:
  return {
    f'{name}/p{percent}': float(np.percentile(values, percent))
    for percent in _PERCENTILES
  }
