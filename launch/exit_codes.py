"""What the exit code of a program asks of whatever started it.

| code  | what it says                                          | verdict   |
|-------|-------------------------------------------------------|-----------|
| 0     | the work is done                                      | done      |
| 42    | the state is saved; the same command goes on from it  | restart   |
| 1     | a bug                                                 | permanent |
| 2     | wrong usage or config, or a limit of the config       | permanent |
| >=128 | killed by signal code - 128: 137 SIGKILL, 143 SIGTERM | restart   |

134 is SIGABRT: a process of jax.distributed ends with it where another one has
died. Every other code is permanent; none of our programs has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

DONE = 0
BUG = 1
USAGE = 2
RESTART = 42
FIRST_SIGNAL = 128
LAST = 255

Verdict = Literal['done', 'restart', 'permanent']


def verdict(code: int) -> Verdict:
  """What is to be done about a program that ended with a code, 0 to 255."""
  if not DONE <= code <= LAST:
    raise ValueError(
      f'expected an exit code from 0 to {LAST}, got {code}; `of_returncode` '
      'has that of a signal'
    )
  if code == DONE:
    return 'done'
  return 'restart' if code == RESTART or code >= FIRST_SIGNAL else 'permanent'


def of_returncode(returncode: int) -> int:
  """The exit code for what `subprocess` returns, -N for signal N."""
  return returncode if returncode >= 0 else FIRST_SIGNAL - returncode


def of_processes(codes: Iterable[int]) -> int:
  """The one code for processes of a job that ended together.

  A process that another one's death took along may end with any code, a bug's
  too; so that a code which asks for a restart speaks for all of them.

  Returns:
    0 if all are 0; else the first that asks for a restart, else the first
    that is permanent.
  """
  codes = [code for code in codes if code != DONE]
  asking = [code for code in codes if verdict(code) == 'restart']
  return (asking + codes + [DONE])[0]


def of_work_units(codes: Iterable[int]) -> int:
  """The one code for work units that have nothing to do with each other.

  Returns:
    The first that is permanent, 1 for one that is neither 1 nor 2; else 42 if
    any asks for a restart; else 0.
  """
  codes = list(codes)
  permanent = [
    code if code in (BUG, USAGE) else BUG
    for code in codes
    if verdict(code) == 'permanent'
  ]
  asking = [RESTART for code in codes if verdict(code) == 'restart']
  return (permanent + asking + [DONE])[0]
