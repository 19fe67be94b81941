import pytest

from qed.planning import chips
from qed.training import metrics


def test_a_slice_is_a_generation_and_a_shape():
  parsed = chips.parse_slice('v5p:2x4x4')
  assert parsed.generation == 'v5p'
  assert parsed.shape == (2, 4, 4)
  assert parsed.name == 'v5p:2x4x4'
  assert parsed.num_devices == 32


def test_a_tpu7x_chip_is_two_devices():
  assert chips.parse_slice('tpu7x:2x2x2').num_devices == 16


@pytest.mark.parametrize(
  ('product', 'meant'),
  [
    ('v6e-256', 'v6e:16x16 (256 chips)'),
    ('v5litepod-16', 'v5e:4x4 (16 chips)'),
    ('v5e-8', 'v5e:2x4 (8 chips)'),
    ('v5p-64', 'v5p:2x4x4 (32 chips, since v5p-64 counts cores)'),
    ('v5p-8', 'v5p:2x2x1 (4 chips, since v5p-8 counts cores)'),
    ('v4-128', 'v4:4x4x4 (64 chips, since v4-128 counts cores)'),
  ],
)
def test_a_product_name_is_answered_with_its_slice(product, meant):
  with pytest.raises(ValueError, match='name of a product') as error:
    chips.parse_slice(product)
  assert f'such as {meant}' in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v5p:4x4', 'a 3-D torus; expected v5p:AxBxC'),
    ('v5e:2x2x2', 'a 2-D torus; expected v5e:AxB'),
    ('v5e:4x0', 'expected v5e:AxB'),
    ('v5p-60', 'expected v5p:AxBxC'),
    ('h100:8', 'one of v4, v5e, v5p, v6e, tpu7x'),
    ('', 'expected a slice such as'),
  ],
)
def test_other_names_are_refused_with_what_is_accepted(text, message):
  with pytest.raises(ValueError, match='expected') as error:
    chips.parse_slice(text)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('generation', 'kind'),
  [
    ('v5e', 'TPU v5 lite'),
    ('v5p', 'TPU v5'),
    ('v6e', 'TPU v6 lite'),
    ('tpu7x', 'TPU7x'),
  ],
)
def test_a_run_and_a_plan_agree_on_the_peak(generation, kind):
  assert chips.CHIPS[generation].peak_flops == metrics.PEAK_FLOPS[kind]
