"""An OpenAI-compatible server around a scheduler, as an ASGI application.

  POST /v1/completions        text or token ids in; ids, log-probs, versions out
  POST /v1/chat/completions   with `reasoning_content` beside the content
  GET  /v1/models  /v1/weights  /health  /metrics
  POST /v1/weights            {"version": N}: go on with other weights

A request that is refused starts nothing; a client that goes away takes its
samples with it. Errors have OpenAI's format and name the field.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hmac
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette import applications, exceptions, requests, responses, routing

from qed.data import chat, tokenizer
from qed.rollout import http_disconnects, http_replies, http_requests
from qed.rollout.http_requests import BadRequest, Limits

_CLIENT_CLOSED = 499  # nginx's code, of a request that nobody waits for.
_RETRY_SECS = 1
_JSON = {'content-type': 'application/json'}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
  """What the server is told once."""

  model: str  # The name by which clients ask for it.
  chat_style: chat.ChatStyle
  limits: Limits
  api_key: str  # '': everybody is welcome.
  # The weights of a version; raises a ValueError. None: they stay as they are.
  load: Callable[[int], Any] | None
  list_versions: Callable[[], list[int]]


def app(
  scheduler: Any, words: tokenizer.Tokenizer, settings: Settings
) -> applications.Starlette:
  """The application; its `state.api` is the `Api`.

  Args:
    scheduler: with the calls of `scheduler.Scheduler`.
    words: of the model.
    settings: see there.
  """
  api = Api(scheduler, words, settings)

  def route(path, handler, method):
    return routing.Route(path, api.guarded(handler), methods=[method])

  application = applications.Starlette(
    routes=[
      route('/v1/completions', api.complete, 'POST'),
      route('/v1/chat/completions', api.chat, 'POST'),
      route('/v1/models', api.models, 'GET'),
      route('/v1/weights', api.weights, 'GET'),
      route('/v1/weights', api.load_weights, 'POST'),
      routing.Route('/health', api.health, methods=['GET']),
      route('/metrics', api.metrics, 'GET'),
    ],
    exception_handlers={
      exceptions.HTTPException: _http_error,
      Exception: _server_error,
    },
  )
  application.state.api = api
  return application


class Api:
  """The handlers, and what they share: all on one event loop."""

  def __init__(
    self, scheduler: Any, words: tokenizer.Tokenizer, settings: Settings
  ):
    self._scheduler = scheduler
    self._words = words
    self._settings = settings
    self._live: set[Any] = set()  # Streams of the scheduler.
    self._is_draining = False
    self._swap = asyncio.Lock()
    self._counts: collections.Counter[tuple[str, int]] = collections.Counter()
    self._secs: collections.Counter[str] = collections.Counter()

  @property
  def num_in_flight(self) -> int:
    """Samples that wait or run."""
    return len(self._live)

  def stop_accepting(self) -> None:
    """Refuses what comes from now on."""
    self._is_draining = True

  def abort(self) -> None:
    """Ends every sample where it is; clients get what there is."""
    for stream in list(self._live):
      stream.cancel()

  # Handlers.

  def guarded(self, handler: Callable[..., Awaitable[Any]]):
    """A handler behind the key, the error format and the counting."""

    async def handle(request: requests.Request):
      began = time.monotonic()
      try:
        self._check_key(request)
        response = await handler(request)
      except BadRequest as error:
        response = _refusal(error)
      except requests.ClientDisconnect:
        response = responses.Response(status_code=_CLIENT_CLOSED)
      path = request.url.path
      self._counts[path, response.status_code] += 1
      self._secs[path] += time.monotonic() - began
      return response

    return handle

  async def complete(self, request: requests.Request):
    """POST /v1/completions."""
    body = await self._read(request)
    asked = await asyncio.to_thread(
      http_requests.completion, body, self._words, self._settings.limits
    )
    return await self._answer(request, body, asked, is_chat=False)

  async def chat(self, request: requests.Request):
    """POST /v1/chat/completions."""
    body = await self._read(request)
    settings = self._settings
    asked = await asyncio.to_thread(
      http_requests.chat_completion,
      body, self._words, settings.limits, settings.chat_style,
    )  # fmt: skip
    return await self._answer(request, body, asked, is_chat=True)

  async def models(self, request: requests.Request):
    """GET /v1/models."""
    del request
    model = {
      'id': self._settings.model,
      'object': 'model',
      'created': 0,
      'owned_by': 'qed',
      'max_model_len': self._settings.limits.max_length,
    }
    return responses.JSONResponse({'object': 'list', 'data': [model]})

  async def health(self, request: requests.Request):
    """GET /health: whether it is worth sending requests here."""
    del request
    failure = self._scheduler.failure
    status = 'failed' if failure else 'draining' if self._is_draining else 'ok'
    return responses.JSONResponse(
      {'status': status, 'version': self._scheduler.version},
      status_code=200 if status == 'ok' else 503,
    )

  async def metrics(self, request: requests.Request):
    """GET /metrics, in Prometheus' text format."""
    del request
    lines = [
      f'qed_{re.sub("[^a-zA-Z0-9_]", "_", name)} {float(value):g}'
      for name, value in sorted(self._scheduler.stats().items())
    ]
    lines.append(f'qed_http_samples_in_flight {self.num_in_flight}')
    lines += [
      f'qed_http_requests_total{{path="{path}",status="{status}"}} {count}'
      for (path, status), count in sorted(self._counts.items())
    ]
    lines += [
      f'qed_http_seconds_total{{path="{path}"}} {secs:.6f}'
      for path, secs in sorted(self._secs.items())
    ]
    return responses.PlainTextResponse(
      '\n'.join(lines) + '\n', media_type='text/plain; version=0.0.4'
    )

  async def weights(self, request: requests.Request):
    """GET /v1/weights: which are in use, and which there are."""
    del request
    found = await asyncio.to_thread(self._settings.list_versions)
    return responses.JSONResponse(
      {'version': self._scheduler.version, 'available': found}
    )

  async def load_weights(self, request: requests.Request):
    """POST /v1/weights: returns once the next token comes from them."""
    version = (await self._read(request)).get('version')
    if type(version) is not int or version < 0:
      raise BadRequest(
        f'version: expected an integer from 0, got {json.dumps(version):.80}',
        param='version',
      )
    if self._settings.load is None:
      raise BadRequest(
        'this server was started without a folder of weights', status=409
      )
    async with self._swap:  # One more copy fits in memory, not two.
      began = time.monotonic()
      # The version in use may be asked for again: a trainer that went back
      # writes other weights under numbers that it has used before.
      try:
        params = await asyncio.to_thread(self._settings.load, version)
        update = self._scheduler.update_weights(params, version)
        del params
        await asyncio.wrap_future(update)
      except ValueError as error:
        raise BadRequest(str(error), param='version', status=409) from error
    secs = time.monotonic() - began
    return responses.JSONResponse({'version': version, 'secs': secs})

  # What they are made of.

  def _check_key(self, request: requests.Request) -> None:
    expected = f'Bearer {self._settings.api_key}'.encode()
    given = request.headers.get('authorization', '').encode('latin-1')
    if self._settings.api_key and not hmac.compare_digest(expected, given):
      raise BadRequest(
        'the API key is missing or wrong', code='invalid_api_key', status=401
      )

  async def _read(self, request: requests.Request) -> dict[str, Any]:
    """The body, which may be neither long nor late."""
    # A page in a browser cannot send this type to us without asking first.
    kind = request.headers.get('content-type', '').partition(';')[0].strip()
    if kind.lower() != 'application/json':
      raise BadRequest(
        f'expected content-type application/json, got {kind[:80]!r}',
        status=415,
      )
    limits, body = self._settings.limits, bytearray()
    length = request.headers.get('content-length', '0')
    is_long = length.isdecimal() and int(length) > limits.max_body_bytes
    try:
      async with asyncio.timeout(limits.body_secs):
        if not is_long:
          async for block in request.stream():
            body += block
            if is_long := len(body) > limits.max_body_bytes:
              break
    except TimeoutError:
      raise BadRequest(
        f'the body was not complete after {limits.body_secs:g} s', status=408
      ) from None
    if is_long:
      raise BadRequest(
        f'the body may have {limits.max_body_bytes} bytes', status=413
      )
    return http_requests.parse_json(bytes(body))

  async def _answer(self, request, body, asked, *, is_chat: bool):
    """Starts the samples of a request, and answers whole or as a stream."""
    name = body.get('model', self._settings.model)
    if name != self._settings.model:
      raise BadRequest(
        f'model: this is {self._settings.model!r}, not {str(name)[:80]!r}',
        param='model',
        code='model_not_found',
        status=404,
      )
    reply = http_replies.Reply(
      asked,
      self._words,
      model=self._settings.model,
      is_chat=is_chat,
      thinks=is_chat and self._settings.chat_style == 'thinking',
    )
    streams = self._submit(asked)
    if asked.stream:
      return http_disconnects.EventStream(
        reply.events(streams), lambda: self._free(streams)
      )
    try:
      whole = await http_disconnects.unless_disconnected(
        request, reply.whole(streams)
      )
    finally:
      self._free(streams)
    return responses.Response(whole, headers=_JSON)

  def _submit(self, asked: http_requests.Request) -> list[Any]:
    limits = self._settings.limits
    busy = ''
    if self._is_draining:
      busy, status = 'the server is shutting down', 503
    elif self.num_in_flight + len(asked.seeds) > limits.max_in_flight:
      busy, status = (
        f'{self.num_in_flight} of {limits.max_in_flight} samples are in flight',
        429,
      )
    if busy:
      raise BadRequest(busy, code='busy', status=status)
    group = asked.group or uuid.uuid4().hex
    streams = []
    try:
      for seed in asked.seeds:
        stream = self._scheduler.submit(
          asked.token_ids,
          dataclasses.replace(asked.params, seed=seed),
          group=group,
          deadline_secs=asked.deadline_secs,
        )
        streams.append(stream)
        self._live.add(stream)
    except ValueError as error:
      self._free(streams)
      raise BadRequest(str(error)) from error
    except RuntimeError as error:  # It is closed, or failed for good.
      self._free(streams)
      raise BadRequest(str(error), code='unavailable', status=503) from error
    return streams

  def _free(self, streams: list[Any]) -> None:
    """Ends what is not done; its slots are free at the next chunk."""
    for stream in streams:
      stream.cancel()
    self._live.difference_update(streams)


def _refusal(error: BadRequest) -> responses.Response:
  kind = 'invalid_request_error' if error.status < 500 else 'server_error'
  headers = {}
  if error.status in (429, 503):
    headers['retry-after'] = str(_RETRY_SECS)
  if error.status in (408, 413):  # The rest of the body is not wanted.
    headers['connection'] = 'close'
  return _error(
    error.status, str(error), kind, error.param, error.code, headers
  )


async def _http_error(request, error: exceptions.HTTPException):
  text = f'{request.method} {request.url.path}: {error.detail}'
  kind = 'invalid_request_error'
  return _error(error.status_code, text, kind, headers=error.headers)


async def _server_error(request, error: Exception):
  del request
  return _error(500, f'{type(error).__name__} in the server', 'server_error')


def _error(status, message, kind, param=None, code=None, headers=None):
  content = {'message': message, 'type': kind, 'param': param, 'code': code}
  return responses.JSONResponse(
    {'error': content}, status_code=status, headers=headers
  )
