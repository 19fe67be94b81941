"""Completions as OpenAI's API writes them.

Beside its fields a choice has vLLM's `token_ids` and our `versions`, where the
request says `return_token_ids`: one policy version for each token.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np

from qed.data import tokenizer
from qed.rollout import http_requests, http_text


class Reply:
  """One answer in OpenAI's format: as a whole, or event by event."""

  def __init__(
    self,
    asked: http_requests.Request,
    words: tokenizer.Tokenizer,
    *,
    model: str,
    is_chat: bool,
    thinks: bool,
  ):
    """`thinks`: whether the prompt opens a block of reasoning."""
    self._asked = asked
    self._words = words
    self._is_chat = is_chat
    self._thinks = thinks
    self._num_drawn = 0
    prefix, kind = 'cmpl', 'text_completion'
    if is_chat:
      prefix = 'chatcmpl'
      kind = 'chat.completion' + '.chunk' * asked.stream
    self._head = {
      'id': f'{prefix}-{uuid.uuid4().hex}',
      'object': kind,
      'created': int(time.time()),
      'model': model,
    }

  async def whole(self, streams: Sequence[Any]) -> bytes:
    """The body of an answer, once all choices are complete."""
    choices = await asyncio.gather(
      *(self._whole_choice(i, stream) for i, stream in enumerate(streams))
    )
    return _dump({**self._head, 'choices': choices, 'usage': self._usage()})

  async def _whole_choice(self, index: int, stream: Any) -> dict[str, Any]:
    ids, logprobs, versions, texts = [], [], [], []
    splitter = http_text.Splitter(is_thinking=self._thinks)
    decoder = http_text.Decoder(self._words.decode)
    parts = []
    async for piece in stream:
      ids += _list(piece.token_ids)
      logprobs += _list(piece.logprobs)
      versions += _list(piece.versions)
      reason = piece.finish_reason
      texts.append(self._text(decoder, piece))
      parts.append(splitter.push(texts[-1], is_last=bool(reason)))
    self._num_drawn += len(ids)
    if self._is_chat:
      content = ''.join(part.content for part in parts)
      message = {'role': 'assistant', 'content': content}
      if self._thinks:
        reasoning = ''.join(part.reasoning for part in parts)
        message['reasoning_content'] = reasoning
      body = {'message': message}
    else:
      body = {'text': ''.join(texts)}
    return self._choice(index, body, ids, logprobs, versions, reason)

  async def events(self, streams: Sequence[Any]) -> AsyncIterator[bytes]:
    """Server-sent events of all choices, as they come."""
    states = [
      (
        http_text.Decoder(self._words.decode),
        http_text.Splitter(is_thinking=self._thinks),
      )
      for _ in streams
    ]
    if self._is_chat:
      for index in range(len(streams)):
        yield self._event(index, {'delta': {'role': 'assistant'}}, None)
    iterators = [aiter(stream) for stream in streams]
    coming = {
      asyncio.ensure_future(anext(iterator)): index
      for index, iterator in enumerate(iterators)
    }
    try:
      while coming:
        done, _ = await asyncio.wait(
          coming, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
          index, piece = coming.pop(task), task.result()
          if piece.finish_reason is None:
            following = asyncio.ensure_future(anext(iterators[index]))
            coming[following] = index
          self._num_drawn += len(piece.token_ids)
          yield self._event(index, self._delta(piece, *states[index]), piece)
    finally:
      await end([*coming])
    if self._asked.include_usage:
      content = {**self._head, 'choices': [], 'usage': self._usage()}
      yield _event(_dump(content))
    yield _event(b'[DONE]')

  def _delta(self, piece, decoder, splitter) -> dict[str, Any]:
    text = self._text(decoder, piece)
    if not self._is_chat:
      return {'text': text}
    parts = splitter.push(text, is_last=piece.finish_reason is not None)
    delta = {}
    if parts.reasoning:
      delta['reasoning_content'] = parts.reasoning
    if parts.content:
      delta['content'] = parts.content
    return {'delta': delta}

  def _event(self, index: int, body: dict[str, Any], piece: Any) -> bytes:
    if piece is None:
      choice = {'index': index, **body, 'finish_reason': None}
    else:
      columns = piece.token_ids, piece.logprobs, piece.versions
      choice = self._choice(
        index, body, *map(_list, columns), piece.finish_reason
      )
    return _event(_dump({**self._head, 'choices': [choice]}))

  def _text(self, decoder, piece) -> str:
    """The text of a piece, without the token that ended the completion."""
    ids = _list(piece.token_ids)
    if piece.finish_reason == 'stop':
      ids = ids[:-1]
    return decoder.push(ids, is_last=piece.finish_reason is not None)

  def _choice(self, index, body, ids, logprobs, versions, reason):
    choice = {'index': index, **body, 'finish_reason': reason}
    if self._asked.logprobs:
      choice['logprobs'] = self._logprobs(ids, logprobs)
    if self._asked.return_token_ids:
      choice |= {'token_ids': ids, 'versions': versions}
    return choice

  def _logprobs(self, ids, logprobs) -> dict[str, Any]:
    # JSON has no NaN, which is what a missing log-probability is.
    values = [None if math.isnan(value) else value for value in logprobs]
    if not self._is_chat:
      return {'token_logprobs': values}
    texts = [self._words.decode([token]) for token in ids]
    return {
      'content': [
        {
          'token': text,
          'logprob': value,
          'bytes': list(text.encode()),
          'top_logprobs': [],
        }
        for text, value in zip(texts, values, strict=True)
      ]
    }

  def _usage(self) -> dict[str, int]:
    prompt, drawn = len(self._asked.token_ids), self._num_drawn
    return {
      'prompt_tokens': prompt,
      'completion_tokens': drawn,
      'total_tokens': prompt + drawn,
    }


def _list(values: Any) -> list[Any]:
  return np.asarray(values).tolist()


def _dump(content: Mapping[str, Any]) -> bytes:
  return json.dumps(content, separators=(',', ':')).encode()


def _event(content: bytes) -> bytes:
  return b'data: ' + content + b'\n\n'


async def end(tasks: Sequence[asyncio.Future]) -> None:
  """Cancels tasks and waits until they are."""
  for task in tasks:
    task.cancel()
  await asyncio.gather(*tasks, return_exceptions=True)
