"""Who asks when whether the run is to end, without a second process.

jax settles by the number of the question where all processes stop: a process
that asked less often than the others would stop elsewhere, or never.
"""

import contextlib
import time

import jax
import pytest

from qed import gang

pytestmark = pytest.mark.timeout(20)
ORDERS = (('add', (1, 2)), ('', ()), ('add', (3, 4)), ('dismissal', (42,)))


class Log(list):
  """What happened in one process, as its learner and its preemption saw it."""

  def add(self, *numbers):
    self.append(f'add {numbers}')
    return sum(numbers)

  def close(self):
    self.append('close')

  def reached(self):
    self.append('asked')
    return self.count('asked') == 2  # It is told once.


EXPECTED = [
  *('order', 'asked', 'add (1, 2)'),
  *('order', 'asked'),
  *('order', 'asked', 'add (3, 4)'),
  *('order', 'asked', 'close'),
]


@pytest.fixture
def log(monkeypatch):
  """That of a process of two; what goes wrong ends no interpreter."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(gang.startup, 'leaving_at_once', contextlib.nullcontext)
  return Log()


def test_a_process_that_follows_asks_once_at_every_order(log, monkeypatch):
  left = [*ORDERS]

  def broadcast(order):
    assert order is None
    log.append('order')
    return left.pop(0)

  monkeypatch.setattr(gang, '_broadcast', broadcast)
  assert gang.follow(log, log) == 42
  assert log == EXPECTED


def broadcast_of_the_first(log):
  def broadcast(order):
    log.append('order')
    return order

  return broadcast


def test_the_process_that_leads_asks_as_often_and_remembers(log, monkeypatch):
  monkeypatch.setattr(gang, '_BEAT_SECS', 60.0)
  monkeypatch.setattr(gang, '_broadcast', broadcast_of_the_first(log))
  crew = gang.Gang(log, log)
  assert crew.do('add', 1, 2) == 3
  assert not crew.is_preempted()
  crew.do('')
  assert crew.do('add', 3, 4) == 7
  assert crew.is_preempted()
  crew.dismiss(42)
  assert log == EXPECTED


def test_it_asks_also_while_there_is_nothing_to_do(log, monkeypatch):
  monkeypatch.setattr(gang, '_BEAT_SECS', 0.01)
  monkeypatch.setattr(gang, '_broadcast', broadcast_of_the_first(log))
  crew = gang.Gang(log, log)
  while not crew.is_preempted():
    time.sleep(0.01)
  crew.dismiss(42)
  assert log[:4] == ['order', 'asked'] * 2
  assert log[-3:] == ['order', 'asked', 'close']
