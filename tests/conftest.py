"""Eight simulated CPU devices and strict promotion, before jax is imported."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ['HF_HUB_OFFLINE'] = '1'

import pathlib

import pytest

pytest.register_assert_rewrite('tests.grpo_rig')  # It has asserts of its own.

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def shared_data() -> pathlib.Path:
  """The folder of real input beside the repository, or a skip."""
  path = REPOSITORY.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip(f'real input is not beside the repository: {path}')
  return path
