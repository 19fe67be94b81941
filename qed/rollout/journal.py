"""rollouts.jsonl: every graded rollout, and the way back from the file.

The file is only ever appended to, one flushed line per rollout. It is the
memory of a run that was interrupted: a checkpoint notes how long the file was
and where the rollouts of unfinished business stand in it, and whatever is found
there or behind it need not be sampled and graded again. Behind it may also be
rollouts of steps that were lost with the process; these are never used, and the
rollouts that take their place come later in the file. So the last line of a
(group_id, rollout) counts.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qed.rollout import lines
from qed.types import Completion, Grade, Prompt, Rollout


class Recovered(NamedTuple):
  """What stood in the file behind a checkpoint; numbers count tokens."""

  num_found: int
  num_lost: int  # Of those, drawn by weights that are gone.


class Journal:
  """The file, and where in it the rollouts of open groups are."""

  def __init__(self, path: str | os.PathLike[str]):
    """Opens or creates the file; what a killed process left half is cut."""
    self._log = lines.Log(path)
    # Group -> member -> (where its line begins, tokens).
    self._places: dict[int, dict[int, tuple[int, int]]] = {}

  def close(self) -> None:
    """Closes the file."""
    self._log.close()

  def write(self, group_id: int, member: int, rollout: Rollout) -> None:
    """Appends a rollout; it is safe from the death of the process."""
    place = self._log.write(_row(group_id, member, rollout))
    members = self._places.setdefault(group_id, {})
    members[member] = (place, len(rollout.completion.token_ids))

  def knows(self, group_id: int) -> bool:
    """Whether a rollout of an open group is on file."""
    return group_id in self._places

  @property
  def num_open_tokens(self) -> int:
    """That the policy wrote, of all groups that are open."""
    return sum(
      num_tokens
      for members in self._places.values()
      for _, num_tokens in members.values()
    )

  def read(self, group_id: int, prompt: Prompt) -> dict[int, Rollout]:
    """The rollouts of an open group that are on file, by member.

    Args:
      group_id: its number.
      prompt: of the group.

    Raises:
      ValueError: they are of another prompt.
    """
    return {
      member: self._read(place, prompt)
      for member, (place, _) in self._places.get(group_id, {}).items()
    }

  def prompt(self, group_id: int) -> Prompt:
    """What the rollouts of an open group on file were drawn with.

    Its messages are not on file.
    """
    (place, _), *_ = self._places[group_id].values()
    row = self._log.read(place)
    return Prompt(
      problem_id=row['problem_id'],
      messages=(),
      token_ids=np.array(row['prompt_token_ids'], np.int32),
      kind=row['kind'],
      turn=row['turn'],
    )

  def _read(self, place: int, prompt: Prompt) -> Rollout:
    row = self._log.read(place)
    if row['prompt_token_ids'] != prompt.token_ids.tolist():
      raise ValueError(
        f'{self._log.path}, byte {place}: expected a rollout of problem '
        f'{prompt.problem_id} with its prompt as it is now, got one of '
        f'{row["problem_id"]}; the problems, their order or the prompt were '
        'changed'
      )
    return _rollout(row, prompt)

  def settle(self, group_id: int) -> None:
    """Forgets a group of which nothing is needed any more."""
    self._places.pop(group_id, None)

  def snapshot(self) -> dict[str, Any]:
    """For a checkpoint: json."""
    places = {
      str(group): {str(member): [*place] for member, place in members.items()}
      for group, members in self._places.items()
    }
    return {'size': self._log.size, 'places': places}

  def restore(self, snapshot: Mapping[str, Any], *, step: int) -> Recovered:
    """Takes up what a checkpoint knew, and what was written since.

    Args:
      snapshot: of that checkpoint; an empty one for a run without.
      step: of that checkpoint. What newer weights drew is lost.

    Raises:
      ValueError: the file is shorter than it was.
    """
    size = snapshot.get('size', 0)
    self._log.check_size(size, step=step)
    self._places = {
      int(group): {int(member): (*place,) for member, place in members.items()}
      for group, members in snapshot.get('places', {}).items()
    }
    found = lost = 0
    for place, row in self._log.rows_since(size):
      num_tokens = len(row['token_ids'])
      found += num_tokens
      if max(row['versions'], default=0) > step:
        lost += num_tokens
        continue
      members = self._places.setdefault(row['group_id'], {})
      lost += members.get(row['rollout'], (0, 0))[1]  # The last line counts.
      members[row['rollout']] = (place, num_tokens)
    return Recovered(found, lost)


def _row(group_id: int, member: int, rollout: Rollout) -> dict[str, Any]:
  completion = rollout.completion
  return {
    'group_id': group_id,
    'rollout': member,
    'problem_id': rollout.prompt.problem_id,
    'kind': rollout.prompt.kind,
    'turn': rollout.prompt.turn,
    'prompt_token_ids': rollout.prompt.token_ids.tolist(),
    'token_ids': completion.token_ids.tolist(),
    'logprobs': [_shortest(x) for x in completion.logprobs],
    'versions': completion.versions.tolist(),
    'text': completion.text,
    'finish_reason': completion.finish_reason,
    'grade': {
      field.name: getattr(rollout.grade, field.name)
      for field in dataclasses.fields(rollout.grade)
    }
    | {'usage': dict(rollout.grade.usage)},
    'reward': rollout.reward,
  }


def _rollout(row: Mapping[str, Any], prompt: Prompt) -> Rollout:
  logprobs = [math.nan if x is None else x for x in row['logprobs']]
  return Rollout(
    prompt=prompt,
    completion=Completion(
      token_ids=np.array(row['token_ids'], np.int32),
      logprobs=np.array(logprobs, np.float32),
      versions=np.array(row['versions'], np.int32),
      text=row['text'],
      finish_reason=row['finish_reason'],
    ),
    grade=Grade(**row['grade']),
    reward=row['reward'],
  )


def _shortest(x: np.float32) -> float | None:
  """The shortest decimal that is read back as the same float32."""
  return float(str(x)) if np.isfinite(x) else None
