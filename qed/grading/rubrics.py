"""Prompts for judges: a template, a problem and a proof become messages.

Names of templates, their texts in qed/data/texts/judge_NAME.md:

  simple              the items of the marking scheme, one by one
  opc                 the same, with a warning of how models bluff
  proofbench          the scheme advises; the mathematics decides
  proofbench_strict   the scheme binds: the default, without a reference proof
  gimo                verify step by step first, then score by the scheme
  imo_proofbench      the four grades of IMO-ProofBench, with its guidelines
  answer              whether two final answers are the same (`render_answer`)

Their slots are problem, rubric, proof, marker (of the proof's fence) and
reference, which is empty without one; those of `answer` are problem, expected,
given and marker. Every filled-in text stands in a fence (data/templates.py).
What all rollouts of a problem share comes before the proof, where a server's
prefix cache finds it, and how to grade comes after it, where it has the last
word. The verdict is always `<score>N</score>`, to be read by `parsing.verdict`
with the template's `SCORES`.

The kinds are those that QED-Nano compares (appendix A of its report); the words
are ours.
"""

from __future__ import annotations

import difflib

from qed.data import templates
from qed.types import Message, Problem

# Template -> the scores that its judge may give.
SCORES = {
  'simple': (0, 1, 2, 3, 4, 5, 6, 7),
  'opc': (0, 1, 2, 3, 4, 5, 6, 7),
  'proofbench': (0, 1, 2, 3, 4, 5, 6, 7),
  'proofbench_strict': (0, 1, 2, 3, 4, 5, 6, 7),
  'gimo': (0, 1, 2, 3, 4, 5, 6, 7),
  'imo_proofbench': (0, 1, 6, 7),
  'answer': (0, 1),
}
# Those that grade proofs: what `render` takes.
PROOF_TEMPLATES = tuple(name for name in SCORES if name != 'answer')


def render(
  template: str, problem: Problem, proof: str, *, with_reference: bool
) -> tuple[Message, ...]:
  """Returns what a judge is asked about a proof.

  Args:
    template: one of `PROOF_TEMPLATES`.
    problem: with a rubric, and with a reference proof where it is shown.
    proof: what is graded; it is data, whatever it says.
    with_reference: whether the judge sees the reference proof.

  Returns:
    A system message, the same for all, and a user message.

  Raises:
    ValueError: there is no such template, or the problem lacks the rubric or
      the reference.
  """
  check(template)
  needed = {'rubric': problem.rubric}
  if with_reference:
    needed['reference'] = problem.reference
  for name, text in needed.items():
    if not text:
      raise ValueError(
        f'problem {problem.problem_id!r}: expected a {name} for the template '
        f'{template!r} with_reference={with_reference}, got {text!r}'
      )
  reference = ''
  if with_reference:
    section = templates.render(
      'judge_reference',
      reference=templates.fence('reference', problem.reference),
    )
    reference = f'\n{section}\n'
  fenced = templates.fence('proof', proof)
  return _messages(
    template,
    problem=templates.fence('problem', problem.statement),
    rubric=templates.fence('rubric', problem.rubric),
    reference=reference,
    proof=fenced,
    marker=templates.fence_marker(fenced),
  )


def render_answer(
  problem: Problem, expected: str, given: str
) -> tuple[Message, ...]:
  """Returns the question whether a final answer is the expected one.

  The judge's score is 1 where it is, and 0 where it is not.

  Args:
    problem: to which both are answers; its own fields but the statement are
      not shown.
    expected: the right answer.
    given: the answer that is graded.
  """
  fenced = templates.fence('given', given)
  return _messages(
    'answer',
    problem=templates.fence('problem', problem.statement),
    expected=templates.fence('expected', expected),
    given=fenced,
    marker=templates.fence_marker(fenced),
  )


def check(template: str) -> None:
  """Refuses a name that is no template for proofs.

  Raises:
    ValueError: naming the nearest that is one.
  """
  if template not in PROOF_TEMPLATES:
    near = difflib.get_close_matches(template, PROOF_TEMPLATES, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'expected a template for proofs, one of {list(PROOF_TEMPLATES)}, got '
      f'{template!r}{hint}'
    )


def _messages(template: str, **fields: str) -> tuple[Message, ...]:
  """The system message of all judges and the filled-in template."""
  question = templates.render(f'judge_{template}', **fields)
  return (
    Message(role='system', content=templates.text('judge_system')),
    Message(role='user', content=question),
  )
