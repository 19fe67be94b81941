"""The trainer of `qed grpo`: from the groups of a step to the next weights.

Everything here blocks, and is called from one thread at a time, of process 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from qed.algos import advantages
from qed.config import GrpoConfig
from qed.data import packing
from qed.gang import Gang
from qed.models import specs
from qed.rollout import groups, health
from qed.rollout.groups import Share
from qed.training import metrics
from qed.types import Completion, PackedBatch, RolloutGroup, TrainingSample

_Chosen = tuple[Share, int, TrainingSample]  # Member of the share.


class Update(NamedTuple):
  """What a step did."""

  record: dict[str, float]
  # Trainer's log-probabilities of the completion tokens of some rollouts:
  # (share, member, float32 [n]).
  inspected: list[tuple[Share, int, np.ndarray]]
  weights: Any  # As of `Learner.hand_out`.

  def inspected_lines(
    self, step: int, decode: Callable[[Sequence[int]], str]
  ) -> list[dict[str, Any]]:
    """For a file: what was inspected at a step, with the text of each token."""
    return [
      {
        'step': step,
        'group_id': share.group.group_id,
        'rollout': member,
        'advantage': float(share.advantages[member]),
        'trainer_logprobs': [float(x) for x in logprobs],
        'tokens': [
          decode([token]) for token in _completion(share, member).token_ids
        ],
      }
      for share, member, logprobs in self.inspected
    ]


class Trainer:
  """Makes batches of groups, and has the learners of all processes train."""

  def __init__(
    self, config: GrpoConfig, model: specs.Config, gang: Gang, *, num_done: int
  ):
    """Takes over a gang.

    Args:
      config: of the run.
      model: the model.
      gang: of learners at the same step.
      num_done: that step.
    """
    self._config, self._model, self._gang = config, model, gang
    self.num_done = num_done
    self._advantage = _advantage(config)
    self._is_compiled = False

  def weights(self) -> Any:
    """The weights as they are, as of `Learner.hand_out`."""
    return self._gang.do('hand_out', self.num_done)

  def save(self, extra: Mapping[str, Any]) -> None:
    """Saves the state, and what a program adds to it as json."""
    self._gang.do('save', self.num_done, extra)

  def share(self, group: RolloutGroup) -> Share:
    """What the next step gets of a group."""
    rollout = self._config.rollout
    return groups.share(
      group,
      self._advantage,
      step=self.num_done,
      max_lag=rollout.max_lag,
      mask_truncated=rollout.mask_truncated,
      drop_zero_signal=rollout.zero_signal == 'drop',
    )

  def update(self, shares: Sequence[Share]) -> Update:
    """Takes a step.

    Args:
      shares: of all groups of the step, of `share`.

    Returns:
      The step's own metrics, and those of `rollout.health`.
    """
    samples = [sample for share in shares for sample in share.samples]
    batch = packing.pack_grpo(samples, self._shape())
    chosen = self._choose(shares)
    sums, scores = self._gang.do('step', batch, self._pack(chosen))
    inspected = self._inspect(chosen, scores)
    record = {k: v for k, v in sums.items() if not k.startswith('policy/')}
    record |= health.of_loss(sums) | health.of_batch(shares, step=self.num_done)
    record |= health.of_tokens(
      [logprobs for *_, logprobs in inspected],
      [_completion(s, m).logprobs for s, m, _ in inspected],
      [_completion(s, m).versions for s, m, _ in inspected],
      step=self.num_done,
    )
    record |= packing.packing_metrics(batch.packed)
    self.num_done += 1
    return Update(record, inspected, self.weights())

  def throughput(
    self, shares: Sequence[Share], secs: float
  ) -> dict[str, float]:
    """Of a step that took so long; nothing of the first, which compiles."""
    lengths = [len(x.token_ids) - 1 for share in shares for x in share.samples]
    if not self._is_compiled:
      self._is_compiled = True
      return {}
    return metrics.throughput(self._model, np.array(lengths), secs)

  def _choose(self, shares: Sequence[Share]) -> list[_Chosen]:
    """The samples of some groups.

    Other groups at every step, so that all positions of a batch come round.
    """
    count = min(self._config.health.max_inspected_groups, len(shares))
    first = self.num_done * count
    return [
      (share, member, sample)
      for share in (shares[(first + i) % len(shares)] for i in range(count))
      for member, sample in zip(share.members, share.samples, strict=True)
    ]

  def _pack(self, chosen: Sequence[_Chosen]) -> PackedBatch | None:
    if not chosen:
      return None
    return packing.pack([x for *_, x in chosen], self._inspection_shape())

  def _inspect(
    self, chosen: Sequence[_Chosen], scores: np.ndarray | None
  ) -> list[tuple[Share, int, np.ndarray]]:
    """What the trainer makes of the tokens of completions.

    Args:
      chosen: the samples.
      scores: of the rows that they are packed in; None without samples.
    """
    if scores is None:
      return []
    length = self._config.packing.row_length
    scores = scores.reshape(-1, length)
    return [
      (share, member, _of_completion(scores[row, start:], sample))
      for (share, member, sample), (row, start) in zip(
        chosen, _places([x for *_, x in chosen], length), strict=True
      )
    ]

  def _shape(self) -> packing.BatchShape:
    return packing.BatchShape(**dataclasses.asdict(self._config.packing))

  def _inspection_shape(self) -> packing.BatchShape:
    """One microbatch, or as many as the inspected groups may need."""
    config = self._config
    longest = config.problems.max_prompt_tokens + config.sampling.max_tokens
    num_samples = config.health.max_inspected_groups * config.rollout.group_size
    per_row = config.packing.row_length // (longest - 1)
    most = -(-num_samples // (per_row * config.packing.num_rows))
    return packing.BatchShape(
      num_rows=config.packing.num_rows,
      row_length=config.packing.row_length,
      microbatch_counts=tuple(sorted({1, most})),
    )


def _places(
  samples: Sequence[TrainingSample], row_length: int
) -> list[tuple[int, int]]:
  """The row of each sample in a packed batch, and where in it it begins."""
  lengths = [len(sample.token_ids) - 1 for sample in samples]
  places = {}
  for row, indices in enumerate(packing.first_fit(lengths, row_length)):
    start = 0
    for index in indices:
      places[index] = (row, start)
      start += lengths[index]
  return [places[index] for index in range(len(samples))]


def _of_completion(scores: np.ndarray, sample: TrainingSample) -> np.ndarray:
  """The scores at the completion, of scores by target from the sample on."""
  return scores[: len(sample.token_ids) - 1][sample.loss_mask[1:]]


def _completion(share: Share, member: int) -> Completion:
  return share.group.rollouts[member].completion


def _advantage(config: GrpoConfig) -> groups.Advantage:
  """The advantage over one group, compiled for its size."""
  loss, settings = config.loss, {}
  if loss.advantage == 'z_score':
    settings = {'eps': loss.z_score_eps, 'ddof': loss.z_score_ddof}
  return jax.jit(
    functools.partial(getattr(advantages, loss.advantage), **settings)
  )
