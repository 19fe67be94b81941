"""A strong model's proofs, in the form that `qed sft` imitates.

As published, nothing is asked about correctness: a completion is taken if its
reasoning is closed and a section with the proof follows (section 2.2 of the
QED-Nano report). What the teacher says of its own proof afterwards is left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from qed.curation import asking
from qed.curation.records import Item
from qed.data import chat, templates
from qed.types import Message

_PROOF = re.compile(
  r'(?im)^\s*(?:#+\s*|\*\*\s*)(?:\d+[.)]\s*)?(?:detailed |full |complete )?'
  r'(?:solution|proof)s?\b[^\n]*$'
)
_EVALUATION = re.compile(
  r'(?im)^\s*(?:#+\s*|\*\*\s*)(?:self|final)[- ]?(?:evaluation|assessment)'
  r'[^\n]*$'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
  """One completion of the teacher."""

  item: Item
  number: int
  reason: str = ''  # Why it is not used; '': it is.
  reasoning: str = ''
  proof: str = ''

  def account(self) -> dict[str, Any]:
    """Why it is not used."""
    return {
      'problem_id': self.item.item_id,
      'number': self.number,
      'reason': self.reason,
    }

  def row(self, prompt: str) -> dict[str, Any]:
    """The columns of FineProofs-SFT; null where nothing is known.

    Args:
      prompt: the user's message.
    """
    answer = f'<think>\n{self.reasoning}\n</think>\n\n{self.proof}'
    return {
      'problem': self.item.statement,
      'reasoning_content': self.reasoning,
      'proof': self.proof,
      'category': ', '.join(self.item.tags),
      'competition': self.item.origin,
      'source': self.item.source,
      'gemini-3-pro-grade': None,
      'qwen3-4b-thinking-reward@128': self.item.difficulty,
      'messages': [
        {'role': 'user', 'content': prompt},
        {'role': 'assistant', 'content': answer},
      ],
      'problem_id': self.item.item_id,
    }


async def distill(
  items: Iterable[Item], model: asking.Model, config: Any
) -> AsyncIterator[list[Attempt]]:
  """The attempts at each item, in order, used or not.

  Args:
    items: any number.
    model: the teacher.
    config: a `qed.config.TeacherConfig`.
  """

  async def one(item: Item, number: int) -> Attempt:
    text, reason = await model.write(
      question(item, config), about=item.item_id, draw=number
    )
    attempt = Attempt(item=item, number=number)
    if reason != 'stop':
      return dataclasses.replace(attempt, reason='cut_off')
    return split(attempt, text)

  wanted = (
    (item, number) for item in items for number in range(config.num_solutions)
  )
  found: list[Attempt] = []
  async for attempt in asking.in_order(
    wanted,
    lambda pair: one(*pair),
    max_concurrency=config.writer.max_concurrency,
  ):
    found.append(attempt)
    if len(found) == config.num_solutions:
      yield found
      found = []


def question(item: Item, config: Any) -> list[Message]:
  """What the teacher is asked."""
  text = templates.render(config.prompt, problem=item.statement)
  return [Message(role='user', content=text)]


def split(attempt: Attempt, text: str) -> Attempt:
  """The attempt with what a completion holds, or the reason why it is unused.

  The proof is what stands between the first heading that announces a proof or a
  solution and one that announces the teacher's own opinion of it.
  """
  reasoning, answer = chat.split_thinking(text)
  if answer is None:
    return dataclasses.replace(attempt, reason='thinking_not_closed')
  if not reasoning:
    return dataclasses.replace(attempt, reason='no_thinking')
  heading = _PROOF.search(answer)
  if heading is None:
    return dataclasses.replace(attempt, reason='no_proof_section')
  proof = answer[heading.end() :]
  evaluation = _EVALUATION.search(proof)
  if evaluation:
    proof = proof[: evaluation.start()]
  proof = proof.strip()
  if not proof:
    return dataclasses.replace(attempt, reason='empty_proof')
  return dataclasses.replace(attempt, reasoning=reasoning, proof=proof)
