"""Times one forward pass against transformers' Qwen3 under torch, on CPU.

  .venv/bin/python -m bench.forward [--tokens 512 4096] [--out forward.json]

Both sides get one row of the same random tokens, float32 weights of the same
0.1B-parameter config, and compute all logits. Each side runs in a process of
its own, in alternating rounds; a figure is the median over all timed calls.
Needs the extra `parity`.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import time

CONFIG = {
  'model_type': 'qwen3',
  'vocab_size': 32_768,
  'hidden_size': 768,
  'intermediate_size': 2_048,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'num_key_value_heads': 4,
  'head_dim': 64,
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
}


def time_qed(num_tokens: int, num_calls: int) -> list[float]:
  import jax
  import numpy as np

  from qed.models import qwen3

  config = qwen3.Config.from_hf(CONFIG)
  params = qwen3.init(config, jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 32_768, (1, num_tokens))
  tokens = tokens.astype(np.int32)
  positions = np.arange(num_tokens, dtype=np.int32)[None]

  @jax.jit
  def forward(params):
    hidden = qwen3.apply(
      params, tokens, positions, np.ones_like(tokens), config=config
    )
    return qwen3.logits(params, hidden, config=config)

  return timed(lambda: forward(params).block_until_ready(), num_calls)


def time_transformers(num_tokens: int, num_calls: int) -> list[float]:
  import numpy as np
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**CONFIG))
  tokens = np.random.default_rng(0).integers(0, 32_768, (1, num_tokens))
  tokens = torch.from_numpy(tokens)

  def call():
    with torch.no_grad():
      model(input_ids=tokens, use_cache=False)

  return timed(call, num_calls)


def timed(call, num_calls):
  call()  # Compiles, or warms the caches.
  seconds = []
  for _ in range(num_calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--tokens', type=int, nargs='+', default=[512, 4096])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--calls', type=int, default=3, help='per round')
  parser.add_argument('--out', help='a JSON file; standard output otherwise')
  args = parser.parse_args()
  sides = {'qed': time_qed, 'transformers': time_transformers}
  spawn = multiprocessing.get_context('spawn')
  rows = []
  for num_tokens in args.tokens:
    seconds = {name: [] for name in sides}
    for _ in range(args.rounds):
      for name, side in sides.items():
        with spawn.Pool(1) as pool:
          seconds[name] += pool.apply(side, (num_tokens, args.calls))
    medians = {name: statistics.median(x) for name, x in seconds.items()}
    rows.append(
      {
        'tokens': num_tokens,
        'seconds': medians,
        'all_seconds': seconds,
        'speedup': medians['transformers'] / medians['qed'],
      }
    )
  text = json.dumps(
    {'cores': os.cpu_count(), 'config': CONFIG, 'rows': rows}, indent=2
  )
  if args.out:
    pathlib.Path(args.out).write_text(text + '\n', encoding='utf-8')
  for row in rows:
    print(
      f'{row["tokens"]} tokens: qed {row["seconds"]["qed"]:.3f} s, '
      f'transformers {row["seconds"]["transformers"]:.3f} s, '
      f'speed-up {row["speedup"]:.2f}'
    )


if __name__ == '__main__':
  main()
