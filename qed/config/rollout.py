"""Sections about problems, and how rollouts of them are drawn."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from qed import schema
from qed.config.fields import (
  AxisSize,
  Name,
  NonNegative,
  NonNegativeFloat,
  Paths,
  Positive,
  PositiveFloat,
  Share,
)
from qed.schema import Rule


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProblemsConfig:
  """The problems to practise on."""

  paths: Paths  # jsonl or parquet.
  tokenizer: str  # Its folder; '': that of the weights.
  chat_style: Literal['thinking', 'instruct', 'base']
  prompt: Name  # A template of data/texts.
  max_prompt_tokens: Positive  # A problem with a longer prompt is left out.
  malformed: Literal['skip', 'refuse']  # A line that cannot be read.
  # Bounds on the mean reward of the base model, where a problem has it.
  min_difficulty: Share
  max_difficulty: Share
  # Bounds on the mean reward of a problem's last group in this run: outside, it
  # is passed over when its turn comes again.
  min_pass_rate: Share
  max_pass_rate: Share

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'max_difficulty',
        self.min_difficulty <= self.max_difficulty,
        f'must be at least problems.min_difficulty = {self.min_difficulty}',
      ),
      (
        'max_pass_rate',
        self.min_pass_rate <= self.max_pass_rate,
        f'must be at least problems.min_pass_rate = {self.min_pass_rate}',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
  """How much is sampled for a step, and how old it may be."""

  problems_per_step: Positive
  # Groups of a problem, each of which starts from another of the states that
  # `cache.num_turns` turns lead through; 0: one group, from the problem alone.
  states_per_problem: NonNegative
  # Without states, the groups of a problem: from the beginning of a proof of it
  # (`guidance`), if there is one, and from the problem alone.
  guided_per_problem: NonNegative
  unguided_per_problem: NonNegative
  # Rollouts of one prompt; an advantage compares at least two.
  group_size: Annotated[int, Rule(lambda n: n > 1, 'at least 2')]
  # In optimiser steps; 0: synchronous, -1: unbounded.
  max_lag: Annotated[int, Rule(lambda n: n >= -1, 'at least 0, or -1')]
  driver: Literal['scheduler', 'jetstream']  # What drives the engine.
  # Groups that are sampled or graded at the same time, and that wait for a
  # step; the lag may allow fewer.
  max_groups_in_flight: Positive
  max_groups_waiting: Positive
  # Of one rollout; what is not finished by then has no reward.
  deadline_secs: PositiveFloat
  # A group whose valid rewards are all equal is a part of the batch (and of
  # its entropy bonus), leaves a gap in it, or is replaced by another.
  zero_signal: Literal['keep', 'drop', 'refill']
  # Whether rollouts that ran out of budget are left out of the loss, though not
  # out of their group's baseline.
  mask_truncated: bool

  @property
  def groups_per_step(self) -> int:
    """That a step is trained on."""
    copies = self.guided_per_problem + self.unguided_per_problem
    return self.problems_per_step * (self.states_per_problem or copies)

  def __post_init__(self):
    schema.check_fields(self)
    copies = (self.guided_per_problem, self.unguided_per_problem)
    schema.require(
      self,
      (
        'unguided_per_problem',
        copies == (0, 1) if self.states_per_problem else sum(copies) > 0,
        'and guided_per_problem must be 1 and 0 with '
        'rollout.states_per_problem, and one of them above 0 without; they are '
        f'{copies[1]} and {copies[0]}',
      ),
      (
        'max_groups_waiting',
        self.max_groups_waiting >= self.groups_per_step,
        f'must be at least the {self.groups_per_step} groups that a step waits '
        'for',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceConfig:
  """Beginnings of proofs that guided groups start from (rollout/guided.py)."""

  # prefixes.jsonl of `qed curate`; none: no group is guided.
  paths: tuple[str, ...]
  # A template of data/texts, or a text with its slots: problem, prefix. The
  # beginnings were chosen with one (`prefixes.template`).
  prompt: Name
  # From which on a proof counts as solved, in the metrics by kind of group.
  pass_score: Annotated[int, Rule(lambda n: 1 <= n <= 7, 'from 1 to 7')]

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
  """Where rollouts are drawn."""

  # On the devices of the trainer, taking turns; on the devices that are left of
  # it; or by `qed serve` at `urls`, which reads weights from the run directory.
  placement: Literal['shared', 'separate', 'remote']
  data: AxisSize  # The mesh of a local sampler, as in MeshConfig.
  tensor: AxisSize
  urls: tuple[str, ...]  # Of remote ones; each ends in /v1.
  model: Name  # By which those are asked.
  api_key_env: str  # The environment variable with their key; '': no key.
  connect_secs: PositiveFloat
  load_secs: PositiveFloat  # For new weights.
  # At loading weights: refusals by a server that answers, until the run ends;
  # one that does not answer is waited for. At a rollout: failed calls of any
  # kind until that is told; after a pause there are as many again. It is not
  # given up, but a request that is refused (status 400, 401, ...) ends the run.
  max_attempts: Positive
  max_weight_versions: Annotated[  # Kept for remote samplers.
    int, Rule(lambda n: n > 1, 'at least 2')
  ]

  def __post_init__(self):
    schema.check_fields(self)
    is_remote = self.placement == 'remote'
    schema.require(
      self,
      (
        'urls',
        bool(self.urls) == is_remote,
        "must name an address or more with sampler.placement = 'remote', and "
        f'none otherwise (it is {self.placement!r})',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
  """The sizes that our own engine is compiled for.

  How long a request may be follows from the prompts and the completions.
  """

  num_slots: Positive  # Requests that are decoded at the same time.
  page_size: Positive  # Tokens of one page of the cache.
  # Pages of the whole cache, the reserved first one included; 0: so many that
  # every slot may hold the longest request.
  num_pages: NonNegative
  steps_per_chunk: Positive  # Tokens of each slot between looks at the host.
  # Lengths that prompts are padded to; longer ones are read in several pieces.
  prefill_buckets: Annotated[
    tuple[int, ...],
    Rule(
      lambda sizes: sizes and sizes[0] > 0 and sorted({*sizes}) == [*sizes],
      'increasing numbers from 1 on',
    ),
  ]
  kv_dtype: Literal['bfloat16', 'float32', 'int8']  # Of the cache.

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      ('num_pages', self.num_pages != 1, 'must be 0, or at least 2'),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
  """Held-out problems, tried every `training.eval_interval_steps`."""

  paths: tuple[str, ...]  # jsonl, csv or parquet; none: no evaluation.
  num_attempts: Positive  # At each problem.
  temperature: NonNegativeFloat  # 0: greedy.
  top_p: Annotated[float, Rule(lambda p: 0 < p <= 1, 'above 0 and at most 1')]
  top_k: NonNegative  # 0 keeps every token.
  max_tokens: Positive  # Of a completion.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
  """When a run should stop by itself."""

  stall_secs: PositiveFloat  # Of a stage that does not move.
  # How often per-token differences of some rollouts are written out.
  inspect_interval_steps: NonNegative  # 0: never.
  max_inspected_groups: Positive
  max_mismatch: NonNegativeFloat  # Mean |log ratio| of a step; 0: no limit.
  min_entropy: NonNegativeFloat  # In nats per token; 0: no limit.
  max_ungraded_frac: Share  # Of the rollouts of a step; 1: no limit.
  patience_steps: NonNegative  # In a row that may be beyond a limit.
  max_dropped_groups: Positive  # Of no use for one step, one after another.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
  """How completions are drawn."""

  temperature: NonNegativeFloat  # 0: greedy.
  # 1 keeps every token.
  top_p: Annotated[float, Rule(lambda p: 0 < p <= 1, 'above 0 and at most 1')]
  top_k: NonNegative  # 0 keeps every token.
  max_tokens: Positive  # Of a completion.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningCacheConfig:
  """Turns of reasoning, each from a summary of the turns before.

  Training and evaluation read the same section.
  """

  num_turns: Positive
  # What becomes of the summary when a turn has brought a new one.
  mode: Literal['replace', 'append']
  # Templates of data/texts, or texts with their slots:
  reason_prompt: Name  # problem, summary
  summarize_prompt: Name  # problem, summary, reasoning
  summary: SamplingConfig  # How summaries are drawn.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SummarizerConfig:
  """Who writes the summaries that states of a reasoning cache are, in training.

  They are never trained on.
  """

  # The policy as it is; weights of their own, in this process; or a chat
  # endpoint.
  source: Literal['policy', 'frozen', 'endpoint']
  path: str  # Of the frozen weights, a checkpoint or Hugging Face folder.
  chat_style: Literal['thinking', 'instruct', 'base']
  # Of what it is asked; reasoning that does not fit is cut off at its end.
  max_prompt_tokens: Positive
  base_url: str  # Of the endpoint, which ends in /v1; '': there is none.
  model: str  # By which it is asked.
  api_key_env: str  # The environment variable with its key; '': no key.
  effort: Literal['', 'low', 'medium', 'high']  # '': not sent.
  connect_secs: PositiveFloat
  deadline_secs: PositiveFloat  # Of one call.
  max_attempts: Positive
  max_concurrency: Positive  # Calls in flight, at most.

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'path',
        bool(self.path) == (self.source == 'frozen'),
        "names the weights with summarizer.source = 'frozen', and is '' "
        f'otherwise (it is {self.source!r})',
      ),
      (
        'base_url',
        bool(self.base_url and self.model) == (self.source == 'endpoint'),
        "and summarizer.model are given with summarizer.source = 'endpoint' "
        f"alone (it is {self.source!r}), and '' otherwise",
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
  """Summaries of earlier epochs, from which the turns of a problem go on."""

  max_summaries: NonNegative  # Of each problem, the newest; 0: no replay.
  start_frac: Share  # Of the problems that have one, those that go on from it.
  max_age_steps: NonNegative  # Older ones are purged; 0: none is.
  max_turn: NonNegative  # Later ones are not kept; 0: all are.

  __post_init__ = schema.check_fields
