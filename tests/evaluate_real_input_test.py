"""`qed evaluate` on olympiad problems, with Qwen's vocabulary and our engine.

Only the model (small, random) and the judge (its replies have the real form,
its scores are random) stand in for something.
"""

import collections
import json

import jax
import pytest

from qed import cli, evaluate
from qed.data import templates, tokenizer
from qed.miniature import judge_server
from qed.models import hf, specs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def proofbench(shared_data):
  return shared_data / 'imobench' / 'proofbench_v2.csv'


@pytest.fixture
def model_dir(tmp_path, shared_data):
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
  words = tokenizer.load(shared_data / 'qwen_bpe')
  words.save(tmp_path / 'tokenizer')
  hf.save(
    tmp_path / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=tmp_path / 'tokenizer',
  )
  return tmp_path / 'model'


@pytest.fixture
def judge():
  """A server that answers in the real form, and the questions it was asked."""
  behavior = judge_server.Behavior(grades_unknown=True)
  with judge_server.start(behavior) as server:
    decide, server.questions = server.decide, []
    server.decide = lambda text: (server.questions.append(text), decide(text))[
      1
    ]
    yield server


def run(proofbench, model_dir, workdir, judge, **changes):
  """The command line, from the published experiment."""
  values = {
    'benchmark.path': proofbench,
    'solver.kind': 'local',
    'solver.base_url': '',
    'solver.model': '',
    'solver.path': model_dir,
    'solver.chat_style': 'instruct',  # It would never end its thinking.
    'solver.dtype': 'float32',
    'solver.engine.num_slots': 4,
    'solver.engine.page_size': 512,
    'solver.engine.kv_dtype': 'float32',
    'judge.base_url': judge.url,
    'judge.api_key_env': '',
    # It gives any score from 0 to 7.
    'judge.template': 'proofbench_strict',
    **changes,
  }
  return cli.run(
    evaluate.main,
    [
      'qed evaluate',
      '--config=experiments/eval_main.py',
      f'--workdir={workdir}',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ],
  )


@pytest.fixture
def at_the_root(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)


def quoted(text):
  """What the judge reads of a text."""
  return templates.unfence('quoted', templates.fence('quoted', text))


def test_proofs_of_2048_tokens_are_written_and_graded(
  at_the_root, proofbench, model_dir, judge, tmp_path
):
  workdir = tmp_path / 'run'
  changes = {
    'benchmark.max_problems': 3,
    'benchmark.num_attempts': 2,
    'sampling.max_tokens': 2_048,
    'solver.max_prompt_tokens': 1_024,
    'solver.engine.prefill_buckets': '256,1024',
  }
  assert run(proofbench, model_dir, workdir, judge, **changes) == cli.DONE
  summary = json.loads((workdir / 'summary.json').read_text())
  (found,) = summary['evaluations']
  assert found['statuses'] == {'ok': 6}
  assert found['is_published_content'] is True
  assert found['levels'].keys() == {'IMO-easy', 'pre-IMO'}
  assert found['tokens']['completion'] > 0.9 * 2_048
  assert found['truncated'] > 0.5
  assert 0 <= found['score']['low'] <= found['score']['high'] <= 7
  text = (workdir / 'records.jsonl').read_text('utf-8')
  rows = [json.loads(line) for line in text.split('\n')[:-1]]
  proofs = {templates.unfence('proof', q): q for q in judge.questions}
  for row in rows:
    question = proofs[quoted(row['solution']['text'])]
    assert templates.unfence('rubric', question)
    assert '(Partial)' in question
  # Every weight and value as before: nothing is drawn or graded again.
  count = len(judge.questions)
  assert run(proofbench, model_dir, workdir, judge, **changes) == cli.DONE
  assert len(judge.questions) == count
  again = json.loads((workdir / 'summary.json').read_text())
  assert again['calls']['num_paid'] == 0
  assert again['evaluations'] == summary['evaluations']


def test_rsa_merges_and_selects_among_real_texts(
  at_the_root, proofbench, model_dir, judge, tmp_path
):
  workdir = tmp_path / 'run'
  code = run(
    proofbench,
    model_dir,
    workdir,
    judge,
    **{
      'scaffold': 'rsa',
      'scaffolds.rsa.num_solutions': 3,
      'scaffolds.rsa.num_rounds': 1,
      'scaffolds.rsa.block_size': 2,
      'benchmark.max_problems': 2,
      'benchmark.num_attempts': 1,
      'sampling.max_tokens': 128,
      'solver.max_prompt_tokens': 4_096,
      'solver.engine.prefill_buckets': '256,1024',
    },
  )
  assert code == cli.DONE
  (found,) = json.loads((workdir / 'summary.json').read_text())['evaluations']
  assert found['num_graded'] == 2
  # 3 solutions, 3 merges, and 2 comparisons.
  assert found['tokens']['calls'] == 8
  trace = json.loads(next((workdir / 'traces').iterdir()).read_text())
  roles = collections.Counter(entry['role'] for entry in trace)
  assert roles == {'solver': 3, 'merger': 3, 'selector': 2}
