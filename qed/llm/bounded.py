"""One bound on the completions in flight, whoever asks for them."""

from __future__ import annotations

import asyncio

from qed import types


class Bounded:
  """An `Llm` that lets so many completions of another be drawn at a time.

  Callers are let through in the order in which they came. One that asks for
  more completions than there may ever be waits until it is alone.
  """

  def __init__(self, llm: types.Llm, max_concurrency: int):
    """Takes what it needs.

    Args:
      llm: draws the completions.
      max_concurrency: completions in flight, at most.

    Raises:
      ValueError: none would ever be drawn.
    """
    if max_concurrency < 1:
      raise ValueError(
        f'expected max_concurrency of at least 1, got {max_concurrency}'
      )
    self._llm, self._limit = llm, max_concurrency
    self._places = asyncio.Semaphore(max_concurrency)
    self._door = asyncio.Lock()  # Whoever holds it is the first in line.
    self.num_running = 0
    self.most_running = 0  # At any time so far.

  async def sample(
    self, prompt: types.Prompt, params: types.SamplingParams, *, n: int = 1
  ) -> list[types.Completion]:
    """Draws `n` completions when there is room for all of them."""
    taken = 0
    try:
      # Two callers that each hold a part of what they need would wait forever.
      async with self._door:
        for _ in range(min(n, self._limit)):
          await self._places.acquire()
          taken += 1
      self.num_running += n
      self.most_running = max(self.most_running, self.num_running)
      try:
        return await self._llm.sample(prompt, params, n=n)
      finally:
        self.num_running -= n
    finally:
      for _ in range(taken):
        self._places.release()
