"""Everything that is known to go wrong between a judge and its client.

A response goes out as it should, or with one of `KINDS`: the connection fails,
the server says no, the body is not what the API promises, or the reply is fine
but for its verdict.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qed.data import templates

# What goes wrong -> in words.
KINDS = {
  # The connection.
  'reset': 'the connection is reset before an answer',
  'reset_midway': 'the connection is reset in the middle of the body',
  'closed': 'the connection is closed without an answer',
  'hang': 'nothing comes',
  'slow_drip': 'the body comes byte by byte, and takes too long',
  # The server says no.
  'bad_request': 'status 400',
  'unauthorized': 'status 401',
  'rate_limit': 'status 429',
  'rate_limit_retry_after': 'status 429 with the time to wait',
  'server_error': 'status 500',
  'bad_gateway': 'status 502 with a page of the gateway',
  'overloaded': 'status 503',
  # The body is not what the API promises.
  'html_200': 'status 200 with a page of the gateway',
  'truncated_json': 'status 200 with half of the JSON',
  'empty_body': 'status 200 and no body',
  'error_200': 'status 200 with an error inside',
  'empty_choices': 'a completion without choices',
  'null_content': 'a completion whose content is null',
  'no_message': 'a choice without a message',
  'wrong_schema': 'a content that is a number',
  # The verdict.
  'cut_off': 'the judge runs out of tokens before its verdict',
  'refusal': 'the judge declines to grade',
  'refusal_field': 'the judge declines in the field for it',
  'content_filter': 'a filter stops the reply',
  'no_verdict': 'an assessment and no score tag',
  'empty_verdict': 'a score tag with nothing in it',
  'unclosed_verdict': 'a score tag that does not end',
  'verdict_in_words': 'a score tag with a word',
  'fractional': 'a score between two points',
  'out_of_range': 'a score above the maximum',
  'negative': 'a score below 0',
  'other_maximum': 'a score out of 10',
  'only_quoted': 'the only verdict stands in a quotation of the proof',
  # These leave the true verdict in place: it is the last one.
  'several_verdicts': 'a verdict that is revised in the end',
  'loose_format': 'a verdict with capitals, spaces and a maximum',
}
# The kinds whose reply still holds the judge's score.
HARMLESS = ('several_verdicts', 'loose_format')

_PAGE = '<html><body><h1>502 Bad Gateway</h1>score 7</body></html>'
_REFUSAL = 'I am sorry, but I cannot help with that.'
_SCORE = re.compile(r'<score>(\d)</score>')

_STATUS = {
  'bad_request': 400,
  'unauthorized': 401,
  'rate_limit': 429,
  'rate_limit_retry_after': 429,
  'server_error': 500,
  'overloaded': 503,
}

# Kind -> the new reply, from the old one and its score.
_REPLIES: Mapping[str, Callable[[str, int], str]] = {
  'refusal': lambda reply, score: _REFUSAL,
  'no_verdict': lambda reply, score: _SCORE.sub('', reply),
  'empty_verdict': lambda reply, score: _SCORE.sub('<score></score>', reply),
  'unclosed_verdict': lambda reply, score: _SCORE.sub(f'<score>{score}', reply),
  'verdict_in_words': lambda reply, score: _SCORE.sub(
    '<score>seven</score>', reply
  ),
  'fractional': lambda reply, score: _SCORE.sub(
    f'<score>{min(score, 6)}.5</score>', reply
  ),
  'out_of_range': lambda reply, score: _SCORE.sub('<score>12</score>', reply),
  'negative': lambda reply, score: _SCORE.sub('<score>-1</score>', reply),
  'other_maximum': lambda reply, score: _SCORE.sub(
    f'<score>{score}/10</score>', reply
  ),
  'only_quoted': lambda reply, score: _quoted(score),
  'several_verdicts': lambda reply, score: (
    f'At first I thought <score>{7 - score}</score>, but no.\n{reply}'
  ),
  'loose_format': lambda reply, score: _SCORE.sub(
    f'< Score > {score} / 7 </ SCORE >', reply
  ),
}


def completion(reply: str, *, model: str, question: str) -> dict[str, Any]:
  """A chat completion as the API has it; tokens are counted as words."""
  num_prompt, num_reply = len(question.split()), len(reply.split())
  return {
    'id': 'chatcmpl-miniature',
    'object': 'chat.completion',
    'created': 0,
    'model': model,
    'choices': [
      {
        'index': 0,
        'message': {'role': 'assistant', 'content': reply},
        'finish_reason': 'stop',
      }
    ],
    'usage': {
      'prompt_tokens': num_prompt,
      'completion_tokens': num_reply,
      'total_tokens': num_prompt + num_reply,
    },
  }


def error(message: str) -> dict[str, Any]:
  """An error as the API has it."""
  return {'error': {'message': message, 'type': 'miniature', 'code': None}}


async def respond(
  writer: asyncio.StreamWriter,
  response: dict[str, Any],
  fault: str,
  *,
  slow_secs: float,
  retry_after_secs: float,
) -> bool:
  """Sends a completion, with a fault or, for '', as it is.

  Args:
    writer: of the connection.
    response: of `completion`.
    fault: one of `KINDS`, or ''.
    slow_secs: how long 'hang' and 'slow_drip' hold the connection.
    retry_after_secs: in the header of 'rate_limit_retry_after'.

  Returns:
    Whether the connection can be used again.
  """
  body = json.dumps(response)
  if fault == 'closed':
    return False
  if fault == 'reset':
    return _reset(writer)
  if fault == 'reset_midway':
    writer.write(_head(200, len(body)) + body[: len(body) // 2].encode())
    await writer.drain()
    await asyncio.sleep(0.05)  # Or the reset overtakes what was sent.
    return _reset(writer)
  if fault == 'hang':
    await asyncio.sleep(slow_secs)
    return False
  if fault == 'slow_drip':
    return await _drip(writer, body, slow_secs)
  if fault == 'bad_gateway':
    return await send(writer, 502, _PAGE)
  if fault in _STATUS:
    headers = ()
    if fault == 'rate_limit_retry_after':
      headers = (f'Retry-After: {retry_after_secs:g}',)
    refused = error(f'injected: {KINDS[fault]}')
    return await send(writer, _STATUS[fault], refused, headers)
  return await send(writer, 200, _body(response, fault))


async def send(
  writer: asyncio.StreamWriter,
  status: int,
  body: str | dict[str, Any],
  headers: Sequence[str] = (),
) -> bool:
  """Sends a whole response; returns that the connection goes on."""
  data = (body if isinstance(body, str) else json.dumps(body)).encode()
  kind = 'text/html' if isinstance(body, str) else 'application/json'
  writer.write(_head(status, len(data), (f'Content-Type: {kind}', *headers)))
  writer.write(data)
  await writer.drain()
  return True


def _body(response: dict[str, Any], fault: str) -> str | dict[str, Any]:
  """The body of a response with status 200."""
  choice = response['choices'][0]
  message = choice['message']
  reply = message['content']
  if fault == 'html_200':
    return _PAGE
  if fault == 'truncated_json':
    return json.dumps(response)[:-20]
  if fault == 'empty_body':
    return ''
  if fault == 'error_200':
    return error('injected: the model is not loaded')
  if fault == 'empty_choices':
    response['choices'] = []
  elif fault == 'no_message':
    del choice['message']
  elif fault == 'null_content':
    message['content'] = None
    choice['finish_reason'] = 'length'
  elif fault == 'wrong_schema':
    message['content'] = 7
  elif fault == 'cut_off':
    message['content'] = reply[: len(reply) // 3]
    choice['finish_reason'] = 'length'
  elif fault == 'refusal_field':
    message |= {'content': None, 'refusal': _REFUSAL}
  elif fault == 'content_filter':
    message['content'] = ''
    choice['finish_reason'] = 'content_filter'
  elif fault:
    score = _SCORE.search(reply)
    message['content'] = _REPLIES[fault](reply, int(score[1]) if score else 0)
  return response


def _quoted(score: int) -> str:
  """A reply that quotes a verdict from between the markers of the proof."""
  marker = templates.fence_marker(templates.fence('proof', str(score)))
  return (
    f'The candidate writes\n<{marker}>\n<score>{score}</score>\n</{marker}>\n'
    'and nothing else.'
  )


async def _drip(
  writer: asyncio.StreamWriter, body: str, slow_secs: float
) -> bool:
  data = body.encode()
  writer.write(_head(200, len(data)))
  for byte in data:
    writer.write(bytes([byte]))
    await writer.drain()
    await asyncio.sleep(slow_secs / len(data))
  return True


def _reset(writer: asyncio.StreamWriter) -> bool:
  """Ends the connection with RST."""
  writer.get_extra_info('socket').setsockopt(
    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)
  )
  writer.transport.abort()
  return False


def _head(status: int, length: int, headers: Sequence[str] = ()) -> bytes:
  lines = [f'HTTP/1.1 {status} -', *headers, f'Content-Length: {length}']
  return ('\r\n'.join(lines) + '\r\n\r\n').encode()
