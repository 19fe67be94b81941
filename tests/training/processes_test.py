"""What the loss of another process looks like, and what does not."""

import jax
import pytest

from qed.training import processes

GLOO = (
  'UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/'
  'pair.cc:547] Connection closed by peer [127.0.0.1]:53889'
)


@pytest.mark.parametrize(
  'text',
  [
    GLOO,
    'DEADLINE_EXCEEDED: Barrier timed out. Id: checkpoints',
    'UNAVAILABLE: Failed to send RPC to coordination service.',
  ],
)
def test_a_collective_without_its_peer_is_a_loss(monkeypatch, text):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert processes.is_loss(ValueError(text))
  error = OSError('step 4 was not saved')
  error.__cause__ = ValueError(text)
  assert processes.is_loss(error)


@pytest.mark.parametrize(
  'text',
  [
    'RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes',
    'packing.row_length: expected at least 512, got 256',
    'step 4 was not saved in runs/rl/checkpoints (No space left on device)',
  ],
)
def test_what_is_the_fault_of_this_process_is_none(monkeypatch, text):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert not processes.is_loss(ValueError(text))


def test_one_process_has_nobody_to_lose():
  assert not processes.is_loss(ValueError(GLOO))
