"""Questions to a model: their seeds, their order, and what is no answer."""

import asyncio

import pytest

from qed.curation import asking
from qed.types import Message
from tests.curation import scripted


def question(text):
  return [Message(role='user', content=text)]


async def test_a_seed_is_that_of_question_and_draw():
  model, llm = scripted.model(lambda *_: 'Yes.')
  for text, draw in [('a', 0), ('a', 1), ('b', 0), ('a', 0)]:
    await model.write(question(text), about='i', draw=draw)
  assert len({*llm.seeds}) == 3
  assert llm.seeds[0] == llm.seeds[3]
  assert all(0 <= seed < 2**31 for seed in llm.seeds)


@pytest.mark.parametrize(
  ('reply', 'answer'),
  [
    (' Yes.\n', 'Yes.'),
    ('Hm.</think> Yes.', 'Yes.'),
    (scripted.completion('Hm.</think> Yes.', 'length'), None),
  ],
)
async def test_an_answer_follows_the_thinking_and_is_complete(reply, answer):
  model, _ = scripted.model(lambda *_: reply)
  assert await model.answer(question('?'), about='i') == answer


@pytest.mark.parametrize('reason', ['error', 'abort'])
async def test_no_reply_is_no_answer(reason):
  model, _ = scripted.model(lambda *_: scripted.completion('', reason))
  with pytest.raises(asking.NoReplyError, match='i: scripted gave no reply'):
    await model.answer(question('?'), about='i')


async def test_results_come_in_order_and_no_more_is_taken_than_is_worked_at():
  taken, running, most = [], 0, 0

  def items():
    for number in range(9):
      taken.append(number)
      yield number

  async def work(number):
    nonlocal running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.001 * (9 - number))
    running -= 1
    return number

  found = []
  async for number in asking.in_order(items(), work, max_concurrency=3):
    found.append(number)
    assert len(taken) <= len(found) + 3
  assert found == [*range(9)]
  assert most == 3
