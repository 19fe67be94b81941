"""What is seen of the calls of a scaffold, on a terminal and elsewhere."""

import io
import sys

import pytest

from qed.reporting import call_tree
from qed.scaffolds.calls import Event


class Clock:
  """Seconds that a test sets."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def event(label, state, tokens=0, secs=0.0):
  return Event(
    problem_id='p',
    attempt=0,
    label=label,
    role='solver',
    state=state,
    completion_tokens=tokens,
    secs=secs,
  )


def grown(clock, *events):
  calls = call_tree.CallTree('p, rsa', clock=clock)
  for args in events:
    calls.tell(event(*args))
  return calls


def test_without_calls_there_is_a_title():
  assert grown(Clock()).lines() == ['p, rsa: 0 calls, 0 tokens, 0:00:00']


def test_a_tree_grows_by_the_parts_of_labels_and_folds_up_what_is_over():
  clock = Clock()
  calls = grown(
    clock,
    ('solution 1', 'started'),
    ('solution 2', 'started'),
    ('solution 1', 'stop', 1_500, 4.0),
    ('solution 2', 'length', 4_000, 9.5),
    ('round 1/merge 1', 'started'),
    ('round 1/merge 2', 'started'),
    ('round 1/merge 2', 'error', 0, 0.1),
  )
  clock.now += 75.4
  assert calls.lines() == [
    'p, rsa: 4 calls, 1 running, 5,500 tokens, 1 cut off, 1 failed, 0:01:15',
    '  solution 1: 1,500 tokens, 4.0 s',
    '  solution 2: 4,000 tokens, 9.5 s, cut off',
    '  round 1: 2 calls, 1 running, 0 tokens, 1 failed ...',
    '    merge 1: 75 s ...',
    '    merge 2: 0 tokens, 0.1 s, failed',
  ]
  calls.tell(event('round 1/merge 1', 'late', 0, 80.0))
  assert calls.lines()[3:] == [
    '  round 1: 2 calls, 0 tokens, 1 failed, 1 given up at the time limit'
  ]


def test_a_call_may_have_calls_below_it():
  calls = grown(
    Clock(),
    ('solution 1', 'started'),
    ('solution 1', 'stop', 10, 1.0),
    ('solution 1/score', 'started'),
  )
  assert calls.lines()[1:] == [
    '  solution 1: 2 calls, 1 running, 10 tokens ...',
    '    score: 0 s ...',
  ]
  calls.tell(event('solution 1/score', 'stop', 5, 1.0))
  assert calls.lines()[1:] == ['  solution 1: 2 calls, 15 tokens']


def test_elsewhere_every_call_is_a_line_when_it_is_over(capsys):
  with call_tree.shown('p, rsa') as tell:
    tell(event('solution 1', 'started'))
    assert capsys.readouterr().out == ''
    tell(event('solution 1', 'stop', 1_500, 4.0))
    assert capsys.readouterr().out == 'solution 1: 1,500 tokens, 4.0 s\n'
  assert capsys.readouterr().out == ('p, rsa: 1 call, 1,500 tokens, 0:00:00\n')


def test_on_a_terminal_it_is_a_tree(monkeypatch):
  class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
      return True

  monkeypatch.setattr(sys, 'stdout', Terminal())
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '70')
  with call_tree.shown('p [1], rsa') as tell:
    tell(event('round 1/merge 1', 'started'))
    tell(event('round 1/merge 2', 'started'))
    tell(event('round 1/merge 2', 'stop', 7, 1.0))
  screen = sys.stdout.getvalue()
  # The last picture; square brackets are no markup.
  assert 'p [1], rsa: 2 calls, 1 running, 7 tokens' in screen
  for words in ('round 1: 2 calls', 'merge 1: 0 s ...', 'merge 2: 7 tokens'):
    assert words in screen
  assert '└── ' in screen


def test_a_terminal_is_left_in_order_when_solving_fails(monkeypatch):
  class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
      return True

  monkeypatch.setattr(sys, 'stdout', Terminal())
  with pytest.raises(ZeroDivisionError), call_tree.shown('p'):
    raise ZeroDivisionError
  assert sys.stdout.getvalue().endswith('\x1b[?25h')  # The cursor is back.
