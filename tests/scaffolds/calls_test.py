"""Answers, seeds, failures, usage and trace of the calls of one attempt."""

import asyncio
import dataclasses
import hashlib
import json

import pytest

from qed.scaffolds import prompts
from qed.scaffolds.calls import CallError, Calls, OutOfBudget, settle
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Down, Scripted, completion, cut

pytestmark = pytest.mark.timeout(20)
HELLO = prompts.user('Hello, {{problem}}', problem='you')


async def read(given, style='instruct', role='solver'):
  llm = Scripted(scripted.answers(given))
  calls = Calls(PROBLEM, llm, scripted.setup(style=style))
  return await calls.ask(role, HELLO, label='a')


@pytest.mark.parametrize(
  ('given', 'style', 'text', 'reasoning'),
  [
    ('A proof.', 'instruct', 'A proof.', ''),
    (' A proof.\n', 'base', 'A proof.', ''),
    ('', 'instruct', None, ''),
    (' \n', 'base', None, ''),
    ('hm\n</think>\n\nA proof.', 'thinking', 'A proof.', 'hm'),
    ('<think>hm</think>A proof.', 'instruct', 'A proof.', 'hm'),
    ('hm, a proof.', 'thinking', None, 'hm, a proof.'),
    ('hm</think>', 'thinking', None, 'hm'),
    ('', 'thinking', None, ''),
  ],
)
async def test_an_answer_is_what_follows_the_think_block(
  given, style, text, reasoning
):
  answer = await read(given, style)
  assert (answer.text, answer.reasoning) == (text, reasoning)
  assert not answer.is_truncated
  assert answer.reply == (text or '')


async def test_a_truncated_answer_has_a_text_but_no_verdict():
  answer = await read(cut('hm</think>A pro'), 'thinking')
  assert (answer.text, answer.is_truncated, answer.reply) == ('A pro', True, '')


async def test_the_style_may_be_that_of_the_role():
  style = {'solver': 'thinking', 'verifier': 'instruct'}
  for role, text in [
    ('solver', None),
    ('verifier', 'no tag'),
    ('merger', None),
  ]:
    assert (await read('no tag', style, role)).text == text


async def test_a_role_without_an_llm_is_played_by_the_solver():
  solver, verifier = (Scripted(lambda asked: 'x') for _ in range(2))
  llms = {'solver': solver, 'verifier': verifier}
  calls = Calls(PROBLEM, llms, scripted.setup())
  for role in ('solver', 'verifier', 'merger'):
    await calls.ask(role, HELLO, label=role)
  assert (len(solver.asked), len(verifier.asked)) == (2, 1)
  assert [entry['role'] for entry in calls.trace()] == [
    *('solver', 'verifier', 'merger')
  ]


def test_there_must_be_a_solver():
  with pytest.raises(ValueError, match=r"'solver'.*\['verifier'\]"):
    Calls(PROBLEM, {'verifier': None}, scripted.setup())


async def test_a_seed_is_a_hash_of_seed_attempt_problem_and_label():
  seeds = {}
  for seed, attempt, name in [
    (7, 2, 'p'),
    (8, 2, 'p'),
    (7, 3, 'p'),
    (7, 2, 'q'),
  ]:
    llm = Scripted(lambda asked: 'x')
    setup = scripted.setup(seed=seed, attempt=attempt)
    problem = dataclasses.replace(PROBLEM, problem_id=name)
    calls = Calls(problem, llm, setup)
    await calls.ask('solver', HELLO, label='a')
    await calls.ask('solver', HELLO, label='b')
    seeds[seed, attempt, name] = [asked.params.seed for asked in llm.asked]
  digest = hashlib.sha256(b'7\x002\x00p\x00a').hexdigest()
  assert seeds[7, 2, 'p'][0] == int(digest[:8], 16)
  assert len({seed for pair in seeds.values() for seed in pair}) == 8


async def test_parameters_are_those_of_the_setup_unless_a_call_has_others():
  llm = Scripted(lambda asked: 'x')
  calls = Calls(PROBLEM, llm, scripted.setup(stop_token_ids=(5, 6)))
  await calls.ask('solver', HELLO, label='a')
  other = scripted.config.SamplingConfig(
    temperature=0.7, top_p=0.8, top_k=20, max_tokens=33
  )
  await calls.ask('solver', HELLO, label='b', sampling=other)
  shown = [
    (p.temperature, p.top_p, p.top_k, p.max_tokens, p.stop_token_ids)
    for p in (asked.params for asked in llm.asked)
  ]
  assert shown == [(1.0, 1.0, 0, 100, (5, 6)), (0.7, 0.8, 20, 33, (5, 6))]


async def test_a_label_is_used_once():
  calls = Calls(PROBLEM, Scripted(lambda asked: 'x'), scripted.setup())
  await calls.ask('solver', HELLO, label='a')
  with pytest.raises(ValueError, match="of its own, got 'a' again"):
    await calls.ask('solver', HELLO, label='a')


@pytest.mark.parametrize(
  'failure',
  [
    Down('no route'),
    completion('half', finish_reason='error'),
    completion('half', finish_reason='abort'),
  ],
)
async def test_a_failed_call_is_an_answer_without_text(failure):
  llm = Scripted(scripted.answers(failure, 'x'))
  calls = Calls(PROBLEM, llm, scripted.setup())
  answer = await calls.ask('solver', HELLO, label='a')
  assert (answer.text, answer.completion, answer.reply) == (None, None, '')
  await calls.ask('solver', HELLO, label='b')
  assert calls.usage()['failed'] == 1
  assert calls.usage()['completion_tokens'] == 10
  assert calls.trace()[0]['finish_reason'] == 'error'
  assert calls.trace()[0]['note']


async def test_a_bug_is_no_failed_call():
  calls = Calls(
    PROBLEM, Scripted(lambda asked: ZeroDivisionError()), scripted.setup()
  )
  with pytest.raises(ZeroDivisionError):
    await calls.ask('solver', HELLO, label='a')


async def test_no_proof_after_a_failure_is_no_attempt():
  llm = Scripted(scripted.answers('', Down('no route')))
  calls = Calls(PROBLEM, llm, scripted.setup(attempt=3))
  await calls.ask('solver', HELLO, label='a')
  nothing = calls.solution(None)
  assert (nothing.text, nothing.attempt, nothing.problem_id) == ('', 3, 'p1')
  await calls.ask('solver', HELLO, label='b')
  with pytest.raises(
    CallError, match=r'p1: .* 1 failed calls of 2; .*no route'
  ):
    calls.solution(None)
  assert calls.solution('proof').text == 'proof'


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    # 20 tokens, divided as 3 characters of reasoning and 1 of answer.
    (completion('abc</think>d', num_tokens=20), (0, 20, 15, 5)),
    (completion('abc', num_tokens=20), (0, 20, 20, 0)),
    (completion('', num_tokens=0), (0, 0, 0, 0)),
    (
      completion(
        'abc</think>d',
        num_tokens=0,
        usage={
          'prompt_tokens': 7,
          'completion_tokens': 9,
          'reasoning_tokens': 4,
        },
      ),
      (7, 9, 4, 5),
    ),
    # An endpoint that counts reasoning apart cannot have an answer below 0.
    (
      completion(
        '', usage={'completion_tokens': 3, 'reasoning_tokens': 8}, num_tokens=0
      ),
      (0, 3, 3, 0),
    ),
  ],
)
async def test_tokens_are_counted_or_told(given, expected):
  calls = Calls(
    PROBLEM, Scripted(lambda asked: given), scripted.setup(style='thinking')
  )
  for label in 'ab':
    await calls.ask('solver', HELLO, label=label)
  names = (
    *('prompt_tokens', 'completion_tokens'),
    *('reasoning_tokens', 'answer_tokens'),
  )
  usage = calls.usage()
  assert tuple(usage[name] for name in names) == tuple(2 * x for x in expected)
  assert tuple(calls.trace()[0]['usage'][name] for name in names) == expected


async def test_usage_counts_calls_truncations_and_remarks():
  llm = Scripted(scripted.answers('x', cut('y'), Down()))
  calls = Calls(PROBLEM, llm, scripted.setup())
  answers = [await calls.ask('solver', HELLO, label=x) for x in 'abc']
  calls.remark(answers[0], 'odd_ones')
  calls.remark(answers[0], 'strange_ones')
  calls.remark(answers[1], 'odd_ones')
  calls.count('rounds', 4)
  assert calls.usage() == {
    'calls': 3,
    'failed': 1,
    'late': 0,
    'truncated': 1,
    'refused': 0,
    'prompt_tokens': 0,
    'completion_tokens': 110,
    'reasoning_tokens': 0,
    'answer_tokens': 110,
    'odd_ones': 2,
    'strange_ones': 1,
    'rounds': 4,
  }
  assert [entry['note'] for entry in calls.trace()][:2] == [
    'odd_ones; strange_ones',
    'odd_ones',
  ]


async def test_the_trace_is_in_the_order_of_asking_and_is_json():
  gates = {}

  class Llm:
    async def sample(self, prompt, params, *, n=1):
      gate = gates[prompt.messages[0].content] = asyncio.Event()
      await gate.wait()
      return [completion(prompt.messages[0].content.upper())]

  calls = Calls(PROBLEM, Llm(), scripted.setup())
  tasks = [
    asyncio.ensure_future(
      calls.ask('solver', prompts.user(f'say {x}'), label=x)
    )
    for x in 'abc'
  ]
  await asyncio.sleep(0.01)
  for x in 'cab':
    gates[f'say {x}'].set()
    await asyncio.sleep(0)
  await asyncio.gather(*tasks)
  trace = json.loads(json.dumps(calls.trace()))
  assert [(entry['label'], entry['text']) for entry in trace] == [
    ('a', 'SAY A'),
    ('b', 'SAY B'),
    ('c', 'SAY C'),
  ]
  assert trace[0]['prompt_messages'] == [{'role': 'user', 'content': 'say a'}]
  assert set(trace[0]) == {
    *('label', 'role', 'prompt_messages', 'text', 'reasoning'),
    *('finish_reason', 'usage', 'secs', 'note'),
  }


async def test_whoever_watches_is_told_of_every_start_and_end():
  events = []
  llm = Scripted(scripted.answers('x', cut('y'), Down()))
  setup = scripted.setup(on_call=events.append, attempt=2)
  calls = Calls(PROBLEM, llm, setup)
  for label in 'abc':
    await calls.ask('merger', HELLO, label=label)
  assert [(e.label, e.state, e.completion_tokens) for e in events] == [
    ('a', 'started', 0),
    ('a', 'stop', 10),
    ('b', 'started', 0),
    ('b', 'length', 100),
    ('c', 'started', 0),
    ('c', 'error', 0),
  ]
  assert {(e.problem_id, e.attempt, e.role) for e in events} == {
    ('p1', 2, 'merger')
  }
  assert [e.secs for e in events[::2]] == [0.0] * 3
  trace = [entry['secs'] for entry in calls.trace()]
  assert [e.secs for e in events[1::2]] == trace
  assert all(secs > 0 for secs in trace)


async def test_settling_gives_none_for_what_was_out_of_budget():
  async def one(value):
    await asyncio.sleep(0.001 * (3 - value))
    if value == 1:
      raise OutOfBudget('enough')
    return value

  assert await settle(one(value) for value in range(4)) == [0, None, 2, 3]


async def test_settling_ends_all_when_one_has_a_bug():
  ended = []

  async def forever():
    try:
      await asyncio.sleep(60)
    finally:
      ended.append(True)

  async def bug():
    await asyncio.sleep(0.001)
    raise KeyError('bug')

  with pytest.raises(KeyError, match='bug'):
    await settle([forever(), bug(), forever()])
  assert ended == [True, True]
