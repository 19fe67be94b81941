"""What a client of the server may ask for, checked field by field.

The fields are those of OpenAI's completions and chat completions, with vLLM's
for token ids, and two of our own (`group`, `deadline_secs`). A field that the
engine cannot honor is refused unless it has the value that changes nothing, and
so is one that nobody knows: a misspelt temperature must not go unnoticed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import random
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from qed import types
from qed.data import chat, tokenizer


class BadRequest(Exception):
  """A request that is refused; nothing was started for it."""

  def __init__(
    self,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    status: int = 400,
  ):
    super().__init__(message)
    self.param = param  # The field.
    self.code = code
    self.status = status


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
  """How much one request, and all together, may take."""

  max_length: int  # Tokens of a prompt and its completion.
  vocab_size: int
  max_samples: int  # Of one request (`n`).
  max_stop_tokens: int
  max_in_flight: int  # Samples that wait or run.
  max_body_bytes: int
  body_secs: float  # From the headers to the last byte of the body.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
  """A request in the engine's terms; member i draws with `seeds[i]`."""

  token_ids: np.ndarray  # int32 [num_prompt_tokens]
  params: types.SamplingParams
  seeds: tuple[int, ...]
  group: Hashable
  deadline_secs: float | None
  stream: bool
  include_usage: bool  # At the end of a stream.
  logprobs: bool
  return_token_ids: bool


class _Field(NamedTuple):
  accepts: Callable[[Any], bool]
  expected: str
  default: Any = None


def _is_int(value: Any) -> bool:
  return type(value) is int


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_bool(value: Any) -> bool:
  return type(value) is bool


def _only(*values: Any) -> _Field:
  """A field that may be given, but changes nothing."""
  wanted = ' or '.join(json.dumps(value) for value in values)
  return _Field(lambda x: x in values, f'{wanted}: nothing else is supported')


_SHARED = {
  'model': _Field(lambda x: isinstance(x, str), 'a text'),
  'max_tokens': _Field(lambda x: _is_int(x) and x > 0, 'an integer above 0'),
  'temperature': _Field(
    lambda x: _is_number(x) and 0 <= x <= 100, 'a number from 0 to 100', 1.0
  ),
  'top_p': _Field(
    lambda x: _is_number(x) and 0 < x <= 1,
    'a number above 0 and at most 1',
    1.0,
  ),
  'top_k': _Field(
    lambda x: _is_int(x) and -1 <= x < 2**31,
    'an integer from 0, or -1; both of these keep every token',
    0,
  ),
  'n': _Field(lambda x: _is_int(x) and x > 0, 'an integer above 0', 1),
  'seed': _Field(_is_int, 'an integer'),
  'stream': _Field(_is_bool, 'true or false', False),
  'stream_options': _Field(
    lambda x: (
      isinstance(x, dict)
      and all(map(_is_bool, x.values()))
      and {*x} <= {'include_usage', 'include_obfuscation'}
    ),
    'an object with include_usage',
    {},
  ),
  'stop_token_ids': _Field(
    lambda x: isinstance(x, list) and all(map(_is_int, x)), 'a list of integers'
  ),
  'return_token_ids': _Field(_is_bool, 'true or false', False),
  'group': _Field(lambda x: isinstance(x, str), 'a text'),
  'deadline_secs': _Field(
    lambda x: _is_number(x) and x > 0, 'a number above 0'
  ),
  'stop': _only([]),
  'presence_penalty': _only(0),
  'frequency_penalty': _only(0),
  'repetition_penalty': _only(1),
  'min_p': _only(0),
  'logit_bias': _only({}),
}
_COMPLETION = {
  **_SHARED,
  'prompt': _Field(lambda x: isinstance(x, str | list), 'a text or ids'),
  'logprobs': _Field(
    lambda x: x in (0, 1), '0, 1, true or false: that of the token drawn'
  ),
  'echo': _only(False),
  'best_of': _only(1),
  'suffix': _only(''),
}
_CHAT = {
  **_SHARED,
  'messages': _Field(lambda x: isinstance(x, list) and x, 'a list of messages'),
  'max_completion_tokens': _SHARED['max_tokens'],
  'logprobs': _Field(_is_bool, 'true or false', False),
  'top_logprobs': _only(0),
  'tools': _only([]),
  'response_format': _only({'type': 'text'}),
}
_IGNORED = {
  'metadata',
  'prompt_cache_key',
  'reasoning_effort',
  'safety_identifier',
  'service_tier',
  'store',
  'user',
}
# What OpenAI's completions API does without max_tokens; a chat takes what fits.
_DEFAULT_COMPLETION_TOKENS = 16


def parse_json(body: bytes) -> dict[str, Any]:
  """The object that a body is.

  Raises:
    BadRequest: it is no JSON, or no object.
  """

  def refuse(constant):
    raise ValueError(f'{constant} is no JSON')

  try:
    content = json.loads(body, parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    raise BadRequest(f'the body is no JSON: {error}', code='no_json') from None
  if not isinstance(content, dict):
    raise BadRequest(
      f'expected a JSON object, got {type(content).__name__}', code='no_json'
    )
  return content


def completion(
  body: Mapping[str, Any], words: tokenizer.Tokenizer, limits: Limits
) -> Request:
  """A request to continue a text, or token ids, as they stand.

  Raises:
    BadRequest: naming the field.
  """
  values = _read(body, _COMPLETION)
  prompt = values['prompt']
  if prompt is None:
    raise BadRequest('prompt is missing', param='prompt')
  if isinstance(prompt, str):
    ids = _encode('prompt', words.encode, prompt)
  elif all(map(_is_int, prompt)):
    ids = _checked_ids('prompt', prompt, limits)
  else:
    raise BadRequest(
      'prompt: expected one text or one list of token ids, got a list of '
      f'{type(prompt[0]).__name__}; send one request for each prompt',
      param='prompt',
    )
  most = values['max_tokens'] or _DEFAULT_COMPLETION_TOKENS
  return _request(values, ids, ('max_tokens', most), words, limits)


def chat_completion(
  body: Mapping[str, Any],
  words: tokenizer.Tokenizer,
  limits: Limits,
  style: chat.ChatStyle,
) -> Request:
  """A request for the next turn of a conversation.

  Earlier turns of the assistant are taken without their thinking.

  Raises:
    BadRequest: naming the field.
  """
  values = _read(body, _CHAT)
  if values['messages'] is None:
    raise BadRequest('messages is missing', param='messages')
  messages = [_message(i, m) for i, m in enumerate(values['messages'])]
  ids = _encode(
    'messages', lambda m: chat.encode_chat(words, m, style=style), messages
  )
  field = 'max_completion_tokens'
  if values[field] is None:
    field = 'max_tokens'
  most = values[field] or max(1, limits.max_length - len(ids))
  return _request(values, ids, (field, most), words, limits)


def _read(
  body: Mapping[str, Any], fields: Mapping[str, _Field]
) -> dict[str, Any]:
  """The value of every field; null stands for the default."""
  for name in body:
    if name not in fields and name not in _IGNORED:
      near = difflib.get_close_matches(name, fields, n=1)
      raise BadRequest(
        f'{name[:80]}: there is no such field'
        + (f'; did you mean {near[0]}?' if near else ''),
        param=name[:80],
        code='unknown_field',
      )
  values = {}
  for name, field in fields.items():
    value = body.get(name)
    if value is None:
      value = field.default
    elif not field.accepts(value):
      raise BadRequest(
        f'{name}: expected {field.expected}, got {json.dumps(value):.80}',
        param=name,
      )
    values[name] = value
  return values


def _message(index: int, message: Any) -> types.Message:
  where = f'messages[{index}]'
  if not isinstance(message, dict):
    raise BadRequest(
      f'{where}: expected an object, got {json.dumps(message):.80}',
      param=where,
    )
  role, content = message.get('role'), message.get('content')
  role = 'system' if role == 'developer' else role
  if role not in ('system', 'user', 'assistant'):
    raise BadRequest(
      f'{where}.role: expected system, user or assistant, got '
      f'{json.dumps(role):.80}',
      param=f'{where}.role',
    )
  if isinstance(content, list):
    texts = [
      part.get('text') if isinstance(part, dict) else None for part in content
    ]
    content = None if None in texts else texts
    if content is not None and all(isinstance(t, str) for t in texts):
      content = ''.join(texts)
  if not isinstance(content, str):
    raise BadRequest(
      f'{where}.content: expected a text, got '
      f'{json.dumps(message.get("content")):.80}',
      param=f'{where}.content',
    )
  if role == 'assistant' and tokenizer.THINK_END in content:
    content = chat.split_thinking(content)[1] or ''
  return types.Message(role=role, content=content)


def _encode(field: str, encode: Callable[[Any], np.ndarray], value: Any):
  try:
    return encode(value)
  except ValueError as error:
    raise BadRequest(f'{field}: {error}', param=field) from None


def _checked_ids(field: str, ids: list[int], limits: Limits) -> np.ndarray:
  if ids and not 0 <= min(ids) <= max(ids) < limits.vocab_size:
    raise BadRequest(
      f'{field}: expected ids from 0 to {limits.vocab_size - 1}, got '
      f'{min(ids)} to {max(ids)}',
      param=field,
    )
  return np.array(ids, np.int32)


def _request(
  values: Mapping[str, Any],
  ids: np.ndarray,
  most: tuple[str, int],
  words: tokenizer.Tokenizer,
  limits: Limits,
) -> Request:
  """Checks what the fields amount to together."""
  field = 'messages' if 'messages' in values else 'prompt'
  if not len(ids):
    raise BadRequest(f'{field}: expected at least one token', param=field)
  _check_length(field, len(ids), most, limits)
  n, stops = values['n'], values['stop_token_ids']
  if n > limits.max_samples:
    raise BadRequest(f'n: at most {limits.max_samples}, got {n}', param='n')
  if stops is None:
    stops = words.stop_token_ids[: limits.max_stop_tokens]
  elif len(set(stops)) > limits.max_stop_tokens:
    raise BadRequest(
      f'stop_token_ids: at most {limits.max_stop_tokens}, got {len(stops)}',
      param='stop_token_ids',
    )
  else:
    stops = _checked_ids('stop_token_ids', stops, limits).tolist()
  seed = values['seed']
  if seed is None:
    seed = random.getrandbits(32)
  return Request(
    token_ids=ids,
    params=types.SamplingParams(
      temperature=float(values['temperature']),
      top_p=float(values['top_p']),
      top_k=max(0, values['top_k']),
      max_tokens=most[1],
      stop_token_ids=tuple(dict.fromkeys(stops)),
      seed=seed % 2**32,
    ),
    seeds=tuple((seed + i) % 2**32 for i in range(n)),
    group=values['group'],
    deadline_secs=values['deadline_secs'],
    stream=values['stream'],
    include_usage=values['stream_options'].get('include_usage', False),
    # A completion's 0 asks for the drawn token and no others beside it.
    logprobs=values['logprobs'] is not None and values['logprobs'] is not False,
    return_token_ids=values['return_token_ids'],
  )


def _check_length(
  field: str, num_tokens: int, most: tuple[str, int], limits: Limits
) -> None:
  room = limits.max_length - num_tokens
  if room >= most[1]:
    return
  code = 'context_length_exceeded'
  if room < 1:
    raise BadRequest(
      f'{field}: {num_tokens} tokens leave no room for a completion; the '
      f'engine holds {limits.max_length} of both together',
      param=field,
      code=code,
    )
  raise BadRequest(
    f'{most[0]}: {num_tokens} tokens of the prompt leave room for {room} of '
    f'the {limits.max_length} that the engine holds, got {most[1]}',
    param=most[0],
    code=code,
  )
