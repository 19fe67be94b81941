"""What can drive the engine; both have the calls of `scheduler.Scheduler`."""

from __future__ import annotations

from typing import Any, Literal

from qed.rollout import engine as engines
from qed.rollout import scheduler


def start(
  driver: Literal['scheduler', 'jetstream'],
  engine: engines.Engine,
  params: Any,
  *,
  version: int = 0,
) -> Any:
  """Starts drawing with these weights.

  Args:
    driver: our scheduler, or the orchestrator of the package google-jetstream.
    engine: warmed up.
    params: the weights; whoever gives them must not donate them.
    version: theirs.

  Returns:
    A `Scheduler`, or what has its calls `submit`, `update_weights`, `stats`,
    `close` and its properties `version` and `failure`.

  Raises:
    ImportError: google-jetstream is not installed.
  """
  if driver == 'jetstream':
    from qed.rollout import jetstream_scheduler

    return jetstream_scheduler.Orchestrator(engine, params, version=version)
  return scheduler.Scheduler(engine, params, version=version)
