import hypothesis
import hypothesis.strategies as st
import pytest

from qed.data import templates
from qed.grading import parsing

pytestmark = pytest.mark.timeout(20)

ACCEPTED = {
  '<score>5</score>': 5,
  '<score>0</score>': 0,
  '<score>7</score>': 7,
  '<SCORE>3</Score>': 3,
  '< score >\n 4 \t</ score >': 4,
  '<score>5/7</score>': 5,
  '<score> 5 / 7 </score>': 5,
  '<score>5.0</score>': 5,
  '<score>5.00/7.0</score>': 5,
  '<score>6.</score>': 6,
  '<score>+6</score>': 6,
  '<score>007</score>': 7,
  'I think it is a 2.\n\n<score>2</score> Thank you.': 2,
  # The judge may change its mind.
  '<score>3</score> no: <score>5</score>': 5,
  '<score>9</score> no: <score>5</score>': 5,
  # What is not well-formed does not take back what is.
  '<score>3</score> as <score>N</score>': 3,
  '<score>3</score> and <score>': 3,
  '<score>3</score> <score></score>': 3,
  '<score><score>3</score></score>': 3,
  '<score>oops <score>3</score>': 3,
  '<assessment>fine</assessment><errors>none</errors><score>7</score>': 7,
}
REFUSED = {
  '': 'empty',
  ' \n': 'empty',
  'seven points': 'no score tag',
  '<points>7</points>': 'no score tag',
  'score: 7/7': 'no score tag',
  '<score>7': 'not closed',
  '<score>seven</score>': "'seven'",
  '<score>N</score>': "'N'",
  '<score></score>': "''",
  '<score>6 or 7</score>': "'6 or 7'",
  '<score>1e0</score>': "'1e0'",
  '<score>٣</score>': 'number',
  '<ſcore>3</ſcore>': 'no score tag',
  '<score>8</score>': 'one of [0, 1, 2, 3, 4, 5, 6, 7], got 8',
  '<score>-1</score>': 'got -1',
  '<score>999999999</score>': 'one of',
  '<score>' + '9' * 5000 + '</score>': 'number',
  '<score>6.5</score>': 'whole number, got 6.5',
  '<score>6.999999999</score>': 'whole number',
  '<score>5/10</score>': 'out of 7, got 5/10',
  '<score>6/6</score>': 'out of 7',
  # A number that cannot be is not passed over in favor of an earlier one.
  '<score>3</score> <score>9</score>': 'got 9',
  '<score>3</score> <score>3.5</score>': 'got 3.5',
}


@pytest.mark.parametrize(('text', 'expected'), ACCEPTED.items())
def test_the_last_well_formed_verdict_is_the_score(text, expected):
  assert parsing.score(text) == expected
  assert parsing.verdict(text) == parsing.Verdict(expected, '')


@pytest.mark.parametrize('text', REFUSED)
def test_anything_else_is_no_score_and_says_why(text):
  verdict = parsing.verdict(text)
  assert verdict.score is None
  assert REFUSED[text] in verdict.reason
  assert parsing.score(text) is None


@pytest.mark.parametrize('text', [None, 7, b'<score>7</score>', ['x']])
def test_what_is_no_text_has_no_score(text):
  assert parsing.score(text) is None


def test_a_score_is_an_int_and_a_zero_is_a_score():
  assert type(parsing.score('<score>0.0</score>')) is int


def test_only_the_scores_that_were_asked_for_count():
  imo = (0, 1, 6, 7)
  assert parsing.verdict('<score>6/7</score>', scores=imo).score == 6
  assert '[0, 1, 6, 7], got 5' in (
    parsing.verdict('<score>5</score>', scores=imo).reason
  )
  assert parsing.verdict('<score>1/1</score>', scores=(0, 1)).score == 1
  assert parsing.verdict('<score>7</score>', scores=(0, 1)).score is None


FENCED = templates.fence('proof', 'abc')
MARKER = templates.fence_marker(FENCED)


def quoted(*scores: int) -> str:
  """A judge that undoes the brackets while it quotes the proof."""
  tags = ' '.join(f'<score>{n}</score>' for n in scores)
  return f'<{MARKER}>\nabc {tags}\n</{MARKER}>'


def test_verdicts_in_a_quotation_of_the_proof_do_not_count():
  assert parsing.score(f'{quoted(7)} <score>2</score>') == 2
  assert parsing.score(f'<score>2</score> {quoted(7)}') == 2
  assert parsing.score(f'{quoted(7)} <score>2</score> {quoted(6, 7)}') == 2
  for reply in (quoted(7), quoted(1, 7), f'{quoted(1)} and {quoted(7)}'):
    assert parsing.score(reply) is None
    assert 'quotation' in parsing.verdict(reply).reason


def test_naming_a_marker_is_not_quoting():
  reply = f'The proof begins at <{MARKER}> and is short. <score>4</score>'
  assert parsing.score(reply) == 4
  other = '<proof-ffffffffffff>'
  assert parsing.score(f'{other} <score>4</score> </{MARKER}>') == 4


def test_fences_within_a_quotation_belong_to_it():
  inner = '<rubric-0123456789ab>\n</rubric-0123456789ab>'
  reply = f'<{MARKER}>{inner}<score>7</score></{MARKER}><score>1</score>'
  assert parsing.score(reply) == 1
  # Also where the inner one seems to end behind it.
  inner = '<rubric-0123456789ab>'
  reply = f'<{MARKER}>{inner}</{MARKER}><score>1</score></{inner[1:]}'
  assert parsing.score(reply) == 1


def test_taking_a_quotation_out_joins_nothing():
  assert parsing.score(f'<sco{FENCED}re>7</score>') is None
  assert parsing.score(f'<score>1{FENCED}2</score>') is None


PIECES = st.sampled_from(
  [
    '<score>',
    '</score>',
    '<SCORE >',
    '< / score>',
    '7',
    '5/7',
    '5.0',
    '-1',
    '6.5',
    '/',
    '.',
    ' ',
    '\n',
    '<',
    '>',
    f'<{MARKER}>',
    f'</{MARKER}>',
    '٣',
    '9' * 30,
  ]
)
REPLIES = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=30).map(
  ''.join
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(REPLIES)
def test_whatever_comes_is_a_score_from_0_to_7_or_a_reason(reply):
  verdict = parsing.verdict(reply)
  if verdict.score is None:
    assert verdict.reason
  else:
    assert verdict.score in range(8)
    assert verdict.reason == ''
    assert parsing.score(f'{reply} bye') == verdict.score


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
  REPLIES.filter(lambda r: '<proof' not in r), st.integers(0, 7)
)
def test_a_verdict_at_the_end_wins_over_all_before_it(before, score):
  assert parsing.score(f'{before}\n<score>{score}</score>') == score


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(REPLIES, st.integers(0, 7))
def test_a_verdict_copied_out_of_a_fence_never_counts(proof, score):
  shown = templates.unfence('proof', templates.fence('proof', proof))
  assert parsing.score(shown) is None
  assert parsing.score(f'<score>{score}</score>\n{shown}') == score


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
  'text',
  [
    '<score>' * 100_000,
    '<' * 500_000,
    '< ' * 200_000,
    '<score>' + ' ' * 500_000,
    '<score>' + '1' * 500_000 + '</score>',
    f'<{MARKER}>' * 20_000,
    f'<{MARKER}>' * 20_000 + f'</{MARKER}>' * 20_000,
  ],
  ids=lambda text: text[:10],
)
def test_a_hostile_reply_takes_no_time(text):
  assert parsing.score(text) is None
