"""`launch.status`: what a run directory says about its work unit."""

import json

import pytest

from launch import run_dirs, status
from qed import cli
from qed.grading import verdicts

CONFIG = {
  'program': 'grpo',
  'training': {'total_steps': 40},
  'judge': {
    'model': 'm',
    'usd_per_million_prompt': 2.0,
    'usd_per_million_completion': 10.0,
  },
}


@pytest.fixture
def make(tmp_path):
  """Makes a run directory of these files."""

  def call(name, *, config=CONFIG, metrics=(), ends=(), **files):
    folder = tmp_path / name
    folder.mkdir()
    files['config'] = {'config': config}
    for file, content in files.items():
      (folder / f'{file}.json').write_text(json.dumps(content))
    lines = ''.join(json.dumps(line) + '\n' for line in metrics)
    (folder / 'metrics.jsonl').write_text(lines)
    for job, verdict in ends:
      run_dirs.record_attempt(
        folder, job=job, exit_codes=[0], verdict=verdict, secs=1.0
      )
    return folder

  return call


def row(folder):
  """Column -> text."""
  table = status.table([folder])
  return dict(zip(table.header, table.rows[0], strict=True))


def test_a_row_says_how_far_a_run_is_and_what_it_cost(make):
  folder = make(
    'run',
    metrics=[
      {'step': 4, 'reward/mean': 0.5, 'eval/score_mean': 0.125},
      {'step': 9, 'reward/mean': 0.5, 'eval/score_mean': 0.25},
      {'step': 10, 'reward/mean': 0.75},
    ],
    ends=[('main', 'restart'), ('sampler0', 'restart'), ('main', 'restart')],
    ledger={'generated': 1_234_567},
  )
  (folder / 'checkpoints' / '8').mkdir(parents=True)
  (folder / 'checkpoints' / '8' / 'state').touch()
  with verdicts.Verdicts(folder / 'verdicts.sqlite') as store:
    for model in ('m', 'another'):
      call = store.begin(model, model)
      reply = verdicts.Stored(
        text='',
        refusal='',
        finish_reason='stop',
        prompt_tokens=1_000_000,
        completion_tokens=500_000,
      )
      store.put(call, reply, about='')
  assert row(folder) == {
    'work unit': 'run',
    'saved': '8/40',
    'step': '10',
    'metric': 'eval/score_mean 0.25',
    'restarts': '2 + 1',
    'tokens': '1,234,567',
    'usd': '7.00',
    'state': 'stopped',
  }


def test_an_evaluation_says_what_its_solver_wrote_and_cost(make):
  folder = make(
    'run',
    config={
      'program': 'evaluate',
      'budget': {
        'usd_per_million_prompt': 1.0,
        'usd_per_million_completion': 4.0,
      },
    },
    summary={'program': 'evaluate', 'score': {'mean': 0.5}},
  )
  usage = {'prompt_tokens': 1_000_000, 'completion_tokens': 2_000_000}
  rows = [
    {'solution': {'usage': usage}},
    {'solution': None},
    {'solution': {'usage': usage}},
  ]
  text = ''.join(json.dumps(line) + '\n' for line in rows)
  (folder / 'records.jsonl').write_text(text + '{"solution": {"us')
  found = row(folder)
  assert (found['saved'], found['step']) == ('', '')
  assert found['metric'] == 'score 50.0%'
  assert (found['tokens'], found['usd']) == ('4,000,000', '18.00')
  assert found['state'] == 'done'


@pytest.mark.parametrize(
  ('ends', 'state'),
  [
    ([('main', 'restart'), ('main', 'done')], 'done'),
    ([('main', 'permanent')], 'failed'),
    ([('main', 'restart'), ('judge', 'permanent')], 'stopped'),
    ([('main', 'done'), ('main', 'restart')], 'stopped'),
    ([], ''),
  ],
)
def test_the_state_is_that_of_the_last_end(make, ends, state):
  assert row(make('run', ends=ends))['state'] == state


def test_a_run_that_a_launcher_holds_is_running(make):
  folder = make('run', ends=[('main', 'restart')])
  with run_dirs.locked(folder):
    assert row(folder)['state'] == 'running'
  assert row(folder)['state'] == 'stopped'


def test_a_run_without_a_fixed_number_of_steps_has_none_in_its_row(make):
  config = {'program': 'sft', 'training': {'total_steps': 0}}
  folder = make('run', config=config, metrics=[{'step': 3, 'loss': None}])
  found = row(folder)
  assert (found['saved'], found['step'], found['metric']) == ('0', '3', '')
  assert (found['tokens'], found['usd'], found['restarts']) == ('', '', '0')


def test_a_folder_stands_for_the_runs_in_it(make, capsys, tmp_path):
  make('b'), make('a')
  (tmp_path / 'no run').mkdir()
  assert cli.run(status.main, ['status', str(tmp_path)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == '2 work units'
  assert [line.split()[0] for line in lines[2:]] == ['a', 'b']
  assert cli.run(status.main, ['status', f'{tmp_path}/no run']) == 2
  assert 'there is no run directory' in capsys.readouterr().err


def test_a_work_unit_that_has_written_nothing_yet_is_in_the_table(tmp_path):
  with run_dirs.locked(tmp_path / 'new'):
    (found,) = status.find([tmp_path])
    assert row(found)['state'] == 'running'
