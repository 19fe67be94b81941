"""The processes of a run: that they find each other, and leave on request.

A run is one process, or one per host under jax.distributed. Preemption comes as
SIGTERM; the run saves at the next boundary of a step and exits.
"""

from __future__ import annotations

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


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


class Preemption:
  """Whether somebody wants the run to end; a context.

  Under jax.distributed its own notifier takes SIGTERM and agrees with all
  processes on a step at which to stop; a handler of ours would rob it of the
  signal. Otherwise the handler is ours, and the one before is put back.
  """

  def __init__(self):
    self._received = threading.Event()
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

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; every process asks at every step."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received.is_set()
