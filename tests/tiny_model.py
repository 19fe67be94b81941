"""A real model of a size that trains in seconds, and what it compiles to."""

import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from qed.data import templates, tokenizer
from qed.models import hf, specs


def config(**changes):
  return specs.Config(
    **{
      'vocab_size': 448,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'head_dim': 8,
      'rope_theta': 1e6,
      'rms_norm_eps': 1e-6,
      'tie_word_embeddings': False,
      **changes,
    }
  )


def write(folder, texts):
  """Writes folder/model, random, and folder/tokenizer, which knows texts."""
  words = tokenizer.train_sentencepiece(
    [templates.text('prove'), *texts], max_vocab_size=440
  )
  words.save(folder / 'tokenizer')
  model = config()
  hf.save(
    folder / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=folder / 'tokenizer',
  )


def keep_compiled(path):
  """Has this process keep and find what it compiles in a folder."""
  jax.config.update('jax_compilation_cache_dir', path)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  compilation_cache.reset_cache()


@contextlib.contextmanager
def compiled_in(path):
  """The same for a while."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: getattr(jax.config, name) for name in names}
  keep_compiled(path)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
