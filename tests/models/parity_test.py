"""Live comparison with transformers' Qwen3 under torch.

What `make test` checks against committed numbers is checked here against the
library itself, with other weights, other lengths and in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qed.models import kv_cache, qwen3
from tests.golden import qwen3_cases as cases
from tests.models import qwen3_test as ours

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')

from tests.golden import make_qwen3 as theirs  # noqa: E402 - needs torch.

SEED = 7


def both(name, dtype='float32'):
  """(config, our weights, transformers' model), with the same weights."""
  hf = cases.CONFIGS[name]
  config = qwen3.Config.from_hf(hf)
  params = ours.tree_of(cases.weights(hf, SEED), config)
  model = theirs.reference_model(hf, SEED, getattr(torch, dtype))
  return config, params, model


def long_documents(config):
  """Longer than a block of attention, and beyond position 32,768."""
  rng = np.random.default_rng(SEED)
  return [
    (
      rng.integers(0, config.vocab_size, length).astype(np.int32),
      np.arange(start, start + length, dtype=np.int32),
    )
    for start, length in ((0, 700), (0, 3), (32_700, 200), (100_000, 61))
  ]


def compare(name, dtype):
  """[(ours, theirs)] float32 logits per document, ours from one packed row."""
  config, params, model = both(name, dtype)
  documents = long_documents(config)
  row = ours.pack(documents, 1_024)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  out = np.asarray(ours.forward(params, *row, config=config))[0]
  pairs, start = [], 0
  for tokens, positions in documents:
    with torch.no_grad():
      expected = theirs.reference_logits(model, tokens, positions).numpy()
    pairs.append((out[start : start + len(tokens)], expected))
    start += len(tokens)
  return pairs


@pytest.mark.parametrize('name', cases.CONFIGS)
def test_float32_logits_differ_by_at_most_2e_4(name, record_property):
  pairs = compare(name, 'float32')
  worst = max(np.abs(got - want).max() for got, want in pairs)
  record_property('max_difference', float(worst))
  assert worst <= 2e-4, worst


@pytest.mark.parametrize('name', ['tied', 'untied', 'wide_heads', 'deep'])
def test_bfloat16_distributions_differ_by_a_kl_of_at_most_2e_3(name):
  divergences = []
  for got, want in compare(name, 'bfloat16'):
    log_p = jax.nn.log_softmax(want)
    log_q = jax.nn.log_softmax(got)
    divergences.append(np.sum(np.exp(log_p) * (log_p - log_q), -1))
  assert np.concatenate(divergences).mean() <= 2e-3


@pytest.mark.parametrize('name', ['tied', 'nested_rope'])
def test_gradients_differ_by_at_most_1e_4_of_their_norm(name):
  config, params, model = both(name)
  documents = cases.documents(cases.CONFIGS[name], SEED)
  row = ours.pack(documents, 64)
  _, gradients = ours.loss_and_gradients(params, *row, config=config)
  expected = ours.tree_of(theirs.reference_gradients(model, documents), config)
  flat, _ = jax.tree.flatten(expected)
  for want, got in zip(flat, jax.tree.leaves(gradients), strict=True):
    assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize('name', ['tied', 'one_kv_head', 'nested_rope'])
def test_greedy_decoding_is_that_of_generate(name):
  config, params, model = both(name)
  prompt = np.arange(5, dtype=np.int32)
  with torch.no_grad():
    expected = model.generate(
      torch.from_numpy(prompt)[None].long(),
      attention_mask=torch.ones(1, 5, dtype=torch.long),
      max_new_tokens=64,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )[0, 5:].numpy()
  cache = kv_cache.init(config, 1, 80, dtype=jnp.float32)
  hidden, cache = qwen3.prefill(
    params, prompt[None], np.array([5], np.int32), cache, config=config
  )
  decode = jax.jit(functools.partial(qwen3.decode_step, config=config))
  hidden, generated = hidden[:, -1], []
  for _ in range(64):
    token = qwen3.logits(params, hidden, config=config).argmax(-1)
    generated.append(int(token[0]))
    hidden, cache = decode(params, token.astype(jnp.int32), cache)
  np.testing.assert_array_equal(generated, expected)
