"""Times one training step against PyTorch and transformers, on CPU.

  .venv/bin/python -m bench.train_step [--rows 1] [--out train_step.json]

Both sides train the same 20M-parameter Qwen3 from the same weights in float32
on the same rows of 2,048 tokens, all of which count: forward, backward, clip
by the global norm, AdamW. Our side takes a row at a time and adds gradients up.
The PyTorch side is what one writes first: all rows at once, the model
of transformers with its default (scaled-dot-product) attention, its loss,
torch.optim.AdamW. Each side runs in a process of its own, in alternating
rounds; a figure is that of the fastest step, which other work on the machine
disturbs least. The losses of both sides are compared, so that they did the same
work. Needs the extra `parity`.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time

ROW_LENGTH = 2_048
CONFIG = {
  'model_type': 'qwen3',
  'vocab_size': 12_288,
  'hidden_size': 384,
  'intermediate_size': 1_024,
  'num_hidden_layers': 10,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 64,
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
}
OPTIM = {
  'peak_lr': 1e-3,
  'beta1': 0.9,
  'beta2': 0.999,
  'eps': 1e-8,
  'weight_decay': 0.01,
  'clip_norm': 1.0,
}


def make_tokens(num_rows: int):
  """Int [num_rows, ROW_LENGTH + 1]."""
  import numpy as np

  rng = np.random.default_rng(0)
  return rng.integers(0, CONFIG['vocab_size'], (num_rows, ROW_LENGTH + 1))


def write_model(folder: str) -> int:
  """Writes the weights that both sides start from; returns their number."""
  import jax

  from qed.models import hf, qwen3

  config = qwen3.Config.from_hf(CONFIG)
  hf.save(folder, qwen3.init(config, jax.random.key(0)), config)
  return config.num_params


def time_qed(folder: str, num_rows: int, num_steps: int):
  """Seconds and loss of each step."""
  import numpy as np

  from qed.data import packing
  from qed.models import hf, sharding
  from qed.training import optimizer, steps
  from qed.types import TrainingSample

  mesh = sharding.make_mesh(1, 1, 1)
  params, model = hf.load(folder, mesh=mesh, dtype=np.float32)
  tx = optimizer.make(
    num_steps=10**6,
    model=model,
    schedule='constant',
    warmup_steps=0,
    warmup_frac=0.0,
    **OPTIM,
  )
  step = steps.compile_step(
    functools.partial(
      steps.sft_step,
      model=model,
      tx=tx,
      compute=steps.Compute(
        dtype='float32',
        remat='none',
        attention=None,
        chunk_size=1_024,
        mesh=mesh,
      ),
    ),
    mesh,
    steps.abstract_state(model, tx, mesh),
  )
  batch = packing.pack(
    [
      TrainingSample(
        token_ids=ids.astype(np.int32), loss_mask=np.arange(len(ids)) > 0
      )
      for ids in make_tokens(num_rows)
    ],
    packing.BatchShape(
      num_rows=1, row_length=ROW_LENGTH, microbatch_counts=(num_rows,)
    ),
  )
  batch = steps.place_batch(batch, mesh)
  state = steps.init_state(params, model, tx, mesh)

  def call():
    nonlocal state
    state, metrics = step(state, batch)
    return float(metrics['loss'])

  return timed(call, num_steps)


def time_torch(folder: str, num_rows: int, num_steps: int):
  """Seconds and loss of each step."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  model = transformers.Qwen3ForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  model.train()
  tx = torch.optim.AdamW(
    model.parameters(),
    lr=OPTIM['peak_lr'],
    betas=(OPTIM['beta1'], OPTIM['beta2']),
    eps=OPTIM['eps'],
    weight_decay=OPTIM['weight_decay'],
  )
  tokens = torch.from_numpy(make_tokens(num_rows))
  inputs, targets = tokens[:, :-1], tokens[:, 1:]

  def call():
    tx.zero_grad(set_to_none=True)
    logits = model(input_ids=inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM['clip_norm'])
    tx.step()
    return loss.item()

  return timed(call, num_steps)


def timed(call, num_steps):
  losses, seconds = [call()], []  # The first compiles, or warms the caches.
  for _ in range(num_steps):
    start = time.perf_counter()
    losses.append(call())
    seconds.append(time.perf_counter() - start)
  return seconds, losses


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=1)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--steps', type=int, default=3, help='per round')
  parser.add_argument('--out', help='a JSON file')
  args = parser.parse_args()
  sides = {'qed': time_qed, 'torch': time_torch}
  spawn = multiprocessing.get_context('spawn')
  seconds, losses = {name: [] for name in sides}, {}
  with tempfile.TemporaryDirectory() as folder:
    with spawn.Pool(1) as pool:
      num_params = pool.apply(write_model, (f'{folder}/model',))
    for _ in range(args.rounds):
      for name, side in sides.items():
        with spawn.Pool(1) as pool:
          some, losses[name] = pool.apply(
            side, (f'{folder}/model', args.rows, args.steps)
          )
        seconds[name] += some
  deviation = max(abs(x / y - 1) for x, y in zip(*losses.values(), strict=True))
  if deviation > 1e-3:
    raise SystemExit(f'the two sides trained differently: losses {losses}')
  tokens = args.rows * ROW_LENGTH
  per_sec = {name: tokens / min(some) for name, some in seconds.items()}
  result = {
    'cores': os.cpu_count(),
    'config': CONFIG,
    'num_params': num_params,
    'rows': args.rows,
    'row_length': ROW_LENGTH,
    'tokens_per_sec': per_sec,
    'all_seconds': seconds,
    'losses': losses,
    'speedup': per_sec['qed'] / per_sec['torch'],
  }
  if args.out:
    text = json.dumps(result, indent=2)
    pathlib.Path(args.out).write_text(text + '\n', encoding='utf-8')
  print(
    f'{num_params:,} weights, {args.rows} x {ROW_LENGTH} tokens: '
    f'qed {per_sec["qed"]:,.0f} tokens/s, torch {per_sec["torch"]:,.0f} '
    f'tokens/s, speed-up {result["speedup"]:.2f}'
  )


if __name__ == '__main__':
  main()
