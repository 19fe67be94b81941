"""The sizes that an engine is compiled for, and what fits them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from qed.models import specs
from qed.rollout import paged_cache

MAX_STOP_TOKENS = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
  """The sizes that are fixed when the engine is compiled."""

  num_slots: int
  max_length: int  # Prompt and completion of one request together.
  page_size: int  # Tokens.
  num_pages: int  # Of the pool; the first is never given out.
  steps_per_chunk: int
  prefill_buckets: tuple[int, ...]  # Increasing; longer prompts are cut up.
  kv_dtype: str  # Of `paged_cache.KV_DTYPES`.

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type == 'int' and (type(value) is not int or value < 1):
        raise ValueError(
          f'layout: {field.name} must be a positive integer, got {value!r}'
        )
    buckets = self.prefill_buckets
    if not buckets or buckets[0] < 1 or sorted({*buckets}) != [*buckets]:
      raise ValueError(
        'layout: prefill_buckets must be increasing positive numbers, got '
        f'{buckets!r}'
      )
    if self.kv_dtype not in paged_cache.KV_DTYPES:
      raise ValueError(
        f'layout: kv_dtype must be one of {paged_cache.KV_DTYPES}, got '
        f'{self.kv_dtype!r}'
      )
    if self.num_pages < 2:
      raise ValueError(
        'layout: num_pages must be at least 2, of which the first is never '
        'given out'
      )

  @property
  def max_pages(self) -> int:
    """Of one request."""
    return -(-self.max_length // self.page_size)


def make_layout(
  *, max_length: int, num_pages: int, num_parts: int = 1, **sizes: Any
) -> Layout:
  """A layout in which `num_pages` = 0 stands for all that the slots can use.

  Args:
    max_length: of a request, prompt and completion together.
    num_pages: of the pool, over the whole mesh.
    num_parts: the parts that the mesh splits slots and pages into.
    **sizes: the other fields of `Layout`.
  """
  # The first page of every part is not given out.
  layout = Layout(
    max_length=max_length, num_pages=num_pages or 1 + num_parts, **sizes
  )
  if num_pages:
    return layout
  num_pages = layout.num_slots * layout.max_pages + num_parts
  return dataclasses.replace(layout, num_pages=num_pages)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
  """One request on its way into a slot."""

  slot: int
  seed: int  # 0 .. 2**32 - 1
  num_drawn: int  # Completion tokens that are part of the prefix already.
  budget: int  # Tokens that may still be drawn.
  temperature: float  # 0: greedy.
  top_p: float
  top_k: int
  stop_token_ids: tuple[int, ...]


def half_steps(largest: int) -> tuple[int, ...]:
  """1, 2, 3, 4, 6, 8, 12, ... and `largest`: at most half is wasted."""
  sizes = {2**i for i in range(largest.bit_length())}
  sizes |= {3 * 2**i for i in range(largest.bit_length())}
  return (*sorted(x for x in sizes if x < largest), largest)


def prefill_sizes(layout: Layout) -> tuple[tuple[int, int], ...]:
  """(tokens of a call, tokens of the prefix) in order of growth."""

  def whole_pages(length):
    return -(-length // layout.page_size) * layout.page_size

  longest = layout.max_length - 2  # Two tokens less: one unread, one drawn.
  sizes = []
  for bucket in layout.prefill_buckets:
    sizes.append((bucket, whole_pages(bucket)))
    if bucket >= longest:
      return tuple(sizes)
  bucket = layout.prefill_buckets[-1]
  for pieces in half_steps(-(-longest // bucket))[1:]:
    sizes.append((bucket, whole_pages(bucket * pieces)))
  return tuple(sizes)


def check_mesh(config: specs.Config, layout: Layout, mesh: Mesh | None) -> None:
  """Raises a ValueError where a mesh does not divide a size."""
  if mesh is None:
    return
  for name in ('num_slots', 'num_pages'):
    size, parts = getattr(layout, name), mesh.shape['data']
    if size % parts:
      raise ValueError(
        f'{name} = {size} cannot be divided over data={parts}; use a multiple '
        f'of {parts}'
      )
  heads, parts = config.num_key_value_heads, mesh.shape['tensor']
  if heads % parts:
    possible = [n for n in range(1, heads + 1) if heads % n == 0]
    raise ValueError(
      f'num_key_value_heads = {heads} cannot be divided over tensor={parts}; '
      f'tensor may be one of {possible}, and data take the devices that are '
      'left'
    )


def checked_prompt(
  layout: Layout, vocab_size: int, token_ids: np.ndarray
) -> np.ndarray:
  """A prompt as int32 [n].

  Raises:
    ValueError: it is empty, has foreign ids, or leaves no room.
  """
  token_ids = np.asarray(token_ids)
  if token_ids.ndim != 1 or not len(token_ids):
    raise ValueError(
      f'a prompt is int [n] with n >= 1, got shape {token_ids.shape}'
    )
  limit = layout.max_length - 1
  if len(token_ids) > limit:
    raise ValueError(
      f'a prompt of {len(token_ids)} tokens leaves no room for a completion: '
      f'the engine holds {limit + 1} tokens of a request (max_length), so a '
      f'prompt may have {limit}'
    )
  if token_ids.min() < 0 or token_ids.max() >= vocab_size:
    raise ValueError(
      f'token ids must be from 0 to {vocab_size - 1}, got '
      f'{token_ids.min()} to {token_ids.max()}'
    )
  return token_ids.astype(np.int32)


def check_insertions(
  layout: Layout,
  num_parts: int,
  num_tokens: int,
  num_pages: int,
  insertions: Sequence[Insertion],
  pages: np.ndarray,
) -> None:
  """Requests and their pages [n, num_pages] fit a prefix of num_tokens.

  Raises:
    ValueError: one does not.
  """
  for i, x in enumerate(insertions):
    faults = [
      (0 <= x.slot < layout.num_slots, f'slot {x.slot} does not exist'),
      (0 <= x.seed < 2**32, f'seed {x.seed} is not from 0 to 2**32 - 1'),
      (x.num_drawn >= 0, f'num_drawn {x.num_drawn} is negative'),
      (x.budget >= 1, f'budget {x.budget} is below 1'),
      (
        num_tokens + x.budget <= layout.max_length,
        f'{num_tokens} tokens and a budget of {x.budget} exceed '
        f'max_length = {layout.max_length}',
      ),
      (
        x.temperature >= 0 and math.isfinite(x.temperature),
        f'temperature {x.temperature} is not a number of at least 0',
      ),
      (0 < x.top_p <= 1, f'top_p {x.top_p} is not above 0 and at most 1'),
      (x.top_k >= 0, f'top_k {x.top_k} is negative'),
      (
        len(x.stop_token_ids) <= MAX_STOP_TOKENS,
        f'{len(x.stop_token_ids)} stop tokens, at most {MAX_STOP_TOKENS}',
      ),
    ]
    wrong = [text for good, text in faults if not good]
    if wrong:
      raise ValueError(f'insertion {i}: ' + '; '.join(wrong))
  slots = [x.slot for x in insertions]
  if len(set(slots)) != len(slots):
    raise ValueError(f'slots must differ, got {slots}')
  if pages.shape[1] != num_pages:
    raise ValueError(
      f'pages must be [{len(slots)}, {num_pages}] for a prefix of '
      f'{num_tokens} tokens, got {list(pages.shape)}'
    )
  _check_pages(layout, num_parts, pages, np.array(slots, np.int32))


def _check_pages(
  layout: Layout, num_parts: int, pages: np.ndarray, slots: np.ndarray
) -> None:
  """Every page lies in its slot's part of the pool."""
  slots_per_part = layout.num_slots // num_parts
  pages_per_part = layout.num_pages // num_parts
  first = (slots // slots_per_part * pages_per_part)[:, None]
  wrong = (pages <= first) | (pages >= first + pages_per_part)
  if wrong.any():
    row, column = np.argwhere(wrong)[0]
    low = int(first[row, 0])
    raise ValueError(
      f'slot {slots[row]} may use pages {low + 1} to '
      f'{low + pages_per_part - 1}, got {pages[row, column]}'
    )


def checked_tables(
  layout: Layout, num_parts: int, buckets: Sequence[int], tables: np.ndarray
) -> np.ndarray:
  """The tables, cut to the bucket of their widest row.

  Raises:
    ValueError: their shape, their order or a page is wrong.
  """
  tables = np.asarray(tables, np.int32)
  B, limit = layout.num_slots, layout.max_pages
  if tables.ndim != 2 or len(tables) != B or tables.shape[1] > limit:
    raise ValueError(
      f'tables must be int32 [{B}, up to {limit}], got {tables.shape}'
    )
  used = tables != 0
  widest = int(used.sum(1).max(initial=0))
  if (used[:, 1:] > used[:, :-1]).any():
    raise ValueError('a row of the tables must be filled from the left')
  rows = np.flatnonzero(used.any(1))
  if num_parts > 1:
    for row in rows:
      _check_pages(
        layout, num_parts, tables[row : row + 1, : used[row].sum()], row[None]
      )
  width = next(x for x in buckets if x >= widest)
  if width <= tables.shape[1]:
    return np.ascontiguousarray(tables[:, :width])
  return np.pad(tables, ((0, 0), (0, width - tables.shape[1])))
