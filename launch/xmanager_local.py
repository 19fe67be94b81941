"""Executes work units through XManager, as processes of this machine.

For those who keep their experiments in XManager: each work unit becomes one of
XManager's, in its own record (~/.xmanager). It needs the extra
`xm` and an environment of its own, because XManager's protobuf is older than
the one that we pin (`make test-xmanager` makes one).

XManager's local executor has neither services nor restarts. What needs them is
for launch/local_processes.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
from collections.abc import Sequence

from absl import app

from launch import exit_codes
from launch.experiment import Cpu, Rendered, WorkUnit, label

_CODE = re.compile(r'non-zero code: (-?\d+)')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class XManager:
  """The executor.

  Attributes:
    python: the interpreter of the programs.
  """

  python: str = sys.executable

  def render(self, unit: WorkUnit) -> Rendered:
    """The command line that XManager is given.

    Raises:
      UsageError: the work unit needs more than one process.
    """
    if unit.services or unit.main.num_processes > 1:
      raise app.UsageError(
        f'{unit.name}: XManager takes one process here, and this '
        'work unit is more; expected --executor=local'
      )
    if not isinstance(unit.main.requirements, Cpu):
      raise app.UsageError(
        f'{unit.name}: requires {unit.main.requirements}, which this machine '
        'is not'
      )
    return Rendered(files={}, commands=(unit.main.argv(python=self.python),))

  def submit(self, units: Sequence[WorkUnit]) -> int:
    """Runs work units one after the other; returns an exit code for all.

    Raises:
      UsageError: XManager is not installed, or cannot run one of them.
    """
    try:
      from xmanager import xm, xm_local
    except ImportError as error:
      raise app.UsageError(
        "XManager is not installed; pip install '.[xm]' in an environment of "
        'its own'
      ) from error

    async def run(experiment: xm.Experiment, codes: list[int]) -> None:
      async with experiment:
        for unit, argv in commands:
          binary = xm.binary(xm_local.Local.Spec(), path=argv[0])
          (executable,) = await asyncio.to_thread(experiment.package, [binary])
          job = xm.Job(
            executable,
            executor=xm_local.Local(),
            name=label(unit.name),
            args=[*argv[1:]],
          )
          work_unit = await experiment.add(job)
          try:
            await work_unit.wait_until_complete()
            codes.append(exit_codes.DONE)
          except xm.ExperimentUnitFailedError as error:
            codes.append(_code_of(error))

    commands = [(unit, self.render(unit).commands[0]) for unit in units]
    title = units[0].name
    codes: list[int] = []
    try:
      asyncio.run(run(xm_local.create_experiment(title), codes))
    except RuntimeError:  # The end of an experiment tells of failures again.
      if len(codes) < len(units):
        raise
    return exit_codes.of_work_units(codes)


def _code_of(error: Exception) -> int:
  """The exit code that XManager's message ends with."""
  found = _CODE.search(str(error))
  return exit_codes.of_returncode(int(found[1])) if found else exit_codes.BUG
