"""The losses of 300 steps on 64 random examples, and how they were made.

  python -m tests.golden.make_sft_curve

writes sft_curve.json anew. Do so only after a change that is meant to change
what training computes, and say in its commit why the curve moved.
"""

import functools
import json
import pathlib

import jax
import numpy as np

from qed.data import packing
from qed.models import sharding, specs
from qed.training import optimizer, steps
from qed.types import TrainingSample

PATH = pathlib.Path(__file__).with_name('sft_curve.json')
NUM_STEPS = 300
MODEL = specs.Config(
  vocab_size=64,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  rope_theta=1e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)


def make_samples() -> list[TrainingSample]:
  """Prompts of 4 random tokens, completions of 1 to 8."""
  rng = np.random.default_rng(0)
  return [
    TrainingSample(
      token_ids=rng.integers(0, 64, 4 + size).astype(np.int32),
      loss_mask=np.arange(4 + size) >= 4,
    )
    for size in rng.integers(1, 9, 64)
  ]


def run(num_steps: int) -> list[float]:
  """The losses of the first steps."""
  mesh = sharding.make_mesh(1, 1, 1)
  tx = optimizer.make(
    num_steps=NUM_STEPS,
    model=MODEL,
    peak_lr=5e-3,
    schedule='cosine',
    warmup_steps=0,
    warmup_frac=0.1,
    beta1=0.9,
    beta2=0.99,
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
  )
  compute = steps.Compute(
    dtype='float32', remat='none', attention=None, chunk_size=128, mesh=mesh
  )
  step = steps.compile_step(
    functools.partial(steps.sft_step, model=MODEL, compute=compute, tx=tx),
    mesh,
    steps.abstract_state(MODEL, tx, mesh),
  )
  params = specs.init(MODEL, jax.random.key(0))
  state = steps.init_state(params, MODEL, tx, mesh)
  batches = packing.sft_batches(
    make_samples(),
    packing.BatchShape(num_rows=4, row_length=48, microbatch_counts=(2,)),
    batch_size=32,
    num_epochs=NUM_STEPS // 2,
    seed=0,
  )
  losses = []
  for index in range(num_steps):
    state, metrics = step(state, steps.place_batch(batches[index], mesh))
    losses.append(float(metrics['loss']))
  return losses


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  lines = ',\n  '.join(json.dumps(round(loss, 6)) for loss in run(NUM_STEPS))
  PATH.write_text(f'[\n  {lines}\n]\n')
