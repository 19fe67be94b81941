"""Where every array lives: one table from logical axes to mesh axes.

The mesh has three axes. `data`: rows of the batch. `context`: the positions of
a row. `tensor`: heads, mlp width and vocabulary. Weights are stored fully
sharded (FSDP) over `data` and `context` together, and are gathered one layer at
a time where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qed.models import specs

AXES = ('data', 'context', 'tensor')

# Logical axis -> mesh axes it is split over. 'embed' is the width of a weight
# at rest; activations and weights in use have the whole width everywhere.
RULES: dict[str | None, tuple[str, ...]] = {
  'batch': ('data',),
  'time': ('context',),
  'embed': ('data', 'context'),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'layers': (),
  None: (),
}


def make_mesh(
  data: int = -1,
  context: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh of `data` x `context` x `tensor` devices.

  Args:
    data: size of the axis; at most one of the three may be -1, which takes
      the devices that are left.
    context: likewise.
    tensor: likewise.
    devices: the devices to use, all by default. A mesh may use only the first
      few; with more than one process it must use all.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [data, context, tensor]
  wish = ' x '.join(
    f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True)
  )
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(
      f'mesh {wish}: sizes must be positive, and at most one may be -1 '
      '(the devices that are left)'
    )
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  count = math.prod(sizes)
  if -1 in sizes or count > len(devices):
    raise ValueError(
      f'mesh {wish} does not fit {len(devices)} devices: the product of the '
      'sizes must divide or equal that number'
    )
  if count < len(devices):
    grid = np.array(devices[:count]).reshape(sizes)
  else:
    grid = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def platform(mesh: Mesh | None) -> str:
  """The platform a program is compiled for: 'cpu', 'gpu' or 'tpu'.

  Taken from the mesh, not from jax.devices(): a program may be compiled for
  hardware that is not attached to this host.
  """
  if mesh is None:
    return jax.default_backend()
  return mesh.devices.flat[0].platform


def partition(axes: Sequence[str | None]) -> PartitionSpec:
  """The PartitionSpec of an array whose dimensions have these logical axes."""
  return PartitionSpec(
    *(
      names[0] if len(names) == 1 else names or None
      for names in (RULES[axis] for axis in axes)
    )
  )


def constrain(
  x: jax.Array, axes: Sequence[str | None], mesh: Mesh | None
) -> jax.Array:
  """Lays `x` out by its logical axes inside a jitted function."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, partition(axes))
  )


def param_shardings(config: specs.Config, mesh: Mesh) -> dict[str, Any]:
  """The tree of NamedShardings of the weights at rest.

  Raises:
    ValueError: a dimension is not divisible by the mesh axes that split it;
      every such dimension is named.
  """
  faults = []

  def place(path, spec: specs.ParamSpec) -> NamedSharding:
    for size, axis in zip(spec.shape, spec.axes, strict=True):
      ways = math.prod(mesh.shape[name] for name in RULES[axis])
      if size % ways:
        faults.append(
          f'{jax.tree_util.keystr(path, simple=True, separator=".")}: '
          f'{axis}={size} over {"x".join(RULES[axis])}={ways}'
        )
    return NamedSharding(mesh, partition(spec.axes))

  tree = jax.tree_util.tree_map_with_path(
    place, specs.declare(config), is_leaf=specs.is_spec
  )
  if faults:
    raise ValueError(
      f'mesh {dict(mesh.shape)} cannot hold this model, sizes do not divide: '
      + '; '.join(faults)
    )
  return tree
