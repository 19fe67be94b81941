"""Versions of the weights: whole or refused, kept or deleted."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from qed.models import sharding, specs
from qed.rollout import weights

pytestmark = pytest.mark.timeout(60)

BF16 = np.dtype(ml_dtypes.bfloat16)
CONFIG = specs.Config(
  vocab_size=24,
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  rope_theta=10_000.0,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
  carried=(('eos_token_id', (2, 3)),),
)
EMBEDDING = 'model.embed_tokens.weight'


def make_params(seed=0):
  """Weights that bfloat16 cannot hold, made without the model's code."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda spec: jnp.asarray(rng.normal(0, 0.3, spec.shape), jnp.float32),
    specs.declare(CONFIG),
    is_leaf=specs.is_spec,
  )


def rounded(params):
  return jax.tree.map(lambda x: np.asarray(x).astype(BF16), params)


def assert_equal(params, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(
      np.asarray(x).view(np.uint16), y.view(np.uint16)
    ),
    params,
    expected,
  )


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """A folder with version 7, to be copied."""
  folder = tmp_path_factory.mktemp('weights')
  weights.publish(folder, make_params(), CONFIG, 7, max_versions=3)
  return folder


@pytest.fixture
def folder(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'weights')


def test_what_is_loaded_is_what_was_published_rounded_to_bfloat16(folder):
  params = weights.load(folder, 7, config=CONFIG)
  assert {x.dtype for x in jax.tree.leaves(params)} == {BF16}
  assert_equal(params, rounded(make_params()))


def test_float32_weights_keep_their_bits_if_asked_to(tmp_path):
  weights.publish(
    tmp_path, make_params(), CONFIG, 0, max_versions=1, dtype=jnp.float32
  )
  params = weights.load(tmp_path, 0, config=CONFIG)
  jax.tree.map(np.testing.assert_array_equal, params, make_params())


def test_a_version_may_be_written_and_read_on_different_meshes(tmp_path):
  params, eight = make_params(), sharding.make_mesh(data=4, tensor=2)
  places = sharding.param_shardings(CONFIG, eight)
  weights.publish(
    tmp_path, jax.device_put(params, places), CONFIG, 1, max_versions=1
  )
  two = sharding.make_mesh(data=1, tensor=2, devices=jax.devices()[:2])
  loaded = weights.load(tmp_path, 1, config=CONFIG, mesh=two)
  assert_equal(loaded, rounded(params))
  assert jax.tree.map(lambda x: x.sharding, loaded) == (
    sharding.param_shardings(CONFIG, two)
  )


def test_the_manifest_has_the_checksum_of_every_tensor(folder):
  manifest = json.loads((folder / '7' / 'manifest.json').read_text())
  # By another reader of the format.
  tensors = safetensors.numpy.load_file(folder / '7' / 'model.safetensors')
  assert manifest['version'] == 7
  assert manifest['config']['eos_token_id'] == [2, 3]
  assert manifest['tensors'] == {
    name: {
      'dtype': 'bfloat16',
      'shape': list(tensor.shape),
      'sha256': hashlib.sha256(tensor.tobytes()).hexdigest(),
    }
    for name, tensor in tensors.items()
  }
  assert len(tensors) == 2 + 11 * CONFIG.num_hidden_layers


class TestRefused:
  """What is not a whole version of this model."""

  def refuse(self, folder, *words, version=7, config=CONFIG):
    with pytest.raises(weights.VersionError) as error:
      weights.load(folder, version, config=config)
    for word in (str(folder / str(version)), *words):
      assert word in str(error.value)
    assert not list(folder.glob('.*.loading'))

  def test_a_version_that_is_not_there(self, folder):
    self.refuse(folder, 'no such version; there are [7]', version=8)

  def test_a_version_without_its_manifest_is_partial(self, folder):
    (folder / '7' / 'manifest.json').unlink()
    assert weights.versions(folder) == []
    self.refuse(folder, 'no manifest.json', 'a part of a version')

  def test_a_damaged_manifest(self, folder):
    (folder / '7' / 'manifest.json').write_text('{"format": 1')
    self.refuse(folder, 'manifest.json is damaged')

  @pytest.mark.parametrize('where', [0, 0.5, 1])
  def test_one_flipped_bit_anywhere_in_the_tensors(self, folder, where):
    file = folder / '7' / 'model.safetensors'
    content = bytearray(file.read_bytes())
    first = 8 + int.from_bytes(content[:8], 'little')
    index = first + int(where * (len(content) - 1 - first))
    content[index] ^= 1
    file.write_bytes(content)
    self.refuse(folder, 'is damaged', 'sha256')

  def test_a_truncated_file(self, folder):
    file = folder / '7' / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-2])
    self.refuse(folder, 'truncated')

  def test_a_file_that_is_missing(self, folder):
    (folder / '7' / 'model.safetensors').unlink()
    self.refuse(folder, 'model.safetensors')

  def test_a_tensor_more_than_the_manifest_has(self, folder):
    file = folder / '7' / 'manifest.json'
    manifest = json.loads(file.read_text())
    del manifest['tensors'][EMBEDDING]
    file.write_text(json.dumps(manifest))
    self.refuse(folder, f'{EMBEDDING} is unexpected')

  def test_the_weights_of_another_model(self, folder):
    other = {
      field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__
    } | {'rope_theta': 5e6}
    self.refuse(
      folder,
      'another model',
      'rope_theta is 10000.0 and not 5000000.0',
      config=specs.Config(**other),
    )

  def test_a_version_under_the_name_of_another(self, folder):
    (folder / '7').rename(folder / '9')
    self.refuse(folder, 'expected version 9', 'of version 7', version=9)

  def test_a_format_of_the_future(self, folder):
    file = folder / '7' / 'manifest.json'
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    self.refuse(folder, 'in format 2')


class TestKept:
  """What a publication deletes, and what it does not."""

  def publish(self, folder, version, max_versions=2, seed=0):
    weights.publish(
      folder, make_params(seed), CONFIG, version, max_versions=max_versions
    )

  def test_the_newest_versions_stay(self, folder):
    for version in (8, 10, 9 + 2):
      self.publish(folder, version)
    assert weights.versions(folder) == [10, 11]  # And 10 > 9 as a number.
    assert sorted(os.listdir(folder)) == ['.partial', '10', '11']
    assert not os.listdir(folder / '.partial')

  def test_a_version_that_is_being_loaded_stays(self, folder):
    (folder / '.7.abcd1234.loading').touch()
    self.publish(folder, 8, max_versions=1)
    assert weights.versions(folder) == [7, 8]
    (folder / '.7.abcd1234.loading').unlink()
    self.publish(folder, 9, max_versions=1)
    assert weights.versions(folder) == [9]

  def test_loading_leaves_its_mark_meanwhile(self, folder, monkeypatch):
    during = []
    load = weights.hf.load
    monkeypatch.setattr(
      weights.hf,
      'load',
      lambda *args, **kwargs: (
        self.publish(folder, 8, max_versions=1),
        during.append(weights.versions(folder)),
        load(*args, **kwargs),
      )[-1],
    )
    assert_equal(weights.load(folder, 7, config=CONFIG), rounded(make_params()))
    assert during == [[7, 8]]

  def test_the_mark_of_a_killed_sampler_expires(self, folder):
    mark = folder / '.7.abcd1234.loading'
    mark.touch()
    yesterday = time.time() - 86_400
    os.utime(mark, (yesterday, yesterday))
    self.publish(folder, 8, max_versions=1)
    assert weights.versions(folder) == [8]

  def test_a_version_is_replaced(self, folder):
    self.publish(folder, 7, seed=1)
    assert_equal(
      weights.load(folder, 7, config=CONFIG), rounded(make_params(1))
    )

  def test_a_run_that_went_back_takes_its_later_versions_back(self, folder):
    self.publish(folder, 8)
    self.publish(folder, 5)
    assert weights.versions(folder) == [5]

  def test_other_things_in_the_folder_are_left_alone(self, folder):
    (folder / 'notes').mkdir()
    (folder / 'notes' / 'manifest.json').touch()
    (folder / '3').mkdir()  # Not whole, perhaps on its way here.
    self.publish(folder, 8, max_versions=1)
    assert {'notes', '3', '8'} <= set(os.listdir(folder))

  @pytest.mark.parametrize(('version', 'most'), [(-1, 1), (0, 0)])
  def test_numbers_below_their_minimum(self, tmp_path, version, most):
    with pytest.raises(ValueError, match='expected version >= 0 and'):
      self.publish(tmp_path, version, max_versions=most)
    assert not os.listdir(tmp_path)


def test_a_publisher_that_is_killed_leaves_no_version(folder):
  """SIGKILL after the tensors are written and before the rename."""
  code = f"""
    import os, signal
    import jax
    from qed.rollout import weights
    from tests.rollout import weights_test as test
    def die(*_):
      os.kill(os.getpid(), signal.SIGKILL)
    weights._write_manifest = die
    weights.publish({str(folder)!r}, test.make_params(), test.CONFIG, 8,
                    max_versions=1)
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    timeout=50,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL
  assert (folder / '.partial' / '8' / 'model.safetensors').exists()
  assert weights.versions(folder) == [7]
  with pytest.raises(weights.VersionError, match='no such version'):
    weights.load(folder, 8, config=CONFIG)
  weights.publish(folder, make_params(), CONFIG, 8, max_versions=1)
  assert weights.versions(folder) == [8]
  assert not os.listdir(folder / '.partial')
