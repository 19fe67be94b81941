"""The collector of `qed grpo` (rollout/collector.py), as the config has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qed.preparation import Grader, Run
from qed.rollout import prompts
from qed.rollout.collector import Collector, Plan, Source
from qed.rollout.journal import Journal
from qed.rollout.stages import Stages
from qed.samplers import Sampler
from qed.types import Problem, SamplingParams


def make_collector(
  run: Run,
  source: Source,
  sampler: Sampler,
  grader: Grader,
  *,
  journal: Journal,
  stages: Stages,
  on_problem: Callable[[Problem], None],
) -> Collector:
  """A collector that has nothing yet.

  Args:
    run: its config says how much is collected, and how it is drawn.
    source: what groups start from.
    sampler: draws.
    grader: grades.
    journal: of the rollouts.
    stages: has 'generate' and 'grade'.
    on_problem: is called with what a group practises when it is begun.
  """
  config = run.config
  sampling, rollout = config.sampling, config.rollout

  async def grade(problem, completion, prefix):
    return await grader.grade(problem, completion, sampling.max_tokens, prefix)

  return Collector(
    source,
    Plan(
      num_steps=config.training.total_steps,
      groups_per_step=rollout.groups_per_step,
      group_size=rollout.group_size,
      max_lag=rollout.max_lag,
      max_groups_in_flight=rollout.max_groups_in_flight,
      max_groups_waiting=rollout.max_groups_waiting,
      zero_signal=rollout.zero_signal,
      max_dropped_groups=config.health.max_dropped_groups,
      seed=config.training.seed,
    ),
    SamplingParams(
      **dataclasses.asdict(sampling),
      stop_token_ids=run.words.stop_token_ids,
      seed=0,
    ),
    sample=sampler.sample,
    grade=grade,
    wait_ready=grader.wait_ready,
    journal=journal,
    pass_rates=prompts.PassRates(
      low=config.problems.min_pass_rate, high=config.problems.max_pass_rate
    ),
    stages=stages,
    on_problem=on_problem,
  )
