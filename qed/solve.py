r"""One problem -> one proof.

  qed solve --problem=FILE [--scaffold=NAME] [--llm=URL|DIR] [--workdir=DIR]

FILE is a text or Markdown file with nothing but the problem, or one of problems
(.jsonl, .csv, .parquet), of which --problem_id chooses. The model is behind an
address for chat (http://.../v1), or a checkpoint or Hugging Face folder, for
which our own engine starts. The workdir receives

  proof.md       the proof, if there is one
  trace.json     every call with what was asked and answered, and their sums
  calls.sqlite   what the model answered
  config.json    the resolved configuration

The same command with the same workdir goes on where it was stopped: what is on
record is not paid for again. (A model is told from others by its name, and a
folder by its weights; give another model another workdir.) At the limit of a
budget the best proof so far is taken.

  qed solve --problem=problem.md --scaffold=rsa --llm=http://localhost:8001/v1
  qed solve --problem=problem.md --scaffold=single --llm=checkpoints/sft
  qed solve --problem=imo.jsonl --problem_id=imo-2025-1 --scaffold=nomos \
    --llm=https://api.example.com/v1 --model=prover --budget_tokens=500000 \
    --config.solver.api_key_env=PROVER_KEY --config.sampling.top_k=0

Everything else is in a config, experiments/solve_main.py if none is named.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from qed import cli, schema, solving
from qed.config import ConfigError, SolveConfig
from qed.data import problems
from qed.llm import wire
from qed.reporting import call_tree
from qed.scaffolds import calls
from qed.types import Problem, Solution

_CONFIG = pathlib.Path(__file__).resolve().parents[1] / (
  'experiments/solve_main.py'
)
_TABLES = ('.jsonl', '.csv', '.parquet')


def main(argv: Sequence[str]) -> int:
  """Checks the command line, the config and the problem, then solves it."""
  values = _flags()
  words = [word.lstrip('-').partition('=')[0] for word in argv[1:]]
  if 'config' not in words:
    argv = [*argv, f'--config={_CONFIG}']
  config = cli.parse_config(argv, values, run=SolveConfig, usage=__doc__)
  config = _with_flags(config, values)
  if values['problem'].value is None:
    raise app.UsageError('--problem=FILE is missing: what is to be solved')
  cli.check_paths(
    ('--problem', values.problem), ('solver.path', config.solver.path)
  )
  problem = _load(pathlib.Path(values.problem), values.problem_id)
  solving.check(config.scaffold, getattr(config.scaffolds, config.scaffold))
  name = f'{problem.problem_id}-{config.scaffold}'.replace('/', '-')
  workdir = pathlib.Path(values.workdir or f'runs/solve/{name}')
  return run(config, problem, workdir)


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()

  def text(name, about):
    flags.DEFINE_string(name, None, about, flag_values=values)

  text('problem', 'a file with the problem')
  text('problem_id', 'which problem, of a file with several')
  text('workdir', 'created if need be; if none, runs/solve/PROBLEM-SCAFFOLD')
  text('scaffold', f'{", ".join(solving.SCAFFOLDS)}; config.scaffold if none')
  text('llm', 'an address for chat, or a folder; config.solver if none')
  text('model', 'by which it is asked for; if none, the only one there is')
  flags.DEFINE_integer(
    'budget_tokens', None, 'config.budget.max_tokens', 0, flag_values=values
  )
  for name, field in (('usd', 'max_usd'), ('secs', 'max_secs')):
    flags.DEFINE_float(
      f'budget_{name}', None, f'config.budget.{field}', 0, flag_values=values
    )
  return values


def _with_flags(config: SolveConfig, values: flags.FlagValues) -> SolveConfig:
  """The config with what flags say.

  Raises:
    UsageError, ConfigError: no run can have these.
  """
  scaffold = values.scaffold or config.scaffold
  if scaffold not in solving.SCAFFOLDS:
    hint = schema.suggest(scaffold, solving.SCAFFOLDS)
    raise app.UsageError(f'--scaffold={scaffold}: {hint}')
  solver = config.solver
  if values.llm and '://' in values.llm:
    solver = dataclasses.replace(
      solver, kind='chat', base_url=values.llm, path=''
    )
  elif values.llm:
    cli.check_paths(('--llm', values.llm))
    solver = dataclasses.replace(
      solver, kind='local', base_url='', path=values.llm
    )
  if values.model:
    solver = dataclasses.replace(solver, model=values.model)
  limits = {
    'max_tokens': values.budget_tokens,
    'max_usd': values.budget_usd,
    'max_secs': values.budget_secs,
  }
  given = {name: limit for name, limit in limits.items() if limit is not None}
  try:
    budget = dataclasses.replace(config.budget, **given)
  except ConfigError as error:
    raise ConfigError([f'budget.{x}' for x in error.problems]) from error
  return dataclasses.replace(
    config, scaffold=scaffold, solver=solver, budget=budget
  )


def _load(path: pathlib.Path, problem_id: str | None) -> Problem:
  """The problem of a file.

  Raises:
    UsageError: there is none, or several.
  """
  try:
    if path.suffix in _TABLES:
      found, _ = problems.load_problems(path, malformed='refuse')
    else:
      statement = path.read_text(encoding='utf-8').strip()
      if not statement:
        raise ValueError(f'{path}: expected a problem, got an empty file')
      name = problems.statement_id(statement)
      found = [Problem(problem_id=name, statement=statement, source=path.name)]
  except (ValueError, OSError, ImportError) as error:
    raise app.UsageError(f'--problem: {error}') from error
  by_id = {problem.problem_id: problem for problem in found}
  if problem_id is None and len(found) == 1:
    return found[0]
  if problem_id in by_id:
    return by_id[problem_id]
  if problem_id is None:
    some = ', '.join([*by_id][:5])
    raise app.UsageError(
      f'{path} has {len(found)} problems; choose one with --problem_id: '
      f'{some}{", ..." if len(found) > 5 else ""}'
    )
  raise app.UsageError(
    f'--problem_id={problem_id}: {path} has no such problem; '
    + schema.suggest(problem_id, [*by_id][:20])
  )


def run(config: SolveConfig, problem: Problem, workdir: pathlib.Path) -> int:
  """Solves a problem, writes what the workdir receives; the exit code.

  Raises:
    UsageError: the model cannot be opened, or takes no call.
  """
  # It imports jax, which takes a second.
  from qed.training import rundir

  rundir.start(workdir, dataclasses.asdict(config), may_change=())
  try:
    solved = asyncio.run(_solve(config, problem, workdir))
  except calls.CallError as error:
    cause = error.__cause__
    # Our own engine says by a ValueError what an endpoint rejects.
    kind = getattr(cause, 'kind', '')
    if isinstance(cause, ValueError) or kind in wire.HOPELESS:
      raise app.UsageError(str(error)) from error
    print(f'no proof, and calls that failed; the last one: {error}')
    return cli.RESTART
  if solved is None:
    print(f'stopped; what was answered so far is in {workdir}/calls.sqlite')
    return cli.RESTART
  solution, summary = solved
  rundir.write_json(
    workdir / 'trace.json',
    {
      'problem_id': problem.problem_id,
      'scaffold': config.scaffold,
      'usage': solution.usage,
      'usd': _usd(config, solution),
      **summary,
      'text': solution.text,
      'trace': solution.trace,
    },
  )
  _tell(solution, workdir, num_recalled=summary['num_recalled'])
  return cli.DONE


async def _solve(
  config: SolveConfig, problem: Problem, workdir: pathlib.Path
) -> tuple[Solution, dict] | None:
  """The solution and what its calls came to; None if SIGTERM came before."""
  title = f'{problem.problem_id}, {config.scaffold}'
  async with solving.opened(
    config.solver, sampling=config.sampling, workdir=workdir
  ) as model:
    with call_tree.shown(title) as told:
      setup = calls.Setup(
        scaffold=getattr(config.scaffolds, config.scaffold),
        sampling=config.sampling,
        budget=config.budget,
        style=model.style,
        stop_token_ids=model.stop_token_ids,
        seed=config.seed,
        failures=model.failures,
        on_call=told,
      )
      solve = solving.SCAFFOLDS[config.scaffold]
      task = asyncio.ensure_future(solve(problem, model.llm, setup))
      if not await cli.until_sigterm(task):
        return None
    return task.result(), {
      'model': model.identity,
      'num_paid': model.num_paid,
      'num_recalled': model.num_recalled,
    }


def _usd(config: SolveConfig, solution: Solution) -> float:
  """At the prices of the budget."""
  usage, prices = solution.usage, config.budget
  return (
    usage['prompt_tokens'] * prices.usd_per_million_prompt
    + usage['completion_tokens'] * prices.usd_per_million_completion
  ) / 1e6


def _tell(
  solution: Solution, workdir: pathlib.Path, *, num_recalled: int
) -> None:
  """Writes proof.md and prints it, with what the calls came to."""
  path = workdir / 'proof.md'
  if solution.text:
    path.write_text(solution.text + '\n', encoding='utf-8')
    print(f'\n{solution.text}\n')
  else:
    path.unlink(missing_ok=True)  # Of another scaffold.
  counts = (
    f'{number:,} {name.replace("_", " ")}'
    for name, number in solution.usage.items()
    if number
  )
  print(f'{"; ".join(counts)}; {num_recalled} of the calls were on record')
  where = path if solution.text else 'no proof'
  print(f'{where}; every call is in {workdir / "trace.json"}')


if __name__ == '__main__':
  sys.exit(cli.run(main))
