"""`qed report`: what is written about a run is what the run left behind."""

import html.parser
import json
import math
import shutil
import subprocess

import pytest

from qed import cli, report
from qed.reporting import naming, page, plots, rollouts

HOSTILE = (
  '</script><script>document.title = "won"</script><img src=x onerror=1>'
)


def write_lines(path, records):
  path.write_text(
    ''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8'
  )


def rollout(group, index, **changes):
  return {
    'group_id': group,
    'rollout': index,
    'problem_id': f'p{group}',
    'prompt_token_ids': [1, 2],
    'token_ids': [3, 4],
    'logprobs': [-0.5, None],
    'versions': [group, group + 1],
    'text': 'think</think>Since $x^2 \\ge 0$, done.',
    'finish_reason': 'stop',
    'grade': {
      'score': index,
      'status': 'ok',
      'feedback': HOSTILE,
      'judge': 'j',
      'usage': {},
    },
    'reward': index / 7,
  } | changes


@pytest.fixture
def run_dir(tmp_path):
  """A run of ten groups of two, of which group 3 was inspected."""
  folder = tmp_path / 'run'
  folder.mkdir()
  write_lines(
    folder / 'metrics.jsonl',
    [
      {'step': step, 'reward/mean': step / 10, 'mismatch/max': 10.0**-step}
      for step in range(1, 6)
    ],
  )
  config = {'config': {'optim': {'peak_lr': 0.25}}, 'packages': {'jax': '9.9'}}
  (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
  write_lines(
    folder / 'rollouts.jsonl',
    [rollout(group, index) for group in range(10) for index in range(2)],
  )
  write_lines(
    folder / 'problems.jsonl',
    [{'problem_id': 'p3', 'statement': HOSTILE, 'rubric': '7 points'}],
  )
  write_lines(
    folder / 'inspected.jsonl',
    [
      {
        'step': 2,
        'group_id': 3,
        'rollout': index,
        'advantage': index - 0.5,
        'trainer_logprobs': [-0.5, -0.75],
        'tokens': ['a', 'b'],
      }
      for index in range(2)
    ],
  )
  return folder


class Page(html.parser.HTMLParser):
  """Collects the tags of a page and the content of its data element."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.data, self._in_data = [], '', False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._in_data = dict(attrs).get('id') == 'data'

  def handle_endtag(self, tag):
    self._in_data = False

  def handle_data(self, data):
    self.data += data if self._in_data else ''


def test_the_step_that_compiles_does_not_hide_the_others():
  panel = plots.Panel(
    title='', unit='', names=('secs/train',), skips_first=True
  )
  steps = {3: 90.0, 4: 1.0, 5: 1.5}
  drawn, alone = (
    plots.draw(
      panel,
      {'run': {n: {'secs/train': secs} for n, secs in chosen.items()}},
    )
    for chosen in (steps, {3: 0.0, 4: 1.0, 5: 1.5})
  )
  assert drawn == alone


def test_a_page_holds_the_groups_and_runs_nothing_that_they_contain(run_dir):
  assert report.main(['qed report', str(run_dir)]) == cli.DONE
  text = (run_dir / 'report/index.html').read_text(encoding='utf-8')
  seen = Page(text)
  (run,) = json.loads(seen.data)
  group = run['groups'][3]
  assert run['num_groups'] == 10
  assert group['problem']['statement'] == HOSTILE
  assert group['rollouts'][1]['grade']['feedback'] == HOSTILE
  assert group['rollouts'][1]['trainer_logprobs'] == [-0.5, -0.75]
  assert group['step'] == 2
  scripts = [attrs for tag, attrs in seen.tags if tag == 'script']
  assert [s.get('src') for s in scripts] == [
    None,
    'assets/katex/katex.min.js',
    'assets/katex/auto-render.min.js',
    'assets/viewer.js',
  ]
  assert 'img' not in {tag for tag, _ in seen.tags}


def test_everything_a_page_refers_to_lies_beside_it(run_dir):
  report.main(['qed report', str(run_dir)])
  folder = run_dir / 'report'
  text = (folder / 'index.html').read_text(encoding='utf-8')
  for _, attrs in Page(text).tags:
    for name in ('src', 'href'):
      target = attrs.get(name, '#')
      # Glyphs and marks of the plots are elements of the page itself.
      assert target.startswith('#') or (folder / target).is_file(), target
  styles = (folder / 'assets/katex/katex.min.css').read_text(encoding='utf-8')
  fonts = {part.split(')')[0] for part in styles.split('url(')[1:]}
  assert len(fonts) == 20
  for font in fonts:
    assert (folder / 'assets/katex' / font).is_file()


def test_runs_share_a_page_and_differing_fields_come_first(run_dir, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(run_dir, other)
  config = {'config': {'model': {'path': 'm'}, 'optim': {'peak_lr': 0.5}}}
  (other / 'config.json').write_text(json.dumps(config), encoding='utf-8')
  runs = [report._read(path, path.name, 1) for path in (run_dir, other)]
  assert page._settings(runs)[0] == ('optim.peak_lr', [0.25, 0.5])
  with pytest.raises(Exception, match='--out=FOLDER'):
    report.main(['qed report', str(run_dir), str(other)])
  out = tmp_path / 'both'
  report.main(['qed report', f'--out={out}', str(run_dir), str(other)])
  text = (out / 'index.html').read_text(encoding='utf-8')
  assert 'run: reward/mean' in text
  assert 'other: reward/mean' in text


def test_the_heading_of_many_runs_is_short(run_dir, tmp_path):
  for name in 'abcde':
    shutil.copytree(run_dir, tmp_path / 'runs' / name)
  report.main(['qed report', f'--out={tmp_path / "out"}', f'{tmp_path}/runs'])
  text = (tmp_path / 'out/index.html').read_text(encoding='utf-8')
  assert '<h1>a · b · c · d and 1 more</h1>' in text


def test_a_folder_of_runs_stands_for_all_of_them(run_dir, tmp_path):
  report.main(['qed report', '--out', str(tmp_path / 'out'), str(tmp_path)])
  text = (tmp_path / 'out/index.html').read_text(encoding='utf-8')
  assert '<h3>run</h3>' in text


def test_runs_of_one_name_are_called_by_as_much_of_their_paths_as_differs():
  paths = ('r/a/x', 'r/b/x', 'r/c/a/x', 'r/y', 'r/a/x')
  # Of the one that is given twice there is one name.
  assert naming.run_names(paths) == ['r/a/x', 'b/x', 'c/a/x', 'y', 'r/a/x']
  assert naming.run_names(['/x', '/a/x']) == ['/x', 'a/x']


def test_runs_of_one_name_in_two_folders_are_told_apart(run_dir, tmp_path):
  for folder in ('evaluate-rl', 'evaluate-rc'):
    shutil.copytree(run_dir, tmp_path / folder / 'turns=1')
  folders = [tmp_path / 'evaluate-rl', tmp_path / 'evaluate-rc']
  report.write([run_dir, *folders], tmp_path / 'out', 0)
  text = (tmp_path / 'out/index.html').read_text(encoding='utf-8')
  for name in ('run', 'evaluate-rl/turns=1', 'evaluate-rc/turns=1'):
    assert f'<h3>{name}</h3>' in text
    assert f'{name}: reward/mean' in text  # A curve of its own.


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
  assert cli.run(report.main, ['qed report', str(tmp_path)]) == cli.USAGE
  assert 'expected a run directory' in capsys.readouterr().err


def test_the_groups_shown_are_spread_and_inspected_ones_come_first(run_dir):
  groups, total = rollouts.choose(run_dir, max_groups=4)
  assert total == 10
  assert [group['group_id'] for group in groups] == [0, 3, 5, 9]
  assert rollouts.choose(run_dir, max_groups=0)[0] == []
  (only,), _ = rollouts.choose(run_dir, max_groups=1)
  assert only['group_id'] == 3


def test_of_two_lines_about_one_rollout_the_last_counts(run_dir):
  with (run_dir / 'rollouts.jsonl').open('a', encoding='utf-8') as file:
    file.write(json.dumps(rollout(4, 0, text='again')) + '\n')
  groups, _ = rollouts.choose(run_dir, max_groups=99)
  assert [r['text'] for r in groups[4]['rollouts']] == [
    'again',
    rollout(4, 1)['text'],
  ]


def test_a_line_in_the_making_is_left_out_and_a_broken_one_is_named(run_dir):
  path = run_dir / 'rollouts.jsonl'
  with path.open('a', encoding='utf-8') as file:
    file.write('{"group_id": 77')
  assert rollouts.choose(run_dir, max_groups=99)[1] == 10
  with path.open('a', encoding='utf-8') as file:
    file.write('\n')
  with pytest.raises(ValueError, match=r'rollouts.jsonl:21: .*group_id'):
    rollouts.choose(run_dir, max_groups=99)


def test_a_curve_has_a_point_for_every_finite_value():
  panel = plots.Panel(title='A', unit='u', names=('a', 'b/*'))
  metrics = {1: {'a': 1.0, 'b/x': 3.0}, 2: {'a': math.nan}, 3: {'a': 2.0}}
  svg = plots.draw(panel, {'run': metrics})
  assert svg.startswith('<svg')
  assert 'b/x' in svg
  assert plots.draw(panel, {'run': {1: {'c': 1.0}}}) is None
  assert plots.draw(panel, {'run': {1: {'a': math.inf}}}) is None
  logarithmic = plots.Panel(title='A', unit='', names=('a',), logarithmic=True)
  assert plots.draw(logarithmic, {'run': {1: {'a': 0.0}}}) is None


def test_no_panel_is_shadowed_by_one_before_it():
  # A metric is drawn once per panel, and every pattern can match.
  titles = [panel.title for panel in plots.PANELS]
  assert len({*titles}) == len(titles)
  assert plots.match(plots.PANELS[0], ['reward/mean', 'loss']) == [
    'reward/mean'
  ]


@pytest.mark.skipif(not shutil.which('node'), reason='needs node')
def test_the_viewer_is_a_script_that_parses():
  path = page._ASSETS / 'viewer.js'
  subprocess.run(['node', '--check', path], check=True, timeout=60)
