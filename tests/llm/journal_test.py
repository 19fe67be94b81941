"""What was paid for is not paid for again: not twice at a time, not later."""

import asyncio
import dataclasses
import sqlite3

import numpy as np
import pytest

from qed import types
from qed.llm import journal
from qed.llm.journal import Journal, Journaled

pytestmark = pytest.mark.timeout(30)

PROMPT = types.Prompt(
  problem_id='p1',
  messages=(types.Message(role='user', content='Prove it.'),),
  token_ids=np.array([3, 1, 4], np.int32),
)
PARAMS = types.SamplingParams(
  temperature=0.8,
  top_p=0.95,
  top_k=20,
  max_tokens=50,
  stop_token_ids=(2,),
  seed=7,
)


def completion(text='a proof', finish_reason='stop', num_tokens=3, usage=None):
  return types.Completion(
    token_ids=np.arange(num_tokens, dtype=np.int32),
    logprobs=np.linspace(-1, 0, num_tokens, dtype=np.float32),
    versions=np.full(num_tokens, 9, np.int32),
    text=text,
    finish_reason=finish_reason,
    usage=usage,
  )


class Llm:
  """Answers with the number of the call, when it is let go."""

  def __init__(self, finish_reason='stop', error=None, waits=False):
    self.num_calls = self.num_cancelled = 0
    self._finish_reason, self._error = finish_reason, error
    self.gate = asyncio.Event()
    if not waits:
      self.gate.set()

  async def sample(self, prompt, params, *, n=1):
    self.num_calls += 1
    number = self.num_calls
    try:
      await self.gate.wait()
    except asyncio.CancelledError:
      self.num_cancelled += 1
      raise
    if self._error:
      raise self._error
    return [
      completion(f'{number}.{member}', self._finish_reason)
      for member in range(n)
    ]


@pytest.fixture
def store(tmp_path):
  with Journal(tmp_path / 'deep' / 'calls.sqlite') as store:
    yield store


def texts(completions):
  return [x.text for x in completions]


async def test_an_equal_call_is_recalled(store):
  llm = Llm()
  model = Journaled(llm, store, 'm')
  first = await model.sample(PROMPT, PARAMS, n=2)
  again = await model.sample(PROMPT, PARAMS, n=2)
  assert texts(first) == texts(again) == ['1.0', '1.1']
  assert (llm.num_calls, model.num_paid, model.num_recalled) == (1, 2, 2)
  assert len(store) == 2


async def test_it_is_recalled_by_a_later_process(tmp_path):
  for _ in range(2):
    with Journal(tmp_path / 'calls.sqlite') as store:
      llm = Llm()
      model = Journaled(llm, store, 'm')
      assert texts(await model.sample(PROMPT, PARAMS)) == ['1.0']
  assert (llm.num_calls, model.num_paid, model.num_recalled) == (0, 0, 1)


@pytest.mark.parametrize(
  'changed',
  [
    {'name': 'other weights'},
    {'n': 2},
    {'token_ids': np.array([3, 1, 5], np.int32)},
    {'token_ids': np.zeros(0, np.int32)},
    {'messages': (types.Message(role='user', content='Prove it'),)},
    {'messages': (types.Message(role='system', content='Prove it.'),)},
    {'messages': ()},
    {'temperature': 0.9},
    {'top_p': 1.0},
    {'top_k': 0},
    {'max_tokens': 51},
    {'stop_token_ids': ()},
    {'seed': 8},
  ],
)
def test_a_key_holds_all_that_an_answer_depends_on(changed):
  def key(name='m', n=1, **fields):
    params = {
      name: fields.pop(name)
      for name in dataclasses.asdict(PARAMS)
      if name in fields
    }
    return journal.key(
      name,
      dataclasses.replace(PROMPT, **fields),
      dataclasses.replace(PARAMS, **params),
      n,
    )

  assert key(**changed) != key()
  assert key() == key()


def test_a_key_is_the_same_in_every_process_and_for_every_problem():
  # Python's hash of a text differs from process to process; this one is kept.
  assert journal.key('m', PROMPT, PARAMS, 1) == GOLDEN_KEY
  other = dataclasses.replace(PROMPT, problem_id='p2', kind='cached', turn=3)
  assert journal.key('m', other, PARAMS, 1) == GOLDEN_KEY


GOLDEN_KEY = '2a5ba701b9563a4fe42f4d8ca97e0d5c9915fe65507d7b62ddfa8c3417984c14'


async def test_a_completion_comes_back_as_it_was(store):
  given = [
    completion('a \ud800 b', 'length', 4, {'prompt_tokens': 5}),
    completion('', 'stop', 0),
    types.Completion(
      token_ids=np.array([2**31 - 1, 0], np.int32),
      logprobs=np.array([np.nan, -0.1], np.float32),
      versions=np.array([-1, 3], np.int32),
      text='x',
      finish_reason='stop',
    ),
  ]
  store.put('k', given, name='m', problem_id='p')
  back = store.get('k')
  for one, other in zip(given, back, strict=True):
    for name in ('token_ids', 'logprobs', 'versions'):
      expected, got = getattr(one, name), getattr(other, name)
      assert got.dtype == expected.dtype
      assert got.flags.writeable
      np.testing.assert_array_equal(got, expected)
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.usage == other.usage
  assert store.get('other') is None


async def test_two_equal_calls_at_the_same_time_are_one(store):
  llm = Llm(waits=True)
  model = Journaled(llm, store, 'm')
  tasks = [
    asyncio.ensure_future(model.sample(PROMPT, PARAMS)) for _ in range(3)
  ]
  await asyncio.sleep(0.01)
  llm.gate.set()
  results = await asyncio.gather(*tasks)
  assert [texts(x) for x in results] == [['1.0']] * 3
  assert (llm.num_calls, model.num_paid, model.num_recalled) == (1, 1, 2)


async def test_one_that_gives_up_leaves_the_call_to_the_others(store):
  llm = Llm(waits=True)
  model = Journaled(llm, store, 'm')
  tasks = [
    asyncio.ensure_future(model.sample(PROMPT, PARAMS)) for _ in range(2)
  ]
  await asyncio.sleep(0.01)
  tasks[0].cancel()
  await asyncio.sleep(0.01)
  llm.gate.set()
  assert texts(await tasks[1]) == ['1.0']
  assert tasks[0].cancelled()
  assert (llm.num_calls, llm.num_cancelled) == (1, 0)


async def test_when_all_give_up_so_does_the_call(store):
  llm = Llm(waits=True)
  model = Journaled(llm, store, 'm')
  tasks = [
    asyncio.ensure_future(model.sample(PROMPT, PARAMS)) for _ in range(2)
  ]
  await asyncio.sleep(0.01)
  for task in tasks:
    task.cancel()
  await asyncio.sleep(0.01)
  assert (llm.num_calls, llm.num_cancelled, len(store)) == (1, 1, 0)
  llm.gate.set()
  assert texts(await model.sample(PROMPT, PARAMS)) == ['2.0']


async def test_a_failure_is_told_to_all_and_tried_again(store):
  llm = Llm(error=ConnectionError('down'), waits=True)
  model = Journaled(llm, store, 'm')
  tasks = [
    asyncio.ensure_future(model.sample(PROMPT, PARAMS)) for _ in range(2)
  ]
  await asyncio.sleep(0.01)
  llm.gate.set()
  results = await asyncio.gather(*tasks, return_exceptions=True)
  assert [type(x) for x in results] == [ConnectionError] * 2
  with pytest.raises(ConnectionError):
    await model.sample(PROMPT, PARAMS)
  assert (llm.num_calls, model.num_paid, len(store)) == (2, 0, 0)


@pytest.mark.parametrize('finish_reason', ['error', 'abort'])
async def test_a_completion_that_failed_is_handed_on_but_not_kept(
  store, finish_reason
):
  model = Journaled(Llm(finish_reason), store, 'm')
  for number in (1, 2):
    (given,) = await model.sample(PROMPT, PARAMS)
    assert (given.text, given.finish_reason) == (f'{number}.0', finish_reason)
  assert len(store) == 0


async def test_where_one_of_several_failed_none_is_kept(store):
  class Half(Llm):
    async def sample(self, prompt, params, *, n=1):
      good, bad = await super().sample(prompt, params, n=n)
      return [good, dataclasses.replace(bad, finish_reason='error')]

  llm = Half()
  for _ in range(2):
    given = await Journaled(llm, store, 'm').sample(PROMPT, PARAMS, n=2)
    assert [x.finish_reason for x in given] == ['stop', 'error']
  assert (llm.num_calls, len(store)) == (2, 0)


async def test_a_completion_that_was_cut_off_is_kept(store):
  model = Journaled(Llm('length'), store, 'm')
  for _ in range(2):
    assert texts(await model.sample(PROMPT, PARAMS)) == ['1.0']


async def test_it_is_on_record_before_the_caller_has_it(tmp_path):
  path = tmp_path / 'calls.sqlite'
  with Journal(path) as store, Journal(path) as other:
    await Journaled(Llm(), store, 'm').sample(PROMPT, PARAMS)
    assert texts(other.get(journal.key('m', PROMPT, PARAMS, 1))) == ['1.0']


def test_of_two_processes_both_get_what_the_first_stored(tmp_path):
  path = tmp_path / 'calls.sqlite'
  with Journal(path) as one, Journal(path) as other:
    first = one.put('k', [completion('first')], name='m', problem_id='p')
    second = other.put('k', [completion('second')], name='m', problem_id='p')
  assert texts(first) == texts(second) == ['first']


def test_all_members_are_stored_or_none(store, monkeypatch):
  rows = iter([journal._row(completion('one')), ('too', 'few')])
  monkeypatch.setattr(journal, '_row', lambda completion: next(rows))
  with pytest.raises(sqlite3.Error):
    store.put('k', [completion()] * 2, name='m', problem_id='p')
  assert store.get('k') is None


def test_a_file_of_something_else_is_refused(tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('not a database, but long enough to be one' * 100)
  with pytest.raises(ValueError, match=r'notes\.txt: expected a journal'):
    Journal(path)
  path = tmp_path / 'other.sqlite'
  with sqlite3.connect(path) as db:
    db.execute('CREATE TABLE verdicts (x)')
  db.close()
  with pytest.raises(ValueError, match='layout 0, not 1'):
    Journal(path)
