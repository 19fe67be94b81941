"""Asks a judge for the score of a proof, and makes a `Grade` of every outcome.

  render -> look it up -> wait to be let through -> call -> store -> parse

A grade has a score only where a judge gave one. Everything else has a status:

  ok           a score; also 0, without a call, where there is no proof
  unparseable  replies, but none from which a score can be read
  refused      the judge declined, or its endpoint does not take the request
  unreachable  no reply: attempts or patience came to an end

A failed call is repeated with growing pauses. A reply that cannot be read is
paid for, so it is kept like any other, and the next one is asked for under a
key of its own. While the endpoint is down (`is_ready`), grades wait rather than
fail, and whoever makes proofs should wait too.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from qed.grading import limits, parsing, rubrics, verdicts
from qed.types import Grade, GradeStatus, Message, Problem

_FIRST_WAIT_SECS = 0.5
_MAX_WAIT_SECS = 60.0
_CHARS_PER_TOKEN = 3  # Of mathematics; only for the budget's first guess.
# Finish reasons of a reply that breaks off, so that a score in it may be a
# thought on the way to another.
_CUT_OFF = ('length', 'abort', 'error')
_OUTCOMES: dict[str, limits.Outcome] = {
  'answer': 'ok',
  'rate_limited': 'rate_limited',
  'timeout': 'timeout',
  'rejected': 'neutral',
}


class Reply(Protocol):
  """What one call came to, as `qed.llm.http.Reply`."""

  kind: str  # 'answer', or the kind of failure.
  text: str
  refusal: str
  finish_reason: str
  prompt_tokens: int
  completion_tokens: int
  detail: str  # Of a failure.
  retry_after_secs: float  # 0: the endpoint did not say.


class Ask(Protocol):
  """One attempt at one chat completion, as `qed.llm.http.Http.ask`."""

  async def __call__(
    self,
    messages: Sequence[Message],
    *,
    temperature: float,
    max_tokens: int,
    effort: str,
  ) -> Reply:
    """Returns what it came to; a failed call does not raise."""
    ...


class _NoReply(Exception):
  """No reply could be had; the text says why."""

  def __init__(self, status: GradeStatus, detail: str):
    super().__init__(detail)
    self.status: GradeStatus = status


class Judge:
  """A model that scores proofs, with its verdicts on record."""

  def __init__(
    self, ask: Ask | None, config: Any, store: verdicts.Verdicts
  ) -> None:
    """Makes no call yet.

    Args:
      ask: makes a call; None: only what is on record is graded, and anything
        else is unreachable.
      config: a `qed.config.JudgeConfig`.
      store: where replies are kept.

    Raises:
      ValueError: the config names no rubric template.
    """
    rubrics.check(config.template)
    self._ask, self._config, self._store = ask, config, store
    self._sampling = {
      'temperature': config.temperature,
      'max_tokens': config.max_tokens,
      'effort': config.effort,
    }
    self._limiter = limits.Limiter(
      max_concurrency=config.max_concurrency,
      tokens_per_minute=config.tokens_per_minute,
      max_failures=config.max_failures,
      cooldown_secs=config.cooldown_secs,
      patience_secs=config.patience_secs,
    )
    self._mean_completion_tokens = 0.0
    # A lock per question that is being asked: equal proofs share one call.
    self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = (
      weakref.WeakValueDictionary()
    )

  @property
  def is_ready(self) -> bool:
    """False while the endpoint counts as down: make no proofs for it."""
    return self._limiter.is_ready

  async def wait_ready(self) -> None:
    """Returns once the endpoint can be asked, or tried, again."""
    await self._limiter.wait_ready()

  @property
  def concurrency(self) -> int:
    """How many calls may be in flight at present."""
    return self._limiter.concurrency

  @property
  def num_running(self) -> int:
    """How many are."""
    return self._limiter.num_running

  def ledger(self) -> verdicts.Ledger:
    """What the run asked its judge so far, and what that cost."""
    config = self._config
    price = (config.usd_per_million_prompt, config.usd_per_million_completion)
    return self._store.ledger({config.model: price})

  async def grade(
    self, problem: Problem, proof: str | None, *, replica: int = 0
  ) -> Grade:
    """The judge's score of a proof; of several verdicts, where so configured.

    All of the `replicas` verdicts are needed: the median of those that happened
    to arrive would be another one.

    Args:
      problem: with a rubric.
      proof: its exact text; None or blank where the model came to none (the
        end of its thinking is missing), which is worth 0 without a call.
      replica: another number asks for independent verdicts on the same proof.

    Returns:
      A grade, whatever happens to the calls. Its usage counts what was paid
      for it now, which is nothing if all was on record.

    Raises:
      ValueError: the problem lacks what the template shows.
    """
    config = self._config
    if proof is None or not proof.strip():
      return self._grade(0, 'ok', 'There is no proof.', [])
    messages = rubrics.render(
      config.template, problem, proof, with_reference=config.with_reference
    )
    scores = rubrics.SCORES[config.template]
    first = replica * config.replicas
    grades = await asyncio.gather(
      *(
        self.verdict(
          messages, scores=scores, about=problem.problem_id, replica=first + i
        )
        for i in range(config.replicas)
      )
    )
    chosen = next((g for g in grades if g.status != 'ok'), None)
    if chosen is None:
      merge = {'median': statistics.median_low, 'minimum': min}
      score = merge[config.aggregate]([g.score for g in grades])
      chosen = next(g for g in grades if g.score == score)
    return self._grade(
      chosen.score, chosen.status, chosen.feedback, [g.usage for g in grades]
    )

  async def verdict(
    self,
    messages: Sequence[Message],
    *,
    scores: Collection[int],
    about: str,
    replica: int = 0,
  ) -> Grade:
    """One judge's score in answer to any question that asks for one.

    Args:
      messages: the question; the answer is read by `parsing.verdict`.
      scores: those that it asks for.
      about: what is asked, for people who read the record.
      replica: another number asks for an independent answer.
    """
    usage = {'prompt_tokens': 0, 'completion_tokens': 0, 'calls': 0}
    status, feedback = 'unparseable', ''
    for draw in range(self._config.max_draws):
      key = verdicts.key(
        messages,
        model=self._config.model,
        sampling=self._sampling,
        replica=replica,
        draw=draw,
      )
      try:
        reply = await self._reply(key, messages, about, usage)
      except _NoReply as error:
        return self._grade(None, error.status, str(error), [usage])
      score, status, feedback = _read(reply, scores)
      if status == 'ok':
        return self._grade(score, 'ok', feedback, [usage])
    return self._grade(None, status, feedback, [usage])

  async def _reply(self, key, messages, about, usage) -> verdicts.Stored:
    """What is on record, or what the judge says now."""
    lock = self._locks.setdefault(key, asyncio.Lock())
    async with lock:
      stored = self._store.get(key)
      if stored is None:
        return await self._pay(key, messages, about, usage)
    self._store.count_hit(self._config.model)
    return stored

  async def _pay(self, key, messages, about, usage) -> verdicts.Stored:
    """Calls until there is a reply on record, or no hope."""
    config = self._config
    if self._ask is None:
      raise _NoReply('unreachable', 'The verdict is not on record.')
    # Where nobody was reached, no attempt was made; patience bounds those.
    attempt = num_unreached = 0
    while attempt < config.max_attempts:
      try:
        reply, stored = await self._attempt(key, messages, about, usage)
      except TimeoutError as error:
        raise _NoReply(
          'unreachable',
          f'{config.base_url} was down, or had asked to wait, for '
          f'{config.patience_secs:g} s.',
        ) from error
      if stored is not None:
        return stored
      told = f'{config.base_url}: {reply.kind}: {reply.detail}'
      if reply.kind == 'connect':
        num_unreached += 1
        await asyncio.sleep(_wait_secs(num_unreached))
        continue
      attempt += 1
      if reply.kind == 'rejected':
        raise _NoReply('refused', told)
      if (
        reply.kind == 'forbidden'
        or reply.retry_after_secs > config.patience_secs
      ):
        break
      if attempt < config.max_attempts:
        await asyncio.sleep(_wait_secs(attempt))
    raise _NoReply('unreachable', f'{told} (attempt {attempt}, the last)')

  async def _attempt(self, key, messages, about, usage):
    """One call: what it came to, and what is on record of its answer."""
    config, store = self._config, self._store
    num_chars = sum(len(message.content) for message in messages)
    estimate = num_chars // _CHARS_PER_TOKEN + self._mean_completion_tokens
    async with self._limiter.call(int(estimate)) as call:
      number = store.begin(key, config.model)
      usage['calls'] += 1
      kind = 'cancelled'
      stored = None
      try:
        reply = await self._ask(messages, **self._sampling)
        kind = reply.kind
        if kind == 'answer':
          # Before anything else, as it is paid for.
          stored = store.put(number, _stored(reply), about=about)
      finally:
        if kind != 'answer':
          store.fail(number, kind)
      call.outcome = _OUTCOMES.get(kind, 'failed')
      call.retry_after_secs = reply.retry_after_secs
      if stored is not None:
        call.num_tokens = reply.prompt_tokens + reply.completion_tokens
        usage['prompt_tokens'] += reply.prompt_tokens
        usage['completion_tokens'] += reply.completion_tokens
        drift = reply.completion_tokens - self._mean_completion_tokens
        self._mean_completion_tokens += 0.05 * drift
    return reply, stored

  def _grade(self, score, status, feedback, usages) -> Grade:
    names = ('prompt_tokens', 'completion_tokens', 'calls')
    return Grade(
      score=score,
      status=status,
      feedback=feedback,
      judge=self._config.model,
      usage={name: sum(usage[name] for usage in usages) for name in names},
    )


def _read(
  reply: verdicts.Stored, scores: Collection[int]
) -> tuple[int | None, GradeStatus, str]:
  """Score, status and feedback of a reply."""
  if reply.refusal or reply.finish_reason == 'content_filter':
    return None, 'refused', reply.refusal or 'The answer was filtered.'
  if reply.finish_reason in _CUT_OFF:
    reason = f'the reply breaks off: {reply.finish_reason}'
    return None, 'unparseable', f'{reason}\n\n{reply.text}'
  verdict = parsing.verdict(reply.text, scores=scores)
  if verdict.score is None:
    return None, 'unparseable', f'{verdict.reason}\n\n{reply.text}'
  return verdict.score, 'ok', reply.text


def _stored(reply: Reply) -> verdicts.Stored:
  return verdicts.Stored(
    text=reply.text,
    refusal=reply.refusal,
    finish_reason=reply.finish_reason,
    prompt_tokens=reply.prompt_tokens,
    completion_tokens=reply.completion_tokens,
  )


def _wait_secs(attempt: int) -> float:
  """After a failed attempt: doubling, and never the same for two callers."""
  longest = min(_MAX_WAIT_SECS, _FIRST_WAIT_SECS * 2 ** (attempt - 1))
  return random.uniform(longest / 2, longest)
