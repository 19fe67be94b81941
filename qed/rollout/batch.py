"""What the engine is working on, and for whom: the turns of its thread.

A turn:

1. admit who has waited longest, as long as there are slots and pages;
2. start a chunk; remember with it whose tokens it brings, under which version;
3. read the chunk before it, credit the tokens, tell who is finished.

So the device works on one chunk while the host sees to the one before (`lag`).
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qed.rollout import engine as engines
from qed.rollout.failures import is_on_trial
from qed.rollout.requests import Drawn, Request
from qed.rollout.tenants import Owners, Tenants
from qed.rollout.waiting import Waiting
from qed.rollout.watchdog import Watchdog
from qed.types import FinishReason

_REASONS: dict[int, FinishReason] = {
  engines.STOP: 'stop',
  engines.LENGTH: 'length',
}


class _Started(NamedTuple):
  """A chunk that the device works on."""

  chunk: Any
  owners: Owners
  version: int
  has_queue: bool  # Whether somebody waited when it was started.
  at: float


class _Reading(NamedTuple):
  """A prompt that is being read, piece by piece."""

  request: Request
  pieces: Iterator[engines.Prefix | None]


class Batch:
  """Who waits, who sits in a slot, and the chunks under way; for one thread."""

  def __init__(
    self,
    engine: engines.Engine,
    params: Any,
    *,
    version: int,
    lag: int,
    max_prefill_tokens: int,
    max_prefixes: int,
    watch: Watchdog,
    finish: Callable[[Request, FinishReason], None],
  ):
    """Nobody is here.

    Args:
      engine: as for `Scheduler`, and so is what is not explained here.
      params: its weights.
      version: of these weights.
      lag: chunks that are started before the oldest is read.
      max_prefill_tokens: that are read between two chunks.
      max_prefixes: that are kept.
      watch: is told how long chunks take.
      finish: called with a request whose last token was credited; it has to
        call `leave`.
    """
    self._engine, self._params, self.version = engine, params, version
    self._lag, self._max_prefill_tokens = lag, max_prefill_tokens
    self._num_steps = engine.layout.steps_per_chunk
    self._piece_size = engine.layout.prefill_buckets[-1]
    self._watch, self._finish = watch, finish
    self._read_at = 0.0
    self.waiting = Waiting(max_prefixes)
    self.counts: collections.Counter[str] = collections.Counter()
    self._clear()

  @property
  def suspects(self) -> list[Request]:
    """Those that the engine worked on, as far as can be told."""
    return self._suspects or self.tenants.requests()

  def turn(self) -> None:
    """Admits, starts a chunk, and reads those that are due."""
    if self._state is None:
      self._state = self._engine.init_state()
    self._admit()
    is_running = self._generate()
    while len(self._started) > (self._lag if is_running else 0):
      self._read_chunk()

  def join(self, request: Request) -> None:
    """Takes a new request in."""
    self.counts['requests'] += 1
    self.waiting.join(request)
    self.waiting.push(request)

  def leave(self, request: Request) -> Drawn:
    """Frees what a request has; what it drew."""
    drawn = self.tenants.drawn(request)
    self.tenants.leave(request)
    self.waiting.remove(request)
    self.waiting.part(request)
    if self._reading is not None and self._reading.request is request:
      self._reading = None
    return drawn

  def swap(self, params: Any, version: int) -> None:
    """Draws with other weights from the next chunk on."""
    self._params, self.version = params, version
    self.waiting.forget_prefixes()
    self._reading = None
    self.counts['swaps'] += 1

  def restart(self) -> None:
    """Starts anew on an empty device, with every request as far as it was."""
    self.counts['restarts'] += 1
    for request in self.tenants.requests():
      self._requeue(request)
    self.waiting.forget_prefixes()
    self._clear()

  def release(self) -> None:
    """Lets go of everything on the device, for good."""
    self._params = None
    self.waiting.forget_prefixes()
    self._clear()

  def _clear(self) -> None:
    """Nothing on the device, and nobody in a slot."""
    self._state = None
    self._reading: _Reading | None = None
    self._suspects: list[Request] = []
    self._started: collections.deque[_Started] = collections.deque()
    self.tenants = Tenants(
      self._engine.layout, num_parts=self._engine.num_parts, lag=self._lag
    )

  def _admit(self) -> None:
    """Gives slots to those who have waited longest."""
    is_busy = self.tenants.num_live or self._started
    allowance = self._max_prefill_tokens if is_busy else math.inf
    while request := (
      self._reading.request if self._reading else self.waiting.head()
    ):
      prefix = self.waiting.prefix(request)
      slot = self.tenants.find_slot(request, prefix, self._num_steps)
      if slot is None or self._is_trial():
        return
      while prefix is None:
        if allowance <= 0:
          return
        prefix = self._read_piece(request)
        allowance -= min(self._piece_size, len(request.prefix_ids()))
      self._insert(request, prefix)

  def _is_trial(self) -> bool:
    """Whether a request is on trial, so that nobody else may come in."""
    return any(is_on_trial(x) for x in self.tenants.requests())

  def _read_piece(self, request: Request) -> engines.Prefix | None:
    """Has one more piece of a prompt read; the prefix if it was the last."""
    self._suspects = [request]
    if self._reading is None:
      pieces = self._engine.prefill_pieces(self._params, request.prefix_ids())
      self._reading = _Reading(request, pieces)
    prefix = next(self._reading.pieces)
    self._suspects = []
    if prefix is None:
      return None
    self._reading = None
    self.waiting.keep(request, prefix)
    self.counts['prefills'] += 1
    self.counts['prompt_tokens'] += prefix.num_tokens
    return prefix

  def _insert(self, request: Request, prefix: engines.Prefix) -> None:
    """Puts a request into a slot, and those behind it that share its prefix."""
    slots = []
    while True:
      slot = self.tenants.find_slot(request, prefix, self._num_steps)
      if slot is None or self._is_trial():
        break
      self.tenants.enter(slot, request, prefix, self._num_steps)
      self.waiting.remove(request)
      slots.append(slot)
      self._suspects.append(request)
      key, is_fresh = request.key, request.is_fresh
      request = self.waiting.head()
      if request is None or not (is_fresh and request.is_fresh):
        break
      if request.key != key:
        break
    self._state = self._engine.insert(
      self._state, prefix, *self.tenants.insertions(slots, prefix)
    )
    self._suspects = []

  def _generate(self) -> bool:
    """Starts a chunk, if there is anybody to draw for."""
    while (part := self.tenants.extend(self._num_steps)) is not None:
      # Who is finished by now gives pages back.
      if self._started:
        self._read_chunk()
      else:
        self._retract(self.tenants.youngest(part))
    if not self.tenants.num_live:
      return False
    has_queue = len(self.waiting) > 0
    tables, killed, owners = self.tenants.start(self._num_steps)
    self._state, chunk = self._engine.generate(
      self._params, self._state, tables, killed
    )
    self._started.append(
      _Started(chunk, owners, self.version, has_queue, time.monotonic())
    )
    return True

  def _read_chunk(self) -> None:
    """Waits for the oldest chunk and hands out what it brought."""
    started = self._started[0]
    chunk = self._engine.read(started.chunk)
    self._started.popleft()
    now = time.monotonic()
    self._watch.chunk(now - max(self._read_at, started.at))
    self._read_at = now
    finished, num_tokens = self.tenants.credit(
      chunk, started.owners, started.version
    )
    for request, reason in finished:
      self._finish(request, _REASONS[reason])
    self.counts['chunks'] += 1
    for prefix in ('', 'queued_') if started.has_queue else ('',):
      self.counts[f'{prefix}tokens'] += num_tokens
      self.counts[f'{prefix}steps'] += chunk.tokens.size

  def _retract(self, request: Request) -> None:
    """Sends a request back to the queue with what it has drawn."""
    self.counts['retractions'] += 1
    self._requeue(request)

  def _requeue(self, request: Request) -> None:
    drawn = self.tenants.drawn(request)
    self.tenants.leave(request)
    request.drawn = drawn
    self.waiting.push(request)
