"""How fast an endpoint is asked: concurrency, tokens per minute, breaker.

`Window`, `Budget` and `Breaker` are arithmetic on times that they are given;
`Limiter` makes callers wait for what they say.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

_MAX_COOLDOWN_FACTOR = 16


class Window:
  """How many calls may be in flight: additive increase, halving on congestion.

  The limit starts at a quarter of the most, doubles with every window of calls
  until the first congestion, and grows by 1 from then on. It halves at most
  once for the calls that were in flight together, as they all met the same
  congestion (Jacobson 1988).
  """

  def __init__(self, max_calls: int):
    self._max_calls = max_calls
    self._limit = max(max_calls / 4, 1.0)
    self._epoch = 0

  @property
  def limit(self) -> int:
    """Calls that may be in flight; at least 1."""
    return int(self._limit)

  @property
  def epoch(self) -> int:
    """Goes with a call, and back into `congestion`."""
    return self._epoch

  def success(self, num_running: int) -> None:
    """A call was answered, one of so many; an idle window does not grow."""
    if num_running >= self.limit:
      gain = 1 / self._limit if self._epoch else 1.0
      self._limit = min(self._limit + gain, self._max_calls)

  def congestion(self, epoch: int) -> bool:
    """A call that was begun in `epoch` met a rate limit or a timeout.

    Returns:
      Whether it was the first to report this congestion.
    """
    is_news = epoch == self._epoch
    if is_news:
      self._limit = max(self._limit / 2, 1.0)
      self._epoch += 1
    return is_news


class Budget:
  """Tokens per minute: a bucket that holds one minute's worth.

  A call takes what it will probably need, and the difference once that is
  known, so that the bucket may be in debt. 0 tokens per minute: no limit.
  """

  def __init__(self, tokens_per_minute: int, now: float):
    self._per_sec = tokens_per_minute / 60
    self._size = tokens_per_minute
    self._level, self._time = float(tokens_per_minute), now

  def wait_secs(self, tokens: int, now: float) -> float:
    """Until a call of that size can be made; a larger one needs all."""
    if not self._size:
      return 0.0
    self._refill(now)
    missing = min(tokens, self._size) - self._level
    return max(missing / self._per_sec, 0.0)

  def take(self, tokens: int, now: float) -> None:
    """Takes tokens out, or puts them back if negative."""
    self._refill(now)
    self._level = min(self._level - tokens, self._size)

  def _refill(self, now: float) -> None:
    gained = (now - self._time) * self._per_sec
    self._level, self._time = min(self._level + gained, self._size), now


class Breaker:
  """Opens after so many failures in a row; then lets one call at a time try.

  Each try that fails doubles the time until the next, up to 16 times the first.
  Any success closes it.
  """

  def __init__(self, max_failures: int, cooldown_secs: float):
    self._max_failures = max_failures
    self._cooldown_secs = cooldown_secs
    self._failures = 0
    self._open_until = -math.inf
    self._is_trying = False

  @property
  def is_open(self) -> bool:
    """Whether the endpoint counts as down."""
    return self._failures >= self._max_failures

  def wait_secs(self, now: float) -> float:
    """Until the next call may be made; infinite while another one tries."""
    if not self.is_open:
      return 0.0
    if self._is_trying:
      return math.inf
    return max(self._open_until - now, 0.0)

  def begin(self) -> bool:
    """Notes that a call is made; returns whether it is the one that tries."""
    self._is_trying = self.is_open
    return self._is_trying

  def end(self, ok: bool | None, tried: bool, now: float) -> None:
    """Notes what a call came to; None says nothing of the endpoint."""
    if tried:
      self._is_trying = False
    if ok:
      self._failures = 0
      self._is_trying = False
    elif ok is False and (tried or not self.is_open):
      # Calls from before it opened tell nothing new.
      self._failures += 1
      if self.is_open:
        tries = min(self._failures - self._max_failures, 60)
        factor = min(2**tries, _MAX_COOLDOWN_FACTOR)
        self._open_until = now + self._cooldown_secs * factor


# rate_limited is alive, and is held against the endpoint once per congestion;
# neutral says nothing about it: the caller gave up, or the request was bad.
Outcome = Literal['ok', 'rate_limited', 'timeout', 'failed', 'neutral']


@dataclasses.dataclass(slots=True)
class Call:
  """A call that was let through; its maker says what it came to."""

  outcome: Outcome = 'neutral'
  retry_after_secs: float = 0.0  # What the endpoint asks all callers to wait.
  num_tokens: int | None = None  # In and out; None: as many as estimated.


class _Waiter(NamedTuple):
  """A caller in line."""

  admitted: asyncio.Future
  num_tokens: int
  came: float  # When.


class Limiter:
  """Lets calls through, in the order in which they came. For one event loop."""

  def __init__(
    self,
    *,
    max_concurrency: int,
    tokens_per_minute: int,
    max_failures: int,
    cooldown_secs: float,
    patience_secs: float,
  ):
    """Starts with nothing in flight.

    Args:
      max_concurrency: calls in flight, at most.
      tokens_per_minute: in and out; 0: no limit.
      max_failures: in a row, until the endpoint counts as down.
      cooldown_secs: until it is tried again, at first.
      patience_secs: that a caller waits while it is down, or has asked to wait.
        Time in line behind other callers does not count.
    """
    self._window = Window(max_concurrency)
    self._budget = Budget(tokens_per_minute, 0.0)
    self._breaker = Breaker(max_failures, cooldown_secs)
    self._patience_secs = patience_secs
    self._paused_until = -math.inf
    self._down_since: float | None = None  # Without a success since then.
    self._num_running = 0
    self._waiting: collections.deque[_Waiter] = collections.deque()
    self._timer: asyncio.TimerHandle | None = None
    self._left = asyncio.Event()

  @property
  def is_ready(self) -> bool:
    """False while the endpoint counts as down, or has asked to wait."""
    return self._down_secs() == 0

  async def wait_ready(self) -> None:
    """Returns once a call may be made.

    Where nobody waits to make one, that is the end of the cool-down, or else
    nobody would ever try.
    """
    while (secs := self._down_secs()) > 0:
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if secs == math.inf else secs):
          await self._left.wait()

  @property
  def concurrency(self) -> int:
    """The present limit of calls in flight."""
    return self._window.limit

  @property
  def num_running(self) -> int:
    """Calls in flight."""
    return self._num_running

  @contextlib.asynccontextmanager
  async def call(self, num_tokens: int) -> AsyncIterator[Call]:
    """Waits until a call may be made; inside, it is in flight.

    Args:
      num_tokens: that it will probably need.

    Yields:
      A record to write into what the call came to.

    Raises:
      TimeoutError: patience came to an end.
    """
    loop = asyncio.get_running_loop()
    admitted = loop.create_future()
    self._waiting.append(_Waiter(admitted, num_tokens, loop.time()))
    self._admit()
    try:
      epoch, tried = await admitted
    except asyncio.CancelledError:
      if admitted.cancelled():
        self._admit()  # Those behind it may need less of the budget.
      elif admitted.exception() is None:
        # Let through at the moment in which the caller gave up.
        self._leave(Call(num_tokens=0), num_tokens, *admitted.result())
      raise
    call = Call()
    try:
      yield call
    finally:
      self._leave(call, num_tokens, epoch, tried)

  def _down_secs(self) -> float:
    """Until a call may be made, for reasons of the endpoint."""
    now = asyncio.get_running_loop().time()
    return max(self._paused_until - now, self._breaker.wait_secs(now), 0.0)

  def _leave(self, call, num_tokens, epoch, tried) -> None:
    now = asyncio.get_running_loop().time()
    if call.num_tokens is not None:
      self._budget.take(call.num_tokens - num_tokens, now)
    ok = {'ok': True, 'neutral': None}.get(call.outcome, False)
    if call.outcome == 'ok':
      self._window.success(self._num_running)
    elif call.outcome == 'timeout':
      self._window.congestion(epoch)
    elif call.outcome == 'rate_limited' and not self._window.congestion(epoch):
      ok = None
    self._num_running -= 1
    self._breaker.end(ok, tried, now)
    if call.retry_after_secs:
      pause = now + call.retry_after_secs
      self._paused_until = max(self._paused_until, pause)
    if call.outcome == 'ok':
      self._down_since = None
    elif self._down_since is None and self._down_secs() > 0:
      self._down_since = now
    self._left.set()  # Wakes those who wait now,
    self._left.clear()  # and nobody who comes later.
    self._admit()

  def _admit(self) -> None:
    """Lets through whoever may go; else comes back when time has passed."""
    if self._timer:
      self._timer.cancel()
      self._timer = None
    loop = asyncio.get_running_loop()
    while self._waiting:
      waiter, now = self._waiting[0], loop.time()
      down_secs = self._down_secs()
      secs = max(down_secs, self._budget.wait_secs(waiter.num_tokens, now))
      if waiter.admitted.done():  # Cancelled.
        self._waiting.popleft()
      elif down_secs > 0 and self._patience_left(waiter, now) <= 0:
        self._waiting.popleft()
        waiter.admitted.set_exception(TimeoutError())
      elif secs > 0:
        if down_secs > 0:
          secs = min(secs, self._patience_left(waiter, now))
        self._timer = loop.call_later(secs, self._admit)
        return
      elif self._num_running >= self._window.limit:
        return  # Whoever leaves comes here.
      else:
        self._waiting.popleft()
        self._num_running += 1
        self._budget.take(waiter.num_tokens, now)
        waiter.admitted.set_result((self._window.epoch, self._breaker.begin()))

  def _patience_left(self, waiter: _Waiter, now: float) -> float:
    """Seconds that a caller still waits for an endpoint that is down."""
    since = now if self._down_since is None else self._down_since
    return self._patience_secs - (now - max(since, waiter.came))
