"""Conversations with a model: what stands between messages and token ids.

An endpoint for chat takes messages and tells no ids (`Chat`); our engine and
servers of its kind take ids (`Rendered` makes them). Both are a `types.Llm`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from qed import types
from qed.llm import http, local, wire

THINK_END = '</think>'
_CHARS_PER_TOKEN = 3  # Of mathematics; where an endpoint does not count.
# The endpoint's words for why a completion ends -> ours; any other is an end
# that the model chose. What a filter cuts off is as incomplete as what a limit
# does.
_FINISH_REASONS: dict[str, types.FinishReason] = {
  'length': 'length',
  'content_filter': 'length',
  'abort': 'abort',
  'error': 'error',
}


class Chat:
  """An `Llm` over an endpoint's chat completions."""

  def __init__(
    self,
    client: http.Http,
    *,
    effort: str = '',
    sends_seed: bool = True,
  ):
    """Takes what it needs.

    Args:
      client: the endpoint, with its deadline and its attempts; whoever made it
        closes it.
      effort: of the thinking, as `http.Http.ask` has it.
      sends_seed: some endpoints refuse a request that has one.
    """
    self._client = client
    self._effort, self._sends_seed = effort, sends_seed

  async def sample(
    self, prompt: types.Prompt, params: types.SamplingParams, *, n: int = 1
  ) -> list[types.Completion]:
    """Draws `n` independent completions of the prompt's messages.

    A text is reasoning, `</think>`, answer, as data.chat.split_thinking takes
    it apart; the tag is there even where the endpoint keeps the reasoning to
    itself. A refusal is an empty answer. The arrays of a completion are empty,
    and `usage` counts its tokens. Members draw with `local.member_seeds`, as
    far as the endpoint cares for seeds; `stop_token_ids` it does not know.

    Returns:
      One completion per member; of a member whose attempts all failed, an empty
      one with the finish reason 'error'.

    Raises:
      http.Failure: no member succeeded.
    """
    replies = await asyncio.gather(
      *(
        self._client.chat(
          prompt.messages,
          temperature=params.temperature,
          max_tokens=params.max_tokens,
          effort=self._effort,
          top_p=params.top_p,
          top_k=params.top_k,
          seed=seed if self._sends_seed else None,
        )
        for seed in local.member_seeds(params.seed, n)
      ),
      return_exceptions=True,
    )
    failures = [x for x in replies if isinstance(x, BaseException)]
    for failure in failures:
      if not isinstance(failure, http.Failure) or len(failures) == n:
        raise failure
    return [_completion(prompt, reply) for reply in replies]


class Rendered:
  """An `Llm` that renders messages for one that takes token ids."""

  def __init__(
    self,
    llm: types.Llm,
    encode: Callable[[Sequence[types.Message]], np.ndarray],
    think_end_id: int | None,
  ):
    """Takes what it needs.

    Args:
      llm: samples from ids.
      encode: messages -> int32 [n], `data.chat.encode_chat` with its tokenizer
        and style.
      think_end_id: that of `</think>`, if there is one: what comes before is
        counted as reasoning.
    """
    self._llm, self._encode = llm, encode
    self._think_end_id = think_end_id

  async def sample(
    self, prompt: types.Prompt, params: types.SamplingParams, *, n: int = 1
  ) -> list[types.Completion]:
    """Draws `n` completions, with `usage`; ids of a prompt are kept."""
    if not len(prompt.token_ids):
      token_ids = self._encode(prompt.messages)
      prompt = dataclasses.replace(prompt, token_ids=token_ids)
    completions = await self._llm.sample(prompt, params, n=n)
    return [
      dataclasses.replace(x, usage=self._usage(prompt, x)) for x in completions
    ]

  def _usage(
    self, prompt: types.Prompt, completion: types.Completion
  ) -> dict[str, int]:
    usage = {
      'prompt_tokens': len(prompt.token_ids),
      'completion_tokens': len(completion.token_ids),
    }
    (ends,) = np.nonzero(completion.token_ids == self._think_end_id)
    if len(ends):
      usage['reasoning_tokens'] = int(ends[-1]) + 1
    return usage


def _completion(
  prompt: types.Prompt, reply: wire.Reply | http.Failure
) -> types.Completion:
  if isinstance(reply, http.Failure):
    return _without_ids('', 'error', {})
  asked = sum(len(message.content) for message in prompt.messages)
  written = len(reply.reasoning) + len(reply.text)
  usage = {
    'prompt_tokens': reply.prompt_tokens or _num_tokens(asked),
    'completion_tokens': reply.completion_tokens or _num_tokens(written),
  }
  if reply.reasoning_tokens:  # Few endpoints tell.
    usage['reasoning_tokens'] = reply.reasoning_tokens
  reason = _FINISH_REASONS.get(reply.finish_reason, 'stop')
  return _without_ids(_text(reply, is_cut=reason != 'stop'), reason, usage)


def _text(reply: wire.Reply, *, is_cut: bool) -> str:
  """The text, in which `</think>` stands where the reasoning ended.

  Where no reasoning was told apart from the text, a whole text is an answer,
  and one that was cut off may be the beginning of either: it has no tag.
  """
  if THINK_END in reply.text:
    return reply.text
  is_apart = bool(reply.reasoning or reply.reasoning_tokens)
  if not reply.text or (is_cut and not is_apart):
    return reply.reasoning + reply.text
  return f'{reply.reasoning}\n{THINK_END}\n\n{reply.text}'.lstrip('\n')


def _without_ids(
  text: str, reason: types.FinishReason, usage: dict[str, int]
) -> types.Completion:
  return types.Completion(
    token_ids=np.zeros(0, np.int32),
    logprobs=np.zeros(0, np.float32),
    versions=np.zeros(0, np.int32),
    text=text,
    finish_reason=reason,
    usage=usage,
  )


def _num_tokens(num_chars: int) -> int:
  return -(-num_chars // _CHARS_PER_TOKEN)
