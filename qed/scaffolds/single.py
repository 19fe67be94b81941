"""One completion: what every other scaffold is compared with.

Its answer is the solution, also if it was cut off, since a part of a proof may
be worth something; and none at all if there is no answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from qed import types
from qed.scaffolds import prompts
from qed.scaffolds.calls import Calls, Setup, settle

SLOTS = {'solve': ('problem',)}


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Asks once.

  Args:
    problem: to be solved.
    llm: of the role 'solver'.
    config: with a SingleConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  prompts.check(config.scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  question = prompts.user(config.scaffold.solve, problem=problem.statement)
  (answer,) = await settle([calls.ask('solver', question, label='solution')])
  return calls.solution(answer and answer.text)
