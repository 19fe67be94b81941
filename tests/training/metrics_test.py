"""What is written can be read, whatever happened to the writer."""

import json
import math
import sys

import jax
import numpy as np
import pytest

from qed.models import specs
from qed.training import metrics
from qed.training.metrics import Progress, Writer

# Heads times their size is not the width, as in Qwen3-4B.
MODEL = specs.Config(
  vocab_size=10,
  hidden_size=4,
  intermediate_size=6,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)


def write(workdir, *records, first_step=1):
  with Writer(workdir, first_step=first_step) as writer:
    for step, values in records:
      writer.write(step, values)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  with Writer(tmp_path, first_step=1) as writer:
    writer.write(1, {'loss': 0.5})
    line = (tmp_path / 'metrics.jsonl').read_text()
    assert json.loads(line) == {'step': 1, 'loss': 0.5}
    assert line.endswith('\n')


class Wandb:
  """Remembers what it is told, as the package of that name."""

  def __init__(self):
    self.runs, self.logged, self.finished = [], [], 0

  def init(self, **arguments):
    self.runs.append(arguments)
    return self

  def log(self, values, *, step):
    self.logged.append((step, values))

  def finish(self):
    self.finished += 1


def test_a_project_is_told_the_same_and_knows_a_run_that_goes_on(
  tmp_path, monkeypatch
):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  for workdir, step in ((tmp_path / 'a', 1), (tmp_path / 'a', 2)):
    with Writer(workdir, first_step=step, wandb_project='p') as writer:
      writer.write(step, {'loss': 0.5})
  with Writer(tmp_path / 'b', first_step=1, wandb_project='p'):
    pass
  assert wandb.logged == [(1, {'loss': 0.5}), (2, {'loss': 0.5})]
  assert wandb.finished == 3
  first, second, other = wandb.runs
  assert first == second
  assert first['project'] == 'p'
  assert first['resume'] == 'allow'
  assert first['id'] != other['id']


def test_a_project_without_the_package_is_refused(monkeypatch):
  monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda name: None)
  metrics.check_wandb('')
  with pytest.raises(ValueError, match=r"pip install 'qed\[wandb\]'"):
    metrics.check_wandb('p')


def test_the_last_line_of_a_step_counts(tmp_path):
  write(tmp_path, (1, {'loss': 3.0}), (2, {'loss': 2.0, 'old': 1.0}))
  write(tmp_path, (2, {'loss': 1.0}), (3, {'loss': 0.5}), first_step=2)
  assert metrics.read(tmp_path / 'metrics.jsonl') == {
    1: {'loss': 3.0},
    2: {'loss': 1.0},
    3: {'loss': 0.5},
  }


def test_float32_values_come_back_exactly(tmp_path):
  value = float(np.float32(1 / 3))
  write(tmp_path, (1, {'loss': value}))
  assert metrics.read(tmp_path / 'metrics.jsonl')[1]['loss'] == value


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_valid_json(tmp_path, value):
  write(tmp_path, (1, {'loss': value}))
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(line, parse_constant=pytest.fail)['loss'] is None
  assert math.isnan(metrics.read(tmp_path / 'metrics.jsonl')[1]['loss'])


def test_a_line_cut_by_a_kill_is_forgotten(tmp_path):
  write(tmp_path, (1, {'loss': 3.0}))
  path = tmp_path / 'metrics.jsonl'
  with path.open('a') as file:
    file.write('{"step": 2, "lo')
  assert metrics.read(path) == {1: {'loss': 3.0}}
  write(tmp_path, (2, {'loss': 2.0}), first_step=2)
  assert metrics.read(path) == {1: {'loss': 3.0}, 2: {'loss': 2.0}}


def test_a_file_that_is_one_cut_line_starts_anew(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"st')
  write(tmp_path, (1, {'loss': 2.0}))
  assert metrics.read(tmp_path / 'metrics.jsonl') == {1: {'loss': 2.0}}


@pytest.mark.parametrize('line', ['{"step": 1', '[]', '{"loss": 1.0}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(f'{{"step": 1}}\n{line}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl:2: expected a JSON'):
    metrics.read(path)


def test_tensorboard_receives_every_scalar(tmp_path):
  from tensorboardX.proto import event_pb2

  write(tmp_path, (1, {'loss': 0.25}), (2, {'loss': 0.125}))
  (file,) = (tmp_path / 'tensorboard').iterdir()
  data, found = file.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], 'little')
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]
    found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
  assert found == [(1, 'loss', 0.25), (2, 'loss', 0.125)]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  write(tmp_path / 'run', (1, {'loss': 3.0}))
  assert not (tmp_path / 'run').exists()


def test_without_a_terminal_there_are_few_lines_with_an_eta(
  capsys, monkeypatch
):
  clock = iter([100.0, *(100.0 + 4 * step for step in range(1, 6))])
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(clock))
  with Progress(first_step=5, num_steps=10) as progress:
    for step in range(6, 11):
      progress.show(step, {'loss': f'{step}.0'})
  assert capsys.readouterr().out.splitlines() == [
    'step 6/10  loss 6.0  eta 0:00:16',
    'step 9/10  loss 9.0  eta 0:00:04',
    'step 10/10  loss 10.0  eta 0:00:00',
  ]


def test_a_terminal_shows_one_bar(capsys, monkeypatch):
  monkeypatch.setattr(metrics.sys.stdout, 'isatty', lambda: True)
  with Progress(first_step=0, num_steps=2) as progress:
    progress.show(1, {'loss': '1.5'})
    progress.show(2, {'loss': '1.25'})
  out = capsys.readouterr().out
  assert '2/2' in out
  assert 'loss 1.25' in out


def test_flops_are_those_counted_by_hand():
  """Two samples, of 1 and 3 positions, term by term."""
  per_layer = 4 * 32 + 2 * (4 * 16) + 32 * 4 + 3 * (4 * 6)  # q, k, v, o, mlp.
  matmul = 3 * per_layer + 10 * 4  # Layers, and the head.
  assert metrics.num_matmul_params(MODEL) == matmul
  pairs = 1 + (1 + 2 + 3)  # (query, key) pairs that are visible.
  forward = 2 * matmul * 4 + 3 * pairs * (2 * 32 + 2 * 32)
  assert metrics.train_flops(MODEL, np.array([1, 3])) == 3 * forward


def test_an_untied_head_counts_once_and_a_look_up_never():
  import dataclasses

  untied = dataclasses.replace(MODEL, tie_word_embeddings=False)
  assert metrics.num_matmul_params(untied) == metrics.num_matmul_params(MODEL)


def test_flops_of_qwen3_4b_at_65536_are_the_published_ones():
  """82.1 GFLOP per token: exact causal, with 32 heads of 128."""
  model = specs.VARIANTS['qwen3-4b']
  per_token = metrics.train_flops(model, np.array([65_536])) / 65_536
  assert per_token == pytest.approx(82.1e9, rel=1e-3)


def test_segments_are_told_apart_across_rows_and_microbatches():
  segment_ids = np.array([[[1, 1, 2, 0]], [[1, 2, 2, 2]], [[0, 0, 0, 0]]])
  lengths = metrics.segment_lengths(segment_ids)
  assert sorted(lengths) == [1, 1, 2, 3]


def test_mfu_is_flops_over_time_and_peak(monkeypatch):
  kind = jax.devices()[0].device_kind
  lengths = np.array([1, 3])
  assert 'time/mfu' not in metrics.throughput(MODEL, lengths, 2.0)
  monkeypatch.setitem(metrics.PEAK_FLOPS, kind, 1e6)
  figures = metrics.throughput(MODEL, lengths, 2.0)
  assert figures['time/tokens_per_sec'] == 2.0
  expected = metrics.train_flops(MODEL, lengths) / (2.0 * 8 * 1e6)
  assert figures['time/mfu'] == pytest.approx(expected)
