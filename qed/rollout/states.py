"""The states of a reasoning cache that groups start from.

  visit v    one problem, and groups N v, ..., N v + N - 1
  its chain  state 0 -> turn -> state 1 -> turn -> ... -> state T
  its draw   N of the T + 1 states, without replacement: one for each group

A chain is made as far as its groups need it, with the policy as it is then, and
every turn is on file (states.jsonl) when it is over, so that it is played and
paid once. Which states are drawn depends on the number of the visit alone.

A state carries the version of the weights that drew when its turn ended. A
group that finds a state older than the lag allows has the chain made anew, as a
prompt of a policy that is gone teaches the present one little. A group whose
first rollout is on file keeps the prompt of that.

With a replay buffer a chain begins where one of an earlier epoch ended
(`replay`), so that the horizon grows with the epochs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from qed.rollout import groups, lines, prompts
from qed.rollout.journal import Journal
from qed.rollout.replay import Replay, Summary
from qed.types import CacheState, Problem, Prompt

# Besides those of `prompts.seed_of`, whose last number is the purpose.
_DRAW, _START = 11, 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
  """What a turn came to."""

  state: CacheState  # That it leads to.
  reasoning: str  # What the summary is of.
  num_tokens: int  # That the policy wrote: reasoning, and summary if it did.
  newest: int  # Version of these; -1 where there is none.
  reasoning_tokens: int
  summary_tokens: int
  is_truncated: bool  # The reasoning, by its limit.
  is_kept: bool  # The old summary, for want of a new one.


# Plays the turn from a state, of a visit.
TakeTurn = Callable[[CacheState, int], Awaitable[Turn]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
  """What is unrolled; fields as in the config."""

  num_turns: int
  states_per_problem: int
  max_lag: int
  seed: int


class _Link(NamedTuple):
  """A state of a chain."""

  state: CacheState
  version: int  # That drew when it was made.
  place: int  # Of its line.


class Unroller:
  """Groups that start from states; a collector's `Source`."""

  def __init__(
    self,
    selection: prompts.Selection,
    plan: Plan,
    *,
    take_turn: TakeTurn,
    make_prompt: Callable[[CacheState], Prompt],
    version: Callable[[], int],
    replay: Replay,
    journal: Journal,
    path: str | os.PathLike[str],
  ):
    """Begins with nothing; see `restore`.

    Args:
      selection: the problems.
      plan: how much.
      take_turn: reasons and sums up.
      make_prompt: what a state is drawn with.
      version: of the weights that draw now.
      replay: summaries of earlier epochs.
      journal: knows the prompts of groups with rollouts on file.
      path: of states.jsonl.
    """
    self._selection, self._plan = selection, plan
    self._take_turn, self._make_prompt = take_turn, make_prompt
    self._version, self._replay, self._journal = version, replay, journal
    self._log = lines.Log(path)
    self._chains: dict[int, list[_Link]] = {}
    self._locks: dict[int, asyncio.Lock] = {}
    # Groups of open visits that are settled.
    self._settled: dict[int, set[int]] = {}
    # Where visits that ended since the last step came to.
    self._ended: dict[int, Summary] = {}
    self._made: list[Turn] = []  # Since the last `report`.
    self._posed: list[tuple[int, int]] = []  # Turn and age; likewise.
    self._num_expired = 0

  def close(self) -> None:
    """Closes the file."""
    self._log.close()

  @property
  def num_groups_per_epoch(self) -> int:
    """Until every problem was visited once more."""
    return len(self._selection.problems) * self._plan.states_per_problem

  def problem(self, group_id: int) -> Problem:
    """What a group practises."""
    return self._problem_of(group_id // self._plan.states_per_problem)

  def prefix(self, group_id: int) -> str:
    """States have no beginning of a proof."""
    return ''

  def _problem_of(self, visit: int) -> Problem:
    problems = self._selection.problems
    return problems[
      prompts.index_at(visit, len(problems), seed=self._plan.seed)
    ]

  # What a checkpoint keeps.

  def snapshot(self) -> dict[str, Any]:
    """The state between two events: json."""
    return {
      'size': self._log.size,
      'places': {
        str(visit): [link.place for link in chain]
        for visit, chain in self._chains.items()
      },
      'settled': {
        str(visit): sorted(found) for visit, found in self._settled.items()
      },
      'ended': {str(visit): [*s] for visit, s in self._ended.items()},
      'replay': self._replay.snapshot(),
    }

  def restore(self, snapshot: Mapping[str, Any], *, step: int) -> int:
    """Goes on from a checkpoint; to be called before anything else.

    Args:
      snapshot: of that checkpoint; empty if there is none.
      step: of that checkpoint. States that newer weights made are lost.

    Returns:
      The tokens of the policy that are on file behind the checkpoint.

    Raises:
      ValueError: states.jsonl is shorter than it was.
    """
    size = snapshot.get('size', 0)
    self._log.check_size(size, step=step)
    self._replay.restore(snapshot.get('replay', {}))
    self._settled = {
      int(visit): {*found}
      for visit, found in snapshot.get('settled', {}).items()
    }
    self._ended = {
      int(visit): Summary(*values)
      for visit, values in snapshot.get('ended', {}).items()
    }
    self._chains = {
      int(visit): [self._link(place, self._log.read(place)) for place in places]
      for visit, places in snapshot.get('places', {}).items()
    }
    num_found = 0
    for place, row in self._log.rows_since(size):
      num_found += row['num_tokens']
      if max(row['version'], row['newest']) <= step:
        self._append(row['visit'], row['index'], self._link(place, row))
    return num_found

  def _link(self, place: int, row: Mapping[str, Any]) -> _Link:
    state = CacheState(
      problem=self._problem_of(row['visit']),
      turn=row['turn'],
      summary=row['summary'],
    )
    return _Link(state, row['version'], place)

  def _append(self, visit: int, index: int, link: _Link) -> None:
    """Makes a state the last one of its chain; those after it are void."""
    self._chains[visit] = [*self._chains.get(visit, [])[:index], link]

  # Sampling side.

  async def pose(
    self, group_id: int, on_tokens: Callable[[int], None]
  ) -> Prompt:
    """What a group is drawn with; plays the turns that lead there.

    Args:
      group_id: its number.
      on_tokens: is told of the tokens of every turn.
    """
    if self._journal.knows(group_id):
      return self._journal.prompt(group_id)
    plan = self._plan
    visit, member = divmod(group_id, plan.states_per_problem)
    index = drawn_states(
      visit, plan.num_turns, plan.states_per_problem, seed=plan.seed
    )[member]
    async with self._locks.setdefault(visit, asyncio.Lock()):
      link = await self._reach(visit, index, on_tokens)
    self._posed.append((link.state.turn, self._version() - link.version))
    return self._make_prompt(link.state)

  async def _reach(
    self, visit: int, index: int, on_tokens: Callable[[int], None]
  ) -> _Link:
    """A state of a chain, which is made as far as need be."""
    chain = self._chains.get(visit)
    if chain and self._is_expired(chain, index):
      self._num_expired += 1
      chain = None
    if not chain:
      self._start(visit)
    while len(self._chains[visit]) <= index:
      before = self._chains[visit][-1].state
      turn = await self._take_turn(before, visit)
      about = dataclasses.asdict(turn)
      del about['state']
      self._put(visit, len(self._chains[visit]), turn.state, about)
      on_tokens(turn.num_tokens)
      self._made.append(turn)
    return self._chains[visit][index]

  def _is_expired(self, chain: list[_Link], index: int) -> bool:
    """Whether a state, or the last one before it, is older than allowed.

    The first state never is: it has no summary, or one that `replay` vouches
    for.
    """
    index = min(index, len(chain) - 1)
    if index == 0 or self._plan.max_lag == groups.UNBOUNDED:
      return False
    return self._version() - chain[index].version > self._plan.max_lag

  def _start(self, visit: int) -> None:
    """Begins a chain with no summary, or with one of an earlier epoch."""
    problem = self._problem_of(visit)
    rng = np.random.default_rng([self._plan.seed, visit, 0, _START])
    found = self._replay.draw(problem.problem_id, self._version(), rng)
    turn, summary = (found.turn, found.summary) if found else (0, '')
    state = CacheState(problem=problem, turn=turn, summary=summary)
    self._put(visit, 0, state, {'num_tokens': 0, 'newest': -1})

  def _put(
    self, visit: int, index: int, state: CacheState, about: Mapping[str, Any]
  ) -> None:
    """Puts a state on file, and at the end of its chain."""
    row = {
      'visit': visit,
      'index': index,
      'problem_id': state.problem.problem_id,
      'turn': state.turn,
      'summary': state.summary,
      'version': self._version(),
      **about,
    }
    self._append(visit, index, self._link(self._log.write(row), row))

  # Afterwards.

  def settle(self, group_id: int) -> None:
    """Notes that nothing of a group is needed any more."""
    size = self._plan.states_per_problem
    visit = group_id // size
    settled = self._settled.setdefault(visit, set())
    settled.add(group_id)
    if len(settled) < size:
      return
    del self._settled[visit]
    self._locks.pop(visit, None)
    chain = self._chains.pop(visit, [])
    if len(chain) > 1:
      state, version, _ = chain[-1]
      self._ended[visit] = Summary(
        state.problem.problem_id, state.turn, state.summary, version
      )

  def commit(self) -> None:
    """Puts the ends of chains into the replay buffer, after a step.

    Not earlier, so that what a step begins with does not depend on the order in
    which its groups come to an end.
    """
    for visit in sorted(self._ended):
      self._replay.add(self._ended[visit])
    self._ended = {}

  def report(self) -> dict[str, float]:
    """Metrics of what was made and posed since the last call."""
    made, posed = self._made, self._posed
    metrics = {
      'states/made': float(len(made)),
      'states/expired': float(self._num_expired),
    }
    if made:
      columns = {
        'reasoning_tokens': [turn.reasoning_tokens for turn in made],
        'summary_tokens': [turn.summary_tokens for turn in made],
        'truncated': [turn.is_truncated for turn in made],
        'kept': [turn.is_kept for turn in made],
      }
      metrics |= {
        f'states/{name}': float(np.mean(column))
        for name, column in columns.items()
      }
    if posed:
      turns, ages = np.array(posed).T
      metrics |= {
        'states/turn_mean': float(turns.mean()),
        'states/turn_max': float(turns.max()),
        'states/age_max': float(ages.max()),
      }
    self._made, self._posed, self._num_expired = [], [], 0
    return metrics


def drawn_states(
  visit: int, num_turns: int, num_states: int, *, seed: int
) -> tuple[int, ...]:
  """Which states of its chain the groups of a visit start from.

  Args:
    visit: its number, on which alone the draw depends.
    num_turns: T, of the chain.
    num_states: that are drawn of 0, ..., T, without replacement.
    seed: of the run.

  Returns:
    Their indices, in increasing order: the first group waits for the fewest
    turns.
  """
  rng = np.random.default_rng([seed, visit, 0, _DRAW])
  drawn = rng.choice(num_turns + 1, num_states, replace=False)
  return tuple(sorted(int(index) for index in drawn))
