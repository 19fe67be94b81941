"""Leaderboards: what stands beside what, and what never does."""

import copy
import re

import pytest

from qed.reporting import leaderboard, naming, published, score_plots

PUBLISHED = 'published, Gemini 3 Pro'


def entry(run='run', percent=41.2, **changes):
  """One of `evaluations`; a key with a dot is one of its identity."""
  points = percent * 7 / 100
  found = {
    'run': run,
    'model': 'QED-Nano',
    'scaffold': 'single',
    'turns': 1,
    'max_tokens': 0,
    'split': '',
    'is_published_content': True,
    'num_problems': 60,
    'num_attempts': 3,
    'num_graded': 180,
    'score': {
      'value': points,
      'percent': {'value': percent, 'low': percent - 8, 'high': percent + 8},
    },
    'spread': {'percent': 0.9},
    'tokens': {'completion': 100_000.0},
    'identity': {
      'benchmark': 'imo_proofbench',
      'content': 'c' * 64,
      'checkpoint': 'w',
      'config': run,
      'judge': 'j1',
      'judge_name': 'oss, imo',
    },
  }
  for name, value in changes.items():
    where = found['identity'] if name in found['identity'] else found
    where[name] = value
  return found


def cells(table):
  """Row -> column (title, whose) -> text."""
  heads = [
    (c.title, f'published, {c.by}' if c.is_published else c.by)
    for c in table.columns
  ]
  return {row[0]: dict(zip(heads, row, strict=True)) for row in table.rows}


class TestMainTable:
  """The shape of Table 1."""

  def test_a_cell_has_mean_spread_and_interval(self):
    found = cells(leaderboard.main_table([entry()]))
    ours = ('IMO-ProofBench, 60 problems', 'oss, imo')
    assert found['QED-Nano'][ours] == '41.2 (0.9) [33.2, 49.2]'

  def test_published_figures_have_a_column_of_their_own(self):
    table = leaderboard.main_table([entry()])
    found = cells(table)
    theirs = ('IMO-ProofBench', PUBLISHED)
    assert found['QED-Nano'][theirs] == '40.0 (0.6)'
    assert found['QED-Nano + RSA'][theirs] == '56.9 (5.9)'
    ours = ('IMO-ProofBench, 60 problems', 'oss, imo')
    assert found['QED-Nano + RSA'][ours] == '–'
    assert found['Gemini 3 Pro'] == {
      ('Model', ''): 'Gemini 3 Pro',
      theirs: '58.7 (2.9)',
      ours: '–',
    }
    flags = [c.is_published for c in table.columns]
    assert flags == [False, True, False]

  def test_every_judge_has_a_column(self):
    table = leaderboard.main_table(
      [entry(), entry(percent=55.0, judge='j2', judge_name='stern, imo')]
    )
    found = cells(table)['QED-Nano']
    title = 'IMO-ProofBench, 60 problems'
    assert found[title, 'oss, imo'].startswith('41.2')
    assert found[title, 'stern, imo'].startswith('55.0')
    assert len(table.rows) == len({row[0] for row in table.rows})

  def test_judges_of_one_name_are_told_apart(self):
    table = leaderboard.main_table([entry(), entry(judge='j2')])
    assert [c.by for c in table.columns][2:] == ['oss, imo #j1', 'oss, imo #j2']

  @pytest.mark.parametrize(
    'change',
    [
      {'content': 'd' * 64},
      {'split': 'advanced'},
      {'num_problems': 10},
      {'benchmark': 'proofbench'},
    ],
  )
  def test_other_problems_have_another_column(self, change):
    table = leaderboard.main_table([entry('a'), entry('b', **change)])
    ours = [c for c in table.columns[1:] if not c.is_published]
    assert len(ours) == 2

  def test_runs_that_would_share_a_cell_have_rows_of_their_own(self):
    table = leaderboard.main_table([entry('a'), entry('b', percent=50.0)])
    rows = [row for row in table.rows if row[0].startswith('QED-Nano')]
    assert [row[0] for row in rows][:2] == ['QED-Nano', 'QED-Nano (b)']
    assert rows[1][2].startswith('50.0')

  def test_another_checkpoint_of_one_name_has_a_row(self):
    table = leaderboard.main_table(
      [entry('a'), entry('b', checkpoint='v', benchmark='proofbench')]
    )
    assert 'QED-Nano (b)' in cells(table)

  def test_benchmarks_of_one_model_share_a_row(self):
    """Their prompts differ, and so do the digests of their configurations."""
    found = cells(
      leaderboard.main_table([entry('a'), entry('b', benchmark='proofbench')])
    )
    row = found['QED-Nano']
    assert len([text for text in row.values() if '[' in text]) == 2

  def test_what_is_not_graded_yet_is_seen(self):
    table = leaderboard.main_table([entry(num_graded=171)])
    assert cells(table)['QED-Nano'][
      'IMO-ProofBench, 60 problems', 'oss, imo'
    ].endswith(' 171/180')

  def test_nothing_graded_is_no_zero(self):
    nothing = entry(num_graded=0)
    nothing['score']['percent'] = dict.fromkeys(('value', 'low', 'high'))
    table = leaderboard.main_table([nothing])
    assert table.rows[0][2] == '–'


class TestScaffoldTable:
  """The shape of Table 2."""

  def entries(self):
    return [
      entry('rsa', 56.0, scaffold='rsa', tokens={'completion': 2_100_000}),
      entry('single'),
      entry(
        'rc',
        42.0,
        scaffold='reasoning_cache',
        turns=3,
        tokens={'completion': 250_000},
      ),
      entry(
        'rc7',
        45.0,
        scaffold='reasoning_cache',
        turns=7,
        tokens={'completion': 600_000},
      ),
    ]

  def test_tokens_are_multiples_of_a_single_turn(self):
    table = leaderboard.scaffold_table(self.entries())
    found = cells(table)
    assert [row[0] for row in table.rows][:4] == [
      'Single turn',
      'Reasoning cache, 3 turns',
      'Reasoning cache, 7 turns',
      'RSA',
    ]
    assert found['RSA']['Tokens', ''] == '2,100,000'
    assert found['RSA']['× single', ''] == '21.00'
    assert found['RSA']['× single', PUBLISHED] == '21.84'
    assert found['Single turn']['Tokens', PUBLISHED] == '93,690'

  def test_published_figures_stand_beside_equal_settings_alone(self):
    budget = entry(
      'cheap', 50.0, scaffold='rsa', max_tokens=500_000,
      tokens={'completion': 400_000.0},
    )  # fmt: skip
    found = cells(leaderboard.scaffold_table([*self.entries(), budget]))
    assert found['Reasoning cache, 3 turns']['Score, %', PUBLISHED] == '44.0'
    assert found['Reasoning cache, 7 turns']['Score, %', PUBLISHED] == '–'
    cheap = found['RSA, at most 500,000 tokens']
    assert cheap['Score, %', PUBLISHED] == '–'
    assert found['DeepSeekMath-V2']['Score, %', 'oss, imo'] == '–'
    assert found['DeepSeekMath-V2']['Score, %', PUBLISHED] == '54.0'

  @pytest.mark.parametrize(
    'change',
    [{'model': 'Mine'}, {'benchmark': 'proofbench'}, {'num_problems': 30}],
  )
  def test_other_models_and_problems_have_no_published_columns(self, change):
    entries = [copy.deepcopy(e) for e in self.entries()]
    for e in entries:
      for name, value in change.items():
        (e['identity'] if name in e['identity'] else e)[name] = value
    table = leaderboard.scaffold_table(entries)
    assert not any(column.is_published for column in table.columns)
    assert 'Published' not in table.note

  def test_without_a_single_turn_there_is_no_multiple(self):
    table = leaderboard.scaffold_table(self.entries()[:1])
    assert cells(table)['RSA']['× single', ''] == '–'


def test_turns_stand_beside_the_published_ones():
  """The shape of Table 6."""
  entries = [
    entry('b', 45.0, scaffold='reasoning_cache', turns=7),
    entry('a', 40.0, scaffold='reasoning_cache', turns=1),
  ]
  table = leaderboard.turns_table(entries)
  assert [row[0] for row in table.rows] == ['1', '3', '5', '7']
  found = cells(table)
  assert found['7']['Score, %', PUBLISHED] == '54.0'
  assert found['7']['Score, %', 'oss, imo'].startswith('45.0')
  assert found['5']['Score, %', 'oss, imo'] == '–'
  assert found['1']['Score, %', PUBLISHED] == '–'


def test_differences_are_in_percent_with_their_sign():
  pair = {
    'first': 'b',
    'second': 'a',
    'difference': 0.7,
    'low': -0.07,
    'high': 1.4,
    'p_value': 0.0312,
    'better': 12,
    'equal': 40,
    'worse': 8,
  }
  table = leaderboard.comparison_table([pair])
  assert table.rows == [
    ['b − a', '+10.0', '−1.0 .. +20.0', '0.0312', '12 / 40 / 8']
  ]


def test_tables_are_of_one_judge_and_one_checkpoint():
  found = leaderboard.tables(
    [
      entry('a', scaffold='rsa'),
      entry('b', scaffold='rsa', judge='j2', judge_name='stern'),
      entry('c', scaffold='rsa', checkpoint='v'),
    ]
  )
  about = [t for t in found if t.title.startswith('Scaffolds')]
  assert len(about) == 3
  assert {t.columns[1].by for t in about} == {'oss, imo', 'stern'}


def test_markdown_marks_what_is_published_and_escapes_the_rest():
  text = leaderboard.markdown(
    leaderboard.tables([entry(judge_name='a|b *c* <d>')])
  )
  lines = text.splitlines()
  header = next(line for line in lines if line.startswith('| Model'))
  assert 'IMO-ProofBench (published, Gemini 3 Pro)' in header
  assert r'a\|b \*c\* \<d\>' in header
  row = next(line for line in lines if line.startswith('| QED-Nano |'))
  assert row == '| QED-Nano | *40.0 (0.6)* | 41.2 (0.9) [33.2, 49.2] |'
  widths = {len(re.findall(r'(?<!\\)\|', x)) for x in lines if x[:1] == '|'}
  assert widths == {4}


def test_nothing_to_compare_is_no_table():
  assert leaderboard.tables([]) == []


class TestPublished:
  """Figures of the report, against each other."""

  def test_overlapping_tables_agree_where_they_do(self):
    for scaffold in ('single', 'deepseek_math', 'rsa'):
      main = published.MAIN['QED-Nano', scaffold]['imo_proofbench'][0]
      assert published.SCAFFOLDS[scaffold, 1][0] == main

  def test_the_published_multiples_follow_from_the_tokens(self):
    single = published.SCAFFOLDS['single', 1][1]
    multiples = [
      round(tokens / single, 2) for _, tokens in published.SCAFFOLDS.values()
    ]
    assert multiples == [1.0, 2.53, 17.14, 21.84]

  def test_the_published_names_are_known(self):
    scaffolds = {scaffold for _, scaffold in published.MAIN}
    assert scaffolds <= naming.SCAFFOLDS.keys()
    assert len(published.MAIN) == 12


class TestFigures:
  """Score against tokens, and by turn."""

  def test_one_figure_for_each_question(self):
    entries = [
      entry('a'),
      entry('b', 45.0, scaffold='reasoning_cache', turns=3),
      entry('c', 48.0, scaffold='reasoning_cache', turns=5),
    ]
    tokens, turns = score_plots.figures(entries)
    assert tokens[0].startswith('Score against tokens')
    assert 'tokens of an attempt' in tokens[2]
    assert 'Reasoning cache, 5 turns' in tokens[2]
    assert 'RSA, published' in tokens[2]
    assert turns[0].startswith('Score by turn')
    assert turns[2].startswith('<svg')
    assert 'Gemini 3 Pro' in turns[1]

  def test_a_single_point_is_no_figure(self):
    assert score_plots.figures([entry()]) == []

  def test_one_scaffold_alone_can_be_drawn(self):
    ((_, _, svg),) = score_plots.figures([entry(model='Mine', scaffold='rsa')])
    assert svg.startswith('<svg')

  def test_other_models_have_no_published_points(self):
    entries = [
      entry('a', model='Mine'),
      entry('b', 45.0, model='Mine', scaffold='rsa'),
    ]
    ((_, note, svg),) = score_plots.figures(entries)
    assert 'published' not in note + svg
