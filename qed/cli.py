"""`qed PROGRAM ...`, and what every program does with its command line.

A program is a function of argv that returns an exit code, or None for 0. `run`
calls it and turns a wrong usage or configuration into one paragraph and exit
code 2. Nothing here imports jax or a tokenizer, so that such a mistake is told
within a second.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from qed import config, schema

if TYPE_CHECKING:
  import asyncio

DONE = 0
BUG = 1  # The code of an error that goes through.
USAGE = 2
RESTART = 42  # The state is saved; the same command goes on from there.
INTERRUPTED = 130

# Name -> (module:function, one line of help), in the order of a first use.
PROGRAMS = {
  'demo': (
    'qed.demo:main',
    'the recipe in miniature, on two CPU cores',
  ),
  'import': (
    'qed.hub:import_main',
    'a Hugging Face folder -> a checkpoint',
  ),
  'curate': (
    'qed.curate:main',
    'raw problems of forums and contests -> a training set',
  ),
  'sft': (
    'qed.sft:main',
    'supervised fine-tuning on teacher proofs',
  ),
  'judge': (
    'qed.judge:main',
    'how far a judge agrees with people who graded the same proofs',
  ),
  'serve': (
    'qed.serve:main',
    "our engine as a server with OpenAI's API",
  ),
  'grpo': (
    'qed.grpo:main',
    'reinforcement learning on proofs that a judge grades',
  ),
  'fetch': (
    'qed.fetch:main',
    'public benchmarks, downloaded and checked',
  ),
  'evaluate': (
    'qed.evaluate:main',
    'a model with a scaffold on a benchmark, graded',
  ),
  'solve': (
    'qed.solve:main',
    'one problem -> one proof, with a scaffold',
  ),
  'export': (
    'qed.hub:export_main',
    'a checkpoint -> a folder that transformers and vLLM load',
  ),
  'plan': (
    'qed.plan:main',
    'does a training step fit a slice of TPUs, and how fast? no TPU needed',
  ),
  'report': (
    'qed.report:main',
    'one static page about runs: plots and graded proofs',
  ),
}

_USAGE = """\
Train a small model to prove theorems, and run it.

  qed PROGRAM [ARGUMENTS] [--FLAG=VALUE ...]

{programs}

`qed PROGRAM --help` describes its flags and every field of its config.

Everything that is built, in miniature, on two CPU cores:

  qed demo --workdir=runs/demo

A first run, from published weights and back:

  qed import ~/models/Qwen3-4B-Thinking-2507 checkpoints/qwen3-4b-thinking-2507
  qed sft --config=experiments/sft_main.py --workdir=runs/sft
  qed serve --checkpoint=runs/sft/checkpoints --port=8001
  qed grpo --config=experiments/rl_main.py --workdir=runs/rl
  qed solve --problem=problem.md --scaffold=rsa --llm=http://localhost:8001/v1
  qed fetch imo_proofbench
  qed evaluate --config=experiments/eval_main.py --workdir=runs/eval
  qed export runs/sft/checkpoints exports/my-prover
  qed plan --config=experiments/sft_main.py --topology=v5p:2x4x4
  qed report runs/sft

A training set from raw problems; without :deterministic, models write rubrics,
try the problems and prove them:

  qed curate --config=experiments/data_main.py:deterministic \\
    --config.sources.olympiads=olympiads.jsonl \\
    --config.sources.aops=aops.jsonl --workdir=runs/data

How good a judge is, from gradings of your own (source=graded: statement,
rubric, proof, human_score):

  qed judge --config=experiments/judge_main.py --workdir=runs/judge \\
    --config.solutions.source=graded --config.solutions.paths=graded.jsonl

A config is a file of experiments/, one question each. Take one of its arms
with a colon, and change single values with their dotted path:

  qed sft --config=experiments/sft_lr.py:instruct,peak_lr=6e-05 \\
    --config.mesh.context=4 --config.packing.num_rows=8 \\
    --config.packing.microbatch_counts=1,2,3,4 --workdir=runs/instruct

The same command with the same --workdir goes on where it was stopped.

Exit codes: 0 done; 2 wrong usage or config, told within a second, or a limit of
the config that a run has reached; 42 the state is saved and the command should
be started again; 1 a bug."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program that argv[1] names; returns its exit code."""
  name, *arguments = (sys.argv if argv is None else argv)[1:] or ['']
  listed = '\n'.join(f'  {key:9}{text}' for key, (_, text) in PROGRAMS.items())
  if name in ('--help', '-h', 'help', ''):
    usage = _USAGE.format(programs=listed)
    print(usage, file=sys.stdout if name else sys.stderr)
    return DONE if name else USAGE
  if name not in PROGRAMS:
    hint = schema.suggest(name, PROGRAMS)
    print(f'qed: there is no program {name!r}; {hint}', file=sys.stderr)
    return USAGE
  module, function = PROGRAMS[name][0].split(':')
  program = getattr(importlib.import_module(module), function)
  return run(program, [f'qed {name}', *arguments])


def run(
  program: Callable[[Sequence[str]], int | None],
  argv: Sequence[str] | None = None,
) -> int:
  """Calls a program; returns its exit code, 2 where the user is to act.

  Args:
    program: raises app.UsageError or config.ConfigError before it does
      anything. Any other exception is a bug and goes through.
    argv: with the program's name in front; sys.argv if None.
  """
  argv = list(sys.argv if argv is None else argv)
  name = os.path.basename(argv[0])
  # Libraries that read absl's own flags (grain does) need them parsed.
  flags.FLAGS.mark_as_parsed()
  try:
    return program(argv) or DONE
  except (app.UsageError, config.ConfigError) as error:
    lines = str(error).splitlines()
    print(f'{name}:', *lines, sep='\n  ' if lines[1:] else ' ', file=sys.stderr)
    return USAGE
  except KeyboardInterrupt:
    print(f'{name}: interrupted', file=sys.stderr)
    return INTERRUPTED


def parse_flags(
  argv: Sequence[str],
  values: flags.FlagValues,
  *,
  usage: str,
  arguments: Sequence[str] = (),
) -> list[str]:
  """Reads a command line into flags; prints the help where it is asked for.

  Args:
    argv: with the program's name in front.
    values: the program's flags, which are set.
    usage: what --help prints above the flags: a module's docstring.
    arguments: names of the positional arguments, all of which must be given;
      of the last, more than one if its name ends with '...'.

  Returns:
    The positional arguments.

  Raises:
    app.UsageError: an unknown flag (with the nearest), a value of the wrong
      type, or another number of arguments.
    SystemExit: with code 0, after the help.
  """
  if {'--help', '-h'} & set(argv):
    print(usage.strip(), '\n\nFlags:\n', _describe_flags(values), sep='')
    raise SystemExit(DONE)
  try:
    given = values(list(argv))[1:]
  except flags.Error as error:
    raise app.UsageError(str(error)) from error
  has_more = bool(arguments) and arguments[-1].endswith('...')
  if len(given) < len(arguments) or (
    len(given) > len(arguments) and not has_more
  ):
    raise app.UsageError(
      f'expected {" ".join(arguments) or "only flags"}, '
      f'got {" ".join(given) or "nothing"}'
    )
  return given


def parse_config(
  argv: Sequence[str],
  values: flags.FlagValues,
  *,
  run: type,
  usage: str,
) -> config.RunConfig:
  """Reads --config=FILE[:ARM], its overrides and the flags of a program.

  Args:
    argv: with the program's name in front.
    values: the other flags of the program, which are set.
    run: the dataclass that the config must describe, one of config.RUNS.
    usage: as in `parse_flags`.

  Returns:
    The config as dataclasses.

  Raises:
    app.UsageError: the command line, or the file, cannot be understood.
    config.ConfigError: it can, but no run can have these values.
    SystemExit: with code 0, after the help.
  """
  if {'--help', '-h'} & set(argv):
    usage = f'{usage.strip()}\n\nConfig fields:\n\n{_describe_fields(run)}'
    parse_flags(['', '--help'], values, usage=usage)
  source, argv = _take_config(argv)
  values_of_run = load_config(source)
  program = values_of_run.get('program')
  if config.RUNS.get(program) not in (run, None):
    raise app.UsageError(
      f'--config={source} is a config of `qed {program}`; this is {argv[0]}'
    )
  _check_overrides(argv, schema.paths(run))
  config_flags.DEFINE_config_dict(
    'config', values_of_run, flag_values=values, sys_argv=argv
  )
  try:
    parse_flags(argv, values, usage=usage)
  except app.UsageError as error:
    raise _explain_value(error, schema.describe(run)) from error
  return config.build(values['config'].value)


def load_config(source: str) -> ConfigDict:
  """The locked config of `FILE[:ARM]`.

  Raises:
    app.UsageError: the file is missing, raises, or has no such arm.
  """
  path, _, arm = source.partition(':')
  if not os.path.isfile(path):
    raise app.UsageError(f'--config={source}: no such file{_similar(path)}')
  spec = importlib.util.spec_from_file_location('config_file', path)
  try:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if arm and arm not in getattr(module, 'ARMS', [arm]):
      near = schema.nearest(arm, module.ARMS)
      raise app.UsageError(
        f'--config={source}: there is no arm {arm!r}'
        + (f'; did you mean {near!r}?' if near else '')
        + '\nThe arms are:\n'
        + '\n'.join(module.ARMS)
      )
    values = module.get_config(arm) if arm else module.get_config()
    return values.lock()
  except app.UsageError:
    raise
  except Exception as error:  # Whatever the file does, the fault is its own.
    line = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == spec.origin
    ]
    where = f'{path}, line {line[-1]}' if line else path
    raise app.UsageError(
      f'--config={source}: {where}: {type(error).__name__}: {error}'
    ) from error


async def until_sigterm(task: asyncio.Future[Any]) -> bool:
  """Waits for a task, which SIGTERM cancels; whether it ended before."""
  import asyncio  # Most mistakes are told without it.
  import signal

  terminated = False

  def terminate() -> None:
    nonlocal terminated
    terminated = True
    task.cancel()

  loop = asyncio.get_running_loop()
  loop.add_signal_handler(signal.SIGTERM, terminate)
  try:
    await task
  except asyncio.CancelledError:
    if not terminated:  # It was Ctrl-C.
      raise
    return False
  finally:
    loop.remove_signal_handler(signal.SIGTERM)
  return True


def check_paths(*paths: tuple[str, str]) -> None:
  """Refuses files and folders that do not exist; '' and URLs pass.

  Args:
    *paths: (config field, path).

  Raises:
    config.ConfigError: naming every missing one.
  """
  problems = [
    f'{field} = {path!r}: no such file or folder{_similar(path)}'
    for field, path in paths
    if path and '://' not in path and not os.path.exists(path)
  ]
  if problems:
    raise config.ConfigError(problems)


def _take_config(argv: Sequence[str]) -> tuple[str, list[str]]:
  """The value of --config, and argv without it."""
  found, others = [], []
  arguments = iter(argv)
  for argument in arguments:
    if argument in ('--config', '-config'):
      found.append(next(arguments, ''))
    elif argument.startswith(('--config=', '-config=')):
      found.append(argument.partition('=')[2])
    else:
      others.append(argument)
  if len(found) == 1 and found[0]:
    return found[0], others
  if found:
    raise app.UsageError(f'expected one --config=FILE[:ARM], got {found}')
  flag_names = [name.lstrip('-').partition('=')[0] for name in others[1:]]
  typo = difflib.get_close_matches('config', flag_names, n=1)
  raise app.UsageError(
    '--config=FILE[:ARM] is missing; the files are in experiments/'
    + (f' (did you mean it by {typo[0]!r}?)' if typo else '')
  )


def _check_overrides(argv: Sequence[str], paths: Sequence[str]) -> None:
  """Refuses --config.X of which X is no field of a config."""
  sections = {path.partition('.')[0] for path in paths if '.' in path}
  for argument in argv:
    override = re.match(r'--?(?:no)?config\.([^=]+)', argument)
    if override and override[1] not in paths:
      raise app.UsageError(
        f'{argument}: there is no field {override[1]!r}; '
        + schema.suggest(override[1], paths)
      )
    if override and override[1] in sections:
      raise app.UsageError(
        f'{argument}: {override[1]} is a section; set its fields one by one'
      )


def _explain_value(
  error: app.UsageError, described: Mapping[str, str]
) -> app.UsageError:
  """Adds to an error about an override what its field takes."""
  override = re.match(r'flag --config\.([\w.]+)=', str(error))
  if not override:
    return error
  return app.UsageError(f'{error}; expected {described[override[1]]}')


def _similar(path: str) -> str:
  """Names the file or folder beside `path` that was probably meant."""
  folder = os.path.dirname(path)
  names = os.listdir(folder or '.') if os.path.isdir(folder or '.') else []
  near = difflib.get_close_matches(os.path.basename(path), names, n=1)
  return f'; did you mean {os.path.join(folder, near[0])}?' if near else ''


def _describe_flags(values: flags.FlagValues) -> str:
  """A paragraph for each flag."""
  return '\n'.join(
    textwrap.fill(
      f'--{name}: {values[name].help}'
      + (f' ({values[name].default})' if values[name].default else ''),
      width=80,
      initial_indent='  ',
      subsequent_indent='      ',
    )
    for name in values
  )


def _describe_fields(run: type) -> str:
  """A line for each field of a config."""
  return '\n'.join(
    f'  --config.{path:35}{text}' for path, text in schema.describe(run).items()
  )


if __name__ == '__main__':
  sys.exit(main())
