"""Who grades the attempts of an evaluation: a judge, formulas, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from qed import judge
from qed.config import EvaluateRunConfig
from qed.evals import benchmarks, identity
from qed.grading import answers
from qed.grading.judge import Judge
from qed.types import Grade, Problem


class Grader(NamedTuple):
  """Who grades."""

  grade: Callable[[Problem, str], Awaitable[Grade]]
  wait_ready: Callable[[], Awaitable[None]]  # Returns when the judge is there.
  ledger: Callable[[], dict[str, Any]]  # What was asked so far, and paid.


@contextlib.asynccontextmanager
async def opened(
  config: EvaluateRunConfig, kind: benchmarks.Kind, workdir: pathlib.Path
) -> AsyncIterator[Grader]:
  """Proofs go to the judge, answers to the formulas and then to the judge."""
  async with contextlib.AsyncExitStack() as stack:
    ask = None
    if identity.needs_judge(config, kind):
      ask = (await judge.connect(config.judge, stack)).ask
    store = stack.enter_context(
      judge.open_verdicts(workdir / 'verdicts.sqlite')
    )
    asked = Judge(ask, config.judge, store)
    grade = asked.grade
    if kind == 'answer':
      comparer = stack.enter_context(answers.Comparer())
      grade = _answer_grader(config, comparer, asked)

    def ledger() -> dict[str, Any]:
      return dataclasses.asdict(asked.ledger())

    yield Grader(grade, asked.wait_ready, ledger)


def _answer_grader(
  config: EvaluateRunConfig, comparer: answers.Comparer, asked: Judge
) -> Callable[[Problem, str], Awaitable[Grade]]:
  """Final answers: 7 points for the right one, 0 for a wrong one or none."""
  ask_judge = None
  if config.benchmark.second_opinion:
    ask_judge = answers.second_opinion(asked.verdict)
  name = identity.judge_name(config, 'answer')

  async def grade(problem: Problem, text: str) -> Grade:
    answer = await answers.grade(problem, text, comparer, ask_judge)
    # Where nobody could tell, it is not a wrong answer.
    known = answer.correct is not None
    return Grade(
      score=7 * answer.correct if known else None,
      status='ok' if known else 'unparseable',
      feedback=f'answer: {answer.given}; decided by {answer.decided_by}',
      judge=name,
      # What the judge was paid for opinions is in its own ledger.
      usage={'prompt_tokens': 0, 'completion_tokens': 0, 'calls': 0},
    )

  return grade
