"""Rollouts and groups made by hand, for the tests of this folder."""

import numpy as np

from qed.types import Completion, Grade, Prompt, Rollout, RolloutGroup

PROMPT = Prompt(
  problem_id='p', messages=(), token_ids=np.array([5, 6], np.int32)
)


def rollout(
  reward, versions=(0, 0), *, finish='stop', score=None, prompt=PROMPT
):
  """A rollout of one token per version; reward None: it has no grade."""
  n = len(versions)
  status = 'unparseable' if reward is None else 'ok'
  if score is None and reward is not None:
    score = round(7 * reward)
  return Rollout(
    prompt=prompt,
    completion=Completion(
      token_ids=np.arange(10, 10 + n, dtype=np.int32),
      logprobs=-np.arange(1, n + 1, dtype=np.float32) / 3,
      versions=np.array(versions, np.int32),
      text='text \n "quoted" ∀',
      finish_reason=finish,
    ),
    grade=Grade(
      score=score,
      status=status,
      feedback='why',
      judge='j',
      usage={'calls': 1},
    ),
    reward=reward,
  )


def group(rewards, versions=None, *, group_id=0, **fields):
  """A group of rollouts with these rewards and versions."""
  versions = versions or [(0, 0)] * len(rewards)
  return RolloutGroup(
    group_id=group_id,
    rollouts=tuple(
      rollout(reward, row, **fields)
      for reward, row in zip(rewards, versions, strict=True)
    ),
  )
