"""Language models behind an OpenAI-compatible endpoint; the door to openai.

The openai package is the transport only. What it does not do is done here: a
deadline over a whole call (its own is per read, which a server that sends a
byte a second never exceeds), and the check of what came back, since a gateway's
HTML page, a truncated body or an empty list of choices are no errors to it. Its
retries are off: two layers of them would multiply.

A call ends as a `Reply` or as a `Failure` that says of which kind.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from qed import types
from qed.llm import local, wire
from qed.llm.wire import FailureKind, Reply

_Result = TypeVar('_Result')

# The transport looks at every connection of a pool for every request, so that
# one pool of 1,000 takes 8 ms of CPU for a call, and small ones take 2.
_POOL_SIZE = 32
_FIRST_WAIT_SECS = 0.5
_MAX_WAIT_SECS = 30.0


class Failure(Exception):
  """A call that brought no answer; the text says what, where, how often."""

  def __init__(
    self,
    kind: FailureKind,
    detail: str,
    *,
    where: str,
    retry_after_secs: float = 0.0,
    attempts: int = 1,
  ):
    times = 'once' if attempts == 1 else f'{attempts} times'
    super().__init__(f'{where}: {kind}: {detail} (tried {times})')
    self.kind = kind
    self.detail = detail
    self.where = where
    self.retry_after_secs = retry_after_secs  # 0: the server did not say.
    self.attempts = attempts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
  """Where a model is, and how long it is waited for."""

  base_url: str  # Ends in /v1 as a rule.
  model: str
  api_key: str = dataclasses.field(repr=False)  # '': it asks for none.
  connect_secs: float
  deadline_secs: float  # Of one attempt, from connecting to the last byte.
  max_attempts: int  # Of `sample` and `chat`.
  max_connections: int

  @classmethod
  def from_config(cls, section: Any) -> Endpoint:
    """Of a section of the config that names one, such as config.JudgeConfig.

    Raises:
      ValueError: its key is not in the environment.
    """
    return cls(
      base_url=section.base_url,
      model=section.model,
      api_key=api_key(section.api_key_env),
      connect_secs=section.connect_secs,
      deadline_secs=section.deadline_secs,
      max_attempts=section.max_attempts,
      max_connections=section.max_concurrency,
    )


def api_key(variable: str) -> str:
  """The key in an environment variable; '' without a variable.

  Raises:
    ValueError: the variable is not set.
  """
  if variable and not os.environ.get(variable):
    raise ValueError(
      'expected the key of an endpoint in the environment variable '
      f'{variable}, which is not set'
    )
  return os.environ[variable] if variable else ''


class Http:
  """A model at an endpoint; implements `types.Llm`. Close it with `close`."""

  def __init__(self, endpoint: Endpoint):
    import httpx2  # Comes with openai, whose import takes most of a second.
    import openai

    self._endpoint = endpoint
    # The deadline bounds the whole call, so that only connecting needs a bound
    # of its own: a host that is down should not take the time of an answer.
    timeout = httpx2.Timeout(None, connect=endpoint.connect_secs)
    certificates = httpx2.create_ssl_context()  # 25 ms, once.
    num_pools = math.ceil(endpoint.max_connections / _POOL_SIZE)
    size = math.ceil(endpoint.max_connections / num_pools)
    limits = httpx2.Limits(max_connections=size, max_keepalive_connections=size)
    self._clients = [
      openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or 'none',
        max_retries=0,
        timeout=timeout,
        http_client=openai.DefaultAsyncHttpxClient(
          limits=limits, timeout=timeout, verify=certificates
        ),
      )
      for _ in range(num_pools)
    ]
    self._loads = [0] * num_pools  # Calls in flight.

  async def __aenter__(self) -> Http:
    return self

  async def __aexit__(self, *error: object) -> None:
    await self.close()

  async def close(self) -> None:
    """Closes all connections; calls in flight fail."""
    for client in self._clients:
      await client.close()

  async def models(self) -> list[str]:
    """Names of the models at the endpoint: a free check of address and key.

    Raises:
      Failure: after one attempt.
    """
    data = (await self._call('models', None)).get('data')
    if not isinstance(data, list):
      raise self._malformed('models', 'no list of models', data)
    return [str(row.get('id')) for row in data if isinstance(row, dict)]

  async def ask(
    self,
    messages: Sequence[types.Message],
    *,
    temperature: float,
    max_tokens: int,
    effort: str = '',
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
  ) -> Reply:
    """One attempt at one chat completion; never raises a `Failure`.

    What has its default is not sent: some endpoints refuse fields that they do
    not know.

    Args:
      messages: the conversation.
      temperature: of the answer.
      max_tokens: of the answer and the thinking before it.
      effort: of the thinking.
      top_p: the share of the probability that is kept.
      top_k: how many tokens are kept; 0: all.
      seed: of the drawing.
    """
    body = {
      'model': self._endpoint.model,
      'messages': [
        {'role': m.role, 'content': wire.printable(m.content)} for m in messages
      ],
      'temperature': temperature,
      'max_completion_tokens': max_tokens,
    }
    if effort:
      body['reasoning_effort'] = effort
    if top_p != 1:
      body['top_p'] = top_p
    if top_k:
      body['top_k'] = top_k
    if seed is not None:
      body['seed'] = seed
    try:
      answer = await self._call('chat/completions', body)
      return wire.reply(answer)
    except wire.Malformed as error:
      return Reply(kind='malformed', detail=str(error))
    except Failure as error:
      return Reply(
        kind=error.kind,
        detail=error.detail,
        retry_after_secs=error.retry_after_secs,
      )

  async def chat(
    self, messages: Sequence[types.Message], **fields: Any
  ) -> Reply:
    """One chat completion, with the endpoint's `max_attempts`.

    Args:
      messages: the conversation.
      **fields: the other arguments of `ask`.

    Raises:
      Failure: none of them brought an answer.
    """

    async def attempt():
      reply = await self.ask(messages, **fields)
      if reply.kind != 'answer':
        raise Failure(
          reply.kind,
          reply.detail,
          where=self._where('chat/completions'),
          retry_after_secs=reply.retry_after_secs,
        )
      return reply

    return await self._persist(attempt)

  async def sample(
    self,
    prompt: types.Prompt,
    params: types.SamplingParams,
    *,
    n: int = 1,
    group: str = '',
  ) -> list[types.Completion]:
    """Draws `n` independent completions of the prompt's ids, a call for each.

    Needs a server that returns token ids (`qed serve`; vLLM from 0.10.2 on,
    which must run with --logprobs-mode processed_logprobs, as it would else
    give those of temperature 1). A log-probability that it leaves out is NaN,
    and without `versions` that of every token is -1. Members draw with
    `local.member_seeds`.

    Args:
      prompt: its ids are what is sent.
      params: its seed is where those of the members come from.
      n: members.
      group: calls that carry the same one share the reading of the prompt, on a
        server of ours; '': a new one, which the members of this call share.

    Returns:
      One completion per member; of a member whose attempts all failed, an empty
      one with the finish reason 'error'.

    Raises:
      Failure: no member succeeded.
    """
    group = group or uuid.uuid4().hex
    results = await asyncio.gather(
      *(
        self._sample_member(prompt, params, seed, group)
        for seed in local.member_seeds(params.seed, n)
      ),
      return_exceptions=True,
    )
    failures = [r for r in results if isinstance(r, BaseException)]
    for failure in failures:
      if not isinstance(failure, Failure) or len(failures) == n:
        raise failure
    return [
      _NO_COMPLETION if isinstance(result, Failure) else result
      for result in results
    ]

  async def _sample_member(self, prompt, params, seed, group):
    body = {
      'model': self._endpoint.model,
      'prompt': prompt.token_ids.tolist(),
      'n': 1,
      'max_tokens': params.max_tokens,
      'temperature': params.temperature,
      'top_p': params.top_p,
      'top_k': params.top_k,
      'stop_token_ids': list(params.stop_token_ids),
      'seed': seed,
      'logprobs': 1,
      'return_token_ids': True,
      'group': group,
    }

    async def attempt():
      answer = await self._call('completions', body)
      try:
        return wire.completion(answer)
      except wire.Malformed as error:
        raise self._malformed('completions', str(error), None) from error

    return await self._persist(attempt)

  async def _persist(
    self, attempt: Callable[[], Awaitable[_Result]]
  ) -> _Result:
    """Repeats an attempt as often as it may be, and is worth it."""
    patience = self._endpoint.deadline_secs
    for count in range(1, self._endpoint.max_attempts + 1):
      try:
        return await attempt()
      except Failure as error:
        if (
          error.kind in wire.HOPELESS
          or count == self._endpoint.max_attempts
          or error.retry_after_secs > patience
        ):
          raise Failure(
            error.kind,
            error.detail,
            where=error.where,
            retry_after_secs=error.retry_after_secs,
            attempts=count,
          ) from error
        await asyncio.sleep(max(error.retry_after_secs, _wait_secs(count)))
    raise AssertionError('max_attempts is at least 1')

  async def _call(self, path: str, body: Mapping[str, Any] | None) -> dict:
    """One request; what it answered, or a `Failure`."""
    import httpx2
    import openai

    where, secs = self._where(path), self._endpoint.deadline_secs
    pool = min(range(len(self._loads)), key=self._loads.__getitem__)
    client = self._clients[pool]
    self._loads[pool] += 1
    try:
      async with asyncio.timeout(secs):
        if body is None:
          response = await client.get(f'/{path}', cast_to=httpx2.Response)
        else:
          response = await client.post(
            f'/{path}', cast_to=httpx2.Response, body=body
          )
    except TimeoutError as error:
      detail = f'expected the whole answer within {secs:g} s'
      raise Failure('timeout', detail, where=where) from error
    except openai.APIStatusError as error:
      raise _failure_of_status(error.response, where) from error
    except openai.APIConnectionError as error:
      cause = error.__cause__ or error
      kind = 'reset'
      if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        kind = 'connect'
      detail = f'{type(cause).__name__} {cause}'.strip()
      raise Failure(kind, detail, where=where) from error
    finally:
      self._loads[pool] -= 1
    try:
      answer = json.loads(response.content)
    except ValueError as error:
      raise self._malformed(path, f'no JSON: {error}', response.text) from error
    if not isinstance(answer, dict):
      raise self._malformed(path, 'JSON, but no object', answer)
    return answer

  def _where(self, path: str) -> str:
    return f'{self._endpoint.base_url.rstrip("/")}/{path}'

  def _malformed(self, path: str, problem: str, body: object) -> Failure:
    got = '' if body is None else f', got {str(body)[:80]!r}'
    return Failure('malformed', problem + got, where=self._where(path))


def _failure_of_status(response: Any, where: str) -> Failure:
  status = response.status_code
  return Failure(
    wire.kind_of_status(status),
    f'status {status}: {response.text[:200]!r}',
    where=where,
    retry_after_secs=wire.retry_after_secs(response.headers),
  )


def _wait_secs(count: int) -> float:
  """Between two attempts: doubling, and never the same for two callers."""
  longest = min(_MAX_WAIT_SECS, _FIRST_WAIT_SECS * 2 ** (count - 1))
  return random.uniform(longest / 2, longest)


_NO_COMPLETION = types.Completion(
  token_ids=np.zeros(0, np.int32),
  logprobs=np.zeros(0, np.float32),
  versions=np.zeros(0, np.int32),
  text='',
  finish_reason='error',
)
