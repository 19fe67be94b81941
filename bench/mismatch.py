"""How far a sampler's log-probs are from the trainer's, by position.

  .venv/bin/python -m bench.mismatch [--dtype bfloat16] [--kv-dtype int8]

Completions are drawn by the engine, and the trainer's forward pass reads them
again with the same weights. With float32 the two agree to rounding; in bfloat16
they round at different places, and what is left is what the importance ratio of
a step without lag departs from 1 by. `rounding` is what the trainer itself
differs by from float32, for comparison. Random weights, drawn wide enough that
the distributions are not flat.
"""

import argparse
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from qed.algos import logprobs
from qed.models import qwen3
from qed.rollout import engine as engines

CONFIG = qwen3.Config(
  vocab_size=4_096,
  hidden_size=256,
  intermediate_size=768,
  num_hidden_layers=6,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  rope_theta=1e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
  initializer_range=0.2,
)
PROMPT_LENGTH = 32
PAGE_SIZE = 32


def draw(params, args) -> tuple[np.ndarray, np.ndarray]:
  """Ids [B, prompt and completion], and the completions' log-probs [B, n]."""
  B, length = args.slots, PROMPT_LENGTH + args.tokens
  layout = engines.make_layout(
    num_slots=B,
    max_length=length,
    page_size=PAGE_SIZE,
    num_pages=0,
    steps_per_chunk=8,
    prefill_buckets=(PROMPT_LENGTH,),
    kv_dtype=args.kv_dtype,
  )
  engine = engines.Engine(CONFIG, layout, dtype=jnp.dtype(args.dtype))
  pages = 1 + np.arange(B * layout.max_pages, dtype=np.int32).reshape(B, -1)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, CONFIG.vocab_size, (B, PROMPT_LENGTH), np.int32)
  state = engine.init_state()
  for slot in range(B):
    prefix = engine.prefill(params, ids[slot])
    insertion = engines.Insertion(
      slot=slot,
      seed=slot,
      num_drawn=0,
      budget=args.tokens,
      temperature=args.temperature,
      top_p=1.0,
      top_k=0,
      stop_token_ids=(),
    )
    state = engine.insert(
      state, prefix, [insertion], pages[slot, None, : prefix.num_pages]
    )
  found = []
  for drawn in range(0, args.tokens, layout.steps_per_chunk):
    last = PROMPT_LENGTH + drawn + layout.steps_per_chunk
    used = np.arange(layout.max_pages) < -(-last // PAGE_SIZE)
    state, chunk = engine.generate(
      params, state, np.where(used, pages, 0), np.zeros(B, bool)
    )
    found.append(engine.read(chunk))
  tokens = np.concatenate([chunk.tokens for chunk in found], axis=1)
  drawn = np.concatenate([chunk.logprobs for chunk in found], axis=1)
  return np.concatenate([ids, tokens], axis=1)[:, :length], drawn


def score(params, ids, dtype, args) -> tuple[np.ndarray, np.ndarray]:
  """The trainer's log-probs and entropies of the completions, [B, n] each."""

  @jax.jit
  def run(params, row):
    positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
    hidden = qwen3.apply(
      params,
      row,
      positions,
      jnp.ones_like(row),
      config=CONFIG,
      dtype=jnp.dtype(dtype),
    )
    head = qwen3.output_head(params).astype(dtype)
    targets = jnp.roll(row, -1, 1)
    return logprobs.token_logprobs(
      hidden, head, targets, temperature=args.temperature
    )

  found = [run(params, jnp.asarray(row[None])) for row in ids]
  return tuple(
    np.concatenate([np.asarray(x) for x in part])[:, PROMPT_LENGTH - 1 : -1]
    for part in zip(*found, strict=True)
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  dtypes = ['bfloat16', 'float32']
  parser.add_argument('--dtype', default='bfloat16', choices=dtypes)
  parser.add_argument(
    '--kv-dtype', default='bfloat16', choices=[*dtypes, 'int8']
  )
  parser.add_argument('--slots', type=int, default=16)
  parser.add_argument('--tokens', type=int, default=512, help='per slot')
  parser.add_argument('--temperature', type=float, default=0.8)
  parser.add_argument('--out', help='a JSON file')
  args = parser.parse_args()
  params = qwen3.init(CONFIG, jax.random.key(0))
  ids, sampled = draw(params, args)
  trained, entropies = score(params, ids, args.dtype, args)
  exact, _ = score(params, ids, 'float32', args)
  edges = [0, *(2**i for i in range(5, 24) if 2**i < args.tokens), args.tokens]
  rows = []
  for low, high in itertools.pairwise(edges):
    signed = (sampled - trained)[:, low:high]
    difference = np.abs(signed)
    rows.append(
      {
        'first': low + 1,
        'last': high,
        'count': difference.size,
        'mean': float(difference.mean()),
        'p99': float(np.quantile(difference, 0.99)),
        'max': float(difference.max()),
        'bias': float(signed.mean()),
        'rounding': float(np.abs(trained - exact)[:, low:high].mean()),
      }
    )
  print(
    f'{args.dtype}, cache in {args.kv_dtype}, temperature {args.temperature}, '
    f'entropy {entropies.mean():.2f} nats; differences in nats'
  )
  print(
    'completion tokens  count     mean      p99      max      bias  rounding'
  )
  for row in rows:
    span = f'{row["first"]} .. {row["last"]}'
    values = ''.join(f'{row[name]:10.5f}' for name in names)
    print(f'{span:>17}  {row["count"]:5}{values}')
  if args.out:
    text = json.dumps({'setting': vars(args), 'rows': rows}, indent=2) + '\n'
    pathlib.Path(args.out).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
