"""`qed import` and `qed export`, as a user calls them."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy

from qed import cli
from qed.models import hf, specs
from qed.training import checkpoints
from qed.types import TrainState

REPOSITORY = pathlib.Path(__file__).parents[1]
CONFIG = specs.Config(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=5e6,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
  carried=(('bos_token_id', 1), ('eos_token_id', (2, 3))),
)
# No parser would keep these bytes.
TOKENIZER = {
  'tokenizer.json': b'{"model" :\r\n{}}',
  'tokenizer_config.json': b'{ "eos_token":"\xc3\xa9" }  ',
  'vocab.json': b'{}\n\n',
  'merges.txt': b'#version: 0.2\n',
  'generation_config.json': b'{"top_p":0.95,\n\n "eos_token_id": 2}',
}


def make_params(dtype, tied=True, seed=0):
  config = specs.Config(**{**CONFIG.__dict__, 'tie_word_embeddings': tied})
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), dtype),
    specs.abstract(config),
  )
  return params, config


@pytest.fixture
def hf_dir(tmp_path):
  return make_hf_dir(tmp_path / 'hf')


def make_hf_dir(folder, dtype=jnp.bfloat16, **options):
  params, config = make_params(dtype, options.pop('tied', True))
  hf.save(folder, params, config, **options)
  for name, content in TOKENIZER.items():
    (folder / name).write_bytes(content)
  return folder


def make_run(run_dir, numbers=(3, 4)):
  """What a training run leaves: float32 states, and its resolved config."""
  _, config = make_params(jnp.float32)
  checkpointer = checkpoints.Checkpointer(run_dir / 'checkpoints')
  for step in numbers:
    params, _ = make_params(jnp.float32, seed=step)
    opt_state = optax.adam(1e-3).init(params)
    checkpointer.save(step, TrainState(jnp.int32(step), params, opt_state))
  checkpointer.close()
  checkpoints.write_model_files(
    run_dir / 'checkpoints', config, tokenizer_dir=None
  )
  (run_dir / 'config.json').write_text('{"optim": {"peak_lr": 3e-05}}')
  return run_dir / 'checkpoints'


def qed(*arguments):
  return cli.main(['qed', *map(str, arguments)])


def read_tensors(folder):
  found = {}
  for file in folder.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


def assert_equal_bytes(found, expected):
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert found[name].dtype == tensor.dtype, name
    assert found[name].shape == tensor.shape, name
    assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('tied', [True, False])
def test_import_and_export_give_the_same_bytes(tmp_path, tied, dtype):
  source = make_hf_dir(
    tmp_path / 'hf', jnp.dtype(dtype), tied=tied, max_shard_bytes=20_000
  )
  checkpoint, target = tmp_path / 'checkpoint', tmp_path / 'out'
  assert qed('import', source, checkpoint) == 0
  assert qed('export', checkpoint, target, '--max_shard_bytes=9000') == 0
  assert len(list(target.glob('*.safetensors'))) > 2
  assert_equal_bytes(read_tensors(target), read_tensors(source))
  for name, content in TOKENIZER.items():
    assert (checkpoint / 'hf' / name).read_bytes() == content
    assert (target / name).read_bytes() == content
  config = (source / 'config.json').read_bytes()
  assert (target / 'config.json').read_bytes() == config
  assert not list(tmp_path.glob('.*'))


def test_mixed_types_are_kept(tmp_path, hf_dir):
  file = hf_dir / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  tensors = {
    name: t.astype(np.float32) if t.ndim == 1 else t
    for name, t in tensors.items()
  }
  safetensors.numpy.save_file(tensors, file)
  assert qed('import', hf_dir, tmp_path / 'checkpoint') == 0
  assert qed('export', tmp_path / 'checkpoint', tmp_path / 'out') == 0
  assert_equal_bytes(read_tensors(tmp_path / 'out'), tensors)


def test_an_imported_type_can_be_chosen(tmp_path, hf_dir):
  assert qed('import', '--dtype=float32', hf_dir, tmp_path / 'checkpoint') == 0
  params, _, step = checkpoints.restore_params(tmp_path / 'checkpoint')
  assert step == 0
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
  assert qed('export', tmp_path / 'checkpoint', tmp_path / 'out') == 0
  wide = {n: t.astype(np.float32) for n, t in read_tensors(hf_dir).items()}
  assert_equal_bytes(read_tensors(tmp_path / 'out'), wide)
  found = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert found['torch_dtype'] == 'float32'


def test_the_newest_weights_of_a_run_are_rounded_to_the_type_of_its_base(
  tmp_path,
):
  run = make_run(tmp_path / 'run')
  assert qed('export', run, tmp_path / 'out', '--base_model=Qwen/Qwen3-4B') == 0
  params, config = make_params(jnp.float32, seed=4)
  hf.save(tmp_path / 'expected', params, config, dtype=jnp.bfloat16)
  found = read_tensors(tmp_path / 'out')
  assert {t.dtype for t in found.values()} == {np.dtype(ml_dtypes.bfloat16)}
  assert_equal_bytes(found, read_tensors(tmp_path / 'expected'))
  facts = json.loads((tmp_path / 'out' / 'provenance.json').read_text())
  assert facts['step'] == 4
  assert facts['base_model'] == 'Qwen/Qwen3-4B'
  assert facts['run'] == {'optim': {'peak_lr': 3e-05}}


def test_an_older_step_can_be_exported_as_it_is(tmp_path):
  run = make_run(tmp_path / 'run')
  arguments = ('--step=3', '--dtype=float32')
  assert qed('export', *arguments, run, tmp_path / 'out') == 0
  params, config = make_params(jnp.float32, seed=3)
  hf.save(tmp_path / 'expected', params, config)
  assert_equal_bytes(
    read_tensors(tmp_path / 'out'), read_tensors(tmp_path / 'expected')
  )


def test_a_damaged_newest_step_is_said_and_passed_over(tmp_path, caplog):
  run = make_run(tmp_path / 'run')
  shutil.rmtree(run / '4' / 'params')
  assert qed('export', run, tmp_path / 'out') == 0
  facts = json.loads((tmp_path / 'out' / 'provenance.json').read_text())
  assert facts['step'] == 3
  assert 'is damaged' in caplog.text


def test_a_folder_without_a_tokenizer_is_imported_and_said(tmp_path, capsys):
  params, config = make_params(jnp.bfloat16)
  hf.save(tmp_path / 'hf', params, config)
  assert qed('import', tmp_path / 'hf', tmp_path / 'checkpoint') == 0
  assert 'has no tokenizer' in capsys.readouterr().out


def test_force_replaces_a_model_and_nothing_else(tmp_path, hf_dir, capsys):
  checkpoint = tmp_path / 'checkpoint'
  assert qed('import', hf_dir, checkpoint) == 0
  assert qed('import', hf_dir, checkpoint) == 2
  assert '--force' in capsys.readouterr().err
  (checkpoint / 'note').touch()
  assert qed('import', hf_dir, checkpoint, '--force') == 0
  assert not (checkpoint / 'note').exists()
  (tmp_path / 'home').mkdir()
  (tmp_path / 'home' / 'thesis').touch()
  assert qed('import', hf_dir, tmp_path / 'home', '--force') == 2
  assert (tmp_path / 'home' / 'thesis').exists()


def test_an_import_that_fails_leaves_nothing(tmp_path, hf_dir, monkeypatch):
  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoints, 'save_params', fail)
  with pytest.raises(OSError, match='No space left'):
    qed('import', hf_dir, tmp_path / 'checkpoint')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


MISTAKES = {
  'no arguments': (['import'], 'expected HF_DIR CHECKPOINT_DIR, got nothing'),
  'one argument': (['export', 'a'], 'expected CHECKPOINT_DIR HF_DIR, got a'),
  'no such folder': (
    ['import', '{tmp}/nowhere', '{tmp}/new'],
    'nowhere: expected a folder with config.json',
  ),
  'arguments exchanged': (
    ['export', '{tmp}/hf', '{tmp}/new'],
    'hf: expected a checkpoint directory, with hf/config.json',
  ),
  'run instead of checkpoints': (
    ['export', '{tmp}/run', '{tmp}/new'],
    'did you mean {tmp}/run/checkpoints?',
  ),
  'target that exists': (
    ['import', '{tmp}/hf', '{tmp}/hf'],
    'hf exists; --force replaces it',
  ),
  'misspelt flag': (
    ['import', '{tmp}/hf', '{tmp}/new', '--dtyp=float32'],
    'Did you mean: dtype',
  ),
  'type that does not exist': (
    ['import', '{tmp}/hf', '{tmp}/new', '--dtype=int8'],
    'bfloat16|float16|float32',
  ),
  'no bytes': (
    ['export', '{tmp}/run/checkpoints', '{tmp}/new', '--max_shard_bytes=0'],
    'max_shard_bytes',
  ),
  'step that is not there': (
    ['export', '{tmp}/run/checkpoints', '{tmp}/new', '--step=7'],
    'expected step 7',
  ),
  'broken weights': (
    ['import', '{tmp}/broken', '{tmp}/new'],
    'model.safetensors is truncated',
  ),
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Things that commands can be wrong about."""
  tmp = tmp_path_factory.mktemp('folders')
  make_hf_dir(tmp / 'hf')
  shutil.copytree(tmp / 'hf', tmp / 'broken')
  file = tmp / 'broken' / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-9])
  make_run(tmp / 'run', [1])
  return tmp


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_told_in_one_line(folders, capsys, mistake):
  arguments, expected = MISTAKES[mistake]
  before = sorted(path.name for path in folders.iterdir())
  assert qed(*(argument.format(tmp=folders) for argument in arguments)) == 2
  printed = capsys.readouterr()
  assert expected.format(tmp=folders) in printed.err
  assert printed.err.startswith(f'qed {arguments[0]}: ')
  assert printed.err.count('\n') == 1
  assert sorted(path.name for path in folders.iterdir()) == before


def test_a_mistake_is_told_before_jax_is_imported(folders):
  program = (
    'import sys\n'
    'from qed import cli\n'
    f'code = cli.main(["qed", "import", {str(folders / "hf")!r}, "/"])\n'
    'print(code, "jax" in sys.modules)\n'
  )
  printed = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=True,
    cwd=REPOSITORY,
  )
  assert printed.stdout.split() == ['2', 'False']


@pytest.mark.parametrize('name', ['import', 'export'])
def test_help_shows_the_command(name, capsys):
  with pytest.raises(SystemExit) as caught:
    qed(name, '--help')
  assert caught.value.code == 0
  assert f'  qed {name} ' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_qwen3_4b_goes_in_and_out_with_equal_bytes_and_12_gb(tmp_path):
  """8 GB of weights; needs 30 GB of disk for a few minutes."""
  if shutil.disk_usage(tmp_path).free < 30e9:
    pytest.skip('needs 30 GB of disk')
  printed = subprocess.run(
    [sys.executable, 'bench/import_export.py', f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    check=True,
    cwd=REPOSITORY,
  )
  found = json.loads(printed.stdout)
  assert found['is_bit_equal']
  assert found['num_params'] == 4_022_468_096
  for step in ('import', 'export'):
    assert found[step]['peak_rss_gb'] <= 12
