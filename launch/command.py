"""What the scripts of this folder have in common: flags, and the launch."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import pathlib
import re
import runpy
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from launch import executors, topologies
from launch.experiment import (
  Cpu,
  Executor,
  Experiment,
  Rendered,
  Requirements,
  flag_value,
  resolve,
)
from qed import cli, schema

_WITH_TPUS = ('jobset', 'queued_resource')  # Of the executors.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
  """A command line of a script.

  Attributes:
    experiment: without work units so far.
    sources: FILE:ARM of each arm.
    axes: of the sweep, dotted path -> values.
    layout: dotted path -> value of the config: how work is laid out over
      machines, which is no part of a work unit's identity.
    tpu: what --tpu says.
    executor_name: of executors.EXECUTORS.
    executor: the executor.
    is_dry: whether to print what would be done.
  """

  experiment: Experiment
  sources: tuple[str, ...]
  axes: Mapping[str, Sequence[Any]]
  layout: Mapping[str, Any]
  tpu: str
  executor_name: str
  executor: Executor
  is_dry: bool

  def trainer(
    self, source: str, overrides: Mapping[str, Any], num_processes: int
  ) -> dict[str, Any]:
    """Where a run trains and how: arguments of `Experiment.add`.

    Args:
      source: of its config.
      overrides: on top of it.
      num_processes: on CPUs.

    Raises:
      UsageError, ConfigError: there is no such config, or no slice is known
        for it.
    """
    config = resolve(source, overrides)
    requirements, layout = self.place(config.model.variant, config.program)
    if num_processes > 1:
      layout = {'mesh.data': -1, **layout}  # However many devices there are.
    layout = {**layout, **self.layout}
    resolve(source, {**overrides, **layout})
    return {
      'requirements': requirements,
      'num_processes': num_processes,
      'flags': {f'config.{k}': flag_value(v) for k, v in layout.items()},
    }

  def place(self, model: str, role: str) -> tuple[Requirements, dict[str, Any]]:
    """Where a job runs, and the config values that lay its model out there.

    Args:
      model: its model.variant.
      role: as in topologies.py.

    Raises:
      UsageError: no slice is known for it.
    """
    if self.executor_name not in _WITH_TPUS:
      return Cpu(), {}
    generation, _, topology = self.tpu.partition(':')
    try:
      if topology and role != 'sampler':
        return topologies.parse(self.tpu), {}
      place = topologies.placement(model, role, generation)
    except ValueError as error:
      raise app.UsageError(f'--tpu={self.tpu}: {error}') from error
    return place.tpu, dict(place.overrides)

  def launch(self) -> int:
    """Has the executor run the work units, or prints what it would do.

    Raises:
      UsageError: it cannot run them, which is told before any is run.
    """
    units = self.experiment.work_units
    try:
      rendered = [self.executor.render(unit) for unit in units]
    except ValueError as error:
      raise app.UsageError(str(error)) from error
    if not self.is_dry:
      return self.executor.submit(units)
    for unit, found in zip(units, rendered, strict=True):
      print(f'# {unit.name}')
      print(shown(found))
    return cli.DONE


def parse(
  argv: Sequence[str], values: flags.FlagValues, *, usage: str, program: str
) -> Command:
  """Reads the command line of a script.

  Args:
    argv: with the script's name in front.
    values: the script's own flags, which are set.
    usage: its docstring.
    program: that its configs have to be for.

  Raises:
    UsageError: what it says cannot be launched.
    SystemExit: with code 0, after the help.
  """
  _define_flags(values)
  name = _executor_of(argv)
  executors.define_flags(name, values)
  cli.parse_flags(argv, values, usage=usage)
  if not values['config'].value:
    raise app.UsageError('--config=FILE[:ARM] is missing')
  sources = _sources(values['config'].value, values['arms'].value)
  for source in sources:
    found = cli.load_config(source).get('program')
    if found != program:
      raise app.UsageError(
        f'--config={source} is a config of `qed {found}`; expected one of '
        f'`qed {program}`'
      )
  path = sources[0].partition(':')[0]
  experiment_name = values['name'].value or pathlib.Path(path).stem
  try:
    experiment = Experiment(experiment_name, root=values['root'].value)
  except ValueError as error:
    raise app.UsageError(f'--name: {error}') from error
  return Command(
    experiment=experiment,
    sources=sources,
    axes=_axes('--sweep', values['sweep'].value, sources[0]),
    layout=_layout(values['layout'].value, sources[0]),
    tpu=values['tpu'].value,
    executor_name=name,
    executor=executors.make(name, values),
    is_dry=values['dry_run'].value,
  )


def shown(rendered: Rendered) -> str:
  """Files under their paths, and command lines as a shell takes them."""
  parts = []
  for path, text in rendered.files.items():
    parts.append(f'--- {path}\n{text.rstrip()}')
  parts += [shlex.join(command) for command in rendered.commands]
  return '\n'.join(parts) + '\n'


def _define_flags(values: flags.FlagValues) -> None:
  def text(name, default, about):
    flags.DEFINE_string(name, default, about, flag_values=values)

  text('config', None, 'FILE[:ARM] of experiments/')
  text('name', '', "of the experiment; the config's file if not given")
  text('root', 'runs', 'the folder of the run directories')
  text(
    'tpu',
    '',
    'GENERATION:AxBxC of the main job, or a generation, of which '
    'launch/topologies.py knows what fits; for executors that have TPUs',
  )
  flags.DEFINE_multi_string(
    'arms', [], 'an arm, or a pattern such as *', flag_values=values
  )
  flags.DEFINE_multi_string(
    'sweep',
    [],
    'FIELD=VALUE,VALUE of the config; of several, every combination is a run',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'layout',
    [],
    'FIELD=VALUE of the config that says how to divide the work and is no part '
    "of a run's identity, such as mesh.context=2",
    flag_values=values,
  )
  flags.DEFINE_enum(
    'executor',
    'local',
    [*executors.EXECUTORS],
    'what runs the work units; --EXECUTOR.OPTION sets its options',
    flag_values=values,
  )
  flags.DEFINE_boolean(
    'dry_run', False, 'print what would be done', flag_values=values
  )


def _executor_of(argv: Sequence[str]) -> str:
  """What --executor says, on which it depends which flags there are."""
  name = 'local'
  for word, following in zip(argv, [*argv[1:], ''], strict=True):
    if found := re.fullmatch(r'--?executor(?:=(.*))?', word):
      name = following if found[1] is None else found[1]
  if name not in executors.EXECUTORS:
    hint = schema.suggest(name, executors.EXECUTORS)
    raise app.UsageError(f'--executor={name}: there is none; {hint}')
  return name


def _sources(source: str, patterns: Sequence[str]) -> tuple[str, ...]:
  """FILE:ARM for each arm that a pattern takes, in the order of the file."""
  cli.load_config(source)  # Which tells what is wrong with it.
  if not patterns:
    return (source,)
  path, _, arm = source.partition(':')
  if arm:
    raise app.UsageError(f'--config={source} names an arm, and so does --arms')
  arms = [*runpy.run_path(path)['ARMS']]
  for pattern in patterns:
    if not fnmatch.filter(arms, pattern):
      raise app.UsageError(
        f'--arms={pattern}: {path} has none; {schema.suggest(pattern, arms)}'
      )
  return tuple(
    f'{path}:{arm}'
    for arm in arms
    if any(fnmatch.fnmatchcase(arm, pattern) for pattern in patterns)
  )


def _axes(flag: str, texts: Iterable[str], source: str) -> dict[str, list[Any]]:
  """Reads FLAG=FIELD=VALUE,VALUE."""
  axes: dict[str, list[Any]] = {}
  values = cli.load_config(source)
  for text in texts:
    path, equals, listed = text.partition('=')
    if not equals or path in axes:
      raise app.UsageError(
        f'{flag}={text}: expected FIELD=VALUE,VALUE, and every field once'
      )
    are_texts = isinstance(_value_at(values, path), str)
    axes[path] = _listed(f'{flag}={path}', listed, are_texts)
  return axes


def _layout(texts: Iterable[str], source: str) -> dict[str, Any]:
  """Reads --layout=FIELD=VALUE."""
  found = {}
  for path, values in _axes('--layout', texts, source).items():
    if len(values) != 1:
      raise app.UsageError(f'--layout={path}: expected one value, got {values}')
    (found[path],) = values
  return found


def _value_at(values: ConfigDict, path: str) -> Any:
  """The value of a field, None where there is none: `add` says so."""
  for name in path.split('.'):
    if not isinstance(values, ConfigDict) or name not in values:
      return None
    values = values[name]
  return values


def _listed(place: str, text: str, are_texts: bool) -> list[Any]:
  """Values between commas, as Python writes them; texts as they are."""
  if are_texts:
    return text.split(',')
  try:
    return [*ast.literal_eval(f'({text},)')]
  except (ValueError, SyntaxError) as error:
    raise app.UsageError(
      f'{place}={text}: expected values as Python writes them, such as 1e-5 or '
      'True, with commas between them'
    ) from error
