"""`qed judge` against a judge whose bias and noise are known."""

import collections
import json
import os
import random
import re
import signal
import sqlite3

import pytest

from qed import cli, judge
from qed.data import templates
from qed.grading import parsing
from tests.llm import scripted

pytestmark = pytest.mark.timeout(60)
CONFIG = 'experiments/judge_main.py'
NUM_PROBLEMS, NUM_SOLUTIONS = 12, 3


class BiasedJudge:
  """Gives the worth that the proof states, plus 1, plus -1, 0 or 1."""

  def __init__(self):
    self.num_calls = 0
    self.questions = []
    self.verdicts = collections.Counter()  # On each proof.
    self.before_answering = lambda: None
    self.reply = '<score>{score}</score>'

  def __call__(self, path, body):
    if path.endswith('/models'):
      return scripted.answer(body={'data': [{'id': 'judge'}]})
    self.num_calls += 1
    self.questions.append(body)
    self.before_answering()
    proof = templates.unfence('proof', body['messages'][-1]['content'])
    self.verdicts[proof] += 1
    noise = random.Random(f'{proof} {self.verdicts[proof]}').choice([-1, 0, 1])
    score = int(re.search(r'worth (\d)', proof)[1]) + 1 + noise
    text = self.reply.format(score=score)
    return scripted.answer(body=scripted.chat(text))


@pytest.fixture
def graded(tmp_path):
  """Solutions whose human scores leave room for bias and noise."""
  rng = random.Random(0)
  path = tmp_path / 'graded.jsonl'
  with path.open('w') as file:
    for p in range(NUM_PROBLEMS):
      for n in range(NUM_SOLUTIONS):
        score = rng.randint(1, 5)
        row = {
          'item_id': f'{p}/{n}',
          'problem_id': f'p{p}',
          'statement': f'Statement {p}.',
          'rubric': '7 points: all.',
          'proof': f'Proof {n} of {p}, worth {score}.',
          'human_score': score,
        }
        file.write(json.dumps(row) + '\n')
  return path


def run(graded, workdir, url, *arguments):
  return cli.run(
    judge.main,
    [
      'qed judge',
      f'--config={CONFIG}',
      f'--workdir={workdir}',
      f'--config.solutions.paths={graded}',
      '--config.solutions.source=graded',
      f'--config.judge.base_url={url}',
      '--config.judge.patience_secs=60.0',
      '--config.judge.max_attempts=2',
      *arguments,
    ],
  )


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def test_a_run_recovers_the_bias_and_the_noise_and_writes_all(
  graded, tmp_path, capsys
):
  truth = BiasedJudge()
  workdir = tmp_path / 'run'
  with scripted.in_thread(truth) as url:
    assert run(graded, workdir, url, '--config.agreement.replicas=4') == 0
  size = NUM_PROBLEMS * NUM_SOLUTIONS * 4
  assert truth.num_calls == size
  found = summary(workdir)
  assert found['statuses'] == {'ok': size}
  assert (found['solutions'], found['replicas']) == (size // 4, 4)
  for name, value in {'bias': 1.0, 'replica SD': (2 / 3) ** 0.5}.items():
    metric = found['metrics'][name]
    assert metric['low'] < value < metric['high']
    assert metric['problems'] == NUM_PROBLEMS
  assert found['ledger']['calls'] == found['ledger']['answered'] == size
  printed = capsys.readouterr().out
  assert f'{size // 4} solutions of {NUM_PROBLEMS} problems' in printed
  assert re.search(r'bias +\d\.\d{3} +\d\.\d{3} \.\. \d\.\d{3} +12', printed)
  assert f'verdict {size}/{size}' in printed
  lines = (workdir / 'grades.jsonl').read_text().splitlines()
  grades = [json.loads(line) for line in lines]
  assert len(grades) == size
  assert {g['replica'] for g in grades} == {0, 1, 2, 3}
  errors = [g['grade']['score'] - g['human_score'] for g in grades]
  assert found['metrics']['bias']['value'] == pytest.approx(sum(errors) / size)
  assert (workdir / 'agreement.png').read_bytes().startswith(b'\x89PNG')
  recorded = json.loads((workdir / 'config.json').read_text())
  assert recorded['config']['solutions']['source'] == 'graded'


def test_the_judge_is_asked_what_the_config_says(graded, tmp_path):
  truth = BiasedJudge()
  with scripted.in_thread(truth) as url:
    options = ('--config.judge.template=gimo', '--config.judge.effort=high')
    assert run(graded, tmp_path / 'run', url, *options) == 0
  body = truth.questions[0]
  assert body['model'] == 'openai/gpt-oss-20b'
  assert body['reasoning_effort'] == 'high'
  assert 'Justification gap' in body['messages'][-1]['content']
  assert summary(tmp_path / 'run')['template'] == 'gimo'


def test_nothing_is_paid_for_twice_and_regrading_calls_nobody(
  graded, tmp_path, capsys
):
  truth = BiasedJudge()
  workdir = tmp_path / 'run'
  with scripted.in_thread(truth) as url:
    assert run(graded, workdir, url) == 0
    first, num_calls = summary(workdir), truth.num_calls
    assert run(graded, workdir, url) == 0
    assert truth.num_calls == num_calls
    assert summary(workdir)['metrics'] == first['metrics']
    # Other instructions are another question.
    simple = '--config.judge.template=simple'
    assert run(graded, workdir, url, simple) == 0
    assert truth.num_calls == 2 * num_calls
  # The server is gone.
  assert run(graded, workdir, url, '--regrade') == 0
  assert summary(workdir)['metrics'] == first['metrics']
  opc = '--config.judge.template=opc'
  assert run(graded, workdir, url, '--regrade', opc) == cli.USAGE
  assert 'none of these solutions' in capsys.readouterr().err


def test_regrading_uses_todays_parser(graded, tmp_path, monkeypatch):
  truth = BiasedJudge()
  truth.reply = '<points>{score}</points>'
  workdir = tmp_path / 'run'
  with scripted.in_thread(truth) as url:
    assert run(graded, workdir, url, '--config.judge.max_draws=1') == 0
  assert summary(workdir)['statuses'] == {'unparseable': 36}
  assert summary(workdir)['metrics']['failed']['value'] == 1.0
  read = parsing.verdict
  monkeypatch.setattr(
    parsing,
    'verdict',
    lambda text, **options: read(text.replace('points', 'score'), **options),
  )
  options = ('--regrade', '--config.judge.max_draws=1')
  assert run(graded, workdir, url, *options) == 0
  assert summary(workdir)['statuses'] == {'ok': 36}


def test_what_cannot_be_read_is_told_and_left_out(graded, tmp_path, capsys):
  truth = BiasedJudge()
  truth.reply = '<score>{score}/6</score>'
  with scripted.in_thread(truth) as url:
    truth.before_answering = lambda: setattr(
      truth,
      'reply',
      '<score>{score}</score>' if truth.num_calls > 8 else 'none',
    )
    options = ('--config.judge.max_draws=1', '--config.agreement.replicas=2')
    assert run(graded, tmp_path / 'run', url, *options) == 0
  found = summary(tmp_path / 'run')
  assert found['statuses'] == {'ok': 64, 'unparseable': 8}
  assert found['metrics']['failed']['value'] == pytest.approx(8 / 72)
  assert "without a score: {'unparseable': 8}" in capsys.readouterr().out


def test_a_run_that_is_terminated_says_so_and_goes_on(graded, tmp_path):
  truth = BiasedJudge()
  workdir = tmp_path / 'run'
  one_by_one = '--config.judge.max_concurrency=1'

  def terminate():
    if truth.num_calls == 10:
      os.kill(os.getpid(), signal.SIGTERM)

  truth.before_answering = terminate
  with scripted.in_thread(truth) as url:
    assert run(graded, workdir, url, one_by_one) == cli.RESTART
    assert not (workdir / 'summary.json').exists()
    with sqlite3.connect(workdir / 'verdicts.sqlite') as database:
      ((kept,),) = database.execute('SELECT count(*) FROM replies')
    database.close()
    assert kept >= 9
    before = truth.num_calls
    assert run(graded, workdir, url, one_by_one) == 0
  assert truth.num_calls - before == 36 - kept
  assert summary(workdir)['statuses'] == {'ok': 36}


class TestRefusals:
  def told(self, capsys):
    return capsys.readouterr().err

  def test_a_judge_that_is_not_there(self, graded, tmp_path, capsys):
    with scripted.nobody() as url:
      assert run(graded, tmp_path / 'run', url) == cli.USAGE
    assert f'judge.base_url = {url!r}' in self.told(capsys)

  def test_a_key_that_is_not_set(self, graded, tmp_path, capsys):
    option = '--config.judge.api_key_env=QED_TEST_NO_SUCH_KEY'
    assert run(graded, tmp_path, 'http://x', option) == cli.USAGE
    assert 'QED_TEST_NO_SUCH_KEY' in self.told(capsys)

  def test_a_template_that_shows_what_is_not_there(
    self, graded, tmp_path, capsys
  ):
    option = '--config.judge.with_reference=True'
    assert run(graded, tmp_path / 'run', 'http://x', option) == cli.USAGE
    assert "'p0': expected a reference" in self.told(capsys)
    assert not (tmp_path / 'run').exists()

  def test_no_workdir_no_file_and_no_record(self, graded, tmp_path, capsys):
    arguments = ['qed judge', f'--config={CONFIG}']
    assert cli.run(judge.main, arguments) == cli.USAGE
    assert '--workdir=DIR is missing' in self.told(capsys)
    assert run('nowhere.jsonl', tmp_path, 'http://x') == cli.USAGE
    assert 'nowhere.jsonl' in self.told(capsys)
    run(graded, tmp_path / 'run', 'http://x', '--regrade')
    assert 'expected stored replies in' in self.told(capsys)

  def test_a_file_that_is_no_record(self, graded, tmp_path, capsys):
    (tmp_path / 'verdicts.sqlite').write_text('no database ' * 99)
    assert run(graded, tmp_path, 'http://x') == cli.USAGE
    assert 'verdicts.sqlite' in self.told(capsys)
