"""The text of a compiled TPU program: computations, instructions, arrays.

It is the optimised and scheduled program of one device, as
`jax.stages.Compiled.as_text` returns it.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_BITS = {'pred': 8, 'bf16': 16, 'token': 0, 'opaque': 0}


class Array(NamedTuple):
  """One array of a shape."""

  num_bytes: int
  in_hbm: bool


class Instruction(NamedTuple):
  """A line of a computation."""

  name: str
  arrays: tuple[Array, ...]  # Of its result.
  opcode: str
  operands: tuple[str, ...]
  attributes: str  # What follows the operands.
  is_root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """The computations by name, and the name of the first to run.

  Raises:
    ValueError: there is none to begin with.
  """
  computations: dict[str, Computation] = {}
  entry, current = '', None
  for line in text.splitlines():
    header = re.match(r'(ENTRY )?%([^ ]+) \(.*\{$', line)
    if header:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif line == '}':
      current = None
    elif current is not None:
      # A kernel's metadata goes over several lines; the first has all we need.
      instruction = _parse_instruction(line)
      if instruction:
        current[instruction.name] = instruction
  if not entry:
    raise ValueError(
      'expected the text of an HLO module with an ENTRY computation, got '
      f'{text[:80]!r}'
    )
  return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
  head = re.match(r'  (ROOT )?%([^ ]+) = ', line)
  if not head:
    return None
  rest = re.sub(r'/\*index=\d+\*/', '', line[head.end() :])
  end = _closing(rest, 0) + 1 if rest[0] == '(' else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  begin = rest.index('(')
  end = _closing(rest, begin)
  return Instruction(
    name=head[2],
    arrays=_arrays(shape),
    opcode=rest[:begin],
    operands=tuple(re.findall(r'%([^\s,()]+)', rest[begin:end])),
    attributes=rest[begin:],
    is_root=bool(head[1]),
  )


def _closing(text: str, begin: int) -> int:
  """The index of the bracket that closes the one at `begin`."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, begin):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.start()
  raise ValueError(f'unbalanced brackets in HLO: {text[:80]!r}')


def _arrays(shape: str) -> tuple[Array, ...]:
  """Every array of a shape; tiles are not padded."""

  def array(kind, sizes, layout):
    bits = _BITS.get(kind) if kind in _BITS else int(re.search(r'\d+', kind)[0])
    count = math.prod(int(size) for size in sizes.split(',') if size)
    # S(1) is VMEM, S(5) the host; the others are smaller still.
    return Array(count * bits // 8, 'S(' not in layout)

  return tuple(
    array(*match)
    for match in re.findall(r'(\w+)\[([\d,]*)\]((?:\{[^}]*\})?)', shape)
  )


def called(instruction: Instruction) -> dict[str, str]:
  """The computations that an instruction names, by role."""
  return dict(
    re.findall(
      r'\b(calls|body|condition|to_apply)=%([^\s,]+)', instruction.attributes
    )
  )


def branches(instruction: Instruction) -> list[str]:
  """The computations of a conditional."""
  listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
  text = listed[1] if listed else instruction.attributes
  pattern = r'%([^\s,]+)' if listed else r'_computation=%([^\s,]+)'
  return re.findall(pattern, text)


def root(body: Computation) -> Instruction:
  """The instruction whose result is the computation's."""
  return next(i for i in body.values() if i.is_root)


def parameters(body: Computation) -> list[str]:
  """The names of the parameters, in order."""
  numbered = {
    int(re.match(r'\((\d+)', i.attributes)[1]): i.name
    for i in body.values()
    if i.opcode == 'parameter'
  }
  return [numbered[index] for index in sorted(numbered)]


def trip_count(
  computations: dict[str, Computation],
  caller: Computation,
  loop: Instruction,
) -> int | None:
  """How often a while loop of `caller` runs; None if that is not constant.

  The condition compares an element of the loop's state with a limit, which is
  a constant or another element. Length is (limit - first value) / step.
  """
  condition = computations[called(loop)['condition']]
  start = caller[loop.operands[0]]
  compare = root(condition)
  counter = first = limit = None
  for name in compare.operands:
    made = condition[name]
    if made.opcode == 'constant':
      limit = _constant(made)
    elif made.opcode == 'get-tuple-element':
      index = int(re.search(r'index=(\d+)', made.attributes)[1])
      value = _first_value(caller, start, index)
      if counter is None:
        counter, first = index, value
      else:
        limit = value
  if compare.opcode != 'compare' or None in (counter, first, limit):
    return None
  step = _step(computations[called(loop)['body']], counter)
  return max(0, math.ceil((limit - first) / step))


def behind_copies(body: Computation, name: str) -> Instruction:
  """What made a value, behind copies and views of it."""
  made = body[name]
  while made.opcode in ('copy', 'bitcast'):
    made = body[made.operands[0]]
  return made


def _constant(instruction: Instruction) -> int | None:
  match = re.match(r'\((-?\d+)\)', instruction.attributes)
  return int(match[1]) if match else None


def _first_value(
  caller: Computation, start: Instruction, index: int
) -> int | None:
  """The value with which an element of a loop's state begins, if constant."""
  if start.opcode != 'tuple':
    return None
  made = behind_copies(caller, start.operands[index])
  return _constant(made) if made.opcode == 'constant' else None


def _step(body: Computation, counter: int) -> int:
  """What an iteration adds to the counter."""
  last = root(body)
  if last.opcode == 'tuple':
    made = behind_copies(body, last.operands[counter])
    for name in made.operands if made.opcode == 'add' else ():
      if body[name].opcode == 'constant':
        return _constant(body[name]) or 1
  return 1
