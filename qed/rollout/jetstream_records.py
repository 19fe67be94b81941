"""What our engine and JetStream's driver tell each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from qed.rollout import engine as engines
from qed.rollout import requests
from qed.types import FinishReason, SamplingParams

_REASONS: dict[int, FinishReason] = {
  engines.STOP: 'stop',
  engines.LENGTH: 'length',
}


class Weights(NamedTuple):
  """What the holder holds: replaced as a whole, so never half of it."""

  params: Any
  version: int


@dataclasses.dataclass(slots=True, eq=False)
class Holder:
  """Stands for the weights in JetStream's hands."""

  weights: Weights


class Sample(NamedTuple):
  """What a chunk brought one request."""

  token_ids: np.ndarray  # int32 [n]
  logprobs: np.ndarray  # float32 [n]
  version: int
  reason: int


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Request:
  """A request, and the channel that JetStream answers it through."""

  number: int
  prompt: np.ndarray  # int32 [n]
  params: SamplingParams
  key: Hashable  # Of requests that share a prefill.
  deadline: float  # By time.monotonic; inf: none.
  stream: requests.Stream
  finished: Callable[[Request, FinishReason], None]
  drawn: requests.Drawn = requests.NOTHING
  slot: int | None = None
  active: Any = None  # JetStream's record of it.
  num_failures: int = 0

  def add_result(self, samples: list[Sample]) -> None:
    """JetStream has tokens for it."""
    (sample,) = samples
    versions = np.full(len(sample.token_ids), sample.version, np.int32)
    piece = requests.Drawn(sample.token_ids, sample.logprobs, versions)
    if not self.stream.is_done:
      self.drawn = requests.Drawn(
        *map(np.concatenate, zip(self.drawn, piece, strict=True))
      )
      self.stream.push(piece)
    if sample.reason != engines.NONE:
      self.finished(self, _REASONS[sample.reason])
    if self.stream.is_done:  # By now, or because it was canceled.
      self.active.complete[:] = True

  def close(self) -> None:
    """JetStream has no more; the last sample said why."""
