"""Difficulty is the mean reward of graded attempts, and failures are none."""

import types as namespaces

import pytest

from qed.curation import asking, difficulty
from qed.curation.records import Item
from tests.curation import scripted

SETTINGS = namespaces.SimpleNamespace(
  prompt='{{problem}}',
  num_rollouts=4,
  min_graded_frac=0.5,
  pass_score=6,
  writer=namespaces.SimpleNamespace(max_concurrency=8),
)
ITEM = Item(item_id='i', statement='Prove it.', rubric='7 points')


def by_number(scores):
  """A judge that looks the score of 'proof N' up."""
  return scripted.judge(lambda proof: scores[int(proof.split()[-1])])


async def estimate(reply, grade, *items):
  model, llm = scripted.model(reply)
  found = await scripted.collect(
    difficulty.estimate(items or [ITEM], model, grade, SETTINGS)
  )
  return found, llm


async def test_mean_spread_and_pass_rate_by_hand():
  (outcome,), llm = await estimate(
    lambda _, call: f'hm</think>proof {call}', by_number([0, 7, 6, 1])
  )
  item = outcome.item
  assert sorted(item.scores) == [0, 1, 6, 7]
  # (0 + 7 + 6 + 1) / 4 / 7 = 1/2; squares: (12.25 * 2 + 6.25 * 2) / 4 / 49.
  assert item.difficulty == pytest.approx(0.5)
  note = item.notes['difficulty']
  assert note['std'] == pytest.approx((37 / 4) ** 0.5 / 7)
  assert note['pass_rate'] == 0.5
  assert len(set(llm.seeds)) == 4


async def test_a_failed_verdict_is_no_score_of_0():
  (outcome,), _ = await estimate(
    lambda _, call: f'proof {call}', by_number([7, 'unparseable', 7, 'refused'])
  )
  assert outcome.item.scores == (7, 7)
  assert outcome.item.difficulty == 1
  assert not outcome.reason


async def test_too_few_grades_remove_the_problem():
  (outcome,), _ = await estimate(
    lambda _, call: f'proof {call}', by_number([7, *['unparseable'] * 3])
  )
  assert outcome.reason == 'too_few_grades'


async def test_a_judge_that_is_down_stops_the_stage():
  with pytest.raises(asking.NoReplyError):
    await estimate(lambda *_: 'proof', scripted.judge(lambda _: 'unreachable'))


async def test_an_attempt_without_an_end_is_worth_0_without_a_verdict():
  (outcome,), _ = await estimate(
    lambda *_: scripted.completion('still thinking', 'length'),
    scripted.judge(lambda proof: 1 / 0),
  )
  assert outcome.item.scores == (0, 0, 0, 0)
  assert not outcome.reason


async def test_scores_that_came_along_cost_nothing():
  item = Item(item_id='i', statement='Prove it.', scores=(0, 7))
  (outcome,), llm = await estimate(None, None, item)
  assert llm.prompts == []
  assert outcome.item.difficulty == 0.5


async def test_the_truth_is_estimated():
  """Attempts succeed with a known chance, by a hash that looks random."""
  import hashlib

  def chance(text):
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], 'big') / 2**32

  truths = [0.0, 0.25, 0.6, 1.0]
  items = [
    Item(item_id=f'{t}', statement=f'Prove {t}.', rubric='r') for t in truths
  ]

  def reply(question, call):
    truth = float(question.split()[1][:-1])
    return 'good' if chance(f'{question} {call}') < truth else 'bad'

  SETTINGS.num_rollouts = 200
  try:
    found, _ = await estimate(
      reply, scripted.judge(lambda p: 7 * (p == 'good')), *items
    )
  finally:
    SETTINGS.num_rollouts = 4
  means = [outcome.item.difficulty for outcome in found]
  # Three standard errors of 200 draws are at most 0.11.
  assert means == pytest.approx(truths, abs=0.11)
  assert (means[0], means[-1]) == (0, 1)
