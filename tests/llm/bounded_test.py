"""Never more than the bound in flight, first come first served, no deadlock."""

import asyncio

import pytest

from qed.llm.bounded import Bounded

pytestmark = pytest.mark.timeout(10)


class Slow:
  """An Llm that counts what it is drawing, until it is let go."""

  def __init__(self):
    self.running = self.most = 0
    self.order = []
    self.gate = asyncio.Event()

  async def sample(self, prompt, params, *, n=1):
    self.order.append(prompt)
    self.running += n
    self.most = max(self.most, self.running)
    try:
      await self.gate.wait()
      if prompt == 'bad':
        raise RuntimeError('no')
      return [prompt] * n
    finally:
      self.running -= n


async def settle():
  for _ in range(20):
    await asyncio.sleep(0)


def start(bounded, *sizes):
  return [
    asyncio.ensure_future(bounded.sample(i, None, n=n))
    for i, n in enumerate(sizes)
  ]


async def test_the_bound_is_reached_and_never_passed():
  slow = Slow()
  bounded = Bounded(slow, 3)
  tasks = start(bounded, *[1] * 10)
  await settle()
  assert (slow.running, bounded.num_running) == (3, 3)
  slow.gate.set()
  assert await asyncio.gather(*tasks) == [[i] for i in range(10)]
  assert (slow.most, bounded.most_running, bounded.num_running) == (3, 3, 0)


async def test_every_completion_of_a_call_takes_a_place():
  slow = Slow()
  bounded = Bounded(slow, 3)
  tasks = start(bounded, 2, 2, 1)
  await settle()
  # The third would fit beside the first, but the second was there before it.
  assert slow.order == [0]
  slow.gate.set()
  await asyncio.gather(*tasks)
  assert slow.order == [0, 1, 2]
  assert slow.most <= 3


async def test_two_that_need_all_places_do_not_hold_each_other_up():
  slow = Slow()
  bounded = Bounded(slow, 3)
  tasks = start(bounded, 1, 1, 3, 3)
  await settle()
  assert slow.order == [0, 1]
  slow.gate.set()
  async with asyncio.timeout(5):
    await asyncio.gather(*tasks)
  assert slow.most == 3


async def test_a_call_for_more_than_the_bound_is_served_alone():
  slow = Slow()
  tasks = start(Bounded(slow, 2), 1, 5, 1)
  await settle()
  assert slow.order == [0]
  slow.gate.set()
  assert await asyncio.gather(*tasks) == [[0], [1] * 5, [2]]
  assert slow.most == 5


async def test_a_failure_and_a_cancelled_call_give_their_places_back():
  slow = Slow()
  bounded = Bounded(slow, 2)
  failing = asyncio.ensure_future(bounded.sample('bad', None))
  running, waiting, partly = start(bounded, 1, 1, 2)
  await settle()
  assert slow.order == ['bad', 0]
  for task in (running, waiting, partly):
    task.cancel()
  slow.gate.set()
  results = await asyncio.gather(
    failing, running, waiting, partly, return_exceptions=True
  )
  assert isinstance(results[0], RuntimeError)
  assert all(isinstance(r, asyncio.CancelledError) for r in results[1:])
  # All places are free again.
  assert await bounded.sample('x', None, n=2) == ['x'] * 2
  assert bounded.num_running == 0


async def test_one_that_waits_for_its_second_place_gives_back_its_first():
  slow = Slow()
  bounded = Bounded(slow, 2)
  first, both = start(bounded, 1, 2)
  await settle()
  both.cancel()
  await settle()
  (third,) = start(bounded, 1)
  await settle()
  assert slow.running == 2
  slow.gate.set()
  await asyncio.gather(first, third)


def test_a_bound_that_lets_nobody_through_is_refused():
  with pytest.raises(ValueError, match='at least 1, got 0'):
    Bounded(None, 0)
