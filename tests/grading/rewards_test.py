"""Rewards worked out by hand."""

import dataclasses

import numpy as np
import pytest

from experiments import base
from qed import config
from qed.grading import rewards
from qed.types import Completion, Grade

PUBLISHED = dataclasses.asdict(config.build(base.grpo()).reward)


def reward(
  score, *, status='ok', num_tokens=10, finish_reason='stop', **changes
):
  completion = Completion(
    token_ids=np.zeros(num_tokens, np.int32),
    logprobs=np.zeros(num_tokens, np.float32),
    versions=np.zeros(num_tokens, np.int32),
    text='',
    finish_reason=finish_reason,
  )
  grade = Grade(score=score, status=status, feedback='', judge='', usage={})
  return rewards.reward(
    completion, grade, max_tokens=100, **(PUBLISHED | changes)
  )


def test_by_default_the_reward_is_a_seventh_of_the_score():
  assert [reward(score) for score in range(8)] == [
    0 / 7,
    1 / 7,
    2 / 7,
    3 / 7,
    4 / 7,
    5 / 7,
    6 / 7,
    1.0,
  ]


@pytest.mark.parametrize('status', ['unparseable', 'refused', 'unreachable'])
def test_what_was_not_graded_has_no_reward_rather_than_0(status):
  for truncated in ('graded', 'zero', 'invalid'):
    for reason in ('stop', 'length'):
      result = reward(
        None, status=status, finish_reason=reason, truncated=truncated
      )
      assert result is None


def test_a_failure_of_the_engine_is_no_wrong_proof():
  for reason in ('abort', 'error'):
    assert reward(0, finish_reason=reason) is None
    assert reward(7, finish_reason=reason) is None


def test_points_are_a_table_over_the_scores():
  coarse = (0, 1, 1, 1, 1, 1, 6, 7)  # The published thresholds.
  assert [reward(s, points=coarse) for s in (0, 1, 3, 5, 6, 7)] == [
    0,
    1 / 7,
    1 / 7,
    1 / 7,
    6 / 7,
    1,
  ]
  success = (0, 0, 0, 0, 0, 0, 7, 7)
  assert [reward(s, points=success) for s in (0, 5, 6, 7)] == [0, 0, 1, 1]


def test_the_discount_is_per_token():
  assert reward(7, num_tokens=3, discount=0.5) == 0.125
  assert reward(0, num_tokens=3, discount=0.5) == 0


def test_over_the_last_tokens_the_reward_falls_by_one():
  # max_tokens 100, b = 20: (80 - n) / 20 from n = 81 on.
  for num_tokens, penalty in {
    1: 0,
    80: 0,
    81: -0.05,
    90: -0.5,
    100: -1.0,
  }.items():
    result = reward(7, num_tokens=num_tokens, overlong_buffer_tokens=20)
    assert result == pytest.approx(1 + penalty), num_tokens
  # It also falls for what was worth nothing.
  assert reward(0, num_tokens=100, overlong_buffer_tokens=20) == -1.0


def test_the_penalty_is_not_discounted():
  result = reward(7, num_tokens=90, overlong_buffer_tokens=20, discount=0.5)
  assert result == pytest.approx(0.5**90 - 0.5)


def test_what_becomes_of_a_completion_that_reached_the_limit():
  def cut(**changes):
    return reward(7, num_tokens=100, finish_reason='length', **changes)

  assert cut(truncated='graded') == 1
  assert cut(truncated='zero') == 0
  assert cut(truncated='invalid') is None
  assert cut(truncated='zero', overlong_buffer_tokens=50) == -1
  # The reason decides, not the length.
  assert reward(7, num_tokens=100, truncated='zero') == 1
  assert reward(7, num_tokens=100, truncated='invalid') == 1
