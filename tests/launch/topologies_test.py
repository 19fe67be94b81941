import pathlib
import re

import pytest

from launch import topologies
from launch.experiment import Tpu
from qed.models import specs
from qed.planning import chips

REPOSITORY = pathlib.Path(__file__).parents[2]
ROWS = [
  (model, role, place)
  for model, roles in topologies.TABLE.items()
  for role, places in roles.items()
  for place in places
]
# | SFT, compiled for v5p-64 (`v5p:2x4x4`) | 32x1x1 | 31.9 of 95.7 | ...
README_ROW = re.compile(
  r'\| (SFT|GRPO loss), compiled for (\S+) \(`(\S+)`\) \| (\S+) \| ([^|]+) \|'
)


def read_readme():
  text = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
  rows = README_ROW.findall(text)
  assert len(rows) >= 5
  return rows


def mesh_of(place):
  """Data x context x tensor on all devices of the slice."""
  count = chips.parse_slice(topologies.name_of(place.tpu)).num_devices
  context = place.overrides.get('mesh.context', 1)
  return f'{count // context}x{context}x1'


@pytest.mark.parametrize(
  ('loss', 'product', 'slice_name', 'mesh', 'peak'), read_readme()
)
def test_the_table_agrees_with_what_was_planned(
  loss, product, slice_name, mesh, peak
):
  role = {'SFT': 'sft', 'GRPO loss': 'grpo'}[loss]
  found = {
    topologies.name_of(place.tpu): place
    for place in topologies.TABLE['qwen3-4b-2507'][role]
  }
  if 'does not fit' in peak:
    assert slice_name not in found
    return
  place = found[slice_name]
  assert mesh_of(place) == mesh
  assert place.plan == f'peak {peak}'
  name = topologies.accelerator_type(place.tpu)
  assert name.replace('v5litepod', 'v5e') == product


def test_the_slices_of_samplers_agree_with_what_was_planned():
  text = (REPOSITORY / 'LOG.md').read_text(encoding='utf-8')
  rows = re.findall(r'\| (\S+), tensor=\d \| [^|]+ \| ([\d,]+) \|', text)
  found = topologies.TABLE['qwen3-4b-2507']['sampler']
  assert rows == [
    (topologies.name_of(place.tpu), place.plan.split()[0]) for place in found
  ]


@pytest.mark.parametrize(('model', 'role', 'place'), ROWS)
def test_every_slice_of_the_table_is_one_that_plan_knows(model, role, place):
  assert model in specs.VARIANTS
  found = chips.parse_slice(topologies.name_of(place.tpu))
  num_hosts, chips_per_host = topologies.hosts(place.tpu)
  count = num_hosts * chips_per_host * found.chip.devices_per_chip
  assert count == found.num_devices
  assert role != 'sampler' or num_hosts == 1
  assert place.tpu.generation in topologies.GKE_ACCELERATORS
  assert topologies.parse(topologies.name_of(place.tpu)) == place.tpu


def test_every_generation_that_plan_knows_has_a_name_on_kubernetes():
  assert topologies.GKE_ACCELERATORS.keys() == chips.CHIPS.keys()


def test_the_first_planned_slice_is_taken_where_none_is_named():
  place = topologies.placement('qwen3-4b', 'grpo')
  assert place.tpu == Tpu('v5p', '2x4x4')
  place = topologies.placement('qwen3-4b', 'grpo', 'v6e')
  assert (place.tpu, place.overrides) == (
    Tpu('v6e', '8x8'),
    {'mesh.context': 2},
  )


@pytest.mark.parametrize(
  'wanted',
  [
    ('qwen3-32b', 'sft'),
    ('qwen3-4b', 'judge'),
    ('qwen3-4b', 'grpo', 'v5e'),
  ],
)
def test_what_nobody_has_planned_is_refused(wanted):
  with pytest.raises(ValueError, match=r'sampler on v6e:2x4; .*qed plan'):
    topologies.placement(*wanted)


# cloud.google.com/tpu/docs: the page of each generation.
@pytest.mark.parametrize(
  ('name', 'hosts', 'product'),
  [
    ('v4:2x2x1', (1, 4), 'v4-8'),
    ('v4:2x2x4', (4, 4), 'v4-32'),
    ('v4:4x4x8', (32, 4), 'v4-256'),
    ('v5e:1x1', (1, 1), 'v5litepod-1'),
    ('v5e:2x2', (1, 4), 'v5litepod-4'),
    ('v5e:2x4', (1, 8), 'v5litepod-8'),
    ('v5e:4x4', (4, 4), 'v5litepod-16'),
    ('v5e:4x8', (8, 4), 'v5litepod-32'),
    ('v5e:16x16', (64, 4), 'v5litepod-256'),
    ('v5p:2x2x1', (1, 4), 'v5p-8'),
    ('v5p:2x2x2', (2, 4), 'v5p-16'),
    ('v5p:2x4x4', (8, 4), 'v5p-64'),
    ('v5p:4x4x4', (16, 4), 'v5p-128'),
    ('v6e:2x4', (1, 8), 'v6e-8'),
    ('v6e:8x8', (16, 4), 'v6e-64'),
  ],
)
def test_hosts_and_products(name, hosts, product):
  tpu = topologies.parse(name)
  assert topologies.hosts(tpu) == hosts
  assert topologies.accelerator_type(tpu) == product


@pytest.mark.parametrize('name', ['v5e:1x2', 'v6e:3x3', 'v5p:1x1x4'])
def test_a_slice_that_hosts_cannot_make_up_is_refused(name):
  with pytest.raises(ValueError, match='expected 2x2 on each host'):
    topologies.hosts(topologies.parse(name))


@pytest.mark.parametrize(
  ('name', 'reason'),
  [
    ('v5p:2x2x8', 'not of this shape'),
    ('v5p:4x4x2', 'not of this shape'),
    ('v6e:2x8', 'not of this shape'),
    ('v6e:6x6', 'not of this shape'),
    ('tpu7x:4x4x4', 'through GKE'),
  ],
)
def test_a_slice_without_a_product_is_refused(name, reason):
  with pytest.raises(ValueError, match=reason):
    topologies.accelerator_type(topologies.parse(name))


def test_a_product_in_the_place_of_a_slice_is_explained():
  with pytest.raises(ValueError, match='such as v5p:2x4x4'):
    topologies.parse('v5p-64')
