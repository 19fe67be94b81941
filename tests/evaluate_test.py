"""`qed evaluate` against a solver and a judge whose every word is known."""

import collections
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from experiments import eval_main
from qed import cli, evaluate, solving
from qed.config import build
from qed.data import templates
from qed.grading import answers
from tests.llm import scripted

pytestmark = pytest.mark.timeout(120)
CONFIG = 'experiments/eval_main.py'
NUM_PROBLEMS, NUM_ATTEMPTS = 4, 3
# What the n-th proof of a problem is worth.
WORTH = {0: [7, 7, 7], 1: [0, 6, 0], 2: [1, 1, 7], 3: [0, 0, 0]}


class World:
  """Solver and judge behind one address; they tell each other by the model."""

  def __init__(self):
    self.calls = collections.Counter()  # By the name of the model.
    self.num_proofs = collections.Counter()  # Of each problem.
    self.seen = set()  # Calls of the solver: messages and seed.
    self.repeated = 0
    self.fail = lambda model, text: None  # Or a response.
    self.solve = self.prove

  def __call__(self, path, body):
    if path.endswith('/models'):
      return scripted.answer(body={'data': [{'id': 'solver'}]})
    model, text = body['model'], body['messages'][-1]['content']
    self.calls[model] += 1
    response = self.fail(model, text)
    if response is not None:
      return response
    if model != 'solver':
      return scripted.answer(body=scripted.chat(self.judge(text)))
    call = (text, body.get('seed'))
    self.repeated += call in self.seen
    self.seen.add(call)
    reply = f'Let me think.</think>{self.solve(text)}'
    return scripted.answer(body=scripted.chat(reply))

  def prove(self, text):
    number = int(re.search(r'Statement (\d)', text)[1])
    count = self.num_proofs[number]
    self.num_proofs[number] += 1
    worth = WORTH[number][count % NUM_ATTEMPTS]
    # No two are equal, or else one verdict would do for both.
    return f'Proof {count} of {number}, worth {worth}.'

  def judge(self, text):
    proof = templates.unfence('proof', text)
    return f'<score>{re.search(r"worth (.)", proof)[1]}</score>'


@pytest.fixture
def problems(tmp_path):
  return written(tmp_path / 'own.jsonl')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(problems, workdir, world, url) of a run that has ended; leave it so."""
  folder = tmp_path_factory.mktemp('finished')
  world, path = World(), written(folder / 'own.jsonl')
  with scripted.in_thread(world) as url:
    assert run(path, folder / 'run', url) == cli.DONE
    yield path, folder / 'run', world, url


def written(path):
  rows = [
    {
      'problem_id': f'p{n}',
      'problem': f'Statement {n}.',
      'rubric': 'All or nothing.',
      'solution': 'It follows.',
      'split': 'easy' if n < 2 else 'hard',
    }
    for n in range(NUM_PROBLEMS)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def arguments(problems, workdir, url, *more):
  return [
    'qed evaluate',
    f'--config={CONFIG}',
    f'--workdir={workdir}',
    '--config.benchmark.name=own_proofs',
    f'--config.benchmark.path={problems}',
    f'--config.benchmark.num_attempts={NUM_ATTEMPTS}',
    '--config.benchmark.max_passes=1',
    f'--config.solver.base_url={url}',
    '--config.solver.model=solver',
    '--config.solver.max_attempts=1',
    '--config.solver.deadline_secs=20.0',
    f'--config.judge.base_url={url}',
    '--config.judge.api_key_env=',
    '--config.judge.model=judge',
    '--config.judge.max_attempts=1',
    '--config.judge.patience_secs=20.0',
    *more,
  ]


def run(problems, workdir, url, *more):
  return cli.run(evaluate.main, arguments(problems, workdir, url, *more))


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def rows(workdir):
  text = (workdir / 'records.jsonl').read_text('utf-8')
  return [json.loads(line) for line in text.splitlines()]


def test_a_run_is_graded_counted_and_written(problems, tmp_path, capsys):
  world, workdir = World(), tmp_path / 'run'
  with scripted.in_thread(world) as url:
    code = run(
      problems,
      workdir,
      url,
      # One after another, so that the n-th attempt gets the n-th proof.
      '--config.benchmark.max_in_flight=1',
      '--config.budget.usd_per_million_prompt=1.0',
      '--config.budget.usd_per_million_completion=10.0',
    )
  assert code == cli.DONE
  assert world.calls == {'solver': 12, 'judge': 12}
  (found,) = summary(workdir)['evaluations']
  means = [7, 2, 3, 0]
  assert found['score']['value'] == pytest.approx(np.mean(means))
  assert found['score']['percent']['value'] == pytest.approx(300 / 7)
  assert found['score']['n'] == 4
  assert found['attempt_means'] == [2, 3.5, 3.5]
  assert found['spread']['value'] == pytest.approx(
    np.std([2, 3.5, 3.5], ddof=1)
  )
  assert found['best_of']['3']['value'] == pytest.approx((7 + 6 + 7 + 0) / 4)
  assert found['pass_at']['1']['value'] == pytest.approx((1 + 2 / 3) / 4)
  assert found['pass_at']['3']['value'] == pytest.approx(3 / 4)
  assert found['splits']['easy']['value'] == 4.5
  assert found['splits']['hard']['value'] == 1.5
  assert found['problem_scores'] == {f'p{n}': WORTH[n] for n in WORTH}
  assert found['num_graded'] == 12
  assert found['tokens']['completion'] == 10
  assert found['tokens']['prompt'] == 100
  assert found['usd']['solver'] == pytest.approx(12 * (100 + 100) / 1e6)
  assert found['usd']['judge'] == pytest.approx(12 * (200 + 120) / 1e6)
  assert (found['truncated'], found['no_proof']) == (0, 0)
  assert summary(workdir)['calls']['num_paid'] == 12
  assert summary(workdir)['judge_ledger']['answered'] == 12

  row = rows(workdir)[0]
  assert row['solution']['text'] == 'Proof 0 of 0, worth 7.'
  trace = json.loads((workdir / row['solution']['trace']).read_text())
  assert trace[0]['label'] == 'solution'
  assert 'Statement 0.' in trace[0]['prompt_messages'][0]['content']
  assert {'checkpoint', 'config', 'judge', 'content'} <= row.keys()
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored['config']['benchmark']['name'] == 'own_proofs'

  printed = capsys.readouterr().out
  assert re.search(r'score +42\.9 +\d+\.\d \.\. \d+\.\d +4', printed)
  assert 'attempt 12/12' in printed
  page = (workdir / 'report' / 'index.html').read_text('utf-8')
  assert 'Proof 0 of 0, worth 7.' in page
  board = (workdir / 'report' / 'leaderboard.md').read_text('utf-8')
  assert '| QED-Nano | 42.9 (12.4) [' in board


def test_a_finished_run_asks_nothing_again(problems, tmp_path):
  world, workdir = World(), tmp_path / 'run'
  with scripted.in_thread(world) as url:
    run(problems, workdir, url)
    first = summary(workdir)
    world.calls.clear()
    assert run(problems, workdir, url) == cli.DONE
    assert not world.calls
    again = summary(workdir)
    assert again['evaluations'] == first['evaluations']
    more = '--config.benchmark.num_attempts=5'
    assert run(problems, workdir, url, more) == cli.DONE
    assert world.calls == {'solver': 8, 'judge': 8}
  assert summary(workdir)['evaluations'][0]['num_graded'] == 20


class TestFailures:
  """A failure is never a wrong proof."""

  def test_calls_that_fail_are_no_zeros_and_are_made_up_for(
    self, problems, tmp_path, capsys
  ):
    world, workdir = World(), tmp_path / 'run'
    world.solve = lambda text: world.prove(text)[:-2] + '7.'
    world.fail = lambda model, text: (
      scripted.answer(500, 'oops')
      if model == 'solver' and 'Statement 2' in text
      else None
    )
    with scripted.in_thread(world) as url:
      assert run(problems, workdir, url) == cli.DONE
      (found,) = summary(workdir)['evaluations']
      assert found['num_failed'] == 3
      assert found['score']['value'] == 7
      assert found['score']['n'] == 3
      assert '9 of 12 attempts are graded' in capsys.readouterr().out
      failed = [row for row in rows(workdir) if row['error']]
      assert {row['problem_id'] for row in failed} == {'p2'}
      assert 'CallError' in failed[0]['error']

      world.fail = lambda model, text: None
      world.calls.clear()
      assert run(problems, workdir, url) == cli.DONE
    assert world.calls == {'solver': 3, 'judge': 3}
    (found,) = summary(workdir)['evaluations']
    assert (found['num_failed'], found['num_graded']) == (0, 12)
    assert found['score']['n'] == 4

  def test_a_judge_that_talks_in_riddles_gives_no_score(
    self, problems, tmp_path
  ):
    world, workdir = World(), tmp_path / 'run'
    judge = world.judge
    world.judge = lambda text: 'Hm.' if 'of 1,' in text else judge(text)
    with scripted.in_thread(world) as url:
      run(problems, workdir, url)
    (found,) = summary(workdir)['evaluations']
    assert found['statuses'] == {'ok': 9, 'unparseable': 3}
    assert found['problem_scores']['p1'] == [None] * 3
    assert found['score']['n'] == 3

  def test_no_answer_after_the_thinking_is_a_zero_without_a_judge(
    self, problems, tmp_path
  ):
    world, workdir = World(), tmp_path / 'run'
    world.solve = lambda text: ''
    with scripted.in_thread(world) as url:
      run(problems, workdir, url)
    assert world.calls['judge'] == 0
    (found,) = summary(workdir)['evaluations']
    assert found['score']['value'] == 0
    assert found['no_proof'] == 1
    assert found['num_graded'] == 12


def test_sigterm_keeps_what_was_paid_for(problems, tmp_path):
  """Stopped twice on the way, only what was in flight is asked again."""
  world, workdir = World(), tmp_path / 'run'
  stops = [3, 8]

  def fail(model, text):
    if stops and world.calls['solver'] >= stops[0]:
      stops.pop(0)
      os.kill(os.getpid(), signal.SIGTERM)
      return scripted.hang
    return None

  world.fail = fail
  with scripted.in_thread(world) as url:
    more = '--config.benchmark.max_in_flight=2'
    codes = [run(problems, workdir, url, more) for _ in range(3)]
  assert codes == [cli.RESTART, cli.RESTART, cli.DONE]
  # Of two in flight at each stop one never ends; the other may have been
  # answered when nobody listened any more.
  assert world.repeated <= 2
  assert world.calls['solver'] <= 12 + 2 * 2
  assert world.calls['judge'] <= 12 + 2 * 2
  assert summary(workdir)['evaluations'][0]['num_graded'] == 12


async def test_nothing_is_solved_while_nobody_can_grade(monkeypatch):
  happened = []

  class Grader:
    async def wait_ready(self):
      happened.append('ready')

  async def scaffold(problem, llm, setup):
    happened.append((problem, setup.attempt, setup.seed))

  monkeypatch.setitem(solving.SCAFFOLDS, 'single', scaffold)
  config = build(eval_main.get_config())
  model = types.SimpleNamespace(
    llm={}, style='base', stop_token_ids=(), failures=()
  )
  told = types.SimpleNamespace(on_call=None)
  await evaluate._solver(config, model, Grader(), told)('p', 2)
  assert happened == ['ready', ('p', 2, config.seed)]


class TestIdentity:
  """What is not the same evaluation is not mixed with it."""

  def test_another_judge_grades_the_same_proofs_in_another_column(
    self, problems, tmp_path
  ):
    world, workdir = World(), tmp_path / 'run'
    with scripted.in_thread(world) as url:
      run(problems, workdir, url)
      first = summary(workdir)['evaluations'][0]
      world.calls.clear()
      world.judge = lambda text: '<score>6</score>'
      more = '--config.judge.model=stern'
      assert run(problems, workdir, url, more) == cli.DONE
    assert world.calls == {'stern': 12}
    before, after = summary(workdir)['evaluations']
    assert before['score'] == first['score']
    assert after['score']['value'] == 6
    # Out of 1, by the judge of the config; at whose prices the other one asked
    # is not known.
    assert summary(workdir)['score']['mean'] == pytest.approx(6 / 7)
    assert summary(workdir)['score']['n'] == NUM_PROBLEMS
    assert (before['usd']['judge'] > 0, after['usd']['judge'] > 0) == (0, 1)
    assert after['identity']['judge_name'].startswith('stern')
    board = (workdir / 'report' / 'leaderboard.md').read_text()
    header = next(x for x in board.splitlines() if x.startswith('| Model'))
    assert 'judge, imo' in header
    assert 'stern, imo' in header
    assert '85.7' in board

  @pytest.mark.parametrize(
    ('change', 'told'),
    [
      ('--config.scaffold=rsa', "scaffold = 'rsa', and was 'single'"),
      ('--config.sampling.temperature=0.1', 'sampling.temperature = 0.1'),
      ('--config.scaffolds.single.solve=answer', "solve = 'answer'"),
      ('--config.seed=7', 'seed = 7, and was 0'),
      ('--config.solver.model=other', "solver.model = 'other'"),
    ],
  )
  def test_another_way_to_proofs_is_refused(
    self, finished, capsys, change, told
  ):
    problems, workdir, world, url = finished
    config = (workdir / 'config.json').read_bytes()
    more = '--config.judge.model=stern'
    assert run(problems, workdir, url, change, more) == cli.USAGE
    error = capsys.readouterr().err
    assert told in error
    assert 'judge.model' not in error  # That alone would not be refused.
    assert (workdir / 'config.json').read_bytes() == config
    assert world.calls == {'solver': 12, 'judge': 12}

  def test_other_problems_are_refused(self, finished, tmp_path, capsys):
    problems, workdir, _, url = finished
    edited = tmp_path / 'own.jsonl'
    edited.write_text(problems.read_text().replace('Statement 1', 'St. 1'))
    assert run(edited, workdir, url) == cli.USAGE
    assert 'content' in capsys.readouterr().err

  def test_a_broken_record_is_told(self, finished, tmp_path, capsys):
    problems, workdir, _, url = finished
    shutil.copytree(workdir, tmp_path / 'run')
    path = tmp_path / 'run' / 'records.jsonl'
    path.write_text('{"no": "record"}\n' + path.read_text())
    assert run(problems, tmp_path / 'run', url) == cli.USAGE
    assert 'records.jsonl:1: expected a record' in capsys.readouterr().err

  def test_what_decides_nothing_may_change(self, finished, tmp_path):
    problems, workdir, world, url = finished
    shutil.copytree(workdir, tmp_path / 'run')
    code = run(
      problems,
      tmp_path / 'run',
      url,
      '--config.solver.max_concurrency=3',
      '--config.solver.deadline_secs=30.0',
      '--config.budget.usd_per_million_prompt=3.0',
      '--config.scaffolds.rsa.num_rounds=1',
      '--config.judge.max_concurrency=2',
      '--config.benchmark.pass_score=7',
      '--config.benchmark.max_in_flight=1',
    )
    assert code == cli.DONE
    assert world.calls == {'solver': 12, 'judge': 12}


def test_final_answers_are_compared_without_a_judge(tmp_path, monkeypatch):
  # However busy the machine is.
  patient = functools.partial(answers.Comparer, timeout_secs=50.0)
  monkeypatch.setattr(answers, 'Comparer', patient)
  path, workdir = tmp_path / 'own.jsonl', tmp_path / 'run'
  values = ['\\frac{1}{2}', 'x + 1', '3']
  path.write_text(
    ''.join(
      json.dumps({'problem_id': f'a{n}', 'problem': f'Q{n}?', 'answer': value})
      + '\n'
      for n, value in enumerate(values)
    )
  )
  world = World()
  world.solve = lambda text: {
    'Q0': 'So it is \\boxed{0.5}.',
    'Q1': 'It is \\boxed{2}.',
    'Q2': 'I do not know.',
  }[re.search(r'Q\d', text)[0]]
  with scripted.in_thread(world) as url:
    code = run(
      path,
      workdir,
      url,
      '--config.benchmark.name=own_answers',
      '--config.benchmark.num_attempts=1',
      '--config.benchmark.second_opinion=false',
      '--config.scaffolds.single.solve=answer',
    )
  assert code == cli.DONE
  assert world.calls == {'solver': 3}
  (found,) = summary(workdir)['evaluations']
  assert found['problem_scores'] == {'a0': [7], 'a1': [0], 'a2': [0]}
  assert found['identity']['judge_name'] == 'formulas'
  assert found['score']['percent']['value'] == pytest.approx(100 / 3)


def test_an_answer_that_nobody_can_judge_is_not_wrong(tmp_path, monkeypatch):
  path, workdir = tmp_path / 'own.jsonl', tmp_path / 'run'
  row = {'problem_id': 'a', 'problem': 'Q?', 'answer': 'x'}
  path.write_text(json.dumps(row) + '\n')
  monkeypatch.setattr(answers.Comparer, 'same', lambda *_: None)
  world = World()
  world.solve = lambda text: 'It is \\boxed{y}.'
  with scripted.in_thread(world) as url:
    run(
      path,
      workdir,
      url,
      '--config.benchmark.name=own_answers',
      '--config.benchmark.num_attempts=1',
      '--config.benchmark.second_opinion=false',
    )
  (found,) = summary(workdir)['evaluations']
  assert found['problem_scores'] == {'a': [None]}
  assert found['statuses'] == {'unparseable': 1}


def test_a_scaffold_of_many_calls_runs_through(problems, tmp_path):
  world, workdir = World(), tmp_path / 'run'

  def solve(text):
    # A reply that reads as a proof and as a verdict alike.
    return 'A proof, worth 6.\n<verdict>A</verdict>'

  world.solve = solve
  with scripted.in_thread(world) as url:
    code = run(
      problems,
      workdir,
      url,
      '--config.scaffold=rsa',
      '--config.benchmark.num_attempts=1',
    )
  assert code == cli.DONE
  assert world.calls['solver'] == 39 * NUM_PROBLEMS
  (found,) = summary(workdir)['evaluations']
  assert found['tokens']['calls'] == 39
  assert found['tokens']['completion'] == 390
  assert found['score']['value'] == 6
  board = (workdir / 'report' / 'leaderboard.md').read_text()
  assert '## Scaffolds: QED-Nano' in board
  assert summary(workdir)['calls']['most_running'] <= 64


class TestRefusals:
  """What is wrong is told before anybody is asked."""

  def refused(self, problems, tmp_path, capsys, *more, url='http://x/v1'):
    assert run(problems, tmp_path / 'run', url, *more) == cli.USAGE
    assert not (tmp_path / 'run').exists()
    return capsys.readouterr().err

  def test_another_number_of_problems(self, problems, tmp_path, capsys):
    told = self.refused(
      problems, tmp_path, capsys, '--config.benchmark.name=fineproofs_rl_test'
    )
    assert 'expected the 128 problems' in told

  def test_a_split_that_is_not_there(self, problems, tmp_path, capsys):
    told = self.refused(
      problems, tmp_path, capsys, '--config.benchmark.split=24_25'
    )
    assert "['easy', 'hard']" in told

  def test_a_rubric_template_without_its_reference(
    self, problems, tmp_path, capsys
  ):
    problems.write_text(problems.read_text().replace('solution', 'ignored'))
    told = self.refused(problems, tmp_path, capsys)
    assert 'expected a reference' in told

  def test_a_template_of_the_scaffold_that_cannot_be_filled_in(
    self, problems, tmp_path, capsys
  ):
    told = self.refused(
      problems,
      tmp_path,
      capsys,
      '--config.scaffolds.single.solve=Solve {{puzzle}}!',
    )
    assert 'scaffolds.single.solve' in told

  def test_a_missing_file_and_workdir(self, problems, tmp_path, capsys):
    told = self.refused(tmp_path / 'none.jsonl', tmp_path, capsys)
    assert 'benchmark.path' in told
    assert cli.run(evaluate.main, ['qed evaluate', f'--config={CONFIG}']) == 2
    assert '--workdir=DIR is missing' in capsys.readouterr().err

  def test_nobody_there(self, problems, tmp_path, capsys):
    with scripted.nobody() as url:
      assert run(problems, tmp_path / 'run', url) == cli.USAGE
    assert 'solver.base_url' in capsys.readouterr().err


def test_a_wrong_value_is_told_without_importing_jax(problems, tmp_path):
  code = (
    'import sys; from qed import cli; code = cli.main(sys.argv); '
    "print('jax' in sys.modules); sys.exit(code)"
  )
  given = arguments(problems, tmp_path / 'run', 'http://x/v1')[1:]
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      code,
      'evaluate',
      *given,
      '--config.benchmark.split=x',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == cli.USAGE, done.stderr
  assert done.stdout.splitlines()[-1] == 'False'
