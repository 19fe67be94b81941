"""Evaluation during `qed grpo`: held-out problems, beside the training.

Evaluations are on file in evaluations.jsonl, with the versions of the weights
that wrote the proofs: with a lag, weights may change underneath.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from qed.preparation import Grader, Run
from qed.rollout import lines, prompts
from qed.rollout.stages import Stages
from qed.samplers import Sampler
from qed.types import Completion, Grade, SamplingParams


class Evaluations:
  """One evaluation after another, beside the training; for one event loop."""

  def __init__(
    self,
    run: Run,
    sampler: Sampler,
    grader: Grader,
    stages: Stages,
    *,
    wait_for: Callable[[int], Awaitable[None]],
  ):
    """Begins with none.

    Args:
      run: its config says when.
      sampler: what draws.
      grader: who grades.
      stages: has 'generate' and 'grade'.
      wait_for: returns when a version of the weights is drawn with.
    """
    self._run, self._wait_for = run, wait_for
    self._sampler, self._grader, self._stages = sampler, grader, stages
    self._metrics: dict[str, float] = {}
    self.task: asyncio.Task | None = None  # Of the last one that was begun.

  def begin(self, step: int) -> None:
    """Begins that of a step, if it is time; the one before must be over."""
    training = self._run.config.training
    interval, is_last = (
      training.eval_interval_steps,
      step >= training.total_steps,
    )
    if not interval or (step % interval and not is_last):
      return
    if self.task is not None:
      if not self.task.done():
        print(f'step {step}: not evaluated; the last one is still under way')
        return
      self.task.result()
    self.task = asyncio.create_task(self._evaluate(step))

  def report(self) -> dict[str, float]:
    """Metrics of what was evaluated since the last call."""
    found, self._metrics = self._metrics, {}
    return found

  async def _evaluate(self, step: int) -> None:
    """Puts the scores of held-out problems on file, unless they are."""
    await self._wait_for(step)
    found = on_file(self._run.workdir).get(step)
    if found is None:
      found = await evaluate(
        self._run, self._sampler, self._grader, self._stages, step
      )
      lines.append(self._run.workdir / 'evaluations.jsonl', [found])
    self._metrics = {
      f'eval/{name}': value
      for name, value in found.items()
      if isinstance(value, int | float)
    }


async def evaluate(
  run: Run, sampler: Sampler, grader: Grader, stages: Stages, step: int
) -> dict[str, Any]:
  """Tries every held-out problem.

  Args:
    run: with problems that are held out.
    sampler: what draws.
    grader: who grades.
    stages: has 'generate' and 'grade'.
    step: that the evaluation is of.

  Returns:
    A line of evaluations.jsonl. `score_mean` is out of 1 and over what was
    graded; `scores` are out of 7, None where there is no grade.
  """
  config, selection = run.config, run.held_out
  given = dataclasses.asdict(config.evaluation)
  del given['paths'], given['num_attempts']
  params = SamplingParams(
    **given, stop_token_ids=run.words.stop_token_ids, seed=0
  )

  async def attempt(index: int, number: int) -> tuple[Completion, Grade]:
    what = f'held-out problem {index}, attempt {number}'
    # Other seeds than those of groups.
    seed = prompts.seed_of(index, number, seed=config.training.seed + 1)
    with stages.inside('generate', what):
      completion = await sampler.sample(
        selection.prompts[index],
        dataclasses.replace(params, seed=seed),
        group=-1 - index,
      )
    with stages.inside('grade', what):
      grade, _ = await grader.grade(
        selection.problems[index], completion, params.max_tokens, ''
      )
    return completion, grade

  places = [
    (index, number)
    for index in range(len(selection.problems))
    for number in range(config.evaluation.num_attempts)
  ]
  results = await asyncio.gather(*(attempt(*place) for place in places))
  ids = [selection.problems[index].problem_id for index, _ in places]
  return _record(step, ids, results)


def on_file(workdir: pathlib.Path) -> dict[int, dict[str, Any]]:
  """The evaluations of a run, by step."""
  found = lines.read(workdir / 'evaluations.jsonl')
  return {record['step']: record for record in found}


def _record(
  step: int,
  problem_ids: Sequence[str],
  results: Sequence[tuple[Completion, Grade]],
) -> dict[str, Any]:
  scores: dict[str, list[int | None]] = {}
  for problem_id, (_, grade) in zip(problem_ids, results, strict=True):
    scores.setdefault(problem_id, []).append(grade.score)
  known = [s for row in scores.values() for s in row if s is not None]
  completions = [completion for completion, _ in results]
  versions = np.concatenate([c.versions for c in completions])
  reasons = [completion.finish_reason for completion in completions]
  return {
    'step': step,
    'version_min': int(versions.min(initial=step)),
    'version_max': int(versions.max(initial=0)),
    'score_mean': float(np.mean(known)) / 7 if known else 0.0,
    'graded': len(known) / len(results),
    'truncated': reasons.count('length') / len(results),
    'length_mean': float(np.mean([len(c.token_ids) for c in completions])),
    'scores': scores,
  }
