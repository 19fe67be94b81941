"""Compiles a step for TPUs that are described and not attached.

The compiler is the one that the hardware gets, so that what it says of memory
is exact, refusals included. What it has compiled is kept, since one compilation
takes minutes: jax's own cache cannot read such programs back.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from qed.planning import chips, libtpu

# Keeps matmuls whole. Cut into a slice per shard, so that gathers of weights
# hide behind them, the estimate of a step on 16 to 32 chips is twice as long.
OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
  """Bytes per device, as the compiler assigned them."""

  peak: int
  arguments: int  # The state and the batch.
  temporaries: int  # Summed, not at their peak.
  host: int  # Offloaded.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
  """Why there is no program."""

  text: str  # The compiler's sentence.
  required: int  # Bytes; 0 where it does not say.
  available: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
  """A program, or why there is none."""

  memory: Memory | None
  refusal: Refusal | None
  hlo: str  # Optimised, scheduled and of one device; '' for a refusal.
  secs: float  # That the compilation took when it was made.
  host_bytes: int  # The most that process has held, then.
  versions: Mapping[str, str]
  is_cached: bool


def devices(target: chips.Slice) -> Sequence[jax.Device]:
  """The devices of a slice, for meshes; nothing can run on them.

  Raises:
    ValueError: the compiler knows no such slice.
  """
  options = {}
  if target.generation == 'v4':
    options['chip_config_name'] = 'megacore'  # A chip is one device.
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=target.name, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'{target.name} is no slice: {error}') from error
  return description.devices


def compile_traced(
  traced: jax.stages.Traced,
  mesh: jax.sharding.Mesh,
  target: chips.Slice,
  *,
  cache_dir: pathlib.Path,
  options: Mapping[str, str] = OPTIONS,
) -> Compiled:
  """Compiles a traced step, or finds what was compiled before.

  Args:
    traced: a jitted step over `mesh`, with abstract arguments.
    mesh: made of `devices(target)`.
    target: the slice.
    cache_dir: where results are kept, by the hash of the program and of all
      that decides on its compilation.
    options: flags of the compiler.

  Raises:
    jax.errors.JaxRuntimeError: the compiler failed for another reason than
      memory.
  """
  lowered = traced.lower(lowering_platforms=('tpu',))
  versions = libtpu.versions()
  # The program's text names the axes of the mesh and not its devices.
  places = [device.id for device in mesh.devices.flat]
  key = json.dumps(
    [lowered.as_text(), target.name, places, dict(options), versions]
  )
  digest = hashlib.sha256(key.encode()).hexdigest()[:32]
  path = cache_dir / f'{digest}.json.gz'
  if path.exists():
    return _load(path)
  begin = time.monotonic()
  memory = refusal = None
  hlo = ''
  try:
    program = lowered.compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as error:
    refusal = read_refusal(str(error))
    if refusal is None:
      raise
  else:
    memory = _memory(program.memory_analysis())
    hlo = program.as_text()
  compiled = Compiled(
    memory=memory,
    refusal=refusal,
    hlo=hlo,
    secs=time.monotonic() - begin,
    host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    versions=versions,
    is_cached=False,
  )
  _save(path, compiled)
  return compiled


def read_refusal(text: str) -> Refusal | None:
  """Reads the compiler's complaint about memory; None if it is about another.

  It has two forms: 'the total memory required for HLO temporaries (19.00G)
  exceeds available HBM (15.75G)', before it begins, and 'Ran out of memory in
  memory space hbm. Used 18.05G of 15.75G hbm', after it has tried.
  """
  if 'RESOURCE_EXHAUSTED' not in text and 'Ran out of memory' not in text:
    return None
  size = r'([\d.]+)([KMGT]?)i?B?'
  for pattern in (
    rf'required[^(]*\({size}\) exceeds available[^(]*\({size}\)',
    rf'Used {size} of {size}',
  ):
    match = re.search(pattern, text)
    if match:
      required, available = (
        int(float(number) * _UNITS[unit])
        for number, unit in (match.groups()[:2], match.groups()[2:])
      )
      break
  else:
    required = available = 0
  sentence = next(line for line in text.splitlines() if line.strip())
  return Refusal(text=sentence, required=required, available=available)


def _memory(analysis: Any) -> Memory:
  return Memory(
    peak=analysis.peak_memory_in_bytes,
    arguments=analysis.argument_size_in_bytes,
    temporaries=analysis.temp_size_in_bytes,
    host=analysis.host_temp_size_in_bytes,
  )


def _save(path: pathlib.Path, compiled: Compiled) -> None:
  """Writes a result whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  with gzip.open(partial, 'wt', encoding='utf-8') as file:
    json.dump(dataclasses.asdict(compiled), file)
  partial.replace(path)


def _load(path: pathlib.Path) -> Compiled:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    values = json.load(file)
  memory, refusal = values['memory'], values['refusal']
  return Compiled(
    **values
    | {
      'memory': memory and Memory(**memory),
      'refusal': refusal and Refusal(**refusal),
      'is_cached': True,
    }
  )
