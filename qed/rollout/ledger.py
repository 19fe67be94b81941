"""Where every generated token went.

  generated = trained + stale + dropped + in flight

A token counts as generated once its rollout is on file (rollouts.jsonl; a turn
of a reasoning cache: states.jsonl), so that the book and the files can be held
against each other. In flight is what no step has used or refused yet. It is not
computed from the other four but counted by whoever holds the rollouts, which is
what makes the equation a check.
"""

from __future__ import annotations

import dataclasses
from typing import Any


class LedgerError(AssertionError):
  """Tokens appeared from nowhere, or went missing: a bug of the loop."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Ledger:
  """The book of a run; numbers of tokens."""

  generated: int = 0
  trained: int = 0
  stale: int = 0  # Older than the lag allows when its turn came.
  # Reason -> tokens: 'invalid' (no reward), 'zero_signal', 'masked', 'restart'
  # (drawn by weights that were lost with the steps since a checkpoint),
  # 'unrolling' (turns that lead to a state, and their summaries).
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)

  def drop(self, reason: str, num_tokens: int) -> None:
    """Books tokens that nobody will train on."""
    if num_tokens:
      self.dropped[reason] = self.dropped.get(reason, 0) + num_tokens

  @property
  def num_dropped(self) -> int:
    """For all reasons together."""
    return sum(self.dropped.values())

  def check(self, in_flight: int) -> None:
    """Compares the book with what is really in flight.

    Raises:
      LedgerError: it does not close.
    """
    known = self.trained + self.stale + self.num_dropped + in_flight
    if known != self.generated or min(self.trained, self.stale, in_flight) < 0:
      raise LedgerError(
        f'expected the {self.generated} generated tokens to be trained '
        f'({self.trained}), stale ({self.stale}), dropped ({self.dropped}) or '
        f'in flight ({in_flight}), which are {known}'
      )

  def as_json(self, in_flight: int) -> dict[str, Any]:
    """The content of ledger.json, which closes.

    Raises:
      LedgerError: it does not.
    """
    self.check(in_flight)
    return {**dataclasses.asdict(self), 'in_flight': in_flight}
