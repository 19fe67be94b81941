"""What was saved is what is restored, or one is told."""

import contextlib
import gc
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qed.models import hf, hf_files, sharding, specs
from qed.training import checkpoints
from qed.training.checkpoints import Checkpointer, CheckpointError
from qed.training.fingerprints import fingerprint
from qed.types import TrainState

# Where one array fails, orbax leaves the coroutines of the others half way.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)

CONFIG = specs.Config(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=1e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)
OPTIMIZER = optax.adamw(1e-3)


def make_state(step, config=CONFIG):
  """A state whose every array depends on the step."""
  rng = np.random.default_rng(step)

  def draw(x):
    if x.ndim == 0:
      return jnp.int32(step)
    return jnp.asarray(rng.normal(size=x.shape), x.dtype)

  params = specs.abstract(config)
  opt_state = jax.eval_shape(OPTIMIZER.init, params)
  return jax.tree.map(draw, TrainState(jnp.int32(step), params, opt_state))


def abstract(mesh=None, config=CONFIG):
  """The state's description: weights and moments by the rules of the mesh."""
  state = make_state(0, config)
  if mesh is None:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: place, state.params)
  else:
    place = NamedSharding(mesh, PartitionSpec())
    places = sharding.param_shardings(config, mesh)

  def describe(tree, places):
    return jax.tree.map(
      lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p),
      tree,
      places,
    )

  adam = state.opt_state[0]
  return TrainState(
    describe(state.step, place),
    describe(state.params, places),
    (
      adam._replace(
        count=describe(adam.count, place),
        mu=describe(adam.mu, places),
        nu=describe(adam.nu, places),
      ),
      *state.opt_state[1:],
    ),
  )


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def save(directory, *numbers, keep=9):
  checkpointer = Checkpointer(directory, keep=keep)
  for step in numbers:
    checkpointer.save(step, make_state(step), {'cursor': step})
  checkpointer.close()


def restore(directory, mesh=None):
  checkpointer = Checkpointer(directory)
  restored = checkpointer.restore_latest_valid(abstract(mesh))
  checkpointer.close()
  return restored


@pytest.fixture
def collected():
  """Has what orbax dropped collected while its warnings are expected."""
  yield
  gc.collect()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with steps 1 and 2, to be copied."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save(directory, 1, 2)
  return directory


@pytest.fixture
def directory(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


# Saving and restoring.


def test_state_and_extra_come_back_as_they_were(tmp_path):
  extra = {
    'cursor': {'epoch': 1, 'index': [3, 4]},
    'rng': np.asarray(jax.random.key_data(jax.random.key(5))).tolist(),
    'config_hash': 'é' * 3,
    'loss': 0.1 + 0.2,
    'best': None,
  }
  checkpointer = Checkpointer(tmp_path / 'c')
  checkpointer.save(7, make_state(7), extra)
  checkpointer.close()
  restored = restore(tmp_path / 'c')
  assert restored.step == 7
  assert restored.extra == extra
  assert_same(restored.state, make_state(7))


def test_a_directory_without_steps_restores_nothing(tmp_path):
  assert restore(tmp_path / 'none') is None
  (tmp_path / 'empty').mkdir()
  assert restore(tmp_path / 'empty') is None


def test_saving_takes_the_values_of_the_moment(tmp_path):
  """The next step donates the arrays while they are still being written."""
  state = make_state(3)
  expected = jax.tree.map(np.array, state)
  spoil = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0
  )
  checkpointer = Checkpointer(tmp_path / 'c')
  for step in (3, 4):
    checkpointer.save(step, state)
    state = spoil(state)
  jax.block_until_ready(state)
  checkpointer.close()
  shutil.rmtree(tmp_path / 'c' / '4')
  assert_same(restore(tmp_path / 'c').state, expected)


def test_the_oldest_steps_go_once_newer_ones_are_complete(tmp_path):
  checkpointer = Checkpointer(tmp_path / 'c', keep=2)
  for num_saved, step in enumerate((3, 5, 20, 21)):
    checkpointer.save(step, make_state(step))
    # Two are complete even while the third is being written.
    assert len(checkpoints.steps(tmp_path / 'c')) >= min(2, num_saved)
  checkpointer.close()
  assert checkpoints.steps(tmp_path / 'c') == [20, 21]
  assert restore(tmp_path / 'c').step == 21


def test_a_step_that_is_there_is_not_written_again(directory):
  before = (directory / '2' / 'commit_success.txt').stat().st_mtime_ns
  checkpointer = Checkpointer(directory)
  checkpointer.save(2, make_state(9))
  checkpointer.close()
  assert (directory / '2' / 'commit_success.txt').stat().st_mtime_ns == before


@pytest.mark.parametrize('axes', [(2, 2, 2), (8, 1, 1)])
def test_another_mesh_gets_the_same_state(directory, axes, tmp_path):
  mesh = sharding.make_mesh(*axes)
  restored = restore(directory, mesh)
  assert_same(restored.state, make_state(2))
  wanted = abstract(mesh)
  assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(
    lambda x: x.sharding, wanted
  )
  checkpointer = Checkpointer(tmp_path / 'again')
  checkpointer.save(3, restored.state)
  checkpointer.close()
  assert_same(restore(tmp_path / 'again').state, make_state(2))


def test_large_states_are_read_in_several_batches(directory, monkeypatch):
  monkeypatch.setattr(checkpoints, '_BATCH_BYTES', 10_000)
  batches = []
  read_batch = checkpoints._read_batch

  def record(path, batch):
    batches.append(sorted(batch))
    return read_batch(path, batch)

  monkeypatch.setattr(checkpoints, '_read_batch', record)
  assert_same(restore(directory).state, make_state(2))
  names = [name for batch in batches for name in batch]
  assert len(names) == len(set(names)) == len(jax.tree.leaves(make_state(0)))
  assert len(batches) > 10


# What does not count as a step.


def test_foreign_and_unfinished_directories_are_no_steps(directory, caplog):
  (directory / '11').mkdir()
  (directory / '12').mkdir()
  (directory / '12' / 'data.bin').write_bytes(b'1')
  (directory / 'hf').mkdir()
  (directory / '13').write_text('a file')
  shutil.copytree(directory / '2', directory / '14')
  (directory / '14' / 'commit_success.txt').unlink()
  shutil.copytree(directory / '2', directory / '15.orbax-checkpoint-tmp')
  # One whose removal was interrupted.
  shutil.copytree(directory / '2', directory / '16')
  shutil.rmtree(directory / '16' / 'manifest')
  assert checkpoints.steps(directory) == [1, 2]
  assert restore(directory).step == 2
  left = {path.name for path in directory.iterdir()}
  assert left == {'1', '2', '11', '12', '13', '14', '16', 'hf'}
  assert '15.orbax-checkpoint-tmp' in caplog.text


# Damage.


def largest_file(folder):
  files = [path for path in folder.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip(file, position=0.5):
  raw = bytearray(file.read_bytes())
  raw[int(len(raw) * position)] ^= 4
  file.write_bytes(raw)


DAMAGE = {
  'a bit of the weights': lambda step: flip(largest_file(step / 'params')),
  'a bit of the moments': lambda step: flip(largest_file(step / 'state'), 0.1),
  'half a file': lambda step: os.truncate(
    largest_file(step / 'params'),
    largest_file(step / 'params').stat().st_size // 2,
  ),
  'a lost file': lambda step: largest_file(step / 'state').unlink(),
  'a lost item': lambda step: shutil.rmtree(step / 'params'),
  'the data cursor': lambda step: edit(step, '"cursor": 2', '"cursor": 3'),
  'the manifest': lambda step: edit(step, '{', ''),
  'the names': lambda step: os.truncate(step / 'params' / '_METADATA', 99),
}


def edit(step, old, new):
  file = step / 'manifest' / 'metadata'
  text = file.read_text()
  assert old in text
  file.write_text(text.replace(old, new, 1))


@pytest.mark.usefixtures('collected')
@pytest.mark.parametrize('kind', DAMAGE)
def test_where_the_newest_is_damaged_the_one_before_takes_over(
  directory, caplog, kind
):
  DAMAGE[kind](directory / '2')
  restored = restore(directory)
  assert restored.step == 1
  assert restored.extra == {'cursor': 1}
  assert_same(restored.state, make_state(1))
  assert f'{directory / "2"} is damaged' in caplog.text
  assert checkpoints.steps(directory) == [1]
  # Its number is free for the run that goes on.
  save(directory, 2)
  assert restore(directory).step == 2
  assert (directory / '2.damaged').is_dir()


@pytest.mark.usefixtures('collected')
def test_where_all_are_damaged_nothing_is_moved_and_all_are_named(directory):
  for step in ('1', '2'):
    flip(largest_file(directory / step / 'params'))
  with pytest.raises(
    CheckpointError, match=r'no step .* can be read'
  ) as caught:
    restore(directory)
  assert '1: params.' in str(caught.value)
  assert '2: params.' in str(caught.value)
  assert checkpoints.steps(directory) == [1, 2]


def test_a_state_of_another_model_is_no_damage(directory):
  other = specs.Config(
    **{**CONFIG.__dict__, 'intermediate_size': 40, 'tie_word_embeddings': False}
  )
  with pytest.raises(CheckpointError, match='another model') as caught:
    Checkpointer(directory).restore_latest_valid(abstract(config=other))
  text = str(caught.value)
  assert 'params.head is asked for only' in text
  assert (
    'opt_state.0.mu.layers.up has shape [2, 48, 32], not (2, 40, 32)' in text
  )
  assert checkpoints.steps(directory) == [1, 2]


def test_a_state_of_other_types_is_no_damage(directory):
  wanted = abstract()
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
    wanted.opt_state[0].mu,
  )
  wanted = wanted._replace(
    opt_state=(wanted.opt_state[0]._replace(mu=half), *wanted.opt_state[1:])
  )
  with pytest.raises(CheckpointError, match='up is float32, not bfloat16'):
    Checkpointer(directory).restore_latest_valid(wanted)


# Saves that fail.


@contextlib.contextmanager
def small_disk():
  """No file can be as large as the weights."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures('collected')
def test_a_full_disk_is_told_and_costs_no_step(directory, monkeypatch):
  made = []
  make_orbax = checkpoints._make_orbax

  def record(arrays):
    made.append(make_orbax(arrays))
    return made[-1]

  monkeypatch.setattr(checkpoints, '_make_orbax', record)
  checkpointer = Checkpointer(directory, keep=9)
  checkpointer.save(3, make_state(3))
  checkpointer.wait()
  with small_disk():
    checkpointer.save(4, make_state(4))
    with pytest.raises(OSError, match='step 4 was not saved') as caught:
      checkpointer.wait()
  assert 'there are steps [1, 2, 3]' in str(caught.value)
  checkpointer.save(5, make_state(5))
  checkpointer.close()
  assert checkpoints.steps(directory) == [1, 2, 3, 5]
  assert len(made) == 2  # What failed once is not used again.
  assert_same(restore(directory).state, make_state(5))


@pytest.mark.usefixtures('collected')
def test_the_error_of_a_save_reaches_the_next_one(directory):
  checkpointer = Checkpointer(directory, keep=9)
  with small_disk():
    checkpointer.save(4, make_state(4))
    time.sleep(1)
  with pytest.raises(OSError, match='step 4 was not saved'):
    checkpointer.save(5, make_state(5))
  checkpointer.close()
  assert checkpoints.steps(directory) == [1, 2]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
  (tmp_path / 'file').touch()
  checkpointer = Checkpointer(tmp_path / 'file' / 'c')
  with pytest.raises(OSError, match='step 1 was not saved'):
    checkpointer.save(1, make_state(1))
  checkpointer.close()


def test_an_extra_that_is_no_json_is_refused_at_once(tmp_path):
  checkpointer = Checkpointer(tmp_path / 'c')
  with pytest.raises(TypeError, match='JSON'):
    checkpointer.save(1, make_state(1), {'key': jax.random.key(0)})
  checkpointer.close()
  assert checkpoints.steps(tmp_path / 'c') == []


def test_keeping_no_step_is_refused(tmp_path):
  with pytest.raises(ValueError, match='keep must be at least 1, got 0'):
    Checkpointer(tmp_path, keep=0)


# Weights alone.


def test_the_weights_of_a_run_are_read_alone(directory):
  checkpoints.write_model_files(directory, CONFIG, tokenizer_dir=None)
  shutil.rmtree(directory / '2' / 'state')
  params, config, step = checkpoints.restore_params(directory)
  assert (config, step) == (CONFIG, 2)
  assert_same(params, make_state(2).params)
  mesh = sharding.make_mesh(2, 2, 2)
  params, _, step = checkpoints.restore_params(
    directory, mesh=mesh, dtype=jnp.bfloat16, step=1
  )
  assert step == 1
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(1).params)
  assert_same(params, rounded)
  places = sharding.param_shardings(CONFIG, mesh)
  assert jax.tree.map(lambda x: x.sharding, params) == places


def test_weights_that_were_saved_alone_come_back(tmp_path):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(0).params)
  checkpoints.save_params(tmp_path, params)
  checkpoints.write_model_files(tmp_path, CONFIG, tokenizer_dir=None)
  assert not checkpoints.is_training(tmp_path)
  found = checkpoints.restore_params(tmp_path)
  assert (found.config, found.step) == (CONFIG, 0)
  assert_same(found.params, params)
  with pytest.raises(CheckpointError, match='step is asked for only'):
    restore(tmp_path)


def test_reading_weights_passes_over_damage_and_moves_nothing(
  directory, caplog
):
  checkpoints.write_model_files(directory, CONFIG, tokenizer_dir=None)
  assert checkpoints.is_training(directory)
  flip(largest_file(directory / '2' / 'params'))
  params, _, step = checkpoints.restore_params(directory)
  assert step == 1
  assert_same(params, make_state(1).params)
  assert f'{directory / "2"} is damaged' in caplog.text
  assert checkpoints.steps(directory) == [1, 2]
  with pytest.raises(CheckpointError, match='2: params'):
    checkpoints.restore_params(directory, step=2)


def test_what_cannot_be_read_as_weights_is_named(directory, tmp_path):
  with pytest.raises(hf_files.FolderError, match=r'config\.json'):
    checkpoints.restore_params(directory)
  checkpoints.write_model_files(directory, CONFIG, tokenizer_dir=None)
  with pytest.raises(CheckpointError, match=r'expected step 5 .* \[1, 2\]'):
    checkpoints.restore_params(directory, step=5)
  with pytest.raises(CheckpointError, match=r'expected a step .* found none'):
    checkpoints.restore_params(tmp_path / 'nowhere')
  other = specs.Config(**{**CONFIG.__dict__, 'num_hidden_layers': 3})
  checkpoints.write_model_files(directory, other, tokenizer_dir=None)
  with pytest.raises(CheckpointError, match=r'shape \[2, 48, 32\], not \(3, '):
    checkpoints.restore_params(directory)


def test_a_model_is_a_folder_of_either_kind(directory, tmp_path):
  params = make_state(2).params
  hf.save(tmp_path / 'hf', params, CONFIG)
  checkpoints.write_model_files(directory, CONFIG, tokenizer_dir=None)
  for path in (tmp_path / 'hf', directory):
    found, config = checkpoints.load_model(path, dtype=jnp.float32)
    assert_same(found, params)
    assert config == CONFIG


def test_model_files_say_what_an_export_needs(directory):
  checkpoints.write_model_files(
    directory, CONFIG, tokenizer_dir=None, dtype=jnp.float32
  )
  content = json.loads((directory / 'hf' / 'config.json').read_text())
  assert content['dtype'] == 'float32'
  assert hf_files.read_config(directory / 'hf') == CONFIG


# Processes that die, and several of them.

WRITER = """
  import sys
  sys.path.insert(0, {tests!r})
  import jax, jax.numpy as jnp
  from training.checkpoints_test import Checkpointer, make_state
  checkpointer = Checkpointer({directory!r}, keep=2)
  state = make_state(0)
  for step in range(1, 10_000):
    state = jax.tree.map(lambda x: jnp.full_like(x, step), state)
    checkpointer.save(step, state, {{'cursor': step}})
    print(step, flush=True)
"""


def run_python(program, env=None, **kwargs):
  tests = str(pathlib.Path(__file__).parents[1])
  program = textwrap.dedent(program.format(tests=tests, **kwargs))
  return subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, **(env or {})},
  )


@pytest.mark.parametrize('seed', [0, 1])
def test_a_kill_at_any_moment_leaves_whole_steps(tmp_path, seed):
  rng = random.Random(seed)
  directory = tmp_path / 'c'
  writer = run_python(
    WRITER, env={'JAX_NUM_CPU_DEVICES': '1'}, directory=str(directory)
  )
  for _ in range(rng.randint(3, 6)):  # It is under way.
    assert writer.stdout.readline()
  time.sleep(rng.random() * 0.3)
  writer.send_signal(signal.SIGKILL)
  written = [int(line) for line in writer.communicate()[0].split()]
  restored = restore(directory)
  # The last save that returned may have been in progress; the one before not.
  assert restored.step >= max([*written, 3]) - 1
  assert restored.extra == {'cursor': restored.step}
  for x in jax.tree.leaves(restored.state):
    np.testing.assert_array_equal(x, restored.step)
  assert not list(directory.glob('*damaged*'))


PROCESS = """
  import sys
  sys.path.insert(0, {tests!r})
  import jax
  jax.distributed.initialize('localhost:{port}', 2, {process})
  from qed.models import sharding
  from training import checkpoints_test as t
  mesh = sharding.make_mesh(2, 1, 2)
  read_batch = t.checkpoints._read_batch
  def fail(path, batch):
    if path.name == '2':
      raise OSError('Stale file handle')
    return read_batch(path, batch)
  if {process} == 1:
    t.checkpoints._read_batch = fail
  checkpointer = t.Checkpointer({directory!r}, keep=2)
  restored = checkpointer.restore_latest_valid(t.abstract(mesh))
  for step in (5, 6):
    checkpointer.save(step, restored.state, restored.extra)
  checkpointer.close()
  t.checkpoints.write_model_files({directory!r}, t.CONFIG, tokenizer_dir=None)
  params, config, _ = t.checkpoints.restore_params({directory!r}, mesh=mesh)
  t.hf.save({folder!r}, params, config, max_shard_bytes=9000)
  params, _ = t.hf.load({folder!r}, mesh=mesh, dtype=None)
  found = [t.fingerprint(x) for x in jax.tree.leaves(params)]
  print([restored.step, found], flush=True)
"""


def test_two_processes_read_and_write_what_one_does(directory, tmp_path):
  """One of them cannot read the newest step, so that neither takes it."""
  port = random.Random(time.time()).randint(20_000, 60_000)
  processes = [
    run_python(
      PROCESS,
      env={'JAX_NUM_CPU_DEVICES': '2'},
      directory=str(directory),
      folder=str(tmp_path / 'hf'),
      port=port,
      process=process,
    )
    for process in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0]
  prints = [fingerprint(x) for x in jax.tree.leaves(make_state(1).params)]
  for output in outputs:
    # The transport prints too.
    assert json.loads(output.splitlines()[-1]) == [1, prints]
  assert checkpoints.steps(directory) == [5, 6]
  restored = restore(directory)
  assert restored.extra == {'cursor': 1}
  assert_same(restored.state, make_state(1))
  params, _ = hf.load(tmp_path / 'hf', dtype=None)
  assert_same(params, make_state(1).params)
