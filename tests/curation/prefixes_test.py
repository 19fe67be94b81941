"""The shortest beginning that helps is found, and graded with what follows."""

import types as namespaces

import pytest

from qed.curation import prefixes
from qed.curation.records import Item
from tests.curation import scripted

PROOF = ' '.join(f'Step {n} is done.' for n in range(1, 17))
ITEM = Item(
  item_id='i', statement='Prove it.', solution=PROOF, rubric='r', source='own'
)
SETTINGS = namespaces.SimpleNamespace(
  template='guided', num_parts=8, max_parts=3, num_rollouts=4
)


async def choose(reply, score, item=ITEM):
  model, llm = scripted.model(reply)
  found = await scripted.collect(
    prefixes.choose(
      [item], model, scripted.judge(score), SETTINGS, pass_score=6
    )
  )
  return found, llm


def test_the_grid_ends_at_sentences():
  grid = prefixes.grid(PROOF, 8, 3)
  assert all(PROOF.startswith(prefix) for prefix in grid)
  assert all(prefix.endswith('.') for prefix in grid)
  # 262 characters, of which step n < 10 ends at 16 n - 1: parts end at 32.75,
  # 65.5 and 98.25, behind the steps 2, 4 and 6.
  assert [prefix.count('.') for prefix in grid] == [2, 4, 6]


@pytest.mark.parametrize(
  ('proof', 'grid'),
  [
    ('One sentence alone.', []),
    ('', []),
    ('A long first sentence that fills it. End.', [
      'A long first sentence that fills it.'
    ]),
    ('First line\nsecond line', ['First line']),
  ],
)  # fmt: skip
def test_short_proofs_have_short_grids(proof, grid):
  assert prefixes.grid(proof, 8, 3) == grid


async def test_the_shortest_with_a_success_is_chosen():
  def score(proof):
    # Only from the third step on is it found, and only by one attempt.
    return 7 if 'Step 3' in proof and proof.endswith('lucky') else 5

  (prefix,), llm = await choose(
    lambda _, call: 'lucky' if call % 4 == 2 else 'rest', score
  )
  assert prefix.prefix == prefixes.grid(PROOF, 8, 3)[1]
  assert (prefix.num_successes, prefix.num_trials) == (1, 4)
  assert prefix.fraction == len(prefix.prefix) / len(PROOF)
  assert len(llm.prompts) == 8
  assert prefix.prefix in llm.prompts[-1].messages[0].content


async def test_a_score_at_the_bound_is_a_success_and_no_score_is_no_trial():
  (prefix,), _ = await choose(
    lambda _, call: f'rest {call}',
    lambda proof: 'unparseable' if proof.endswith('rest 2') else 6,
  )
  assert prefix.prefix == prefixes.grid(PROOF, 8, 3)[0]
  assert (prefix.num_successes, prefix.num_trials) == (3, 3)


async def test_without_success_the_longest_is_given():
  (prefix,), llm = await choose(lambda *_: 'rest', lambda proof: 5)
  assert prefix.prefix == prefixes.grid(PROOF, 8, 3)[2]
  assert prefix.num_successes == 0
  assert len(llm.prompts) == 12


async def test_the_judge_sees_beginning_and_rest_as_one_proof():
  seen = []
  await choose(lambda *_: 'the rest', lambda proof: seen.append(proof) or 7)
  first = prefixes.grid(PROOF, 8, 3)[0]
  assert set(seen) == {f'{first}\n\nthe rest'}


async def test_no_proof_no_prefix():
  item = Item(item_id='i', statement='Prove it.', rubric='r')
  assert (await choose(None, None, item))[0] == []
