"""The ledger closes, or says that it does not."""

import pytest

from qed.rollout.ledger import Ledger, LedgerError


def test_a_ledger_closes_when_every_token_went_somewhere():
  ledger = Ledger(generated=31, trained=1, stale=2)
  ledger.drop('invalid', 3)
  ledger.drop('invalid', 1)
  ledger.drop('restart', 8)
  ledger.drop('masked', 0)
  assert ledger.as_json(in_flight=16) == {
    'generated': 31,
    'trained': 1,
    'stale': 2,
    'dropped': {'invalid': 4, 'restart': 8},
    'in_flight': 16,
  }


@pytest.mark.parametrize('in_flight', [15, 17, -1])
def test_a_token_too_many_or_too_few_is_an_error(in_flight):
  ledger = Ledger(generated=16)
  with pytest.raises(LedgerError, match='16 generated tokens'):
    ledger.check(in_flight)


def test_negative_numbers_do_not_make_up_for_others():
  with pytest.raises(LedgerError):
    Ledger(generated=1, trained=-1, stale=2).check(0)
