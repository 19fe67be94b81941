"""Text of a completion that is still being drawn, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from qed.data.tokenizer import THINK_END, THINK_START

# Where every byte is a token, a run of bytes may be unreadable as a whole until
# its last character is complete. A run that stays so is told after as many.
_MAX_HELD_TOKENS = 64


class Decoder:
  """Token ids to text, where no piece ends within a character.

  A few tokens are decoded again with each piece, as a token's text may depend
  on its neighbors.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str]):
    self._decode = decode
    self._before: list[int] = []  # The last tokens whose text is out.
    self._held: list[int] = []

  def push(self, token_ids: Sequence[int], *, is_last: bool) -> str:
    """The text that can be told now."""
    self._held += token_ids
    known = self._decode(self._before)
    text = self._decode(self._before + self._held)
    is_open = text.endswith('\ufffd') and len(self._held) < _MAX_HELD_TOKENS
    if is_open and not is_last:
      return ''
    self._before, self._held = self._held or self._before, []
    return text[len(known) :]


class Parts(NamedTuple):
  """What a piece of text adds to the reasoning and to the answer."""

  reasoning: str
  content: str


class Splitter:
  """Tells reasoning from answer while the text comes in.

  What all pieces add up to is `chat.split_thinking` of the whole, for a text
  that closes its reasoning once: neither part has white space around it.
  """

  def __init__(self, *, is_thinking: bool):
    """`is_thinking`: whether the prompt opened the reasoning."""
    self._is_thinking = is_thinking
    self._trims = is_thinking
    self._is_at_start = True
    self._held = ''

  def push(self, text: str, *, is_last: bool) -> Parts:
    """What can be told now; all of it with the last piece."""
    if not self._trims:
      return Parts('', text)
    self._held += text
    if not self._is_thinking:
      return Parts('', self._take(is_last, ''))
    if THINK_END not in self._held:
      return Parts(self._take(is_last, THINK_START), '')
    self._held, _, after = self._held.partition(THINK_END)
    reasoning = self._take(True, THINK_START)
    self._is_thinking, self._is_at_start = False, True
    self._held = after
    return Parts(reasoning, self._take(is_last, ''))

  def _take(self, is_last: bool, opening: str) -> str:
    """Takes what is held, but for what the next piece may change."""
    if self._is_at_start:
      self._held = self._held.lstrip()
      if opening.startswith(self._held) and not is_last:
        return ''  # It may become the opening tag.
      self._held = self._held.removeprefix(opening).lstrip()
      self._is_at_start = not self._held and not is_last
    if is_last:
      taken, self._held = self._held.rstrip(), ''
      return taken
    taken = self._held.rstrip()
    if self._is_thinking:
      taken = taken[: len(taken) - _overlap(taken, THINK_END)].rstrip()
    self._held = self._held[len(taken) :]
    return taken


def _overlap(text: str, tag: str) -> int:
  """How many characters at the end of `text` may begin `tag`."""
  return next(
    (n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0
  )
