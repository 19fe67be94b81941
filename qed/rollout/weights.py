"""Versions of the weights on their way from the trainer to samplers.

A version is a folder, named by its number, that any reader of Hugging Face
folders loads: config.json, safetensors, and beside them manifest.json with a
checksum of every tensor. It is written under another name and renamed once all
of it is on the disk, so that a reader finds a whole version or none. A trainer
writes; any number of samplers, on any host that sees the folder, read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qed.models import hf, hf_files, shards, specs

Path = str | os.PathLike[str]

MANIFEST = 'manifest.json'
_PARTIAL = '.partial'  # Where versions come to be, and cease.
_FORMAT = 1
_READ_BYTES = 1 << 24
# What a sampler that was killed left behind protects a version no longer.
_MAX_LOAD_SECS = 3600


class VersionError(ValueError):
  """A version of the weights that is not there, not whole, or not ours."""


def publish(
  folder: Path,
  params: Mapping[str, Any],
  config: specs.Config,
  version: int,
  *,
  max_versions: int,
  dtype=jnp.bfloat16,
) -> pathlib.Path:
  """Writes a version, and deletes old ones.

  The newest `max_versions` stay, and those that are being loaded. A version
  above this one goes: it is of a past that a run forgot when it went on from an
  earlier checkpoint. With several processes all must call; the first one
  writes.

  Args:
    folder: of all versions, `weights/` of a run.
    params: weights as in `specs.declare`, on any mesh.
    config: the model.
    version: the optimizer step that made the weights; replaced if it is there.
    max_versions: at least 1.
    dtype: of the tensors.

  Returns:
    The folder of the version.

  Raises:
    ValueError: `params` are not the weights of `config`, or a number is below
      its minimum.
  """
  if version < 0 or max_versions < 1:
    raise ValueError(
      f'expected version >= 0 and max_versions >= 1, got {version} and '
      f'{max_versions}'
    )
  folder = pathlib.Path(folder).absolute()
  target, partial = folder / str(version), folder / _PARTIAL / str(version)
  is_writer = jax.process_index() == 0
  if is_writer:
    # What a run left behind that was killed.
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
  hf.save(partial, params, config, dtype=dtype)
  if is_writer:
    _write_manifest(partial, config, version)
    _delete(target)
    partial.rename(target)
    _sync(folder)
    now = (target / MANIFEST).stat().st_mtime
    kept = [n for n in versions(folder) if n <= version][-max_versions:]
    for old in set(versions(folder)) - {*kept}:
      if not _is_being_loaded(folder, old, now):
        _delete(folder / str(old))
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'published weights {version}')
  return target


def versions(folder: Path) -> list[int]:
  """The numbers of all whole versions, smallest first."""
  return sorted(
    int(path.parent.name)
    for path in pathlib.Path(folder).glob(f'*/{MANIFEST}')
    if path.parent.name.isdecimal()
  )


def load(
  folder: Path,
  version: int,
  *,
  config: specs.Config,
  mesh: Mesh | None = None,
  dtype=None,
) -> dict[str, Any]:
  """Reads a version, one tensor at a time, after checking every byte of it.

  Args:
    folder: of all versions.
    version: which.
    config: the model that the weights must be of.
    mesh: where they go; None puts them whole on one device.
    dtype: of the weights; None keeps that of the files.

  Raises:
    VersionError: there is no such version, or it is partial, damaged or of
      another model.
  """
  path = pathlib.Path(folder).absolute() / str(version)
  with _being_loaded(path):
    try:
      _verify(path, _read_manifest(path, version, config))
      params, _ = hf.load(path, mesh=mesh, dtype=dtype)
    except (hf_files.FolderError, OSError) as error:
      raise VersionError(f'{path}: {error}') from error
  return params


# Writing.


def _write_manifest(
  path: pathlib.Path, config: specs.Config, version: int
) -> None:
  """Writes the manifest, last of all, and waits for the disk."""
  tensors = _locate(path)
  content = {
    'format': _FORMAT,
    'version': version,
    'config': config.to_hf(),
    'tensors': {name: _entry(tensors[name]) for name in sorted(tensors)},
  }
  (path / MANIFEST).write_text(json.dumps(content, indent=1) + '\n')
  for file in path.iterdir():
    _sync(file)
  _sync(path)


def _sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _delete(path: pathlib.Path) -> None:
  """Removes a version that, for a reader, is gone at once."""
  if path.exists():
    doomed = path.parent / _PARTIAL / f'{path.name}.deleted'
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


# Reading.


@contextlib.contextmanager
def _being_loaded(path: pathlib.Path) -> Iterator[None]:
  """Leaves a mark that keeps a version from being deleted.

  A file, since locks do not reach across hosts on every kind of storage.
  """
  mark = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.loading')
  try:
    mark.touch()
  except OSError:  # A reader without the right to write reads unprotected.
    mark = None
  try:
    yield
  finally:
    if mark:
      mark.unlink(missing_ok=True)


def _is_being_loaded(folder: pathlib.Path, version: int, now: float) -> bool:
  """Whether there is a mark of less than an hour, by the storage's clock."""
  for mark in folder.glob(f'.{version}.*.loading'):
    with contextlib.suppress(FileNotFoundError):  # Just done.
      if now - mark.stat().st_mtime < _MAX_LOAD_SECS:
        return True
  return False


def _read_manifest(
  path: pathlib.Path, version: int, config: specs.Config
) -> dict[str, Any]:
  if not path.is_dir():
    found = versions(path.parent)
    raise VersionError(f'{path}: no such version; there are {found or "none"}')
  try:
    manifest = json.loads((path / MANIFEST).read_bytes())
    found = manifest['format'], manifest['version']
    theirs, _ = manifest['config'], manifest['tensors'].items()
  except FileNotFoundError:
    raise VersionError(
      f'{path}: no {MANIFEST}: a part of a version, or not published by qed'
    ) from None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise VersionError(f'{path / MANIFEST} is damaged: {error!r}') from error
  if found != (_FORMAT, version):
    raise VersionError(
      f'{path}: expected version {version} in format {_FORMAT}, the manifest '
      f'is of version {found[1]!r} in format {found[0]!r}'
    )
  ours = json.loads(json.dumps(config.to_hf()))
  if differing := [
    f'{name} is {theirs.get(name)!r} and not {ours.get(name)!r}'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]:
    raise VersionError(f'{path} is of another model: ' + '; '.join(differing))
  return manifest


def _verify(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """Compares every tensor, and the names of all, with the manifest."""
  tensors, promised = _locate(path), manifest['tensors']
  faults = [
    f'{name} is {"missing" if name in promised else "unexpected"}'
    for name in sorted(promised.keys() ^ tensors.keys())
  ]
  for name in sorted(promised.keys() & tensors.keys()):
    if (entry := _entry(tensors[name])) != promised[name]:
      faults.append(f'{name} should be {promised[name]}, and is {entry}')
  if faults:
    raise VersionError(f'{path} is damaged: ' + '; '.join(faults))


def _locate(path: pathlib.Path) -> dict[str, shards.Tensor]:
  faults: list[str] = []
  tensors, _ = shards.locate(path, faults)
  if faults:
    raise VersionError(f'{path} is damaged: ' + '; '.join(faults))
  return tensors


def _entry(tensor: shards.Tensor) -> dict[str, Any]:
  """What the manifest says of a tensor, from its bytes in the file."""
  digest = hashlib.sha256()
  left = shards.Entry('', tensor.dtype, tensor.shape).nbytes
  with tensor.file.open('rb') as file:
    file.seek(tensor.offset)
    while left and (block := file.read(min(left, _READ_BYTES))):
      digest.update(block)
      left -= len(block)
  return {
    'dtype': tensor.dtype.name,
    'shape': list(tensor.shape),
    'sha256': digest.hexdigest(),
  }
