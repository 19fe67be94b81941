"""How much of a proof a model must be given to find the rest at least once.

Problems that the base model never solves give reinforcement learning nothing to
go by. POPE (privileged on-policy exploration) lets half of the rollouts start
where success occurs: behind the shortest beginning of the reference proof, on a
grid, from which one of `num_rollouts` attempts succeeds. Where none does, the
longest of the grid is given.

The judge is shown the beginning and the attempt together, as one proof: half a
proof would be graded as such. The beginning is never a target of training.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from qed.curation import asking, difficulty
from qed.curation.difficulty import Judge
from qed.curation.records import Item
from qed.data import guidance
from qed.data.guidance import Prefix

# Where a proof may be cut: after a sentence or a line.
_CUT = re.compile(r'(?<=[.!?])\s+|\n+')


async def choose(
  items: Iterable[Item],
  model: asking.Model,
  grade: Judge,
  config: Any,
  *,
  pass_score: int,
) -> AsyncIterator[Prefix]:
  """The prefix of each item that has a proof to take one from.

  Args:
    items: that are never solved without.
    model: the one that is to be trained.
    grade: the judge of the training.
    config: a `qed.config.PrefixesConfig`.
    pass_score: of a success.
  """

  async def work(item: Item) -> Prefix | None:
    chosen = None
    for prefix in grid(item.solution, config.num_parts, config.max_parts):
      chosen = await _try(item, prefix, model, grade, config, pass_score)
      if chosen.num_successes:
        break
    return chosen

  async for prefix in asking.in_order(items, work, max_concurrency=8):
    if prefix is not None:
      yield prefix


def grid(proof: str, num_parts: int, max_parts: int) -> list[str]:
  """Beginnings of a proof of about 1, 2, ... of `num_parts` parts of it.

  Each ends with a whole sentence or line, the last at or before its share; if
  there is none, with the first. No two are equal, and none is the whole proof.
  """
  proof = proof.strip()
  ends = [match.start() for match in _CUT.finditer(proof)]
  found: list[str] = []
  for part in range(1, max_parts + 1):
    before = [end for end in ends if end <= part * len(proof) / num_parts]
    end = before[-1] if before else next(iter(ends), None)
    if end and (not found or end > len(found[-1])):
      found.append(proof[:end])
  return found


async def _try(
  item: Item,
  prefix: str,
  model: asking.Model,
  grade: Judge,
  config: Any,
  pass_score: int,
) -> Prefix:
  question = guidance.question(item.statement, prefix, config.template)
  found = await asyncio.gather(
    *(
      difficulty.attempt(item, question, model, grade, draw, prefix=prefix)
      for draw in range(config.num_rollouts)
    )
  )
  scores = [score for score in found if score is not None]
  return Prefix(
    problem_id=item.item_id,
    prefix=prefix,
    fraction=len(prefix) / len(item.solution.strip()),
    num_successes=sum(score >= pass_score for score in scores),
    num_trials=len(scores),
    oracle=f'{item.source} {item.origin}'.strip(),
  )
