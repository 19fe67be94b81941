"""Our engine under the orchestrator of google-jetstream 0.2.2.

`Adapter` is the engine as JetStream's interface has it. `jetstream_scheduler`
has JetStream's driver do with it what our `scheduler.Scheduler` does, and
`server_config` offers it to JetStream's own server. It shows that the two fit;
it is the slower way, at some microseconds of Python per token and slot. The
package is archived, needs TensorFlow, and stays out of the core: nothing else
imports it, and this module only where a config asks for it.

What 0.2.2 lacks is put in from outside, its driver's code staying as it is:

* `jax.tree_map`, which it calls, is no more: it is brought back;
* its interface has no sampling parameters: they wait in the order in which its
  one prefill thread takes requests;
* log-probs and finish reasons travel in columns that it does not look at, the
  policy version with them; the function that reads them is replaced;
* weights are read once: it gets a holder, whose content is exchanged;
* a thread that fails kills the process: under our scheduler it reports instead,
  and a new driver goes on with every request from the tokens it has;
* a prompt is cut in silence beyond 32,768 tokens: our scheduler refuses it.

JetStream's own server knows token ids and max_tokens and nothing else: it draws
greedily, without stop tokens, and a prompt that does not fit ends it, as it has
no way to refuse one.
"""

from __future__ import annotations

import collections
import logging
import math
import threading
import types as python_types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from flax import struct

from qed.rollout import engine as engines
from qed.rollout import requests
from qed.rollout.jetstream_records import Holder, Request, Sample
from qed.types import SamplingParams

_LOG_LEVEL, _LOG_HANDLERS = logging.root.level, logging.root.handlers[:]
from jetstream.core import config_lib, orchestrator  # noqa: E402
from jetstream.engine import engine_api, token_utils  # noqa: E402

# Its import turns on everybody's debug logs.
logging.root.setLevel(_LOG_LEVEL)
logging.root.handlers[:] = _LOG_HANDLERS

# What `repair` puts ours in the place of.
_RUN = orchestrator.JetThread.run
_PROCESS = token_utils.process_result_tokens

_PREFILL_LENGTHS = tuple(2**i for i in range(4, 16))
# JetStream puts it in front of a prompt that begins a session. Ours never do,
# so it tells a request that nobody announced.
_BOS_ID = -1


@struct.dataclass
class Tokens(engine_api.ResultTokens):
  """A chunk, with the version that drew it."""

  version: int = struct.field(pytree_node=False, default=0)

  def convert_to_numpy(self) -> Tokens:
    """Waits for the chunk; the base class would forget the version."""
    return self.replace(data=np.asarray(self.data))


class Adapter(engine_api.Engine):
  """Our engine behind JetStream's abstract one; every slot has its pages."""

  def __init__(self, engine: engines.Engine, holder: Holder):
    """Wraps an engine that is warmed up.

    Args:
      engine: takes its weights from `holder` at every call.
      holder: of weights; who changes its content changes all calls to come.

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
    self._engine, self._holder = engine, holder
    self._lock = threading.Lock()
    self._killed: set[int] = set()
    self._expected: collections.deque[Request] = collections.deque()
    self._num_told = np.zeros(layout.num_slots, np.int64)
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
    """What JetStream passes on to `prefill` and `generate`, unread."""
    del args, kwargs
    return self._holder

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
    ids = np.asarray(padded_tokens)[:true_length]
    if ids[0] == _BOS_ID:
      ids = ids[1:]
      request = self._unannounced(ids)
    else:
      request = self._expected.popleft()
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
    # What the slot's last owner drew is told by now: JetStream frees it then.
    self._num_told[slot] = 0
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

  def sample_of(self, tokens: Tokens, slot: int, max_tokens: int) -> Sample:
    """A slot's part of a chunk that was copied to the host.

    Args:
      tokens: the chunk.
      slot: which.
      max_tokens: of its completion. The engine was told of it only if the
        request was announced; otherwise the slot is stopped here.
    """
    chunk = self._engine.read(tokens.data[slot : slot + 1])
    count, reason = int(chunk.count[0]), int(chunk.reason[0])
    room = max_tokens - int(self._num_told[slot])
    if count > room or (count == room and reason == engines.NONE):
      count, reason = room, engines.LENGTH
      self.kill(slot)
    self._num_told[slot] += count
    return Sample(
      token_ids=chunk.tokens[0, :count].copy(),
      logprobs=chunk.logprobs[0, :count].copy(),
      version=tokens.version,
      reason=reason,
    )

  def get_prefix_destination_sharding(self) -> None:
    """Prefill and generation share their devices: nothing moves."""

  def get_tokenizer(self) -> None:
    """Only ids go in and out."""

  def build_tokenizer(self, metadata: Any) -> Any:
    """What is asked of a tokenizer, were it to be asked."""
    del metadata
    return python_types.SimpleNamespace(
      adapter=self,
      bos_id=_BOS_ID,
      pad_id=0,
      eos_id=-1,
      stop_tokens=frozenset(),
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

  def _unannounced(self, prompt: np.ndarray) -> Request:
    """A request of JetStream's own server: greedy, as long as there is room."""
    params = SamplingParams(
      temperature=0.0,
      top_p=1.0,
      top_k=0,
      max_tokens=self._engine.layout.max_length - len(prompt),
      stop_token_ids=(),
      seed=0,
    )
    return Request(
      number=-1,
      prompt=prompt,
      params=params,
      key=None,
      deadline=math.inf,
      stream=requests.Stream(lambda: None),
      finished=lambda *_: None,
    )


class Driver(orchestrator.Driver):
  """JetStream's driver, whose threads report a failure to somebody."""

  def __init__(
    self, adapter: Adapter, failed: Callable[[Any, Exception], None]
  ):
    """Starts JetStream's threads.

    Args:
      adapter: for both of its tasks.
      failed: called with the driver and the error, from one of its threads.
    """
    repair()
    self.adapter, self.failed = adapter, failed
    super().__init__(
      prefill_engines=[adapter],
      generate_engines=[adapter],
      prefill_params=[adapter.load_params()],
      generate_params=[adapter.load_params()],
      interleaved_mode=True,
      jax_padding=False,
    )

  def place(self, request: Request) -> None:
    """Queues a request, and says so to the adapter; one thread at a time."""
    ids = np.concatenate([request.prompt, request.drawn.token_ids])
    request.slot = None
    request.active = orchestrator.ActiveRequest(
      max_tokens=request.params.max_tokens,
      return_channel=request,
      prefill_content=ids,
      history_path='none',  # Or it would put a BOS in front.
      is_client_side_tokenization=True,
    )
    self.adapter.expect(request)
    self.place_request_on_prefill_queue(request.active)


def server_config(adapter: Adapter, num_devices: int) -> Any:
  """For `jetstream.core.server_lib.run`, with as many devices."""
  repair()
  return config_lib.ServerConfig(
    interleaved_slices=(f'all={num_devices}',),
    interleaved_engine_create_fns=(lambda devices: adapter,),
  )


def repair() -> None:
  """Makes 0.2.2 work with today's jax and our chunks; once is enough."""
  if not hasattr(jax, 'tree_map'):
    jax.tree_map = jax.tree.map
  orchestrator.JetThread.run = _run_thread
  token_utils.process_result_tokens = _process


def _run_thread(thread: threading.Thread) -> None:
  """In place of `JetThread.run`, which would kill the process."""
  driver = thread._target.func.__self__
  if not isinstance(driver, Driver):
    _RUN(thread)
    return
  try:
    threading.Thread.run(thread)
  except Exception as error:
    driver.failed(driver, error)


def _process(
  tokenizer, slot, slot_max_length, result_tokens, complete, **others
):
  """In place of `process_result_tokens`: our chunks have more to say."""
  if not isinstance(result_tokens, Tokens):
    return _PROCESS(
      tokenizer=tokenizer,
      slot=slot,
      slot_max_length=slot_max_length,
      result_tokens=result_tokens,
      complete=complete,
      **others,
    )
  sample = tokenizer.adapter.sample_of(result_tokens, slot, slot_max_length)
  return [sample], complete | (sample.reason != engines.NONE)
