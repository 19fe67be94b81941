"""The calls of one attempt at one problem: seeds, budget, usage and trace."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from qed import types
from qed.data import chat
from qed.scaffolds.budget import Budget, OutOfBudget, Tokens

_Result = TypeVar('_Result')

SOLVER = 'solver'  # The role that stands in for those that are missing.
# More tokens than a chat format puts around a message.
_TOKENS_AROUND_MESSAGE = 16


class CallError(Exception):
  """There is no proof, and a call failed: this is no attempt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
  """Something that happened to a call, for whoever watches."""

  problem_id: str
  attempt: int
  label: str  # 'round 1/merge 3': the place in the tree of calls.
  role: str
  # 'late': given up at the time limit. A failed call is an 'error'.
  state: Literal['started', 'stop', 'length', 'error', 'late']
  completion_tokens: int = 0
  secs: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
  """What a scaffold runs with; `scaffold` is its own section of the config."""

  scaffold: Any  # Of qed/config/: RsaConfig, SelfcheckConfig, ...
  sampling: Any  # SamplingConfig: of all calls that name no other.
  budget: Any  # BudgetConfig: of one attempt.
  # How answers are to be read, of all roles or of each: after the think block
  # ('thinking'), or whole.
  style: chat.ChatStyle | Mapping[str, chat.ChatStyle]
  stop_token_ids: tuple[int, ...] = ()
  seed: int = 0
  attempt: int = 0
  # What an Llm may raise that is a failed call, and no bug.
  failures: tuple[type[Exception], ...] = ()
  on_call: Callable[[Event], None] = lambda event: None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
  """What came of a call."""

  label: str
  text: str | None  # What follows the think block; None: nothing does.
  reasoning: str
  is_truncated: bool  # By the limit on its tokens.
  completion: types.Completion | None  # None: the call failed.

  @property
  def reply(self) -> str:
    """Where a verdict may stand: the text, or '' if that was cut off."""
    return '' if self.is_truncated else self.text or ''


async def settle(calls: Iterable[Awaitable[_Result]]) -> list[_Result | None]:
  """Waits for all; None takes the place of one that was out of budget.

  They are started in order. Any other exception ends the others and is raised.
  """

  async def one(call: Awaitable[_Result]) -> _Result | None:
    try:
      return await call
    except OutOfBudget:
      return None

  tasks = [asyncio.ensure_future(one(call)) for call in calls]
  try:
    return await asyncio.gather(*tasks)
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Calls:
  """Asks the Llms of one attempt, and remembers what was said."""

  def __init__(
    self,
    problem: types.Problem,
    llm: types.Llm | Mapping[str, types.Llm],
    setup: Setup,
  ):
    """Starts the clock.

    Args:
      problem: what the calls are about.
      llm: of all roles, or of each; one for 'solver' must be there.
      setup: what the scaffold runs with.
    """
    self._problem, self._setup = problem, setup
    self._llms = llm if isinstance(llm, Mapping) else {SOLVER: llm}
    if SOLVER not in self._llms:
      raise ValueError(
        f'expected an Llm for the role {SOLVER!r}, which stands in for missing '
        f'ones, got those for {sorted(self._llms)}'
      )
    self._budget = Budget(setup.budget)
    self._entries: dict[str, dict[str, Any]] = {}  # By label.
    self._counts: collections.Counter[str] = collections.Counter()
    self._failure: Exception | None = None  # The last one.

  async def ask(
    self,
    role: str,
    messages: Sequence[types.Message],
    *,
    label: str,
    sampling: Any = None,
    kind: types.PromptKind = 'plain',
    turn: int = 0,
  ) -> Answer:
    """Makes one call and reads its answer.

    The seed is a hash of the setup's seed, the attempt, the problem and the
    label: equal prompts are drawn differently, a replay is equal, and problems
    have no luck in common, which an interval over them takes for granted.

    Args:
      role: who answers.
      messages: what is asked, as `prompts.user` makes it.
      label: names the call within the attempt, with '/' between the levels of
        the tree; no two calls share one.
      sampling: a SamplingConfig, where it is not the setup's.
      kind: of the prompt, as in `types.Prompt`.
      turn: of a reasoning cache.

    Returns:
      The answer. A call that failed has one without text.

    Raises:
      OutOfBudget: the call was not made, or given up at the time limit.
      ValueError: there was a call with this label.
    """
    if label in self._entries:
      raise ValueError(f'expected a label of its own, got {label!r} again')
    params = self._params(sampling or self._setup.sampling, label)
    prompt = types.Prompt(
      problem_id=self._problem.problem_id,
      messages=tuple(messages),
      token_ids=np.zeros(0, np.int32),
      kind=kind,
      turn=turn,
    )
    ceiling = _ceiling(prompt, params)
    try:
      await self._budget.reserve(ceiling)
    except OutOfBudget:
      self._counts['refused'] += 1
      raise
    # From here on there is no way past the release.
    spent = Tokens()
    entry = self._begin(label, role, prompt)
    began = time.monotonic()
    try:
      completion = await self._sample(role, prompt, params, label)
      answer = self._read(role, label, completion)
      spent = _tokens(completion, answer)
      self._end(entry, answer, spent, secs=time.monotonic() - began)
      return answer
    except OutOfBudget:
      self._give_up(entry, secs=time.monotonic() - began)
      raise
    finally:
      self._budget.release(ceiling, spent)

  def remark(self, answer: Answer, name: str) -> None:
    """Counts something about an answer, and notes it in the trace.

    Args:
      answer: that it is about.
      name: in the usage: 'unparseable_verdicts'.
    """
    self._counts[name] += 1
    entry = self._entries[answer.label]
    entry['note'] = f'{entry["note"]}; {name}'.removeprefix('; ')

  def count(self, name: str, number: int = 1) -> None:
    """Adds to a number of the usage that is about no answer."""
    self._counts[name] += number

  def usage(self) -> dict[str, int]:
    """What the calls came to.

    'calls', of these 'failed', 'late' (given up at the time limit) and
    'truncated'; 'refused' ones, which were out of budget and not made;
    'prompt_tokens' and 'completion_tokens', of these 'reasoning_tokens' and
    'answer_tokens'; and what was counted besides.
    """
    names = (
      *('calls', 'failed', 'late', 'truncated', 'refused'),
      *(field.name for field in dataclasses.fields(Tokens)),
      'answer_tokens',
    )
    return {name: 0 for name in names} | dict(self._counts)

  def trace(self) -> tuple[dict[str, Any], ...]:
    """Every call, in the order of asking, as JSON takes it."""
    return tuple(self._entries.values())

  def solution(self, text: str | None) -> types.Solution:
    """What the scaffold returns; None or '': there is no proof.

    Raises:
      CallError: there is no proof, and a call failed. Such an attempt says
        nothing about the model, and is none.
    """
    if not text and self._failure is not None:
      raise CallError(
        f'{self._problem.problem_id}: no proof after {self._counts["failed"]} '
        f'failed calls of {self._counts["calls"]}; the last: {self._failure}'
      ) from self._failure
    return types.Solution(
      problem_id=self._problem.problem_id,
      attempt=self._setup.attempt,
      text=text or '',
      usage=self.usage(),
      trace=self.trace(),
    )

  def _params(self, sampling: Any, label: str) -> types.SamplingParams:
    return types.SamplingParams(
      temperature=sampling.temperature,
      top_p=sampling.top_p,
      top_k=sampling.top_k,
      max_tokens=sampling.max_tokens,
      stop_token_ids=self._setup.stop_token_ids,
      seed=seed_of(self._setup, self._problem.problem_id, label),
    )

  async def _sample(self, role, prompt, params, label):
    """The completion; None where the call failed."""
    llm = self._llms.get(role, self._llms[SOLVER])
    try:
      async with asyncio.timeout(self._budget.secs_left()) as limit:
        (completion,) = await llm.sample(prompt, params)
    except Exception as error:
      if limit.expired():
        raise OutOfBudget(f'{label}: given up at the time limit') from error
      if not isinstance(error, self._setup.failures):
        raise
      self._failure = error
      return None
    if completion.finish_reason in ('error', 'abort'):
      self._failure = RuntimeError(
        f'{label}: the call ended with {completion.finish_reason!r}'
      )
      return None
    return completion

  def _read(self, role, label, completion):
    """Takes a completion apart."""
    if completion is None:
      return Answer(
        label=label,
        text=None,
        reasoning='',
        is_truncated=False,
        completion=None,
      )
    style = self._setup.style
    if isinstance(style, Mapping):
      style = style.get(role, style[SOLVER])
    reasoning, text = chat.split_thinking(completion.text)
    if text is None and style != 'thinking':
      reasoning, text = '', completion.text.strip()
    return Answer(
      label=label,
      text=text or None,
      reasoning=reasoning,
      is_truncated=completion.finish_reason == 'length',
      completion=completion,
    )

  def _begin(self, label, role, prompt):
    entry = self._entries[label] = {
      'label': label,
      'role': role,
      'prompt_messages': [
        {'role': m.role, 'content': m.content} for m in prompt.messages
      ],
      'text': None,
      'reasoning': '',
      'finish_reason': None,
      'usage': {},
      'secs': None,
      'note': '',
    }
    self._counts['calls'] += 1
    self._tell(entry, 'started')
    return entry

  def _end(self, entry, answer, tokens, *, secs):
    completion = answer.completion
    usage = dataclasses.asdict(tokens)
    usage['answer_tokens'] = tokens.completion_tokens - tokens.reasoning_tokens
    entry |= {
      'text': answer.text,
      'reasoning': answer.reasoning,
      'finish_reason': completion.finish_reason if completion else 'error',
      'usage': usage,
      'secs': secs,
    }
    if completion is None:
      entry['note'] = str(self._failure)
      self._counts['failed'] += 1
    self._counts['truncated'] += answer.is_truncated
    self._counts.update(usage)
    self._tell(entry, entry['finish_reason'], tokens.completion_tokens)

  def _give_up(self, entry, *, secs):
    entry |= {'note': 'given up at the time limit', 'secs': secs}
    self._counts['late'] += 1
    self._tell(entry, 'late')

  def _tell(self, entry, state, completion_tokens=0):
    self._setup.on_call(
      Event(
        problem_id=self._problem.problem_id,
        attempt=self._setup.attempt,
        label=entry['label'],
        role=entry['role'],
        state=state,
        completion_tokens=completion_tokens,
        secs=entry['secs'] or 0.0,
      )
    )


def seed_of(setup: Setup, problem_id: str, label: str) -> int:
  """The seed of a call, from 0 to 2**32 - 1; the same in every process."""
  content = f'{setup.seed}\0{setup.attempt}\0{problem_id}\0{label}'.encode()
  return int.from_bytes(hashlib.sha256(content).digest()[:4], 'big')


def _ceiling(prompt: types.Prompt, params: types.SamplingParams) -> Tokens:
  """The most that a call can take: no token is shorter than a byte."""
  num_bytes = sum(
    len(message.content.encode('utf-8', 'replace')) + _TOKENS_AROUND_MESSAGE
    for message in prompt.messages
  )
  return Tokens(
    prompt_tokens=num_bytes + _TOKENS_AROUND_MESSAGE,
    completion_tokens=params.max_tokens,
  )


def _tokens(completion: types.Completion | None, answer: Answer) -> Tokens:
  """What a call took; of one that failed nothing is known, and it costs 0.

  Where nobody tells how many tokens were reasoning, they are divided as the
  characters are.
  """
  if completion is None:
    return Tokens()
  usage = completion.usage or {}
  total = usage.get('completion_tokens', len(completion.token_ids))
  reasoning = usage.get('reasoning_tokens')
  if reasoning is None:
    num_thought, num_said = len(answer.reasoning), len(answer.text or '')
    reasoning = round(total * num_thought / max(1, num_thought + num_said))
  return Tokens(usage.get('prompt_tokens', 0), total, min(reasoning, total))
