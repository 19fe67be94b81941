import csv
import json

import pytest

from qed.data import problems
from qed.grading import solutions

pytestmark = pytest.mark.timeout(20)

# One line of each source, in its own words; each has the score 3.5 of 7.
ROWS = {
  'graded': {
    'statement': 'S',
    'rubric': 'R',
    'reference': 'Ref',
    'proof': 'P',
    'human_score': 3.5,
  },
  'proofbench': {
    'problem_id': 'PB-1',
    'problem': 'S',
    'reference_solution': 'Ref',
    'marking_scheme': 'R',
    'model_solution': 'P',
    'expert_rating': 3.5,
    'generator': 'o3',
    'response_number': 1,
  },
  'imo_gradingbench': {
    'Grading ID': 'GB-0001',
    'Problem ID': 'PB-Basic-001',
    'Problem': 'S',
    'Solution': 'Ref',
    'Grading guidelines': 'R',
    'Response': 'P',
    'Points': '3.5',
    'Reward': 'Partial',
    'Problem Source': 'x',
  },
  'matharena': {
    'problem_idx': 4,
    'problem': 'S',
    'answer': 'P',
    'details': 'R',
    'points': 3.5,
  },
  'olympiads': {
    'problem_id': 'o1',
    'text': 'S',
    'solution': 'Ref',
    'schema_0': 'R',
    'model_solution': 'P',
    'points': 3.5,
  },
  'qedbench': {
    'item_id': 'q1',
    'domain': 'Graph Theory',
    'problem': 'S',
    'solver': 'GPT-5 Pro',
    'solution': 'P',
    'rubric': 'expert',
    'rubric_text': 'R',
    'human_score': 0.5,
  },
}


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def load(path, source, **options):
  options.setdefault('malformed', 'refuse')
  return solutions.load([path], source=source, **options)[0]


@pytest.mark.parametrize('source', solutions.FORMATS)
def test_each_source_becomes_the_same_record(tmp_path, source):
  (item,) = load(write(tmp_path / 'x.jsonl', ROWS[source]), source)
  assert (item.problem.statement, item.proof) == ('S', 'P')
  assert item.problem.rubric == 'R'
  assert item.human_scores == (3.5,)
  assert item.human_score == 3.5
  assert item.source == item.problem.source == source
  has_reference = source not in ('matharena', 'qedbench')
  assert item.problem.reference == ('Ref' if has_reference else None)


def test_names_are_kept(tmp_path):
  (item,) = load(write(tmp_path / 'x.jsonl', ROWS['qedbench']), 'qedbench')
  assert (item.item_id, item.domain, item.solver, item.rubric_kind) == (
    'q1',
    'Graph Theory',
    'GPT-5 Pro',
    'expert',
  )
  (item,) = load(write(tmp_path / 'x.jsonl', ROWS['matharena']), 'matharena')
  assert item.problem.problem_id == '4'
  (item,) = load(write(tmp_path / 'x.jsonl', ROWS['proofbench']), 'proofbench')
  assert (item.problem.problem_id, item.solver) == ('PB-1', 'o3')


def test_csv_is_read_too(tmp_path):
  path = tmp_path / 'x.csv'
  row = ROWS['imo_gradingbench']
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, row)
    writer.writeheader()
    writer.writerow(row)
  (item,) = load(path, 'imo_gradingbench')
  assert (item.item_id, item.human_score) == ('GB-0001', 3.5)


def test_the_graders_marks_do_not_get_into_the_rubric(tmp_path):
  details = [
    {
      'title': 'Key step',
      'points': 0,
      'max_points': 4,
      'desc': 'The student does not get it.',
      'grading_scheme_desc': 'Proves the lemma.',
    },
    {'title': 'Rest', 'points': 3, 'desc': 'Concludes.'},
  ]
  row = {**ROWS['matharena'], 'details': details}
  (item,) = load(write(tmp_path / 'x.jsonl', row), 'matharena')
  assert item.problem.rubric == (
    'Key step (4 points)\nProves the lemma.\n\nRest (3 points)\nConcludes.'
  )


def test_scores_are_brought_to_sevenths(tmp_path):
  row = {**ROWS['matharena'], 'points': 5, 'max_points': 10}
  (item,) = load(write(tmp_path / 'x.jsonl', row), 'matharena')
  assert item.human_score == 3.5


def test_several_graders_are_all_kept(tmp_path):
  row = {**ROWS['graded'], 'human_scores': [3, 6]}
  (item,) = load(write(tmp_path / 'x.jsonl', row), 'graded')
  assert item.human_scores == (3.0, 6.0)
  assert item.human_score == 4.5


def test_a_column_may_be_called_otherwise(tmp_path):
  row = dict(ROWS['qedbench'])
  row['student_answer'] = row.pop('solution')
  path = write(tmp_path / 'x.jsonl', row)
  with pytest.raises(ValueError, match=r'proof.*nothing there'):
    load(path, 'qedbench')
  (item,) = load(path, 'qedbench', columns=['proof=student_answer'])
  assert item.proof == 'P'


@pytest.mark.parametrize('pair', ['prof=x', 'proof', 'proof='])
def test_a_wrong_renaming_is_refused(tmp_path, pair):
  with pytest.raises(ValueError, match='FIELD=COLUMN'):
    load(tmp_path / 'x.jsonl', 'qedbench', columns=[pair])


def test_an_unknown_source_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"one of \['graded'.*'usamo'"):
    load(tmp_path / 'x.jsonl', 'usamo')


@pytest.mark.parametrize('score', [-1, 7.5, None, 'x', True])
def test_a_score_off_the_scale_is_refused(tmp_path, score):
  row = {**ROWS['graded'], 'human_score': score}
  path = write(tmp_path / 'x.jsonl', row, ROWS['graded'])
  with pytest.raises(ValueError, match=r'x\.jsonl:1: field human_score'):
    load(path, 'graded')
  items, report = solutions.load([path], source='graded', malformed='skip')
  assert (len(items), report.num_skipped) == (1, 1)


def test_one_of_several_scores_off_the_scale_is_refused(tmp_path):
  for scores in ([3, 8], [3, None], 'x'):
    row = {**ROWS['graded'], 'human_scores': scores}
    with pytest.raises(ValueError, match='human_score'):
      load(write(tmp_path / 'x.jsonl', row), 'graded')


def test_ids_are_made_where_there_are_none_and_differ(tmp_path):
  row = ROWS['graded']
  path = write(
    tmp_path / 'x.jsonl',
    row,
    row,
    {**row, 'proof': 'Q'},
    {**row, 'rubric': 'T'},
  )
  ids = [item.item_id for item in load(path, 'graded')]
  assert len(set(ids)) == 4
  assert ids[1] == f'{ids[0]}#2'
  # They do not depend on where a solution stands.
  other = write(tmp_path / 'y.jsonl', {**row, 'proof': 'Q'})
  assert load(other, 'graded')[0].item_id == ids[2]


def test_an_id_that_comes_twice_is_refused(tmp_path):
  path = write(tmp_path / 'x.jsonl', ROWS['qedbench'], ROWS['qedbench'])
  with pytest.raises(ValueError, match=r"'q1', which .*x\.jsonl:1 has"):
    load(path, 'qedbench')


PROBLEM = {'problem_id': 'p', 'statement': 'S'}


class TestEvaluationOnly:
  @pytest.mark.parametrize('malformed', ['skip', 'refuse'])
  @pytest.mark.parametrize(
    ('name', 'extra'),
    [
      ('QEDBench.jsonl', {}),
      ('qed-bench_v2.jsonl', {}),
      ('x.jsonl', {'source': 'qqggez/QEDBench'}),
      ('x.jsonl', {'Source': 'qedbench'}),
      ('x.jsonl', {'benchmark': 'QED-Bench'}),
    ],
  )
  def test_qedbench_cannot_be_trained_on(
    self, tmp_path, name, extra, malformed
  ):
    row = {**PROBLEM, 'reasoning': '', 'proof': 'P', **extra}
    path = write(tmp_path / name, row)
    with pytest.raises(ValueError, match='evaluation only'):
      problems.load_problems(path, malformed=malformed)
    traces, _ = problems.stream_traces(path, malformed=malformed)
    with pytest.raises(ValueError, match='evaluation only'):
      list(traces)

  def test_a_record_that_was_read_for_evaluation_stays_out(self, tmp_path):
    (item,) = load(write(tmp_path / 'x.jsonl', ROWS['qedbench']), 'qedbench')
    problems.write_jsonl(tmp_path / 'y.jsonl', [item.problem])
    with pytest.raises(ValueError, match='evaluation only'):
      problems.load_problems(tmp_path / 'y.jsonl', malformed='skip')

  def test_it_can_be_evaluated_on(self, tmp_path):
    row = {**ROWS['qedbench'], 'source': 'QEDBench'}
    assert load(write(tmp_path / 'qedbench.jsonl', row), 'qedbench')

  def test_others_can(self, tmp_path):
    row = {**PROBLEM, 'source': 'aops', 'statement': 'About QEDBench.'}
    path = write(tmp_path / 'x.jsonl', row)
    assert problems.load_problems(path, malformed='refuse')[1].num_read == 1
