"""Times generation: tokens/s of our engine and of what it is measured against.

  .venv/bin/python -m bench.decode [--out decode.json] [--sides scan scheduler]

  scan          one jitted scan over all steps: the same model and sampler, a
                dense cache, every slot busy from the first step to the last
  engine        a loop over the engine's chunks, every slot busy likewise
  scheduler     our scheduler, with twice as many requests as slots: prompts,
                insertions and the half-empty end are part of it
  jetstream     the same requests, under JetStream's orchestrator; it runs in
                the environment of `make test-jetstream`
  transformers  `generate` under torch (extra `parity`)

All draw at temperature 1 with random float32 weights of one config, on CPU.
Each side runs in a process of its own, in alternating rounds; a figure is the
median. A side whose package is not installed is null. A round takes one to two
minutes on two idle cores.
"""

import argparse
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

CONFIG = {
  'model_type': 'qwen3',
  'vocab_size': 16_384,
  'hidden_size': 384,
  'intermediate_size': 1_152,
  'num_hidden_layers': 8,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 64,
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
}  # 20M parameters.
PROMPT_LENGTH = 32
REPOSITORY = pathlib.Path(__file__).parents[1]
JETSTREAM = REPOSITORY / '.venv-jetstream' / 'bin' / 'python'


def model():
  import jax

  from qed.models import qwen3

  config = qwen3.Config.from_hf(CONFIG)
  return config, qwen3.init(config, jax.random.key(0))


def prompts(count: int):
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (count, PROMPT_LENGTH)
  return rng.integers(0, CONFIG['vocab_size'], shape).astype(np.int32)


def time_scan(args) -> float:
  import jax
  import jax.numpy as jnp

  from qed.models import attention, qwen3
  from qed.rollout import sampling

  config, params = model()
  B, length = args.slots, PROMPT_LENGTH + args.tokens
  shape = (B, config.num_key_value_heads, length, config.head_dim)
  rows = jnp.arange(B)[:, None]
  heads = jnp.arange(config.num_key_value_heads)[None]
  ones, zeros = jnp.ones(B), jnp.zeros(B, jnp.int32)
  seeds = jnp.arange(B, dtype=jnp.uint32)

  def step(params, carry, index):
    tokens, cache = carry
    cache = list(cache)
    positions = jnp.full(B, PROMPT_LENGTH, jnp.int32) + index

    def attend(layer, q, k, v, unused):
      cache[layer] = tuple(
        old.at[rows, heads, positions[:, None]].set(new[:, 0])
        for old, new in zip(cache[layer], (k, v), strict=True)
      )
      return attention.attend_heads(q, *cache[layer], positions), unused

    hidden, _ = qwen3.read(
      params, tokens[:, None], positions[:, None], None, attend, config=config
    )
    logits = qwen3.logits(params, hidden[:, 0], config=config)
    keys = sampling.keys(seeds, jnp.full(B, index, jnp.int32))
    tokens, logprobs = sampling.draw(logits, keys, ones, ones, zeros)
    return (tokens, tuple(cache)), (tokens, logprobs)

  @jax.jit
  def run(params, tokens):
    cache = tuple(
      (jnp.zeros(shape), jnp.zeros(shape))
      for _ in range(config.num_hidden_layers)
    )
    params = qwen3.unstack(params)
    return jax.lax.scan(
      functools.partial(step, params), (tokens, cache), jnp.arange(args.tokens)
    )[1]

  tokens = jnp.asarray(prompts(B)[:, -1])
  jax.block_until_ready(run(params, tokens))  # Compiles.
  start = time.perf_counter()
  jax.block_until_ready(run(params, tokens))
  return B * args.tokens / (time.perf_counter() - start)


def make_engine(args):
  import jax.numpy as jnp

  from qed.rollout import engine

  config, params = model()
  layout = engine.make_layout(
    num_slots=args.slots,
    max_length=PROMPT_LENGTH + args.tokens,
    page_size=args.page_size,
    num_pages=0,
    steps_per_chunk=args.steps,
    prefill_buckets=(PROMPT_LENGTH,),
    kv_dtype='float32',
  )
  made = engine.Engine(config, layout, dtype=jnp.float32)
  made.warm_up(params)
  return made, params


def time_engine(args) -> float:
  import numpy as np

  from qed.rollout.engine import Insertion

  engine, params = make_engine(args)
  layout, B = engine.layout, args.slots
  pages = 1 + np.arange(B * layout.max_pages, dtype=np.int32)
  pages = pages.reshape(B, -1)
  state = engine.init_state()
  for slot, ids in enumerate(prompts(B)):
    prefix = engine.prefill(params, ids)
    insertion = Insertion(
      slot=slot,
      seed=slot,
      num_drawn=0,
      budget=args.tokens,
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      stop_token_ids=(),
    )
    state = engine.insert(
      state, prefix, [insertion], pages[slot, None, : prefix.num_pages]
    )
  idle, drawn, count = np.zeros(B, bool), 0, 0
  start, before = time.perf_counter(), None
  while count < B * args.tokens:
    drawn += args.steps
    used = -(-(PROMPT_LENGTH + drawn) // layout.page_size)
    tables = np.where(np.arange(layout.max_pages) < used, pages, 0)
    state, chunk = engine.generate(params, state, tables, idle)
    if before is not None:
      count += engine.read(before).count.sum()
    before = chunk
    if drawn >= args.tokens:
      count += engine.read(before).count.sum()
  return B * args.tokens / (time.perf_counter() - start)


def time_scheduler(args) -> float:
  return time_driver('scheduler', args)


def time_jetstream(args) -> float:
  return time_driver('jetstream', args)


def time_driver(name, args) -> float:
  from qed.rollout import drivers
  from qed.types import SamplingParams

  engine, params = make_engine(args)
  driver = drivers.start(name, engine, params)
  start = time.perf_counter()
  streams = [
    driver.submit(
      ids,
      SamplingParams(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=args.tokens,
        stop_token_ids=(),
        seed=seed,
      ),
    )
    for seed, ids in enumerate(prompts(2 * args.slots))
  ]
  drawn = sum(len(stream.result(600.0).token_ids) for stream in streams)
  seconds = time.perf_counter() - start
  driver.close(10.0)
  return drawn / seconds


def time_transformers(args) -> float:
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  config = transformers.Qwen3Config(
    **{name: CONFIG[name] for name in CONFIG if name != 'rope_theta'},
    rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
    eos_token_id=None,
    pad_token_id=0,
  )
  network = transformers.Qwen3ForCausalLM(config).eval()
  ids = torch.from_numpy(prompts(args.slots)).long()

  def generate(num_tokens):
    with torch.no_grad():
      return network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
      )

  generate(4)  # Warms the caches.
  start = time.perf_counter()
  out = generate(args.tokens)
  seconds = time.perf_counter() - start
  return (out.shape[1] - PROMPT_LENGTH) * args.slots / seconds


# The function of a side, and the module that it needs.
SIDES = {
  'scan': (time_scan, 'jax'),
  'engine': (time_engine, 'jax'),
  'scheduler': (time_scheduler, 'jax'),
  'jetstream': (time_jetstream, 'jetstream'),
  'transformers': (time_transformers, 'torch'),
}


def measure(name: str, args) -> float | None:
  """Tokens/s of a side in a process of its own; None: not installed."""
  side, module = SIDES[name]
  if importlib.util.find_spec(module):
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      return pool.apply(side, (args,))
  # The guard ends the recursion in an environment that lacks the package.
  if name != 'jetstream' or not JETSTREAM.exists() or args.is_inner:
    return None
  with tempfile.NamedTemporaryFile() as out:
    subprocess.run(
      [
        JETSTREAM, '-m', 'bench.decode', '--is-inner', '--sides', name,
        '--rounds', '1', '--slots', str(args.slots),
        '--tokens', str(args.tokens), '--steps', str(args.steps),
        '--page-size', str(args.page_size), '--out', out.name,
      ],
      cwd=REPOSITORY,
      stdout=subprocess.DEVNULL,
      check=True,
    )  # fmt: skip
    return json.load(out)['tokens_per_second'][name]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--slots', type=int, default=64)
  parser.add_argument('--tokens', type=int, default=256, help='per request')
  parser.add_argument('--steps', type=int, default=8, help='per chunk')
  parser.add_argument('--page-size', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=[*SIDES])
  parser.add_argument('--out', help='a JSON file')
  parser.add_argument('--is-inner', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  rates = {name: [] for name in args.sides}
  for _ in range(args.rounds):
    for name in args.sides:
      rate = measure(name, args)
      if rate is not None:
        rates[name].append(rate)
        print(f'  {name}: {rate:.0f} tokens/s', flush=True)
  medians = {
    name: statistics.median(values) if values else None
    for name, values in rates.items()
  }
  result = {
    'cores': os.cpu_count(),
    'config': CONFIG,
    'setting': {
      key: getattr(args, key) for key in ('slots', 'tokens', 'steps')
    },
    'tokens_per_second': medians,
    'all': rates,
  }
  if args.out:
    text = json.dumps(result, indent=2) + '\n'
    pathlib.Path(args.out).write_text(text, encoding='utf-8')
  scan = medians.get('scan')
  for name, rate in medians.items():
    share = f', {rate / scan:.2f} of the scan' if rate and scan else ''
    print(f'{name}: ' + (f'{rate:.0f} tokens/s{share}' if rate else 'absent'))


if __name__ == '__main__':
  main()
