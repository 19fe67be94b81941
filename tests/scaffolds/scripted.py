"""A language model that says what a test tells it to.

`Scripted(respond)` calls `respond(asked)` with an `Asked` and gives what that
returns: a text, a `Completion`, or an exception that is raised.
"""

import asyncio
import dataclasses

import numpy as np

from qed import config, types
from qed.scaffolds import calls

PROBLEM = types.Problem(problem_id='p1', statement='Show that 1 = 1.')
SAMPLING = config.SamplingConfig(
  temperature=1.0, top_p=1.0, top_k=0, max_tokens=100
)
NO_LIMIT = config.BudgetConfig(
  max_tokens=0,
  max_usd=0.0,
  max_secs=0.0,
  usd_per_million_prompt=0.0,
  usd_per_million_completion=0.0,
)


class Down(Exception):
  """A failed call."""


def completion(text, *, finish_reason='stop', num_tokens=10, usage=None):
  """An answer of `num_tokens` tokens."""
  return types.Completion(
    token_ids=np.arange(num_tokens, dtype=np.int32),
    logprobs=np.full(num_tokens, -1.0, np.float32),
    versions=np.zeros(num_tokens, np.int32),
    text=text,
    finish_reason=finish_reason,
    usage=usage,
  )


def cut(text):
  """An answer that ran into its limit."""
  return completion(text, finish_reason='length', num_tokens=100)


def answers(*given):
  """Responds with these, one after another."""
  left = list(given)
  return lambda asked: left.pop(0)


@dataclasses.dataclass(frozen=True)
class Asked:
  """What one call asked."""

  number: int  # From 0 on.
  messages: tuple[types.Message, ...]
  params: types.SamplingParams

  @property
  def text(self):
    return '\n\n'.join(message.content for message in self.messages)


class Scripted:
  """An Llm; keeps what it was asked, and how many calls at the same time."""

  def __init__(self, respond, *, secs=0.0):
    self._respond, self._secs = respond, secs
    self.asked = []
    self.running = self.most_running = 0

  async def sample(self, prompt, params, *, n=1):
    assert n == 1
    asked = Asked(len(self.asked), prompt.messages, params)
    self.asked.append(asked)
    self.running += 1
    self.most_running = max(self.most_running, self.running)
    try:
      await asyncio.sleep(self._secs)
      answer = self._respond(asked)
    finally:
      self.running -= 1
    if isinstance(answer, Exception):
      raise answer
    return [completion(answer) if isinstance(answer, str) else answer]


def budget(**limits):
  """A BudgetConfig with these limits."""
  return dataclasses.replace(NO_LIMIT, **limits)


def setup(scaffold=None, **fields):
  """A Setup whose failures are `Down`; `scaffold` is a section."""
  defaults = {
    'sampling': SAMPLING,
    'budget': NO_LIMIT,
    'style': 'instruct',
    'failures': (Down,),
  }
  return calls.Setup(scaffold=scaffold, **(defaults | fields))


def labels(solution):
  """Of all calls that were made, in the order of asking."""
  return [entry['label'] for entry in solution.trace]


def count(solution, *names):
  """These numbers of the usage."""
  return tuple(solution.usage.get(name, 0) for name in names)
