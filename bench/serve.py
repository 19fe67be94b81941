"""The server under load: clients that ask, break off, and ask for nonsense.

  .venv/bin/python -m bench.serve [--secs 60] [--clients 200] [--out serve.json]

Starts `qed serve` with a small random model on the CPU, lets every client send
one request after another for so long, and reports how each kind of request
ended, the latency of those that were answered, and what the server still holds
when all clients are gone. With a path in --out it writes the report there.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

MAX_LENGTH = 96
# Share of the requests, and the status that each has to end with.
KINDS = {
  'whole': (0.45, 200),
  'stream': (0.2, 200),
  'disconnect': (0.15, 0),
  'malformed': (0.1, 400),
  'overlong': (0.1, 400),
}
MALFORMED = (
  b'',
  b'{"prompt": [1, 2',
  b'[]',
  b'\xff\xfe\x00',
  b'{"prompt": [1], "temperature": NaN}',
  b'{"prompt": [1], "max_tokens": "many"}',
  b'{"prompt": [-1]}',
  b'{"prompt": [1], "n": 100000}',
  b'{"prompt": ' + b'[' * 5_000,
)


def write_model(folder: pathlib.Path) -> None:
  """A small random model and its tokenizer, as a Hugging Face folder."""
  import jax

  from qed.data import tokenizer
  from qed.models import hf, specs

  words = tokenizer.train_sentencepiece(
    ['Let x0 = 7. Then x1 = 3 x0 + 4. Hence the claim.'], max_vocab_size=320
  )
  config = specs.Config(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  )
  params = jax.jit(specs.init, static_argnums=0)(config, jax.random.key(0))
  with tempfile.TemporaryDirectory() as words_dir:
    words.save(words_dir)
    hf.save(folder, params, config, tokenizer_dir=words_dir)


@contextlib.contextmanager
def server(folder: pathlib.Path, *flags: str):
  """A process that serves a model; yields (its address, the process)."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'qed.serve', f'--checkpoint={folder}'),
      *('--port=0', '--dtype=float32', '--kv_dtype=float32', '--num_slots=8'),
      *('--page_size=48', f'--max_length={MAX_LENGTH}', *flags),
    ],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'},
  )
  try:
    for line in process.stdout:
      if found := re.search(r'at (http://\S+)/v1', line):
        break
    else:
      raise RuntimeError(f'no server: exit code {process.wait(30)}')
    yield found[1], process
  finally:
    process.kill()
    process.wait(30)
    process.stdout.close()


async def load(url: str, *, num_clients: int, secs: float) -> dict:
  """What `num_clients` clients see in so many seconds."""
  import httpx2

  limits = httpx2.Limits(max_connections=num_clients)
  async with httpx2.AsyncClient(
    base_url=url, limits=limits, timeout=httpx2.Timeout(120.0)
  ) as client:
    ends: collections.Counter = collections.Counter()
    latencies: dict[str, list[float]] = collections.defaultdict(list)
    stop_at = time.monotonic() + secs

    async def ask(seed):
      rng = random.Random(seed)
      while time.monotonic() < stop_at:
        kinds = [*KINDS]
        weights = [KINDS[kind][0] for kind in kinds]
        (kind,) = rng.choices(kinds, weights)
        began = time.monotonic()
        status = await _request(client, kind, rng)
        ends[kind, status] += 1
        if status == 200:
          latencies[kind].append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(ask(seed) for seed in range(num_clients)))
    took = time.monotonic() - began
    held = await _held(client)
    health = (await client.get('/health')).status_code
  return {
    'clients': num_clients,
    'secs': took,
    'requests': sum(ends.values()),
    'ends': {
      kind: {str(status): n for (k, status), n in ends.items() if k == kind}
      for kind in KINDS
    },
    'wrong_ends': sum(
      n for (kind, status), n in ends.items() if status != KINDS[kind][1]
    ),
    'latency_secs': {
      kind: {
        f'p{q}': sorted(values)[min(len(values) - 1, len(values) * q // 100)]
        for q in (50, 99)
      }
      for kind, values in latencies.items()
    },
    'held_afterwards': held,
    'health_afterwards': health,
  }


async def _request(client, kind: str, rng: random.Random) -> int:
  """Sends one request; the status, or 0 where the client broke off."""
  prompt = [rng.randrange(3, 320) for _ in range(rng.randint(1, 40))]
  body = {
    'prompt': prompt,
    'max_tokens': rng.randint(1, 50),
    'stop_token_ids': [],
    'return_token_ids': True,
    'logprobs': 1,
    'n': rng.choice((1, 1, 1, 2)),
  }
  content = json.dumps(body)
  if kind == 'malformed':
    content = rng.choice(MALFORMED)
  elif kind == 'overlong':
    content = json.dumps({**body, 'prompt': prompt * MAX_LENGTH})
  elif kind == 'stream':
    content = json.dumps({**body, 'stream': True})
  elif kind == 'disconnect':
    body |= {'max_tokens': 50, 'stream': rng.random() < 0.5}
    content = json.dumps(body)
  call = client.post(
    '/v1/completions',
    content=content,
    headers={'content-type': 'application/json'},
  )
  if kind == 'disconnect':
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(rng.uniform(0.0, 0.3)):
        await call
    return 0
  response = await call
  if response.status_code == 200:
    _check(response, body['max_tokens'], body['n'], kind == 'stream')
  return response.status_code


def _check(response, max_tokens: int, n: int, is_stream: bool) -> None:
  """Every choice has all its tokens, and as many of what goes with them."""
  if is_stream:
    events = response.text.strip().split('\n\n')
    assert events.pop() == 'data: [DONE]', events
    parts = [json.loads(event[len('data: ') :]) for event in events]
  else:
    parts = [response.json()]
  counts: collections.Counter = collections.Counter()
  for part in parts:
    for choice in part['choices']:
      ids = choice['token_ids']
      assert len(ids) == len(choice['versions'])
      assert len(ids) == len(choice['logprobs']['token_logprobs'])
      counts[choice['index']] += len(ids)
  assert dict(counts) == dict.fromkeys(range(n), max_tokens), counts


async def _held(client) -> dict[str, float]:
  """What the server holds once it had ten seconds to let go."""
  for _ in range(100):
    lines = (await client.get('/metrics')).text.splitlines()
    values = dict(line.rsplit(' ', 1) for line in lines)
    held = {
      name: float(values[f'qed_{name}'])
      for name in ('http_samples_in_flight', 'open', 'queue', 'slots_busy')
    }
    held['pages'] = float(values['qed_pages']) - float(values['qed_pages_free'])
    if not any(held.values()):
      break
    await asyncio.sleep(0.1)
  return held


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--secs', type=float, default=60.0)
  parser.add_argument('--clients', type=int, default=200)
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root) / 'model'
    write_model(folder)
    with server(folder) as (url, process):
      report = asyncio.run(load(url, num_clients=args.clients, secs=args.secs))
      process.terminate()
      report['exit_code'] = process.wait(60)
  text = json.dumps(report, indent=2)
  print(text)
  if args.out:
    args.out.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
