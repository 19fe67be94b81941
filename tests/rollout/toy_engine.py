"""An engine without a device, whose tokens anybody can check.

It keeps the contract of `rollout.engine` to the letter: a pool of pages behind
block tables, states that may be used once, slots that wait for a page. What it
draws is a hash of all that stands in the pages of the request, of its seed, of
the number of tokens drawn and of the weights. So a page that is shared,
freed or filled wrongly changes the tokens, and so does a wrong slot or count.

The weights are {'salt': int [1]}.
"""

import dataclasses
import time
import types

import numpy as np

from qed.rollout import engine as engines

VOCAB_SIZE = 97
_MODULUS = np.int64(2**31 - 1)
_WEIGHTS = np.random.default_rng(0).integers(1, _MODULUS, 4096)


def params(salt):
  return {'salt': np.array([salt], np.int64)}


def entry(token, salt):
  """What the cache holds of a token; never 0."""
  return np.int64(token) * 1009 + np.int64(salt) * 7 + 1


def score(entries, seed, num_drawn, salt):
  """A hash of a whole context; entries int64 [n]."""
  hashed = entries * _WEIGHTS[: len(entries)] % _MODULUS
  total = hashed.sum() + seed * 7919 + num_drawn * 104729 + salt * 611953
  return int(total * 48271 % _MODULUS)


def token_of(hashed):
  return hashed // 7 % VOCAB_SIZE


def logprob_of(hashed):
  return np.float32(-(hashed % 10007 + 1) / 1000)


def complete(prompt, sampling, salts, prefix_salt=None):
  """What a request draws alone, under a salt for each token."""
  prefix_salt = salts[0] if prefix_salt is None else prefix_salt
  entries = [entry(x, prefix_salt) for x in prompt[:-1]]
  last, tokens, logprobs = prompt[-1], [], []
  for i in range(sampling.max_tokens):
    entries.append(entry(last, salts[i]))
    hashed = score(np.array(entries), sampling.seed, i, int(salts[i]))
    last = token_of(hashed)
    tokens.append(last)
    logprobs.append(logprob_of(hashed))
    if last in sampling.stop_token_ids:
      return tokens, logprobs, 'stop'
  return tokens, logprobs, 'length'


@dataclasses.dataclass
class State:
  pool: np.ndarray  # int64 [num_pages, page_size]
  slots: list  # dict or None, by slot
  is_valid: bool = True


class ToyEngine:
  """Call `before(operation, number of the call, details)` may raise."""

  def __init__(self, layout, *, before=None, chunk_secs=0.0, num_parts=1):
    self.layout, self.num_parts = layout, num_parts
    self.config = types.SimpleNamespace(vocab_size=VOCAB_SIZE)
    self.num_compilations = 0
    self.calls = {}
    self.before = before or (lambda operation, call, details: None)
    self.chunk_secs, self._ready = chunk_secs, 0.0
    self.log = []

  def _call(self, operation, details=None):
    self.calls[operation] = self.calls.get(operation, 0) + 1
    self.log.append(operation)
    self.before(operation, self.calls[operation], details)

  def _use(self, state):
    assert state.is_valid, 'this state was donated'
    state.is_valid = False
    return State(state.pool, state.slots)

  def init_state(self):
    self._call('init_state')
    shape = self.layout.num_pages, self.layout.page_size
    return State(np.zeros(shape, np.int64), [None] * self.layout.num_slots)

  def prefill_pieces(self, params, token_ids):
    self._call('prefill', token_ids)
    ids, piece = np.asarray(token_ids), self.layout.prefill_buckets[-1]
    entries = np.zeros(0, np.int64)
    for start in range(0, max(len(ids) - 1, 1), piece):
      self._call('piece')
      some = ids[:-1][start : start + piece]
      entries = np.append(entries, entry(some, params['salt'][0]))
      if start + piece < len(ids) - 1:
        yield None
    yield engines.Prefix(
      entries=(self.calls['init_state'], entries),
      last_token=int(ids[-1]),
      num_tokens=len(ids),
      num_pages=-(-len(entries) // self.layout.page_size),
    )

  def insert(self, state, prefix, insertions, pages):
    self._call('insert', insertions)
    assert len(insertions) > 0
    state = self._use(state)
    size = self.layout.page_size
    born, entries = prefix.entries
    assert born == self.calls['init_state'], 'read before a failure'
    padded = np.zeros(prefix.num_pages * size, np.int64)
    padded[: len(entries)] = entries
    assert pages.shape == (len(insertions), prefix.num_pages)
    for x, row in zip(insertions, pages, strict=True):
      self._check_pages(x.slot, row)
      state.pool[row] = padded.reshape(-1, size)
      assert prefix.num_tokens + x.budget <= self.layout.max_length
      state.slots[x.slot] = {
        'token': prefix.last_token,
        'position': prefix.num_tokens - 1,
        'num_drawn': x.num_drawn,
        'budget': x.budget,
        'x': x,
      }
    return state

  def generate(self, params, state, tables, killed):
    live = [s for s, slot in enumerate(state.slots) if slot and not killed[s]]
    self._call('generate', [state.slots[s]['x'] for s in live])
    state = self._use(state)
    B, k = self.layout.num_slots, self.layout.steps_per_chunk
    assert tables.shape[0] == B
    chunk = engines.Chunk(
      tokens=np.full((B, k), -1, np.int32),
      logprobs=np.full((B, k), np.nan, np.float32),
      count=np.zeros(B, np.int32),
      done=np.zeros(B, bool),
      reason=np.zeros(B, np.int32),
    )
    for s in range(B):
      if killed[s]:
        state.slots[s] = None
      if state.slots[s]:
        assert tables[s].any(), f'slot {s} is live, but nobody has it'
        self._check_pages(s, tables[s][tables[s] > 0])
        self._steps(params, state, s, tables[s], chunk)
    self._ready = max(self._ready, time.monotonic()) + self.chunk_secs
    return state, (chunk, self._ready)

  def read(self, device_chunk):
    self._call('read')
    chunk, ready = device_chunk
    time.sleep(max(ready - time.monotonic(), 0.0))
    return chunk

  def _steps(self, params, state, s, table, chunk):
    slot, size = state.slots[s], self.layout.page_size
    salt = int(params['salt'][0])
    room = np.count_nonzero(table) * size
    for i in range(chunk.tokens.shape[1]):
      position = slot['position']
      if position >= room:
        return  # It waits for a page.
      page = table[position // size]
      state.pool[page, position % size] = entry(slot['token'], salt)
      entries = state.pool[table[: position // size + 1]].reshape(-1)
      hashed = score(
        entries[: position + 1], slot['x'].seed, slot['num_drawn'], salt
      )
      chunk.tokens[s, i] = slot['token'] = token_of(hashed)
      chunk.logprobs[s, i] = logprob_of(hashed)
      chunk.count[s] += 1
      slot['position'] += 1
      slot['num_drawn'] += 1
      slot['budget'] -= 1
      if slot['token'] in slot['x'].stop_token_ids:
        chunk.reason[s] = engines.STOP
      elif slot['budget'] == 0:
        chunk.reason[s] = engines.LENGTH
      if chunk.reason[s]:
        chunk.done[s] = True
        state.slots[s] = None
        return

  def _check_pages(self, slot, pages):
    part = slot // (self.layout.num_slots // self.num_parts)
    size = self.layout.num_pages // self.num_parts
    assert ((pages > part * size) & (pages < (part + 1) * size)).all()
