"""What a call comes to, whatever the endpoint does."""

import asyncio
import collections
import dataclasses
import email.utils
import time
from types import SimpleNamespace

import numpy as np
import pytest

from qed import types
from qed.llm import http, local, wire
from qed.rollout import scheduler
from qed.rollout.layout import Layout
from tests.llm import scripted
from tests.rollout import http_api_test, toy_engine

pytestmark = pytest.mark.timeout(30)

MESSAGES = (types.Message(role='user', content='How many?'),)
PROMPT = types.Prompt(
  problem_id='p', messages=MESSAGES, token_ids=np.array([5, 6, 7], np.int32)
)
PARAMS = types.SamplingParams(
  temperature=0.8,
  top_p=1.0,
  top_k=0,
  max_tokens=9,
  stop_token_ids=(2, 3),
  seed=40,
)
CHOICE = {
  'text': 'ab',
  'token_ids': [11, 12, 2],
  'logprobs': {'token_logprobs': [-0.5, -1.25, -0.125]},
  'versions': [3, 3, 4],
  'finish_reason': 'stop',
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
  monkeypatch.setattr(http, '_FIRST_WAIT_SECS', 0.001)


def client(base_url, **changes):
  fields = {
    'model': 'm',
    'api_key': 'secret',
    'connect_secs': 5.0,
    'deadline_secs': 5.0,
    'max_attempts': 3,
    'max_connections': 50,
  }
  return http.Http(http.Endpoint(base_url=base_url, **(fields | changes)))


class Script:
  """Answers requests with one answer after another, the last one forever."""

  def __init__(self, *answers):
    self.answers = answers
    self.requests = []

  def __call__(self, path, body):
    self.requests.append((path, body))
    number = min(len(self.requests), len(self.answers))
    return self.answers[number - 1]


async def ask(url, **changes):
  async with client(url, **changes) as llm:
    return await llm.ask(MESSAGES, temperature=0.5, max_tokens=64)


def choices(**changes):
  return scripted.answer(body={'choices': [CHOICE | changes]})


async def test_a_chat_sends_what_it_is_given_and_returns_what_came():
  script = Script(scripted.answer(body=scripted.chat('Four.')))
  async with scripted.serve(script) as url, client(url) as llm:
    reply = await llm.ask(
      MESSAGES, temperature=0.5, max_tokens=64, effort='low'
    )
  assert reply == http.Reply(
    kind='answer',
    text='Four.',
    finish_reason='stop',
    prompt_tokens=100,
    completion_tokens=10,
  )
  assert script.requests == [
    (
      '/v1/chat/completions',
      {
        'model': 'm',
        'messages': [{'role': 'user', 'content': 'How many?'}],
        'temperature': 0.5,
        'max_completion_tokens': 64,
        'reasoning_effort': 'low',
      },
    )
  ]


async def test_an_effort_that_is_not_set_is_not_sent():
  script = Script(scripted.answer(body=scripted.chat('x')))
  async with scripted.serve(script) as url:
    await ask(url)
  assert 'reasoning_effort' not in script.requests[0][1]


async def test_no_content_is_an_empty_text_and_half_a_surrogate_is_replaced():
  for content, text in ((None, ''), ('a\ud800b', 'a?b'), ('a\0b', 'a\0b')):
    script = Script(scripted.answer(body=scripted.chat(content)))
    async with scripted.serve(script) as url:
      reply = await ask(url)
    assert (reply.kind, reply.text) == ('answer', text)


BROKEN = {
  'a page of a gateway': (scripted.answer(body='<html>hi</html>'), 'no JSON'),
  'half of a body': (
    scripted.answer(body='{"choices": [{"mess'),
    'no JSON',
  ),
  'nothing': (scripted.answer(body=''), 'no JSON'),
  'bytes that are no text': (scripted.answer(body=b'\xff\xfe{'), 'no JSON'),
  'a list': (scripted.answer(body=[1]), 'no object'),
  'no choices': (scripted.answer(body={'choices': []}), 'expected choices'),
  'choices of another kind': (
    scripted.answer(body={'choices': [3]}),
    'expected choices',
  ),
  'an error under 200': (
    scripted.answer(body={'error': {'message': 'upstream died'}}),
    'upstream died',
  ),
  'no message': (
    scripted.answer(body={'choices': [{'text': 'x'}]}),
    'expected a message',
  ),
  'content that is no text': (
    scripted.answer(body=scripted.chat(4)),
    'expected content as a text',
  ),
}


@pytest.mark.parametrize('name', BROKEN)
async def test_a_body_that_says_nothing_is_malformed_and_says_why(name):
  broken, words = BROKEN[name]
  async with scripted.serve(Script(broken)) as url:
    reply = await ask(url)
  assert (reply.kind, reply.text) == ('malformed', '')
  assert words in reply.detail


@pytest.mark.parametrize(
  ('status', 'kind'),
  [
    (400, 'rejected'),
    (401, 'forbidden'),
    (403, 'forbidden'),
    (404, 'forbidden'),
    (408, 'timeout'),
    (413, 'rejected'),
    (422, 'rejected'),
    (429, 'rate_limited'),
    (500, 'server_error'),
    (502, 'server_error'),
    (503, 'overloaded'),
    (529, 'overloaded'),
  ],
)
async def test_a_status_has_its_kind_and_its_words_arrive(status, kind):
  script = Script(scripted.answer(status, 'the reason'))
  async with scripted.serve(script) as url:
    reply = await ask(url)
  assert reply.kind == kind
  assert f'status {status}' in reply.detail
  assert 'the reason' in reply.detail
  assert len(script.requests) == 1


async def test_connections_that_fail_or_break():
  with scripted.nobody() as url:
    assert (await ask(url)).kind == 'connect'
  promising = scripted.answer(body='{"choices"', length=500)
  for broken in (scripted.reset, scripted.close, scripted.noise, promising):
    async with scripted.serve(Script(broken)) as url:
      assert (await ask(url)).kind == 'reset'


async def test_the_deadline_is_over_the_whole_call_not_over_each_read():
  body = '{"choices": []}' + ' ' * 2000
  for slow in (scripted.hang, scripted.drip(body, 0.01)):
    async with scripted.serve(Script(slow)) as url:
      began = time.monotonic()
      reply = await ask(url, deadline_secs=0.3)
      assert time.monotonic() - began < 2
      assert reply.kind == 'timeout'
      assert '0.3 s' in reply.detail


async def test_a_drip_that_ends_in_time_is_an_answer():
  body = '{"choices": [{"message": {"content": "x"}}]}'
  async with scripted.serve(Script(scripted.drip(body, 0.002))) as url:
    assert (await ask(url)).text == 'x'


def test_retry_after_is_a_number_or_a_date():
  date = email.utils.formatdate(time.time() + 100, usegmt=True)
  past = email.utils.formatdate(time.time() - 100, usegmt=True)
  for value, secs in {
    '7': 7,
    ' 0.5 ': 0.5,
    date: pytest.approx(100, abs=2),
    past: 0,
    '-3': 0,
    'inf': 0,
    'nan': 0,
    'soon': 0,
    '': 0,
  }.items():
    assert wire.retry_after_secs({'retry-after': value}) == secs, value
  assert wire.retry_after_secs({}) == 0


async def test_retry_after_is_honored():
  busy = scripted.answer(429, '', [('Retry-After', '0.4')])
  script = Script(busy, scripted.answer(body=scripted.chat('yes')))
  async with scripted.serve(script) as url, client(url) as llm:
    began = time.monotonic()
    reply = await llm.chat(MESSAGES, temperature=0.0, max_tokens=5)
  assert reply.text == 'yes'
  assert 0.4 <= time.monotonic() - began < 2


async def test_a_chat_is_repeated_until_it_is_answered():
  script = Script(
    scripted.reset,
    scripted.answer(500),
    scripted.answer(body=scripted.chat('yes')),
  )
  async with scripted.serve(script) as url, client(url) as llm:
    reply = await llm.chat(MESSAGES, temperature=0.0, max_tokens=5)
  assert reply.text == 'yes'
  assert len(script.requests) == 3


@pytest.mark.parametrize(
  ('fault', 'kind', 'attempts'),
  [
    (scripted.answer(500), 'server_error', 3),
    (scripted.answer(401), 'forbidden', 1),
    (scripted.answer(400), 'rejected', 1),
    (
      scripted.answer(429, '', [('Retry-After', '86400')]),
      'rate_limited',
      1,
    ),
  ],
)
async def test_a_failure_says_what_where_and_how_often(fault, kind, attempts):
  script = Script(fault)
  async with scripted.serve(script) as url, client(url) as llm:
    with pytest.raises(http.Failure) as caught:
      await llm.chat(MESSAGES, temperature=0.0, max_tokens=5)
    times = 'once' if attempts == 1 else '3 times'
    assert str(caught.value).startswith(f'{url}/chat/completions: {kind}: ')
    assert str(caught.value).endswith(f'(tried {times})')
  assert (caught.value.kind, caught.value.attempts) == (kind, attempts)
  assert len(script.requests) == attempts


def test_a_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
  monkeypatch.setenv('JUDGE_KEY', 'sk-1')
  monkeypatch.delenv('NO_KEY', raising=False)
  assert http.api_key('JUDGE_KEY') == 'sk-1'
  assert http.api_key('') == ''
  with pytest.raises(ValueError, match='NO_KEY, which is not set'):
    http.api_key('NO_KEY')
  fields = {'connect_secs': 1.0, 'deadline_secs': 1.0, 'max_attempts': 1}
  endpoint = http.Endpoint(
    base_url='u', model='m', api_key='sk-1', max_connections=1, **fields
  )
  assert 'sk-1' not in repr(endpoint)


def test_an_endpoint_is_that_of_its_section(monkeypatch):
  monkeypatch.setenv('JUDGE_KEY', 'sk-1')
  section = SimpleNamespace(
    base_url='u',
    model='m',
    api_key_env='JUDGE_KEY',
    connect_secs=1.0,
    deadline_secs=2.0,
    max_attempts=3,
    max_concurrency=4,
  )
  assert http.Endpoint.from_config(section) == http.Endpoint(
    base_url='u',
    model='m',
    api_key='sk-1',
    connect_secs=1.0,
    deadline_secs=2.0,
    max_attempts=3,
    max_connections=4,
  )


async def test_the_models_of_an_endpoint_are_a_check_of_it():
  script = Script(
    scripted.answer(body={'data': [{'id': 'a'}, {'id': 'b'}]}),
    scripted.answer(body={'data': None}),
    scripted.answer(401),
  )
  async with scripted.serve(script) as url, client(url) as llm:
    assert await llm.models() == ['a', 'b']
    for kind in ('malformed', 'forbidden'):
      with pytest.raises(http.Failure, match=kind):
        await llm.models()
  assert script.requests[0] == ('/v1/models', None)


async def test_a_sample_sends_ids_and_returns_ids():
  script = Script(choices())
  async with scripted.serve(script) as url, client(url) as llm:
    first, second = await llm.sample(PROMPT, PARAMS, n=2)
  for completion in (first, second):
    assert completion.token_ids.tolist() == [11, 12, 2]
    assert completion.logprobs.tolist() == [-0.5, -1.25, -0.125]
    assert completion.versions.tolist() == [3, 3, 4]
    assert completion.token_ids.dtype == np.int32
    assert completion.logprobs.dtype == np.float32
    assert completion.versions.dtype == np.int32
    assert (completion.text, completion.finish_reason) == ('ab', 'stop')
  bodies = [body for _, body in script.requests]
  assert {path for path, _ in script.requests} == {'/v1/completions'}
  seeds = {body.pop('seed') for body in bodies}
  assert seeds == {*local.member_seeds(40, 2)}  # As our engine in process.
  assert len({body.pop('group') for body in bodies}) == 1
  assert bodies[0] == bodies[1]
  assert bodies[0] == {
    'model': 'm',
    'prompt': [5, 6, 7],
    'n': 1,
    'max_tokens': 9,
    'temperature': 0.8,
    'top_p': 1.0,
    'top_k': 0,
    'stop_token_ids': [2, 3],
    'logprobs': 1,
    'return_token_ids': True,
  }


async def test_members_and_calls_with_neighboring_seeds_share_no_sample():
  script = Script(choices())
  async with scripted.serve(script) as url, client(url) as llm:
    for seed in range(4):
      await llm.sample(PROMPT, dataclasses.replace(PARAMS, seed=seed), n=4)
  seeds = [body['seed'] for _, body in script.requests]
  assert len(set(seeds)) == 16
  groups = collections.Counter(body['group'] for _, body in script.requests)
  assert list(groups.values()) == [4] * 4


async def test_members_that_are_called_one_by_one_share_the_group_given():
  script = Script(choices())
  async with scripted.serve(script) as url, client(url) as llm:
    for seed, group in ((0, '7'), (1, '7'), (2, '8'), (3, ''), (4, '')):
      params = dataclasses.replace(PARAMS, seed=seed)
      await llm.sample(PROMPT, params, group=group)
    await llm.sample(PROMPT, PARAMS, n=2, group='7')
  groups = [body['group'] for _, body in script.requests]
  assert groups[:3] == ['7', '7', '8']
  assert groups[5:] == ['7', '7']
  # Without one, a call is a group of its own.
  assert len({*groups[3:5], '', '7', '8'}) == 5


async def test_our_server_reads_the_prompt_of_a_group_once():
  def before(operation, call, details):
    # Nobody is done before all have come, however slow the machine is.
    while operation == 'generate' and num_submitted(served.stats()) < 4:
      time.sleep(0.001)

  def num_submitted(stats):
    ended = ('finished_stop_total', 'finished_length_total')
    return stats['open'] + sum(stats[name] for name in ended)

  engine = toy_engine.ToyEngine(
    Layout(
      num_slots=4,
      max_length=200,
      page_size=8,
      num_pages=101,
      steps_per_chunk=4,
      prefill_buckets=(8,),
      kv_dtype='float32',
    ),
    before=before,
  )
  for groups, num_prefills in ((['7'] * 4, 1), (['7', '7', '8', '8'], 2)):
    engine.calls.clear()
    with scheduler.Scheduler(engine, toy_engine.params(1)) as served:
      app = http_api_test.make_app(served)
      with http_api_test.serving(app) as url:
        async with client(f'{url}/v1', model='prover') as llm:
          members = [
            llm.sample(
              PROMPT, dataclasses.replace(PARAMS, seed=seed), group=group
            )
            for seed, group in enumerate(groups)
          ]
          drawn = await asyncio.gather(*members)
    assert engine.calls['prefill'] == num_prefills
    assert len({tuple(x.token_ids) for (x,) in drawn}) == 4


async def test_what_a_sample_lacks_is_unknown_and_never_zero():
  missing = Script(
    choices(logprobs=None, versions=None),
    choices(logprobs={'token_logprobs': [None, -1, 0]}),
    choices(token_ids=[], logprobs={'token_logprobs': []}, versions=[]),
    choices(finish_reason='length'),
    choices(finish_reason='abort'),
    choices(finish_reason='tool_calls'),
  )
  async with scripted.serve(missing) as url, client(url) as llm:
    results = [(await llm.sample(PROMPT, PARAMS))[0] for _ in range(6)]
  assert np.isnan(results[0].logprobs).tolist() == [True] * 3
  assert results[0].versions.tolist() == [-1] * 3
  assert np.isnan(results[1].logprobs).tolist() == [True, False, False]
  assert results[1].logprobs[1:].tolist() == [-1, 0]
  assert results[2].token_ids.shape == (0,)
  reasons = [result.finish_reason for result in results[3:]]
  assert reasons == ['length', 'abort', 'error']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'token_ids': None}, 'return_token_ids'),
    ({'logprobs': {'token_logprobs': [-1.0]}}, '3 token_logprobs'),
    ({'versions': [1, 2]}, '3 versions'),
    ({'token_ids': ['a', 'b', 'c']}, 'numbers'),
    ({'token_ids': [1, 2, 2**40]}, 'numbers'),
  ],
)
async def test_columns_that_do_not_fit_are_malformed(changes, words):
  async with (
    scripted.serve(Script(choices(**changes))) as url,
    client(url) as llm,
  ):
    with pytest.raises(http.Failure, match=words) as caught:
      await llm.sample(PROMPT, PARAMS)
  assert (caught.value.kind, caught.value.attempts) == ('malformed', 3)


async def test_a_member_that_fails_for_good_does_not_cost_the_others():
  bad = []

  def respond(path, body):
    bad[:] = bad or [body['seed']]  # The first to come.
    return scripted.answer(500) if body['seed'] in bad else choices()

  async with scripted.serve(respond) as url, client(url) as llm:
    results = await llm.sample(PROMPT, PARAMS, n=3)
    reasons = [result.finish_reason for result in results]
    assert sorted(reasons) == ['error', 'stop', 'stop']
    assert len(results[reasons.index('error')].token_ids) == 0
  async with (
    scripted.serve(Script(scripted.answer(500))) as url,
    client(url) as llm,
  ):
    with pytest.raises(http.Failure, match='tried 3 times'):
      await llm.sample(PROMPT, PARAMS, n=2)


async def test_calls_one_after_another_share_a_connection_and_others_do_not():
  peers = set()
  good = scripted.answer(body=scripted.chat('x'), pause_secs=0.1)

  async def note(writer):
    peers.add(writer.get_extra_info('peername'))
    return await good(writer)

  # Two pools of connections.
  async with (
    scripted.serve(Script(note)) as url,
    client(url, max_connections=64) as llm,
  ):
    for _ in range(3):
      await llm.ask(MESSAGES, temperature=0.0, max_tokens=5)
    assert len(peers) == 1
    asked = [llm.ask(MESSAGES, temperature=0.0, max_tokens=5) for _ in range(6)]
    await asyncio.gather(*asked)
    assert len(peers) == 6


async def test_a_cancelled_sample_closes_its_connection():
  asked, gone = asyncio.Event(), asyncio.Event()

  async def connect(reader, writer):
    while await reader.read(1 << 16):
      asked.set()
    gone.set()
    writer.close()

  server = await asyncio.start_server(connect, '127.0.0.1', 0)
  port = server.sockets[0].getsockname()[1]
  async with server, client(f'http://127.0.0.1:{port}/v1') as llm:
    task = asyncio.create_task(llm.sample(PROMPT, PARAMS))
    async with asyncio.timeout(5):
      await asked.wait()
      task.cancel()
      await gone.wait()
    with pytest.raises(asyncio.CancelledError):
      await task
