"""A run directory's config.json, and how its files are written.

config.json is written once: the resolved configuration, the commit and the
versions of the packages that the run began with.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

_PACKAGES = ('qed', 'jax', 'jaxlib', 'optax', 'orbax-checkpoint', 'numpy')


class MismatchError(ValueError):
  """A run directory that belongs to another run."""


def start(
  workdir: str | os.PathLike[str],
  config: Mapping[str, Any],
  *,
  may_change: Collection[str],
) -> list[str]:
  """Writes config.json, or compares with that of a run that goes on.

  As long as metrics.jsonl has no line, nothing was trained, and the run may
  begin anew with any config.

  Args:
    workdir: created if need be.
    config: of sections of fields, as json has them.
    may_change: dotted paths, of fields or sections, that may differ from one
      start of a run to the next.

  Returns:
    A line for each thing that differs and may.

  Raises:
    MismatchError: with a line for each field that may not.
  """
  path = pathlib.Path(workdir) / 'config.json'
  record = path.with_name('metrics.jsonl')
  config = json.loads(json.dumps(config))  # Tuples become lists, as there.
  now = {'config': config, 'git_commit': git_commit(), 'packages': _versions()}
  if not (path.exists() and record.exists() and record.stat().st_size):
    _barrier('config.json is not there')
    if jax.process_index() == 0:
      write_json(path, now)
    return []
  before = json.loads(path.read_text(encoding='utf-8'))
  changed, refused = [], []
  old, new = _flatten(before), _flatten(now)
  for name in sorted(old.keys() | new.keys()):
    was, value = old.get(name), new.get(name)
    if was == value:
      continue
    field = name.removeprefix('config.')
    line = f'{field} = {value!r}, and was {was!r}'
    free = name == field or {field, field.partition('.')[0]} & {*may_change}
    (changed if free else refused).append(line)
  if refused:
    raise MismatchError(
      f'{path} is that of another run:\n'
      + '\n'.join(refused)
      + '\nUse the same values to go on with it, or another --workdir.'
    )
  return changed


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a file that appears under its name when it is complete."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  text = json.dumps(content, indent=2, ensure_ascii=False)
  partial.write_text(text + '\n', encoding='utf-8')
  partial.replace(path)


def git_commit() -> str:
  """The commit of this code, with '+' if it was edited since; '' if unknown."""
  folder = pathlib.Path(__file__).parent

  def git(*arguments):
    return subprocess.run(
      ['git', '-C', folder, *arguments],
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  try:
    edited = git('status', '--porcelain', '--untracked-files=no', ':/qed')
    return git('rev-parse', 'HEAD') + ('+' if edited else '')
  except (OSError, subprocess.CalledProcessError):
    return ''  # Installed without its repository.


def _versions() -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **versions}


def _flatten(record: Mapping[str, Any]) -> dict[str, Any]:
  """What is in nested dicts, by its dotted path."""
  leaves = jax.tree_util.tree_leaves_with_path(
    record, is_leaf=lambda x: not isinstance(x, dict)
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


def _barrier(name: str) -> None:
  """So that no process looks for a file after another has written it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'rundir: {name}')
