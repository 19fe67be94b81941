"""FLOPs of a traced step, counted from its jaxpr.

XLA's own count visits the body of a loop once and sees nothing in a Pallas
kernel, so that it misses 95 % of a training step. Here loops are multiplied
out and kernels are counted by name and shape. Only products of matrices count,
which is what a peak is quoted for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from jax.extend import core

# Kernel name up to its variant -> products of [T, S] x [S, H] per head:
# scores and values; scores, two products for their gradient and dq; the same
# and dk, dv.
_SPLASH_PRODUCTS = {
  'splash_mha_fwd': 2,
  'splash_mha_dq': 3,
  'splash_mha_dkv': 4,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
  """FLOPs of all devices together."""

  matmul: float = 0.0
  attention: float = 0.0  # In Pallas kernels.
  # What is missing: kernels of other names, and loops whose length depends on
  # data, which count as one iteration.
  uncounted: frozenset[str] = frozenset()

  @property
  def total(self) -> float:
    """Of matmuls and attention."""
    return self.matmul + self.attention

  def __add__(self, other: Flops) -> Flops:
    return Flops(
      matmul=self.matmul + other.matmul,
      attention=self.attention + other.attention,
      uncounted=self.uncounted | other.uncounted,
    )

  def times(self, factor: int) -> Flops:
    """Of so many repetitions."""
    return dataclasses.replace(
      self, matmul=self.matmul * factor, attention=self.attention * factor
    )


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> Flops:
  """Counts what the results of a jaxpr need.

  A `scan` counts as often as it runs, a `shard_map` over a whole mesh once per
  device, of a `cond` the most expensive branch. What nothing depends on is left
  out, as the compiler leaves it out: a differentiated `jax.checkpoint` keeps
  the forward kernel in its jaxpr, even where its results were saved.

  Args:
    jaxpr: such as `jax.jit(f).trace(...).jaxpr`.
  """
  jaxpr = _open(jaxpr)
  return _count(jaxpr, [True] * len(jaxpr.outvars))[0]


def _count(
  jaxpr: core.Jaxpr, wanted: Sequence[bool]
) -> tuple[Flops, list[bool]]:
  """Counts for the wanted outputs; also says which inputs they need."""
  needed = {
    variable
    for variable, is_wanted in zip(jaxpr.outvars, wanted, strict=True)
    if is_wanted and not isinstance(variable, core.Literal)
  }
  total = Flops()
  for equation in reversed(jaxpr.eqns):
    results = [variable in needed for variable in equation.outvars]
    if not any(results) and not equation.effects:
      continue
    flops, reads = _count_equation(equation, results)
    total += flops
    needed |= {
      variable
      for variable, is_read in zip(equation.invars, reads, strict=True)
      if is_read and not isinstance(variable, core.Literal)
    }
  return total, [variable in needed for variable in jaxpr.invars]


def _count_equation(
  equation: core.JaxprEqn, wanted: Sequence[bool]
) -> tuple[Flops, list[bool]]:
  """`_count` of one equation."""
  params, name = equation.params, equation.primitive.name
  everything = [True] * len(equation.invars)
  if name == 'dot_general':
    return Flops(matmul=_dot_flops(equation)), everything
  if name == 'pallas_call':
    return _kernel_flops(equation), everything
  if name == 'scan':
    return _count_scan(equation, wanted)
  inner = list(_jaxprs(tuple(params.values())))
  if name == 'cond':
    counts = [_count(branch, wanted)[0] for branch in inner]
    return max(counts, key=lambda flops: flops.total), everything
  if name == 'while':
    total = sum((count(jaxpr) for jaxpr in inner), Flops())
    loops = frozenset({'while'} if total.total else ())
    return total + Flops(uncounted=loops), everything
  if len(inner) != 1 or len(inner[0].invars) != len(everything):
    return sum((count(jaxpr) for jaxpr in inner), Flops()), everything
  # A call: its arguments and results are those of its jaxpr.
  total, reads = _count(inner[0], wanted)
  if name == 'shard_map':
    total = total.times(params['mesh'].size)
  return total, reads


def _count_scan(
  equation: core.JaxprEqn, wanted: Sequence[bool]
) -> tuple[Flops, list[bool]]:
  """`_count` of a loop whose length is known."""
  body = _open(equation.params['jaxpr'])
  # What is divided among iterations, or stacked, has an axis more outside. The
  # parameters say it, too, but in other words from jax to jax.
  num_stacked = _num_with_more_axes(equation.outvars, body.outvars)
  num_carry = len(body.outvars) - num_stacked
  num_divided = _num_with_more_axes(equation.invars, body.invars)
  num_consts = len(body.invars) - num_divided - num_carry
  wanted = list(wanted)
  while True:
    total, reads = _count(body, wanted)
    # What an iteration reads of the carry, the one before has to make.
    carry = [
      a or b
      for a, b in zip(
        wanted[:num_carry], reads[num_consts:][:num_carry], strict=True
      )
    ]
    if carry == wanted[:num_carry]:
      return total.times(equation.params['length']), reads
    wanted[:num_carry] = carry


def _num_with_more_axes(outside, inside) -> int:
  return sum(
    a.aval.ndim > b.aval.ndim for a, b in zip(outside, inside, strict=True)
  )


def _dot_flops(equation: core.JaxprEqn) -> float:
  """Two for each multiplication: the left side times the right's free axes."""
  (_, contracted), (_, batch) = equation.params['dimension_numbers']
  left, right = (variable.aval.shape for variable in equation.invars[:2])
  free = set(range(len(right))) - {*contracted, *batch}
  return 2.0 * math.prod(left) * math.prod(right[axis] for axis in free)


def _kernel_flops(equation: core.JaxprEqn) -> Flops:
  """Of splash attention under a causal mask, which is how the model calls it.

  Blocks above the diagonal are skipped and blocks on it are computed whole;
  where one sample ends and the next begins changes nothing.
  """
  kernel = equation.params['name']
  products = [
    number
    for prefix, number in _SPLASH_PRODUCTS.items()
    if kernel.startswith(prefix)
  ]
  if not products:
    return Flops(uncounted=frozenset({kernel}))
  # Queries [(B,) N, T, H] are the first operand that is not an int.
  shapes = [
    variable.aval.shape
    for variable in equation.invars
    if variable.aval.dtype.kind not in 'iu'
  ]
  *rows_and_heads, length, head_size = shapes[0]
  num_blocks = equation.params['grid_mapping'].grid[-1]
  pairs = length * length * (num_blocks + 1) / (2 * num_blocks)
  heads = math.prod(rows_and_heads)
  return Flops(attention=products[0] * 2.0 * heads * head_size * pairs)


def _open(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _jaxprs(value: object) -> Iterator[core.Jaxpr]:
  """The jaxprs in an equation's parameters."""
  if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
    yield _open(value)
  elif isinstance(value, (tuple, list)):
    for item in value:
      yield from _jaxprs(item)
