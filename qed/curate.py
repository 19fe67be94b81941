r"""From raw problems of forums and contests to a training set.

  qed curate --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE]

Runs one stage after the other, each from the file of the one before. DIR
receives a folder for each, with the items that it kept, those that it removed
and why, and a report. The same command goes on where it was stopped, with the
same result; after a change to the config it does again what depends on it.

  qed curate --config=experiments/data_main.py:deterministic \
    --config.sources.olympiads=olympiads.jsonl \
    --config.sources.aops=aops.jsonl --workdir=runs/data

DIR/stages/N_NAME/       kept.jsonl, removed.jsonl, report.json
DIR/review.jsonl, .html  what resembles a benchmark, side by side with it
DIR/duplicates.html      what resembles another problem, side by side with it
DIR/problems.jsonl       the problems, for `qed grpo`
DIR/sft_unique.jsonl     a teacher's proof of each, for `qed sft`
DIR/sft_all.jsonl        all of its proofs
DIR/unsolved.jsonl       problems that the base model never solves
DIR/prefixes.jsonl       how much of a proof it needs to solve them
DIR/*.card.json, .md     of each of these: sources, licenses, counts, bounds
DIR/difficulty.png       how hard the problems are, before and after the choice
DIR/summary.json         the counts of all stages
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import (
  Callable,
  Iterable,
  Mapping,
  Sequence,
)
from typing import Any

from absl import app, flags

from qed import cli, curated, judge, writers
from qed.config import CurateConfig, WriterConfig
from qed.curation import (
  asking,
  decontaminate,
  difficulty,
  duplicates,
  filters,
  likeness,
  prefixes,
  progress,
  quality,
  rubrics,
  selection,
  sources,
  stages,
  teacher,
)
from qed.curation.records import Item
from qed.llm import http
from qed.llm import journal as journals
from qed.reporting import difficulty as difficulty_plot

_SOURCES = tuple(sources.REQUIRED)
_WITH_WRITER = ('quality', 'rubrics', 'difficulty', 'teacher')


def main(argv: Sequence[str]) -> int:
  """Checks the command line, the config and the files, then curates."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  config = cli.parse_config(argv, values, run=CurateConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    *(
      (f'sources.{name}', path)
      for name in _SOURCES
      for path in getattr(config.sources, name)
    ),
    *(
      ('decontamination.benchmarks', path)
      for path in config.decontamination.benchmarks
    ),
  )
  _check_keys(config)
  return run(config, values['workdir'].value)


def run(config: CurateConfig, workdir: str | os.PathLike[str]) -> int:
  """Runs all stages and writes what DIR receives; returns the exit code.

  Args:
    config: the run.
    workdir: of a new run, or of one to go on with.

  Raises:
    UsageError: a source or benchmark cannot be read.
  """
  # It imports jax, which takes a second.
  from qed.training import rundir

  folder = pathlib.Path(workdir)
  rundir.start(folder, dataclasses.asdict(config), may_change=())
  try:
    return asyncio.run(_until_terminated(_Run(config, folder).curate()))
  except (http.Failure, asking.NoReplyError) as error:
    print(f'{error}\nstopped; what was done so far is kept', flush=True)
    return cli.RESTART
  except (ValueError, ImportError) as error:
    raise app.UsageError(str(error)) from error


async def _until_terminated(work: Any) -> int:
  """Awaits `work`; SIGTERM stops it, with what is done kept."""
  task = asyncio.ensure_future(work)
  loop = asyncio.get_running_loop()
  loop.add_signal_handler(signal.SIGTERM, task.cancel)
  try:
    await task
  except asyncio.CancelledError:
    print('stopped; what was done so far is kept', flush=True)
    return cli.RESTART
  finally:
    loop.remove_signal_handler(signal.SIGTERM)
  return cli.DONE


class _Run:
  """The stages in a row, each from the folder of the one before."""

  def __init__(self, config: CurateConfig, folder: pathlib.Path):
    self._config, self._folder = config, folder
    self._reports: list[stages.Report] = []
    self._inputs = _inputs(config)
    self._last = folder  # Of the stage before.

  async def curate(self) -> None:
    """Runs everything that the config names."""
    config = self._config
    benchmark = decontaminate.load_benchmarks(config.decontamination.benchmarks)
    index = likeness.Index(benchmark, config.decontamination)
    await self._read()
    await self._stage(
      'filter',
      lambda items: filters.filter_items(items, config.filters),
      config.filters,
    )
    folder = self._last
    await self._stage(
      'duplicates',
      lambda _: duplicates.remove_duplicates(
        lambda: stages.read_kept(folder), config.duplicates
      ),
      config.duplicates,
      is_rowwise=False,
    )
    curated.write_duplicates(self._folder, self._last)
    await self._stage(
      'decontaminate',
      lambda items: decontaminate.decontaminate(
        items, index, config.decontamination
      ),
      config.decontamination,
      benchmarks={
        path: stages.sha256(path) for path in config.decontamination.benchmarks
      },
    )
    curated.write_review(self._folder, self._last, benchmark)
    async with contextlib.AsyncExitStack() as stack:
      await self._ask_models(stack)
    curated.write_summary(self._folder, self._reports)

  async def _read(self) -> None:
    """The first stage, of which the input are the files themselves."""
    config = self._config
    collections = {name: getattr(config.sources, name) for name in _SOURCES}
    await self._stage(
      'read',
      lambda _: sources.read(collections, malformed=config.sources.malformed),
      {'malformed': config.sources.malformed},
      is_rowwise=False,
      source=stages.digest({'inputs': self._inputs}),
    )

  async def _ask_models(self, stack: contextlib.AsyncExitStack) -> None:
    """The stages that need one, with the outputs that come of them."""
    config, names = self._config, self._config.model_stages
    journal = stack.enter_context(
      contextlib.closing(journals.Journal(self._folder / 'completions.sqlite'))
    )

    async def model(writer: WriterConfig) -> asking.Model:
      return await writers.model(writer, journal, stack)

    if 'quality' in names:
      reader = await model(config.quality.writer)
      await self._stage(
        'quality',
        lambda items: quality.assess(items, reader, config.quality),
        config.quality,
      )
    if 'rubrics' in names:
      author = await model(config.rubrics.writer)
      await self._stage(
        'rubrics',
        lambda items: rubrics.write_rubrics(items, author, config.rubrics),
        config.rubrics,
      )
    if 'difficulty' in names:
      solver = await model(config.difficulty.writer)
      asked = await stack.enter_async_context(
        judge.opened(config.judge, self._folder / 'verdicts.sqlite')
      )
      grade = asked.grade
      await self._stage(
        'difficulty',
        lambda items: difficulty.estimate(
          items, solver, grade, config.difficulty
        ),
        config.difficulty,
        judge=dataclasses.asdict(config.judge),
      )
      tried = self._last
    if 'selection' in names:
      await self._stage(
        'selection',
        lambda items: selection.select(items, config.selection),
        config.selection,
        is_rowwise=False,
      )
      self._draw(tried)
    self._write_output('problems', *curated.problems(self._last))
    if 'teacher' in names:
      await self._write_proofs(await model(config.teacher.writer))
    if 'prefixes' in names:
      await self._write_prefixes(tried, solver, grade)

  async def _stage(
    self,
    name: str,
    stage: Callable[[Iterable[Item]], stages.Outcomes],
    section: Any,
    *,
    is_rowwise: bool = True,
    source: str = '',
    **settings: Any,
  ) -> None:
    """Runs a stage on what the one before kept."""
    folder = self._folder / 'stages' / f'{len(self._reports) + 1}_{name}'
    before, total = self._last, None
    if self._reports:
      source = self._reports[-1].sha256
      total = self._reports[-1].num_kept
    if not isinstance(section, dict):
      section = stages.settings_of(section)
    with progress.shown(name, total) as told:
      report = await stages.run(
        folder,
        name,
        lambda start: stages.read_kept(before, start) if total else (),
        stage,
        source=source,
        settings={**section, **settings},
        is_rowwise=is_rowwise,
        told=told,
      )
    print(_line(report), flush=True)
    self._reports.append(report)
    self._last = folder

  async def _write_proofs(self, model: asking.Model) -> None:
    """The teacher's proofs: all, one of each problem, and the unusable."""
    section = self._config.teacher
    items = stages.read_kept(self._last)
    unused = []
    every = self._folder / 'sft_all.jsonl.making'
    with (
      progress.shown('teacher', self._reports[-1].num_kept) as told,
      every.open('w', encoding='utf-8', newline='\n') as file,
    ):
      num_done = 0
      async for attempts in teacher.distill(items, model, section):
        for attempt in attempts:
          if attempt.reason:
            unused.append(attempt.account())
            continue
          prompt = teacher.question(attempt.item, section)[0].content
          row = json.dumps(attempt.row(prompt), ensure_ascii=False)
          file.write(f'{row}\n')
        num_done += 1
        told(num_done)
    curated.write_rows(self._folder / 'sft_unused.jsonl', unused)
    about = f'Proofs of {section.writer.model}, not filtered by correctness'
    self._write_output(
      'sft_all', curated.read_rows(every), f'{about}; several of a problem.'
    )
    self._write_output(
      'sft_unique',
      curated.first_of_each(curated.read_rows(every)),
      f'{about}; one of each problem.',
    )
    every.unlink()

  async def _write_prefixes(
    self, tried: pathlib.Path, model: asking.Model, grade: difficulty.Judge
  ) -> None:
    """How much of a proof those problems need that were never solved."""
    config = self._config

    def unsolved():
      for item in stages.read_kept(tried):
        if not item.notes[difficulty.NAME]['pass_rate'] and item.solution:
          yield item

    self._write_output(
      'unsolved',
      map(curated.problem_row, unsolved()),
      'Problems that were never solved, but have a proof.',
    )
    found = []
    with progress.shown('prefixes', None) as told:
      async for prefix in prefixes.choose(
        unsolved(),
        model,
        grade,
        config.prefixes,
        pass_score=config.difficulty.pass_score,
      ):
        found.append(dataclasses.asdict(prefix))
        told(len(found))
    self._write_output(
      'prefixes', found, 'Beginnings of proofs of problems never solved.'
    )

  def _draw(self, tried: pathlib.Path) -> None:
    before, after = (
      [item.difficulty for item in stages.read_kept(folder)]
      for folder in (tried, self._last)
    )
    difficulty_plot.draw(
      before,
      after,
      self._folder / 'difficulty.png',
      num_bins=self._config.selection.num_bins,
    )

  def _write_output(
    self, name: str, rows: Iterable[Mapping[str, Any]], about: str
  ) -> None:
    path = self._folder / f'{name}.jsonl'
    count = curated.write_output(
      path, rows, about=about, inputs=self._inputs, reports=self._reports
    )
    print(f'{path}: {count:,} rows', flush=True)


def _check_keys(config: CurateConfig) -> None:
  """Tells a missing key before anything is done."""
  names = config.model_stages
  used = [getattr(config, n).writer for n in _WITH_WRITER if n in names]
  used += [config.judge] * ('difficulty' in names)
  try:
    for section in used:
      http.api_key(section.api_key_env)
  except ValueError as error:
    raise app.UsageError(str(error)) from error


def _inputs(config: CurateConfig) -> list[dict[str, Any]]:
  """Every file that is read, with its hash and its license."""
  licenses = dict(line.split('=', 1) for line in config.sources.licenses)
  return [
    {
      'source': name,
      'path': path,
      'sha256': stages.sha256(path),
      'bytes': os.path.getsize(path),
      'license': licenses[name],
    }
    for name in _SOURCES
    for path in getattr(config.sources, name)
  ]


def _line(report: stages.Report) -> str:
  removed = ', '.join(f'{n:,} {why}' for why, n in report.removed.items())
  rate = report.num_in / max(report.secs, 1e-9)
  return (
    f'{report.stage}: {report.num_kept:,} of {report.num_in:,} kept'
    + (f' (removed: {removed})' if removed else '')
    + f', {rate:,.0f} rows/s'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main))
