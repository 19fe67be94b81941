"""The server around a scheduler that plays back what it is told to."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import math
import threading
import types

import httpx2
import numpy as np
import openai
import pytest
import uvicorn

from qed.data import chat, tokenizer
from qed.rollout import http_api, http_requests
from qed.types import Message

pytestmark = pytest.mark.timeout(30)

WORDS = tokenizer.train_sentencepiece(
  ['Let x0 = 7. Then x1 = 3 x0 + 4. Hence the claim is proved.'],
  max_vocab_size=320,
)
STOP = WORDS.special_ids[tokenizer.TURN_END]
THOUGHT, PROOF = 'We try x0.\n', '\n\nHence the claim.'
LIMITS = http_requests.Limits(
  max_length=200,
  vocab_size=WORDS.vocab_size,
  max_samples=4,
  max_stop_tokens=8,
  max_in_flight=6,
  max_body_bytes=4_000,
  body_secs=1.0,
)


@dataclasses.dataclass
class Piece:
  token_ids: np.ndarray
  logprobs: np.ndarray
  versions: np.ndarray
  finish_reason: str | None


class Stream:
  """Two tokens per piece, at once or never."""

  def __init__(self, ids, reason, stalls):
    self.is_canceled = asyncio.Event()
    self._pieces = [ids[i : i + 2] for i in range(0, len(ids), 2)]
    self._reason, self._stalls, self._num_out = reason, stalls, 0

  def cancel(self):
    self.is_canceled.set()

  def __aiter__(self):
    return self

  async def __anext__(self):
    if self._num_out == len(self._pieces):
      raise StopAsyncIteration
    if self._stalls and self._num_out == 1:
      await self.is_canceled.wait()
    ids = np.array(self._pieces[self._num_out], np.int32)
    start = 2 * self._num_out
    self._num_out += 1
    reason = self._reason if self._num_out == len(self._pieces) else None
    if self.is_canceled.is_set():
      self._pieces, self._num_out, reason = [], 0, 'abort'
    places = np.arange(start, start + len(ids))
    logprobs = np.float32(-0.25) * (places + 1).astype(np.float32)
    logprobs[places == 3] = np.nan
    return Piece(ids, logprobs, 40 + places // 3, reason)


class Scheduler:
  """Every request gets the same completion."""

  def __init__(self, text=THOUGHT, proof=PROOF, stalls=False):
    ids = WORDS.encode(text).tolist()
    if proof is not None:
      ids += [WORDS.special_ids[tokenizer.THINK_END]]
      ids += [*WORDS.encode(proof).tolist(), STOP]
    self.ids, self.reason = ids, 'length' if proof is None else 'stop'
    self.stalls, self.submitted, self.streams = stalls, [], []
    self.version, self.failure, self.params = 40, None, 'old'

  def submit(self, token_ids, params, *, group=None, deadline_secs=None):
    if self.failure:
      raise RuntimeError(f'the engine failed: {self.failure}')
    self.submitted.append((token_ids, params, group, deadline_secs))
    self.streams.append(Stream(self.ids, self.reason, self.stalls))
    return self.streams[-1]

  def update_weights(self, params, version):
    future = concurrent.futures.Future()
    if version < self.version:
      future.set_exception(ValueError(f'expected above {self.version}'))
    else:
      self.params, self.version = params, version
      future.set_result(None)
    return future

  def stats(self):
    return {'slots/live': 3.0, 'tokens': 12.0}


def make_app(scheduler, **changes):
  settings = http_api.Settings(
    model='prover',
    chat_style='thinking',
    limits=LIMITS,
    api_key='',
    load=lambda version: f'weights {version}',
    list_versions=lambda: [41, 42],
  )
  settings = dataclasses.replace(settings, **changes)
  return http_api.app(scheduler, WORDS, settings)


def client_of(app, **headers):
  transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
  return httpx2.AsyncClient(
    transport=transport, base_url='http://test', headers=headers
  )


async def post(app, path, body, **headers):
  async with client_of(app, **headers) as client:
    response = await client.post(path, json=body)
  return response


@contextlib.contextmanager
def serving(app):
  """The address of the app behind a real socket."""
  config = uvicorn.Config(app, port=0, log_level='error', lifespan='off')
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f'http://127.0.0.1:{port}'
  finally:
    server.should_exit = True
    thread.join(20)


class TestCompletions:
  """POST /v1/completions."""

  async def test_ids_in_and_ids_logprobs_and_versions_out(self):
    scheduler = Scheduler()
    body = {
      'model': 'prover',
      'prompt': [5, 6, 7],
      'max_tokens': 50,
      'temperature': 0.8,
      'top_p': 0.9,
      'top_k': 20,
      'seed': 9,
      'stop_token_ids': [3, 4, 3],
      'logprobs': 1,
      'return_token_ids': True,
      'group': 'g',
      'deadline_secs': 2.5,
      'n': 1,
    }
    response = await post(make_app(scheduler), '/v1/completions', body)
    assert response.status_code == 200
    answer = response.json()
    (choice,) = answer['choices']
    n = len(scheduler.ids)
    assert choice['token_ids'] == scheduler.ids
    assert choice['versions'] == [40 + i // 3 for i in range(n)]
    expected = [-0.25 * (i + 1) for i in range(n)]
    expected[3] = None  # NaN is no JSON.
    assert choice['logprobs']['token_logprobs'] == expected
    assert choice['text'] == THOUGHT + '</think>' + PROOF
    assert (choice['index'], choice['finish_reason']) == (0, 'stop')
    assert answer['object'] == 'text_completion'
    assert answer['model'] == 'prover'
    assert answer['usage'] == {
      'prompt_tokens': 3,
      'completion_tokens': n,
      'total_tokens': 3 + n,
    }
    ((ids, params, group, deadline),) = scheduler.submitted
    assert (ids.dtype, ids.tolist()) == (np.int32, [5, 6, 7])
    assert dataclasses.asdict(params) == {
      'temperature': 0.8,
      'top_p': 0.9,
      'top_k': 20,
      'max_tokens': 50,
      'stop_token_ids': (3, 4),
      'seed': 9,
    }
    assert (group, deadline) == ('g', 2.5)

  async def test_what_is_not_asked_for_does_not_come(self):
    body = {'prompt': [5]}
    answer = await post(make_app(Scheduler()), '/v1/completions', body)
    (choice,) = answer.json()['choices']
    assert {*choice} == {'index', 'text', 'finish_reason'}

  async def test_the_defaults_are_those_of_openai(self):
    scheduler = Scheduler()
    for body in ({'prompt': [5]}, {'prompt': [5], 'n': None, 'top_k': -1}):
      await post(make_app(scheduler), '/v1/completions', body)
    (_, params, group, deadline), (_, other, other_group, _) = (
      scheduler.submitted
    )
    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, 0)
    assert params.max_tokens == 16
    assert params.stop_token_ids == WORDS.stop_token_ids
    assert other.top_k == 0
    assert params.seed != other.seed
    assert group != other_group
    assert deadline is None

  async def test_a_text_is_encoded_as_data(self):
    scheduler = Scheduler()
    text = 'x0 <|im_end|>'
    await post(make_app(scheduler), '/v1/completions', {'prompt': text})
    ids = scheduler.submitted[0][0]
    assert ids.tolist() == WORDS.encode(text).tolist()
    assert STOP not in ids

  async def test_n_samples_share_a_group_and_differ_in_seed(self):
    scheduler = Scheduler()
    body = {'prompt': [5], 'n': 3, 'seed': 2**32 - 1, 'logprobs': 0}
    response = await post(make_app(scheduler), '/v1/completions', body)
    choices = response.json()['choices']
    assert [choice['index'] for choice in choices] == [0, 1, 2]
    assert all('logprobs' in choice for choice in choices)
    assert [s[1].seed for s in scheduler.submitted] == [2**32 - 1, 0, 1]
    assert len({s[2] for s in scheduler.submitted}) == 1

  async def test_a_stream_adds_up_to_the_whole(self):
    body = {
      'prompt': [5],
      'n': 2,
      'stream': True,
      'stream_options': {'include_usage': True},
      'logprobs': 1,
      'return_token_ids': True,
    }
    scheduler = Scheduler()
    response = await post(make_app(scheduler), '/v1/completions', body)
    assert response.headers['content-type'].startswith('text/event-stream')
    events = response.text.strip().split('\n\n')
    assert events.pop() == 'data: [DONE]'
    chunks = [json.loads(event.removeprefix('data: ')) for event in events]
    usage = chunks.pop()
    assert usage['choices'] == []
    assert usage['usage']['completion_tokens'] == 2 * len(scheduler.ids)
    for index in range(2):
      choices = [
        choice
        for chunk in chunks
        for choice in chunk['choices']
        if choice['index'] == index
      ]
      ids = [i for choice in choices for i in choice['token_ids']]
      assert ids == scheduler.ids
      text = ''.join(choice['text'] for choice in choices)
      assert text == THOUGHT + '</think>' + PROOF
      reasons = [choice['finish_reason'] for choice in choices]
      assert reasons == [None] * (len(choices) - 1) + ['stop']
      for name, size in (('versions', 2), ('token_ids', 2)):
        assert len(choices[0][name]) == size


BODY = {'messages': [{'role': 'user', 'content': 'Prove it.'}]}


class TestChat:
  """POST /v1/chat/completions."""

  async def test_reasoning_and_answer_come_apart(self):
    scheduler = Scheduler()
    path = '/v1/chat/completions'
    response = await post(make_app(scheduler), path, BODY)
    (choice,) = response.json()['choices']
    assert choice['message'] == {
      'role': 'assistant',
      'reasoning_content': 'We try x0.',
      'content': 'Hence the claim.',
    }
    ids, params, *_ = scheduler.submitted[0]
    messages = [Message(role='user', content='Prove it.')]
    expected = chat.encode_chat(WORDS, messages, style='thinking')
    assert ids.tolist() == expected.tolist()
    assert params.max_tokens == LIMITS.max_length - len(ids)

  async def test_a_model_still_thinking_has_no_answer(self):
    app = make_app(Scheduler(proof=None))
    response = await post(app, '/v1/chat/completions', BODY)
    (choice,) = response.json()['choices']
    assert choice['message']['reasoning_content'] == 'We try x0.'
    assert choice['message']['content'] == ''
    assert choice['finish_reason'] == 'length'

  async def test_another_style_has_no_reasoning(self):
    app = make_app(Scheduler(), chat_style='instruct')
    response = await post(app, '/v1/chat/completions', BODY)
    (choice,) = response.json()['choices']
    assert choice['message'] == {
      'role': 'assistant',
      'content': THOUGHT + '</think>' + PROOF,
    }

  async def test_parts_developer_and_earlier_thinking(self):
    scheduler = Scheduler()
    body = {
      'messages': [
        {'role': 'developer', 'content': 'Be brief.'},
        {'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]},
        {'role': 'assistant', 'content': 'hm</think>\n\nb'},
        {'role': 'user', 'content': 'c'},
      ],
      'max_completion_tokens': 7,
    }
    await post(make_app(scheduler), '/v1/chat/completions', body)
    expected = [
      Message(role='system', content='Be brief.'),
      Message(role='user', content='a'),
      Message(role='assistant', content='b'),
      Message(role='user', content='c'),
    ]
    ids, params, *_ = scheduler.submitted[0]
    assert ids.tolist() == (
      chat.encode_chat(WORDS, expected, style='thinking').tolist()
    )
    assert params.max_tokens == 7

  def test_the_openai_package_streams_from_it(self):
    app = make_app(Scheduler(), api_key='secret')
    with serving(app) as url:
      client = openai.OpenAI(
        base_url=f'{url}/v1', api_key='secret', max_retries=0, timeout=10
      )
      assert [model.id for model in client.models.list()] == ['prover']
      stream = client.chat.completions.create(
        model='prover',
        messages=BODY['messages'],
        stream=True,
        logprobs=True,
        stream_options={'include_usage': True},
      )
      chunks = list(stream)
      done = client.completions.create(
        model='prover', prompt=[5, 6], logprobs=1, max_tokens=20
      )
      client.close()
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert deltas[0].role == 'assistant'
    assert ''.join(d.content or '' for d in deltas) == 'Hence the claim.'
    thoughts = [getattr(d, 'reasoning_content', None) or '' for d in deltas]
    assert ''.join(thoughts) == 'We try x0.'
    assert len(chunks) > 8
    assert chunks[-1].usage.completion_tokens > 10
    assert chunks[-2].choices[0].finish_reason == 'stop'
    assert chunks[1].choices[0].logprobs.content[0].logprob == -0.25
    assert done.choices[0].text == THOUGHT + '</think>' + PROOF


class TestRefused:
  """What starts nothing, with a status and the name of the field."""

  @pytest.mark.parametrize(
    ('changes', 'param', 'words'),
    [
      ({'prompt': None}, 'prompt', 'missing'),
      ({'prompt': []}, 'prompt', 'at least one token'),
      ({'prompt': ''}, 'prompt', 'at least one token'),
      ({'prompt': ['a', 'b']}, 'prompt', 'one request for each prompt'),
      ({'prompt': [[5], [6]]}, 'prompt', 'one request for each prompt'),
      ({'prompt': [5, 10**6]}, 'prompt', 'expected ids from 0 to'),
      ({'prompt': [-1]}, 'prompt', 'expected ids from 0 to'),
      ({'prompt': [5, -1]}, 'prompt', 'got -1 to 5'),
      ({'prompt': [True]}, 'prompt', 'a list of bool'),
      ({'prompt': 5}, 'prompt', 'a text or ids, got 5'),
      ({'prompt': '\ud800'}, 'prompt', 'surrogate'),
      ({'prompt': [5] * 200}, 'prompt', '200 tokens leave no room'),
      ({'max_tokens': 199}, 'max_tokens', 'leave room for 198 of the 200'),
      ({'max_tokens': 200}, 'max_tokens', 'leave room for 198 of the 200'),
      ({'max_tokens': 0}, 'max_tokens', 'above 0'),
      ({'max_tokens': '5'}, 'max_tokens', 'an integer above 0, got "5"'),
      ({'temperature': -0.1}, 'temperature', 'from 0 to 100'),
      ({'temperature': True}, 'temperature', 'from 0 to 100'),
      ({'top_p': 0}, 'top_p', 'above 0'),
      ({'top_k': -2}, 'top_k', 'from 0'),
      ({'n': 5}, 'n', 'at most 4'),
      ({'n': 0}, 'n', 'above 0'),
      ({'seed': 1.5}, 'seed', 'an integer'),
      ({'stop_token_ids': [*range(9)]}, 'stop_token_ids', 'at most 8'),
      ({'stop_token_ids': [10**6]}, 'stop_token_ids', 'expected ids'),
      ({'stop': ['x']}, 'stop', 'nothing else is supported'),
      ({'logprobs': 5}, 'logprobs', '0, 1'),
      ({'echo': True}, 'echo', 'nothing else is supported'),
      ({'presence_penalty': 0.5}, 'presence_penalty', 'nothing else'),
      ({'stream': 'yes'}, 'stream', 'true or false'),
      ({'deadline_secs': 0}, 'deadline_secs', 'above 0'),
      ({'group': 3}, 'group', 'a text'),
      ({'temprature': 1}, 'temprature', 'did you mean temperature?'),
    ],
  )
  async def test_a_completion(self, changes, param, words):
    scheduler = Scheduler()
    # As json.dumps writes it: httpx2 would refuse the lone surrogate.
    content = json.dumps({'prompt': [5, 6], **changes})
    async with client_of(make_app(scheduler)) as client:
      response = await client.post(
        '/v1/completions',
        content=content,
        headers={'content-type': 'application/json'},
      )
    error = response.json()['error']
    assert response.status_code == 400
    assert {*error} == {'message', 'type', 'param', 'code'}
    assert error['param'] == param
    assert error['type'] == 'invalid_request_error'
    assert words in error['message']
    assert not scheduler.submitted

  @pytest.mark.parametrize(
    ('messages', 'param'),
    [
      ([], 'messages'),
      (['x'], 'messages[0]'),
      ([{'role': 'tool', 'content': 'x'}], 'messages[0].role'),
      ([{'role': 'user', 'content': 5}], 'messages[0].content'),
      ([{'role': 'user', 'content': [{}]}], 'messages[0].content'),
      ([{'role': 'assistant', 'content': 'x'}], 'messages'),
    ],
  )
  async def test_a_chat(self, messages, param):
    app = make_app(Scheduler())
    body = {'messages': messages}
    response = await post(app, '/v1/chat/completions', body)
    assert response.status_code == 400
    assert response.json()['error']['param'] == param

  @pytest.mark.parametrize(
    ('content', 'kind', 'status'),
    [
      (b'{"prompt": [5]', 'application/json', 400),
      (b'[5]', 'application/json', 400),
      (b'\xff\xfe', 'application/json', 400),
      (b'{"prompt": [5], "temperature": NaN}', 'application/json', 400),
      (b'[' * 3_000, 'application/json', 400),
      (b'', 'application/json', 400),
      (b'{"prompt": [5]}', 'text/plain', 415),
      (b' ' * 4_001, 'application/json', 413),
    ],
  )
  async def test_a_body(self, content, kind, status):
    scheduler = Scheduler()
    async with client_of(make_app(scheduler)) as client:
      response = await client.post(
        '/v1/completions', content=content, headers={'content-type': kind}
      )
    assert response.status_code == status
    assert response.json()['error']['message']
    assert not scheduler.submitted

  async def test_a_body_without_a_length_that_is_too_long(self):
    async def blocks():
      for _ in range(5):
        yield b' ' * 1_000

    async with client_of(make_app(Scheduler())) as client:
      response = await client.post(
        '/v1/completions',
        content=blocks(),
        headers={'content-type': 'application/json'},
      )
    assert response.status_code == 413

  async def test_a_body_that_never_ends(self):
    async def blocks():
      yield b'{'
      await asyncio.sleep(20)

    limits = dataclasses.replace(LIMITS, body_secs=0.1)
    async with client_of(make_app(Scheduler(), limits=limits)) as client:
      response = await client.post(
        '/v1/completions',
        content=blocks(),
        headers={'content-type': 'application/json'},
      )
    assert response.status_code == 408

  async def test_another_model(self):
    body = {'prompt': [5], 'model': 'gpt'}
    response = await post(make_app(Scheduler()), '/v1/completions', body)
    assert response.status_code == 404
    assert response.json()['error']['param'] == 'model'

  @pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [('GET', '/v2', 404), ('GET', '/v1/completions', 405)],
  )
  async def test_another_path_or_method(self, method, path, status):
    async with client_of(make_app(Scheduler())) as client:
      response = await client.request(method, path)
    assert response.status_code == status
    assert path in response.json()['error']['message']

  @pytest.mark.parametrize(
    'key', ['', 'Bearer', 'Bearer wrong', 'Bearer secret2', 'secret']
  )
  async def test_a_wrong_key(self, key):
    app = make_app(Scheduler(), api_key='secret')
    for path in ('/v1/completions', '/v1/weights', '/v1/chat/completions'):
      response = await post(app, path, {'prompt': [5]}, Authorization=key)
      assert response.status_code == 401
    async with client_of(app, Authorization=key) as client:
      assert (await client.get('/metrics')).status_code == 401
      assert (await client.get('/health')).status_code == 200

  async def test_a_key_is_compared_in_constant_time(self, monkeypatch):
    compared = []

    def compare(expected, given):
      compared.append((expected, given))
      return hmac.compare_digest(expected, given)

    stand_in = types.SimpleNamespace(compare_digest=compare)
    monkeypatch.setattr(http_api, 'hmac', stand_in)
    app = make_app(Scheduler(), api_key='secret')
    await post(app, '/v1/completions', {'prompt': [5]}, Authorization='x')
    # The whole of both, so that no prefix is told from another.
    assert compared == [(b'Bearer secret', b'x')]

  async def test_the_right_key(self):
    app = make_app(Scheduler(), api_key='secret')
    key = 'Bearer secret'
    body = {'prompt': [5]}
    response = await post(app, '/v1/completions', body, Authorization=key)
    assert response.status_code == 200


class TestLoad:
  """Requests that wait, go away, or are too many."""

  @pytest.mark.parametrize('stream', [False, True])
  async def test_a_client_that_goes_away_frees_its_samples(self, stream):
    scheduler = Scheduler(stalls=True)
    app = make_app(scheduler)
    with serving(app) as url:
      async with httpx2.AsyncClient(base_url=url) as client:
        body = {'prompt': [5], 'n': 2, 'stream': stream}
        with pytest.raises(httpx2.ReadTimeout):
          await client.post('/v1/completions', json=body, timeout=0.5)
      async with asyncio.timeout(5):
        while app.state.api.num_in_flight:
          await asyncio.sleep(0.01)
    assert [s.is_canceled.is_set() for s in scheduler.streams] == [True, True]
    # A stream had begun well; of the other nobody hears the answer.
    counted = {('/v1/completions', 200 if stream else 499): 1}
    assert app.state.api._counts == counted

  async def test_too_many_samples_are_told_to_come_again(self):
    scheduler = Scheduler(stalls=True)
    app = make_app(scheduler)
    body = {'prompt': [5], 'n': 4}
    first = asyncio.create_task(post(app, '/v1/completions', body))
    while len(scheduler.streams) < 4:
      await asyncio.sleep(0)
    response = await post(app, '/v1/completions', {'prompt': [5], 'n': 3})
    assert response.status_code == 429
    assert response.headers['retry-after'] == '1'
    assert len(scheduler.streams) == 4
    app.state.api.abort()
    choices = (await first).json()['choices']
    assert {choice['finish_reason'] for choice in choices} == {'abort'}
    assert app.state.api.num_in_flight == 0

  async def test_a_server_that_is_shutting_down(self):
    app = make_app(Scheduler())
    app.state.api.stop_accepting()
    response = await post(app, '/v1/completions', {'prompt': [5]})
    assert response.status_code == 503
    async with client_of(app) as client:
      health = await client.get('/health')
    assert (health.status_code, health.json()['status']) == (503, 'draining')

  async def test_an_engine_that_failed(self):
    scheduler = Scheduler()
    scheduler.failure = RuntimeError('out of memory')
    app = make_app(scheduler)
    response = await post(app, '/v1/completions', {'prompt': [5]})
    assert response.status_code == 503
    assert 'out of memory' in response.json()['error']['message']
    async with client_of(app) as client:
      assert (await client.get('/health')).status_code == 503

  async def test_a_bug_is_a_500_that_tells_no_secrets(self):
    scheduler = Scheduler()
    scheduler.stats = lambda: 1 / 0
    async with client_of(make_app(scheduler)) as client:
      response = await client.get('/metrics')
    assert response.status_code == 500
    assert response.json()['error']['type'] == 'server_error'


class TestWeights:
  """Other weights under running requests."""

  async def test_a_version_is_loaded_and_used(self):
    scheduler = Scheduler()
    app = make_app(scheduler)
    response = await post(app, '/v1/weights', {'version': 42})
    assert response.status_code == 200
    assert response.json()['version'] == 42
    assert (scheduler.version, scheduler.params) == (42, 'weights 42')
    async with client_of(app) as client:
      answer = (await client.get('/v1/weights')).json()
      health = (await client.get('/health')).json()
    assert answer == {'version': 42, 'available': [41, 42]}
    assert health == {'status': 'ok', 'version': 42}

  async def test_the_version_in_use_may_have_other_weights_by_now(self):
    scheduler = Scheduler()
    app = make_app(scheduler)
    assert (await post(app, '/v1/weights', {'version': 40})).status_code == 200
    assert scheduler.params == 'weights 40'

  @pytest.mark.parametrize('version', [None, '42', -1, True, 1.0])
  async def test_what_is_no_version(self, version):
    response = await post(
      make_app(Scheduler()), '/v1/weights', {'version': version}
    )
    assert response.status_code == 400
    assert response.json()['error']['param'] == 'version'

  async def test_a_version_that_cannot_be_loaded_changes_nothing(self):
    def load(version):
      raise ValueError(f'weights/{version} is damaged')

    scheduler = Scheduler()
    app = make_app(scheduler, load=load)
    response = await post(app, '/v1/weights', {'version': 41})
    assert response.status_code == 409
    assert 'weights/41 is damaged' in response.json()['error']['message']
    assert scheduler.version == 40

  async def test_a_version_that_the_scheduler_refuses(self):
    app = make_app(Scheduler())
    response = await post(app, '/v1/weights', {'version': 39})
    assert response.status_code == 409
    assert 'expected above 40' in response.json()['error']['message']

  async def test_a_server_without_weights_to_choose_from(self):
    app = make_app(Scheduler(), load=None)
    response = await post(app, '/v1/weights', {'version': 41})
    assert response.status_code == 409


async def test_metrics_are_in_prometheus_format():
  app = make_app(Scheduler())
  await post(app, '/v1/completions', {'prompt': [5]})
  await post(app, '/v1/completions', {'prompt': 5})
  async with client_of(app) as client:
    response = await client.get('/metrics')
  assert response.headers['content-type'].startswith('text/plain')
  lines = response.text.splitlines()
  assert 'qed_slots_live 3' in lines
  assert 'qed_http_samples_in_flight 0' in lines
  for status in (200, 400):
    labels = f'{{path="/v1/completions",status="{status}"}}'
    assert f'qed_http_requests_total{labels} 1' in lines
  values = [float(line.rpartition(' ')[2]) for line in lines]
  assert all(math.isfinite(value) for value in values)
