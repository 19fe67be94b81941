"""States of a reasoning cache, without a model: drawn, made, expired, kept.

The turns are made of a rule: the summary after a turn says which visit, which
turn and which version it is of.
"""

import asyncio
import functools
import itertools
import json
import random

import numpy as np
import pytest

from qed.rollout import prompts, states
from qed.rollout.replay import Replay, Summary
from qed.types import CacheState, Prompt
from tests.rollout.collector_test import NUM_PROBLEMS, SELECTION, World

NUM_TURNS = 3
TURN_TOKENS = 5
NO_REPLAY = dict(max_summaries=0, start_frac=1.0, max_age_steps=0, max_turn=0)


class CachedWorld(World):
  """The world of the collector, whose groups start from states."""

  states_per_problem = 2

  def __init__(self, path, *, replay=NO_REPLAY, **plan):
    super().__init__(path, **plan)
    self.replay_settings = replay
    self.played = []  # (visit, turn, version when it began).
    self.posed = {}  # Group -> prompts that it was drawn with.

  def make_source(self):
    self.source = states.Unroller(
      SELECTION,
      states.Plan(
        num_turns=NUM_TURNS,
        states_per_problem=self.states_per_problem,
        max_lag=self.plan.max_lag,
        seed=self.plan.seed,
      ),
      take_turn=self.take_turn,
      make_prompt=make_prompt,
      version=lambda: self.version,
      replay=Replay(**self.replay_settings),
      journal=self.journal,
      path=self.path.with_suffix('.states'),
    )
    return self.source

  async def take_turn(self, state, visit):
    self.played.append((visit, state.turn, self.version))
    for _ in range(self.delays.randrange(4)):
      await asyncio.sleep(0)
    turn, came_from = state.turn + 1, state.summary or 'nothing'
    return states.Turn(
      state=CacheState(
        problem=state.problem,
        turn=turn,
        summary=f'{visit}.{turn}@{self.version} {came_from}',
      ),
      reasoning='',
      num_tokens=TURN_TOKENS,
      newest=self.version,
      reasoning_tokens=3,
      summary_tokens=2,
      is_truncated=False,
      is_kept=False,
    )

  async def sample(self, prompt, params, *, group):
    self.posed.setdefault(group, set()).add(
      (prompt.turn, *prompt.token_ids.tolist())
    )
    return await super().sample(prompt, params, group=group)

  def close(self):
    self.journal.close()
    self.source.close()

  def reopen(self, snapshot, *, step):
    self.close()
    self.open(json.loads(json.dumps(snapshot)), step=step)


def make_prompt(state):
  """Ids that tell one state from another."""
  return Prompt(
    problem_id=state.problem.problem_id,
    messages=(),
    token_ids=np.frombuffer(
      f'{state.problem.problem_id} {state.summary}'.encode(), np.uint8
    ).astype(np.int32),
    kind='cached' if state.summary else 'plain',
    turn=state.turn,
  )


def ignore(num_tokens):
  """Books nothing."""


def text(token_ids):
  return bytes(int(token) for token in token_ids).decode()


@pytest.fixture
def make(tmp_path):
  numbers = itertools.count()
  worlds = []

  def world(**plan):
    worlds.append(CachedWorld(tmp_path / f'{next(numbers)}.jsonl', **plan))
    worlds[-1].open()
    return worlds[-1]

  yield world
  for each in worlds:
    each.close()


def steps(world, count):
  async def work():
    return [await world.train_step() for _ in range(count)]

  return world.run(work)


def drawn(visit, num_states=2):
  return states.drawn_states(visit, NUM_TURNS, num_states, seed=0)


# Which states.


def test_states_are_drawn_without_replacement_and_all_equally_often():
  counts = np.zeros(NUM_TURNS + 1)
  for visit in range(4_000):
    found = drawn(visit)
    assert len({*found}) == 2
    assert [*found] == sorted(found)
    counts[[*found]] += 1
  # Each with probability 1/2; 5 standard deviations.
  assert np.abs(counts - 2_000).max() < 5 * np.sqrt(4_000 / 4)
  assert drawn(7, 4) == (0, 1, 2, 3)


def test_a_draw_depends_on_the_visit_and_the_seed_alone():
  assert drawn(5) == drawn(5)
  others = {states.drawn_states(5, NUM_TURNS, 2, seed=s) for s in range(20)}
  assert len(others) > 3


def test_the_groups_of_a_visit_start_from_its_drawn_states(make):
  world = make(num_steps=4)
  assert steps(world, 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
  for group, prompts_of_group in world.posed.items():
    visit, member = divmod(group, 2)
    ((turn, *ids),) = prompts_of_group  # One prompt for all of a group.
    assert turn == drawn(visit)[member]
    problem = SELECTION.problems[prompts.index_at(visit, NUM_PROBLEMS, seed=0)]
    version = visit  # A step takes one visit here.
    expected = 'nothing'
    for index in range(1, turn + 1):
      expected = f'{visit}.{index}@{version} {expected}'
    if turn == 0:
      expected = ''
    assert text(ids) == f'{problem.problem_id} {expected}'


def test_an_epoch_visits_every_problem_once(make):
  world = make(num_steps=NUM_PROBLEMS)
  steps(world, NUM_PROBLEMS)
  begun = [problem.problem_id for problem in world.begun]
  assert sorted(begun) == sorted(2 * [p.problem_id for p in SELECTION.problems])


def test_a_chain_is_made_once_and_no_further_than_it_is_needed(make):
  world = make(num_steps=6)
  steps(world, 6)
  for visit in range(6):
    turns = [turn for number, turn, _ in world.played if number == visit]
    assert turns == [*range(max(drawn(visit)))]


def test_an_advantage_is_taken_over_one_state(make):
  world = make()
  world.reward_of = lambda group, member: member / 2 + group % 2 / 8
  groups_taken = []

  async def work():
    taken = await world.collector.take()
    groups_taken.extend(world.share(group) for group in taken)

  world.run(work)
  for share in groups_taken:
    assert len({r.prompt.turn for r in share.group.rollouts}) == 1
    np.testing.assert_allclose(share.advantages, [-0.5, 0, 0.5], atol=1e-6)


def test_a_chain_is_kept_until_all_groups_of_its_visit_are_settled(make):
  world = make()
  visit = next(v for v in range(50) if drawn(v) == (2, 3))
  first, second = 2 * visit, 2 * visit + 1
  asyncio.run(world.source.pose(first, ignore))
  world.source.settle(first)
  asyncio.run(world.source.pose(second, ignore))
  assert [turn for _, turn, _ in world.played] == [0, 1, 2]
  assert world.source.snapshot()['places']
  world.source.settle(second)
  found = world.source.snapshot()
  assert found['places'] == found['settled'] == {}


# How old.


def test_without_a_lag_every_state_is_of_the_step_that_uses_it(make):
  """Also where the groups of a visit fall into two steps."""
  world = make(zero_signal='refill', num_steps=6)
  world.reward_of = lambda group, member: member / 2 if group % 3 else 0.5
  taken = steps(world, 6)
  assert any(batch[0] % 2 for batch in taken)  # Some are divided.
  for step, batch in enumerate(taken):
    for group in batch:
      ((_, *ids),) = world.posed[group]
      versions = [part[0] for part in text(ids).split('@')[1:]]
      assert {*versions} <= {str(step)}


@pytest.mark.parametrize('max_lag', [0, 1, 3, -1])
def test_a_state_expires_by_the_lag(make, max_lag):
  world = make(max_lag=max_lag)

  async def pose(version):
    world.version = version
    await world.source.pose(group_of(3), ignore)

  def group_of(index):
    visit = next(v for v in range(50) if index in drawn(v))
    return 2 * visit + drawn(visit).index(index)

  for version in (4, 4 + max(max_lag, 0), 5 + max(max_lag, 0)):
    asyncio.run(pose(version))
  made = [version for *_, version in world.played]
  if max_lag == -1:
    assert made == [4] * 3
  else:
    assert made == [4] * 3 + [5 + max_lag] * 3
    assert world.source.report()['states/expired'] == 1


# What is counted.


def test_the_tokens_of_unrolling_are_generated_and_dropped(make):
  world = make(max_lag=1)
  steps(world, 6)
  book = world.collector.book_as_json()
  rows = states_on_file(world)
  num_turns = sum(row['index'] > 0 for row in rows)
  assert book['dropped']['unrolling'] == TURN_TOKENS * num_turns > 0
  on_file = len(world.path.read_text().splitlines())
  assert book['generated'] == TURN_TOKENS * num_turns + 2 * on_file


def states_on_file(world):
  file = world.path.with_suffix('.states')
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_report_is_of_what_happened_since_the_last(make):
  world = make(num_steps=2)
  steps(world, 2)
  found = world.source.report()
  assert found['states/made'] == len(world.played)
  assert found['states/reasoning_tokens'] == 3
  assert found['states/summary_tokens'] == 2
  assert found['states/turn_max'] == max(*drawn(0), *drawn(1))
  assert world.source.report() == {'states/made': 0, 'states/expired': 0}


# Stopped, and started again.


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('max_lag', [0, 2])
def test_a_run_killed_anywhere_consumes_each_state_once(make, seed, max_lag):
  """Checkpoints every second step; deaths at random moments in between."""
  chance = random.Random(seed)
  settings = dict(max_lag=max_lag, zero_signal='refill')
  replay = NO_REPLAY | {'max_summaries': 1}

  def reward_of(group, member):
    return member / 2 if group % 5 else 0.5

  straight = make(replay=replay, **settings)
  straight.reward_of = reward_of
  steps(straight, 8)
  world = make(replay=replay, **settings)
  world.reward_of = reward_of
  saved, done = {0: '{}'}, {}

  async def work(secs):
    async with asyncio.timeout(secs):
      while world.step < 8:
        batch = await world.train_step()
        done[world.step] = batch
        if world.step % 2 == 0:
          saved[world.step] = json.dumps(world.collector.snapshot())

  while world.step < 8:
    try:
      world.run(functools.partial(work, chance.uniform(0, 0.02)))
    except TimeoutError:
      last = max(saved)
      world.reopen(json.loads(saved[last]), step=last)
  used = [group for batch in done.values() for group in batch]
  assert len(used) == len({*used}) == 16
  world.collector.book_as_json()  # Closes.
  if max_lag == 0:
    # The last prompt of a group is that of the run that nobody stopped.
    for group in used:
      assert last_prompt(world, group) == last_prompt(straight, group)


def groups_on_file(world):
  rows = world.path.read_text().splitlines()
  return [json.loads(line)['group_id'] for line in rows]


def last_prompt(world, group):
  rows = [json.loads(line) for line in world.path.read_text().splitlines()]
  found = [text(r['prompt_token_ids']) for r in rows if r['group_id'] == group]
  return found[-1]


def test_turns_on_file_are_not_played_again(make):
  world = make()

  world.collector._sample = hang
  num_states = 1 + max(drawn(0))
  world.run(until(lambda: len(states_on_file(world)) == num_states))
  played = [*world.played]
  assert played
  world.reopen({}, step=0)
  assert steps(world, 1) == [[0, 1]]
  assert [turn for turn in world.played if turn[0] == 0] == played
  unrolled = world.collector.ledger.dropped['unrolling']
  assert unrolled == TURN_TOKENS * len(world.played)


async def hang(*arguments, **named):
  await asyncio.Event().wait()


def until(condition):
  """Work that ends when something has become true."""

  async def wait():
    while not condition():
      await asyncio.sleep(0)

  return wait


def test_a_group_with_rollouts_on_file_keeps_their_prompt(make):
  """Though its state has expired meanwhile, and others find another."""
  world = make(max_lag=2)
  hold = asyncio.Event()
  sample = world.sample

  async def sample_two(prompt, params, *, group):
    completion = await sample(prompt, params, group=group)
    if completion.token_ids[1] == 2:
      await hold.wait()
    return completion

  world.collector._sample = sample_two

  world.run(until(lambda: {0, 1} <= {*groups_on_file(world)}))
  before = {group: last_prompt(world, group) for group in (0, 1)}
  # Back at a checkpoint of the same step, long after.
  world.reopen({}, step=0)
  world.version = 9
  for group, expected in before.items():
    prompt = asyncio.run(world.source.pose(group, ignore))
    assert text(prompt.token_ids) == expected
    assert prompt.turn == drawn(0)[group]


def test_states_of_lost_weights_are_made_again(make):
  world = make(num_steps=3)
  steps(world, 3)
  rows = states_on_file(world)
  assert {row['version'] for row in rows} == {0, 1, 2}
  world.played.clear()
  world.reopen({}, step=0)  # Steps 1 to 3 are gone.
  steps(world, 3)
  again = {visit for visit, *_ in world.played}
  assert again == {visit for visit in (1, 2) if max(drawn(visit))}


def test_a_damaged_file_is_told(make):
  world = make()
  steps(world, 2)
  snapshot = world.collector.snapshot()
  world.close()
  world.path.with_suffix('.states').write_text('')
  with pytest.raises(ValueError, match=r'states: expected the \d+ bytes'):
    world.open(json.loads(json.dumps(snapshot)), step=2)


# The replay buffer.


def test_an_epoch_goes_on_where_the_one_before_ended(make):
  world = make(
    num_steps=2 * NUM_PROBLEMS, replay=NO_REPLAY | {'max_summaries': 1}
  )
  steps(world, 2 * NUM_PROBLEMS)
  ends = {}
  for row in states_on_file(world):
    if row['visit'] >= NUM_PROBLEMS and row['index'] == 0:
      assert (row['turn'], row['summary']) == ends[row['problem_id']]
    if row['visit'] < NUM_PROBLEMS and row['index']:
      ends[row['problem_id']] = (row['turn'], row['summary'])
  assert len(ends) == NUM_PROBLEMS
  assert world.source.report()['states/turn_max'] > NUM_TURNS


def test_without_a_replay_every_chain_begins_with_nothing(make):
  world = make(num_steps=2 * NUM_PROBLEMS)
  steps(world, 2 * NUM_PROBLEMS)
  starts = [row for row in states_on_file(world) if row['index'] == 0]
  assert {(row['turn'], row['summary']) for row in starts} == {(0, '')}


def replay(**settings):
  return Replay(**NO_REPLAY | {'max_summaries': 1} | settings)


def summary(turn, *, version=0):
  return Summary('p', turn, f'notes {turn}', version)


def draw(buffer, *, version=0, seed=0):
  return buffer.draw('p', version, np.random.default_rng(seed))


def test_a_new_summary_takes_the_place_of_the_oldest():
  one, two = replay(), replay(max_summaries=2)
  for buffer in (one, two):
    for turn in (1, 2, 3):
      buffer.add(summary(turn))
  assert draw(one) == summary(3)
  found = {draw(two, seed=seed).turn for seed in range(20)}
  assert found == {2, 3}
  assert (len(one), len(two)) == (1, 2)


def test_summaries_that_are_too_old_are_purged():
  buffer = replay(max_age_steps=3)
  buffer.add(summary(1, version=4))
  assert draw(buffer, version=7) == summary(1, version=4)
  assert draw(buffer, version=8) is None
  assert len(buffer) == 0


def test_beyond_the_last_turn_a_problem_begins_anew():
  buffer = replay(max_turn=4)
  buffer.add(summary(4))
  assert draw(buffer) == summary(4)
  buffer.add(summary(5))
  assert draw(buffer) is None


def test_a_part_of_the_visits_begins_with_a_summary():
  buffer = replay(start_frac=0.25)
  buffer.add(summary(1))
  began = [draw(buffer, seed=seed) is not None for seed in range(1_000)]
  assert abs(np.mean(began) - 0.25) < 0.07


def test_an_empty_summary_is_not_kept():
  buffer = replay()
  buffer.add(Summary('p', 1, '', 0))
  assert draw(buffer) is None
  assert buffer.draw('q', 0, np.random.default_rng(0)) is None


def test_a_buffer_survives_json():
  buffer, copy = replay(max_summaries=2), replay(max_summaries=2)
  for turn in (1, 2):
    buffer.add(summary(turn, version=turn))
  copy.restore(json.loads(json.dumps(buffer.snapshot())))
  assert copy.snapshot() == buffer.snapshot()
  assert [draw(copy, seed=s) for s in range(9)] == [
    draw(buffer, seed=s) for s in range(9)
  ]


def test_what_a_step_begins_with_does_not_depend_on_its_own_ends(make):
  """A visit that ends early in a step is replayed from the next step on."""
  world = make(replay=NO_REPLAY | {'max_summaries': 1})

  async def work():
    await world.collector.take()
    world.source.settle(0)
    world.source.settle(1)
    return world.source.snapshot()

  found = world.run(work)
  assert found['replay'] == {}
  assert [*found['ended']] == ['0']
  world.source.commit()
  assert len(world.source.snapshot()['replay']) == 1
