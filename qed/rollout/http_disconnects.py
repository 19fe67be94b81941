"""Answers that end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette import requests

from qed.rollout import http_replies


async def unless_disconnected(
  request: requests.Request, work: Awaitable[bytes]
) -> bytes:
  """The result of some work, which ends when the client goes away.

  Raises:
    ClientDisconnect: it went away.
  """
  tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not tasks[0].done():
      raise requests.ClientDisconnect
    return tasks[0].result()
  finally:
    await http_replies.end(tasks)


class EventStream:
  """A response of events, which ends when the client goes away.

  Starlette's own notices on some servers only when it has something to send,
  and a request may wait long for its first token.
  """

  status_code = 200

  def __init__(self, events: AsyncIterator[bytes], free: Callable[[], None]):
    self._events = events
    self._free = free

  async def __call__(self, scope, receive, send):
    """Answers a request, as ASGI has it."""
    tasks = [
      asyncio.ensure_future(self._send(send)),
      asyncio.ensure_future(_gone(requests.Request(scope, receive))),
    ]
    try:
      await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
      if tasks[0].done() and not isinstance(tasks[0].exception(), OSError):
        tasks[0].result()
    finally:
      self._free()
      await http_replies.end(tasks)

  async def _send(self, send):
    headers = [
      (b'content-type', b'text/event-stream; charset=utf-8'),
      (b'cache-control', b'no-cache'),
    ]
    await send(
      {'type': 'http.response.start', 'status': 200, 'headers': headers}
    )
    async with contextlib.aclosing(self._events) as events:
      async for event in events:
        await send(
          {'type': 'http.response.body', 'body': event, 'more_body': True}
        )
    await send({'type': 'http.response.body', 'body': b''})


async def _gone(request: requests.Request) -> None:
  while (await request.receive())['type'] != 'http.disconnect':
    pass
