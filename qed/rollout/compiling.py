"""The programs of an engine, compiled at their first use."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from qed.rollout import paged_cache
from qed.rollout.decoding import DecodeState, Programs
from qed.rollout.layout import prefill_sizes

# The argument that a program may write its result over.
_DONATED = {'prefill': 1, 'insert': 0, 'generate': 1}


class Compiler:
  """Compiles each program once for each size, until it is told to stop."""

  def __init__(self, device: Programs):
    """Compiles nothing yet.

    Args:
      device: whose methods are the programs.
    """
    self._device = device
    self._compiled: dict[tuple, jax.stages.Compiled] = {}
    self._is_closed = False

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far."""
    return len(self._compiled)

  def close(self) -> None:
    """From now on what is not compiled yet is refused."""
    self._is_closed = True

  def run(self, name: str, size: tuple[int, ...], *args: Any) -> Any:
    """Runs a program.

    Args:
      name: of a method of `Programs`.
      size: what tells apart the shapes that it is compiled for; for a program
        without arrays, its arguments.
      *args: its arrays; see `_DONATED`.

    Raises:
      ValueError: there is no such program, and it is too late to compile it.
      TypeError: weights of another dtype than it was compiled for.
    """
    key = name, *size
    if key not in self._compiled:
      if self._is_closed:
        raise ValueError(
          f'the engine was warmed up and has no program {name} for size '
          f'{size}; it has {sorted(map(str, self._compiled))}'
        )
      jitted = self._jit(name, *(() if args else size))
      self._compiled[key] = jitted.lower(*args).compile()
    return self._compiled[key](*args)

  def trace(self, params: Any) -> dict[str, jax.stages.Traced]:
    """The two programs that do the work, at their largest; see `Engine`."""
    layout = self._device.layout
    piece, size = prefill_sizes(layout)[-1]
    prefix = self._abstract('empty', size)
    state = self._abstract('init_state')

    def array(shape, dtype, *axes):
      place = self._sharding(PartitionSpec(*axes))
      return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    tables = array((layout.num_slots, layout.max_pages), jnp.int32, 'data')
    killed = array((layout.num_slots,), bool, 'data')
    tokens, span = array((1, piece), jnp.int32), array((2,), jnp.int32)
    return {
      'prefill': self._jit('prefill').trace(params, prefix, tokens, span),
      'generate': self._jit('generate').trace(params, state, tables, killed),
    }

  def _jit(self, name: str, *static: int):
    return jax.jit(
      functools.partial(getattr(self._device, name), *static),
      donate_argnums=_DONATED.get(name, ()),
      out_shardings=self._out_shardings(name),
    )

  def _abstract(self, name: str, *static: int) -> Any:
    """What a program gives, as shapes with shardings."""
    shapes = jax.eval_shape(
      functools.partial(getattr(self._device, name), *static)
    )
    return jax.tree.map(
      lambda place, x: jax.tree.map(
        lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=place), x
      ),
      self._out_shardings(name),
      shapes,
      is_leaf=lambda x: x is None or isinstance(x, NamedSharding),
    )

  def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
    mesh = self._device.mesh
    return None if mesh is None else NamedSharding(mesh, spec)

  def _out_shardings(self, name: str) -> Any:
    if self._device.mesh is None:
      return None
    pool = self._sharding(self._device.pages.POOL)
    prefix = self._sharding(paged_cache.PREFIX)
    slots = self._sharding(PartitionSpec('data'))
    state = DecodeState(pool, slots)
    return {
      'init_state': state,
      'insert': state,
      'generate': (state, slots),
      'empty': prefix,
      'prefill': prefix,
    }[name]
