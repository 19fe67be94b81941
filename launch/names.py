"""What a work unit is called: readable, and different for different runs."""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_CHARS = 100
_DIGEST_CHARS = 8
_BASELINE = 'baseline'  # The arm of a config without one.


def digest(resolved: Mapping[str, Any]) -> str:
  """Of a resolved config, in hex; it does not depend on the order."""
  text = json.dumps(resolved, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]


def changes(
  plain: Mapping[str, Any], resolved: Mapping[str, Any], paths: Iterable[str]
) -> dict[str, Any]:
  """The fields that were overridden with another value than they had.

  To say what an arm says already makes no difference, and no other name.

  Args:
    plain: the config without overrides.
    resolved: the config with them.
    paths: what was overridden.
  """
  return {
    path: _value_at(resolved, path)
    for path in sorted(paths)
    if _value_at(resolved, path) != _value_at(plain, path)
  }


def compose(
  experiment: str, arm: str, changes: Mapping[str, Any], digest: str
) -> str:
  """Experiment, arm and changes for a person, and the digest.

  Returns:
    At most 100 of a-z, 0-9, dots, dashes and underscores.
  """
  leaves = collections.Counter(path.rpartition('.')[2] for path in changes)
  parts = [experiment, *([arm] if arm not in ('', _BASELINE) else [])]
  for path, value in changes.items():
    leaf = path.rpartition('.')[2]
    parts += [path if leaves[leaf] > 1 else leaf, _readable(value)]
  text = re.sub('[^a-z0-9._]+', '-', '-'.join(parts).lower())
  room = _MAX_CHARS - len(digest) - 1
  return f'{text[:room].strip("-.")}-{digest}'


def _value_at(tree: Mapping[str, Any], path: str) -> Any:
  for name in path.split('.'):
    tree = tree[name]
  return tree


def _readable(value: Any) -> str:
  if isinstance(value, str):
    return value.rstrip('/').rpartition('/')[2]
  if isinstance(value, tuple):
    return '.'.join(map(_readable, value))
  return str(value)
