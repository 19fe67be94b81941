"""Chats rendered straight into ids, and completions taken apart again.

Two rules hold throughout:

* Text is data. Control tokens are placed here, by id; contents are plain text
  to `Tokenizer.encode`. A folder's own (jinja) chat template is therefore never
  run: it mixes contents and control tokens in one string, in which a problem
  that quotes `<|im_end|>` ends its turn. For contents without control tokens
  the ids are those that the templates of Qwen3's 2507 models give.
* Ids are the truth. A rollout is prompt ids followed by sampled ids
  (`concatenate`); nothing that was sampled is encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qed import types
from qed.data.tokenizer import (
  THINK_END,
  THINK_START,
  TURN_END,
  TURN_START,
  Tokenizer,
)

# 'thinking' opens a think block that the model closes (Qwen3 Thinking-2507),
# 'instruct' has none (Instruct-2507), 'base' is text without any markup.
ChatStyle = Literal['thinking', 'instruct', 'base']


def encode_chat(
  tokenizer: Tokenizer, messages: Sequence[types.Message], *, style: ChatStyle
) -> np.ndarray:
  """Returns int32 [n], the ids of a prompt that asks for the next turn.

  'thinking' and 'instruct' are ChatML and end with the header of an assistant
  turn, 'thinking' with an opened think block too. 'base' is the contents, each
  followed by an empty line. Earlier assistant turns go in as they are given:
  take the reasoning out first (`split_thinking`).

  Raises:
    ValueError: the messages do not end with the user's, or the tokenizer lacks
      the control tokens of the style.
  """
  _check_style(style)
  roles = [message.role for message in messages]
  if not roles or roles[-1] != 'user' or 'system' in roles[1:]:
    raise ValueError(
      'expected messages that end with the role user, with system at most '
      f'first, got the roles {roles}'
    )
  if style == 'base':
    text = ''.join(f'{message.content}\n\n' for message in messages)
    return tokenizer.encode(text)
  start, end = (_control_id(tokenizer, t) for t in (TURN_START, TURN_END))
  parts: list[int | str] = []
  for message in messages:
    # One string, as the merges across "\n" must be those of the template.
    parts += [start, f'{message.role}\n{message.content}', end, '\n']
  parts += [start, 'assistant\n']
  if style == 'thinking':
    parts += [_control_id(tokenizer, THINK_START), '\n']
  return _encode_parts(tokenizer, parts)


def encode_completion(
  tokenizer: Tokenizer, proof: str, *, reasoning: str = '', style: ChatStyle
) -> np.ndarray:
  """Returns int32 [n], what a model should write after an `encode_chat` prompt.

  For text that somebody else wrote (a teacher); what the policy sampled has ids
  already. Under 'thinking' the reasoning is followed by the closing tag, which
  is a control token, and the proof. The turn's end comes last: `<|im_end|>`, or
  for 'base' the tokenizer's EOS.

  Raises:
    ValueError: reasoning in a style that has no place for it.
  """
  _check_style(style)
  if style == 'thinking':
    return _encode_parts(
      tokenizer,
      [
        reasoning.strip('\n') + '\n',
        _control_id(tokenizer, THINK_END),
        '\n\n' + proof.lstrip('\n'),
        _control_id(tokenizer, TURN_END),
      ],
    )
  if reasoning:
    raise ValueError(
      f"expected reasoning with style='thinking' only, got style={style!r} "
      f'and reasoning {reasoning[:40]!r}'
    )
  end = (
    tokenizer.eos_id if style == 'base' else _control_id(tokenizer, TURN_END)
  )
  return _encode_parts(tokenizer, [proof, end])


def make_prompt(
  tokenizer: Tokenizer,
  problem_id: str,
  messages: Sequence[types.Message],
  *,
  style: ChatStyle,
  kind: types.PromptKind = 'plain',
  turn: int = 0,
) -> types.Prompt:
  """Returns a prompt whose ids are `encode_chat` of its messages."""
  return types.Prompt(
    problem_id=problem_id,
    messages=tuple(messages),
    token_ids=encode_chat(tokenizer, messages, style=style),
    kind=kind,
    turn=turn,
  )


def concatenate(
  prompt_ids: np.ndarray, completion_ids: np.ndarray
) -> np.ndarray:
  """Returns int32 [p + c]: the ids that were given, then those sampled.

  Nothing is decoded, so a sampled spelling that `encode` would not choose is
  trained on as it was drawn.

  Raises:
    ValueError: one of the two is not a vector of integers.
  """
  for name, ids in (('prompt', prompt_ids), ('completion', completion_ids)):
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
      raise ValueError(
        f'expected {name} ids as a vector of integers, got shape {ids.shape} '
        f'of {ids.dtype}'
      )
  return np.concatenate([prompt_ids, completion_ids]).astype(np.int32)


def split_thinking(text: str) -> tuple[str, str | None]:
  """Splits a completion at its last `</think>` into (reasoning, proof).

  Without the tag all of it is reasoning and the proof is None: the model was
  still thinking. Both come without surrounding white space, and without the
  opening tag that some models write themselves.
  """
  reasoning, tag, proof = text.rpartition(THINK_END)
  if not tag:
    reasoning, proof = text, None
  reasoning = reasoning.strip().removeprefix(THINK_START).strip()
  return reasoning, None if proof is None else proof.strip()


def _control_id(tokenizer: Tokenizer, text: str) -> int:
  if text not in tokenizer.special_ids:
    raise ValueError(
      f'expected a tokenizer with the control token {text}, got one with '
      f"{sorted(tokenizer.special_ids)}; style='base' needs none"
    )
  return tokenizer.special_ids[text]


def _encode_parts(
  tokenizer: Tokenizer, parts: Sequence[int | str]
) -> np.ndarray:
  """Joins control ids, given as int, and plain text, given as str."""
  return np.concatenate(
    [
      tokenizer.encode(part)
      if isinstance(part, str)
      else np.array([part], np.int32)
      for part in parts
    ]
  )


def _check_style(style: str) -> None:
  if style not in ('thinking', 'instruct', 'base'):
    raise ValueError(
      f"expected style 'thinking', 'instruct' or 'base', got {style!r}"
    )
