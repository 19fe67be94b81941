"""What `qed grpo` starts its groups from: problems, or states of their turns.

A turn is a completion of the policy and a summary of it, by the policy or by
another model. Neither is trained on; what is trained is how a proof is found
from the states that turns lead to (rollout/states.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from qed.data import chat
from qed.preparation import Run, state_prompt
from qed.rollout import prompts, states
from qed.rollout.collector import Source
from qed.rollout.journal import Journal
from qed.rollout.replay import Replay
from qed.rollout.stages import Stages
from qed.samplers import Sampler
from qed.scaffolds import reasoning_cache
from qed.types import CacheState, Completion, Prompt, SamplingParams

if TYPE_CHECKING:
  from qed.data.tokenizer import Tokenizer

_REASON, _SUMMARIZE = 1, 2  # Purposes of seeds.


class Summarizer(NamedTuple):
  """Who sums up."""

  # (prompt, how, number of the visit) -> what was written.
  ask: Callable[[Prompt, SamplingParams, int], Awaitable[Completion]]
  words: Tokenizer  # That its prompts are measured with.


@contextlib.asynccontextmanager
async def open_source(
  run: Run,
  sampler: Sampler,
  *,
  stages: Stages,
  journal: Journal,
  version: Callable[[], int],
) -> AsyncIterator[Source]:
  """The source of the config.

  Args:
    run: its config says which.
    sampler: draws the turns.
    stages: has 'generate'.
    journal: of the rollouts.
    version: of the weights that the sampler draws with now.
  """
  config = run.config
  if not config.rollout.states_per_problem:
    yield prompts.Plain(run.practice, seed=config.training.seed)
    return
  async with _open_summarizer(run, sampler) as summarizer:
    source = states.Unroller(
      run.practice,
      states.Plan(
        num_turns=config.cache.num_turns,
        states_per_problem=config.rollout.states_per_problem,
        max_lag=config.rollout.max_lag,
        seed=config.training.seed,
      ),
      take_turn=_player(run, sampler, summarizer, stages),
      make_prompt=lambda state: state_prompt(config, run.words, state),
      version=version,
      replay=Replay(**dataclasses.asdict(config.replay)),
      journal=journal,
      path=run.workdir / 'states.jsonl',
    )
    with contextlib.closing(source):
      yield source


def _player(
  run: Run, sampler: Sampler, summarizer: Summarizer, stages: Stages
) -> states.TakeTurn:
  """What plays a turn.

  A completion that was not finished is summed up as far as it came. Where there
  is no summary, or it leaves no room in the next prompt, the state keeps the
  one that it has.
  """
  config = run.config

  def params(sampling, words, state, visit, purpose):
    return SamplingParams(
      **dataclasses.asdict(sampling),
      stop_token_ids=words.stop_token_ids,
      seed=prompts.seed_of(
        visit, state.turn, seed=config.training.seed, purpose=purpose
      ),
    )

  async def take_turn(state: CacheState, visit: int) -> states.Turn:
    completions: dict[str, Completion] = {}
    reasoning = ''

    async def reason(state: CacheState) -> str:
      drawn = await sampler.sample(
        state_prompt(config, run.words, state),
        params(config.sampling, run.words, state, visit, _REASON),
        group=visit,
      )
      completions['reasoning'] = drawn
      return drawn.text

    async def summarize(state: CacheState, thoughts: str) -> str | None:
      nonlocal reasoning
      reasoning = thoughts
      words = summarizer.words
      written = await summarizer.ask(
        _summary_prompt(run, words, state, thoughts),
        params(config.cache.summary, words, state, visit, _SUMMARIZE),
        visit,
      )
      completions['summary'] = written
      return _answer(written, config.summarizer.chat_style)

    with stages.inside('generate', f'visit {visit}, turn {state.turn + 1}'):
      _, after = await reasoning_cache.unroll(
        state, reason, summarize, num_turns=1, mode=config.cache.mode
      )
    room = config.problems.max_prompt_tokens
    if len(state_prompt(config, run.words, after).token_ids) > room:
      after = dataclasses.replace(after, summary=state.summary)
    by_policy = [completions['reasoning']]
    if 'summary' in completions and config.summarizer.source == 'policy':
      by_policy.append(completions['summary'])
    return states.Turn(
      state=after,
      reasoning=reasoning,
      num_tokens=sum(map(_num_tokens, by_policy)),
      newest=max(int(c.versions.max(initial=-1)) for c in by_policy),
      reasoning_tokens=_num_tokens(completions['reasoning']),
      summary_tokens=_num_tokens(completions.get('summary')),
      is_truncated=completions['reasoning'].finish_reason == 'length',
      is_kept=after.summary == state.summary,
    )

  return take_turn


def _summary_prompt(
  run: Run, words: Tokenizer, state: CacheState, reasoning: str
) -> Prompt:
  """What the summarizer is asked; too much reasoning is cut off at its end."""
  given, room = run.config.summarizer, run.config.summarizer.max_prompt_tokens
  ids = None
  while True:
    prompt = chat.make_prompt(
      words,
      state.problem.problem_id,
      reasoning_cache.summarize_messages(run.config.cache, state, reasoning),
      style=given.chat_style,
      turn=state.turn,
    )
    excess = len(prompt.token_ids) - room
    if excess <= 0 or not reasoning:
      return prompt
    ids = words.encode(reasoning) if ids is None else ids
    ids = ids[: max(0, len(ids) - excess)]
    reasoning = words.decode(ids)


def _answer(completion: Completion, style: chat.ChatStyle) -> str | None:
  """What follows the think block; nothing follows one that is not closed."""
  if completion.finish_reason not in ('stop', 'length'):
    return None
  _, answer = chat.split_thinking(completion.text)
  if answer is None and style != 'thinking':
    return completion.text.strip()
  return answer


def _num_tokens(completion: Completion | None) -> int:
  if completion is None:
    return 0
  if completion.usage is None:
    return len(completion.token_ids)
  return completion.usage['completion_tokens']


# Who sums up.


@contextlib.asynccontextmanager
async def _open_summarizer(
  run: Run, sampler: Sampler
) -> AsyncIterator[Summarizer]:
  source = run.config.summarizer.source
  if source == 'frozen':
    async with _open_frozen(run) as summarizer:
      yield summarizer
  elif source == 'endpoint':
    async with _open_endpoint(run) as summarizer:
      yield summarizer
  else:

    async def ask(prompt, params, visit):
      return await sampler.sample(prompt, params, group=visit)

    yield Summarizer(ask, run.words)


@contextlib.asynccontextmanager
async def _open_frozen(run: Run) -> AsyncIterator[Summarizer]:
  """Weights that stay as they are, on the devices of a local sampler."""
  from qed import samplers
  from qed.data import tokenizer
  from qed.llm.local import Local
  from qed.rollout import drivers
  from qed.training import checkpoints, initial

  config, mesh = run.config, samplers.make_mesh(run)
  path = config.summarizer.path
  params, model = checkpoints.load_model(
    path, mesh=mesh, dtype=config.model.dtype
  )
  words = tokenizer.load(initial.hf_folder(path))
  engine = samplers.make_engine(
    config, model, mesh, max_length=config.max_summary_request_tokens
  )
  await asyncio.to_thread(engine.warm_up, params)
  scheduler = drivers.start(config.rollout.driver, engine, params)
  llm = Local(scheduler, words.decode)

  async def ask(prompt, params, visit):
    (completion,) = await llm.sample(prompt, params)
    return completion

  try:
    yield Summarizer(ask, words)
  finally:
    await asyncio.to_thread(scheduler.close, 0.0)


@contextlib.asynccontextmanager
async def _open_endpoint(run: Run) -> AsyncIterator[Summarizer]:
  """A chat endpoint; while it does not answer, turns wait for it."""
  from qed.llm import patience
  from qed.llm.bounded import Bounded
  from qed.llm.chat import Chat
  from qed.llm.http import Endpoint, Http

  given = run.config.summarizer
  async with Http(Endpoint.from_config(given)) as http:
    llm = Bounded(Chat(http, effort=given.effort), given.max_concurrency)

    async def ask(prompt, params, visit):
      (completion,) = await patience.until_answered(
        lambda: llm.sample(prompt, params), who='summarizer'
      )
      return completion

    yield Summarizer(ask, run.words)
