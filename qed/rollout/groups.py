"""Groups of graded rollouts: what they teach, and what of them is trained on.

A group is the unit of an advantage, a sample that of an age: the baseline is
taken over all valid rollouts of the group, and then every rollout is trained on
or not by itself. Whatever is left out has a reason, under which the ledger
counts its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from qed.data import samples
from qed.types import Rollout, RolloutGroup, TrainingSample

# trainable; all valid rewards equal; fewer than two valid rewards.
Signal = Literal['some', 'none', 'invalid']
# Rewards [G] and which of them are valid [G] -> advantages [G].
Advantage = Callable[[np.ndarray, np.ndarray], Any]
MIN_VALID = 2
UNBOUNDED = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
  """What a group contributes to a batch; numbers count completion tokens."""

  group: RolloutGroup
  advantages: np.ndarray  # float64 [G], 0 where a rollout is invalid.
  members: tuple[int, ...]  # The rollout that each sample was made of.
  samples: tuple[TrainingSample, ...]
  num_stale: int
  num_invalid: int  # Of rollouts without a reward.
  num_masked: int  # Of truncated rollouts, where those are left out.
  num_unused: int  # Of groups without a signal, where those are left out.

  @property
  def num_trained(self) -> int:
    """Completion tokens of the samples."""
    return sum(int(sample.loss_mask.sum()) for sample in self.samples)


def num_tokens(rollout: Rollout) -> int:
  """The tokens that the policy wrote."""
  return len(rollout.completion.token_ids)


def rewards(group: RolloutGroup) -> tuple[np.ndarray, np.ndarray]:
  """float32 [G], 0 where there is none, and bool [G]: where there is one."""
  valid = np.array([r.reward is not None for r in group.rollouts], bool)
  values = [0.0 if r.reward is None else r.reward for r in group.rollouts]
  return np.array(values, np.float32), valid


def signal(group: RolloutGroup) -> Signal:
  """Whether the group tells good rollouts from bad ones."""
  values, valid = rewards(group)
  if valid.sum() < MIN_VALID:
    return 'invalid'
  return 'none' if np.ptp(values[valid]) == 0 else 'some'


def mean_reward(group: RolloutGroup) -> float:
  """Of the valid rollouts, of which there must be one."""
  values, valid = rewards(group)
  return float(values[valid].mean())


def lag(rollout: Rollout, step: int) -> int:
  """The trainer's step minus the oldest version that drew a token.

  Raises:
    ValueError: a token has no version, or one that the trainer has yet to
      reach: the rollout is of another run, or of a part of it that was lost.
  """
  versions = rollout.completion.versions
  if versions.size and not 0 <= versions.min() <= versions.max() <= step:
    raise ValueError(
      f"expected versions from 0 to the trainer's step {step}, got "
      f'{versions.min()} to {versions.max()}'
    )
  return step - int(versions.min(initial=step))


def is_stale(rollout: Rollout, *, step: int, max_lag: int) -> bool:
  """Whether a step must not train on the rollout; max_lag -1: it always may."""
  return max_lag != UNBOUNDED and lag(rollout, step) > max_lag


def share(
  group: RolloutGroup,
  advantage: Advantage,
  *,
  step: int,
  max_lag: int,
  mask_truncated: bool,
  drop_zero_signal: bool,
) -> Share:
  """The samples that the update from `step` to `step + 1` gets of a group.

  Args:
    group: with two valid rollouts at least.
    advantage: one of algos.advantages.
    step: the version of the weights that are updated.
    max_lag: in steps; -1: unbounded.
    mask_truncated: whether rollouts that ran out of budget are left out, though
      not out of the baseline.
    drop_zero_signal: whether a group whose valid rewards are all equal is left
      out.

  Raises:
    ValueError: a rollout that no sample can be made of (data.samples), or one
      from the future.
  """
  values, valid = rewards(group)
  advantages = np.asarray(advantage(values, valid), np.float64)
  made = iter(
    samples.from_group(group, advantages, mask_truncated=mask_truncated)
  )
  kept, members = [], []
  left_out = {'stale': 0, 'invalid': 0, 'masked': 0, 'unused': 0}
  is_unused = drop_zero_signal and signal(group) == 'none'
  for member, rollout in enumerate(group.rollouts):
    if rollout.reward is None:
      left_out['invalid'] += num_tokens(rollout)
      continue
    if mask_truncated and rollout.completion.finish_reason == 'length':
      left_out['masked'] += num_tokens(rollout)
      continue
    sample = next(made)
    if is_stale(rollout, step=step, max_lag=max_lag):
      left_out['stale'] += num_tokens(rollout)
    elif is_unused:
      left_out['unused'] += num_tokens(rollout)
    else:
      kept.append(sample)
      members.append(member)
  return Share(
    group=group,
    advantages=advantages,
    members=tuple(members),
    samples=tuple(kept),
    num_stale=left_out['stale'],
    num_invalid=left_out['invalid'],
    num_masked=left_out['masked'],
    num_unused=left_out['unused'],
  )


def total_tokens(rollouts: Sequence[Rollout]) -> int:
  """The tokens that the policy wrote, of all of them."""
  return sum(map(num_tokens, rollouts))
