"""Checkpoints, and the only door to orbax.

A checkpoint directory:

    STEP/params/      the weights
    STEP/state/       the step and the optimizer's state; not where a model was
                      only imported
    STEP/manifest/    json: name, shape, type and fingerprint of every array,
                      and what the program adds (data cursor, RNG key, ...)
    hf/               config.json, generation_config.json, the tokenizer

A step is complete once its manifest stands in a directory that orbax has
renamed to its final name. Orbax notices a truncated file but hands out flipped
bits, so every array has a fingerprint that is taken on the devices before it is
written and compared after it is read; it does not depend on the mesh.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from qed.models import hf, hf_files, sharding, specs
from qed.training.fingerprints import fingerprint
from qed.types import TrainState

Path = str | os.PathLike[str]
_Result = TypeVar('_Result')
_log = logging.getLogger(__name__)

# What one device wrote whole, the devices of a pod read in slices.
_CHUNK_BYTES = 1 << 26
_BATCH_BYTES = 1 << 29  # Of arrays that are read together.
_IN_FLIGHT_BYTES = 1 << 31  # Of arrays that are written together, or more.
_UNBOUNDED_GB = 10**6  # Batches are the bound; orbax's own counts worse.
_TIMEOUT_SECS = 3600  # Of a save in the background.
_MAX_STEPS = 1024  # The newest, of which processes tell each other.


class CheckpointError(ValueError):
  """A directory that has no usable checkpoint for what was asked."""


class _DamagedError(Exception):
  """A step that was complete once and cannot be read any more."""


class Restored(NamedTuple):
  """What `Checkpointer.restore_latest_valid` found."""

  step: int
  state: TrainState
  extra: dict[str, Any]


class Weights(NamedTuple):
  """What `restore_params` found."""

  params: dict[str, Any]
  config: specs.Config
  step: int


class Checkpointer:
  """Saves the state of a run in the background and finds it again.

  With several processes all must make the same calls; the directory is one
  that all of them see. An error of a save is raised by the next call, whatever
  it is, and that call has no other effect; the one after it works again.
  """

  def __init__(self, directory: Path, *, keep: int = 2):
    """Takes a directory, which need not exist.

    Args:
      directory: for steps; other things in it are left alone, but for what an
        interrupted save left behind.
      keep: number of newest steps that are kept; 2 or more leave one to fall
        back to.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, got {keep}')
    self.directory = _absolute(directory)
    self._keep = keep
    self._orbax: ocp.AsyncCheckpointer | None = None
    self._saving: int | None = None
    if jax.process_index() == 0 and self.directory.exists():
      for path in self.directory.glob('*.orbax-checkpoint-tmp*'):
        _log.warning('Removing %s of an interrupted save.', path)
        path.rmtree()
    _barrier('checkpointer')

  def save(
    self, step: int, state: TrainState, extra: Mapping[str, Any] | None = None
  ) -> None:
    """Saves a step; returns once the arrays may be changed or donated.

    Args:
      step: its number; a step that is already there is left as it is.
      state: of arrays on any mesh.
      extra: json; the same on every process.

    Raises:
      OSError: this save, or the last one, failed. The steps before are intact.
    """
    self.wait()
    if step in _agreed_steps(self.directory):
      return
    arrays = _flatten(state)
    items = _items(arrays, extra or {})
    self._saving = step
    try:
      if self._orbax is None:
        self._orbax = _make_orbax(arrays.values())
      self._orbax.save(self.directory / str(step), args=items)
    except Exception as error:
      self._fail(error)

  def restore_latest_valid(self, abstract_state: TrainState) -> Restored | None:
    """Reads the newest step that is whole.

    A damaged one is reported, renamed to STEP.damaged, and the step before it
    is tried.

    Args:
      abstract_state: of jax.ShapeDtypeStruct, whose shardings say where the
        arrays go: any mesh, any number of processes.

    Returns:
      None if the directory has no step.

    Raises:
      CheckpointError: the newest step is of another model or optimizer, or all
        are damaged.
    """
    self.wait()
    available = _agreed_steps(self.directory)
    if not available:
      return None
    targets = _flatten(abstract_state)
    step, arrays, manifest = _newest_valid(self.directory, available, targets)
    if jax.process_index() == 0:
      for damaged in available[available.index(step) + 1 :]:
        _set_aside(self.directory / str(damaged))
    _barrier('set aside')
    state = jax.tree.unflatten(
      jax.tree.structure(abstract_state), [arrays[name] for name in targets]
    )
    return Restored(step, state, manifest['extra'])

  def wait(self) -> None:
    """Blocks until the save in progress is complete, and drops old steps.

    Raises:
      OSError: it failed.
    """
    if self._saving is None:
      return
    try:
      self._orbax.wait_until_finished()
    except Exception as error:
      self._fail(error)
    self._saving = None
    if jax.process_index() == 0:
      for step in steps(self.directory)[: -self._keep]:
        _remove_step(self.directory / str(step))
    _barrier('trimmed')

  def close(self) -> None:
    """Waits, and frees orbax's threads."""
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  def _fail(self, error: Exception) -> None:
    # An orbax object that failed may skip later saves, so it is not used again.
    step, self._saving, self._orbax = self._saving, None, None
    raise OSError(
      f'step {step} was not saved in {self.directory} ({_summary(error)}); '
      f'there are steps {steps(self.directory)}'
    ) from error


def steps(directory: Path) -> list[int]:
  """The complete steps in a directory, oldest first.

  A directory of another origin does not count, though a number be its name.
  """
  directory = epath.Path(directory)
  if not directory.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in directory.iterdir()
    if path.name.isdecimal()
    and (path / 'manifest').is_dir()
    and (path / 'commit_success.txt').exists()
  )


def is_training(directory: Path) -> bool:
  """Whether the newest step is a run's, rather than weights alone."""
  newest = steps(directory)[-1:]
  return any((_absolute(directory) / str(n) / 'state').is_dir() for n in newest)


def _agreed_steps(directory: Path) -> list[int]:
  """`steps` as the first process sees them: a network folder may lag."""
  found = np.array(steps(directory)[-_MAX_STEPS:], np.int32)
  if jax.process_count() > 1:
    found = np.pad(found, (0, _MAX_STEPS - found.size), constant_values=-1)
    found = multihost_utils.broadcast_one_to_all(found)
  return [int(step) for step in found if step >= 0]


def save_params(directory: Path, params: Mapping[str, Any]) -> None:
  """Saves weights alone, as step 0, and waits for it.

  Raises:
    OSError: they could not be written.
  """
  arrays = _flatten({'params': params})
  orbax = _make_orbax(arrays.values())
  orbax.save(_absolute(directory) / '0', args=_items(arrays, {}))
  orbax.close()


def restore_params(
  directory: Path,
  *,
  mesh: Mesh | None = None,
  dtype=None,
  step: int | None = None,
) -> Weights:
  """Reads the weights alone, of an imported model or of a training run.

  Args:
    directory: with `hf/` and steps.
    mesh: where the weights go; None puts them whole on one device.
    dtype: of the weights; None keeps that of the checkpoint.
    step: which; None takes the newest that is whole, with a warning if there
      is a newer one that is damaged.

  Raises:
    CheckpointError: there is no such step, none is whole, or the weights are
      not those of hf/config.json.
    FolderError: hf/config.json is missing, or of another kind of model.
    ValueError: the axes of `mesh` do not divide the weights.
  """
  directory = _absolute(directory)
  available = _agreed_steps(directory)
  if not available or step not in (None, *available):
    wanted = 'a step' if step is None else f'step {step}'
    raise CheckpointError(
      f'expected {wanted} in {directory}, found {available or "none"}'
    )
  config = hf_files.read_config(directory / 'hf')
  declared = specs.abstract(config)
  if mesh is None:
    place = SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: place, declared)
  else:
    places = sharding.param_shardings(config, mesh)
  targets = _flatten({'params': jax.tree.map(_with_sharding, declared, places)})
  candidates = available if step is None else [step]
  step, arrays, _ = _newest_valid(directory, candidates, targets, dtype)
  params = jax.tree.unflatten(
    jax.tree.structure(declared), [arrays[name] for name in targets]
  )
  return Weights(params, config, step)


def load_model(
  path: Path, *, mesh: Mesh | None = None, dtype=jnp.bfloat16
) -> tuple[dict[str, Any], specs.Config]:
  """Reads a model from a Hugging Face folder or a checkpoint directory.

  Raises:
    FolderError, CheckpointError: it is neither, or it is not whole.
  """
  if (epath.Path(path) / 'config.json').exists():
    return hf.load(path, mesh=mesh, dtype=dtype)
  weights = restore_params(path, mesh=mesh, dtype=dtype)
  return weights.params, weights.config


def write_model_files(
  directory: Path,
  config: specs.Config,
  *,
  tokenizer_dir: Path | None,
  dtype=jnp.bfloat16,
) -> None:
  """Writes `hf/`, without which nobody can use the weights by themselves.

  Args:
    directory: of the checkpoints.
    config: the model.
    tokenizer_dir: a folder whose tokenizer is copied byte for byte.
    dtype: of an export, unless the user asks for another.
  """
  if jax.process_index() == 0:
    hf_files.write_model_files(
      _absolute(directory) / 'hf',
      config,
      dtype=dtype,
      tokenizer_dir=tokenizer_dir,
    )
  _barrier('model files')


# Writing.


def _make_orbax(arrays: Iterable[jax.Array]) -> ocp.AsyncCheckpointer:
  """An orbax object that writes arrays of these sizes."""
  largest = max(map(_shard_bytes, arrays))
  # Bounds the copies that are on their way to the disk. Orbax refuses a shard
  # that is not below the bound.
  in_flight_gb = max(_IN_FLIGHT_BYTES, largest + _CHUNK_BYTES) / 1e9
  handlers = {
    # Trained weights shrink little for the time that compression takes.
    item: ocp.PyTreeCheckpointHandler(
      save_concurrent_gb=in_flight_gb, use_compression=False
    )
    for item in ('params', 'state')
  }
  options = ocp.AsyncOptions(
    timeout_secs=_TIMEOUT_SECS,
    # Else threads wait for a directory that cannot be made until the timeout.
    create_directories_asynchronously=False,
  )
  composite = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(async_options=options),
    **handlers,
    manifest=ocp.JsonCheckpointHandler(),
  )
  return ocp.AsyncCheckpointer(composite, async_options=options)


def _items(
  arrays: Mapping[str, jax.Array], extra: Mapping[str, Any]
) -> ocp.args.Composite:
  """What a step consists of."""
  described = {
    name: {
      'shape': list(x.shape),
      'dtype': x.dtype.name,
      'fingerprint': fingerprint(x),
    }
    for name, x in arrays.items()
  }
  # Through json, so that the checksum is of what will be read.
  manifest = json.loads(json.dumps({'arrays': described, 'extra': extra}))
  items = {'manifest': ocp.args.JsonSave({**manifest, 'crc32': _crc(manifest)})}
  for item in ('params', 'state'):
    tree = {name: x for name, x in arrays.items() if _item(name) == item}
    if tree:
      items[item] = ocp.args.PyTreeSave(
        tree, save_args={name: _save_args(x) for name, x in tree.items()}
      )
  return ocp.args.Composite(**items)


def _save_args(x: jax.Array) -> ocp.SaveArgs:
  # A layer of a stack is contiguous, so that a chunk of it is no copy.
  return ocp.SaveArgs(
    chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if x.ndim > 2 else ()
  )


def _set_aside(path: epath.Path) -> None:
  aside = path.with_name(f'{path.name}.damaged')
  if aside.exists():
    aside.rmtree()
  path.rename(aside)


def _remove_step(path: epath.Path) -> None:
  # Without its manifest it does not count, should the removal be interrupted.
  (path / 'manifest').rmtree()
  path.rmtree()


# Reading.


def _newest_valid(
  directory: epath.Path,
  candidates: Sequence[int],
  targets: Mapping[str, jax.ShapeDtypeStruct],
  dtype=None,
) -> tuple[int, dict[str, jax.Array], dict[str, Any]]:
  """Reads the arrays that `targets` names from the newest step that is whole.

  Returns:
    The step, the arrays (converted to `dtype` unless it is None), the manifest.
  """
  damaged = {}
  for step in reversed(candidates):
    path = directory / str(step)
    try:
      manifest = _everywhere(functools.partial(_read_manifest, path))
      _check_same(path, targets, manifest['arrays'])
      arrays = _read_arrays(path, targets, manifest['arrays'], dtype)
    except _DamagedError as error:
      damaged[step] = str(error)
      _log.warning('%s is damaged, and passed over: %s', path, error)
    else:
      return step, arrays, manifest
  raise CheckpointError(
    f'no step in {directory} can be read: '
    + '; '.join(f'{step}: {text}' for step, text in damaged.items())
  )


def _everywhere(read: Callable[[], _Result]) -> _Result:
  """`read()`; where it fails on any process, all raise _DamagedError."""
  result, error = None, None
  try:
    result = read()
  except Exception as caught:  # Orbax and tensorstore raise many kinds.
    error = caught
  is_whole = np.int32(error is None)
  if jax.process_count() > 1:
    is_whole = multihost_utils.process_allgather(is_whole).min()
  if not is_whole:
    raise _DamagedError(_summary(error)) from error
  return result


def _summary(error: BaseException | None) -> str:
  """The first line of what went wrong first: orbax adds pages to it."""
  if error is None:
    return 'another process cannot read it'
  while error.__cause__ is not None:
    error = error.__cause__
  text = str(error).partition('\n')[0]
  return f'{type(error).__name__}: {text[:300]}'


def _read_manifest(path: epath.Path) -> dict[str, Any]:
  manifest = ocp.JsonCheckpointHandler().restore(path / 'manifest')
  if manifest.pop('crc32', None) != _crc(manifest):
    raise ValueError('the manifest is not what was saved')
  return manifest


def _check_same(
  path: epath.Path,
  targets: Mapping[str, jax.ShapeDtypeStruct],
  saved: Mapping[str, Mapping[str, Any]],
) -> None:
  """Raises CheckpointError unless the step has what is asked for.

  Weights that are asked for alone may have any type.
  """
  is_state = not all(map(_is_param, targets))
  saved = {n: array for n, array in saved.items() if is_state or _is_param(n)}
  faults = [
    f'{name} is {"asked for" if name in targets else "saved"} only'
    for name in sorted(targets.keys() ^ saved.keys())
  ]
  for name in sorted(targets.keys() & saved.keys()):
    target, array = targets[name], saved[name]
    if list(target.shape) != array['shape']:
      faults.append(f'{name} has shape {array["shape"]}, not {target.shape}')
    if is_state and target.dtype.name != array['dtype']:
      faults.append(f'{name} is {array["dtype"]}, not {target.dtype.name}')
  if faults:
    raise CheckpointError(
      f'{path} is of another model or optimizer: ' + '; '.join(faults)
    )


def _read_arrays(
  path: epath.Path,
  targets: Mapping[str, jax.ShapeDtypeStruct],
  saved: Mapping[str, Mapping[str, Any]],
  dtype,
) -> dict[str, jax.Array]:
  """Reads and verifies arrays, few enough at a time to bound the memory."""
  stored = {
    name: jax.ShapeDtypeStruct(
      target.shape, saved[name]['dtype'], sharding=target.sharding
    )
    for name, target in targets.items()
  }
  arrays = {}
  for batch in _batches(stored):
    read = _everywhere(functools.partial(_read_batch, path, batch))
    for name in batch:
      x = read.pop(name)
      if fingerprint(x) != saved[name]['fingerprint']:
        raise _DamagedError(f'{name} is not what was saved')
      arrays[name] = x if dtype is None else x.astype(dtype)
      del x
  return arrays


def _batches(
  stored: Mapping[str, jax.ShapeDtypeStruct],
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
  """Groups arrays of one item by their bytes on this process.

  The largest come first: reading takes up to three times their size, for which
  there is most room at the beginning.
  """
  for item in ('params', 'state'):
    sizes = {
      name: _shard_bytes(x) * len(x.sharding.addressable_devices)
      for name, x in stored.items()
      if _item(name) == item
    }
    batch, used = {}, 0
    for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
      if batch and used + size > _BATCH_BYTES:
        yield batch
        batch, used = {}, 0
      batch[name] = stored[name]
      used += size
    if batch:
      yield batch


def _read_batch(
  path: epath.Path, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  batch = dict(batch)
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_UNBOUNDED_GB)
  args = ocp.args.PyTreeRestore(
    item=batch,
    restore_args=ocp.checkpoint_utils.construct_restore_args(batch),
    partial_restore=True,
  )
  return dict(handler.restore(path / _item(next(iter(batch))), args=args))


# Names and places.


def _flatten(tree: Any) -> dict[str, Any]:
  """The leaves by their path, such as 'params.layers.gate'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _is_param(name: str) -> bool:
  return name.startswith('params.')


def _item(name: str) -> str:
  return 'params' if _is_param(name) else 'state'


def _shard_bytes(x: jax.Array | jax.ShapeDtypeStruct) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _with_sharding(x, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _crc(content: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _absolute(path: Path) -> epath.Path:
  text = os.fspath(path)
  return epath.Path(text if '://' in text else os.path.abspath(text))


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'checkpoints: {name}')
