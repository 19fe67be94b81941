"""Local over a scheduler whose engine can be computed by hand."""

import asyncio

import numpy as np
import pytest

from qed.llm.local import Local, member_seeds
from qed.rollout.engine import Layout
from qed.rollout.scheduler import Scheduler
from qed.types import Prompt, SamplingParams
from tests.rollout import toy_engine

pytestmark = pytest.mark.timeout(60)

PROMPT = Prompt(
  problem_id='p', messages=(), token_ids=np.arange(20, dtype=np.int32)
)
PARAMS = SamplingParams(
  temperature=1.0,
  top_p=1.0,
  top_k=0,
  max_tokens=40,
  stop_token_ids=(3, 4, 5),
  seed=11,
)


def decode(ids):
  return ' '.join(map(str, ids))


@pytest.fixture
def scheduler():
  layout = Layout(
    num_slots=4,
    max_length=128,
    page_size=8,
    num_pages=80,
    steps_per_chunk=4,
    prefill_buckets=(8, 32),
    kv_dtype='float32',
  )
  engine = toy_engine.ToyEngine(layout, chunk_secs=0.002)
  with Scheduler(engine, toy_engine.params(1)) as scheduler:
    yield scheduler


async def test_members_are_the_completions_of_their_seeds(scheduler):
  got = await Local(scheduler, decode).sample(PROMPT, PARAMS, n=16)
  assert scheduler.stats()['prefills_total'] == 1
  assert len({tuple(x.token_ids) for x in got}) == 16
  reasons = set()
  for seed, completion in zip(member_seeds(11, 16), got, strict=True):
    alone = SamplingParams(
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      max_tokens=40,
      stop_token_ids=(3, 4, 5),
      seed=seed,
    )
    tokens, logprobs, reason = toy_engine.complete(
      PROMPT.token_ids, alone, [1] * 40
    )
    assert completion.token_ids.tolist() == tokens
    np.testing.assert_array_equal(completion.logprobs, logprobs)
    assert completion.finish_reason == reason
    written = tokens[:-1] if reason == 'stop' else tokens
    assert completion.text == decode(written)
    reasons.add(reason)
  assert reasons == {'stop', 'length'}


def test_seeds_have_no_member_in_common_and_the_same_beginning():
  seeds = [member_seeds(i, 16) for i in range(100)]
  assert len({x for some in seeds for x in some}) == 1600
  assert member_seeds(7, 3) == member_seeds(7, 16)[:3]
  assert all(type(x) is int and 0 <= x < 2**32 for x in seeds[0])
  assert len(member_seeds(2**63, 2)) == 2
  with pytest.raises(ValueError, match='non-negative'):
    member_seeds(-1, 1)


async def test_cancelling_the_task_cancels_its_requests(scheduler):
  task = asyncio.create_task(
    Local(scheduler, decode).sample(PROMPT, PARAMS, n=8)
  )
  while not scheduler.stats()['slots_busy']:
    await asyncio.sleep(0.001)
  task.cancel()
  with pytest.raises(asyncio.CancelledError):
    await task
  while scheduler.stats()['open']:
    await asyncio.sleep(0.001)
  assert scheduler.stats()['finished_abort_total'] > 0


async def test_two_calls_with_one_prompt_are_two_groups(scheduler):
  llm = Local(scheduler, decode)
  first, second = await asyncio.gather(
    llm.sample(PROMPT, PARAMS, n=2), llm.sample(PROMPT, PARAMS, n=2)
  )
  for x, y in zip(first, second, strict=True):
    np.testing.assert_array_equal(x.token_ids, y.token_ids)
  assert scheduler.stats()['prefills_total'] == 2


async def test_what_the_engine_cannot_serve_is_the_callers_error(scheduler):
  long = Prompt(problem_id='p', messages=(), token_ids=np.zeros(200, np.int32))
  with pytest.raises(ValueError, match='max_length = 128'):
    await Local(scheduler, decode).sample(long, PARAMS, n=2)
  assert scheduler.stats()['open'] == 0
