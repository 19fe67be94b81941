"""One request: what was asked, what was drawn, and who is told.

The engine's thread writes to a `Stream`; any thread or event loop may read it.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import threading
from collections.abc import AsyncIterator, Callable, Hashable
from typing import NamedTuple

import numpy as np

from qed.rollout.engine import MAX_STOP_TOKENS, Layout
from qed.types import Completion, FinishReason, SamplingParams


class Drawn(NamedTuple):
  """Tokens with what is known of each; the three are of one length."""

  token_ids: np.ndarray  # int32 [n]
  logprobs: np.ndarray  # float32 [n]
  versions: np.ndarray  # int32 [n]


NOTHING = Drawn(
  np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32)
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
  """Some more tokens of a completion; the last piece has a finish reason."""

  token_ids: np.ndarray  # int32 [n]; n may be 0 in the last piece.
  logprobs: np.ndarray  # float32 [n]
  versions: np.ndarray  # int32 [n]
  finish_reason: FinishReason | None


class Stream:
  """The completion of one request, as a whole or piece by piece."""

  def __init__(self, cancel: Callable[[], None]):
    """Nothing drawn yet.

    Args:
      cancel: what `cancel` calls.
    """
    self._cancel = cancel
    self._changed = threading.Condition()
    self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future]] = []
    self._pieces: collections.deque[Drawn] = collections.deque()
    self._completion: Completion | None = None
    self.wants_pieces = False

  @property
  def is_done(self) -> bool:
    """Whether the terminal event has come."""
    return self._completion is not None

  async def completion(self) -> Completion:
    """The whole completion, when it is finished; its text is empty."""
    await self._until(lambda: self._completion is not None)
    return self._completion

  def result(self, timeout_secs: float) -> Completion:
    """Like `completion`, for callers without an event loop.

    Raises:
      TimeoutError: not finished by then.
    """
    with self._changed:
      if not self._changed.wait_for(lambda: self.is_done, timeout_secs):
        raise TimeoutError(f'no completion after {timeout_secs} s')
    return self._completion

  async def __aiter__(self) -> AsyncIterator[Piece]:
    """Pieces from the first token on, as the engine draws them.

    For one reader. Leaving early does not cancel the request.
    """
    self.wants_pieces = True
    num_read = 0
    while True:
      await self._until(lambda: self._pieces or self.is_done)
      # What is pushed is always pushed before the end is told.
      while self._pieces:
        drawn = self._pieces.popleft()
        num_read += len(drawn.token_ids)
        yield Piece(**drawn._asdict(), finish_reason=None)
      if self.is_done and not self._pieces:
        break
    whole = self._completion
    yield Piece(
      token_ids=whole.token_ids[num_read:],
      logprobs=whole.logprobs[num_read:],
      versions=whole.versions[num_read:],
      finish_reason=whole.finish_reason,
    )

  def cancel(self) -> None:
    """Ends the request soon, with 'abort' and what it has; no-op when done."""
    if not self.is_done:
      self._cancel()

  def push(self, drawn: Drawn) -> None:
    """Adds tokens, from the engine's thread."""
    with self._changed:
      if self._completion is None:
        self._pieces.append(drawn)
        self._wake()

  def finish(self, drawn: Drawn, reason: FinishReason) -> bool:
    """Tells the end; False where it was told before, and nothing changes."""
    with self._changed:
      if self._completion is not None:
        return False
      self._completion = Completion(
        **drawn._asdict(), text='', finish_reason=reason
      )
      self._changed.notify_all()
      self._wake()
      return True

  async def _until(self, holds: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    while True:
      with self._changed:
        if holds():
          return
        waiter = loop.create_future()
        self._waiters.append((loop, waiter))
      await waiter

  def _wake(self) -> None:
    waiters, self._waiters = self._waiters, []
    for loop, waiter in waiters:
      # A loop that was closed meanwhile has nobody waiting.
      if not loop.is_closed():
        loop.call_soon_threadsafe(_set, waiter)


def _set(waiter: asyncio.Future) -> None:
  if not waiter.done():
    waiter.set_result(None)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Request:
  """A request on its way; only the engine's thread changes it."""

  number: int  # In order of submission.
  prompt: np.ndarray  # int32 [n]
  params: SamplingParams
  has_group: bool
  # Requests with equal keys share a prefill; the prompt's ids are part of it.
  key: Hashable
  deadline: float  # By time.monotonic; inf: none.
  stream: Stream
  drawn: Drawn = NOTHING  # Before it came into the slot that it is in.
  num_failures: int = 0  # Of the engine, since it last drew a token.
  num_sent: int = 0  # Tokens pushed to the stream.

  @property
  def limit(self) -> int:
    """Entries of the cache when all is drawn: the last token is not read."""
    return len(self.prompt) + self.params.max_tokens - 1

  @property
  def is_fresh(self) -> bool:
    """Whether its prefix is the prompt alone."""
    return not len(self.drawn.token_ids)

  def prefix_ids(self) -> np.ndarray:
    """What the engine has to read before it can go on."""
    return np.concatenate([self.prompt, self.drawn.token_ids])


def check(
  token_ids: np.ndarray,
  params: SamplingParams,
  layout: Layout,
  *,
  vocab_size: int,
  num_parts: int,
) -> np.ndarray:
  """The prompt as int32 [n], if the engine can serve the request.

  Raises:
    ValueError: it cannot; the message says why and what would do.
  """
  ids = np.asarray(token_ids)
  if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(
      'prompt: expected token ids int [n] with n >= 1, got '
      f'{ids.dtype} {list(ids.shape)}'
    )
  if ids.min() < 0 or ids.max() >= vocab_size:
    raise ValueError(
      f'prompt: token ids must be from 0 to {vocab_size - 1}, got '
      f'{ids.min()} to {ids.max()}'
    )
  _check_params(params, vocab_size)
  num_tokens = len(ids) + params.max_tokens
  if num_tokens > layout.max_length:
    raise ValueError(
      f'a prompt of {len(ids)} tokens and max_tokens = {params.max_tokens} '
      f'make {num_tokens}, but the engine holds max_length = '
      f'{layout.max_length} tokens of a request; shorten one of the two'
    )
  capacity = layout.num_pages // num_parts - 1
  num_pages = -(-(num_tokens - 1) // layout.page_size)
  if num_pages > capacity:
    raise ValueError(
      f'a prompt of {len(ids)} tokens and max_tokens = {params.max_tokens} '
      f'need {num_pages} pages of {layout.page_size} tokens, but the cache has '
      f'{capacity}; shorten one of the two'
    )
  return ids.astype(np.int32)


def _check_params(params: SamplingParams, vocab_size: int) -> None:
  stops = params.stop_token_ids
  for name, good, wanted in (
    ('max_tokens', params.max_tokens >= 1, 'at least 1'),
    (
      'temperature',
      params.temperature >= 0 and math.isfinite(params.temperature),
      'a number of at least 0',
    ),
    ('top_p', 0 < params.top_p <= 1, 'above 0 and at most 1'),
    ('top_k', params.top_k >= 0, 'at least 0'),
    ('seed', 0 <= params.seed < 2**32, 'from 0 to 2**32 - 1'),
    (
      'stop_token_ids',
      len(stops) <= MAX_STOP_TOKENS and all(0 <= x < vocab_size for x in stops),
      f'at most {MAX_STOP_TOKENS} ids from 0 to {vocab_size - 1}',
    ),
  ):
    if not good:
      raise ValueError(
        f'{name} must be {wanted}, got {getattr(params, name)!r}'
      )
