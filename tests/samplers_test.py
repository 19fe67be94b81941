"""Remote samplers that fail, answer without versions, or refuse weights."""

import asyncio
import http.server
import json
import threading
import types
import urllib.request

import numpy as np
import pytest

from qed import samplers
from qed.llm import patience
from qed.llm.http import Failure
from qed.types import Completion, Prompt, SamplingParams

PROMPT = Prompt(problem_id='p', messages=(), token_ids=np.array([1], np.int32))
PARAMS = SamplingParams(
  temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, stop_token_ids=(9,), seed=0
)
RUN = types.SimpleNamespace(
  words=types.SimpleNamespace(
    stop_token_ids=(9,), decode=lambda ids: ' '.join(map(str, ids))
  )
)


class Server:
  """Fails as it is told to, and then answers."""

  def __init__(self, *failures, versions=(-1, 4)):
    self.failures, self.versions = [*failures], versions
    self.groups = []

  async def sample(self, prompt, params, *, group):
    self.groups.append(group)
    if self.failures:
      kind = self.failures.pop(0)
      raise Failure(kind, 'as planned', where='here')
    return [
      Completion(
        token_ids=np.array([7, 9], np.int32),
        logprobs=np.zeros(2, np.float32),
        versions=np.array(self.versions, np.int32),
        text='what the server says',
        finish_reason='stop',
      )
    ]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  for module in (samplers, patience):
    monkeypatch.setattr(module, '_FIRST_WAIT_SECS', 0.01)


def sample(*servers, group=0, version=3):
  remote = samplers.Remote(RUN, servers)
  remote._version = version
  return asyncio.run(remote.sample(PROMPT, PARAMS, group=group))


def test_a_server_that_is_away_is_waited_for(capsys):
  found = sample(Server('connect', 'overloaded'))
  assert found.token_ids.tolist() == [7, 9]
  assert capsys.readouterr().out.count('trying again') == 2


@pytest.mark.parametrize('kind', ['rejected', 'forbidden'])
def test_a_request_that_is_refused_is_not_repeated(kind):
  with pytest.raises(Failure, match=kind):
    sample(Server(kind))


def test_tokens_without_a_version_have_that_of_the_beginning():
  assert sample(Server()).versions.tolist() == [3, 4]


def test_the_text_is_that_of_the_ids_without_the_stop_token():
  assert sample(Server()).text == '7'


def test_a_group_stays_at_one_server():
  servers = [Server(versions=(i, i)) for i in range(3)]
  asked = [
    sample(*servers, group=group).versions[0] for group in (0, 1, 2, 3, 1)
  ]
  assert asked == [0, 1, 2, 0, 1]
  # By its name, so that the server reads the prompt once for all members.
  assert [server.groups for server in servers] == [
    ['0', '3'],
    ['1', '1'],
    ['2'],
  ]


@pytest.fixture
def endpoint():
  """Answers POST with the status codes that it is given."""
  received, statuses = [], []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers['Content-Length']))
      received.append((self.path, json.loads(body)))
      self.send_response(statuses.pop(0))
      self.send_header('Content-Length', '2')
      self.end_headers()
      self.wfile.write(b'{}')

    def log_message(self, *arguments):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f'http://127.0.0.1:{server.server_address[1]}/v1'
    yield url, statuses, received
    server.shutdown()
    thread.join()


def load(url, version):
  settings = types.SimpleNamespace(
    api_key_env='', load_secs=5.0, max_attempts=3
  )
  asyncio.run(samplers._load_weights(url, version, settings))


def test_weights_are_asked_for_until_they_are_loaded(endpoint):
  url, statuses, received = endpoint
  statuses += [503, 200]
  load(url, 7)
  assert received == [('/v1/weights', {'version': 7})] * 2


def test_a_server_that_does_not_answer_is_waited_for(
  endpoint, monkeypatch, capsys
):
  """However long: one that is started again has to compile first."""
  url, statuses, received = endpoint
  statuses += [200]
  urlopen, away = urllib.request.urlopen, [ConnectionRefusedError()] * 7

  def open_later(*arguments, **settings):
    if away:
      raise away.pop()
    return urlopen(*arguments, **settings)

  monkeypatch.setattr(urllib.request, 'urlopen', open_later)
  monkeypatch.setattr(samplers, '_MAX_WAIT_SECS', 0.01)
  load(url, 7)
  assert received == [('/v1/weights', {'version': 7})]
  assert capsys.readouterr().out.count('trying again') == 7


def test_weights_that_are_published_already_are_not_written(
  endpoint, monkeypatch
):
  url, statuses, received = endpoint
  statuses += [200]
  settings = types.SimpleNamespace(
    api_key_env='', load_secs=5.0, max_attempts=3, urls=(url,)
  )
  written = []
  monkeypatch.setattr(samplers, 'publish', lambda *given: written.append(given))
  run = types.SimpleNamespace(config=types.SimpleNamespace(sampler=settings))
  asyncio.run(samplers.Remote(run, []).update(None, 4))
  assert not written
  assert received == [('/v1/weights', {'version': 4})]


def test_a_server_that_keeps_refusing_weights_ends_the_run(endpoint):
  url, statuses, _ = endpoint
  statuses += [409] * 3
  with pytest.raises(OSError, match=r'version 7 of the weights.*3 attempts'):
    load(url, 7)
