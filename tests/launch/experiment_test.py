"""Work units: their names, their jobs, and the scripts that define them."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from absl import app
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import rl_main, sft_lr
from launch import command, curate, evaluate, executors, grpo, sft, topologies
from launch.experiment import (
  Cpu,
  Experiment,
  Job,
  Rendered,
  Tpu,
  WorkUnit,
  flag_value,
  label,
  resolve,
  sweep,
)
from qed import cli
from qed.config import SftConfig

SFT = 'experiments/sft_lr.py'
SCRIPTS = {
  'sft': (sft, SFT),
  'grpo': (grpo, 'experiments/rl_main.py'),
  'evaluate': (evaluate, 'experiments/eval_main.py'),
  'curate': (curate, 'experiments/data_main.py'),
}
FIELDS = {
  'optim.peak_lr': st.sampled_from([1e-6, 3e-6, 1e-5, 2, 0.1 + 0.2, 0.3]),
  'training.seed': st.integers(0, 3),
  'optim.schedule': st.sampled_from(['cosine', 'constant', 'linear']),
  'model.path': st.sampled_from(['a/b', 'c/b', 'B', 'ü/' + 60 * 'x']),
  'packing.microbatch_counts': st.sampled_from([(1,), (1, 2), (1, 2, 4)]),
}
overrides = st.fixed_dictionaries({}, optional=FIELDS)


@pytest.fixture(autouse=True)
def _in_repository(request, monkeypatch):
  monkeypatch.chdir(request.config.rootpath)


def name_of(source, values, root='runs', **rest):
  return Experiment('x', root=root).add(source, overrides=values, **rest).name


# Names.


@settings(deadline=None, max_examples=20)
@given(overrides, overrides)
def test_names_are_equal_for_equal_runs_and_differ_for_others(one, other):
  first, second = name_of(SFT, one), name_of(SFT, other)
  reordered = dict(reversed(one.items()))
  elsewhere = name_of(
    SFT,
    reordered,
    root='gs://bucket/runs/',
    num_processes=4,
    flags={'config.mesh.context': '2'},
  )
  assert first == elsewhere
  is_same = resolve(SFT, one) == resolve(SFT, other)
  assert (first == second) == is_same
  assert (first[-8:] == second[-8:]) == is_same
  assert (label(first) == label(second)) == is_same
  for name in (first, second):
    assert re.fullmatch(r'x[a-z0-9._-]*-[0-9a-f]{8}', name)
    assert len(name) <= 100
    assert re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])', label(name))
    assert label(name)[-8:] == name[-8:]


def test_a_name_says_what_is_special():
  values = {'training.seed': 1, 'optim.peak_lr': 7e-05, 'optim.eps': 1e-8}
  name = Experiment('rates', root='r').add(
    f'{SFT}:instruct,peak_lr=6e-05', overrides=values
  )
  assert re.fullmatch(
    'rates-instruct-peak_lr-6e-05-peak_lr-7e-05-seed-1-[0-9a-f]{8}', name.name
  )
  assert name.workdir == f'r/{name.name}'
  short = label(name.name)
  assert short == f'rates-instruct-peak-lr-6e-05-pe-{name.name[-8:]}'


def test_the_baseline_needs_no_name_and_an_int_may_stand_for_a_float():
  assert name_of(SFT, {}) == name_of(f'{SFT}:baseline', {})
  assert next(iter(sft_lr.ARMS)) == 'baseline'
  one = {'optim.weight_decay': 1}
  assert name_of(SFT, one) == name_of(SFT, {'optim.weight_decay': 1.0})


def test_another_default_in_the_file_is_another_run(tmp_path):
  text = """
from experiments import base
def get_config(arm=''):
  return base.override(base.sft(), {'training.seed': SEED})
"""
  names = []
  for seed in range(2):
    (tmp_path / 'question.py').write_text(text.replace('SEED', str(seed)))
    names.append(name_of(f'{tmp_path}/question.py', {}))
  assert names[0] != names[1]


def test_the_same_run_twice_is_refused():
  experiment = Experiment('x', root='runs')
  first = experiment.add(SFT, overrides={'optim.peak_lr': 6e-5})
  with pytest.raises(app.UsageError, match=f'already there as {first.name}'):
    experiment.add(f'{SFT}:thinking,peak_lr=6e-05')


def test_a_sweep_is_every_combination_in_order():
  assert sweep({}) == [{}]
  assert sweep({'a': [1, 2], 'b': ['x', 'y']}) == [
    {'a': 1, 'b': 'x'},
    {'a': 1, 'b': 'y'},
    {'a': 2, 'b': 'x'},
    {'a': 2, 'b': 'y'},
  ]


@pytest.mark.parametrize('name', ['', 'X', '1x', 'a b', 'a' * 25])
def test_an_experiment_needs_a_name_that_is_one_everywhere(name):
  with pytest.raises(ValueError, match='expected up to 24'):
    Experiment(name, root='runs')


# Jobs.


@settings(deadline=None, max_examples=15)
@given(overrides)
def test_a_program_reads_back_what_was_overridden(values):
  from absl import flags

  unit = Experiment('x', root='runs').add(SFT, overrides=values)
  parsed = flags.FlagValues()
  flags.DEFINE_string('workdir', None, '', flag_values=parsed)
  python, module, name, *rest = unit.main.argv(python='py')
  assert (python, module, name) == ('py', '-m', 'qed.sft')
  found = cli.parse_config(['x', *rest], parsed, run=SftConfig, usage='')
  assert found == resolve(SFT, values)
  assert parsed.workdir == unit.workdir


def test_every_type_of_value_has_a_text():
  assert flag_value('a,b c') == 'a,b c'
  assert flag_value(0.1 + 0.2) == '0.30000000000000004'
  assert flag_value(('a', 'b')) == "('a', 'b')"
  assert flag_value(('a',)) == "('a',)"
  assert flag_value(True) == 'True'


def service(**about):
  values = {'program': 'serve', 'flags': {}, 'port_flag': 'port'}
  return Job(**{'name': 'judge', 'is_service': True, **values, **about})


def test_addresses_of_services_are_put_where_they_are_asked_for():
  job = Job(name='main', program='grpo', flags={'a': '{url:s0}/v1,{url:s1}/v1'})
  assert job.argv(urls={'s0': 'http://h:1', 's1': 'http://h:2'})[3:] == (
    '--a=http://h:1/v1,http://h:2/v1',
  )
  with pytest.raises(ValueError, match=r'\{url:s1\} is the address of no'):
    job.argv(urls={'s0': 'http://h:1'})
  with pytest.raises(ValueError, match="asks for the address of 's0'"):
    WorkUnit(name='u', workdir='w', jobs=(job, service(name='s1')))


def test_a_service_gets_a_port_and_listens_where_it_is_told_to():
  job = service(host_flag='host')
  assert job.argv(port=8, host='0.0.0.0')[3:] == ('--port=8', '--host=0.0.0.0')
  assert job.argv(port='{x}')[3:] == ('--port={x}',)
  assert service().argv(port=8, host='0.0.0.0')[3:] == ('--port=8',)
  with pytest.raises(ValueError, match='needs a port'):
    job.argv()


@pytest.mark.parametrize(
  'about',
  [
    {'name': 'Judge'},
    {'name': 'a' * 17},
    {'port_flag': ''},
    {'is_service': False},
    {'num_processes': 2},
  ],
)
def test_a_job_that_cannot_be_is_refused(about):
  with pytest.raises(ValueError, match='job '):
    service(**about)


def test_a_work_unit_is_a_main_job_and_then_services():
  main = Job(name='main', program='sft', flags={})
  for jobs in ((), (service(),), (main, main), (service(), main)):
    with pytest.raises(ValueError, match='expected one main job'):
      WorkUnit(name='u', workdir='w', jobs=jobs)


def test_the_keys_that_a_config_names_are_the_secrets_of_its_job():
  values = {
    'judge.api_key_env': 'JUDGE_KEY',
    'sampler.api_key_env': 'QED_API_KEY',
    'training.wandb_project': 'p',
  }
  unit = Experiment('x', root='r').add(
    'experiments/rl_main.py', overrides=values
  )
  assert {*unit.secrets} == {'JUDGE_KEY', 'QED_API_KEY', 'WANDB_API_KEY'}
  assert Experiment('x', root='r').add(SFT).secrets == ()


# Scripts.


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
    (['--sweep=optim.peak_lr=fast'], 'expected values as Python writes them'),
    (['--sweep=optim.schedule=cosinus'], "did you mean 'cosine'?"),
    (['--sweep=training.seed=1.5'], 'expected int'),
    (['--sweep=training.seed'], 'expected FIELD=VALUE,VALUE'),
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
    (['--executor=jobset'], '--jobset.image is missing'),
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
  assert command_for('', 'local').place('anything', 'sft') == (Cpu(), {})
  for tpu, text in {
    'v4': 'no slice is planned',
    'v5q:2x2': '--tpu=v5q',
  }.items():
    with pytest.raises(app.UsageError, match=text):
      command_for(tpu).place('qwen3-4b', 'sft')


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
  assert json.dumps(found.backoff_secs) == '1.0'


def test_files_are_shown_before_commands():
  shown = command.shown(
    Rendered(files={'a.yaml': 'x: 1\n'}, commands=(('k', 'a b'), ('l',)))
  )
  assert shown == "--- a.yaml\nx: 1\nk 'a b'\nl\n"
