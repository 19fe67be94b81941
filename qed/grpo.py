r"""Reinforcement learning on proofs that a judge grades.

  qed grpo --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

  problems -> prompts -> completions -> grades -> rewards -> groups   collector
  groups -> advantages -> samples -> packed batch -> step             trainer
  weights of the step -> samplers                                     publisher

With guidance.paths, some groups go on from the beginning of a proof (POPE;
rollout/guided.py). With rollout.states_per_problem, prompts have summaries of
earlier turns (a reasoning cache; rollout/states.py), and states.jsonl has every
turn.

The three run at the same time. How far sampling may run ahead of training is
rollout.max_lag: 0 makes them take turns, and then a run that was interrupted
ends bit for bit like one that was not.

  qed grpo --config=experiments/rl_main.py --workdir=runs/rl
  qed grpo --config=experiments/rl_main.py:synchronous --workdir=runs/sync

On several hosts the same command runs on each (qed/gang.py), and samplers are
`qed serve`, with sampler.placement = 'remote'.

The same command with the same DIR goes on where it was stopped. DIR/checkpoints
is what `qed export` takes; rollouts.jsonl has every graded rollout, ledger.json
where every token went, batches.jsonl which groups a step was trained on.

Exit codes: 0 the run is complete; 42 its state is saved, start it again; 2 it
takes a person: the config is wrong, or the run stopped itself at one of the
config's limits (health, training.max_skipped_steps) and would again; 1 a bug.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from absl import app, flags

from qed import cli, held_out, preparation, startup, unrolling
from qed.config import GrpoConfig
from qed.preparation import Account, Grader, Run
from qed.rollout import groups, guided, health, lines, prompts
from qed.rollout.collector import Collector, Plan
from qed.rollout.health import HealthError
from qed.rollout.journal import Journal
from qed.rollout.stages import Stages
from qed.types import SamplingParams

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  from qed.policy import Trainer, Update
  from qed.samplers import Sampler
  from qed.training.metrics import Progress, Writer

# (run, weights, their version) -> what draws with them; a context.
OpenSampler = Callable[[Run, Any, int], AbstractAsyncContextManager['Sampler']]
OpenGrader = Callable[[Run], AbstractAsyncContextManager[Grader]]

_STAGES = ('generate', 'grade', 'train', 'publish', 'checkpoint')
_WATCH_SECS = 0.1


class StallError(RuntimeError):
  """A stage that does not move; the text says which, and for how long."""


def main(argv: Sequence[str]) -> int:
  """Checks the command line and the config, then trains."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  config = cli.parse_config(argv, values, run=GrpoConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    ('model.path', config.model.path),
    ('problems.tokenizer', config.problems.tokenizer),
    ('summarizer.path', config.summarizer.path),
    *(('problems.paths', path) for path in config.problems.paths),
    *(('guidance.paths', path) for path in config.guidance.paths),
    *(('evaluation.paths', path) for path in config.evaluation.paths),
  )
  workdir = values['workdir'].value
  try:
    return train(config, workdir)
  except HealthError as error:
    raise app.UsageError(
      f'the run stopped itself. {error}. What would do: {error.remedy}. The '
      f'state is saved in {workdir}/checkpoints; the same command, with '
      'another limit if need be, goes on from there'
    ) from error


def train(
  config: GrpoConfig,
  workdir: str,
  *,
  open_sampler: OpenSampler | None = None,
  open_grader: OpenGrader | None = None,
) -> int:
  """Trains until the run is complete or is stopped; returns the exit code.

  Args:
    config: the run.
    workdir: of a new run, or of one to go on with.
    open_sampler: what draws completions; None: what the config says.
    open_grader: what grades them; None: the judge of the config.

  Raises:
    UsageError, ConfigError: what the config names does not fit together, or
      does not fit what is in the run directory.
    HealthError: the run should not go on as it is; its state is saved.
  """
  from qed import gang, policy, samplers
  from qed.learner import Learner
  from qed.training import checkpoints, processes

  processes.initialize()
  with startup.leaving_at_once(), startup.user_errors():
    run = preparation.prepare(config, pathlib.Path(workdir))
    checkpointer = checkpoints.Checkpointer(
      run.workdir / 'checkpoints', keep=config.training.max_checkpoints
    )
    state, account = startup.restore_or_start(
      run,
      checkpointer,
      Account,
      data_digest=prompts.digest(run.practice),
      field='problems.paths',
    )
    learner = Learner(run, state, checkpointer)
  with processes.Preemption() as preemption:
    if not processes.is_first():
      return gang.follow(learner, preemption)
    crew = gang.Gang(learner, preemption)
    trainer = policy.Trainer(config, run.model, crew, num_done=int(state.step))
    loop = Loop(run, trainer, account, is_preempted=crew.is_preempted)
    code = cli.BUG
    try:
      code = loop.start(
        open_sampler or samplers.open_sampler,
        open_grader or preparation.open_judge,
      )
    except HealthError:
      code = cli.USAGE
      raise
    finally:
      crew.dismiss(code)
  loop.conclude()
  return code


class Loop:
  """Collector, trainer, publisher, evaluation and watchdog at work together."""

  def __init__(
    self,
    run: Run,
    trainer: Trainer,
    account: Account,
    *,
    is_preempted: Callable[[], bool],
  ):
    """Takes over the trainer; nothing begins before `start`."""
    self._run, self._account = run, account
    self._trainer, self._is_preempted = trainer, is_preempted
    limits = run.config.health
    self._limits = health.Limits(
      max_mismatch=limits.max_mismatch,
      min_entropy=limits.min_entropy,
      max_ungraded_frac=limits.max_ungraded_frac,
      patience_steps=limits.patience_steps,
    )
    self._limits.counts |= account.ill_steps
    self._stages = Stages(_STAGES)
    for name in ('problems', 'batches', 'inspected', 'evaluations'):
      lines.cut_partial_line(run.workdir / f'{name}.jsonl')
    self._problems_on_file = lines.Once(
      run.workdir / 'problems.jsonl', 'problem_id'
    )
    self._stop = asyncio.Event()
    self._unpublished: tuple[int, Any] | None = None
    self._has_unpublished = asyncio.Event()
    self._in_effect = trainer.num_done  # Version that samplers draw with.
    self._is_in_effect = asyncio.Event()
    self._evaluation: asyncio.Task | None = None
    self._evaluated: dict[str, float] = {}

  def start(self, open_sampler: OpenSampler, open_grader: OpenGrader) -> int:
    """Trains until all steps are done or somebody stops it; saves the state.

    Returns:
      The exit code.

    Raises:
      HealthError: the run should not go on as it is.
    """
    path = self._run.workdir / 'rollouts.jsonl'
    with contextlib.closing(Journal(path)) as self._journal:
      try:
        asyncio.run(self._open(open_sampler, open_grader))
      except StallError as error:
        print(f'stopped, since {error}')
    return cli.DONE if self._is_complete else cli.RESTART

  def conclude(self) -> None:
    """Writes the run in one object, or says how far it is; all is saved."""
    from qed.training import rundir

    if not self._is_complete:
      print(
        f'{self._trainer.num_done} of {self._run.config.training.total_steps} '
        'steps are done and saved; the same command goes on from here'
      )
      return
    folder = self._run.workdir
    account = dataclasses.asdict(self._account)
    del account['collector'], account['ill_steps']
    found = held_out.on_file(folder)
    summary = {
      'steps': self._trainer.num_done,
      **account,
      'ledger': json.loads((folder / 'ledger.json').read_text()),
      'evaluation': found[max(found)] if found else {},
    }
    rundir.write_json(folder / 'summary.json', summary)
    print(f'complete: {summary}')

  async def _open(
    self, open_sampler: OpenSampler, open_grader: OpenGrader
  ) -> None:
    """Opens what the run needs, and runs it."""
    from qed.training import metrics

    run, done = self._run, self._trainer.num_done
    if self._is_complete:
      return
    watch = asyncio.create_task(self._watch())
    watch.add_done_callback(lambda _: self._stop.set())
    async with contextlib.AsyncExitStack() as stack:
      opening = open_sampler(run, self._trainer.weights(), done)
      with self._stages.inside('publish', f'version {done}'):
        self._sampler = await self._unless_stopped(
          stack.enter_async_context(opening)
        )
      if self._sampler is None:
        watch.result()  # Raises what it ended with.
        return
      self._grader = await stack.enter_async_context(open_grader(run))
      source = unrolling.open_source(
        run,
        self._sampler,
        stages=self._stages,
        journal=self._journal,
        version=lambda: self._in_effect,
      )
      self._source = await stack.enter_async_context(source)
      self._collector = self._make_collector()
      self._collector.restore(self._account.collector, step=done)
      training = run.config.training
      writer, progress = stack.enter_context(
        metrics.opened(
          run.workdir,
          done=done,
          num_steps=training.total_steps,
          wandb_project=training.wandb_project,
        )
      )
      await self._work(watch, writer, progress)

  async def _work(
    self, watch: asyncio.Task, writer: Writer, progress: Progress
  ) -> None:
    """Runs all parts; the trainer's end, or a failure of any, ends all."""
    train = asyncio.create_task(self._train(writer, progress))
    parts = (self._collector.run, self._publish)
    others = [*(asyncio.create_task(part()) for part in parts), watch]
    try:
      await asyncio.wait([train, *others], return_when='FIRST_COMPLETED')
      self._stop.set()
      failure = _failure(others)
      if isinstance(failure, StallError) and self._stages.num_inside('train'):
        # A thread that hangs on a device cannot be joined, nor can the state
        # that it holds be saved; the last checkpoint stands.
        print(f'stopped, since {failure}', flush=True)
        os._exit(cli.RESTART)
      await asyncio.wait([train])
      failure = _failure([train]) or failure
      if not _failure([train]) or isinstance(failure, HealthError):
        await self._save()
      if failure:
        raise failure
      if self._evaluation is not None and self._is_complete:
        await asyncio.wait(
          [self._evaluation, *others], return_when='FIRST_COMPLETED'
        )
        failure = _failure([self._evaluation, *others])
        if failure:
          raise failure
    finally:
      others += [self._evaluation] if self._evaluation else []
      for task in (train, *others):
        task.cancel()
      await asyncio.gather(train, *others, return_exceptions=True)
      self._write_ledger()  # Rollouts may have come in since the last one.

  @property
  def _is_complete(self) -> bool:
    return self._trainer.num_done >= self._run.config.training.total_steps

  # The trainer.

  async def _train(self, writer: Writer, progress: Progress) -> None:
    """A step for every batch of groups, until it is told to stop."""
    config, trainer = self._run.config, self._trainer
    interval = config.training.checkpoint_interval_steps
    self._begin_evaluation()
    while not self._is_complete:
      taken = await self._unless_stopped(self._collector.take())
      if taken is None:
        return
      if config.rollout.max_lag == 0 and self._evaluation is not None:
        # Its samples must all be of one version.
        await self._unless_stopped(asyncio.shield(self._evaluation))
        if not self._evaluation.done():
          return
      began = time.monotonic()
      shares = [trainer.share(group) for group in taken]
      with self._stages.inside('train', f'step {trainer.num_done + 1}'):
        update = await asyncio.to_thread(trainer.update, shares)
      self._collector.book(shares)
      self._account.secs += time.monotonic() - began
      self._hand_out(update.weights)
      done = trainer.num_done
      record = self._record(update, shares, time.monotonic() - began)
      writer.write(done, record)
      progress.show(done, _figures(record))
      self._begin_evaluation()
      illness = self._illness(record)
      if illness:
        raise illness
      if done % interval == 0 or self._is_complete:
        await self._save()

  async def _unless_stopped(self, work) -> Any:
    """What `work` returns, or None if the run is to stop before that."""
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(self._stop.wait())
    await asyncio.wait([task, stop], return_when='FIRST_COMPLETED')
    stop.cancel()
    # Both at once, where samplers are ahead: what is there is not waited for.
    if self._stop.is_set() and not (task.done() and task.exception()):
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)
      return None
    return task.result()

  def _record(
    self, update: Update, shares: Sequence[groups.Share], secs: float
  ) -> dict[str, float]:
    """The metrics of a step, and its lines in the other files."""
    run, done = self._run, self._trainer.num_done
    book = self._write_ledger()
    lines.append(
      run.workdir / 'batches.jsonl',
      [{'step': done, 'groups': [share.group.group_id for share in shares]}],
    )
    every = run.config.health.inspect_interval_steps
    if every and done % every == 0:
      lines.append(
        run.workdir / 'inspected.jsonl',
        update.inspected_lines(done, run.words.decode),
      )
    busy, elapsed = self._stages.lap()
    finished = self._collector.report()
    record = update.record | health.of_groups(finished)
    if run.config.guidance.paths:
      record |= guided.metrics(
        finished, pass_score=run.config.guidance.pass_score
      )
    record |= self._source.report()
    record |= {
      'tokens/generated': book['generated'],
      'tokens/trained': book['trained'],
      'tokens/stale': book['stale'],
      'tokens/dropped': sum(book['dropped'].values()),
      'tokens/in_flight': book['in_flight'],
      'groups/waiting': self._collector.num_waiting,
      'groups/under_way': self._collector.num_under_way,
      'secs/step': elapsed,
      'idle/trainer': 1 - busy['train'] / elapsed,
      'idle/sampler': 1 - busy['generate'] / elapsed,
    }
    record |= {f'secs/{stage}': busy[stage] for stage in _STAGES}
    record |= self._trainer.throughput(shares, secs) | self._evaluated
    self._evaluated = {}
    return record

  def _write_ledger(self) -> dict[str, Any]:
    from qed.training import rundir

    book = self._collector.book_as_json()
    rundir.write_json(self._run.workdir / 'ledger.json', book)
    return book

  def _illness(self, record: Mapping[str, float]) -> HealthError | None:
    """Why the run should not go on, if so."""
    account, done = self._account, self._trainer.num_done
    limit = self._run.config.training.max_skipped_steps
    if record['optim/skipped']:
      account.num_skipped += 1
      text = (
        f'step {done}: the gradient was not finite (loss {record["loss"]}, '
        f'norm {record["optim/grad_norm"]}), so that the weights stayed as '
        'they were'
      )
      if account.num_skipped > limit:
        return HealthError(
          f'{text}. That is {account.num_skipped} such steps, and '
          f'training.max_skipped_steps = {limit}',
          remedy='the groups of these steps are in batches.jsonl; a lower '
          "optim.peak_lr or model.dtype = 'float32' often helps",
        )
      print(text, flush=True)
    illness = self._limits.check(done, record)
    account.ill_steps = dict(self._limits.counts)
    return illness

  async def _save(self) -> None:
    """Saves the state as it is now; a step that is saved stays as it is."""
    self._account.collector = self._collector.snapshot()
    extra = dataclasses.asdict(self._account)
    step = f'step {self._trainer.num_done}'
    with self._stages.inside('checkpoint', step):
      await asyncio.to_thread(self._trainer.save, extra)

  # The publisher.

  def _hand_out(self, weights: Any) -> None:
    """Leaves weights for the publisher, who takes the newest."""
    self._unpublished = (self._trainer.num_done, weights)
    self._has_unpublished.set()

  async def _publish(self) -> None:
    """Brings new weights to the samplers, and tells the collector."""
    while True:
      await self._has_unpublished.wait()
      self._has_unpublished.clear()
      version, weights = self._unpublished
      self._unpublished = None
      with self._stages.inside('publish', f'version {version}'):
        await self._sampler.update(weights, version)
      del weights
      self._in_effect = version
      self._is_in_effect.set()
      self._collector.advance(version)

  # The watchdog.

  async def _watch(self) -> None:
    """Returns when the run is asked to stop.

    Raises:
      StallError: a stage does not move.
    """
    limit = self._run.config.health.stall_secs
    while not self._is_preempted():
      stuck = self._stages.stuck(limit)
      if stuck:
        raise StallError(f'{stuck} (health.stall_secs = {limit:g})')
      await asyncio.sleep(_WATCH_SECS)

  # The collector's part.

  def _make_collector(self) -> Collector:
    config, run = self._run.config, self._run
    sampling, rollout = config.sampling, config.rollout

    async def grade(problem, completion, prefix):
      return await self._grader.grade(
        problem, completion, sampling.max_tokens, prefix
      )

    return Collector(
      self._source,
      Plan(
        num_steps=config.training.total_steps,
        groups_per_step=rollout.groups_per_step,
        group_size=rollout.group_size,
        max_lag=rollout.max_lag,
        max_groups_in_flight=rollout.max_groups_in_flight,
        max_groups_waiting=rollout.max_groups_waiting,
        zero_signal=rollout.zero_signal,
        max_dropped_groups=config.health.max_dropped_groups,
        seed=config.training.seed,
      ),
      SamplingParams(
        **dataclasses.asdict(sampling),
        stop_token_ids=run.words.stop_token_ids,
        seed=0,
      ),
      sample=self._sampler.sample,
      grade=grade,
      wait_ready=self._grader.wait_ready,
      journal=self._journal,
      pass_rates=prompts.PassRates(
        low=config.problems.min_pass_rate, high=config.problems.max_pass_rate
      ),
      stages=self._stages,
      on_problem=self._problems_on_file.write,
    )

  # Evaluation.

  def _begin_evaluation(self) -> None:
    """Tries the held-out problems if it is time, beside everything else."""
    interval = self._run.config.training.eval_interval_steps
    done = self._trainer.num_done
    if not interval or (done % interval and not self._is_complete):
      return
    if self._evaluation is not None:
      if not self._evaluation.done():
        print(f'step {done}: not evaluated; the last one is still under way')
        return
      self._evaluation.result()
    self._evaluation = asyncio.create_task(self._evaluate(done))

  async def _evaluate(self, step: int) -> None:
    """Puts the scores of held-out problems on file."""
    while self._in_effect < step:
      self._is_in_effect.clear()
      await self._is_in_effect.wait()
    found = held_out.on_file(self._run.workdir).get(step)
    if found is None:
      found = await held_out.evaluate(
        self._run, self._sampler, self._grader, self._stages, step
      )
      lines.append(self._run.workdir / 'evaluations.jsonl', [found])
    self._evaluated = {
      f'eval/{name}': value
      for name, value in found.items()
      if isinstance(value, int | float)
    }


def _failure(tasks: Sequence[asyncio.Task]) -> BaseException | None:
  """What went wrong first in tasks that ended, out of its group."""
  for task in tasks:
    if task.done() and not task.cancelled() and task.exception():
      error = task.exception()
      while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
      return error
  return None


def _figures(record: Mapping[str, float]) -> dict[str, str]:
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


if __name__ == '__main__':
  sys.exit(cli.run(main))
