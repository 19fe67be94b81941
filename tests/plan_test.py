"""The command: what it refuses, what it hands to the compiler, what it says."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from experiments import base
from qed import cli, config, plan
from qed.models import sharding, specs
from qed.planning import chips
from qed.planning.search import Layout

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs the TPU compiler: pip install 'qed[tpu]'",
)
SFT = '--config=experiments/sft_main.py'
GRPO = '--config=experiments/rl_main.py'
# Wide enough for the lanes of a TPU, and N H is not D.
TINY = {
  'model_type': 'qwen3',
  'vocab_size': 512,
  'hidden_size': 256,
  'intermediate_size': 384,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 128,
  'rope_theta': 1e6,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
}
SHORT = (
  '--config.packing.row_length=512',
  '--config.packing.num_rows=4',
  '--config.packing.microbatch_counts=8',
)


@pytest.fixture
def tiny(tmp_path):
  """Flags for a model that is described by a folder without weights."""
  folder = tmp_path / 'tiny'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(TINY))
  return f'--config.model.path={folder}', '--config.model.variant='


def run(*arguments):
  return cli.run(plan.main, ['qed plan', *arguments])


def test_the_slice_must_be_given(capsys):
  assert run(SFT) == cli.USAGE
  assert '--topology is missing' in capsys.readouterr().err


def test_a_product_name_is_answered_with_its_slice(capsys):
  assert run(SFT, '--topology=v6e-256') == cli.USAGE
  assert 'such as v6e:16x16' in capsys.readouterr().err


def test_a_missing_compiler_is_answered_with_its_installation(
  capsys, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with monkeypatch.context() as patch:
    patch.setattr(cli, 'load_config', lambda source: base.sft().lock())
    assert run(SFT, '--topology=v5p:2x4x4') == cli.USAGE
  assert "pip install 'qed[tpu]'" in capsys.readouterr().err


def test_a_wrong_field_is_refused_before_anything_else(capsys):
  assert run(SFT, '--config.mesh.contxt=2', '--topology=v5e:4x4') == cli.USAGE
  assert 'mesh.context' in capsys.readouterr().err


def test_both_programs_configs_are_taken(capsys):
  for source in (SFT, GRPO, '--config experiments/rl_main.py:no_entropy'):
    assert run(*source.split(' '), '--topology=v6e-8') == cli.USAGE
    assert 'v6e:2x4' in capsys.readouterr().err


def sft(**changes):
  return config.build(base.override(base.sft(), changes))


@pytest.mark.parametrize(
  ('mesh', 'sizes'),
  [
    ((-1, 1, 1), (16, 1, 1)),
    ((-1, 4, 1), (4, 4, 1)),
    ((8, 1, 2), (8, 1, 2)),
    ((2, -1, 2), (2, 4, 2)),
  ],
)
def test_minus_one_takes_the_devices_of_the_slice(mesh, sizes):
  axes = [f'mesh.{axis}' for axis in sharding.AXES]
  found = plan._mesh_sizes(sft(**dict(zip(axes, mesh, strict=True))), 16)
  assert tuple(found[axis] for axis in sharding.AXES) == sizes


@pytest.mark.parametrize('mesh', [(8, 1, 1), (-1, 3, 1), (32, 1, 1)])
def test_a_mesh_of_another_size_is_refused(mesh):
  axes = [f'mesh.{axis}' for axis in sharding.AXES]
  changes = dict(zip(axes, mesh, strict=True))
  if mesh[1] == 3:
    changes['packing.row_length'] = 45_057
  with pytest.raises(config.ConfigError, match='is not the 16 devices'):
    plan._mesh_sizes(sft(**changes), 16)


def small(program):
  """A config of 2 x 8 rows of 128 tokens, with a model that has no weights."""
  values = {
    'model.path': '',
    'packing.num_rows': 8,
    'packing.row_length': 128,
  }
  if program == 'sft':
    values |= {
      'data.max_tokens': 129,
      'data.samples_per_step': 16,
      'data.tokenizer': 'a folder',
    }
  else:
    values |= {
      'problems.max_prompt_tokens': 29,
      'problems.tokenizer': 'a folder',
      'sampling.max_tokens': 100,
      'rollout.problems_per_step': 2,
      'rollout.group_size': 8,
    }
  values['packing.microbatch_counts'] = (1, 2)
  start = {'sft': base.sft, 'grpo': base.grpo}[program]()
  return config.build(base.override(start, values))


@pytest.mark.parametrize('program', ['sft', 'grpo'])
def test_the_step_of_the_run_is_traced_at_its_shapes(program):
  run = small(program)
  mesh = sharding.make_mesh(4, 2, 1)
  layout = plan._layout(run, dict(mesh.shape))
  assert layout == Layout(
    data=4,
    context=2,
    tensor=1,
    remat='attention',
    num_rows=8,
    row_length=128,
    num_microbatches=2,
  )
  model = specs.Config.from_hf(TINY)
  traced = plan._trace(layout, run, model, mesh)
  shapes = {x.shape for x in jax.tree.leaves(traced.in_avals[0][1])}
  assert shapes == {(2, 8, 128)}
  # Tokens, targets, positions, segments and mask; GRPO's two log-probs more.
  num_arrays = {'sft': 5, 'grpo': 7}[program]
  assert len(jax.tree.leaves(traced.in_avals[0][1])) == num_arrays


def test_a_kl_penalty_brings_the_reference_log_probabilities():
  run = small('grpo')
  loss = dataclasses.replace(run.loss, kl_coef=0.1)
  run = dataclasses.replace(run, loss=loss)
  mesh = sharding.make_mesh(8, 1, 1)
  layout = plan._layout(run, dict(mesh.shape))
  traced = plan._trace(layout, run, specs.Config.from_hf(TINY), mesh)
  assert len(jax.tree.leaves(traced.in_avals[0][1])) == 8


def test_a_model_without_weights_or_name_is_refused():
  run_config = sft(**{'model.variant': '', 'model.path': 'nowhere'})
  with pytest.raises(plan.app.UsageError, match=r'--config\.model\.variant'):
    plan._read_model(run_config)


@pytest.mark.parametrize(
  ('fails', 'reason'),
  [
    ('_trace', 'ValueError: 3 does not divide 8'),
    ('compile_traced', 'the compiler failed: INTERNAL: a bug'),
  ],
)
def test_a_layout_that_cannot_be_is_an_answer(
  fails, reason, monkeypatch, tmp_path
):
  from qed.planning import compile as compiler

  def fail(*args, **kwargs):
    if fails == '_trace':
      raise ValueError('3 does not divide 8')
    raise jax.errors.JaxRuntimeError('INTERNAL: a bug\nand its details')

  module = plan if fails == '_trace' else compiler
  monkeypatch.setattr(module, fails, fail)
  run = small('sft')
  found = plan._attempt(
    plan._layout(run, {'data': 8, 'context': 1, 'tensor': 1}),
    run=run,
    model=specs.Config.from_hf(TINY),
    target=chips.parse_slice('v5e:2x4'),
    devices=jax.devices(),
    cache_dir=tmp_path,
  )
  assert not found.fits
  assert found.reason == reason.removeprefix('ValueError: ')


@needs_libtpu
@pytest.mark.parametrize('program', ['sft', 'grpo'])
def test_a_tiny_model_is_planned(program, tiny, tmp_path, capsys):
  source = {
    'sft': (SFT, '--config.data.max_tokens=512'),
    'grpo': (
      GRPO,
      '--config.problems.max_prompt_tokens=64',
      '--config.sampling.max_tokens=448',
      '--config.rollout.problems_per_step=2',
    ),
  }[program]
  report = tmp_path / 'report.json'
  assert (
    run(
      *source,
      *tiny,
      *SHORT,
      '--config.mesh.context=2',
      '--topology=v5e:2x2',
      f'--cache_dir={tmp_path}',
      f'--json={report}',
    )
    == cli.DONE
  )
  printed = capsys.readouterr().out
  assert f'{program} step on v5e:2x2: mesh 2x2x1' in printed
  assert 'stays free' in printed
  values = json.loads(report.read_text())
  (only,) = values['plans']
  assert only['fits']
  assert not only['uncounted']
  assert not only['traffic']['unknown_loops']
  # Two layers in each of eight microbatches.
  assert set(only['traffic']['kernels'].values()) == {16}
  # AdamW's state, 12 bytes a weight, of a quarter of the weights.
  state = 12 * specs.Config.from_hf(TINY).num_params / 4
  assert only['compiled']['memory']['arguments'] == pytest.approx(
    state, rel=0.2
  )
  assert 0 < only['estimate']['mfu_bound'] < 1


@needs_libtpu
def test_what_is_too_large_is_an_answer(tiny, tmp_path, capsys):
  # Scores of 32,768 x 32,768 in float32 for four heads are 16 GiB.
  code = run(
    SFT,
    *tiny,
    '--config.model.attention=dense',
    '--config.packing.row_length=32768',
    '--config.data.max_tokens=32768',
    '--config.packing.num_rows=4',
    '--config.packing.microbatch_counts=8',
    '--topology=v5e:2x2',
    f'--cache_dir={tmp_path}',
  )
  assert code == cli.DONE
  assert 'does not fit  needs' in capsys.readouterr().out


@needs_libtpu
def test_the_compiler_finds_the_slice_of_the_message(capsys):
  assert run(SFT, '--topology=v5e:3x3') == cli.USAGE
  assert 'v5e:3x3 is no slice' in capsys.readouterr().err
