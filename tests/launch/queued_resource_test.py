"""TPU VMs: what is asked of gcloud, and when.

gcloud is a script that answers what a test says, and writes down what it was
asked.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess

import pytest
from absl import app

from launch.experiment import Cpu, Tpu
from launch.queued_resource import QueuedResource
from tests.launch.units import GROUP, NAME, make_unit

EXECUTOR = QueuedResource(
  image='eu-docker.pkg.dev/mine/qed:1',
  project='mine',
  zones=('v5p=us-east5-a', 'v6e=us-east5-b'),
  share='10.0.0.2:/qed',
  service_account='qed@mine',
  network='lab',
  spot=True,
)
ALONE = make_unit(Tpu('v5p', '2x2x1'), None)

WHERE_MAIN = ('--project=mine', '--zone=us-east5-a')
WHERE_SAMPLER = ('--project=mine', '--zone=us-east5-b')


# Show: command lines.


def create_line(job, where, accelerator, runtime):
  return (
    'gcloud', 'compute', 'tpus', 'queued-resources', 'create', f'{NAME}-{job}',
    f'--node-id={NAME}-{job}', *where, f'--accelerator-type={accelerator}',
    f'--runtime-version={runtime}',
    f'--metadata-from-file=startup-script=runs/launch/{NAME}-{job}.sh',
    '--scopes=https://www.googleapis.com/auth/cloud-platform',
    '--service-account=qed@mine', '--network=lab', '--spot', '--async',
    '--quiet',
  )  # fmt: skip


CREATE_MAIN = create_line('main', WHERE_MAIN, 'v5p-64', 'v2-alpha-tpuv5')
CREATE_SAMPLER = create_line(
  'sampler0', WHERE_SAMPLER, 'v6e-8', 'v2-alpha-tpuv6e'
)


def test_a_slice_is_asked_for_by_these_command_lines():
  rendered = EXECUTOR.render(GROUP)
  assert rendered.commands == (CREATE_MAIN, CREATE_SAMPLER)
  assert [*rendered.files] == [
    f'runs/launch/{NAME}-main.sh',
    f'runs/launch/{NAME}-sampler0.sh',
  ]


def test_what_is_not_set_is_not_said():
  executor = QueuedResource(
    image='a', project='mine', zones=('us-east5-a',), share='b:/c'
  )
  (command,) = executor.render(ALONE).commands
  absent = {'--service-account=qed@mine', '--network=lab', '--spot'}
  expected = create_line('main', WHERE_MAIN, 'v5p-8', 'v2-alpha-tpuv5')
  assert command == tuple(word for word in expected if word not in absent)


def test_a_slice_is_watched_by_these_command_lines():
  main, _, sampler = GROUP.jobs
  tpus = ('gcloud', 'compute', 'tpus')
  assert EXECUTOR.describe(GROUP, main) == (
    *tpus, 'queued-resources', 'describe', f'{NAME}-main', *WHERE_MAIN,
    '--format=value(state.state)',
  )  # fmt: skip
  assert EXECUTOR.delete(GROUP, sampler) == (
    *tpus, 'queued-resources', 'delete', f'{NAME}-sampler0', *WHERE_SAMPLER,
    '--force', '--quiet',
  )  # fmt: skip
  assert EXECUTOR.ask(GROUP, main) == (
    *tpus, 'tpu-vm', 'ssh', f'{NAME}-main', *WHERE_MAIN, '--worker=all',
    '--command=echo "qed-outcome: '
    '$(cat /var/lib/qed/outcome 2>/dev/null || echo running)"', '--quiet',
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1_800)  # gcloud takes seconds to start.
@pytest.mark.skipif(not shutil.which('gcloud'), reason='there is no gcloud')
def test_gcloud_takes_the_command_lines(tmp_path, monkeypatch):
  """It parses them before it looks for an account, of which there is none."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('CLOUDSDK_CONFIG', str(tmp_path / 'config'))
  rendered = EXECUTOR.render(GROUP)
  for path, text in rendered.files.items():
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(text)
  main = GROUP.main
  for command in (
    *rendered.commands,
    *(
      f(GROUP, main) for f in (EXECUTOR.describe, EXECUTOR.delete, EXECUTOR.ask)
    ),
  ):
    for wrong, answer in (
      ((), 'active account'),
      (('--worker-all',), 'unrecognized arguments: --worker-all'),
    ):
      done = subprocess.run(
        [*command, *wrong], capture_output=True, text=True, check=False
      )
      assert done.returncode != 0
      assert answer in done.stderr, (command, done.stderr)


def test_what_cannot_be_a_queued_resource_is_refused():
  with pytest.raises(ValueError, match='its main job needs no TPU'):
    EXECUTOR.render(make_unit(Cpu()))
  with pytest.raises(ValueError, match='expected one for v5e, such as v5e='):
    EXECUTOR.render(make_unit(Tpu('v5e', '4x4')))
  anywhere = dataclasses.replace(EXECUTOR, zones=('us-east5-a',))
  with pytest.raises(ValueError, match='through GKE'):
    anywhere.render(make_unit(Tpu('tpu7x', '2x2x1')))
  with pytest.raises(ValueError, match='share is missing'):
    QueuedResource(image='a', project='b', zones=('c',), share='')


def test_no_value_of_a_secret_is_rendered(monkeypatch):
  for name in GROUP.secrets:
    monkeypatch.setenv(name, 'hush-0123456789')
  rendered = EXECUTOR.render(GROUP)
  assert 'hush' not in str(rendered)
  assert 'access latest --secret=GEMINI_API_KEY' in str(rendered.files)


# What the watcher does.


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
  """A gcloud that answers what lies in files, and records its arguments.

  states/NAME has the answers to one look after the other, the last one for
  all others; outcomes/NAME is what its machines print.
  """
  for name in ('bin', 'states', 'outcomes'):
    (tmp_path / name).mkdir()
  program = tmp_path / 'bin' / 'gcloud'
  program.write_text(f"""#!/bin/sh
cd {tmp_path}
echo "$*" >> calls
case "$4 $3" in
  "describe "*)
    if ! state=$(sed -n 1p "states/$5" 2>/dev/null); then
      echo "ERROR: NOT_FOUND: $5" >&2; exit 1
    fi
    if [ $(wc -l < "states/$5") -gt 1 ]; then sed -i 1d "states/$5"; fi
    case "$state" in "!"*) echo "ERROR: $state" >&2; exit 1;; esac
    echo "$state";;
  "create "*) if [ -e refused ]; then echo "ERROR: quota" >&2; exit 1; fi
    [ -e "states/$5" ] || echo ACTIVE > "states/$5";;
  "ssh "*) cat "outcomes/$5" 2>/dev/null || exit 1;;
esac
""")
  program.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}/bin{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.chdir(tmp_path)

  def answer(kind, job, *lines):
    text = ''.join(f'{line}\n' for line in lines)
    (tmp_path / kind / f'{NAME}-{job}').write_text(text)

  answer.calls = lambda: [
    ' '.join(line.split()[3:5]).replace(f'{NAME}-', '')
    for line in (tmp_path / 'calls').read_text().splitlines()
  ]
  answer.lines = lambda: (tmp_path / 'calls').read_text().splitlines()
  return answer


def looks(num_looks):
  """Waits for no time, and not for ever."""
  waits = []

  def sleep(secs):
    waits.append(secs)
    assert len(waits) < num_looks, 'the watcher does not end'

  return sleep


def running(num_hosts):
  return ['qed-outcome: running'] * num_hosts


def test_slices_are_asked_for_watched_and_given_back(gcloud):
  gcloud(
    'outcomes', 'main', *running(6), 'qed-outcome: 3 0', 'qed-outcome: 0 0'
  )
  gcloud('outcomes', 'sampler0', *running(1))
  assert EXECUTOR.submit([GROUP], sleep=looks(3)) == 0
  assert gcloud.calls() == [
    'describe main', 'create main', 'describe sampler0', 'create sampler0',
    'describe main', 'ssh main', 'describe sampler0', 'ssh sampler0',
    'delete main', 'delete sampler0',
  ]  # fmt: skip
  for command in EXECUTOR.render(GROUP).commands:
    assert ' '.join(command[1:]) in gcloud.lines()
  for path, text in EXECUTOR.render(GROUP).files.items():
    assert pathlib.Path(path).read_text() == text


def test_what_has_ended_is_left_alone_while_others_go_on(gcloud):
  other = dataclasses.replace(ALONE, name='rl-99999999')
  gcloud('outcomes', 'main', 'qed-outcome: 0 0')
  ending = pathlib.Path('outcomes/rl-99999999-main')
  ending.write_text('qed-outcome: running\n')

  def sleep(secs, waits=[]):  # noqa: B006
    waits.append(secs)
    if len(waits) == 3:
      ending.write_text('qed-outcome: 0 2\n')

  assert EXECUTOR.submit([ALONE, other], sleep=sleep) == 2
  ours = [call for call in gcloud.calls() if '99999999' not in call]
  assert ours == [
    'describe main', 'create main', 'describe main', 'ssh main', 'delete main',
  ]  # fmt: skip


def test_a_slice_that_was_taken_away_is_asked_for_again(gcloud, capsys):
  gcloud('states', 'main', 'PROVISIONING', 'ACTIVE', 'ACTIVE', 'ACTIVE')
  gcloud('outcomes', 'main', *running(8))
  gcloud('states', 'sampler0', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ACTIVE')
  gcloud('outcomes', 'sampler0', *running(1))

  def sleep(secs, waits=[]):  # noqa: B006
    waits.append(secs)
    if len(waits) == 3:
      gcloud('outcomes', 'main', 'qed-outcome: 0 0')

  assert EXECUTOR.submit([GROUP], sleep=sleep) == 0
  assert gcloud.calls() == [
    'describe main', 'describe sampler0', 'ssh sampler0',
    'describe main', 'ssh main', 'describe sampler0',
    'describe main', 'ssh main', 'describe sampler0', 'delete sampler0',
    'create sampler0',
    'describe main', 'ssh main', 'describe sampler0', 'ssh sampler0',
    'delete main', 'delete sampler0',
  ]  # fmt: skip
  assert f'{NAME}-sampler0: SUSPENDED' in capsys.readouterr().out


def test_a_slice_that_is_lost_too_often_leaves_the_state_saved(gcloud):
  gcloud('states', 'main', 'FAILED')
  executor = QueuedResource(
    image='a', project='b', zones=('c',), share='d:/e', max_recreations=2
  )
  assert executor.submit([ALONE], sleep=looks(5)) == 42
  # Lost at the first look already, which counts as the first request.
  assert gcloud.calls().count('create main') == 3


@pytest.mark.parametrize(
  ('job', 'outcome', 'code'),
  [
    ('main', 'qed-outcome: 3 1', 1),
    ('main', 'qed-outcome: 0 2', 2),
    ('sampler0', 'qed-outcome: 0 2', 2),
  ],
)
def test_a_job_that_failed_for_good_ends_the_work_unit(
  job, outcome, code, gcloud
):
  gcloud('outcomes', 'main', *running(8))
  gcloud('outcomes', 'sampler0', *running(1))
  gcloud('outcomes', job, outcome, 'qed-outcome: running')
  assert EXECUTOR.submit([GROUP], sleep=looks(3)) == code
  assert gcloud.calls()[-2:] == ['delete main', 'delete sampler0']


def test_the_main_job_speaks_for_its_work_unit(gcloud):
  gcloud('outcomes', 'main', 'qed-outcome: 0 0')
  gcloud('outcomes', 'sampler0', 'qed-outcome: 0 2')
  assert EXECUTOR.submit([GROUP], sleep=looks(3)) == 0


def test_a_job_is_done_when_machine_0_is(gcloud):
  gcloud('outcomes', 'main', 'qed-outcome: 3 0', *running(7))

  def sleep(secs, waits=[]):  # noqa: B006
    waits.append(secs)
    if len(waits) == 3:
      gcloud('outcomes', 'main', 'qed-outcome: 0 0', *running(7))

  assert EXECUTOR.submit([ALONE], sleep=sleep) == 0
  assert gcloud.calls().count('ssh main') == 3


def test_a_machine_that_does_not_answer_yet_is_waited_for(gcloud):
  gcloud('states', 'main', 'ACTIVE', '! UNAVAILABLE: again', 'ACTIVE', 'ACTIVE')

  def sleep(secs, waits=[]):  # noqa: B006
    waits.append(secs)
    if len(waits) == 2:
      gcloud('outcomes', 'main', 'qed-outcome: 0 0')

  assert EXECUTOR.submit([ALONE], sleep=sleep) == 0
  assert gcloud.calls() == [
    'describe main', 'ssh main', 'describe main', 'describe main', 'ssh main',
    'delete main',
  ]  # fmt: skip


def test_what_the_user_must_mend_is_said(gcloud, monkeypatch, tmp_path):
  gcloud('states', 'main', '! PERMISSION_DENIED: nobody')
  with pytest.raises(app.UsageError, match='PERMISSION_DENIED'):
    EXECUTOR.submit([ALONE], sleep=looks(1))
  (tmp_path / 'states' / f'{NAME}-main').unlink()
  (tmp_path / 'refused').touch()
  with pytest.raises(app.UsageError, match='quota'):
    EXECUTOR.submit([ALONE], sleep=looks(1))
  monkeypatch.setenv('PATH', '/nowhere')
  with pytest.raises(app.UsageError, match='gcloud is not installed'):
    EXECUTOR.submit([ALONE], sleep=looks(1))


def test_who_stops_watching_is_told_that_machines_go_on(gcloud, capsys):
  def sleep(secs):
    raise KeyboardInterrupt

  assert EXECUTOR.submit([ALONE], sleep=sleep) == 42
  assert 'delete main' not in gcloud.calls()
  assert 'go on, and cost' in capsys.readouterr().out
