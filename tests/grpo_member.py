"""One process of a `qed grpo` of several, which may disturb itself.

  JAX_PROCESS_ID=0 ... python -m tests.grpo_member '{"tiny": DIR,
    "workdir": DIR, "cache": DIR, "changes": {...}, "fault": "...", "step": 2}'

The first process draws by itself, from the weights that were published, and
waits so long that the others are idle where a fault is to find them so.
"""

import asyncio
import contextlib
import json
import pathlib
import sys

import jax
from absl import app

from qed import cli, learner
from qed.rollout import health, weights
from tests import grpo_rig, tiny_model

REMOTE = {
  'sampler.placement': 'remote',
  'sampler.urls': ('http://nobody.invalid/v1',),
  'mesh.data': -1,
  'packing.num_rows': 4,
}


class Parts(grpo_rig.Parts):
  """A sampler that takes weights from the folder, where they are published."""

  @contextlib.asynccontextmanager
  async def open_sampler(self, run, params, version):
    def read(params, version):
      if params is None:
        return weights.load(run.workdir / 'weights', version, config=run.model)
      return params

    params = read(params, version)
    async with super().open_sampler(run, params, version) as sampler:
      update = sampler.update

      async def update_from_folder(params, version):
        await update(read(params, version), version)

      sampler.update = update_from_folder
      yield sampler


def disturb(fault, step, parts):
  """Plans what goes wrong."""

  async def wait_for_ever(group):
    if group >= 2 * step:
      print('waiting', flush=True)
      await asyncio.Event().wait()

  async def forget(problem, completion):
    return grpo_rig.make_grade(None) if completion.versions[0] else None

  async def fail(problem, completion):
    if completion.versions[0] == step:
      raise RuntimeError('a bug of the first process')

  if fault == 'wait':
    parts.before_sample = wait_for_ever
  elif fault == 'ungraded':
    parts.before_grade = forget
  elif fault == 'bug':
    parts.before_grade = fail
  elif fault == 'bug of one':
    take = learner.Learner.step

    def fail_in_one(self, *arguments):
      if jax.process_index() == 1:
        raise RuntimeError('a bug of the second process')
      return take(self, *arguments)

    learner.Learner.step = fail_in_one


def main(given):
  tiny_model.keep_compiled(given['cache'])
  parts = Parts()
  disturb(given.get('fault'), given.get('step', 1), parts)

  def program(argv):
    del argv
    folder, changes = pathlib.Path(given['tiny']), REMOTE | given['changes']
    changes = {  # JSON has no tuples.
      name: tuple(value) if isinstance(value, list) else value
      for name, value in changes.items()
    }
    try:
      return grpo_rig.train(folder, given['workdir'], parts, **changes)
    except health.HealthError as error:  # As `qed grpo` does.
      raise app.UsageError(str(error)) from error

  return cli.run(program, ['member'])


if __name__ == '__main__':
  sys.exit(main(json.loads(sys.argv[1])))
