"""What launch/Dockerfile puts where, for those who start its image."""

from __future__ import annotations

import pathlib

from launch.experiment import WorkUnit

# Of the repository, and so of relative paths in flags and configs.
ROOT = '/qed'
# Folders there that belong to all pods or machines: mounted, not in the image.
SHARED = ('checkpoints', 'data', 'runs')
PORT = 8000  # Of a service that is alone at its address.
COORDINATOR_PORT = 8476  # Of jax.distributed, where it is not told otherwise.


def check_workdir(unit: WorkUnit) -> None:
  """Checks that what a run writes is there for its next attempt.

  Raises:
    ValueError: the run directory is in no folder that is shared.
  """
  path = pathlib.PurePosixPath(ROOT, unit.workdir)
  shared = [pathlib.PurePosixPath(ROOT, name) for name in SHARED]
  if '..' in path.parts or not any(f in path.parents for f in shared):
    raise ValueError(
      f'work unit {unit.name}: workdir = {unit.workdir!r}: expected it below '
      f'one of {", ".join(SHARED)}, which are what pods and machines share; '
      'other storage is to be mounted there'
    )
