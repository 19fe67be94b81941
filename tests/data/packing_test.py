"""Packing: every token once, in its place; batches by step number alone."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qed.data import packing
from qed.data.packing import BatchShape
from qed.types import PackedBatch, TrainingSample

ROW_LENGTH = 12
SHAPE = BatchShape(
  num_rows=2, row_length=ROW_LENGTH, microbatch_counts=(1, 2, 4, 16)
)


def make_sample(token_ids, loss_mask=None, **fields):
  token_ids = np.asarray(token_ids, np.int32)
  if loss_mask is None:
    loss_mask = np.arange(len(token_ids)) > 0
  return TrainingSample(
    token_ids=token_ids, loss_mask=np.asarray(loss_mask, bool), **fields
  )


@st.composite
def telling_samples(draw):
  """Samples whose token ids tell where they belong: 100 * sample + index."""
  lengths = draw(st.lists(st.integers(2, ROW_LENGTH + 1), max_size=20))
  samples = []
  for number, length in enumerate(lengths, start=1):
    mask = [
      False,
      *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)),
    ]
    logprobs = -(100 * number + np.arange(length, dtype=np.float32)) / 1000
    samples.append(
      make_sample(
        100 * number + np.arange(length),
        mask,
        behavior_logprobs=np.where(mask, logprobs, np.float32(np.nan)),
        advantage=float(draw(st.integers(-5, 5))) / 2,
        group_id=number,
      )
    )
  return samples


@settings(max_examples=150, deadline=None)
@given(telling_samples())
def test_every_token_is_in_one_place_with_all_that_belongs_to_it(samples):
  batch = packing.pack_grpo(samples, SHAPE)
  num_microbatches, num_rows, row_length = batch.packed.tokens.shape
  assert num_microbatches in SHAPE.microbatch_counts
  assert (num_rows, row_length) == (2, ROW_LENGTH)

  places = collections.defaultdict(list)
  packed = batch.packed
  for at in np.ndindex(packed.tokens.shape):
    if packed.segment_ids[at] == 0:
      for field in (*packed, batch.behavior_logprobs, batch.advantages):
        assert field[at] == 0
      continue
    number, index = divmod(int(packed.tokens[at]), 100)
    sample = samples[number - 1]
    trained = bool(sample.loss_mask[index + 1])
    assert packed.targets[at] == 100 * number + index + 1
    assert packed.positions[at] == index
    assert packed.loss_mask[at] == trained
    assert batch.advantages[at] == (sample.advantage if trained else 0)
    expected = sample.behavior_logprobs[index + 1] if trained else 0
    assert batch.behavior_logprobs[at] == expected
    places[number].append((at[:2], int(packed.segment_ids[at]), at[2], index))

  segments_of_row = collections.defaultdict(list)
  for number, sample in enumerate(samples, start=1):
    rows, segments, columns, indices = zip(*places.pop(number), strict=True)
    num_positions = len(sample.token_ids) - 1
    assert indices == tuple(range(num_positions))
    assert columns == tuple(range(columns[0], columns[0] + num_positions))
    assert len(set(rows)) == len(set(segments)) == 1
    segments_of_row[rows[0]].append(segments[0])
  assert not places
  for segments in segments_of_row.values():
    assert sorted(segments) == list(range(1, len(segments) + 1))


@settings(max_examples=50, deadline=None)
@given(telling_samples())
def test_masks_are_conserved(samples):
  packed = packing.pack(samples, SHAPE)
  expected = sum(int(sample.loss_mask.sum()) for sample in samples)
  assert packed.loss_mask.sum() == expected
  assert packing.packing_metrics(packed)['packing/num_loss_tokens'] == expected


@settings(max_examples=50, deadline=None)
@given(telling_samples())
def test_unpacking_gives_the_samples_back(samples):
  by_id = {int(sample.token_ids[0]): sample for sample in samples}
  unpacked = packing.unpack(packing.pack_grpo(samples, SHAPE))
  assert len(unpacked) == len(samples)
  for sample in unpacked:
    original = by_id.pop(int(sample.token_ids[0]))
    np.testing.assert_array_equal(sample.token_ids, original.token_ids)
    np.testing.assert_array_equal(sample.loss_mask, original.loss_mask)
    np.testing.assert_array_equal(
      sample.behavior_logprobs, original.behavior_logprobs
    )
    if original.loss_mask.any():
      assert sample.advantage == original.advantage


def test_two_samples_in_a_row_by_hand():
  packed = packing.pack(
    [
      make_sample([5, 6, 7, 8], [False, False, True, True]),
      make_sample([3, 4, 9], [False, False, True]),
    ],
    BatchShape(num_rows=1, row_length=7, microbatch_counts=(1,)),
  )
  expected = PackedBatch(
    tokens=[[[5, 6, 7, 3, 4, 0, 0]]],
    targets=[[[6, 7, 8, 4, 9, 0, 0]]],
    positions=[[[0, 1, 2, 0, 1, 0, 0]]],
    segment_ids=[[[1, 1, 1, 2, 2, 0, 0]]],
    loss_mask=[[[0, 1, 1, 0, 1, 0, 0]]],
  )
  for name, field in packed._asdict().items():
    np.testing.assert_array_equal(field, getattr(expected, name), err_msg=name)
    assert field.dtype == (bool if name == 'loss_mask' else np.int32)


def test_the_last_token_of_a_sample_never_predicts_the_next_sample():
  # The second sample trains on all it can; its first token, 30, is no target.
  packed = packing.pack(
    [make_sample([10, 11, 12]), make_sample([30, 31])], SHAPE
  )
  assert packed.targets[packed.loss_mask].tolist() == [11, 12, 31]


def test_a_completion_of_one_token_is_trained_on():
  packed = packing.pack([make_sample([4, 5, 6], [False, False, True])], SHAPE)
  assert packed.targets[packed.loss_mask].tolist() == [6]
  assert packed.tokens[packed.loss_mask].tolist() == [5]


def test_a_stop_token_that_is_also_padding_is_trained_on():
  stop = 0  # The id with which rows are padded.
  packed = packing.pack([make_sample([7, 8, stop], [False, True, True])], SHAPE)
  assert packed.targets[packed.loss_mask].tolist() == [8, stop]
  assert packed.loss_mask.sum() == 2


def test_no_samples_make_a_batch_of_padding():
  batch = packing.pack_grpo([], SHAPE)
  assert batch.packed.tokens.shape == (1, 2, ROW_LENGTH)
  for field in (*batch.packed, batch.behavior_logprobs, batch.advantages):
    assert not field.any()
  assert batch.reference_logprobs is None
  assert packing.packing_metrics(batch.packed)['packing/utilization'] == 0
  assert packing.unpack(batch) == []


def test_a_sample_off_the_mask_altogether_is_kept():
  sample = make_sample([1, 2, 3], [False] * 3)
  packed = packing.pack([sample], SHAPE)
  assert not packed.loss_mask.any()
  assert packing.packing_metrics(packed)['packing/num_samples'] == 1


def test_log_probabilities_that_are_missing_off_the_mask_become_zero():
  sample = make_sample(
    [1, 2, 3],
    [False, False, True],
    behavior_logprobs=np.array([np.nan, np.nan, -0.5], np.float32),
    advantage=2.0,
  )
  batch = packing.pack_grpo([sample], SHAPE)
  assert batch.behavior_logprobs[0, 0, :3].tolist() == [0, -0.5, 0]
  assert batch.advantages[0, 0, :3].tolist() == [0, 2, 0]
  assert np.isfinite(batch.behavior_logprobs).all()


@pytest.mark.parametrize(
  ('num_samples', 'num_microbatches'),
  [(0, 1), (2, 1), (3, 2), (4, 2), (5, 4), (8, 4), (9, 16), (32, 16)],
)
def test_the_smallest_allowed_count_of_microbatches_is_taken(
  num_samples, num_microbatches
):
  full = make_sample(np.arange(ROW_LENGTH + 1))
  packed = packing.pack([full] * num_samples, SHAPE)
  assert packed.tokens.shape == (num_microbatches, 2, ROW_LENGTH)
  used = packing.packing_metrics(packed)
  assert used['packing/utilization'] == num_samples / (2 * num_microbatches)


def test_more_samples_than_fit_are_refused():
  full = make_sample(np.arange(ROW_LENGTH + 1))
  with pytest.raises(ValueError, match=r'32 rows of 12 .* 33 rows; allow 17'):
    packing.pack([full] * 33, SHAPE)


@pytest.mark.parametrize(
  ('sample', 'message'),
  [
    (make_sample(np.arange(ROW_LENGTH + 2)), r'sample 1: .* 2 to 13 .* got 14'),
    (make_sample([1]), r'sample 1: expected 2 to 13 tokens .* got 1;'),
    (make_sample([1, 2], [True, True]), r'sample 1: .* off for the first'),
    (make_sample([1, 2, 3], [False, True]), r'mask of 3 tokens .* \(2,\)'),
  ],
)
def test_a_sample_that_cannot_be_packed_whole_is_refused(sample, message):
  with pytest.raises(ValueError, match=message):
    packing.pack([make_sample([1, 2]), sample], SHAPE)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'advantage': None}, 'finite advantage, got None'),
    ({'advantage': np.nan}, 'finite advantage, got nan'),
    ({'behavior_logprobs': None}, 'expected 2 behavior .* got None'),
    ({'behavior_logprobs': np.zeros(1)}, r'expected 2 behavior .* got \(1,\)'),
    ({'behavior_logprobs': np.array([0, np.nan])}, 'got nan on token 1'),
  ],
)
def test_a_sample_without_what_the_policy_gradient_needs_is_refused(
  fields, message
):
  good = {'advantage': 1.0, 'behavior_logprobs': np.array([np.nan, -1.0])}
  packing.pack_grpo([make_sample([1, 2], **good)], SHAPE)
  with pytest.raises(ValueError, match=message):
    packing.pack_grpo([make_sample([1, 2], **(good | fields))], SHAPE)


@pytest.mark.parametrize('counts', [(), (0, 1), (2, 1), (1, 1)])
def test_counts_of_microbatches_must_increase(counts):
  with pytest.raises(ValueError, match='microbatch_counts: expected increas'):
    BatchShape(num_rows=1, row_length=8, microbatch_counts=counts)


def test_unpacking_refuses_rows_that_packing_cannot_have_made():
  packed = packing.pack([make_sample([1, 2, 3, 4])], SHAPE)
  for name in ('tokens', 'positions', 'segment_ids'):
    field = getattr(packed, name).copy()
    field[0, 0, 1] += 1
    with pytest.raises(ValueError, match=r'row \(0, 0\), segment 1'):
      packing.unpack(packed._replace(**{name: field}))


def test_first_fit_by_hand():
  # Longest first: 7; 5 -> new; 4 joins 5; 3 joins 7; 3 -> new; 1 joins 5 + 4.
  rows = packing.first_fit([3, 5, 7, 1, 3, 4], 10)
  assert rows == [[2, 0], [1, 5, 3], [4]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_no_two_rows_of_first_fit_could_be_one(lengths):
  rows = packing.first_fit(lengths, 20)
  assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
  loads = [sum(lengths[i] for i in row) for row in rows]
  assert all(load <= 20 for load in loads)
  for a, b in itertools.combinations(loads, 2):
    assert a + b > 20


# A run of SFT: samples tell who they are by their first token.

RUN_SHAPE = BatchShape(num_rows=2, row_length=16, microbatch_counts=(1, 2))


def run(num_samples=10, *, batch_size=4, num_epochs=3, seed=7):
  samples = [
    make_sample([100 + number, *range(2 + number % 5)])
    for number in range(num_samples)
  ]
  return packing.sft_batches(
    samples,
    RUN_SHAPE,
    batch_size=batch_size,
    num_epochs=num_epochs,
    seed=seed,
  )


def members(packed):
  return [int(sample.token_ids[0]) - 100 for sample in packing.unpack(packed)]


def order(**kwargs):
  """The order of all samples of a run, seen through batches of one."""
  batches = run(**kwargs, batch_size=1)
  return [members(batches[step])[0] for step in range(len(batches))]


def test_every_epoch_has_every_sample_once_and_its_own_order():
  stream = order(num_samples=10, num_epochs=4)
  epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(10))
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_follow_one_another_across_epochs_without_a_gap():
  stream = order(num_samples=10, num_epochs=3)
  batches = run(num_samples=10, num_epochs=3, batch_size=4)
  assert len(batches) == 8  # 30 samples, four at a time.
  for step in range(8):
    assert sorted(members(batches[step])) == sorted(
      stream[4 * step : 4 * step + 4]
    )
  assert len(members(batches[7])) == 2


def test_equal_seeds_give_equal_runs_and_others_do_not():
  assert order(seed=3) == order(seed=3)
  assert order(seed=3) != order(seed=4)


def test_the_next_seed_is_not_the_same_run_an_epoch_later():
  first, second = order(seed=3), order(seed=4)
  assert first[10:20] != second[:10]


def assert_equal_batches(actual, expected):
  for name, a, b in zip(expected._fields, actual, expected, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped():
  whole = list(run())
  assert len(whole) == 8
  for step in range(9):
    again = run()  # A new process knows nothing but the step.
    rest = [again[k] for k in range(step, len(again))]
    assert len(rest) == 8 - step
    for actual, expected in zip(rest, whole[step:], strict=True):
      assert_equal_batches(actual, expected)


def test_packing_ahead_in_a_thread_changes_nothing():
  batches = run()
  ahead = list(batches[3:].to_iter_dataset())
  assert len(ahead) == 5
  for step, batch in enumerate(ahead, start=3):
    assert_equal_batches(batch, batches[step])


def test_a_step_past_the_end_is_an_error_and_not_another_epoch():
  batches = run()
  with pytest.raises(IndexError, match='below 8, got 8'):
    batches[8]


def test_a_run_with_a_batch_that_does_not_fit_is_refused_before_it_begins():
  samples = [make_sample(np.arange(16))] * 12
  shape = BatchShape(num_rows=2, row_length=16, microbatch_counts=(1, 2))
  with pytest.raises(ValueError, match=r'step 0, 5 samples: .* 4 rows'):
    packing.sft_batches(samples, shape, batch_size=5, num_epochs=1, seed=0)


def test_a_run_with_a_sample_that_is_too_long_is_refused_before_it_begins():
  samples = [make_sample(np.arange(4))] * 9 + [make_sample(np.arange(18))]
  with pytest.raises(ValueError, match=r'sample 9: .* got 18'):
    packing.sft_batches(samples, RUN_SHAPE, batch_size=2, num_epochs=1, seed=0)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_samples': 0}, 'number of samples to be at least 1'),
    ({'batch_size': 0}, 'batch_size to be at least 1'),
    ({'num_epochs': 0}, 'num_epochs to be at least 1'),
  ],
)
def test_a_run_of_nothing_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    run(**change)
