"""Which meshes, remat policies and microbatches are worth a compilation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

# From the least to the most that the backward pass has to do again, so that the
# first that fits is the best.
REMAT = ('none', 'attention', 'offload', 'full')
# A kernel's blocks are a multiple of the lanes of a vector register.
_LANES = 128


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
  """How a step is laid out over the devices and in time."""

  data: int
  context: int
  tensor: int
  remat: str
  num_rows: int  # Of a microbatch, over the whole mesh.
  row_length: int
  num_microbatches: int

  @property
  def mesh(self) -> tuple[int, int, int]:
    """The sizes of its axes."""
    return self.data, self.context, self.tensor

  @property
  def num_tokens(self) -> int:
    """Of a step."""
    return self.num_microbatches * self.num_rows * self.row_length

  def __str__(self) -> str:
    mesh = 'x'.join(map(str, self.mesh))
    rows = f'{self.num_microbatches} x {self.num_rows} x {self.row_length:,}'
    return f'mesh {mesh}, remat {self.remat}, {rows} tokens'


class Attempt(Protocol):
  """What became of a layout."""

  @property
  def fits(self) -> bool:
    """Whether the compiler took it."""
    ...


_Attempt = TypeVar('_Attempt', bound=Attempt)


def candidates(
  start: Layout, *, num_devices: int, num_heads: int
) -> Iterator[list[Layout]]:
  """Layouts of the same rows: for each mesh, from few rows to many.

  `tensor` stays as it is. `context` takes powers of two that divide the heads
  of a `tensor` shard, and `data` what is left; a microbatch has one, two or
  four rows for each of `data`, and is repeated until all rows are done. A mesh
  with more places for rows than there are rows is left out.

  Args:
    start: whose rows, remat policy and `tensor` axis are the starting point.
    num_devices: to be used, all of them.
    num_heads: query heads of the model.
  """
  num_rows = start.num_rows * start.num_microbatches
  for power in range(num_devices.bit_length()):
    context = 2**power
    data, rest = divmod(num_devices, context * start.tensor)
    if (
      rest
      or data > num_rows
      or num_heads % (start.tensor * context)
      or start.row_length % (context * _LANES)
    ):
      continue
    yield [
      dataclasses.replace(
        start,
        data=data,
        context=context,
        num_rows=data * rows,
        num_microbatches=math.ceil(num_rows / (data * rows)),
      )
      for rows in (1, 2, 4)
      if data * rows <= num_rows
    ]


def search(
  meshes: Iterator[list[Layout]], attempt: Callable[[Layout], _Attempt]
) -> list[_Attempt]:
  """Tries the layouts that could be the best of their mesh.

  A policy that recomputes less is faster, and more rows need more memory: each
  mesh goes through the policies until one fits, and on to more rows with that
  policy and those after it, until nothing fits.

  Args:
    meshes: of `candidates`.
    attempt: compiles a layout.

  Returns:
    What became of each that was tried, in that order.
  """
  tried = []
  for layouts in meshes:
    policies = REMAT
    for layout in layouts:
      for index, remat in enumerate(policies):
        tried.append(attempt(dataclasses.replace(layout, remat=remat)))
        if tried[-1].fits:
          policies = policies[index:]
          break
      else:
        break
  return tried
