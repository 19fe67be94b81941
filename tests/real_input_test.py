"""`qed grpo` on olympiad problems, with Qwen's vocabulary and a real rubric.

Only the model (small, random) and the judge (its replies have the real form,
its scores are random) stand in for something. What a random model writes is
tokens from all of the vocabulary, up to the limit: as long as a proof, and
harder to bear for whatever has to decode, quote and store it.
"""

import collections
import contextlib
import csv
import json
import socket
import threading

import jax
import numpy as np
import pytest

from qed import cli, grpo
from qed.data import templates, tokenizer
from qed.grading import verdicts
from qed.miniature import judge_server
from qed.models import hf, specs
from qed.training import checkpoints, metrics

NUM_STEPS = 2
GROUP_SIZE = 4
PROMPT_TOKENS = 1_024
OUTAGE_SECS = 20  # As long as a minute for what is tested: it is 40 cool-downs.

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def proofbench(shared_data):
  return shared_data / 'imobench' / 'proofbench_v2.csv'


@pytest.fixture
def words(shared_data):
  return tokenizer.load(shared_data / 'qwen_bpe')


@pytest.fixture
def model_dir(tmp_path, words):
  """A random Qwen3 as narrow as can be, with all of Qwen's embedding."""
  model = specs.Config(
    vocab_size=151_936,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  )
  words.save(tmp_path / 'tokenizer')
  hf.save(
    tmp_path / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=tmp_path / 'tokenizer',
  )
  return tmp_path / 'model'


def train(proofbench, model_dir, workdir, *, judge_url, max_tokens, **changes):
  """The command line, from the published experiment."""
  values = {
    'model.path': model_dir,
    'model.variant': '',
    'model.dtype': 'float32',
    'mesh.data': 1,
    'problems.paths': proofbench,
    'problems.chat_style': 'instruct',  # It would never end its thinking.
    'problems.max_prompt_tokens': PROMPT_TOKENS,
    'rollout.problems_per_step': 1,
    'rollout.group_size': GROUP_SIZE,
    'rollout.max_lag': 1,
    'sampling.max_tokens': max_tokens,
    'sampler.placement': 'shared',
    'sampler.data': 1,
    'sampler.tensor': 1,
    'sampler.urls': '()',
    'engine.num_slots': 2 * GROUP_SIZE,
    'engine.page_size': 512,
    'engine.num_pages': 0,
    'engine.prefill_buckets': f'256,{PROMPT_TOKENS}',
    'engine.kv_dtype': 'float32',
    'evaluation.max_tokens': max_tokens,
    'judge.base_url': judge_url,
    'packing.num_rows': 1,
    'packing.row_length': PROMPT_TOKENS + max_tokens,
    'packing.microbatch_counts': '2,3,4',
    'optim.peak_lr': 1e-4,
    'training.total_steps': NUM_STEPS,
    'training.logprob_chunk_size': 256,
    'health.inspect_interval_steps': 1,
    'health.max_inspected_groups': 1,
    'health.stall_secs': 300,
    **changes,
  }
  return cli.run(
    grpo.main,
    [
      'qed grpo',
      '--config=experiments/rl_main.py',
      f'--workdir={workdir}',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ],
  )


@pytest.fixture
def at_the_root(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)


def rows(workdir, name):
  text = (workdir / f'{name}.jsonl').read_text('utf-8')
  return [json.loads(line) for line in text.split('\n')[:-1]]


def assert_complete(workdir):
  """Every step taken, every token accounted for, every figure finite."""
  assert checkpoints.steps(workdir / 'checkpoints') == [NUM_STEPS]
  found = metrics.read(workdir / 'metrics.jsonl')
  assert sorted(found) == [*range(1, NUM_STEPS + 1)]
  for record in found.values():
    assert all(np.isfinite(value) for value in record.values()), record
    assert record['lag/max'] <= 1
    # Both may be absent: step 2 finds its rollouts made before step 1 was.
    assert record.get('rollouts/ungraded', 0) == 0
    assert record.get('mismatch/fresh_max', 0) < 1e-4
  assert found[1]['mismatch/fresh_max'] > 0
  book = json.loads((workdir / 'ledger.json').read_text())
  used = book['trained'] + book['stale'] + sum(book['dropped'].values())
  assert book['generated'] == used + book['in_flight']
  assert book['generated'] == sum(
    len(row['token_ids']) for row in rows(workdir, 'rollouts')
  )
  batches = rows(workdir, 'batches')
  used = [group for batch in batches for group in batch['groups']]
  assert len({*used}) == len(used) == NUM_STEPS
  return book


def test_two_steps_on_olympiad_problems(
  at_the_root, proofbench, words, model_dir, tmp_path
):
  behavior = judge_server.Behavior(grades_unknown=True)
  questions = []
  with judge_server.start(behavior) as server:
    decide = server.decide
    server.decide = lambda text: (questions.append(text), decide(text))[1]
    code = train(
      proofbench,
      model_dir,
      tmp_path / 'run',
      judge_url=server.url,
      max_tokens=2_048,
    )
  assert code == cli.DONE
  book = assert_complete(tmp_path / 'run')
  rollouts = rows(tmp_path / 'run', 'rollouts')
  assert book['generated'] > 0.9 * 2_048 * len(rollouts)
  assert book['trained'] == book['generated']

  with proofbench.open(encoding='utf-8', newline='') as file:
    published = {row['Problem ID']: row for row in csv.DictReader(file)}
  asked = {templates.unfence('proof', text): text for text in questions}
  for row in rollouts:
    problem = published[row['problem_id']]
    prompt = words.decode(row['prompt_token_ids'])
    assert problem['Problem'].strip() in prompt
    question = asked[_as_quoted(row['text'])]
    assert templates.unfence('problem', question) == _as_quoted(
      problem['Problem']
    )
    assert templates.unfence('rubric', question) == _as_quoted(
      problem['Grading guidelines']
    )
    assert row['grade']['status'] == 'ok'
    assert row['reward'] == row['grade']['score'] / 7


def _as_quoted(text):
  """What the judge reads of a text."""
  return templates.unfence('quoted', templates.fence('quoted', text))


def test_a_judge_that_comes_late_is_waited_for(
  at_the_root, proofbench, model_dir, tmp_path
):
  """It is not there when the first proofs are, nor for a while after."""
  workdir = tmp_path / 'run'
  with late_judge(workdir) as (url, when_it_came):
    code = train(
      proofbench,
      model_dir,
      workdir,
      judge_url=url,
      max_tokens=256,
      **{
        # A judge is down after so many failures; 4 proofs have few to give.
        'judge.max_failures': 2,
        'judge.cooldown_secs': 0.5,
      },
    )
  assert code == cli.DONE
  assert_complete(workdir)
  # Nothing was given up, and nothing was tried over and over, meanwhile.
  assert when_it_came['rollouts'] == 0
  assert 2 <= when_it_came['calls'] <= 4 * GROUP_SIZE
  statuses = collections.Counter(
    row['grade']['status'] for row in rows(workdir, 'rollouts')
  )
  assert statuses == {'ok': NUM_STEPS * GROUP_SIZE}
  with verdicts.Verdicts(workdir / 'verdicts.sqlite') as store:
    book = store.ledger({})
  assert book.answered == NUM_STEPS * GROUP_SIZE
  assert book.calls == book.answered + sum(book.failed.values())
  assert book.open == 0


@contextlib.contextmanager
def late_judge(workdir):
  """Where a judge will be; it comes `OUTAGE_SECS` after the first question."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  is_over, found = threading.Event(), {}

  def serve():
    while not _num_calls(workdir):
      if is_over.wait(0.2):
        return
    if is_over.wait(OUTAGE_SECS):
      return
    found['calls'] = _num_calls(workdir)
    found['rollouts'] = len(rows(workdir, 'rollouts'))
    behavior = judge_server.Behavior(grades_unknown=True)
    with judge_server.start(behavior, port=port):
      is_over.wait()

  thread = threading.Thread(target=serve)
  thread.start()
  try:
    yield f'http://127.0.0.1:{port}/v1', found
  finally:
    is_over.set()
    thread.join()


def _num_calls(workdir):
  """How often the judge was asked."""
  path = workdir / 'verdicts.sqlite'
  if not path.exists():
    return 0
  with verdicts.Verdicts(path) as store:
    return store.ledger({}).calls
