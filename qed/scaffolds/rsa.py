"""Recursive self-aggregation with a knockout: the system of the main result.

  1. `num_solutions` solutions
  2. `num_rounds` times: as many blocks of `block_size` different solutions, in
     which each is used equally often; every block is merged into a new
     solution, and these take the place of the old ones
  3. selection: 'knockout' compares two at a time until one is left; 'single'
     chooses among all in one call

num_solutions (1 + num_rounds) calls and num_solutions - 1 comparisons: 8 + 24 +
7 = 39 as published.

What is not as it should be:

* A first call that brings no solution leaves its place empty, and the blocks
  that it is in smaller: `missing_solutions`. A block without any solution is
  solved anew: `empty_blocks`. A solution that was cut off stays as far as it
  goes, since a merge can finish it.
* A merge that brings no solution leaves the first one of its block in place:
  `missing_merges`.
* A comparison that finds both equal, or whose verdict cannot be read (or that
  was cut off, or failed), is won by the first: `equal_verdicts` and
  `unparseable_verdicts`. Which one that is, a seeded shuffle has decided.

When the budget runs out, the first solution is returned of those that have come
furthest: of a round of merging that was begun, a merged one; of a round of the
knockout, a winner.

Sources: Venkatraman et al., arXiv 2509.26626; blocks and knockout are those of
QED-Nano's evaluation.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from qed import types
from qed.scaffolds import knockout, parsing, prompts
from qed.scaffolds.calls import Answer, Calls, Setup, settle

SLOTS = {
  'solve': ('problem',),
  'merge': ('problem', 'candidates'),
  'select': ('problem', 'candidates'),
}
EQUAL = 'equal'


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Solves, merges and selects; see the module's docstring.

  Args:
    problem: to be solved.
    llm: of the roles 'solver', 'merger' and 'selector'.
    config: with an RsaConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  scaffold = config.scaffold
  prompts.check(scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  rng = np.random.default_rng([config.seed, config.attempt])
  question = prompts.user(scaffold.solve, problem=problem.statement)
  answers = await settle(
    calls.ask('solver', question, label=f'solution {number}')
    for number in range(1, scaffold.num_solutions + 1)
  )
  solutions = _texts(calls, answers, 'missing_solutions')
  for number in range(1, scaffold.num_rounds + 1):
    blocks = balanced_blocks(scaffold.num_solutions, scaffold.block_size, rng)
    parents = [
      [solutions[i] for i in block if solutions[i] is not None]
      for block in blocks
    ]
    answers = await settle(
      _merge(calls, scaffold, problem, block, f'round {number}/merge {place}')
      for place, block in enumerate(parents, 1)
    )
    merged = _texts(calls, answers, 'missing_merges')
    if None in answers:
      return calls.solution(_first([*merged, *solutions]))
    calls.count('empty_blocks', sum(not block for block in parents))
    solutions = [
      text or _first(block) for text, block in zip(merged, parents, strict=True)
    ]
  field = [text for text in solutions if text is not None]
  if len(field) < 2:
    return calls.solution(_first(field))
  if scaffold.selection == 'single':
    (best,) = await settle(
      [_select(calls, scaffold, problem, field, 'selection')]
    )
    return calls.solution(field[best or 0])

  async def compare(first: str, second: str, label: str) -> int:
    return await _select(calls, scaffold, problem, (first, second), label)

  return calls.solution(await knockout.winner(field, compare, rng))


def balanced_blocks(
  num_items: int, block_size: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
  """As many blocks of different items as there are items.

  The items are shuffled into a ring, and offsets are drawn: block s holds what
  lies at these offsets from place s. So each item is in exactly `block_size`
  blocks, and in each place of a block once.

  Args:
    num_items: that there are.
    block_size: of these, at most all.
    rng: is drawn from.
  """
  ring = rng.permutation(num_items)
  offsets = rng.choice(num_items, block_size, replace=False)
  return [
    tuple(int(ring[(start + offset) % num_items]) for offset in offsets)
    for start in range(num_items)
  ]


async def _merge(
  calls: Calls,
  scaffold,
  problem: types.Problem,
  parents: Sequence[str],
  label: str,
) -> Answer:
  """One better solution out of several, or a new one out of none."""
  if not parents:
    question = prompts.user(scaffold.solve, problem=problem.statement)
    return await calls.ask('solver', question, label=label)
  question = prompts.user(
    scaffold.merge, problem=problem.statement, **prompts.lettered(parents)
  )
  return await calls.ask('merger', question, label=label)


async def _select(
  calls: Calls,
  scaffold,
  problem: types.Problem,
  candidates: Sequence[str],
  label: str,
) -> int:
  """Which of some is the best, by a verdict; the first, where there is none."""
  question = prompts.user(
    scaffold.select, problem=problem.statement, **prompts.lettered(candidates)
  )
  answer = await calls.ask('selector', question, label=label)
  letters = string.ascii_uppercase[: len(candidates)]
  verdict = parsing.choice(answer.reply, [*letters, EQUAL])
  if verdict is None:
    calls.remark(answer, 'unparseable_verdicts')
  elif verdict == EQUAL:
    calls.remark(answer, 'equal_verdicts')
  else:
    return letters.index(verdict)
  return 0


def _texts(
  calls: Calls, answers: Sequence[Answer | None], missing: str
) -> list[str | None]:
  """The text of each answer; one without is counted as `missing`."""
  for answer in answers:
    if answer is not None and answer.text is None:
      calls.remark(answer, missing)
  return [answer and answer.text for answer in answers]


def _first(texts: Sequence[str | None]) -> str | None:
  """The first text that there is."""
  return next((text for text in texts if text is not None), None)
