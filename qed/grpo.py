r"""Reinforcement learning on proofs that a judge grades.

  qed grpo --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

  problems -> prompts -> completions -> grades -> rewards -> groups   collector
  groups -> advantages -> samples -> packed batch -> step             trainer
  weights of the step -> samplers                                     publisher

With guidance.paths, some groups go on from the beginning of a proof (POPE;
rollout/guided.py). With rollout.states_per_problem, prompts have summaries of
earlier turns (a reasoning cache; rollout/states.py), and states.jsonl has every
turn.

The three (rollout/collector.py, qed/policy.py, qed/publishing.py) run at the
same time. How far sampling may run ahead of training is rollout.max_lag: 0
makes them take turns, and then a run that was interrupted ends bit for bit like
one that was not.

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
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from absl import app, flags

from qed import cli, held_out, preparation, recording, startup, unrolling
from qed.collecting import make_collector
from qed.config import GrpoConfig
from qed.preparation import Account, Grader, Run
from qed.publishing import Publisher
from qed.recording import Recorder
from qed.rollout import health, prompts
from qed.rollout.health import HealthError
from qed.rollout.journal import Journal
from qed.rollout.stages import Stages

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  from qed.policy import Trainer
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
    self._recorder = Recorder(run, self._stages)
    self._stop = asyncio.Event()

  def start(self, open_sampler: OpenSampler, open_grader: OpenGrader) -> int:
    """Trains until all steps are done or somebody stops it; saves the state.

    Returns:
      The exit code.

    Raises:
      HealthError: the run should not go on as it is.
    """
    path = self._run.workdir / 'rollouts.jsonl'
    with contextlib.closing(Journal(path)) as journal:
      try:
        asyncio.run(self._open(open_sampler, open_grader, journal))
      except StallError as error:
        print(f'stopped, since {error}')
    return cli.DONE if self._is_complete else cli.RESTART

  async def _open(
    self, open_sampler: OpenSampler, open_grader: OpenGrader, journal: Journal
  ) -> None:
    """Opens what the run needs, and runs it."""
    from qed.training import metrics

    run, stages, done = self._run, self._stages, self._trainer.num_done
    if self._is_complete:
      return
    watch = asyncio.create_task(self._watch())
    watch.add_done_callback(lambda _: self._stop.set())
    async with contextlib.AsyncExitStack() as stack:
      opening = open_sampler(run, self._trainer.weights(), done)
      with stages.inside('publish', f'version {done}'):
        sampler = await self._unless_stopped(stack.enter_async_context(opening))
      if sampler is None:
        watch.result()  # Raises what it ended with.
        return
      grader = await stack.enter_async_context(open_grader(run))
      self._publisher = Publisher(sampler, stages, version=done)
      self._source = await stack.enter_async_context(
        unrolling.open_source(
          run,
          sampler,
          stages=stages,
          journal=journal,
          version=lambda: self._publisher.in_effect,
        )
      )
      self._collector = make_collector(
        run,
        self._source,
        sampler,
        grader,
        journal=journal,
        stages=stages,
        on_problem=self._recorder.write_problem,
      )
      self._collector.restore(self._account.collector, step=done)
      self._evaluations = held_out.Evaluations(
        run, sampler, grader, stages, wait_for=self._publisher.wait_for
      )
      writer, progress = stack.enter_context(
        metrics.opened(
          run.workdir,
          done=done,
          num_steps=run.config.training.total_steps,
          wandb_project=run.config.training.wandb_project,
        )
      )
      await self._work(watch, writer, progress)

  async def _work(
    self, watch: asyncio.Task, writer: Writer, progress: Progress
  ) -> None:
    """Runs all parts; the trainer's end, or a failure of any, ends all."""
    train = asyncio.create_task(self._train(writer, progress))
    parts = (
      self._collector.run(),
      self._publisher.run(self._collector.advance),
    )
    others = [*map(asyncio.create_task, parts), watch]
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
      evaluation = self._evaluations.task
      if evaluation is not None and self._is_complete:
        await asyncio.wait([evaluation, *others], return_when='FIRST_COMPLETED')
        failure = _failure([evaluation, *others])
        if failure:
          raise failure
    finally:
      tasks = [*filter(None, (train, *others, self._evaluations.task))]
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)
      # Rollouts may have come in since the last one.
      self._recorder.write_ledger(self._collector)

  async def _train(self, writer: Writer, progress: Progress) -> None:
    """A step for every batch of groups, until it is told to stop."""
    config, trainer = self._run.config, self._trainer
    interval = config.training.checkpoint_interval_steps
    self._evaluations.begin(trainer.num_done)
    while not self._is_complete:
      taken = await self._unless_stopped(self._collector.take())
      if taken is None:
        return
      evaluation = self._evaluations.task
      if config.rollout.max_lag == 0 and evaluation is not None:
        # Its samples must all be of one version.
        await self._unless_stopped(asyncio.shield(evaluation))
        if not evaluation.done():
          return
      began = time.monotonic()
      shares = [trainer.share(group) for group in taken]
      with self._stages.inside('train', f'step {trainer.num_done + 1}'):
        update = await asyncio.to_thread(trainer.update, shares)
      self._collector.book(shares)
      self._account.secs += time.monotonic() - began
      done = trainer.num_done
      self._publisher.hand_out(update.weights, done)
      secs = time.monotonic() - began
      record = self._recorder.write_step(
        done, update, shares, self._collector, self._source
      )
      record |= trainer.throughput(shares, secs) | self._evaluations.report()
      writer.write(done, record)
      progress.show(done, recording.figures(record))
      self._evaluations.begin(done)
      illness = self._illness(record)
      if illness:
        raise illness
      if done % interval == 0 or self._is_complete:
        await self._save()

  @property
  def _is_complete(self) -> bool:
    return self._trainer.num_done >= self._run.config.training.total_steps

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

  def conclude(self) -> None:
    """Writes the run in one object, or says how far it is; all is saved."""
    done = self._trainer.num_done
    if not self._is_complete:
      print(
        f'{done} of {self._run.config.training.total_steps} steps are done and '
        'saved; the same command goes on from here'
      )
      return
    summary = self._recorder.write_summary(done, self._account)
    summary['evaluation'].pop('scores', None)  # Of every problem: on file.
    print(f'complete: {summary}')


def _failure(tasks: Sequence[asyncio.Task]) -> BaseException | None:
  """What went wrong first in tasks that ended, out of its group."""
  for task in tasks:
    if task.done() and not task.cancelled() and task.exception():
      error = task.exception()
      while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
      return error
  return None


if __name__ == '__main__':
  sys.exit(cli.run(main))
