"""Our engine under the orchestrator of google-jetstream 0.2.2.

`Adapter` is the engine as JetStream's interface has it, and `Orchestrator` has
JetStream's driver do what our `scheduler.Scheduler` does. It shows that the two
fit; it is the slower way, at some microseconds of Python per token and slot.
The package is archived, needs TensorFlow, and stays out of the core: nothing
else imports it, and this module only where a config asks for it.

What 0.2.2 lacks is put in from outside, its driver's code staying as it is:

* `jax.tree_map`, which it calls, is no more: it is brought back;
* its interface has no sampling parameters: they wait in the order in which its
  one prefill thread takes requests;
* log-probs and finish reasons travel in columns that it does not look at, the
  policy version with them; the function that reads them is replaced;
* weights are read once: it gets a holder, whose content is exchanged;
* a thread that fails kills the process: it reports instead, and a new driver
  goes on with every request from the tokens it has;
* a prompt is cut in silence beyond 32,768 tokens: it is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import math
import threading
import time
import types as python_types
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from qed.rollout import engine as engines
from qed.rollout import replacement, requests
from qed.types import FinishReason, SamplingParams

_LOG_LEVEL, _LOG_HANDLERS = logging.root.level, logging.root.handlers[:]
from jetstream.core import orchestrator  # noqa: E402
from jetstream.engine import engine_api, token_utils  # noqa: E402

# Its import turns on everybody's debug logs.
logging.root.setLevel(_LOG_LEVEL)
logging.root.handlers[:] = _LOG_HANDLERS

_REASONS: dict[int, FinishReason] = {
  engines.STOP: 'stop',
  engines.LENGTH: 'length',
}
_PREFILL_LENGTHS = tuple(2**i for i in range(4, 16))
_MAX_RESTARTS = 5
_MAX_FAILURES = 3
_POLL_SECS = 0.05


class Weights(NamedTuple):
  """What the holder holds: replaced as a whole, so never half of it."""

  params: Any
  version: int


@dataclasses.dataclass(slots=True, eq=False)
class Holder:
  """Stands for the weights in JetStream's hands."""

  weights: Weights


class Sample(NamedTuple):
  """What a chunk brought one request."""

  token_ids: np.ndarray  # int32 [n]
  logprobs: np.ndarray  # float32 [n]
  version: int
  reason: int


@struct.dataclass
class Tokens(engine_api.ResultTokens):
  """A chunk, with the version that drew it."""

  version: int = struct.field(pytree_node=False, default=0)

  def convert_to_numpy(self) -> Tokens:
    """Waits for the chunk; the base class would forget the version."""
    return self.replace(data=np.asarray(self.data))


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Request:
  """A request, and the channel that JetStream answers it through."""

  number: int
  prompt: np.ndarray  # int32 [n]
  params: SamplingParams
  key: Hashable  # Of requests that share a prefill.
  deadline: float  # By time.monotonic; inf: none.
  stream: requests.Stream
  finished: Any  # Called with the request and its reason.
  drawn: requests.Drawn = requests.NOTHING
  slot: int | None = None
  active: Any = None  # JetStream's record of it.
  num_failures: int = 0

  def add_result(self, samples: list[Sample]) -> None:
    """JetStream has tokens for it."""
    (sample,) = samples
    versions = np.full(len(sample.token_ids), sample.version, np.int32)
    piece = requests.Drawn(sample.token_ids, sample.logprobs, versions)
    if not self.stream.is_done:
      self.drawn = requests.Drawn(
        *map(np.concatenate, zip(self.drawn, piece, strict=True))
      )
      self.stream.push(piece)
    if sample.reason != engines.NONE:
      self.finished(self, _REASONS[sample.reason])
    if self.stream.is_done:  # By now, or because it was canceled.
      self.active.complete[:] = True

  def close(self) -> None:
    """JetStream has no more; the last sample said why."""


class Adapter(engine_api.Engine):
  """Our engine behind JetStream's abstract one; every slot has its pages."""

  def __init__(self, engine: engines.Engine):
    """Wraps an engine that is warmed up.

    Raises:
      ValueError: its cache does not hold the longest request in every slot,
        which JetStream takes for granted.
    """
    layout = engine.layout
    slots_per_part = layout.num_slots // engine.num_parts
    pages_per_part = layout.num_pages // engine.num_parts
    if slots_per_part * layout.max_pages >= pages_per_part:
      least = layout.num_slots * layout.max_pages + engine.num_parts
      raise ValueError(
        f"driver = 'jetstream': expected at least {least} pages, so that every "
        f'slot may hold max_length tokens, got num_pages = {layout.num_pages}'
      )
    slots = np.arange(layout.num_slots)
    first = slots // slots_per_part * pages_per_part + 1
    first += slots % slots_per_part * layout.max_pages
    self._pages = (first[:, None] + np.arange(layout.max_pages)).astype(
      np.int32
    )
    self._engine = engine
    self._lock = threading.Lock()
    self._killed: set[int] = set()
    self._expected: collections.deque[Request] = collections.deque()
    self._prefix: tuple[Hashable, engines.Prefix] | None = None
    self.counts: collections.Counter[str] = collections.Counter()

  def expect(self, request: Request) -> None:
    """Announces what the next prefill that is not announced is for."""
    self._expected.append(request)

  def kill(self, slot: int) -> None:
    """Stops a slot at the next chunk, unless it has a new owner by then."""
    with self._lock:
      self._killed.add(slot)

  # What JetStream's driver calls.

  def load_params(self, *args: Any, **kwargs: Any) -> Holder:
    """Weights come through the holder that the driver was given."""
    raise NotImplementedError('pass a Holder to the driver')

  def init_decode_state(
    self, *args: Any, **kwargs: Any
  ) -> tuple[engines.DecodeState, np.ndarray]:
    """The engine's state, and on the host the pages of every slot."""
    return self._engine.init_state(), np.zeros_like(self._pages)

  def prefill(
    self,
    *,
    params: Holder,
    existing_prefix: Any = None,
    padded_tokens: Any,
    true_length: int,
  ) -> tuple[engines.Prefix, Request]:
    """Reads a prompt; a group's members share one prefix."""
    del existing_prefix
    request = self._expected.popleft()
    ids = np.asarray(padded_tokens)[:true_length]
    expected = np.concatenate([request.prompt, request.drawn.token_ids])
    if not np.array_equal(ids, expected):
      raise RuntimeError(
        f'expected the prompt of request {request.number}, {len(expected)} '
        f'tokens, from JetStream, got {len(ids)} others'
      )
    params, version = params.weights
    key = request.key, ids.tobytes(), version
    if self._prefix is None or self._prefix[0] != key:
      self._prefix = key, self._engine.prefill(params, ids)
      self.counts['prefills'] += 1
    return self._prefix[1], request

  def insert(
    self,
    prefix: tuple[engines.Prefix, Request],
    decode_state: tuple[engines.DecodeState, np.ndarray],
    slot: int,
  ) -> tuple[engines.DecodeState, np.ndarray]:
    """Puts a prompt into a slot, with room for all of its completion."""
    (read, request), (state, tables) = prefix, decode_state
    params, num_drawn = request.params, len(request.drawn.token_ids)
    budget = params.max_tokens - num_drawn
    num_pages = -(-(read.num_tokens + budget) // self._engine.layout.page_size)
    with self._lock:
      self._killed.discard(slot)
    request.slot = slot
    tables = tables.copy()
    tables[slot] = 0
    tables[slot, :num_pages] = self._pages[slot, :num_pages]
    insertion = engines.Insertion(
      slot=slot,
      seed=params.seed,
      num_drawn=num_drawn,
      budget=budget,
      temperature=params.temperature,
      top_p=params.top_p,
      top_k=params.top_k,
      stop_token_ids=params.stop_token_ids,
    )
    pages = self._pages[slot : slot + 1, : read.num_pages]
    return self._engine.insert(state, read, [insertion], pages), tables

  def generate(
    self,
    params: Holder,
    decode_state: tuple[engines.DecodeState, np.ndarray],
  ) -> tuple[tuple[engines.DecodeState, np.ndarray], Tokens]:
    """One chunk, with the weights that are in the holder now."""
    state, tables = decode_state
    params, version = params.weights
    killed = np.zeros(len(tables), bool)
    with self._lock:
      killed[list(self._killed)] = True
      self._killed.clear()
    state, chunk = self._engine.generate(params, state, tables, killed)
    self.counts['chunks'] += 1
    k = self._engine.layout.steps_per_chunk
    tokens = Tokens(
      data=chunk,
      tokens_idx=(0, k),
      valid_idx=(0, k),
      length_idx=(2 * k, 2 * k + 1),
      samples_per_slot=1,
      version=version,
    )
    return (state, tables), tokens

  def sample_of(self, tokens: Tokens, slot: int) -> Sample:
    """A slot's part of a chunk that was copied to the host."""
    chunk = self._engine.read(tokens.data[slot : slot + 1])
    count = int(chunk.count[0])
    return Sample(
      token_ids=chunk.tokens[0, :count].copy(),
      logprobs=chunk.logprobs[0, :count].copy(),
      version=tokens.version,
      reason=int(chunk.reason[0]),
    )

  def get_prefix_destination_sharding(self) -> None:
    """Prefill and generation share their devices: nothing moves."""

  def get_tokenizer(self) -> None:
    """Only ids go in and out."""

  def build_tokenizer(self, metadata: Any) -> Any:
    """What is asked of a tokenizer, were it to be asked."""
    del metadata
    return python_types.SimpleNamespace(
      adapter=self, bos_id=0, pad_id=0, eos_id=-1, stop_tokens=frozenset()
    )

  @property
  def max_concurrent_decodes(self) -> int:
    """Slots."""
    return self._engine.layout.num_slots

  @property
  def samples_per_slot(self) -> int:
    """One."""
    return 1

  @property
  def max_prefill_length(self) -> int:
    """The smallest of JetStream's lengths that holds every prompt."""
    limit = self._engine.layout.max_length - 1
    return next(
      (n for n in _PREFILL_LENGTHS if n >= limit), _PREFILL_LENGTHS[-1]
    )

  @property
  def mesh(self) -> Any:
    """The engine's; None on one device."""
    return self._engine.mesh

  @property
  def colocated_cpus(self) -> None:
    """Not used by the driver."""


class _Driver(orchestrator.Driver):
  """JetStream's driver, whose threads report a failure to somebody."""

  def __init__(self, adapter: Adapter, holder: Holder, failed: Any):
    self.failed = failed
    super().__init__(
      prefill_engines=[adapter],
      generate_engines=[adapter],
      prefill_params=[holder],
      generate_params=[holder],
      interleaved_mode=True,
      jax_padding=False,
    )


def _run_thread(thread: threading.Thread) -> None:
  """In place of `JetThread.run`, which would kill the process."""
  driver = thread._target.func.__self__
  try:
    threading.Thread.run(thread)
  except Exception as error:
    driver.failed(driver, error)


def _process(original, tokenizer, slot, result_tokens, complete, **others):
  """In place of `process_result_tokens`: our chunks have more to say."""
  if not isinstance(result_tokens, Tokens):
    return original(
      tokenizer=tokenizer,
      slot=slot,
      result_tokens=result_tokens,
      complete=complete,
      **others,
    )
  return [tokenizer.adapter.sample_of(result_tokens, slot)], complete


def _repair() -> None:
  """Makes 0.2.2 work with today's jax, and fail softly; once is enough."""
  if not hasattr(jax, 'tree_map'):
    jax.tree_map = jax.tree.map
  orchestrator.JetThread.run = _run_thread
  process = token_utils.process_result_tokens
  if not isinstance(process, functools.partial):
    token_utils.process_result_tokens = functools.partial(_process, process)


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
    _repair()
    self._engine = engine
    self._adapter = Adapter(engine)
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
    self._driver = _Driver(self._adapter, self._holder, self._failed)
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
      self._place(request)
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

  def _place(self, request: Request) -> None:
    """Hands a request to JetStream, and says so to the adapter."""
    ids = np.concatenate([request.prompt, request.drawn.token_ids])
    request.slot = None
    request.active = orchestrator.ActiveRequest(
      max_tokens=request.params.max_tokens,
      return_channel=request,
      prefill_content=ids,
      history_path='none',  # Or it would put a BOS in front.
      is_client_side_tokenization=True,
    )
    self._adapter.expect(request)
    self._driver.place_request_on_prefill_queue(request.active)

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
      self._adapter = Adapter(self._engine)
      self._driver = _Driver(self._adapter, self._holder, self._failed)
      for request in self._open.values():
        self._place(request)
