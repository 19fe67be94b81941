"""Whether other weights can take the place of those that were compiled for."""

from __future__ import annotations

from typing import Any

import jax


def facts(params: Any) -> dict[str, tuple]:
  """What compiled programs depend on, by the path of each leaf."""
  return {
    jax.tree_util.keystr(path): (
      ('shape', tuple(leaf.shape)),
      ('dtype', str(leaf.dtype)),
      ('weak type', getattr(leaf, 'weak_type', False)),
      ('sharding', getattr(leaf, 'sharding', None)),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def check(params: Any, wanted: dict[str, tuple]) -> None:
  """Refuses weights that would need other programs.

  Args:
    params: the new weights.
    wanted: `facts` of those in use.

  Raises:
    ValueError: another tree, shape, dtype or sharding; names the first leaf.
  """
  found = facts(params)
  if missing := sorted(wanted.keys() - found.keys()):
    raise ValueError(f'the new weights have no {missing[0]}')
  if extra := sorted(found.keys() - wanted.keys()):
    raise ValueError(f'the new weights have {extra[0]}, which is not in use')
  for path, values in wanted.items():
    for (name, old), (_, new) in zip(values, found[path], strict=True):
      if old != new:
        raise ValueError(
          f'the new weights have {path} with {name} {new}, expected {old} as '
          'in the weights in use'
        )
