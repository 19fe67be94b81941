"""A proof that is verified and corrected until it passes often enough.

  1. a draft, and an improvement of it
  2. up to `max_iterations` times: a report on the proof, and a call that says
     whether the report is good. If it is, the proof has passed once more; if
     not, a correction that answers the report takes its place
  3. the proof that has passed `num_passes` times in a row; or the last one,
     after `max_failures` in a row or all iterations

At most 2 + 3 max_iterations calls. All are prompts of one message: a policy
that was trained on these is shown the problem and the proof again, and no
conversation. Of a report, only what stands under the heading 'Summary' is
passed on, if there is one.

What is not as it should be:

* Without a draft there is nothing to improve, and without a proof nothing to
  verify: such an iteration is a failure, and a new draft: `missing_solutions`.
  A draft or proof that was cut off is used as far as it goes.
* An improvement or a correction that brings no text leaves the proof as it is:
  `missing_corrections`.
* A report that was cut off, is empty or failed is not asked about. It is no
  pass and no failure, and nor is one about which no yes or no can be read: the
  iteration is over, and the counts in a row stay: `unparseable_verdicts`.

When the budget runs out, the last proof is returned.

Source: Huang and Yang, arXiv 2507.15855, as in QED-Nano's evaluation, but that
"yes" is a verdict and not any text that holds the word.
"""

from __future__ import annotations

from collections.abc import Mapping

from qed import types
from qed.scaffolds import parsing, prompts
from qed.scaffolds.calls import Calls, OutOfBudget, Setup

SLOTS = {
  'solve': ('problem',),
  'improve': ('problem', 'proof'),
  'verify': ('problem', 'proof'),
  'confirm': ('report',),
  'correct': ('problem', 'proof', 'report'),
}


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Proves, checks and corrects; see the module's docstring.

  Args:
    problem: to be solved.
    llm: of the roles 'solver' and 'verifier'.
    config: with a SelfcheckConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  prompts.check(config.scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  run = _Run(calls, config.scaffold, problem)
  try:
    await run.draft('draft')
    if run.proof:
      await run.revise('improve', 'improvement')
    await _iterate(run, config.scaffold)
  except OutOfBudget:
    pass  # The proof as it stands.
  return calls.solution(run.proof)


async def _iterate(run: _Run, scaffold) -> None:
  """Checks the proof until it is accepted or given up."""
  passes = failures = 0
  for number in range(1, scaffold.max_iterations + 1):
    label = f'iteration {number}'
    if run.proof is None:
      is_good, report = False, ''
    else:
      is_good, report = await run.check(label)
    if is_good is None:
      continue
    if is_good:
      passes, failures = passes + 1, 0
      if passes == scaffold.num_passes:
        return
      continue
    passes, failures = 0, failures + 1
    if run.proof is None:
      await run.draft(f'{label}/draft')
    else:
      await run.revise('correct', f'{label}/correction', report=report)
    if failures == scaffold.max_failures:
      return


class _Run:
  """The proof as it stands, and the calls that change or check it."""

  def __init__(self, calls: Calls, scaffold, problem: types.Problem):
    self._calls, self._scaffold = calls, scaffold
    self._statement = problem.statement
    self.proof: str | None = None

  async def draft(self, label: str) -> None:
    """Writes a proof."""
    question = prompts.user(self._scaffold.solve, problem=self._statement)
    answer = await self._calls.ask('solver', question, label=label)
    self.proof = answer.text
    if answer.text is None:
      self._calls.remark(answer, 'missing_solutions')

  async def revise(self, template: str, label: str, *, report='') -> None:
    """Writes a better proof, as the template of a field asks for it."""
    fields = {
      'problem': self._statement,
      **prompts.quote('proof', self.proof),
      **prompts.quote('report', report),
    }
    question = prompts.user(getattr(self._scaffold, template), **fields)
    answer = await self._calls.ask('solver', question, label=label)
    if answer.text is None:
      self._calls.remark(answer, 'missing_corrections')
    else:
      self.proof = answer.text

  async def check(self, label: str) -> tuple[bool | None, str]:
    """Whether the proof passes, None if that is unknown; and the report."""
    question = prompts.user(
      self._scaffold.verify,
      problem=self._statement,
      **prompts.quote('proof', self.proof),
    )
    answer = await self._calls.ask(
      'verifier', question, label=f'{label}/verification'
    )
    verdict, report = None, answer.reply
    if report:
      report = parsing.section(report, 'Summary', until=_LOG) or report
      question = prompts.user(
        self._scaffold.confirm, **prompts.quote('report', report)
      )
      answer = await self._calls.ask(
        'verifier', question, label=f'{label}/confirmation'
      )
      verdict = parsing.choice(answer.reply, ('yes', 'no'))
    if verdict is None:
      self._calls.remark(answer, 'unparseable_verdicts')
      return None, report
    return verdict == 'yes', report


# What follows the summary of a report.
_LOG = ('Verification Log', 'Detailed Verification Log')
