"""Prompts in, graded groups out, under every disturbance, without a model."""

import asyncio
import collections
import functools
import itertools
import json
import random

import numpy as np
import pytest

from qed.rollout import groups, prompts
from qed.rollout.collector import Collector, Plan
from qed.rollout.health import HealthError
from qed.rollout.journal import Journal
from qed.rollout.stages import Stages
from qed.types import Completion, Grade, Problem, Prompt, SamplingParams

NUM_PROBLEMS = 5
PARAMS = SamplingParams(
  temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, stop_token_ids=(), seed=0
)
PROBLEMS = [
  Problem(problem_id=f'p{n}', statement=f'{n}') for n in range(NUM_PROBLEMS)
]
SELECTION = prompts.select(
  PROBLEMS,
  lambda problem: Prompt(
    problem_id=problem.problem_id,
    messages=(),
    token_ids=np.array([int(problem.statement) + 1], np.int32),
  ),
  max_prompt_tokens=1,
  min_difficulty=0.0,
  max_difficulty=1.0,
)


class World:
  """A sampler and a judge made of rules; everything they did is on record."""

  def __init__(self, path, **plan):
    self.plan = Plan(
      **dict(
        num_steps=100,
        groups_per_step=2,
        group_size=3,
        max_lag=0,
        max_groups_in_flight=100,
        max_groups_waiting=100,
        zero_signal='keep',
        max_dropped_groups=50,
        seed=0,
      )
      | plan
    )
    self.path, self.version, self.step = path, 0, 0
    self.drawn, self.trained, self.begun = [], [], []
    self.judged_with = []
    self.most_under_way = 0
    self.delays = random.Random(0)
    self.reward_of = lambda group, member: member / 2

  def open(self, snapshot=None, *, step=0):
    self.journal = Journal(self.path)
    self.stages = Stages(['generate', 'grade'])
    self.collector = Collector(
      self.make_source(),
      self.plan,
      PARAMS,
      sample=self.sample,
      grade=self.grade,
      wait_ready=self.wait_ready,
      journal=self.journal,
      pass_rates=prompts.PassRates(low=0.0, high=1.0),
      stages=self.stages,
      on_problem=self.begun.append,
    )
    self.version = self.step = step
    self.collector.restore(snapshot or {}, step=step)

  def make_source(self):
    return prompts.Plain(SELECTION, seed=self.plan.seed)

  async def wait_ready(self):
    pass

  async def sample(self, prompt, params, *, group):
    self.most_under_way = max(self.most_under_way, self.collector.num_under_way)
    oldest = self.version
    for _ in range(self.delays.randrange(4)):
      await asyncio.sleep(0)
    seeds = [
      prompts.seed_of(group, m, seed=0) for m in range(self.plan.group_size)
    ]
    member = seeds.index(params.seed)
    self.drawn.append((group, member))
    return Completion(
      token_ids=np.array([group, member], np.int32),
      logprobs=np.zeros(2, np.float32),
      versions=np.array([oldest, self.version], np.int32),
      text='',
      finish_reason='stop',
    )

  async def grade(self, problem, completion, prefix):
    self.judged_with.append(prefix)
    for _ in range(self.delays.randrange(4)):
      await asyncio.sleep(0)
    reward = self.reward_of(*completion.token_ids.tolist())
    status = 'unreachable' if reward is None else 'ok'
    score = None if reward is None else round(7 * reward)
    grade = Grade(score=score, status=status, feedback='', judge='', usage={})
    return grade, reward

  def share(self, group):
    return groups.share(
      group,
      lambda rewards, valid: rewards - rewards.mean(),
      step=self.step,
      max_lag=self.plan.max_lag,
      mask_truncated=False,
      drop_zero_signal=self.plan.zero_signal == 'drop',
    )

  async def train_step(self, *, publish=True):
    """One step with whatever comes; what it was trained on."""
    taken = await self.collector.take()
    shares = [self.share(group) for group in taken]
    for share in shares:
      for member, sample in zip(share.members, share.samples, strict=True):
        oldest = int(sample.versions[sample.loss_mask].min())
        self.trained.append((share.group.group_id, member, self.step - oldest))
    self.collector.book(shares)
    self.step += 1
    if publish:
      self.version = self.step
      self.collector.advance(self.version)
    return [group.group_id for group in taken]

  def run(self, work):
    """Collects while `work` is done, for seconds at most."""

    async def both():
      collect = asyncio.create_task(self.collector.run())
      main = asyncio.create_task(work())
      try:
        async with asyncio.timeout(10):
          await asyncio.wait([collect, main], return_when='FIRST_COMPLETED')
        if main.done():
          return main.result()
        collect.result()
      finally:
        for task in (collect, main):
          task.cancel()
        await asyncio.gather(collect, main, return_exceptions=True)

    return asyncio.run(both())


@pytest.fixture
def make(tmp_path):
  numbers = itertools.count()
  worlds = []

  def world(path=None, **plan):
    path = path or tmp_path / f'{next(numbers)}.jsonl'
    worlds.append(World(path, **plan))
    worlds[-1].open()
    return worlds[-1]

  yield world
  for each in worlds:
    each.journal.close()


def steps(world, count):
  async def work():
    return [await world.train_step() for _ in range(count)]

  return world.run(work)


def error_of(group):
  """The first error inside groups of them."""
  while isinstance(group, BaseExceptionGroup):
    group = group.exceptions[0]
  return group


def test_without_a_lag_steps_take_what_was_drawn_by_their_own_weights(make):
  world = make(num_steps=4)
  assert steps(world, 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert {lag for *_, lag in world.trained} == {0}
  assert len(world.drawn) == len({*world.drawn}) == 4 * 2 * 3
  assert world.most_under_way == 2


def test_without_a_lag_the_order_of_arrival_changes_nothing(make):
  batches = []
  for seed in range(3):
    world = make(zero_signal='refill')
    world.delays = random.Random(seed)
    world.reward_of = lambda group, member: member / 2 if group % 3 else 0.5
    batches.append((steps(world, 4), world.trained))
  assert batches[0] == batches[1] == batches[2]


@pytest.mark.parametrize('max_lag', [0, 1, 3])
def test_no_sample_lags_by_more_than_it_may(make, max_lag):
  world = make(max_lag=max_lag)
  steps(world, 8)
  lags = [lag for *_, lag in world.trained]
  assert max(lags) == max_lag
  assert world.collector.ledger.stale == 0  # Nothing was begun in vain.


def test_late_weights_hold_the_sampling_back(make):
  """Dispatch looks at the weights that draw, not at those of the trainer."""
  world = make(max_lag=1)

  async def work():
    await world.train_step(publish=False)
    await world.train_step(publish=False)
    await asyncio.sleep(0.05)
    return len(world.begun)

  assert world.run(work) == 4  # Version 0 may draw for steps 0 and 1.


def test_a_step_that_is_being_taken_keeps_its_place_in_the_budget(make):
  world = make()

  async def work():
    await world.collector.take()
    await asyncio.sleep(0.05)
    return len(world.begun)

  assert world.run(work) == 2


def test_two_versions_between_two_looks_lose_no_budget(make):
  """Defect 1: a budget that grows by observed changes starves slowly."""
  world = make(max_lag=1)

  async def work():
    await world.train_step(publish=False)
    await world.train_step(publish=True)  # From version 0 to 2 at once.
    await asyncio.sleep(0.05)
    return len(world.begun)

  assert world.run(work) == 2 * 2 + 2 * 2


@pytest.mark.parametrize('max_lag', [0, 1, -1])
def test_filtered_groups_give_their_budget_back(make, max_lag):
  """Defect 2: a budget spent on groups that are dropped ends in a deadlock."""
  world = make(
    max_lag=max_lag,
    zero_signal='refill',
    max_groups_in_flight=3,
    max_groups_waiting=4,
  )
  world.reward_of = lambda group, member: member / 2 if group % 4 == 3 else 1.0
  batches = steps(world, 5)
  assert [*itertools.chain(*batches)] == [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
  dropped = world.collector.ledger.dropped['zero_signal']
  assert dropped >= 30 * 6


def test_groups_of_fewer_than_two_grades_are_replaced_and_counted(make):
  """An unreachable judge is no score of 0."""
  world = make()
  world.reward_of = lambda group, member: (
    None if group == 1 and member else member / 2
  )
  assert steps(world, 2) == [[0, 2], [3, 4]]
  assert world.collector.ledger.dropped == {'invalid': 6}


def test_a_group_with_two_grades_is_trained_on_without_the_third(make):
  world = make()
  world.reward_of = lambda group, member: None if member == 1 else member / 2
  steps(world, 1)
  assert [(g, m) for g, m, _ in world.trained] == [
    (0, 0),
    (0, 2),
    (1, 0),
    (1, 2),
  ]
  assert world.collector.ledger.dropped == {'invalid': 4}


def test_groups_without_a_signal_leave_a_gap_where_they_are_dropped(make):
  world = make(zero_signal='drop')
  world.reward_of = lambda group, member: member / 2 if group else 1.0
  assert steps(world, 1) == [[0, 1]]
  assert {group for group, *_ in world.trained} == {1}
  assert world.collector.ledger.dropped == {'zero_signal': 6}


def test_a_run_in_which_nothing_is_of_use_ends_with_the_reason(make):
  world = make(max_dropped_groups=4)
  world.reward_of = lambda group, member: None
  with pytest.raises(BaseExceptionGroup) as caught:
    steps(world, 1)
  error = error_of(caught.value)
  assert isinstance(error, HealthError)
  assert 'max_dropped_groups = 4' in str(error)
  assert 'unreachable' in str(error)


def test_stale_groups_are_counted_by_their_tokens_and_replaced(make):
  """Defect 3: what is too old is counted as it is, sample by sample."""
  world = make(max_lag=1)
  slow = asyncio.Event()
  sample = world.sample

  async def sample_slowly(prompt, params, *, group):
    completion = await sample(prompt, params, group=group)
    if group == 0:
      await slow.wait()
    return completion

  world.collector._sample = sample_slowly

  async def work():
    taken = [await world.train_step() for _ in range(3)]
    slow.set()
    return [*taken, *[await world.train_step() for _ in range(2)]]

  taken = world.run(work)
  assert all(0 not in step for step in taken)
  assert world.collector.ledger.stale == 6
  assert max(lag for *_, lag in world.trained) <= 1


def test_a_stale_sample_leaves_the_rest_of_its_group(make):
  world = make(max_lag=1)
  sample = world.sample

  async def sample_late(prompt, params, *, group):
    completion = await sample(prompt, params, group=group)
    if completion.token_ids.tolist() == [4, 1]:  # Used by the third step.
      completion.versions[0] = 0
    return completion

  world.collector._sample = sample_late
  steps(world, 4)
  used = [(group, member) for group, member, _ in world.trained]
  assert (4, 1) not in used
  assert {(4, 0), (4, 2)} <= {*used}
  assert world.collector.ledger.stale == 2


def test_every_token_of_a_mixed_rollout_keeps_its_version(make):
  """Defect 4: one version per rollout hides how old its tokens are."""
  world = make(max_lag=1)
  hold = asyncio.Event()
  sample = world.sample

  async def sample_across(prompt, params, *, group):
    oldest = world.version
    if group >= 2:
      await hold.wait()
    completion = await sample(prompt, params, group=group)
    completion.versions[0] = oldest
    return completion

  world.collector._sample = sample_across

  async def work():
    await world.train_step()
    hold.set()
    taken = await world.collector.take()
    return [r.completion.versions.tolist() for g in taken for r in g.rollouts]

  assert world.run(work) == [[0, 1]] * 6


def test_only_so_many_groups_are_under_way_or_wait(make):
  world = make(max_lag=-1, max_groups_in_flight=3, max_groups_waiting=4)

  async def work():
    collector = world.collector
    while collector.num_waiting < 4 or collector.num_under_way:
      await asyncio.sleep(0)
    await asyncio.sleep(0.01)  # Time for another to begin.
    return collector.num_waiting, collector.num_under_way

  assert world.run(work) == (6, 0)  # 4 waited while up to 3 were finishing.
  assert world.most_under_way == 3


def test_nothing_is_begun_beyond_the_last_step(make):
  world = make(max_lag=5, num_steps=3)

  async def work():
    for _ in range(3):
      await world.train_step()
    await asyncio.sleep(0.05)

  world.run(work)
  assert len(world.begun) == 6
  assert world.collector.book_as_json()['in_flight'] == 0


def test_a_judge_that_is_down_pauses_the_sampling(make):
  world = make()
  ready = asyncio.Event()
  world.collector._wait_ready = ready.wait

  async def work():
    await asyncio.sleep(0.05)
    before = len(world.drawn)
    ready.set()
    await world.train_step()
    return before

  assert world.run(work) == 0


def test_problems_beyond_the_pass_rates_are_passed_over(make):
  world = make(num_steps=8)
  world.collector._pass_rates = prompts.PassRates(low=0.0, high=0.9)
  # The problem of group 0 is solved.
  world.reward_of = lambda group, member: 1.0 if group == 0 else member / 2
  steps(world, 8)
  solved, *others = [problem.problem_id for problem in world.begun]
  assert solved not in others
  assert len(others) == 15


def test_a_problem_that_is_solved_with_its_beginning_is_still_tried_without(
  make,
):
  world = make(num_steps=8)
  copies = [problem for problem in PROBLEMS for _ in range(2)]
  mixed = prompts.Selection(
    problems=tuple(copies),
    prompts=tuple(SELECTION.prompts[PROBLEMS.index(p)] for p in copies),
    num_too_long=0,
    num_too_easy=0,
    num_too_hard=0,
    num_copies=2,
    prefixes=('It begins', '') * NUM_PROBLEMS,
  )
  world.collector._source = source = prompts.Plain(mixed, seed=0)
  world.collector._pass_rates = prompts.PassRates(low=0.0, high=0.9)
  # All are solved with their beginnings.
  world.reward_of = lambda group, member: member / 2 if group % 2 else 1.0
  used = [group for batch in steps(world, 8) for group in batch]
  # 5 with, and the rest without; judged as what they are.
  assert used == [*range(10), *range(11, 23, 2)]
  assert [source.prefix(group) for group in range(4)] == ['It begins', ''] * 2
  judged = collections.Counter(world.judged_with)
  assert judged == {'It begins': 3 * 5, '': 3 * 11}


def test_a_run_without_problems_left_says_so(make):
  world = make()
  world.collector._pass_rates = prompts.PassRates(low=0.9, high=1.0)
  with pytest.raises(BaseExceptionGroup) as caught:
    steps(world, 8)
  assert 'none of the problems' in str(error_of(caught.value))


# Stopped, and started again.


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('max_lag', [0, 2])
def test_a_run_killed_anywhere_consumes_each_prompt_once(make, seed, max_lag):
  """Checkpoints every second step; deaths at random moments in between."""
  chance = random.Random(seed)
  world = make(max_lag=max_lag, zero_signal='refill')
  world.reward_of = lambda group, member: member / 2 if group % 5 else 0.5
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
      world.run(functools.partial(work, chance.uniform(0, 0.01)))
    except TimeoutError:
      world.journal.close()
      last = max(saved)
      world.open(json.loads(saved[last]), step=last)
  used = [group for batch in done.values() for group in batch]
  assert len(used) == len({*used}) == 16
  signal = [group for group in range(max(used) + 1) if group % 5]
  if max_lag == 0:
    assert used == signal
  else:
    # Each is used, dropped as stale, or still under way.
    assert {*used} <= {*signal}
  world.collector.book_as_json()  # Closes.


def test_finished_members_are_not_drawn_or_graded_again(make):
  world = make()
  hold = asyncio.Event()
  sample = world.sample

  async def sample_two(prompt, params, *, group):
    completion = await sample(prompt, params, group=group)
    if completion.token_ids[1] == 2:
      await hold.wait()
    return completion

  world.collector._sample = sample_two

  async def wait():
    await asyncio.sleep(0.05)

  world.run(wait)
  world.drawn.clear()
  world.journal.close()
  world.open()
  assert steps(world, 1) == [[0, 1]]
  assert sorted(world.drawn)[:2] == [(0, 2), (1, 2)]
  assert (0, 0) not in world.drawn


def test_the_ledger_holds_as_many_tokens_as_the_file(make):
  world = make(max_lag=2)
  steps(world, 5)
  rows = world.path.read_text().splitlines()
  assert world.collector.ledger.generated == 2 * len(rows)
