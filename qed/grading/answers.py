r"""Final answers: is what a solution ends with the expected answer?

math-verify compares formulas with sympy, which may compute for ever (a tower of
powers is enough) and cannot be interrupted from within. `Comparer` therefore
keeps it in a process of its own, which is killed when it takes too long. What
it cannot equate goes to a judge, since it errs to the side of "different":
answers in words, unusual notation.

    with Comparer(timeout_secs=3.0) as comparer:
      ask_judge = second_opinion(judge.verdict)
      answer = await grade(problem, text, comparer, ask_judge)

Run as a program, this module is the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from qed.grading import rubrics
from qed.types import Grade, Problem

# (problem, expected, given) -> whether they are the same, None if it failed.
AskJudge = Callable[[Problem, str, str], Awaitable[bool | None]]

_BRACES = re.compile(r'\\boxed\s*\{|\\.|[{}]', re.DOTALL)
_STARTUP_SECS = 60.0  # The import of sympy, on a busy machine.
_MAX_BYTES = 4 << 30  # Of the worker's memory.
_READY = 'ready'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
  """What became of a final answer."""

  given: str | None  # As the solution has it; None: no box, or an empty one.
  correct: bool | None  # None: nobody could tell, which is not a wrong answer.
  decided_by: Literal['absence', 'formulas', 'judge', 'nobody']


async def grade(
  problem: Problem,
  text: str,
  comparer: Comparer,
  ask_judge: AskJudge | None,
) -> Answer:
  """Compares the boxed answer at the end of a solution with the expected one.

  Args:
    problem: with the expected answer.
    text: the solution, without its thinking.
    comparer: compares formulas; its verdict "same" is final.
    ask_judge: the second opinion on everything else; None: there is none, and
      formulas that differ are wrong.

  Raises:
    ValueError: the problem has no answer to compare with.
  """
  if not problem.answer:
    raise ValueError(
      f'problem {problem.problem_id!r}: expected an answer to compare with, '
      f'got {problem.answer!r}'
    )
  given = boxed(text)
  if not given:
    return Answer(given=None, correct=False, decided_by='absence')
  same = await asyncio.to_thread(comparer.same, problem.answer, given)
  if same or ask_judge is None:
    by = 'nobody' if same is None else 'formulas'
    return Answer(given=given, correct=same, decided_by=by)
  opinion = await ask_judge(problem, problem.answer, given)
  by = 'nobody' if opinion is None else 'judge'
  return Answer(given=given, correct=opinion, decided_by=by)


def second_opinion(verdict: Callable[..., Awaitable[Grade]]) -> AskJudge:
  """What `grade` asks where formulas do not decide.

  Args:
    verdict: asks a judge a question, as `qed.grading.judge.Judge.verdict`.
  """

  async def ask(problem: Problem, expected: str, given: str) -> bool | None:
    grade = await verdict(
      rubrics.render_answer(problem, expected, given),
      scores=rubrics.SCORES['answer'],
      about=problem.problem_id,
    )
    return None if grade.score is None else bool(grade.score)

  return ask


def boxed(text: str) -> str | None:
  r"""Returns what stands in the last complete \boxed{...} of a text, or None.

  Braces nest, `\{` and `\}` are not braces, and of boxes within each other the
  innermost that is the whole of its surroundings counts.
  """
  boxes: dict[tuple[int, int], tuple[int, int]] = {}  # Whole -> content.
  starts: list[tuple[int, int] | None] = []  # Of open braces; None: no box.
  for token in _BRACES.finditer(text):
    if token[0] == '}':
      start = starts.pop() if starts else None
      if start is not None:
        boxes[start[0], token.end()] = (start[1], token.start())
    elif token[0].startswith('\\boxed'):
      starts.append(token.span())
    elif token[0] == '{':
      starts.append(None)
  content, inside = None, next(reversed(boxes.values()), None)
  while inside is not None:
    content = text[slice(*inside)].strip()
    start = text.index(content, inside[0])
    inside = boxes.get((start, start + len(content)))
  return content


class Comparer:
  """Compares formulas in a worker process that can be killed.

  Calls may come from several threads and wait for each other. The worker starts
  with the object, and again after a kill, without anybody waiting until the
  next call.

  Args:
    timeout_secs: of one comparison.
  """

  def __init__(self, *, timeout_secs: float = 3.0):
    self._timeout_secs = timeout_secs
    self._lock = threading.Lock()
    self._worker = _Worker(timeout_secs)

  def same(self, expected: str, given: str) -> bool | None:
    """Whether two answers in LaTeX are the same mathematical object.

    Returns:
      None where that cannot be told: one of them is no formula, or the
      comparison took too long or too much memory.

    Raises:
      RuntimeError: the worker cannot be started, or the object is closed.
    """
    if _normal(expected) == _normal(given):
      return True
    with self._lock:
      if self._worker is None:
        raise RuntimeError('expected an open comparer, got a closed one')
      try:
        return self._worker.compare(expected, given, self._timeout_secs)
      except (TimeoutError, EOFError, BrokenPipeError):
        self._worker.kill()
        self._worker = _Worker(self._timeout_secs)
        return None

  def close(self) -> None:
    """Ends the worker."""
    with self._lock:
      if self._worker is not None:
        self._worker.kill()
        self._worker = None

  def __enter__(self) -> Comparer:
    return self

  def __exit__(self, *_) -> None:
    self.close()


class _Worker:
  """The process: requests go in as lines of JSON, and verdicts come out."""

  def __init__(self, timeout_secs: float):
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, os.environ.get('PYTHONPATH', '')]
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'qed.grading.answers', str(timeout_secs)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      bufsize=0,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
    )
    self._unread = b''
    self._ready = False

  def compare(
    self, expected: str, given: str, timeout_secs: float
  ) -> bool | None:
    if not self._ready:
      try:
        self._ready = self._line(_STARTUP_SECS) == _READY
      except (TimeoutError, EOFError) as error:
        self.kill()
        raise RuntimeError(
          'the process that compares formulas did not start: '
          f'{error}; its error is above'
        ) from error
    request = json.dumps([expected, given]) + '\n'
    self._process.stdin.write(request.encode())
    return json.loads(self._line(timeout_secs))

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()

  def _line(self, timeout_secs: float) -> str:
    deadline = time.monotonic() + timeout_secs
    while b'\n' not in self._unread:
      left = max(deadline - time.monotonic(), 0)
      if not select.select([self._process.stdout], [], [], left)[0]:
        raise TimeoutError(f'no reply within {timeout_secs} s')
      piece = os.read(self._process.stdout.fileno(), 1 << 16)
      if not piece:
        raise EOFError('the process has ended')
      self._unread += piece
    line, _, self._unread = self._unread.partition(b'\n')
    return line.decode()


def _normal(answer: str) -> str:
  """An answer without dollars around it, on one line."""
  return ' '.join(re.sub(r'^\s*\$+([^$]*)\$+\s*$', r'\1', answer).split())


def _serve(timeout_secs: float) -> None:
  """The worker: a verdict for each line of standard input."""
  # Whatever a library prints must not pass for a verdict.
  verdicts = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit.
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
  import logging

  import math_verify

  logging.disable(logging.CRITICAL)  # It warns that it has no timeout.

  def parse(answer: str) -> list:
    return math_verify.parse(
      f'\\boxed{{{_normal(answer)}}}', parsing_timeout=None
    )

  print(_READY, file=verdicts)
  for line in sys.stdin:
    # Ends this process in the middle of a computation if nobody else does,
    # because the one who asked is gone.
    signal.setitimer(signal.ITIMER_REAL, timeout_secs + 1)
    expected, given = map(parse, json.loads(line))
    same = None
    if expected and given:
      same = bool(math_verify.verify(expected, given, timeout_seconds=None))
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(same), file=verdicts)


if __name__ == '__main__':
  _serve(float(sys.argv[1]))
