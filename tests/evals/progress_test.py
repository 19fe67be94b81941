"""What is told while an evaluation runs."""

import dataclasses

from qed.evals import progress
from qed.evals.records import Record
from qed.scaffolds.calls import Event

RECORD = Record(
  problem_id='p',
  attempt=0,
  judge='j',
  judge_name='a judge',
  score=7,
  status='ok',
  usage={},
  judge_usage={},
  has_text=True,
  secs=1.0,
  error='',
)


def test_calls_scores_and_failures_are_counted(capsys, monkeypatch):
  monkeypatch.setattr('sys.stdout.isatty', lambda: False, raising=False)
  told = progress.Progress(2)
  call = Event(problem_id='p', attempt=0, label='a', role='s', state='started')
  for state in ('started',) * 5 + ('stop', 'stop', 'length', 'error'):
    told.on_call(dataclasses.replace(call, state=state))
  with told.shown() as take:
    take(dataclasses.replace(RECORD, score=None, status='unparseable'))
    take(RECORD)
    assert 'attempt' not in capsys.readouterr().out  # Not every record.
    take(dataclasses.replace(RECORD, attempt=1, score=0))
  (line,) = capsys.readouterr().out.splitlines()
  for part in (
    'attempt 2/2  score 50.0%',
    '4 calls, 1 running',
    'truncated 25.0%',
    'failed 2',
    'eta 0:00:00',
  ):
    assert part in line


def test_an_attempt_that_is_graded_again_counts_once(capsys):
  told = progress.Progress(1)
  with told.shown() as take:
    for score in (0, 7):
      take(dataclasses.replace(RECORD, score=score))
  last = capsys.readouterr().out.splitlines()[-1]
  assert 'attempt 1/1  score 100.0%' in last
