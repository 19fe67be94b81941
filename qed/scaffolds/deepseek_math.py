"""Proofs that judge themselves, are verified, and are refined by the verdicts.

  1. `num_solutions` proofs, each followed by an honest evaluation of itself
  2. `num_verifications` analyses of each proof, with a verdict: 0, 0.5 or 1
  3. up to `num_rounds` times, unless a proof has passed all its verifications:
     the `num_solutions` best proofs so far are refined, each with those
     `num_analyses` of its analyses that give it the least; and what comes of
     that is verified like the first proofs
  4. the best proof of all rounds, by mean verdict

Of equal ones, the first. At most num_solutions (1 + num_verifications)
(1 + num_rounds) calls: 60 as published.

What is not as it should be:

* A call that brings no proof makes none: `missing_solutions`. One whose text
  was cut off is a proof as far as it goes.
* A verification without a verdict that can be read (or that was cut off, or
  failed) counts as a 0 in the mean, so that no proof passes without all its
  verdicts, and is no analysis to refine with: `unparseable_verdicts`.
* A proof without any analysis is not refined: `unrefinable_solutions`.

Source: DeepSeekMath-V2 (arXiv 2511.22570), at the scale of QED-Nano's `DSM`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qed import types
from qed.scaffolds import parsing, prompts
from qed.scaffolds.calls import Answer, Calls, Setup, settle

SLOTS = {
  'solve': ('problem',),
  'verify': ('problem', 'proof'),
  'refine': ('problem', 'proof', 'analyses'),
}
VERDICTS = (0.0, 0.5, 1.0)

# These words are the whole heading: 'Evaluation of the integral' is another.
_HEADING = r'^[ \t]{0,3}(?:#{1,6}[ \t]*|\*\*)(?:\*\*)?%s[ \t:.*#]*$'
_FLAGS = re.IGNORECASE | re.ASCII | re.MULTILINE
_SOLUTION = re.compile(_HEADING % 'solution', _FLAGS)
_SELF_EVALUATION = re.compile(_HEADING % r'self[ \t_-]?evaluation', _FLAGS)


@dataclasses.dataclass(frozen=True, slots=True)
class _Verified:
  """A proof with those of its analyses that have a verdict."""

  proof: str
  analyses: tuple[tuple[float, str], ...]  # (verdict, text)

  @property
  def total(self) -> float:
    return sum(verdict for verdict, _ in self.analyses)


async def solve(
  problem: types.Problem,
  llm: types.Llm | Mapping[str, types.Llm],
  config: Setup,
) -> types.Solution:
  """Proves, verifies and refines, as the docstring of the module says.

  Args:
    problem: to be proved.
    llm: for the roles 'solver', 'verifier' and 'refiner'.
    config: with a DeepseekMathConfig.

  Raises:
    ValueError: a template has a slot that is not offered.
  """
  scaffold, statement = config.scaffold, problem.statement
  prompts.check(scaffold, SLOTS)
  calls = Calls(problem, llm, config)
  pool: list[_Verified] = []
  question = prompts.user(scaffold.solve, problem=statement)
  asked = [('solver', question)] * scaffold.num_solutions
  num_asked = 0
  for number in range(scaffold.num_rounds + 1):
    if number:
      best = pool[: scaffold.num_solutions]
      asked = _refinements(calls, scaffold, statement, best)
    if not asked:
      break
    answers = await settle(
      calls.ask(role, messages, label=f'round {number}/solution {i}')
      for i, (role, messages) in enumerate(asked, num_asked + 1)
    )
    num_asked += len(asked)
    proofs = _proofs(calls, answers)
    verifications = await _verify(calls, scaffold, statement, proofs)
    pool += _readable(calls, proofs, verifications)
    pool.sort(key=lambda x: -x.total)  # It keeps the order of equal ones.
    is_over = None in answers or any(None in row for row in verifications)
    if is_over or not pool or pool[0].total == scaffold.num_verifications:
      break
  return calls.solution(pool[0].proof if pool else None)


def proof_of(text: str) -> str | None:
  """The proof in a reply, or None where there is none.

  It begins after the first heading 'Solution', or with the text if there is no
  such heading, and ends before the last heading 'Self Evaluation' that follows,
  or with the text. A heading is a line with `#` or `**` in front and nothing
  but these words, in any case; the second may have a hyphen or be one word.
  """
  opening = _SOLUTION.search(text)
  start = opening.end() if opening else 0
  ends = [x.start() for x in _SELF_EVALUATION.finditer(text, start)]
  return text[start : ends[-1] if ends else None].strip() or None


def _proofs(
  calls: Calls, answers: Sequence[Answer | None]
) -> list[tuple[str, str]]:
  """(label, proof) of the answers that have one."""
  proofs = []
  for answer in answers:
    if answer is None:
      continue
    if proof := proof_of(answer.text or ''):
      proofs.append((answer.label, proof))
    else:
      calls.remark(answer, 'missing_solutions')
  return proofs


async def _verify(
  calls: Calls,
  scaffold: Any,
  statement: str,
  proofs: Sequence[tuple[str, str]],
) -> list[list[Answer | None]]:
  """Verifications of each proof; None where the budget allowed none."""
  count = scaffold.num_verifications
  answers = await settle(
    calls.ask(
      'verifier',
      prompts.user(
        scaffold.verify, problem=statement, **prompts.quote('proof', proof)
      ),
      label=f'{label}/verification {i + 1}',
    )
    for label, proof in proofs
    for i in range(count)
  )
  return [answers[i * count : (i + 1) * count] for i in range(len(proofs))]


def _readable(
  calls: Calls,
  proofs: Sequence[tuple[str, str]],
  verifications: Sequence[Sequence[Answer | None]],
) -> list[_Verified]:
  """The proofs with what can be read of their verifications."""
  verified = []
  for (_, proof), answers in zip(proofs, verifications, strict=True):
    analyses = []
    for answer in filter(None, answers):
      verdict = parsing.number(answer.reply, VERDICTS)
      if verdict is None:
        calls.remark(answer, 'unparseable_verdicts')
      else:
        analyses.append((verdict, answer.reply))
    verified.append(_Verified(proof, tuple(analyses)))
  return verified


def _refinements(
  calls: Calls, scaffold: Any, statement: str, best: Sequence[_Verified]
) -> list[tuple[str, tuple[types.Message, ...]]]:
  """(role, question) for each proof that there is something to say about."""
  asked = []
  for verified in best:
    if not verified.analyses:
      calls.count('unrefinable_solutions')
      continue
    lowest = sorted(verified.analyses, key=lambda analysis: analysis[0])
    named = {
      f'Examiner {i}': text
      for i, (_, text) in enumerate(lowest[: scaffold.num_analyses], 1)
    }
    question = prompts.user(
      scaffold.refine,
      problem=statement,
      **prompts.quote('proof', verified.proof),
      **prompts.listed('analyses', 'analysis', named),
    )
    asked.append(('refiner', question))
  return asked
