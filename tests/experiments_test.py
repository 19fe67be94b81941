"""Every arm of every experiment can be built and asks something of its own."""

import functools
import importlib.util
import itertools
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from experiments import base
from qed import config

FOLDER = pathlib.Path(base.__file__).parent
FILES = sorted(
  path for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'base')
)


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


MODULES = {path.stem: load(path) for path in FILES}
ARMS = [(name, arm) for name, module in MODULES.items() for arm in module.ARMS]


def resolved(name: str, arm: str) -> str:
  return json.dumps(MODULES[name].get_config(arm).to_dict(), sort_keys=True)


def test_there_are_experiments():
  assert {'sft_main', 'sft_lr', 'sft_data', 'rl_main'} <= set(MODULES)


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_every_arm_builds(name, arm):
  values = MODULES[name].get_config(arm)
  config.build(values)
  assert values.is_locked


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_an_arm_departs_from_the_baseline_in_what_it_overrides(name, arm):
  module = MODULES[name]
  first = next(iter(module.ARMS))
  if arm == first:
    return
  baseline = module.get_config(first)
  # A point of a grid may share some values with the baseline, but not all.
  assert any(
    value != functools.reduce(getattr, path.split('.'), baseline)
    for path, value in module.ARMS[arm].items()
  )


@pytest.mark.parametrize('name', MODULES)
def test_the_first_arm_is_empty_and_the_default(name):
  module = MODULES[name]
  first = next(iter(module.ARMS))
  assert module.ARMS[first] == {}
  assert module.get_config() == module.get_config(first)


@pytest.mark.parametrize('name', MODULES)
def test_no_two_arms_are_equal(name):
  seen = {}
  for arm in MODULES[name].ARMS:
    values = resolved(name, arm)
    assert values not in seen, f'{name}: {arm} equals {seen[values]}'
    seen[values] = arm


@pytest.mark.parametrize('name', MODULES)
def test_the_header_asks_a_question_and_says_command_and_cost(name):
  module = MODULES[name]
  program = module.get_config().program
  question, *rest = module.__doc__.split('\n\n')
  assert question.endswith('?')
  command = rest[0].split()
  assert command[:2] == ['qed', program]
  file, _, arm = command[2].removeprefix('--config=').partition(':')
  assert file == f'experiments/{name}.py'
  assert not arm or arm in module.ARMS
  assert any(part.startswith('Cost: ') for part in rest)
  assert 'report' in module.__doc__, 'which table or figure is it?'


def test_the_learning_rate_sweep_is_three_bases_by_eight_rates():
  points = {
    (values.model.path, values.optim.peak_lr)
    for values in map(MODULES['sft_lr'].get_config, MODULES['sft_lr'].ARMS)
  }
  bases, rates = map(set, zip(*points, strict=True))
  assert points == set(itertools.product(bases, rates))
  assert (len(bases), len(rates)) == (3, 8)
  assert 3e-5 in rates


class TestPublishedSettings:
  """The values that the recipe is published with."""

  def test_sft(self):
    values = config.build(base.sft())
    assert values.data.samples_per_step == 32
    assert values.data.num_epochs == 5
    assert values.data.max_tokens == 45_056
    assert values.optim.schedule == 'cosine'
    assert values.optim.peak_lr == 3e-5
    assert values.optim.warmup_frac == 0.1

  def test_grpo(self):
    values = config.build(base.grpo())
    assert values.rollout.problems_per_step == 64
    assert values.rollout.group_size == 16
    assert values.rollout.max_lag == 5
    assert values.sampling.temperature == 0.8
    assert values.sampling.max_tokens == 49_152
    assert values.optim.peak_lr == 1e-6
    assert values.optim.schedule == 'constant'
    # 0.3 on a gradient that carries another factor of 1 / 64.
    assert values.optim.clip_norm == pytest.approx(0.3 * 64)
    assert values.loss.advantage == 'mean_baseline'
    assert values.loss.kind == 'ppo'
    # The interval [-3, 5].
    assert (1 - values.loss.clip_low, 1 + values.loss.clip_high) == (-3, 5)
    assert values.loss.entropy_coef == 1e-4
    assert values.loss.kl_coef == 0
    assert values.loss.normalizer == 'sequences'


class TestOverride:
  """`base.override`."""

  def test_changes_a_locked_copy_alone(self):
    original = base.sft()
    changed = base.override(original, {'optim.peak_lr': 1e-4})
    assert changed.optim.peak_lr == 1e-4
    assert original.optim.peak_lr == 3e-5
    with pytest.raises(AttributeError):
      changed.optim.peek_lr = 1.0

  def test_without_changes_is_equal(self):
    assert base.override(base.sft(), {}).to_dict() == base.sft().to_dict()

  def test_takes_an_int_for_a_float(self):
    changed = base.override(base.sft(), {'optim.clip_norm': 2})
    assert type(changed.optim.clip_norm) is float

  @pytest.mark.parametrize(
    ('path', 'meant'),
    [
      ('optim.peek_lr', 'optim.peak_lr'),
      ('optin.peak_lr', 'optim.peak_lr'),
      ('max_token', 'data.max_tokens'),
    ],
  )
  def test_names_the_nearest_of_a_misspelt_path(self, path, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
      base.override(base.sft(), {path: 1})

  def test_lists_the_fields_where_none_is_near(self):
    with pytest.raises(ValueError, match=r"there are .*'optim\.peak_lr'"):
      base.override(base.sft(), {'qqq': 1})

  @pytest.mark.parametrize(
    ('path', 'value'),
    [
      ('optim.peak_lr', '1e-4'),
      ('optim.peak_lr', None),
      ('optim.peak_lr', True),
      ('training.seed', 1.0),
      ('training.seed', True),
      ('data.paths', 'a.jsonl'),
      ('data.paths', ['a.jsonl']),
      ('data.tokenizer', None),
    ],
  )
  def test_refuses_another_type(self, path, value):
    with pytest.raises(TypeError, match=f'^{path} = .*: expected '):
      base.override(base.sft(), {path: value})

  @pytest.mark.parametrize('value', [{}, {'peak_lr': 1.0}, ConfigDict(), 3])
  def test_refuses_to_replace_a_section(self, value):
    with pytest.raises(ValueError, match="'optim' is not a field"):
      base.override(base.sft(), {'optim': value})

  def test_changes_nothing_where_one_of_several_is_wrong(self):
    original = base.sft()
    with pytest.raises(ValueError, match=r'x\.y'):
      base.override(original, {'optim.peak_lr': 1.0, 'x.y': 1})
    assert original == base.sft()


class TestProduct:
  """`base.product`."""

  def test_names_its_points_after_their_values(self):
    arms = base.product(
      ('optim.peak_lr', [5e-7, 2e-6]), ('rollout.group_size', [8, 16])
    )
    assert list(arms.items()) == [
      (
        'peak_lr=5e-07,group_size=8',
        {'optim.peak_lr': 5e-7, 'rollout.group_size': 8},
      ),
      (
        'peak_lr=5e-07,group_size=16',
        {'optim.peak_lr': 5e-7, 'rollout.group_size': 16},
      ),
      (
        'peak_lr=2e-06,group_size=8',
        {'optim.peak_lr': 2e-6, 'rollout.group_size': 8},
      ),
      (
        'peak_lr=2e-06,group_size=16',
        {'optim.peak_lr': 2e-6, 'rollout.group_size': 16},
      ),
    ]

  def test_of_nothing_is_the_baseline(self):
    assert base.product() == {'': {}}

  def test_refuses_two_points_of_one_name(self):
    with pytest.raises(ValueError, match="'seed=1'"):
      base.product(('training.seed', [1, 1]))
