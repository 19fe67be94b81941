"""Drives the engine: requests in from any thread, tokens out as they come.

One thread owns the engine and all state. Between two turns of `batch` it does
what others asked for: new requests, cancellations, other weights. Tokens live
on the host and the key of each draw depends on the request alone, so after a
failure, or when pages run out, a request goes on from what it has with the
result that it would have had.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np

from qed.rollout import engine as engines
from qed.rollout import replacement, requests
from qed.rollout.batch import Batch
from qed.rollout.failures import Failures
from qed.rollout.requests import Request, Stream
from qed.rollout.watchdog import Watchdog
from qed.types import FinishReason, SamplingParams

# What a turn that has begun may still take when the scheduler is closed.
_CLOSE_SECS = 30.0


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
    self._engine, self._facts = engine, replacement.facts(params)
    self._failures = Failures()
    self._deadlines: list[tuple[float, int]] = []
    # Shared with other threads.
    self._lock = threading.Lock()
    self._commands: queue.SimpleQueue = queue.SimpleQueue()
    self._numbers = itertools.count()
    self._open: dict[int, Request] = {}
    self._updates: set[Future] = set()
    self._closing_at: float | None = None
    self._failure: Exception | None = None
    self._thread = threading.Thread(
      target=self._main, name='qed-scheduler', daemon=True
    )
    self._watch = Watchdog(
      self._thread, stall_secs=stall_secs, compile_secs=compile_secs
    )
    self._batch = Batch(
      engine,
      params,
      version=version,
      lag=lag,
      max_prefill_tokens=max_prefill_tokens,
      max_prefixes=max_prefixes,
      watch=self._watch,
      finish=self._finish,
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
    return self._batch.version

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
    batch, counts = self._batch, self._batch.counts
    values = {f'{name}_total': float(counts[name]) for name in _COUNTERS}
    values |= {
      f'finished_{reason}_total': float(counts[reason])
      for reason in ('stop', 'length', 'abort', 'error')
    }
    return values | {
      'slots': float(self._engine.layout.num_slots),
      'slots_busy': float(batch.tenants.num_live),
      'occupancy': counts['tokens'] / max(counts['steps'], 1),
      'occupancy_queued': counts['queued_tokens']
      / max(counts['queued_steps'], 1),
      'queue': float(len(batch.waiting)),
      'open': float(len(self._open)),
      'pages': float(batch.tenants.num_pages),
      'pages_free': float(batch.tenants.num_free_pages),
      'version': float(batch.version),
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
          with self._watch.turn():
            self._batch.turn()
        except Exception as error:
          self._recover(error)
    except Exception as error:
      logging.critical('the scheduler gives up', exc_info=True)
      self._failure = error
    finally:
      self._end_all('abort' if self._failure is None else 'error')
      # Nothing of the device is held by a scheduler that stands still.
      self._batch.release()
      self._watch.stop()

  def _recover(self, error: Exception) -> None:
    """Goes on without those whose fault it seems to be."""
    batch = self._batch
    logging.error(
      'the engine failed with %d requests',
      len(batch.tenants.requests()),
      exc_info=error,
    )
    lost = self._failures.blame(error, batch.suspects, batch.counts['chunks'])
    batch.restart()
    for request in lost:
      self._finish(request, 'error')

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

  # Commands.

  def _enqueue(self, request: Request) -> None:
    self._batch.join(request)
    if request.deadline < math.inf:
      heapq.heappush(self._deadlines, (request.deadline, request.number))

  def _cancel(self, number: int) -> None:
    request = self._open.get(number)
    if request is not None:
      self._finish(request, 'abort')

  def _swap(self, params: Any, version: int, future: Future) -> None:
    self._updates.discard(future)
    if future.set_running_or_notify_cancel():
      self._batch.swap(params, version)
      future.set_result(version)

  # The end of requests.

  def _finish(self, request: Request, reason: FinishReason) -> None:
    """Tells a request's end and frees what it has; once."""
    drawn = self._batch.leave(request)
    with self._lock:
      self._open.pop(request.number, None)
    if request.stream.finish(drawn, reason):
      self._batch.counts[reason] += 1

  def _end_all(self, reason: FinishReason) -> None:
    with self._lock:
      self._closing_at = self._closing_at or time.monotonic()
      still_open, self._open = list(self._open.values()), {}
      updates, self._updates = self._updates, set()
    for request in still_open:
      if request.stream.finish(self._batch.tenants.drawn(request), reason):
        self._batch.counts[reason] += 1
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
