"""What an OpenAI-compatible endpoint says, read with distrust.

A body under status 200 may be anything: a gateway's page, half of a text, an
error message, a list of choices that is empty. What does not have the shape of
an answer is `Malformed`; what is missing is unknown, and never 0.
"""

from __future__ import annotations

import dataclasses
import email.utils
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from qed import types

# connect, reset: no connection, or one that broke; timeout: not all of the
# answer within the deadline; malformed: 200, but not what the API says;
# rejected: this request is not accepted (400, 413, 422); forbidden: no request
# would be (401, 403, 404, ...).
FailureKind = Literal[
  'connect',
  'reset',
  'timeout',
  'rate_limited',
  'overloaded',
  'server_error',
  'malformed',
  'rejected',
  'forbidden',
]
HOPELESS: tuple[FailureKind, ...] = ('rejected', 'forbidden')  # Next time, too.
_KIND_OF_STATUS: dict[int, FailureKind] = {
  400: 'rejected',
  408: 'timeout',
  409: 'server_error',
  413: 'rejected',
  422: 'rejected',
  425: 'server_error',
  429: 'rate_limited',
  503: 'overloaded',
  529: 'overloaded',
}
NO_VERSION = -1  # Of tokens whose server does not say what drew them.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
  """What one chat call came to: an answer, or why there is none."""

  kind: Literal['answer'] | FailureKind
  text: str = ''  # Empty where a thinking model ran out of tokens.
  reasoning: str = ''  # Of an endpoint that shows it apart from the text.
  refusal: str = ''
  finish_reason: str = ''
  prompt_tokens: int = 0  # These are 0 where the endpoint does not say.
  completion_tokens: int = 0  # Those of the reasoning among them.
  reasoning_tokens: int = 0
  detail: str = ''  # Of a failure.
  retry_after_secs: float = 0.0  # 0: the endpoint did not say.


class Malformed(ValueError):
  """A JSON object, but not what the API says."""


def kind_of_status(status: int) -> FailureKind:
  """The kind of failure that a status of 300 or more is."""
  otherwise = 'server_error' if status >= 500 else 'forbidden'
  return _KIND_OF_STATUS.get(status, otherwise)


def retry_after_secs(headers: Mapping[str, str]) -> float:
  """What Retry-After asks for, as a number or a date; 0 if it does not."""
  value = headers.get('retry-after', '').strip()
  try:
    secs = float(value)
  except ValueError:
    date = email.utils.parsedate_tz(value)
    secs = email.utils.mktime_tz(date) - time.time() if date else 0.0
  return secs if 0 < secs < float('inf') else 0.0


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
  choices = answer.get('choices')
  if (
    not isinstance(choices, list)
    or not choices
    or not isinstance(choices[0], dict)
  ):
    # A gateway may report what went wrong behind it under status 200.
    error = answer.get('error')
    raise Malformed(
      f'expected choices, got {choices!r:.80}, error {error!r:.200}'
    )
  return choices[0]


def reply(answer: Mapping[str, Any]) -> Reply:
  """Reads a chat completion; null content is an empty text.

  Raises:
    Malformed: it is none.
  """
  choice = _choice(answer)
  message = choice.get('message')
  if not isinstance(message, dict):
    raise Malformed(f'expected a message, got {message!r:.80}')
  text = message.get('content')
  if not isinstance(text, str | None):
    raise Malformed(f'expected content as a text, got {text!r:.80}')
  usage = answer.get('usage')
  counts = usage if isinstance(usage, dict) else {}
  details = counts.get('completion_tokens_details')
  # Servers call it by one of two names, some send null under the other.
  reasoning = message.get('reasoning_content') or message.get('reasoning')
  return Reply(
    kind='answer',
    text=printable(text or ''),
    reasoning=printable(reasoning if isinstance(reasoning, str) else ''),
    refusal=printable(str(message.get('refusal') or '')),
    finish_reason=str(choice.get('finish_reason') or ''),
    prompt_tokens=_count(counts.get('prompt_tokens')),
    completion_tokens=_count(counts.get('completion_tokens')),
    reasoning_tokens=_count(
      details.get('reasoning_tokens') if isinstance(details, dict) else None
    ),
  )


def _count(value: object) -> int:
  return value if type(value) is int and value > 0 else 0


def completion(answer: Mapping[str, Any]) -> types.Completion:
  """Reads a completion with token ids, as `http.Http.sample` describes.

  Raises:
    Malformed: it is none, or its columns do not fit one another.
  """
  choice = _choice(answer)
  ids = choice.get('token_ids')
  if not isinstance(ids, list):
    raise Malformed(
      'expected token_ids in the choice: the server must know '
      f'"return_token_ids"; got the fields {sorted(choice)}'
    )
  logprobs = (choice.get('logprobs') or {}).get('token_logprobs')
  columns = {
    'token_logprobs': [None] * len(ids) if logprobs is None else logprobs,
    'versions': choice.get('versions') or [NO_VERSION] * len(ids),
  }
  for name, values in columns.items():
    if not isinstance(values, list) or len(values) != len(ids):
      raise Malformed(
        f'expected {len(ids)} {name}, one per token, got {values!r:.80}'
      )
  reason = choice.get('finish_reason')
  try:
    return types.Completion(
      token_ids=np.array(ids, np.int32),
      logprobs=np.array(
        [np.nan if x is None else x for x in columns['token_logprobs']],
        np.float32,
      ),
      versions=np.array(columns['versions'], np.int32),
      text=str(choice.get('text') or ''),
      finish_reason=(
        reason if reason in ('stop', 'length', 'abort') else 'error'
      ),
    )
  except (TypeError, ValueError, OverflowError) as error:
    raise Malformed(f'expected numbers per token: {error}') from error


def printable(text: str) -> str:
  """The text without halves of surrogate pairs, which no file takes."""
  return text.encode('utf-8', 'replace').decode('utf-8')
