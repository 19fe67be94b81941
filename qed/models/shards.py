"""The safetensors format: finding, checking, mapping and writing tensors.

A file is 8 bytes with the length of a json header, the header, and the tensors
back to back. A folder has one file, or several with an index that says which
tensor is in which. Nothing here holds more than a few rows of a tensor.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# The types that weights may have, as the format names them.
DTYPES = {
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype(np.float16),
  'F32': np.dtype(np.float32),
}
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_UNKNOWN = np.dtype(np.void)
_MAPPED_BYTES = 1 << 25  # Mapped pages count as resident memory until unmapped.


class Tensor(NamedTuple):
  """Where a tensor lies."""

  file: pathlib.Path
  offset: int  # Bytes from the beginning of the file.
  dtype: np.dtype
  shape: tuple[int, ...]


class Entry(NamedTuple):
  """A tensor to be written."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Its size in the file."""
    return math.prod(self.shape) * self.dtype.itemsize


def locate(
  folder: pathlib.Path, faults: list[str]
) -> tuple[dict[str, Tensor], set[str]]:
  """Reads the headers of all files of a folder, and no tensor.

  Args:
    folder: with model.safetensors, or with shards and an index.
    faults: everything that is wrong with the files is added here, a phrase
      each; among it, every tensor that the index promises in vain.

  Returns:
    Where the tensors are, by name, and every name that a header or the index
    mentions.
  """
  if not (folder / INDEX).exists():
    if (folder / SINGLE).exists():
      tensors = _read_header(folder / SINGLE, faults)
      return tensors, set(tensors)
    found = ', '.join(
      sorted(path.name for path in folder.glob('*.safetensors'))
    )
    faults.append(
      f'expected {SINGLE}, or shards with {INDEX}; found '
      + (f'{found} without an index' if found else 'neither')
    )
    return {}, set()
  try:
    shard_of = dict(json.loads((folder / INDEX).read_bytes())['weight_map'])
  except (ValueError, KeyError, TypeError) as error:
    faults.append(f'{INDEX} has no readable weight_map: {error!r}')
    return {}, set()
  tensors, names = {}, set(shard_of)
  for shard in sorted(set(shard_of.values())):
    if pathlib.PurePath(shard).name != shard or not (folder / shard).is_file():
      faults.append(f'{INDEX} names {shard}, which is not in the folder')
      continue
    num_faults = len(faults)
    inside = _read_header(folder / shard, faults)
    named = {name for name, file in shard_of.items() if file == shard}
    # An unreadable header is one fault, not one for each of its tensors.
    if inside or len(faults) == num_faults:
      faults += [
        f'{INDEX} puts {name} in {shard}, which has no such tensor'
        for name in sorted(named - set(inside))
      ]
    faults += [
      f'{shard} holds {name}, which {INDEX} '
      + (f'puts in {shard_of[name]}' if name in shard_of else 'does not name')
      for name in sorted(set(inside) - named)
    ]
    tensors |= {name: inside[name] for name in inside if name in named}
    names |= set(inside)
  return tensors, names


def _read_header(file: pathlib.Path, faults: list[str]) -> dict[str, Tensor]:
  size = file.stat().st_size
  with file.open('rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    if size < 8 or length > size - 8:
      faults.append(
        f'{file.name} is truncated, or no safetensors file: it has {size} bytes'
        f' and promises a header of {length}'
      )
      return {}
    try:
      header = json.loads(f.read(length))
      header.pop('__metadata__', None)
      spans = sorted(
        (*map(int, entry['data_offsets']), name, entry['dtype'], entry['shape'])
        for name, entry in header.items()
      )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      faults.append(f'{file.name} has no readable header: {error!r}')
      return {}
  tensors, data, end = {}, 8 + length, 0
  for begin, stop, name, code, shape in spans:
    dtype = DTYPES.get(code, _UNKNOWN)
    tensors[name] = Tensor(file, data + begin, dtype, tuple(shape))
    if dtype == _UNKNOWN:
      faults.append(
        f'{file.name}: {name} has type {code} (supported: {", ".join(DTYPES)})'
      )
    elif begin != end or stop - begin != Entry(name, dtype, shape).nbytes:
      faults.append(
        f'{file.name}: {name}, {shape} of {code}, cannot be bytes {begin} to '
        f'{stop} where the tensor before it ends at {end}'
      )
    end = stop
  if end != size - data:
    faults.append(
      f'{file.name} is {"truncated" if end > size - data else "too long"}: its '
      f'header promises {end} bytes of tensors, it has {size - data}'
    )
  return tensors


def read_slice(
  tensor: Tensor,
  shape: tuple[int, ...],
  index: tuple[slice, ...],
  dtype: np.dtype,
) -> np.ndarray:
  """Copies `tensor.reshape(shape)[index]`, converted to `dtype`.

  Only the pages that the slice touches are read.
  """
  bounds = [s.indices(size)[:2] for s, size in zip(index, shape, strict=True)]
  out = np.empty([stop - start for start, stop in bounds], dtype)
  begin, end = bounds[0]
  for start, stop in _row_blocks(tensor, shape, begin, end):
    block = _map_rows(tensor, shape, start, stop)
    out[start - begin : stop - begin] = block[:, *index[1:]]
  return out


def is_equal(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have the same type, shape and bytes."""
  if (a.dtype, a.shape) != (b.dtype, b.shape):
    return False
  return all(
    np.array_equal(
      _map_rows(a, a.shape, start, stop).view(np.uint8),
      _map_rows(b, b.shape, start, stop).view(np.uint8),
    )
    for start, stop in _row_blocks(a, a.shape, 0, a.shape[0])
  )


def _row_bytes(tensor: Tensor, shape: tuple[int, ...]) -> int:
  return tensor.dtype.itemsize * math.prod(shape[1:])


def _row_blocks(
  tensor: Tensor, shape: tuple[int, ...], begin: int, end: int
) -> Iterable[tuple[int, int]]:
  rows = max(1, _MAPPED_BYTES // _row_bytes(tensor, shape))
  return ((i, min(i + rows, end)) for i in range(begin, end, rows))


def _map_rows(
  tensor: Tensor, shape: tuple[int, ...], start: int, stop: int
) -> np.ndarray:
  """Maps some rows of a tensor; they are unmapped with the array."""
  return np.memmap(
    tensor.file,
    tensor.dtype,
    mode='r',
    offset=tensor.offset + start * _row_bytes(tensor, shape),
    shape=(stop - start, *shape[1:]),
  )


def split(entries: Iterable[Entry], max_bytes: int) -> dict[str, list[Entry]]:
  """Assigns tensors to files, in order; every file has one, however large.

  Returns:
    The tensors of each file, by the name of the file.
  """
  shards, used = [], 0
  for entry in entries:
    if not shards or used + entry.nbytes > max_bytes:
      shards.append([])
      used = 0
    shards[-1].append(entry)
    used += entry.nbytes
  # The widest types first keep every tensor aligned.
  shards = [
    sorted(shard, key=lambda entry: -entry.dtype.itemsize) for shard in shards
  ]
  if len(shards) == 1:
    return {SINGLE: shards[0]}
  return {
    f'model-{i:05d}-of-{len(shards):05d}.safetensors': shard
    for i, shard in enumerate(shards, 1)
  }


def write(
  file: pathlib.Path, entries: Sequence[Entry], tensors: Iterable[np.ndarray]
) -> None:
  """Streams tensors into a file, one at a time.

  Args:
    file: to be made.
    entries: what `tensors` yields, in the same order.
    tensors: their values, or the bits of these as integers.
  """
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for entry in entries:
    begin, end = end, end + entry.nbytes
    header[entry.name] = {
      'dtype': _CODES[entry.dtype],
      'shape': list(entry.shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with file.open('wb') as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for tensor in tensors:
      f.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
      del tensor  # Or it would stay until the next one is complete.
    # Renaming a folder must not outrun its content.
    f.flush()
    os.fsync(f.fileno())


def write_index(
  folder: pathlib.Path, shards: Mapping[str, Sequence[Entry]]
) -> None:
  """Writes the index of the files that `split` planned."""
  total = sum(entry.nbytes for shard in shards.values() for entry in shard)
  weight_map = {
    entry.name: name for name, shard in shards.items() for entry in shard
  }
  content = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / INDEX).write_text(json.dumps(content, indent=2) + '\n')
