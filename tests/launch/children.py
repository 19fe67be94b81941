"""Work units whose jobs are scripts of a few lines instead of programs.

The interpreter that `LocalProcesses` is told to use runs the text of the flag
`do`, with the names of CHILD around it.
"""

import os
import pathlib
import sys
import textwrap
import threading
import time

import pytest

from launch import run_dirs
from launch.experiment import Job, WorkUnit
from launch.local_processes import LocalProcesses

CHILD = """
import os, pathlib, signal, socket, sys, time
program, *flags = sys.argv[2:]
args = dict(flag[2:].split('=', 1) for flag in flags)
workdir = pathlib.Path(args['workdir'])
rank = int(os.environ.get('JAX_PROCESS_ID', 0))

def write(name, text=''):
  partial = workdir / f'{name}.{os.getpid()}'
  partial.write_text(str(text))
  partial.replace(workdir / name)

def wait(name):
  for _ in range(12_000):  # Whoever is to make it may be gone.
    if (workdir / name).exists():
      return
    time.sleep(0.005)
  sys.exit(3)

def save(step):
  (workdir / 'checkpoints' / str(step)).mkdir(parents=True)
  (workdir / 'checkpoints' / str(step) / 'state').touch()

with open(workdir / f'starts.{program}.{rank}', 'a') as file:
  file.write(f'{os.getpid()}\\n')
start = len((workdir / f'starts.{program}.{rank}').read_text().split())

def die(number=signal.SIGKILL):
  os.kill(os.getpid(), number)

def serve():
  with socket.create_server(('127.0.0.1', int(args['port']))) as server:
    while True:
      server.accept()[0].close()

def save_at_sigterm(step):
  def stop(*_):
    save(step)
    sys.exit(42)
  signal.signal(signal.SIGTERM, stop)

exec(args['do'])
"""


@pytest.fixture
def python(tmp_path):
  """An interpreter that runs what the flag `do` says."""
  (tmp_path / 'child.py').write_text(CHILD)
  path = tmp_path / 'python'
  path.write_text(
    f'#!/bin/sh\nexec {sys.executable} -S {tmp_path}/child.py "$@"\n'
  )
  path.chmod(0o755)
  return str(path)


@pytest.fixture
def submit(python, capsys):
  """Runs work units: (exit code, what was printed)."""

  def call(*units, **options):
    options = {'backoff_secs': 0.0, 'grace_secs': 10.0} | options
    code = LocalProcesses(python=python, **options).submit(units)
    return code, capsys.readouterr().out

  return call


def make(folder, do, *, name='unit', services=None, **about):
  """A work unit whose jobs run these texts."""
  workdir = folder / name

  def job(job_name, program, text, **rest):
    flags = {'workdir': str(workdir), 'do': textwrap.dedent(text)}
    return Job(name=job_name, program=program, flags=flags, **rest)

  others = [
    job(service, f'of_{service}', text, is_service=True, port_flag='port')
    for service, text in (services or {}).items()
  ]
  main = job('main', 'sft', do, **about)
  return WorkUnit(name=name, workdir=str(workdir), jobs=(main, *others))


def starts(unit, program='sft', rank=0):
  """The process ids of every start."""
  path = pathlib.Path(unit.workdir, f'starts.qed.{program}.{rank}')
  return path.read_text().split()


def ends(unit, job='main'):
  """(exit codes, verdict) of every end."""
  attempts = run_dirs.read_attempts(pathlib.Path(unit.workdir))
  return [(a['exit_codes'], a['verdict']) for a in attempts if a['job'] == job]


def is_alive(pid):
  return pathlib.Path(f'/proc/{pid}').exists()


def send_when(path, *numbers):
  """Sends this process signals, one at each file that appears."""

  def send():
    for file, number in zip(path, numbers, strict=True):
      while not file.exists():
        time.sleep(0.01)
      os.kill(os.getpid(), number)

  thread = threading.Thread(target=send, daemon=True)
  thread.start()
  return thread
