"""One question and one proof, wherever the beginning of a proof is given."""

import json

import pytest

from qed.data import guidance, templates

ROW = {
  'problem_id': 'p',
  'prefix': 'First line,\nand  the second. ',
  'fraction': 0.25,
  'num_successes': 1,
  'num_trials': 16,
  'oracle': 'aops a contest',
}


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.mark.parametrize(
  ('prefix', 'rest', 'whole'),
  [
    ('It begins.', 'It ends.', 'It begins.\n\nIt ends.'),
    ('It begins.', '', 'It begins.\n\n'),  # Graded for what was given.
    ('It begins.', None, None),  # Still thinking: there is no proof.
    ('', 'All of it.', 'All of it.'),
    ('', None, None),
  ],
)
def test_beginning_and_rest_are_one_proof(prefix, rest, whole):
  assert guidance.whole_proof(prefix, rest) == whole


def test_the_question_has_problem_and_beginning_to_the_letter():
  prefix = 'Let {{problem}} be <n>.\n  Then'
  assert (
    guidance.question('Prove $x$.', prefix, '{{problem}}|{{prefix}}')
    == f'Prove $x$.|{prefix}'
  )
  text = guidance.question('Prove $x$.', prefix, 'guided')
  assert text == templates.text('guided').replace(
    '{{problem}}', 'Prove $x$.', 1
  ).replace('{{prefix}}', prefix, 1)


def test_what_curation_writes_is_read_back(tmp_path):
  path = write(tmp_path / 'p.jsonl', ROW, {**ROW, 'problem_id': 'q'})
  found, report = guidance.load(path, malformed='refuse')
  assert found == {
    'p': guidance.Prefix(**ROW),
    'q': guidance.Prefix(**{**ROW, 'problem_id': 'q'}),
  }
  assert report.num_read == 2


def test_beginnings_of_ones_own_need_two_columns(tmp_path):
  path = write(tmp_path / 'p.jsonl', {'problem_id': 'p', 'prefix': 'So'})
  found, _ = guidance.load(path, malformed='refuse')
  assert (found['p'].prefix, found['p'].num_trials) == ('So', 0)


@pytest.mark.parametrize(
  ('row', 'named'),
  [
    ({'problem_id': 'q'}, 'field prefix'),
    ({'prefix': 'So'}, 'field problem_id'),
    ({**ROW, 'problem_id': 'q', 'fraction': 2}, 'from 0 to 1'),
    (ROW, 'a prefix already'),
  ],
)
def test_a_line_that_is_no_beginning_is_named(tmp_path, row, named):
  path = write(tmp_path / 'p.jsonl', ROW, row)
  with pytest.raises(ValueError, match=rf'p\.jsonl:2: .*{named}'):
    guidance.load(path, malformed='refuse')
