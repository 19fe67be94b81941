"""What one attempt may take: tokens, money, time.

A budget is kept before it is spent: a call is made only if the tokens that it
may take at most still fit, together with those of the calls in flight. A call
that would fit if these end early waits for them; one that cannot fit any more
is `OutOfBudget`. Calls are let through in the order in which they ask, so that
with equal answers the same calls are made, however long each takes. (A limit on
time is the exception.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from typing import Any


class OutOfBudget(Exception):
  """A call that the budget does not allow; the text says by which limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
  """What a call takes, or may take at most."""

  prompt_tokens: int = 0
  completion_tokens: int = 0
  reasoning_tokens: int = 0  # Of the completion.


class Budget:
  """What is left of the limits; tokens are those of completions."""

  def __init__(self, limits: Any):
    """Starts the clock.

    Args:
      limits: a BudgetConfig.
    """
    self._limits = limits
    self._deadline = time.monotonic() + (limits.max_secs or math.inf)
    self._spent, self._reserved = Tokens(), Tokens()
    # Locks are handed on in the order of asking.
    self._queue, self._changed = asyncio.Lock(), asyncio.Event()

  def secs_left(self) -> float | None:
    """Until the deadline, or None if there is none."""
    if math.isinf(self._deadline):
      return None
    return max(0.0, self._deadline - time.monotonic())

  async def reserve(self, ceiling: Tokens) -> None:
    """Waits until a call fits; `release` it afterwards.

    Args:
      ceiling: the most that the call can take.

    Raises:
      OutOfBudget: it will never fit, or the time is over.
    """
    try:
      async with asyncio.timeout(self.secs_left()), self._queue:
        while self._excess(ceiling, self._spent, self._reserved):
          excess = self._excess(ceiling, self._spent)
          if excess:
            raise OutOfBudget(excess)
          self._changed.clear()
          await self._changed.wait()
        # A timeout interrupts only what waits.
        if self.secs_left() == 0:
          raise TimeoutError
        self._reserved = _sum(self._reserved, ceiling)
    except TimeoutError as error:
      raise OutOfBudget(
        f'the {self._limits.max_secs:g} s of this attempt are over'
      ) from error

  def release(self, ceiling: Tokens, spent: Tokens) -> None:
    """Ends a reservation with what the call took in truth."""
    self._reserved = Tokens(
      self._reserved.prompt_tokens - ceiling.prompt_tokens,
      self._reserved.completion_tokens - ceiling.completion_tokens,
    )
    self._spent = _sum(self._spent, spent)
    self._changed.set()

  def _excess(self, *parts: Tokens) -> str:
    """Which limit the parts exceed together, in words; '' if none."""
    total = _sum(*parts)
    limits, usd = self._limits, self._usd(total)
    if 0 < limits.max_tokens < total.completion_tokens:
      return (
        f'{total.completion_tokens} tokens with those that this call may take, '
        f'of {limits.max_tokens}'
      )
    if 0 < limits.max_usd < usd:
      return (
        f'{usd:.4f} usd with what this call may cost, of {limits.max_usd:g}'
      )
    return ''

  def _usd(self, tokens: Tokens) -> float:
    return (
      tokens.prompt_tokens * self._limits.usd_per_million_prompt
      + tokens.completion_tokens * self._limits.usd_per_million_completion
    ) / 1e6


def _sum(*parts: Tokens) -> Tokens:
  return Tokens(
    sum(part.prompt_tokens for part in parts),
    sum(part.completion_tokens for part in parts),
    sum(part.reasoning_tokens for part in parts),
  )
