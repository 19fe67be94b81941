"""Messages in, completions out, whatever an endpoint gives beside them."""

import asyncio

import numpy as np
import pytest

from qed import types
from qed.data import chat as chats
from qed.llm import chat, http, local
from tests.llm import scripted
from tests.llm.http_test import Script, client

pytestmark = pytest.mark.timeout(30)

PROMPT = types.Prompt(
  problem_id='p',
  messages=(
    types.Message(role='system', content='Be brief.'),
    types.Message(role='user', content='How many?'),
  ),
  token_ids=np.zeros(0, np.int32),
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
  monkeypatch.setattr(http, '_FIRST_WAIT_SECS', 0.001)


def params(**changes):
  fields = {
    'temperature': 0.8,
    'top_p': 1.0,
    'top_k': 0,
    'max_tokens': 9,
    'stop_token_ids': (2, 3),
    'seed': 40,
  }
  return types.SamplingParams(**(fields | changes))


def body(message, finish_reason='stop', usage=None):
  answer = scripted.chat('', message=message, finish_reason=finish_reason)
  return scripted.answer(body=answer | ({} if usage is None else usage))


async def sample(*answers, n=1, options=None, **changes):
  script = Script(*answers)
  async with scripted.serve(script) as url, client(url) as http_client:
    llm = chat.Chat(http_client, **(options or {}))
    completions = await llm.sample(PROMPT, params(**changes), n=n)
  return completions, script.requests


async def written(message, finish_reason='stop', usage=None, **options):
  """(text, finish reason) of one completion."""
  (completion,), _ = await sample(
    body(message, finish_reason, usage), options=options
  )
  return completion.text, completion.finish_reason


async def test_what_is_sent_is_messages_and_sampling_and_nothing_of_ids():
  _, ((path, sent),) = await sample(body({'content': 'Four.'}))
  assert path == '/v1/chat/completions'
  (seed,) = local.member_seeds(40, 1)
  assert sent == {
    'model': 'm',
    'messages': [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': 'How many?'},
    ],
    'temperature': 0.8,
    'max_completion_tokens': 9,
    'seed': seed,
  }


async def test_what_is_set_is_sent_too_and_a_seed_only_where_it_is_welcome():
  _, ((_, sent),) = await sample(
    body({'content': 'Four.'}),
    options={'effort': 'high', 'sends_seed': False},
    top_p=0.95,
    top_k=20,
  )
  assert sent['reasoning_effort'] == 'high'
  assert (sent['top_p'], sent['top_k']) == (0.95, 20)
  assert 'seed' not in sent


async def test_members_are_calls_with_seeds_of_their_own():
  completions, requests = await sample(body({'content': 'Four.'}), n=3)
  assert [x.text for x in completions] == ['</think>\n\nFour.'] * 3
  seeds = {sent['seed'] for _, sent in requests}
  assert seeds == set(local.member_seeds(40, 3))
  assert len(seeds) == 3


@pytest.mark.parametrize('name', ['reasoning_content', 'reasoning'])
async def test_reasoning_comes_first_and_the_tag_ends_it(name):
  text, reason = await written({'content': 'Four.', name: 'Two and two.'})
  assert reason == 'stop'
  assert chats.split_thinking(text) == ('Two and two.', 'Four.')


async def test_reasoning_that_is_kept_back_still_makes_the_text_an_answer():
  usage = {
    'usage': {
      'prompt_tokens': 7,
      'completion_tokens': 30,
      'completion_tokens_details': {'reasoning_tokens': 25},
    }
  }
  text, reason = await written({'content': 'Fo'}, 'length', usage)
  assert (chats.split_thinking(text), reason) == (('', 'Fo'), 'length')


@pytest.mark.parametrize('content', ['', None])
async def test_a_model_that_was_still_thinking_has_no_answer(content):
  text, reason = await written(
    {'content': content, 'reasoning_content': 'Two and'}, 'length'
  )
  assert chats.split_thinking(text) == ('Two and', None)
  assert reason == 'length'


async def test_a_server_that_leaves_the_tag_in_the_text_is_left_alone():
  text, _ = await written({'content': '<think>\nTwo\n</think>\n\nFour.'})
  assert text == '<think>\nTwo\n</think>\n\nFour.'


async def test_a_text_cut_off_before_any_sign_of_thinking_is_left_alone():
  assert await written({'content': 'Two and'}, 'length') == (
    'Two and',
    'length',
  )


async def test_a_refusal_is_an_empty_answer():
  message = {'content': None, 'refusal': 'I cannot help with that.'}
  assert await written(message) == ('', 'stop')


@pytest.mark.parametrize(
  ('told', 'means'),
  [
    ('stop', 'stop'),
    ('length', 'length'),
    ('content_filter', 'length'),
    ('abort', 'abort'),
    ('error', 'error'),
    ('eos', 'stop'),
    (None, 'stop'),
  ],
)
async def test_how_a_completion_ended(told, means):
  message = {'content': 'Four.', 'reasoning': 'Two.'}
  assert (await written(message, told))[1] == means


async def test_tokens_are_counted_by_the_endpoint():
  usage = {
    'usage': {
      'prompt_tokens': 7,
      'completion_tokens': 30,
      'completion_tokens_details': {'reasoning_tokens': 25},
    }
  }
  (completion,), _ = await sample(body({'content': 'x'}, usage=usage))
  assert completion.usage == {
    'prompt_tokens': 7,
    'completion_tokens': 30,
    'reasoning_tokens': 25,
  }
  for array in (
    completion.token_ids,
    completion.logprobs,
    completion.versions,
  ):
    assert len(array) == 0


@pytest.mark.parametrize(
  'usage', [None, {}, {'completion_tokens': 'many'}, [1], {'prompt_tokens': -1}]
)
async def test_an_endpoint_that_does_not_count_is_counted_for(usage):
  (completion,), _ = await sample(
    body({'content': 'Four.', 'reasoning': '2 + 2'}, usage={'usage': usage})
  )
  # 18 and 10 characters, three to a token.
  assert completion.usage == {'prompt_tokens': 6, 'completion_tokens': 4}


async def test_a_call_is_repeated_as_the_endpoint_allows():
  (completion,), requests = await sample(
    scripted.answer(503), scripted.reset, body({'content': 'Four.'})
  )
  assert completion.text.endswith('Four.')
  assert len(requests) == 3


async def test_a_call_that_never_succeeds_fails_with_its_kind():
  with pytest.raises(http.Failure) as failed:
    await sample(scripted.answer(503))
  assert (failed.value.kind, failed.value.attempts) == ('overloaded', 3)


async def test_a_request_that_is_not_accepted_is_not_repeated():
  script = Script(scripted.answer(400, 'too long'))
  async with scripted.serve(script) as url, client(url) as http_client:
    with pytest.raises(http.Failure, match='too long'):
      await chat.Chat(http_client).sample(PROMPT, params())
  assert len(script.requests) == 1


async def test_a_member_that_fails_leaves_the_others():
  first = local.member_seeds(40, 2)[0]

  def respond(path, sent):
    if sent['seed'] == first:
      return scripted.answer(400)
    return body({'content': 'Four.'})

  async with scripted.serve(respond) as url, client(url) as http_client:
    lost, kept = await chat.Chat(http_client).sample(PROMPT, params(), n=2)
  assert (lost.finish_reason, lost.text) == ('error', '')
  assert (kept.finish_reason, kept.text) == ('stop', '</think>\n\nFour.')


class Echo:
  """An Llm of token ids that keeps what it is asked."""

  def __init__(self, ids=()):
    self.asked, self.ids = [], np.array(ids, np.int32)

  async def sample(self, prompt, params, *, n=1):
    self.asked.append((prompt, params, n))
    await asyncio.sleep(0)
    completion = types.Completion(
      token_ids=self.ids,
      logprobs=np.zeros(len(self.ids), np.float32),
      versions=np.zeros(len(self.ids), np.int32),
      text='ab',
      finish_reason='stop',
    )
    return [completion] * n


async def test_messages_are_rendered_where_there_are_no_ids():
  llm = Echo()
  rendered = chat.Rendered(
    llm, lambda messages: np.array([len(messages), 9], np.int32), None
  )
  completions = await rendered.sample(PROMPT, params(), n=2)
  assert [x.text for x in completions] == ['ab'] * 2
  ((prompt, asked, n),) = llm.asked
  assert prompt.token_ids.tolist() == [2, 9]
  assert (prompt.messages, prompt.problem_id) == (PROMPT.messages, 'p')
  assert (asked, n) == (params(), 2)


async def test_ids_that_a_prompt_has_are_the_truth():
  llm = Echo()
  prompt = types.Prompt(
    problem_id='p', messages=PROMPT.messages, token_ids=np.array([5], np.int32)
  )
  await chat.Rendered(llm, lambda messages: np.zeros(3, np.int32), 7).sample(
    prompt, params()
  )
  assert llm.asked[0][0] is prompt


@pytest.mark.parametrize(
  ('ids', 'end', 'reasoning'),
  [
    ([4, 7, 5, 7, 6, 2], 7, 4),  # The last tag ends the reasoning.
    ([7], 7, 1),
    ([4, 5], 7, None),  # Unknown: it may still be thinking.
    ([4, 5], None, None),
    ([], 7, None),
  ],
)
async def test_tokens_are_counted_by_ids(ids, end, reasoning):
  rendered = chat.Rendered(Echo(ids), lambda _: np.zeros(3, np.int32), end)
  (completion,) = await rendered.sample(PROMPT, params())
  expected = {'prompt_tokens': 3, 'completion_tokens': len(ids)}
  if reasoning is not None:
    expected['reasoning_tokens'] = reasoning
  assert completion.usage == expected
