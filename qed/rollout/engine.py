"""The engine: prompts in, tokens out, in JetStream's four verbs.

  state = engine.init_state()
  prefix = engine.prefill(params, token_ids)
  state = engine.insert(state, prefix, insertions, pages)    # one into many
  state, chunk = engine.generate(params, state, tables, killed)    # k steps
  engine.read(chunk)

Prefill reads all tokens of a prompt but the last and samples nothing: the last
is read by the first step of `generate`, so that the members of a group draw
different first tokens from one prefix. `generate` takes k steps for all slots;
stop tokens and budgets are decided there, on the device.

Every shape is known beforehand: prompts are padded to buckets, and attention
looks at the smallest bucket of pages that holds the longest live slot. After
`warm_up` nothing is compiled any more; what needs another shape is refused.

Letters: `B` slots, `W` pages of the widest slot, `L` layers, `K` key/value
heads, `H` head size, `V` vocabulary, `k` steps per chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qed.models import specs
from qed.rollout.compiling import Compiler
from qed.rollout.decoding import (
  LENGTH,
  NONE,
  STOP,
  DecodeState,
  Programs,
  Slots,
)
from qed.rollout.layout import (
  MAX_STOP_TOKENS,
  Insertion,
  Layout,
  check_insertions,
  check_mesh,
  checked_prompt,
  checked_tables,
  half_steps,
  make_layout,
  prefill_sizes,
)
from qed.rollout.paged_cache import Entries

__all__ = [
  'LENGTH',
  'MAX_STOP_TOKENS',
  'NONE',
  'STOP',
  'Chunk',
  'DecodeState',
  'Engine',
  'Insertion',
  'Layout',
  'Prefix',
  'make_layout',
]

# Slots that one call to the device fills; more take several calls.
_INSERTIONS_PER_CALL = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
  """A prompt that was read, but for its last token; may be inserted often."""

  entries: Entries  # [L, K, S, X]
  last_token: int
  num_tokens: int  # Of the whole prompt.
  num_pages: int  # That hold what was read.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
  """What k steps gave, on the host; row b is slot b."""

  tokens: np.ndarray  # int32 [B, k]; -1 beyond `count`.
  logprobs: np.ndarray  # float32 [B, k]; NaN beyond `count`.
  count: np.ndarray  # int32 [B]
  done: np.ndarray  # bool [B]
  reason: np.ndarray  # int32 [B]: NONE, STOP or LENGTH.


class Engine:
  """The compiled functions for one model and layout.

  It holds no weights and no state, so that a failure leaves nothing behind.
  Weights may be stored in any way, but it must be the same way in every call.
  """

  def __init__(
    self,
    config: specs.Config,
    layout: Layout,
    *,
    mesh: Mesh | None = None,
    dtype: jnp.dtype = jnp.bfloat16,
  ):
    """Checks that model, layout and mesh fit; compiles nothing yet.

    Args:
      config: the model.
      layout: the sizes.
      mesh: slots and pages are split over `data`, heads over `tensor`; None on
        one device.
      dtype: of the arithmetic.

    Raises:
      ValueError: the mesh does not divide slots, pages or heads.
    """
    self.config, self.layout, self.mesh = config, layout, mesh
    self.dtype = jnp.dtype(dtype)
    self.num_parts = 1 if mesh is None else mesh.shape['data']
    check_mesh(config, layout, mesh)
    device = Programs(config, layout, mesh, self.dtype)
    # The kernel reads what there is, however wide the table.
    self.page_buckets = (
      (layout.max_pages,) if device.is_ragged else half_steps(layout.max_pages)
    )
    self._compiler = Compiler(device)

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far."""
    return self._compiler.num_compilations

  def init_state(self) -> DecodeState:
    """Empty slots and an empty pool."""
    return self._compiler.run('init_state', ())

  def prefill(self, params: Any, token_ids: np.ndarray) -> Prefix:
    """Reads a prompt.

    Args:
      params: the weights.
      token_ids: int [n], n >= 1.

    Raises:
      ValueError: the prompt is empty, has ids outside the vocabulary, or leaves
        no room for a completion.
    """
    *_, prefix = self.prefill_pieces(params, token_ids)
    return prefix

  def prefill_pieces(
    self, params: Any, token_ids: np.ndarray
  ) -> Iterator[Prefix | None]:
    """Reads a prompt piece by piece, so that others need not wait for it.

    Args:
      params: the weights.
      token_ids: int [n], n >= 1.

    Yields:
      None after each piece but the last, which yields the prefix.

    Raises:
      ValueError: as `prefill`.
    """
    token_ids = checked_prompt(self.layout, self.config.vocab_size, token_ids)
    num_read = len(token_ids) - 1
    piece, size = next(
      x for x in prefill_sizes(self.layout) if x[1] >= num_read
    )
    entries = self._compiler.run('empty', (size,))
    for start in range(0, max(num_read, 1), piece):
      length = min(piece, num_read - start)
      padded = np.zeros((1, piece), np.int32)
      padded[0, :length] = token_ids[start : start + length]
      if start:
        yield None
      span = np.array([start, length], np.int32)
      entries = self._compiler.run(
        'prefill', (piece, size), params, entries, padded, span
      )
    yield Prefix(
      entries=entries,
      last_token=int(token_ids[-1]),
      num_tokens=len(token_ids),
      num_pages=-(-num_read // self.layout.page_size),
    )

  def insert(
    self,
    state: DecodeState,
    prefix: Prefix,
    insertions: Sequence[Insertion],
    pages: np.ndarray,
  ) -> DecodeState:
    """Puts one prefix into some slots.

    Args:
      state: donated.
      prefix: as `prefill` made it; it stays valid.
      insertions: one for each slot.
      pages: int [n, prefix.num_pages]: where each slot's copy lies. Rows may
        share pages, but for the last where the prefix does not fill it.

    Returns:
      The state with these slots live.

    Raises:
      ValueError: a request or its pages do not fit.
    """
    pages = np.asarray(pages, np.int32).reshape(len(insertions), -1)
    check_insertions(
      self.layout,
      self.num_parts,
      prefix.num_tokens,
      prefix.num_pages,
      insertions,
      pages,
    )
    targets, first = np.unique(pages, return_index=True)
    sources = first % max(prefix.num_pages, 1)
    size = prefix.entries.k.values.shape[2]
    room = size // self.layout.page_size + _INSERTIONS_PER_CALL
    calls = max(
      -(-len(targets) // room), -(-len(insertions) // _INSERTIONS_PER_CALL)
    )
    for i in range(calls):
      copies = np.full((2, room), self.layout.num_pages, np.int32)
      part = slice(i * room, (i + 1) * room)
      copies[:, : len(targets[part])] = targets[part], sources[part]
      some = insertions[i * _INSERTIONS_PER_CALL :][:_INSERTIONS_PER_CALL]
      rows = self._rows(prefix, some)
      state = self._compiler.run(
        'insert', (size,), state, prefix.entries, copies, rows
      )
    return state

  def generate(
    self,
    params: Any,
    state: DecodeState,
    tables: np.ndarray,
    killed: np.ndarray,
  ) -> tuple[DecodeState, jax.Array]:
    """Draws up to k tokens for every live slot.

    A slot takes part as long as its row of the table has a page for the token
    it reads; without one it waits.

    Args:
      params: the weights; not donated.
      state: donated.
      tables: int32 [B, <= max_pages]: the pages of each slot in order, from
        the left; 0: none.
      killed: bool [B]: slots to clear before the first step.

    Returns:
      (state, chunk for `read`); both may still be being computed.

    Raises:
      ValueError: a table that does not fit.
    """
    tables = checked_tables(
      self.layout, self.num_parts, self.page_buckets, tables
    )
    place = None
    if self.mesh is not None:
      place = NamedSharding(self.mesh, PartitionSpec('data'))
    tables, killed = jax.device_put((tables, np.asarray(killed, bool)), place)
    return self._compiler.run(
      'generate', tables.shape[1:], params, state, tables, killed
    )

  def read(self, chunk: jax.Array) -> Chunk:
    """Waits for a chunk and copies it to the host, once."""
    packed = np.asarray(chunk)
    k = self.layout.steps_per_chunk
    return Chunk(
      tokens=packed[:, :k],
      logprobs=packed[:, k : 2 * k].view(np.float32),
      count=packed[:, 2 * k],
      done=packed[:, 2 * k + 1] != NONE,
      reason=packed[:, 2 * k + 1],
    )

  def warm_up(self, params: Any) -> None:
    """Compiles everything there is; from then on new shapes are refused."""
    state = self.init_state()
    B = self.layout.num_slots
    for _, size in prefill_sizes(self.layout):
      length = min(size + 1, self.layout.max_length - 1)
      prefix = self.prefill(params, np.zeros(length, np.int32))
      room = size // self.layout.page_size + _INSERTIONS_PER_CALL
      nowhere = np.full((2, room), self.layout.num_pages, np.int32)
      state = self._compiler.run(
        'insert', (size,), state, prefix.entries, nowhere,
        self._rows(prefix, ()),
      )  # fmt: skip
    for width in self.page_buckets:
      tables = np.zeros((B, width), np.int32)
      tables[0] = 1
      state, chunk = self.generate(params, state, tables, np.ones(B, bool))
    self.read(chunk)
    self._compiler.close()

  def trace(self, params: Any) -> dict[str, jax.stages.Traced]:
    """The two programs that do the work, at their largest, for a plan.

    Args:
      params: the weights as ShapeDtypeStructs with shardings.

    Returns:
      `prefill` of a longest piece of the longest prompt, and `generate`.
    """
    return self._compiler.trace(params)

  def _rows(self, prefix: Prefix, insertions: Sequence[Insertion]):
    """The slots and their new values, padded to one shape."""
    n = _INSERTIONS_PER_CALL
    which = np.full(n, self.layout.num_slots, np.int32)
    which[: len(insertions)] = [x.slot for x in insertions]
    stops = np.full((n, MAX_STOP_TOKENS), -1, np.int32)
    for row, x in zip(stops, insertions, strict=False):
      row[: len(x.stop_token_ids)] = x.stop_token_ids

    def column(name, dtype):
      values = np.zeros(n, dtype)
      values[: len(insertions)] = [getattr(x, name) for x in insertions]
      return values

    return which, Slots(
      live=np.ones(n, bool),
      tokens=np.full(n, prefix.last_token, np.int32),
      positions=np.full(n, prefix.num_tokens - 1, np.int32),
      seeds=column('seed', np.uint32),
      num_drawn=column('num_drawn', np.int32),
      budgets=column('budget', np.int32),
      temperature=column('temperature', np.float32),
      top_p=column('top_p', np.float32),
      top_k=column('top_k', np.int32),
      stop_tokens=stops,
    )
