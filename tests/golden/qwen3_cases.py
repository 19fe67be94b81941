"""Small Qwen3 models and inputs that tests and the golden script share.

Weights come from numpy, by Hugging Face name, so that the model under test and
transformers' can be given the same ones without either making them.
"""

import numpy as np

_SMALL = {
  'model_type': 'qwen3',
  'vocab_size': 96,
  'hidden_size': 48,
  'intermediate_size': 80,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 12,
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
  'hidden_act': 'silu',
  'attention_bias': False,
  'max_position_embeddings': 262_144,
}

# Between them: tied and untied heads, every kind of head grouping, head sizes
# other than hidden / heads, rope bases old and new, both spellings of the
# base, shallow and deep.
CONFIGS = {
  'tied': _SMALL,
  'untied': {**_SMALL, 'tie_word_embeddings': False},
  'wide_heads': {**_SMALL, 'head_dim': 32, 'tie_word_embeddings': False},
  'narrow_heads': {**_SMALL, 'head_dim': 8, 'num_key_value_heads': 4},
  'one_kv_head': {**_SMALL, 'num_attention_heads': 6, 'num_key_value_heads': 1},
  'no_grouping': {**_SMALL, 'num_key_value_heads': 4, 'rope_theta': 10_000.0},
  'base_of_2507': {**_SMALL, 'rope_theta': 5e6, 'head_dim': 128},
  'deep': {**_SMALL, 'num_hidden_layers': 6, 'rms_norm_eps': 1e-5},
  'nested_rope': {
    **{key: value for key, value in _SMALL.items() if key != 'rope_theta'},
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 2.5e5},
    'num_attention_heads': 8,
    'tie_word_embeddings': False,
  },
}

# (first position, number of tokens) of the documents of every case; the last
# two lie beyond the 32,768 positions that the base models were trained with.
DOCUMENTS = ((0, 23), (0, 1), (32_760, 17), (40_000, 12))

# Configurations whose gradients are golden too.
WITH_GRADIENTS = ('untied', 'one_kv_head')


def shapes(config):
  """Hugging Face tensor name -> shape, written down independently."""
  D, F = config['hidden_size'], config['intermediate_size']
  H, V = config['head_dim'], config['vocab_size']
  N, K = config['num_attention_heads'], config['num_key_value_heads']
  result = {'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,)}
  for layer in range(config['num_hidden_layers']):
    for name, shape in {
      'input_layernorm': (D,),
      'self_attn.q_proj': (N * H, D),
      'self_attn.k_proj': (K * H, D),
      'self_attn.v_proj': (K * H, D),
      'self_attn.o_proj': (D, N * H),
      'self_attn.q_norm': (H,),
      'self_attn.k_norm': (H,),
      'post_attention_layernorm': (D,),
      'mlp.gate_proj': (F, D),
      'mlp.up_proj': (F, D),
      'mlp.down_proj': (D, F),
    }.items():
      result[f'model.layers.{layer}.{name}.weight'] = shape
  if not config['tie_word_embeddings']:
    result['lm_head.weight'] = (V, D)
  return result


def weights(config, seed=0):
  """Random float32 weights by Hugging Face name, with logits of order 1."""
  rng = np.random.default_rng(seed)
  named = {}
  for name, shape in shapes(config).items():
    values = rng.standard_normal(shape)
    if len(shape) == 1:
      values = 1 + 0.2 * values
    elif name in ('model.embed_tokens.weight', 'lm_head.weight'):
      values *= 0.15
    else:
      values /= np.sqrt(shape[1])
    named[name] = values.astype(np.float32)
  return named


def documents(config, seed=1):
  """[(tokens int32 [n], positions int32 [n])] of one case."""
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(0, config['vocab_size'], length).astype(np.int32),
      np.arange(start, start + length, dtype=np.int32),
    )
    for start, length in DOCUMENTS
  ]
