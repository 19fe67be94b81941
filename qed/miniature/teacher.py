"""The teacher: proofs to imitate, of short chains only, and not all right.

A policy that imitates it is right most of the time in every line and wrong
often enough over a whole proof: what reinforcement learning can mend.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qed.data.problems import Trace
from qed.miniature import checker, problems
from qed.miniature.problems import MODULUS, Chain


def write(chain: Chain, rng: np.random.Generator, *, error_rate: float) -> str:
  """A proof in which a line may derive a wrong value.

  The lines after a wrong one go on from its value, and the conclusion is what
  was to be proved in any case, as it is with teachers of flesh and blood.

  Args:
    chain: what is proved.
    rng: advanced.
    error_rate: the probability that a line is wrong; every wrong value is
      equally likely.
  """
  return problems.proof(chain, derive(chain, rng, error_rate=error_rate))


def derive(
  chain: Chain, rng: np.random.Generator, *, error_rate: float
) -> list[int]:
  """The values that `write` comes to, from the start on."""
  values = [chain.start]
  for operation, constant in chain.steps:
    last = values[-1]
    value = last * constant if operation == '*' else last + constant
    if rng.random() < error_rate:
      value += rng.integers(1, MODULUS)
    values.append(int(value % MODULUS))
  return values


def traces(
  num_traces: int,
  *,
  num_steps: Sequence[int],
  error_rate: float,
  seed: int,
  num_names: int | None = None,
) -> list[Trace]:
  """Proofs to be imitated by `qed sft`.

  A chain may come again, with another proof: there are only 875 of one step.

  Args:
    num_traces: how many.
    num_steps: numbers of steps, which take turns.
    error_rate: of a line.
    seed: decides everything.
    num_names: see `problems.draw`.
  """
  rng = np.random.default_rng(seed)
  written = []
  for index in range(num_traces):
    chain = problems.draw(
      num_steps[index % len(num_steps)], rng, num_names=num_names
    )
    problem = problems.problem(chain)
    proof = write(chain, rng, error_rate=error_rate)
    written.append(
      Trace(
        problem_id=problem.problem_id,
        statement=problem.statement,
        reasoning='',
        proof=proof,
        score=checker.score(chain, proof),
        source=problem.source,
      )
    )
  return written
