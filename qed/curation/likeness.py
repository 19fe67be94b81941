"""How much a statement resembles the problems of a benchmark.

Every statement is compared with every problem, in five ways:

  exact     the same letters and digits, once TeX is spelt in one way
  ratio     Indel similarity of the two spellings (rapidfuzz's `ratio`), less
            what is owed to boilerplate: all equations of functions ask to "find
            all functions f: R -> R such that ... for all x, y", and resemble
            each other by that alone
  renamed   the same with every variable called alike
  overlap   the share of the shorter one's runs of words and whole formulas that
            the other has too: reordered sentences, a problem inside a thread
  content   the share of the benchmark's uncommon words and formulas that the
            item has too, perhaps misspelt and in any order; of problems that
            have enough of them

The bounds are for `bench/decontaminate.py` to set, which plants near-copies.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qed.curation import tex
from qed.curation.records import Item
from qed.types import Problem

WAYS = ('ratio', 'renamed', 'overlap', 'content')
_MIN_CLOSENESS = 0.55  # The ratio below which a pair is passed over.
_MAX_BOILERPLATE = 0.9
# Of content: what one unit may count, when two units are one misspelt, what two
# texts must share to the letter, and how much longer the item may be.
_MAX_UNIT_CHARS = 10
_MIN_UNIT_RATIO = 70
_MIN_SHARED_CONTENT = 0.1
_MAX_TIMES_LONGER = 4
# What statements are made of everywhere; a small benchmark does not show it.
# fmt: off
_COMMON_WORDS = frozenset((
  'a', 'all', 'an', 'and', 'any', 'are', 'as', 'at', 'be', 'by', 'denote',
  'determine', 'each', 'every', 'exactly', 'exist', 'exists', 'find',
  'following', 'for', 'from', 'function', 'functions', 'given', 'has', 'have',
  'holds', 'if', 'in', 'integer', 'integers', 'is', 'it', 'let', 'many',
  'more', 'number', 'numbers', 'of', 'on', 'one', 'only', 'or', 'pair',
  'pairs', 'point', 'positive', 'possible', 'prove', 'real', 'satisfy',
  'satisfying', 'satisfies', 'set', 'show', 'some', 'such', 'than', 'that',
  'the', 'there', 'these', 'this', 'to', 'two', 'value', 'values', 'we',
  'what', 'where', 'which', 'with',
))
# fmt: on
# A variable, several, or what they range over: x, xy, x in S, f: R -> R.
_DOMAIN = re.compile(r'v*(?:(?:->|in)v+)?')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
  """An item and the benchmark problem that it resembles most."""

  item_id: str
  benchmark_id: str
  how: str  # 'exact', or one of `WAYS`: the strongest evidence.
  ratio: float  # 0..1, as the next three; 0 also where it is far below.
  renamed: float
  overlap: float
  content: float
  is_removed: bool
  statement: str  # The item's,
  benchmark_statement: str  # and the benchmark's, for whoever decides.


class Index:
  """The problems of all benchmarks, ready to be compared with."""

  def __init__(self, benchmark: Sequence[Problem], config: Any):
    """Spells them.

    Args:
      benchmark: the problems; their ids should name where they are from.
      config: a `qed.config.DecontaminationConfig`.

    Raises:
      ValueError: there are none.
    """
    if not benchmark:
      raise ValueError(
        'expected problems of benchmarks to compare with, got none'
      )
    self._problems, self._config = list(benchmark), config
    self._spelt, self._renamed = _spell([p.statement for p in benchmark])
    self._by_key: dict[str, int] = {}
    for number, spelt in enumerate(self._spelt):
      self._by_key.setdefault(_key(spelt), number)
    self._common = _common_units(self._renamed, config.common_share)
    boilerplate = [_share(text, self._common) for text in self._renamed]
    self._discounts = 1 - config.boilerplate_weight * np.array(boilerplate)
    shingles = [self._shingles(text) for text in self._renamed]
    self._with_shingle: dict[str, list[int]] = collections.defaultdict(list)
    for number, found in enumerate(shingles):
      for shingle in found:
        self._with_shingle[shingle].append(number)
    self._weights = [self._weight(found) for found in shingles]
    self._contents = [self._content_units(text) for text in self._renamed]
    self._with_unit: dict[str, list[int]] = collections.defaultdict(list)
    for number, content in enumerate(self._contents):
      for unit in content:
        self._with_unit[unit].append(number)

  def matches(self, items: Sequence[Item]) -> list[Match | None]:
    """The best match of each item, None where nothing comes near."""
    config = self._config
    spelt, renamed = _spell([item.statement for item in items])
    # A discount only lowers a ratio, so that the cutoff loses nothing.
    ratios, renamed_ratios = (
      1 - (1 - self._compare(queries, choices)) / self._discounts
      for queries, choices in (
        (spelt, self._spelt),
        (renamed, self._renamed),
      )
    )
    is_close = np.maximum(ratios, renamed_ratios) >= _MIN_CLOSENESS
    found: list[Match | None] = []
    for row, item in enumerate(items):
      overlaps = self._overlaps(renamed[row])
      exact = self._by_key.get(_key(spelt[row]), -1)
      near = {*np.flatnonzero(is_close[row]).tolist(), *overlaps, exact} - {-1}
      contents = self._content_shares(renamed[row], near)
      near |= contents.keys()
      candidates = [
        self._match(
          item,
          number,
          is_exact=number == exact,
          ratio=max(0.0, float(ratios[row, number])),
          renamed=max(0.0, float(renamed_ratios[row, number])),
          overlap=overlaps.get(number, 0.0),
          content=contents.get(number, 0.0),
        )
        for number in sorted(near)
      ]
      best = max(candidates, key=self._margin, default=None)
      is_far = best is None or self._margin(best) < -config.review_margin
      found.append(None if is_far else best)
    return found

  def _match(self, item: Item, number: int, *, is_exact: bool, **ways) -> Match:
    above = self._above(ways)
    how = 'exact' if is_exact else max(above, key=above.__getitem__)
    problem = self._problems[number]
    return Match(
      item_id=item.item_id,
      benchmark_id=problem.problem_id,
      how=how,
      is_removed=is_exact or above[how] >= 0,
      statement=item.statement,
      benchmark_statement=problem.statement,
      **ways,
    )

  def _margin(self, match: Match) -> float:
    """How far a match lies above its bounds."""
    if match.how == 'exact':
      return 1.0
    return max(self._above({w: getattr(match, w) for w in WAYS}).values())

  def _above(self, ways: Mapping[str, float]) -> dict[str, float]:
    """How far each measure lies above its bound."""
    config = self._config
    return {
      'ratio': ways['ratio'] - config.min_ratio,
      'renamed': ways['renamed'] - config.min_renamed_ratio,
      'overlap': ways['overlap'] - config.min_overlap,
      'content': ways['content'] - config.min_content,
    }

  def _compare(
    self, queries: Sequence[str], choices: Sequence[str]
  ) -> np.ndarray:
    """[len(queries), len(choices)]: similarities, 0 where not worth a look."""
    from rapidfuzz import fuzz, process

    found = process.cdist(
      queries,
      choices,
      scorer=fuzz.ratio,
      score_cutoff=100 * _MIN_CLOSENESS,
      workers=self._config.num_threads,
    )
    return found / 100

  def _shingles(self, renamed: str) -> list[str]:
    """The runs of units that say something: not those of boilerplate alone."""
    return [
      shingle
      for shingle in tex.shingles(renamed, self._config.shingle_size)
      if not all(_is_common(u, self._common) for u in shingle.split())
    ]

  def _weight(self, shingles: Iterable[str]) -> float:
    """How much runs tell: one that several problems have, less."""
    return sum(1 / len(self._with_shingle.get(s, 'x')) for s in shingles)

  def _overlaps(self, renamed: str) -> dict[int, float]:
    """Benchmark number -> overlap, of those that come near the bound."""
    config = self._config
    found = self._shingles(renamed)
    shared: dict[int, float] = collections.defaultdict(float)
    for shingle in found:
      numbers = self._with_shingle.get(shingle, ())
      for number in numbers:
        shared[number] += 1 / len(numbers)
    weight = self._weight(found)
    overlaps = {}
    for number, common in shared.items():
      # Of a few runs, all in common prove little.
      shorter = min(weight, self._weights[number])
      overlap = common / max(shorter, config.min_shingles)
      if overlap >= config.min_overlap - config.review_margin:
        overlaps[number] = overlap
    return overlaps

  def _content_units(self, renamed: str) -> dict[str, int]:
    """Uncommon unit -> how much it tells: its letters, up to a bound."""
    return {
      unit: min(len(unit), _MAX_UNIT_CHARS)
      for unit in renamed.split()
      if not _is_common(unit, self._common)
    }

  def _content_shares(
    self, renamed: str, near: Iterable[int]
  ) -> dict[int, float]:
    """Benchmark number -> content, of those that come near the bound.

    Looked at are those that share some units to the letter, and `near`.
    """
    from rapidfuzz import fuzz, process

    config = self._config
    found = self._content_units(renamed)
    shared: collections.Counter[int] = collections.Counter()
    for unit, chars in found.items():
      for number in self._with_unit.get(unit, ()):
        shared[number] += chars
    total = sum(found.values())
    shares = {}
    for number in {*shared, *near}:
      content = self._contents[number]
      chars = sum(content.values())
      # Everything can be found in a text that is long enough.
      is_comparable = (
        config.min_content_chars <= chars and total <= _MAX_TIMES_LONGER * chars
      )
      is_candidate = number in near or (
        shared[number] >= _MIN_SHARED_CONTENT * chars
      )
      if not (found and is_comparable and is_candidate):
        continue
      best = process.cdist(
        list(content),
        list(found),
        scorer=fuzz.ratio,
        score_cutoff=_MIN_UNIT_RATIO,
      ).max(axis=1)
      share = float(best @ list(content.values())) / 100 / chars
      if share >= config.min_content - config.review_margin:
        shares[number] = share
    return shares


def _spell(texts: Sequence[str]) -> tuple[list[str], list[str]]:
  """The spellings of all texts, and those with variables renamed."""
  pairs = [tex.spell_both(text) for text in texts]
  return [plain for plain, _ in pairs], [renamed for _, renamed in pairs]


def _common_units(spelt: Sequence[str], common_share: float) -> frozenset[str]:
  """Words and formulas that more than this share of the texts has."""
  counts = collections.Counter(
    unit for text in spelt for unit in set(text.split())
  )
  bound = max(1, common_share * len(spelt))
  return frozenset(unit for unit, count in counts.items() if count > bound)


def _is_common(unit: str, common: frozenset[str]) -> bool:
  return (
    unit in common
    or unit in _COMMON_WORDS
    or _DOMAIN.fullmatch(unit) is not None
  )


def _share(spelt: str, common: frozenset[str]) -> float:
  """Which part of the letters of a text is boilerplate.

  Never all: what is nothing but common words is itself by their order.
  """
  units = spelt.split()
  size = sum(len(unit) for unit in units if _is_common(unit, common))
  return min(size / max(len(spelt) - len(units) + 1, 1), _MAX_BOILERPLATE)


def _key(spelt: str) -> str:
  return ''.join(filter(str.isalnum, spelt))
