"""What comes of a manifest: what kubectl is asked, and how services end.

kubectl is a script that answers what a test says, and writes down what it was
asked; the shell of a service's pod is a real one.
"""

import os
import pathlib
import signal
import subprocess
import time

import pytest
import yaml
from absl import app

from launch import jobset
from tests.launch.units import GROUP

EXECUTOR = jobset.JobSet(image='registry/qed:1', volume_claim='shared')


# What services do in their pods.


def service_command(program):
  """A service's command line with another program in its place."""
  ((_, text),) = EXECUTOR.render(GROUP).files.items()
  jobs = yaml.safe_load(text)['spec']['replicatedJobs']
  (pod,) = (job['template']['spec'] for job in jobs if job['name'] == 'judge')
  (found,) = pod['template']['spec']['containers']
  return [*found['command'][:4], 'sh', '-c', program]


@pytest.mark.parametrize(
  ('program', 'code'), [('exit 0', 42), ('exit 3', 3), ('kill -9 $$', 137)]
)
def test_a_service_that_ends_by_itself_is_to_come_again(program, code):
  done = subprocess.run(service_command(program), check=False)
  assert done.returncode == code


def test_a_service_is_told_to_stop_and_may_take_its_time(tmp_path):
  program = (
    "trap 'sleep 0.2; touch ended; exit 0' TERM; touch up; "
    'while true; do sleep 0.05; done'
  )
  command = service_command(program)
  with subprocess.Popen(
    command, cwd=tmp_path, start_new_session=True
  ) as process:
    while not (tmp_path / 'up').exists():
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    try:
      assert process.wait(timeout=60) == 42
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      raise
  assert (tmp_path / 'ended').exists()


# What submit does.


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
  """A kubectl that records its arguments, and answers what a test says."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  calls = tmp_path / 'calls'
  program = folder / 'kubectl'
  program.write_text(
    '#!/bin/sh\n'
    f'echo "$*" >> {calls}\n'
    'if [ "$1" = get ]; then printf %s "$STATE"; fi\n'
    'if [ "$1" = "$REFUSED" ]; then echo "no cluster" >&2; exit 1; fi\n'
  )
  program.chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.chdir(tmp_path)
  return lambda: calls.read_text().splitlines() if calls.exists() else []


GET = (
  'get jobset rl-0a1b2c3d --namespace=default --ignore-not-found '
  '--output=jsonpath={.status.terminalState}'
)
APPLY = 'apply --namespace=default --filename=runs/launch/rl-0a1b2c3d.yaml'
DELETE = 'delete jobset rl-0a1b2c3d --namespace=default --cascade=foreground'


@pytest.mark.parametrize(
  ('state', 'calls'),
  [
    ('', [GET, APPLY]),
    ('Failed', [GET, DELETE, APPLY]),
    ('Completed', [GET]),
  ],
)
def test_submit_applies_what_was_rendered(state, calls, kubectl, monkeypatch):
  monkeypatch.setenv('STATE', state)
  assert EXECUTOR.submit([GROUP]) == 0
  assert kubectl() == calls
  rendered = EXECUTOR.render(GROUP)
  assert rendered.commands == (('kubectl', *APPLY.split()),)
  if APPLY in calls:
    for path, text in rendered.files.items():
      assert pathlib.Path(path).read_text() == text


def test_a_manifest_that_is_refused_gives_code_2(kubectl, monkeypatch):
  monkeypatch.setenv('REFUSED', 'apply')
  assert EXECUTOR.submit([GROUP]) == 2


def test_no_cluster_and_no_kubectl_are_said(kubectl, monkeypatch):
  monkeypatch.setenv('REFUSED', 'get')
  with pytest.raises(app.UsageError, match='no cluster'):
    EXECUTOR.submit([GROUP])
  monkeypatch.setenv('PATH', '/nowhere')
  with pytest.raises(app.UsageError, match='kubectl is not installed'):
    EXECUTOR.submit([GROUP])
