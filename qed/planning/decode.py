"""How many requests a slice can serve at once, and how fast it could draw.

The compiler says what the two programs of an engine, prefill and generate, need
beside the weights and the cache; what is left of the memory is pages. The time
of a step is that of reading the weights and what the live slots remember, which
is what bounds decoding; the network's part is counted in the compiled program.
No hardware has confirmed it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qed.models import specs
from qed.planning import chips, tables
from qed.planning.compile import Compiled

# Of a chip's memory, left to input, output and the runtime.
HEADROOM = 0.1
_KV_BYTES = {'bfloat16': 2, 'float32': 4, 'int8': 1}
_SCALE_BYTES = 4  # Of a vector in int8.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
  """What is served, and how it is laid out."""

  model: specs.Config
  target: chips.Slice
  data: int  # Parts that slots and pages are split into.
  tensor: int  # Parts that heads are split into.
  num_slots: int
  page_size: int  # Tokens.
  num_pages: int  # Over the whole mesh; the first of each part is not used.
  max_length: int  # Prompt and completion of one request together.
  steps_per_chunk: int
  kv_dtype: str
  weight_bytes: int  # As one device holds them.
  prefix_bytes: int  # Of the longest prompt, as one device holds it.
  element_bytes: int  # Of a weight.

  @property
  def pages_per_part(self) -> int:
    """Pages of one part that are given out."""
    return self.num_pages // self.data - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
  """What the memory of one device holds."""

  working_bytes: int  # Of the program that needs more, beside its arguments.
  pool_bytes: int  # Of the pages that were asked for.
  free_bytes: int  # Beside all of it and the headroom; negative: too much.
  num_pages: int  # That there is room for, over the whole mesh.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
  """Decoding with every live slot at one length."""

  live_length: int  # Tokens that each slot holds.
  num_live: int  # Slots that the pages of the layout hold.
  num_possible: int  # Slots that all pages that fit would hold.
  hbm_secs: float  # A step.
  ici_secs: float  # A step.
  tokens_per_sec: float  # Were memory all that it waits for.
  tokens_per_sec_exposed: float  # Were the network's part not hidden at all.


def kv_bytes_per_token(model: specs.Config, kv_dtype: str) -> int:
  """Bytes that the cache takes for one token, on all devices together."""
  vector = model.head_dim * _KV_BYTES[kv_dtype]
  vector += _SCALE_BYTES * (kv_dtype == 'int8')
  return 2 * model.num_hidden_layers * model.num_key_value_heads * vector


def weight_bytes_per_step(model: specs.Config, element_bytes: int) -> int:
  """Bytes of weights that a step reads, once for each part of the slots.

  All but an untied embedding, of which it takes a row for each slot.
  """
  embedding = model.vocab_size * model.hidden_size
  unread = 0 if model.tie_word_embeddings else embedding
  return (model.num_params - unread) * element_bytes


def fit(service: Service, prefill: Compiled, generate: Compiled) -> Fit:
  """What is left for pages.

    headroom + 2 weights + prefix + working memory + pages <= memory

  The weights count twice, since new ones arrive while the old ones draw, and a
  prompt is read in pieces between chunks, so that its prefix and the pool exist
  together.

  Args:
    service: its layout is what was compiled.
    prefill: a program that the compiler took.
    generate: likewise.
  """
  working = max(
    program.memory.peak - program.memory.arguments
    for program in (prefill, generate)
  )
  # As the compiler lays them out; it pads small dimensions.
  pool = generate.memory.arguments - service.weight_bytes
  page = pool / (service.num_pages / service.data)
  taken = 2 * service.weight_bytes + service.prefix_bytes + working
  room = service.target.chip.hbm_bytes * (1 - HEADROOM) - taken
  return Fit(
    working_bytes=working,
    pool_bytes=pool,
    free_bytes=int(room - pool),
    num_pages=max(0, int(room // page)) * service.data,
  )


def rate(
  service: Service, found: Fit, live_length: int, ici_bytes_per_chunk: float
) -> Rate:
  """How fast slots of one length could draw.

  Args:
    service: what is served.
    found: what fits.
    live_length: tokens that each slot holds, 1 .. max_length.
    ici_bytes_per_chunk: that a device moves in one run of generate.

  Raises:
    ValueError: another length.
  """
  if not 1 <= live_length <= service.max_length:
    raise ValueError(
      f'live_length must be from 1 to max_length = {service.max_length}, got '
      f'{live_length}'
    )
  each = math.ceil(live_length / service.page_size)
  in_part = min(
    service.num_slots // service.data, service.pages_per_part // each
  )
  possible = max(0, found.num_pages // service.data - 1) // each
  chip = service.target.chip
  weights = weight_bytes_per_step(service.model, service.element_bytes)
  token = kv_bytes_per_token(service.model, service.kv_dtype)
  read = (weights + in_part * live_length * token) / service.tensor
  hbm_secs = read / chip.hbm_bytes_per_sec
  ici_secs = (
    ici_bytes_per_chunk / service.steps_per_chunk / chip.ici_bytes_per_sec
  )
  num_live = in_part * service.data
  return Rate(
    live_length=live_length,
    num_live=num_live,
    num_possible=possible * service.data,
    hbm_secs=hbm_secs,
    ici_secs=ici_secs,
    tokens_per_sec=num_live / hbm_secs,
    tokens_per_sec_exposed=num_live / (hbm_secs + ici_secs),
  )


def lengths(max_length: int) -> list[int]:
  """Live lengths worth a line: powers of four from 1,024, and the longest."""
  return [
    *(x for x in (4**power for power in range(5, 16)) if x < max_length),
    max_length,
  ]


def show(
  service: Service,
  name: str,
  programs: Mapping[str, Compiled],
  found: Fit | None,
  rates: Sequence[Rate],
) -> list[tables.Table]:
  """All of it as tables.

  Args:
    service: what is served.
    name: of the model.
    programs: 'prefill' and 'generate'.
    found: what fits; None where the compiler refused a program.
    rates: by live length.
  """
  title = (
    f'{name}, decoding on {service.target.name}: mesh '
    f'{service.data}x1x{service.tensor}, {service.num_slots} slots, '
    f'{service.num_pages:,} pages of {service.page_size} tokens, '
    f'{service.kv_dtype}'
  )
  shown = [_programs_table(title, programs)]
  if found:
    shown += [_memory_table(service, found), _rates_table(service, rates)]
  return shown


def _programs_table(
  title: str, programs: Mapping[str, Compiled]
) -> tables.Table:
  rows = []
  for name, program in programs.items():
    if program.refusal:
      numbers = ('does not fit', '', '', f'{program.secs:.0f} s')
      rows.append((name, *numbers, program.refusal.text))
      continue
    memory = program.memory
    rows.append(
      (
        name,
        tables.gib(memory.peak),
        tables.gib(memory.arguments),
        tables.gib(memory.peak - memory.arguments),
        f'{program.secs:.0f} s',
        'earlier' if program.is_cached else '',
      )
    )
  return tables.Table(
    title=f'{title}\n\nFrom the compiler, per device',
    header=('program', 'peak', 'arguments', 'beside them', 'compiled in', ''),
    rows=rows,
    note=_advice(programs),
  )


def _advice(programs: Mapping[str, Compiled]) -> str:
  """What to change where a program was refused."""
  refused = [x.refusal.text for x in programs.values() if x.refusal]
  if any('vmem' in text.lower() for text in refused):
    # Not the memory that pages take: that of the kernel's blocks.
    return (
      'the pages that attention reads at once exceed the memory beside the '
      'matrix units: raise sampler.tensor or halve engine.page_size'
    )
  if refused:
    return 'lower engine.num_pages or engine.num_slots, or raise sampler.tensor'
  return ''


def _memory_table(service: Service, found: Fit) -> tables.Table:
  token = kv_bytes_per_token(service.model, service.kv_dtype)
  memory = service.target.chip.hbm_bytes
  rows = [
    ('memory', tables.gib(memory), ''),
    ('headroom', tables.gib(HEADROOM * memory), 'for the runtime'),
    ('weights', tables.gib(2 * service.weight_bytes), 'twice, for a swap'),
    ('prefix', tables.gib(service.prefix_bytes), 'of the longest prompt'),
    ('working memory', tables.gib(found.working_bytes), ''),
    (
      'cache',
      tables.gib(found.pool_bytes),
      f'{service.num_pages // service.data:,} pages; a token is {token:,} '
      f'bytes over tensor={service.tensor}',
    ),
    (
      'left',
      tables.gib(found.free_bytes),
      f'num_pages may be {found.num_pages:,}'
      + ('' if found.free_bytes >= 0 else ': less than was asked for'),
    ),
  ]
  return tables.Table(title='Memory per device', rows=rows)


def _rates_table(service: Service, rates: Sequence[Rate]) -> tables.Table:
  num_chips = service.target.num_devices // service.target.chip.devices_per_chip
  return tables.Table(
    title='Modelled: what reading weights and cache bounds, network apart',
    header=(
      'tokens in a slot',
      'slots at work',
      'slots that fit',
      'memory',
      'network',
      'tokens/s',
      'tokens/s/chip',
    ),
    rows=[
      (
        f'{rate.live_length:,}',
        f'{rate.num_live:,}',
        f'{rate.num_possible:,}',
        tables.secs(rate.hbm_secs),
        tables.secs(rate.ici_secs),
        f'{rate.tokens_per_sec_exposed:,.0f} .. {rate.tokens_per_sec:,.0f}',
        f'{rate.tokens_per_sec_exposed / num_chips:,.0f} .. '
        f'{rate.tokens_per_sec / num_chips:,.0f}',
      )
      for rate in rates
    ],
    note='times are those of a step; network not hidden .. hidden',
  )


def as_json(
  service: Service,
  programs: Mapping[str, Compiled],
  found: Fit | None,
  rates: Sequence[Rate],
) -> dict[str, Any]:
  """All of it; bytes and seconds are those of one device and step."""
  values = dataclasses.asdict(service)
  values['topology'] = service.target.name
  del values['target'], values['model']
  compiled = {
    name: dataclasses.asdict(program) for name, program in programs.items()
  }
  for program in compiled.values():
    del program['hlo']
  return {
    'program': 'decode',
    'service': values,
    'kv_bytes_per_token': kv_bytes_per_token(service.model, service.kv_dtype),
    'programs': compiled,
    'fit': found and dataclasses.asdict(found),
    'rates': [dataclasses.asdict(rate) for rate in rates],
  }
