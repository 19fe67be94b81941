"""What a run directory says to launchers."""

import json

from launch import run_dirs


def test_what_is_saved_is_the_newest_whole_checkpoint_or_the_journals(
  tmp_path,
):
  (tmp_path / 'records.jsonl').write_text('12345')
  (tmp_path / 'stages' / '1_quality').mkdir(parents=True)
  (tmp_path / 'stages' / '1_quality' / 'kept.jsonl').write_text('678')
  assert run_dirs.saved(tmp_path) == 8
  for name in ('9', '10', '12', '11.orbax-checkpoint-tmp', 'best'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    if name != '12':
      (tmp_path / 'checkpoints' / name / 'state').touch()
  assert run_dirs.saved(tmp_path) == 10


def test_a_line_in_the_making_is_no_attempt(tmp_path):
  assert run_dirs.read_attempts(tmp_path) == []
  for code in (42, 0):
    run_dirs.record_attempt(
      tmp_path, job='main', exit_codes=[code, None], verdict='-', secs=1.23456
    )
  path = tmp_path / run_dirs.ATTEMPTS
  with path.open('a') as file:
    file.write(json.dumps({'job': 'main'})[:-4])
  found = run_dirs.read_attempts(tmp_path)
  assert [end['exit_codes'] for end in found] == [[42, None], [0, None]]
  assert found[0]['secs'] == 1.235
