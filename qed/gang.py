"""The processes of `qed grpo`: one leads, and all do the same to the mesh.

Process 0 alone samples, grades, decides and writes. What concerns the mesh is
an order, the name of a method of the learner and its arguments. One thread of
process 0 broadcasts the orders one after another, and every process, the first
one too, has carried an order out before it takes the next. So all enter every
collective in the same sequence, whatever else process 0 does meanwhile.

When there is nothing to do, there is an empty order every second: jax settles
by their number where to stop after a SIGTERM to any of the processes, and a
process that is gone is missed at the next one.

A run of one process does what it is told at once, in the thread that asks.
"""

from __future__ import annotations

import pickle
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qed import startup

if TYPE_CHECKING:
  from qed.learner import Learner
  from qed.training.processes import Preemption

_BEAT_SECS = 1.0
_MIN_BYTES = 1 << 10
_NOTHING, _DISMISSAL = '', 'dismissal'

_Order = tuple[str, tuple[Any, ...]]


class Gang:
  """All processes of the run, to the one that leads them."""

  def __init__(self, learner: Learner, preemption: Preemption):
    """Takes the lead over processes that `follow`.

    Args:
      learner: of this process.
      preemption: of this process.
    """
    self._learner, self._preemption = learner, preemption
    self._is_preempted = False
    self._orders: queue.SimpleQueue[tuple[_Order, Future]] | None = None
    if jax.process_count() > 1:
      self._orders = queue.SimpleQueue()
      threading.Thread(target=self._lead, name='gang', daemon=True).start()

  def do(self, name: str, *arguments: Any) -> Any:
    """Has all processes call a method of their learner, and waits for it.

    Args:
      name: of the method.
      *arguments: anything that can be pickled.

    Returns:
      What it returns in this process.
    """
    if self._orders is None:
      return getattr(self._learner, name)(*arguments)
    return self._put(name, *arguments)

  def is_preempted(self) -> bool:
    """Whether any of the processes was asked to end."""
    if self._orders is None:
      return self._preemption.reached()
    return self._is_preempted

  def dismiss(self, code: int) -> None:
    """Closes all learners; the followers end with an exit code."""
    if self._orders is None:
      self._learner.close()
    else:
      self._put(_DISMISSAL, code)

  def _put(self, name: str, *arguments: Any) -> Any:
    result = Future()
    self._orders.put(((name, arguments), result))
    return result.result()

  def _lead(self) -> None:
    """Gives all orders of the run, in a thread of its own."""
    name = _NOTHING
    with startup.leaving_at_once():
      while name != _DISMISSAL:
        try:
          order, result = self._orders.get(timeout=_BEAT_SECS)
        except queue.Empty:
          order, result = (_NOTHING, ()), Future()
        name, arguments = _broadcast(order)
        if self._preemption.reached():
          self._is_preempted = True
        result.set_result(_carry_out(self._learner, name, arguments))


def follow(learner: Learner, preemption: Preemption) -> int:
  """Does what the first process says; returns the exit code that it gave."""
  with startup.leaving_at_once():
    while True:
      name, arguments = _broadcast(None)
      preemption.reached()  # The first process decides what comes of it.
      _carry_out(learner, name, arguments)
      if name == _DISMISSAL:
        (code,) = arguments
        return code


def _carry_out(learner: Learner, name: str, arguments: tuple[Any, ...]) -> Any:
  if name == _NOTHING:
    return None
  if name == _DISMISSAL:
    return learner.close()
  return getattr(learner, name)(*arguments)


def _broadcast(order: _Order | None) -> _Order:
  """What the first process gives, on all; the others give None."""
  message = b'' if order is None else pickle.dumps(order)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  # Powers of two: a size that was not there before is compiled for.
  padded = np.zeros(max(_MIN_BYTES, 1 << (size - 1).bit_length()), np.uint8)
  padded[: len(message)] = np.frombuffer(message, np.uint8)
  return pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
