"""Memory traffic, collectives and estimated cycles of a compiled TPU program.

XLA's `cost_analysis` visits a loop's body once and counts prefetches into VMEM
as traffic. Here the text of the program is walked: loops are multiplied out,
and only main memory counts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from typing import NamedTuple

from qed.planning import hlo
from qed.planning.hlo import Array, Computation, Instruction

_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Names and views. The ends of asynchronous pairs are left out as well: their
# starts count.
_FREE = frozenset(
  {
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
  }
)
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Collective(NamedTuple):
  """Data that one device exchanges with the others of its group."""

  kind: str
  group_size: int
  source: str  # Where it comes from in the traced program.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
  """What one device does in one run of the program."""

  hbm_bytes: float
  ici_bytes: float  # Through the two links of a ring: see `_ring_bytes`.
  cycles: float  # The compiler's estimate, kernels and collectives left out.
  collectives: dict[Collective, float]  # ici_bytes of each, the largest first.
  kernels: dict[str, int]  # Pallas kernels -> how often each runs.
  # Loops whose length could not be read, which count as one iteration.
  unknown_loops: tuple[str, ...]


def read(text: str, *, longest_ring: int) -> Traffic:
  """Reads `compiled.as_text()`.

  Args:
    text: the program.
    longest_ring: chips along the longest dimension of the torus.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry = hlo.parse(text)
  walk = _Walk(computations, longest_ring)
  walk.visit(entry, 1)
  ranked = sorted(walk.collectives.items(), key=lambda item: -item[1])
  return Traffic(
    hbm_bytes=walk.hbm_bytes,
    ici_bytes=sum(walk.collectives.values()),
    cycles=walk.cycles,
    collectives=dict(ranked),
    kernels=dict(walk.kernels),
    unknown_loops=tuple(walk.unknown_loops),
  )


class _Walk:
  """Adds up what the computations that it visits do."""

  def __init__(self, computations: dict[str, Computation], longest_ring: int):
    self._computations = computations
    self._longest_ring = longest_ring
    self.hbm_bytes = self.cycles = 0.0
    self.collectives: dict[Collective, float] = collections.Counter()
    self.kernels: dict[str, int] = collections.Counter()
    self.unknown_loops: list[str] = []

  def visit(self, name: str, times: int) -> None:
    """Adds a computation that runs so many times."""
    caller = self._computations[name]
    for instruction in caller.values():
      opcode, called = instruction.opcode, hlo.called(instruction)
      if opcode in _FREE or opcode.endswith('-done'):
        continue
      if opcode == 'while':
        length = hlo.trip_count(self._computations, caller, instruction)
        if length is None:
          self.unknown_loops.append(instruction.name)
        self.visit(called['body'], times * (1 if length is None else length))
      elif opcode == 'call':
        self.visit(called['to_apply'], times)
      elif opcode == 'conditional':
        for branch in hlo.branches(instruction):
          self.visit(branch, times)
      else:
        self._add(caller, instruction, times)

  def _add(
    self, caller: Computation, instruction: Instruction, times: int
  ) -> None:
    """Adds an instruction that computes or moves data."""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    if cycles:
      self.cycles += times * int(cycles[1])
    if _is_kernel(instruction):
      self.kernels[instruction.name.partition('.')[0]] += times
    self.hbm_bytes += times * self._hbm_bytes(caller, instruction)
    if _is_collective(instruction):
      self._exchange(caller, instruction, times)
    if instruction.opcode != 'fusion':
      return
    body = self._computations[hlo.called(instruction)['calls']]
    scatters = 'calls=%all-reduce-scatter' in instruction.attributes
    for inner in body.values():
      # Every fusion from the start to the end of an overlapped collective
      # repeats it, with the same chain_id.
      if _is_collective(inner) and (_starts(body) or not _is_link(inner)):
        self._exchange(body, inner, times, scatters=scatters)

  def _exchange(
    self,
    caller: Computation,
    instruction: Instruction,
    times: int,
    *,
    scatters: bool = False,
  ) -> None:
    """Adds a collective to the network's."""
    kind = instruction.opcode.removesuffix('-start')
    if scatters and kind == 'all-reduce':
      kind = 'reduce-scatter'
    size = sum(_size(caller[name].arrays) for name in instruction.operands)
    group = _group_size(instruction.attributes)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    key = Collective(kind, group, source[1] if source else instruction.name)
    num_bytes = _ring_bytes(kind, size, group, self._longest_ring)
    self.collectives[key] += times * num_bytes

  def _hbm_bytes(self, caller: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction reads from and writes to main memory."""
    opcode, result = instruction.opcode, instruction.arrays
    operands = [caller[name].arrays for name in instruction.operands]
    if opcode == 'custom-call' and not _is_kernel(instruction):
      return 0  # Buffers and views.
    if opcode == 'fusion':
      return self._hbm_bytes_of_fusion(operands, instruction)
    if opcode in ('copy-start', 'slice-start'):
      # (target, source, flag) and ((source), target, flag): as much is read as
      # is written, wherever the two are.
      moved = result[opcode == 'slice-start']
      return moved.num_bytes * (operands[0][0].in_hbm + moved.in_hbm)
    if opcode in _SLICES:
      return _size(result) * operands[0][0].in_hbm + _in_hbm(result)
    if opcode == 'dynamic-update-slice':
      return _in_hbm(operands[1]) + _size(operands[1]) * result[0].in_hbm
    if opcode.endswith('-start'):  # (operands, results, flags)
      result = result[len(operands) : 2 * len(operands)]
    return _in_hbm(result) + sum(map(_in_hbm, operands))

  def _hbm_bytes_of_fusion(
    self, operands: list[tuple[Array, ...]], instruction: Instruction
  ) -> int:
    """Slices that a fusion reads or replaces count by their own size."""
    name = hlo.called(instruction)['calls']
    body = self._computations[name]
    total = 0.0
    for parameter, arrays in zip(hlo.parameters(body), operands, strict=True):
      part = math.inf if _starts(body) else self._part_read(name, parameter)
      total += min(_in_hbm(arrays), part)
    aliased = _aliased(instruction)
    parts = self._parts_written(name, len(instruction.arrays))
    for index, (array, part) in enumerate(
      zip(instruction.arrays, parts, strict=True)
    ):
      is_view = part == math.inf and (index in aliased or -1 in aliased)
      total += 0 if is_view else min(_in_hbm((array,)), part)
    return int(total)

  @functools.cache  # noqa: B019 - lives as long as one reading of a program.
  def _part_read(self, computation: str, name: str) -> float:
    """How many bytes of a value the computation reads; infinity: all."""
    total = 0.0
    for user in self._computations[computation].values():
      if name not in user.operands or _is_link(user) or user.opcode == 'tuple':
        continue
      if user.opcode in _SLICES and user.operands[0] == name:
        total += _size(user.arrays)
      elif user.opcode in ('bitcast', 'copy'):
        total += self._part_read(computation, user.name)
      elif user.opcode == 'fusion':
        called = hlo.called(user)['calls']
        parameters = hlo.parameters(self._computations[called])
        total += sum(
          self._part_read(called, parameter)
          for parameter, operand in zip(parameters, user.operands, strict=True)
          if operand == name
        )
      elif user.opcode != 'dynamic-update-slice' or user.operands[0] != name:
        return math.inf
    return total

  def _parts_written(self, computation: str, num_results: int) -> list[float]:
    """How many bytes of each result are written; infinity: all."""
    body = self._computations[computation]
    last = hlo.root(body)
    if last.opcode == 'tuple':
      return [self._part_written(computation, name) for name in last.operands]
    if num_results > 1:
      return [math.inf] * num_results
    return [self._part_written(computation, last.name)]

  def _part_written(self, computation: str, name: str) -> float:
    body = self._computations[computation]
    made = hlo.behind_copies(body, name)
    if made.opcode == 'dynamic-update-slice':
      return _size(body[made.operands[1]].arrays)
    if made.opcode == 'fusion' and len(made.arrays) == 1:
      return self._parts_written(hlo.called(made)['calls'], 1)[0]
    # A parameter that goes straight through is not written.
    return 0 if made.opcode == 'parameter' else math.inf


def _size(arrays: tuple[Array, ...]) -> int:
  return sum(array.num_bytes for array in arrays)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
  return sum(array.num_bytes for array in arrays if array.in_hbm)


def _is_kernel(instruction: Instruction) -> bool:
  return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _is_collective(instruction: Instruction) -> bool:
  return instruction.opcode.removesuffix('-start') in _COLLECTIVES


def _is_link(instruction: Instruction) -> bool:
  """Whether it belongs to a collective that overlaps other work."""
  return (
    _is_collective(instruction) and 'chain_id=' in instruction.attributes
  ) or '="AsyncCollective' in instruction.attributes


def _starts(body: Computation) -> bool:
  """Whether such a collective begins here."""
  return any('="AsyncCollectiveStart"' in i.attributes for i in body.values())


def _aliased(instruction: Instruction) -> set[int]:
  """The results that share the memory of an operand; -1: the only one."""
  # {{2}: (0, {}), {3}: (1, {})} or {{}: (1, {})}
  _, _, text = instruction.attributes.partition('to_operand_aliasing=')
  listed = re.split(r', (?:calls|kind)=', text)[0]
  return {int(index or -1) for index in re.findall(r'\{(\d*)\}: \(', listed)}


def _group_size(attributes: str) -> int:
  """How many devices take part in one exchange."""
  # mesh['axis_0'=4,'axis_1'=8] {'axis_1'}
  named = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes)
  if named:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
    return math.prod(int(part or sizes[axis]) for axis, part in parts)
  # {{0,1},{2,3}}
  listed = re.search(
    r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', attributes
  )
  if listed:
    return len(listed[1].split(','))
  # [4,2]<=[8]: four groups of two.
  iota = re.search(r'replica_groups=\[\d+,(\d+)\]<=', attributes)
  return int(iota[1]) if iota else 1


def _ring_bytes(
  kind: str, operand_bytes: int, group: int, longest_ring: int
) -> float:
  """What each chip of a ring of `group` sends over its two links together.

  A gather passes every part but one through each chip, and so does a scatter;
  a reduction is both. In an all-to-all over a ring of n chips a part travels
  n / 4 links on average; a larger group spans several dimensions of the torus,
  whose links share the work, and the longest decides.
  """
  if group <= 1:
    return 0.0
  others = (group - 1) / group
  return (
    operand_bytes
    * {
      'all-gather': group - 1,
      'reduce-scatter': others,
      'all-reduce': 2 * others,
      'all-to-all': max(min(group, longest_ring) / 4, others),
      'ragged-all-to-all': max(min(group, longest_ring) / 4, others),
      'collective-permute': 1,
      'collective-broadcast': 1,
    }[kind]
  )
