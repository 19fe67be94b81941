"""A dataclass as the schema of a dictionary: checks, building, suggestions.

The annotation of a field is all there is to say about it: its type, a Literal
of choices, or a type with bounds, `Annotated[int, Rule(...)]`. What combines
several fields is written out in `__post_init__`, with `require`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

_Record = TypeVar('_Record')
_SPOKEN = {
  int: 'an integer',
  float: 'a number',
  str: 'a text',
  bool: 'True or False',
}


class ConfigError(ValueError):
  """Values that no run can have; `problems` holds a line for each."""

  def __init__(self, problems: Iterable[str]):
    self.problems = tuple(problems)
    super().__init__('\n'.join(self.problems))


class Rule(NamedTuple):
  """A bound on one field, in an annotation: what holds, and how to say it."""

  holds: Callable[[Any], bool]
  text: str  # Follows "must be".


def build(kind: type[_Record], values: Mapping[str, Any]) -> _Record:
  """An instance of the dataclass `kind` and of those inside it.

  Args:
    kind: a dataclass that calls `check_fields` in its `__post_init__`.
    values: its keyword arguments; a mapping for every field that is a
      dataclass itself.

  Raises:
    ConfigError: everything that is wrong, each problem with its dotted path. A
      combination of fields is looked at once these are right by themselves.
  """
  problems: list[str] = []
  record = _build(kind, values, '', problems, paths(kind))
  if record is None or problems:
    raise ConfigError(problems)
  return record


def _build(kind, values, prefix, problems, known):
  """A `kind`, or None; what is wrong is added to `problems`."""
  fields = _fields(kind)
  if not hasattr(values, 'keys'):
    expected = f'a section with {", ".join(fields)}'
    problems.append(f'{prefix[:-1]} = {values!r}: expected {expected}')
    return None
  problems += [
    f'{prefix}{name}: no such field; {suggest(prefix + str(name), known)}'
    for name in values
    if name not in fields
  ]
  arguments = {}
  for name, (field_kind, _) in fields.items():
    if name not in values:
      problems.append(f'{prefix}{name}: missing')
      continue
    value = values[name]
    if dataclasses.is_dataclass(field_kind):
      value = _build(field_kind, value, f'{prefix}{name}.', problems, known)
      if value is None:
        continue
    arguments[name] = value
  if len(arguments) < len(fields):
    return None
  try:
    return kind(**arguments)
  except ConfigError as error:
    problems += [prefix + problem for problem in error.problems]
    return None


def check_fields(record: Any) -> None:
  """Refuses fields of the wrong type or out of bounds, all of them at once.

  A value that its type accepts in another form is replaced: an int where a
  float is due, a list (all that JSON has) where a tuple is.

  Raises:
    ConfigError: with a line per field.
  """
  problems = []
  for name, (kind, rules) in _fields(type(record)).items():
    value = getattr(record, name)
    try:
      value = _convert(value, kind)
    except TypeError as error:
      problems.append(f'{name} = {value!r}: {error}')
      continue
    object.__setattr__(record, name, value)
    problems += [
      f'{name} = {value!r}: must be {rule.text}'
      for rule in rules
      if not rule.holds(value)
    ]
  if problems:
    raise ConfigError(problems)


def require(record: Any, *combinations: tuple[str, bool, str]) -> None:
  """Refuses a record unless each (dotted path, holds, rule in words) holds.

  Raises:
    ConfigError: with a line per combination that does not hold.
  """
  problems = [
    f'{path} = {operator.attrgetter(path)(record)!r}: {rule}'
    for path, holds, rule in combinations
    if not holds
  ]
  if problems:
    raise ConfigError(problems)


def paths(kind: type) -> tuple[str, ...]:
  """The dotted path of every field, sections included, in their order."""
  found = []
  for name, (field_kind, _) in _fields(kind).items():
    found.append(name)
    if dataclasses.is_dataclass(field_kind):
      found += [f'{name}.{path}' for path in paths(field_kind)]
  return tuple(found)


def describe(kind: type) -> dict[str, str]:
  """What each field takes, in words: dotted path -> type and bounds."""
  words = {}
  for name, (field_kind, rules) in _fields(kind).items():
    if dataclasses.is_dataclass(field_kind):
      inner = describe(field_kind)
      words |= {f'{name}.{path}': text for path, text in inner.items()}
    else:
      words[name] = ', '.join([_spoken(field_kind), *(r.text for r in rules)])
  return words


def nearest(name: str, options: Iterable[str]) -> str | None:
  """The option that was probably meant, if one resembles `name`.

  The right field in a wrong section comes before a similar spelling.
  """
  options = list(options)
  leaf = name.rpartition('.')[2]
  near = [path for path in options if path.rpartition('.')[2] == leaf]
  near += difflib.get_close_matches(name, options, n=1)
  return near[0] if near else None


def suggest(name: str, options: Iterable[str]) -> str:
  """Says which option is the nearest, or else which there are."""
  options = list(options)
  near = nearest(name, options)
  return f'did you mean {near}?' if near else f'there are {options}'


def _spoken(kind: Any) -> str:
  """A type in words."""
  if typing.get_origin(kind) is Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(kind)))
  if typing.get_origin(kind) is tuple:
    item = {str: 'texts', int: 'integers'}[typing.get_args(kind)[0]]
    return f'a list of {item}'
  return _SPOKEN[kind]


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, tuple[Rule, ...]]]:
  """The type and the bounds of each field of a dataclass."""
  fields = {}
  for name, hint in typing.get_type_hints(kind, include_extras=True).items():
    base, rules = hint, ()
    if typing.get_origin(hint) is Annotated:
      base, *rules = typing.get_args(hint)
    fields[name] = base, tuple(rules)
  return fields


def _convert(value: Any, kind: Any) -> Any:
  """`value` as a `kind`; raises TypeError with what was expected."""
  origin = typing.get_origin(kind)
  if kind is float and type(value) is int:
    value = float(value)
  if origin is tuple and isinstance(value, tuple | list):
    return tuple(_convert(item, typing.get_args(kind)[0]) for item in value)
  if origin is Literal:
    fits = isinstance(value, str) and value in typing.get_args(kind)
    hint = nearest(str(value), typing.get_args(kind))
  else:
    fits = isinstance(value, origin or kind)
    fits = fits and not (kind is int and isinstance(value, bool))
    hint = None
  if not fits:
    hint = f'; did you mean {hint!r}?' if hint else ''
    raise TypeError(f'expected {_spoken(kind)}{hint}')
  if kind is float and not math.isfinite(value):
    raise TypeError('expected a finite number')
  if kind is str and value == 'None':
    raise TypeError("expected a text; the absence of one is ''")
  return value
