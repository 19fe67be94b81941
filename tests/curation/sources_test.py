"""Published schemas become items; a bad row is told and the rest goes on."""

import json
import pathlib

import pytest

from qed.curation import sources
from qed.data import problems

DATA = pathlib.Path(__file__).parents[3] / 'shared/data/imobench'
AOPS = {
  'problem': 'Prove that $1 = 1$.',
  'solution': 'It is so.',
  'candidates': ['It is so.', 'No.'],
  'tags': ['algebra', 'easy'],
  'metadata': {'path': 'USAMO/2011/1', 'n_reply': 2, 'boxed': False},
}
OLYMPIADS = {
  'year': '2016',
  'tier': 'T1',
  'exam': 'BMO',
  'problem_type': 'Algebra',
  'problem': 'Prove that $2 = 2$.',
  'solution': 'Obvious.',
  'metadata': {'resource_path': 'BMO/segmented/2016.jsonl'},
}


def write(path, *rows):
  path.write_text(
    '\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows) + '\n'
  )
  return path


def read(name, path, malformed='skip'):
  return list(sources.read({name: [path]}, malformed=malformed))


def test_a_row_of_aops(tmp_path):
  path = write(tmp_path / 'a.jsonl', AOPS)
  (outcome,) = read('aops', path)
  item = outcome.item
  assert (item.statement, item.solution) == (AOPS['problem'], 'It is so.')
  assert item.comments == ('It is so.', 'No.')
  assert item.tags == ('algebra', 'easy')
  assert (item.source, item.origin) == ('aops', 'USAMO/2011/1')
  assert item.place == f'{path}:1'
  assert item.item_id == problems.statement_id(AOPS['problem'])


def test_a_row_of_olympiads(tmp_path):
  (outcome,) = read('olympiads', write(tmp_path / 'a.jsonl', OLYMPIADS))
  item = outcome.item
  assert (item.year, item.origin, item.tags) == (2016, 'BMO', ('Algebra',))


def test_rows_of_fineproofs(tmp_path):
  rl = {
    'problem': 'P?', 'source': 'aops', 'rubrics': '7 points', 'scores': [0, 7],
    'reward_mean': 0.5,
  }  # fmt: skip
  (outcome,) = read('fineproofs_rl', write(tmp_path / 'r.jsonl', rl))
  assert outcome.item.scores == (0, 7)
  assert (outcome.item.difficulty, outcome.item.source) == (0.5, 'aops')
  sft = {
    'problem': 'P?', 'proof': 'So.', 'category': 'Algebra',
    'competition': 'IMO-2023', 'qwen3-4b-thinking-reward@128': 0.25,
  }  # fmt: skip
  (outcome,) = read('fineproofs_sft', write(tmp_path / 's.jsonl', sft))
  assert outcome.item.solution == 'So.'
  assert outcome.item.origin == 'IMO-2023'
  assert outcome.item.difficulty == 0.25


def test_both_historic_lists_of_rubrics_are_read(tmp_path):
  first = [{'title': 'Idea', 'points': 7, 'desc': 'all of it'}]
  second = [
    {'title': 'Idea', 'max_points': 7, 'grading_scheme_desc': 'all of it'}
  ]
  rows = [{**AOPS, 'schema_0': schema} for schema in (first, second)]
  found = read('own', write(tmp_path / 'a.jsonl', *rows))
  assert [o.item.rubric for o in found] == ['Idea (7 points)\nall of it'] * 2


def test_the_real_benchmark_is_read():
  path = DATA / 'proofbench_v2.csv'
  if not path.exists():
    pytest.skip('needs ../shared/data/imobench')
  found = read('imobench', path)
  assert len(found) == 60
  assert all(o.item.rubric and o.item.solution for o in found)
  assert found[0].item.origin == '(Modified) IMO 2019, P1'


def test_a_bad_row_is_removed_with_its_line_and_field(tmp_path):
  path = write(
    tmp_path / 'a.jsonl',
    AOPS,
    '{"problem": "broken',
    {**AOPS, 'problem': 7},
    {'problem': 'No solution column.'},
    {**AOPS, 'candidates': [1, 2]},
    {**AOPS, 'problem': 'Last.'},
  )
  found = read('aops', path)
  assert [o.reason for o in found] == ['', *['malformed'] * 4, '']
  assert [o.item.item_id for o in found[1:5]] == [
    f'{path}:{line}' for line in (2, 3, 4, 5)
  ]
  json_error, statement, column, comments = [o.detail for o in found[1:5]]
  assert 'bad JSON' in json_error
  assert 'field statement' in statement
  assert "['solution'] missing" in column
  assert 'field comments' in comments
  assert found[-1].item.statement == 'Last.'


def test_a_file_that_is_cut_off_loses_its_last_row_alone(tmp_path):
  path = tmp_path / 'a.jsonl'
  text = (json.dumps(AOPS) + '\n') * 3
  path.write_text(text[:-40])
  assert [o.reason for o in read('aops', path)] == ['', '', 'malformed']


def test_refusing_names_the_line(tmp_path):
  path = write(tmp_path / 'a.jsonl', AOPS, '{')
  with pytest.raises(ValueError, match=r'a\.jsonl:2'):
    read('aops', path, malformed='refuse')


def test_trailing_bad_rows_are_told_too(tmp_path):
  path = write(tmp_path / 'a.jsonl', AOPS, '{', '[')
  assert [o.reason for o in read('aops', path)] == [
    '',
    'malformed',
    'malformed',
  ]


def test_parquet_holds_the_same(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path = tmp_path / 'a.parquet'
  parquet.write_table(pyarrow.Table.from_pylist([AOPS]), path)
  (one,) = read('aops', path)
  (other,) = read('aops', write(tmp_path / 'a.jsonl', AOPS))
  assert one.item.comments == other.item.comments
  assert one.item.origin == other.item.origin


def test_a_damaged_parquet_file_is_named(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path = tmp_path / 'a.parquet'
  table = pyarrow.Table.from_pylist([AOPS] * 100)
  parquet.write_table(table, path, compression='none')
  whole = path.read_bytes()
  path.write_bytes(whole[:10] + b'\xff' * 50 + whole[60:])
  with pytest.raises(ValueError, match=r'a\.parquet: expected rows to its end'):
    read('aops', path)
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r'a\.parquet: expected a parquet file'):
    read('aops', path)


def test_an_odd_year_is_part_of_the_origin(tmp_path):
  row = {**OLYMPIADS, 'year': '2016/17'}
  (outcome,) = read('olympiads', write(tmp_path / 'a.jsonl', row))
  assert (outcome.item.year, outcome.item.origin) == (None, 'BMO 2016/17')


def test_the_first_source_comes_first(tmp_path):
  first = write(tmp_path / 'a.jsonl', OLYMPIADS)
  second = write(tmp_path / 'b.jsonl', AOPS)
  found = sources.read(
    {'olympiads': [first], 'aops': [second]}, malformed='refuse'
  )
  assert [o.item.source for o in found] == ['olympiads', 'aops']
