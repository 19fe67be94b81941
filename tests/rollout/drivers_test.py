"""The config's word for what drives the engine."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from qed.rollout import drivers, scheduler
from tests.rollout import toy_engine
from tests.rollout.scheduler_test import SECS, layout, sampling


def test_our_scheduler_draws_with_the_weights_and_version_given():
  engine = toy_engine.ToyEngine(layout())
  with drivers.start(
    'scheduler', engine, toy_engine.params(3), version=7
  ) as driver:
    assert isinstance(driver, scheduler.Scheduler)
    got = driver.submit(np.arange(4), sampling(5)).result(SECS)
  expected, *_ = toy_engine.complete(np.arange(4), sampling(5), [3] * 5)
  assert got.token_ids.tolist() == expected
  assert got.versions.tolist() == [7] * 5


def test_jetstream_gets_the_same(monkeypatch):
  given = []
  stand_in = types.SimpleNamespace(
    Orchestrator=lambda *args, **named: given.append((args, named))
  )
  name = 'qed.rollout.jetstream_scheduler'
  monkeypatch.setitem(sys.modules, name, stand_in)
  monkeypatch.setattr(
    'qed.rollout.jetstream_scheduler', stand_in, raising=False
  )
  drivers.start('jetstream', 'an engine', 'weights', version=7)
  assert given == [(('an engine', 'weights'), {'version': 7})]


@pytest.mark.skipif(
  importlib.util.find_spec('jetstream') is not None,
  reason='google-jetstream is installed',
)
def test_a_package_that_is_not_there_is_named():
  with pytest.raises(ImportError, match="No module named 'jetstream'"):
    drivers.start('jetstream', 'an engine', 'weights')
