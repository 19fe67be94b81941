r"""Many proofs, scored, sorted by their conclusion, and compared in pairs.

  1. `num_solutions` proofs, each scored once, from 0 to 7
  2. if `min_perfect` or more have all 7 points, only such stay; in any case at
     most `max_kept`, the best, of equal ones the first
  3. one call that sees all of these with their scorings, and names those whose
     conclusion it believes; the others go
  4. a knockout of what is left

At most 2 num_solutions + max_kept calls: 44 as published.

What is not as it should be:

* A call that brings no proof makes none: `missing_solutions`. One whose text
  was cut off is a proof as far as it goes.
* A scoring without a score that can be read is a 0: `unparseable_scores`.
* If no list of existing proofs can be read in step 3, or if the call failed,
  all proofs stay: `unparseable_keeps`.
* A comparison that ends in a tie, or cannot be read, is decided by a coin that
  depends on the seed alone: `ties`, `unparseable_verdicts`.

Source: Nomos (NousResearch/nomos), at the scale of QED-Nano's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qed import types
from qed.scaffolds import knockout, parsing, prompts
from qed.scaffolds.calls import Answer, Calls, Setup, seed_of, settle

SLOTS = {
  'solve': ('problem',),
  'score': ('problem', 'proof'),
  'consolidate': ('problem', 'submissions'),
  'compare': ('problem', 'first', 'second'),
}
PERFECT = 7
SCORES = range(PERFECT + 1)
TIE = 'tie'


@dataclasses.dataclass(frozen=True, slots=True)
class _Scored:
  """A proof and what its grader said of it."""

  proof: str
  score: int
  grading: str  # '' if nothing was said, or nothing that can be read.


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Proves, scores, sorts and compares, as the docstring of the module says.

  When the budget runs out, the solution is the best scored proof of those that
  are left, or of the winners of the last round.

  Args:
    problem: to be proved.
    llm: for the roles 'solver', 'verifier' (scores) and 'selector' (sorts and
      compares).
    config: with a NomosConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  scaffold, statement = config.scaffold, problem.statement
  prompts.check(scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  question = prompts.user(scaffold.solve, problem=statement)
  answers = await settle(
    calls.ask('solver', question, label=f'solution {i}')
    for i in range(1, scaffold.num_solutions + 1)
  )
  scored = await _score(calls, scaffold, statement, answers)
  order = ranking(
    [x.score for x in scored], scaffold.min_perfect, scaffold.max_kept
  )
  kept = await _consolidate(
    calls, scaffold, statement, [scored[i] for i in order]
  )
  if not kept:
    return calls.solution(None)

  async def compare(first: _Scored, second: _Scored, label: str) -> int:
    question = prompts.user(
      scaffold.compare,
      problem=statement,
      **prompts.quote('first', first.proof),
      **prompts.quote('second', second.proof),
    )
    answer = await calls.ask('selector', question, label=label)
    verdict = parsing.choice(answer.reply, ['1', '2', TIE])
    if verdict in ('1', '2'):
      return int(verdict) - 1
    calls.remark(answer, 'ties' if verdict == TIE else 'unparseable_verdicts')
    return seed_of(config, problem.problem_id, f'{label}/coin') % 2

  rng = np.random.default_rng([config.seed, config.attempt])
  places = {id(scored): place for place, scored in enumerate(kept)}
  best = await knockout.winner(
    kept, compare, rng, rank=lambda x: -places[id(x)]
  )
  return calls.solution(best.proof)


def ranking(
  scores: Sequence[int], min_perfect: int, max_kept: int
) -> list[int]:
  """The places of the proofs that stay, the best first.

  Args:
    scores: of all proofs, from 0 to 7.
    min_perfect: if so many have 7, no others stay.
    max_kept: that stay at most; of equal ones the first.
  """
  order = sorted(range(len(scores)), key=lambda i: -scores[i])
  num_perfect = sum(score == PERFECT for score in scores)
  if num_perfect >= min_perfect:
    order = order[:num_perfect]
  return order[:max_kept]


async def _score(
  calls: Calls,
  scaffold: Any,
  statement: str,
  answers: Sequence[Answer | None],
) -> list[_Scored]:
  """The proofs that there are, each with its score."""
  proved = [answer for answer in answers if answer is not None]
  for answer in proved:
    if answer.text is None:
      calls.remark(answer, 'missing_solutions')
  proved = [answer for answer in proved if answer.text is not None]
  gradings = await settle(
    calls.ask(
      'verifier',
      prompts.user(
        scaffold.score,
        problem=statement,
        **prompts.quote('proof', answer.text),
      ),
      label=f'{answer.label}/score',
    )
    for answer in proved
  )
  scored = []
  for answer, grading in zip(proved, gradings, strict=True):
    score = grading and parsing.number(grading.reply, SCORES)
    if grading is not None and score is None:
      calls.remark(grading, 'unparseable_scores')
    feedback = '' if score is None else grading.reply
    scored.append(_Scored(answer.text, int(score or 0), feedback))
  return scored


async def _consolidate(
  calls: Calls, scaffold: Any, statement: str, proofs: Sequence[_Scored]
) -> Sequence[_Scored]:
  """Those whose conclusion is believed, or all; in the same order."""
  if len(proofs) < 2:
    return proofs
  named = {}
  for i, scored in enumerate(proofs, 1):
    named[f'Solution {i}'] = scored.proof
    if scored.grading:
      named[f'The grader of solution {i}'] = scored.grading
  question = prompts.user(
    scaffold.consolidate,
    problem=statement,
    **prompts.listed('submissions', 'submission', named),
  )
  (answer,) = await settle(
    [calls.ask('selector', question, label='consolidation')]
  )
  if answer is None:
    return proofs
  places = parsing.keep(answer.reply, len(proofs))
  if places is None:
    calls.remark(answer, 'unparseable_keeps')
    return proofs
  return [proofs[i] for i in sorted(places)]
