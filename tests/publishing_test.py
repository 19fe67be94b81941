"""New weights on their way to the samplers of `qed grpo`."""

import asyncio

from qed.publishing import Publisher
from qed.rollout.stages import Stages


class Sampler:
  """Takes as long to load weights as it is told to."""

  def __init__(self):
    self.loaded, self.may_load = [], asyncio.Event()

  async def update(self, weights, version):
    await self.may_load.wait()
    self.loaded.append((weights, version))


async def run_for(publisher, act):
  """Publishes while something is done; the versions that came into effect."""
  told = []
  publishing = asyncio.create_task(publisher.run(told.append))
  await act()
  publishing.cancel()
  return told


async def test_of_weights_that_pile_up_the_newest_are_published():
  sampler = Sampler()
  publisher = Publisher(sampler, Stages(['publish']), version=4)

  async def act():
    publisher.hand_out('five', 5)
    await asyncio.sleep(0.01)
    assert publisher.in_effect == 4
    publisher.hand_out('six', 6)
    publisher.hand_out('seven', 7)
    sampler.may_load.set()
    await publisher.wait_for(7)

  assert await run_for(publisher, act) == [5, 7]
  assert sampler.loaded == [('five', 5), ('seven', 7)]
  assert publisher.in_effect == 7


async def test_a_version_is_waited_for_until_samplers_draw_with_it():
  sampler = Sampler()
  publisher = Publisher(sampler, Stages(['publish']), version=0)
  await publisher.wait_for(0)  # It is there from the beginning.

  async def act():
    waiting = asyncio.create_task(publisher.wait_for(2))
    sampler.may_load.set()
    publisher.hand_out('one', 1)
    await asyncio.sleep(0.01)
    assert publisher.in_effect == 1
    assert not waiting.done()
    publisher.hand_out('two', 2)
    await waiting

  assert await run_for(publisher, act) == [1, 2]
