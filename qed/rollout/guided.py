"""Groups that go on from the beginning of a proof, beside those that do not.

POPE (arXiv 2601.18779) practises hard problems in two copies, with a group for
each: one prompt has the beginning of a proof (data/guidance.py), the other has
the problem alone. The beginning moves the start to where success occurs; what
is learnt there carries over to where it did not. It is a part of the prompt and
so never a target, its judge sees beginning and completion as one proof, and
what counts in the end are the groups without it, and evaluations, which never
have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qed.data.guidance import Prefix
from qed.rollout import groups
from qed.rollout.prompts import Selection
from qed.types import Problem, Prompt, Rollout, RolloutGroup


class Mixed(NamedTuple):
  """Copies of problems, and how many of them have a beginning."""

  selection: Selection
  num_guided: int  # Problems.
  num_too_long: int  # With a beginning that leaves the prompt too long.

  def __str__(self) -> str:
    num_problems = len(self.selection.problems) // self.selection.num_copies
    return (
      f'{self.num_guided} of {num_problems} problems have the beginning of a '
      f'proof; of {self.num_too_long} it is too long'
    )


def mix(
  selection: Selection,
  prefixes: Mapping[str, Prefix],
  make_prompt: Callable[[Problem, str], Prompt],
  *,
  guided_per_problem: int,
  unguided_per_problem: int,
  max_prompt_tokens: int,
) -> Mixed:
  """Copies of every problem, with the beginning of a proof and without.

  A problem without a beginning, or with one that is too long, has as many
  copies as the others, all of them unguided: so each has the same share of the
  rollouts in whatever way it is practised.

  Args:
    selection: every problem once, with its unguided prompt.
    prefixes: by problem_id; those of other problems are passed over.
    make_prompt: what is drawn with of (problem, beginning); of kind 'guided'.
    guided_per_problem: copies with the beginning.
    unguided_per_problem: copies without.
    max_prompt_tokens: of a prompt.

  Raises:
    ValueError: there are beginnings, and no problem can have one.
  """
  num_copies = guided_per_problem + unguided_per_problem
  copies: list[tuple[Problem, Prompt, str]] = []
  num_guided = num_too_long = 0
  for problem, plain in zip(selection.problems, selection.prompts, strict=True):
    given = [(problem, plain, '')] * num_copies
    found = prefixes.get(problem.problem_id)
    if found:
      prompt = make_prompt(problem, found.prefix)
      if len(prompt.token_ids) > max_prompt_tokens:
        num_too_long += 1
      else:
        num_guided += 1
        guided = (problem, prompt, found.prefix)
        given[:guided_per_problem] = [guided] * guided_per_problem
    copies += given
  if prefixes and not num_guided:
    raise ValueError(
      f'expected one of {len(prefixes)} beginnings of proofs to be of one of '
      f'the {len(selection.problems)} problems, in a prompt of at most '
      f'{max_prompt_tokens} tokens; {num_too_long} are too long, and the '
      'others are of other problems'
    )
  problems, prompts, starts = zip(*copies, strict=True)
  mixed = Selection(
    problems=problems,
    prompts=prompts,
    num_too_long=selection.num_too_long,
    num_too_easy=selection.num_too_easy,
    num_too_hard=selection.num_too_hard,
    num_copies=num_copies,
    prefixes=starts,
  )
  return Mixed(mixed, num_guided, num_too_long)


def metrics(
  finished: Sequence[RolloutGroup], *, pass_score: int
) -> dict[str, float]:
  """Of the guided groups that were finished since the last step, and the rest.

  `solve_rate` is the share of graded rollouts with `pass_score` or more, and
  `solved` that of groups with one at least; `entropy` is estimated from the
  tokens that were drawn, as the mean of -log μ under the weights μ that drew
  them. Of the `guided` ones, most of this is owed to the beginning; compare
  `unguided` with a run without any.
  """
  found = {}
  for kind in ('guided', 'unguided'):
    here = [
      group
      for group in finished
      if (group.rollouts[0].prompt.kind == 'guided') == (kind == 'guided')
    ]
    if here:
      values = _of_kind(here, pass_score)
      found |= {f'{kind}/{name}': value for name, value in values.items()}
  return found


def _of_kind(
  finished: Sequence[RolloutGroup], pass_score: int
) -> dict[str, float]:
  rollouts = [rollout for group in finished for rollout in group.rollouts]
  rewards = [r.reward for r in rollouts if r.reward is not None]
  scores = [r.grade.score for r in rollouts if r.grade.score is not None]
  logprobs = np.concatenate([r.completion.logprobs for r in rollouts])
  logprobs = logprobs[np.isfinite(logprobs)].astype(np.float64)
  signals = [groups.signal(group) for group in finished]
  found = {
    'groups': float(len(finished)),
    'zero_signal': signals.count('none') / len(finished),
    'solved': float(
      np.mean([_is_solved(group.rollouts, pass_score) for group in finished])
    ),
    'length_mean': float(np.mean([groups.num_tokens(r) for r in rollouts])),
    'truncated': float(
      np.mean([r.completion.finish_reason == 'length' for r in rollouts])
    ),
  }
  if rewards:
    found['reward_mean'] = float(np.mean(rewards))
  if scores:
    found['solve_rate'] = float(np.mean(np.array(scores) >= pass_score))
  if logprobs.size:
    found['entropy'] = float(-logprobs.mean())
  return found


def _is_solved(rollouts: Sequence[Rollout], pass_score: int) -> bool:
  scores = (rollout.grade.score for rollout in rollouts)
  return any(score is not None and score >= pass_score for score in scores)
