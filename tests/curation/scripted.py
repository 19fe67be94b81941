"""An `Llm` whose answers are a function of its question, and such a judge."""

import types as namespaces

import numpy as np

from qed.curation import asking
from qed.types import Completion, Grade

SAMPLING = namespaces.SimpleNamespace(
  temperature=1.0, top_p=1.0, top_k=0, max_tokens=100
)


def completion(text, finish_reason='stop'):
  empty = np.zeros(0, np.int32)
  return Completion(
    token_ids=empty,
    logprobs=empty.astype(np.float32),
    versions=empty,
    text=text,
    finish_reason=finish_reason,
  )


class Llm:
  """Answers with `reply(question, number of the call)`."""

  def __init__(self, reply):
    self._reply = reply
    self.prompts, self.seeds = [], []

  async def sample(self, prompt, params, *, n=1):
    self.prompts.append(prompt)
    self.seeds.append(params.seed)
    assert n == 1
    found = self._reply(prompt.messages[-1].content, len(self.prompts) - 1)
    return [found if isinstance(found, Completion) else completion(found)]


def model(reply):
  """A model, and the scripted Llm behind it."""
  llm = Llm(reply)
  return asking.Model(llm=llm, name='scripted', sampling=SAMPLING), llm


def judge(score):
  """Gives a proof `score(proof)`; what is no number is a failed status."""

  async def grade(problem, proof):
    found = score(proof)
    is_score = isinstance(found, int)
    return Grade(
      score=found if is_score else None,
      status='ok' if is_score else found,
      feedback='',
      judge='scripted',
      usage={},
    )

  return grade


async def collect(outcomes):
  return [outcome async for outcome in outcomes]
