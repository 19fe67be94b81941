"""Waiting for an endpoint that is away, however long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from qed.llm import wire
from qed.llm.http import Failure

_Result = TypeVar('_Result')

_FIRST_WAIT_SECS, _MAX_WAIT_SECS = 1.0, 30.0


async def until_answered(
  call: Callable[[], Awaitable[_Result]], *, who: str
) -> _Result:
  """Makes a call again and again, and tells of each time that it failed.

  Args:
    call: makes it, with all of the endpoint's `max_attempts`.
    who: the lines say that it is who does not answer.

  Raises:
    Failure: the request is refused, and would be every time.
  """
  wait_secs = _FIRST_WAIT_SECS
  while True:
    try:
      return await call()
    except Failure as error:
      if error.kind in wire.HOPELESS:
        raise
      print(f'{who}: {error}; trying again', flush=True)
    await asyncio.sleep(wait_secs)
    wait_secs = min(2 * wait_secs, _MAX_WAIT_SECS)
