"""Greedy decoding by the engine is transformers' `generate`."""

import jax.numpy as jnp
import numpy as np
import pytest

from qed.rollout import engine as engines
from tests.models import parity_test
from tests.rollout.engine_test import Driver

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')

NUM_TOKENS = 128


@pytest.mark.parametrize('name', ['tied', 'one_kv_head', 'nested_rope'])
def test_greedy_decoding_is_that_of_generate_for_128_tokens(name):
  config, params, model = parity_test.both(name)
  prompt = np.arange(5, dtype=np.int32)
  with torch.no_grad():
    expected = model.generate(
      torch.from_numpy(prompt)[None].long(),
      attention_mask=torch.ones(1, 5, dtype=torch.long),
      max_new_tokens=NUM_TOKENS,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )[0, 5:].numpy()
  layout = engines.make_layout(
    num_slots=2,
    max_length=5 + NUM_TOKENS,
    page_size=64,
    num_pages=0,
    steps_per_chunk=8,
    prefill_buckets=(8,),
    kv_dtype='float32',
  )
  driver = Driver(engines.Engine(config, layout, dtype=jnp.float32), params)
  driver.insert(
    prompt,
    engines.Insertion(
      slot=1,
      seed=0,
      num_drawn=0,
      budget=NUM_TOKENS,
      temperature=0.0,
      top_p=1.0,
      top_k=0,
      stop_token_ids=(),
    ),
  )
  np.testing.assert_array_equal(driver.finish(1)[1][0], expected)
