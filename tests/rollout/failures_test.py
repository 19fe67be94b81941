"""Whose fault a failure is, counted by hand."""

import types

import pytest

from qed.rollout import failures


def requests(count):
  return [types.SimpleNamespace(num_failures=0) for _ in range(count)]


def blame(counter, suspects, num_chunks=0):
  return counter.blame(ValueError('why'), suspects, num_chunks)


def test_the_third_failure_of_a_request_is_its_last():
  counter = failures.Failures()
  first, second = requests(2)
  assert blame(counter, [first]) == []
  assert not failures.is_on_trial(first)
  assert blame(counter, [first, second]) == []
  assert failures.is_on_trial(first)
  assert not failures.is_on_trial(second)
  assert blame(counter, [first, second]) == [first]


def test_the_fifth_failure_that_is_nobodys_is_the_last():
  counter = failures.Failures()
  for _ in range(4):
    blame(counter, [])
  with pytest.raises(RuntimeError, match=r'failed 5 times in a row.*why'):
    blame(counter, [])


def test_the_third_loss_in_a_row_is_the_last():
  counter = failures.Failures()
  suspects = requests(3)
  for request in suspects[:2]:
    assert [len(blame(counter, [request])) for _ in range(3)] == [0, 0, 1]
  blame(counter, suspects[2:])
  blame(counter, suspects[2:])
  with pytest.raises(RuntimeError, match='failed 9 times in a row'):
    blame(counter, suspects[2:])


def test_a_chunk_that_came_between_them_forgives_all():
  counter = failures.Failures()
  for num_chunks in range(20):
    for _ in range(4):
      blame(counter, [], num_chunks)
  for num_chunks in range(20, 40):
    (request,) = requests(1)
    for _ in range(3):
      blame(counter, [request], num_chunks)
  for _ in range(4):
    blame(counter, [], 39)
  with pytest.raises(RuntimeError, match='failed 8 times in a row'):
    blame(counter, [], 39)
