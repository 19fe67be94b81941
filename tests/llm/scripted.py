"""An HTTP server that misbehaves to the byte, as a test tells it to.

`serve(respond)` runs it on the loop of the caller; `respond(path, body)`
returns what to do with a request: one of the answers below, or an own coroutine
function of the connection's writer.
"""

import asyncio
import contextlib
import json
import socket
import struct
import threading


def answer(status=200, body=b'', headers=(), *, length=None, pause_secs=0.0):
  """A response; a wrong `length` promises more than comes."""
  if not isinstance(body, bytes):
    body = (body if isinstance(body, str) else json.dumps(body)).encode()

  async def send(writer):
    await asyncio.sleep(pause_secs)
    writer.write(
      _head(status, len(body) if length is None else length, headers)
    )
    writer.write(body)
    await writer.drain()
    return length is None  # Whether the connection goes on.

  return send


def drip(body, secs_per_byte):
  """A good response, byte by byte: each read is fast, the whole is not."""

  async def send(writer):
    writer.write(_head(200, len(body), ()))
    for byte in body.encode():
      writer.write(bytes([byte]))
      await writer.drain()
      await asyncio.sleep(secs_per_byte)
    return True

  return send


async def hang(writer):
  """Never answers."""
  await asyncio.sleep(3600)


async def close(writer):
  """Ends the connection politely, without an answer."""
  return False


async def reset(writer):
  """Ends it with RST."""
  sock = writer.get_extra_info('socket')
  linger = struct.pack('ii', 1, 0)
  sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
  return False


async def noise(writer):
  """Something that is not HTTP."""
  writer.write(b'\x00\xff\x16\x03 220 smtp ready\r\n\r\n')
  await writer.drain()
  return False


def _head(status, length, headers):
  lines = [f'HTTP/1.1 {status} X', f'content-length: {length}']
  lines += [f'{name}: {value}' for name, value in headers]
  return ('\r\n'.join(lines) + '\r\n\r\n').encode()


@contextlib.asynccontextmanager
async def serve(respond):
  """Yields the base URL of a server on a free port of this machine."""
  tasks = set()

  async def connect(reader, writer):
    tasks.add(asyncio.current_task())
    try:
      while True:
        head = (await reader.readuntil(b'\r\n\r\n')).decode()
        path = head.split(' ')[1]
        lengths = [
          int(line.split(':')[1])
          for line in head.split('\r\n')
          if line.lower().startswith('content-length:')
        ]
        body = await reader.readexactly(lengths[0]) if lengths else b'null'
        if not await respond(path, json.loads(body))(writer):
          break
    except (asyncio.IncompleteReadError, ConnectionError):
      pass  # The client has gone.
    except asyncio.CancelledError:
      pass  # The test is over.
    finally:
      tasks.discard(asyncio.current_task())
      writer.close()

  server = await asyncio.start_server(
    connect, '127.0.0.1', 0, limit=1 << 20, backlog=2048
  )
  port = server.sockets[0].getsockname()[1]
  try:
    yield f'http://127.0.0.1:{port}/v1'
  finally:
    server.close()
    for task in list(tasks):
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def in_thread(respond):
  """Serves from a thread, to a program that has a loop of its own."""
  ready, url = threading.Event(), []
  loop = asyncio.new_event_loop()
  stop = asyncio.Event()

  async def wait():
    async with serve(respond) as base_url:
      url.append(base_url)
      ready.set()
      await stop.wait()

  thread = threading.Thread(target=loop.run_until_complete, args=(wait(),))
  thread.start()
  try:
    assert ready.wait(10)
    yield url[0]
  finally:
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@contextlib.contextmanager
def nobody():
  """Yields a base URL at which nothing listens."""
  with socket.socket() as sock:
    sock.bind(('127.0.0.1', 0))  # Bound but not listening: refused.
    yield f'http://127.0.0.1:{sock.getsockname()[1]}/v1'


def chat(text, **changes):
  """The body of a chat completion; `changes` are of its only choice."""
  choice = {
    'index': 0,
    'finish_reason': 'stop',
    'message': {'role': 'assistant', 'content': text},
  }
  return {
    'object': 'chat.completion',
    'choices': [choice | changes],
    'usage': {'prompt_tokens': 100, 'completion_tokens': 10},
  }
