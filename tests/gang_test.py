"""The orders of one process, carried out by all in the same sequence."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from qed import gang

REPOSITORY = pathlib.Path(__file__).parents[1]


class Learner:
  """Notes what it is told, and in which thread."""

  def __init__(self):
    self.calls = []

  def add(self, *numbers):
    self.calls.append((numbers, threading.current_thread()))
    return sum(numbers)

  def close(self):
    self.calls.append('closed')


def test_a_run_of_one_process_does_what_it_is_told_where_it_is_told():
  class Told:
    def reached(self):
      return True

  learner = Learner()
  alone = gang.Gang(learner, Told())
  assert alone.do('add', 2, 3) == 5
  assert alone.is_preempted()
  alone.dismiss(0)
  assert learner.calls == [((2, 3), threading.current_thread()), 'closed']


# Every call is a collective that fails unless all processes call it with the
# same arguments.
MEMBER = """
import sys, threading, time
import jax, numpy as np
from jax.experimental import multihost_utils
from qed import gang
from qed.training import processes

class Learner:
  log = []
  def note(self, thread, data):
    number = len(self.log)
    told = np.array([number, thread, data.size, data.sum()], np.int32)
    everywhere = multihost_utils.process_allgather(told)
    assert (everywhere == told).all(), everywhere
    self.log.append((thread, data.size))
    return int(data.sum())
  def close(self):
    self.log.append('closed')

processes.initialize()
learner = Learner()
with processes.Preemption() as preemption:
  if processes.is_first():
    crew = gang.Gang(learner, preemption)
    def order(thread):
      for size in (0, 1, 1100, 5000):
        data = np.full(size, thread, np.int32)
        assert crew.do('note', thread, data) == size * thread
    threads = [threading.Thread(target=order, args=[n]) for n in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    print('idle', flush=True)
    while not crew.is_preempted():
      time.sleep(0.02)
    code = 42
    crew.dismiss(code)
  else:
    code = gang.follow(learner, preemption)
print(learner.log, flush=True)
sys.exit(code)
"""


@pytest.fixture
def pair():
  """Two processes; what the first one says is read line by line."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  found = [
    subprocess.Popen(
      [sys.executable, '-c', MEMBER],
      cwd=REPOSITORY,
      env={
        **os.environ,
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(index),
        'JAX_NUM_CPU_DEVICES': '1',
      },
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  yield found
  for process in found:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.timeout(180)
def test_orders_of_many_threads_reach_all_processes_in_one_sequence(pair):
  """Until the one that only follows is asked to end, while nothing happens."""
  while pair[0].stdout.readline() != 'idle\n':
    assert pair[0].poll() is None
  pair[1].send_signal(signal.SIGTERM)
  texts = [process.communicate()[0] for process in pair]
  assert [process.returncode for process in pair] == [42, 42]
  logs = [text.splitlines()[-1] for text in texts]
  assert logs[0] == logs[1]
  assert logs[0].count('(') == 16
  assert logs[0].endswith("'closed']")
