"""Prompts in, graded groups out: everything of the loop but the trainer.

  begin -> generate -> grade -> rollouts.jsonl -> buffer -> take -> book

Groups are numbered, and the number says the problem and the seeds
(`prompts`); what a group is drawn with is the business of a `Source`. A group
is open from when it is begun until a step has used it or it was found to be of
no use (`book`, `_drop`), and then it is settled. What a checkpoint has to
remember is therefore which numbers are settled; all others are begun again
after a restart, with the rollouts that are on file already.

How far samplers may run ahead of the trainer is decided when a group is begun
(`buffer.max_alive`), and checked again, per rollout, when a step uses it
(`groups.share`). With a lag of 0 what a step gets does not depend on the order
in which rollouts come back.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from qed.rollout import buffer, groups, prompts
from qed.rollout.groups import Share
from qed.rollout.health import HealthError
from qed.rollout.journal import Journal
from qed.rollout.ledger import Ledger
from qed.rollout.stages import Stages
from qed.types import (
  Completion,
  Grade,
  Problem,
  Prompt,
  Rollout,
  RolloutGroup,
  SamplingParams,
)

# (problem, completion, the beginning of a proof that it goes on from) -> grade
# of the whole proof, and its reward: None if it has none.
GradeProof = Callable[
  [Problem, Completion, str], Awaitable[tuple[Grade, float | None]]
]
_UNFINISHED = Grade(
  score=None,
  status='unreachable',
  feedback='the completion was not finished',
  judge='',
  usage={},
)


class Source(Protocol):
  """What groups practise: `prompts.Plain`, or `states.Unroller`."""

  num_groups_per_epoch: int  # Until every problem was practised once more.

  def problem(self, group_id: int) -> Problem:
    """What a group practises, and its proofs are graded by."""
    ...

  def prefix(self, group_id: int) -> str:
    """The beginning of a proof that a group goes on from; '': none."""
    ...

  async def pose(
    self, group_id: int, on_tokens: Callable[[int], None]
  ) -> Prompt:
    """What a group is drawn with.

    Args:
      group_id: its number.
      on_tokens: is told of tokens that the policy wrote for the prompt alone,
        when they are on file.
    """
    ...

  def settle(self, group_id: int) -> None:
    """Notes that nothing of a group is needed any more."""
    ...

  def commit(self) -> None:
    """Notes that a step was taken."""
    ...

  def snapshot(self) -> dict[str, Any]:
    """The state between two events: json."""
    ...

  def restore(self, snapshot: Mapping[str, Any], *, step: int) -> int:
    """Goes on from a checkpoint; how many tokens are on file behind it."""
    ...

  def report(self) -> dict[str, float]:
    """Metrics of what was posed since the last call."""
    ...


class Sample(Protocol):
  """Draws one completion; calls of one group may share their prompt."""

  async def __call__(
    self, prompt: Prompt, params: SamplingParams, *, group: int
  ) -> Completion:
    """Returns it; what failed has the finish reason 'abort' or 'error'."""
    ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
  """What is collected; fields as in the config."""

  num_steps: int  # Of the run, beyond which nothing is begun.
  groups_per_step: int
  group_size: int
  max_lag: int
  max_groups_in_flight: int
  max_groups_waiting: int
  zero_signal: Literal['keep', 'drop', 'refill']
  max_dropped_groups: int
  seed: int


class Collector:
  """The groups of a run; for one event loop."""

  def __init__(
    self,
    source: Source,
    plan: Plan,
    params: SamplingParams,
    *,
    sample: Sample,
    grade: GradeProof,
    wait_ready: Callable[[], Awaitable[None]],
    journal: Journal,
    pass_rates: prompts.PassRates,
    stages: Stages,
    on_problem: Callable[[Problem], None],
  ):
    """Begins with nothing; see `restore`.

    Args:
      source: the problems, and what is drawn of them.
      plan: how much.
      params: of every draw, but for the seed.
      sample: draws.
      grade: grades.
      wait_ready: returns when it makes sense to begin a group.
      journal: where rollouts are put on file.
      pass_rates: which problems are passed over.
      stages: has 'generate' and 'grade'.
      on_problem: is called when a group is begun.
    """
    self._source, self._plan, self._params = source, plan, params
    self._sample, self._grade, self._wait_ready = sample, grade, wait_ready
    self._journal, self._pass_rates = journal, pass_rates
    self._stages, self._on_problem = stages, on_problem
    self.ledger = Ledger()
    self._buffer = buffer.Buffer()
    self._may_have_room, self._may_be_ready = asyncio.Event(), asyncio.Event()
    self._step = self._version = 0
    self._next = self._begun = 0  # Group numbers; below `_begun` all were.
    self._settled: set[int] = set()
    self._under_way: set[int] = set()
    self._taken: set[int] = set()
    self._finished: list[RolloutGroup] = []  # Since the last `report`.
    self._num_dropped = 0  # Groups, since the last step.

  # What a checkpoint keeps.

  def snapshot(self) -> dict[str, Any]:
    """The state between two events: json."""
    return {
      'begun': self._begun,
      'settled': _intervals(self._settled),
      'ledger': dataclasses.asdict(self.ledger),
      'journal': self._journal.snapshot(),
      'source': self._source.snapshot(),
      'pass_rates': self._pass_rates.known,
    }

  def restore(self, snapshot: Mapping[str, Any], *, step: int) -> None:
    """Goes on from a checkpoint; to be called before anything else.

    Args:
      snapshot: of that checkpoint; empty if there is none.
      step: of that checkpoint.

    Raises:
      ValueError: rollouts.jsonl is not the file that it was.
    """
    self._step = self._version = step
    self._begun = snapshot.get('begun', 0)
    self._settled = {
      number
      for start, end in snapshot.get('settled', [])
      for number in range(start, end)
    }
    self._pass_rates.known = dict(snapshot.get('pass_rates', {}))
    self.ledger = Ledger(**snapshot.get('ledger', {}))
    recovered = self._journal.restore(snapshot.get('journal', {}), step=step)
    self.ledger.generated += recovered.num_found
    self.ledger.drop('restart', recovered.num_lost)
    self._book_unrolling(
      self._source.restore(snapshot.get('source', {}), step=step)
    )
    self.ledger.check(self._journal.num_open_tokens)

  def book_as_json(self) -> dict[str, Any]:
    """The content of ledger.json.

    Raises:
      LedgerError: the ledger does not close.
    """
    return self.ledger.as_json(self._journal.num_open_tokens)

  # Sampling side.

  async def run(self) -> None:
    """Begins groups whenever it may, until it is cancelled.

    Raises:
      HealthError: too many groups in a row were of no use, or no problem is
        left that is not passed over.
    """
    async with asyncio.TaskGroup() as tasks:
      while True:
        with self._stages.inside('grade', 'a judge that is there'):
          await self._wait_ready()
        if self._may_begin():
          tasks.create_task(self._roll_out(self._begin()))
        else:
          self._may_have_room.clear()
          await self._may_have_room.wait()

  def advance(self, version: int) -> None:
    """Notes that all samplers draw with these weights from now on."""
    self._version = version
    self._notify()

  @property
  def num_waiting(self) -> int:
    """Finished groups."""
    return len(self._buffer)

  @property
  def num_under_way(self) -> int:
    """Groups that are sampled or graded."""
    return len(self._under_way)

  def _may_begin(self) -> bool:
    plan = self._plan
    alive = len(self._under_way) + len(self._buffer) + len(self._taken)
    return (
      alive < (plan.num_steps - self._step) * plan.groups_per_step
      and alive
      < buffer.max_alive(
        version=self._version,
        step=self._step,
        groups_per_step=plan.groups_per_step,
        max_lag=plan.max_lag,
      )
      and len(self._under_way) < plan.max_groups_in_flight
      and len(self._buffer) < plan.max_groups_waiting
    )

  def _begin(self) -> int:
    """The next group that is not settled; its problem is not passed over."""
    # Any two epochs in a row have every problem.
    for _ in range(2 * self._source.num_groups_per_epoch + self._begun):
      number, self._next = self._next, self._next + 1
      if number in self._settled:
        continue
      problem = self._source.problem(number)
      # What was begun before a restart is not reconsidered.
      if number >= self._begun and self._pass_rates.skips(self._name(number)):
        self._settled.add(number)
        self._source.settle(number)
        continue
      self._begun = max(self._begun, self._next)
      self._under_way.add(number)
      self._on_problem(problem)
      return number
    raise HealthError(
      'none of the problems has a pass rate from problems.min_pass_rate to '
      'problems.max_pass_rate any more',
      remedy='end the run here, or begin another with wider bounds',
    )

  async def _roll_out(self, group_id: int) -> None:
    prompt = await self._source.pose(group_id, self._book_unrolling)
    on_file = self._journal.read(group_id, prompt)
    async with asyncio.TaskGroup() as tasks:
      members = [
        tasks.create_task(self._roll_out_member(group_id, member, prompt))
        for member in range(self._plan.group_size)
        if member not in on_file
      ]
    fresh = iter(task.result() for task in members)
    self._finish(
      RolloutGroup(
        group_id=group_id,
        rollouts=tuple(
          on_file[member] if member in on_file else next(fresh)
          for member in range(self._plan.group_size)
        ),
      )
    )

  def _book_unrolling(self, num_tokens: int) -> None:
    """Tokens of a prompt's making, on which nobody will train."""
    self.ledger.generated += num_tokens
    self.ledger.drop('unrolling', num_tokens)

  async def _roll_out_member(
    self, group_id: int, member: int, prompt: Prompt
  ) -> Rollout:
    what = f'group {group_id}, rollout {member}'
    seed = prompts.seed_of(group_id, member, seed=self._plan.seed)
    params = dataclasses.replace(self._params, seed=seed)
    with self._stages.inside('generate', what):
      completion = await self._sample(prompt, params, group=group_id)
    grade, reward = _UNFINISHED, None
    if completion.finish_reason in ('stop', 'length'):
      with self._stages.inside('grade', what):
        grade, reward = await self._grade(
          self._source.problem(group_id),
          completion,
          self._source.prefix(group_id),
        )
    rollout = Rollout(
      prompt=prompt, completion=completion, grade=grade, reward=reward
    )
    self._journal.write(group_id, member, rollout)
    self.ledger.generated += groups.num_tokens(rollout)
    return rollout

  def _finish(self, group: RolloutGroup) -> None:
    self._under_way.remove(group.group_id)
    self._finished.append(group)
    signal = groups.signal(group)
    if signal == 'invalid':
      self._drop(group, 'invalid')
    elif signal == 'none' and self._plan.zero_signal == 'refill':
      self._drop(group, 'zero_signal')
    else:
      self._buffer.add(group)
    self._notify()

  def _drop(self, group: RolloutGroup, reason: str) -> None:
    """Settles a group that no step will use; another may take its place."""
    num_tokens = groups.total_tokens(group.rollouts)
    if reason == 'stale':
      self.ledger.stale += num_tokens
    else:
      self.ledger.drop(reason, num_tokens)
    self._settle(group)
    self._num_dropped += 1
    if self._num_dropped > self._plan.max_dropped_groups:
      statuses = [rollout.grade.status for rollout in group.rollouts]
      raise HealthError(
        f'{self._num_dropped} groups were of no use for step {self._step + 1}, '
        f'more than health.max_dropped_groups = '
        f'{self._plan.max_dropped_groups}; the last one, group '
        f'{group.group_id}, for the reason {reason!r}, with rewards '
        f'{[rollout.reward for rollout in group.rollouts]} and grades '
        f'{statuses}',
        remedy={
          'invalid': 'see to the judge: rollouts.jsonl has what it said',
          'stale': 'shorten rollout.deadline_secs, or raise rollout.max_lag',
          'zero_signal': 'bring problems that are neither solved nor hopeless '
          "(problems.min_difficulty), or set rollout.zero_signal = 'keep'",
        }[reason],
      )

  def _settle(self, group: RolloutGroup) -> None:
    if groups.signal(group) != 'invalid':
      name = self._name(group.group_id)
      self._pass_rates.put(name, groups.mean_reward(group))
    self._settled.add(group.group_id)
    self._journal.settle(group.group_id)
    self._source.settle(group.group_id)

  def _name(self, group_id: int) -> str:
    """Of what a group tries: a problem is easier with its beginning given."""
    name = self._source.problem(group_id).problem_id
    return f'{name} (guided)' if self._source.prefix(group_id) else name

  # Trainer's side.

  async def take(self) -> list[RolloutGroup]:
    """Waits for the groups of the next step, which are then up to `book`.

    Raises:
      HealthError: too many groups in a row were of no use.
    """
    plan = self._plan
    while True:
      evicted = self._buffer.evict(step=self._step, max_lag=plan.max_lag)
      for group in evicted:
        self._drop(group, 'stale')
      if evicted:
        self._notify()
      if len(self._buffer) >= plan.groups_per_step:
        taken = self._buffer.take(plan.groups_per_step)
        self._taken = {group.group_id for group in taken}
        return taken
      self._may_be_ready.clear()
      await self._may_be_ready.wait()

  def book(self, shares: Sequence[Share]) -> None:
    """Notes that a step was done with the groups of `take`.

    Args:
      shares: what the step got of each.
    """
    for share in shares:
      self.ledger.trained += share.num_trained
      self.ledger.stale += share.num_stale
      self.ledger.drop('invalid', share.num_invalid)
      self.ledger.drop('masked', share.num_masked)
      self.ledger.drop('zero_signal', share.num_unused)
      self._settle(share.group)
    self._source.commit()
    self._taken = set()
    self._num_dropped = 0
    self._step += 1
    self.ledger.check(self._journal.num_open_tokens)
    self._notify()

  def _notify(self) -> None:
    self._may_have_room.set()
    self._may_be_ready.set()

  def report(self) -> list[RolloutGroup]:
    """The groups that were finished since the last call, by number."""
    finished = sorted(self._finished, key=lambda group: group.group_id)
    self._finished = []
    return finished


def _intervals(numbers: set[int]) -> list[list[int]]:
  """[[start, end), ...] of a set of integers."""
  intervals: list[list[int]] = []
  for number in sorted(numbers):
    if intervals and intervals[-1][1] == number:
      intervals[-1][1] = number + 1
    else:
      intervals.append([number, number + 1])
  return intervals
