"""Removes problems that the set has already.

Exactly equal statements (once TeX is spelt in one way) are found by their
letters and digits. For near-duplicates, comparing all pairs of 650,000
statements is out of reach, so candidates are found first: every statement is
represented by the `sketch_size` smallest hashes of its runs of words and whole
formulas (a bottom-k sketch; Broder 1997), and two that share enough of these
are compared in full, by rapidfuzz's ratio and by the runs they share.

The first of several stays, so that sources are to be given best first.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from qed.curation import tex
from qed.curation.records import Item, Outcome, note
from qed.data import problems

NAME = 'duplicates'
_NONE = np.uint64(2**64 - 1)


def remove_duplicates(
  read: Callable[[], Iterable[Item]], config: Any
) -> Iterator[Outcome]:
  """Removes all but the first of equal and of nearly equal items.

  Items of different statements that have the same id get new ones.

  Args:
    read: gives the items; it is called twice. In between, their statements and
      sketches are held in memory, about 1 kB each.
    config: a `qed.config.DuplicatesConfig`.
  """
  spelt, exact = [], {}
  first_with_key: dict[bytes, int] = {}
  sketches = []
  for row, item in enumerate(read()):
    text = tex.spell(item.statement)
    key = _key(text)
    first = first_with_key.setdefault(key, row)
    if first != row:
      exact[row] = first
      text = ''
    spelt.append(text)
    sketches.append(_sketch(text, config))
  near = _near_duplicates(spelt, np.array(sketches), exact, config)
  ids: dict[int, str] = {}
  taken: set[str] = set()
  for row, item in enumerate(read()):
    if row in exact:
      detail = f'the statement of {ids[_root(exact[row], near)]}'
      yield Outcome(item=item, reason='duplicate', detail=detail)
      continue
    if row in near:
      first, how = near[row]
      found = {'of': ids[first], 'how': how}
      yield Outcome(
        item=note(item, NAME, found),
        reason='near_duplicate',
        detail=f'{how} with {ids[first]}',
      )
      continue
    if item.item_id in taken:
      new = f'{item.item_id}-{problems.statement_id(item.statement)}'
      item = dataclasses.replace(item, item_id=new)
    taken.add(item.item_id)
    ids[row] = item.item_id
    yield Outcome(item=item)


def _near_duplicates(
  spelt: list[str], sketches: np.ndarray, exact: Iterable[int], config: Any
) -> dict[int, tuple[int, str]]:
  """Row -> (the kept row that it resembles, how), for all that are removed."""
  from rapidfuzz import fuzz

  earlier = collections.defaultdict(list)
  for first, second in _candidates(sketches, config):
    earlier[second].append(first)
  removed: dict[int, tuple[int, str]] = {}
  gone = set(exact)
  for row in sorted(earlier):
    for first in earlier[row]:
      if first in gone or row in gone:
        continue
      a, b = spelt[first], spelt[row]
      if tex.numbers(a) != tex.numbers(b):
        continue  # The same question of another number is another problem.
      ratio = fuzz.ratio(a, b) / 100
      overlap = _overlap(a, b, config.shingle_size)
      if ratio >= config.min_ratio or overlap >= config.min_overlap:
        removed[row] = first, f'ratio {ratio:.2f}, overlap {overlap:.2f}'
        gone.add(row)
  return removed


def _candidates(sketches: np.ndarray, config: Any) -> Iterator[tuple[int, int]]:
  """Pairs of rows with enough hashes in common, the smaller row first."""
  num_rows, size = sketches.shape if sketches.size else (0, 0)
  hashes = sketches.ravel()
  rows = np.repeat(np.arange(num_rows, dtype=np.uint32), size)
  rows, hashes = rows[hashes != _NONE], hashes[hashes != _NONE]
  order = np.argsort(hashes, kind='stable')
  rows, hashes = rows[order], hashes[order]
  starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
  ends = np.r_[starts[1:], len(hashes)]
  counts: collections.Counter[int] = collections.Counter()
  for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
    # What very many share is a phrase, and says nothing.
    if 2 <= end - start <= config.max_common:
      members = rows[start:end].tolist()
      counts.update(
        a * num_rows + b for a, b in itertools.combinations(members, 2)
      )
  for code in sorted(c for c, n in counts.items() if n >= config.min_shared):
    yield divmod(code, num_rows)


def _sketch(spelt: str, config: Any) -> np.ndarray:
  """uint64 [sketch_size]: the smallest hashes of the shingles, then `_NONE`."""
  hashes = sorted(
    int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), 'big')
    for s in tex.shingles(spelt, config.shingle_size)
  )[: config.sketch_size]
  padding = [int(_NONE)] * (config.sketch_size - len(hashes))
  return np.array(hashes + padding, np.uint64)


def _overlap(a: str, b: str, size: int) -> float:
  """The Jaccard similarity of the shingles of two texts."""
  first, second = {*tex.shingles(a, size)}, {*tex.shingles(b, size)}
  return len(first & second) / max(len(first | second), 1)


def _root(row: int, near: dict[int, tuple[int, str]]) -> int:
  """The kept row that a row, or what it resembles, was removed for."""
  while row in near:
    row = near[row][0]
  return row


def _key(spelt: str) -> bytes:
  letters = ''.join(filter(str.isalnum, spelt))
  return hashlib.blake2b(letters.encode(), digest_size=16).digest()
