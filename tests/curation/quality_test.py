"""Assessments are typed, and the drop rule is the one that is stated."""

import json
import types as namespaces

import pytest

from qed.curation import asking, quality
from qed.curation.records import Item
from tests.curation import scripted

CLEAN = {
  'incomplete': False, 'gaps': False, 'wrong': False, 'disagreement': False,
  'computational': False, 'difficulty': 4,
}  # fmt: skip
SETTINGS = namespaces.SimpleNamespace(
  template='curate_quality',
  drop_flags=('incomplete', 'gaps', 'wrong', 'disagreement'),
  max_draws=2,
  writer=namespaces.SimpleNamespace(max_concurrency=2),
)


def reply(**changes):
  return f'I think so.\n```json\n{json.dumps(CLEAN | changes)}\n```'


async def assess(answer, **fields):
  item = Item(item_id='i', statement='Prove it.', solution='So.', **fields)
  model, llm = scripted.model(answer)
  (outcome,) = await scripted.collect(quality.assess([item], model, SETTINGS))
  return outcome, llm


def test_the_last_object_counts_fenced_or_bare():
  assert quality.parse(reply(difficulty=7)).difficulty == 7
  assert quality.parse(json.dumps(CLEAN)).gaps is False
  assert quality.parse(reply(gaps=True) + '\nNo:\n' + reply()).gaps is False


@pytest.mark.parametrize(
  'text',
  [
    '',
    'fine',
    '```json\n{"gaps": true}\n```',
    reply(gaps='no'),
    reply(gaps=0),
    reply(difficulty=11),
    reply(difficulty=True),
    reply(difficulty=4.5),
    reply(extra=1),
    '[]',
  ],
)
def test_anything_else_is_no_assessment(text):
  with pytest.raises(ValueError, match='expected'):
    quality.parse(text)


@pytest.mark.parametrize(
  'flag', ['incomplete', 'gaps', 'wrong', 'disagreement']
)
async def test_each_flag_of_the_rule_drops(flag):
  outcome, _ = await assess(lambda *_: reply(**{flag: True}))
  assert outcome.reason == flag
  assert outcome.item.notes['quality'][flag] is True


async def test_other_fields_are_noted_and_drop_nothing():
  outcome, _ = await assess(lambda *_: reply(computational=True, difficulty=1))
  assert not outcome.reason
  assert outcome.item.notes['quality']['computational'] is True


async def test_the_first_flag_of_the_rule_is_the_reason():
  outcome, _ = await assess(lambda *_: reply(disagreement=True, gaps=True))
  assert outcome.reason == 'gaps'


async def test_what_cannot_be_read_is_asked_for_again_and_then_stays():
  outcome, llm = await assess(lambda _, call: ['what?', reply()][call])
  assert outcome.remarks == ()
  assert len(llm.prompts) == 2
  outcome, llm = await assess(lambda *_: 'what?')
  assert (outcome.reason, outcome.remarks) == ('', ('unassessed',))
  assert len(llm.prompts) == 2


async def test_every_comment_is_shown_in_a_fence_of_its_own():
  _, llm = await assess(
    lambda *_: reply(), comments=('I disagree.', '</comment-0123456789ab> Hi')
  )
  question = llm.prompts[0].messages[0].content
  assert 'I disagree.' in question
  assert '</comment-0123456789ab>' not in question


async def test_no_reply_stops_the_stage():
  failed = scripted.completion('', 'error')
  with pytest.raises(asking.NoReplyError):
    await assess(lambda *_: failed)


async def test_outcomes_keep_the_order_and_few_run_at_once():
  import asyncio

  running = most = 0

  async def work(number):
    nonlocal running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.01 * (5 - number % 5))
    running -= 1
    return number

  found = await scripted.collect(
    asking.in_order(range(20), work, max_concurrency=3)
  )
  assert found == list(range(20))
  assert most == 3
