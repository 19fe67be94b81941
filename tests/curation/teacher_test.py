"""The structural filter takes closed thinking with a proof, and no more."""

import types as namespaces

import pytest

from qed.curation import teacher
from qed.curation.records import Item
from qed.data import problems
from tests.curation import scripted

ITEM = Item(
  item_id='i',
  statement='Prove it.',
  source='aops',
  origin='IMO-2020',
  tags=('Algebra',),
  difficulty=0.25,
)
SETTINGS = namespaces.SimpleNamespace(
  prompt='{{problem}}',
  num_solutions=2,
  writer=namespaces.SimpleNamespace(max_concurrency=3),
)
GOOD = (
  'I try.\n</think>\n\n## Solution\n\nSo it is.\n\n## Self Evaluation\n\nGreat.'
)


def split(text):
  return teacher.split(teacher.Attempt(item=ITEM, number=0), text)


@pytest.mark.parametrize(
  'text',
  [
    GOOD,
    '<think>\nI try.\n</think>\n### Proof\nSo it is.',
    'I try.</think>Here it is.\n**Detailed Proof:**\nSo it is.\n',
    GOOD.replace('## Solution', '# 1. Complete solution of the problem'),
  ],
)
def test_thinking_and_proof_are_told_apart(text):
  attempt = split(text)
  assert attempt.reason == ''
  assert (attempt.reasoning, attempt.proof) == ('I try.', 'So it is.')


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('I try. ## Solution\nSo it is.', 'thinking_not_closed'),
    ('</think>\n## Solution\nSo it is.', 'no_thinking'),
    ('I try.</think>So it is.', 'no_proof_section'),
    ('I try.</think>\n## Solution\n\n## Self Evaluation\nx', 'empty_proof'),
    ('## Solution\nfirst</think>So it is.', 'no_proof_section'),
  ],
)
def test_why_an_attempt_is_not_used(text, reason):
  assert split(text).reason == reason


async def test_all_attempts_at_a_problem_come_together():
  model, llm = scripted.model(
    lambda _, call: [GOOD, scripted.completion(GOOD, 'length')][call % 2]
  )
  found = await scripted.collect(
    teacher.distill([ITEM, ITEM, ITEM], model, SETTINGS)
  )
  assert [[a.reason for a in attempts] for attempts in found] == [
    ['', 'cut_off']
  ] * 3
  assert llm.prompts[0].messages[0].content == 'Prove it.'


def test_a_row_is_read_back_as_a_trace(tmp_path):
  row = split(GOOD).row('Prove it.')
  assert row['messages'][1]['content'] == (
    '<think>\nI try.\n</think>\n\nSo it is.'
  )
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path = tmp_path / 'sft.parquet'
  parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  traces, _ = problems.stream_traces(path, malformed='refuse')
  (trace,) = traces
  assert (trace.problem_id, trace.statement) == ('i', 'Prove it.')
  assert (trace.reasoning, trace.proof) == ('I try.', 'So it is.')
  assert (trace.difficulty, trace.competition) == (0.25, 'IMO-2020')
  assert trace.score is None
