"""What the machines of a slice do, one at a time.

The script runs for real; docker, gcloud, the metadata server and the like are
scripts that answer what a test says, and write down what they were asked.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time

import pytest

from launch import run_dirs
from launch.experiment import Tpu
from launch.queued_resource import QueuedResource
from tests.launch.units import GROUP, NAME, make_unit

EXECUTOR = QueuedResource(
  image='eu-docker.pkg.dev/mine/qed:1',
  project='mine',
  zones=('v5p=us-east5-a', 'v6e=us-east5-b'),
  share='10.0.0.2:/qed',
)
ALONE = make_unit(Tpu('v5p', '2x2x1'), None)


class Machine:
  """One machine of a slice, with everything outside bash made up."""

  def __init__(self, folder, script, *, index, codes):
    """Lays out its files; docker ends with one code after the other."""
    self.folder = folder
    (folder / 'bin').mkdir(parents=True)
    (folder / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    (folder / 'hosts').write_text('127.0.0.1 localhost\n')
    for old, new in (
      ('/var/lib/qed', f'{folder}/state'),
      ('/mnt/qed', f'{folder}/share'),
      ('/etc/hosts', f'{folder}/hosts'),
    ):
      script = script.replace(old, new)
    (folder / 'script').write_text(script)
    endpoints = ','.join(f'w{n}:8470:10.0.1.{n}' for n in range(8))
    for name, text in {
      'curl': 'case "$*" in *agent-worker-number) '
              f'echo {index};; *) echo {endpoints};; esac',
      'gcloud': 'case "$*" in *access*) echo "secret of $5";; esac',
      'sleep': 'exec /bin/sleep 0.01',
      'mountpoint': 'exit 0',
      'mount.nfs': 'exit 0',
      'docker': f"""
if [ "$1" != run ]; then exit 0; fi
case "$*" in
  *judge_server*) echo "$*" >> {folder}/judge; exec /bin/sleep 9;;
esac
echo "$*" >> {folder}/runs
env > {folder}/environment
[ ! -e {folder}/hook ] || . {folder}/hook
code=$(sed -n 1p {folder}/codes); sed -i 1d {folder}/codes; exit "$code"
""",
    }.items():  # fmt: skip
      program = folder / 'bin' / name
      program.write_text(f'#!/bin/sh\n{text}\n')
      program.chmod(0o755)

  def boot(self):
    """Runs the script to its end."""
    with subprocess.Popen(
      ['bash', self.folder / 'script'],
      env={'PATH': f'{self.folder}/bin:/usr/bin:/bin'},
      start_new_session=True,
    ) as process:
      try:
        assert process.wait(timeout=60) == 0
      finally:
        with contextlib.suppress(ProcessLookupError):  # What it left behind.
          os.killpg(process.pid, signal.SIGKILL)

  def read(self, name):
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path):
  def make(unit, job, *, index=0, codes, folder='machine'):
    text = EXECUTOR.render(unit).files[f'runs/launch/{NAME}-{job}.sh']
    return Machine(tmp_path / folder, text, index=index, codes=codes)

  return make


def test_services_on_one_machine_have_ports_of_their_own():
  main, judge = ALONE.jobs
  grader = dataclasses.replace(judge, name='grader')
  main = dataclasses.replace(
    main, flags={**main.flags, 'config.grader': '{url:grader}'}
  )
  unit = dataclasses.replace(ALONE, jobs=(main, judge, grader))
  text = EXECUTOR.render(unit).files[f'runs/launch/{NAME}-main.sh']
  assert '--config.judge.base_url=http://127.0.0.1:8000/v1' in text
  assert '--config.grader=http://127.0.0.1:8001' in text
  for name, port in [('judge', 8000), ('grader', 8001)]:
    (line,) = (
      x for x in text.splitlines() if f'docker run --rm --name=qed-{name} ' in x
    )
    assert f'--port={port}' in line


def test_a_job_is_started_again_until_it_is_done(machine):
  found = machine(ALONE, 'main', codes=[42, 137, 134, 143, 0])
  found.boot()
  assert len(found.read('runs')) == 5
  assert found.read('state/outcome') == ['0 0']
  attempts = run_dirs.read_attempts(found.folder / 'share' / 'runs' / NAME)
  ends = [(end['job'], *end['exit_codes'], end['verdict']) for end in attempts]
  assert ends == [
    ('main', 42, 'restart'),
    ('main', 137, 'restart'),
    ('main', 134, 'restart'),
    ('main', 143, 'restart'),
    ('main', 0, 'done'),
  ]
  assert all(end['time'] and end['secs'] >= 0 for end in attempts)
  found.boot()  # A reboot.
  assert len(found.read('runs')) == 5


@pytest.mark.parametrize('code', [1, 2, 41, 43, 127])
def test_a_code_that_is_permanent_ends_a_job_of_one_machine(code, machine):
  found = machine(ALONE, 'main', codes=[42, code, 0])
  found.boot()
  assert len(found.read('runs')) == 2
  assert found.read('state/outcome') == [f'0 {code}']


def test_of_several_machines_one_may_fail_because_of_another(machine):
  unit = make_unit(sampler=None)
  found = machine(unit, 'main', index=3, codes=[1, 1, 42, 1, 1, 1, 0])
  found.boot()
  assert len(found.read('runs')) == 6
  assert found.read('state/outcome') == ['3 1']
  assert found.read(f'share/runs/{NAME}/attempts.jsonl') == []
  environment = found.read('environment')
  assert 'JAX_COORDINATOR_ADDRESS=10.0.1.0:8476' in environment
  assert 'JAX_NUM_PROCESSES=8' in environment
  assert 'JAX_PROCESS_ID=3' in environment
  assert '--env=JAX_PROCESS_ID' in found.read('runs')[0].split()


def test_one_machine_alone_is_told_of_no_others(machine):
  found = machine(ALONE, 'main', codes=[0])
  found.boot()
  assert not [x for x in found.read('environment') if x.startswith('JAX_')]


def test_secrets_go_from_secret_manager_to_the_container_unseen(machine):
  found = machine(ALONE, 'main', codes=[0])
  found.boot()
  environment = found.read('environment')
  assert 'GEMINI_API_KEY=secret of --secret=GEMINI_API_KEY' in environment
  (command,) = found.read('runs')
  assert '--env=GEMINI_API_KEY' in command.split()
  assert 'secret of' not in command
  assert '--env=JUDGE_KEY' not in command.split()


def test_a_service_without_a_slice_runs_on_machine_0_alone(machine):
  unit = make_unit(sampler=None)
  for index, expected in ((0, 1), (1, 0)):
    found = machine(unit, 'main', index=index, codes=[42, 0], folder=f'{index}')
    (found.folder / 'hook').write_text('/bin/sleep 0.1')
    found.boot()
    judges = found.read('judge')
    assert len(judges) == expected
    assert (
      '--config.judge.base_url=http://127.0.0.1:8000/v1'
      in (found.read('runs')[0])
    )
    for line in judges:
      assert line.endswith('qed.miniature.judge_server --port=8000')
      assert '--env=JUDGE_KEY' in line.split()
      assert '--privileged' not in line


def test_a_service_says_where_it_is_and_comes_again_however_it_ends(machine):
  found = machine(GROUP, 'sampler0', codes=[0, 137, 0, 2])
  found.boot()
  assert len(found.read('runs')) == 4
  assert found.read(f'share/runs/{NAME}/addresses/sampler0') == ['10.0.1.0']
  assert found.read('state/outcome') == ['0 2']
  assert found.read('runs')[0].endswith(
    'qed.serve --checkpoint=checkpoints/a --port=8000 --host=0.0.0.0'
  )


def test_a_service_that_moves_is_found_under_the_same_name(machine):
  found = machine(GROUP, 'main', codes=[0])
  addresses = found.folder / 'share' / 'runs' / NAME / 'addresses'
  addresses.mkdir(parents=True)
  (addresses / 'sampler0').write_text('10.0.2.1\n')
  hosts = found.folder / 'hosts'
  (found.folder / 'hook').write_text(
    f'cp {hosts} {found.folder}/before\n'
    f'echo 10.0.2.9 > {addresses}/sampler0\n'
    f'until grep -q 10.0.2.9 {hosts}; do /bin/sleep 0.01; done\n'
  )
  inode = hosts.stat().st_ino
  found.boot()
  assert found.read('before') == [
    '127.0.0.1 localhost',
    '10.0.2.1 sampler0.qed.internal',
  ]
  assert found.read('hosts') == [
    '127.0.0.1 localhost',
    '10.0.2.9 sampler0.qed.internal',
  ]
  assert hosts.stat().st_ino == inode  # A container has it mounted.
  assert 'http://sampler0.qed.internal:8000/v1' in found.read('runs')[0]


def test_the_main_job_waits_until_its_services_are_somewhere(machine):
  found = machine(GROUP, 'main', codes=[0])
  with subprocess.Popen(
    ['bash', found.folder / 'script'],
    env={'PATH': f'{found.folder}/bin:/usr/bin:/bin'},
    start_new_session=True,
  ) as process:
    time.sleep(0.3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
  assert found.read('runs') == []
