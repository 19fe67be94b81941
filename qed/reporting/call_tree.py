"""The calls of a scaffold as they come and go: a tree, or a line for each.

A call's label, 'round 1/merge 3', is its place in the tree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rich.tree import Tree

_STARTED = 'started'
_WORDS = {
  'length': 'cut off',
  'error': 'failed',
  'late': 'given up at the time limit',
}


@dataclasses.dataclass(slots=True)
class _Node:
  """A part of a label: a call, a group of calls, or both."""

  parts: dict[str, _Node] = dataclasses.field(default_factory=dict)
  state: str = ''  # Of the call; '': it is none.
  num_tokens: int = 0
  secs: float = 0.0
  began: float = 0.0

  def calls(self) -> Iterator[_Node]:
    """All calls from here on."""
    if self.state:
      yield self
    for part in self.parts.values():
      yield from part.calls()

  @property
  def is_running(self) -> bool:
    return any(call.state == _STARTED for call in self.calls())


class CallTree:
  """What has been told of the calls of one attempt."""

  def __init__(
    self, title: str, *, clock: Callable[[], float] = time.monotonic
  ):
    """Starts the clock.

    Args:
      title: of the whole.
      clock: gives seconds.
    """
    self._title, self._clock = title, clock
    self._began = clock()
    self._root = _Node()

  def tell(self, event: Any) -> None:
    """Takes an event of a call, a `scaffolds.calls.Event`."""
    node = self._root
    for part in event.label.split('/'):
      node = node.parts.setdefault(part, _Node())
    node.state = event.state
    if event.state == _STARTED:
      node.began = self._clock()
    else:
      node.num_tokens, node.secs = event.completion_tokens, event.secs

  def lines(self) -> list[str]:
    """The tree as text, two spaces for a level; what is over is folded up."""
    secs = int(self._clock() - self._began)
    head = f'{self._title}: {_total(self._root)}'
    return [
      f'{head}, {datetime.timedelta(seconds=secs)}',
      *self._lines(self._root, 1),
    ]

  def __rich__(self) -> Tree:
    from rich import text, tree

    head, *lines = self.lines()
    whole = tree.Tree(text.Text(head, style='bold'), guide_style='dim')
    path = [whole]
    for line in lines:
      content = line.lstrip(' ')
      depth = (len(line) - len(content)) // 2
      style = '' if content.endswith('...') else 'dim'
      del path[depth:]
      path.append(path[-1].add(text.Text(content, style=style)))
    return whole

  def _lines(self, node: _Node, depth: int) -> Iterator[str]:
    for name, part in node.parts.items():
      yield '  ' * depth + f'{name}: {self._words(part)}'
      if part.is_running:
        yield from self._lines(part, depth + 1)

  def _words(self, node: _Node) -> str:
    if node.state == _STARTED:
      return f'{self._clock() - node.began:.0f} s ...'
    if node.parts:
      return _total(node) + (' ...' if node.is_running else '')
    return _outcome(node.state, node.num_tokens, node.secs)


def line(event: Any) -> str:
  """What came of a call, in words."""
  outcome = _outcome(event.state, event.completion_tokens, event.secs)
  return f'{event.label}: {outcome}'


@contextlib.contextmanager
def shown(title: str) -> Iterator[Callable[[Any], None]]:
  """Yields what to tell events: a tree on a terminal, lines elsewhere."""
  calls = CallTree(title)
  if sys.stdout.isatty():
    from rich import live

    with live.Live(get_renderable=lambda: calls):
      yield calls.tell
    return

  def tell(event: Any) -> None:
    calls.tell(event)
    if event.state != _STARTED:
      print(line(event), flush=True)

  yield tell
  print(calls.lines()[0], flush=True)


def _total(node: _Node) -> str:
  """What the calls from a node on have come to."""
  calls = [*node.calls()]
  states = [call.state for call in calls]
  parts = [f'{len(calls)} call{"s" if len(calls) != 1 else ""}']
  parts += [f'{states.count(_STARTED)} running'] * (_STARTED in states)
  parts.append(f'{sum(call.num_tokens for call in calls):,} tokens')
  parts += [
    f'{states.count(state)} {words}'
    for state, words in _WORDS.items()
    if state in states
  ]
  return ', '.join(parts)


def _outcome(state: str, num_tokens: int, secs: float) -> str:
  words = f', {_WORDS[state]}' if state in _WORDS else ''
  return f'{num_tokens:,} tokens, {secs:.1f} s{words}'
