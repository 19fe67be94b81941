"""Times the judge's client: calls per second, its own CPU, and its memory.

  .venv/bin/python -m bench.judge [--grades 2000] [--out judge.json]

The whole client is measured, from the rendered rubric to the verdict on record,
against a server in a process of its own that does nothing but answer:

  fast    answers at once, to prompts of 20 KB
  stored  the same grades again, from the record, without a call
  slow    1,000 calls in flight, each answered after some seconds, in rounds;
          the memory of the client while each round is in flight
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time

from experiments import base
from qed import config
from qed.grading import judge
from qed.grading.verdicts import Verdicts
from qed.llm import http
from qed.types import Problem

PROBLEM = Problem(
  problem_id='p', statement='Show that it holds.', rubric='7 for a proof.'
)
STEP = 'Then the left side is at most the right side, by what was shown. '
REPLY = {
  'object': 'chat.completion',
  'choices': [
    {
      'index': 0,
      'finish_reason': 'stop',
      'message': {
        'role': 'assistant',
        'content': '<assessment>' + 'It holds. ' * 200 + '</assessment>\n'
        '<errors>none</errors>\n<score>7</score>',
      },
    }
  ],
  'usage': {'prompt_tokens': 6000, 'completion_tokens': 500},
}


def run_server(pipe, secs: float) -> None:
  """Answers every request after so many seconds, for ever."""
  body = json.dumps(REPLY).encode()
  head = f'HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n'.encode()

  async def connect(reader, writer):
    try:
      while True:
        header = await reader.readuntil(b'\r\n\r\n')
        length = header.lower().split(b'content-length:')[1].split(b'\r')[0]
        await reader.readexactly(int(length))
        await asyncio.sleep(secs)
        writer.write(head + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
      writer.close()

  async def serve():
    server = await asyncio.start_server(
      connect, '127.0.0.1', 0, limit=1 << 20, backlog=2048
    )
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

  asyncio.run(serve())


def resident_mib() -> float:
  """Memory of this process now; Linux alone tells."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * resource.getpagesize() / 2**20


async def grade_many(grader, first: int, count: int) -> None:
  proof = STEP * (20_000 // len(STEP))
  grades = await asyncio.gather(
    *(grader.grade(PROBLEM, f'{proof}{first + i}') for i in range(count))
  )
  wrong = [grade for grade in grades if grade.score != 7]
  if wrong:
    raise SystemExit(f'{len(wrong)} of {count} failed, the first: {wrong[0]}')


async def time_grades(grader, first: int, count: int) -> dict[str, float]:
  """Grades per second, and what of it was this process's CPU."""
  began, cpu = time.perf_counter(), time.process_time()
  await grade_many(grader, first, count)
  secs = time.perf_counter() - began
  cpu_secs = time.process_time() - cpu
  return {
    'grades_per_sec': count / secs,
    'cpu_ms_per_grade': 1000 * cpu_secs / count,
    'cpu_share': cpu_secs / secs,
  }


async def hold_slow_calls(grader, rounds: int, secs: float) -> list[float]:
  """MiB of this process in the middle of each round of 1,000 calls."""
  memory = []
  for number in range(rounds):
    grading = asyncio.create_task(grade_many(grader, 1000 * number, 1000))
    # All are in flight once they are sent, until the first is answered.
    while grader.num_running < 1000 and not grading.done():
      await asyncio.sleep(0.05)
    await asyncio.sleep(secs / 4)
    memory.append(resident_mib())
    await grading
  return memory


async def measure(args, ports) -> dict[str, object]:
  result = {'cores': os.cpu_count(), 'grades': args.grades}
  values = base.grpo().judge.to_dict() | {'max_concurrency': 4000}
  settings = config.JudgeConfig(**values)
  with tempfile.TemporaryDirectory() as folder:
    for name, port in ports.items():
      endpoint = http.Endpoint(
        base_url=f'http://127.0.0.1:{port}/v1',
        model=settings.model,
        api_key='',
        connect_secs=60.0,
        deadline_secs=settings.deadline_secs,
        max_attempts=1,
        # Of the fast server, as many as keep it busy.
        max_connections=64 if name == 'fast' else 1000,
      )
      async with http.Http(endpoint) as client:
        with Verdicts(f'{folder}/{name}.sqlite') as store:
          grader = judge.Judge(client.ask, settings, store)
          if name == 'fast':
            await time_grades(grader, -100, 100)  # Connections, caches.
            for kind in ('fast', 'stored'):
              result[kind] = await time_grades(grader, 0, args.grades)
          else:
            result['idle_mib'] = resident_mib()
            result['slow_mib'] = await hold_slow_calls(
              grader, args.rounds, args.secs
            )
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--grades', type=int, default=2000)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--secs', type=float, default=10.0)
  parser.add_argument('--out')
  args = parser.parse_args()
  spawn = multiprocessing.get_context('spawn')
  servers, ports = [], {}
  try:
    for name, secs in (('fast', 0.0), ('slow', args.secs)):
      ours, theirs = spawn.Pipe()
      server = spawn.Process(target=run_server, args=(theirs, secs))
      server.start()
      servers.append(server)
      ports[name] = ours.recv()
    result = asyncio.run(measure(args, ports))
  finally:
    for server in servers:
      server.terminate()
  if args.out:
    text = json.dumps(result, indent=2)
    pathlib.Path(args.out).write_text(text + '\n', encoding='utf-8')
  for kind in ('fast', 'stored'):
    row = result[kind]
    print(
      f'{kind}: {row["grades_per_sec"]:,.0f} grades/s, '
      f'{row["cpu_ms_per_grade"]:.2f} ms of CPU each, '
      f'{row["cpu_share"]:.0%} of a core'
    )
  rounds = ', '.join(f'{mib:.0f}' for mib in result['slow_mib'])
  print(
    f'slow: {result["idle_mib"]:.0f} MiB before, with 1,000 calls in flight '
    f'{rounds} MiB'
  )


if __name__ == '__main__':
  main()
