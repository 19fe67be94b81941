"""Completions from our own engine, in the same process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qed.types import Completion, Prompt, SamplingParams


class Local:
  """An `Llm` over a scheduler."""

  def __init__(self, scheduler: Any, decode: Callable[[Sequence[int]], str]):
    """Takes what it needs.

    Args:
      scheduler: a `rollout.scheduler.Scheduler`; whoever made it closes it.
      decode: ids to text.
    """
    self._scheduler, self._decode = scheduler, decode

  async def sample(
    self, prompt: Prompt, params: SamplingParams, *, n: int = 1
  ) -> list[Completion]:
    """Draws `n` independent completions, which share one prefill.

    The seeds are `member_seeds(params.seed, n)`. When the task is cancelled, so
    are the requests. A text leaves the stop token out; the ids have it.

    Raises:
      ValueError: the engine cannot serve such a request.
      RuntimeError: the scheduler is closed or failed for good.
    """
    group, streams = object(), []
    try:
      for seed in member_seeds(params.seed, n):
        member = dataclasses.replace(params, seed=seed)
        streams.append(
          self._scheduler.submit(prompt.token_ids, member, group=group)
        )
      completions = [await stream.completion() for stream in streams]
    finally:
      for stream in streams:
        stream.cancel()
    return [
      dataclasses.replace(x, text=self._decode(_written(x)))
      for x in completions
    ]


def member_seeds(seed: int, n: int) -> list[int]:
  """The seeds of n members, each below 2**32; more members, same beginning.

  They are hashed, so that neighbouring seeds have no member in common.

  Raises:
    ValueError: a negative seed.
  """
  return [int(x) for x in np.random.SeedSequence(seed).generate_state(n)]


def _written(completion: Completion) -> list[int]:
  ids = completion.token_ids.tolist()
  return ids[:-1] if completion.finish_reason == 'stop' else ids
