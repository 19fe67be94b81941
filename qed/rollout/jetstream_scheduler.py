"""JetStream's driver with the calls of `scheduler.Scheduler`."""

from __future__ import annotations

import collections
import logging
import math
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np

from qed.rollout import engine as engines
from qed.rollout import replacement, requests
from qed.rollout.jetstream import Adapter, Driver
from qed.rollout.jetstream_records import Holder, Request, Weights
from qed.types import FinishReason, SamplingParams

_MAX_RESTARTS = 5
_MAX_FAILURES = 3
_POLL_SECS = 0.05


class Orchestrator:
  """JetStream's driver with the calls of `scheduler.Scheduler`."""

  def __init__(self, engine: engines.Engine, params: Any, *, version: int = 0):
    """Starts JetStream's threads.

    Args:
      engine: warmed up.
      params: its weights; whoever gives them must not donate them.
      version: theirs.

    Raises:
      ValueError: the engine's cache is too small for JetStream.
    """
    self._engine = engine
    self._holder = Holder(Weights(params, version))
    self._facts = replacement.facts(params)
    self._lock = threading.RLock()
    self._open: dict[int, Request] = {}
    self._counts: collections.Counter[str] = collections.Counter()
    self._num_submitted = 0
    self._num_restarts_in_row = 0
    self._is_closed = False
    self._failure: Exception | None = None
    self._errors: list[tuple[Any, Exception]] = []
    self._wake = threading.Event()
    self._adapter = Adapter(engine, self._holder)
    self._driver = Driver(self._adapter, self._failed)
    self._warden = threading.Thread(
      target=self._watch, name='qed-jetstream', daemon=True
    )
    self._warden.start()

  @property
  def version(self) -> int:
    """Of the weights in effect."""
    return self._holder.weights.version

  @property
  def failure(self) -> Exception | None:
    """Why it gave up, if it did."""
    return self._failure

  def submit(
    self,
    token_ids: np.ndarray,
    sampling_params: SamplingParams,
    *,
    group: Hashable | None = None,
    deadline_secs: float | None = None,
  ) -> requests.Stream:
    """Queues a request; see `Scheduler.submit`.

    Raises:
      ValueError: engine or JetStream cannot serve it.
      RuntimeError: closed, or the engine failed for good.
    """
    prompt = requests.check(
      token_ids,
      sampling_params,
      self._engine.layout,
      vocab_size=self._engine.config.vocab_size,
      num_parts=self._engine.num_parts,
    )
    # A request that goes on after a failure reads what it drew once more.
    length = len(prompt) + sampling_params.max_tokens - 1
    if length > self._adapter.max_prefill_length:
      raise ValueError(
        f'prompt and max_tokens are {length + 1} tokens, JetStream takes '
        f'{self._adapter.max_prefill_length + 1}'
      )
    with self._lock:
      if self._failure is not None or self._is_closed:
        raise RuntimeError(
          f'the engine failed for good: {self._failure}'
          if self._failure
          else 'the orchestrator is closed'
        )
      number = self._num_submitted
      self._num_submitted += 1
      secs = math.inf if deadline_secs is None else deadline_secs
      request = Request(
        number=number,
        prompt=prompt,
        params=sampling_params,
        key=number if group is None else group,
        deadline=time.monotonic() + secs,
        stream=requests.Stream(lambda: self._cancel(number)),
        finished=self._finish,
      )
      self._open[number] = request
      self._driver.place(request)
    return request.stream

  def update_weights(self, params: Any, version: int) -> Future:
    """Has every chunk that starts from now on drawn with other weights.

    Raises:
      ValueError: another tree, shape, dtype or sharding.
      RuntimeError: closed, or the engine failed for good.
    """
    replacement.check(params, self._facts)
    if self._failure is not None or self._is_closed:
      raise RuntimeError('the orchestrator is closed')
    self._holder.weights = Weights(params, version)
    self._counts['swaps'] += 1
    future: Future = Future()
    future.set_result(version)
    return future

  def stats(self) -> dict[str, float]:
    """Counters and gauges, under the names that the scheduler gives them."""
    counts = self._counts + self._adapter.counts
    names = ('submitted', 'tokens', 'prefills', 'chunks', 'restarts', 'swaps')
    busy = [x for x in self._open.copy().values() if x.slot is not None]
    return {
      **{f'{name}_total': float(counts[name]) for name in names},
      **{
        f'finished_{reason}_total': float(counts[reason])
        for reason in ('stop', 'length', 'abort', 'error')
      },
      'submitted_total': float(self._num_submitted),
      'slots': float(self._engine.layout.num_slots),
      'slots_busy': float(len(busy)),
      'queue': float(len(self._open) - len(busy)),
      'open': float(len(self._open)),
      'version': float(self.version),
      'compilations_total': float(self._engine.num_compilations),
      'failed': float(self._failure is not None),
    }

  def close(self, deadline_secs: float) -> None:
    """Refuses new requests, lets open ones finish, aborts the others."""
    with self._lock:
      self._is_closed = True
    end = time.monotonic() + deadline_secs
    while self._open and time.monotonic() < end:
      time.sleep(_POLL_SECS)
    self._wake.set()
    self._warden.join()
    for request in list(self._open.values()):
      self._finish(request, 'abort')
    self._driver.stop()

  # What happens to requests; on any thread.

  def _finish(self, request: Request, reason: FinishReason) -> None:
    with self._lock:
      if self._open.pop(request.number, None) is None:
        return
      self._counts[reason] += 1
      self._counts['tokens'] += len(request.drawn.token_ids)
      if reason in ('stop', 'length'):
        self._num_restarts_in_row = 0
    request.stream.finish(request.drawn, reason)

  def _cancel(self, number: int) -> None:
    """Ends a request now; its slot is free when its next tokens come."""
    with self._lock:
      request = self._open.get(number)
      if request is None:
        return
      # Before it is done, as its slot may then have another owner.
      if request.slot is not None:
        self._adapter.kill(request.slot)
      self._finish(request, 'abort')

  # Failures and deadlines.

  def _failed(self, driver: Any, error: Exception) -> None:
    """A thread of JetStream ended; it cannot mend that itself."""
    self._errors.append((driver, error))
    self._wake.set()

  def _watch(self) -> None:
    while True:
      self._wake.wait(_POLL_SECS)
      now = time.monotonic()
      for request in list(self._open.values()):
        if request.deadline <= now:
          self._cancel(request.number)
      errors, self._errors = self._errors, []
      errors = [e for driver, e in errors if driver is self._driver]
      if errors and self._failure is None:
        self._restart(errors[0])
      if self._is_closed and (self._wake.is_set() or not self._open):
        return
      self._wake.clear()

  def _restart(self, error: Exception) -> None:
    """A new driver goes on with every request from what it has."""
    logging.warning('JetStream failed and is started again', exc_info=error)
    self._driver.stop()
    with self._lock:
      self._counts['restarts'] += 1
      self._num_restarts_in_row += 1
      gives_up = self._num_restarts_in_row > _MAX_RESTARTS
      if gives_up:
        self._failure = error
      for request in list(self._open.values()):
        request.num_failures += request.slot is not None
        if gives_up or request.num_failures >= _MAX_FAILURES:
          self._finish(request, 'error')
      if gives_up:
        return
      self._counts.update(self._adapter.counts)
      self._adapter = Adapter(self._engine, self._holder)
      self._driver = Driver(self._adapter, self._failed)
      for request in self._open.values():
        self._driver.place(request)
