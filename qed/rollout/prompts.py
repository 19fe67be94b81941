"""Which problem comes next, and what it is drawn with.

Group k of a run practises the problem at position k of an endless sequence: the
problems in the order of a seeded permutation, then all of them again in the
order of another; with n copies of each problem (`guided`), that at position
k // n. So the data cursor is one number, every epoch has every problem exactly
once, and what a group samples, seeds included, depends on its number alone,
however often the run was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qed.types import Problem, Prompt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
  """The problems that a run practises on, and why not the others."""

  problems: tuple[Problem, ...]
  prompts: tuple[Prompt, ...]  # Of each problem.
  num_too_long: int
  num_too_easy: int
  num_too_hard: int
  # A problem may be there several times, one after the other, with a group for
  # each copy (`guided.mix`).
  num_copies: int = 1
  prefixes: tuple[str, ...] = ()  # Of the copies' proofs; (): none has one.

  def __str__(self) -> str:
    return (
      f'{len(self.problems) // self.num_copies} problems; '
      f'left out: {self.num_too_long} too long, '
      f'{self.num_too_easy} too easy, {self.num_too_hard} too hard'
    )


def select(
  problems: Sequence[Problem],
  make_prompt: Callable[[Problem], Prompt],
  *,
  max_prompt_tokens: int,
  min_difficulty: float,
  max_difficulty: float,
) -> Selection:
  """Leaves out problems that are too long, too easy or too hard.

  Args:
    problems: all there are.
    make_prompt: what the model is given of a problem.
    max_prompt_tokens: of a prompt.
    min_difficulty: of `Problem.difficulty`, the mean reward of the base model:
      below it a problem is too hard. One of unknown difficulty stays.
    max_difficulty: above it, too easy.

  Raises:
    ValueError: nothing remains.
  """
  kept, counts = [], {'long': 0, 'easy': 0, 'hard': 0}
  for problem in problems:
    prompt = make_prompt(problem)
    difficulty = problem.difficulty
    if len(prompt.token_ids) > max_prompt_tokens:
      counts['long'] += 1
    elif difficulty is not None and difficulty > max_difficulty:
      counts['easy'] += 1
    elif difficulty is not None and difficulty < min_difficulty:
      counts['hard'] += 1
    else:
      kept.append((problem, prompt))
  selection = Selection(
    problems=tuple(problem for problem, _ in kept),
    prompts=tuple(prompt for _, prompt in kept),
    num_too_long=counts['long'],
    num_too_easy=counts['easy'],
    num_too_hard=counts['hard'],
  )
  if not kept:
    raise ValueError(
      f'expected at least one of {len(problems)} problems to have a prompt of '
      f'at most {max_prompt_tokens} tokens and a difficulty from '
      f'{min_difficulty} to {max_difficulty}, got {selection}'
    )
  return selection


def digest(selection: Selection) -> str:
  """A hash of ids and prompts, in order: the same where the sequence is."""
  content = hashlib.sha256()
  for prompt in selection.prompts:
    content.update(prompt.problem_id.encode() + b'\0')
    content.update(np.asarray(prompt.token_ids, np.int32).tobytes() + b'\0')
  return content.hexdigest()


def index_at(position: int, num_problems: int, *, seed: int) -> int:
  """The problem at a position of the endless sequence.

  Args:
    position: from 0 on; also the number of the group that practises it.
    num_problems: in the selection.
    seed: of all permutations.
  """
  epoch, place = divmod(position, num_problems)
  return int(_permutation(num_problems, epoch, seed)[place])


def seed_of(group_id: int, member: int, *, seed: int, purpose: int = 0) -> int:
  """The seed that a member of a group is drawn with, from 0 to 2**32 - 1.

  Args:
    group_id: the number of the group, or of what else is drawn.
    member: of the group.
    seed: of the run.
    purpose: other draws with the same numbers have another one.
  """
  mixed = np.random.SeedSequence([seed, group_id, member, purpose])
  return int(mixed.generate_state(1)[0])


@functools.lru_cache(maxsize=4)
def _permutation(num_problems: int, epoch: int, seed: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(num_problems)


class Plain:
  """Groups whose prompts are known from the beginning; a collector's `Source`.

  The groups of a problem's copies have consecutive numbers.
  """

  def __init__(self, selection: Selection, *, seed: int):
    """Takes the problems, and the seed of their order."""
    self._selection, self._seed = selection, seed

  @property
  def num_groups_per_epoch(self) -> int:
    """Until every problem was practised once more."""
    return len(self._selection.problems)

  def problem(self, group_id: int) -> Problem:
    """What a group practises."""
    return self._selection.problems[self._index(group_id)]

  def prefix(self, group_id: int) -> str:
    """The beginning of the proof that a group goes on from; '': none."""
    prefixes = self._selection.prefixes
    return prefixes[self._index(group_id)] if prefixes else ''

  async def pose(
    self, group_id: int, on_tokens: Callable[[int], None]
  ) -> Prompt:
    """What a group is drawn with, for which no token was drawn."""
    return self._selection.prompts[self._index(group_id)]

  def settle(self, group_id: int) -> None:
    """Nothing is kept of a group."""

  def commit(self) -> None:
    """Nothing is learnt from a step."""

  def snapshot(self) -> dict[str, Any]:
    """Nothing is to be remembered."""
    return {}

  def restore(self, snapshot: Mapping[str, Any], *, step: int) -> int:
    """Nothing is to be remembered; 0 tokens were found."""
    return 0

  def report(self) -> dict[str, float]:
    """Nothing is to be told."""
    return {}

  def _index(self, group_id: int) -> int:
    num_copies = self._selection.num_copies
    position, copy = divmod(group_id, num_copies)
    num_problems = self.num_groups_per_epoch // num_copies
    return copy + num_copies * index_at(position, num_problems, seed=self._seed)


class PassRates:
  """How well each problem went the last time, to skip what teaches nothing.

  A problem whose last group had a mean reward outside the bounds is passed over
  when its turn comes again.
  """

  def __init__(self, *, low: float, high: float):
    """Knows nothing yet.

    Args:
      low: a mean reward below it is not worth another try; 0: all are.
      high: likewise above it; 1: all are.
    """
    self._low, self._high = low, high
    self.known: dict[str, float] = {}  # What is tried -> its mean reward.

  def put(self, name: str, mean_reward: float) -> None:
    """Notes how a group went.

    Args:
      name: of what it tried: a problem, or one with the beginning of its proof.
      mean_reward: of the group.
    """
    self.known[name] = mean_reward

  def skips(self, name: str) -> bool:
    """Whether what has this name is to be passed over now."""
    rate = self.known.get(name)
    return rate is not None and not self._low <= rate <= self._high
