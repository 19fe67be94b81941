"""How hard a problem is for the model that will practise on it.

The base model tries every problem `num_rollouts` times and the judge grades the
attempts. Mean and spread are those of the rewards, score / 7, over the attempts
that have a score: a verdict that failed is no score of 0. An attempt that did
not come to the end of its thinking is worth 0. (Section 3 of the QED-Nano
report has 128 attempts, and its data 62 grades at the least.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import (
  AsyncIterator,
  Awaitable,
  Callable,
  Iterable,
  Sequence,
)
from typing import Any

from qed.curation import asking
from qed.curation.records import Item, Outcome, note
from qed.data import guidance, templates
from qed.types import Grade, Message, Problem

NAME = 'difficulty'
MAX_SCORE = 7

# (problem, proof or None) -> grade; it sees to it that no verdict is paid for
# twice.
Judge = Callable[[Problem, str | None], Awaitable[Grade]]


async def estimate(
  items: Iterable[Item],
  model: asking.Model,
  grade: Judge,
  config: Any,
) -> AsyncIterator[Outcome]:
  """Gives every item its scores and its difficulty; those with too few go.

  Items that came with scores keep them. Notes: `num_rollouts`, `mean` and `std`
  of the rewards, and `pass_rate`, the share of scores of at least `pass_score`.

  Args:
    items: with rubrics.
    model: the one that is to be trained.
    grade: the judge of the training.
    config: a `qed.config.DifficultyConfig`.
  """

  async def work(item: Item) -> Outcome:
    if item.scores:
      return _with_scores(item, item.scores, len(item.scores), config)
    question = templates.render(config.prompt, problem=item.statement)
    found = await asyncio.gather(
      *(
        attempt(item, question, model, grade, draw)
        for draw in range(config.num_rollouts)
      )
    )
    scores = [score for score in found if score is not None]
    return _with_scores(item, scores, config.num_rollouts, config)

  # The attempts at one problem run together, and fill most of the places.
  width = -(-config.writer.max_concurrency // config.num_rollouts) + 1
  async for outcome in asking.in_order(items, work, max_concurrency=width):
    yield outcome


async def attempt(
  item: Item,
  question: str,
  model: asking.Model,
  grade: Judge,
  draw: int,
  *,
  prefix: str = '',
) -> int | None:
  """The score of one attempt, or None where it could not be graded.

  Args:
    item: what is graded.
    question: what the model is asked.
    model: tries.
    grade: grades.
    draw: the number of the attempt.
    prefix: the beginning of a proof that the attempt goes on from, and that is
      graded with it.

  Raises:
    NoReplyError: the model, or the judge, cannot be reached.
  """
  proof = await model.answer(
    [Message(role='user', content=question)], about=item.item_id, draw=draw
  )
  proof = guidance.whole_proof(prefix, proof)
  if not proof:
    return 0
  found = await grade(item.problem(), proof)
  if found.status == 'unreachable':
    raise asking.NoReplyError(f'{item.item_id}: the judge: {found.feedback}')
  return found.score


def pass_rate(scores: Sequence[int], pass_score: int) -> float:
  """The share of scores that pass; 0 of none."""
  return sum(score >= pass_score for score in scores) / max(len(scores), 1)


def _with_scores(
  item: Item, scores: Sequence[int], num_rollouts: int, config: Any
) -> Outcome:
  rewards = [score / MAX_SCORE for score in scores]
  found = {
    'num_rollouts': num_rollouts,
    'num_graded': len(scores),
    'mean': statistics.fmean(rewards) if rewards else None,
    'std': statistics.pstdev(rewards) if rewards else None,
    'pass_rate': pass_rate(scores, config.pass_score),
  }
  item = dataclasses.replace(
    note(item, NAME, found), scores=tuple(scores), difficulty=found['mean']
  )
  if not scores or len(scores) < config.min_graded_frac * num_rollouts:
    detail = f'{len(scores)} of {num_rollouts} attempts have a score'
    return Outcome(item=item, reason='too_few_grades', detail=detail)
  return Outcome(item=item)
