"""The losses of a small run, kept from one change of the code to the next."""

import json

import numpy as np
import pytest

from tests.golden import make_sft_curve

ADVICE = (
  'training computes something else than it did; if that is meant, run '
  '`python -m tests.golden.make_sft_curve` and commit the new curve'
)


def golden():
  return np.array(json.loads(make_sft_curve.PATH.read_text()))


def test_thirty_steps_go_as_they_always_went():
  found = np.array(make_sft_curve.run(30))
  deviation = np.abs(found / golden()[:30] - 1).max()
  assert deviation < 1e-3, ADVICE


@pytest.mark.slow
def test_sixty_four_examples_are_learnt_by_heart_as_they_always_were():
  found = np.array(make_sft_curve.run(make_sft_curve.NUM_STEPS))
  # Near zero, other rounding shows: 1 % is 3e-5.
  deviation = np.abs(found - golden()).max()
  assert deviation < 0.01, ADVICE
  assert found[-1] < 0.01
