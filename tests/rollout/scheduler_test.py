"""The scheduler over an engine whose tokens can be computed by hand."""

import asyncio
import dataclasses
import gc
import threading
import time
import weakref

import numpy as np
import pytest

from qed.rollout.engine import Layout
from qed.rollout.scheduler import Scheduler
from qed.types import SamplingParams
from tests.rollout import toy_engine
from tests.rollout.toy_engine import ToyEngine

pytestmark = pytest.mark.timeout(60)

SECS = 30.0  # Nothing here takes as long.


def layout(**changes):
  return Layout(
    **{
      'num_slots': 8,
      'max_length': 256,
      'page_size': 8,
      'num_pages': 400,
      'steps_per_chunk': 4,
      'prefill_buckets': (8, 32),
      'kv_dtype': 'float32',
    }
    | changes
  )


def sampling(max_tokens, *, seed=0, stops=()):
  return SamplingParams(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    max_tokens=max_tokens,
    stop_token_ids=stops,
    seed=seed,
  )


def random_requests(n, *, longest=60, seed=0, stops=(3, 5)):
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(0, toy_engine.VOCAB_SIZE, rng.integers(1, 40)),
      sampling(
        int(rng.integers(1, longest + 1)),
        seed=int(rng.integers(2**32)),
        stops=stops if i % 2 else (),
      ),
    )
    for i in range(n)
  ]


def expect(completion, prompt, params, salts=(1,) * 300, version=0):
  """The completion is what the request gives alone."""
  tokens, logprobs, reason = toy_engine.complete(prompt, params, salts)
  assert completion.token_ids.tolist() == tokens
  np.testing.assert_array_equal(completion.logprobs, logprobs)
  assert completion.versions.tolist() == [version] * len(tokens)
  assert completion.finish_reason == reason
  assert completion.token_ids.dtype == np.int32
  assert completion.logprobs.dtype == np.float32
  assert completion.versions.dtype == np.int32


def make(engine=None, **options):
  return Scheduler(
    engine or ToyEngine(layout()), toy_engine.params(1), **options
  )


def wait_for(claim):
  end = time.monotonic() + SECS
  while not claim():
    assert time.monotonic() < end, 'did not come true'
    time.sleep(0.001)


# Continuous batching.


@pytest.mark.parametrize('lag', [0, 1, 2])
@pytest.mark.parametrize('num_steps', [1, 4, 8])
def test_many_lengths_through_few_slots_give_what_each_gives_alone(
  lag, num_steps
):
  engine = ToyEngine(layout(steps_per_chunk=num_steps))
  asked = random_requests(64)
  with make(engine, lag=lag) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    wait_for(lambda: scheduler.stats()['slots_busy'] == 0)
    stats = scheduler.stats()
  assert stats['pages_free'] == stats['pages'] == 399
  assert stats['open'] == stats['queue'] == 0


def test_slots_are_busy_above_90_percent_while_somebody_waits():
  rng = np.random.default_rng(1)
  asked = [
    (rng.integers(0, 97, 5), sampling(int(n), seed=i))
    for i, n in enumerate(rng.integers(4, 200, 64))
  ]
  with make(ToyEngine(layout())) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    stats = scheduler.stats()
  assert stats['occupancy_queued'] > 0.9
  assert stats['tokens_total'] == sum(x.max_tokens for _, x in asked)
  assert stats['finished_length_total'] == 64


def test_a_slot_is_taken_again_in_the_chunk_after_its_budget_ends():
  submitted = threading.Event()

  def hold(operation, call, details):
    if operation == 'prefill':
      assert submitted.wait(SECS)

  engine = ToyEngine(layout(), before=hold)
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(np.arange(5), sampling(16, seed=i)) for i in range(64)
    ]
    submitted.set()
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), np.arange(5), sampling(16, seed=i))
    wait_for(lambda: scheduler.stats()['slots_busy'] == 0)
  # 64 requests of 4 chunks in 8 slots; the first ones start a chunk ahead.
  assert engine.calls['read'] in (32, 33)


def test_late_tokens_never_go_to_the_next_owner_of_a_slot():
  engine = ToyEngine(layout(num_slots=3, steps_per_chunk=4))
  asked = random_requests(200, longest=3)
  with make(engine, lag=2) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)


def test_nothing_follows_the_stop_token_within_a_chunk():
  prompt, params = np.arange(5), sampling(100, seed=4)
  tokens, _, _ = toy_engine.complete(prompt, params, [1] * 100)
  stop = tokens[5]
  with make(ToyEngine(layout(steps_per_chunk=32))) as scheduler:
    got = scheduler.submit(
      prompt, sampling(100, seed=4, stops=(96, stop))
    ).result(SECS)
  assert got.finish_reason == 'stop'
  assert got.token_ids.tolist() == tokens[: tokens.index(stop) + 1]


def test_a_request_gives_the_same_alone_and_in_a_crowd():
  x = np.arange(20), sampling(50, seed=9)
  with make() as scheduler:
    alone = scheduler.submit(*x).result(SECS)
    streams = [scheduler.submit(*y) for y in random_requests(20)]
    crowded = scheduler.submit(*x).result(SECS)
    for stream in streams:
      stream.result(SECS)
  np.testing.assert_array_equal(alone.token_ids, crowded.token_ids)
  np.testing.assert_array_equal(alone.logprobs, crowded.logprobs)


def test_who_waits_longest_comes_first():
  order = []

  def note(operation, call, details):
    if operation == 'insert':
      order.extend(x.seed for x in details)

  engine = ToyEngine(layout(num_slots=2), before=note)
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(np.arange(3), sampling(10 + i % 7, seed=i))
      for i in range(30)
    ]
    for stream in streams:
      stream.result(SECS)
  assert order == sorted(order)


def test_a_long_request_is_not_starved_by_short_ones():
  engine = ToyEngine(layout(num_slots=4, num_pages=33, max_length=256))
  with make(engine) as scheduler:
    before = [scheduler.submit(np.arange(3), sampling(60)) for _ in range(8)]
    # It needs all 32 pages but for one.
    long = scheduler.submit(np.arange(200) % 97, sampling(40, seed=1))
    after = [scheduler.submit(np.arange(3), sampling(9)) for _ in range(100)]
    expect(long.result(SECS), np.arange(200) % 97, sampling(40, seed=1))
    assert all(stream.is_done for stream in before)
    for stream in after:
      stream.result(SECS)


def test_slots_that_split_the_pool_use_their_own_parts():
  engine = ToyEngine(layout(num_pages=80), num_parts=4)
  asked = random_requests(60)
  with make(engine) as scheduler:
    streams = [scheduler.submit(*x, group=i // 4) for i, x in enumerate(asked)]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    wait_for(lambda: scheduler.stats()['slots_busy'] == 0)
    assert scheduler.stats()['pages_free'] == 76


# Groups.


def group(scheduler, prompt, n, *, max_tokens=20, first=0, name='group'):
  return [
    scheduler.submit(
      prompt, sampling(max_tokens + i, seed=first + i), group=name
    )
    for i in range(n)
  ]


@pytest.mark.parametrize('num_slots', [1, 3, 32])
def test_a_group_of_16_costs_one_prefill_also_in_pieces(num_slots):
  engine = ToyEngine(layout(num_slots=num_slots), chunk_secs=0.001)
  with make(engine) as scheduler:
    prompt = np.arange(30)
    streams = group(scheduler, prompt, 16)
    others = group(scheduler, prompt + 1, 16, name='other')
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), prompt, sampling(20 + i, seed=i))
    for i, stream in enumerate(others):
      expect(stream.result(SECS), prompt + 1, sampling(20 + i, seed=i))
    assert scheduler.stats()['prefills_total'] == 2
  assert engine.calls['prefill'] == 2


def test_interleaved_groups_cost_one_prefill_each():
  engine = ToyEngine(layout(num_slots=3), chunk_secs=0.002)
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(np.arange(9) + g, sampling(9, seed=i), group=g)
      for i in range(8)
      for g in range(4)
    ]
    for stream in streams:
      stream.result(SECS)
  assert engine.calls['prefill'] == 4


def test_members_submitted_while_others_run_share_their_prefill():
  engine = ToyEngine(layout(), chunk_secs=0.002)
  with make(engine) as scheduler:
    first = scheduler.submit(np.arange(9), sampling(200), group='a')
    wait_for(lambda: scheduler.stats()['tokens_total'] > 0)
    for seed in (1, 2):
      x = np.arange(9), sampling(9, seed=seed)
      expect(scheduler.submit(*x, group='a').result(SECS), *x)
    expect(first.result(SECS), np.arange(9), sampling(200))
    assert engine.calls['prefill'] == 1
    # Nothing is kept of a group that is over.
    scheduler.submit(np.arange(9), sampling(9), group='a').result(SECS)
    assert engine.calls['prefill'] == 2


def test_only_so_many_prefixes_are_kept():
  engine = ToyEngine(layout(num_slots=4), chunk_secs=0.002)
  with make(engine, max_prefixes=1) as scheduler:
    streams = [
      scheduler.submit(np.arange(9) + g, sampling(9, seed=i), group=g)
      for i in range(3)
      for g in range(4)
    ]
    for i, stream in enumerate(streams):
      expect(
        stream.result(SECS), np.arange(9) + i % 4, sampling(9, seed=i // 4)
      )
  assert engine.calls['prefill'] == 12


def test_equal_groups_with_other_prompts_share_nothing():
  with make() as scheduler:
    first = scheduler.submit(np.arange(9), sampling(9), group=1)
    second = scheduler.submit(np.arange(10), sampling(9), group=1)
    expect(first.result(SECS), np.arange(9), sampling(9))
    expect(second.result(SECS), np.arange(10), sampling(9))


def test_a_group_shares_its_full_prompt_pages():
  # 41 prompt tokens: 40 are read, 5 full pages; each member adds one page.
  submitted, gate = threading.Event(), threading.Event()

  def hold(operation, call, details):
    if operation == 'prefill':
      assert submitted.wait(SECS)
    if operation == 'read':
      assert gate.wait(SECS)

  # Eight that share nothing would not fit.
  with make(ToyEngine(layout(num_pages=25), before=hold)) as scheduler:
    streams = group(scheduler, np.arange(41), 8, max_tokens=100)
    submitted.set()
    wait_for(lambda: scheduler.stats()['slots_busy'] == 8)
    wait_for(lambda: scheduler.stats()['pages_free'] == 24 - (5 + 8))
    gate.set()
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), np.arange(41), sampling(100 + i, seed=i))
    wait_for(lambda: scheduler.stats()['pages_free'] == 24)


def test_a_member_that_leaves_does_not_take_the_shared_pages_along():
  engine = ToyEngine(layout(num_slots=4))
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(
        np.arange(33), sampling(1 if i % 2 else 90, seed=i), group=0
      )
      for i in range(12)
    ]
    fillers = [scheduler.submit(*x) for x in random_requests(30)]
    for i, stream in enumerate(streams):
      expect(
        stream.result(SECS), np.arange(33), sampling(1 if i % 2 else 90, seed=i)
      )
    for stream in fillers:
      stream.result(SECS)


# Pages run out.


def test_retracted_requests_go_on_with_the_same_tokens():
  # 20 pages of 8 tokens hold two and a half requests of 64 tokens.
  engine = ToyEngine(layout(num_pages=21, max_length=80))
  asked = [(np.arange(4) + i, sampling(60, seed=i)) for i in range(24)]
  with make(engine) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    stats = scheduler.stats()
    wait_for(lambda: scheduler.stats()['pages_free'] == 20)
  assert stats['retractions_total'] > 0
  assert stats['restarts_total'] == 0
  # About once for each request, and not again and again.
  assert stats['retractions_total'] <= 48


def test_the_youngest_is_retracted_first():
  budgets = {}

  def note(operation, call, details):
    for x in details if operation == 'insert' else ():
      budgets.setdefault(x.seed, []).append(x.num_drawn)

  engine = ToyEngine(
    layout(num_pages=13, max_length=96, num_slots=3), before=note
  )
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(np.arange(4), sampling(80, seed=i)) for i in range(3)
    ]
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), np.arange(4), sampling(80, seed=i))
  assert budgets[0] == [0]
  assert len(budgets[2]) > 1


def test_pages_follow_the_tokens_and_not_the_budget():
  # At their full budgets the requests would take 8 x 32 pages.
  engine = ToyEngine(layout(num_pages=60))
  prompt, stops = np.arange(4), tuple(range(8))
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(prompt, sampling(250, seed=i, stops=stops))
      for i in range(8)
    ]
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), prompt, sampling(250, seed=i, stops=stops))
    assert scheduler.stats()['retractions_total'] == 0


# Weights in flight.


def test_a_swap_reaches_running_requests_and_keeps_their_cache():
  engine = ToyEngine(layout(), chunk_secs=0.002)
  prompt = np.arange(12)
  with make(engine) as scheduler:
    streams = [
      scheduler.submit(prompt + i, sampling(200, seed=i)) for i in range(8)
    ]
    for version in range(1, 6):
      done = scheduler.stats()['chunks_total'] + 4
      wait_for(lambda done=done: scheduler.stats()['chunks_total'] >= done)
      future = scheduler.update_weights(toy_engine.params(version + 1), version)
      assert future.result(SECS) == version
      assert scheduler.version == version
    for i, stream in enumerate(streams):
      got = stream.result(SECS)
      assert (np.diff(got.versions) >= 0).all()
      assert set(got.versions.tolist()) == {0, 1, 2, 3, 4, 5}
      # The salt of version v is v + 1.
      tokens, logprobs, reason = toy_engine.complete(
        prompt + i, sampling(200, seed=i), got.versions + 1
      )
      assert got.token_ids.tolist() == tokens
      np.testing.assert_array_equal(got.logprobs, logprobs)
      assert got.finish_reason == reason == 'length'


def test_after_a_swap_new_requests_know_nothing_of_the_old_weights():
  with make() as scheduler:
    scheduler.update_weights(toy_engine.params(2), 10).result(SECS)
    got = scheduler.submit(np.arange(9), sampling(20)).result(SECS)
  expect(got, np.arange(9), sampling(20), salts=[2] * 20, version=10)


def test_a_prefix_is_not_used_across_versions():
  engine = ToyEngine(layout(num_slots=2), chunk_secs=0.002)
  prompt = np.arange(30)
  with make(engine) as scheduler:
    streams = group(scheduler, prompt, 16)
    wait_for(lambda: scheduler.stats()['finished_length_total'] >= 4)
    scheduler.update_weights(toy_engine.params(2), 1).result(SECS)
    for i, stream in enumerate(streams):
      got = stream.result(SECS)
      # Replayed with a prompt that was read under the first token's version.
      tokens, _, _ = toy_engine.complete(
        prompt, sampling(20 + i, seed=i), got.versions + 1
      )
      assert got.token_ids.tolist() == tokens
  assert engine.calls['prefill'] == 2


def test_a_prompt_that_is_half_read_is_read_again_after_a_swap():
  pieces = []
  reached, gate = threading.Event(), threading.Event()

  def hold(operation, call, details):
    if operation == 'piece':
      pieces.append(call)
      if call == 3:
        reached.set()
        assert gate.wait(SECS)

  engine = ToyEngine(layout(prefill_buckets=(8,)), before=hold)
  with make(engine, max_prefill_tokens=8) as scheduler:
    running = scheduler.submit(np.arange(3), sampling(200))
    wait_for(lambda: scheduler.stats()['tokens_total'] > 0)
    stream = scheduler.submit(np.arange(60), sampling(9))
    assert reached.wait(SECS)
    future = scheduler.update_weights(toy_engine.params(2), 1)
    gate.set()
    future.result(SECS)
    expect(
      stream.result(SECS), np.arange(60), sampling(9), salts=[2] * 9, version=1
    )
    running.result(SECS)


def test_memory_is_flat_over_50_swaps():
  class Leaf(np.ndarray):
    """An array that can be watched."""

  def weights(salt):
    return {'salt': np.array([salt], np.int64).view(Leaf)}

  first = weights(1)
  refs = [weakref.ref(first['salt'])]
  engine = ToyEngine(layout())
  with Scheduler(engine, first) as scheduler:
    del first
    streams = [scheduler.submit(*x) for x in random_requests(8, longest=200)]
    for version in range(1, 51):
      new = weights(version)
      refs.append(weakref.ref(new['salt']))
      scheduler.update_weights(new, version).result(SECS)
      del new
    for stream in streams:
      stream.result(SECS)
    wait_for(lambda: scheduler.stats()['slots_busy'] == 0)
    gc.collect()
    assert [ref() is None for ref in refs] == [True] * 50 + [False]
  gc.collect()
  assert refs[-1]() is None


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({}, r"have no \['salt'\]"),
    ({'salt': np.ones(1, int), 'b': np.ones(1)}, r"have \['b'\], which is not"),
    ({'salt': np.ones(2, int)}, r"\['salt'\] with shape \(2,\), expected \(1,"),
    ({'salt': np.ones(1, np.int32)}, 'dtype int32, expected int64'),
  ],
)
def test_weights_that_would_need_compiling_are_refused(wrong, message):
  with make() as scheduler:
    with pytest.raises(ValueError, match=message):
      scheduler.update_weights(wrong, 1)
    assert scheduler.version == 0
    expect(
      scheduler.submit(np.arange(3), sampling(5)).result(SECS),
      np.arange(3),
      sampling(5),
    )


def test_a_trainer_that_went_back_brings_an_older_version():
  with make(version=7) as scheduler:
    with pytest.raises(ValueError, match='from 0 on, got -1'):
      scheduler.update_weights(toy_engine.params(2), -1)
    for version in (3, 3, 0):
      scheduler.update_weights(toy_engine.params(2), version).result(SECS)
      assert scheduler.version == version
      completion = scheduler.submit(np.arange(4), sampling(3)).result(SECS)
      assert completion.versions.tolist() == [version] * 3


# Ends of requests.


def test_cancelling_frees_the_slot_and_keeps_the_tokens():
  engine = ToyEngine(layout(num_slots=1), chunk_secs=0.002)
  with make(engine) as scheduler:
    long = scheduler.submit(np.arange(4), sampling(200))
    waiting = scheduler.submit(np.arange(4), sampling(200))
    next_one = scheduler.submit(np.arange(5), sampling(9))
    wait_for(lambda: scheduler.stats()['tokens_total'] >= 10)
    waiting.cancel()
    long.cancel()
    expect(next_one.result(SECS), np.arange(5), sampling(9))
    got = long.result(SECS)
    n = len(got.token_ids)
    assert 10 <= n < 200
    assert got.finish_reason == 'abort'
    assert len(got.logprobs) == len(got.versions) == n
    tokens, _, _ = toy_engine.complete(np.arange(4), sampling(n), [1] * n)
    assert got.token_ids.tolist() == tokens
    assert waiting.result(SECS).finish_reason == 'abort'
    assert not len(waiting.result(SECS).token_ids)
    wait_for(lambda: scheduler.stats()['pages_free'] == 399)
  assert engine.calls['generate'] < 40


def test_cancelling_while_the_prompt_is_read_reads_no_further():
  reached, gate = threading.Event(), threading.Event()

  def hold(operation, call, details):
    if operation == 'piece' and call == 3:
      reached.set()
      assert gate.wait(SECS)

  engine = ToyEngine(layout(prefill_buckets=(8,)), before=hold)
  with make(engine, max_prefill_tokens=8) as scheduler:
    running = scheduler.submit(np.arange(3), sampling(200))
    wait_for(lambda: scheduler.stats()['tokens_total'] > 0)
    long = scheduler.submit(np.arange(90), sampling(9))
    assert reached.wait(SECS)
    long.cancel()
    gate.set()
    assert long.result(SECS).finish_reason == 'abort'
    running.result(SECS)
  assert engine.calls['piece'] == 3
  assert engine.calls['insert'] == 1


def test_cancelling_twice_or_late_changes_nothing():
  with make() as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(9))
    got = stream.result(SECS)
    stream.cancel()
    stream.cancel()
    assert stream.result(SECS) is got
    assert scheduler.stats()['finished_abort_total'] == 0


def test_a_deadline_ends_running_and_waiting_requests():
  engine = ToyEngine(layout(num_slots=1), chunk_secs=0.005)
  with make(engine) as scheduler:
    running = scheduler.submit(np.arange(4), sampling(250), deadline_secs=0.1)
    waiting = scheduler.submit(np.arange(4), sampling(250), deadline_secs=0.05)
    patient = scheduler.submit(np.arange(4), sampling(20), deadline_secs=SECS)
    got = running.result(SECS)
    assert got.finish_reason == 'abort'
    assert 0 < len(got.token_ids) < 250
    assert waiting.result(SECS).finish_reason == 'abort'
    expect(patient.result(SECS), np.arange(4), sampling(20))


@pytest.mark.parametrize(
  ('ids', 'changes', 'message'),
  [
    (np.zeros(0, int), {}, r'expected token ids int \[n\] with n >= 1'),
    (np.zeros((2, 2), int), {}, r'got int64 \[2, 2\]'),
    (np.zeros(2), {}, 'got float64'),
    ([3, 97], {}, 'from 0 to 96, got 3 to 97'),
    ([-1], {}, 'from 0 to 96, got -1'),
    (np.zeros(200, int), {'max_tokens': 57}, 'make 257, but the engine holds'),
    (np.zeros(9, int), {'max_tokens': 200}, 'need 26 pages of 8 tokens, but'),
    ([1], {'max_tokens': 0}, 'max_tokens must be at least 1, got 0'),
    ([1], {'temperature': -1.0}, 'temperature must be'),
    ([1], {'temperature': float('nan')}, 'temperature must be'),
    ([1], {'top_p': 0.0}, 'top_p must be above 0'),
    ([1], {'top_k': -1}, 'top_k must be'),
    ([1], {'seed': -1}, 'seed must be from 0'),
    ([1], {'stop_token_ids': tuple(range(9))}, 'at most 8 ids'),
    ([1], {'stop_token_ids': (97,)}, 'from 0 to 96'),
  ],
)
def test_what_cannot_be_served_is_refused_at_once(ids, changes, message):
  with make(ToyEngine(layout(num_pages=26))) as scheduler:
    running = scheduler.submit(np.arange(4), sampling(30))
    with pytest.raises(ValueError, match=message):
      scheduler.submit(ids, dataclasses.replace(sampling(5), **changes))
    expect(running.result(SECS), np.arange(4), sampling(30))
    assert scheduler.stats()['requests_total'] == 1
    assert scheduler.stats()['restarts_total'] == 0


def test_the_longest_request_that_fits_is_served():
  engine = ToyEngine(layout(num_pages=33))
  with make(engine) as scheduler:
    for n in (1, 100, 255):
      prompt, params = np.arange(n) % 97, sampling(256 - n)
      expect(scheduler.submit(prompt, params).result(SECS), prompt, params)


# Streams.


async def test_pieces_add_up_to_the_completion():
  engine = ToyEngine(layout(), chunk_secs=0.003)
  with make(engine) as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(50))
    pieces = [piece async for piece in stream]
    whole = await stream.completion()
  expect(whole, np.arange(4), sampling(50))
  assert [x.finish_reason for x in pieces] == [
    *[None] * (len(pieces) - 1),
    'length',
  ]
  assert len(pieces) > 5
  for name in ('token_ids', 'logprobs', 'versions'):
    np.testing.assert_array_equal(
      np.concatenate([getattr(x, name) for x in pieces]), getattr(whole, name)
    )


async def test_pieces_come_while_the_request_runs():
  gate = threading.Event()

  def hold(operation, call, details):
    if operation == 'read' and call > 3:
      assert gate.wait(SECS)

  with make(ToyEngine(layout(), before=hold)) as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(50))
    iterator = aiter(stream)
    first = await asyncio.wait_for(anext(iterator), SECS)
    assert not stream.is_done
    assert len(first.token_ids) in (4, 8, 12)
    gate.set()
    rest = [piece async for piece in iterator]
    assert rest[-1].finish_reason == 'length'


async def test_a_finished_request_can_still_be_read_as_pieces():
  with make() as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(30))
    stream.result(SECS)
    pieces = [piece async for piece in stream]
  assert len(pieces) == 1
  assert len(pieces[0].token_ids) == 30


async def test_pieces_continue_without_a_gap_over_failures_and_retraction():
  engine = ToyEngine(
    layout(num_pages=21, max_length=80),
    before=fail_at('generate', 6, 11),
    chunk_secs=0.001,
  )
  asked = [(np.arange(4) + i, sampling(60, seed=i)) for i in range(8)]

  async def read(stream):
    return np.concatenate([piece.token_ids async for piece in stream])

  with make(engine) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    got = await asyncio.wait_for(
      asyncio.gather(*[read(stream) for stream in streams]), SECS
    )
    assert scheduler.stats()['retractions_total'] > 0
  for ids, x in zip(got, asked, strict=True):
    assert ids.tolist() == toy_engine.complete(*x, [1] * 60)[0]


async def test_leaving_a_wait_does_not_disturb_the_request():
  with make(ToyEngine(layout(), chunk_secs=0.01)) as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(30))
    with pytest.raises(asyncio.TimeoutError):
      await asyncio.wait_for(stream.completion(), 0.01)
    expect(await stream.completion(), np.arange(4), sampling(30))


def test_a_loop_that_is_gone_does_not_disturb_the_engine():
  with make(ToyEngine(layout(), chunk_secs=0.01)) as scheduler:

    async def leave():
      stream = scheduler.submit(np.arange(4), sampling(30))
      waiting = asyncio.ensure_future(stream.completion())
      await asyncio.sleep(0.01)
      waiting.cancel()
      return stream

    stream = asyncio.run(leave())
    expect(stream.result(SECS), np.arange(4), sampling(30))
    assert scheduler.stats()['restarts_total'] == 0


def test_threads_may_submit_at_the_same_time():
  asked = random_requests(80)
  got = [None] * 80
  with make() as scheduler:

    def work(i):
      for j in range(i, 80, 8):
        got[j] = scheduler.submit(*asked[j]).result(SECS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(SECS)
  for completion, x in zip(got, asked, strict=True):
    expect(completion, *x)


# Failures.


def fail_at(operation, *calls):
  def before(name, call, details):
    if name == operation and call in calls:
      raise RuntimeError(f'injected into {name} {call}')

  return before


@pytest.mark.parametrize('operation', ['generate', 'read', 'insert', 'prefill'])
@pytest.mark.parametrize('lag', [0, 1])
def test_two_failures_in_a_run_of_128_requests_change_nothing(operation, lag):
  engine = ToyEngine(layout(), before=fail_at(operation, 9, 23))
  asked = random_requests(128)
  with make(engine, lag=lag) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    stats = scheduler.stats()
    assert stats['restarts_total'] == 2
    wait_for(lambda: scheduler.stats()['pages_free'] == 399)


def test_a_group_survives_a_failure():
  engine = ToyEngine(layout(), before=fail_at('read', 3))
  with make(engine) as scheduler:
    streams = group(scheduler, np.arange(30), 16)
    for i, stream in enumerate(streams):
      expect(stream.result(SECS), np.arange(30), sampling(20 + i, seed=i))
    assert scheduler.stats()['restarts_total'] == 1
  # What was read before the failure is not trusted after it: members without
  # a token read the prompt again together, the others with what they have.
  assert engine.calls['prefill'] > 1


@pytest.mark.parametrize('operation', ['generate', 'insert'])
def test_a_request_present_in_three_failures_fails_alone(operation):
  def poison(name, call, details):
    if name == operation and any(x.seed == 666 for x in details):
      raise RuntimeError('poisoned')

  asked = random_requests(40)
  with make(ToyEngine(layout(), before=poison)) as scheduler:
    streams = [scheduler.submit(*x) for x in asked[:20]]
    bad = scheduler.submit(np.arange(4), sampling(30, seed=666))
    streams += [scheduler.submit(*x) for x in asked[20:]]
    assert bad.result(SECS).finish_reason == 'error'
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    stats = scheduler.stats()
  assert stats['restarts_total'] == 3
  assert stats['finished_error_total'] == 1


def test_a_prompt_that_cannot_be_read_fails_alone():
  def poison(name, call, details):
    if name == 'prefill' and details[0] == 96:
      raise RuntimeError('poisoned')

  asked = [(np.arange(4) + i, sampling(40, seed=i)) for i in range(20)]
  with make(ToyEngine(layout(), before=poison)) as scheduler:
    streams = [scheduler.submit(*x) for x in asked[:10]]
    bad = scheduler.submit(np.array([96, 3]), sampling(30))
    streams += [scheduler.submit(*x) for x in asked[10:]]
    assert bad.result(SECS).finish_reason == 'error'
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)


def test_what_was_drawn_before_an_error_is_kept():
  prompt, params = np.arange(4), sampling(60, seed=5)

  def poison(name, call, details):
    if name == 'generate' and call > 4:
      raise RuntimeError('dead')

  with make(ToyEngine(layout(), before=poison), lag=0) as scheduler:
    got = scheduler.submit(prompt, params).result(SECS)
  assert got.finish_reason == 'error'
  tokens, logprobs, _ = toy_engine.complete(prompt, params, [1] * 60)
  assert got.token_ids.tolist() == tokens[:16]
  np.testing.assert_array_equal(got.logprobs, logprobs[:16])


def test_neighbors_that_cannot_be_read_fail_without_the_others():
  def poison(name, call, details):
    if name == 'prefill' and details[0] == 96:
      raise RuntimeError('poisoned')

  with make(ToyEngine(layout(num_slots=1), before=poison)) as scheduler:
    bad = [scheduler.submit(np.array([96, i]), sampling(30)) for i in (1, 2)]
    good = scheduler.submit(np.arange(4), sampling(30))
    for stream in bad:
      assert stream.result(SECS).finish_reason == 'error'
    expect(good.result(SECS), np.arange(4), sampling(30))
    assert scheduler.stats()['restarts_total'] == 6
    assert scheduler.failure is None


def test_rest_after_a_failure_is_no_stall():
  def dead(name, call, details):
    if name == 'read':
      raise RuntimeError('dead')

  engine = ToyEngine(layout(), before=dead)
  with make(engine, stall_secs=0.1, compile_secs=0.1) as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(9))
    assert stream.result(SECS).finish_reason == 'error'
    time.sleep(0.4)
    assert scheduler.stats()['stalled'] == 0


@pytest.mark.parametrize('operation', ['generate', 'read', 'init_state'])
def test_an_engine_that_is_dead_fails_loudly(operation, caplog):
  def dead(name, call, details):
    if name == operation:
      raise RuntimeError('the device is gone')

  engine = ToyEngine(layout(), before=dead)
  scheduler = make(engine)
  streams = [scheduler.submit(*x) for x in random_requests(30)]
  for stream in streams:
    assert stream.result(SECS).finish_reason == 'error'
  wait_for(lambda: scheduler.failure is not None)
  assert 'failed 5 times in a row' in str(scheduler.failure)
  assert engine.calls[operation] == 5
  with pytest.raises(RuntimeError, match='failed for good'):
    scheduler.submit(np.arange(3), sampling(3))
  with pytest.raises(RuntimeError, match='failed for good'):
    scheduler.update_weights(toy_engine.params(2), 1)
  assert scheduler.stats()['failed'] == 1
  assert 'the scheduler gives up' in caplog.text
  scheduler.close(0.0)


def test_failures_with_progress_between_them_go_on_for_ever():
  engine = ToyEngine(layout(), before=fail_at('read', *range(3, 200, 3)))
  asked = random_requests(20)
  with make(engine) as scheduler:
    streams = [scheduler.submit(*x) for x in asked]
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(SECS), *x)
    assert scheduler.stats()['restarts_total'] > 10


@pytest.mark.parametrize('seed', range(6))
def test_every_request_ends_once_under_random_faults(seed):
  rng = np.random.default_rng(seed)
  kinds = ('generate', 'read', 'insert', 'piece', 'prefill')

  def fail(name, call, details):
    if name in kinds and rng.random() < 0.01:
      raise RuntimeError('injected')

  engine = ToyEngine(
    layout(num_pages=40, num_slots=6), before=fail, chunk_secs=0.0002
  )
  asked = random_requests(100, seed=seed)
  with make(engine) as scheduler:
    streams = []
    for i, x in enumerate(asked):
      streams.append(
        scheduler.submit(
          *x, group=i // 7, deadline_secs=0.02 if i % 17 == 3 else None
        )
      )
      if i % 11 == 5:
        streams[rng.integers(len(streams))].cancel()
    for stream, (prompt, params) in zip(streams, asked, strict=True):
      got = stream.result(SECS)
      tokens, logprobs, reason = toy_engine.complete(prompt, params, [1] * 300)
      n = len(got.token_ids)
      assert len(got.logprobs) == len(got.versions) == n
      assert got.token_ids.tolist() == tokens[:n]
      np.testing.assert_array_equal(got.logprobs, logprobs[:n])
      if got.finish_reason in ('stop', 'length'):
        assert (n, got.finish_reason) == (len(tokens), reason)
    wait_for(lambda: scheduler.stats()['slots_busy'] == 0)
    stats = scheduler.stats()
  ends = [v for k, v in stats.items() if k.startswith('finished')]
  assert sum(ends) == 100
  assert stats['pages_free'] == 39
  assert stats['open'] == stats['queue'] == 0


# Closing.


def test_closing_finishes_what_the_deadline_allows():
  with make(ToyEngine(layout(num_slots=2))) as scheduler:
    asked = random_requests(10)
    streams = [scheduler.submit(*x) for x in asked]
    scheduler.close(SECS)
    for stream, x in zip(streams, asked, strict=True):
      expect(stream.result(0.0), *x)
    with pytest.raises(RuntimeError, match='closed'):
      scheduler.submit(*asked[0])


def test_closing_at_once_ends_every_request_with_abort():
  scheduler = make(ToyEngine(layout(num_slots=2), chunk_secs=0.01))
  streams = [
    scheduler.submit(np.arange(4), sampling(200, seed=i)) for i in range(10)
  ]
  wait_for(lambda: scheduler.stats()['tokens_total'] > 0)
  scheduler.close(0.0)
  got = [stream.result(0.0) for stream in streams]
  assert {x.finish_reason for x in got} == {'abort'}
  assert len(got[0].token_ids) > 0
  assert not len(got[-1].token_ids)
  scheduler.close(0.0)


def test_closing_with_a_hung_engine_still_ends_every_request(monkeypatch):
  gate = threading.Event()

  def hang(name, call, details):
    if name == 'read' and call == 3:
      gate.wait(SECS)

  scheduler = make(ToyEngine(layout(), before=hang))
  monkeypatch.setattr('qed.rollout.scheduler._CLOSE_SECS', 0.1)
  stream = scheduler.submit(np.arange(4), sampling(12))
  wait_for(lambda: scheduler.stats()['chunks_total'] == 2)
  scheduler.close(0.0)
  got = stream.result(0.0)
  assert got.finish_reason == 'abort'
  assert len(got.token_ids) == 8
  # The engine comes back with the last tokens, too late.
  gate.set()
  scheduler._thread.join(SECS)
  assert stream.result(0.0) is got


def test_weights_that_never_took_effect_are_told_so():
  gate = threading.Event()

  def hold(name, call, details):
    if name == 'read':
      gate.wait(SECS)
      raise SystemError('dead')

  scheduler = make(ToyEngine(layout(), before=hold))
  stream = scheduler.submit(np.arange(4), sampling(60))
  future = scheduler.update_weights(toy_engine.params(2), 1)
  closing = threading.Thread(target=scheduler.close, args=(0.0,))
  closing.start()
  gate.set()
  closing.join(SECS)
  assert stream.result(SECS).finish_reason in ('abort', 'error')
  assert future.done()


# What runs beside the device.


def test_a_long_prompt_is_read_between_the_chunks_of_others():
  engine = ToyEngine(layout(prefill_buckets=(8,)))
  with make(engine, max_prefill_tokens=16) as scheduler:
    running = scheduler.submit(np.arange(3), sampling(200))
    wait_for(lambda: scheduler.stats()['tokens_total'] > 0)
    long = scheduler.submit(np.arange(97), sampling(9))
    expect(long.result(SECS), np.arange(97), sampling(9))
    running.result(SECS)
  between = ''.join(
    {'piece': 'p', 'generate': 'g'}.get(x, '') for x in engine.log
  )
  # The first prompt has one piece, the long one 12, two to a turn.
  assert between.count('p') == 13
  assert 'ppp' not in between


def test_an_idle_scheduler_does_not_poll():
  with make() as scheduler:
    scheduler.submit(np.arange(3), sampling(3)).result(SECS)
    turns = []
    original = scheduler._batch.turn
    scheduler._batch.turn = lambda: (turns.append(1), original())
    time.sleep(0.1)
    assert len(turns) <= 1


@pytest.mark.parametrize('lag', [0, 1, 2])
def test_the_device_has_its_next_chunk_while_the_host_reads_one(lag):
  engine = ToyEngine(layout())
  with make(engine, lag=lag) as scheduler:
    scheduler.submit(np.arange(3), sampling(160)).result(SECS)
  num_started = num_read = 0
  for operation in engine.log:
    if operation == 'generate':
      num_started += 1
    elif operation == 'read':
      num_read += 1
      assert num_started == min(num_read + lag, 40)
  assert num_read == 40


def test_a_stalled_engine_is_reported(caplog):
  gate = threading.Event()

  def hang(name, call, details):
    if name == 'read' and call == 3:
      gate.wait(SECS)

  engine = ToyEngine(layout(), before=hang)
  with make(engine, stall_secs=0.4) as scheduler:
    stream = scheduler.submit(np.arange(4), sampling(60))
    wait_for(lambda: scheduler.stats()['stalled'] == 1)
    assert scheduler.stats()['stalls_total'] >= 1
    assert 'toy_engine.py' in caplog.text
    gate.set()
    expect(stream.result(SECS), np.arange(4), sampling(60))
    wait_for(lambda: scheduler.stats()['stalled'] == 0)
    # To have nothing to do is no stall.
    before = scheduler.stats()['stalls_total']
    time.sleep(0.7)
    assert scheduler.stats()['stalls_total'] == before


def test_the_first_chunk_may_take_as_long_as_compiling():
  engine = ToyEngine(layout(), chunk_secs=0.3)
  with make(engine, stall_secs=0.04, compile_secs=SECS) as scheduler:
    scheduler.submit(np.arange(4), sampling(4)).result(SECS)
    assert scheduler.stats()['stalls_total'] == 0
