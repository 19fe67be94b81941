"""Which problems are worth practising on, by how hard they are.

Bounds on mean reward and pass rate first. Then the curriculum of section 3 of
the QED-Nano report, which is a static choice: the histogram of mean reward
should have one peak, among the hard ones, and a tail towards the easy ones. So
from its fullest bin in the harder half on, a bin keeps at most `tail_decay`
times as many as the next harder one kept; on the other side it keeps at most as
many as the next easier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qed.curation.difficulty import NAME as DIFFICULTY
from qed.curation.records import Item, Outcome


def select(items: Iterable[Item], config: Any) -> Iterator[Outcome]:
  """Removes what is too easy, too hard, or too common for the curriculum.

  Which items of a bin go depends on their ids alone, not on their order.

  Args:
    items: with difficulties; all are held in memory.
    config: a `qed.config.SelectionConfig`.

  Raises:
    ValueError: an item has no difficulty.
  """
  items = list(items)
  outcomes = [_bounded(item, config) for item in items]
  kept = [outcome.item for outcome in outcomes if not outcome.reason]
  bins = [bin_of(item.difficulty, config.num_bins) for item in kept]
  counts = [bins.count(number) for number in range(config.num_bins)]
  quotas = shape(counts, config.tail_decay)
  chosen = set()
  for number, quota in enumerate(quotas):
    members = [
      item.item_id
      for item, found in zip(kept, bins, strict=True)
      if found == number
    ]
    chosen.update(sorted(members, key=_shuffled)[:quota])
  for outcome in outcomes:
    if outcome.reason or outcome.item.item_id in chosen:
      yield outcome
      continue
    number = bin_of(outcome.item.difficulty, config.num_bins)
    yield Outcome(
      item=outcome.item,
      reason='curriculum',
      detail=f'{quotas[number]} of {counts[number]} stay in its bin',
    )


def bin_of(mean: float, num_bins: int) -> int:
  """The bin of a mean reward in [0, 1]; 0 is the hardest."""
  return min(int(mean * num_bins), num_bins - 1)


def shape(counts: Sequence[int], tail_decay: float) -> list[int]:
  """How many to keep in each bin, hardest first, for a peak and a tail.

  Args:
    counts: in each bin.
    tail_decay: of the tail towards the easy side; 0 keeps everything.

  Example: shape([2, 9, 5, 8, 8], 0.5) is [2, 9, 4, 2, 1].
  """
  if not tail_decay:
    return list(counts)
  harder = range((len(counts) + 1) // 2)
  peak = max(harder, key=lambda number: (counts[number], -number))
  quotas = list(counts)
  for number in range(peak + 1, len(counts)):
    quotas[number] = min(quotas[number], int(tail_decay * quotas[number - 1]))
  for number in range(peak - 1, -1, -1):
    quotas[number] = min(quotas[number], quotas[number + 1])
  return quotas


def _bounded(item: Item, config: Any) -> Outcome:
  if item.difficulty is None:
    raise ValueError(f'item {item.item_id}: expected a difficulty, got none')
  rate = item.notes[DIFFICULTY]['pass_rate']
  detail = f'mean reward {item.difficulty:.3f}, pass rate {rate:.3f}'
  if item.difficulty > config.max_mean_reward or rate > config.max_pass_rate:
    return Outcome(item=item, reason='too_easy', detail=detail)
  if rate < config.min_pass_rate:
    return Outcome(item=item, reason='too_hard', detail=detail)
  return Outcome(item=item)


def _shuffled(item_id: str) -> bytes:
  return hashlib.sha256(item_id.encode()).digest()
