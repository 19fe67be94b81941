"""Hugging Face folders against the safetensors library and transformers.

Names, shapes and order of the tensors are written out here by hand; nothing of
what is expected comes from `specs.declare`.
"""

import json
import math
import signal
import subprocess
import sys
import textwrap

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from qed.data import tokenizer
from qed.models import hf, hf_files, qwen3, sharding, shards

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
V, D, F, L, N, K, H = 64, 32, 48, 3, 8, 2, 6
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'

# As Qwen3's config.json was written before transformers 5.
CONFIG = {
  'architectures': ['Qwen3ForCausalLM'],
  'model_type': 'qwen3',
  'vocab_size': V,
  'hidden_size': D,
  'intermediate_size': F,
  'num_hidden_layers': L,
  'num_attention_heads': N,
  'num_key_value_heads': K,
  'head_dim': H,
  'hidden_act': 'silu',
  'rope_theta': 5_000_000,
  'rope_scaling': None,
  'rms_norm_eps': 1e-06,
  'initializer_range': 0.02,
  'tie_word_embeddings': True,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'max_position_embeddings': 262_144,
  'max_window_layers': L,
  'sliding_window': None,
  'use_sliding_window': False,
  'use_cache': True,
  'bos_token_id': 1,
  'eos_token_id': [2, 3],
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.51.0',
}
# Our name -> the tensor of one layer, and its shape in a folder.
LAYER = {
  'attention_norm': ('input_layernorm', (D,)),
  'q': ('self_attn.q_proj', (N * H, D)),
  'k': ('self_attn.k_proj', (K * H, D)),
  'v': ('self_attn.v_proj', (K * H, D)),
  'o': ('self_attn.o_proj', (D, N * H)),
  'q_norm': ('self_attn.q_norm', (H,)),
  'k_norm': ('self_attn.k_norm', (H,)),
  'mlp_norm': ('post_attention_layernorm', (D,)),
  'gate': ('mlp.gate_proj', (F, D)),
  'up': ('mlp.up_proj', (F, D)),
  'down': ('mlp.down_proj', (D, F)),
}


def make_tensors(tied=True, dtype=BF16, seed=0):
  shapes = {EMBEDDING: (V, D), 'model.norm.weight': (D,)}
  if not tied:
    shapes[HEAD] = (V, D)
  for layer in range(L):
    for name, shape in LAYER.values():
      shapes[f'model.layers.{layer}.{name}.weight'] = shape
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(0, 0.3, shape).astype(np.float32).astype(dtype)
    for name, shape in shapes.items()
  }


def write_folder(folder, tensors, num_shards=1, **changes):
  """A folder as others write it, with the safetensors library."""
  folder.mkdir()
  tied = HEAD not in tensors
  config = {**CONFIG, 'tie_word_embeddings': tied, **changes}
  (folder / 'config.json').write_text(json.dumps(config))
  names = list(tensors)
  if num_shards == 1:
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
    return folder
  weight_map = {}
  for i in range(num_shards):
    file = f'model-{i + 1:05d}-of-{num_shards:05d}.safetensors'
    inside = names[i::num_shards]
    safetensors.numpy.save_file({n: tensors[n] for n in inside}, folder / file)
    weight_map |= dict.fromkeys(inside, file)
  write_index(folder, weight_map)
  return folder


def write_index(folder, weight_map):
  content = {'metadata': {'total_size': 0}, 'weight_map': weight_map}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(content))


def read_index(folder):
  return json.loads((folder / 'model.safetensors.index.json').read_text())


def read_folder(folder):
  """Every tensor of a folder, by the safetensors library."""
  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    found |= safetensors.numpy.load_file(file)
  return found


def expected_params(tensors):
  """The tree of weights that the tensors are, as float64."""
  wide = {name: t.astype(np.float64) for name, t in tensors.items()}
  ours = {
    'attention_norm': (D,),
    'q': (N, H, D),
    'k': (K, H, D),
    'v': (K, H, D),
    'o': (D, N, H),
  }
  tree = {
    'embedding': wide[EMBEDDING],
    'final_norm': wide['model.norm.weight'],
    'layers': {
      name: np.stack(
        [
          wide[f'model.layers.{i}.{hf_name}.weight'].reshape(
            ours.get(name, shape)
          )
          for i in range(L)
        ]
      )
      for name, (hf_name, shape) in LAYER.items()
    },
  }
  if HEAD in wide:
    tree['head'] = wide[HEAD]
  return tree


def assert_same(params, expected):
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(
      np.asarray(x, np.float64), np.asarray(y, np.float64)
    ),
    params,
    expected,
  )


def assert_equal_bytes(found, expected):
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert found[name].dtype == tensor.dtype, name
    assert found[name].shape == tensor.shape, name
    assert found[name].tobytes() == tensor.tobytes(), name


# Reading.


@pytest.mark.parametrize('dtype', [BF16, F32, np.dtype(np.float16)])
@pytest.mark.parametrize('num_shards', [1, 3])
@pytest.mark.parametrize('tied', [True, False])
def test_loading_gives_what_safetensors_wrote(
  tmp_path, tied, num_shards, dtype
):
  tensors = make_tensors(tied, dtype)
  folder = write_folder(tmp_path / 'hf', tensors, num_shards)
  params, config = hf.load(folder, dtype=None)
  assert_same(params, expected_params(tensors))
  assert {x.dtype for x in jax.tree.leaves(params)} == {dtype}
  assert config.tie_word_embeddings == tied
  assert (config.head_dim, config.rope_theta) == (H, 5e6)
  assert dict(config.carried)['eos_token_id'] == (2, 3)


def test_bfloat16_is_the_default_and_rounds_to_nearest_even(tmp_path):
  tensors = make_tensors(dtype=F32)
  # Between 1 and its successor 1 + 2**-7: half way goes to the even one.
  tensors['model.norm.weight'][:3] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9]
  params, _ = hf.load(write_folder(tmp_path / 'hf', tensors))
  assert {x.dtype for x in jax.tree.leaves(params)} == {BF16}
  found = np.asarray(params['final_norm'][:3], np.float64)
  np.testing.assert_array_equal(found, [1, 1 + 2**-6, 1])
  wide, _ = hf.load(tmp_path / 'hf', dtype=jnp.float32)
  assert_same(wide, expected_params(tensors))


@pytest.mark.parametrize('axes', [(2, 2, 2), (8, 1, 1), (1, 4, 2)])
def test_a_mesh_gets_the_same_weights_where_they_belong(tmp_path, axes):
  tensors = make_tensors(tied=False)
  folder = write_folder(tmp_path / 'hf', tensors, 2)
  mesh = sharding.make_mesh(*axes)
  params, config = hf.load(folder, mesh=mesh)
  assert_same(params, expected_params(tensors))
  places = sharding.param_shardings(config, mesh)
  assert jax.tree.map(lambda x: x.sharding, params) == places


def test_a_device_reads_no_more_than_its_own_slices(tmp_path, monkeypatch):
  tensors = make_tensors()
  read_bytes = {}
  read_slice = shards.read_slice

  def count(tensor, shape, index, dtype):
    values = read_slice(tensor, shape, index, dtype)
    read_bytes.setdefault(tensor.offset, []).append(values.nbytes)
    return values

  monkeypatch.setattr(shards, 'read_slice', count)
  folder = write_folder(tmp_path / 'hf', tensors)
  hf.load(folder, mesh=sharding.make_mesh(2, 2, 2))
  # Matrices are split over all eight devices; norms are read once, for all.
  expected = sorted(
    [t.nbytes // 8] * 8 if t.ndim == 2 else [t.nbytes] for t in tensors.values()
  )
  assert sorted(read_bytes.values()) == expected


def test_only_the_rows_of_a_slice_are_mapped(tmp_path, monkeypatch):
  file = tmp_path / 'x'
  np.arange(1000, dtype=np.float32).tofile(file)
  tensor = shards.Tensor(file, 40, F32, (90, 10))
  mapped = []
  memmap = np.memmap

  def record(*args, **kwargs):
    mapped.append((kwargs['offset'], math.prod(kwargs['shape'])))
    return memmap(*args, **kwargs)

  monkeypatch.setattr(np, 'memmap', record)
  monkeypatch.setattr(shards, '_MAPPED_BYTES', 200)
  index = (slice(1, 5), slice(None), slice(2, 4))
  found = shards.read_slice(tensor, (30, 3, 10), index, F32)
  rows = np.arange(10, 910).reshape(30, 3, 10)
  np.testing.assert_array_equal(found, rows[1:5, :, 2:4])
  # One row of 30 numbers at a time, from the second on.
  assert mapped == [(40 + 120 * i, 30) for i in range(1, 5)]


def change_header(file, change):
  """Rewrites the header of a file; `change` gets it as a dictionary."""
  raw = file.read_bytes()
  length = int.from_bytes(raw[:8], 'little')
  header = json.loads(raw[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  file.write_bytes(len(text).to_bytes(8, 'little') + text + raw[8 + length :])


def drop(folder, *names):
  tensors = {n: t for n, t in make_tensors().items() if n not in names}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


def add(folder, **more):
  tensors = make_tensors() | {n.replace('__', '.'): t for n, t in more.items()}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


def truncate(file, size):
  raw = file.read_bytes()
  file.write_bytes(raw[:size])


def append(file, more):
  file.write_bytes(file.read_bytes() + more)


def without(mapping, key):
  return {name: value for name, value in mapping.items() if name != key}


def edit_config(folder, **changes):
  file = folder / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


WRONG = np.zeros((2, 2), BF16)
# What is done to a folder with one file -> what the error has to name.
FAULTS = {
  'no such folder': (
    lambda f: f.rename(f.with_name('elsewhere')),
    ['expected a folder with config.json'],
  ),
  'no config': (lambda f: (f / 'config.json').unlink(), ['config.json']),
  'config is not json': (
    lambda f: (f / 'config.json').write_text('{'),
    ['config.json', 'Expecting property name'],
  ),
  'config is a list': (
    lambda f: (f / 'config.json').write_text('[]'),
    ['expected a json object'],
  ),
  'another model': (
    lambda f: edit_config(f, model_type='llama'),
    ["model_type='llama'"],
  ),
  'missing tensors': (
    lambda f: drop(f, 'model.norm.weight', EMBEDDING),
    ['missing: ', 'model.norm.weight', EMBEDDING],
  ),
  'a file without tensors': (
    lambda f: drop(f, *make_tensors()),
    ['missing: ', *make_tensors()],
  ),
  'unexpected tensors': (
    lambda f: add(f, model__rotary=WRONG, extra=WRONG),
    ['unexpected: extra, model.rotary'],
  ),
  'a head that the config does not have': (
    lambda f: add(f, lm_head__weight=WRONG),
    [f'{HEAD} differs from {EMBEDDING}', 'tie_word_embeddings'],
  ),
  'a layer too many': (
    lambda f: edit_config(f, num_hidden_layers=L - 1),
    [f'unexpected: model.layers.{L - 1}.input_layernorm.weight'],
  ),
  'misshapen tensors': (
    lambda f: edit_config(f, head_dim=4),
    [
      'model.layers.0.self_attn.q_proj.weight has shape [48, 32], the config '
      'asks for [32, 32]',
      'model.layers.2.self_attn.k_norm.weight has shape [6], the config asks '
      'for [4]',
    ],
  ),
  'transposed tensor': (
    lambda f: add(f, **{'model__norm__weight': np.zeros((1, D), BF16)}),
    ['model.norm.weight has shape [1, 32], the config asks for [32]'],
  ),
  'unsupported types': (
    lambda f: add(f, model__norm__weight=np.zeros(D, np.int8)),
    ['model.norm.weight has type I8 (supported: BF16, F16, F32)'],
  ),
  'truncated tensors': (
    lambda f: truncate(f / 'model.safetensors', -1),
    ['model.safetensors is truncated', 'bytes of tensors'],
  ),
  'truncated header': (
    lambda f: truncate(f / 'model.safetensors', 100),
    ['model.safetensors is truncated', '100 bytes'],
  ),
  'an empty file': (
    lambda f: truncate(f / 'model.safetensors', 0),
    ['model.safetensors is truncated', '0 bytes'],
  ),
  'no safetensors file': (
    lambda f: (f / 'model.safetensors').write_bytes(b'version https://git-lfs'),
    ['model.safetensors is truncated, or no safetensors file'],
  ),
  'header is not json': (
    lambda f: (f / 'model.safetensors').write_bytes(bytes([2] + [0] * 9)),
    ['model.safetensors has no readable header'],
  ),
  'bytes that belong to nothing': (
    lambda f: append(f / 'model.safetensors', b'12'),
    ['model.safetensors is too long'],
  ),
  'offsets that overlap': (
    lambda f: change_header(
      f / 'model.safetensors',
      lambda header: header['model.norm.weight'].update(data_offsets=[0, 64]),
    ),
    ['cannot be bytes'],
  ),
  'sizes that do not fit the shape': (
    lambda f: change_header(
      f / 'model.safetensors',
      lambda header: header['model.norm.weight'].update(dtype='F32'),
    ),
    ['model.norm.weight, [32] of F32, cannot be bytes'],
  ),
  'no weights': (
    lambda f: (f / 'model.safetensors').unlink(),
    ['expected model.safetensors', 'neither'],
  ),
}
SHARD = 'model-00002-of-00003.safetensors'
IN_SHARD = list(make_tensors())[1::3]
# The same for a folder with three shards.
SHARD_FAULTS = {
  'a missing shard': (
    lambda f: (f / SHARD).unlink(),
    [f'names {SHARD}, which is not in the folder'],
  ),
  'a truncated shard': (
    lambda f: truncate(f / SHARD, -2),
    [f'{SHARD} is truncated'],
  ),
  'no index': (
    lambda f: (f / 'model.safetensors.index.json').unlink(),
    [SHARD, 'without an index'],
  ),
  'an index that is not json': (
    lambda f: (f / 'model.safetensors.index.json').write_text('?'),
    ['model.safetensors.index.json has no readable weight_map'],
  ),
  'an index without a map': (
    lambda f: (f / 'model.safetensors.index.json').write_text('{}'),
    ['has no readable weight_map'],
  ),
  'a tensor in another shard than the index says': (
    lambda f: write_index(f, {**read_index(f)['weight_map'], EMBEDDING: SHARD}),
    [
      f'puts {EMBEDDING} in {SHARD}, which has no such tensor',
      f'model-00001-of-00003.safetensors holds {EMBEDDING}, which '
      f'model.safetensors.index.json puts in {SHARD}',
    ],
  ),
  'a tensor that the index does not name': (
    lambda f: write_index(
      f,
      {
        n: s for n, s in read_index(f)['weight_map'].items() if n != IN_SHARD[0]
      },
    ),
    [
      f'{SHARD} holds {IN_SHARD[0]}, which model.safetensors.index.json does '
      'not name',
    ],
  ),
  'an index that points out of the folder': (
    lambda f: write_index(
      f, {**read_index(f)['weight_map'], EMBEDDING: f'../hf/{SHARD}'}
    ),
    [f'names ../hf/{SHARD}, which is not in the folder'],
  ),
  'layers of several types': (
    lambda f: safetensors.numpy.save_file(
      {n: make_tensors(dtype=F32)[n] for n in IN_SHARD}, f / SHARD
    ),
    ['the layers of layers.gate have several types (bfloat16, float32)'],
  ),
}


def assert_refused(folder, fragments, monkeypatch):
  def read_slice(*_):
    pytest.fail('a weight was read')

  monkeypatch.setattr(shards, 'read_slice', read_slice)
  with pytest.raises(hf_files.FolderError) as caught:
    hf.load(folder, dtype=None)
  for fragment in fragments:
    assert fragment in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_named_and_nothing_is_read(tmp_path, monkeypatch, fault):
  break_it, fragments = FAULTS[fault]
  folder = write_folder(tmp_path / 'hf', make_tensors())
  break_it(folder)
  message = assert_refused(folder, fragments, monkeypatch)
  if 'truncated' in message:
    assert 'missing' not in message


@pytest.mark.parametrize('fault', SHARD_FAULTS)
def test_a_fault_of_shards_is_named(tmp_path, monkeypatch, fault):
  break_it, fragments = SHARD_FAULTS[fault]
  folder = write_folder(tmp_path / 'hf', make_tensors(), 3)
  break_it(folder)
  message = assert_refused(folder, fragments, monkeypatch)
  assert 'missing: ' not in message


def test_all_faults_are_named_at_once(tmp_path, monkeypatch):
  tensors = make_tensors()
  tensors['model.norm.weight'] = np.zeros(D + 1, BF16)
  tensors['model.layers.1.bias'] = WRONG
  folder = write_folder(tmp_path / 'hf', tensors, 3, rope_scaling={'factor': 4})
  (folder / SHARD).unlink()
  truncate(folder / 'model-00003-of-00003.safetensors', -4)
  assert_refused(
    folder, ['rope_scaling', SHARD, 'model-00003', 'truncated'], monkeypatch
  )
  edit_config(folder, rope_scaling=None)
  assert_refused(
    folder,
    [SHARD, 'model-00003', 'model.norm.weight has shape', 'model.layers.1.bias']
    if 'model.norm.weight' not in IN_SHARD
    else [SHARD, 'model-00003', 'model.layers.1.bias'],
    monkeypatch,
  )


def test_a_tied_model_may_repeat_its_embedding_as_head(tmp_path):
  tensors = make_tensors()
  repeated = {**tensors, HEAD: tensors[EMBEDDING].copy()}
  folder = write_folder(tmp_path / 'hf', repeated, 2, tie_word_embeddings=True)
  params, config = hf.load(folder)
  assert 'head' not in params
  assert config.tie_word_embeddings
  assert_same(params, expected_params(tensors))


def test_a_head_that_differs_in_one_bit_is_no_repetition(tmp_path):
  tensors = make_tensors()
  head = tensors[EMBEDDING].copy()
  head.view(np.uint16)[-1, -1] ^= 1
  folder = write_folder(
    tmp_path / 'hf', {**tensors, HEAD: head}, tie_word_embeddings=True
  )
  with pytest.raises(hf_files.FolderError, match='set tie_word_embeddings'):
    hf.load(folder)


@pytest.mark.parametrize('view', ['shape', 'type'])
def test_a_head_of_the_same_bytes_and_another_meaning_is_no_repetition(
  tmp_path, view
):
  tensors = make_tensors()
  head = tensors[EMBEDDING]
  head = head.reshape(D, V) if view == 'shape' else head.view(np.float16)
  folder = write_folder(
    tmp_path / 'hf', {**tensors, HEAD: head}, tie_word_embeddings=True
  )
  with pytest.raises(hf_files.FolderError, match='set tie_word_embeddings'):
    hf.load(folder)


def test_a_mesh_that_does_not_divide_is_refused_before_reading(
  tmp_path, monkeypatch
):
  folder = write_folder(tmp_path / 'hf', make_tensors())
  monkeypatch.setattr(shards, 'read_slice', lambda *_: pytest.fail('read'))
  with pytest.raises(ValueError, match='kv_heads=2 over tensor=8'):
    hf.load(folder, mesh=sharding.make_mesh(1, 1, 8))


# Writing.


@pytest.mark.parametrize('dtype', [BF16, F32])
@pytest.mark.parametrize('max_shard_bytes', [10**9, 9000, 1])
@pytest.mark.parametrize('tied', [True, False])
def test_loading_and_saving_keeps_every_byte(
  tmp_path, tied, max_shard_bytes, dtype
):
  tensors = make_tensors(tied, dtype)
  folder = write_folder(tmp_path / 'hf', tensors, 2)
  params, config = hf.load(folder, dtype=None)
  hf.save(tmp_path / 'out', params, config, max_shard_bytes=max_shard_bytes)
  assert_equal_bytes(read_folder(tmp_path / 'out'), tensors)


def test_every_pattern_of_sixteen_bits_survives(tmp_path):
  # Infinities, subnormals and signalling NaNs among them.
  patterns = np.arange(65536, dtype=np.uint16).view(BF16)
  tensors = make_tensors()
  for layer in range(L):
    values = np.roll(patterns, 1000 * layer)
    mlp = f'model.layers.{layer}.mlp'
    tensors[f'{mlp}.gate_proj.weight'] = values.reshape(2048, D)
    tensors[f'{mlp}.up_proj.weight'] = values.reshape(2048, D)
    tensors[f'{mlp}.down_proj.weight'] = values.reshape(D, 2048)
  folder = write_folder(tmp_path / 'hf', tensors, intermediate_size=2048)
  for mesh in (None, sharding.make_mesh(2, 2, 2)):
    params, config = hf.load(folder, mesh=mesh)
    hf.save(tmp_path / 'out', params, config, force=True)
    assert_equal_bytes(read_folder(tmp_path / 'out'), tensors)


def test_shards_are_filled_to_the_limit_and_indexed(tmp_path):
  tensors = make_tensors()
  params, config = hf.load(write_folder(tmp_path / 'hf', tensors))
  hf.save(tmp_path / 'out', params, config, max_shard_bytes=9000)
  files = sorted((tmp_path / 'out').glob('*.safetensors'))
  names = [file.name for file in files]
  assert names == [
    f'model-{i:05d}-of-{len(files):05d}.safetensors'
    for i in range(1, len(files) + 1)
  ]
  index = read_index(tmp_path / 'out')
  size = sum(t.nbytes for t in tensors.values())
  assert index['metadata'] == {'total_size': size}
  assert len(files) < size / 9000 * 2
  weight_map = {}
  for file in files:
    with safetensors.safe_open(file, 'np') as f:
      assert f.metadata() == {'format': 'pt'}
      weight_map |= dict.fromkeys(f.keys(), file.name)
    raw = file.read_bytes()
    header_bytes = int.from_bytes(raw[:8], 'little')
    assert header_bytes % 8 == 0
    assert len(raw) - 8 - header_bytes <= 9000
  assert index['weight_map'] == weight_map


def test_wide_tensors_are_aligned_behind_narrow_ones(tmp_path):
  tensors = make_tensors()
  tensors[EMBEDDING] = np.ones((V - 1, D), BF16)
  params, config = hf.load(
    write_folder(tmp_path / 'hf', tensors, vocab_size=V - 1)
  )
  params['final_norm'] = params['final_norm'].astype(jnp.float32)
  hf.save(tmp_path / 'out', params, config)
  raw = (tmp_path / 'out' / 'model.safetensors').read_bytes()
  header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], 'little')])
  assert header['model.norm.weight']['data_offsets'] == [0, 4 * D]
  assert header['model.norm.weight']['dtype'] == 'F32'
  assert header[EMBEDDING]['dtype'] == 'BF16'


def test_saving_from_a_mesh_writes_the_same_files(tmp_path):
  folder = write_folder(tmp_path / 'hf', make_tensors(tied=False))
  for name, mesh in (('one', None), ('eight', sharding.make_mesh(2, 2, 2))):
    params, config = hf.load(folder, mesh=mesh)
    hf.save(tmp_path / name, params, config, max_shard_bytes=9000)
  names = sorted(file.name for file in (tmp_path / 'one').iterdir())
  assert names == sorted(file.name for file in (tmp_path / 'eight').iterdir())
  for name in names:
    if name != 'README.md':  # Its title is the name of the folder.
      one, eight = (
        (tmp_path / f / name).read_bytes() for f in ('one', 'eight')
      )
      assert one == eight, name


def test_a_type_can_be_asked_for(tmp_path):
  tensors = make_tensors(dtype=F32)
  params, config = hf.load(
    write_folder(tmp_path / 'hf', tensors), dtype=jnp.float32
  )
  hf.save(tmp_path / 'out', params, config, dtype=jnp.bfloat16)
  rounded = {name: t.astype(BF16) for name, t in tensors.items()}
  assert_equal_bytes(read_folder(tmp_path / 'out'), rounded)
  content = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert content['dtype'] == content['torch_dtype'] == 'bfloat16'


def test_weights_of_another_config_are_refused_by_name(tmp_path):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  params['head'] = params['embedding']
  params['final_norm'] = params['final_norm'][1:]
  params['layers']['up'] = params['layers']['up'].astype(jnp.int32)
  del params['layers']['gate']
  with pytest.raises(ValueError, match='not the weights') as caught:
    hf.save(tmp_path / 'out', params, config)
  for fragment in (
    'head is unexpected',
    'layers.gate is missing',
    'final_norm has shape (31,), expected (32,)',
    'layers.up is int32, expected bfloat16 or float16 or float32',
  ):
    assert fragment in str(caught.value)
  assert not (tmp_path / 'out').exists()


# What is beside the weights.


def make_tokenizer(folder):
  """Files whose bytes no parser would keep."""
  folder.mkdir()
  files = {
    'tokenizer.json': b'{"model" :\r\n{}}',
    'tokenizer_config.json': b'{ "eos_token":"\xc3\xa9" }  ',
    'tokenizer.model': bytes(range(256)),
    'vocab.json': b'{}',
    'merges.txt': b'#version: 0.2\n',
    'added_tokens.json': b'{}\n\n',
    'special_tokens_map.json': b'{}',
    'chat_template.jinja': b'{{ messages }}',
    'generation_config.json': b'{"temperature":0.6,  "top_p":0.95}',
    'LICENSE': b'Apache',
  }
  for name, content in files.items():
    (folder / name).write_bytes(content)
  for name in ('config.json', 'README.md', 'model.safetensors', '.gitignore'):
    (folder / name).write_bytes(b'not this one')
  return files


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path):
  files = make_tokenizer(tmp_path / 'tokenizer')
  assert set(tokenizer.TOKENIZER_FILES) <= set(files)
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  hf.save(
    tmp_path / 'out', params, config, tokenizer_dir=tmp_path / 'tokenizer'
  )
  found = {f.name: f.read_bytes() for f in (tmp_path / 'out').iterdir()}
  ours = {'config.json', 'README.md', 'model.safetensors', 'provenance.json'}
  assert found.keys() == files.keys() | ours
  assert {name: found[name] for name in files} == files
  assert b'not this one' not in found.values()


def test_a_tokenizer_folder_without_a_tokenizer_is_refused(tmp_path):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(hf_files.FolderError, match='expected a tokenizer'):
    hf.save(tmp_path / 'out', params, config, tokenizer_dir=tmp_path / 'empty')
  assert sorted(f.name for f in tmp_path.iterdir()) == ['empty', 'hf']


def test_the_config_has_the_keys_of_before_and_after_transformers_5(tmp_path):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  hf.save(tmp_path / 'out', params, config)
  found = json.loads((tmp_path / 'out' / 'config.json').read_text())

  expected = {k: v for k, v in CONFIG.items() if k != 'transformers_version'}
  assert {key: found[key] for key in expected} == expected
  assert found['rope_parameters'] == {
    'rope_type': 'default',
    'rope_theta': 5_000_000,
  }
  assert found['layer_types'] == ['full_attention'] * L
  assert found['dtype'] == 'bfloat16'
  generation = json.loads(
    (tmp_path / 'out' / 'generation_config.json').read_text()
  )
  assert generation == {'bos_token_id': 1, 'eos_token_id': [2, 3]}
  assert hf_files.read_config(tmp_path / 'out') == config


def test_transformers_reads_the_config(tmp_path):
  transformers = pytest.importorskip('transformers')
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  hf.save(tmp_path / 'out', params, config)
  found = transformers.AutoConfig.from_pretrained(tmp_path / 'out')
  assert type(found).__name__ == 'Qwen3Config'
  assert found.rope_parameters['rope_theta'] == 5e6
  assert (found.head_dim, found.tie_word_embeddings) == (H, True)
  generation = transformers.GenerationConfig.from_pretrained(tmp_path / 'out')
  assert generation.eos_token_id == [2, 3]


def test_the_card_says_where_the_weights_come_from(tmp_path):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  hf.save(
    tmp_path / 'my-prover',
    params,
    config,
    provenance={
      'base_model': 'Qwen/Qwen3-4B-Thinking-2507',
      'license': 'apache-2.0',
      'step': 40,
      'run': {'seed': 17},
    },
  )
  card = huggingface_hub.ModelCard.load(tmp_path / 'my-prover' / 'README.md')
  assert card.data.base_model == 'Qwen/Qwen3-4B-Thinking-2507'
  assert card.data.license == 'apache-2.0'
  assert card.data.library_name == 'transformers'
  assert card.data.pipeline_tag == 'text-generation'
  num_params = (
    2 * D + V * D - D + L * (2 * D * (N + K) * H + 3 * F * D + 2 * D + 2 * H)
  )
  for text in ('# my-prover', '* step: 40', f'{num_params:,} weights'):
    assert text in card.text
  facts = json.loads((tmp_path / 'my-prover' / 'provenance.json').read_text())
  assert facts['step'] == 40
  assert facts['run'] == {'seed': 17}
  assert facts['num_params'] == num_params
  assert facts['dtype'] == 'bfloat16'


# A folder appears whole or not at all.


def test_a_folder_is_replaced_only_by_force(tmp_path):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  out = tmp_path / 'out'
  hf.save(out, params, config)
  (out / 'notes.txt').touch()
  with pytest.raises(hf_files.FolderError, match='exists'):
    hf.save(out, params, config)
  assert (out / 'notes.txt').exists()
  hf.save(out, params, config, max_shard_bytes=9000, force=True)
  assert not (out / 'notes.txt').exists()
  assert not (out / 'model.safetensors').exists()
  assert sorted(f.name for f in tmp_path.iterdir()) == ['hf', 'out']


@pytest.mark.parametrize('is_file', [True, False])
def test_force_does_not_replace_what_is_no_model(tmp_path, is_file):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  precious = tmp_path / 'home' if is_file else tmp_path / 'home' / 'thesis.tex'
  precious.parent.mkdir(exist_ok=True)
  precious.write_text('years of work')
  with pytest.raises(hf_files.FolderError, match='not even force'):
    hf.save(tmp_path / 'home', params, config, force=True)
  assert precious.read_text() == 'years of work'


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
  params, config = hf.load(write_folder(tmp_path / 'hf', make_tensors()))
  hf.save(tmp_path / 'old', params, config)
  before = (tmp_path / 'old' / 'model.safetensors').read_bytes()
  gather, calls = hf._gather, []

  def fail(*args):
    calls.append(args)
    if len(calls) == 5:
      raise OSError(28, 'No space left on device')
    return gather(*args)

  monkeypatch.setattr(hf, '_gather', fail)
  for name in ('new', 'old'):
    calls.clear()
    with pytest.raises(OSError, match='No space left'):
      hf.save(tmp_path / name, params, config, force=True)
  assert sorted(f.name for f in tmp_path.iterdir()) == ['hf', 'old']
  assert (tmp_path / 'old' / 'model.safetensors').read_bytes() == before


def test_a_killed_writer_leaves_no_folder_and_is_in_nobodys_way(tmp_path):
  folder = write_folder(tmp_path / 'hf', make_tensors())
  out = tmp_path / 'out'
  program = f"""
    import os, signal
    from qed.models import hf
    params, config = hf.load({str(folder)!r})
    gather, calls = hf._gather, []
    def kill(*args):
      calls.append(args)
      if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
      return gather(*args)
    hf._gather = kill
    hf.save({str(out)!r}, params, config, max_shard_bytes=9000)
  """
  done = subprocess.run([sys.executable, '-c', textwrap.dedent(program)])
  assert done.returncode == -signal.SIGKILL
  assert not out.exists()
  left = [f for f in tmp_path.iterdir() if f.name not in ('hf', 'out')]
  assert [f.name.startswith('.out.') for f in left] == [True]
  assert list(left[0].glob('*.safetensors'))
  params, config = hf.load(folder)
  hf.save(out, params, config)
  assert_equal_bytes(read_folder(out), make_tensors())


# Against transformers and torch.


@pytest.mark.parity
@pytest.mark.parametrize('max_shard_bytes', [10**9, 9000])
@pytest.mark.parametrize('tied', [True, False])
def test_transformers_loads_the_folder_and_computes_the_same(
  tmp_path, tied, max_shard_bytes
):
  torch = pytest.importorskip('torch')
  import transformers

  folder = write_folder(tmp_path / 'hf', make_tensors(tied, F32))
  params, config = hf.load(folder, dtype=jnp.float32)
  hf.save(tmp_path / 'out', params, config, max_shard_bytes=max_shard_bytes)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert info
  assert not any(info.values()), info
  assert model.dtype == torch.float32
  tokens = np.random.default_rng(1).integers(0, V, (2, 40))
  with torch.no_grad():
    expected = model(torch.from_numpy(tokens)).logits.numpy()
  hidden = qwen3.apply(
    params,
    jnp.asarray(tokens, jnp.int32),
    jnp.broadcast_to(jnp.arange(40), (2, 40)),
    jnp.ones((2, 40), jnp.int32),
    config=config,
  )
  found = qwen3.logits(params, hidden, config=config)
  assert np.abs(expected).mean() > 0.1
  np.testing.assert_allclose(found, expected, atol=2e-5)
