"""What a run directory says to launchers."""

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
