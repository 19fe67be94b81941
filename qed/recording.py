"""What `qed grpo` puts on file of its steps, and shows of them.

  batches.jsonl    the groups that a step was trained on
  inspected.jsonl  what the trainer makes of the tokens of some rollouts
  problems.jsonl   every problem that was practised
  ledger.json      where every token went
  summary.json     the run in one object, when it is complete

Rollouts and states have journals of their own, evaluations are put on file in
qed/held_out.py, and metrics.jsonl is written by training/metrics.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qed import held_out
from qed.preparation import Account, Run
from qed.rollout import groups, guided, health, lines
from qed.rollout.collector import Collector, Source
from qed.rollout.stages import Stages
from qed.types import Problem

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  from qed.policy import Update


class Recorder:
  """Writes the files of a run, and the metrics of a step."""

  def __init__(self, run: Run, stages: Stages):
    """Makes the files ready for more lines.

    Args:
      run: whose files they are.
      stages: all of the run.
    """
    self._run, self._stages = run, stages
    for name in ('problems', 'batches', 'inspected', 'evaluations'):
      lines.cut_partial_line(run.workdir / f'{name}.jsonl')
    self._problems = lines.Once(run.workdir / 'problems.jsonl', 'problem_id')

  def write_problem(self, problem: Problem) -> None:
    """Puts a problem on file, unless it is."""
    self._problems.write(problem)

  def write_ledger(self, collector: Collector) -> dict[str, Any]:
    """Puts the books of the collector on file; returns them."""
    from qed.training import rundir

    book = collector.book_as_json()
    rundir.write_json(self._run.workdir / 'ledger.json', book)
    return book

  def write_step(
    self,
    step: int,
    update: Update,
    shares: Sequence[groups.Share],
    collector: Collector,
    source: Source,
  ) -> dict[str, float]:
    """Puts a step on file; returns its metrics.

    Args:
      step: its number.
      update: what it did.
      shares: what it was trained on.
      collector: where that came from, and
      source: what is drawn there.
    """
    run = self._run
    book = self.write_ledger(collector)
    lines.append(
      run.workdir / 'batches.jsonl',
      [{'step': step, 'groups': [share.group.group_id for share in shares]}],
    )
    every = run.config.health.inspect_interval_steps
    if every and step % every == 0:
      lines.append(
        run.workdir / 'inspected.jsonl',
        update.inspected_lines(step, run.words.decode),
      )
    busy, elapsed = self._stages.lap()
    finished = collector.report()
    record = update.record | health.of_groups(finished)
    if run.config.guidance.paths:
      record |= guided.metrics(
        finished, pass_score=run.config.guidance.pass_score
      )
    record |= source.report()
    record |= {
      'tokens/generated': book['generated'],
      'tokens/trained': book['trained'],
      'tokens/stale': book['stale'],
      'tokens/dropped': sum(book['dropped'].values()),
      'tokens/in_flight': book['in_flight'],
      'groups/waiting': collector.num_waiting,
      'groups/under_way': collector.num_under_way,
      'secs/step': elapsed,
      'idle/trainer': 1 - busy['train'] / elapsed,
      'idle/sampler': 1 - busy['generate'] / elapsed,
    }
    return record | {f'secs/{stage}': secs for stage, secs in busy.items()}

  def write_summary(self, num_steps: int, account: Account) -> dict[str, Any]:
    """Puts the run in one object on file; returns it.

    Args:
      num_steps: that are done.
      account: of the run.
    """
    from qed.training import rundir

    folder = self._run.workdir
    figures = dataclasses.asdict(account)
    del figures['collector'], figures['ill_steps']
    evaluations = held_out.on_file(folder)
    summary = {
      'steps': num_steps,
      **figures,
      'ledger': json.loads((folder / 'ledger.json').read_text()),
      'evaluation': evaluations[max(evaluations)] if evaluations else {},
    }
    rundir.write_json(folder / 'summary.json', summary)
    return summary


def figures(record: Mapping[str, float]) -> dict[str, str]:
  """What a person wants to see of a step."""
  shown = {
    'reward': ('reward/mean', '.3f'),
    'eval': ('eval/score_mean', '.3f'),
    'length': ('length/mean', '.0f'),
    'truncated': ('rollouts/truncated', '.0%'),
    'ungraded': ('rollouts/ungraded', '.0%'),
    'entropy': ('entropy', '.3f'),
    'lag': ('lag/max', '.0f'),
    'mismatch': ('mismatch/mean', '.1e'),
    'tokens/s': ('time/tokens_per_sec', ',.0f'),
  }
  return {
    name: format(record[key], style)
    for name, (key, style) in shown.items()
    if key in record
  }
