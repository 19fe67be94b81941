"""Evaluations that are interrupted, fail in parts, and change their judge."""

import asyncio
import collections
import dataclasses
import json

import pytest

from qed.evals import records, runner
from qed.evals.benchmarks import Item
from qed.types import Grade, Problem, Solution

IDENTITY = records.Identity(
  benchmark='own_proofs',
  content='c0',
  checkpoint='w0',
  config='k0',
  judge='j0',
  judge_name='a judge',
)


class CallError(Exception):
  """A call that failed for good."""


def items(count):
  return [
    Item(
      problem=Problem(problem_id=f'p{i}', statement='?', rubric='7'),
      split='even' if i % 2 == 0 else 'odd',
    )
    for i in range(count)
  ]


class Killed(Exception):
  """The end of the process, whatever was under way."""


class World:
  """Solves and grades by number, as told, and counts what it did."""

  def __init__(self, solve_errors=(), grades=(), usage=None, kill_after=None):
    self.solve_errors = collections.Counter(solve_errors)
    self.grades = dict(grades)  # (problem, attempt) -> statuses to come.
    self.usage = usage or {}
    self.kill_after = kill_after
    self.solved = collections.Counter()
    self.graded = collections.Counter()
    self.order, self.running, self.most_running = [], 0, 0

  async def solve(self, problem, attempt):
    key = (problem.problem_id, attempt)
    self.running += 1
    self.most_running = max(self.most_running, self.running)
    self.order.append(key)
    try:
      await asyncio.sleep(0)
      if self.kill_after is not None and len(self.order) > self.kill_after:
        raise Killed
      if self.solve_errors[key] > 0:
        self.solve_errors[key] -= 1
        raise CallError(f'no answer about {key}')
      self.solved[key] += 1
      return Solution(
        problem_id=problem.problem_id,
        attempt=attempt,
        text=f'Proof {attempt} of {problem.problem_id}.',
        usage=self.usage.get(key, {'calls': 1, 'completion_tokens': 10}),
        trace=({'label': 'solution', 'text': 'x'},),
      )
    finally:
      self.running -= 1

  async def grade(self, problem, text):
    await asyncio.sleep(0)
    attempt = int(text.split()[1])
    key = (problem.problem_id, attempt)
    self.graded[key] += 1
    statuses = self.grades.get(key, ['ok'])
    status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
    return Grade(
      score=attempt if status == 'ok' else None,
      status=status,
      feedback='Read.',
      judge='j',
      usage={'prompt_tokens': 5, 'completion_tokens': 2, 'calls': 1},
    )


async def evaluate(world, path, *, identity=IDENTITY, count=4, **options):
  settings = {'num_attempts': 3, 'max_in_flight': 2, 'max_passes': 1} | options
  with records.Records(path, identity) as store:
    await runner.evaluate(
      items(count),
      solve=world.solve,
      grade=world.grade,
      records=store,
      failures=(CallError,),
      **settings,
    )
    return store.of_judge(identity.judge)


def rows(path):
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


EVERY = {(f'p{i}', a) for i in range(4) for a in range(3)}


async def test_every_attempt_is_made_graded_and_on_record(tmp_path):
  world = World()
  found = await evaluate(world, tmp_path / 'records.jsonl')
  assert found.keys() == EVERY
  assert set(world.solved.values()) == {1}
  assert {key: record.score for key, record in found.items()} == {
    key: key[1] for key in EVERY
  }
  written = rows(tmp_path / 'records.jsonl')
  assert len(written) == 12
  row = next(r for r in written if (r['problem_id'], r['attempt']) == ('p3', 2))
  assert row['solution']['text'] == 'Proof 2 of p3.'
  assert row['split'] == 'odd'
  assert row['grade']['status'] == 'ok'
  for name, value in dataclasses.asdict(IDENTITY).items():
    assert row[name] == value
  trace = json.loads((tmp_path / row['solution']['trace']).read_text())
  assert trace == [{'label': 'solution', 'text': 'x'}]


async def test_attempts_are_begun_in_rounds_and_bounded(tmp_path):
  world = World()
  await evaluate(world, tmp_path / 'r.jsonl', max_in_flight=3)
  assert [attempt for _, attempt in world.order] == [0] * 4 + [1] * 4 + [2] * 4
  assert world.most_running == 3


async def test_what_is_settled_is_never_done_again(tmp_path):
  path = tmp_path / 'r.jsonl'
  await evaluate(World(), path)
  before = path.read_bytes()
  world = World()
  await evaluate(world, path)
  assert not world.order
  assert path.read_bytes() == before
  await evaluate(world, path, num_attempts=4)
  assert sorted(world.order) == [(f'p{i}', 3) for i in range(4)]


async def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
  path = tmp_path / 'r.jsonl'
  total = collections.Counter()
  for kill_after in (1, 4, 0, 3, None):
    world = World(kill_after=kill_after)
    if kill_after is None:
      found = await evaluate(world, path)
    else:
      with pytest.raises(Killed):
        await evaluate(world, path)
    total += world.graded
  assert found.keys() == EVERY
  # Of two under way at a kill, each may have been graded but not written.
  assert sum(total.values()) <= 12 + 4 * 2


@pytest.mark.parametrize('torn', [1, 5, -2])
async def test_a_torn_last_line_is_cut_off_and_made_again(tmp_path, torn):
  path = tmp_path / 'r.jsonl'
  await evaluate(World(), path)
  lines = path.read_bytes().splitlines(True)
  path.write_bytes(b''.join(lines[:-1]) + lines[-1][:torn])
  world = World()
  found = await evaluate(world, path)
  assert len(world.order) == 1
  assert found.keys() == EVERY
  assert len(rows(path)) == 12


async def test_a_broken_line_in_the_middle_is_told(tmp_path):
  path = tmp_path / 'r.jsonl'
  await evaluate(World(), path)
  lines = path.read_bytes().splitlines(True)
  for broken in (b'{"half\n', b'7\n', b'{}\n'):
    path.write_bytes(lines[0] + broken + b''.join(lines[2:]))
    with pytest.raises(ValueError, match=r'r\.jsonl:2: expected a record'):
      await evaluate(World(), path)


class TestFailures:
  """What fails is no score, and is tried again."""

  async def test_a_failed_attempt_has_no_score_and_is_retried_on_restart(
    self, tmp_path
  ):
    path = tmp_path / 'r.jsonl'
    world = World(solve_errors={('p1', 0): 1})
    found = await evaluate(world, path)
    failed = found['p1', 0]
    assert (failed.score, failed.status) == (None, 'failed')
    assert 'CallError: no answer' in failed.error
    world = World()
    found = await evaluate(world, path)
    assert world.order == [('p1', 0)]
    assert found['p1', 0].score == 0
    assert found['p1', 0].status == 'ok'

  async def test_passes_retry_within_a_run(self, tmp_path):
    world = World(solve_errors={('p1', 0): 2, ('p2', 2): 1})
    found = await evaluate(world, tmp_path / 'r.jsonl', max_passes=3)
    assert all(record.is_settled for record in found.values())
    assert world.order.count(('p1', 0)) == 3
    assert world.order.count(('p2', 2)) == 2
    assert world.order.count(('p0', 0)) == 1

  @pytest.mark.parametrize('status', ['unreachable', 'unparseable', 'refused'])
  async def test_a_missing_grade_is_asked_again_for_the_same_solution(
    self, tmp_path, status
  ):
    path = tmp_path / 'r.jsonl'
    world = World(grades={('p2', 1): [status]})
    found = await evaluate(world, path)
    assert found['p2', 1].score is None
    assert found['p2', 1].status == status
    world = World()
    found = await evaluate(world, path)
    assert not world.order
    assert world.graded == {('p2', 1): 1}
    assert found['p2', 1].score == 1
    last = rows(path)[-1]
    assert last['solution']['text'] == 'Proof 1 of p2.'

  async def test_a_solution_with_failed_calls_counts_until_it_is_whole(
    self, tmp_path
  ):
    path = tmp_path / 'r.jsonl'
    usage = {('p0', 2): {'calls': 39, 'failed': 2}}
    found = await evaluate(World(usage=usage), path)
    assert found['p0', 2].score == 2
    assert not found['p0', 2].is_settled
    world = World()
    found = await evaluate(world, path)
    assert world.order == [('p0', 2)]
    assert found['p0', 2].is_settled

  async def test_a_retry_that_fails_takes_no_score_away(self, tmp_path):
    path = tmp_path / 'r.jsonl'
    usage = {('p0', 2): {'calls': 39, 'failed': 2}}
    await evaluate(World(usage=usage), path)
    found = await evaluate(World(solve_errors={('p0', 2): 1}), path)
    assert found['p0', 2].score == 2
    assert not found['p0', 2].is_settled
    # Nor after the file has been read again.
    found = await evaluate(World(solve_errors={('p0', 2): 1}), path)
    assert found['p0', 2].score == 2

  async def test_an_unexpected_exception_ends_all(self, tmp_path):
    path = tmp_path / 'r.jsonl'
    world = World()

    async def solve(problem, attempt):
      if problem.problem_id == 'p2':
        raise ZeroDivisionError
      return await world.solve(problem, attempt)

    with records.Records(path, IDENTITY) as store:
      with pytest.raises(ZeroDivisionError):
        await runner.evaluate(
          items(4),
          solve=solve,
          grade=world.grade,
          records=store,
          num_attempts=3,
          max_in_flight=2,
          max_passes=5,
          failures=(CallError,),
        )
      assert world.running == 0
      assert ('p2', 0) not in store.of_judge('j0')


class TestIdentity:
  """Scores of different things never meet."""

  @pytest.mark.parametrize(
    'name', ['benchmark', 'content', 'checkpoint', 'config']
  )
  async def test_records_of_another_evaluation_are_refused(
    self, tmp_path, name
  ):
    path = tmp_path / 'r.jsonl'
    await evaluate(World(), path)
    before = path.read_bytes()
    other = dataclasses.replace(IDENTITY, **{name: 'other'})
    with pytest.raises(records.ForeignRecordsError, match=f'{name} .*other'):
      await evaluate(World(), path, identity=other)
    assert path.read_bytes() == before

  async def test_another_judge_grades_the_same_solutions(self, tmp_path):
    path = tmp_path / 'r.jsonl'
    await evaluate(World(), path)
    world = World(grades={('p0', 0): ['refused']})
    second = dataclasses.replace(IDENTITY, judge='j1', judge_name='another')
    found = await evaluate(world, path, identity=second)
    assert not world.order
    assert world.graded.keys() == EVERY
    assert found['p0', 0].score is None
    with records.Records(path, second) as store:
      assert store.judges() == {'j0': 'a judge', 'j1': 'another'}
      assert store.of_judge('j0')['p0', 0].score == 0
      assert store.of_judge('j1')['p0', 0].status == 'refused'


def test_traces_have_names_that_files_can_have():
  assert records.file_name('PB-Basic-001', 2) == 'PB-Basic-001.2.json'
  odd = [records.file_name(name, 0) for name in ('a/b', 'ab', '../b', 'é' * 99)]
  assert len({*odd}) == 4
  assert all('/' not in name and len(name) < 120 for name in odd)


async def test_a_text_that_is_no_utf8_comes_back(tmp_path):
  path = tmp_path / 'r.jsonl'
  item = items(1)[0]
  solution = Solution(
    problem_id='p0', attempt=0, text='half \ud83d', usage={}, trace=('\ud83d',)
  )
  grade = await World().grade(item.problem, 'Proof 0 of p0.')
  outcome = records.EvalRecord(
    benchmark='b', solution=solution, grade=dataclasses.replace(grade, score=3)
  )
  with records.Records(path, IDENTITY) as store:
    store.add(item, outcome, secs=1.0)
  with records.Records(path, IDENTITY) as store:
    assert store.solution('p0', 0).text == 'half \ud83d'
    assert store.of_judge('j0')['p0', 0].score == 3
