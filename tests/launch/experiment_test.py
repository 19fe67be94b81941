"""Work units: their names and their jobs."""

import re

import pytest
from absl import app
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import sft_lr
from launch import names
from launch.experiment import (
  Experiment,
  Job,
  WorkUnit,
  flag_value,
  label,
  resolve,
  sweep,
)
from qed import cli
from qed.config import SftConfig

SFT = 'experiments/sft_lr.py'
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


def test_a_digest_does_not_depend_on_the_order_of_fields():
  one = {'a': 1, 'b': {'c': 2, 'd': 3}}
  other = {'b': {'d': 3, 'c': 2}, 'a': 1}
  assert names.digest(one) == names.digest(other)
  assert names.digest(one) != names.digest(one | {'a': 2})


def test_fields_of_the_same_name_are_told_apart():
  changes = {'judge.model': 'a/b', 'solver.model': 'c', 'seed': 3}
  name = names.compose('x', 'baseline', changes, '0a1b2c3d')
  assert name == 'x-judge.model-b-solver.model-c-seed-3-0a1b2c3d'


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


def test_a_label_is_cut_where_no_dash_is_left():
  assert label(f'{"a" * 30}-b-0a1b2c3d') == f'{"a" * 30}-0a1b2c3d'
  assert label('A_b.c-0a1b2c3d') == 'a-b-c-0a1b2c3d'


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
  ours = Experiment('x', root='r').add(
    'experiments/rl_main.py',
    overrides=values,
    flags={'config.sampler.api_key_env': ''},
  )
  assert {*ours.secrets} == {'JUDGE_KEY', 'WANDB_API_KEY'}
  assert Experiment('x', root='r').add(SFT).secrets == ()
