"""XManager's local executor, for which `make test-xmanager` makes a place."""

import importlib.util
import json
import os
import pathlib
import sqlite3
import subprocess
import sys

import pytest
from absl import app

from launch import xmanager_local
from launch.experiment import Job, Tpu, WorkUnit
from launch.xmanager_local import XManager

REPOSITORY = pathlib.Path(__file__).parents[2]
IS_THERE = importlib.util.find_spec('xmanager') is not None

needs_xmanager = pytest.mark.skipif(
  not IS_THERE, reason='xmanager is not installed: make test-xmanager'
)


def make_unit(*services, **others):
  job = Job(name='main', program='sft', flags={'config': "a b'c"}, **others)
  return WorkUnit(name='a-1-0a1b2c3d', workdir='runs/a', jobs=(job, *services))


def test_the_command_line_of_the_program_is_what_xmanager_is_given():
  rendered = XManager(python='/usr/bin/python').render(make_unit())
  assert rendered.files == {}
  assert rendered.commands == (
    ('/usr/bin/python', '-m', 'qed.sft', "--config=a b'c"),
  )


def test_what_needs_more_than_one_process_is_refused():
  service = Job(
    name='judge', program='serve', flags={}, is_service=True, port_flag='port'
  )
  with pytest.raises(app.UsageError, match='expected --executor=local'):
    XManager().render(make_unit(service))
  with pytest.raises(app.UsageError, match='expected --executor=local'):
    XManager().render(make_unit(num_processes=2))
  with pytest.raises(app.UsageError, match='which this machine is not'):
    XManager().render(make_unit(requirements=Tpu('v5p', '2x4x4')))


@pytest.mark.parametrize(
  ('message', 'code'),
  [
    ('Process exited with non-zero code: 42', 42),
    ('Process exited with non-zero code: -9', 137),
    ('Somebody pulled the plug.', 1),
  ],
)
def test_its_message_has_the_exit_code(message, code):
  assert xmanager_local._code_of(RuntimeError(message)) == code


@pytest.mark.skipif(IS_THERE, reason='xmanager is installed')
def test_it_says_how_to_install_xmanager():
  with pytest.raises(app.UsageError, match=r"pip install '\.\[xm\]'"):
    XManager().submit([make_unit()])


CONFIG = """
from experiments import base

FOLDER = {folder!r}


def get_config():
  return base.override(
    base.sft(),
    {{
      'model.path': FOLDER + '/model',
      'model.variant': '',
      'model.dtype': 'float32',
      'model.remat': 'none',
      'mesh.data': 1,
      'data.paths': (FOLDER + '/traces.jsonl',),
      'data.samples_per_step': 2,
      'data.num_epochs': 0,
      'data.max_tokens': 96,
      'data.validation_frac': 0.0,
      'packing.num_rows': 2,
      'packing.row_length': 128,
      'training.total_steps': 3,
      'training.checkpoint_interval_steps': 3,
      'training.eval_interval_steps': 0,
    }},
  )
"""


@pytest.fixture
def tiny(tmp_path):
  """A config, and the model, tokenizer and traces that it names."""
  import jax

  from qed.data import templates, tokenizer
  from qed.models import hf, specs

  traces = [
    {
      'problem_id': str(n),
      'statement': f'Prove that {n} + 1 = {n + 1}.',
      'reasoning': f'I count to {n + 1}.',
      'proof': f'1 after {n} is {n + 1}.',
    }
    for n in range(30)
  ]
  lines = [json.dumps(trace) for trace in traces]
  (tmp_path / 'traces.jsonl').write_text('\n'.join(lines))
  words = tokenizer.train_sentencepiece(
    [templates.text('prove'), *lines], max_vocab_size=440
  )
  words.save(tmp_path / 'tokenizer')
  model = specs.Config(
    vocab_size=448, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_theta=1e6,
    rms_norm_eps=1e-6, tie_word_embeddings=False,
  )  # fmt: skip
  hf.save(
    tmp_path / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=tmp_path / 'tokenizer',
  )
  (tmp_path / 'tiny.py').write_text(CONFIG.format(folder=str(tmp_path)))
  return tmp_path


def launch(folder, *flags):
  return subprocess.run(
    [
      sys.executable, '-m', 'launch.sft', f'--config={folder}/tiny.py',
      f'--root={folder}/runs', '--executor=xm', *flags,
    ],
    cwd=REPOSITORY,
    env={**os.environ, 'HOME': str(folder), 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip


@needs_xmanager
def test_a_work_unit_runs_under_xmanager(tiny):
  done = launch(tiny)
  assert done.returncode == 0, done.stdout + done.stderr
  (run,) = (tiny / 'runs').iterdir()
  metrics = (run / 'metrics.jsonl').read_text()
  assert json.loads(metrics.splitlines()[-1])['step'] == 3
  # XManager has the experiment in its own record, under the work unit's name.
  (record,) = (tiny / '.xmanager').glob('*.sqlite3')
  with sqlite3.connect(record) as connection:
    rows = connection.execute('SELECT experiment_title FROM experiment')
    assert rows.fetchall() == [(run.name,)]
  connection.close()
  # The same command goes on, and finds that nothing is left to do.
  assert launch(tiny).returncode == 0
  assert (run / 'metrics.jsonl').read_text() == metrics


@needs_xmanager
def test_the_exit_code_of_a_program_comes_through(tiny):
  done = launch(tiny, '--sweep=packing.num_rows=0')
  assert done.returncode == 2, done.stdout + done.stderr
  (tiny / 'traces.jsonl').unlink()
  done = launch(tiny)
  assert done.returncode == 2, done.stdout + done.stderr
  assert 'traces.jsonl' in done.stdout
