"""Decoding on paper: bytes, pages, slots and rates, worked out by hand."""

import dataclasses
import importlib.util
import io
import json

import jax
import pytest

from experiments import base
from qed import cli, config, plan
from qed.models import sharding, specs
from qed.planning import chips, decode, tables
from qed.planning import compile as compiler

# 3 layers of 2 key/value heads of 8; the weights of a tied model of width 16:
# embedding 64 x 16, and per layer q 4 x 8 x 16, k and v 2 x 8 x 16 each, o
# 16 x 32, three of 16 x 32 for the mlp, two norms of 16 and two of 8.
MODEL = specs.Config(
  vocab_size=64,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
NUM_PARAMS = 1_024 + 3 * (512 + 256 + 256 + 512 + 3 * 512 + 48) + 16
# Of round sizes.
CHIP = dataclasses.replace(
  chips.CHIPS['v6e'],
  hbm_bytes=100_000,
  hbm_bytes_per_sec=100.0,
  ici_bytes_per_sec=10.0,
)


class Target:
  """Four chips in a row."""

  name = 'v0:1x4'
  chip = CHIP
  num_devices = 4


def service(**changes):
  """2 x 2 devices, 8 slots, 4 pages of 16 tokens for each part."""
  fields = dict(
    model=MODEL,
    target=Target,
    data=2,
    tensor=2,
    num_slots=8,
    page_size=16,
    num_pages=2 * 5,
    max_length=64,
    steps_per_chunk=4,
    kv_dtype='bfloat16',
    weight_bytes=10_000,
    prefix_bytes=2_000,
    element_bytes=2,
  )
  return decode.Service(**fields | changes)


def compiled(peak=0, arguments=0, refusal=None):
  return compiler.Compiled(
    memory=None
    if refusal
    else compiler.Memory(peak=peak, arguments=arguments, temporaries=0, host=0),
    refusal=refusal,
    hlo='',
    secs=7.0,
    host_bytes=0,
    versions={},
    is_cached=False,
  )


PREFILL = compiled(peak=18_000, arguments=12_000)
# 15,000 bytes of cache in five pages, 4,000 to work with.
GENERATE = compiled(peak=29_000, arguments=25_000)


@pytest.mark.parametrize(
  ('kv_dtype', 'num_bytes'),
  [
    # Key and value, 3 layers, 2 heads, 8 numbers.
    ('bfloat16', 2 * 3 * 2 * 8 * 2),
    ('float32', 2 * 3 * 2 * 8 * 4),
    ('int8', 2 * 3 * 2 * (8 + 4)),  # And a float32 scale for each vector.
  ],
)
def test_a_token_takes_its_keys_and_values_of_all_layers(kv_dtype, num_bytes):
  assert decode.kv_bytes_per_token(MODEL, kv_dtype) == num_bytes


def test_a_token_of_qwen3_4b_takes_144_kib():
  # 36 layers x 8 heads x 128 x (key and value) x 2 bytes.
  model = specs.VARIANTS['qwen3-4b-2507']
  assert decode.kv_bytes_per_token(model, 'bfloat16') == 144 * 1024


def test_a_step_reads_every_weight_but_an_untied_embedding():
  assert decode.weight_bytes_per_step(MODEL, 2) == 2 * NUM_PARAMS
  untied = dataclasses.replace(MODEL, tie_word_embeddings=False)
  assert decode.weight_bytes_per_step(untied, 4) == 4 * NUM_PARAMS


def test_pages_are_what_weights_prefix_work_and_headroom_leave():
  found = decode.fit(service(), PREFILL, GENERATE)
  assert found.working_bytes == 6_000  # Prefill's, which is more.
  assert found.pool_bytes == 15_000
  # 90,000 - 2 x 10,000 - 2,000 - 6,000 = 62,000 are left, of which 15,000 are
  # taken; a page is 3,000, so that 20 fit in each of two parts.
  assert found.free_bytes == 47_000
  assert found.num_pages == 40


def test_generate_may_be_what_needs_more_to_work_with():
  generate = compiled(peak=45_000, arguments=25_000)
  found = decode.fit(service(), PREFILL, generate)
  assert found.working_bytes == 20_000
  assert found.num_pages == 2 * 16


def test_no_room_is_no_pages_and_how_much_is_missing():
  found = decode.fit(
    service(weight_bytes=45_000), PREFILL, compiled(70, 60_000)
  )
  assert found.num_pages == 0
  assert found.free_bytes == 90_000 - 90_000 - 2_000 - 6_000 - 15_000


def found(num_pages):
  return decode.Fit(
    working_bytes=0, pool_bytes=0, free_bytes=0, num_pages=num_pages
  )


def test_a_step_reads_the_weights_and_what_live_slots_hold():
  rate = decode.rate(service(), found(40), 16, 400.0)
  # One page a slot: four slots in each part, on half of the heads.
  assert rate.num_live == 8
  expected = (2 * NUM_PARAMS + 4 * 16 * 192) / 2 / 100
  assert rate.hbm_secs == pytest.approx(expected)
  assert rate.tokens_per_sec == pytest.approx(8 / expected)
  # 400 bytes in four steps, 10 a second.
  assert rate.ici_secs == pytest.approx(10.0)
  assert rate.tokens_per_sec_exposed == pytest.approx(8 / (expected + 10))


@pytest.mark.parametrize(
  ('length', 'num_live', 'num_possible'),
  [
    (16, 8, 2 * 19),  # The first page of a part is not given out.
    (17, 4, 2 * 9),  # A second page, hardly used: two slots a part.
    (48, 2, 2 * 6),
    (64, 2, 2 * 4),
  ],
)
def test_slots_are_as_many_as_there_are_whole_pages_for(
  length, num_live, num_possible
):
  rate = decode.rate(service(), found(40), length, 0.0)
  assert (rate.num_live, rate.num_possible) == (num_live, num_possible)


def test_no_pages_are_no_slots():
  assert decode.rate(service(), found(0), 16, 0.0).num_possible == 0


@pytest.mark.parametrize('length', [0, 65])
def test_a_length_that_no_slot_can_have_is_refused(length):
  with pytest.raises(ValueError, match='from 1 to max_length = 64, got'):
    decode.rate(service(), found(40), length, 0.0)


def test_lengths_end_with_the_longest():
  assert decode.lengths(512) == [512]
  assert decode.lengths(4_096) == [1_024, 4_096]
  assert decode.lengths(50_176) == [1_024, 4_096, 16_384, 50_176]


def printed(*arguments):
  out = io.StringIO()
  tables.show(decode.show(*arguments), out)
  return out.getvalue()


def test_the_tables_say_what_fits_and_how_fast():
  fit = decode.fit(service(), PREFILL, GENERATE)
  rates = [decode.rate(service(), fit, 16, 0.0)]
  programs = {'prefill': PREFILL, 'generate': GENERATE}
  text = printed(service(), 'a model', programs, fit, rates)
  assert 'a model, decoding on v0:1x4: mesh 2x1x2, 8 slots' in text
  assert 'num_pages may be 40' in text
  assert 'a token is 192 bytes over tensor=2' in text
  assert '7 s' in text
  values = decode.as_json(service(), programs, fit, rates)
  assert json.loads(json.dumps(values))['fit']['num_pages'] == 40
  assert values['service']['topology'] == 'v0:1x4'


@pytest.mark.parametrize(
  ('reason', 'advice'),
  [
    ('Ran out of memory in memory space hbm', 'lower engine.num_pages'),
    ('E1001: CompileTimeScopedVmemOom:', 'halve engine.page_size'),
  ],
)
def test_a_refused_program_says_why_and_what_to_change(reason, advice):
  refusal = compiler.Refusal(text=reason, required=2, available=1)
  programs = {'prefill': PREFILL, 'generate': compiled(refusal=refusal)}
  text = printed(service(), 'a model', programs, None, [])
  assert reason in text
  assert advice in text
  json.dumps(decode.as_json(service(), programs, None, []))


def grpo(**changes):
  """A sampler of 8 slots over 2 x 2 devices, for a model without weights."""
  values = {
    'model.path': '',
    'problems.tokenizer': 'a folder',
    'problems.max_prompt_tokens': 28,
    'sampling.max_tokens': 100,
    'evaluation.max_tokens': 36,
    'packing.row_length': 256,
    'sampler.data': 2,
    'sampler.tensor': 2,
    'engine.num_slots': 8,
    'engine.page_size': 16,
    'engine.num_pages': 0,
    'engine.prefill_buckets': (32, 64),
  }
  return config.build(base.override(base.grpo(), values | changes))


def test_the_programs_are_those_of_the_runs_sampler():
  mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
  traced, found = plan._trace_decoding(grpo(), MODEL, Target, mesh)
  assert found.max_length == 128  # 28 and 100.
  # Every slot full: 8 pages each, and one that is never given out in each part.
  assert (found.num_pages, found.pages_per_part) == (66, 32)
  assert (found.data, found.tensor, found.num_slots) == (2, 2, 8)
  # 126 tokens in pieces of 64: keys and values of 128, half of the heads.
  assert found.prefix_bytes == 128 * 192 // 2
  # Matrices are in four parts, norms everywhere.
  norms = 3 * 48 + 16
  assert found.weight_bytes == 2 * ((NUM_PARAMS - norms) // 4 + norms)
  assert found.element_bytes == 2
  tables_shape = traced['generate'].in_avals[0][2].shape
  assert tables_shape == (8, 8)
  assert traced['prefill'].in_avals[0][2].shape == (1, 64)


def test_evaluation_may_need_the_longer_completions():
  mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
  run = grpo(
    **{
      'evaluation.max_tokens': 228,
      'evaluation.paths': ('held_out.jsonl',),
      'training.eval_interval_steps': 5,
    }
  )
  _, found = plan._trace_decoding(run, MODEL, Target, mesh)
  assert found.max_length == 256


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config=experiments/sft_main.py'], 'got one for `qed sft`'),
    (['--config=experiments/rl_main.py', '--search'], 'got --search'),
  ],
)
def test_what_has_no_sampler_to_plan_is_refused(arguments, words, capsys):
  flags = ('--what=decode', '--topology=v6e:2x4')
  assert cli.run(plan.main, ['qed plan', *arguments, *flags]) == cli.USAGE
  assert words in capsys.readouterr().err


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs the TPU compiler: pip install 'qed[tpu]'",
)
def test_a_tiny_sampler_is_planned(tmp_path, capsys):
  folder = tmp_path / 'tiny'
  folder.mkdir()
  wide = dataclasses.replace(
    MODEL, vocab_size=512, hidden_size=256, head_dim=128
  )
  (folder / 'config.json').write_text(json.dumps(wide.to_hf()))
  written = tmp_path / 'plan.json'
  code = cli.run(
    plan.main,
    [
      'qed plan',
      '--config=experiments/rl_main.py',
      '--what=decode',
      '--topology=v5e:2x2',
      f'--config.model.path={folder}',
      '--config.model.variant=',
      '--config.sampler.data=2',
      '--config.sampler.tensor=2',
      f'--cache_dir={tmp_path}',
      f'--json={written}',
    ],
  )
  assert code == cli.DONE
  assert 'decoding on v5e:2x2: mesh 2x1x2' in capsys.readouterr().out
  values = json.loads(written.read_text())
  # The compiler lays the pages out without padding.
  pool = values['service']['num_pages'] * 128 * values['kv_bytes_per_token']
  assert values['fit']['pool_bytes'] == pytest.approx(pool / 4, rel=0.02)
  assert values['fit']['num_pages'] > values['service']['num_pages']
