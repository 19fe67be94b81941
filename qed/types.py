"""Every record that crosses a module boundary.

A frozen dataclass is a host record: ragged, serialisable, made of Python and
numpy values. A NamedTuple is a device pytree: rectangular arrays whose shapes
stand in the annotations. `B` rows, `T` tokens per row, `L` layers, `S` cache
length, `K` key/value heads, `H` head size.

Conventions, stated here once:

1. Everything per token is aligned with `targets`: index t of any field is about
   `targets[t]`, which `logits[t]` predicts.
2. A log-probability is a natural log in float32 of the token that was drawn,
   under softmax(logits / temperature), with no top-k or top-p renormalisation;
   the same on both sides. A missing log-probability is NaN, never 0.0.
3. Training uses the sampled token ids, never re-encoded text. A prompt's ids
   are stored with it.
4. A loss is a masked sum over tokens divided by one scalar taken over the whole
   global batch, so that packing, microbatches and sharding cannot change it.
5. A policy version is the optimiser step that made the weights; every token
   carries the version that drew it. Lag is the trainer's step minus the oldest
   version in a sample. Nothing is dispatched that could exceed `max_lag` by
   plan, and nothing older is trained on (dropped, counted in the ledger).
6. A grade that failed is not a score of 0: its rollout is invalid, takes no
   part in the baseline, and is masked out of the loss. A group with fewer
   than two valid rollouts is dropped and counted.
7. Truncation is the engine's finish reason, never a search for EOS in the ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Role = Literal['system', 'user', 'assistant']
PromptKind = Literal['plain', 'cached', 'guided']
FinishReason = Literal['stop', 'length', 'abort', 'error']
GradeStatus = Literal['ok', 'unparseable', 'refused', 'unreachable']

# Device arrays are jax.Array; the host never needs to import jax for them.
Array = Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
  """One turn of a conversation."""

  role: Role
  content: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
  """An item to be solved, with what is needed to grade a solution of it."""

  problem_id: str
  statement: str
  rubric: str | None = None  # A marking scheme whose points add up to 7.
  reference: str | None = None  # A correct proof.
  answer: str | None = None  # The short final answer, where there is one.
  source: str = ''
  difficulty: float | None = None  # Mean reward of the base model, 0..1.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
  """What the model is given; the ids are the truth, the messages their story.

  `kind`: 'plain' poses the problem alone, 'cached' adds a summary of earlier
  reasoning, 'guided' adds the beginning of a reference proof. `turn` counts
  reasoning-cache turns from 0.
  """

  problem_id: str
  messages: tuple[Message, ...]
  # int32 [num_prompt_tokens]; empty for an endpoint that is sent the messages.
  token_ids: np.ndarray
  kind: PromptKind = 'plain'
  turn: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
  """How tokens are drawn: softmax(logits / temperature), then truncation."""

  temperature: float  # 0 means greedy.
  top_p: float  # 1.0 keeps every token.
  top_k: int  # 0 keeps every token.
  max_tokens: int  # Of the completion.
  stop_token_ids: tuple[int, ...]
  seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
  """What the model wrote; the three arrays have one entry per token."""

  token_ids: np.ndarray  # int32 [n], with the stop token where there was one.
  logprobs: np.ndarray  # float32 [n], of the behavior policy.
  versions: np.ndarray  # int32 [n], of the weights that drew each token.
  text: str
  finish_reason: FinishReason
  # Of an endpoint that tells no ids, for which the arrays are empty:
  # 'prompt_tokens', 'completion_tokens', 'reasoning_tokens'. Else None: count
  # the ids.
  usage: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
  """A judge's verdict; `score` is None unless `status` is 'ok'."""

  score: int | None  # 0..7
  status: GradeStatus
  feedback: str
  judge: str
  usage: Mapping[str, int]  # 'prompt_tokens', 'completion_tokens', 'calls'.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
  """One graded completion; a reward of None makes it invalid."""

  prompt: Prompt
  completion: Completion
  grade: Grade
  reward: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
  """All rollouts of one prompt: the unit that an advantage is taken over."""

  group_id: int
  rollouts: tuple[Rollout, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
  """A reasoning-cache state: the summary that turn `turn` starts from."""

  problem: Problem
  turn: int
  summary: str  # Empty at turn 0.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
  """A token sequence ready for packing.

  The arrays have one entry per token of `token_ids`; packing moves them onto
  targets. A sample of supervised fine-tuning has no behavior log-probs (None),
  versions or advantage.

  Example, a prompt of two tokens and a completion of two:
    token_ids          [5, 6, 7, 8]
    loss_mask          [F, F, T, T]    the policy wrote 7 and 8
    behavior_logprobs  [nan, nan, -0.3, -1.2]
  """

  token_ids: np.ndarray  # int32 [n]
  loss_mask: np.ndarray  # bool [n]
  behavior_logprobs: np.ndarray | None = None  # float32 [n]
  versions: np.ndarray | None = None  # int32 [n]
  advantage: float | None = None
  group_id: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
  """What a scaffold returns for one attempt at one problem."""

  problem_id: str
  attempt: int
  text: str
  usage: Mapping[str, int]
  trace: tuple[Any, ...]  # Every call made, in order.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalRecord:
  """One graded solution of one benchmark problem."""

  benchmark: str
  solution: Solution
  grade: Grade


class Llm(Protocol):
  """Anything that completes a prompt: our engine or an HTTP endpoint."""

  async def sample(
    self, prompt: Prompt, params: SamplingParams, *, n: int = 1
  ) -> list[Completion]:
    """Draws `n` independent completions of `prompt`."""
    ...


class PackedBatch(NamedTuple):
  """Rows of concatenated samples; index t of any field is about targets[t]."""

  tokens: Array  # int32 [B, T]: what the model reads.
  targets: Array  # int32 [B, T]: what logits[t] must predict.
  positions: Array  # int32 [B, T]: restarts at 0 with every sample.
  segment_ids: Array  # int32 [B, T]: 1, 2, ... within a row; 0 is padding.
  loss_mask: Array  # bool [B, T]: the policy wrote targets[t].


class GrpoBatch(NamedTuple):
  """A packed batch with what the policy gradient needs; zero off the mask."""

  packed: PackedBatch
  behavior_logprobs: Array  # float32 [B, T]: of targets, as they were drawn.
  advantages: Array  # float32 [B, T]: constant over a sample.
  reference_logprobs: Array | None  # float32 [B, T]: only where KL is used.


class TrainState(NamedTuple):
  """Everything that an update reads and writes."""

  step: Array  # int32 []: optimiser steps taken; also the policy version.
  params: Any  # Nested dict, float32 master weights, layers stacked [L, ...].
  opt_state: Any


class KVCache(NamedTuple):
  """Keys and values of every slot of the sampler."""

  k: Array  # [L, B, S, K, H]
  v: Array  # [L, B, S, K, H]
  lengths: Array  # int32 [B]: the filled prefix of each slot.
