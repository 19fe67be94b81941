"""Loaders of benchmarks on public files, and on files made like them."""

import csv
import dataclasses
import json

import pytest

from qed.evals import benchmarks
from qed.types import Problem


@pytest.fixture
def imobench(shared_data):
  return shared_data / 'imobench'


def write(path, rows):
  if path.suffix == '.jsonl':
    lines = [json.dumps(row) for row in rows]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  elif path.suffix == '.csv':
    with path.open('w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  else:
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return path


def proofbench_rows():
  years = ['2024'] * 35 + ['2025'] * 35 + ['2022'] * 40 + ['2023'] * 35
  return [
    {
      'problem_id': f'PB-IMO-{year}-{index}',
      'problem': f'Prove statement {index}.',
      'grading_scheme': '7 points for a proof.',
      'solution': 'It follows.',
    }
    for index, year in enumerate(years)
  ]


def matharena_rows(num_problems, points):
  return [
    {
      'problem_idx': index,
      'problem': f'Prove statement {index}.',
      'points': sum(points),
      'sample_solution': 'It follows.',
      'sample_grading': '...',
      'grading_scheme': [
        {'title': f'Step {n}', 'desc': 'Shown.', 'points': p}
        for n, p in enumerate(points)
      ],
    }
    for index in range(1, num_problems + 1)
  ]


class TestImoBench:
  """The published files themselves."""

  def test_proofbench_has_its_splits_levels_and_content(self, imobench):
    found = benchmarks.load('imo_proofbench', imobench / 'proofbench_v2.csv')
    assert found.kind == 'proof'
    assert found.is_published is True
    splits = [item.split for item in found.items]
    assert (splits.count('basic'), splits.count('advanced')) == (30, 30)
    levels = [item.level for item in found.items]
    assert levels.count('pre-IMO') == 8
    assert levels.count('IMO-easy') == 24
    categories = [item.category for item in found.items]
    assert categories.count('Geometry') == 14
    first = found.items[0].problem
    assert first.problem_id == 'PB-Basic-001'
    assert first.rubric.startswith('(Partial)')
    assert first.reference.startswith('By taking $x = 0$')

  def test_answerbench_has_100_of_each_area_and_mended_answers(self, imobench):
    found = benchmarks.load('imo_answerbench', imobench / 'answerbench_v2.csv')
    assert found.kind == 'answer'
    assert found.is_published is True
    assert len(found.items) == 400
    mended = next(
      item
      for item in found.items
      if item.problem.problem_id == 'imo-bench-algebra-036'
    )
    assert mended.problem.answer == '$Y(x)=A+\\frac{B}{x}-x$'
    assert all(item.problem.answer for item in found.items)

  def test_a_split_is_a_part_of_the_same_content(self, imobench):
    path = imobench / 'proofbench_v2.csv'
    advanced = benchmarks.load('imo_proofbench', path, split='advanced')
    whole = benchmarks.load('imo_proofbench', path)
    assert len(advanced.items) == 30
    assert {item.split for item in advanced.items} == {'advanced'}
    assert advanced.digest == whole.digest
    few = benchmarks.load('imo_proofbench', path, max_problems=4)
    assert few.items == whole.items[:4]
    with pytest.raises(ValueError, match=r"'hard'.*basic.*advanced"):
      benchmarks.load('imo_proofbench', path, split='hard')

  def test_a_changed_word_is_noticed(self, imobench, tmp_path):
    text = (imobench / 'proofbench_v2.csv').read_text(encoding='utf-8')
    edited = tmp_path / 'proofbench_v2.csv'
    edited.write_text(
      text.replace('Determine all functions', 'Find all functions', 1),
      encoding='utf-8',
    )
    with pytest.raises(ValueError, match='as published') as error:
      benchmarks.load('imo_proofbench', edited)
    found = benchmarks.load('imo_proofbench', edited, content='any')
    assert found.is_published is False
    assert found.digest in str(error.value)
    again = benchmarks.load('imo_proofbench', edited, content=found.digest[:12])
    assert again == found

  def test_a_mirror_of_another_format_is_the_same(self, imobench, tmp_path):
    """As lm-provers/IMOProofBench: other columns, parquet, no categories."""
    with (imobench / 'proofbench_v2.csv').open(newline='') as file:
      rows = [
        {
          'problem': row['Problem'].replace('\n', '\r\n'),
          'solution': row['Solution'] + ' ',
          'grading_guidelines': row['Grading guidelines'],
          'problem_id': row['Problem ID'],
        }
        for row in csv.DictReader(file)
      ]
    mirror = write(tmp_path / 'mirror.parquet', rows[::-1])
    found = benchmarks.load('imo_proofbench', mirror)
    assert found.is_published is True

  def test_a_missing_row_is_noticed(self, imobench, tmp_path):
    with (imobench / 'proofbench_v2.csv').open(newline='') as file:
      rows = [*csv.DictReader(file)]
    short = write(tmp_path / 'short.csv', rows[:-1])
    with pytest.raises(ValueError, match=r'expected the 60 problems.*got 59'):
      benchmarks.load('imo_proofbench', short)


class TestProofBench:
  """Files made like lm-provers/ProofBench."""

  @pytest.mark.parametrize('suffix', ['.jsonl', '.csv', '.parquet'])
  def test_the_year_tells_the_split(self, tmp_path, suffix):
    path = write(tmp_path / f'file{suffix}', proofbench_rows())
    found = benchmarks.load('proofbench', path)
    assert len(found.items) == 145
    assert found.is_published is None
    recent = benchmarks.load('proofbench', path, split='24_25')
    assert len(recent.items) == 70
    assert len(benchmarks.load('proofbench', path, split='other').items) == 75

  def test_another_division_is_refused(self, tmp_path):
    rows = proofbench_rows()
    rows[0]['problem_id'] = 'PB-IMO-2022-0'
    path = write(tmp_path / 'file.jsonl', rows)
    with pytest.raises(ValueError, match="'other': 76"):
      benchmarks.load('proofbench', path)

  def test_an_id_without_a_year_is_refused(self, tmp_path):
    rows = proofbench_rows()
    rows[7]['problem_id'] = 'P12025a'
    path = write(tmp_path / 'file.jsonl', rows)
    with pytest.raises(ValueError, match=r'jsonl:8.*the year'):
      benchmarks.load('proofbench', path)

  def test_a_digest_that_differs_is_refused(self, tmp_path):
    path = write(tmp_path / 'file.jsonl', proofbench_rows())
    with pytest.raises(ValueError, match="digest 'deadbeef'"):
      benchmarks.load('proofbench', path, content='deadbeef')
    digest = benchmarks.load('proofbench', path).digest
    with pytest.raises(ValueError, match='at least 8 digits'):
      benchmarks.load('proofbench', path, content=digest[:4])


class TestMathArena:
  """Files made like MathArena's problem sets."""

  def test_seven_points_are_taken_as_they_are(self, tmp_path):
    path = write(tmp_path / 'file.parquet', matharena_rows(6, [3, 4]))
    found = benchmarks.load('matharena_usamo_2025', path)
    problem = found.items[0].problem
    assert problem.problem_id == '1'
    assert problem.reference == 'It follows.'
    assert problem.rubric == (
      'Step 0 (3 points)\nShown.\n\nStep 1 (4 points)\nShown.'
    )

  def test_ten_points_are_brought_to_seven(self, tmp_path):
    path = write(tmp_path / 'file.jsonl', matharena_rows(12, [8, 2]))
    found = benchmarks.load('matharena_putnam_2025', path)
    rubric = found.items[0].problem.rubric
    assert rubric.startswith('The contest gives 10 points')
    assert 'Step 0 (5.6 points)' in rubric
    assert 'Step 1 (1.4 points)' in rubric

  @pytest.mark.parametrize(
    'scheme', [[], [{'title': 'x', 'points': 0}], ['x'], 7]
  )
  def test_a_scheme_without_points_is_refused(self, tmp_path, scheme):
    rows = matharena_rows(6, [7])
    rows[2]['grading_scheme'] = scheme
    path = write(tmp_path / 'file.jsonl', rows)
    with pytest.raises(ValueError, match=r'jsonl:3: field rubric'):
      benchmarks.load('matharena_imo_2025', path)


class TestOwnFiles:
  """A user's own problems."""

  def test_labels_are_optional(self, tmp_path):
    rows = [
      {'problem': 'Show it.', 'rubric': '7 for all.', 'split': 'dev'},
      {'problem_id': 'x', 'statement': 'Show that.', 'rubric': '7 for all.'},
    ]
    path = write(tmp_path / 'own.jsonl', rows)
    found = benchmarks.load('own_proofs', path)
    assert found.is_published is None
    assert [item.split for item in found.items] == ['dev', '']
    assert found.items[1].problem.problem_id == 'x'
    assert len(benchmarks.load('own_proofs', path, split='dev').items) == 1

  def test_a_proof_needs_a_rubric_and_an_answer_its_answer(self, tmp_path):
    rows = [{'problem': 'What is 1 + 1?', 'answer': 2}]
    path = write(tmp_path / 'own.jsonl', rows)
    found = benchmarks.load('own_answers', path)
    assert found.items[0].problem.answer == '2'
    with pytest.raises(ValueError, match='graded by'):
      benchmarks.load('own_proofs', path)
    rows = [{'problem': 'Show it.', 'rubric': '7 for all.'}]
    path = write(tmp_path / 'own.jsonl', rows)
    with pytest.raises(ValueError, match=r'field answer.*graded by'):
      benchmarks.load('own_answers', path)

  def test_the_same_id_twice_is_refused(self, tmp_path):
    rows = [{'problem_id': 'x', 'problem': 'A', 'rubric': '7'}] * 2
    path = write(tmp_path / 'own.jsonl', rows)
    with pytest.raises(ValueError, match=r"jsonl:2.*'x'.*jsonl:1"):
      benchmarks.load('own_proofs', path)

  def test_order_and_white_space_do_not_change_the_digest(self, tmp_path):
    rows = [
      {'problem_id': 'x', 'problem': 'A  b', 'rubric': '7'},
      {'problem_id': 'y', 'problem': 'C', 'rubric': '7'},
    ]
    first = benchmarks.load('own_proofs', write(tmp_path / 'a.jsonl', rows))
    rows = [rows[1], rows[0] | {'problem': 'A\nb'}]
    again = benchmarks.load('own_proofs', write(tmp_path / 'b.jsonl', rows))
    assert again.digest == first.digest
    for field, value in (('problem', 'A c'), ('rubric', '6')):
      changed = [rows[0], rows[1] | {field: value}]
      other = benchmarks.load(
        'own_proofs', write(tmp_path / 'c.jsonl', changed)
      )
      assert other.digest != first.digest


@pytest.mark.parametrize(
  ('kind', 'field', 'is_shown'),
  [
    ('proof', 'statement', True),
    ('proof', 'rubric', True),
    ('proof', 'reference', True),
    ('proof', 'problem_id', True),
    ('proof', 'answer', False),
    ('answer', 'answer', True),
    ('answer', 'rubric', False),
    ('proof', 'source', False),
  ],
)
def test_a_digest_is_of_what_solver_and_judge_are_shown(kind, field, is_shown):
  names = ('problem_id', 'statement', 'rubric', 'reference', 'answer', 'source')
  problem = Problem(**{name: f'a {name}' for name in names})
  item = benchmarks.Item(problem=problem, split='easy', category='Algebra')
  before = benchmarks.digest([item], kind)
  edited = dataclasses.replace(problem, **{field: 'another'})
  other = dataclasses.replace(item, problem=edited)
  assert (benchmarks.digest([other], kind) != before) == is_shown
  hard = dataclasses.replace(item, split='hard')
  assert benchmarks.digest([hard], kind) != before
  geometry = dataclasses.replace(item, category='Geometry')
  assert benchmarks.digest([geometry], kind) == before


def test_another_content_of_the_published_size_is_refused(tmp_path):
  rows = [
    {
      'problem_id': f'PB-{split}-{index:03}',
      'problem': f'Prove statement {index}.',
      'grading_guidelines': '7 points for a proof.',
    }
    for split in ('Basic', 'Advanced')
    for index in range(30)
  ]
  path = write(tmp_path / 'own.jsonl', rows)
  with pytest.raises(ValueError, match='content of imo_proofbench as publish'):
    benchmarks.load('imo_proofbench', path)
  found = benchmarks.load('imo_proofbench', path, content='any')
  assert found.is_published is False


def test_an_unknown_name_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"'imo_proofbench'.*'imoproofbench'"):
    benchmarks.load('imoproofbench', tmp_path / 'x.csv')
