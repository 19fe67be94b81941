"""What a run reports: metrics.jsonl and its mirrors, a progress line, MFU.

metrics.jsonl is the truth: one line per step, flushed as it is written, and
never changed. A run that resumes repeats the steps since its checkpoint, so the
last line of a step counts. Figures that depend on the machine and the hour are
named `time/...`; all others are the same however often a run was interrupted.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from qed.models import specs

# Dense bfloat16 FLOP/s of one device, by its kind: the vendors' data sheets.
PEAK_FLOPS = {
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,  # v5p.
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU7x': 2307e12 / 2,  # A chip is two devices.
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}
_PLAIN_LINE_SECS = 10.0


def check_wandb(project: str) -> None:
  """Makes sure that there is what a `Writer` with this project needs.

  Raises:
    ValueError: a project, and no package wandb.
  """
  if project and importlib.util.find_spec('wandb') is None:
    raise ValueError(
      f'training.wandb_project = {project!r}: the package wandb is missing; '
      "install it (pip install 'qed[wandb]'), or set the project to ''"
    )


class Writer:
  """Appends to metrics.jsonl and mirrors it for TensorBoard; a context.

  Only process 0 writes; the others may call and nothing happens.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    first_step: int,
    wandb_project: str = '',
  ):
    """Opens the files of a run directory.

    Args:
      workdir: receives metrics.jsonl and tensorboard/.
      first_step: the first that will be written, after which TensorBoard
        forgets what an earlier start of the run told it.
      wandb_project: of Weights & Biases, to be told as well; '' for none. It
        keeps what it heard first of a step that is repeated.
    """
    self._file = self._board = self._wandb = None
    if jax.process_index():
      return
    from tensorboardX import SummaryWriter  # Slow to import, and only here.

    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    _cut_partial_line(path)
    self._file = path.open('a', encoding='utf-8', newline='\n')
    self._board = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=first_step
    )
    if wandb_project:
      import wandb

      place = str(workdir.resolve())  # The same run when it goes on.
      self._wandb = wandb.init(
        project=wandb_project,
        name=workdir.name,
        id=f'{zlib.crc32(place.encode()):08x}',
        resume='allow',
        dir=place,
      )

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *exception) -> None:
    if self._file is not None:
      self._file.close()
      self._board.close()
    if self._wandb is not None:
      self._wandb.finish()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line; a number that is not finite becomes null."""
    if self._file is None:
      return
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    line = json.dumps({'step': step, **finite}, allow_nan=False)
    self._file.write(line + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(dict(values), step=step)


@contextlib.contextmanager
def opened(
  workdir: str | os.PathLike[str],
  *,
  done: int,
  num_steps: int,
  wandb_project: str,
) -> Iterator[tuple[Writer, Progress]]:
  """What a run writes and shows, which goes on after so many steps."""
  with (
    Writer(workdir, first_step=done + 1, wandb_project=wandb_project) as writer,
    Progress(first_step=done, num_steps=num_steps) as progress,
  ):
    yield writer, progress


def read(path: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
  """The metrics of every step, by step: the last that were written of each.

  Args:
    path: of a metrics.jsonl, which may be that of a run in progress.

  Raises:
    ValueError: a line that is no record, unless it is the last one, which may
      still be in the making.
  """
  path = pathlib.Path(path)
  *lines, partial = path.read_text(encoding='utf-8').split('\n')
  del partial  # What follows the last newline.
  records = {}
  for number, line in enumerate(lines, start=1):
    try:
      values = json.loads(line)
      step = values.pop('step')
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      raise ValueError(
        f'{path}:{number}: expected a JSON object with a step, got {line[:80]}'
      ) from error
    records[step] = {
      name: math.nan if value is None else value
      for name, value in values.items()
    }
  return dict(sorted(records.items()))


class Progress:
  """How far a run is: a bar on a terminal, lines elsewhere; a context.

  Only process 0 shows anything. Lines come at most every few seconds, and
  always for the first step and the last.
  """

  def __init__(self, *, first_step: int, num_steps: int):
    """Starts the clock.

    Args:
      first_step: how many steps were done before.
      num_steps: of the whole run.
    """
    self._first_step, self._num_steps = first_step, num_steps
    self._began = self._told = time.monotonic()
    self._bar = self._task = None
    if jax.process_index() == 0 and sys.stdout.isatty():
      self._bar = _make_bar()
      self._task = self._bar.add_task(
        'train', completed=first_step, total=num_steps, figures=''
      )

  def __enter__(self) -> Progress:
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *exception) -> None:
    if self._bar is not None:
      self._bar.stop()

  def show(self, step: int, figures: Mapping[str, str]) -> None:
    """Shows the figures of a step, the number of steps done with it."""
    if jax.process_index():
      return
    text = '  '.join(f'{name} {value}' for name, value in figures.items())
    if self._bar is not None:
      self._bar.update(self._task, completed=step, figures=text)
      return
    now = time.monotonic()
    is_edge = step in (self._first_step + 1, self._num_steps)
    if is_edge or now - self._told >= _PLAIN_LINE_SECS:
      self._told = now
      rate = (now - self._began) / (step - self._first_step)
      secs = round(rate * (self._num_steps - step))
      eta = datetime.timedelta(seconds=secs)
      print(f'step {step}/{self._num_steps}  {text}  eta {eta}', flush=True)


def train_flops(model: specs.Config, lengths: np.ndarray) -> float:
  """The FLOPs of forward and backward passes over samples, exactly causal.

    6 P Σ n  +  6 L N H Σ n (n + 1)

  over the samples' lengths n. P weights are matrices, each a multiplication and
  an addition per token, in the forward pass and twice in the backward pass; the
  head counts, also where it is the embedding, and the look-up does not. A
  query at position t sees t + 1 keys: N heads of size H take 4 N H (t + 1)
  FLOPs for scores and values in each of L layers, and N H need not be the
  width. Recomputation (remat), norms and softmax do not count.

  Args:
    model: the model.
    lengths: int [number of samples], in positions.
  """
  n = np.asarray(lengths, np.float64)
  attention = model.num_attention_heads * model.head_dim
  return float(
    6 * num_matmul_params(model) * n.sum()
    + 6 * model.num_hidden_layers * attention * (n * (n + 1)).sum()
  )


def num_matmul_params(model: specs.Config) -> int:
  """The weights that every token is multiplied with."""
  tree = specs.declare(model)
  tree['head'] = tree.pop('embedding')  # Of one shape, and a tied one is both.
  return sum(
    math.prod(spec.shape)
    for spec in jax.tree.leaves(tree, is_leaf=specs.is_spec)
    if spec.init == 'normal'
  )


def segment_lengths(segment_ids: np.ndarray) -> np.ndarray:
  """The lengths of all samples in rows int [..., T], padding left out."""
  rows = segment_ids.reshape(-1, segment_ids.shape[-1]).astype(np.int64)
  keys = np.arange(len(rows))[:, None] * (rows.shape[1] + 1) + rows
  return np.unique(keys[rows > 0], return_counts=True)[1]


def throughput(
  model: specs.Config, lengths: np.ndarray, secs: float
) -> dict[str, float]:
  """Tokens per second, and of the peak the part that is used, where known.

  `time/mfu` is `train_flops` / (secs x number of devices x peak), with the
  devices' bfloat16 peak, whatever the dtype of the run.

  Args:
    model: the model.
    lengths: of the samples of a step, in positions.
    secs: that the step took.
  """
  figures = {'time/tokens_per_sec': float(np.sum(lengths)) / secs}
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  if peak is not None:
    available = secs * peak * jax.device_count()
    figures['time/mfu'] = train_flops(model, lengths) / available
  return figures


def _cut_partial_line(path: pathlib.Path) -> None:
  """Removes what a killed process wrote after the last newline."""
  if not path.exists():
    return
  with path.open('rb+') as file:
    content = file.read()
    file.truncate(content.rfind(b'\n') + 1)


def _make_bar() -> Any:
  from rich import progress

  return progress.Progress(
    progress.TextColumn('step'),
    progress.MofNCompleteColumn(),
    progress.BarColumn(bar_width=None),
    progress.TextColumn('{task.fields[figures]}'),
    progress.TextColumn('eta'),
    progress.TimeRemainingColumn(),
  )
