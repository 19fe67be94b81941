"""Slices of TPUs: what each is called where, and which one a job takes.

A slice is named as `qed plan` names it, GENERATION:AxB[xC]. The table below is
of layouts that `qed plan` has compiled for Qwen3-4B; nothing has run on a TPU.
For another model or slice ask it first:

  qed plan --config=experiments/sft_main.py --topology=v6e:8x8 --search
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from launch.experiment import Tpu
from qed.planning import chips

# The node label cloud.google.com/gke-tpu-accelerator.
GKE_ACCELERATORS = {
  'v4': 'tpu-v4-podslice',
  'v5e': 'tpu-v5-lite-podslice',
  'v5p': 'tpu-v5p-slice',
  'v6e': 'tpu-v6e-slice',
  'tpu7x': 'tpu7x',
}
# Accelerator type up to its number, whether that counts cores, of which a chip
# has two, and the software of the machine. The Cloud TPU API ends with v6e.
PRODUCTS = {
  'v4': ('v4', True, 'tpu-ubuntu2204-base'),
  'v5e': ('v5litepod', False, 'v2-alpha-tpuv5-lite'),
  'v5p': ('v5p', True, 'v2-alpha-tpuv5'),
  'v6e': ('v6e', False, 'v2-alpha-tpuv6e'),
}
_CHIPS_PER_HOST = 4
_SINGLE_HOST_CHIPS = 8  # Of v5e and v6e, as 2x4.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
  """Where a job of some size goes.

  Attributes:
    tpu: the slice.
    overrides: config values that lay the model out on it, dotted path -> value.
    plan: what `qed plan` said of it.
  """

  tpu: Tpu
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  plan: str


# Role -> the slices it may take, the first one if nobody says which. Peaks are
# the compiler's, in GiB a chip, at rows of 49,152 tokens.
QWEN3_4B = {
  'sft': (
    Placement(tpu=Tpu('v5p', '2x4x4'), plan='peak 31.9 of 95.7'),
    Placement(
      tpu=Tpu('v6e', '8x8'),
      overrides={'mesh.context': 2},
      plan='peak 16.8 of 31.2',
    ),
    Placement(
      tpu=Tpu('v5e', '8x8'),
      overrides={
        'mesh.context': 4,
        'packing.num_rows': 16,
        'packing.microbatch_counts': (1, 2),
      },
      plan='peak 8.9 of 15.8',
    ),
  ),
  'grpo': (
    Placement(tpu=Tpu('v5p', '2x4x4'), plan='peak 33.3 of 95.7'),
    Placement(
      tpu=Tpu('v6e', '8x8'),
      overrides={'mesh.context': 2},
      plan='peak 17.2 of 31.2',
    ),
  ),
  'sampler': (
    Placement(tpu=Tpu('v6e', '2x4'), plan='11,386 pages of 128 tokens'),
    Placement(tpu=Tpu('v5p', '2x2x1'), plan='17,912 pages of 128 tokens'),
  ),
}
TABLE = {'qwen3-4b': QWEN3_4B, 'qwen3-4b-2507': QWEN3_4B}


def placement(model: str, role: str, generation: str = '') -> Placement:
  """The planned place of a job.

  Args:
    model: a name of model.variant.
    role: 'sft', 'grpo' (the trainer) or 'sampler'.
    generation: of TPU; '': the first that was planned.

  Raises:
    ValueError: nobody has planned that; with what has been.
  """
  rows = TABLE.get(model, {}).get(role, ())
  for row in rows:
    if generation in ('', row.tpu.generation):
      return row
  known = [
    f'{name} {role} on {name_of(row.tpu)}'
    for name, roles in TABLE.items()
    for role, rows in roles.items()
    for row in rows
  ]
  wanted = f'{model} {role}' + (f' on {generation}' if generation else '')
  raise ValueError(
    f'no slice is planned for {wanted}; there are: {"; ".join(known)}. Look '
    'for one with `qed plan --search` and name it'
  )


def name_of(tpu: Tpu) -> str:
  """As `qed plan --topology` takes it."""
  return f'{tpu.generation}:{tpu.topology}'


def parse(text: str) -> Tpu:
  """Reads GENERATION:AxB[xC].

  Raises:
    ValueError: with what was probably meant.
  """
  found = chips.parse_slice(text)
  return Tpu(found.generation, 'x'.join(map(str, found.shape)))


def hosts(tpu: Tpu) -> tuple[int, int]:
  """How many hosts a slice has, and how many chips each of them.

  Raises:
    ValueError: there is no such slice.
  """
  found = chips.parse_slice(name_of(tpu))
  count = math.prod(found.shape)
  is_flat = found.chip.num_dimensions == 2
  if is_flat and found.shape in ((1, 1), (2, 2), (2, 4)):
    return 1, count
  if count % _CHIPS_PER_HOST or any(n % 2 for n in found.shape[:2]):
    raise ValueError(
      f'{found.name}: {count} chips; expected 2x2 on each host'
      + (' (or 1x1, or 2x4, on one)' if is_flat else '')
    )
  return count // _CHIPS_PER_HOST, _CHIPS_PER_HOST


def accelerator_type(tpu: Tpu) -> str:
  """What the Cloud TPU API calls a slice, such as v5p-64 for v5p:2x4x4.

  Raises:
    ValueError: it has no name for this one.
  """
  found = chips.parse_slice(name_of(tpu))
  if found.generation not in PRODUCTS:
    raise ValueError(
      f'{found.name}: the Cloud TPU API has {", ".join(PRODUCTS)}; later ones '
      'are to be had through GKE'
    )
  prefix, counts_cores, _ = PRODUCTS[found.generation]
  count = math.prod(found.shape)
  name = f'{prefix}-{2 * count if counts_cores else count}'
  sizes = found.shape
  is_cubic = [*sizes] == sorted(sizes) and sizes[-1] <= 2 * sizes[0]
  if sizes == (2, 2, 1) or (is_cubic and not any(n & (n - 1) for n in sizes)):
    return name
  raise ValueError(
    f'{found.name}: the Cloud TPU API knows a slice by the number of its chips '
    f'alone, and {name} is not, or not of this shape; GKE takes any shape'
  )
