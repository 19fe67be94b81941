"""What a graded completion is worth in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qed.types import Completion, Grade

MAX_SCORE = 7


def reward(
  completion: Completion,
  grade: Grade,
  *,
  max_tokens: int,
  points: Sequence[int],
  discount: float,
  overlong_buffer_tokens: int,
  truncated: Literal['graded', 'zero', 'invalid'],
) -> float | None:
  """Returns the reward of a completion of n tokens, or None if it has none.

    points[score] / 7 discount^n + min(0, (max_tokens - b - n) / b)

  with b = overlong_buffer_tokens, and without the second term where b is 0
  (QED-Nano: points[s] = s, discount 1, b = 0). A rollout is invalid, which is
  not a reward of 0, where there is no score and where the engine failed.

  Args:
    completion: what was graded.
    grade: of its proof.
    max_tokens: that a completion could have had.
    points: of the scores 0..7, in sevenths. (0, 1, ..., 7) is the score;
      (0, 1, 1, 1, 1, 1, 6, 7) does not pay for progress on the way to 6;
      (0, 0, 0, 0, 0, 0, 7, 7) is success or nothing.
    discount: per token, in (0, 1].
    overlong_buffer_tokens: over which the reward falls by 1, up to the limit.
    truncated: what becomes of a completion that reached the limit: 'graded'
      like others, 'zero' in place of its points, or 'invalid'.
  """
  if completion.finish_reason in ('abort', 'error'):
    return None
  if grade.status != 'ok' or grade.score is None:
    return None
  worth = points[grade.score] / MAX_SCORE
  if completion.finish_reason == 'length':
    if truncated == 'invalid':
      return None
    if truncated == 'zero':
      worth = 0.0
  num_tokens = len(completion.token_ids)
  worth *= discount**num_tokens
  if overlong_buffer_tokens:
    room = max_tokens - overlong_buffer_tokens - num_tokens
    worth += min(0.0, room / overlong_buffer_tokens)
  return worth
