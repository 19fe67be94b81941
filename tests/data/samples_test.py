"""Samples: masks from lengths, ids as they were drawn, limits that count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qed.data import samples
from qed.types import (
  Completion,
  Grade,
  Message,
  Prompt,
  Rollout,
  RolloutGroup,
  TrainingSample,
)

STOP = 2


def make_rollout(
  prompt_ids=(5, 6),
  ids=(7, 8, STOP),
  logprobs=(-0.5, -1.0, -0.25),
  versions=(3, 3, 4),
  *,
  reward=1.0,
  finish_reason='stop',
):
  return Rollout(
    prompt=Prompt(
      problem_id='p',
      messages=(Message(role='user', content='prove it'),),
      token_ids=np.asarray(prompt_ids, np.int32),
    ),
    completion=Completion(
      token_ids=np.asarray(ids, np.int32),
      logprobs=np.asarray(logprobs, np.float32),
      versions=np.asarray(versions, np.int32),
      text='a text that nothing may encode',
      finish_reason=finish_reason,
    ),
    grade=Grade(score=7, status='ok', feedback='', judge='j', usage={}),
    reward=reward,
  )


def make_group(*rollouts):
  return RolloutGroup(group_id=9, rollouts=rollouts)


def test_sft_trains_on_the_completion_and_its_stop_token_alone():
  sample = samples.from_sft([5, 6], [7, 8, STOP], stop_token_ids=[STOP])
  assert sample.token_ids.tolist() == [5, 6, 7, 8, STOP]
  assert sample.loss_mask.tolist() == [False, False, True, True, True]
  assert sample.token_ids.dtype == np.int32
  assert sample.loss_mask.dtype == bool
  assert sample.behavior_logprobs is None
  assert sample.versions is None
  assert sample.advantage is None


def test_sft_masks_by_length_where_the_prompt_holds_stop_tokens_too():
  sample = samples.from_sft([STOP, 5, STOP], [STOP], stop_token_ids=[STOP])
  assert sample.loss_mask.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
  ('prompt', 'completion', 'message'),
  [
    ([5], [7, 8], r'expected one of \[2\] as the last id, got 8'),
    ([], [STOP], r'prompt_ids: expected a non-empty'),
    ([5], [], r'completion_ids: expected a non-empty'),
    ([[5]], [STOP], r'prompt_ids: .* shape \(1, 1\)'),
    ([5.0], [STOP], r'prompt_ids: .* got float64'),
    ([5, -100], [STOP], r'prompt_ids: expected token ids >= 0, got -100'),
  ],
)
def test_sft_refuses_what_would_train_silently_wrong(
  prompt, completion, message
):
  with pytest.raises(ValueError, match=message):
    samples.from_sft(prompt, completion, stop_token_ids=[STOP])


def test_a_rollout_becomes_a_sample_by_hand():
  [sample] = samples.from_group(make_group(make_rollout()), [0.75])
  assert sample.token_ids.tolist() == [5, 6, 7, 8, STOP]
  assert sample.loss_mask.tolist() == [False, False, True, True, True]
  np.testing.assert_array_equal(
    sample.behavior_logprobs, np.float32([np.nan, np.nan, -0.5, -1.0, -0.25])
  )
  assert sample.versions.tolist() == [-1, -1, 3, 3, 4]
  assert sample.advantage == 0.75
  assert sample.group_id == 9
  assert sample.behavior_logprobs.dtype == np.float32
  assert sample.versions.dtype == np.int32


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=20))
def test_ids_that_were_drawn_are_the_ids_that_are_trained_on(ids):
  rollout = make_rollout(
    ids=ids, logprobs=np.full(len(ids), -1.0), versions=np.zeros(len(ids))
  )
  [sample] = samples.from_group(make_group(rollout), [1.0])
  assert sample.token_ids[sample.loss_mask].tolist() == ids


def test_invalid_rollouts_give_no_sample_and_shift_no_advantage():
  group = make_group(
    make_rollout(reward=None),
    make_rollout(ids=[10, 11, 12], reward=0.0),
    make_rollout(reward=None),
    make_rollout(ids=[20, 21, 22], reward=1.0),
  )
  made = samples.from_group(group, [0.0, -0.5, 0.0, 0.5])
  assert [(int(s.token_ids[2]), s.advantage) for s in made] == [
    (10, -0.5),
    (20, 0.5),
  ]


def test_an_invalid_rollout_may_lack_what_a_sample_needs():
  empty = make_rollout(ids=[], logprobs=[], versions=[], reward=None)
  unknown = make_rollout(logprobs=[np.nan] * 3, reward=None)
  made = samples.from_group(make_group(empty, unknown, make_rollout()), [0] * 3)
  assert len(made) == 1


def test_truncated_completions_are_trained_on_unless_masked():
  group = make_group(
    make_rollout(finish_reason='length', ids=[10, 11, 12]),
    # Stopped, though it does not end in the stop token.
    make_rollout(finish_reason='stop', ids=[20, 21, 22]),
    # Ran out of budget, though its last token is the stop token.
    make_rollout(finish_reason='length', ids=[30, 31, STOP]),
  )
  assert len(samples.from_group(group, [1, 2, 3])) == 3
  made = samples.from_group(group, [1, 2, 3], mask_truncated=True)
  assert [s.advantage for s in made] == [2]


@pytest.mark.parametrize(
  ('rollout', 'advantages', 'message'),
  [
    ({}, [1.0, 2.0], r'group 9: expected 1 advantages, .* shape \(2,\)'),
    ({}, [np.nan], r'group 9, rollout 0: expected a finite advantage, got nan'),
    (
      {'logprobs': (-0.5, np.nan, -0.25)},
      [1.0],
      'rollout 0: .* got nan for token 1 of 3',
    ),
    ({'logprobs': (-0.5, -1.0)}, [1.0], r'3 tokens, logprobs \(2,\)'),
    ({'versions': (3, 3)}, [1.0], r'3 tokens, .* versions \(2,\)'),
    (
      {'ids': (), 'logprobs': (), 'versions': ()},
      [1.0],
      'completion.token_ids: expected a non-empty',
    ),
    ({'prompt_ids': ()}, [1.0], 'prompt.token_ids: expected a non-empty'),
  ],
)
def test_a_valid_rollout_that_lacks_something_is_refused(
  rollout, advantages, message
):
  if rollout.get('ids') == ():
    rollout = {name: np.zeros(0, int) for name in rollout}
  if rollout.get('prompt_ids') == ():
    rollout = {'prompt_ids': np.zeros(0, int)}
  with pytest.raises(ValueError, match=message):
    samples.from_group(make_group(make_rollout(**rollout)), advantages)


def counting_sample(num_prompt, num_completion):
  ids = np.arange(num_prompt + num_completion, dtype=np.int32)
  mask = ids >= num_prompt
  return TrainingSample(
    token_ids=ids,
    loss_mask=mask,
    behavior_logprobs=np.where(mask, -ids, np.nan).astype(np.float32),
    versions=ids,
    advantage=1.5,
    group_id=4,
  )


def test_samples_at_the_limit_are_left_alone():
  made = [counting_sample(2, 4), counting_sample(1, 1)]
  for overlong in ('drop', 'truncate'):
    kept, report = samples.limit_length(made, 6, overlong=overlong)
    assert kept == made
    assert report == samples.LengthReport(
      num_samples=2, num_dropped=0, num_truncated=0, num_cut_tokens=0
    )


def test_overlong_samples_are_dropped_and_counted():
  short, long = counting_sample(2, 3), counting_sample(2, 4)
  kept, report = samples.limit_length([long, short, long], 5, overlong='drop')
  assert kept == [short]
  assert report == samples.LengthReport(
    num_samples=3, num_dropped=2, num_truncated=0, num_cut_tokens=0
  )


def test_overlong_samples_are_truncated_at_the_end_and_counted():
  kept, report = samples.limit_length(
    [counting_sample(2, 6), counting_sample(2, 3)], 5, overlong='truncate'
  )
  assert report == samples.LengthReport(
    num_samples=2, num_dropped=0, num_truncated=1, num_cut_tokens=3
  )
  cut = kept[0]
  assert cut.token_ids.tolist() == [0, 1, 2, 3, 4]
  assert cut.loss_mask.tolist() == [False, False, True, True, True]
  np.testing.assert_array_equal(
    cut.behavior_logprobs, np.float32([np.nan, np.nan, -2, -3, -4])
  )
  assert cut.versions.tolist() == [0, 1, 2, 3, 4]
  assert (cut.advantage, cut.group_id) == (1.5, 4)


def test_truncating_a_sample_without_the_fields_of_rl_keeps_them_none():
  sample = samples.from_sft([5], [7, 8, STOP], stop_token_ids=[STOP])
  [cut], _ = samples.limit_length([sample], 3, overlong='truncate')
  assert cut.token_ids.tolist() == [5, 7, 8]
  assert cut.behavior_logprobs is None


def test_a_sample_of_which_only_the_prompt_would_remain_is_dropped():
  kept, report = samples.limit_length(
    [counting_sample(5, 4), counting_sample(4, 4)], 5, overlong='truncate'
  )
  assert [int(s.loss_mask.sum()) for s in kept] == [1]
  assert report == samples.LengthReport(
    num_samples=2, num_dropped=1, num_truncated=1, num_cut_tokens=3
  )


def test_an_unknown_policy_or_a_limit_of_one_is_refused():
  with pytest.raises(ValueError, match="'drop' or 'truncate', got 'cut'"):
    samples.limit_length([], 5, overlong='cut')
  with pytest.raises(ValueError, match='max_tokens: expected at least 2'):
    samples.limit_length([], 1, overlong='drop')
