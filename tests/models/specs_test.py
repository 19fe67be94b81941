"""Configurations are read whole or refused, and written for every reader."""

import json

import jax
import numpy as np
import pytest

from qed.models import specs
from tests.golden import qwen3_cases as cases


def hf(**changes):
  values = {**cases.CONFIGS['tied'], **changes}
  return {key: value for key, value in values.items() if value is not ...}


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, 'rope_scaling'),
    (
      {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e6}},
      r"rope_type='yarn'",
    ),
    (
      {'rope_parameters': {'rope_theta': 1e6, 'factor': 2.0}},
      r'rope_parameters\.factor',
    ),
    ({'use_sliding_window': True}, 'use_sliding_window'),
    ({'layer_types': ['sliding_attention'] * 2}, 'sliding_attention'),
    ({'model_type': 'qwen3_moe'}, 'qwen3_moe'),
    ({'model_type': ...}, 'model_type is missing'),
    ({'num_experts': 128}, 'num_experts=128'),
    ({'attention_bias': True}, 'attention_bias=True'),
    ({'attention_dropout': 0.1}, 'attention_dropout=0.1'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'rope_theta': ...}, 'rope_theta is missing'),
    ({'hidden_size': ...}, 'hidden_size is missing'),
    ({'head_dim': 15}, 'head_dim must be even'),
    ({'num_key_value_heads': 3}, 'multiple of num_key_value_heads=3'),
    ({'hidden_size': 0}, 'hidden_size must be a positive integer, got 0'),
    ({'rms_norm_eps': 'small'}, 'rms_norm_eps must be a positive number'),
    ({'tie_word_embeddings': 'no'}, 'tie_word_embeddings must be'),
  ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_name(changes, named):
  with pytest.raises(ValueError, match=named):
    specs.Config.from_hf(hf(**changes))


def test_all_faults_are_named_at_once():
  with pytest.raises(ValueError, match=r'attention_bias.*num_experts'):
    specs.Config.from_hf(hf(attention_bias=True, num_experts=8))


def test_an_unknown_field_that_is_off_changes_nothing():
  expected = specs.Config.from_hf(hf())
  for off in (None, False, 0, '', [], {}):
    assert specs.Config.from_hf(hf(some_new_feature=off)) == expected


def test_either_spelling_of_the_rope_base_is_read_and_the_nested_one_wins():
  nested = {'rope_type': 'default', 'rope_theta': 5e6}
  assert specs.Config.from_hf(hf(rope_theta=123.0)).rope_theta == 123.0
  for old in (..., 123.0):
    config = specs.Config.from_hf(hf(rope_theta=old, rope_parameters=nested))
    assert config.rope_theta == 5e6


def test_what_a_config_may_leave_out_is_what_transformers_assumes():
  config = specs.Config.from_hf(
    hf(head_dim=..., tie_word_embeddings=..., rms_norm_eps=...)
  )
  assert config.head_dim == 128
  assert config.tie_word_embeddings is False
  assert config.rms_norm_eps == 1e-6


@pytest.mark.parametrize('name', specs.VARIANTS)
def test_a_config_survives_json_and_carries_both_rope_spellings(name):
  config = specs.VARIANTS[name]
  written = json.loads(json.dumps(config.to_hf()))
  assert specs.Config.from_hf(written) == config
  assert written['rope_theta'] == config.rope_theta
  assert written['rope_parameters']['rope_theta'] == config.rope_theta
  assert written['max_position_embeddings'] > 0


def test_a_list_of_end_tokens_is_carried():
  config = specs.Config.from_hf(hf(eos_token_id=[5, 7]))
  assert config.to_hf()['eos_token_id'] == [5, 7]
  hash(config)


def test_transformers_reads_what_is_written(tmp_path):
  transformers = pytest.importorskip('transformers')
  config = specs.VARIANTS['qwen3-4b-2507']
  (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert theirs.rope_parameters['rope_theta'] == 5e6
  assert theirs.head_dim == 128
  assert specs.Config.from_hf(theirs.to_dict()) == config
  theirs.save_pretrained(tmp_path / 'again')
  again = json.loads((tmp_path / 'again' / 'config.json').read_text())
  assert specs.Config.from_hf(again) == config


@pytest.mark.parametrize(
  ('name', 'published'),
  # Counted from the tensors of the published checkpoints.
  [('qwen3-0.6b', 596_049_920), ('qwen3-4b', 4_022_468_096)],
)
def test_the_weights_are_as_many_as_published(name, published):
  assert specs.VARIANTS[name].num_params == published


@pytest.mark.parametrize('name', cases.CONFIGS)
def test_every_tensor_of_hugging_face_is_declared_once(name):
  config = specs.Config.from_hf(cases.CONFIGS[name])
  declared = {}
  for spec in jax.tree.leaves(specs.declare(config), is_leaf=specs.is_spec):
    layers = spec.shape[0] if '{layer}' in spec.hf_name else 1
    size = int(np.prod(spec.shape)) // layers
    declared |= {spec.hf_name.format(layer=n): size for n in range(layers)}
  shapes = cases.shapes(cases.CONFIGS[name])
  assert declared == {name: int(np.prod(s)) for name, s in shapes.items()}


def test_initial_weights_have_the_declared_shapes_and_spread():
  config = specs.Config.from_hf(cases.CONFIGS['untied'])
  params = specs.init(config, jax.random.key(0))
  jax.tree.map(
    lambda x, want: np.testing.assert_equal(x.shape, want.shape),
    params,
    specs.abstract(config),
  )
  assert abs(float(params['layers']['up'].std()) - 0.02) < 1e-3
  np.testing.assert_array_equal(params['final_norm'], 1.0)
  other = specs.init(config, jax.random.key(1))
  assert np.abs(params['head'] - other['head']).max() > 0.01
  assert np.abs(params['head'] - params['embedding']).max() > 0.01
