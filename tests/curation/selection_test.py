"""The choice keeps its bounds, has one peak, and forgets no order."""

import types as namespaces

import pytest

from qed.curation import selection
from qed.curation.records import Item


def settings(**changes):
  values = {
    'max_mean_reward': 0.8, 'min_pass_rate': 0.01, 'max_pass_rate': 1.0,
    'num_bins': 10, 'tail_decay': 0.0,
  }  # fmt: skip
  return namespaces.SimpleNamespace(**(values | changes))


def item(name, mean, rate):
  return Item(
    item_id=name,
    statement='s',
    difficulty=mean,
    notes={'difficulty': {'pass_rate': rate}},
  )


def reasons(items, **changes):
  return [o.reason for o in selection.select(items, settings(**changes))]


def test_bounds_are_kept():
  items = [
    item('easy', 0.81, 0.5),
    item('at the bound', 0.8, 0.5),
    item('never', 0.3, 0.0),
    item('once', 0.01, 0.01),
  ]
  assert reasons(items) == ['too_easy', '', 'too_hard', '']
  assert reasons(items, max_pass_rate=0.4)[1] == 'too_easy'
  everything = {'max_mean_reward': 1.0, 'min_pass_rate': 0.0}
  assert reasons(items, **everything) == [''] * 4


@pytest.mark.parametrize(
  ('counts', 'decay', 'kept'),
  [
    ([2, 9, 5, 8, 8], 0.5, [2, 9, 4, 2, 1]),
    ([5, 9, 3, 6, 1, 1], 1.0, [5, 9, 3, 3, 1, 1]),
    ([8, 3, 9, 1, 0, 50], 1.0, [3, 3, 9, 1, 0, 0]),
    ([4, 4, 4], 0.0, [4, 4, 4]),
    ([0, 0, 0, 7], 0.9, [0, 0, 0, 0]),
    ([3], 0.5, [3]),
    ([4, 4, 4, 4], 0.5, [4, 2, 1, 0]),  # Of equal peaks, the hardest.
  ],
)
def test_the_histogram_has_one_peak_and_a_tail(counts, decay, kept):
  assert selection.shape(counts, decay) == kept


def test_who_stays_does_not_depend_on_the_order():
  items = [item(f'h{n}', 0.15, 0.1) for n in range(4)]
  items += [item(f'e{n}', 0.75, 0.5) for n in range(40)]
  first = selection.select(items, settings(tail_decay=0.9, num_bins=2))
  second = selection.select(items[::-1], settings(tail_decay=0.9, num_bins=2))
  first, second = (
    {o.item.item_id for o in found if not o.reason} for found in (first, second)
  )
  assert first == second
  assert sum(name[0] == 'h' for name in first) == 4
  assert sum(name[0] == 'e' for name in first) == 3  # int(0.9 * 4)


def test_without_a_difficulty_there_is_no_choice():
  with pytest.raises(ValueError, match='item i: expected a difficulty'):
    list(selection.select([Item(item_id='i', statement='s')], settings()))


@pytest.mark.parametrize(
  ('mean', 'number'), [(0.0, 0), (0.099, 0), (0.1, 1), (0.95, 9), (1.0, 9)]
)
def test_bins_are_of_equal_width(mean, number):
  assert selection.bin_of(mean, 10) == number
