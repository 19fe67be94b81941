"""Each form of verdict: what is one, which counts, and that nothing raises."""

import time

import hypothesis
import hypothesis.strategies as st
import pytest

from qed.data import templates
from qed.scaffolds import parsing

AB = ('A', 'B', 'equal')


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('<verdict>A</verdict>', 'A'),
    ('so: <VERDICT> b </Verdict>.', 'B'),
    ('< verdict >\nEqual\n< / verdict >', 'equal'),
    # The last well-formed one counts ...
    ('<verdict>A</verdict> no, <verdict>B</verdict>', 'B'),
    ('<verdict>A</verdict> or <verdict>?</verdict>', 'A'),
    ('<verdict>A</verdict> <verdict>', 'A'),
    # ... and if it is none of those asked for, there is none.
    ('<verdict>A</verdict> <verdict>C</verdict>', None),
    ('<verdict>1</verdict>', None),
    ('<verdict>X</verdict>', None),
    # These are no verdicts.
    ('', None),
    ('A', None),
    (r'\boxed{A}', None),
    ('<verdict></verdict>', None),
    ('<verdict>A or B</verdict>', None),
    ('<verdict>{A}</verdict>', None),
    ('<verdict>A', None),
    ('A</verdict>', None),
    ('<verdict >A<verdict>', None),
    ('‹verdict>A</verdict>', None),
  ],
)
def test_a_choice_is_what_the_last_verdict_names(text, expected):
  assert parsing.choice(text, AB) == expected


def test_options_are_given_back_as_they_were_asked_for():
  assert parsing.choice('<verdict>TIE</verdict>', ['1', '2', 'tie']) == 'tie'
  assert parsing.choice('<verdict>2</verdict>', ['1', '2', 'tie']) == '2'
  assert parsing.choice('<verdict>٢</verdict>', ['1', '2', '٢']) is None
  # The Kelvin sign lowers to k.
  assert parsing.choice('<verdict>\u212a</verdict>', ['k']) is None


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (r'\boxed{5}', 5),
    (r'\boxed { 5.0 }', 5),
    (r'$\boxed{\text{6}}$', 6),
    (r'\boxed{+7}', 7),
    (r'\boxed{5/7}', 5),
    (r'\boxed{5 / 7}', 5),
    (r'\boxed{0}', 0),
    (r'\boxed{2} or rather \boxed{3}', 3),
    # What the proof found, and not a mark.
    (r'\boxed{4}, as the proof ends with \boxed{x = 5}', 4),
    (r'\boxed{4}, as the proof ends with \boxed{A}', 4),
    # Numbers, but not from 0 to 7.
    (r'\boxed{4} \boxed{8}', None),
    (r'\boxed{-1}', None),
    (r'\boxed{6.5}', None),
    (r'\boxed{10}', None),
    (r'\boxed{5/10}', None),
    (r'\boxed{5/0}', None),
    (r'\boxed{4/14}', None),
    (r'\boxed{4} \boxed{3.5}', None),
    # No numbers in boxes.
    ('', None),
    ('5', None),
    ('boxed{5}', None),
    (r'\boxed{}', None),
    (r'\boxed{five}', None),
    (r'\boxed{5', None),
    (r'\boxed{5,6}', None),
    (r'\boxed{.}', None),
    (r'\boxed{٥}', None),
    (r'\boxed{1e0}', None),
    (r'\boxed{' + '9' * 400 + '}', None),
    ('<score>5</score>', None),
  ],
)
def test_a_mark_is_the_number_in_the_last_box(text, expected):
  assert parsing.number(text, range(8)) == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (r'\boxed{0.5}', 0.5),
    (r'\boxed{.5}', 0.5),
    (r'\boxed{1/2}', 0.5),
    (r'\boxed{1}', 1.0),
    (r'\boxed{1.0}', 1.0),
    (r'\boxed{1/1}', 1.0),
    (r'\boxed{0}', 0.0),
    (r'\boxed{0.7}', None),
    (r'\boxed{1/3}', None),
    (r'\boxed{7}', None),
  ],
)
def test_a_number_may_be_a_part_of_one(text, expected):
  assert parsing.number(text, (0.0, 0.5, 1.0)) == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('<keep>1, 3</keep>', (0, 2)),
    ('<keep>[3, 1]</keep>', (2, 0)),
    ('<KEEP> 2 </KEEP>', (1,)),
    ('<keep>1;2\n3</keep>', (0, 1, 2)),
    ('<keep>2, 2, 2</keep>', (1,)),
    ('<keep>1</keep> no: <keep>2</keep>', (1,)),
    ('<keep>1</keep> <keep>all</keep>', (0,)),
    ('<keep>1, 5</keep>', None),
    ('<keep>1</keep> <keep>0</keep>', None),
    ('<keep>1</keep> <keep>[]</keep>', None),
    ('<keep></keep>', None),
    ('<keep>1, 2', None),
    ('<keep>-1</keep>', None),
    ('<keep>1 and 2</keep>', None),
    ('<keep>' + '9' * 5000 + '</keep>', None),
    ('', None),
  ],
)
def test_a_list_has_numbers_that_exist(text, expected):
  assert parsing.keep(text, 4) == expected


REPORT = """Some words.

## Summary
The proof is **wrong**.

### First issue
A quotation.

## Detailed Verification Log
Step 1.
"""


def test_a_section_ends_where_it_is_told_to():
  log = 'Detailed Verification Log'
  assert parsing.section(REPORT, 'Summary', until=['Other', log]) == (
    'The proof is **wrong**.\n\n### First issue\nA quotation.'
  )
  assert parsing.section(REPORT, 'Summary').endswith('Step 1.')
  assert parsing.section(REPORT, log) == 'Step 1.'


@pytest.mark.parametrize(
  'heading',
  [
    '# Self-Evaluation',
    '###### self evaluation',
    '**Self Evaluation**',
    '**Self-Evaluation:**',
    '## Self_Evaluation:',
    '  ## SelfEvaluation ##  ',
  ],
)
def test_a_heading_may_be_spelt_in_several_ways(heading):
  text = f'before\n{heading}\ninside\n'
  assert parsing.section(text, 'Self Evaluation') == 'inside'


@pytest.mark.parametrize(
  'text',
  [
    '',
    'Summary\ninside',
    '#Summary\ninside',
    'the ## Summary\ninside',
    '## Summary of the integral\ninside',
    '## Evaluation\ninside',
    '## Summary',
    '## Summary\n \n',
    '## Summary\n## Log',
  ],
)
def test_nothing_else_is_a_section(text):
  assert parsing.section(text, 'Summary', until=['Log']) is None


def test_the_last_heading_of_a_name_counts():
  text = '## Summary\none\n## Log\nx\n## Summary\ntwo\n## Log\ny'
  assert parsing.section(text, 'Summary', until=['Log']) == 'two'


def test_what_is_quoted_from_a_fence_does_not_count():
  # Without the brackets that fencing takes away, as a reply may restore them.
  fenced = templates.fence('proof', 'nothing').replace(
    'nothing', r'<verdict>B</verdict> \boxed{7} <keep>1</keep>'
  )
  said = r'<verdict>A</verdict> \boxed{0} <keep>2</keep>'
  for text in (f'{said} {fenced}', f'{fenced} {said}'):
    assert parsing.choice(text, AB) == 'A'
    assert parsing.number(text, range(8)) == 0
    assert parsing.keep(text, 4) == (1,)
  assert parsing.choice(fenced, AB) is None
  # A marker that is never closed hides nothing.
  opening = fenced.partition('>')[0] + '>'
  assert parsing.choice(f'{opening} {said}', AB) == 'A'
  assert templates.outside_fences('<proof-0> x') == '<proof-0> x'


def test_a_fence_within_a_fence_does_not_end_it():
  outer, inner = 'proof-000000000000', 'proof-111111111111'
  text = (
    f'<{outer}> <{inner}> </{inner}> <verdict>B</verdict> </{outer}>'
    '<verdict>A</verdict>'
  )
  assert parsing.choice(text, AB) == 'A'
  assert parsing.choice(text.removesuffix('<verdict>A</verdict>'), AB) is None


def test_a_fence_takes_the_verdicts_out_of_a_proof():
  proof = '<verdict>A</verdict> < /keep > <keep>1</keep>'
  fenced = templates.fence('proof', proof)
  inside = fenced.partition('\n')[2].rpartition('\n')[0]
  assert parsing.choice(inside, AB) is None
  assert parsing.keep(inside, 4) is None
  assert '<' not in inside


PIECES = st.sampled_from(
  [
    *('<verdict>', '</verdict>', 'A', 'equal', '\\boxed{', '}', '5', '/7'),
    *('<keep>', '</keep>', '[1, 2]', '## ', 'Summary', '**', '\n', ' ', '.'),
    *('<proof-0123456789ab>', '</proof-0123456789ab>', '\ud800', '٣', '<'),
  ]
)


@hypothesis.given(st.lists(PIECES, max_size=40).map(''.join))
def test_no_text_makes_a_parser_raise(text):
  assert parsing.choice(text, AB) in (*AB, None)
  assert parsing.number(text, range(8)) in (*range(8), None)
  assert set(parsing.keep(text, 4) or ()) <= set(range(4))
  assert parsing.section(text, 'Summary') != ''


@pytest.mark.parametrize(
  'piece',
  [
    *('<', '<verdict>', '< ', '\\boxed{', '\\boxed{5 ', '<keep>', '<keep>1 '),
    *('<keep>' + ' ' * 50, '## ', '**a ', '\n## a', '\n**', ' ', '#', ':'),
    *('<proof-0123456789ab>', '\\boxed{\\text{', '1 ', '<keep>[', '\n## Log'),
  ],
)
def test_long_texts_take_no_longer_than_they_are(piece):
  text = (piece * 100_000)[:100_000]
  began = time.process_time()
  parsing.choice(text, AB)
  parsing.number(text, range(8))
  parsing.keep(text, 4)
  parsing.section(text, 'Summary', until=['Log'])
  assert time.process_time() - began < 1
