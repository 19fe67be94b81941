"""How long a step would take: a model of what was counted and compiled.

Memory, bytes and cycles come from the compiled program and FLOPs from the
traced one; what is made of them here is a model that no hardware has confirmed.
It ranks variants; of absolute times expect ± 30 %.
"""

from __future__ import annotations

import dataclasses

from qed.planning import chips
from qed.planning.flops import Flops
from qed.planning.traffic import Traffic


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
  """From collectives hidden behind arithmetic to none of them hidden."""

  low: float
  high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
  """Of one step; seconds and FLOPs are those of one device."""

  model_flops: float  # Needed: exactly causal, nothing recomputed.
  matmul_flops: float
  attention_flops: float
  hbm_bytes: float
  ici_bytes: float
  matmul_secs: float  # At the peak.
  attention_secs: float  # At the chip's assumed part of the peak.
  hbm_secs: float
  ici_secs: float
  cycle_secs: float  # The compiler's estimate of all but kernels.
  ideal_secs: float  # All FLOPs at the peak.
  binds: str  # The resource that takes longest: 'mxu', 'hbm' or 'ici'.
  mfu_bound: float  # Were all FLOPs done at the peak.
  step_secs: Range
  mfu: Range
  tokens_per_sec_per_chip: Range


def estimate(
  *,
  chip: chips.Chip,
  num_devices: int,
  num_tokens: int,
  model_flops: float,
  flops: Flops,
  traffic: Traffic,
) -> Estimate:
  """Combines what is known of a step.

    step = max(cycles / clock, HBM bytes / bandwidth, matmul FLOPs / peak)
           + attention FLOPs / (peak x assumed efficiency)
           + (nothing .. ICI bytes / bandwidth of two links)

  Args:
    chip: what the devices are.
    num_devices: of the mesh.
    num_tokens: of a step, on all devices.
    model_flops: that the step needs, on all devices.
    flops: that it executes, on all devices.
    traffic: of one device.
  """
  matmul, attention = flops.matmul / num_devices, flops.attention / num_devices
  needed = model_flops / num_devices
  secs = {
    'matmul': matmul / chip.peak_flops,
    'attention': attention / (chip.peak_flops * chip.attention_efficiency),
    'hbm': traffic.hbm_bytes / chip.hbm_bytes_per_sec,
    'ici': traffic.ici_bytes / chip.ici_bytes_per_sec,
    'cycle': traffic.cycles / chip.clock_hz,
  }
  busy = {
    'mxu': secs['matmul'] + secs['attention'],
    'hbm': secs['hbm'],
    'ici': secs['ici'],
  }
  hidden = max(secs['cycle'], secs['hbm'], secs['matmul']) + secs['attention']
  step = Range(low=hidden, high=hidden + secs['ici'])
  tokens_per_chip = num_tokens / num_devices * chip.devices_per_chip
  ideal = (matmul + attention) / chip.peak_flops
  return Estimate(
    model_flops=needed,
    matmul_flops=matmul,
    attention_flops=attention,
    hbm_bytes=traffic.hbm_bytes,
    ici_bytes=traffic.ici_bytes,
    **{f'{name}_secs': value for name, value in secs.items()},
    ideal_secs=ideal,
    binds=max(busy, key=busy.__getitem__),
    mfu_bound=needed / (matmul + attention),
    step_secs=step,
    mfu=Range(
      low=needed / chip.peak_flops / step.high,
      high=needed / chip.peak_flops / step.low,
    ),
    tokens_per_sec_per_chip=Range(
      low=tokens_per_chip / step.high, high=tokens_per_chip / step.low
    ),
  )
