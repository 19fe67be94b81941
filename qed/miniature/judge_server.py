r"""A judge whose truth is known, behind the API of a real one.

  python -m qed.miniature.judge_server --port 8000
  python -m qed.miniature.judge_server --port 8000 --fault_rate 0.3 --noise 1

It finds problem and proof in whatever rubric prompt it is asked (both stand in
fences, qed/data/templates.py), grades with the exact checker, and answers
`...<score>N</score>` as a language model would. `Behavior` makes it lenient,
noisy, slow or broken, and always in the same way: what it answers depends on
the seed, the question and how often that question was asked, not on the order
in which requests arrive.

In a program or a test:

  with judge_server.start(Behavior(fault_rate=0.3)) as server:
    ask(server.url)

GET /health says whether it is up, and how many requests it has had.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from qed.data import templates
from qed.miniature import checker, faults, problems

_MAX_BODY_BYTES = 8 << 20
_MAX_HEAD_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
  """How the judge departs from the truth.

  Attributes:
    seed: of everything that is drawn.
    bias: points that are added to every score; above 0 it is lenient.
    noise: standard deviation, in points, of what is added before rounding.
    latency_secs: median time that an answer takes.
    latency_sigma: of the lognormal latency; 1.5 has a long tail.
    fault_rate: share of the requests with a fault.
    fault_kinds: what goes wrong then, each as often; of `faults.KINDS`.
    schedule: the fault of each request in the order of their arrival, '' for
      none; `fault_rate` rules over those that follow.
    slow_secs: how long a hanging or dripping answer holds the connection.
    retry_after_secs: what a rate limit asks for.
    grades_unknown: whether a problem that is no chain gets a random score, to
      try a pipeline with; otherwise it gets a reply without a verdict.
  """

  seed: int = 0
  bias: float = 0.0
  noise: float = 0.0
  latency_secs: float = 0.0
  latency_sigma: float = 0.0
  fault_rate: float = 0.0
  fault_kinds: tuple[str, ...] = tuple(faults.KINDS)
  schedule: tuple[str, ...] = ()
  slow_secs: float = 60.0
  retry_after_secs: float = 1.0
  grades_unknown: bool = False

  def __post_init__(self):
    unknown = {*self.fault_kinds, *self.schedule} - {*faults.KINDS, ''}
    if unknown:
      raise ValueError(
        f'expected faults of {[*faults.KINDS]}, got {sorted(unknown)}'
      )
    if not 0 <= self.fault_rate <= 1:
      raise ValueError(
        f'fault_rate: expected a share from 0 to 1, got {self.fault_rate}'
      )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
  """What became of one request, for tests to look at."""

  fault: str  # '' for none.
  truth: int | None  # None where the problem is no chain.
  given: int | None  # The score in the answer, had nothing gone wrong.


class Server:
  """A running judge.

  Attributes:
    url: base_url for a client, `http://127.0.0.1:PORT/v1`.
    handled: one record per request, in the order of arrival.
  """

  def __init__(self, behavior: Behavior):
    """Does not listen yet: `start` does."""
    self.behavior = behavior
    self.handled: list[Handled] = []
    self.url = ''
    self._times_asked: collections.Counter[bytes] = collections.Counter()
    self._connections: set[asyncio.Task] = set()

  def decide(self, question: str) -> tuple[Handled, str, float]:
    """The record of the next request, the reply and its latency in seconds."""
    behavior = self.behavior
    key = hashlib.sha256(question.encode('utf-8', 'surrogatepass')).digest()
    rng = np.random.default_rng(
      [behavior.seed, self._times_asked[key], *key[:16]]
    )
    self._times_asked[key] += 1
    draws = rng.standard_normal(2)
    is_faulty = rng.random() < behavior.fault_rate
    kind = behavior.fault_kinds and str(rng.choice(behavior.fault_kinds))
    if len(self.handled) < len(behavior.schedule):
      fault = behavior.schedule[len(self.handled)]
    else:
      fault = kind if is_faulty else ''
    truth, report = examine(question)
    given = truth
    if truth is None and behavior.grades_unknown:
      given = int(rng.integers(problems.MAX_POINTS + 1))
    if truth is not None:
      exact = truth + behavior.bias + behavior.noise * draws[0]
      given = int(np.clip(round(exact), 0, problems.MAX_POINTS))
    reply = report if given is None else f'{report}\n<score>{given}</score>'
    latency = behavior.latency_secs * np.exp(behavior.latency_sigma * draws[1])
    return Handled(fault=fault, truth=truth, given=given), reply, float(latency)

  async def serve(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Answers the requests of one connection."""
    task = asyncio.current_task()
    self._connections.add(task)
    try:
      while request := await _read(reader):
        if not await self._answer(*request, writer):
          break
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
      pass  # The client is gone, or speaks something else than HTTP.
    except asyncio.CancelledError:
      pass  # By `close`; asyncio would report it as unexpected.
    finally:
      self._connections.discard(task)
      writer.close()

  async def _answer(
    self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter
  ) -> bool:
    """Answers one request; returns whether the connection goes on."""
    if method == 'GET' and path.endswith('/health'):
      health = {'status': 'ok', 'requests': len(self.handled)}
      return await faults.send(writer, 200, health)
    if method != 'POST' or not path.endswith('/chat/completions'):
      return await faults.send(writer, 404, faults.error('no such address'))
    asked = _question(body)
    if asked is None:
      return await faults.send(
        writer, 400, faults.error('expected messages that end with a user')
      )
    model, question = asked
    handled, reply, latency = self.decide(question)
    self.handled.append(handled)
    await asyncio.sleep(latency)
    response = faults.completion(reply, model=model, question=question)
    return await faults.respond(
      writer,
      response,
      handled.fault,
      slow_secs=self.behavior.slow_secs,
      retry_after_secs=self.behavior.retry_after_secs,
    )

  async def close(self) -> None:
    """Ends every connection, and the answers that still hang."""
    for task in (tasks := list(self._connections)):
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def examine(question: str) -> tuple[int | None, str]:
  """Grades what a rubric prompt asks about.

  Args:
    question: with problem and proof in their fences.

  Returns:
    The score, None if there is no chain to grade, and the words before it.
  """
  try:
    chain = problems.parse(templates.unfence('problem', question))
    proof = templates.unfence('proof', question)
  except ValueError:
    return None, (
      '<assessment>This is not the proof of a chain of modular arithmetic; I '
      'cannot grade anything else.</assessment>'
    )
  found = checker.breakdown(chain, proof)
  taken = ''.join(f' Less a point: {why}.' for why in found.deductions)
  return found.score, (
    f'<assessment>{found.num_steps} of {len(chain.steps)} steps hold, which '
    f'gives {found.points} points.{taken}</assessment>\n'
    f'<errors>{found.error or "none"}</errors>'
  )


def _question(body: bytes) -> tuple[str, str] | None:
  """The model and the last message that a request names, if it is one."""
  try:
    request = json.loads(body)
    model, message = request['model'], request['messages'][-1]
    question = message['content']
  except (ValueError, KeyError, TypeError, IndexError):
    return None
  is_sound = isinstance(model, str) and isinstance(question, str)
  return (model, question) if is_sound else None


async def _read(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
  """The next request as (method, path, body); None at the end."""
  try:
    head = await reader.readuntil(b'\r\n\r\n')
  except asyncio.IncompleteReadError:
    return None
  except asyncio.LimitOverrunError as error:
    raise ValueError('expected a shorter head') from error
  first, *lines = head.decode('latin-1').split('\r\n')
  headers = dict(line.lower().split(':', 1) for line in lines if ':' in line)
  length = int(headers.get('content-length', '0'))
  if not 0 <= length <= _MAX_BODY_BYTES:
    raise ValueError(f'expected a body of at most {_MAX_BODY_BYTES} bytes')
  method, path, _ = first.split(' ')
  return method, path, await reader.readexactly(length)


async def _run(
  server: Server,
  port: int,
  ready,
  stop: asyncio.Event,
  host: str = '127.0.0.1',
) -> None:
  """Listens until told to stop; says so by `ready()`."""
  listener = await asyncio.start_server(
    server.serve, host, port, limit=_MAX_HEAD_BYTES, backlog=2048
  )
  port = listener.sockets[0].getsockname()[1]
  server.url = f'http://{host}:{port}/v1'
  ready()
  await stop.wait()
  listener.close()
  await server.close()


@contextlib.contextmanager
def start(
  behavior: Behavior | None = None, *, port: int = 0
) -> Iterator[Server]:
  """Runs a judge in a thread for as long as the context lasts.

  Args:
    behavior: None for an exact and faultless one.
    port: 0 for any that is free.

  Raises:
    OSError: the port is taken.
  """
  server = Server(behavior or Behavior())
  ready = threading.Event()
  loop = asyncio.new_event_loop()
  stop = asyncio.Event()
  failures: list[OSError] = []

  def run():
    try:
      loop.run_until_complete(_run(server, port, ready.set, stop))
    except OSError as error:
      failures.append(error)
    finally:
      loop.close()
      ready.set()

  thread = threading.Thread(target=run, name='judge', daemon=True)
  thread.start()
  ready.wait()
  if failures:
    thread.join()
    raise failures[0]
  try:
    yield server
  finally:
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def main(argv: Sequence[str] | None = None) -> None:
  """Serves until interrupted; every field of `Behavior` but two is a flag."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--port', type=int, required=True)
  parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0: any')
  parser.add_argument(
    '--fault_kinds', nargs='*', default=[*faults.KINDS], metavar='KIND'
  )
  parser.add_argument('--grades_unknown', action='store_true')
  for field in dataclasses.fields(Behavior):
    if isinstance(field.default, int | float) and field.type != 'bool':
      kind = int if field.type == 'int' else float
      parser.add_argument(f'--{field.name}', type=kind, default=field.default)
  values = vars(parser.parse_args(argv))
  port, host = values.pop('port'), values.pop('host')
  values['fault_kinds'] = tuple(values['fault_kinds'])
  try:
    server = Server(Behavior(**values))
  except ValueError as error:
    parser.error(str(error))

  async def run():
    await _run(
      server,
      port,
      lambda: print(f'judging at {server.url}', flush=True),
      asyncio.Event(),
      host,
    )

  with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(run())


if __name__ == '__main__':
  main()
