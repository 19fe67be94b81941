"""TPU generations: their constants, and how a slice of them is named.

Nothing here imports jax, so that a misspelt slice is told at once.
"""

from __future__ import annotations

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
  """What jax calls a device: a chip, or one of the two halves of a TPU7x."""

  peak_flops: float  # Dense bfloat16 multiplications and additions per second.
  hbm_bytes_per_sec: float
  # Through the two links of one torus axis, which a ring of chips uses.
  ici_bytes_per_sec: float
  # What the compiler lets a program have, taken from its refusals.
  hbm_bytes: int
  clock_hz: float  # Of the compiler's cycle estimates.
  # Of the peak, for attention with heads of 128: an assumption. A matrix unit
  # 256 wide is half empty with such heads.
  attention_efficiency: float
  num_dimensions: int  # Of the torus.
  devices_per_chip: int = 1


# Peaks and bandwidths: cloud.google.com/tpu/docs, the page of each generation.
# A link: the bidirectional bandwidth of a chip / ports / 2 directions, less
# 10 % of protocol. The clock: peak / (matrix units x their size² x 2).
CHIPS = {
  'v4': Chip(
    peak_flops=275e12,
    hbm_bytes_per_sec=1_228e9,
    ici_bytes_per_sec=2 * 45e9,
    hbm_bytes=int(30.75 * GIB),
    clock_hz=1.05e9,
    attention_efficiency=0.6,
    num_dimensions=3,
  ),
  'v5e': Chip(
    peak_flops=197e12,
    hbm_bytes_per_sec=819e9,
    ici_bytes_per_sec=2 * 45e9,
    hbm_bytes=int(15.75 * GIB),
    clock_hz=1.5e9,
    attention_efficiency=0.6,
    num_dimensions=2,
  ),
  'v5p': Chip(
    peak_flops=459e12,
    hbm_bytes_per_sec=2_765e9,
    ici_bytes_per_sec=2 * 90e9,
    hbm_bytes=int(95.74 * GIB),
    clock_hz=1.75e9,
    attention_efficiency=0.6,
    num_dimensions=3,
  ),
  'v6e': Chip(
    peak_flops=918e12,
    hbm_bytes_per_sec=1_638e9,
    ici_bytes_per_sec=2 * 90e9,
    hbm_bytes=int(31.25 * GIB),
    clock_hz=1.75e9,
    attention_efficiency=0.4,
    num_dimensions=2,
  ),
  'tpu7x': Chip(
    peak_flops=2_307e12 / 2,
    hbm_bytes_per_sec=7_380e9 / 2,
    ici_bytes_per_sec=90e9,  # Two links of a chip, for its two halves.
    hbm_bytes=int(94.75 * GIB),
    clock_hz=2.2e9,
    attention_efficiency=0.4,
    num_dimensions=3,
    devices_per_chip=2,
  ),
}
# Products whose number counts cores, of which a chip has two.
_CORES = ('v4', 'v5p', 'tpu7x')
_ALIASES = {'v5litepod': 'v5e', 'v7x': 'tpu7x', 'v5lite': 'v5e'}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
  """A box of chips that share a fast network, such as v5p:2x4x4."""

  generation: str  # A key of CHIPS.
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """Such as v5p:2x4x4."""
    return f'{self.generation}:{"x".join(map(str, self.shape))}'

  @property
  def chip(self) -> Chip:
    """What its devices are."""
    return CHIPS[self.generation]

  @property
  def num_devices(self) -> int:
    """Devices in jax's sense."""
    return math.prod(self.shape) * self.chip.devices_per_chip


def parse_slice(text: str) -> Slice:
  """Reads GENERATION:AxB or, for a 3-D torus, GENERATION:AxBxC.

  Raises:
    ValueError: with what was probably meant. The name of a product, such as
      v6e-256, does not say how its chips are arranged.
  """
  match = re.fullmatch(r'([a-z0-9]+)[:-]([0-9x]+)', text.strip().lower())
  generation = match and _ALIASES.get(match[1], match[1])
  if not match or generation not in CHIPS:
    raise ValueError(
      f'{text!r}: expected a slice such as v5e:4x4 or v5p:2x4x4, of one of '
      f'{", ".join(CHIPS)}'
    )
  sizes = match[2].split('x')
  rank = CHIPS[generation].num_dimensions
  if len(sizes) == rank and all(sizes) and '0' not in sizes:
    return Slice(generation=generation, shape=tuple(map(int, sizes)))
  if len(sizes) == 1 and sizes[0]:
    num_chips = int(sizes[0]) // (2 if generation in _CORES else 1)
    if shape := _balanced(num_chips, rank):
      meant = Slice(generation=generation, shape=shape).name
      count = f'{num_chips} chips'
      if generation in _CORES:
        count += f', since {text} counts cores'
      raise ValueError(
        f'{text!r} is the name of a product; give the shape, such as {meant} '
        f'({count})'
      )
  shape = 'AxBxC' if rank == 3 else 'AxB'
  raise ValueError(
    f'{text!r}: chips of {generation} form a {rank}-D torus; expected '
    f'{generation}:{shape}'
  )


def _balanced(count: int, rank: int) -> tuple[int, ...]:
  """The most cubic shape of `count` chips in powers of two, or ()."""
  if count < 1 or count & (count - 1):
    return ()
  powers = [0] * rank
  for index in range(count.bit_length() - 1):
    powers[index % rank] += 1
  sizes = sorted(2**power for power in powers)
  # One host is 2 x 2 chips, so that a 3-D slice of four is flat the other way.
  return (*sizes[1:], 1) if rank == 3 and sizes[0] == 1 else tuple(sizes)
