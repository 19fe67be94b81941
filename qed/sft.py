r"""Supervised fine-tuning on teacher proofs.

  qed sft --config=FILE[:ARM] --workdir=DIR [--config.SECTION.FIELD=VALUE ...]

Reads traces (problem, reasoning, proof), packs them into rows, and trains on
the assistant's tokens. DIR receives the resolved config, the metrics of every
step and the checkpoints; the same command with the same DIR goes on where it
was stopped.

  qed sft --config=experiments/sft_main.py --workdir=runs/sft
  qed sft --config=experiments/sft_main.py --workdir=runs/low \
    --config.optim.peak_lr=1e-5

Exit codes: 0 the run is complete; 42 its state is saved, start it again; 2 it
takes a person: the config is wrong, or too many gradients were not finite; 1 a
bug.

DIR/checkpoints/ has the newest states of the run, and in best/ the weights with
the lowest loss on the problems that are held out; `qed export` takes either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import app, flags

from qed import cli, startup
from qed.config import ConfigError, SftConfig
from qed.data import demonstrations, packing, tokenizer
from qed.data.demonstrations import Demonstrations
from qed.types import PackedBatch, TrainingSample, TrainState

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  import optax
  from jax.sharding import Mesh

  from qed.models import specs
  from qed.training.checkpoints import Checkpointer
  from qed.training.processes import Preemption

# What may differ from one start of a run to the next.
_MAY_CHANGE = (*startup.MAY_CHANGE, 'data.paths', 'data.tokenizer')


class Run(NamedTuple):
  """What is the same at every step."""

  config: SftConfig
  workdir: pathlib.Path
  mesh: Mesh
  model: specs.Config
  tx: optax.GradientTransformationExtraArgs
  data: Demonstrations
  batches: Sequence[PackedBatch]  # By step.
  num_steps: int


@dataclasses.dataclass(slots=True, kw_only=True)
class Account:
  """What a checkpoint keeps beside the state, whose step is the data cursor."""

  data_digest: str
  num_skipped: int = 0
  tokens: float = 0.0  # Trained on.
  secs: float = 0.0
  validation_loss: float | None = None
  best_loss: float | None = None
  best_step: int | None = None


def main(argv: Sequence[str]) -> int:
  """Checks the command line and the config, then trains."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'the run directory; created if need be', flag_values=values
  )
  config = cli.parse_config(argv, values, run=SftConfig, usage=__doc__)
  if not values['workdir'].value:
    raise app.UsageError('--workdir=DIR is missing: where the run is kept')
  cli.check_paths(
    ('model.path', config.model.path),
    ('data.tokenizer', config.data.tokenizer),
    *(('data.paths', path) for path in config.data.paths),
  )
  workdir = values['workdir'].value
  try:
    return train(config, workdir)
  except FloatingPointError as error:
    raise app.UsageError(
      f'the run stopped itself. {error}. Look at these samples, or try a lower '
      f'optim.peak_lr; {workdir}/checkpoints has the last state that was saved'
    ) from error


def train(config: SftConfig, workdir: str) -> int:
  """Trains until the run is complete or is stopped; returns the exit code.

  Args:
    config: the run.
    workdir: of a new run, or of one to go on with.

  Raises:
    UsageError, ConfigError: what the config names does not fit together, or
      does not fit what is in the run directory.
    FloatingPointError: more gradients were not finite than the config allows.
  """
  from qed.training import processes

  processes.initialize()
  with startup.leaving_at_once(FloatingPointError):
    return _train(config, workdir)


def _train(config: SftConfig, workdir: str) -> int:
  """What `train` does, in each of the processes."""
  from qed.training import checkpoints, processes, rundir

  with startup.user_errors():
    run = _prepare(config, pathlib.Path(workdir))
    directory = run.workdir / 'checkpoints'
    keep = config.training.max_checkpoints
    last = checkpoints.Checkpointer(directory, keep=keep)
    best = checkpoints.Checkpointer(directory / 'best', keep=1)
    state, account = startup.restore_or_start(
      run,
      last,
      Account,
      data_digest=demonstrations.digest(run.data.train),
      field='data.paths',
    )
  with (
    contextlib.closing(last),
    contextlib.closing(best),
    processes.Preemption() as preemption,
    # Here too: to close is to wait for others.
    startup.leaving_at_once(FloatingPointError),
  ):
    num_done = _loop(run, state, account, last, best, preemption)
  if num_done < run.num_steps:
    startup.say(
      f'stopped; {num_done} of {run.num_steps} steps are done and saved'
    )
    return cli.RESTART
  summary = {'steps': num_done, **dataclasses.asdict(account)}
  if processes.is_first():
    rundir.write_json(run.workdir / 'summary.json', summary)
  startup.say(f'complete: {summary}')
  return cli.DONE


# Before the first step.


def _prepare(config: SftConfig, workdir: pathlib.Path) -> Run:
  """Reads everything but weights."""
  from qed.models import sharding
  from qed.training import checkpoints, initial, metrics, optimizer, rundir

  metrics.check_wandb(config.training.wandb_project)
  for line in rundir.start(
    workdir, dataclasses.asdict(config), may_change=_MAY_CHANGE
  ):
    startup.say(f'since the run began: {line}')
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  startup.check_mesh(config.packing, mesh)
  model = initial.read_config(config.model.path, config.model.variant)
  tokenizer_dir = config.data.tokenizer or initial.hf_folder(config.model.path)
  words = startup.load_tokenizer(tokenizer_dir, model, field='data.tokenizer')
  data = _load_data(config, words)
  batches, num_steps = _batches(config, data.train)
  tx = optimizer.make(
    num_steps=num_steps, model=model, **dataclasses.asdict(config.optim)
  )
  for name in ('', 'best'):
    checkpoints.write_model_files(
      workdir / 'checkpoints' / name,
      model,
      tokenizer_dir=tokenizer_dir,
      dtype=config.model.dtype,
    )
  return Run(config, workdir, mesh, model, tx, data, batches, num_steps)


def _load_data(config: SftConfig, words: tokenizer.Tokenizer) -> Demonstrations:
  data = demonstrations.load(
    config.data.paths,
    words,
    prompt=config.data.prompt,
    style=config.data.chat_style,
    max_tokens=config.data.max_tokens,
    overlong=config.data.overlong,
    malformed=config.data.malformed,
    validation_frac=config.data.validation_frac,
  )
  startup.say(data.report)
  if config.training.eval_interval_steps and not data.validation:
    raise ConfigError(
      [
        f'data.validation_frac = {config.data.validation_frac}: no problem is '
        'held out; raise it, or set training.eval_interval_steps to 0'
      ]
    )
  return data


def _batches(
  config: SftConfig, train: Sequence[TrainingSample]
) -> tuple[Sequence[PackedBatch], int]:
  """The batches by step, and how many steps the run has."""
  total, size = config.training.total_steps, config.data.samples_per_step
  batches = packing.sft_batches(
    train,
    _shape(config),
    batch_size=size,
    num_epochs=config.data.num_epochs or math.ceil(total * size / len(train)),
    seed=config.training.seed,
  )
  return batches, total or len(batches)


def _shape(config: SftConfig) -> packing.BatchShape:
  return packing.BatchShape(**dataclasses.asdict(config.packing))


# The loop.


def _loop(
  run: Run,
  state: TrainState,
  account: Account,
  last: Checkpointer,
  best: Checkpointer,
  preemption: Preemption,
) -> int:
  """Trains and saves; returns the number of steps that are done."""
  import jax

  from qed.training import metrics, steps

  update, evaluate = _compile(run)
  interval = run.config.training.checkpoint_interval_steps
  done = int(state.step)
  batch = run.batches[done] if done < run.num_steps else None
  compiled = set()
  with metrics.opened(
    run.workdir,
    done=done,
    num_steps=run.num_steps,
    wandb_project=run.config.training.wandb_project,
  ) as (writer, progress):
    while done < run.num_steps:
      began = time.monotonic()
      state, values = update(state, steps.place_batch(batch, run.mesh))
      done += 1
      # The devices are at work: time to pack what comes next.
      trained = batch
      batch = run.batches[done] if done < run.num_steps else None
      record = {k: float(v) for k, v in jax.device_get(values).items()}
      secs = time.monotonic() - began
      account.tokens += record['tokens']
      account.secs += secs
      record |= packing.packing_metrics(trained) | {'time/step_secs': secs}
      if trained.tokens.shape in compiled:  # Compiling is no throughput.
        lengths = metrics.segment_lengths(trained.segment_ids)
        record |= metrics.throughput(run.model, lengths, secs)
      compiled.add(trained.tokens.shape)
      if _is_evaluated(run, done):
        record['validation/loss'] = _evaluate(run, evaluate, state.params)
        _keep_best(record['validation/loss'], done, state, account, best)
      writer.write(done, record)
      progress.show(done, _figures(record))
      _check_finite(run, record, trained, done, account)
      stops = preemption.reached()
      if stops or done % interval == 0 or done == run.num_steps:
        last.save(done, state, extra=dataclasses.asdict(account))
      if stops:
        break
  return done


def _compile(run: Run):
  """The step and the evaluation, which compile when they are first called."""
  from qed.training import steps

  settings = dict(
    model=run.model, compute=steps.Compute.from_config(run.config, run.mesh)
  )
  state = steps.abstract_state(run.model, run.tx, run.mesh)
  return (
    steps.compile_step(
      functools.partial(steps.sft_step, tx=run.tx, **settings), run.mesh, state
    ),
    steps.compile_eval(
      functools.partial(steps.sft_eval, **settings), run.mesh, state.params
    ),
  )


def _is_evaluated(run: Run, done: int) -> bool:
  interval = run.config.training.eval_interval_steps
  return interval > 0 and (done % interval == 0 or done == run.num_steps)


def _evaluate(run: Run, evaluate, params) -> float:
  """The mean loss per token of the problems that are held out."""
  import jax

  from qed.training import steps

  size, loss, tokens = run.config.data.samples_per_step, 0.0, 0.0
  for start in range(0, len(run.data.validation), size):
    batch = packing.pack(
      run.data.validation[start : start + size], _shape(run.config)
    )
    sums = jax.device_get(evaluate(params, steps.place_batch(batch, run.mesh)))
    loss += float(sums['loss/nll_sum'])
    tokens += float(sums['loss/tokens'])
  return loss / tokens


def _keep_best(
  loss: float,
  done: int,
  state: TrainState,
  account: Account,
  best: Checkpointer,
) -> None:
  """Keeps the weights, without the optimizer, if no others were better."""
  account.validation_loss = loss
  if account.best_loss is not None and not loss < account.best_loss:
    return
  account.best_loss, account.best_step = loss, done
  best.save(done, state._replace(opt_state=()))
  best.wait()  # A checkpoint that says so comes after it.


def _check_finite(
  run: Run,
  record: Mapping[str, float],
  batch: PackedBatch,
  done: int,
  account: Account,
) -> None:
  """Counts a gradient that was not finite, and ends the run at one too many."""
  if not record['optim/skipped']:
    return
  account.num_skipped += 1
  contents = [
    f'{run.data.problem_ids.get(sample.token_ids.tobytes())} '
    f'({len(sample.token_ids)} tokens)'
    for sample in packing.unpack(batch)
  ]
  text = (
    f'step {done}: the gradient was not finite (loss {record["loss"]}, norm '
    f'{record["optim/grad_norm"]}), so that the weights stayed as they were; '
    f'the batch had {", ".join(contents)}'
  )
  limit = run.config.training.max_skipped_steps
  if account.num_skipped > limit:
    raise FloatingPointError(
      f'{text}. The run ends: that is {account.num_skipped} such steps, and '
      f'training.max_skipped_steps = {limit}'
    )
  startup.say(text)


def _figures(record: Mapping[str, float]) -> dict[str, str]:
  """What a person wants to see of a step."""
  figures = {
    'loss': f'{record["loss"]:.4f}',
    'grad norm': f'{record["optim/grad_norm"]:.3f}',
    'lr': f'{record["optim/lr"]:.2e}',
  }
  if 'validation/loss' in record:
    figures['validation loss'] = f'{record["validation/loss"]:.4f}'
  if 'time/tokens_per_sec' in record:
    figures['tokens/s'] = f'{record["time/tokens_per_sec"]:,.0f}'
  if 'time/mfu' in record:
    figures['MFU'] = f'{record["time/mfu"]:.1%}'
  return figures


if __name__ == '__main__':
  sys.exit(cli.run(main))
