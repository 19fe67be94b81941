r"""Several proofs, of which the one with the best marks is returned.

  1. `num_solutions` proofs
  2. `num_verifications` marks of each, from 0 to 7
  3. the proof with the highest mean mark; of equal ones, the first

num_solutions (1 + num_verifications) calls at most.

What is not as it should be:

* A call that brings no proof makes none: `missing_solutions`. One that was cut
  off is a proof as far as it goes. A proof without rivals is not verified.
* A verification without a mark that can be read (or that was cut off, or
  failed) takes no part in the mean: `unparseable_verdicts`. A proof that has no
  mark at all comes after those that have one: `unscored_solutions`.

When the budget runs out, the marks that there are decide. They are asked for in
turns, so that no proof has two marks more than another.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from qed import types
from qed.scaffolds import parsing, prompts
from qed.scaffolds.calls import Calls, Setup, settle

SLOTS = {'solve': ('problem',), 'verify': ('problem', 'proof')}
MARKS = range(8)


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Proves, marks and chooses; see the module's docstring.

  Args:
    problem: to be solved.
    llm: of the roles 'solver' and 'verifier'.
    config: with a BestOfNConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  scaffold = config.scaffold
  prompts.check(scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  question = prompts.user(scaffold.solve, problem=problem.statement)
  answers = await settle(
    calls.ask('solver', question, label=f'solution {number}')
    for number in range(1, scaffold.num_solutions + 1)
  )
  proofs = {}  # By label.
  for answer in filter(None, answers):
    if answer.text is None:
      calls.remark(answer, 'missing_solutions')
    else:
      proofs[answer.label] = answer.text
  if len(proofs) < 2:
    return calls.solution(next(iter(proofs.values()), None))
  marks = await _marks(calls, scaffold, problem, proofs)
  unscored = [label for label in proofs if not marks[label]]
  calls.count('unscored_solutions', len(unscored))
  # The first of equal ones, since max keeps what it met first.
  best = max(proofs, key=lambda label: statistics.mean(marks[label] or [-1]))
  return calls.solution(proofs[best])


async def _marks(
  calls: Calls, scaffold, problem: types.Problem, proofs: Mapping[str, str]
) -> dict[str, list[float]]:
  """Label of a proof -> its marks."""
  asked = [
    (label, number)
    for number in range(1, scaffold.num_verifications + 1)
    for label in proofs
  ]
  replies = await settle(
    calls.ask(
      'verifier',
      prompts.user(
        scaffold.verify,
        problem=problem.statement,
        **prompts.quote('proof', proofs[label]),
      ),
      label=f'{label}/verification {number}',
    )
    for label, number in asked
  )
  marks = {label: [] for label in proofs}
  for (label, _), reply in zip(asked, replies, strict=True):
    if reply is None:
      continue
    mark = parsing.number(reply.reply, MARKS)
    if mark is None:
      calls.remark(reply, 'unparseable_verdicts')
    else:
      marks[label].append(mark)
  return marks
