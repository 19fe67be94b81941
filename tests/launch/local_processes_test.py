"""Processes of this machine: started, watched, ended, and started again.

What runs here are no programs of qed but scripts of a few lines: the
interpreter that `LocalProcesses` is told to use runs the text of the flag `do`.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from absl import app

from launch import exit_codes, processes, run_dirs
from launch.experiment import Cpu, Job, Tpu, WorkUnit
from launch.local_processes import LocalProcesses
from launch.processes import Gang

REPOSITORY = pathlib.Path(__file__).parents[2]
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
  while not (workdir / name).exists():
    time.sleep(0.005)

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

  thread = threading.Thread(target=send)
  thread.start()
  return thread


# What is rendered.


def test_a_work_unit_is_rendered_as_command_lines_with_names_for_ports():
  sampler = Job(
    name='sampler',
    program='serve',
    flags={'checkpoint': 'x y'},
    requirements=Cpu(devices=4),
    is_service=True,
    port_flag='port',
    host_flag='host',
  )
  main = Job(
    name='main',
    program='grpo',
    flags={'config.sampler.urls': "('{url:sampler}/v1',)"},
    num_processes=2,
    secrets=('JUDGE_KEY',),
  )
  unit = WorkUnit(name='u', workdir='/runs/u', jobs=(main, sampler))
  found = LocalProcesses(python='py').render(unit)
  common = ('env', 'PYTHONUNBUFFERED=1', 'JAX_PLATFORMS=cpu')
  assert not found.files
  assert found.commands == (
    (
      *common,
      'JAX_NUM_CPU_DEVICES=4',
      *('py', '-m', 'qed.serve', '--checkpoint=x y', '--port={port:sampler}'),
    ),
    *(
      (
        *common,
        'JAX_NUM_CPU_DEVICES=1',
        'JAX_COORDINATOR_ADDRESS=127.0.0.1:{port:main}',
        'JAX_NUM_PROCESSES=2',
        f'JAX_PROCESS_ID={rank}',
        *('py', '-m', 'qed.grpo'),
        "--config.sampler.urls=('http://127.0.0.1:{port:sampler}/v1',)",
      )
      for rank in range(2)
    ),
  )
  assert (
    'JAX_NUM_CPU_DEVICES=3'
    in (LocalProcesses(devices_per_process=3).render(unit).commands[0])
  )
  free = LocalProcesses(platform='cuda', python='py').render(unit).commands[0]
  assert free[:4] == ('env', 'PYTHONUNBUFFERED=1', 'JAX_PLATFORMS=cuda', 'py')
  free = LocalProcesses(platform='', python='py').render(unit).commands[0]
  assert free[:3] == ('env', 'PYTHONUNBUFFERED=1', 'py')


def test_a_slice_or_a_bucket_is_not_of_this_machine(tmp_path):
  with pytest.raises(app.UsageError, match=r'requires Tpu\(.*4x4x4'):
    LocalProcesses().render(
      make(tmp_path, '', requirements=Tpu('v5p', '4x4x4'))
    )
  unit = WorkUnit(
    name='u', workdir='gs://b/u', jobs=make(tmp_path, '').jobs[:1]
  )
  with pytest.raises(app.UsageError, match='gs://b/u'):
    LocalProcesses().render(unit)


# Runs.


def test_each_process_has_its_own_log_and_its_name_on_the_terminal(
  submit, tmp_path
):
  unit = make(
    tmp_path,
    """
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PLATFORMS'
    write(f'seen{rank}', ' '.join(os.environ[n] for n in names))
    print('a line of', rank)
    sys.stderr.write('the last of %d has no end' % rank)
    """,
    num_processes=2,
  )
  code, out = submit(unit)
  assert code == exit_codes.DONE
  for rank in range(2):
    path = tmp_path / 'unit' / 'logs' / f'main.{rank}.log'
    assert path.read_text() == (
      f'a line of {rank}\nthe last of {rank} has no end'
    )
    assert f'\n[1 main.{rank}] a line of {rank}\n' in out
    assert f'\n[1 main.{rank}] the last of {rank} has no end\n' in out
  seen = [(tmp_path / 'unit' / f'seen{rank}').read_text() for rank in range(2)]
  assert seen[0] == seen[1]
  address, count, platform = seen[0].split()
  assert (address[:10], count, platform) == ('127.0.0.1:', '2', 'cpu')
  assert int(address[10:]) > 1023
  assert ends(unit) == [([0, 0], 'done')]


@pytest.mark.parametrize(
  ('end', 'recorded', 'has_restarted'),
  [
    ('sys.exit(42)', 42, True),
    ('die()', 137, True),
    ('die(signal.SIGTERM)', 143, True),
    ('os.abort()', 134, True),
    ('sys.exit(1)', 1, False),
    ('sys.exit(2)', 2, False),
    ('sys.exit(3)', 3, False),
  ],
)
def test_the_exit_code_says_whether_to_start_again(
  submit, tmp_path, end, recorded, has_restarted
):
  unit = make(tmp_path, f'if start == 1: {end}')
  code, _ = submit(unit)
  if has_restarted:
    assert code == exit_codes.DONE
    assert ends(unit) == [([recorded], 'restart'), ([0], 'done')]
  else:
    assert code == (recorded if recorded < 3 else exit_codes.BUG)
    assert ends(unit) == [([recorded], 'permanent')]


def test_restarts_are_bounded_where_nothing_new_is_saved(submit, tmp_path):
  unit = make(tmp_path, 'sys.exit(42)')
  code, out = submit(unit, max_restarts=2)
  assert code == exit_codes.BUG
  assert len(starts(unit)) == 3
  assert [verdict for _, verdict in ends(unit)] == [
    'restart',
    'restart',
    'permanent',
  ]
  assert 'main was started again 2 times and saved nothing new' in out


def test_a_run_that_gets_on_may_be_restarted_forever(submit, tmp_path):
  do = """
    if start < 8:
      if start % 2: save(start)
      die()
    """
  unit = make(tmp_path, do)
  assert submit(unit, max_restarts=1)[0] == exit_codes.DONE
  assert len(starts(unit)) == 8


def test_one_dead_process_ends_its_gang_and_they_start_again(submit, tmp_path):
  unit = make(
    tmp_path,
    """
    if start == 1:
      write(f'there{rank}')
      if rank == 1:
        wait('there0'), wait('there2')
        die()
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      time.sleep(60)
    """,
    num_processes=3,
  )
  began = time.monotonic()
  assert submit(unit)[0] == exit_codes.DONE
  assert time.monotonic() - began < 50
  assert ends(unit) == [
    ([None, 137, None], 'restart'),
    ([0, 0, 0], 'done'),
  ]


class Scripted:
  """A process that has these exit codes, one after the other."""

  def __init__(self, *codes):
    self.codes = [*codes]

  def exit_code(self):
    return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

  def kill(self):
    self.codes = [137]


def test_what_another_death_took_along_does_not_make_it_a_bug():
  """The one that died first is asked first, while it is still alive."""
  gang = Gang([Scripted(None, 134), Scripted(1), Scripted(None)])
  codes = gang.ended(grace_secs=10.0)
  assert codes == (134, 1, None)
  assert exit_codes.of_processes(c for c in codes if c is not None) == 134


@pytest.mark.parametrize('first', [0, 42])
def test_others_may_follow_the_first_that_has_saved_but_not_forever(
  monkeypatch, first
):
  now = 100.0
  monkeypatch.setattr(processes.time, 'monotonic', lambda: now)
  others = Scripted(None), Scripted(None)
  patient, impatient = (Gang([Scripted(first), other]) for other in others)
  assert patient.ended(5.0) is impatient.ended(5.0) is None
  now += 4.0
  others[0].codes = [first]
  assert patient.ended(5.0) == (first, first)
  assert impatient.ended(5.0) is None
  now += 2.0
  assert impatient.ended(5.0) == (first, None)
  assert others[1].codes == [137]


def test_a_job_is_not_done_where_a_process_had_to_be_killed(submit, tmp_path):
  do = """
    if start == 2: sys.exit(2)
    if rank: time.sleep(60)
    """
  unit = make(tmp_path, do, num_processes=2)
  submit(unit, grace_secs=0.1)
  assert ends(unit)[0] == ([0, None], 'restart')


def test_work_units_take_turns_and_one_that_fails_does_not_stop_them(
  submit, tmp_path
):
  do = """
    write('began', time.time())
    wait('../unit{other}/began')
    time.sleep(0.2)
    write('ended', time.time())
    """
  units = [
    make(tmp_path, 'sys.exit(2)', name='bad'),
    make(tmp_path, do.replace('{other}', '1'), name='unit0'),
    make(tmp_path, do.replace('{other}', '0'), name='unit1'),
    make(tmp_path, do.replace('{other}', '2'), name='unit2'),
  ]
  code, _ = submit(*units, n=2)
  assert code == exit_codes.USAGE
  began, ended = (
    [float((tmp_path / f'unit{i}' / name).read_text()) for i in range(3)]
    for name in ('began', 'ended')
  )
  assert began[2] > min(ended[:2])


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
    services={'judge': 'time.sleep(0.3); serve()'},
  )
  main = unit.main
  main.flags['judge'] = '{url:judge}'
  assert submit(unit)[0] == exit_codes.DONE
  assert not is_alive(starts(unit, 'of_judge')[0])


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


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(submit, tmp_path, number):
  do = """
    if start == 1:
      save_at_sigterm(3)
      write('ready')
      time.sleep(60)
    """
  units = [
    make(tmp_path, do, services={'judge': 'serve()'}, num_processes=2),
    make(tmp_path, do, name='waiting'),
  ]
  # Both processes save under the same name, and one of them is the second.
  units[0].main.flags['do'] = (
    textwrap.dedent(do)
    .replace('save_at_sigterm(3)', 'save_at_sigterm(3 + rank)')
    .replace("'ready'", "f'ready{rank}'")
  )
  folder = tmp_path / 'unit'
  sender = send_when([folder / 'ready1'], number)
  code, _ = submit(*units)
  sender.join()
  assert code == exit_codes.RESTART
  assert ends(units[0]) == [([42, 42], 'restart')]
  assert run_dirs.saved(folder) == 4
  assert not is_alive(starts(units[0], 'of_judge')[0])
  assert not (tmp_path / 'waiting').exists()
  # To launch again is to go on.
  assert submit(*units[:1])[0] == exit_codes.DONE
  assert len(starts(units[0])) == 2
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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


# Two launchers.


def test_a_second_launcher_is_refused(submit, tmp_path):
  unit = make(tmp_path, '')
  with run_dirs.locked(tmp_path / 'unit'):
    assert run_dirs.is_locked(tmp_path / 'unit')
    code, out = submit(unit)
  assert code == exit_codes.USAGE
  assert f'launcher {os.getpid()} on ' in out
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
  while not (folder / 'ready').exists():
    assert launcher.poll() is None
    time.sleep(0.02)
  launcher.kill()
  launcher.wait()
  assert submit(unit)[0] == exit_codes.USAGE
  assert len(starts(unit)) == 1
  (folder / 'go').touch()
  while is_alive((folder / 'ready').read_text()):
    time.sleep(0.02)
  assert submit(unit)[0] == exit_codes.DONE


# Secrets.


def test_a_secret_reaches_the_jobs_that_name_it_and_no_file(
  submit, tmp_path, monkeypatch
):
  monkeypatch.setenv('JUDGE_KEY', 'sk-planted')
  monkeypatch.setenv('QED_API_KEY', 'sk-other')
  look = """
    names = {'JUDGE_KEY', 'QED_API_KEY'} & {*os.environ}
    write(f'{program}.seen', sorted(names))
    """
  unit = make(
    tmp_path,
    look,
    services={'judge': textwrap.dedent(look) + 'serve()'},
    secrets=('JUDGE_KEY',),
  )
  code, out = submit(unit)
  assert code == exit_codes.DONE
  folder = tmp_path / 'unit'
  assert (folder / 'qed.sft.seen').read_text() == "['JUDGE_KEY']"
  assert (folder / 'qed.of_judge.seen').read_text() == '[]'
  written = [p.read_text() for p in folder.rglob('*') if p.is_file()]
  rendered = LocalProcesses().render(unit)
  for text in (out, str(rendered), *written):
    assert 'sk-' not in text


def test_a_secret_that_is_missing_is_told_before_anything_starts(
  submit, tmp_path, monkeypatch
):
  monkeypatch.delenv('JUDGE_KEY', raising=False)
  unit = make(tmp_path, '', secrets=('JUDGE_KEY',))
  with pytest.raises(app.UsageError, match='JUDGE_KEY'):
    submit(unit)
  assert not (tmp_path / 'unit').exists()


# What is on file.


def test_an_end_is_on_file_with_its_time_and_what_was_saved(submit, tmp_path):
  unit = make(tmp_path, 'if start == 1: save(7); sys.exit(42)')
  submit(unit)
  text = (tmp_path / 'unit' / run_dirs.ATTEMPTS).read_text()
  first, second = map(json.loads, text.splitlines())
  assert first['saved'] == second['saved'] == 7
  assert first['time'] <= second['time']
  assert first['time'].endswith('+00:00')
  assert 0 < first['secs'] < 30


def test_what_is_saved_is_the_newest_whole_checkpoint_or_the_journals(
  tmp_path,
):
  (tmp_path / 'records.jsonl').write_text('12345')
  (tmp_path / 'stages' / '1_quality').mkdir(parents=True)
  (tmp_path / 'stages' / '1_quality' / 'kept.jsonl').write_text('678')
  assert run_dirs.saved(tmp_path) == 8
  for name in ('9', '10', '12', '11.orbax-checkpoint-tmp', 'best'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    if name != '12':
      (tmp_path / 'checkpoints' / name / 'state').touch()
  assert run_dirs.saved(tmp_path) == 10


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [([], 0), ([0, 0], 0), ([0, 42], 42), ([1, 137], 137), ([2, 1], 2)],
)
def test_processes_of_a_job_are_restarted_if_any_asks(codes, expected):
  assert exit_codes.of_processes(codes) == expected


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [([], 0), ([0, 42], 42), ([137, 0], 42), ([42, 2, 1], 2), ([7, 0], 1)],
)
def test_work_units_fail_if_any_does(codes, expected):
  assert exit_codes.of_work_units(codes) == expected


def test_a_signal_is_no_exit_code():
  assert exit_codes.of_returncode(-9) == 137
  with pytest.raises(ValueError, match='from 0 to 255, got -9'):
    exit_codes.verdict(-9)
