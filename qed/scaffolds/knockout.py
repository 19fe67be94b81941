"""Comparing two at a time until one is left."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

from qed.scaffolds.calls import settle

_Entrant = TypeVar('_Entrant')


async def winner(
  entrants: Sequence[_Entrant],
  compare: Callable[[_Entrant, _Entrant, str], Awaitable[int]],
  rng: np.random.Generator,
  *,
  rank: Callable[[_Entrant], float] = lambda entrant: 0,
) -> _Entrant:
  """The winner, after one comparison less than there are entrants.

  Every round begins with a shuffle, so that which of two is the first, and who
  has the bye of an odd field, is chance. The matches of a round are played at
  the same time.

  Args:
    entrants: one or more.
    compare: of two, and the label of their match, the better one: 0 or 1.
      Ties and verdicts that cannot be read are its to settle.
    rng: shuffles.
    rank: what speaks for an entrant before its matches.

  Returns:
    The one that is left. Where the budget runs out, the winner of the round
    that was begun with the highest rank, or if there is none, the entrant with
    the highest of those who have come so far.

  Raises:
    ValueError: there are no entrants.
  """
  field = list(entrants)
  if not field:
    raise ValueError('expected entrants of a knockout, got none')
  for number in itertools.count(1):
    if len(field) == 1:
      return field[0]
    field = [field[i] for i in rng.permutation(len(field))]
    pairs = list(zip(field[::2], field[1::2], strict=False))
    verdicts = await settle(
      compare(*pair, f'knockout {number}/match {place}')
      for place, pair in enumerate(pairs, 1)
    )
    winners = [
      pair[verdict]
      for pair, verdict in zip(pairs, verdicts, strict=True)
      if verdict is not None
    ]
    if None in verdicts:
      return max(winners or field, key=rank)
    field = [*winners, *field[2 * len(pairs) :]]
