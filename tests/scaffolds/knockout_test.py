"""A knockout ends after n - 1 comparisons, for every field."""

import collections

import numpy as np
import pytest

from qed.scaffolds import knockout
from qed.scaffolds.calls import OutOfBudget


async def play(num_entrants, better, seed=0):
  matches = []

  async def compare(first, second, label):
    matches.append((first, second, label))
    return better(first, second)

  rng = np.random.default_rng(seed)
  return await knockout.winner(range(num_entrants), compare, rng), matches


@pytest.mark.parametrize('num_entrants', range(1, 41))
async def test_the_best_wins_after_one_comparison_less_than_entrants(
  num_entrants,
):
  winner, matches = await play(num_entrants, lambda a, b: int(b > a))
  assert winner == num_entrants - 1
  assert len(matches) == num_entrants - 1
  losers = [min(first, second) for first, second, _ in matches]
  assert sorted(losers) == list(range(num_entrants - 1))


async def test_rounds_and_matches_are_numbered():
  _, matches = await play(5, lambda a, b: 0)
  assert [label for _, _, label in matches] == [
    *('knockout 1/match 1', 'knockout 1/match 2'),
    'knockout 2/match 1',
    'knockout 3/match 1',
  ]


async def test_byes_and_places_are_drawn_anew_in_every_round():
  byes, firsts = collections.Counter(), collections.Counter()
  for seed in range(600):
    winner, matches = await play(3, lambda a, b: 0, seed)
    byes.update({0, 1, 2} - {*matches[0][:2]})
    firsts[winner] += 1
    assert winner == matches[1][0]
  # 200 each; 60 is five standard deviations of a fair draw.
  assert all(abs(byes[i] - 200) < 60 for i in range(3))
  assert all(abs(firsts[i] - 200) < 60 for i in range(3))


async def test_a_replay_is_equal():
  assert await play(9, lambda a, b: 0, 5) == await play(9, lambda a, b: 0, 5)


async def test_out_of_budget_the_winner_of_a_match_of_this_round_is_taken():
  asked = []

  async def compare(first, second, label):
    asked.append((first, second))
    if len(asked) != 2:
      raise OutOfBudget('enough')
    return 1

  winner = await knockout.winner(range(8), compare, np.random.default_rng(0))
  assert winner == asked[1][1]
  assert len(asked) == 4


async def test_out_of_budget_from_the_start_any_entrant_is_taken():
  async def compare(first, second, label):
    raise OutOfBudget('enough')

  winner = await knockout.winner(range(8), compare, np.random.default_rng(0))
  assert winner in range(8)


async def test_there_must_be_entrants():
  with pytest.raises(ValueError, match='got none'):
    await play(0, lambda a, b: 0)
