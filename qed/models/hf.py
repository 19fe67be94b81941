"""Hugging Face folders: read into sharded arrays, written from them.

Weights keep Hugging Face's orientation, so that a tensor and our weight (or one
layer of it) are the same bytes in another shape. Both directions hold one
tensor at a time on top of the arrays themselves.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from qed.models import hf_files, sharding, shards, specs

Path = str | os.PathLike[str]
Params = Mapping[str, Any]

_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'


class _Source(NamedTuple):
  """A tensor in a folder, and the weight, or layer of a weight, that it is."""

  hf_name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]  # In the tree of weights.
  layer: int | None


def load(
  path: Path, *, mesh: jax.sharding.Mesh | None = None, dtype=jnp.bfloat16
) -> tuple[dict[str, Any], specs.Config]:
  """Reads a folder with one or many safetensors files.

  Every device gets the slices that it owns (`sharding.param_shardings`), and a
  process reads those of its own devices only.

  Args:
    path: the folder, with config.json.
    mesh: where the weights go; None puts them whole on one device.
    dtype: of the weights; None keeps that of the files.

  Returns:
    The weights as `specs.declare` describes them, and the config.

  Raises:
    FolderError: everything that is wrong with the folder, found before any
      weight is read.
    ValueError: the axes of `mesh` do not divide the weights.
  """
  config, tensors = _survey(pathlib.Path(path), keeps_dtype=dtype is None)
  declared = specs.declare(config)
  if mesh is None:
    place = SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: place, declared, is_leaf=specs.is_spec)
  else:
    places = sharding.param_shardings(config, mesh)
  params = jax.tree.map(
    lambda spec, place: _read_weight(spec, place, tensors, dtype),
    declared,
    places,
    is_leaf=specs.is_spec,
  )
  return params, config


def save(
  path: Path,
  params: Params,
  config: specs.Config,
  *,
  tokenizer_dir: Path | None = None,
  max_shard_bytes: int = 5_000_000_000,
  dtype=None,
  force: bool = False,
  provenance: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that transformers, vLLM and others load.

  The folder appears whole or not at all. With several processes all must call;
  the first one writes.

  Args:
    path: the folder to make.
    params: weights as in `specs.declare`, on any mesh.
    config: the model.
    tokenizer_dir: a folder whose tokenizer files and generation_config.json
      are copied byte for byte.
    max_shard_bytes: of tensors in a file; a larger tensor has its own.
    dtype: of the tensors; None keeps that of each weight.
    force: replace a model folder that is there.
    provenance: where the weights come from, as json; for provenance.json and
      the model card.

  Raises:
    FolderError: `path` exists and may not be replaced, or `tokenizer_dir` has
      no tokenizer.
    ValueError: `params` are not the weights of `config`.
  """
  _check_params(params, config)
  source_of = {source.hf_name: source for source in _sources(config)}

  def dtype_of(source: _Source) -> np.dtype:
    return np.dtype(_weight(params, source).dtype if dtype is None else dtype)

  plan = shards.split(
    (
      shards.Entry(name, dtype_of(source), source.shape)
      for name, source in source_of.items()
    ),
    max_shard_bytes,
  )
  with hf_files.new_folder(path, force=force) as folder:
    if folder:
      stored = dtype_of(source_of[_EMBEDDING])
      hf_files.write_model_files(
        folder, config, dtype=stored, tokenizer_dir=tokenizer_dir
      )
      facts = {
        **(provenance or {}),
        'num_params': config.num_params,
        'dtype': stored.name,
        'qed_version': importlib.metadata.version('qed'),
      }
      hf_files.write_card(folder, pathlib.Path(path).name, config, facts)
      if len(plan) > 1:
        shards.write_index(folder, plan)
    for file, entries in plan.items():
      tensors = (
        _gather(params, source_of[entry.name], entry.dtype) for entry in entries
      )
      if folder:
        shards.write(folder / file, entries, tensors)
      else:  # Takes part in the gathering.
        for _ in tensors:
          pass


def _sources(config: specs.Config) -> list[_Source]:
  """Every tensor of a folder; those of one layer stand together."""
  whole, stacked = [], []
  for keys, spec in jax.tree_util.tree_leaves_with_path(
    specs.declare(config), is_leaf=specs.is_spec
  ):
    is_stacked = spec.axes[0] == 'layers'
    shape = list(spec.shape[is_stacked:])
    for i, axis in enumerate(spec.axes[is_stacked:]):
      if axis in ('heads', 'kv_heads'):  # Heads and their size are one axis.
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    path = tuple(key.key for key in keys)
    (stacked if is_stacked else whole).append(
      _Source(spec.hf_name, tuple(shape), path, None)
    )
  return whole + [
    source._replace(hf_name=source.hf_name.format(layer=layer), layer=layer)
    for layer in range(config.num_hidden_layers)
    for source in stacked
  ]


# Reading.


def _survey(
  folder: pathlib.Path, keeps_dtype: bool
) -> tuple[specs.Config, dict[str, shards.Tensor]]:
  """Finds every tensor and all that is wrong; of weights it reads only heads.

  A tied model may have a head all the same, which is then compared.
  """
  faults: list[str] = []
  config, tensors, mentioned = None, {}, set()
  try:
    config = hf_files.read_config(folder)
  except hf_files.FolderError as error:
    faults.append(str(error))
  if folder.is_dir():
    tensors, mentioned = shards.locate(folder, faults)
  if config is not None and (tensors or not faults):
    faults += _mismatches(config, tensors, mentioned)
    if keeps_dtype:
      faults += _mixtures(config, tensors)
  if config is not None and not faults and config.tie_word_embeddings:
    head = tensors.get(_HEAD)
    if head and not shards.is_equal(head, tensors[_EMBEDDING]):
      faults.append(
        f'{_HEAD} differs from {_EMBEDDING} although the config ties them, so '
        'that neither is taken: set tie_word_embeddings to false to keep both, '
        f'or remove {_HEAD}'
      )
  if faults:
    raise hf_files.FolderError(f'cannot load {folder}: ' + '; '.join(faults))
  return config, tensors


def _mismatches(
  config: specs.Config,
  tensors: Mapping[str, shards.Tensor],
  mentioned: set[str],
) -> list[str]:
  """Where the tensors are not those of the config."""
  expected = {source.hf_name: source.shape for source in _sources(config)}
  faults = [
    f'{name} has shape {list(tensor.shape)}, the config asks for '
    f'{list(expected[name])}'
    for name, tensor in tensors.items()
    if name in expected and tensor.shape != expected[name]
  ]
  if missing := [name for name in expected if name not in mentioned]:
    faults.append('missing: ' + ', '.join(missing))
  accepted = {*expected, *([_HEAD] if config.tie_word_embeddings else [])}
  if unexpected := sorted(set(tensors) - accepted):
    faults.append('unexpected: ' + ', '.join(unexpected))
  return faults


def _mixtures(
  config: specs.Config, tensors: Mapping[str, shards.Tensor]
) -> list[str]:
  """Weights whose layers have several types, so that none can be kept."""
  names: dict[tuple[str, ...], set[str]] = {}
  for source in _sources(config):
    if source.hf_name in tensors:
      dtype = tensors[source.hf_name].dtype
      names.setdefault(source.path, set()).add(dtype.name)
  return [
    f'the layers of {".".join(path)} have several types '
    f'({", ".join(sorted(kinds))}): ask for one of them with dtype'
    for path, kinds in names.items()
    if len(kinds) > 1
  ]


def _read_weight(
  spec: specs.ParamSpec,
  place: jax.sharding.Sharding,
  tensors: Mapping[str, shards.Tensor],
  dtype,
) -> jax.Array:
  """A weight on its devices; the layers of a stack are written in place."""
  first = tensors[spec.hf_name.format(layer=0)]
  dtype = np.dtype(first.dtype if dtype is None else dtype)
  if spec.axes[0] != 'layers':
    return _read_tensor(first, spec.shape, place, dtype)
  layer_place = place
  if isinstance(place, NamedSharding):
    layer_place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
  zeros, write = _stack_programs(spec.shape, dtype, place)
  stack = zeros()
  for layer in range(spec.shape[0]):
    tensor = tensors[spec.hf_name.format(layer=layer)]
    values = _read_tensor(tensor, spec.shape[1:], layer_place, dtype)
    stack = write(stack, values, np.int32(layer))
    # Reading ahead of the writing would hold more than one tensor.
    jax.block_until_ready(stack)
  return stack


def _read_tensor(
  tensor: shards.Tensor,
  shape: tuple[int, ...],
  place: jax.sharding.Sharding,
  dtype: np.dtype,
) -> jax.Array:
  def read(index: tuple[slice, ...]) -> np.ndarray:
    return shards.read_slice(tensor, shape, index, dtype)

  return jax.block_until_ready(jax.make_array_from_callback(shape, place, read))


@functools.cache
def _stack_programs(
  shape: tuple[int, ...], dtype: np.dtype, place: jax.sharding.Sharding
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
  """Makes an empty stack, and writes a layer into it without a copy."""
  zeros = functools.partial(jnp.zeros, shape, dtype)
  return (
    jax.jit(zeros, out_shardings=place),
    jax.jit(_write_layer, donate_argnums=0, out_shardings=place),
  )


def _write_layer(
  stack: jax.Array, values: jax.Array, layer: jax.Array
) -> jax.Array:
  bits = lax.dynamic_update_index_in_dim(_bits(stack), _bits(values), layer, 0)
  return lax.bitcast_convert_type(bits, stack.dtype)


def _bits(x: jax.Array) -> jax.Array:
  """`x` as integers: XLA on CPU may move bfloat16 through float32, which
  changes the bits of some NaNs.
  """
  return lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))


# Writing.


def _check_params(params: Params, config: specs.Config) -> None:
  """Raises a ValueError unless the config declares exactly these weights."""
  declared = traverse_util.flatten_dict(specs.declare(config), sep='.')
  given = traverse_util.flatten_dict(dict(params), sep='.')
  supported = shards.DTYPES.values()
  faults = []
  for name in sorted(declared.keys() | given.keys()):
    if name not in given or name not in declared:
      faults.append(f'{name} is {"unexpected" if name in given else "missing"}')
    elif given[name].shape != declared[name].shape:
      faults.append(
        f'{name} has shape {given[name].shape}, expected {declared[name].shape}'
      )
    elif given[name].dtype not in supported:
      faults.append(
        f'{name} is {given[name].dtype}, '
        f'expected {" or ".join(dtype.name for dtype in supported)}'
      )
  if faults:
    raise ValueError('not the weights of this config: ' + '; '.join(faults))


def _weight(params: Params, source: _Source) -> jax.Array:
  return functools.reduce(lambda tree, key: tree[key], source.path, params)


def _gather(params: Params, source: _Source, dtype: np.dtype) -> np.ndarray:
  """The bits of one tensor, on every process."""
  bits = _tensor_bits(_weight(params, source), source.layer, dtype=dtype)
  if not bits.is_fully_addressable:
    bits = multihost_utils.process_allgather(bits, tiled=True)
  return np.asarray(bits)


@functools.partial(jax.jit, static_argnames='dtype')
def _tensor_bits(
  weight: jax.Array, layer: jax.Array | None, *, dtype: np.dtype
) -> jax.Array:
  def select(x):
    if layer is None:
      return x
    return lax.dynamic_index_in_dim(x, layer, keepdims=False)

  if weight.dtype == dtype:
    return select(_bits(weight))
  return _bits(select(weight).astype(dtype))
