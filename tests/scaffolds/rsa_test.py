"""Balanced blocks, merges and the knockout; what is missing ends nothing."""

import collections
import itertools
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qed import config
from qed.scaffolds import rsa
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Down, Scripted, cut

A, B, EQUAL = (f'<verdict>{name}</verdict>' for name in ('A', 'B', 'equal'))


def section(num_solutions=8, num_rounds=3, block_size=3, **fields):
  return config.RsaConfig(
    num_solutions=num_solutions,
    num_rounds=num_rounds,
    block_size=block_size,
    **{
      'selection': 'knockout',
      'solve': 'Prove: {{problem}}',
      'merge': 'Merge: {{problem}}\n{{candidates_verbatim}}',
      'select': 'Select: {{problem}}\n{{candidates_verbatim}}',
    }
    | fields,
  )


def candidates(asked):
  """The texts that a call is shown, in their order."""
  return re.findall(r'^[A-Z]:\n(.*)$', asked.text, re.MULTILINE)


def script(select=A, **special):
  """Names solutions s1, s2, ... and merges of round r r.1, r.2, ...

  Args:
    select: what every comparison comes to; or a function of its candidates.
    **special: what takes the place of some of them, as in s2='' or r1_3=''.
  """
  counts = collections.Counter()

  def respond(asked):
    kind = asked.text.split(':')[0]
    if kind == 'Select':
      return select(candidates(asked)) if callable(select) else select
    number, size = counts['all'], special.get('size', 8)
    counts['all'] += 1
    rounds, place = divmod(number, size)
    name = f'r{rounds}_{place + 1}' if rounds else f's{place + 1}'
    return special.get(name, name)

  return Scripted(respond)


async def run(llm, scaffold=None, **fields):
  setup = scripted.setup(scaffold or section(), **fields)
  return await rsa.solve(PROBLEM, llm, setup)


def by_kind(llm):
  """Solve, merge and select calls."""
  kinds = {'Prove': [], 'Merge': [], 'Select': []}
  for asked in llm.asked:
    kinds[asked.text.split(':')[0]].append(asked)
  return kinds['Prove'], kinds['Merge'], kinds['Select']


# Blocks.


@hypothesis.settings(deadline=None)
@hypothesis.given(
  st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n))
  ),
  st.integers(0, 2**32 - 1),
)
def test_blocks_use_every_item_equally_often(sizes, seed):
  num_items, block_size = sizes
  rng = np.random.default_rng(seed)
  blocks = rsa.balanced_blocks(num_items, block_size, rng)
  assert len(blocks) == num_items
  assert all(len(set(block)) == block_size for block in blocks)
  uses = collections.Counter(itertools.chain(*blocks))
  assert uses == {item: block_size for item in range(num_items)}
  # In every place of a block, too.
  for place in zip(*blocks, strict=True):
    assert sorted(place) == list(range(num_items))


def test_all_sizes_up_to_26_are_balanced():
  for num_items in range(1, 27):
    for block_size in range(1, num_items + 1):
      rng = np.random.default_rng([num_items, block_size])
      blocks = rsa.balanced_blocks(num_items, block_size, rng)
      uses = collections.Counter(itertools.chain(*blocks))
      assert uses == {item: block_size for item in range(num_items)}


def test_every_pair_of_items_may_meet():
  met = set()
  for seed in range(200):
    rng = np.random.default_rng(seed)
    for block in rsa.balanced_blocks(8, 3, rng):
      met |= set(itertools.combinations(sorted(block), 2))
  assert len(met) == 8 * 7 / 2


def test_which_items_lie_side_by_side_is_chance():
  pairs = set()
  for seed in range(50):
    blocks = rsa.balanced_blocks(4, 2, np.random.default_rng(seed))
    met = {frozenset(block) for block in blocks}
    if len(met) == 2:  # Those that lie opposite each other in the ring.
      pairs.add(frozenset(met))
  assert len(pairs) == 3  # All ways to divide four into two and two.


# Calls.


async def test_the_published_sizes_make_39_calls_in_this_order():
  llm = script()
  solution = await run(llm)
  assert solution.usage['calls'] == len(llm.asked) == 39
  assert scripted.labels(solution) == [
    *(f'solution {i}' for i in range(1, 9)),
    *(f'round {r}/merge {i}' for r in (1, 2, 3) for i in range(1, 9)),
    *(f'knockout 1/match {i}' for i in range(1, 5)),
    *(f'knockout 2/match {i}' for i in range(1, 3)),
    'knockout 3/match 1',
  ]
  assert [entry['role'] for entry in solution.trace] == [
    *['solver'] * 8,
    *['merger'] * 24,
    *['selector'] * 7,
  ]
  assert solution.text in {f'r3_{i}' for i in range(1, 9)}
  assert len({asked.params.seed for asked in llm.asked}) == 39


@pytest.mark.parametrize('num_solutions', [1, 2, 3, 5, 8])
@pytest.mark.parametrize('num_rounds', [0, 1, 3])
@pytest.mark.parametrize('selection', ['knockout', 'single'])
async def test_the_number_of_calls_is_that_of_the_formula(
  num_solutions, num_rounds, selection
):
  llm = script(size=num_solutions)
  scaffold = section(num_solutions, num_rounds, 1, selection=selection)
  solution = await run(llm, scaffold)
  comparisons = num_solutions - 1
  if selection == 'single':
    comparisons = min(comparisons, 1)
  assert solution.usage['calls'] == len(llm.asked)
  assert len(llm.asked) == num_solutions * (1 + num_rounds) + comparisons


async def test_each_merge_sees_different_ones_of_the_round_before():
  llm = script()
  await run(llm)
  solves, merges, selects = by_kind(llm)
  assert {asked.text for asked in solves} == {'Prove: Show that 1 = 1.'}
  assert all('{{' not in asked.text for asked in llm.asked)
  for round_, names in enumerate(('s{}', 'r1_{}', 'r2_{}')):
    shown = [candidates(x) for x in merges[8 * round_ : 8 * round_ + 8]]
    assert all(len(set(texts)) == 3 for texts in shown)
    assert collections.Counter(itertools.chain(*shown)) == {
      names.format(i): 3 for i in range(1, 9)
    }
  assert merges[0].text.startswith('Merge: Show that 1 = 1.\nA:\n')
  assert selects[0].text.startswith('Select: Show that 1 = 1.\nA:\n')
  shown = [candidates(asked) for asked in selects[:4]]
  assert sorted(itertools.chain(*shown)) == [f'r3_{i}' for i in range(1, 9)]


async def test_blocks_and_pairs_are_those_of_seed_and_attempt():
  def texts(llm):
    return [asked.text for asked in llm.asked]

  runs = {}
  for seed, attempt in [(0, 0), (0, 0), (1, 0), (0, 1)]:
    llm = script()
    await run(llm, seed=seed, attempt=attempt)
    runs.setdefault((seed, attempt), []).append(texts(llm))
  assert runs[0, 0][0] == runs[0, 0][1]
  assert len({tuple(given[0]) for given in runs.values()}) == 3


async def test_the_better_one_of_each_comparison_goes_on():
  def prefer_five(texts):
    return B if texts[1] == 'r3_5' else A

  assert (await run(script(prefer_five))).text == 'r3_5'


async def test_a_single_selection_is_shown_all():
  llm = script('<verdict>G</verdict>')
  solution = await run(llm, section(selection='single'))
  assert solution.usage['calls'] == 33
  assert scripted.labels(solution)[-1] == 'selection'
  assert candidates(llm.asked[-1]) == [f'r3_{i}' for i in range(1, 9)]
  assert solution.text == 'r3_7'


@pytest.mark.parametrize(
  ('verdict', 'text'),
  [('<verdict>I</verdict>', 'r3_1'), (EQUAL, 'r3_1'), ('', 'r3_1')],
)
async def test_a_single_selection_without_verdict_takes_the_first(
  verdict, text
):
  solution = await run(script(verdict), section(selection='single'))
  assert solution.text == text


# Verdicts.


@pytest.mark.parametrize(
  ('verdict', 'name'),
  [
    (EQUAL, 'equal_verdicts'),
    ('', 'unparseable_verdicts'),
    ('B', 'unparseable_verdicts'),
    (r'\boxed{B}', 'unparseable_verdicts'),
    ('<verdict>{{B}}</verdict>', 'unparseable_verdicts'),
    ('<verdict>C</verdict>', 'unparseable_verdicts'),
    (cut(B), 'unparseable_verdicts'),
    (Down(), 'unparseable_verdicts'),
  ],
)
async def test_without_verdict_the_first_of_a_pair_goes_on(verdict, name):
  llm = script(verdict)
  solution = await run(llm)
  _, _, selects = by_kind(llm)
  assert solution.usage['calls'] == 39
  assert scripted.count(solution, name) == (7,)
  assert name in solution.trace[-1]['note']
  assert solution.text == candidates(selects[-1])[0]
  # The winners of a round are the first of each pair.
  firsts = {candidates(asked)[0] for asked in selects[:4]}
  second_round = {x for asked in selects[4:6] for x in candidates(asked)}
  assert second_round == firsts


async def test_the_second_one_can_win():
  llm = script(B)
  solution = await run(llm)
  assert solution.text == candidates(llm.asked[-1])[1]
  assert scripted.count(solution, 'equal_verdicts', 'unparseable_verdicts') == (
    0,
    0,
  )


# What is missing.


@pytest.mark.parametrize('gap', ['', Down()])
async def test_a_missing_solution_makes_blocks_smaller(gap):
  llm = script(s2=gap, s5=gap)
  solution = await run(llm, section(num_rounds=1))
  _, merges, _ = by_kind(llm)
  shown = [candidates(asked) for asked in merges]
  uses = collections.Counter(itertools.chain(*shown))
  assert uses == {f's{i}': 3 for i in (1, 3, 4, 6, 7, 8)}
  assert sum(len(texts) for texts in shown) == 18
  assert scripted.count(solution, 'missing_solutions', 'empty_blocks') == (2, 0)
  assert solution.usage['calls'] == 8 + 8 + 7


async def test_a_block_without_any_solution_is_solved_anew():
  llm = script(**{f's{i}': '' for i in range(1, 8)})
  solution = await run(llm, section(num_rounds=1))
  solves, merges, _ = by_kind(llm)
  assert (len(solves), len(merges)) == (8 + 5, 3)
  assert {tuple(candidates(asked)) for asked in merges} == {('s8',)}
  assert scripted.count(solution, 'missing_solutions', 'empty_blocks') == (7, 5)
  assert solution.usage['calls'] == 23


@pytest.mark.parametrize('gap', ['', Down()])
async def test_a_missing_merge_leaves_the_first_of_its_block(gap):
  llm = script(r1_4=gap)
  solution = await run(llm, section(num_rounds=1))
  _, merges, selects = by_kind(llm)
  first = candidates(merges[3])[0]
  entrants = {x for asked in selects[:4] for x in candidates(asked)}
  assert entrants == {
    *(f'r1_{i}' for i in (1, 2, 3, 5, 6, 7, 8)),
    first,
  }
  assert first.startswith('s')
  assert scripted.count(solution, 'missing_merges') == (1,)


async def test_solutions_that_were_cut_off_are_merged():
  llm = script(s3=cut('s3'))
  solution = await run(llm, section(num_rounds=1))
  _, merges, _ = by_kind(llm)
  uses = collections.Counter(itertools.chain(*map(candidates, merges)))
  assert uses['s3'] == 3
  assert scripted.count(solution, 'truncated', 'missing_solutions') == (1, 0)


async def test_without_any_solution_the_solution_is_empty():
  llm = Scripted(lambda asked: '')
  solution = await run(llm)
  assert (solution.text, len(llm.asked)) == ('', 32)
  with pytest.raises(CallError):
    await run(Scripted(lambda asked: Down()))


async def test_an_only_solution_needs_no_comparison():
  llm = Scripted(lambda asked: 'x' if asked.number == 3 else '')
  solution = await run(llm, section(num_rounds=0))
  assert (solution.text, len(llm.asked)) == ('x', 8)


# Budgets: each call takes 10 of the 100 tokens that it may.


@pytest.mark.parametrize(
  ('num_calls', 'texts'),
  [
    (0, {''}),
    (1, {'s1'}),
    (7, {'s1'}),
    (8, {'s1'}),
    (9, {'r1_1'}),
    (16, {'r1_1'}),
    (20, {'r2_1'}),
    (31, {'r3_1'}),
    (39, {f'r3_{i}' for i in range(1, 9)}),
  ],
)
async def test_when_the_budget_runs_out_the_furthest_is_returned(
  num_calls, texts
):
  llm = script()
  budget = scripted.budget(max_tokens=99 + 10 * num_calls)
  solution = await run(llm, budget=budget)
  assert len(llm.asked) == num_calls
  assert solution.text in texts


@pytest.mark.parametrize('num_calls', [33, 35, 36, 37, 38])
async def test_within_a_knockout_a_winner_of_the_round_is_returned(num_calls):
  llm = script(B)
  budget = scripted.budget(max_tokens=99 + 10 * num_calls)
  solution = await run(llm, budget=budget)
  assert len(llm.asked) == num_calls
  _, _, selects = by_kind(llm)
  begun = {33: 0, 35: 0, 36: 0, 37: 4, 38: 4}[num_calls]
  winners = {candidates(asked)[1] for asked in selects[begun:]}
  assert solution.text in winners


async def test_no_merge_but_gaps_within_a_round_returns_a_solution():
  llm = script(r1_1='')
  solution = await run(llm, budget=scripted.budget(max_tokens=99 + 90))
  assert (solution.text, len(llm.asked)) == ('s1', 9)


async def test_calls_of_a_round_are_made_at_the_same_time():
  llm = script()
  llm._secs = 0.01
  await run(llm)
  assert llm.most_running == 8


async def test_the_published_templates_fence_candidates():
  llm = Scripted(lambda asked: 'x <verdict>B</verdict>')
  scaffold = section(
    2,
    1,
    2,
    solve='prove',
    merge='scaffold_rsa_merge',
    select='scaffold_rsa_select',
  )
  solution = await run(llm, scaffold)
  assert solution.usage['calls'] == 5
  for asked in llm.asked[2:]:
    assert asked.text.count('x ‹verdict>B‹/verdict>\n</candidate-') == 2
    assert 'A:\n<candidate-' in asked.text
    assert 'B:\n<candidate-' in asked.text
    assert PROBLEM.statement in asked.text


def test_blocks_are_no_larger_than_there_are_solutions():
  with pytest.raises(ValueError, match='at most num_solutions = 2'):
    section(2, 1, 3)
