"""`qed ...`: what it prints, when, and with which exit code."""

import pathlib
import subprocess
import sys
import time

import pytest
from absl import app, flags

from qed import cli, config, schema, sft

REPOSITORY = pathlib.Path(__file__).parents[1]
BASELINE = f'--config={REPOSITORY}/experiments/sft_main.py'


@pytest.fixture
def qed(capsys):
  """Runs a command line in this process: (exit code, stdout, stderr)."""

  def call(*arguments):
    code = cli.main(['qed', *arguments])
    return code, *capsys.readouterr()

  return call


@pytest.fixture
def trained(monkeypatch):
  """What `qed sft` would have trained, instead of training it."""
  runs = []

  def record(run, workdir):
    runs.append((run, workdir))
    return cli.DONE

  monkeypatch.setattr(sft, 'train', record)
  return runs


@pytest.fixture
def inputs(tmp_path):
  """Flags for weights and data that exist."""
  (tmp_path / 'weights').mkdir()
  (tmp_path / 'traces.jsonl').touch()
  return [
    f'--config.model.path={tmp_path}/weights',
    f'--config.data.paths={tmp_path}/traces.jsonl',
    '--workdir=runs/x',
  ]


def start(*command, seconds=60):
  """Runs a command as a user does: (exit code, stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, *command],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=seconds,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


class TestPrograms:
  """The first word of the command line."""

  @pytest.mark.parametrize('flag', ['--help', '-h', 'help'])
  def test_help_tells_of_every_program(self, qed, flag):
    code, out, err = qed(flag)
    assert (code, err) == (0, '')
    for name, (_, text) in cli.PROGRAMS.items():
      assert f'  {name} ' in out
      assert text in out
      assert f'\n  qed {name} ' in out, 'an example'
    assert max(map(len, out.splitlines())) <= 80

  def test_nothing_at_all_is_wrong_usage_with_the_help(self, qed):
    code, out, err = qed()
    assert (code, out) == (2, '')
    assert 'qed PROGRAM' in err

  def test_an_unknown_program_names_the_nearest(self, qed):
    assert qed('stf', '--x=1') == (
      2,
      '',
      "qed: there is no program 'stf'; did you mean sft?\n",
    )

  @pytest.mark.parametrize('name', cli.PROGRAMS)
  def test_every_program_explains_itself(self, capsys, name):
    with pytest.raises(SystemExit) as stopped:
      cli.main(['qed', name, '--help'])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f'qed {name} ' in out
    assert 'Flags:' in out

  def test_the_help_of_a_program_has_every_field_of_its_config(self, capsys):
    with pytest.raises(SystemExit):
      cli.main(['qed', 'sft', BASELINE, '--help'])
    out = capsys.readouterr().out
    for path, text in schema.describe(config.SftConfig).items():
      assert f'--config.{path} ' in out
      assert text in out
    assert '--workdir' in out


class TestSft:
  """Flags, config files and overrides, on the example of `qed sft`."""

  def test_an_arm_and_overrides_reach_the_training(self, qed, trained, inputs):
    arm = f'--config={REPOSITORY}/experiments/sft_data.py:max_tokens=8192'
    code, _, err = qed(
      'sft',
      '--config.optim.clip_norm=2',  # Before --config, an int for a float.
      arm,
      '--config.training.seed',
      '7',
      '--config.packing.microbatch_counts=1,2',
      *inputs,
    )
    assert (code, err) == (0, '')
    ((run, workdir),) = trained
    assert run.data.max_tokens == 8_192
    assert run.optim.clip_norm == 2.0
    assert run.training.seed == 7
    assert run.packing.microbatch_counts == (1, 2)
    assert workdir == 'runs/x'

  def test_a_flag_may_be_repeated_for_a_list(self, qed, trained, inputs):
    more = inputs[1].replace('traces', 'more')
    pathlib.Path(more.partition('=')[2]).touch()
    assert qed('sft', BASELINE, *inputs, more)[0] == 0
    assert len(trained[0][0].data.paths) == 2

  @pytest.mark.parametrize('spelling', ['--config', '-config'])
  def test_the_file_may_stand_apart(self, qed, trained, inputs, spelling):
    path = BASELINE.partition('=')[2]
    assert qed('sft', *inputs, spelling, path)[0] == 0
    assert trained

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ([], '--config=FILE[:ARM] is missing'),
      (['--confg=x.py'], "did you mean it by 'confg'?"),
      (['--config'], "expected one --config=FILE[:ARM], got ['']"),
      ([BASELINE, '--config=x.py'], 'expected one --config=FILE[:ARM], got'),
      (
        [BASELINE.replace('sft_main', 'sft_man')],
        'did you mean ' + BASELINE.partition('=')[2],
      ),
      (
        [BASELINE.replace('sft_main', 'rl_main')],
        'is a config of `qed grpo`; this is qed sft',
      ),
      ([f'{BASELINE}:x'], "there is no arm 'x'\n  The arms are:\n  baseline\n"),
      (
        [BASELINE.replace('sft_main', 'sft_lr') + ':base,peak_lr=3e-5'],
        "no arm 'base,peak_lr=3e-5'; did you mean 'base,peak_lr=3e-05'?",
      ),
      ([BASELINE, '--wrkdir=x'], 'Did you mean: workdir'),
      ([BASELINE, 'x'], 'expected only flags, got x'),
      ([BASELINE], '--workdir=DIR is missing'),
      ([BASELINE, '--workdir='], '--workdir=DIR is missing'),
      (
        [BASELINE, '--config.optim.peek_lr=1'],
        "--config.optim.peek_lr=1: there is no field 'optim.peek_lr'; "
        'did you mean optim.peak_lr?',
      ),
      (
        [BASELINE, '--noconfig.training.sead'],
        "there is no field 'training.sead'; did you mean training.seed?",
      ),
      (
        [BASELINE, '--config.optin.peak_lr', '1'],
        'did you mean optim.peak_lr?',
      ),
      (
        [BASELINE, '--config.optim={}'],
        'optim is a section; set its fields one by one',
      ),
      (
        [BASELINE, '--config.training.seed=2.5'],
        '--config.training.seed=2.5: invalid literal for int() with base 10: '
        "'2.5'; expected an integer, from 0 to 2**32 - 1",
      ),
      (
        [BASELINE, '--config.optim.peak_lr=fast'],
        "could not convert string to float: 'fast'; expected a number, above 0",
      ),
      (
        [BASELINE, '--config.optim.peak_lr=None'],
        "to float: 'None'; expected a number, above 0",
      ),
      (
        [BASELINE, '--config.data.tokenizer=None'],
        "data.tokenizer = 'None': expected a text; the absence of one is ''",
      ),
      ([BASELINE, '--config.optim.peak_lr'], 'Missing value'),
      ([BASELINE, '--config.optim.peak_lr=-1'], '-1.0: must be above 0'),
      (
        [BASELINE, '--config.optim.schedule=cosin'],
        "did you mean 'cosine'?",
      ),
      (
        [BASELINE, '--config.mesh.data=5', '--config.mesh.context=7'],
        '\n  packing.num_rows = 32: must be a multiple of mesh.data = 5'
        '\n  packing.row_length = 45056: must be a multiple of',
      ),
    ],
  )
  def test_a_mistake_is_told_and_nothing_is_trained(
    self, qed, trained, arguments, message
  ):
    code, out, err = qed('sft', *arguments)
    assert (code, out) == (2, '')
    assert err.startswith('qed sft:')
    assert message in err
    assert 'Traceback' not in err
    assert not trained

  def test_all_missing_files_are_named(self, qed, trained, inputs, tmp_path):
    weights, data, workdir = inputs
    code, _, err = qed(
      'sft',
      BASELINE,
      weights.replace('weights', 'weigths'),
      data.replace('traces', 'trace'),
      '--config.data.tokenizer=nowhere/x',
      workdir,
    )
    assert code == 2
    assert err.splitlines() == [
      'qed sft:',
      f"  model.path = '{tmp_path}/weigths': no such file or folder; "
      f'did you mean {tmp_path}/weights?',
      "  data.tokenizer = 'nowhere/x': no such file or folder",
      f"  data.paths = '{tmp_path}/trace.jsonl': no such file or folder; "
      f'did you mean {tmp_path}/traces.jsonl?',
    ]
    assert not trained

  def test_a_path_on_another_machine_is_not_looked_for(self, qed, trained):
    code, _, err = qed(
      'sft',
      BASELINE,
      '--config.model.path=gs://bucket/weights',
      '--config.data.paths=gs://bucket/traces.jsonl',
      '--workdir=gs://bucket/run',
    )
    assert (code, err) == (0, '')
    assert trained


class TestConfigFile:
  """A config file with a mistake of its own."""

  @pytest.mark.parametrize(
    ('source', 'message'),
    [
      ('', "no attribute 'get_config'"),
      ('get_config = 3', "'int' object is not callable"),
      ('def get_config(', 'SyntaxError'),
      ('import nothing_of_this_name', 'ModuleNotFoundError'),
      ('\n\ndef get_config():\n  return 1 / 0\n', ', line 4: ZeroDivision'),
      ('def get_config():\n  return {}\n', "no attribute 'lock'"),
      (
        'from experiments import base\n'
        'def get_config():\n'
        "  return base.override(base.sft(), {'optim.peek_lr': 1.0})\n",
        ", line 3: ValueError: 'optim.peek_lr' is not a field of the config; "
        "did you mean 'optim.peak_lr'?",
      ),
      (
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        '  return ConfigDict()\n',
        'program = None: expected one of',
      ),
      (
        'from experiments import base\n'
        'def get_config():\n'
        '  config = base.sft()\n'
        '  del config.optim.eps\n'
        '  config.extra = 1\n'
        '  return config\n',
        'extra: no such field; ',
      ),
    ],
  )
  def test_is_told_without_a_stack_trace(self, qed, tmp_path, source, message):
    path = tmp_path / 'mine.py'
    path.write_text(source)
    code, _, err = qed('sft', f'--config={path}', '--workdir=x')
    assert code == 2
    assert message in err
    assert 'Traceback' not in err

  def test_may_take_an_arm_without_a_table_of_arms(
    self, qed, trained, inputs, tmp_path
  ):
    path = tmp_path / 'mine.py'
    path.write_text(
      'from experiments import base\n'
      'def get_config(seed):\n'
      "  return base.override(base.sft(), {'training.seed': int(seed)})\n"
    )
    assert qed('sft', f'--config={path}:5', *inputs)[0] == 0
    assert trained[0][0].training.seed == 5


class TestRun:
  """Exit codes."""

  def code(self, program):
    return cli.run(program, ['qed x'])

  def test_0_is_done(self):
    assert self.code(lambda argv: None) == 0

  def test_42_asks_for_a_restart(self):
    assert self.code(lambda argv: cli.RESTART) == 42

  @pytest.mark.parametrize(
    'error', [app.UsageError('one'), config.ConfigError(['one', 'two'])]
  )
  def test_2_is_for_the_user_to_mend(self, capsys, error):
    def fail(argv):
      raise error

    assert self.code(fail) == 2
    assert capsys.readouterr().err in (
      'qed x: one\n',
      'qed x:\n  one\n  two\n',
    )

  def test_an_interrupt_is_not_a_bug(self):
    def interrupted(argv):
      raise KeyboardInterrupt

    assert self.code(interrupted) == 130

  @pytest.mark.parametrize('error', [ValueError, KeyError, flags.Error])
  def test_a_bug_keeps_its_stack_trace(self, error):
    def fail(argv):
      raise error('bug')

    with pytest.raises(error):
      self.code(fail)


class TestParseFlags:
  """Flags and positional arguments of a program without a config."""

  def values(self):
    values = flags.FlagValues()
    flags.DEFINE_boolean('force', False, 'what for', flag_values=values)
    flags.DEFINE_integer('port', 80, 'of the server', flag_values=values)
    return values

  def test_arguments_and_flags_come_in_any_order(self):
    values = self.values()
    given = cli.parse_flags(
      ['x', 'a', '--force', 'b', '--port=1'],
      values,
      usage='',
      arguments=['A', 'B'],
    )
    assert given == ['a', 'b']
    assert (values['force'].value, values['port'].value) == (True, 1)

  @pytest.mark.parametrize(
    ('argv', 'message'),
    [
      ([], 'expected A B, got nothing'),
      (['a'], 'expected A B, got a'),
      (['a', 'b', 'c'], 'expected A B, got a b c'),
      (['a', 'b', '--forse'], 'Did you mean: force'),
      (['a', 'b', '--port=x'], "--port=x: invalid literal for int.*'x'"),
    ],
  )
  def test_a_mistake_is_a_usage_error(self, argv, message):
    with pytest.raises(app.UsageError, match=message):
      cli.parse_flags(
        ['x', *argv], self.values(), usage='', arguments=['A', 'B']
      )

  def test_help_has_every_flag_and_its_default(self, capsys):
    with pytest.raises(SystemExit) as stopped:
      cli.parse_flags(['x', '--help'], self.values(), usage='\nHow to.\n')
    assert stopped.value.code == 0
    assert capsys.readouterr().out == (
      'How to.\n\nFlags:\n  --force: what for\n  --port: of the server (80)\n'
    )


class TestProcess:
  """As a user starts it; every start takes a moment, so there are few."""

  MISTAKE = (BASELINE, '--config.optim.peek_lr=1')

  def test_a_mistake_is_told_within_a_second(self):
    seconds = []
    for _ in range(3):  # Other work on the machine is not ours.
      began = time.perf_counter()
      code, out, err = start('-m', 'qed.cli', 'sft', *self.MISTAKE)
      seconds.append(time.perf_counter() - began)
      assert (code, out) == (2, '')
      assert 'did you mean optim.peak_lr?' in err
      assert 'Traceback' not in err
      if seconds[-1] < 1:
        return
    pytest.fail(f'took {seconds} seconds')

  def test_a_program_can_be_started_as_a_module(self):
    code, _, err = start('-m', 'qed.sft', *self.MISTAKE)
    assert code == 2
    assert err.startswith('sft.py: --config.optim.peek_lr=1: ')

  def test_jax_is_not_imported_before_the_command_line_is_read(self):
    code, out, err = start(
      '-c',
      'import sys\n'
      'from qed import cli, demo, hub, plan, sft\n'
      'from experiments import base\n'
      'slow = {"jax", "transformers", "orbax", "grain"}\n'
      'print(sorted(slow & set(sys.modules)))',
    )
    assert (code, out) == (0, '[]\n'), err

  def test_a_bug_is_1_with_its_stack_trace(self):
    code, _, err = start(
      '-c', 'from qed import cli; cli.run(lambda argv: 1 / 0)'
    )
    assert code == 1
    assert 'ZeroDivisionError' in err
