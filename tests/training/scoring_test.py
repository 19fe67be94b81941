"""Log-probabilities of a packed batch, against the whole softmax in float64."""

import jax
import numpy as np

from qed.data import packing
from qed.models import qwen3, sharding, specs
from qed.training import scoring, steps
from qed.types import TrainingSample

MODEL = specs.Config(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
TEMPERATURE = 0.7
LONGEST = 7


@jax.jit
def all_scores(params, tokens):
  """Logits [T, V] of one sequence alone."""
  positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
  hidden = qwen3.apply(
    params,
    tokens,
    positions,
    positions * 0 + 1,
    config=MODEL,
    dtype=np.dtype('float32'),
  )
  return qwen3.logits(params, hidden, config=MODEL)[0]


def naive(params, token_ids):
  """log p of token_ids[1:], float64."""
  n = len(token_ids) - 1
  tokens = np.zeros((1, LONGEST - 1), np.int32)
  tokens[0, :n] = token_ids[:-1]  # What follows is seen by nobody.
  scores = np.asarray(all_scores(params, tokens), np.float64)[:n] / TEMPERATURE
  scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
  return scores[np.arange(n), token_ids[1:]]


def test_scores_are_log_probabilities_of_the_targets_wherever_they_stand():
  rng = np.random.default_rng(0)
  samples = [
    TrainingSample(
      token_ids=rng.integers(0, 32, n).astype(np.int32),
      loss_mask=np.arange(n) > 0,
    )
    for n in (6, 4, LONGEST, 3)
  ]
  shape = packing.BatchShape(num_rows=1, row_length=10, microbatch_counts=(2,))
  mesh = sharding.make_mesh(1)
  params = specs.init(MODEL, jax.random.key(0))
  score = scoring.compile_score(
    mesh,
    jax.device_put(params, sharding.param_shardings(MODEL, mesh)),
    model=MODEL,
    compute=steps.Compute(
      dtype='float32',
      remat='none',
      attention='dense',
      chunk_size=8,
      mesh=mesh,
    ),
    temperature=TEMPERATURE,
  )
  packed = packing.pack(samples, shape)
  found = np.asarray(score(params, steps.place_batch(packed, mesh)))
  assert found.shape == (2, 1, 10)
  for sample, got in zip(
    packing.unpack(packed),
    np.split(
      found[packed.segment_ids > 0],
      np.flatnonzero(packed.positions[packed.segment_ids > 0] == 0)[1:],
    ),
    strict=True,
  ):
    np.testing.assert_allclose(got, naive(params, sample.token_ids), atol=1e-5)
