"""Samples packed into rows of a fixed length.

A sample of n tokens occupies n - 1 positions of one row, because everything is
aligned with targets: position i of the sample reads its token i and predicts
its token i + 1. Its first token is therefore never a target, and no target
belongs to another sample than its token does.

    sample      token_ids [5, 6, 7, 8]     loss_mask [F, F, T, T]

    row         sample     | next    | padding
    tokens      5  6  7    | 3  4    | 0  0
    targets     6  7  8    | 4  9    | 0  0
    positions   0  1  2    | 0  1    | 0  0
    segment_ids 1  1  1    | 2  2    | 0  0
    loss_mask   F  T  T    | F  T    | F  F

A global batch is a fixed number of samples, while a device program has fixed
shapes. The two meet as `[A, B, T]`: A microbatches of B rows of T positions,
where B and T are fixed for a run and A is the smallest of a few allowed
counts that holds the samples. XLA compiles one program per allowed count; rows
that are left over are padding, which no loss sees.

Everything here is a function of its arguments. Every process can build the
whole global batch (tens of megabytes at most for SFT) and place its own part of
it, so a step has the same batch under any number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qed.types import GrpoBatch, PackedBatch, TrainingSample

if TYPE_CHECKING:
  import grain


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
  """The shapes that a packed batch [A, B, T] may have.

  Attributes:
    num_rows: B, the rows of one microbatch over all devices.
    row_length: T, the positions of one row; the longest sample that fits has
      T + 1 tokens.
    microbatch_counts: The values that A may take, in increasing order. With B
      rows times the largest count equal to the samples per batch, any batch
      fits.
  """

  num_rows: int
  row_length: int
  microbatch_counts: tuple[int, ...]

  def __post_init__(self):
    counts = self.microbatch_counts
    if self.num_rows < 1 or self.row_length < 1:
      raise ValueError(
        f'expected at least one row and one position, got {self}.'
      )
    if not counts or counts[0] < 1 or sorted(set(counts)) != list(counts):
      raise ValueError(
        'microbatch_counts: expected increasing counts of at least 1, such as '
        f'(1, 2, 4), got {counts}.'
      )

  @property
  def max_rows(self) -> int:
    """The rows of a batch with the most microbatches."""
    return self.num_rows * self.microbatch_counts[-1]


class _Place(NamedTuple):
  """Where a sample stands; rows are counted through all microbatches."""

  sample: TrainingSample
  row: int
  start: int
  segment: int


class _Layout(NamedTuple):
  """The places of all samples in a batch of these dimensions."""

  dims: tuple[int, int, int]  # A, B, T
  places: list[_Place]


def pack(samples: Sequence[TrainingSample], shape: BatchShape) -> PackedBatch:
  """Packs samples, each whole and exactly once.

  Args:
    samples: As many as fit; none at all gives a batch of padding.
    shape: The shape to fill.

  Returns:
    numpy arrays [A, B, T]. Padding has token, target, position and segment id
    0 and is off the mask.

  Raises:
    ValueError: A sample that is too long, too short (a single token predicts
      nothing) or inconsistent, or more samples than fit.
  """
  return _packed(_lay_out(samples, shape))


def pack_grpo(
  samples: Sequence[TrainingSample], shape: BatchShape
) -> GrpoBatch:
  """Packs samples with their advantages and behavior log-probabilities.

  Args:
    samples: As for `pack`, with both of those set.
    shape: The shape to fill.

  Returns:
    numpy arrays [A, B, T]; `reference_logprobs` is None. Advantages and
    log-probabilities are 0 off the mask, where those of a sample are NaN.

  Raises:
    ValueError: As for `pack`; also a sample without an advantage, or with a
      log-probability that is not finite on a token it trains on.
  """
  for index, sample in enumerate(samples):
    _check_drawn(sample, index)
  layout = _lay_out(samples, shape)
  return GrpoBatch(
    packed=_packed(layout),
    behavior_logprobs=_fill(
      layout,
      np.float32,
      lambda p: np.where(
        p.sample.loss_mask[1:], p.sample.behavior_logprobs[1:], 0
      ),
    ),
    advantages=_fill(
      layout,
      np.float32,
      lambda p: np.where(p.sample.loss_mask[1:], p.sample.advantage, 0),
    ),
    reference_logprobs=None,
  )


def sft_batches(
  samples: Sequence[TrainingSample],
  shape: BatchShape,
  *,
  batch_size: int,
  num_epochs: int,
  seed: int,
) -> grain.MapDataset:
  """The packed batches of a whole run, by step: `batches[step]`.

  The epochs follow one another without a gap: batch k holds samples
  k * batch_size to (k + 1) * batch_size of the endless shuffled sequence, so a
  batch may lie across two epochs, every epoch has every sample exactly once,
  and only the very last batch may hold fewer samples.

  A batch depends on its step and on these arguments alone. A run resumes by
  going on with the next step; no other state exists. To pack ahead in a thread,
  iterate over `batches[step:].to_iter_dataset()`.

  Args:
    samples: All of the training set, in an order that is the same every time.
    shape: The shapes that a batch may have.
    batch_size: Samples per step.
    num_epochs: At least 1.
    seed: Of the shuffle, from 0 to 2**32 - 1; every epoch has its own order.

  Returns:
    A dataset of ceil(num_epochs * len(samples) / batch_size) `PackedBatch`es.

  Raises:
    ValueError: No samples, a count below 1, a sample that `pack` refuses, or
      a batch that does not fit: every step is tried before the first one runs.
    IndexError: From `batches[step]`, of a step past the end.
  """
  import grain  # Two seconds, and it imports jax: not for who only packs.

  for name, value in (
    ('the number of samples', len(samples)),
    ('batch_size', batch_size),
    ('num_epochs', num_epochs),
  ):
    if value < 1:
      raise ValueError(f'expected {name} to be at least 1, got {value}.')
  steps = (
    grain.MapDataset.range(len(samples))
    .seed(seed)
    .shuffle()
    .repeat(num_epochs)
    .batch(batch_size, batch_fn=list)
  )
  lengths = [_num_positions(s, i, shape) for i, s in enumerate(samples)]
  if batch_size > shape.max_rows:
    for step in range(len(steps)):
      rows = first_fit([lengths[i] for i in steps[step]], shape.row_length)
      _num_microbatches(len(rows), shape, f'step {step}, {batch_size} samples')

  def batch(step: int, indices: list[int]) -> PackedBatch:
    if step >= len(steps):  # grain would begin another epoch.
      raise IndexError(f'expected a step below {len(steps)}, got {step}.')
    return pack([samples[i] for i in indices], shape)

  return steps.map_with_index(batch)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Assigns lengths to as few rows as the greedy rule finds.

  The longest comes first and goes into the first row with room for it (first-
  fit decreasing: at most 11/9 of the fewest rows, and one more). Equal lengths
  keep their order, so the result is the same every time.

  Args:
    lengths: Positive, none above `capacity`.
    capacity: Of every row.

  Returns:
    Per row the indices of what stands in it.
  """
  rows: list[list[int]] = []
  room: list[int] = []
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    length = lengths[index]
    row = next((r for r, free in enumerate(room) if free >= length), None)
    if row is None:
      row = len(rows)
      rows.append([])
      room.append(capacity)
    rows[row].append(index)
    room[row] -= length
  return rows


def unpack(batch: PackedBatch | GrpoBatch) -> list[TrainingSample]:
  """Takes a packed batch apart again, row by row; checks it on the way.

  Args:
    batch: Of any leading shape, [..., T].

  Returns:
    The samples, without versions and group. Those of a `GrpoBatch` have their
    advantage (None if nothing is trained on) and their log-probabilities, NaN
    off the mask.

  Raises:
    ValueError: A row that `pack` cannot have made.
  """
  is_grpo = isinstance(batch, GrpoBatch)
  packed = batch.packed if is_grpo else batch
  samples = []
  for at in np.ndindex(packed.tokens.shape[:-1]):
    tokens, targets, positions, segments, mask = (field[at] for field in packed)
    for segment in range(1, segments.max() + 1):
      where = np.flatnonzero(segments == segment)
      is_sound = (
        np.array_equal(where, where[:1] + np.arange(len(where)))
        and np.array_equal(positions[where], np.arange(len(where)))
        and np.array_equal(tokens[where[1:]], targets[where[:-1]])
      )
      if not where.size or not is_sound:
        raise ValueError(
          f'row {at}, segment {segment}: expected one run of tokens, each the '
          'target of the one before, with positions from 0; got tokens '
          f'{tokens[where]}, targets {targets[where]}, positions '
          f'{positions[where]} at {where}.'
        )
      loss_mask = np.append(False, mask[where])
      sample = TrainingSample(
        token_ids=np.append(tokens[where[0]], targets[where]),
        loss_mask=loss_mask,
      )
      if is_grpo:
        drawn = np.append(np.float32(0), batch.behavior_logprobs[at][where])
        trained = batch.advantages[at][where][mask[where]]
        sample = dataclasses.replace(
          sample,
          behavior_logprobs=np.where(loss_mask, drawn, np.float32(np.nan)),
          advantage=float(trained[0]) if trained.size else None,
        )
      samples.append(sample)
  return samples


def packing_metrics(packed: PackedBatch) -> dict[str, float]:
  """How well a batch is filled.

  Returns:
    `packing/utilization`, the share of positions that are not padding, and
    the numbers of samples, microbatches and trained tokens.
  """
  return {
    'packing/utilization': float(np.mean(packed.segment_ids > 0)),
    'packing/num_samples': int(packed.segment_ids.max(axis=-1).sum()),
    'packing/num_microbatches': packed.tokens.shape[0],
    'packing/num_loss_tokens': int(packed.loss_mask.sum()),
  }


def _lay_out(samples: Sequence[TrainingSample], shape: BatchShape) -> _Layout:
  lengths = [_num_positions(s, i, shape) for i, s in enumerate(samples)]
  rows = first_fit(lengths, shape.row_length)
  places = []
  for row, indices in enumerate(rows):
    start = 0
    for segment, index in enumerate(indices, start=1):
      places.append(_Place(samples[index], row, start, segment))
      start += lengths[index]
  num_microbatches = _num_microbatches(
    len(rows), shape, f'{len(samples)} samples'
  )
  return _Layout((num_microbatches, shape.num_rows, shape.row_length), places)


def _num_microbatches(num_rows: int, shape: BatchShape, what: str) -> int:
  """The smallest allowed count whose rows suffice."""
  for count in shape.microbatch_counts:
    if count * shape.num_rows >= num_rows:
      return count
  raise ValueError(
    f'{what}: expected to fit in {shape.max_rows} rows of {shape.row_length} '
    f'positions, {shape.microbatch_counts[-1]} microbatches of '
    f'{shape.num_rows}, got {num_rows} rows; allow '
    f'{-(-num_rows // shape.num_rows)} microbatches, or use more or longer '
    'rows, or fewer samples per batch.'
  )


def _packed(layout: _Layout) -> PackedBatch:
  counting = np.arange(layout.dims[-1], dtype=np.int32)
  return PackedBatch(
    tokens=_fill(layout, np.int32, lambda p: p.sample.token_ids[:-1]),
    targets=_fill(layout, np.int32, lambda p: p.sample.token_ids[1:]),
    positions=_fill(
      layout, np.int32, lambda p: counting[: len(p.sample.token_ids) - 1]
    ),
    segment_ids=_fill(layout, np.int32, lambda p: p.segment),
    loss_mask=_fill(layout, np.bool_, lambda p: p.sample.loss_mask[1:]),
  )


def _fill(
  layout: _Layout,
  dtype: type[np.generic],
  values: Callable[[_Place], np.ndarray | int],
) -> np.ndarray:
  """An array [A, B, T] with `values` of every place, and 0 elsewhere."""
  num_microbatches, num_rows, row_length = layout.dims
  array = np.zeros((num_microbatches * num_rows, row_length), dtype)
  for place in layout.places:
    stop = place.start + len(place.sample.token_ids) - 1
    array[place.row, place.start : stop] = values(place)
  return array.reshape(layout.dims)


def _num_positions(
  sample: TrainingSample, index: int, shape: BatchShape
) -> int:
  """How much of a row the sample takes, having checked that it can."""
  num_tokens = len(sample.token_ids)
  if not 2 <= num_tokens <= shape.row_length + 1:
    raise ValueError(
      f'sample {index}: expected 2 to {shape.row_length + 1} tokens (a row has '
      f'{shape.row_length} positions), got {num_tokens}; drop or truncate '
      'samples with qed.data.samples.limit_length, or use longer rows.'
    )
  if sample.loss_mask.shape != (num_tokens,) or sample.loss_mask[0]:
    raise ValueError(
      f'sample {index}: expected a loss mask of {num_tokens} tokens that is '
      'off for the first, which nothing predicts; got shape '
      f'{sample.loss_mask.shape}, starting with {sample.loss_mask[:1]}.'
    )
  return num_tokens - 1


def _check_drawn(sample: TrainingSample, index: int) -> None:
  """Checks what a policy gradient needs of every token it trains on."""
  where = f'sample {index} (group {sample.group_id})'
  if sample.advantage is None or not np.isfinite(sample.advantage):
    raise ValueError(
      f'{where}: expected a finite advantage, got {sample.advantage}.'
    )
  logprobs = sample.behavior_logprobs
  if logprobs is None or logprobs.shape != sample.loss_mask.shape:
    got = None if logprobs is None else logprobs.shape
    raise ValueError(
      f'{where}: expected {len(sample.loss_mask)} behavior log-probabilities, '
      f'one per token, got {got}.'
    )
  bad = np.flatnonzero(sample.loss_mask & ~np.isfinite(logprobs))
  if bad.size:
    raise ValueError(
      f'{where}: expected a finite behavior log-probability on every token of '
      f'the loss mask, got {logprobs[bad[0]]} on token {bad[0]} ({bad.size} '
      'in all).'
    )
