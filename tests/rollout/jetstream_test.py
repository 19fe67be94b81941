"""Our engine under JetStream's driver does what it does under our scheduler.

The probe runs in a process of its own: the package wants TensorFlow, and its
threads were made to kill the process that they fail in.
"""

import itertools
import json
import logging
import pathlib
import subprocess

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
PYTHON = REPOSITORY / '.venv-jetstream' / 'bin' / 'python'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope='module')
def report():
  if not PYTHON.exists():
    pytest.skip('google-jetstream is not installed: make test-jetstream')
  done = subprocess.run(
    [PYTHON, '-m', 'tests.rollout.jetstream_probe'],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=280,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4_000:]
  return json.loads(done.stdout.partition('REPORT')[2])


def assert_same(completions, expected):
  assert len(completions) == len(expected)
  for ours, theirs in zip(completions, expected, strict=True):
    assert ours['token_ids'] == theirs['token_ids']
    assert ours['finish_reason'] == theirs['finish_reason']
    np.testing.assert_allclose(
      ours['logprobs'], theirs['logprobs'], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('name', ['greedy', 'sampled', 'third'])
def test_tokens_logprobs_and_reasons_are_those_of_our_scheduler(report, name):
  assert_same(report['jetstream'][name], report['scheduler'][name])
  completions = report['jetstream'][name]
  assert len({tuple(c['token_ids']) for c in completions}) == 12
  reasons = {c['finish_reason'] for c in completions}
  assert reasons == ({'stop', 'length'} if name == 'sampled' else {'length'})
  version = 2 if name == 'third' else 0
  assert {v for c in completions for v in c['versions']} == {version}
  # Other weights, other tokens: the swap did something.
  assert report['jetstream']['third'] != report['jetstream']['greedy']


def test_weights_change_under_running_requests(report):
  swapped = report['jetstream']['swapped']
  assert [len(c['token_ids']) for c in swapped] == [90] * 3
  assert swapped[0]['token_ids'] == swapped[1]['token_ids']
  for completion in swapped:
    versions = completion['versions']
    assert all(a <= b for a, b in itertools.pairwise(versions))
    assert (versions[0], versions[-1]) == (0, 2)
    assert len(versions) == len(completion['logprobs']) == 90
  # Until the first swap it is what the first weights draw.
  num_old = swapped[0]['versions'].count(0)
  alone = report['jetstream']['three'][0]['token_ids']
  shared = min(num_old, len(alone))
  assert shared >= 4
  assert swapped[0]['token_ids'][:shared] == alone[:shared]


def test_a_cancellation_frees_the_slot_for_others(report):
  found = report['jetstream']['cancel']
  assert found['canceled'] == ['abort'] * 6
  assert found['late'] == 'abort'
  assert found['others'] == ['length'] * 2
  assert_same(found['after'], report['scheduler']['cancel']['after'])


def test_every_request_survives_two_failures(report):
  assert report['restarts'] == 2
  assert_same(report['failed'], report['jetstream']['sampled'])


def test_closing_ends_what_is_open(report):
  reason, secs = report['jetstream']['closed']
  assert reason == 'abort'
  assert secs < 10


def test_our_server_runs_on_it(report):
  assert report['served'] == report['jetstream']['three'][0]['token_ids']
  assert 'qed_chunks_total ' in report['metrics']


def test_its_own_server_draws_the_same_greedy_tokens(report):
  expected = report['scheduler']['greedy']
  assert report['by_jetstream'] == [c['token_ids'] for c in expected]


def test_nothing_is_compiled_and_no_logging_is_turned_on(report):
  assert report['compilations'] == 0
  assert report['log_level'] == logging.ERROR
