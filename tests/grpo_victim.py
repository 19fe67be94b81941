"""A run of `qed grpo` that sends itself a signal in some phase of some step.

  python -m tests.grpo_victim '{"tiny": DIR, "workdir": DIR, "cache": DIR,
    "phase": "train", "step": 2, "signal": "SIGKILL", "changes": {...}}'

The signal comes in the middle of the phase, in that step or the next in which
there is such a phase (what is on file already is not sampled or graded again):
before a completion or a grade of the step, before the step itself, its
checkpoint, or the publication of what it made.
"""

import json
import os
import pathlib
import signal
import sys
import time

from qed import policy
from qed.training import checkpoints
from tests import grpo_rig, tiny_model


def main(given):
  tiny_model.keep_compiled(given['cache'])
  parts = grpo_rig.Parts()
  pending = [getattr(signal, given['signal'])]

  def act(phase, step):
    if phase == given['phase'] and step >= given['step'] and pending:
      print(f'{pending[0].name} in {phase}, step {step}', flush=True)
      os.kill(os.getpid(), pending.pop())
      # jax looks for it every second, in which all steps could be over.
      time.sleep(1.5)

  async def before_sample(group):
    # Not the first of its step, so that others are under way.
    if group % 2:
      act('generate', group // 2)

  async def before_grade(problem, completion):
    act('grade', int(completion.versions[0]))

  async def before_update(version):
    act('publish', version)

  parts.before_sample = before_sample
  parts.before_grade = before_grade
  parts.before_update = before_update
  update, save = policy.Trainer.update, checkpoints.Checkpointer.save

  def disturbed_update(self, *arguments):
    act('train', self.num_done)
    return update(self, *arguments)

  def disturbed_save(self, step, *arguments):
    act('checkpoint', step)
    return save(self, step, *arguments)

  policy.Trainer.update = disturbed_update
  checkpoints.Checkpointer.save = disturbed_save
  return grpo_rig.train(
    pathlib.Path(given['tiny']), given['workdir'], parts, **given['changes']
  )


if __name__ == '__main__':
  sys.exit(main(json.loads(sys.argv[1])))
