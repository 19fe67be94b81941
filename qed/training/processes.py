"""The processes of a run: that they find each other, and leave on request.

A run is one process, or one per host under jax.distributed. Preemption comes as
SIGTERM; the run saves at the next boundary of a step and exits.

What happens to the others when one process is lost depends on the platform. On
CPU their next collective fails. On a TPU it does not return; there jax misses
the process after 100 seconds without a sign of it, and aborts the others.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading

import jax
from jax.experimental import multihost_utils

# How the transports of collectives, and jax's own services, say it.
_LOSS = re.compile(
  r'gloo|nccl|coordination service|barrier|connection (closed|reset|refused)|'
  r'^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)',
  re.IGNORECASE,
)


def initialize() -> None:
  """Joins the other processes, where the environment says there are any.

  That is where JAX_COORDINATOR_ADDRESS is set (with JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, unless jax finds them out from the cluster), or where
  TPU_WORKER_HOSTNAMES names several hosts of a TPU slice.
  """
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if jax.distributed.is_initialized() or not (
    'JAX_COORDINATOR_ADDRESS' in os.environ or len(hosts) > 1
  ):
    return
  count = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  jax.distributed.initialize(
    num_processes=None if count is None else int(count),
    process_id=None if index is None else int(index),
  )


def is_first() -> bool:
  """Whether this is the process that speaks and writes for all."""
  return jax.process_index() == 0


def is_loss(error: BaseException | None) -> bool:
  """Whether an error, or what caused it, is that another process is gone."""
  while error is not None:
    if jax.process_count() > 1 and _LOSS.search(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


class Preemption:
  """Whether somebody wants the run to end; a context.

  Under jax.distributed its own notifier takes SIGTERM and agrees with all
  processes on a moment at which to stop; a handler of ours would rob it of the
  signal. Otherwise the handler is ours, and the one before is put back.
  """

  def __init__(self):
    self._received = threading.Event()
    self._moments = itertools.count(1)
    self._previous = None

  def __enter__(self) -> Preemption:
    if not jax.distributed.is_initialized():
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._received.set()
      )
    return self

  def __exit__(self, *exception) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def reached(self) -> bool:
    """Whether to stop now.

    Every process asks again and again, after the same collectives. That it is
    time is told once.
    """
    if jax.distributed.is_initialized():
      moment = next(self._moments)
      return multihost_utils.reached_preemption_sync_point(moment)
    return self._received.is_set()
