"""Reading problems and traces: every schema, and every way to be malformed."""

import csv
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qed.data import problems
from qed.data.problems import Trace
from qed.types import Message, Problem

RL_ROW = {
  'problem': 'Show that $1 + 1 = 2$.',
  'source': 'aops',
  'rubrics': 'Checkpoints (7 points in total) ...',
  'scores': [7, 0],
  'rewards': [1.0, 0.0],
  'num_rewards': 2,
  'reward_mean': 0.5,
  'reward_std': 0.5,
}
SFT_ROW = {
  'problem': 'Show that $1 + 1 = 2$.',
  'reasoning_content': 'Peano, then.',
  'proof': 'By definition.',
  'category': 'Algebra',
  'competition': 'IMO-2023',
  'source': 'olympiads',
  'gemini-3-pro-grade': 6,
  'qwen3-4b-thinking-reward@128': 0.25,
  'messages': [{'role': 'user', 'content': 'Show that $1 + 1 = 2$.'}],
}
RUBRIC_ITEMS = [
  {'title': 'Idea', 'points': 4, 'desc': 'Finds it.'},
  {'title': 'Rest', 'max_points': 3.0, 'description': 'Does it.'},
]
RUBRIC_TEXT = 'Idea (4 points)\nFinds it.\n\nRest (3 points)\nDoes it.'


@pytest.fixture
def write(tmp_path):
  """Writes lines (text or rows) to a jsonl file and returns its path."""

  def write_lines(*lines, name='data.jsonl'):
    path = tmp_path / name
    texts = [s if isinstance(s, str) else json.dumps(s) for s in lines]
    path.write_text(''.join(text + '\n' for text in texts), encoding='utf-8')
    return path

  return write_lines


def load(path, malformed='refuse'):
  return problems.load_problems(path, malformed=malformed)


def load_traces(path, malformed='refuse'):
  traces, report = problems.stream_traces(path, malformed=malformed)
  return list(traces), report


def test_a_problem_of_our_own_form_has_all_its_fields(write):
  row = {
    'problem_id': 'x',
    'statement': ' Prove it.\n',
    'rubric': '7 points',
    'reference': 'Proof.',
    'answer': '42',
    'source': 'here',
    'difficulty': 0.5,
  }
  loaded, report = load(write(row))
  assert loaded == [Problem(**row)]  # The statement verbatim.
  assert (report.num_read, report.num_skipped) == (1, 0)
  assert report.unused_columns == set()


def test_a_row_of_fineproofs_rl_is_a_problem(write):
  loaded, report = load(write(RL_ROW))
  assert loaded == [
    Problem(
      problem_id=problems.statement_id(RL_ROW['problem']),
      statement='Show that $1 + 1 = 2$.',
      rubric='Checkpoints (7 points in total) ...',
      source='aops',
      difficulty=0.5,
    )
  ]
  assert report.unused_columns == {
    'scores',
    'rewards',
    'num_rewards',
    'reward_std',
  }


def test_a_row_of_fineproofs_sft_is_a_trace(write):
  loaded, report = load_traces(write(SFT_ROW))
  assert loaded == [
    Trace(
      problem_id=problems.statement_id(SFT_ROW['problem']),
      statement='Show that $1 + 1 = 2$.',
      reasoning='Peano, then.',
      proof='By definition.',
      score=6,
      difficulty=0.25,
      source='olympiads',
      competition='IMO-2023',
    )
  ]
  assert report.unused_columns == {'category', 'messages'}


def test_a_trace_and_its_problem_get_the_same_id(write):
  [problem], _ = load(write(RL_ROW, name='rl.jsonl'))
  [trace], _ = load_traces(write(SFT_ROW, name='sft.jsonl'))
  assert trace.problem_id == problem.problem_id


def test_an_id_made_from_a_statement_ignores_white_space_alone():
  assert problems.statement_id('a  b\n') == problems.statement_id(' a b')
  assert problems.statement_id('a b') != problems.statement_id('ab')


def test_a_rubric_may_be_a_list_of_items(write):
  [problem], _ = load(write(RL_ROW | {'rubrics': RUBRIC_ITEMS}))
  assert problem.rubric == RUBRIC_TEXT
  old = [{'title': 'One', 'points': 1, 'grading_scheme_desc': 'Only.'}]
  row = {'problem': 'p', 'grading_scheme': None, 'schema_0': old}
  [problem], _ = load(write(row))
  assert problem.rubric == 'One (1 point)\nOnly.'


def test_the_text_of_a_rubric_goes_before_the_list_it_was_made_from(write):
  row = {'problem': 'p', 'grading_scheme': 'text', 'schema_0': RUBRIC_ITEMS}
  assert load(write(row))[0][0].rubric == 'text'


def test_blank_optional_fields_are_absent(write):
  row = {'problem': 'p', 'rubrics': ' ', 'answer': '', 'schema_0': []}
  [problem], _ = load(write(row))
  assert (problem.rubric, problem.answer, problem.difficulty) == (None,) * 3


def test_reasoning_may_be_empty_but_not_a_column_of_another_name(write):
  [trace], _ = load_traces(write(SFT_ROW | {'reasoning_content': ''}))
  assert trace.reasoning == ''
  row = {'problem': 'p', 'proof': 'q', 'reasoning_text': 'r'}
  with pytest.raises(
    ValueError, match=r'field reasoning .* columns are: problem, proof, reas'
  ):
    load_traces(write(row))


def test_blank_lines_and_a_byte_order_mark_are_no_matter(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"problem": "p"}\n\n{"problem": "q"}')
  loaded, report = load(path)
  assert [p.statement for p in loaded] == ['p', 'q']
  assert report.num_skipped == 0


# The second line of a file, and what must be said of it.
MALFORMED_PROBLEMS = [
  ('{"problem": "p"', r'expected a JSON object, got bad JSON: .* character 16'),
  ('["p"]', r"expected a JSON object, got \['p'\]"),
  ('null', 'expected a JSON object, got None'),
  ({}, 'field statement .*: expected a non-empty string, got nothing there'),
  ({'statment': 'p'}, r'field statement .* columns are: statment'),
  ({'problem': '  \n'}, 'field statement .*: expected a non-empty string'),
  ({'problem': 7}, 'field statement .*: expected a non-empty string, got 7'),
  ({'problem': 'p', 'problem_id': 7}, r'field problem_id .* string, got 7'),
  ({'problem': 'p', 'answer': ['a']}, r"field answer .* got \['a'\]"),
  (
    {'problem': 'p', 'reward_mean': 1.5},
    r'field difficulty .* 0 to 1, got 1.5',
  ),
  ('{"problem": "p", "difficulty": NaN}', r'field difficulty .* got nan'),
  ({'problem': 'p', 'difficulty': 'hard'}, r"field difficulty .* got 'hard'"),
  ({'problem': 'p', 'difficulty': True}, r'field difficulty .* got True'),
  ({'problem': 'p', 'difficulty': 10**400}, r'field difficulty .* 0 to 1'),
  ({'problem': 'p', 'rubric': 7}, r'field rubric .* list of items, got 7'),
  ({'problem': 'p', 'rubric': ['a']}, 'field rubric: item 1: expected a dict'),
  (
    {'problem': 'p', 'rubric': [RUBRIC_ITEMS[0], {'points': 1}]},
    'field rubric: item 2: field title: expected a non-empty string',
  ),
  (
    {'problem': 'p', 'rubric': [{'title': 't', 'desc': 'd'}]},
    r'field rubric: item 1: field points \(or max_points\): expected a number',
  ),
  (
    {'problem': 'p', 'rubric': [{'title': 't', 'points': 8}]},
    r'field rubric: item 1: field points .* 0 to 7, got 8',
  ),
]
MALFORMED_TRACES = [
  ({'problem': 'p', 'reasoning': 'r'}, 'field proof: expected a non-empty'),
  (
    {'problem': 'p', 'reasoning': 'r', 'proof': 'q', 'score': 6.5},
    r'field score .*: expected a whole number, got 6.5',
  ),
  (
    {'problem': 'p', 'reasoning': 'r', 'proof': 'q', 'score': 8},
    r'field score .*: expected a number from 0 to 7, got 8',
  ),
  (
    {'problem': 'p', 'reasoning': ['r'], 'proof': 'q'},
    r"field reasoning .*: expected a non-empty string, got \['r'\]",
  ),
  *(
    (
      {'problem': 'p', 'reasoning': '', 'proof': 'q', 'prompt_messages': asked},
      'field prompt_messages: expected a list of messages',
    )
    for asked in (
      'Prove it.',
      7,
      [['user', 'Prove it.']],
      [{'role': 'user'}],
      [{'role': 'user', 'content': 'c', 'name': 'n'}],
      [{'role': 'teacher', 'content': 'c'}],
      [{'role': 'user', 'content': None}],
    )
  ),
]
MALFORMED = [(load, RL_ROW, *case) for case in MALFORMED_PROBLEMS] + [
  (load_traces, SFT_ROW, *case) for case in MALFORMED_TRACES
]


@pytest.mark.parametrize(('read', 'good', 'line', 'message'), MALFORMED)
def test_a_malformed_line_is_refused_by_file_line_and_field(
  write, read, good, line, message
):
  path = write(good, line)
  with pytest.raises(ValueError, match=rf'data\.jsonl:2: {message}'):
    read(path)


@pytest.mark.parametrize(('read', 'good', 'line', 'message'), MALFORMED)
def test_a_malformed_line_is_skipped_and_told_where_that_is_asked_for(
  write, read, good, line, message
):
  loaded, report = read(write(good, line), malformed='skip')
  assert len(loaded) == 1
  assert (report.num_read, report.num_skipped) == (1, 1)
  [told] = report.skipped
  assert 'data.jsonl:2: ' in told
  with pytest.raises(ValueError, match=message):
    raise ValueError(told)
  assert told in str(report)


def test_a_bad_byte_spoils_only_its_line(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"problem": "p"}\n{"problem": "\xff"}\n{"problem": "q"}\n')
  loaded, report = load(path, malformed='skip')
  assert [p.statement for p in loaded] == ['p', 'q']
  assert 'a.jsonl:2: expected UTF-8' in report.skipped[0]


def test_all_skips_are_counted_and_the_first_few_told(write):
  loaded, report = load(write(*['{'] * 9, RL_ROW), malformed='skip')
  assert (len(loaded), report.num_skipped, len(report.skipped)) == (1, 9, 5)
  assert '... and 4 more' in str(report)
  assert '1 records read, 9 skipped' in str(report)


@pytest.mark.parametrize('malformed', ['skip', 'refuse'])
def test_a_repeated_problem_is_refused_either_way(write, malformed):
  first, second = {'problem_id': 'a', 'statement': 's'}, RL_ROW
  path = write(first, second, first | {'statement': 't'})
  with pytest.raises(
    ValueError, match=r"jsonl:3: .* got 'a', which .*jsonl:1 has already"
  ):
    load(path, malformed)
  with pytest.raises(ValueError, match=r'jsonl:2: field problem_id'):
    load(write(RL_ROW, RL_ROW | {'source': 'olympiads'}), malformed)


def test_a_file_given_twice_is_refused(write):
  path = write(RL_ROW)
  with pytest.raises(ValueError, match='expected a new id'):
    problems.load_problems(path, path, malformed='skip')


def test_a_problem_may_have_several_traces(write):
  loaded, _ = load_traces(write(SFT_ROW, SFT_ROW | {'proof': 'Otherwise.'}))
  assert [t.proof for t in loaded] == ['By definition.', 'Otherwise.']
  assert loaded[0].problem_id == loaded[1].problem_id


def test_several_files_are_read_as_one(write):
  a = write({'problem': 'p'}, '{', name='a.jsonl')
  b = write('{', {'problem': 'q'}, name='b.jsonl')
  loaded, report = problems.load_problems(a, b, malformed='skip')
  assert [p.statement for p in loaded] == ['p', 'q']
  assert (report.num_read, report.num_skipped) == (2, 2)
  assert 'a.jsonl:2' in report.skipped[0]
  assert 'b.jsonl:1' in report.skipped[1]


def test_traces_are_read_no_further_than_asked(write):
  traces, report = problems.stream_traces(
    write(SFT_ROW, '{', SFT_ROW), malformed='refuse'
  )
  assert next(traces).score == 6
  assert report.num_read == 1
  with pytest.raises(ValueError, match=r'jsonl:2'):
    next(traces)


def test_a_file_of_which_nothing_can_be_read_is_an_error(write):
  with pytest.raises(
    ValueError, match=r'at least one record.\n0 records read, 1 skipped'
  ):
    load(write({'question': 'p'}), malformed='skip')
  with pytest.raises(ValueError, match='expected at least one record'):
    load(write())


def test_a_request_that_cannot_be_met_fails_before_reading(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'absent\.jsonl'):
    problems.stream_traces(tmp_path / 'absent.jsonl', malformed='skip')
  with pytest.raises(ValueError, match=r'a\.txt: expected .* \.jsonl, \.csv'):
    problems.stream_traces(tmp_path / 'a.txt', malformed='skip')
  with pytest.raises(ValueError, match="'skip' or 'refuse', got 'ignore'"):
    problems.stream_traces(tmp_path / 'a.jsonl', malformed='ignore')
  with pytest.raises(ValueError, match='at least one file'):
    problems.load_problems(malformed='skip')


def written_text(**kwargs):
  return st.text(min_size=1, **kwargs).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
  st.lists(
    st.builds(
      Problem,
      problem_id=written_text(),
      statement=written_text(),
      rubric=st.none() | written_text(),
      reference=st.none() | written_text(),
      answer=st.none() | written_text(),
      source=st.just('') | written_text(),
      difficulty=st.none() | st.floats(0, 1),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda problem: problem.problem_id,
  )
)
def test_what_is_written_is_read_back(tmp_path_factory, written):
  path = tmp_path_factory.mktemp('round') / 'problems.jsonl'
  problems.write_jsonl(path, written)
  loaded, report = load(path)
  assert loaded == written
  assert report.unused_columns == set()


def test_traces_that_are_written_are_read_back(tmp_path):
  path = tmp_path / 'traces.jsonl'
  written = [
    Trace(problem_id='a', statement='s', reasoning='', proof='p\u2028q'),
    Trace(
      problem_id='a',
      statement='s',
      reasoning='r',
      proof='p',
      score=0,
      difficulty=0.0,
      source='x',
      competition='y',
      prompt_messages=(
        Message(role='system', content='Be strict.'),
        Message(role='user', content='Prove it.'),
      ),
    ),
  ]
  problems.write_jsonl(path, written)
  assert load_traces(path)[0] == written


def test_a_file_appears_only_when_it_is_complete(tmp_path):
  path = tmp_path / 'problems.jsonl'
  good = Problem(problem_id='a', statement='s')
  problems.write_jsonl(path, [good])

  def failing():
    yield Problem(problem_id='b', statement='t')
    raise RuntimeError('the power is gone')

  with pytest.raises(RuntimeError, match='power'):
    problems.write_jsonl(path, failing())
  assert load(path)[0] == [good]


def write_csv(path, *rows):
  with path.open('w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows(rows)
  return path


def test_csv_names_the_line_on_which_a_row_begins(tmp_path):
  path = write_csv(
    tmp_path / 'a.csv',
    ['Problem ID', 'Problem', 'Short Answer', 'difficulty'],
    ['a', 'two\nlines', '1', '0.5'],
    ['b', '', '2', ''],
    ['c', 'p', '3'],
  )
  loaded, report = load(path, malformed='skip')
  assert loaded == [
    Problem(problem_id='a', statement='two\nlines', answer='1', difficulty=0.5)
  ]
  assert 'a.csv:4: field statement' in report.skipped[0]
  assert 'a.csv:5: expected 4 cells, got 3' in report.skipped[1]


@pytest.mark.parametrize('malformed', ['skip', 'refuse'])
@pytest.mark.parametrize(
  'text',
  ['problem,answer\n"p" q,1\n', 'problem,answer\np,1\n"q,2\nr,3\n'],
  ids=['quote inside a cell', 'quote that never closes'],
)
def test_csv_with_a_stray_quote_is_refused_either_way(
  tmp_path, text, malformed
):
  path = tmp_path / 'a.csv'
  path.write_text(text, encoding='utf-8')
  with pytest.raises(ValueError, match=r'a\.csv:[23]: expected quoted'):
    load(path, malformed)


def test_a_known_misprint_is_mended_and_told(tmp_path):
  path = tmp_path / 'a.csv'
  [misprint] = problems.MISPRINTS
  path.write_text(
    'Problem ID,Problem,Short Answer,Category,Subcategory,Source\r\n'
    f'a,"Find all functions\r\n{misprint}\r\nb,p,1,c,d,e\r\n',
    encoding='utf-8',
    newline='',
  )
  loaded, report = load(path)
  assert [(p.problem_id, p.answer, p.source) for p in loaded] == [
    ('a', '$Y(x)=A+\\frac{B}{x}-x$', 'Iran 2002'),
    ('b', '1', 'e'),
  ]
  assert loaded[0].statement == 'Find all functions\r\n'
  assert len(report.mended) == 1
  assert 'a.csv:3: a known misprint' in str(report)


def test_all_of_proofbench_loads_with_every_field(shared_data):
  path = shared_data / 'imobench' / 'proofbench_v2.csv'
  loaded, report = load(path)
  assert len(loaded) == 60
  assert report.num_skipped == 0
  for problem in loaded:
    assert problem.problem_id.startswith('PB-')
    for field in ('statement', 'rubric', 'reference', 'source'):
      assert getattr(problem, field).strip()
  first = loaded[0]
  assert first.problem_id == 'PB-Basic-001'
  assert first.statement.startswith('Determine all functions $f: ')
  assert first.rubric.startswith('(Partial)\n 1. Guessed the solution')
  assert first.reference.startswith('By taking $x = 0$')
  assert first.answer.startswith('$f(x) = 0$ and $f(x) = 2x + c$')
  assert first.source == '(Modified) IMO 2019, P1'
  assert report.unused_columns == {'Category', 'Level'}
  assert sum(problem.answer is None for problem in loaded) == 33


def test_all_of_answerbench_loads_with_every_field(shared_data):
  path = shared_data / 'imobench' / 'answerbench_v2.csv'
  loaded, report = load(path)
  assert len({problem.problem_id for problem in loaded}) == 400
  assert report.num_skipped == 0
  for problem in loaded:
    assert problem.statement.strip()
    assert problem.answer.strip()
    assert problem.source.strip()
    assert problem.rubric is None
    assert problem.reference is None


def test_the_misprint_of_answerbench_does_not_tell_the_answer(shared_data):
  path = shared_data / 'imobench' / 'answerbench_v2.csv'
  loaded, report = load(path)
  [problem] = [p for p in loaded if p.problem_id == 'imo-bench-algebra-036']
  assert problem.answer == '$Y(x)=A+\\frac{B}{x}-x$'
  assert problem.answer not in problem.statement
  assert problem.source == 'Iran 2002'
  assert len(report.mended) == 1
  assert 'answerbench_v2.csv:154: a known misprint' in str(report)


def test_parquet_reads_as_jsonl_does(write, tmp_path):
  pyarrow = pytest.importorskip('pyarrow', reason='needs the extra hf')
  from pyarrow import parquet

  rows = [RL_ROW | {'problem': f'p{number}'} for number in range(150)]
  rows[3]['rubrics'] = None
  rows[149]['reward_mean'] = 2.0
  path = tmp_path / 'rl.parquet'
  parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=70)
  loaded, report = load(path, malformed='skip')
  assert loaded == load(write(*rows[:149]))[0]
  assert report.num_skipped == 1
  assert 'rl.parquet: row 150: field difficulty' in report.skipped[0]
  assert 'scores' in report.unused_columns

  path = tmp_path / 'sft.parquet'
  parquet.write_table(pyarrow.Table.from_pylist([SFT_ROW]), path)
  assert load_traces(path)[0] == load_traces(write(SFT_ROW))[0]

  items = [RL_ROW | {'rubrics': RUBRIC_ITEMS}]
  path = tmp_path / 'items.parquet'
  parquet.write_table(pyarrow.Table.from_pylist(items), path)
  assert load(path)[0][0].rubric == RUBRIC_TEXT

  path = tmp_path / 'broken.parquet'
  path.write_bytes(b'not parquet at all')
  with pytest.raises(ValueError, match=r'broken\.parquet: expected a parquet'):
    load(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  path = tmp_path / 'a.parquet'
  path.write_bytes(b'')
  with pytest.raises(ImportError, match=r"pip install 'qed\[hf\]'"):
    load(path)
