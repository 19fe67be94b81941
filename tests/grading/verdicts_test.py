"""Replies are kept, by whatever they depend on, through crashes and crowds."""

import dataclasses
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from qed.grading import verdicts
from qed.types import Message

pytestmark = pytest.mark.timeout(60)

REPLY = verdicts.Stored(
  text='So <score>5</score>',
  refusal='',
  finish_reason='stop',
  prompt_tokens=1000,
  completion_tokens=200,
)


def run_python(source, *arguments, **options):
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(source), *map(str, arguments)],
    **options,
  )


def question(*, system='s', user='u', **changes):
  messages = (
    Message(role='system', content=system),
    Message(role='user', content=user),
  )
  fields = {
    'model': 'm',
    'sampling': {'temperature': 1.0, 'max_tokens': 9, 'effort': 'low'},
    'replica': 0,
    'draw': 0,
  }
  return verdicts.key(messages, **(fields | changes))


def test_a_key_depends_on_all_that_a_reply_may_depend_on():
  sampling = {'temperature': 1.0, 'max_tokens': 9, 'effort': 'low'}
  others = [
    question(system='s '),
    question(user='u '),
    question(user='U'),
    question(user='\ud800'),
    question(model='m2'),
    question(replica=1),
    question(draw=1),
    question(sampling=sampling | {'temperature': 0.9}),
    question(sampling=sampling | {'max_tokens': 8}),
    question(sampling=sampling | {'effort': ''}),
    question(system='su', user=''),
  ]
  keys = [question(), *others]
  assert len(set(keys)) == len(keys)
  assert question() == question(sampling=dict(reversed(sampling.items())))


def test_a_key_is_the_same_in_every_process_and_version():
  # Worked out with sha256sum of the text that the docstring describes.
  messages = (Message(role='user', content='é'),)
  key = verdicts.key(messages, model='m', sampling={'t': 1}, replica=2)
  text = (
    r'{"draw":0,"messages":[["user","\u00e9"]],"model":"m","replica":2,'
    r'"sampling":{"t":1}}'
  )
  digest = subprocess.run(
    ['sha256sum'], input=text.encode(), capture_output=True, check=True
  ).stdout.decode()
  assert key == digest.split()[0]


def test_a_reply_comes_back_as_it_was_put(tmp_path):
  reply = dataclasses.replace(REPLY, text='é\0\n<score>', refusal='no')
  with verdicts.Verdicts(tmp_path / 'new' / 'v.sqlite') as store:
    assert store.get('k') is None
    assert store.put(store.begin('k', 'm'), reply, about='p') == reply
  with verdicts.Verdicts(tmp_path / 'new' / 'v.sqlite') as store:
    assert store.get('k') == reply
    assert store.get('other') is None


def test_the_first_reply_stays_and_the_second_asker_gets_it(tmp_path):
  later = dataclasses.replace(REPLY, text='<score>0</score>')
  with (
    verdicts.Verdicts(tmp_path / 'v') as one,
    verdicts.Verdicts(tmp_path / 'v') as two,
  ):
    calls = one.begin('k', 'm'), two.begin('k', 'm')
    assert one.put(calls[0], REPLY, about='') == REPLY
    assert two.put(calls[1], later, about='') == REPLY
    assert two.get('k') == REPLY
    # Both were paid for, and the ledger says so.
    assert two.ledger({}).prompt_tokens == 2000


def test_the_ledger_adds_up_by_hand(tmp_path):
  prices = {'m': (2.0, 10.0), 'big': (100.0, 1000.0)}
  with verdicts.Verdicts(tmp_path / 'v', run='r') as store:
    for number in range(3):
      store.put(store.begin(f'k{number}', 'm'), REPLY, about='')
    store.put(store.begin('k', 'big'), REPLY, about='')
    store.put(store.begin('k', 'free'), REPLY, about='')
    store.fail(store.begin('x', 'm'), 'timeout')
    store.fail(store.begin('x', 'm'), 'timeout')
    store.fail(store.begin('x', 'm'), 'reset')
    store.begin('y', 'm')
    store.count_hit('m')
    store.count_hit('m')
    store.count_hit('big')
    ledger = store.ledger(prices)
  assert ledger == verdicts.Ledger(
    calls=9,
    answered=5,
    failed={'timeout': 2, 'reset': 1},
    open=1,
    cache_hits=3,
    prompt_tokens=5000,
    completion_tokens=1000,
    # 3 x (1000 x 2 + 200 x 10) + 1000 x 100 + 200 x 1000 millionths.
    usd=pytest.approx(0.312),
  )


def test_runs_that_share_a_file_share_replies_but_not_the_ledger(tmp_path):
  with (
    verdicts.Verdicts(tmp_path / 'v', run='a') as a,
    verdicts.Verdicts(tmp_path / 'v', run='b') as b,
  ):
    a.put(a.begin('k', 'm'), REPLY, about='')
    assert b.get('k') == REPLY
    b.count_hit('m')
    assert (a.ledger({}).calls, a.ledger({}).cache_hits) == (1, 0)
    assert (b.ledger({}).calls, b.ledger({}).cache_hits) == (0, 1)


def test_a_reply_without_its_call_is_refused_and_nothing_is_stored(tmp_path):
  with verdicts.Verdicts(tmp_path / 'v') as store:
    with pytest.raises(ValueError, match='expected a call of begin, got 7'):
      store.put(7, REPLY, about='')
    assert store.ledger({}).calls == 0
    store.put(store.begin('k', 'm'), REPLY, about='')  # It still works.


def test_a_file_that_is_something_else_is_refused(tmp_path):
  (tmp_path / 'v').write_text('not a database, ' * 100)
  with pytest.raises(ValueError, match='expected a file of verdicts'):
    verdicts.Verdicts(tmp_path / 'v')


def test_a_database_of_another_layout_is_refused_and_left_alone(tmp_path):
  for number, setting in enumerate(
    ('CREATE TABLE replies (x)', 'PRAGMA user_version = 2')
  ):
    path = tmp_path / f'v{number}'
    database = sqlite3.connect(path)
    database.execute(setting)
    database.commit()
    dump = [*database.iterdump()]
    with pytest.raises(ValueError, match='it has layout'):
      verdicts.Verdicts(path)
    assert [*database.iterdump()] == dump
    database.close()


WRITER = """
  import sys
  from qed.grading import verdicts
  path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
  reply = verdicts.Stored(
    text=name, refusal='', finish_reason='stop', prompt_tokens=1,
    completion_tokens=1)
  with verdicts.Verdicts(path) as store:
    for i in range(count):
      stored = store.put(store.begin(f'shared {i}', 'm'), reply, about='')
      store.put(store.begin(f'{name} {i}', 'm'), reply, about='')
      store.count_hit('m')
      print(stored.text, flush=True)
"""


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
  writers = [
    run_python(WRITER, tmp_path / 'v', name, 200, stdout=subprocess.PIPE)
    for name in 'abc'
  ]
  seen = [writer.communicate()[0].decode().split() for writer in writers]
  assert [writer.returncode for writer in writers] == [0, 0, 0]
  with verdicts.Verdicts(tmp_path / 'v') as store:
    # Whoever was first, all three were told the same.
    for i, told in enumerate(zip(*seen, strict=True)):
      assert set(told) == {store.get(f'shared {i}').text}
    for name, i in itertools.product('abc', range(200)):
      assert store.get(f'{name} {i}').text == name
    ledger = store.ledger({})
  assert (ledger.calls, ledger.answered) == (1200, 1200)
  assert ledger.cache_hits == 600


def test_a_writer_that_is_killed_leaves_calls_and_replies_in_step(tmp_path):
  for delay in (0.0, 0.003, 0.011, 0.03):
    writer = run_python(
      WRITER, tmp_path / 'v', f'w{delay}', 10**6, stdout=subprocess.PIPE
    )
    writer.stdout.readline()  # It has begun.
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    told = writer.communicate()[0].decode().split()
    assert writer.returncode == -signal.SIGKILL
    with verdicts.Verdicts(tmp_path / 'v') as store:
      # What it said was stored is there.
      assert store.get(f'shared {len(told)}') is not None
      assert store.ledger({}).open <= 4  # At most one per life.
  database = sqlite3.connect(tmp_path / 'v')
  assert database.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
  assert database.execute('PRAGMA journal_mode').fetchall() == [('wal',)]
  answered, replies = database.execute(
    "SELECT (SELECT count(DISTINCT key) FROM calls WHERE outcome = 'answer'), "
    '(SELECT count(*) FROM replies)'
  ).fetchone()
  database.close()
  assert answered == replies > 4
