"""`qed curate` from raw files to a training set, killed and resumed."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from qed import cli, curate
from qed.data import problems, templates
from tests.llm import scripted

pytestmark = pytest.mark.timeout(120)
CONFIG = 'experiments/data_main.py'
PROOF = (
  'Suppose that it fails, and take the least n for which it does. Then n is '
  'even, hence n = 2m with m < n, and therefore the claim holds for m, which '
  'gives it for n as well. This is a contradiction.'
)
BENCHMARK = (
  'Prove that among any ten points of the unit square there are two at a '
  'distance of at most one half, and decide whether nine points suffice.'
)
RUBRIC = """\
## Checkpoints (7 points in total)
1. (4 points) Finds the idea.
2. (3 points) Concludes.
Total (max 7)

## Zero-credit items
- Small cases.

## Deductions
- -1 for a gap.
"""
TOPICS = (
  'regular graphs', 'prime divisors', 'convex polygons', 'monotone sequences',
  'symmetric polynomials', 'binary words',
)  # fmt: skip


def raw(number):
  topic = TOPICS[number % 6]
  return {
    'problem': f'Prove that claim {number} on {topic} holds for all $n > '
    f'{number}$ and decide when equality occurs in the case of {topic}.',
    'solution': f'{PROOF} That was {number}.',
    'candidates': [],
    'tags': [],
    'metadata': {'path': f'Olympiads/{1990 + number % 30}'},
  }


@pytest.fixture
def files(tmp_path):
  """(raw problems, benchmark): 12 good ones, and one of each kind of bad."""
  rows = [raw(number) for number in range(12)]
  bad = [
    {**raw(90), 'problem': raw(90)['problem'] + ' ![](a.png)'},
    raw(0),
    {**raw(91), 'problem': BENCHMARK.replace('among any', 'of any')},
    {**raw(92), 'metadata': {'path': 'Olympiads/2025'}},
  ]
  data = tmp_path / 'aops.jsonl'
  lines = [json.dumps(row) for row in rows[:6] + bad + rows[6:]]
  data.write_text('\n'.join([*lines, '{"problem": "cut']) + '\n')
  benchmark = tmp_path / 'bench.jsonl'
  benchmark.write_text(
    json.dumps({'problem_id': 'b1', 'problem': BENCHMARK}) + '\n'
  )
  return data, benchmark


def arguments(files, workdir, *more, arm='deterministic'):
  data, benchmark = files
  given = {argument.partition('=')[0] for argument in more}
  flags = [
    f'--config={CONFIG}:{arm}',
    f'--workdir={workdir}',
    '--config.sources.olympiads=()',
    f'--config.sources.aops={(str(data),)}',
    "--config.sources.licenses=('aops=made up',)",
    f'--config.decontamination.benchmarks={(str(benchmark),)}',
  ]
  return [f for f in flags if f.partition('=')[0] not in given] + [*more]


def run(*args, **fields):
  return cli.run(curate.main, ['qed curate', *arguments(*args, **fields)])


def hashes(workdir):
  found = {}
  for pattern in ('stages/*/*.jsonl', '*.jsonl', '*.html', '*.card.*'):
    for path in sorted(workdir.glob(pattern)):
      name = str(path.relative_to(workdir))
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_nothing_is_removed_without_a_reason(files, tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert run(files, workdir) == 0
  removed = {}
  for path in sorted(workdir.glob('stages/*/removed.jsonl')):
    for row in lines(path):
      removed[row['reason']] = removed.get(row['reason'], 0) + 1
      assert row['detail']
      assert row['item']['place'].startswith(str(files[0]))
  assert removed == {
    'malformed': 1, 'image': 1, 'duplicate': 1, 'in_benchmark': 1,
    'too_recent': 1,
  }  # fmt: skip
  found, _ = problems.load_problems(
    workdir / 'problems.jsonl', malformed='refuse'
  )
  assert [p.statement for p in found] == [raw(n)['problem'] for n in range(12)]
  assert found[3].reference.endswith('That was 3.')
  assert 'in_benchmark' in capsys.readouterr().out


def test_the_card_accounts_for_every_row(files, tmp_path):
  workdir = tmp_path / 'run'
  run(files, workdir)
  card = json.loads((workdir / 'problems.card.json').read_text())
  counts = [(s['in'], s['kept'], sum(s['removed'].values()))
            for s in card['stages']]  # fmt: skip
  assert counts == [(17, 16, 1), (16, 15, 1), (15, 14, 1), (14, 12, 2)]
  assert card['rows'] == 12
  assert card['inputs'][0]['license'] == 'made up'
  text = (workdir / 'problems.card.md').read_text()
  assert 'in_benchmark | -1' in text
  digest = hashlib.sha256((workdir / 'problems.jsonl').read_bytes())
  assert digest.hexdigest() == card['sha256']


def test_the_review_shows_both_sides(files, tmp_path):
  workdir = tmp_path / 'run'
  run(files, workdir)
  (row,) = lines(workdir / 'review.jsonl')
  assert row['other_text'] == BENCHMARK
  assert row['is_removed'] is True
  html = (workdir / 'review.html').read_text()
  assert 'bench/b1' in html
  assert '<mark>among</mark>' in html


def test_the_same_again_changes_nothing(files, tmp_path):
  workdir = tmp_path / 'run'
  run(files, workdir)
  before = hashes(workdir)
  assert run(files, workdir) == 0
  assert hashes(workdir) == before


def test_a_changed_bound_is_applied(files, tmp_path):
  workdir = tmp_path / 'run'
  run(files, workdir)
  assert run(files, workdir, '--config.decontamination.last_year=2025') == 0
  assert len(lines(workdir / 'problems.jsonl')) == 13


def test_a_changed_input_is_read_again(files, tmp_path):
  workdir = tmp_path / 'run'
  run(files, workdir)
  with files[0].open('a') as file:
    file.write(json.dumps(raw(50)) + '\n')
  run(files, workdir)
  assert len(lines(workdir / 'problems.jsonl')) == 13


def test_a_killed_run_ends_like_any_other(files, tmp_path):
  with files[0].open('a') as file:
    for number in range(100, 400):
      file.write(json.dumps(raw(number)) + '\n')
  run(files, tmp_path / 'whole')
  command = [sys.executable, '-m', 'qed.curate']
  command += arguments(files, tmp_path / 'killed')
  process = subprocess.Popen(
    command,
    stdout=subprocess.DEVNULL,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  while process.poll() is None:
    if list((tmp_path / 'killed').glob('stages/*_filter/kept.jsonl')):
      process.send_signal(signal.SIGKILL)
    time.sleep(0.002)
  assert process.wait() == -signal.SIGKILL
  assert not (tmp_path / 'killed/problems.jsonl').exists()
  run(files, tmp_path / 'killed')
  assert hashes(tmp_path / 'killed') == hashes(tmp_path / 'whole')


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    ('--config.sources.licenses=()', 'SOURCE=LICENSE'),
    ("--config.sources.aops=('nowhere.jsonl',)", 'no such file'),
    ("--config.model_stages=('selection',)", 'needs'),
    ("--config.model_stages=('teacher','quality')", 'in this order'),
    ('--config.filters.min_statment_chars=3', 'min_statement_chars'),
  ],
)
def test_a_mistake_is_told_at_once(files, tmp_path, capsys, change, named):
  assert run(files, tmp_path / 'run', change) == cli.USAGE
  assert named in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_missing_key_is_told_before_anything_is_done(
  files, tmp_path, capsys, monkeypatch
):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  assert run(files, tmp_path / 'run', arm='baseline') == cli.USAGE
  assert 'OPENAI_API_KEY' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_benchmark_that_cannot_be_read_stops_the_run(files, tmp_path, capsys):
  files[1].write_text('{"question": "?"}\n')
  assert run(files, tmp_path / 'run') == cli.USAGE
  assert 'bench.jsonl:1' in capsys.readouterr().err


class Models:
  """All models at one endpoint, told apart by what they are asked."""

  def __init__(self):
    self.num_calls = 0
    self.attempts = {}

  def __call__(self, path, body):
    self.num_calls += 1
    question = body['messages'][-1]['content']
    text = self.reply(question, body['model'])
    return scripted.answer(body=scripted.chat(text))

  def reply(self, question, model):
    if 'marking scheme for proofs' in question:
      return RUBRIC
    if '"incomplete"' in question:
      names = ('incomplete', 'gaps', 'wrong', 'disagreement', 'computational')
      found = {name: False for name in names} | {'difficulty': 4}
      found['gaps'] = 'claim 7 ' in question
      return f'```json\n{json.dumps(found)}\n```'
    if '<score>' in question:
      proof = templates.unfence('proof', question)
      return f'<score>{re.search("worth ([0-7])", proof)[1]}</score>'
    number = int(re.search(r'claim (\d+) on', question)[1])
    if model == 'teacher':
      return f'Hm.\n</think>\n## Solution\nProof {number} of a teacher.'
    if 'The beginning of a correct proof' in question:
      return 'The rest, worth 7.'
    # Claim 0 is never proved, claim 1 by every fourth attempt, and so on.
    attempt = self.attempts[number] = self.attempts.get(number, -1) + 1
    score = 7 if attempt % 4 < min(number, 3) else 1
    return f'An attempt {attempt} of claim {number}, worth {score}.'


def with_models(files, workdir, url, *more):
  models = {
    'quality': 'reader',
    'rubrics': 'author',
    'difficulty': 'solver',
    'teacher': 'teacher',
  }
  changes = [f'--config.judge.base_url={url}']
  for name, model in models.items():
    writer = f'--config.{name}.writer'
    changes += [
      f'{writer}.base_url={url}',
      f'{writer}.model={model}',
      f'{writer}.api_key_env=',
      f'{writer}.max_attempts=1',
      f'{writer}.max_concurrency=1',
    ]
  changes += [
    '--config.difficulty.num_rollouts=4',
    '--config.prefixes.num_rollouts=2',
    '--config.selection.max_mean_reward=0.7',
    '--config.selection.tail_decay=0.0',
  ]
  return run(files, workdir, *changes, *more, arm='baseline')


def test_the_whole_pipeline_with_models(files, tmp_path):
  workdir = tmp_path / 'run'
  models = Models()
  with scripted.in_thread(models) as url:
    assert with_models(files, workdir, url) == 0
    num_calls = models.num_calls
    # The stages anew, from what was paid for.
    before = hashes(workdir)
    (workdir / 'stages/7_difficulty/report.json').unlink()
    assert with_models(files, workdir, url) == 0
    assert models.num_calls == num_calls
  assert hashes(workdir) == before
  reports = {
    r['stage']: r
    for r in json.loads((workdir / 'summary.json').read_text())['stages']
  }
  assert reports['quality']['removed'] == {'gaps': 1}
  assert reports['rubrics']['num_kept'] == 11
  # Claim 0 is never proved; the mean of the last eight is (3 * 7 + 1) / 28.
  assert reports['selection']['removed'] == {'too_easy': 8, 'too_hard': 1}
  found, _ = problems.load_problems(
    workdir / 'problems.jsonl', malformed='refuse'
  )
  assert [p.statement for p in found] == [raw(n)['problem'] for n in (1, 2)]
  assert [p.difficulty for p in found] == pytest.approx([10 / 28, 16 / 28])
  assert found[0].rubric == RUBRIC.strip()
  traces, _ = problems.stream_traces(
    workdir / 'sft_unique.jsonl', malformed='refuse'
  )
  assert [trace.proof for trace in traces] == [
    'Proof 1 of a teacher.', 'Proof 2 of a teacher.',
  ]  # fmt: skip
  assert len(lines(workdir / 'sft_all.jsonl')) == 4
  assert lines(workdir / 'sft_unused.jsonl') == []
  (prefix,) = lines(workdir / 'prefixes.jsonl')
  assert prefix['num_successes'] == 2
  assert raw(0)['solution'].startswith(prefix['prefix'])
  (unsolved,), _ = problems.load_problems(
    workdir / 'unsolved.jsonl', malformed='refuse'
  )
  assert unsolved.problem_id == prefix['problem_id']
  assert unsolved.statement == raw(0)['problem']
  assert (workdir / 'difficulty.png').exists()
  names = ('problems', 'sft_all', 'sft_unique', 'unsolved', 'prefixes')
  for name in names:
    assert (workdir / f'{name}.card.md').exists()


def test_a_model_that_is_down_leaves_a_state_to_go_on_from(
  files, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  with scripted.nobody() as url:
    assert with_models(files, workdir, url) == cli.RESTART
  assert 'what was done so far is kept' in capsys.readouterr().out
  assert pathlib.Path(workdir / 'stages/4_decontaminate/report.json').exists()
  with scripted.in_thread(Models()) as url:
    assert with_models(files, workdir, url) == 0
