"""The scripts of launch/, and what their command lines have in common."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from absl import app

from experiments import rl_main
from launch import (
  command,
  curate,
  evaluate,
  executors,
  grpo,
  local_processes,
  sft,
  topologies,
)
from launch.experiment import Cpu, Experiment, Rendered, Tpu
from qed import cli

SFT = 'experiments/sft_lr.py'
SCRIPTS = {
  'sft': (sft, SFT),
  'grpo': (grpo, 'experiments/rl_main.py'),
  'evaluate': (evaluate, 'experiments/eval_main.py'),
  'curate': (curate, 'experiments/data_main.py'),
}


@pytest.fixture(autouse=True)
def _in_repository(request, monkeypatch):
  monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def launch(capsys, monkeypatch):
  """Runs a script: (exit code, stdout, stderr); nothing may be submitted."""

  def call(program, *arguments):
    module, source = SCRIPTS[program]
    words = [f'{program}.py', *arguments]
    if not any(word.startswith('--config=') for word in words):
      words.insert(1, f'--config={source}')
    code = cli.run(module.main, words)
    return code, *capsys.readouterr()

  return call


@pytest.mark.parametrize('program', SCRIPTS)
def test_a_dry_run_prints_names_and_command_lines_and_touches_nothing(
  launch, program, tmp_path, monkeypatch
):
  monkeypatch.setenv('PLANTED', 'sk-planted')
  code, out, err = launch(program, '--dry_run', f'--root={tmp_path}')
  assert (code, err) == (0, '')
  names = re.findall(r'^# (\S+)$', out, re.MULTILINE)
  assert len(names) == 1
  assert f'-m qed.{program} ' in out
  assert f'--workdir={tmp_path}/{names[0]}' in out
  assert not list(tmp_path.iterdir())
  assert 'sk-planted' not in out


@pytest.mark.parametrize('program', SCRIPTS)
def test_a_script_is_short_and_says_how_to_use_it(program):
  module, _ = SCRIPTS[program]
  with open(module.__file__) as file:
    assert len(file.readlines()) < 100
  assert f'python -m launch.{program} --config=' in module.__doc__


def test_arms_and_sweeps_multiply(launch):
  code, out, _ = launch(
    'sft',
    '--dry_run',
    '--arms=instruct,*=6e-05',
    '--arms=base,*e-05',
    '--sweep=training.seed=0,1',
    '--sweep=optim.schedule=cosine,linear',
    '--name=q',
  )
  assert code == 0
  names = re.findall(r'^# (\S+)$', out, re.MULTILINE)
  assert len({*names}) == (1 + 3) * 2 * 2
  assert names[3].startswith('q-instruct-peak_lr-6e-05-schedule-linear-seed-1-')
  assert '--config=experiments/sft_lr.py:base,peak_lr=3e-05 ' in out


def test_all_arms_of_an_experiment_can_be_had_at_once(launch):
  code, out, _ = launch('grpo', '--dry_run', '--arms=*')
  assert code == 0
  assert out.count('\n# ') + 1 == len(rl_main.ARMS)


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--sweep=optim.peaklr=1e-3'], "did you mean 'optim.peak_lr'?"),
    (
      ['--sweep=optim.peak_lr=fast'],
      '--sweep=optim.peak_lr=fast: expected values as Python writes them',
    ),
    (['--sweep=optim.schedule=cosinus'], "did you mean 'cosine'?"),
    (['--sweep=training.seed=1.5'], 'expected int'),
    (
      ['--sweep=training.seed'],
      '--sweep=training.seed: expected FIELD=VALUE,VALUE',
    ),
    (['--sweep=training.seed=1,1'], 'is already there as'),
    (['--layout=mesh.kontext=1'], "did you mean 'mesh.context'?"),
    (['--layout=mesh.context=1,2'], 'expected one value'),
    (['--layout=mesh.context=0'], 'mesh.context = 0'),
    (['--arms=instrukt*'], 'experiments/sft_lr.py has none'),
    (['--config=experiments/sft_lr.py:baseline', '--arms=*'], 'and so does'),
    (['--config=experiments/sft_lr.py:nothing'], 'there is no arm'),
    (['--config=experiments/rl_main.py'], 'is a config of `qed grpo`'),
    (['--executor=locl'], 'did you mean local?'),
    (['--local.m=2'], 'local.m'),
    (['--local.n=0'], 'expected n of at least 1'),
    (['--name=My Run'], 'expected up to 24'),
    (['--executor=jobset'], '--jobset.image is missing: the one of launch/'),
    (['--executor=jobset'], '--jobset.volume_claim is missing: a Persistent'),
  ],
)
def test_what_cannot_be_launched_is_told(launch, arguments, expected):
  code, out, err = launch('sft', '--dry_run', *arguments)
  assert (code, out) == (2, '')
  assert expected in err


def test_how_work_is_laid_out_is_no_part_of_a_name(launch):
  plain, spread = (
    launch('sft', '--dry_run', *arguments)[1]
    for arguments in (
      [],
      ['--num_processes=2', '--layout=mesh.context=2', '--local.n=3'],
    )
  )
  assert plain.splitlines()[0] == spread.splitlines()[0]
  assert '--config.mesh.data=-1 --config.mesh.context=2' in spread
  assert 'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1' in spread


def test_trainers_and_samplers_get_the_slices_that_are_planned_for_them():
  def command_for(tpu, executor_name='jobset'):
    return command.Command(
      experiment=Experiment('x', root='gs://b'),
      sources=(),
      axes={},
      layout={'mesh.tensor': 2},
      tpu=tpu,
      executor_name=executor_name,
      executor=None,
      is_dry=True,
    )

  planned = topologies.QWEN3_4B
  place = command_for('v6e').trainer('experiments/sft_main.py', {}, 1)
  row = next(x for x in planned['sft'] if x.tpu.generation == 'v6e')
  assert place['requirements'] == row.tpu
  assert place['flags'] == {
    **{f'config.{k}': str(v) for k, v in row.overrides.items()},
    'config.mesh.tensor': '2',
  }
  named = command_for('v5p:4x4x4')
  assert named.place('anything', 'sft') == (Tpu('v5p', '4x4x4'), {})
  sampler, _ = named.place('qwen3-4b', 'sampler')
  assert sampler.generation == 'v5p'
  assert sampler.topology != '4x4x4', 'that of the trainer'
  assert command_for('', 'local').place('anything', 'sft') == (Cpu(), {})
  for tpu, text in {
    'v4': 'no slice is planned',
    'v5q:2x2': '--tpu=v5q',
  }.items():
    with pytest.raises(app.UsageError, match=text):
      command_for(tpu).place('qwen3-4b', 'sft')


def test_what_is_no_dry_run_is_submitted_as_a_whole(monkeypatch):
  submitted = []

  def submit(executor, units):
    submitted.extend(units)
    return cli.RESTART

  monkeypatch.setattr(local_processes.LocalProcesses, 'submit', submit)
  words = ['x', f'--config={SFT}', '--sweep=training.seed=0,1']
  assert cli.run(sft.main, words) == cli.RESTART
  assert [unit.main.flags['config.training.seed'] for unit in submitted] == [
    '0',
    '1',
  ]


def test_a_group_of_reinforcement_learning_finds_its_services(launch):
  code, out, _ = launch(
    'grpo',
    '--dry_run',
    '--samplers=2',
    '--judge_server',
    '--sweep=optim.peak_lr=1e-6',
  )
  assert code == 0
  name, *lines = out.strip().splitlines()
  jobs = [shlex.split(line) for line in lines]
  programs = [job[job.index('-m') + 1] for job in jobs]
  assert programs == [
    'qed.serve',
    'qed.serve',
    'qed.miniature.judge_server',
    'qed.grpo',
  ]
  workdir = f'runs/{name[2:]}'
  for index, job in enumerate(jobs[:2]):
    assert {
      '--config=experiments/rl_main.py',
      '--checkpoint=checkpoints/sft',
      f'--weights_dir={workdir}/weights',
      '--config.optim.peak_lr=1e-06',
      f'--port={{port:sampler{index}}}',
    } <= {*job}
  assert {
    f'--workdir={workdir}',
    '--config.sampler.placement=remote',
    "--config.sampler.urls=('http://127.0.0.1:{port:sampler0}/v1', "
    "'http://127.0.0.1:{port:sampler1}/v1')",
    '--config.judge.base_url=http://127.0.0.1:{port:judge}/v1',
  } <= {*jobs[3]}
  alone = launch('grpo', '--dry_run', '--samplers=0')[1]
  assert alone.count('\n') == 3
  assert 'sampler' not in alone


def test_checkpoints_are_served_and_told_apart(launch):
  code, out, _ = launch(
    'evaluate', '--dry_run', '--checkpoint=a/checkpoints', '--checkpoint=b'
  )
  assert code == 0
  assert len({*re.findall(r'^# (\S+)$', out, re.MULTILINE)}) == 2
  assert '-m qed.serve --checkpoint=a/checkpoints ' in out
  assert '--config.model_name=b ' in out
  assert '--config.solver.base_url=http://127.0.0.1:{port:solver}/v1' in out
  assert out.count('--config.solver.api_key_env=') == 2


def test_a_script_is_started_from_the_repository():
  found = subprocess.run(
    [sys.executable, '-m', 'launch.sft', f'--config={SFT}', '--dry_run'],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': ''},
  )
  assert found.stdout.startswith('# sft_lr-')


def test_an_executor_has_its_options_as_flags():
  from absl import flags

  values = flags.FlagValues()
  executors.define_flags('local', values)
  values(['x', '--local.n=4', '--local.grace_secs=2.5', '--local.platform='])
  found = executors.make('local', values)
  assert (found.n, found.grace_secs, found.platform) == (4, 2.5, '')
  assert found.backoff_secs == 1.0
  assert values['local.backoff_secs'].help == (
    'before the first of these restarts; twice as long before each of the next.'
  )
  for name in executors.EXECUTORS:
    values = flags.FlagValues()
    executors.define_flags(name, values)
    assert all(values[flag].help for flag in values), name


def test_files_are_shown_before_commands():
  shown = command.shown(
    Rendered(files={'a.yaml': 'x: 1\n'}, commands=(('k', 'a b'), ('l',)))
  )
  assert shown == "--- a.yaml\nx: 1\nk 'a b'\nl\n"
