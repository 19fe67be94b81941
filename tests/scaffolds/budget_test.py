"""A budget is never exceeded, wastes nothing, and decides alike every time."""

import asyncio
import dataclasses
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from qed.scaffolds import prompts
from qed.scaffolds.calls import Calls, OutOfBudget, settle
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Scripted, completion

pytestmark = pytest.mark.timeout(30)
HELLO = prompts.user('Hello!')


def asks(calls, num, **arguments):
  return [
    calls.ask('solver', HELLO, label=str(i), **arguments) for i in range(num)
  ]


async def test_a_call_needs_room_for_all_that_it_may_take():
  # Each takes 10 of the 100 that it may: the 16th begins at 150 of 250.
  llm = Scripted(lambda asked: 'x')
  calls = Calls(
    PROBLEM, llm, scripted.setup(budget=scripted.budget(max_tokens=250))
  )
  for number in range(16):
    await calls.ask('solver', HELLO, label=f'{number}')
  with pytest.raises(OutOfBudget, match=r'260 tokens .* of 250'):
    await calls.ask('solver', HELLO, label='17')
  assert calls.usage()['refused'] == 1
  assert calls.usage()['calls'] == len(llm.asked) == 16


async def test_a_smaller_call_may_fit_where_a_large_one_does_not():
  calls = Calls(
    PROBLEM,
    Scripted(lambda asked: 'x'),
    scripted.setup(budget=scripted.budget(max_tokens=99)),
  )
  with pytest.raises(OutOfBudget):
    await calls.ask('solver', HELLO, label='a')
  small = scripted.config.SamplingConfig(
    temperature=1.0, top_p=1.0, top_k=0, max_tokens=99
  )
  assert (
    await calls.ask('solver', HELLO, label='b', sampling=small)
  ).text == 'x'


async def test_calls_in_flight_keep_their_reservation():
  llm = Scripted(lambda asked: 'x', secs=0.01)
  calls = Calls(
    PROBLEM, llm, scripted.setup(budget=scripted.budget(max_tokens=250))
  )
  answers = await settle(asks(calls, 20))
  assert llm.most_running == 2
  assert [answer is not None for answer in answers] == [True] * 16 + [False] * 4


async def test_a_small_call_does_not_overtake_a_large_one():
  llm = Scripted(lambda asked: 'x', secs=0.01)
  setup = scripted.setup(budget=scripted.budget(max_tokens=250))
  calls = Calls(PROBLEM, llm, setup)
  small = dataclasses.replace(scripted.SAMPLING, max_tokens=1)
  # The third has to wait for the first two; the fourth would fit beside them.
  await settle(
    calls.ask('solver', HELLO, label=str(i), sampling=small if i == 3 else None)
    for i in range(4)
  )
  assert [asked.params.max_tokens for asked in llm.asked] == [100, 100, 100, 1]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  taken=st.lists(st.integers(0, 100), min_size=1, max_size=12),
  limit=st.integers(1, 700),
  seed=st.integers(0, 99),
)
def test_the_same_calls_are_made_however_long_each_takes(taken, limit, seed):
  made, spent = [], 0
  for number, tokens in enumerate(taken):
    if spent + 100 <= limit:
      made.append(number)
      spent += tokens

  class Llm:
    reserved = spent = 0

    async def sample(self, prompt, params, *, n=1):
      number = int(prompt.messages[0].content)
      self.reserved += 100
      assert self.spent + self.reserved <= limit
      for _ in range(durations[number]):
        await asyncio.sleep(0)
      self.reserved -= 100
      self.spent += taken[number]
      return [completion('x', num_tokens=taken[number])]

  rng = random.Random(seed)
  durations = [rng.randrange(20) for _ in taken]

  async def run():
    calls = Calls(
      PROBLEM, Llm(), scripted.setup(budget=scripted.budget(max_tokens=limit))
    )
    return await settle(
      calls.ask('solver', prompts.user(f'{i} '), label=str(i))
      for i in range(len(taken))
    )

  answers = asyncio.run(run())
  assert [i for i, answer in enumerate(answers) if answer] == made


async def test_money_is_reserved_for_the_longest_prompt_that_it_may_be():
  # Hello! and what is around it: at most 6 + 16 + 16 = 38 tokens of 2 usd, and
  # 100 of 10 usd, per million: 0.001076 usd. Each takes 10 of 10 usd, 0.0001.
  prices = {'usd_per_million_prompt': 2.0, 'usd_per_million_completion': 10.0}
  for limit, num_made in [
    (0.001075, 0),
    (0.001076, 1),  # A limit may be reached.
    (0.001077, 1),
    (0.001175, 1),
    (0.001177, 2),
  ]:
    calls = Calls(
      PROBLEM,
      Scripted(lambda asked: 'x'),
      scripted.setup(budget=scripted.budget(max_usd=limit, **prices)),
    )
    answers = await settle(asks(calls, 3))
    assert sum(answer is not None for answer in answers) == num_made
  with pytest.raises(OutOfBudget, match=r'0\.0013 usd .* of 0\.001177'):
    await calls.ask('solver', HELLO, label='x')


async def test_a_character_may_be_as_many_tokens_as_it_has_bytes():
  # 3 characters of 3 bytes, and 32 tokens around them: 41 of 2 usd, and 100 of
  # 10 usd, per million.
  prices = {'usd_per_million_prompt': 2.0, 'usd_per_million_completion': 10.0}
  for limit, num_made in [(0.001081, 0), (0.001082, 1)]:
    calls = Calls(
      PROBLEM,
      Scripted(lambda asked: 'x'),
      scripted.setup(budget=scripted.budget(max_usd=limit, **prices)),
    )
    answers = await settle(
      [calls.ask('solver', prompts.user('∀∃∎'), label='a')]
    )
    assert sum(answer is not None for answer in answers) == num_made


async def test_what_the_prompt_took_counts_too():
  prices = {'usd_per_million_prompt': 2.0, 'usd_per_million_completion': 10.0}
  llm = Scripted(
    lambda asked: completion('x', usage={'prompt_tokens': 30}, num_tokens=10)
  )
  budget = scripted.budget(max_usd=0.001177, **prices)
  calls = Calls(PROBLEM, llm, scripted.setup(budget=budget))
  answers = await settle(asks(calls, 3))
  assert [answer is not None for answer in answers] == [True, False, False]


async def test_time_gives_up_what_is_not_done_and_keeps_what_is():
  events = []

  class Llm:
    async def sample(self, prompt, params, *, n=1):
      await asyncio.sleep(60 if 'slow' in prompt.messages[0].content else 0)
      return [completion('x')]

  setup = scripted.setup(
    budget=scripted.budget(max_secs=0.1), on_call=events.append
  )
  calls = Calls(PROBLEM, Llm(), setup)
  answers = await settle(
    calls.ask('solver', prompts.user(f'be {pace}'), label=pace)
    for pace in ('quick', 'slow')
  )
  assert [answer is not None for answer in answers] == [True, False]
  with pytest.raises(OutOfBudget, match=r'the 0\.1 s of this attempt are over'):
    await calls.ask('solver', HELLO, label='afterwards')
  usage = calls.usage()
  assert (usage['calls'], usage['late'], usage['refused']) == (2, 1, 1)
  assert [(e.label, e.state) for e in events][-1] == ('slow', 'late')
  assert calls.solution('x').text == 'x'


async def test_time_ends_the_wait_for_room():
  llm = Scripted(lambda asked: 'x', secs=60)
  budget = scripted.budget(max_tokens=100, max_secs=0.1)
  calls = Calls(PROBLEM, llm, scripted.setup(budget=budget))
  assert await settle(asks(calls, 3)) == [None] * 3
  usage = calls.usage()
  assert (usage['calls'], usage['late'], usage['refused']) == (1, 1, 2)


async def test_a_failure_at_the_deadline_is_late_and_no_failure():
  class Llm:
    async def sample(self, prompt, params, *, n=1):
      try:
        await asyncio.sleep(60)
      except asyncio.CancelledError:
        raise scripted.Down('closed') from None

  setup = scripted.setup(budget=scripted.budget(max_secs=0.05))
  calls = Calls(PROBLEM, Llm(), setup)
  with pytest.raises(OutOfBudget):
    await calls.ask('solver', HELLO, label='a')
  assert calls.solution(None).text == ''


async def test_a_timeout_of_the_llm_is_not_the_deadline():
  llm = Scripted(lambda asked: TimeoutError('its own'))
  setup = scripted.setup(budget=scripted.budget(max_secs=60.0))
  with pytest.raises(TimeoutError, match='its own'):
    await Calls(PROBLEM, llm, setup).ask('solver', HELLO, label='a')


def test_a_limit_on_money_needs_a_price():
  with pytest.raises(ValueError, match=r'max_usd = 1\.0: needs a price'):
    scripted.budget(max_usd=1.0)
