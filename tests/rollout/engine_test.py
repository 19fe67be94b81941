"""The engine tells the truth about its log-probs, whatever shares the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import base
from qed.algos.logprobs import token_logprobs
from qed.models import qwen3, sharding, specs
from qed.rollout import engine as engines
from qed.rollout import layout as layouts
from qed.rollout import paged_cache, ragged
from qed.rollout.engine import Engine, Insertion, Layout

CONFIG = qwen3.Config(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  rope_theta=1e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
  initializer_range=0.15,
)
LAYOUT = Layout(
  num_slots=8,
  max_length=32,
  page_size=8,
  num_pages=40,
  steps_per_chunk=4,
  prefill_buckets=(16,),
  kv_dtype='float32',
)
PROMPTS = [
  np.random.default_rng(i).integers(0, 64, n).astype(np.int32)
  for i, n in enumerate([1, 5, 8, 9, 16, 17, 18, 24])
]


@pytest.fixture(scope='module')
def params():
  return qwen3.init(CONFIG, jax.random.key(0))


@pytest.fixture(scope='module')
def engine(params):
  engine = Engine(CONFIG, LAYOUT, dtype=jnp.float32)
  engine.warm_up(params)
  return engine


def request(ids, **changes):
  """A prompt and the fields of its insertion; it takes slot and seed 0."""
  fields = {
    'slot': 0,
    'seed': 0,
    'num_drawn': 0,
    'budget': min(LAYOUT.max_length - len(ids), 12),
    'temperature': 1.0,
    'top_p': 1.0,
    'top_k': 0,
    'stop_token_ids': (),
  }
  return ids, Insertion(**{**fields, **changes})


def crowd(**changes):
  """One request for every slot."""
  return [
    request(ids, slot=slot, seed=100 + slot, **changes)
    for slot, ids in enumerate(PROMPTS)
  ]


class Driver:
  """The least that can drive an engine: every slot owns its pages."""

  def __init__(self, engine, params):
    self.engine, self.params = engine, params
    self.state = engine.init_state()
    layout = engine.layout
    self.tables = np.zeros((layout.num_slots, layout.max_pages), np.int32)
    self.killed = np.zeros(layout.num_slots, bool)

  def own_pages(self, slot, count):
    """Pages of the slot's part of the pool, never the first of it."""
    layout, parts = self.engine.layout, self.engine.num_parts
    per_part = layout.num_slots // parts
    part, place = divmod(slot, per_part)
    first = part * (layout.num_pages // parts) + 1 + place * layout.max_pages
    return np.arange(first, first + count, dtype=np.int32)

  def insert(self, ids, insertion):
    prefix = self.engine.prefill(self.params, ids)
    slot, size = insertion.slot, self.engine.layout.page_size
    pages = self.own_pages(slot, -(-(len(ids) + insertion.budget) // size))
    self.tables[slot] = 0
    self.tables[slot, : len(pages)] = pages
    self.state = self.engine.insert(
      self.state, prefix, [insertion], pages[None, : prefix.num_pages]
    )

  def chunk(self):
    self.state, chunk = self.engine.generate(
      self.params, self.state, self.tables, self.killed
    )
    self.killed[:] = False
    return self.engine.read(chunk)

  def finish(self, num_slots):
    """Chunks until so many are done: {slot: (tokens, logprobs, reason)}."""
    pieces, reasons = {}, {}
    for _ in range(2 * self.engine.layout.max_length):
      chunk = self.chunk()
      for slot in np.flatnonzero(chunk.count):
        n = chunk.count[slot]
        pieces.setdefault(slot, []).append(
          (chunk.tokens[slot, :n], chunk.logprobs[slot, :n])
        )
        if chunk.done[slot]:
          reasons[slot] = int(chunk.reason[slot])
      if len(reasons) == num_slots:
        break
    assert len(reasons) == num_slots
    return {
      slot: (
        *(np.concatenate(x) for x in zip(*both, strict=True)),
        reasons[slot],
      )
      for slot, both in pieces.items()
    }


def run(engine, params, requests):
  """What requests give that run together, by slot."""
  driver = Driver(engine, params)
  for ids, insertion in requests:
    driver.insert(ids, insertion)
  return driver.finish(len(requests))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _row_logprobs(params, row, temperature, config):
  positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
  hidden = qwen3.apply(
    params, row, positions, jnp.ones_like(row), config=config, dtype=jnp.float32
  )
  head, targets = qwen3.output_head(params), jnp.roll(row, -1, 1)
  return token_logprobs(hidden, head, targets, temperature=temperature)[0][0]


def trainer_logprobs(params, ids, num_prompt, temperature, config=CONFIG):
  """What the trainer finds for the tokens after a prompt."""
  row = np.zeros((1, 32), np.int32)
  row[0, : len(ids)] = ids
  found = _row_logprobs(params, row, temperature, config)
  return np.asarray(found)[num_prompt - 1 : len(ids) - 1]


def assert_equal_runs(got, expected, atol=1e-5):
  assert got.keys() == expected.keys()
  for slot in got:
    np.testing.assert_array_equal(got[slot][0], expected[slot][0])
    np.testing.assert_allclose(got[slot][1], expected[slot][1], atol=atol)
    assert got[slot][2] == expected[slot][2]


# The truth about log-probabilities.


@pytest.mark.parametrize('temperature', [0.5, 0.8, 1.0, 1.5])
def test_logprobs_are_the_trainers(engine, params, temperature):
  # Prompts of 1, of whole pages, and of more than one piece.
  out = run(engine, params, crowd(temperature=temperature))
  for slot, ids in enumerate(PROMPTS):
    tokens, logprobs, _ = out[slot]
    expected = trainer_logprobs(
      params, np.concatenate([ids, tokens]), len(ids), temperature
    )
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def on_mesh(config, params, sizes):
  """A mesh, and the weights laid out on it."""
  mesh = sharding.make_mesh(*sizes)
  return mesh, jax.device_put(params, sharding.param_shardings(config, mesh))


def one_program_layout(**changes):
  """A layout with one bucket of everything."""
  sizes = {'max_length': 16, 'page_size': 16, 'num_pages': 16}
  return dataclasses.replace(LAYOUT, **{**sizes, **changes})


def short(requests):
  """The requests that fit 16 tokens."""
  return [
    (ids, dataclasses.replace(insertion, budget=16 - len(ids)))
    for ids, insertion in requests
    if len(ids) < 10
  ]


@pytest.mark.parametrize(
  ('tied', 'sizes'),
  [
    (True, (1, 1, 2)),
    (False, (8, 1, 1)),
    pytest.param(True, None, marks=pytest.mark.slow),
    pytest.param(True, (8, 1, 1), marks=pytest.mark.slow),
    pytest.param(True, (2, 1, 2), marks=pytest.mark.slow),
    pytest.param(False, (2, 1, 2), marks=pytest.mark.slow),
  ],
)
def test_logprobs_are_the_trainers_with_any_head_on_any_mesh(tied, sizes):
  config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
  params = placed = qwen3.init(config, jax.random.key(1))
  mesh = None
  if sizes is not None:
    mesh, placed = on_mesh(config, params, sizes)
  engine = Engine(config, one_program_layout(), mesh=mesh, dtype=jnp.float32)
  requests = short(crowd(temperature=0.8))
  out = run(engine, placed, requests)
  for ids, insertion in requests:
    tokens, logprobs, _ = out[insertion.slot]
    expected = trainer_logprobs(
      params, np.concatenate([ids, tokens]), len(ids), 0.8, config
    )
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


@pytest.fixture(scope='module')
def narrow(params):
  """What short requests give with a cache of another dtype."""

  @functools.cache
  def run_with(kv_dtype):
    layout = one_program_layout(kv_dtype=kv_dtype)
    engine = Engine(CONFIG, layout, dtype=jnp.float32)
    return run(engine, params, short(crowd()))

  return run_with


@pytest.mark.parametrize(
  ('kv_dtype', 'bound'), [('bfloat16', 0.05), ('int8', 0.1)]
)
def test_a_narrow_cache_moves_logprobs_little(
  params, narrow, kv_dtype, bound, record_property
):
  differences = [[], []]  # Of the first four tokens, and of the others.
  out = narrow(kv_dtype)
  for ids, insertion in short(crowd()):
    tokens, logprobs, _ = out[insertion.slot]
    expected = trainer_logprobs(
      params, np.concatenate([ids, tokens]), len(ids), 1.0
    )
    difference = np.abs(logprobs - expected)
    differences[0] += [*difference[:4]]
    differences[1] += [*difference[4:]]
  for name, values in zip(('first', 'later'), differences, strict=True):
    mean, p99, top = np.mean(values), np.quantile(values, 0.99), np.max(values)
    # Of Python's own: xdist cannot send others.
    record_property(f'{name}_mean_p99_max', [*map(float, (mean, p99, top))])
    assert 0 < top < bound


def test_an_int8_cache_in_pages_on_a_mesh_gives_the_same(params, narrow):
  mesh, placed = on_mesh(CONFIG, params, (2, 1, 2))
  layout = one_program_layout(page_size=8, num_pages=20, kv_dtype='int8')
  engine = Engine(CONFIG, layout, mesh=mesh, dtype=jnp.float32)
  assert_equal_runs(run(engine, placed, short(crowd())), narrow('int8'))


def test_int8_vectors_are_within_half_a_step_of_the_originals():
  x = np.random.default_rng(0).normal(0, 3, (5, 2, 16)).astype(np.float32)
  x[0, 0] = 0
  stored = paged_cache.store(jnp.asarray(x), 'int8')
  assert stored.values.dtype == jnp.int8
  step = np.abs(x).max(-1, keepdims=True) / 127
  seen = np.asarray(paged_cache.load(stored, jnp.float32))
  assert (np.abs(seen - x) <= 0.501 * step).all()


# A request is its own.


def test_a_request_alone_and_in_a_crowd_gives_the_same(engine, params):
  together = run(engine, params, crowd())
  for slot, ids in enumerate(PROMPTS):
    other = (slot + 3) % 8
    alone = run(engine, params, [request(ids, slot=other, seed=100 + slot)])
    assert_equal_runs({slot: alone[other]}, {slot: together[slot]})


@pytest.fixture(scope='module')
def eleven_slots(params):
  """An engine of another batch size, that takes one step per chunk."""
  layout = one_program_layout(num_slots=11, steps_per_chunk=1)
  return Engine(CONFIG, layout, dtype=jnp.float32)


def test_neither_the_steps_of_a_chunk_nor_the_slots_change_a_request(
  engine, eleven_slots, params
):
  requests = short(crowd())
  assert_equal_runs(
    run(eleven_slots, params, requests), run(engine, params, requests)
  )


def test_a_request_resumed_from_its_tokens_goes_on_the_same(engine, params):
  ids = PROMPTS[3]
  tokens, logprobs, _ = run(engine, params, [request(ids, seed=7)])[0]
  for cut in (1, 5, 11):
    resumed = request(
      np.concatenate([ids, tokens[:cut]]),
      seed=7,
      num_drawn=cut,
      budget=12 - cut,
    )
    rest = run(engine, params, [resumed])[0]
    np.testing.assert_array_equal(rest[0], tokens[cut:])
    np.testing.assert_allclose(rest[1], logprobs[cut:], atol=1e-5)


def test_a_slot_that_is_used_again_remembers_nothing(engine, params):
  # Budgets of 1 to 3 tokens, so that slots change hands inside every chunk.
  driver = Driver(engine, params)
  for turn in range(3):
    requests = [
      request(
        ids, slot=slot, seed=10 * turn + slot, budget=1 + (slot + turn) % 3
      )
      for slot, ids in enumerate(np.roll(np.arange(8), turn))
      for ids in [PROMPTS[ids]]
    ]
    for each in requests:
      driver.insert(*each)
    out = driver.finish(8)
    if turn == 2:
      assert_equal_runs(out, run(engine, params, requests))


def test_members_of_a_group_share_full_pages_and_draw_differently(
  engine, params
):
  ids = PROMPTS[6]  # 17 tokens are read: two full pages and a partial one.
  driver = Driver(engine, params)
  prefix = engine.prefill(params, ids)
  pages = np.array([[30, 31, 32 + member] for member in range(4)], np.int32)
  driver.tables[:4, :3] = pages
  driver.tables[:4, 3] = np.arange(36, 40)
  members = [request(ids, slot=slot, seed=slot)[1] for slot in range(4)]
  # The prefix outlives its insertions, and the group may enter in parts.
  for part in (slice(0, 3), slice(3, 4)):
    driver.state = engine.insert(
      driver.state, prefix, members[part], pages[part]
    )
  out = driver.finish(4)
  assert len({tuple(out[slot][0]) for slot in range(4)}) == 4
  assert len({int(out[slot][0][0]) for slot in range(4)}) > 1
  for slot in range(4):
    alone = run(engine, params, [request(ids, seed=slot)])
    assert_equal_runs({slot: out[slot]}, {slot: alone[0]})


def test_a_group_of_more_than_one_call_enters_whole(
  engine, eleven_slots, params
):
  driver = Driver(eleven_slots, params)
  prefix = eleven_slots.prefill(params, PROMPTS[1])
  members = [
    request(PROMPTS[1], slot=slot, seed=slot, budget=4)[1] for slot in range(11)
  ]
  pages = np.arange(1, 12, dtype=np.int32)[:, None]
  driver.tables[:] = pages
  driver.state = eleven_slots.insert(driver.state, prefix, members, pages)
  out = driver.finish(11)
  for slot in (0, 7, 8, 10):
    alone = run(engine, params, [request(PROMPTS[1], seed=slot, budget=4)])
    assert_equal_runs({0: out[slot]}, alone)


def attend_by_table(q, pages, lengths, tables):
  """What the kernel for TPU computes, slot by slot."""

  def one(q, length, row):
    both = pages[row].reshape(-1, *pages.shape[2:])
    repeats = q.shape[0] // (both.shape[1] // 2)
    k = jnp.repeat(both[:, 0::2], repeats, axis=1)
    v = jnp.repeat(both[:, 1::2], repeats, axis=1)
    scores = jnp.einsum('nh,snh->ns', q, k) * q.shape[-1] ** -0.5
    seen = jnp.arange(len(both))[None] < length
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum('ns,snh->nh', weights, v)

  return jax.vmap(one)(q, lengths, tables)


@pytest.mark.parametrize(
  'sizes', [pytest.param(None, marks=pytest.mark.slow), (2, 1, 2)]
)
def test_pages_read_in_place_give_the_same(engine, params, monkeypatch, sizes):
  expected = run(engine, params, crowd())
  monkeypatch.setattr(ragged, 'is_possible', lambda *_: True)
  monkeypatch.setattr(ragged, '_kernel', attend_by_table)
  mesh = None
  if sizes is not None:
    mesh, params = on_mesh(CONFIG, params, sizes)
  in_place = Engine(CONFIG, LAYOUT, mesh=mesh, dtype=jnp.float32)
  assert in_place.page_buckets == (4,)
  assert_equal_runs(run(in_place, params, crowd()), expected)


@pytest.mark.parametrize(
  ('heads', 'page_size', 'dtype', 'max_pages', 'expected'),
  [
    # Of Qwen3-4B's 8 heads 1, 2, 4 and 8; 256 numbers each, of 2 bytes: a page
    # of 128 tokens is 64 KiB to 512 KiB, and two buffers may take 4 MiB.
    (1, 128, 'bfloat16', 392, 16),
    (2, 128, 'bfloat16', 392, 16),
    (4, 128, 'bfloat16', 392, 8),
    (8, 128, 'bfloat16', 392, 4),
    (8, 128, 'float32', 392, 2),
    (8, 32, 'bfloat16', 392, 16),
    (8, 2_048, 'bfloat16', 25, 1),  # Less than one page is not possible.
    (8, 128, 'bfloat16', 3, 3),
  ],
)
def test_the_kernel_reads_as_many_pages_at_once_as_fit_beside_it(
  heads, page_size, dtype, max_pages, expected
):
  pages = jax.ShapeDtypeStruct((9, page_size, 2 * heads, 128), dtype)
  assert ragged.pages_per_block(pages, max_pages) == expected


# Ends.


def test_the_stop_token_is_kept_and_nothing_follows_it(engine, params):
  for slot, (ids, insertion) in enumerate(crowd()):
    tokens, logprobs, _ = run(engine, params, [(ids, insertion)])[slot]
    stop = tokens[len(tokens) // 2]
    first = np.flatnonzero(tokens == stop)[0]
    stopping = dataclasses.replace(insertion, stop_token_ids=(63, int(stop)))
    if 63 in tokens[:first]:
      continue
    got = run(engine, params, [(ids, stopping)])[slot]
    np.testing.assert_array_equal(got[0], tokens[: first + 1])
    np.testing.assert_allclose(got[1], logprobs[: first + 1], atol=1e-5)
    assert got[2] == engines.STOP


def test_nothing_is_reported_beyond_the_end_inside_a_chunk(engine, params):
  driver = Driver(engine, params)
  driver.insert(*request(PROMPTS[1], budget=2))
  chunk = driver.chunk()
  assert chunk.count.tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
  assert (chunk.tokens[0, 2:] == -1).all()
  assert np.isnan(chunk.logprobs[0, 2:]).all()
  assert chunk.done.tolist() == [True, *[False] * 7]
  assert driver.chunk().count.sum() == 0


@pytest.mark.parametrize('budget', [1, 3, 4, 5, 8])
def test_a_budget_is_met_exactly(engine, params, budget):
  tokens, _, reason = run(engine, params, [request(PROMPTS[1], budget=budget)])[
    0
  ]
  assert len(tokens) == budget
  assert reason == engines.LENGTH


def test_a_stop_token_on_the_last_of_the_budget_is_a_stop(engine, params):
  tokens, *_ = run(engine, params, [request(PROMPTS[1], budget=1)])[0]
  out = run(
    engine,
    params,
    [request(PROMPTS[1], budget=1, stop_token_ids=(int(tokens[0]),))],
  )[0]
  assert out[2] == engines.STOP


def test_token_0_is_a_token_like_any_other(engine, params):
  # A head that prefers token 0 by far.
  head = params['head'].at[0].set(0) * 1e-3
  zeros = {**params, 'head': head}
  biased = request(PROMPTS[1], temperature=0.0)
  zeros['head'] = zeros['head'] - 1e-3 * jnp.sign(zeros['head'])
  tokens, _, reason = run(engine, zeros, [biased])[0]
  assert len(tokens) == 12
  assert reason == engines.LENGTH


def test_a_killed_slot_draws_nothing_more_and_the_others_go_on(engine, params):
  expected = run(engine, params, crowd())
  driver = Driver(engine, params)
  for each in crowd():
    driver.insert(*each)
  first = driver.chunk()
  driver.killed[2] = True
  rest = driver.finish(7)
  assert 2 not in rest
  for slot in rest:
    np.testing.assert_array_equal(
      np.concatenate([first.tokens[slot], rest[slot][0]]), expected[slot][0]
    )


def test_a_slot_without_a_page_waits(engine, params):
  expected = run(engine, params, [request(PROMPTS[2])])[0]
  driver = Driver(engine, params)
  driver.insert(*request(PROMPTS[2]))
  pages = driver.tables[0].copy()
  driver.tables[0, 1:] = 0  # Room for position 7, where the first token is.
  chunk = driver.chunk()
  assert chunk.count[0] == 1
  assert not chunk.done[0]
  assert driver.chunk().count[0] == 0
  driver.tables[0] = pages
  rest = driver.finish(1)[0]
  tokens = np.concatenate([chunk.tokens[0, :1], rest[0]])
  np.testing.assert_array_equal(tokens, expected[0])


def test_idle_slots_write_nowhere(engine, params):
  driver = Driver(engine, params)
  for each in crowd(budget=1):
    driver.insert(*each)
  driver.finish(8)
  before = jax.tree.map(np.array, driver.state.pool)
  driver.chunk()
  jax.tree.map(np.testing.assert_array_equal, driver.state.pool, before)


# Weights and programs.


def test_new_weights_take_effect_between_chunks_and_keep_the_cache(
  engine, params
):
  other = jax.tree.map(lambda x: x * 1.1, params)
  driver = Driver(engine, params)
  driver.insert(*request(PROMPTS[1], temperature=0.0))
  first = driver.chunk()
  driver.params = other
  second = driver.chunk()
  driver.params = params  # Neither was given away with a call.
  driver.chunk()
  # The cache is that of the old weights for what they read.
  ids = np.concatenate([PROMPTS[1], first.tokens[0], second.tokens[0]])
  with_new = trainer_logprobs(other, ids, 9, 1.0)
  with_old = trainer_logprobs(params, ids, 9, 1.0)
  assert np.abs(second.logprobs[0] - with_old).min() > 1e-4
  assert np.abs(second.logprobs[0] - with_new).max() > 1e-4


def test_nothing_is_compiled_after_the_warm_up(engine, params):
  count, compiled = engine.num_compilations, []

  def listen(event, duration, **_):
    if 'backend_compile' in event:
      compiled.append((event, duration))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    # Every length of prompt, with and without truncation.
    run(engine, params, crowd(top_k=3))
    run(engine, params, [request(PROMPTS[0], slot=5, temperature=0.0)])
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled
  assert engine.num_compilations == count


def test_a_shape_that_was_not_warmed_up_is_refused(engine, params):
  with pytest.raises(ValueError, match='has no program generate'):
    engine._compiler.run('generate', (17,), params)


def test_weights_of_another_dtype_are_refused(engine, params):
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  with pytest.raises(TypeError, match='differ from the types'):
    engine.prefill(narrow, PROMPTS[1])


def test_a_long_prompt_is_read_in_pieces(engine, params):
  assert len(list(engine.prefill_pieces(params, PROMPTS[4]))) == 1
  *pieces, prefix = engine.prefill_pieces(params, PROMPTS[7])
  assert pieces == [None]
  assert (prefix.num_tokens, prefix.num_pages) == (24, 3)


@pytest.mark.parametrize(
  ('ids', 'text'),
  [
    (np.zeros(0, np.int32), 'n >= 1'),
    (np.zeros(32, np.int32), 'leaves no room'),
    (np.array([64]), 'from 0 to 63'),
    (np.array([-1]), 'from 0 to 63'),
  ],
)
def test_prompts_that_do_not_fit_are_refused_never_cut(
  engine, params, ids, text
):
  with pytest.raises(ValueError, match=text):
    engine.prefill(params, ids)


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'slot': 8}, 'slot 8 does not exist'),
    ({'seed': -1}, 'seed -1'),
    ({'budget': 0}, 'budget 0'),
    ({'budget': 28}, 'exceed max_length = 32'),
    ({'temperature': float('nan')}, 'temperature nan'),
    ({'top_p': 0.0}, 'top_p 0.0'),
    ({'top_k': -1}, 'top_k -1'),
    ({'stop_token_ids': tuple(range(9))}, 'at most 8'),
  ],
)
def test_requests_that_do_not_fit_are_refused(engine, params, changes, text):
  driver = Driver(engine, params)
  prefix = engine.prefill(params, PROMPTS[1])
  _, insertion = request(PROMPTS[1], **changes)
  with pytest.raises(ValueError, match=text):
    engine.insert(driver.state, prefix, [insertion], np.array([[1]]))


def test_pages_of_another_part_of_the_pool_are_refused():
  tables = np.zeros((8, 4), np.int32)
  tables[4, 0] = 5
  with pytest.raises(ValueError, match='slot 4 may use pages 21 to 39, got 5'):
    layouts.checked_tables(LAYOUT, 2, (4,), tables)


def test_tables_with_gaps_are_refused():
  tables = np.zeros((8, 4), np.int32)
  tables[1, 1] = 5
  with pytest.raises(ValueError, match='filled from the left'):
    layouts.checked_tables(LAYOUT, 1, (4,), tables)


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'num_slots': 0}, 'num_slots must be a positive integer'),
    ({'prefill_buckets': (8, 8)}, 'increasing'),
    ({'kv_dtype': 'int4'}, 'kv_dtype must be one of'),
    ({'num_pages': 1}, 'at least 2'),
  ],
)
def test_layouts_that_make_no_sense_are_refused(changes, text):
  with pytest.raises(ValueError, match=text):
    dataclasses.replace(LAYOUT, **changes)


def test_a_mesh_that_does_not_divide_the_layout_is_refused():
  for sizes, text in (
    ((1, 1, 4), r'num_key_value_heads = 2 .* tensor may be one of \[1, 2\]'),
    ((3, 1, 1), 'num_slots = 8 cannot be divided over data=3'),
  ):
    with pytest.raises(ValueError, match=text):
      Engine(CONFIG, LAYOUT, mesh=sharding.make_mesh(*sizes))
  with pytest.raises(ValueError, match='num_pages = 41 cannot be divided'):
    Engine(
      CONFIG,
      dataclasses.replace(LAYOUT, num_pages=41),
      mesh=sharding.make_mesh(2, 1, 1),
    )


@pytest.mark.parametrize('count', [1, 2, 4, 8])
def test_the_sampler_of_the_published_run_fits_so_many_devices(count):
  config, model = base.grpo(), specs.VARIANTS['qwen3-4b-2507']
  mesh = sharding.make_mesh(
    config.sampler.data,
    1,
    config.sampler.tensor,
    devices=jax.devices()[:count],
  )
  assert mesh.shape['tensor'] == count  # No weights are gathered in a step.
  layout = engines.make_layout(
    max_length=config.problems.max_prompt_tokens + config.sampling.max_tokens,
    num_parts=mesh.shape['data'],
    **config.engine,
  )
  layouts.check_mesh(model, layout, mesh)
  sharding.param_shardings(model, mesh)
