"""What `qed sft` and `qed grpo` do alike before their first step."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from absl import app

from qed import cli
from qed.config import ConfigError, PackingConfig
from qed.data import tokenizer
from qed.types import TrainState

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  from jax.sharding import Mesh

  from qed import preparation, sft
  from qed.models import specs
  from qed.training.checkpoints import Checkpointer

# What may differ from one start of any run to the next: where things lie, how
# the same numbers are computed, and when to save, look and give up.
MAY_CHANGE = (
  'model.path',
  'model.remat',
  'model.attention',
  'mesh',
  'packing.num_rows',
  'packing.microbatch_counts',
  'training.logprob_chunk_size',
  'training.checkpoint_interval_steps',
  'training.max_checkpoints',
  'training.eval_interval_steps',
  'training.max_skipped_steps',
  'training.wandb_project',
)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """What is wrong with given files and values is the user's to mend."""
  from qed.training import processes

  try:
    yield
  except (ValueError, FileNotFoundError) as error:
    if processes.is_loss(error):
      raise
    raise app.UsageError(str(error)) from error


@contextlib.contextmanager
def leaving_at_once(*alike: type[Exception]) -> Iterator[None]:
  """How a process of several ends when something went wrong.

  By the front door it would wait for the others, which wait for it in a
  collective. So it leaves at once: to be started again where another process is
  gone, since what was saved last stands; with code 1 where the fault is here.

  Args:
    *alike: errors that all processes come to by themselves, as they do to those
      of the user. These go through, as all do where there is one process.
  """
  import jax

  from qed.training import processes

  try:
    yield
  except Exception as error:
    if jax.process_count() == 1 or isinstance(error, (app.UsageError, *alike)):
      raise
    if processes.is_loss(error):
      print(f'stopped, since another process is gone: {error}', flush=True)
      os._exit(cli.RESTART)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(cli.BUG)


def say(text: object) -> None:
  """Prints a line, once for all processes."""
  from qed.training import processes

  if processes.is_first():
    print(text, flush=True)


def check_mesh(packing: PackingConfig, mesh: Mesh) -> None:
  """Checks what the config alone cannot know: what devices there are."""
  import jax

  if jax.process_count() > 1 and mesh.size < jax.device_count():
    raise ConfigError(
      [
        f'mesh: {dict(mesh.shape)} must be all of the {jax.device_count()} '
        f'devices of {jax.process_count()} processes; set one of mesh.data, '
        'mesh.context and mesh.tensor to -1, which takes what is left'
      ]
    )
  for field, value, axis in (
    ('num_rows', packing.num_rows, 'data'),
    ('row_length', packing.row_length, 'context'),
  ):
    if value % mesh.shape[axis]:
      raise ConfigError(
        [
          f'packing.{field} = {value}: must be a multiple of the '
          f'{mesh.shape[axis]} devices of mesh.{axis}'
        ]
      )


def load_tokenizer(
  folder: str | os.PathLike[str], model: specs.Config, *, field: str
) -> tokenizer.Tokenizer:
  """Reads a tokenizer, whose ids the model must know.

  Args:
    folder: where it is.
    model: that reads its ids.
    field: of the config, which an error names.

  Raises:
    ValueError: it has more ids than the model.
  """
  words = tokenizer.load(folder)
  if words.vocab_size > model.vocab_size:
    raise ValueError(
      f'{field}: expected ids below the {model.vocab_size} rows of the '
      f'embedding, got {words.vocab_size} ids in {folder}'
    )
  return words


def restore_or_start(
  run: sft.Run | preparation.Run,
  checkpointer: Checkpointer,
  make_account: Callable[..., Any],
  *,
  data_digest: str,
  field: str,
) -> tuple[TrainState, Any]:
  """The newest state that is whole, or one at step 0, and its account.

  Args:
    run: what is trained.
    checkpointer: of the run.
    make_account: an Account, of what a checkpoint has beside the state.
    data_digest: a hash of what is trained on.
    field: of the config, that says what that is.

  Raises:
    ConfigError: the run was on other data, or its checkpoints are gone.
  """
  from qed.training import initial, metrics, steps

  restored = checkpointer.restore_latest_valid(
    steps.abstract_state(run.model, run.tx, run.mesh)
  )
  if restored:
    account = make_account(**restored.extra)
    if account.data_digest != data_digest:
      raise ConfigError(
        [
          f'{field}: {run.workdir} was trained on other data than these files '
          'give now; bring those back, or use another --workdir'
        ]
      )
    say(f'restored step {restored.step} from {checkpointer.directory}')
    return restored.state, account
  record = run.workdir / 'metrics.jsonl'
  num_recorded = max(metrics.read(record), default=0) if record.exists() else 0
  # One save may have been in progress and another not have begun.
  if num_recorded > 2 * run.config.training.checkpoint_interval_steps:
    raise ConfigError(
      [
        f'{checkpointer.directory} has no checkpoint, though {record} has '
        f'{num_recorded} steps; bring it back, or use another --workdir'
      ]
    )
  say(f'no checkpoint in {checkpointer.directory}: this is step 0')
  params = initial.read_params(
    run.config.model.path, run.model, run.mesh, seed=run.config.training.seed
  )
  state = steps.init_state(params, run.model, run.tx, run.mesh)
  return state, make_account(data_digest=data_digest)
