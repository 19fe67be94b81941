"""Benchmark problems are found in disguise, and strangers are not."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest

from bench import decontaminate as bench
from experiments import base
from qed import config
from qed.curation import decontaminate, likeness
from qed.curation.records import Item
from qed.types import Problem

SETTINGS = config.DecontaminationConfig(
  **base.curation().decontamination.to_dict()
)
STATEMENT = (
  'Let $ABC$ be a triangle with $AB < AC$, and let $M$ be the midpoint of '
  '$BC$. The circle through $A$ that touches $BC$ in $B$ meets $AM$ again in '
  '$P$. Prove that $PM \\cdot AM = \\frac{BC^2}{4}$ and that the angles $PBC$ '
  'and $PAB$ are equal.'
)
OTHERS = [
  'Find all functions $f:\\mathbb{R}\\to\\mathbb{R}$ such that '
  '$f(xf(y)+y^3)-f(xy+1)f(y)=yf(x)+f(y)^3-2xy$ for all '
  '$x,y\\in\\mathbb{R}$.',
  'A grid of $2024 \\times 2024$ cells is filled with the numbers 1 and 2. '
  'Show that two of its rows, columns and diagonals have equal sums.',
]
BENCHMARK = [
  Problem(problem_id=f'b/{n}', statement=text)
  for n, text in enumerate([STATEMENT, *OTHERS])
]
INDEX = likeness.Index(BENCHMARK, SETTINGS)
THREAD = (
  'Hi everyone, this was posed at our training camp last week and nobody of us '
  'could do it, so here it is: {} I tried inversion in $A$ but it gave me '
  'nothing but more circles, and power of a point seems to want a different '
  'point altogether.'
)


def outcome(statement, settings=SETTINGS, **fields):
  item = Item(item_id='i', statement=statement, **fields)
  index = likeness.Index(BENCHMARK, settings)
  (found,) = decontaminate.decontaminate([item], index, settings)
  return found


def match(statement):
  (found,) = INDEX.matches([Item(item_id='i', statement=statement)])
  return found


@pytest.mark.parametrize('kind', ['words', 'letters', 'tex', 'renamed'])
@pytest.mark.parametrize('seed', range(3))
def test_each_kind_of_edit_is_seen_through(kind, seed):
  text = bench.EDITS[kind](STATEMENT, random.Random(seed), 0.1)
  found = outcome(text)
  assert found.reason == 'in_benchmark'
  assert found.item.notes['decontaminate']['benchmark_id'] == 'b/0'
  assert found.detail.startswith('b/0: ')


def test_another_spelling_is_exact():
  assert match(bench.edit_tex(STATEMENT, random.Random(0), 0)).how == 'exact'


def test_other_names_are_seen_through_by_renaming():
  text = bench.edit_names(OTHERS[0], random.Random(0), 0)
  found = match(text)
  assert (found.is_removed, found.renamed) == (True, 1.0)
  assert found.ratio < 0.9


def test_reordered_sentences_are_seen_through_by_overlap():
  parts = bench.sentences(STATEMENT)
  found = match(' '.join(parts[::-1]))
  assert (found.how, found.is_removed) == ('overlap', True)


@pytest.mark.parametrize(
  ('way', 'kind'),
  [
    ('ratio', 'words'),
    ('renamed', 'renamed'),
    ('overlap', 'reordered'),
    ('overlap', 'thread'),
    ('content', 'reordered'),
  ],
)
def test_each_way_finds_some_by_itself(way, kind):
  bounds = {
    'ratio': 'min_ratio',
    'renamed': 'min_renamed_ratio',
    'overlap': 'min_overlap',
    'content': 'min_content',
  }
  section = base.curation().decontamination.to_dict()
  others = {b: 1.0 for name, b in bounds.items() if name != way}
  # A few words changed besides, or the texts would be equal to every way.
  text = bench.edit_words(STATEMENT, random.Random(1), 0.1)
  if kind == 'thread':
    text = THREAD.format(STATEMENT)
  elif kind != 'words':
    text = bench.EDITS[kind](text, random.Random(1), 0.1)
  settings = config.DecontaminationConfig(**(section | others))
  found = outcome(text, settings)
  assert found.reason == 'in_benchmark'
  assert found.item.notes['decontaminate']['how'] == way


def test_a_problem_inside_a_thread_is_found():
  thread = THREAD.format(STATEMENT)
  assert outcome(thread).reason == 'in_benchmark'


@pytest.mark.parametrize(
  'stranger',
  [
    'Let $ABC$ be a triangle with circumcenter $O$. Prove that the reflection '
    'of $O$ in $BC$ lies on the circle $BHC$, where $H$ is the orthocenter.',
    'Find all functions $f:\\mathbb{N}\\to\\mathbb{N}$ such that $f(n)+m$ '
    'divides $n^2+3f(m)$ whenever $m$ and $n$ have no common factor.',
    'Find all functions $f:\\mathbb{R}\\to\\mathbb{R}$ such that '
    '$f(2x+f(y))=x+y+f(x)$ for all $x,y\\in\\mathbb{R}$.',
    'Prove that there are infinitely many primes.',
  ],
)
def test_strangers_pass(stranger):
  assert outcome(stranger).reason == ''


def test_what_comes_near_is_kept_for_review():
  ratio = match(bench.edit_words(STATEMENT, random.Random(0), 0.2)).ratio
  section = base.curation().decontamination.to_dict()
  section |= {'min_ratio': ratio + 0.02, 'min_renamed_ratio': 0.99}
  section |= {'min_overlap': 0.99, 'min_content': 0.99}
  settings = config.DecontaminationConfig(**section)
  found = outcome(bench.edit_words(STATEMENT, random.Random(0), 0.2), settings)
  assert found.reason == ''
  assert 'review' in found.remarks
  assert found.item.notes['decontaminate']['benchmark_id'] == 'b/0'


def against(benchmark, statement, settings=SETTINGS):
  index = likeness.Index(
    [Problem(problem_id='b', statement=benchmark)], settings
  )
  return index.matches([Item(item_id='i', statement=statement)])[0]


def test_a_text_with_every_word_somewhere_is_no_copy():
  words = 'merchant weighs pearls broken balance counterfeit lighter coins'
  rng = random.Random(0)
  scattered = ' '.join(
    ' '.join([word, *(''.join(rng.choices('zqxjkv', k=9)) for _ in range(5))])
    for word in reversed(words.split())
  )
  assert against(words, ' '.join(reversed(words.split()))).how == 'content'
  assert against(words, scattered) is None


def test_a_few_common_words_are_no_copy():
  statement = 'Prove that infinitely many composites are twins of each other.'
  stranger = (
    'Does a graph with infinitely many vertices contain two disjoint copies '
    'whose twins are composites of paths? Find those, or show there are none.'
  )
  assert against(statement, stranger) is None


@pytest.mark.parametrize(
  ('min_chars', 'how'), [(15, 'content'), (16, None), (40, None)]
)
def test_content_counts_where_there_is_enough_of_it(min_chars, how):
  statement = 'Prove that every merchant has a balance.'  # 8 + 7 letters.
  stranger = 'Is there a balance that can weigh whatever a merchant brings?'
  settings = dataclasses.replace(SETTINGS, min_content_chars=min_chars)
  found = against(statement, stranger, settings)
  assert (found.how if found else None) == how


def test_a_person_can_clear_an_item():
  section = base.curation().decontamination.to_dict() | {'cleared': ('i',)}
  found = outcome(STATEMENT, config.DecontaminationConfig(**section))
  assert (found.reason, found.remarks) == ('', ('undated', 'cleared'))


@pytest.mark.parametrize(
  ('fields', 'statement', 'reason'),
  [
    ({'year': 2025}, 'Prove a thing.', 'too_recent'),
    ({'year': 2024}, 'Prove a thing.', ''),
    ({'origin': 'USAMO/2025/1'}, 'Prove a thing.', 'too_recent'),
    ({'origin': 'BMO 2019'}, 'Prove a thing.', ''),
    ({'origin': 'BMO 2019, TST 2025'}, 'Prove a thing.', 'too_recent'),
    ({}, '(IMO 2025, problem 1) Prove a thing.', 'too_recent'),
    ({}, 'Prove that 2025 divides it.', ''),
    ({}, 'Prove a thing.', ''),
  ],
)
def test_what_is_dated_too_late_goes(fields, statement, reason):
  assert outcome(statement, **fields).reason == reason


def test_a_year_that_may_be_a_date_is_for_review():
  assert 'review' in outcome('Prove that 2025 divides it.').remarks
  assert 'review' not in outcome('Prove that 2023 divides it.').remarks


def test_batches_change_nothing():
  rng = random.Random(0)
  items = [
    Item(item_id=f'i{n}', statement=bench.synthetic(rng)) for n in range(600)
  ]
  items[300] = Item(item_id='copy', statement=STATEMENT)
  found = list(decontaminate.decontaminate(items, INDEX, SETTINGS))
  assert [o.item.item_id for o in found] == [i.item_id for i in items]
  assert [o.item.item_id for o in found if o.reason] == ['copy']


_OTHER_PROCESS = """
import dataclasses
import random
from bench import decontaminate as bench
from qed.curation import decontaminate, likeness, records, stages
from qed.types import Problem
from tests.curation.decontaminate_test import SETTINGS

rng = random.Random(0)
texts = [bench.synthetic(rng) for _ in range(150)]
problems = [Problem(problem_id=text, statement=text) for text in texts]
items = [
  records.Item(item_id=text, statement=bench.edit_words(text, rng, 0.1))
  for text in texts
]
settings = dataclasses.replace(SETTINGS, review_margin=0.4)
index = likeness.Index(problems, settings)
found = decontaminate.decontaminate(items, index, settings)
print(stages.digest({'found': [records.to_json(o.item) for o in found]}))
"""


def test_another_process_finds_the_same_to_the_last_digit():
  # Sets of texts have another order there, and sums of floats would show it.
  found = {
    subprocess.run(
      [sys.executable, '-c', _OTHER_PROCESS],
      env={**os.environ, 'PYTHONHASHSEED': seed, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      check=True,
      text=True,
    ).stdout
    for seed in ('1', '2')
  }
  assert len(found) == 1


def test_benchmarks_are_read_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'bench.jsonl'
  rows = [{'problem_id': 'x', 'problem': 'P.'}, {'problem': 'Q.'}]
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  found = decontaminate.load_benchmarks([path])
  assert [p.statement for p in found] == ['P.', 'Q.']
  assert found[0].problem_id == 'bench/x'
  path.write_text(json.dumps({'question': 'P.'}) + '\n')
  with pytest.raises(ValueError, match='statement'):
    decontaminate.load_benchmarks([path])


def test_no_benchmark_is_a_mistake():
  with pytest.raises(ValueError, match='got none'):
    likeness.Index([], SETTINGS)


def test_planted_copies_among_real_problems():
  if not bench.DATA.exists():
    pytest.skip('needs ../shared/data/imobench')
  result = bench.measure(bench.load_problems(), SETTINGS, num_rows=800, seed=20)
  found = sum(result['kinds'][kind]['found'] for kind in bench.KINDS)
  assert found >= 38, result['kinds']
  assert len(result['false_flags']) <= 5, result['false_flags']
