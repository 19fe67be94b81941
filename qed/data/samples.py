"""Training samples: token ids with a mask over what the policy wrote.

Masks come from lengths, never from ids: a stop token that doubles as padding is
trained on like any other. Ids are taken as they are and never pass through
text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np

from qed.types import Rollout, RolloutGroup, TrainingSample

OnOverlong = Literal['drop', 'truncate']

# The version of a token that no policy drew, such as one of a prompt.
NO_VERSION = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LengthReport:
  """What a length limit did to a list of samples."""

  num_samples: int  # Before the limit was applied.
  num_dropped: int
  num_truncated: int  # Of those that remain.
  num_cut_tokens: int  # Of the truncated.


def from_sft(
  prompt_ids: Sequence[int] | np.ndarray,
  completion_ids: Sequence[int] | np.ndarray,
  *,
  stop_token_ids: Collection[int],
) -> TrainingSample:
  """A sample that teaches the completion, its stop token included.

  Args:
    prompt_ids: At least one token; not trained on.
    completion_ids: What the assistant should write, every token of which is
      trained on. Must end in a stop token: a model that never sees one does
      not learn to stop.
    stop_token_ids: What ends a completion, e.g. the id of `<|im_end|>`.

  Raises:
    ValueError: An empty prompt or completion, ids that are not integers, or no
      stop token at the end.
  """
  prompt = _ids(prompt_ids, 'prompt_ids')
  completion = _ids(completion_ids, 'completion_ids')
  if completion[-1] not in stop_token_ids:
    raise ValueError(
      f'completion_ids: expected one of {sorted(stop_token_ids)} as the last '
      f'id, got {completion[-1]}; append the stop token to the completion.'
    )
  return TrainingSample(
    token_ids=np.concatenate([prompt, completion]),
    loss_mask=_completion_mask(prompt, completion),
  )


def from_group(
  group: RolloutGroup,
  advantages: Sequence[float] | np.ndarray,
  *,
  mask_truncated: bool = False,
) -> list[TrainingSample]:
  """The samples of a group, one per valid rollout, in the group's order.

  Every completion token is trained on. Prompt tokens have a behavior
  log-probability of NaN and the version `NO_VERSION`.

  Args:
    group: Rollouts of one prompt; those with a reward of None give no sample.
    advantages: float [len(group.rollouts)], one per rollout, valid or not.
    mask_truncated: Whether a completion that ran out of budget gives no sample
      either. Its reward is still part of whatever baseline made `advantages`.

  Raises:
    ValueError: Another number of advantages than rollouts; or, for a valid
      rollout, an advantage or log-probability that is not finite, arrays of
      different lengths, or an empty prompt or completion.
  """
  advantages = np.asarray(advantages, dtype=np.float64)
  if advantages.shape != (len(group.rollouts),):
    raise ValueError(
      f'group {group.group_id}: expected {len(group.rollouts)} advantages, one '
      f'per rollout, got shape {advantages.shape}.'
    )
  samples = []
  for index, rollout in enumerate(group.rollouts):
    is_truncated = rollout.completion.finish_reason == 'length'
    if rollout.reward is None or (mask_truncated and is_truncated):
      continue
    where = f'group {group.group_id}, rollout {index}'
    advantage = float(advantages[index])
    if not math.isfinite(advantage):
      raise ValueError(
        f'{where}: expected a finite advantage, got {advantage}.'
      )
    samples.append(_from_rollout(rollout, advantage, group.group_id, where))
  return samples


def limit_length(
  samples: Sequence[TrainingSample],
  max_tokens: int,
  *,
  overlong: OnOverlong,
) -> tuple[list[TrainingSample], LengthReport]:
  """Drops or truncates samples of more than `max_tokens` tokens.

  A truncated sample keeps its first `max_tokens` tokens and so loses its stop
  token. One of which nothing to train on would remain is dropped.

  Args:
    samples: In any order, which is kept.
    max_tokens: Prompt and completion together, at least 2. A packed row of T
      positions has room for T + 1 tokens.
    overlong: 'drop' or 'truncate'.

  Returns:
    The samples that remain and an account of the others.

  Raises:
    ValueError: A limit below 2 or another policy.
  """
  if overlong not in ('drop', 'truncate'):
    raise ValueError(
      f"overlong: expected 'drop' or 'truncate', got {overlong!r}."
    )
  if max_tokens < 2:
    raise ValueError(f'max_tokens: expected at least 2, got {max_tokens}.')
  kept = []
  num_truncated = num_cut_tokens = 0
  for sample in samples:
    excess = len(sample.token_ids) - max_tokens
    if excess <= 0:
      kept.append(sample)
    elif overlong == 'truncate' and sample.loss_mask[:max_tokens].any():
      kept.append(_truncate(sample, max_tokens))
      num_truncated += 1
      num_cut_tokens += excess
  return kept, LengthReport(
    num_samples=len(samples),
    num_dropped=len(samples) - len(kept),
    num_truncated=num_truncated,
    num_cut_tokens=num_cut_tokens,
  )


def _from_rollout(
  rollout: Rollout, advantage: float, group_id: int, where: str
) -> TrainingSample:
  completion = rollout.completion
  prompt_ids = _ids(rollout.prompt.token_ids, f'{where}: prompt.token_ids')
  ids = _ids(completion.token_ids, f'{where}: completion.token_ids')
  logprobs = np.asarray(completion.logprobs, dtype=np.float32)
  versions = np.asarray(completion.versions, dtype=np.int32)
  if not logprobs.shape == versions.shape == ids.shape:
    raise ValueError(
      f'{where}: expected one log-probability and one version per token, got '
      f'{len(ids)} tokens, logprobs {logprobs.shape}, versions '
      f'{versions.shape}.'
    )
  bad = np.flatnonzero(~np.isfinite(logprobs))
  if bad.size:
    raise ValueError(
      f'{where}: expected a finite log-probability for every token that was '
      f'drawn, got {logprobs[bad[0]]} for token {bad[0]} of {len(ids)} '
      f'({bad.size} in all); a rollout without them must have no reward.'
    )
  num_prompt_tokens = len(prompt_ids)
  return TrainingSample(
    token_ids=np.concatenate([prompt_ids, ids]),
    loss_mask=_completion_mask(prompt_ids, ids),
    behavior_logprobs=np.pad(
      logprobs, (num_prompt_tokens, 0), constant_values=np.nan
    ),
    versions=np.pad(
      versions, (num_prompt_tokens, 0), constant_values=NO_VERSION
    ),
    advantage=advantage,
    group_id=group_id,
  )


def _truncate(sample: TrainingSample, num_tokens: int) -> TrainingSample:
  def cut(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array[:num_tokens]

  return dataclasses.replace(
    sample,
    token_ids=cut(sample.token_ids),
    loss_mask=cut(sample.loss_mask),
    behavior_logprobs=cut(sample.behavior_logprobs),
    versions=cut(sample.versions),
  )


def _completion_mask(prompt: np.ndarray, completion: np.ndarray) -> np.ndarray:
  return np.arange(len(prompt) + len(completion)) >= len(prompt)


def _ids(values: Any, name: str) -> np.ndarray:
  ids = np.asarray(values)
  if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(
      f'{name}: expected a non-empty list of integers, got {ids.dtype} of '
      f'shape {ids.shape}.'
    )
  if ids.min() < 0:
    raise ValueError(f'{name}: expected token ids >= 0, got {ids.min()}.')
  return ids.astype(np.int32)
