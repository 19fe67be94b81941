"""Our engine under JetStream's driver and under our scheduler: JSON out.

A process of its own, with the environment that `make test-jetstream` builds.
"""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import time
from concurrent import futures

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '1'

import jax
import jax.numpy as jnp
import numpy as np

from qed.models import specs
from qed.rollout import drivers, engine, http_api, http_requests
from qed.types import SamplingParams

CONFIG = specs.Config(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=10_000.0,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
LAYOUT = engine.Layout(
  num_slots=4,
  max_length=96,
  page_size=32,
  num_pages=13,
  steps_per_chunk=4,
  prefill_buckets=(32,),
  kv_dtype='float32',
)


def requests(count, temperature):
  rng = np.random.default_rng(0)
  stop = () if temperature == 0 else (7, 8)
  return [
    (
      rng.integers(0, CONFIG.vocab_size, rng.integers(1, 40)),
      SamplingParams(
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        max_tokens=int(rng.integers(1, 50)),
        stop_token_ids=stop,
        seed=i,
      ),
    )
    for i in range(count)
  ]


def run(driver, asked):
  streams = [driver.submit(*request) for request in asked]
  return [stream.result(60.0) for stream in streams]


def as_json(completions):
  return [
    {
      'token_ids': c.token_ids.tolist(),
      'logprobs': c.logprobs.tolist(),
      'versions': c.versions.tolist(),
      'finish_reason': c.finish_reason,
    }
    for c in completions
  ]


def swap_in_flight(driver, others):
  """Weights change while a request runs; what it drew after the last."""
  params = SamplingParams(
    temperature=0.0, top_p=1.0, top_k=0, max_tokens=90, stop_token_ids=(),
    seed=0,
  )  # fmt: skip
  prompt = np.array([3, 4, 5])
  streams = [driver.submit(prompt, params) for _ in range(3)]

  async def swap():
    # One more piece before each swap, so that all versions draw something.
    pieces = aiter(streams[0])
    for version, weights in others:
      await anext(pieces)
      driver.update_weights(weights, version)
    async for _ in pieces:
      pass

  asyncio.run(swap())
  return [stream.result(60.0) for stream in streams]


def cancel_and_stop(driver):
  params = requests(1, 0.0)[0][1]
  long = dataclasses.replace(params, max_tokens=90)
  prompt = np.array([1, 2])
  streams = [driver.submit(prompt, long) for _ in range(8)]
  late = driver.submit(prompt, long, deadline_secs=0.0)
  for stream in streams[:6]:
    stream.cancel()
  after = run(driver, [(prompt, params)] * 6)
  return {
    'canceled': [s.result(10.0).finish_reason for s in streams[:6]],
    'others': [s.result(60.0).finish_reason for s in streams[6:]],
    'late': late.result(10.0).finish_reason,
    'after': as_json(after),
  }


def failure(driver, asked):
  """Two chunks fail; the driver is started again."""
  inner = driver._engine.generate
  calls = []

  def generate(*args):
    calls.append(1)
    if len(calls) in (3, 9):
      raise RuntimeError('injected')
    return inner(*args)

  driver._engine.generate = generate
  completions = run(driver, asked)
  del driver._engine.generate
  return as_json(completions)


async def serve(driver):
  """One request through our server."""
  import httpx2

  settings = http_api.Settings(
    model='m',
    chat_style='base',
    limits=http_requests.Limits(
      max_length=96,
      vocab_size=61,
      max_samples=1,
      max_stop_tokens=8,
      max_in_flight=9,
      max_body_bytes=9_999,
      body_secs=5.0,
    ),
    api_key='',
    load=None,
    list_versions=list,
  )

  class Words:
    stop_token_ids = ()
    decode = staticmethod(lambda ids: ' '.join(map(str, ids)))

  app = http_api.app(driver, Words, settings)
  body = {
    'prompt': [3, 4, 5],
    'temperature': 0,
    'max_tokens': 9,
    'return_token_ids': True,
  }
  async with httpx2.AsyncClient(
    transport=httpx2.ASGITransport(app), base_url='http://test'
  ) as client:
    answer = (await client.post('/v1/completions', json=body)).json()
    metrics = (await client.get('/metrics')).text
  return answer['choices'][0]['token_ids'], metrics


def serve_by_jetstream(machine, params, asked):
  """The same through JetStream's own server: ids in, ids out, greedy."""
  import grpc
  from jetstream.core import server_lib
  from jetstream.core.proto import jetstream_pb2, jetstream_pb2_grpc

  from qed.rollout import jetstream, jetstream_records

  holder = jetstream_records.Holder(jetstream_records.Weights(params, 0))
  adapter = jetstream.Adapter(machine, holder)
  with socket.socket() as free:
    free.bind(('', 0))
    port = free.getsockname()[1]
  server = server_lib.run(port, jetstream.server_config(adapter, 1), [None])

  def ask(request):
    ids, sampling = request
    content = jetstream_pb2.DecodeRequest.TokenContent(token_ids=ids.tolist())
    replies = stub.Decode(
      jetstream_pb2.DecodeRequest(
        token_content=content, max_tokens=sampling.max_tokens
      ),
      timeout=60,
    )
    return [
      token
      for reply in replies
      for token in reply.stream_content.samples[0].token_ids
    ]

  with (
    grpc.insecure_channel(f'localhost:{port}') as channel,
    futures.ThreadPoolExecutor(len(asked)) as pool,
  ):
    stub = jetstream_pb2_grpc.OrchestratorStub(channel)
    answers = list(pool.map(ask, asked))
  server.stop()
  return answers


def main():
  signal.alarm(240)
  logging.basicConfig(level=logging.ERROR)
  keys = jax.random.split(jax.random.key(0), 3)
  first, second, third = (
    jax.tree.map(lambda x: 3 * x.astype(jnp.float32), specs.init(CONFIG, key))
    for key in keys
  )
  machine = engine.Engine(CONFIG, LAYOUT, dtype=jnp.float32)
  machine.warm_up(first)
  num_compilations = machine.num_compilations
  report = {}
  for name in ('scheduler', 'jetstream'):
    driver = drivers.start(name, machine, first)
    report[name] = {
      'greedy': as_json(run(driver, requests(12, 0.0))),
      'sampled': as_json(run(driver, requests(12, 0.8))),
      'cancel': cancel_and_stop(driver),
    }
    asked = SamplingParams(
      temperature=0.0, top_p=1.0, top_k=0, max_tokens=9, stop_token_ids=(),
      seed=0,
    )  # fmt: skip
    report[name]['three'] = as_json(run(driver, [(np.array([3, 4, 5]), asked)]))
    if name == 'jetstream':
      report['failed'] = failure(driver, requests(12, 0.8))
      report['restarts'] = driver.stats()['restarts_total']
      report['served'], report['metrics'] = asyncio.run(serve(driver))
    report[name]['swapped'] = as_json(
      swap_in_flight(driver, [(1, second), (2, third)])
    )
    report[name]['third'] = as_json(run(driver, requests(12, 0.0)))
    open_stream = driver.submit(np.array([1]), requests(1, 0.0)[0][1])
    began = time.monotonic()
    driver.close(0.0)
    report[name]['closed'] = [
      open_stream.result(1.0).finish_reason,
      time.monotonic() - began,
    ]
  report['by_jetstream'] = serve_by_jetstream(machine, first, requests(12, 0.0))
  report['compilations'] = machine.num_compilations - num_compilations
  report['log_level'] = logging.root.level
  print('REPORT' + json.dumps(report))


if __name__ == '__main__':
  main()
