"""A turn of the policy: what is asked of whom, and what is made of it."""

import asyncio
import contextlib
import dataclasses
import pathlib
import types as namespaces

import numpy as np
import pytest

from experiments import base
from qed import config, unrolling
from qed.llm import patience
from qed.llm.http import Failure
from qed.rollout.stages import Stages
from qed.types import CacheState, Completion, Problem

PROBLEM = Problem(problem_id='p', statement='1<2')
ROOM = 200


class Words:
  """A tokenizer of characters."""

  stop_token_ids = (1,)

  def __init__(self):
    control = ('<|im_start|>', '<|im_end|>', '<think>', '</think>')
    self.special_ids = {text: number for number, text in enumerate(control)}

  def encode(self, text):
    return np.array([10 + ord(c) for c in text], np.int32)

  def decode(self, ids):
    return ''.join(chr(token - 10) for token in ids if token >= 10)


WORDS = Words()


def make_run(tmp_path=pathlib.Path('.'), **changes):
  values = {
    'rollout.problems_per_step': 2,
    'problems.prompt': '{{problem}}?{{summary_verbatim}}',
    'problems.chat_style': 'instruct',
    'problems.max_prompt_tokens': ROOM,
    'cache.reason_prompt': '{{problem}}?{{summary_verbatim}}',
    'cache.summarize_prompt': (
      '{{problem}}|{{summary_verbatim}}|{{reasoning_verbatim}}'
    ),
    'cache.summary.max_tokens': 20,
    'summarizer.source': 'policy',
    'summarizer.base_url': '',
    'summarizer.model': '',
    'summarizer.max_prompt_tokens': ROOM,
    'sampling.max_tokens': 50,
    **changes,
  }
  run = config.build(base.override(base.grpo_rc(), values))
  return namespaces.SimpleNamespace(
    config=run, words=WORDS, workdir=tmp_path, practice=None
  )


def completion(text, *, finish='stop', version=4):
  ids = WORDS.encode(text)
  return Completion(
    token_ids=ids,
    logprobs=np.zeros(len(ids), np.float32),
    versions=np.full(len(ids), version, np.int32),
    text=text,
    finish_reason=finish,
  )


class Sampler:
  """Replies in order; remembers what it was asked."""

  def __init__(self, *replies):
    self.replies, self.asked = [*replies], []

  async def sample(self, prompt, params, *, group):
    self.asked.append((WORDS.decode(prompt.token_ids), params, group))
    reply = self.replies.pop(0)
    return completion(reply) if isinstance(reply, str) else reply


def play(run, sampler, summary='', *, turn=0, visit=7):
  state = CacheState(problem=PROBLEM, turn=turn, summary=summary)

  async def work():
    async with unrolling._open_summarizer(run, sampler) as summarizer:
      player = unrolling._player(run, sampler, summarizer, Stages(['generate']))
      return await player(state, visit)

  return asyncio.run(work())


def test_a_turn_is_a_completion_and_its_summary():
  sampler = Sampler('long thoughts</think>a proof', 'notes')
  turn = play(make_run(), sampler, 'old', turn=1)
  (first, reasoning, _), (second, summary, _) = sampler.asked
  assert first == 'user\n1<2?old\nassistant\n'
  assert second == 'user\n1<2|old|long thoughts\nassistant\n'
  assert (reasoning.max_tokens, summary.max_tokens) == (50, 20)
  assert (reasoning.temperature, summary.temperature) == (0.8, 0.7)
  assert turn.state == CacheState(problem=PROBLEM, turn=2, summary='notes')
  assert turn.reasoning == 'long thoughts'
  assert turn.reasoning_tokens == len('long thoughts</think>a proof')
  assert turn.summary_tokens == 5
  assert turn.num_tokens == turn.reasoning_tokens + 5
  assert turn.newest == 4
  assert not turn.is_kept
  assert not turn.is_truncated


def test_every_draw_of_a_run_has_a_seed_of_its_own():
  seeds = set()
  for visit, number in ((0, 0), (0, 1), (1, 0)):
    sampler = Sampler('thoughts', 'notes')
    play(make_run(), sampler, turn=number, visit=visit)
    seeds |= {params.seed for _, params, _ in sampler.asked}
  assert len(seeds) == 6


@pytest.mark.parametrize(
  ('style', 'written', 'expected'),
  [
    ('instruct', 'notes', 'notes'),
    ('instruct', 'thoughts</think> notes', 'notes'),
    ('thinking', 'thoughts</think> notes', 'notes'),
    ('thinking', 'only thoughts', 'old'),
    ('instruct', '', 'old'),
    ('instruct', completion('no', finish='abort'), 'old'),
    ('instruct', completion('not', finish='length'), 'not'),
    ('instruct', 'x' * ROOM, 'old'),  # The next prompt would be too long.
  ],
)
def test_without_a_summary_that_fits_the_old_one_stays(
  style, written, expected
):
  run = make_run(**{'summarizer.chat_style': style})
  turn = play(run, Sampler('thoughts', written), 'old')
  assert turn.state.summary == expected
  assert turn.state.turn == 1
  assert turn.is_kept == (expected == 'old')


def test_nothing_thought_is_not_summed_up():
  sampler = Sampler(completion('', finish='abort'))
  turn = play(make_run(), sampler, 'old')
  assert len(sampler.asked) == 1
  assert turn.state.summary == 'old'
  assert (turn.num_tokens, turn.newest) == (0, -1)


def test_reasoning_that_does_not_fit_is_cut_off_at_its_end():
  sampler = Sampler('0123456789' * 40, 'notes')
  play(make_run(), sampler, 'old')
  asked = sampler.asked[1][0]
  prompt_tokens = len(asked) + 3  # Control tokens, which decode leaves out.
  assert prompt_tokens == ROOM
  assert '1<2|old|0123456789' in asked


# Another model.


class Server:
  """A chat endpoint, in place of HTTP."""

  def __init__(self, *replies):
    self.replies, self.asked = [*replies], []

  @contextlib.asynccontextmanager
  async def open(self, endpoint):
    self.endpoint = endpoint
    yield self

  async def chat(self, messages, **settings):
    self.asked.append((messages[0].content, settings))
    reply = self.replies.pop(0)
    if isinstance(reply, Exception):
      raise reply
    return namespaces.SimpleNamespace(
      text=reply,
      reasoning='',
      reasoning_tokens=0,
      prompt_tokens=9,
      completion_tokens=3,
      finish_reason='stop',
    )


@pytest.fixture
def at_endpoint(monkeypatch):
  def start(*replies):
    server = Server(*replies)
    monkeypatch.setattr('qed.llm.http.Http', server.open)
    monkeypatch.setattr(patience, '_FIRST_WAIT_SECS', 0.01)
    return server

  return start


ENDPOINT = {
  'summarizer.source': 'endpoint',
  'summarizer.base_url': 'http://localhost:1/v1',
  'summarizer.model': 'other',
}


def test_an_endpoint_sums_up_and_its_tokens_are_not_the_policys(at_endpoint):
  server = at_endpoint('notes')
  turn = play(make_run(**ENDPOINT), Sampler('thoughts'))
  assert server.endpoint.model == 'other'
  (content, settings) = server.asked[0]
  assert content == '1<2||thoughts'
  assert settings['max_tokens'] == 20
  assert turn.state.summary == 'notes'
  assert turn.num_tokens == len('thoughts')
  assert turn.summary_tokens == 3


def test_an_endpoint_that_is_down_is_waited_for(at_endpoint):
  down = Failure('connect', 'no', where='there')
  server = at_endpoint(down, down, 'notes')
  turn = play(make_run(**ENDPOINT), Sampler('thoughts'))
  assert turn.state.summary == 'notes'
  assert len(server.asked) == 3


def test_an_endpoint_that_refuses_ends_the_run(at_endpoint):
  at_endpoint(Failure('forbidden', 'who are you', where='there'))
  with pytest.raises(Failure, match='who are you'):
    play(make_run(**ENDPOINT), Sampler('thoughts'))


def test_plain_grpo_has_no_states(tmp_path):
  run = make_run(tmp_path)
  plain = dataclasses.replace(
    run.config,
    rollout=dataclasses.replace(run.config.rollout, states_per_problem=0),
  )
  run = namespaces.SimpleNamespace(
    config=plain, words=WORDS, workdir=tmp_path, practice='the problems'
  )

  async def work():
    async with unrolling.open_source(
      run, None, stages=None, journal=None, version=int
    ) as source:
      return source

  assert type(asyncio.run(work())).__name__ == 'Plain'
  assert not (tmp_path / 'states.jsonl').exists()
