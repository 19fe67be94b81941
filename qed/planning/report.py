"""What is known of a layout, as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from qed.planning import chips, tables
from qed.planning.compile import Compiled
from qed.planning.flops import Flops
from qed.planning.roofline import Estimate
from qed.planning.search import Layout
from qed.planning.traffic import Traffic


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
  """What all plans of a command are about."""

  program: str
  model: str
  target: chips.Slice
  total_steps: int  # Of the run; 0: not known.
  tokens_per_epoch: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
  """What is known of one layout; of a refused one, only why."""

  layout: Layout
  fault: str = ''  # Why the model cannot be laid out like that.
  compiled: Compiled | None = None
  trace_secs: float = 0.0
  flops: Flops | None = None
  traffic: Traffic | None = None
  estimate: Estimate | None = None

  @property
  def fits(self) -> bool:
    """Whether the compiler took it."""
    return self.estimate is not None

  @property
  def reason(self) -> str:
    """Why it does not fit; '' if it does."""
    if self.fits or self.compiled is None:
      return self.fault
    refusal = self.compiled.refusal
    if not refusal.required:
      return refusal.text
    return (
      f'needs {tables.gib(refusal.required)} of {tables.gib(refusal.available)}'
    )


def best(plans: Sequence[Plan]) -> Plan:
  """The fastest that fits, its collectives exposed; else the first."""
  fitting = [plan for plan in plans if plan.fits]
  if not fitting:
    return plans[0]
  return max(fitting, key=lambda p: p.estimate.tokens_per_sec_per_chip.low)


def ranking(plans: Sequence[Plan], subject: Subject) -> tables.Table:
  """All layouts, the fastest first, those that do not fit last."""
  ranked = sorted(
    plans,
    key=lambda p: -p.estimate.tokens_per_sec_per_chip.low if p.fits else 0,
  )
  return tables.Table(
    title=f'Layouts on {subject.target.name}, the fastest by the model first',
    header=(
      'data x context x tensor',
      'remat',
      'microbatches x rows',
      'peak',
      'tokens/s/chip',
      'MFU',
      'bound by',
    ),
    rows=[_ranking_row(plan) for plan in ranked],
    note=f'the first: {_overrides(ranked[0].layout)}' if ranked[0].fits else '',
  )


def _overrides(layout: Layout) -> str:
  """The flags that give a run this layout."""
  values = {
    'mesh.data': layout.data,
    'mesh.context': layout.context,
    'mesh.tensor': layout.tensor,
    'model.remat': layout.remat,
    'packing.num_rows': layout.num_rows,
    'packing.microbatch_counts': layout.num_microbatches,
  }
  return ' '.join(f'--config.{name}={value}' for name, value in values.items())


def _ranking_row(plan: Plan) -> tuple[str, ...]:
  layout = plan.layout
  row = (
    'x'.join(map(str, layout.mesh)),
    layout.remat,
    f'{layout.num_microbatches} x {layout.num_rows}',
  )
  if not plan.fits:
    return (*row, '', '', '', plan.reason)
  rate, mfu = plan.estimate.tokens_per_sec_per_chip, plan.estimate.mfu
  return (
    *row,
    tables.gib(plan.compiled.memory.peak),
    f'{rate.low:,.0f} .. {rate.high:,.0f}',
    f'{mfu.low:.0%} .. {mfu.high:.0%}',
    plan.estimate.binds,
  )


def details(plan: Plan, subject: Subject) -> list[tables.Table]:
  """All that is known of one plan."""
  title = (
    f'{subject.model}, {subject.program} step on {subject.target.name}: '
    f'{plan.layout}'
  )
  if not plan.fits:
    note = 'try --search, more devices, or fewer rows in a microbatch'
    rows = [('does not fit', plan.reason)]
    return [tables.Table(title=title, rows=rows, note=note)]
  return [
    _memory_table(title, plan, subject.target.chip),
    _work_table(plan),
    _time_table(plan, subject),
  ]


def _memory_table(title: str, plan: Plan, chip: chips.Chip) -> tables.Table:
  compiled, memory = plan.compiled, plan.compiled.memory
  free = 1 - memory.peak / chip.hbm_bytes
  advice = '' if free >= 0.1 else '; keep 10 % for input and the runtime'
  rows = [
    (
      'memory per device',
      tables.gib(memory.peak),
      f'at its peak, of {tables.gib(chip.hbm_bytes)}: {free:.0%} stays free'
      + advice,
    ),
    ('', tables.gib(memory.arguments), 'of it state and batch'),
  ]
  if memory.host:
    rows.append(('', tables.gib(memory.host), 'offloaded to the host'))
  rows.append(
    (
      'compilation',
      f'{compiled.secs:.0f} s',
      f'and {tables.gib(compiled.host_bytes)} here'
      + (', earlier' if compiled.is_cached else '')
      + f'; libtpu {compiled.versions["libtpu"]}',
    )
  )
  return tables.Table(title=f'{title}\n\nFrom the compiler', rows=rows)


def _work_table(plan: Plan) -> tables.Table:
  estimate, traffic = plan.estimate, plan.traffic
  kernels = [
    f'{name} {times:,} times' for name, times in traffic.kernels.items()
  ]
  rows = [
    ('matmuls', tables.amount(estimate.matmul_flops, 'FLOP'), ''),
    (
      'attention',
      tables.amount(estimate.attention_flops, 'FLOP'),
      'in kernels' if kernels else '',
    ),
    *(('', '', kernel) for kernel in kernels),
    (
      'needed of both',
      tables.amount(estimate.model_flops, 'FLOP'),
      'exactly causal, rows of one sample, nothing twice',
    ),
    ('HBM', tables.amount(estimate.hbm_bytes, 'B'), 'read and written'),
    ('network', tables.amount(estimate.ici_bytes, 'B'), 'over two links'),
  ]
  rows += [
    (
      f'  {item.kind} of {item.group_size}',
      tables.amount(size, 'B'),
      item.source[-60:],
    )
    for item, size in list(traffic.collectives.items())[:10]
    if size >= 0.01 * estimate.ici_bytes
  ]
  missing = {*plan.flops.uncounted, *traffic.unknown_loops}
  note = f'not counted in full: {", ".join(sorted(missing))}' if missing else ''
  title = 'Counted, per device and step'
  return tables.Table(title=title, rows=rows, note=note)


def _time_table(plan: Plan, subject: Subject) -> tables.Table:
  estimate, chip = plan.estimate, subject.target.chip
  step, mfu = estimate.step_secs, estimate.mfu
  rate = estimate.tokens_per_sec_per_chip
  rows = [
    ('matmuls', tables.secs(estimate.matmul_secs), 'at the peak'),
    (
      'attention',
      tables.secs(estimate.attention_secs),
      f'at {chip.attention_efficiency:.0%} of the peak: assumed',
    ),
    ('HBM', tables.secs(estimate.hbm_secs), ''),
    ('network', tables.secs(estimate.ici_secs), ''),
    (
      'all but kernels',
      tables.secs(estimate.cycle_secs),
      "by the compiler's estimate of cycles",
    ),
    ('bound by', estimate.binds, ''),
    ('step', f'{step.low:.2f} .. {step.high:.2f} s', 'network hidden .. not'),
    (
      'MFU',
      f'{mfu.low:.1%} .. {mfu.high:.1%}',
      f'at most {estimate.mfu_bound:.1%}, were all FLOPs done at the peak',
    ),
    ('tokens/s/chip', f'{rate.low:,.0f} .. {rate.high:,.0f}', ''),
  ]
  target = subject.target
  num_chips = target.num_devices // chip.devices_per_chip
  if subject.tokens_per_epoch:
    low, high = (
      subject.tokens_per_epoch / (value * num_chips) / 3600
      for value in (rate.high, rate.low)
    )
    rows.append(('epoch', f'{low:.2f} .. {high:.2f} h', 'with full rows'))
  if subject.total_steps:
    low, high = (
      subject.total_steps * value / 3600 for value in (step.low, step.high)
    )
    rows.append(
      (
        'run',
        f'{low:.2f} .. {high:.2f} h',
        f'{subject.total_steps:,} steps, nothing between them',
      )
    )
  title = 'Modelled, ± 30 %: for ranking, not a promise'
  return tables.Table(title=title, rows=rows)


def as_json(plans: Sequence[Plan], subject: Subject) -> dict[str, Any]:
  """Everything; bytes, FLOPs and seconds are those of one device and step."""
  return {
    'program': subject.program,
    'model': subject.model,
    'topology': subject.target.name,
    'num_devices': subject.target.num_devices,
    'hbm_limit_bytes': subject.target.chip.hbm_bytes,
    'best': plans.index(best(plans)),
    'plans': [_plan_as_json(plan) for plan in plans],
  }


def _plan_as_json(plan: Plan) -> dict[str, Any]:
  values: dict[str, Any] = {
    'layout': dataclasses.asdict(plan.layout),
    'fits': plan.fits,
    'reason': plan.reason,
    'trace_secs': plan.trace_secs,
  }
  if plan.compiled:
    values['compiled'] = dataclasses.asdict(plan.compiled)
    del values['compiled']['hlo']
  if plan.fits:
    values['uncounted'] = sorted(plan.flops.uncounted)
    values['estimate'] = dataclasses.asdict(plan.estimate)
    values['traffic'] = {
      'collectives': [
        {**item._asdict(), 'ici_bytes': size}
        for item, size in plan.traffic.collectives.items()
      ],
      'kernels': plan.traffic.kernels,
      'unknown_loops': plan.traffic.unknown_loops,
    }
  return values
