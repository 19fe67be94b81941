"""What an engine runs on the device: reading prompts, k steps of all slots."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qed.models import attention, qwen3, specs
from qed.rollout import paged_cache, ragged, sampling
from qed.rollout.layout import MAX_STOP_TOKENS, Layout
from qed.rollout.paged_cache import Entries

# Finish reasons in a chunk.
NONE, STOP, LENGTH = 0, 1, 2


class Slots(NamedTuple):
  """What a slot is doing."""

  live: jax.Array  # bool [B]
  tokens: jax.Array  # int32 [B]: read by the next step.
  positions: jax.Array  # int32 [B]: of that token.
  seeds: jax.Array  # uint32 [B]
  num_drawn: jax.Array  # int32 [B]
  budgets: jax.Array  # int32 [B]: tokens that may still be drawn.
  temperature: jax.Array  # float32 [B]
  top_p: jax.Array  # float32 [B]
  top_k: jax.Array  # int32 [B]
  stop_tokens: jax.Array  # int32 [B, MAX_STOP_TOKENS]; -1: none.


class DecodeState(NamedTuple):
  """All that generation carries from chunk to chunk; donated at each call."""

  pool: Entries | ragged.Pool  # [L, P, ...]
  slots: Slots


@dataclasses.dataclass(frozen=True, slots=True)
class Programs:
  """The functions to be compiled for one model, layout and mesh."""

  config: specs.Config
  layout: Layout
  mesh: Mesh | None
  dtype: jnp.dtype

  @property
  def is_ragged(self) -> bool:
    """Whether attention follows the block tables itself."""
    return ragged.is_possible(self.config, self.layout.kv_dtype, self.mesh)

  @property
  def pages(self) -> Any:
    """The module that lays out the pool."""
    return ragged if self.is_ragged else paged_cache

  def init_state(self) -> DecodeState:
    """Empty slots and an empty pool."""
    layout, B = self.layout, self.layout.num_slots
    pool = self.pages.zeros(
      self.config, (layout.num_pages, layout.page_size), layout.kv_dtype
    )
    ints, floats = jnp.zeros(B, jnp.int32), jnp.zeros(B, jnp.float32)
    slots = Slots(
      live=jnp.zeros(B, bool),
      tokens=ints,
      positions=ints,
      seeds=jnp.zeros(B, jnp.uint32),
      num_drawn=ints,
      budgets=ints,
      temperature=floats,
      top_p=floats + 1,
      top_k=ints,
      stop_tokens=jnp.full((B, MAX_STOP_TOKENS), -1, jnp.int32),
    )
    return DecodeState(pool, slots)

  def empty(self, size: int) -> Entries:
    """A prefix of `size` tokens that holds nothing."""
    return paged_cache.zeros(self.config, (size,), self.layout.kv_dtype)

  def prefill(self, params, entries, tokens, span):
    """Reads tokens [1, T] at span = (start, length) into the entries."""
    start, length = span
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = start + steps
    size = entries.k.values.shape[2]
    targets = jnp.where(steps < length, positions, size)

    def attend(layer, q, k, v, cache):
      new = self._store(k[0], v[0])
      cache = jax.tree.map(
        lambda x, y: x.at[layer, :, targets].set(y, mode='drop'), cache, new
      )
      k, v = (
        paged_cache.load(jax.tree.map(lambda x: x[layer], vectors), q.dtype)
        for vectors in cache
      )
      k, v = (jnp.swapaxes(x, 0, 1)[None] for x in (k, v))
      return attention.attend_cache(q, k, v, positions[None]), cache

    return qwen3.read(
      params, tokens, positions[None], entries, attend,
      config=self.config, dtype=self.dtype, mesh=self.mesh,
    )[1]  # fmt: skip

  def _store(self, k, v):
    return Entries(
      *(paged_cache.store(x, self.layout.kv_dtype) for x in (k, v))
    )

  def insert(self, state, prefix, copies, rows):
    """Copies pages [2, M] (to, from) and sets rows (slots [n], values)."""
    pool = self.pages.insert(state.pool, prefix, *copies, self.mesh)
    which, values = rows
    slots = jax.tree.map(
      lambda x, y: x.at[which].set(y, mode='drop'), state.slots, values
    )
    return DecodeState(pool, slots)

  def generate(self, params, state, tables, killed):
    """Takes k steps: the state, and what they gave, int32 [B, 2k + 2]."""
    layout, slots = self.layout, state.slots
    slots = slots._replace(live=slots.live & ~killed)
    # Tokens for which the tables have pages.
    room = jnp.sum(tables > 0, axis=1, dtype=jnp.int32) * layout.page_size
    first = slots.positions
    if self.is_ragged:
      cache, read = state.pool, functools.partial(self._read_pages, tables)
    else:
      cache, read = self._gather(state.pool, tables), self._read_views
      params = qwen3.unstack(params)

    def step(carry, _):
      slots, cache = carry
      active = slots.live & (slots.positions < room)
      hidden, cache, new = read(params, slots, cache, active)
      slots, out = self._draw(params, slots, hidden, active)
      return (slots, cache), (out, new)

    (slots, cache), (outs, new) = jax.lax.scan(
      step, (slots, cache), length=layout.steps_per_chunk
    )
    active, reasons, tokens, logprobs = outs  # [k, B]
    if self.is_ragged:
      pool = cache
    else:
      steps = jnp.arange(layout.steps_per_chunk)[None]
      pool = paged_cache.append(
        state.pool, new, tables, first[:, None] + steps, active.T, self.mesh
      )
    packed = jnp.concatenate(
      [
        tokens.T,
        jax.lax.bitcast_convert_type(logprobs.T, jnp.int32),
        jnp.sum(active, axis=0, dtype=jnp.int32)[:, None],
        jnp.max(reasons, axis=0)[:, None],
      ],
      axis=1,
    )
    return DecodeState(pool, slots), packed

  def _gather(self, pool, tables):
    return paged_cache.gather(pool, tables, self.dtype, self.mesh)

  def _read_pages(self, tables, params, slots, pool, active):
    """Reads a token of each slot: [B, D], the pool, None."""
    positions = slots.positions

    def attend(layer, q, k, v, pool):
      out, pool = ragged.attend(
        pool, layer, q[:, 0], k[:, 0], v[:, 0], tables, positions, active,
        self.mesh,
      )  # fmt: skip
      return out[:, None].astype(q.dtype), pool

    hidden, pool = self._read(params, slots, pool, attend)
    return hidden, pool, None

  def _read(self, params, slots, cache, attend):
    hidden, cache = qwen3.read(
      params, slots.tokens[:, None], slots.positions[:, None], cache, attend,
      config=self.config, dtype=self.dtype, mesh=self.mesh,
    )  # fmt: skip
    return hidden[:, 0], cache

  def _read_views(self, params, slots, views, active):
    """Reads a token of each slot: [B, D], the views, entries [L, B, K, X]."""
    positions = slots.positions
    rows = jnp.arange(positions.shape[0])[:, None]
    size = views[0][0].shape[2]
    targets = jnp.where(active, positions, size)[:, None]
    heads = jnp.arange(self.config.num_key_value_heads)[None]
    views, new = list(views), []

    def attend(layer, q, k, v, cache):
      entries = self._store(k[:, 0], v[:, 0])
      new.append(entries)
      views[layer] = tuple(
        old.at[rows, heads, targets].set(
          paged_cache.load(x, q.dtype), mode='drop'
        )
        for old, x in zip(views[layer], entries, strict=True)
      )
      return attention.attend_heads(q, *views[layer], positions), cache

    hidden, _ = self._read(params, slots, None, attend)
    new = jax.tree.map(lambda *x: jnp.stack(x), *new)
    return hidden, tuple(views), new

  def _draw(self, params, slots, hidden, active):
    """The slots, and (active, reason, token, logprob), [B] each."""
    logits = qwen3.logits(params, hidden, config=self.config, mesh=self.mesh)
    tokens, logprobs = sampling.draw(
      logits,
      sampling.keys(slots.seeds, slots.num_drawn),
      slots.temperature,
      slots.top_p,
      slots.top_k,
    )
    budgets = slots.budgets - 1
    stop = jnp.any(tokens[:, None] == slots.stop_tokens, axis=1)
    reasons = jnp.where(stop, STOP, jnp.where(budgets <= 0, LENGTH, NONE))
    reasons = jnp.where(active, reasons, NONE)

    def advance(new, old):
      return jnp.where(active, new, old)

    slots = slots._replace(
      live=slots.live & (reasons == NONE),
      tokens=advance(tokens, slots.tokens),
      positions=advance(slots.positions + 1, slots.positions),
      num_drawn=advance(slots.num_drawn + 1, slots.num_drawn),
      budgets=advance(budgets, slots.budgets),
    )
    tokens = jnp.where(active, tokens, -1)
    logprobs = jnp.where(active, logprobs, jnp.nan)
    return slots, (active, reasons, tokens, logprobs)
