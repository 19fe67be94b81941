"""How fast an endpoint is asked, on a clock that the tests turn."""

import asyncio
import math
import time

import pytest

from qed.grading import limits

pytestmark = pytest.mark.timeout(30)


def limiter(**changes):
  fields = {
    'max_concurrency': 100,
    'tokens_per_minute': 0,
    'max_failures': 1000,
    'cooldown_secs': 0.1,
    'patience_secs': 1e6,
  }
  return limits.Limiter(**(fields | changes))


async def make_call(gate, outcome='ok', *, secs=0.0, tokens=0, **fields):
  async with gate.call(tokens) as call:
    await asyncio.sleep(secs)
    call.outcome = outcome
    for name, value in fields.items():
      setattr(call, name, value)


def test_the_window_doubles_until_the_first_congestion_and_then_adds_one():
  window = limits.Window(40)
  assert window.limit == 10
  for _ in range(10):
    window.success(num_running=window.limit)
  assert window.limit == 20
  assert window.congestion(window.epoch)
  assert window.limit == 10
  for _ in range(11):  # A window's worth, as the limit grows meanwhile.
    window.success(num_running=window.limit)
  assert window.limit == 11
  for _ in range(10_000):
    window.success(num_running=window.limit)
  assert window.limit == 40


def test_calls_that_met_the_same_congestion_halve_the_window_once():
  window = limits.Window(64)
  epoch = window.epoch
  assert [window.congestion(epoch) for _ in range(16)] == [True] + [False] * 15
  assert window.limit == 8
  assert window.congestion(window.epoch)
  assert window.limit == 4
  for _ in range(9):
    window.congestion(window.epoch)
  assert window.limit == 1


def test_a_window_that_is_not_full_does_not_grow():
  window = limits.Window(40)
  for _ in range(1000):
    window.success(num_running=9)
  assert window.limit == 10


def test_the_budget_by_hand():
  budget = limits.Budget(600, now=0.0)  # 10 tokens per second.
  assert budget.wait_secs(600, 0.0) == 0
  budget.take(600, 0.0)
  assert budget.wait_secs(50, 0.0) == 5
  assert budget.wait_secs(50, 3.0) == 2
  assert budget.wait_secs(50, 5.0) == 0
  budget.take(50, 5.0)
  budget.take(100, 5.0)  # It cost more than was thought: in debt.
  assert budget.wait_secs(10, 5.0) == 11
  budget.take(-100, 5.0)
  assert budget.wait_secs(10, 5.0) == 1
  # A minute's worth at most, and a call that is larger waits for all of it.
  assert budget.wait_secs(10**6, 10_000.0) == 0
  budget.take(600, 10_000.0)
  assert budget.wait_secs(10**6, 10_000.0) == 60


def test_no_budget_is_no_limit():
  budget = limits.Budget(0, now=0.0)
  budget.take(10**9, 0.0)
  assert budget.wait_secs(10**9, 0.0) == 0


def test_the_breaker_opens_lets_one_try_and_waits_longer_each_time():
  breaker = limits.Breaker(max_failures=3, cooldown_secs=10.0)
  for _ in range(2):
    breaker.end(ok=False, tried=False, now=0.0)
  breaker.end(ok=True, tried=False, now=0.0)  # Only failures in a row count.
  for _ in range(2):
    breaker.end(ok=False, tried=False, now=0.0)
  assert not breaker.is_open
  breaker.end(ok=False, tried=False, now=100.0)
  assert breaker.is_open
  assert breaker.wait_secs(101.0) == 9
  breaker.end(ok=False, tried=False, now=105.0)  # It was under way before.
  assert breaker.wait_secs(110.0) == 0
  assert breaker.begin()
  assert breaker.wait_secs(110.0) == math.inf  # One at a time.
  breaker.end(ok=False, tried=True, now=111.0)
  assert breaker.wait_secs(111.0) == 20
  waits = []
  for _ in range(5):
    assert breaker.begin()
    breaker.end(ok=False, tried=True, now=200.0)
    waits.append(breaker.wait_secs(200.0))
  assert waits == [40, 80, 160, 160, 160]
  assert breaker.begin()
  breaker.end(ok=True, tried=True, now=400.0)
  assert not breaker.is_open
  assert breaker.wait_secs(400.0) == 0
  assert not breaker.begin()


def test_a_try_that_says_nothing_lets_the_next_one_try():
  breaker = limits.Breaker(max_failures=1, cooldown_secs=10.0)
  breaker.end(ok=False, tried=False, now=0.0)
  assert breaker.begin()
  breaker.end(ok=None, tried=True, now=10.0)
  assert breaker.is_open
  assert breaker.wait_secs(10.0) == 0


def test_an_earlier_call_that_succeeds_closes_the_breaker():
  breaker = limits.Breaker(max_failures=1, cooldown_secs=10.0)
  breaker.end(ok=False, tried=False, now=0.0)
  assert breaker.begin()
  breaker.end(ok=True, tried=False, now=1.0)
  assert breaker.wait_secs(1.0) == 0


async def test_calls_go_in_their_order_and_never_more_than_the_window():
  gate, order, most = limiter(max_concurrency=12), [], 0

  async def one(number):
    nonlocal most
    async with gate.call(0) as call:
      order.append(number)
      most = max(most, gate.num_running)
      assert gate.num_running <= gate.concurrency
      await asyncio.sleep(0.001)
      call.outcome = 'ok'

  await asyncio.gather(*(one(number) for number in range(200)))
  assert order == list(range(200))
  assert gate.num_running == 0
  assert most == 12  # It grew from 3.


async def test_rate_limits_and_timeouts_shrink_the_window():
  for outcome in ('rate_limited', 'timeout'):
    gate = limiter()
    assert gate.concurrency == 25
    await make_call(gate, outcome)
    assert gate.concurrency == 12
  gate = limiter()
  await make_call(gate, 'failed')
  await make_call(gate, 'neutral')
  assert gate.concurrency == 25


async def test_retry_after_holds_everybody_and_tells():
  gate = limiter()
  await make_call(gate, 'rate_limited', retry_after_secs=0.2)
  assert not gate.is_ready
  began = time.monotonic()
  await gate.wait_ready()
  await asyncio.gather(*(make_call(gate) for _ in range(5)))
  assert 0.19 < time.monotonic() - began < 1
  assert gate.is_ready


async def test_the_budget_holds_calls_back_and_is_corrected():
  gate = limiter(tokens_per_minute=6000)  # 100 per second.
  await make_call(gate, tokens=5990)
  began = time.monotonic()
  # 10 are left: it waits for 20 more, of which it then gives back 25.
  await make_call(gate, tokens=30, num_tokens=5)
  assert 0.15 < time.monotonic() - began < 1
  began = time.monotonic()
  await make_call(gate, tokens=20)
  assert time.monotonic() - began < 0.1


async def test_an_endpoint_that_is_down_is_tried_by_one_at_a_time():
  gate = limiter(max_failures=4, cooldown_secs=0.05)
  is_down, tries = True, []

  async def one():
    while True:
      async with gate.call(0) as call:
        tries.append(gate.num_running)
        await asyncio.sleep(0.01)
        call.outcome = 'failed' if is_down else 'ok'
      if call.outcome == 'ok':
        return

  tasks = [asyncio.create_task(one()) for _ in range(30)]
  await asyncio.sleep(0.02)
  assert not gate.is_ready
  first = len(tries)
  assert first == 28  # 25 at once, and one after each failure but the fourth.
  await asyncio.sleep(0.4)
  assert not gate.is_ready
  # One at a time, after 0.05, 0.1 and 0.2 seconds.
  assert tries[first:] in ([1], [1, 1], [1, 1, 1])
  is_down = False
  await asyncio.gather(*tasks)
  assert gate.is_ready
  assert gate.num_running == 0


async def test_where_nobody_waits_readiness_returns_after_the_cool_down():
  gate = limiter(max_failures=1, cooldown_secs=0.1)
  await make_call(gate, 'failed')
  assert not gate.is_ready
  began = time.monotonic()
  await gate.wait_ready()
  assert 0.09 < time.monotonic() - began < 1
  assert gate.is_ready


async def test_readiness_waits_for_the_one_that_tries():
  gate = limiter(max_failures=1, cooldown_secs=0.05)
  await make_call(gate, 'failed')
  trying = asyncio.create_task(make_call(gate, 'ok', secs=0.2))
  await asyncio.sleep(0.1)
  assert not gate.is_ready
  await gate.wait_ready()
  assert trying.done() or gate.num_running == 0
  await trying


async def test_rate_limits_count_as_failures_once_per_congestion():
  gate = limiter(max_failures=3)
  await asyncio.gather(*(make_call(gate, 'rate_limited') for _ in range(25)))
  assert gate.is_ready
  for _ in range(2):
    await make_call(gate, 'rate_limited')
  assert not gate.is_ready


async def test_giving_up_while_waiting_leaks_no_place():
  gate = limiter(max_concurrency=1)
  holding = asyncio.create_task(make_call(gate, secs=0.05))
  cancelled = asyncio.create_task(make_call(gate))
  waiting = asyncio.create_task(make_call(gate))
  await asyncio.sleep(0.01)
  cancelled.cancel()
  await holding
  await waiting
  assert cancelled.cancelled()
  assert gate.num_running == 0


async def test_a_caller_who_gives_up_makes_way_for_smaller_calls():
  gate = limiter(tokens_per_minute=60)
  await make_call(gate, tokens=30)
  large = asyncio.create_task(make_call(gate, tokens=60))  # In 30 seconds.
  small = asyncio.create_task(make_call(gate, tokens=10))
  await asyncio.sleep(0.01)
  assert not small.done()
  large.cancel()
  async with asyncio.timeout(5):
    await small


async def test_patience_is_for_an_endpoint_that_is_down_not_for_the_line():
  gate = limiter(max_concurrency=1, patience_secs=0.1)
  calls = [make_call(gate, secs=0.05) for _ in range(6)]
  await asyncio.gather(*calls)  # The last one waited for 0.25 seconds.
  await make_call(gate, 'rate_limited', retry_after_secs=10.0)
  began = time.monotonic()
  waiting = [asyncio.create_task(make_call(gate)) for _ in range(3)]
  await asyncio.sleep(0.05)
  late = asyncio.create_task(make_call(gate))
  results = await asyncio.gather(*waiting, return_exceptions=True)
  assert [type(result) for result in results] == [TimeoutError] * 3
  assert 0.09 < time.monotonic() - began < 1
  with pytest.raises(TimeoutError):
    await late
  assert time.monotonic() - began > 0.14  # It has its own patience.
  assert gate.num_running == 0


async def test_patience_ends_while_another_caller_tries_without_an_end():
  gate = limiter(max_failures=1, cooldown_secs=0.01, patience_secs=0.1)
  await make_call(gate, 'failed')
  await asyncio.sleep(0.02)
  trying = asyncio.create_task(make_call(gate, secs=60.0))
  await asyncio.sleep(0)
  async with asyncio.timeout(5):
    with pytest.raises(TimeoutError):
      await make_call(gate)
  trying.cancel()
  await asyncio.wait([trying])


async def test_patience_begins_when_it_goes_down_for_the_last_time():
  gate = limiter(
    max_concurrency=1, max_failures=1, cooldown_secs=0.02, patience_secs=0.15
  )
  await make_call(gate, 'failed')
  await make_call(gate, 'ok')
  holding = asyncio.create_task(make_call(gate, 'failed', secs=0.3))
  await asyncio.sleep(0)
  await make_call(gate)  # 0.3 seconds in line, and 0.02 while it is down.
  await holding


async def test_giving_up_at_the_moment_of_being_let_through_leaks_no_place():
  gate = limiter(max_concurrency=1)

  async def hold():
    async with gate.call(0):
      await asyncio.sleep(0.01)
    waiting.cancel()  # It was let through, and has not run since.

  holding = asyncio.create_task(hold())
  await asyncio.sleep(0)
  waiting = asyncio.create_task(make_call(gate, secs=60.0))
  await holding
  await asyncio.wait([waiting])
  assert waiting.cancelled()
  assert gate.num_running == 0
  await make_call(gate)


async def test_a_call_that_raises_leaves():
  gate = limiter(max_concurrency=1)
  with pytest.raises(KeyError):
    async with gate.call(0):
      raise KeyError
  assert gate.num_running == 0
