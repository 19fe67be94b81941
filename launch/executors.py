"""Which executors there are, and their options as flags."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from typing import Any

from absl import app, flags

from launch.experiment import Executor

EXECUTORS = {
  'local': 'launch.local_processes:LocalProcesses',
  'jobset': 'launch.jobset:JobSet',
  'queued_resource': 'launch.queued_resource:QueuedResource',
  'xm': 'launch.xmanager_local:XManager',
}
_DEFINE = {
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  bool: flags.DEFINE_boolean,
  tuple[str, ...]: flags.DEFINE_list,
}


def kind_of(name: str) -> type:
  """The dataclass of an executor; its module is imported now."""
  module, attribute = EXECUTORS[name].split(':')
  return getattr(importlib.import_module(module), attribute)


def define_flags(name: str, values: flags.FlagValues) -> None:
  """Adds a flag --NAME.FIELD for each option of an executor."""
  kind = kind_of(name)
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    about, default = _described(kind, field.name), _default(field)
    if default is dataclasses.MISSING:
      default, about = None, f'{about} It must be given.'
    _DEFINE[hints[field.name]](
      f'{name}.{field.name}', default, about, flag_values=values
    )


def make(name: str, values: flags.FlagValues) -> Executor:
  """The executor that the flags of `define_flags` describe.

  Raises:
    UsageError: an option that must be given is missing, or cannot be.
  """
  kind = kind_of(name)
  given: dict[str, Any] = {}
  missing = []
  for field in dataclasses.fields(kind):
    value = values[f'{name}.{field.name}'].value
    if value is None:
      about = _described(kind, field.name).rstrip('.')
      missing.append(f'--{name}.{field.name} is missing: {about}')
    given[field.name] = tuple(value) if isinstance(value, list) else value
  if missing:
    raise app.UsageError('; '.join(missing))
  try:
    return kind(**given)
  except ValueError as error:
    raise app.UsageError(str(error)) from error


def _described(kind: type, field: str) -> str:
  """What the docstring of an executor says about one of its attributes."""
  text = inspect.getdoc(kind) or ''
  found = re.search(rf'^  {field}: (.*(?:\n    .*)*)', text, re.MULTILINE)
  return ' '.join(found[1].split()) if found else ''


def _default(field: dataclasses.Field) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default
