"""Which pages of the cache are in use, and by how many.

A page that several requests share (a full page of a group's prompt) is counted
once for each of them, and is free again when the last has given it back.
"""

from __future__ import annotations

import numpy as np


class Pages:
  """The pages of one part of the pool; not thread-safe."""

  def __init__(self, first: int, num_pages: int):
    """All of them are free.

    Args:
      first: the number of the first page that may be given out.
      num_pages: how many there are from there on.
    """
    self.capacity = num_pages
    self._first = first
    self._num_users = np.zeros(num_pages, np.int32)
    # Taken from the end: the lowest numbers first.
    self._free = list(range(first + num_pages - 1, first - 1, -1))

  @property
  def num_free(self) -> int:
    """Pages that `take` could give out."""
    return len(self._free)

  def take(self, n: int) -> np.ndarray:
    """Free pages int32 [n], each with one user.

    Raises:
      ValueError: there are not so many.
    """
    if not 0 <= n <= len(self._free):
      raise ValueError(
        f'wanted {n} pages, but {len(self._free)} of {self.capacity} are free'
      )
    start = len(self._free) - n
    pages = np.array(self._free[start:][::-1], np.int32)
    del self._free[start:]
    self._num_users[pages - self._first] = 1
    return pages

  def share(self, pages: np.ndarray) -> None:
    """Counts one more user of pages int [n] that are in use.

    Raises:
      ValueError: one of them is free.
    """
    self._check_in_use(pages)
    self._num_users[pages - self._first] += 1

  def give_back(self, pages: np.ndarray) -> None:
    """Counts one user less of pages int [n], all different.

    Raises:
      ValueError: one of them is free already.
    """
    self._check_in_use(pages)
    index = pages - self._first
    self._num_users[index] -= 1
    self._free += pages[self._num_users[index] == 0].tolist()

  def _check_in_use(self, pages: np.ndarray) -> None:
    index = pages - self._first
    inside = (index >= 0) & (index < self.capacity)
    wrong = ~inside
    wrong[inside] = self._num_users[index[inside]] == 0
    if wrong.any():
      raise ValueError(
        f'pages {pages[wrong].tolist()} are not in use; the pool has '
        f'{self._first} to {self._first + self.capacity - 1}'
      )
