"""Drives the engine: requests in from any thread, tokens out as they come.

One thread owns the engine and all state. Its loop:

1. take commands: new requests, cancellations, new weights;
2. admit who has waited longest, as long as there are slots and pages;
3. start a chunk; remember with it whose tokens it brings, under which version;
4. read the chunk before it, credit the tokens, tell who is finished.

So the device works on one chunk while the host sees to the one before (`lag`).
Tokens live on the host and the key of each draw depends on the request alone,
so after a failure, or when pages run out, a request goes on from what it has
with the result that it would have had.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from qed.rollout import engine as engines
from qed.rollout import replacement, requests, watchdog
from qed.rollout.requests import Request, Stream
from qed.rollout.tenants import Owners, Tenants
from qed.rollout.waiting import Waiting
from qed.types import FinishReason, SamplingParams

_REASONS: dict[int, FinishReason] = {
  engines.STOP: 'stop',
  engines.LENGTH: 'length',
}
# Failures of the engine: in a row, and with one request present.
_MAX_RESTARTS = 5
_MAX_FAILURES = 3
# What a turn that has begun may still take when the scheduler is closed.
_CLOSE_SECS = 30.0


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


class Scheduler:
  """Continuous batching over one engine; a context that closes at its end.

  All public methods may be called from any thread.
  """

  def __init__(
    self,
    engine: engines.Engine,
    params: Any,
    *,
    version: int = 0,
    lag: int = 1,
    max_prefill_tokens: int = 4096,
    max_prefixes: int = 16,
    stall_secs: float = 60.0,
    compile_secs: float = 1800.0,
  ):
    """Starts the thread.

    Args:
      engine: warmed up, or it compiles as requests come.
      params: its weights; whoever gives them must not donate them.
      version: of these weights.
      lag: chunks that are started before the oldest is read; 0 or more.
      max_prefill_tokens: prompt tokens that are read between two chunks while
        something runs; a longer prompt is read in several turns.
      max_prefixes: prompts of groups whose keys and values are kept beside the
        pages, for members still to come.
      stall_secs: a turn that takes longer is reported; or one longer than many
        times the median, if that is more.
      compile_secs: the same, until the first chunk was read.
    """
    self._engine, self._params, self._version = engine, params, version
    self._facts = replacement.facts(params)
    self._lag, self._max_prefill_tokens = lag, max_prefill_tokens
    self._num_steps = engine.layout.steps_per_chunk
    self._piece_size = engine.layout.prefill_buckets[-1]
    self._waiting = Waiting(max_prefixes)
    self._new_tenants()
    self._counts: collections.Counter[str] = collections.Counter()
    self._num_restarts_in_row = 0
    self._blamed: list[Request] = []
    self._read_at = 0.0
    # Shared with other threads.
    self._lock = threading.Lock()
    self._commands: queue.SimpleQueue = queue.SimpleQueue()
    self._numbers = itertools.count()
    self._open: dict[int, Request] = {}
    self._updates: set[Future] = set()
    self._deadlines: list[tuple[float, int]] = []
    self._closing_at: float | None = None
    self._failure: Exception | None = None
    self._thread = threading.Thread(
      target=self._main, name='qed-scheduler', daemon=True
    )
    self._watch = watchdog.Watchdog(
      self._thread, stall_secs=stall_secs, compile_secs=compile_secs
    )
    self._thread.start()

  # For any thread.

  def __enter__(self) -> Scheduler:
    return self

  def __exit__(self, *exception) -> None:
    self.close(0.0)

  @property
  def version(self) -> int:
    """Of the weights in effect."""
    return self._version

  @property
  def failure(self) -> Exception | None:
    """Why the scheduler gave up, if it did."""
    return self._failure

  def submit(
    self,
    token_ids: np.ndarray,
    sampling_params: SamplingParams,
    *,
    group: Hashable | None = None,
    deadline_secs: float | None = None,
  ) -> Stream:
    """Queues a request and returns at once.

    Args:
      token_ids: the prompt, int [n].
      sampling_params: how to complete it. The completion depends on prompt,
        parameters and weights alone.
      group: requests with equal group and prompt share one prefill, as long
        as one of them is open and the weights are the same.
      deadline_secs: from now; then it ends with 'abort' and what it has.

    Raises:
      ValueError: the engine cannot serve it; nothing is queued.
      RuntimeError: closed, or the engine failed for good.
    """
    prompt = requests.check(
      token_ids,
      sampling_params,
      self._engine.layout,
      vocab_size=self._engine.config.vocab_size,
      num_parts=self._engine.num_parts,
    )
    number = next(self._numbers)
    stream = Stream(lambda: self._commands.put((self._cancel, number)))
    request = Request(
      number=number,
      prompt=prompt,
      params=sampling_params,
      has_group=group is not None,
      key=number if group is None else (group, prompt.tobytes()),
      deadline=math.inf
      if deadline_secs is None
      else time.monotonic() + deadline_secs,
      stream=stream,
    )
    with self._lock:
      self._check_open()
      self._open[number] = request
      self._commands.put((self._enqueue, request))
    return stream

  def update_weights(self, params: Any, version: int) -> Future:
    """Has all tokens drawn with other weights, from the next chunk on.

    Running requests keep what is in their cache; prompts that were read for
    members still to come are read again.

    Args:
      params: weights like those in use; they must not be donated.
      version: of these weights. Within a run of the trainer it grows; a trainer
        that restarts from an earlier checkpoint comes with an earlier one.

    Returns:
      A future of the version, done once it is in effect.

    Raises:
      ValueError: another tree, shape, dtype or sharding, or a version below 0.
      RuntimeError: closed, or the engine failed for good.
    """
    if version < 0:
      raise ValueError(f'version: expected a step from 0 on, got {version}')
    replacement.check(params, self._facts)
    future: Future = Future()
    with self._lock:
      self._check_open()
      self._updates.add(future)
      self._commands.put((self._swap, params, version, future))
    return future

  def stats(self) -> dict[str, float]:
    """Counters (since the start) and gauges (now); each name says which.

    `occupancy` is the share of all slot-steps that drew a token that somebody
    got; `occupancy_queued` the same over chunks that were started while
    somebody waited.
    """
    counts, tenants = self._counts, self._tenants
    values = {f'{name}_total': float(counts[name]) for name in _COUNTERS}
    values |= {
      f'finished_{reason}_total': float(counts[reason])
      for reason in ('stop', 'length', 'abort', 'error')
    }
    return values | {
      'slots': float(self._engine.layout.num_slots),
      'slots_busy': float(tenants.num_live),
      'occupancy': counts['tokens'] / max(counts['steps'], 1),
      'occupancy_queued': counts['queued_tokens']
      / max(counts['queued_steps'], 1),
      'queue': float(len(self._waiting)),
      'open': float(len(self._open)),
      'pages': float(tenants.num_pages),
      'pages_free': float(tenants.num_free_pages),
      'version': float(self._version),
      'compilations_total': float(self._engine.num_compilations),
      'failed': float(self._failure is not None),
      **self._watch.stats(),
    }

  def close(self, deadline_secs: float) -> None:
    """Refuses new requests, finishes the open ones, stops the thread.

    Args:
      deadline_secs: what is not finished by then ends with 'abort'.
    """
    with self._lock:
      if self._closing_at is None:
        self._closing_at = time.monotonic() + deadline_secs
      self._commands.put((lambda: None,))
    self._thread.join(deadline_secs + _CLOSE_SECS)
    if self._thread.is_alive():
      logging.error('the engine does not return; its requests are aborted')
      self._end_all('abort')
    self._watch.stop()

  def _check_open(self) -> None:
    if self._failure is not None:
      raise RuntimeError(
        f'the engine failed for good: {self._failure}'
      ) from self._failure
    if self._closing_at is not None:
      raise RuntimeError('the scheduler is closed')

  # The thread.

  def _main(self) -> None:
    try:
      while self._take_commands():
        try:
          self._turn()
        except Exception as error:
          self._recover(error)
    except Exception as error:
      logging.critical('the scheduler gives up', exc_info=True)
      self._failure = error
    finally:
      self._end_all('abort' if self._failure is None else 'error')
      # Nothing of the device is held by a scheduler that stands still.
      self._params = None
      self._new_tenants()
      self._waiting.forget_prefixes()
      self._watch.stop()

  def _take_commands(self) -> bool:
    """Does what others asked for; False when it is time to end."""
    timeout = 0.0
    if not self._open:
      # Commands to come wake it up, and the closing is one of them.
      timeout = None if self._closing_at is None else 0.0
    self._do_commands(timeout)
    now = time.monotonic()
    while self._deadlines and self._deadlines[0][0] <= now:
      self._cancel(heapq.heappop(self._deadlines)[1])
    if self._closing_at is None:
      return True
    with self._lock:
      return bool(self._open) and now < self._closing_at

  def _do_commands(self, timeout: float | None) -> None:
    """Waits for the first command, not for those behind it."""
    try:
      if timeout == 0.0:
        function, *args = self._commands.get_nowait()
      else:
        function, *args = self._commands.get(timeout=timeout)
      while True:
        function(*args)
        function, *args = self._commands.get_nowait()
    except queue.Empty:
      return

  def _turn(self) -> None:
    self._watch.begin()
    if self._state is None:
      self._state = self._engine.init_state()
    self._admit()
    is_running = self._generate()
    while len(self._started) > (self._lag if is_running else 0):
      self._read_chunk()
    self._watch.end()

  def _admit(self) -> None:
    """Gives slots to those who have waited longest."""
    is_busy = self._tenants.num_live or self._started
    allowance = self._max_prefill_tokens if is_busy else math.inf
    while request := (
      self._reading.request if self._reading else self._waiting.head()
    ):
      prefix = self._waiting.prefix(request)
      slot = self._tenants.find_slot(request, prefix, self._num_steps)
      if slot is None or self._is_trial():
        return
      while prefix is None:
        if allowance <= 0:
          return
        prefix = self._read_piece(request)
        allowance -= min(self._piece_size, len(request.prefix_ids()))
      self._insert(request, prefix)

  def _is_trial(self) -> bool:
    """Whether a request is on trial, so that nobody else may come in.

    Who was present in all but the last of the failures that are allowed comes
    in as the only such one, and has to draw a token first. A failure is then
    its own, and those who were merely present go on.
    """
    return any(_is_on_trial(x) for x in self._tenants.requests())

  def _read_piece(self, request: Request) -> engines.Prefix | None:
    """Has one more piece of a prompt read; the prefix if it was the last."""
    self._blamed = [request]
    if self._reading is None:
      pieces = self._engine.prefill_pieces(self._params, request.prefix_ids())
      self._reading = _Reading(request, pieces)
    prefix = next(self._reading.pieces)
    self._blamed = []
    if prefix is None:
      return None
    self._reading = None
    self._waiting.keep(request, prefix)
    self._counts['prefills'] += 1
    self._counts['prompt_tokens'] += prefix.num_tokens
    return prefix

  def _insert(self, request: Request, prefix: engines.Prefix) -> None:
    """Puts a request into a slot, and those behind it that share its prefix."""
    slots = []
    while True:
      slot = self._tenants.find_slot(request, prefix, self._num_steps)
      if slot is None or self._is_trial():
        break
      self._tenants.enter(slot, request, prefix, self._num_steps)
      self._waiting.remove(request)
      slots.append(slot)
      self._blamed.append(request)
      key, is_fresh = request.key, request.is_fresh
      request = self._waiting.head()
      if request is None or not (is_fresh and request.is_fresh):
        break
      if request.key != key:
        break
    self._state = self._engine.insert(
      self._state, prefix, *self._tenants.insertions(slots, prefix)
    )
    self._blamed = []

  def _generate(self) -> bool:
    """Starts a chunk, if there is anybody to draw for."""
    while (part := self._tenants.extend(self._num_steps)) is not None:
      # Who is finished by now gives pages back.
      if self._started:
        self._read_chunk()
      else:
        self._retract(self._tenants.youngest(part))
    if not self._tenants.num_live:
      return False
    has_queue = len(self._waiting) > 0
    tables, killed, owners = self._tenants.start(self._num_steps)
    self._state, chunk = self._engine.generate(
      self._params, self._state, tables, killed
    )
    self._started.append(
      _Started(chunk, owners, self._version, has_queue, time.monotonic())
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
    finished, num_tokens = self._tenants.credit(
      chunk, started.owners, started.version
    )
    for request, reason in finished:
      self._finish(request, _REASONS[reason])
    self._num_restarts_in_row = 0
    self._counts['chunks'] += 1
    for prefix in ('', 'queued_') if started.has_queue else ('',):
      self._counts[f'{prefix}tokens'] += num_tokens
      self._counts[f'{prefix}steps'] += chunk.tokens.size

  def _retract(self, request: Request) -> None:
    """Sends a request back to the queue with what it has drawn."""
    self._counts['retractions'] += 1
    self._requeue(request)

  def _requeue(self, request: Request) -> None:
    drawn = self._tenants.drawn(request)
    self._tenants.leave(request)
    request.drawn = drawn
    self._waiting.push(request)

  def _recover(self, error: Exception) -> None:
    """Starts anew on an empty device, with every request as far as it was."""
    self._num_restarts_in_row += 1
    self._counts['restarts'] += 1
    present = self._tenants.requests()
    blamed = self._blamed or present
    logging.error(
      'the engine failed with %d requests; restart %d in a row',
      len(present),
      self._num_restarts_in_row,
      exc_info=error,
    )
    if self._num_restarts_in_row >= _MAX_RESTARTS:
      raise RuntimeError(
        f'the engine failed {_MAX_RESTARTS} times in a row, at last with: '
        f'{error}'
      ) from error
    for request in present:
      self._requeue(request)
    self._waiting.forget_prefixes()
    self._new_tenants()
    for request in blamed:
      request.num_failures += 1
      if request.num_failures >= _MAX_FAILURES:
        self._finish(request, 'error')

  def _new_tenants(self) -> None:
    """Nothing on the device, and nobody in a slot."""
    self._state = None
    self._reading: _Reading | None = None
    self._blamed = []
    self._started: collections.deque[_Started] = collections.deque()
    self._tenants = Tenants(
      self._engine.layout, num_parts=self._engine.num_parts, lag=self._lag
    )

  # Commands.

  def _enqueue(self, request: Request) -> None:
    self._counts['requests'] += 1
    self._waiting.join(request)
    self._waiting.push(request)
    if request.deadline < math.inf:
      heapq.heappush(self._deadlines, (request.deadline, request.number))

  def _cancel(self, number: int) -> None:
    request = self._open.get(number)
    if request is not None:
      self._finish(request, 'abort')

  def _swap(self, params: Any, version: int, future: Future) -> None:
    self._updates.discard(future)
    if not future.set_running_or_notify_cancel():
      return
    self._params, self._version = params, version
    self._waiting.forget_prefixes()
    self._reading = None
    self._counts['swaps'] += 1
    future.set_result(version)

  # The end of requests.

  def _finish(self, request: Request, reason: FinishReason) -> None:
    """Tells a request's end and frees what it has; once."""
    drawn = self._tenants.drawn(request)
    self._tenants.leave(request)
    self._waiting.remove(request)
    self._waiting.part(request)
    if self._reading is not None and self._reading.request is request:
      self._reading = None
    with self._lock:
      self._open.pop(request.number, None)
    if request.stream.finish(drawn, reason):
      self._counts[reason] += 1

  def _end_all(self, reason: FinishReason) -> None:
    with self._lock:
      self._closing_at = self._closing_at or time.monotonic()
      still_open, self._open = list(self._open.values()), {}
      updates, self._updates = self._updates, set()
    for request in still_open:
      if request.stream.finish(self._tenants.drawn(request), reason):
        self._counts[reason] += 1
    for future in updates:
      if future.set_running_or_notify_cancel():
        future.set_exception(
          RuntimeError('the scheduler ended before the weights took effect')
        )


_COUNTERS = (
  'requests',
  'tokens',
  'prompt_tokens',
  'prefills',
  'chunks',
  'swaps',
  'restarts',
  'retractions',
)


def _is_on_trial(request: Request) -> bool:
  return request.num_failures >= _MAX_FAILURES - 1
