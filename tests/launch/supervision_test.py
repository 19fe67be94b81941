"""Services beside a job, the end of everything, and two launchers at once."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import exit_codes, run_dirs, supervision
from tests.launch.children import (
  ends,
  is_alive,
  make,
  python,
  send_when,
  starts,
  submit,
)

__all__ = ['python', 'submit']  # Fixtures.

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def heeded():
  """Signals that tests under nohup, or in the background, begin ignoring."""
  numbers = (signal.SIGINT, signal.SIGHUP)
  before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


# Services.


def test_a_service_listens_before_the_main_job_begins_and_ends_after_it(
  submit, tmp_path
):
  unit = make(
    tmp_path,
    """
    host, port = args['judge'].removeprefix('http://').split(':')
    socket.create_connection((host, int(port))).close()
    """,
    services={'judge': 'time.sleep(0.3); save_at_sigterm(4); serve()'},
  )
  main = unit.main
  main.flags['judge'] = '{url:judge}'
  assert submit(unit)[0] == exit_codes.DONE
  assert not is_alive(starts(unit, 'of_judge')[0])
  assert run_dirs.saved(tmp_path / 'unit') == 4, 'in good order'


@pytest.mark.parametrize('end', ['die()', 'sys.exit(0)'])
def test_a_dead_service_is_started_again_alone_at_its_port(
  submit, tmp_path, end
):
  unit = make(
    tmp_path,
    """
    wait('again')
    port = (workdir / 'again').read_text()
    socket.create_connection(('127.0.0.1', int(port)))
    """,
    services={
      'judge': f"""
      if start == 1:
        with socket.create_server(('127.0.0.1', int(args['port']))) as server:
          server.accept()
          write('port', args['port'])
          time.sleep(0.2)
          {end}
      with socket.create_server(('127.0.0.1', int(args['port']))) as server:
        write('again', args['port'])
        while True:
          server.accept()
      """
    },
  )
  assert submit(unit)[0] == exit_codes.DONE
  assert len(starts(unit)) == 1
  assert len(starts(unit, 'of_judge')) == 2
  folder = tmp_path / 'unit'
  assert (folder / 'port').read_text() == (folder / 'again').read_text()
  assert [verdict for _, verdict in ends(unit, 'judge')] == ['restart']


def test_a_service_that_cannot_be_helped_ends_the_run_which_saves(
  submit, tmp_path
):
  unit = make(
    tmp_path,
    """
    save_at_sigterm(5)
    write('ready')
    time.sleep(60)
    """,
    services={
      'judge': """
      with socket.create_server(('127.0.0.1', int(args['port']))) as server:
        server.accept()
        wait('ready')
        sys.exit(2)
      """
    },
  )
  assert submit(unit)[0] == exit_codes.USAGE
  assert run_dirs.saved(tmp_path / 'unit') == 5
  assert ends(unit) == [([42], 'restart')]
  assert ends(unit, 'judge') == [([2], 'permanent')]


def test_a_service_that_dies_over_and_over_is_given_up(submit, tmp_path):
  unit = make(tmp_path, 'time.sleep(60)', services={'judge': 'die()'})
  code, out = submit(unit, max_restarts=1)
  assert code == exit_codes.BUG
  assert 'judge was started again 1 times' in out
  assert not (tmp_path / 'unit' / 'starts.qed.sft.0').exists()


# Stops.


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_stop_is_passed_on_and_waited_for(submit, tmp_path, number):
  unit = make(
    tmp_path,
    """
    if start == 1:
      save_at_sigterm(3 + rank)
      if rank: wait('ready0')
      write(f'ready{rank}')
      time.sleep(60)
    """,
    services={'judge': 'serve()'},
    num_processes=2,
  )
  folder = tmp_path / 'unit'
  sender = send_when([folder / 'ready1'], number)
  code, _ = submit(unit)
  sender.join()
  assert code == exit_codes.RESTART
  assert ends(unit) == [([42, 42], 'restart')]
  assert run_dirs.saved(folder) == 4
  assert not is_alive(starts(unit, 'of_judge')[0])
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  # To launch again is to go on.
  assert submit(unit)[0] == exit_codes.DONE
  assert len(starts(unit)) == 2


def test_after_a_stop_nothing_new_begins_and_the_code_says_so(submit, tmp_path):
  do = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    write('ready')
    time.sleep(60)
    """
  units = [make(tmp_path, do), make(tmp_path, '', name='waiting')]
  sender = send_when([tmp_path / 'unit' / 'ready'], signal.SIGTERM)
  code, _ = submit(*units)
  sender.join()
  assert ends(units[0]) == [([0], 'done')]
  assert code == exit_codes.RESTART
  assert not (tmp_path / 'waiting').exists()


def test_what_does_not_stop_is_killed(submit, tmp_path):
  do = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write('ready')
    time.sleep(60)
    """
  unit = make(tmp_path, do)
  sender = send_when([tmp_path / 'unit' / 'ready'], signal.SIGTERM)
  assert submit(unit, grace_secs=0.2)[0] == exit_codes.RESTART
  sender.join()
  assert ends(unit) == [([137], 'restart')]


def test_a_second_stop_kills_at_once(submit, tmp_path):
  do = """
    signal.signal(signal.SIGTERM, lambda *_: write('told'))
    write('ready')
    while True: time.sleep(1)
    """
  unit = make(tmp_path, do)
  files = [tmp_path / 'unit' / name for name in ('ready', 'told')]
  sender = send_when(files, signal.SIGTERM, signal.SIGTERM)
  began = time.monotonic()
  assert submit(unit, grace_secs=30)[0] == exit_codes.RESTART
  sender.join()
  assert time.monotonic() - began < 25


def test_without_a_terminal_the_work_goes_on(submit, tmp_path, monkeypatch):
  class Closed:
    def write(self, text):
      raise BrokenPipeError

    flush = write

  monkeypatch.setattr(sys, 'stdout', Closed())
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.
  try:
    unit = make(tmp_path, "print(1); write('ready'); wait('go')")
    folder = tmp_path / 'unit'
    sender = send_when([folder / 'ready'], signal.SIGHUP)

    def go_on():
      sender.join()
      time.sleep(0.3)  # For a signal that should have no effect to have one.
      (folder / 'go').touch()

    threading.Thread(target=go_on, daemon=True).start()
    code, _ = submit(unit)
  finally:
    signal.signal(signal.SIGHUP, before)
  assert code == exit_codes.DONE


# Two launchers.


def test_a_second_launcher_is_refused(submit, tmp_path):
  unit = make(tmp_path, '')
  with run_dirs.locked(tmp_path / 'unit'):
    assert run_dirs.is_locked(tmp_path / 'unit')
    code, out = submit(unit)
  assert code == exit_codes.USAGE
  assert re.search(rf'launcher on \S+ \({os.getpid()}\)', out)
  assert not (tmp_path / 'unit' / 'starts.qed.sft.0').exists()
  assert not run_dirs.is_locked(tmp_path / 'unit')
  assert submit(unit)[0] == exit_codes.DONE


def test_processes_that_outlive_their_launcher_hold_the_lock(
  submit, python, tmp_path
):
  unit = make(tmp_path, "write('ready', os.getpid()); wait('go')")
  script = f"""
from launch.experiment import Job, WorkUnit
from launch.local_processes import LocalProcesses
job = Job(name='main', program='sft', flags={unit.main.flags!r})
unit = WorkUnit(name='unit', workdir={unit.workdir!r}, jobs=(job,))
LocalProcesses(python={python!r}).submit([unit])
"""
  launcher = subprocess.Popen(
    [sys.executable, '-c', script], cwd=REPOSITORY, stdout=subprocess.DEVNULL
  )
  folder = tmp_path / 'unit'
  lock = folder / run_dirs.LOCK
  while not ((folder / 'ready').exists() and 'main (' in lock.read_text()):
    assert launcher.poll() is None
    time.sleep(0.02)
  launcher.kill()
  launcher.wait()
  code, out = submit(unit)
  assert code == exit_codes.USAGE
  assert f'main ({starts(unit)[0]})' in out
  assert len(starts(unit)) == 1
  (folder / 'go').touch()
  while run_dirs.is_locked(folder):
    time.sleep(0.02)
  assert submit(unit)[0] == exit_codes.DONE


# Patience.


def test_every_restart_without_progress_waits_twice_as_long():
  patience = supervision.Patience(
    max_restarts=3, backoff_secs=1.5, grace_secs=9.0
  )
  tries = supervision._Tries(patience, saved=4)
  assert [tries.next(4) for _ in range(3)] == [1.5, 3.0, 6.0]
  assert tries.next(5) == 0.0  # Something new was saved.
  assert [tries.next(5) for _ in range(4)] == [1.5, 3.0, 6.0, None]
