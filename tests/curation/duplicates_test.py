"""Equal and nearly equal problems are found, and only these."""

import dataclasses
import random

from bench import decontaminate as bench
from experiments import base
from qed import config
from qed.curation import duplicates
from qed.curation.records import Item

SETTINGS = config.DuplicatesConfig(**base.curation().duplicates.to_dict())
LONG = (
  'Let $n$ be a positive integer. Anna has written a number on each of $2n$ '
  'cards, and Bernd wants to arrange the cards in two rows of $n$ such that '
  'the sums of both rows differ by at most one. Prove that he can do so if '
  'the numbers are the first $2n$ positive integers.'
)


def outcomes(*statements, ids=None):
  items = [
    Item(item_id=ids[n] if ids else f'i{n}', statement=text)
    for n, text in enumerate(statements)
  ]
  return list(duplicates.remove_duplicates(lambda: iter(items), SETTINGS))


def reasons(*statements):
  return [outcome.reason for outcome in outcomes(*statements)]


def test_the_same_in_another_spelling_is_a_duplicate():
  found = outcomes(
    r'Prove that $\dfrac{a}{b} \le 1$ for all of these.',
    'Something else is to be shown here, for $x$ and $y$.',
    'prove that $a/b≤1$ for all of these',
  )
  assert [o.reason for o in found] == ['', '', 'duplicate']
  assert found[2].detail == 'the statement of i0'


def test_a_few_other_words_are_a_near_duplicate():
  other = LONG.replace('wants to', 'tries to').replace('such that', 'so that')
  found = outcomes(LONG, other)
  assert [o.reason for o in found] == ['', 'near_duplicate']
  assert found[1].item.notes['duplicates']['of'] == 'i0'


def test_another_number_is_another_problem():
  assert reasons(LONG, LONG.replace('2n', '3n')) == ['', '']


def test_sentences_in_another_order_are_a_near_duplicate():
  parts = bench.sentences(LONG)
  assert reasons(LONG, ' '.join(parts[::-1])) == ['', 'near_duplicate']


def test_the_first_of_many_stays():
  almost = LONG.replace('wants to', 'tries to')
  assert reasons(almost, LONG, LONG, almost) == [
    '', 'near_duplicate', 'duplicate', 'duplicate',
  ]  # fmt: skip


def test_a_duplicate_of_a_near_duplicate_names_the_one_that_stays():
  almost = LONG.replace('wants to', 'tries to')
  found = outcomes(LONG, almost, almost)
  assert found[2].detail == 'the statement of i0'


def test_what_resembles_only_a_removed_one_stays():
  # Each is near the one before it, and the last is far from the first.
  near = LONG.replace('has written a number on each of', 'puts numbers onto')
  far = near.replace('such that the sums', 'where sums').replace(
    'differ by at most one', 'are nearly equal to each other'
  )
  assert reasons(near, far) == ['', 'near_duplicate']
  assert reasons(LONG, far) == ['', '']
  assert reasons(LONG, near, far) == ['', 'near_duplicate', '']


def test_runs_of_words_that_too_many_share_find_no_pair():
  others = (LONG.replace('wants', verb) for verb in ('tries', 'hopes'))
  items = [
    Item(item_id=f'i{n}', statement=text)
    for n, text in enumerate((LONG, *others))
  ]
  for max_common, num_found in [(3, 2), (2, 0)]:
    settings = dataclasses.replace(SETTINGS, max_common=max_common)
    found = duplicates.remove_duplicates(lambda: iter(items), settings)
    assert sum(bool(outcome.reason) for outcome in found) == num_found


def test_different_problems_of_one_id_get_two():
  first, second = outcomes(LONG, 'Prove something else.', ids=['p1', 'p1'])
  assert first.item.item_id == 'p1'
  assert second.item.item_id.startswith('p1-p-')


def test_planted_copies_are_found_among_problems_of_one_pattern():
  rng = random.Random(0)
  rows = [bench.synthetic(rng) for _ in range(400)]
  copied = rng.sample(range(400), 20)
  copies = [bench.edit_words(rows[n], rng, 0.05) for n in copied]
  found = outcomes(*rows, *copies)
  assert sum(bool(o.reason) for o in found[400:]) >= 19
  assert sum(bool(o.reason) for o in found[:400]) == 0


def test_nothing_is_no_problem():
  assert outcomes() == []
