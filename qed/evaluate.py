r"""A model with a scaffold on a benchmark, graded.

  qed evaluate --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE]

Makes k attempts at every problem and has each graded: proofs by the judge of
the config, final answers by comparing formulas and by the judge where these do
not decide. DIR receives

  records.jsonl     a line per attempt: solution, grade, tokens, and digests of
                    the checkpoint, the configuration and the judge
  problems.jsonl    what was tried
  traces/           every call of an attempt, with what was asked and answered
  calls.sqlite      what the solver wrote, and verdicts.sqlite what the judge
                    replied: nothing that is on record is paid for again
  summary.json      scores with intervals, tokens, shares, money
  report/           a page with the scores and a viewer of proofs

The same command goes on where it was stopped, in the middle of an attempt, too.
What failed is tried again, and is no score of 0 meanwhile. With another judge
the solutions in DIR are graded again, and the summary has both, apart.

  qed fetch imo_proofbench
  qed evaluate --config=experiments/eval_main.py --workdir=runs/eval
  qed evaluate --config=experiments/eval_scaffolds.py:rsa --workdir=runs/rsa
  qed report --out=leaderboard runs/eval runs/rsa
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from absl import app, flags

from qed import cli, graders, report, solving
from qed.config import EvaluateRunConfig
from qed.data import problems
from qed.evals import benchmarks, identity, progress, records, runner, summary
from qed.grading import rubrics
from qed.planning import tables
from qed.scaffolds import calls
from qed.types import Problem, Solution

_MAX_GROUPS = 60  # Problems that the viewer of the report holds.


def main(argv: list[str]) -> int:
  """Checks the command line, the config and the benchmark, then evaluates."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  config = cli.parse_config(argv, values, run=EvaluateRunConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    ('benchmark.path', config.benchmark.path),
    ('solver.path', config.solver.path),
  )
  benchmark = load(config)
  return run(config, benchmark, pathlib.Path(values['workdir'].value))


def load(config: EvaluateRunConfig) -> benchmarks.Benchmark:
  """The problems, every one of which the judge's template can show.

  Raises:
    UsageError: the file is not the benchmark, or the template shows what its
      problems lack.
  """
  given = config.benchmark
  try:
    benchmark = benchmarks.load(
      given.name,
      given.path,
      split=given.split,
      content=given.content,
      max_problems=given.max_problems,
    )
    if benchmark.kind == 'proof':
      for item in benchmark.items:
        rubrics.render(
          config.judge.template,
          item.problem,
          'A proof.',
          with_reference=config.judge.with_reference,
        )
  except (ValueError, ImportError) as error:
    raise app.UsageError(str(error)) from error
  solving.check(config.scaffold, section(config))
  verdict = {True: ', as published', False: ', not as published', None: ''}
  print(
    f'{given.path}: {len(benchmark.items)} problems of {given.name}; digest '
    f'{benchmark.digest}{verdict[benchmark.is_published]}',
    flush=True,
  )
  return benchmark


def run(
  config: EvaluateRunConfig,
  benchmark: benchmarks.Benchmark,
  workdir: pathlib.Path,
) -> int:
  """Evaluates, writes what DIR receives, and returns the exit code.

  Raises:
    UsageError: solver or judge cannot be reached, or DIR belongs to another
      evaluation.
  """
  found = asyncio.run(_evaluate(config, benchmark, workdir))
  if found is None:
    print('stopped; what was paid for is kept', flush=True)
    return cli.RESTART
  write(workdir, found)
  tables.show([_table(entry) for entry in found['evaluations']])
  print(report.write([workdir], workdir / 'report', _MAX_GROUPS), flush=True)
  return cli.DONE


async def _evaluate(
  config: EvaluateRunConfig,
  benchmark: benchmarks.Benchmark,
  workdir: pathlib.Path,
) -> dict[str, Any] | None:
  async with solving.opened(
    config.solver, sampling=config.sampling, workdir=workdir
  ) as model:
    return await measure(config, benchmark, workdir, model)


async def measure(
  config: EvaluateRunConfig,
  benchmark: benchmarks.Benchmark,
  workdir: pathlib.Path,
  model: solving.Opened,
) -> dict[str, Any] | None:
  """Evaluates a model that is open, and writes all but the summary.

  Args:
    config: of the run; its solver is `model`, however that was opened.
    benchmark: what `load` gives.
    workdir: of a new run, or of one to go on with.
    model: the solver.

  Returns:
    The content of summary.json; None if SIGTERM came before.

  Raises:
    UsageError: the judge cannot be reached, or workdir belongs to another
      evaluation.
  """
  began = time.monotonic()
  given = config.benchmark
  async with contextlib.AsyncExitStack() as stack:
    decided = identity.identify(config, benchmark, model.identity)
    store = stack.enter_context(_open_records(config, decided, workdir))
    # It imports jax, which takes a second.
    from qed.training import rundir

    rundir.start(workdir, dataclasses.asdict(config), may_change=())
    problems.write_jsonl(
      workdir / 'problems.jsonl', (item.problem for item in benchmark.items)
    )
    grader = await stack.enter_async_context(
      graders.opened(config, benchmark.kind, workdir)
    )
    told = progress.Progress(
      len(runner.unsettled(benchmark.items, store, given.num_attempts))
    )
    shown = stack.enter_context(told.shown())
    task = asyncio.ensure_future(
      runner.evaluate(
        benchmark.items,
        solve=_solver(config, model, grader, told),
        grade=grader.grade,
        records=store,
        num_attempts=given.num_attempts,
        max_in_flight=given.max_in_flight,
        max_passes=given.max_passes,
        failures=(calls.CallError,),
        on_record=shown,
      )
    )
    if not await cli.until_sigterm(task):
      return None
    book = {
      'num_paid': model.num_paid,
      'num_recalled': model.num_recalled,
      'most_running': model.most_running,
    }
    return _summary(config, benchmark, store, grader) | {
      'calls': book,
      'secs': time.monotonic() - began,
    }


def write(workdir: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes what `measure` found into summary.json."""
  # It imports jax, which takes a second.
  from qed.training import rundir

  rundir.write_json(workdir / 'summary.json', found)


def section(config: EvaluateRunConfig) -> Any:
  """What the scaffold of a run is told: its own part of the config."""
  return getattr(config.scaffolds, config.scaffold)


def _solver(
  config: EvaluateRunConfig,
  model: solving.Opened,
  grader: graders.Grader,
  told: progress.Progress,
) -> Callable[[Problem, int], Awaitable[Solution]]:
  """(problem, attempt) -> solution, by the scaffold of the run."""
  scaffold = solving.SCAFFOLDS[config.scaffold]

  async def solve(problem: Problem, attempt: int) -> Solution:
    # Proofs that nobody can grade can wait.
    await grader.wait_ready()
    setup = calls.Setup(
      scaffold=section(config),
      sampling=config.sampling,
      budget=config.budget,
      style=model.style,
      stop_token_ids=model.stop_token_ids,
      seed=config.seed,
      attempt=attempt,
      failures=model.failures,
      on_call=told.on_call,
    )
    return await scaffold(problem, model.llm, setup)

  return solve


def _open_records(
  config: EvaluateRunConfig, decided: records.Identity, workdir: pathlib.Path
) -> records.Records:
  """The records of this evaluation; tells what differs from another's."""
  try:
    return records.Records(workdir / 'records.jsonl', decided)
  except records.ForeignRecordsError as error:
    changed = _changed(config, workdir / 'config.json')
    raise app.UsageError(
      '\n'.join(
        [
          f'{workdir} belongs to another evaluation:',
          str(error),
          *changed,
          'Use the same values to go on with it, or another --workdir.',
        ]
      )
    ) from error
  except ValueError as error:
    raise app.UsageError(str(error)) from error


def _changed(config: EvaluateRunConfig, path: pathlib.Path) -> list[str]:
  """A line for each value that is not the one of an earlier start."""
  with contextlib.suppress(OSError, ValueError, KeyError):
    before = _flat(json.loads(path.read_text(encoding='utf-8'))['config'])
    now = _flat(json.loads(json.dumps(dataclasses.asdict(config))))
    return [
      f'{name} = {now[name]!r}, and was {before.get(name)!r}'
      for name in now
      if now[name] != before.get(name) and not name.startswith('judge.')
    ]
  return []


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def _summary(
  config: EvaluateRunConfig,
  benchmark: benchmarks.Benchmark,
  store: records.Records,
  grader: graders.Grader,
) -> dict[str, Any]:
  """The run in one object; every judge on record has an entry of its own."""
  given, budget, ours = config.benchmark, config.budget, config.judge
  about = {
    'model': config.model_name,
    'scaffold': config.scaffold,
    'turns': getattr(section(config), 'num_turns', 1),
    'max_tokens': budget.max_tokens,
    'kind': benchmark.kind,
    'split': benchmark.split,
    'is_published_content': benchmark.is_published,
  }
  entries = []
  for digest, name in store.judges().items():
    is_ours = digest == store.identity.judge
    entry = summary.summarize(
      benchmark.items,
      store.of_judge(digest),
      num_attempts=given.num_attempts,
      pass_score=given.pass_score,
      solver_prices=_prices(budget),
      judge_prices=_prices(ours) if is_ours else (0.0, 0.0),
    )
    decided = dataclasses.replace(store.identity, judge=digest, judge_name=name)
    entries.append(about | {'identity': dataclasses.asdict(decided)} | entry)
  # The page shows this of any run: out of 1, by the judge of the config.
  score = next(
    (
      entry['score']
      for entry in entries
      if entry['identity']['judge'] == store.identity.judge
    ),
    None,
  )
  result = {
    'program': 'evaluate',
    'evaluations': entries,
    'judge_ledger': grader.ledger(),
  }
  if score and score['value'] is not None and score['low'] is not None:
    bounds = {'mean': 'value', 'low': 'low', 'high': 'high'}
    result['score'] = {key: score[name] / 7 for key, name in bounds.items()}
    result['score']['n'] = score['n']
  return result


def _prices(prices: Any) -> tuple[float, float]:
  return prices.usd_per_million_prompt, prices.usd_per_million_completion


def _table(entry: dict[str, Any]) -> tables.Table:
  """What is printed at the end, about one judge's grades."""
  about, tokens = entry['identity'], entry['tokens']
  rows = [('score', *_cells(entry['score']))]
  for group in ('splits', 'categories', 'levels'):
    rows += [
      (f'  {name}', *_cells(value))
      for name, value in entry.get(group, {}).items()
    ]
  rows += [
    (f'best of {k}', *_cells(value))
    for k, value in entry['best_of'].items()
    if k != '1'
  ]
  spread = entry['spread']['percent']
  done = entry['num_graded']
  asked = entry['num_problems'] * entry['num_attempts']
  notes = [
    f'{done} of {asked} attempts are graded',
    f'spread of attempts {spread:.1f}' if spread is not None else '',
    f'{tokens["completion"]:,.0f} tokens in {tokens["calls"]:.1f} calls an '
    'attempt'
    if tokens['calls'] is not None
    else '',
    f'{entry["num_incomplete"]} with failed calls'
    if entry['num_incomplete']
    else '',
    'the same command tries again what failed' if done < asked else '',
  ]
  return tables.Table(
    title=f'{entry["model"]}, {entry["scaffold"]}, on {about["benchmark"]}, '
    f'graded by {about["judge_name"]}',
    header=('% of 7 points', 'mean', '95 % interval', 'problems', ''),
    rows=rows,
    note='; '.join(filter(None, notes)),
  )


def _cells(value: dict[str, Any]) -> tuple[str, str, str, str]:
  percent = value['percent']
  if percent['value'] is None:
    return '-', '', str(value['n']), ''
  interval = ''
  if percent['low'] is not None:
    interval = f'{percent["low"]:.1f} .. {percent["high"]:.1f}'
  return f'{percent["value"]:.1f}', interval, str(value['n']), ''


if __name__ == '__main__':
  sys.exit(cli.run(main))
