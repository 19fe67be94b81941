"""`qed sft` from files to files, and again after it was stopped anywhere.

What is compared with an uninterrupted run is compared bit for bit: the weights,
the moments, and every metric that does not depend on the clock.
"""

import inspect
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import app

from experiments import base
from qed import cli, config, schema, sft
from qed.data import tokenizer
from qed.models import hf, specs
from qed.training import checkpoints, metrics, rundir, steps
from tests import tiny_model

REPOSITORY = pathlib.Path(__file__).parents[1]
NUM_STEPS = 8
INTERVAL = 2


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A compilation cache, since every start compiles the same programs."""
  path = str(tmp_path_factory.mktemp('cache'))
  with tiny_model.compiled_in(path):
    yield path


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A folder with a model, its tokenizer and 81 traces."""
  folder = tmp_path_factory.mktemp('tiny')
  traces = [
    {
      'problem_id': f'{a}+{b}',
      'statement': f'Prove that {a} + {b} = {a + b}.',
      'reasoning': f'I count to {a + b}.',
      'proof': f'{b} after {a} is {a + b}.',
    }
    for a in range(9)
    for b in range(9)
  ]
  write_traces(folder / 'traces.jsonl', traces)
  texts = [' '.join(map(str, trace.values())) for trace in traces]
  tiny_model.write(folder, texts)
  return folder


def write_traces(path, traces):
  path.write_text(''.join(json.dumps(trace) + '\n' for trace in traces))


def read_traces(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def arm(tiny, **changes):
  """The values of a run of seconds."""
  return {
    'model.path': str(tiny / 'model'),
    'model.variant': '',
    'model.dtype': 'float32',
    'model.remat': 'none',
    'mesh.data': 1,
    'data.paths': (str(tiny / 'traces.jsonl'),),
    'data.samples_per_step': 4,
    'data.num_epochs': 0,
    'data.max_tokens': 100,
    'packing.num_rows': 2,
    'packing.row_length': 198,
    'packing.microbatch_counts': (1, 2),
    'optim.peak_lr': 1e-2,
    'training.total_steps': NUM_STEPS,
    'training.checkpoint_interval_steps': INTERVAL,
    'training.eval_interval_steps': 4,
    **changes,
  }


def make_config(tiny, **changes):
  return config.build(base.override(base.sft(), arm(tiny, **changes)))


def train(tiny, workdir, **changes):
  return sft.train(make_config(tiny, **changes), str(workdir))


def read_metrics(workdir):
  """Every metric that does not depend on the clock."""
  return {
    step: {k: v for k, v in values.items() if not k.startswith('time/')}
    for step, values in metrics.read(workdir / 'metrics.jsonl').items()
  }


def read_summary(workdir):
  summary = json.loads((workdir / 'summary.json').read_text())
  del summary['secs']
  return summary


def read_state(workdir, step=NUM_STEPS):
  """The fingerprints of every array of a checkpoint."""
  manifest = workdir / 'checkpoints' / str(step) / 'manifest' / 'metadata'
  return json.loads(manifest.read_text())['arrays']


def assert_same_run(found, expected):
  assert read_metrics(found) == read_metrics(expected)
  assert read_state(found) == read_state(expected)
  assert read_summary(found) == read_summary(expected)
  best = [
    checkpoints.restore_params(workdir / 'checkpoints' / 'best')
    for workdir in (found, expected)
  ]
  assert best[0].step == best[1].step
  jax.tree.map(np.testing.assert_array_equal, best[0].params, best[1].params)


@pytest.fixture(scope='module')
def straight(cache, tiny, tmp_path_factory):
  """A run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  assert train(tiny, workdir) == cli.DONE
  return workdir


@pytest.fixture
def at_step(monkeypatch):
  """Does something right after the metrics of a step were written."""

  def plan(step, action):
    write = metrics.Writer.write

    def write_and_act(writer, number, values):
      write(writer, number, values)
      if number == step:
        monkeypatch.setattr(metrics.Writer, 'write', write)
        action()

    monkeypatch.setattr(metrics.Writer, 'write', write_and_act)

  return plan


# A run.


def test_a_run_leaves_what_it_promises(straight, tiny):
  content = json.loads((straight / 'config.json').read_text())
  assert config.build(content['config']) == make_config(tiny)
  assert content['packages']['jax'] == jax.__version__
  assert len(content['git_commit'].rstrip('+')) in (0, 40)
  assert (straight / 'tensorboard').is_dir()
  assert checkpoints.steps(straight / 'checkpoints') == [6, 8]
  records = read_metrics(straight)
  assert list(records) == list(range(1, NUM_STEPS + 1))
  assert [s for s in records if 'validation/loss' in records[s]] == [4, 8]
  losses = [values['loss'] for values in records.values()]
  assert losses[0] == pytest.approx(np.log(448), rel=0.05)
  assert losses[-1] < 0.8 * losses[0]
  assert all(values['packing/num_samples'] == 4 for values in records.values())


def test_a_summary_is_the_run_in_one_object(straight):
  records, summary = read_metrics(straight), read_summary(straight)
  assert summary['steps'] == NUM_STEPS
  assert summary['num_skipped'] == 0
  assert summary['tokens'] == sum(r['tokens'] for r in records.values())
  assert summary['validation_loss'] == records[8]['validation/loss']
  assert summary['best_loss'] == min(
    records[step]['validation/loss'] for step in (4, 8)
  )


def test_the_best_weights_are_those_of_the_lowest_loss(straight, tiny):
  summary = read_summary(straight)
  best = checkpoints.restore_params(straight / 'checkpoints' / 'best')
  assert best.step == summary['best_step']
  last = checkpoints.restore_params(straight / 'checkpoints', step=best.step)
  jax.tree.map(np.testing.assert_array_equal, best.params, last.params)
  words = tokenizer.load(straight / 'checkpoints' / 'best' / 'hf')
  assert words.vocab_size == tokenizer.load(tiny / 'model').vocab_size


def test_only_the_assistant_is_imitated(straight, tiny):
  """Reasoning, proof, three control tokens and the newlines between them."""
  words = tokenizer.load(tiny / 'model')
  traces = read_traces(tiny / 'traces.jsonl')
  lengths = {
    len(words.encode(t['reasoning'] + '\n'))
    + len(words.encode('\n\n' + t['proof']))
    + 2
    for t in traces
  }
  per_sample = read_metrics(straight)[1]['tokens'] / 4
  assert min(lengths) <= per_sample <= max(lengths)


def test_a_complete_run_is_left_as_it_is(straight, tiny, capsys):
  before = (straight / 'metrics.jsonl').read_bytes()
  assert train(tiny, straight) == cli.DONE
  assert 'restored step 8' in capsys.readouterr().out
  assert (straight / 'metrics.jsonl').read_bytes() == before


def test_epochs_give_the_number_of_steps(cache, tiny, tmp_path):
  few = read_traces(tiny / 'traces.jsonl')[:15]
  write_traces(tmp_path / 'few.jsonl', few)
  changes = {
    'data.paths': (str(tmp_path / 'few.jsonl'),),
    'data.num_epochs': 2,
    'data.validation_frac': 0.0,
    'training.total_steps': 0,
    'training.eval_interval_steps': 0,
  }
  assert train(tiny, tmp_path / 'run', **changes) == cli.DONE
  records = read_metrics(tmp_path / 'run')
  assert len(records) == 8  # 30 samples, 4 at a time.
  assert records[8]['packing/num_samples'] == 2
  assert checkpoints.steps(tmp_path / 'run' / 'checkpoints' / 'best') == []


def test_a_run_begins_with_random_weights_if_there_are_none(
  cache, tiny, tmp_path, monkeypatch
):
  monkeypatch.setitem(specs.VARIANTS, 'qwen3-0.6b', tiny_model.config())
  changes = {
    'model.path': '',
    'model.variant': 'qwen3-0.6b',
    'data.tokenizer': str(tiny / 'tokenizer'),
  }
  losses = []
  for seed in (0, 1):
    workdir = tmp_path / str(seed)
    assert train(tiny, workdir, **changes, **{'training.seed': seed}) == 0
    losses.append(read_metrics(workdir)[1]['loss'])
  assert losses == pytest.approx([np.log(448)] * 2, rel=0.05)
  assert losses[0] != losses[1]


def test_every_field_of_the_config_is_read():
  """A field is read by name, or with the whole of its section."""
  source = pathlib.Path(sft.__file__).read_text()
  source += inspect.getsource(steps.Compute.from_config)
  named = re.findall(r'config\.(\w+\.\w+)', source)
  whole = re.findall(r'asdict\(config\.(\w+)\)', source)
  unread = {
    path
    for path in schema.paths(config.SftConfig)
    if '.' in path and path not in named and path.split('.')[0] not in whole
  }
  assert unread == set()


# Stopped, and started again.


@pytest.mark.parametrize('step', [1, 3, 4, 7])
def test_sigterm_saves_at_the_next_boundary(
  straight, tiny, tmp_path, at_step, step, capsys
):
  handler = signal.getsignal(signal.SIGTERM)
  at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train(tiny, tmp_path) == cli.RESTART
  assert signal.getsignal(signal.SIGTERM) is handler
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] == step
  assert not (tmp_path / 'summary.json').exists()
  capsys.readouterr()
  assert train(tiny, tmp_path) == cli.DONE
  place = tmp_path / 'checkpoints'
  assert f'restored step {step} from {place}' in capsys.readouterr().out
  assert_same_run(tmp_path, straight)


@pytest.mark.parametrize('step', [1, 5])
def test_a_crash_costs_the_steps_since_the_last_checkpoint(
  straight, tiny, tmp_path, at_step, step, capsys
):
  def crash():
    raise RuntimeError('a host went away')

  at_step(step, crash)
  with pytest.raises(RuntimeError, match='went away'):
    train(tiny, tmp_path)
  assert train(tiny, tmp_path) == cli.DONE
  start = 'this is step 0' if step < INTERVAL else 'restored step 4'
  assert start in capsys.readouterr().out
  assert_same_run(tmp_path, straight)


# orbax gives up at the first array that it cannot read; those that it is still
# reading then find its event loop closed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
  straight, tiny, tmp_path, at_step, capsys, caplog
):
  at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train(tiny, tmp_path) == cli.RESTART
  for file in (tmp_path / 'checkpoints' / '6' / 'params').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:-100])
  assert train(tiny, tmp_path) == cli.DONE
  assert 'restored step 4' in capsys.readouterr().out
  assert 'damaged' in caplog.text
  assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh_and_other_rows(
  straight, tiny, tmp_path, at_step, capsys
):
  at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train(tiny, tmp_path) == cli.RESTART
  changes = {'mesh.data': 2, 'mesh.tensor': 2, 'packing.num_rows': 4}
  assert train(tiny, tmp_path, **changes) == cli.DONE
  assert 'mesh.data = 2, and was 1' in capsys.readouterr().out
  found, expected = read_metrics(tmp_path), read_metrics(straight)
  for step in range(1, NUM_STEPS + 1):
    for name in ('loss', 'optim/grad_norm'):
      assert found[step][name] == pytest.approx(expected[step][name], rel=1e-3)


# A gradient that is not finite.


@pytest.fixture(scope='module')
def poisoned(tiny, tmp_path_factory):
  """A model to which the token of one problem's proof is not a number.

  Its id is taken from a statement that only some problems have.
  """
  folder = tmp_path_factory.mktemp('poisoned')
  words = tokenizer.load(tiny / 'model')
  params, model = hf.load(tiny / 'model', dtype=np.float32)
  row = int(words.encode('8')[-1])
  params['embedding'] = params['embedding'].at[row].set(np.nan)
  hf.save(folder / 'model', params, model, tokenizer_dir=tiny / 'tokenizer')
  return folder / 'model'


def test_too_many_bad_gradients_end_the_run_and_name_the_problems(
  cache, tiny, poisoned, tmp_path, capsys
):
  changes = {
    'model.path': str(poisoned),
    'training.max_skipped_steps': 1,
    'training.eval_interval_steps': 0,
  }
  with pytest.raises(
    FloatingPointError, match='max_skipped_steps = 1'
  ) as error:
    train(tiny, tmp_path, **changes)
  records = read_metrics(tmp_path)
  skipped = [s for s, values in records.items() if values['optim/skipped']]
  assert len(skipped) == 2
  assert np.isnan(records[skipped[0]]['loss'])
  text = str(error.value)
  assert f'step {skipped[1]}' in text
  assert text.count('tokens)') == 4
  assert any(f'{a}+8 (' in text or f'8+{a} (' in text for a in range(9))
  # The first one was told, and the run went on.
  assert f'step {skipped[0]}: the gradient was not finite' in (
    capsys.readouterr().out
  )


# What is refused.


def test_a_directory_of_another_run_is_refused(straight, tiny):
  changes = {'optim.peak_lr': 0.1, 'training.seed': 1}
  with pytest.raises(app.UsageError) as error:
    train(tiny, straight, **changes)
  text = str(error.value)
  assert 'optim.peak_lr = 0.1, and was 0.01' in text
  assert 'training.seed = 1, and was 0' in text
  assert 'model.path' not in text


def test_the_same_run_may_move_its_files(straight, tiny, tmp_path, capsys):
  moved = tmp_path / 'moved.jsonl'
  moved.write_bytes((tiny / 'traces.jsonl').read_bytes())
  assert train(tiny, straight, **{'data.paths': (str(moved),)}) == cli.DONE
  assert f"data.paths = ['{moved}']" in capsys.readouterr().out


def test_other_samples_are_refused(straight, tiny, tmp_path):
  others = read_traces(tiny / 'traces.jsonl')
  others[0]['proof'] += ' Indeed.'
  write_traces(tmp_path / 'others.jsonl', others)
  changes = {'data.paths': (str(tmp_path / 'others.jsonl'),)}
  with pytest.raises(app.UsageError, match='on other data'):
    train(tiny, straight, **changes)


def test_a_run_whose_checkpoints_are_gone_is_refused(cache, tiny, tmp_path):
  assert train(tiny, tmp_path) == cli.DONE
  (tmp_path / 'checkpoints').rename(tmp_path / 'elsewhere')
  with pytest.raises(app.UsageError, match='has no checkpoint, though'):
    train(tiny, tmp_path)


def test_before_the_first_step_a_config_can_still_be_mended(
  cache, tiny, tmp_path
):
  with pytest.raises(app.UsageError, match='no place for'):
    train(tiny, tmp_path, **{'data.prompt': 'no place for it'})
  assert train(tiny, tmp_path) == cli.DONE


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.variant': 'qwen3-0.6b'}, 'vocab_size is 448 and not 151936'),
    ({'data.max_tokens': 5}, 'expected samples to train on, got none'),
    (
      {'data.validation_frac': 1e-9},
      '1e-09: no problem is held out',
    ),
    ({'data.chat_style': 'instruct'}, r"problem 0\+0: .*style='instruct'"),
    ({'data.prompt': 'answers'}, "did you mean 'answer'"),
    ({'mesh.data': -1}, 'packing.num_rows = 2: must be a multiple of the 8'),
    ({'mesh.data': 16, 'packing.num_rows': 16}, 'does not fit 8 devices'),
    ({'mesh.tensor': 8}, 'kv_heads=2 over tensor=8'),
    (
      {'mesh.context': -1, 'packing.row_length': 199},
      'packing.row_length = 199',
    ),
    (
      {
        'optim.warmup_frac': 0.0,
        'optim.warmup_steps': 50,
        'data.num_epochs': 1,
        'training.total_steps': 0,
      },
      'a warm-up shorter than the run of 19 steps',
    ),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_what_does_not_fit_is_told_before_the_first_step(
  tiny, tmp_path, changes, message
):
  with pytest.raises(app.UsageError, match=message):
    train(tiny, tmp_path, **changes)
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tiny, tmp_path):
  small = tiny_model.config(vocab_size=64)
  hf.save(
    tmp_path / 'small',
    specs.init(small, jax.random.key(0)),
    small,
    tokenizer_dir=tiny / 'tokenizer',
  )
  changes = {'model.path': str(tmp_path / 'small')}
  with pytest.raises(app.UsageError, match='ids below the 64 rows'):
    train(tiny, tmp_path / 'run', **changes)


def test_a_line_that_is_no_trace_is_refused_or_skipped(cache, tiny, tmp_path):
  lines = (tiny / 'traces.jsonl').read_text() + '{"statement": "No proof."}\n'
  (tmp_path / 'traces.jsonl').write_text(lines)
  changes = {'data.paths': (str(tmp_path / 'traces.jsonl'),)}
  with pytest.raises(app.UsageError, match=r'traces.jsonl:82: '):
    train(tiny, tmp_path / 'run', **changes)
  changes['data.malformed'] = 'skip'
  assert train(tiny, tmp_path / 'run', **changes) == cli.DONE


# Processes that are killed.


def start_process(tiny, cache, workdir, **environment):
  """`qed sft` by itself; its program is compiled once for all."""
  path = workdir.parent / 'killed.py'
  path.write_text(
    'from experiments import base\n'
    f'def get_config():\n  return base.override(base.sft(), {arm(tiny)!r})\n'
  )
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'qed.sft'),
      *(f'--config={path}', f'--workdir={workdir}'),
    ],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      **environment,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for_step(process, workdir, step):
  """Waits until the metrics of a step are written, or the process ended."""
  path = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 120
  while process.poll() is None:
    if path.exists() and max(metrics.read(path), default=0) >= step:
      return
    assert time.monotonic() < deadline
    time.sleep(0.005)


def kill_until_done(tiny, cache, workdir, kills, delays):
  """Starts a run again and again; each kill comes after new progress."""
  done = 0
  for number, delay in zip(kills, delays, strict=True):
    process = start_process(tiny, cache, workdir)
    wait_for_step(process, workdir, done + 1)
    time.sleep(delay)
    process.send_signal(number)
    output = process.communicate()[0]
    expected = {
      signal.SIGKILL: (-signal.SIGKILL, cli.DONE),
      signal.SIGTERM: (cli.RESTART, cli.DONE),
    }
    assert process.returncode in expected[number], output
    done = max(metrics.read(workdir / 'metrics.jsonl'))
    if done == NUM_STEPS:
      break
  process = start_process(tiny, cache, workdir)
  output = process.communicate()[0]
  assert process.returncode == cli.DONE, output


def test_a_killed_process_ends_like_one_that_was_not(
  straight, cache, tiny, tmp_path
):
  kill_until_done(tiny, cache, tmp_path / 'run', [signal.SIGKILL], [0.0])
  assert_same_run(tmp_path / 'run', straight)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_processes_killed_at_any_moment_end_like_one_that_was_not(
  straight, cache, tiny, tmp_path, seed
):
  rng = random.Random(seed)
  kills = [rng.choice([signal.SIGKILL, signal.SIGTERM]) for _ in range(3)]
  delays = [rng.uniform(0, 0.15) for _ in kills]  # A save takes about 0.1 s.
  kill_until_done(tiny, cache, tmp_path / 'run', kills, delays)
  assert_same_run(tmp_path / 'run', straight)


def run_together(tiny, cache, workdir, count, *, after=0, send=None):
  """Processes of one device each, as one run: their exit codes, their output.

  Args:
    after: the step after which something happens.
    send: (which process, the signal that it gets).
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  members = [
    start_process(
      tiny,
      cache,
      workdir,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES=str(count),
      JAX_PROCESS_ID=str(index),
      JAX_NUM_CPU_DEVICES='1',
    )
    for index in range(count)
  ]
  if send:
    wait_for_step(members[0], workdir, after)
    which, number = send
    members[which].send_signal(number)
  outputs = [process.communicate()[0] for process in members]
  return [process.returncode for process in members], outputs


@pytest.fixture
def several(tiny, monkeypatch):
  """Makes runs long enough to be told to stop, on all devices there are."""
  plain = arm
  changes = {
    'mesh.data': -1,
    'packing.num_rows': 4,
    'training.total_steps': 40,
  }
  monkeypatch.setitem(globals(), 'arm', lambda tiny: plain(tiny, **changes))
  return plain(tiny, **changes)


def assert_alike(found, expected):
  """The same run, but for the order in which devices are summed.

  The first steps agree to float32's rounding; every step makes more of it, in
  the gradient's norm (seen: 3e-4 at step 34) more than elsewhere (3e-5).
  """
  theirs, ours = read_metrics(expected), read_metrics(found)
  assert sorted(ours) == sorted(theirs) == list(range(1, 41))
  for step, record in theirs.items():
    early = step <= 5
    for name, value in record.items():
      rel = 2e-3 if name == 'optim/grad_norm' else 1e-4
      rel = 5e-6 if early else 2e-5 if name == 'loss' else rel
      assert ours[step][name] == pytest.approx(value, rel=rel, abs=1e-7), name
    assert ours[step].keys() == record.keys()


@pytest.mark.slow
def test_several_processes_train_like_one_and_go_on_as_others(
  cache, tiny, tmp_path, several
):
  """Two, four, and one after the other: stopped through any of them."""
  one = config.build(base.override(base.sft(), several | {'mesh.data': 2}))
  assert sft.train(one, str(tmp_path / 'one')) == cli.DONE
  for count in (2, 4):
    workdir = tmp_path / f'straight{count}'
    codes, outputs = run_together(tiny, cache, workdir, count)
    assert codes == [cli.DONE] * count, outputs
    assert_alike(workdir, tmp_path / 'one')
    assert outputs[0].count('complete: ') == 1
    assert not any('complete: ' in output for output in outputs[1:])
  workdir = tmp_path / 'run'
  for count, which, after in ((2, 1, 2), (4, 3, 14), (2, 0, 22)):
    codes, outputs = run_together(
      tiny, cache, workdir, count, after=after, send=(which, signal.SIGTERM)
    )
    assert codes == [cli.RESTART] * count, outputs
    assert ('restored step' in outputs[0]) == (after > 2)
  codes, outputs = run_together(tiny, cache, workdir, 1)
  assert codes == [cli.DONE], outputs
  assert_alike(workdir, tmp_path / 'one')


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_where_one_is_killed_the_other_ends_and_both_go_on_bit_for_bit(
  cache, tiny, tmp_path, several, killed
):
  codes, outputs = run_together(tiny, cache, tmp_path / 'straight', 2)
  assert codes == [cli.DONE] * 2, outputs
  began = time.monotonic()
  codes, outputs = run_together(
    tiny, cache, tmp_path / 'run', 2, after=5, send=(killed, signal.SIGKILL)
  )
  assert time.monotonic() - began < 300
  assert codes.pop(killed) == -signal.SIGKILL
  assert codes[0] in (cli.RESTART, -signal.SIGABRT), outputs
  codes, outputs = run_together(tiny, cache, tmp_path / 'run', 2)
  assert codes == [cli.DONE] * 2, outputs
  assert 'restored step' in outputs[0]
  assert read_metrics(tmp_path / 'run') == read_metrics(tmp_path / 'straight')
  assert read_state(tmp_path / 'run', 40) == read_state(
    tmp_path / 'straight', 40
  )


def test_a_commit_is_forty_digits_or_nothing():
  assert rundir.git_commit().rstrip('+').strip('0123456789abcdef') == ''
