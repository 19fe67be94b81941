"""Work units as processes of this machine: started, watched, started again."""

import json
import textwrap
import time

import pytest
from absl import app

from launch import exit_codes, run_dirs
from launch.experiment import Cpu, Job, Tpu, WorkUnit
from launch.local_processes import LocalProcesses
from tests.launch.children import ends, make, python, starts, submit

__all__ = ['python', 'submit']  # Fixtures.


# What is rendered.


def test_a_work_unit_is_rendered_as_command_lines_with_names_for_ports():
  sampler = Job(
    name='sampler',
    program='serve',
    flags={'checkpoint': 'x y'},
    requirements=Cpu(devices=4),
    is_service=True,
    port_flag='port',
    host_flag='host',
  )
  main = Job(
    name='main',
    program='grpo',
    flags={'config.sampler.urls': "('{url:sampler}/v1',)"},
    num_processes=2,
    secrets=('JUDGE_KEY',),
  )
  unit = WorkUnit(name='u', workdir='/runs/u', jobs=(main, sampler))
  found = LocalProcesses(python='py').render(unit)
  common = ('env', 'PYTHONUNBUFFERED=1', 'JAX_PLATFORMS=cpu')
  assert not found.files
  assert found.commands == (
    (
      *common,
      'JAX_NUM_CPU_DEVICES=4',
      *('py', '-m', 'qed.serve', '--checkpoint=x y', '--port={port:sampler}'),
    ),
    *(
      (
        *common,
        'JAX_NUM_CPU_DEVICES=1',
        'JAX_COORDINATOR_ADDRESS=127.0.0.1:{port:main}',
        'JAX_NUM_PROCESSES=2',
        f'JAX_PROCESS_ID={rank}',
        *('py', '-m', 'qed.grpo'),
        "--config.sampler.urls=('http://127.0.0.1:{port:sampler}/v1',)",
      )
      for rank in range(2)
    ),
  )
  assert (
    'JAX_NUM_CPU_DEVICES=3'
    in (LocalProcesses(devices_per_process=3).render(unit).commands[0])
  )
  free = LocalProcesses(platform='cuda', python='py').render(unit).commands[0]
  assert free[:4] == ('env', 'PYTHONUNBUFFERED=1', 'JAX_PLATFORMS=cuda', 'py')
  free = LocalProcesses(platform='', python='py').render(unit).commands[0]
  assert free[:3] == ('env', 'PYTHONUNBUFFERED=1', 'py')


def test_a_slice_or_a_bucket_is_not_of_this_machine(tmp_path):
  with pytest.raises(app.UsageError, match=r'requires Tpu\(.*4x4x4'):
    LocalProcesses().render(
      make(tmp_path, '', requirements=Tpu('v5p', '4x4x4'))
    )
  unit = WorkUnit(
    name='u', workdir='gs://b/u', jobs=make(tmp_path, '').jobs[:1]
  )
  with pytest.raises(app.UsageError, match='gs://b/u'):
    LocalProcesses().render(unit)


# Runs.


def test_each_process_has_its_own_log_and_its_name_on_the_terminal(
  submit, tmp_path
):
  unit = make(
    tmp_path,
    """
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PLATFORMS'
    write(f'seen{rank}', ' '.join(os.environ[n] for n in names))
    print('a line of', rank)
    sys.stderr.write('the last of %d has no end' % rank)
    """,
    num_processes=2,
  )
  code, out = submit(unit)
  assert code == exit_codes.DONE
  for rank in range(2):
    path = tmp_path / 'unit' / 'logs' / f'main.{rank}.log'
    assert path.read_text() == (
      f'a line of {rank}\nthe last of {rank} has no end'
    )
    assert f'\n[1 main.{rank}] a line of {rank}\n' in out
    assert f'\n[1 main.{rank}] the last of {rank} has no end\n' in out
  seen = [(tmp_path / 'unit' / f'seen{rank}').read_text() for rank in range(2)]
  assert seen[0] == seen[1]
  address, count, platform = seen[0].split()
  assert (address[:10], count, platform) == ('127.0.0.1:', '2', 'cpu')
  assert int(address[10:]) > 1023
  assert ends(unit) == [([0, 0], 'done')]


@pytest.mark.parametrize(
  ('end', 'recorded', 'has_restarted'),
  [
    ('sys.exit(42)', 42, True),
    ('die()', 137, True),
    ('die(signal.SIGTERM)', 143, True),
    ('os.abort()', 134, True),
    ('sys.exit(1)', 1, False),
    ('sys.exit(2)', 2, False),
    ('sys.exit(3)', 3, False),
  ],
)
def test_the_exit_code_says_whether_to_start_again(
  submit, tmp_path, end, recorded, has_restarted
):
  unit = make(tmp_path, f'if start == 1: {end}')
  code, _ = submit(unit)
  if has_restarted:
    assert code == exit_codes.DONE
    assert ends(unit) == [([recorded], 'restart'), ([0], 'done')]
  else:
    assert code == (recorded if recorded < 3 else exit_codes.BUG)
    assert ends(unit) == [([recorded], 'permanent')]


def test_restarts_are_bounded_where_nothing_new_is_saved(submit, tmp_path):
  unit = make(tmp_path, 'sys.exit(42)')
  code, out = submit(unit, max_restarts=2)
  assert code == exit_codes.BUG
  assert len(starts(unit)) == 3
  assert [verdict for _, verdict in ends(unit)] == [
    'restart',
    'restart',
    'permanent',
  ]
  assert 'main was started again 2 times and saved nothing new' in out


def test_a_run_that_gets_on_may_be_restarted_forever(submit, tmp_path):
  do = """
    if start < 8:
      if start % 2: save(start)
      die()
    """
  unit = make(tmp_path, do)
  assert submit(unit, max_restarts=1)[0] == exit_codes.DONE
  assert len(starts(unit)) == 8


def test_one_dead_process_ends_its_gang_and_they_start_again(submit, tmp_path):
  unit = make(
    tmp_path,
    """
    if start == 1:
      write(f'there{rank}')
      if rank == 1:
        wait('there0'), wait('there2')
        die()
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      time.sleep(60)
    """,
    num_processes=3,
  )
  began = time.monotonic()
  assert submit(unit)[0] == exit_codes.DONE
  assert time.monotonic() - began < 50
  assert ends(unit) == [
    ([None, 137, None], 'restart'),
    ([0, 0, 0], 'done'),
  ]


def test_a_job_is_not_done_where_a_process_had_to_be_killed(submit, tmp_path):
  do = """
    if start == 2: sys.exit(2)
    if rank: time.sleep(60)
    """
  unit = make(tmp_path, do, num_processes=2)
  submit(unit, grace_secs=0.1)
  assert ends(unit)[0] == ([0, None], 'restart')


def test_work_units_take_turns_and_one_that_fails_does_not_stop_them(
  submit, tmp_path
):
  do = """
    write('began', time.time())
    wait('../unit{other}/began')
    time.sleep(0.2)
    write('ended', time.time())
    """
  units = [
    make(tmp_path, 'sys.exit(2)', name='bad'),
    make(tmp_path, do.replace('{other}', '1'), name='unit0'),
    make(tmp_path, do.replace('{other}', '0'), name='unit1'),
    make(tmp_path, do.replace('{other}', '2'), name='unit2'),
  ]
  code, _ = submit(*units, n=2)
  assert code == exit_codes.USAGE
  began, ended = (
    [float((tmp_path / f'unit{i}' / name).read_text()) for i in range(3)]
    for name in ('began', 'ended')
  )
  assert began[2] > min(ended[:2])


# Secrets.


def test_a_secret_reaches_the_jobs_that_name_it_and_no_file(
  submit, tmp_path, monkeypatch
):
  monkeypatch.setenv('JUDGE_KEY', 'sk-planted')
  monkeypatch.setenv('QED_API_KEY', 'sk-other')
  look = """
    names = {'JUDGE_KEY', 'QED_API_KEY'} & {*os.environ}
    write(f'{program}.seen', sorted(names))
    """
  unit = make(
    tmp_path,
    look,
    services={'judge': textwrap.dedent(look) + 'serve()'},
    secrets=('JUDGE_KEY',),
  )
  code, out = submit(unit)
  assert code == exit_codes.DONE
  folder = tmp_path / 'unit'
  assert (folder / 'qed.sft.seen').read_text() == "['JUDGE_KEY']"
  assert (folder / 'qed.of_judge.seen').read_text() == '[]'
  written = [p.read_text() for p in folder.rglob('*') if p.is_file()]
  rendered = LocalProcesses().render(unit)
  for text in (out, str(rendered), *written):
    assert 'sk-' not in text


def test_a_secret_that_is_missing_is_told_before_anything_starts(
  submit, tmp_path, monkeypatch
):
  monkeypatch.delenv('JUDGE_KEY', raising=False)
  unit = make(tmp_path, '', secrets=('JUDGE_KEY',))
  with pytest.raises(app.UsageError, match='JUDGE_KEY'):
    submit(unit)
  assert not (tmp_path / 'unit').exists()


# What is on file.


def test_an_end_is_on_file_with_its_time_and_what_was_saved(submit, tmp_path):
  unit = make(tmp_path, 'if start == 1: save(7); sys.exit(42)')
  submit(unit)
  text = (tmp_path / 'unit' / run_dirs.ATTEMPTS).read_text()
  first, second = map(json.loads, text.splitlines())
  assert first['saved'] == second['saved'] == 7
  assert first['time'] <= second['time']
  assert first['time'].endswith('+00:00')
  assert 0 < first['secs'] < 30
