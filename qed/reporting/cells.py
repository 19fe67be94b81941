"""What stands in tables: settings by their dotted path, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The leaves of nested mappings, by dotted path."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def figure(value: float) -> str:
  """Four digits, as a person would write them; '-' for no number."""
  if not math.isfinite(value):
    return '-'
  if value == int(value) and abs(value) < 1e9:
    return f'{int(value):,}'
  return f'{value:.4g}'
