"""Refusals without the compiler; with it, a tiny model for a slice of four."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qed.models import sharding
from qed.planning import chips, libtpu, traffic
from qed.planning import compile as compiler

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs the TPU compiler: pip install 'qed[tpu]'",
)
GIB = 2**30


def test_a_refusal_before_compiling_tells_required_and_available():
  refusal = compiler.read_refusal(
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (19.00G) exceeds available HBM (15.75G).'
  )
  assert refusal.required == 19 * GIB
  assert refusal.available == 15.75 * GIB
  assert refusal.text.startswith('RESOURCE_EXHAUSTED: Ran out of memory on HBM')


def test_a_refusal_after_compiling_tells_used_and_available():
  refusal = compiler.read_refusal(
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 18.05G of 15.75G hbm. Exceeded hbm capacity by '
    '2.30G.\n\nTotal hbm usage >= 18.55G:\n    reserved  512.00M'
  )
  assert refusal.required == pytest.approx(18.05 * GIB, abs=1)
  assert refusal.available == 15.75 * GIB
  assert '\n' not in refusal.text


def test_a_refusal_in_other_words_is_still_one():
  refusal = compiler.read_refusal('RESOURCE_EXHAUSTED: too much')
  assert refusal == compiler.Refusal(
    text='RESOURCE_EXHAUSTED: too much', required=0, available=0
  )


@pytest.mark.parametrize(
  'text', ['INTERNAL: Mosaic failed to compile', 'UNIMPLEMENTED: rewrite']
)
def test_other_failures_are_no_refusals(text):
  assert compiler.read_refusal(text) is None


def test_the_environment_of_the_user_wins(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
  for name in libtpu._ENVIRONMENT:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('TPU_ACCELERATOR_TYPE', 'v6e-8')
  libtpu.prepare()
  assert os.environ['TPU_ACCELERATOR_TYPE'] == 'v6e-8'
  assert os.environ['JAX_PLATFORMS'] == 'cpu'
  assert os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] == '1'


def test_without_the_compiler_the_message_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(libtpu.LibtpuMissingError, match=r"install 'qed\[tpu\]'"):
    libtpu.prepare()


@pytest.fixture(scope='module')
def mesh():
  libtpu.prepare()
  target = chips.parse_slice('v5e:2x2')
  return sharding.make_mesh(2, 2, 1, devices=compiler.devices(target))


def trace(mesh, size):
  x = jax.ShapeDtypeStruct(
    (size, size),
    jnp.bfloat16,
    sharding=NamedSharding(mesh, PartitionSpec('data', None)),
  )
  return jax.jit(lambda x: x @ x).trace(x)


@needs_libtpu
@pytest.mark.parametrize(
  ('text', 'kind'),
  [
    ('v4:2x2x1', 'TPU v4'),
    ('v5e:4x4', 'TPU v5 lite'),
    ('v5p:2x4x4', 'TPU v5'),
    ('v6e:16x16', 'TPU v6 lite'),
    ('tpu7x:2x2x2', 'TPU7x'),
  ],
)
def test_a_slice_has_the_devices_of_its_shape(text, kind):
  libtpu.prepare()
  target = chips.parse_slice(text)
  devices = compiler.devices(target)
  assert len(devices) == target.num_devices
  assert devices[0].device_kind == kind


@needs_libtpu
def test_an_impossible_shape_is_refused():
  libtpu.prepare()
  with pytest.raises(ValueError, match='v5e:3x3 is no slice'):
    compiler.devices(chips.parse_slice('v5e:3x3'))


@needs_libtpu
def test_a_program_is_compiled_once(mesh, tmp_path):
  target = chips.parse_slice('v5e:2x2')
  first, second = (
    compiler.compile_traced(trace(mesh, 1024), mesh, target, cache_dir=tmp_path)
    for _ in range(2)
  )
  assert not first.is_cached
  assert second.is_cached
  assert first.memory == second.memory
  assert first.hlo == second.hlo
  # x is split over `data` and repeated over `context`.
  assert first.memory.arguments == 1024 * 1024 * 2 / 2
  # A shard at least has to come from the other half.
  exchanged = traffic.read(second.hlo, longest_ring=2).ici_bytes
  assert exchanged >= 1024 * 1024 * 2 / 2


@needs_libtpu
def test_other_flags_and_other_places_are_other_programs(mesh, tmp_path):
  target = chips.parse_slice('v5e:2x2')
  swapped = jax.sharding.Mesh(
    mesh.devices[::-1], mesh.axis_names, axis_types=mesh.axis_types
  )
  for where, options in (
    (mesh, compiler.OPTIONS),
    (mesh, {}),
    (swapped, compiler.OPTIONS),
  ):
    compiled = compiler.compile_traced(
      trace(where, 256), where, target, cache_dir=tmp_path, options=options
    )
    assert not compiled.is_cached


@needs_libtpu
def test_what_does_not_fit_is_an_answer(mesh, tmp_path):
  # 2 x 32 GiB in, and as much out, on chips of 16.
  target = chips.parse_slice('v5e:2x2')
  for _ in range(2):
    compiled = compiler.compile_traced(
      trace(mesh, 131_072), mesh, target, cache_dir=tmp_path
    )
    assert compiled.memory is None
    assert compiled.refusal.required > compiled.refusal.available
    assert compiled.refusal.available == target.chip.hbm_bytes
