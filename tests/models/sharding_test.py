"""Meshes and the table of where weights live."""

import jax
import pytest

from qed.models import sharding, specs
from tests.models.qwen3_test import small


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, -1), (1, 4, 2)),
    ((1, 1, 1), (1, 1, 1)),
    ((2, 1, 2), (2, 1, 2)),
  ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, expected):
  mesh = sharding.make_mesh(*sizes)
  assert mesh.axis_names == ('data', 'context', 'tensor')
  assert mesh.devices.shape == expected


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((3, -1, 1), 'does not fit 8 devices'),
    ((4, 2, 2), 'does not fit 8 devices'),
    ((-1, -1, 1), 'at most one may be -1'),
    ((0, 1, 1), 'sizes must be positive'),
  ],
)
def test_a_mesh_that_does_not_fit_says_so(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(*sizes)


def test_a_size_that_the_mesh_does_not_divide_is_named():
  config = small(num_key_value_heads=2, intermediate_size=50)
  mesh = sharding.make_mesh(2, 1, 4)
  with pytest.raises(ValueError, match=r'layers\.k: kv_heads=2 over'):
    sharding.param_shardings(config, mesh)
  with pytest.raises(ValueError, match=r'layers\.up: mlp=50 over'):
    sharding.param_shardings(config, mesh)


def test_a_weight_at_rest_is_divided_by_its_declared_axes():
  config = small()
  mesh = sharding.make_mesh(2, 2, 2)
  places = sharding.param_shardings(config, mesh)
  shard = places['layers']['q'].shard_shape(
    specs.declare(config)['layers']['q'].shape
  )
  assert shard == (2, 4, 16, 8)  # [L, N / tensor, H, D / (data context)].
  assert places['final_norm'].is_fully_replicated


def test_the_platform_is_that_of_the_mesh():
  assert sharding.platform(None) == jax.default_backend()
  assert sharding.platform(sharding.make_mesh()) == 'cpu'
