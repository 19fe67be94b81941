import dataclasses

import pytest

from qed.planning import chips, roofline
from qed.planning.flops import Flops
from qed.planning.traffic import Traffic

# 100 FLOP/s, 10 B/s of HBM, 5 B/s of network, 20 cycles/s.
CHIP = chips.Chip(
  peak_flops=100.0,
  hbm_bytes_per_sec=10.0,
  ici_bytes_per_sec=5.0,
  hbm_bytes=1_000,
  clock_hz=20.0,
  attention_efficiency=0.5,
  num_dimensions=2,
)


def estimate(*, hbm_bytes=10.0, ici_bytes=5.0, cycles=80.0, chip=CHIP):
  return roofline.estimate(
    chip=chip,
    num_devices=4,
    num_tokens=400,
    model_flops=1_200.0,
    flops=Flops(matmul=1_200.0, attention=800.0),
    traffic=Traffic(
      hbm_bytes=hbm_bytes,
      ici_bytes=ici_bytes,
      cycles=cycles,
      collectives={},
      kernels={},
      unknown_loops=(),
    ),
  )


def test_a_step_is_its_slowest_part_and_attention_and_some_of_the_network():
  # Of a device: 300 FLOP of matmuls in 3 s, 200 of attention in 2 / 0.5 s,
  # 1 s of HBM, 1 s of network, 4 s of cycles.
  found = estimate()
  assert found.matmul_secs == pytest.approx(3)
  assert found.attention_secs == pytest.approx(4)
  assert found.hbm_secs == pytest.approx(1)
  assert found.ici_secs == pytest.approx(1)
  assert found.cycle_secs == pytest.approx(4)
  assert found.step_secs.low == pytest.approx(4 + 4)
  assert found.step_secs.high == pytest.approx(4 + 4 + 1)
  assert found.ideal_secs == pytest.approx(5)


def test_mfu_is_what_is_needed_over_what_the_peak_could_do():
  found = estimate()
  assert found.mfu_bound == pytest.approx(1_200 / 2_000)
  assert found.mfu.high == pytest.approx(300 / (100 * 8))
  assert found.mfu.low == pytest.approx(300 / (100 * 9))


def test_tokens_are_counted_per_chip_which_may_be_two_devices():
  assert estimate().tokens_per_sec_per_chip.high == pytest.approx(100 / 8)
  both = dataclasses.replace(CHIP, devices_per_chip=2)
  rate = estimate(chip=both).tokens_per_sec_per_chip
  assert rate.low == pytest.approx(200 / 9)


@pytest.mark.parametrize(
  ('changes', 'resource'),
  [({}, 'mxu'), ({'hbm_bytes': 71.0}, 'hbm'), ({'ici_bytes': 36.0}, 'ici')],
)
def test_the_resource_that_takes_longest_binds(changes, resource):
  assert estimate(**changes).binds == resource


def test_too_much_traffic_hides_the_compilers_cycles():
  assert estimate(hbm_bytes=90.0).step_secs.low == pytest.approx(9 + 4)
