"""Who sits in which slot, on which pages, and what they have drawn.

A tenancy is one stay of a request in a slot. What it draws goes to a row of the
buffers here. A slot may go to the next tenant while the last tokens of the one
before are still being computed, so a row is not a slot: the chunk that comes
back says which row each of its lines belongs to.

The work per chunk is a few numpy calls, whatever the number of slots.

Letters: `B` slots, `R` rows, `k` steps per chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qed.rollout.engine import Chunk, Insertion, Layout, Prefix
from qed.rollout.pages import Pages
from qed.rollout.requests import Drawn, Request


class Owners(NamedTuple):
  """Whose tokens a chunk will bring; travels with it."""

  rows: np.ndarray  # int64 [B]; -1: nobody's.
  tenancies: np.ndarray  # int64 [B]


class Tenants:
  """The slots, their pages and the rows; not thread-safe."""

  def __init__(self, layout: Layout, *, num_parts: int, lag: int):
    """All empty.

    Args:
      layout: of the engine.
      num_parts: of the pool; slot b may only use pages of its own part.
      lag: chunks that may be unread while a new tenant moves in.
    """
    B, R = layout.num_slots, layout.num_slots * (lag + 1)
    self._page_size = layout.page_size
    self._slots_per_part = B // num_parts
    pages_per_part = layout.num_pages // num_parts
    # The first page of a part is where idle slots write.
    self._pools = [
      Pages(i * pages_per_part + 1, pages_per_part - 1)
      for i in range(num_parts)
    ]
    # Of slots.
    self._rows = np.full(B, -1)
    self._reach = np.zeros(B, np.int64)  # Cache entries after what is started.
    self._limit = np.zeros(B, np.int64)  # Cache entries at the very end.
    self._num_pages = np.zeros(B, np.int64)
    self._tables = np.zeros((B, layout.max_pages), np.int32)
    self._prefixes: list[Prefix | None] = [None] * B
    self._killed = np.zeros(B, bool)
    # Of rows. Pages of memory that nobody writes to cost nothing.
    self._slots = np.full(R, -1)
    self._requests: list[Request | None] = [None] * R
    self._tenancies = np.zeros(R, np.int64)  # 0: free.
    self._num_drawn = np.zeros(R, np.int64)
    self._buffers = Drawn(
      np.empty((R, layout.max_length), np.int32),
      np.empty((R, layout.max_length), np.float32),
      np.empty((R, layout.max_length), np.int32),
    )
    self._free_rows = list(range(R))
    self._row_of: dict[Request, int] = {}
    self._num_tenancies = 0

  @property
  def num_live(self) -> int:
    """Slots that are taken."""
    return int(np.count_nonzero(self._rows >= 0))

  @property
  def num_free_pages(self) -> int:
    """Of all parts."""
    return sum(pool.num_free for pool in self._pools)

  @property
  def num_pages(self) -> int:
    """Of all parts, free or not."""
    return sum(pool.capacity for pool in self._pools)

  def requests(self) -> list[Request]:
    """All that are here, also where only their last tokens are awaited."""
    return list(self._row_of)

  def find_slot(
    self, request: Request, prefix: Prefix | None, num_steps: int
  ) -> int | None:
    """A slot that can take a request for its first steps, if there is one.

    Each running request that is still to grow keeps one page in reserve, or
    the newcomer would soon be thrown out again.
    """
    num_read = len(request.prompt) + len(request.drawn.token_ids) - 1
    first = self._pages_of(min(num_read + num_steps, request.limit))
    best, most = None, -1
    for part, pool in enumerate(self._pools):
      slots = self._slots_of(part)
      free = np.flatnonzero(self._rows[slots] < 0)
      if not len(free) or pool.num_free <= most:
        continue
      need = first
      if prefix is not None and self._sibling(part, prefix) is not None:
        need -= num_read // self._page_size
      growing = (self._rows[slots] >= 0) & (
        self._pages_of(self._limit[slots]) > self._num_pages[slots]
      )
      if need + np.count_nonzero(growing) <= pool.num_free:
        best, most = slots.start + int(free[0]), pool.num_free
    return best

  def enter(
    self, slot: int, request: Request, prefix: Prefix, num_steps: int
  ) -> None:
    """Gives a slot that `find_slot` found to a request, with pages."""
    num_read = prefix.num_tokens - 1
    reach = min(num_read + num_steps, request.limit)
    part = slot // self._slots_per_part
    pool = self._pools[part]
    sibling = self._sibling(part, prefix)
    table, num_shared = self._tables[slot], 0
    if sibling is not None:
      num_shared = num_read // self._page_size
      table[:num_shared] = self._tables[sibling, :num_shared]
      pool.share(table[:num_shared])
    num_pages = int(self._pages_of(reach))
    table[num_shared:num_pages] = pool.take(num_pages - num_shared)
    self._num_pages[slot] = num_pages
    self._reach[slot], self._limit[slot] = num_read, request.limit
    self._prefixes[slot] = prefix
    self._killed[slot] = False

    row = self._free_rows.pop()
    self._num_tenancies += 1
    self._rows[slot], self._slots[row] = row, slot
    self._tenancies[row] = self._num_tenancies
    self._requests[row], self._row_of[request] = request, row
    n = self._num_drawn[row] = len(request.drawn.token_ids)
    for buffer, values in zip(self._buffers, request.drawn, strict=True):
      buffer[row, :n] = values

  def insertions(
    self, slots: list[int], prefix: Prefix
  ) -> tuple[list[Insertion], np.ndarray]:
    """What the engine must be told of slots that were just entered."""
    insertions = []
    for slot in slots:
      request = self._requests[self._rows[slot]]
      params, num_drawn = request.params, len(request.drawn.token_ids)
      insertions.append(
        Insertion(
          slot=slot,
          seed=params.seed,
          num_drawn=num_drawn,
          budget=params.max_tokens - num_drawn,
          temperature=params.temperature,
          top_p=params.top_p,
          top_k=params.top_k,
          stop_token_ids=params.stop_token_ids,
        )
      )
    return insertions, self._tables[slots, : prefix.num_pages]

  def extend(self, num_steps: int) -> int | None:
    """Gives every slot the pages of its next steps.

    Returns:
      None, or the part of the pool that has too few left.
    """
    needs = self._pages_of(np.minimum(self._reach + num_steps, self._limit))
    short = np.flatnonzero((self._rows >= 0) & (needs > self._num_pages))
    for slot in short:
      part = int(slot) // self._slots_per_part
      have, need = self._num_pages[slot], needs[slot]
      if need - have > self._pools[part].num_free:
        return part
      pages = self._pools[part].take(int(need - have))
      self._tables[slot, have:need] = pages
      self._num_pages[slot] = need
    return None

  def youngest(self, part: int) -> Request:
    """The request of a part that was submitted last."""
    slots = self._slots_of(part)
    live = np.flatnonzero(self._rows[slots] >= 0) + slots.start
    return self._requests[self._rows[max(live, key=self._age)]]

  def start(self, num_steps: int) -> tuple[np.ndarray, np.ndarray, Owners]:
    """Notes that a chunk is started: (tables, killed, owners) of it.

    A slot whose budget will surely be used up by then is free from now on: the
    device does things in order, so the next tenant cannot come too early.
    """
    live = self._rows >= 0
    widest = int(self._num_pages.max())
    tables = self._tables[:, :widest].copy()
    killed = self._killed.copy()
    self._killed[:] = False
    owners = Owners(
      self._rows.copy(), np.where(live, self._tenancies[self._rows], 0)
    )
    np.minimum(self._reach + num_steps, self._limit, out=self._reach)
    for slot in np.flatnonzero(live & (self._reach == self._limit)):
      self._leave_slot(slot)
    return tables, killed, owners

  def credit(
    self, chunk: Chunk, owners: Owners, version: int
  ) -> tuple[list[tuple[Request, int]], int]:
    """Writes down what a chunk brought for those who are still here.

    Returns:
      ((request, engine's reason) of all that are finished; tokens credited).
    """
    rows = owners.rows
    here = (rows >= 0) & (self._tenancies[rows] == owners.tenancies)
    counts = np.where(here, chunk.count, 0)
    rows = np.where(here, rows, 0)
    steps = np.arange(chunk.tokens.shape[1])
    drawn = steps < counts[:, None]
    width = self._buffers.token_ids.shape[1]
    start = rows * width + self._num_drawn[rows]
    index = (start[:, None] + steps)[drawn]
    token_ids, logprobs, versions = (x.reshape(-1) for x in self._buffers)
    token_ids[index] = chunk.tokens[drawn]
    logprobs[index] = chunk.logprobs[drawn]
    versions[index] = version
    self._num_drawn[rows[here]] += counts[here]
    for row in rows[(counts > 0) & ~chunk.done]:
      request = self._requests[row]
      request.num_failures = 0
      if request.stream.wants_pieces:
        self._send(request, row)
    done = np.flatnonzero(here & chunk.done)
    finished = [(self._requests[rows[b]], int(chunk.reason[b])) for b in done]
    return finished, int(counts.sum())

  def drawn(self, request: Request) -> Drawn:
    """A copy of what a request has drawn, here and before."""
    row = self._row_of.get(request)
    if row is None:
      return request.drawn
    n = self._num_drawn[row]
    return Drawn(*(buffer[row, :n].copy() for buffer in self._buffers))

  def leave(self, request: Request) -> None:
    """Ends a stay, if there is one: frees row, slot and pages."""
    row = self._row_of.pop(request, None)
    if row is None:
      return
    if self._slots[row] >= 0:
      self._killed[self._slots[row]] = True
      self._leave_slot(self._slots[row])
    self._requests[row] = None
    self._tenancies[row] = 0
    self._free_rows.append(row)

  def _leave_slot(self, slot: int) -> None:
    part = int(slot) // self._slots_per_part
    used = self._tables[slot, : self._num_pages[slot]]
    self._pools[part].give_back(used)
    used[:] = 0
    self._num_pages[slot] = self._reach[slot] = self._limit[slot] = 0
    self._prefixes[slot] = None
    self._slots[self._rows[slot]] = -1
    self._rows[slot] = -1

  def _send(self, request: Request, row: int) -> None:
    start, end = request.num_sent, self._num_drawn[row]
    if end > start:
      request.stream.push(
        Drawn(*(buffer[row, start:end].copy() for buffer in self._buffers))
      )
      request.num_sent = int(end)

  def _pages_of(self, num_entries):
    return -(-num_entries // self._page_size)

  def _slots_of(self, part: int) -> slice:
    return slice(part * self._slots_per_part, (part + 1) * self._slots_per_part)

  def _sibling(self, part: int, prefix: Prefix) -> int | None:
    """A slot of a part that was filled from the same prefix."""
    slots = self._slots_of(part)
    for slot in range(slots.start, slots.stop):
      if self._prefixes[slot] is prefix:
        return slot
    return None

  def _age(self, slot: int) -> int:
    return self._requests[self._rows[slot]].number
