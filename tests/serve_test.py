"""`qed serve`: its command line, and a process that serves a real model."""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
import types

import httpx2
import jax
import numpy as np
import openai
import pytest
import uvicorn

from bench import serve as bench
from qed import cli, serve
from qed.models import hf, qwen3, specs
from qed.rollout import weights
from tests.rollout import http_api_test

pytestmark = pytest.mark.timeout(120)


class TestCommandLine:
  """What is wrong with it is told before a model is read."""

  def refuse(self, capsys, *arguments):
    began = time.monotonic()
    assert cli.main(['qed', 'serve', *arguments]) == cli.USAGE
    assert time.monotonic() - began < 5
    return capsys.readouterr().err

  def test_what_is_missing(self, capsys, tmp_path):
    assert '--checkpoint is missing' in self.refuse(capsys)
    checkpoint = f'--checkpoint={tmp_path}'
    assert '--port is missing' in self.refuse(capsys, checkpoint)

  def test_a_checkpoint_that_is_not_there(self, capsys):
    message = self.refuse(capsys, '--checkpoint=nowhere', '--port=0')
    assert "--checkpoint = 'nowhere': no such file or folder" in message

  def test_a_folder_without_a_model(self, capsys, tmp_path):
    message = self.refuse(capsys, f'--checkpoint={tmp_path}', '--port=0')
    assert 'tokenizer_config.json' in message

  def test_a_misspelt_flag(self, capsys):
    message = self.refuse(capsys, '--chekpoint=x')
    assert 'Did you mean: checkpoint ?' in message

  def test_a_port_that_is_taken(self, capsys, tmp_path):
    with socket.socket() as other:
      other.bind(('127.0.0.1', 0))
      port = other.getsockname()[1]
      message = self.refuse(
        capsys, f'--checkpoint={tmp_path}', f'--port={port}'
      )
    assert f'--port={port}: Address already in use' in message


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('serve') / 'model'
  bench.write_model(folder)
  params, config = hf.load(folder, dtype=np.float32)
  return folder, params, config


@pytest.fixture(scope='module')
def served(model):
  """A server that gets other weights at hand, as version 3."""
  folder, _, config = model
  weights_dir = folder.parent / 'weights'
  flags = (
    f'--weights_dir={weights_dir}',
    '--shutdown_secs=0',
    f'--page_size={bench.MAX_LENGTH}',  # Fewer programs to compile.
  )
  with bench.server(folder, *flags) as (url, process):
    loaded = publish(weights_dir, config, 3)
    yield url, process, loaded


def publish(weights_dir, config, version):
  """Publishes random weights of a version; as they are read."""
  key = jax.random.key(version)
  params = jax.jit(specs.init, static_argnums=0)(config, key)
  weights.publish(weights_dir, params, config, version, max_versions=2)
  return weights.load(weights_dir, version, config=config, dtype=np.float32)


def greedy(params, config, prompt, count):
  """Ids and log-probs, with one pass of the whole model for each token."""
  positions = np.arange(bench.MAX_LENGTH, dtype=np.int32)[None]

  @jax.jit
  def logits_of(params, tokens):
    hidden = qwen3.apply(
      params, tokens, positions, tokens * 0 + 1, config=config
    )
    return qwen3.logits(params, hidden, config=config)[0]

  ids, logprobs = list(prompt), []
  for _ in range(count):
    tokens = np.zeros((1, bench.MAX_LENGTH), np.int32)
    tokens[0, : len(ids)] = ids
    values = np.asarray(logits_of(params, tokens), np.float64)[len(ids) - 1]
    values -= values.max()
    ids.append(int(values.argmax()))
    logprobs.append(-np.log(np.exp(values).sum()))
  return ids[len(prompt) :], logprobs


def test_a_server_goes_on_with_the_newest_weights_that_are_whole(
  model, tmp_path, capsys
):
  """It may have been away when the run told of them."""
  folder, params, config = model
  flags = types.SimpleNamespace(
    checkpoint=str(folder), weights_dir=str(tmp_path / 'weights')
  )

  def load():
    found, model_config, version = serve._load(flags, None, 'float32')
    assert model_config == config
    return found, version

  def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  found, version = load()  # Nothing is published yet.
  assert version == 0
  assert_same(found, params)
  older = publish(tmp_path / 'weights', config, 7)
  newer = publish(tmp_path / 'weights', config, 8)
  found, version = load()
  assert version == 8
  assert_same(found, newer)
  (file,) = (tmp_path / 'weights' / '8').glob('*.safetensors')
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  found, version = load()
  assert version == 7
  assert_same(found, older)
  assert 'is damaged' in capsys.readouterr().out


def complete(url, **changes):
  body = {
    'prompt': [5, 6, 7],
    'max_tokens': 10,
    'temperature': 0,
    'stop_token_ids': [],
    'logprobs': 1,
    'return_token_ids': True,
    **changes,
  }
  return httpx2.post(f'{url}/v1/completions', json=body, timeout=60)


def test_greedy_tokens_are_those_of_the_model_before_and_after_a_swap(
  served, model
):
  url, _, loaded = served
  _, params, config = model
  for version, expected in ((0, params), (3, loaded)):
    if version:
      response = httpx2.post(
        f'{url}/v1/weights', json={'version': version}, timeout=60
      )
      assert response.status_code == 200
    (choice,) = complete(url).json()['choices']
    ids, logprobs = greedy(expected, config, [5, 6, 7], 10)
    assert choice['token_ids'] == ids
    np.testing.assert_allclose(
      choice['logprobs']['token_logprobs'], logprobs, atol=1e-4
    )
    assert choice['versions'] == [version] * 10
    assert choice['finish_reason'] == 'length'
  answer = httpx2.get(f'{url}/v1/weights').json()
  assert answer == {'version': 3, 'available': [3]}


def test_a_version_that_is_not_there_changes_nothing(served):
  url, _, _ = served
  before = complete(url).json()['choices']
  response = httpx2.post(f'{url}/v1/weights', json={'version': 5}, timeout=60)
  assert response.status_code == 409
  assert 'no such version; there are [3]' in response.text
  assert complete(url).json()['choices'] == before


def test_a_real_client_streams_from_it(served):
  url, _, _ = served
  client = openai.OpenAI(base_url=f'{url}/v1', api_key='none', timeout=60)
  stream = client.chat.completions.create(
    model='policy',
    messages=[{'role': 'user', 'content': 'Prove.'}],
    stream=True,
    max_completion_tokens=40,
    seed=1,
    logprobs=True,
    stream_options={'include_usage': True},
  )
  chunks = list(stream)
  client.close()
  tokens = [
    token
    for chunk in chunks
    if chunk.choices and chunk.choices[0].logprobs
    for token in chunk.choices[0].logprobs.content
  ]
  assert len(tokens) == chunks[-1].usage.completion_tokens
  assert all(token.logprob <= 0 for token in tokens)
  assert chunks[-2].choices[0].finish_reason in ('stop', 'length')
  assert len(chunks) > 4


def test_load_with_disconnects_and_nonsense_leaks_nothing(served):
  """The short form of bench/serve.py."""
  url, _, _ = served
  report = asyncio.run(bench.load(url, num_clients=40, secs=2))
  print(json.dumps(report, indent=2))
  assert report['wrong_ends'] == 0
  assert all(report['ends'].values()), 'every kind was sent'
  assert report['health_afterwards'] == 200
  assert not any(report['held_afterwards'].values())


class Patient(http_api_test.Scheduler):
  """A scheduler whose completions end when they may."""

  def __init__(self):
    super().__init__()
    self.may_end = asyncio.Event()

  def submit(self, *args, **kwargs):
    stream = super().submit(*args, **kwargs)

    async def pieces():
      await self.may_end.wait()
      async for piece in stream:
        yield piece

    return Pieces(stream, pieces())


class Pieces:
  def __init__(self, stream, pieces):
    self.cancel, self._pieces = stream.cancel, pieces

  def __aiter__(self):
    return self._pieces


async def test_sigterm_lets_what_runs_finish_in_its_time():
  scheduler = Patient()
  app = http_api_test.make_app(scheduler)
  listener = serve._listen('127.0.0.1', 0)
  url = f'http://127.0.0.1:{listener.getsockname()[1]}'
  server = uvicorn.Server(
    uvicorn.Config(app, log_level='error', lifespan='off')
  )
  before = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT)]
  try:
    serving = asyncio.create_task(
      serve._until_stopped(server, app, scheduler, listener, 20.0)
    )
    async with httpx2.AsyncClient(base_url=url) as client:
      answer = asyncio.create_task(
        client.post('/v1/completions', json={'prompt': [5]})
      )
      while not scheduler.submitted:
        await asyncio.sleep(0.01)
      os.kill(os.getpid(), signal.SIGTERM)
      while not app.state.api._is_draining:
        await asyncio.sleep(0.01)
      assert not serving.done()
      scheduler.may_end.set()
      response = await answer
    await serving
  finally:
    for number, handler in before:
      signal.signal(number, handler)
  assert response.json()['choices'][0]['finish_reason'] == 'stop'


def test_sigterm_answers_what_runs_and_ends_with_0(served):
  """The last test of the file: the server is gone afterwards."""
  url, process, _ = served
  answers = []
  threads = [
    threading.Thread(
      target=lambda: answers.append(complete(url, max_tokens=90, n=100))
    )
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + 30
  num_in_flight = 0
  while num_in_flight <= 300:  # Until all four were taken.
    assert time.monotonic() < deadline
    metrics = httpx2.get(f'{url}/metrics').text
    num_in_flight = int(re.search(r'in_flight (\d+)\n', metrics)[1])
  process.terminate()
  assert process.wait(40) == 0
  for thread in threads:
    thread.join(20)
  assert [answer.status_code for answer in answers] == [200] * 4
  choices = [c for answer in answers for c in answer.json()['choices']]
  assert len(choices) == 400
  assert 'abort' in {choice['finish_reason'] for choice in choices}
