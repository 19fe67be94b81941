"""Runs a scaffold over a benchmark: k attempts at every problem, each graded.

The runner bounds how many attempts are under way, which bounds memory and lets
the first of them end early; how many calls are in flight is bounded where calls
are made, over all attempts. What fails is on record as a failure and is tried
again, in a later pass or when the evaluation is started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from qed.evals.benchmarks import Item
from qed.evals.records import Record, Records
from qed.types import EvalRecord, Grade, Problem, Solution

Attempt = tuple[Item, int]


async def evaluate(
  items: Sequence[Item],
  *,
  solve: Callable[[Problem, int], Awaitable[Solution]],
  grade: Callable[[Problem, str], Awaitable[Grade]],
  records: Records,
  num_attempts: int,
  max_in_flight: int,
  max_passes: int,
  failures: tuple[type[Exception], ...],
  on_record: Callable[[Record], None] = lambda record: None,
) -> None:
  """Makes and grades every attempt that is not settled.

  Attempts are begun in rounds over all problems, so that what is there after
  half of the time is a score over the whole benchmark.

  Args:
    items: the problems.
    solve: (problem, attempt) -> solution.
    grade: (problem, its text) -> grade; every outcome is one.
    records: what is settled already, and where outcomes go.
    num_attempts: at each problem.
    max_in_flight: attempts under way, at most.
    max_passes: over what is not settled, at most.
    failures: what `solve` and `grade` may raise through no fault of the
      solution. Any other exception ends the evaluation.
    on_record: called with every outcome.
  """

  async def attempt(item: Item, number: int) -> None:
    began = time.monotonic()
    problem = item.problem
    try:
      solution = records.solution(problem.problem_id, number)
      if solution is None:
        solution = await solve(problem, number)
      outcome = EvalRecord(
        benchmark=records.identity.benchmark,
        solution=solution,
        grade=await grade(problem, solution.text),
      )
    except failures as error:
      record = records.add_failure(
        item, number, error, secs=time.monotonic() - began
      )
    else:
      record = records.add(item, outcome, secs=time.monotonic() - began)
    on_record(record)

  for _ in range(max_passes):
    todo = unsettled(items, records, num_attempts)
    if not todo:
      return
    await _work(iter(todo), attempt, min(max_in_flight, len(todo)))


def unsettled(
  items: Sequence[Item], records: Records, num_attempts: int
) -> list[Attempt]:
  """What is left to do, the first attempts at all problems first."""
  return [
    (item, number)
    for number in range(num_attempts)
    for item in items
    if not records.is_settled(item.problem.problem_id, number)
  ]


async def _work(
  todo: Iterator[Attempt],
  attempt: Callable[[Item, int], Awaitable[None]],
  num_workers: int,
) -> None:
  """Takes from `todo` until it is empty; the first exception ends all."""

  async def worker() -> None:
    for item, number in todo:
      await attempt(item, number)

  workers = [asyncio.ensure_future(worker()) for _ in range(num_workers)]
  try:
    await asyncio.gather(*workers)
  finally:
    for task in workers:
      task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
