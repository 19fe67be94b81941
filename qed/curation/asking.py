"""One question to a model that reads and writes, such as for a rubric."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import (
  AsyncIterator,
  Awaitable,
  Callable,
  Iterable,
  Sequence,
)
from typing import Any, TypeVar

import numpy as np

from qed.data import chat
from qed.types import Llm, Message, Prompt, SamplingParams

_In = TypeVar('_In')
_Out = TypeVar('_Out')


class NoReplyError(RuntimeError):
  """A model or a judge gave no reply at all: a later run may get one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
  """A model and how it is sampled.

  Attributes:
    llm: takes prompts of messages, without ids; whoever makes it sees to it
      that nothing is paid for twice.
    name: of its weights, for the notes.
    sampling: a `qed.config.SamplingConfig`.
  """

  llm: Llm
  name: str
  sampling: Any

  async def write(
    self, messages: Sequence[Message], *, about: str, draw: int = 0
  ) -> tuple[str, str]:
    """What the model writes, as (text, finish reason).

    The seed depends on the question and the draw alone, so that a run which was
    stopped asks the same again.

    Args:
      messages: the question.
      about: what it is about, usually an item_id.
      draw: another number asks for an independent answer.

    Raises:
      NoReplyError: there was no reply.
    """
    sampling = self.sampling
    question = [[message.role, message.content] for message in messages]
    (completion,) = await self.llm.sample(
      Prompt(
        problem_id=about,
        messages=tuple(messages),
        token_ids=np.zeros(0, np.int32),
      ),
      SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop_token_ids=(),  # An endpoint has its own.
        seed=_seed(question, draw),
      ),
    )
    if completion.finish_reason in ('error', 'abort'):
      raise NoReplyError(f'{about}: {self.name} gave no reply')
    return completion.text, completion.finish_reason

  async def answer(
    self, messages: Sequence[Message], *, about: str, draw: int = 0
  ) -> str | None:
    """What follows the thinking; None where the model did not come to it.

    Raises:
      NoReplyError: there was no reply.
    """
    text, reason = await self.write(messages, about=about, draw=draw)
    if reason != 'stop':
      return None
    _, answer = chat.split_thinking(text)
    # A model that does not think writes no tag.
    return text.strip() if answer is None else answer


async def in_order(
  items: Iterable[_In],
  work: Callable[[_In], Awaitable[_Out]],
  *,
  max_concurrency: int,
) -> AsyncIterator[_Out]:
  """What `work` makes of each item, in the items' order.

  Args:
    items: taken only as far as they are worked at.
    work: is running for so many items at most.
    max_concurrency: how many.
  """
  running: collections.deque[asyncio.Task] = collections.deque()
  try:
    for item in items:
      if len(running) == max_concurrency:
        yield await running.popleft()
      running.append(asyncio.ensure_future(work(item)))
    while running:
      yield await running.popleft()
  finally:
    for task in running:
      task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _seed(question: Sequence[Sequence[str]], draw: int) -> int:
  text = json.dumps([question, draw])
  return int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
