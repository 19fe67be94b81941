r"""How far a judge agrees with people who graded the same proofs.

  qed judge --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

Asks the judge of the config for a score of every solution, and compares. DIR
receives the resolved config, all verdicts, a table of metrics with intervals
and a plot. The same command goes on where it was stopped: a verdict that is on
record is never paid for again. With --regrade nothing is called at all: the
stored replies are read again, say with a better parser.

  qed judge --config=experiments/judge_main.py --workdir=runs/judge
  qed judge --config=experiments/judge_prompt.py:simple --workdir=runs/simple
  qed judge --config=experiments/judge_main.py --workdir=runs/judge --regrade

DIR/verdicts.sqlite  what the judge replied, and what was paid
DIR/grades.jsonl     a line per verdict, with the score that people gave
DIR/summary.json     the metrics, the statuses and the costs
DIR/agreement.png    the judge's scores against theirs
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from qed import cli
from qed.config import JudgeConfig, JudgeRunConfig
from qed.grading import agreement, rubrics, solutions, verdicts
from qed.grading import judge as judges
from qed.grading.solutions import GradedSolution
from qed.llm import http
from qed.planning import tables
from qed.reporting import agreement as agreement_plot
from qed.types import Grade

_TOLD_EVERY_SECS = 10.0


def main(argv: Sequence[str]) -> int:
  """Checks the command line, the config and the data, then judges."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  flags.DEFINE_bool(
    'regrade', False, 'read the stored replies again; no calls', values
  )
  config = cli.parse_config(argv, values, run=JudgeRunConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    *(('solutions.paths', path) for path in config.solutions.paths)
  )
  items = _load(config)
  return run(
    config, items, values['workdir'].value, regrade=values['regrade'].value
  )


def run(
  config: JudgeRunConfig,
  items: Sequence[GradedSolution],
  workdir: str | os.PathLike[str],
  *,
  regrade: bool,
) -> int:
  """Grades solutions and writes what DIR receives; returns the exit code.

  Args:
    config: the run.
    items: what is graded.
    workdir: of a new run, or of one to go on with.
    regrade: takes only what is on record.

  Raises:
    UsageError: the judge cannot be reached or asked, or there is nothing on
      record to regrade.
  """
  folder = pathlib.Path(workdir)
  record = folder / 'verdicts.sqlite'
  if regrade and not record.exists():
    raise app.UsageError(
      f'--regrade: expected stored replies in {record}; run without it first'
    )
  # It imports jax, which takes a second.
  from qed.training import rundir

  began = time.monotonic()
  rundir.start(folder, dataclasses.asdict(config), may_change=())
  with open_verdicts(record) as store:
    grades = asyncio.run(_grade_all(config, items, store, regrade=regrade))
    if grades is None:
      print('stopped; what the judge replied so far is kept', flush=True)
      return cli.RESTART
    prices = {
      config.judge.model: (
        config.judge.usd_per_million_prompt,
        config.judge.usd_per_million_completion,
      )
    }
    ledger = store.ledger(prices)
  if regrade and not any(g.score is not None for row in grades for g in row):
    raise app.UsageError(
      f'--regrade: none of these solutions has a verdict in {record}; with '
      'another judge, template or sampling the questions are others'
    )
  metrics = agreement.measure(
    items,
    _scores(grades),
    own_solvers=config.agreement.own_solvers,
    num_resamples=config.agreement.num_resamples,
    seed=config.agreement.seed,
  )
  statuses = collections.Counter(g.status for row in grades for g in row)
  _write_grades(folder / 'grades.jsonl', items, grades)
  summary = _summary(config, items, metrics, statuses)
  summary |= {
    'ledger': dataclasses.asdict(ledger),
    'secs': time.monotonic() - began,
  }
  rundir.write_json(folder / 'summary.json', summary)
  agreement_plot.draw(
    [item.human_score for item in items],
    _scores(grades),
    [item.problem.problem_id for item in items],
    folder / 'agreement.png',
  )
  tables.show([_table(config, items, metrics, statuses)])
  return cli.DONE


@contextlib.asynccontextmanager
async def opened(
  judge: JudgeConfig, record: pathlib.Path
) -> AsyncIterator[judges.Judge]:
  """A judge, to ask for what is not on record; it need not be there yet.

  Args:
    judge: where it is, and what it is asked.
    record: the file of its verdicts.

  Raises:
    ValueError: its key is not in the environment, or the file is no record.
  """
  with verdicts.Verdicts(record) as store:
    async with http.Http(http.Endpoint.from_config(judge)) as client:
      yield judges.Judge(client.ask, judge, store)


def open_verdicts(record: pathlib.Path) -> verdicts.Verdicts:
  """The verdicts on record.

  Raises:
    UsageError: the file is no record of verdicts.
  """
  try:
    return verdicts.Verdicts(record)
  except ValueError as error:
    raise app.UsageError(str(error)) from error


def _load(config: JudgeRunConfig) -> list[GradedSolution]:
  """The solutions, every one of which the template can show."""
  source = config.solutions
  try:
    items, report = solutions.load(
      source.paths,
      source=source.source,
      columns=source.columns,
      malformed=source.malformed,
    )
    for item in items:
      rubrics.render(
        config.judge.template,
        item.problem,
        item.proof,
        with_reference=config.judge.with_reference,
      )
  except (ValueError, ImportError) as error:
    raise app.UsageError(str(error)) from error
  print(report, flush=True)
  return items


async def _grade_all(
  config: JudgeRunConfig,
  items: Sequence[GradedSolution],
  store: verdicts.Verdicts,
  *,
  regrade: bool,
) -> list[list[Grade]] | None:
  """The grades of each solution's replicas; None if SIGTERM came before."""
  async with contextlib.AsyncExitStack() as stack:
    ask = None
    if not regrade:
      ask = (await connect(config.judge, stack)).ask
    judge = judges.Judge(ask, config.judge, store)
    count = len(items) * config.agreement.replicas
    told = stack.enter_context(_progress(count))

    # The judge's patience runs while a grade waits in line: keep it short.
    line = asyncio.Semaphore(config.judge.max_concurrency)

    async def grade(item: GradedSolution, replica: int) -> Grade:
      async with line:
        grade = await judge.grade(item.problem, item.proof, replica=replica)
      told(grade)
      return grade

    calls = asyncio.gather(
      *(
        grade(item, replica)
        for item in items
        for replica in range(config.agreement.replicas)
      )
    )
    terminated = False

    def terminate() -> None:
      nonlocal terminated
      terminated = True
      calls.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, terminate)
    stack.callback(loop.remove_signal_handler, signal.SIGTERM)
    try:
      grades = await calls
    except asyncio.CancelledError:
      if not terminated:  # It was Ctrl-C.
        raise
      return None
  size = config.agreement.replicas
  return [grades[i : i + size] for i in range(0, count, size)]


async def connect(
  judge: JudgeConfig, stack: contextlib.AsyncExitStack
) -> http.Http:
  """A judge that is there; a wrong address is told before patience does.

  Args:
    judge: where it is.
    stack: closes the connections.

  Raises:
    UsageError: its key is not in the environment, or nobody is there.
  """
  try:
    endpoint = http.Endpoint.from_config(judge)
  except ValueError as error:
    raise app.UsageError(
      f"judge.api_key_env: {error}; '' sends no key"
    ) from error
  client = await stack.enter_async_context(http.Http(endpoint))
  try:
    await client.models()
  except http.Failure as failure:
    # Some endpoints list no models and still answer.
    if failure.kind == 'connect':
      raise app.UsageError(
        f'judge.base_url = {judge.base_url!r}: {failure}'
      ) from failure
  return client


@contextlib.contextmanager
def _progress(num_grades: int) -> Iterator[Callable[[Grade], None]]:
  """Yields what to call with every grade: a bar, or a line now and then."""
  counts: collections.Counter[str] = collections.Counter()
  began = last = time.monotonic()

  def text() -> str:
    failed = counts.total() - counts['ok']
    return f'{failed} without a score ({failed / counts.total():.1%})'

  if sys.stdout.isatty():
    from rich import progress

    with progress.Progress(
      progress.TextColumn('verdicts'),
      progress.MofNCompleteColumn(),
      progress.BarColumn(bar_width=None),
      progress.TextColumn('{task.description}'),
      progress.TimeRemainingColumn(),
    ) as bar:
      task = bar.add_task('', total=num_grades)

      def advance(grade: Grade) -> None:
        counts[grade.status] += 1
        bar.update(task, advance=1, description=text())

      yield advance
    return

  def tell(grade: Grade) -> None:
    nonlocal last
    counts[grade.status] += 1
    done, now = counts.total(), time.monotonic()
    if done == num_grades or now - last > _TOLD_EVERY_SECS:
      last = now
      secs = round((now - began) / done * (num_grades - done))
      eta = datetime.timedelta(seconds=secs)
      line = f'verdict {done}/{num_grades}  {text()}  eta {eta}'
      print(line, flush=True)

  yield tell


def _scores(grades: Sequence[Sequence[Grade]]) -> np.ndarray:
  """Float [num_solutions, num_replicas], NaN where there is no score."""
  return np.array(
    [[math.nan if g.score is None else g.score for g in row] for row in grades]
  )


def _summary(
  config: JudgeRunConfig,
  items: Sequence[GradedSolution],
  metrics: Sequence[agreement.Metric],
  statuses: Mapping[str, int],
) -> dict[str, Any]:
  """The run in one object, but for what it cost."""
  return {
    'judge': config.judge.model,
    'template': config.judge.template,
    'with_reference': config.judge.with_reference,
    'effort': config.judge.effort,
    'solutions': len(items),
    'replicas': config.agreement.replicas,
    'statuses': dict(statuses),
    'metrics': {
      m.name: {
        'value': m.value,
        'low': m.low if math.isfinite(m.low) else None,
        'high': m.high if math.isfinite(m.high) else None,
        'problems': m.num_problems,
      }
      for m in metrics
    },
  }


def _table(
  config: JudgeRunConfig,
  items: Sequence[GradedSolution],
  metrics: Sequence[agreement.Metric],
  statuses: Mapping[str, int],
) -> tables.Table:
  judge = config.judge
  reference = ' with a reference proof' if judge.with_reference else ''
  num_problems = len({item.problem.problem_id for item in items})
  others = {name: n for name, n in sorted(statuses.items()) if name != 'ok'}
  return tables.Table(
    title=f'{judge.model} {judge.effort}, {judge.template}{reference}: '
    f'{len(items)} solutions of {num_problems} problems',
    header=('metric', 'value', '95 % interval', 'problems', ''),
    rows=[
      (m.name, f'{m.value:.3f}', _interval(m), str(m.num_problems), '')
      for m in metrics
    ],
    note=f'without a score: {others}' if others else '',
  )


def _interval(metric: agreement.Metric) -> str:
  if not math.isfinite(metric.low):
    return ''
  return f'{metric.low:.3f} .. {metric.high:.3f}'


def _write_grades(
  path: pathlib.Path,
  items: Sequence[GradedSolution],
  grades: Sequence[Sequence[Grade]],
) -> None:
  """A line per verdict, under the file's name once all are there."""
  partial = path.with_name(path.name + '.partial')
  with partial.open('w', encoding='utf-8') as file:
    for item, row in zip(items, grades, strict=True):
      for replica, grade in enumerate(row):
        line = {
          'item_id': item.item_id,
          'problem_id': item.problem.problem_id,
          'solver': item.solver,
          'domain': item.domain,
          'human_score': item.human_score,
          'replica': replica,
          'grade': dataclasses.asdict(grade),
        }
        file.write(json.dumps(line) + '\n')
  partial.replace(path)


if __name__ == '__main__':
  sys.exit(cli.run(main))
