"""Every value a run can be given: one frozen dataclass per config section.

A config dictionary (experiments/) has one entry per section, and a section is
exactly the keyword arguments of its dataclass here. Nothing has a default:
defaults live in experiments/base.py alone. `build` turns a dictionary into
dataclasses and reports everything that is wrong with it in one error.

No field is ever None: '' stands for "not given" where a text may be absent,
and 0 or -1 for what the field's comment says.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from qed import schema
from qed.schema import ConfigError, Rule

Positive = Annotated[int, Rule(lambda n: n > 0, 'at least 1')]
NonNegative = Annotated[int, Rule(lambda n: n >= 0, 'at least 0')]
AxisSize = Annotated[int, Rule(lambda n: n > 0 or n == -1, 'at least 1, or -1')]
PositiveFloat = Annotated[float, Rule(lambda x: x > 0, 'above 0')]
NonNegativeFloat = Annotated[float, Rule(lambda x: x >= 0, 'at least 0')]
Fraction = Annotated[float, Rule(lambda x: 0 <= x < 1, 'from 0 to below 1')]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, 'from 0 to 1')]
Name = Annotated[str, Rule(bool, 'not empty')]
Paths = Annotated[tuple[str, ...], Rule(bool, 'at least one file')]
# Of curation, in their order.
_MODEL_STAGES = (
  'quality',
  'rubrics',
  'difficulty',
  'selection',
  'teacher',
  'prefixes',
)
ModelStages = Annotated[
  tuple[str, ...],
  Rule(
    lambda names: names == tuple(n for n in _MODEL_STAGES if n in names),
    f'some of {", ".join(_MODEL_STAGES)}, in this order',
  ),
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
  """Which weights, and how a forward pass over them is computed."""

  path: str  # A checkpoint or Hugging Face folder; '': random weights.
  # A published architecture, which the weights must have; '': any.
  variant: Literal[
    '',
    'qwen3-0.6b',
    'qwen3-1.7b',
    'qwen3-4b',
    'qwen3-4b-2507',
    'qwen3-8b',
    'qwen3-14b',
    'qwen3-32b',
  ]
  dtype: Literal['bfloat16', 'float32']  # Of the arithmetic, not of storage.
  # What the backward pass finds in memory: everything, only the inputs of the
  # layers, these and the outputs of attention, or the same with the inputs on
  # the host.
  remat: Literal['none', 'full', 'attention', 'offload']
  attention: Literal['auto', 'splash', 'blockwise', 'dense']  # The kernel.

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'path',
        bool(self.path or self.variant),
        'weights come from a folder or are random: set model.path, or '
        'model.variant to draw weights of that shape',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
  """How many devices each mesh axis has; -1: all that are left."""

  data: AxisSize  # Rows of the batch; weights are fully sharded over it.
  context: AxisSize  # The positions of a row.
  tensor: AxisSize  # Heads, mlp width and vocabulary.

  def __post_init__(self):
    schema.check_fields(self)
    sizes = (self.data, self.context, self.tensor)
    rule = f'only one of data, context, tensor can be -1, got {sizes}'
    schema.require(self, ('data', sizes.count(-1) <= 1, rule))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PackingConfig:
  """The shapes [A, B, T] that a step's batch may have; samples share rows."""

  num_rows: Positive  # B, of one microbatch, over the whole mesh.
  row_length: Positive  # T; a sample of n tokens takes n - 1.
  # A, whose gradients are added up: the smallest that holds the samples.
  microbatch_counts: Annotated[
    tuple[int, ...],
    Rule(
      lambda counts: (
        counts and counts[0] > 0 and sorted({*counts}) == [*counts]
      ),
      'increasing numbers from 1 on',
    ),
  ]

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
  """AdamW; the rate rises from 0 in the warm-up, then follows the schedule."""

  peak_lr: PositiveFloat
  schedule: Literal['cosine', 'constant', 'linear']  # First and last go to 0.
  # The length of the warm-up, in steps or as a part of all steps; one is 0.
  warmup_steps: NonNegative
  warmup_frac: Fraction
  beta1: Fraction
  beta2: Fraction
  eps: PositiveFloat
  weight_decay: NonNegativeFloat  # Of matrices; norms are never decayed.
  clip_norm: NonNegativeFloat  # Of the whole gradient; 0: no clipping.

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'warmup_frac',
        not (self.warmup_steps and self.warmup_frac),
        'the warm-up is so many steps or a part of the run: set '
        'optim.warmup_steps or optim.warmup_frac to 0',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
  """The loop around the step."""

  seed: Annotated[int, Rule(lambda n: 0 <= n < 2**32, 'from 0 to 2**32 - 1')]
  total_steps: NonNegative  # Of the optimiser; 0: `data.num_epochs` decides.
  logprob_chunk_size: Positive  # Tokens whose logits exist at the same time.
  checkpoint_interval_steps: Positive
  # The newest ones; the best is kept besides. Two at least: where the newest is
  # damaged, the one before takes over.
  max_checkpoints: Annotated[int, Rule(lambda n: n > 1, 'at least 2')]
  eval_interval_steps: NonNegative  # 0: never.
  max_skipped_steps: (
    NonNegative  # NaN or infinite gradients until the run ends.
  )
  wandb_project: str  # Of Weights & Biases, to mirror the metrics; '': none.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SftDataConfig:
  """The proofs to imitate."""

  paths: Paths  # jsonl or parquet.
  tokenizer: str  # Its folder; '': that of the weights.
  chat_style: Literal['thinking', 'instruct', 'base']
  prompt: Name  # A template of data/texts.
  samples_per_step: Positive
  num_epochs: NonNegative  # 0: `training.total_steps` decides.
  # Of a sample, prompt included.
  max_tokens: Annotated[int, Rule(lambda n: n > 1, 'at least 2')]
  overlong: Literal['drop', 'truncate']  # What becomes of a longer one.
  malformed: Literal['skip', 'refuse']  # A line that cannot be read.
  validation_frac: Fraction  # Of the problems, held out.

  __post_init__ = schema.check_fields


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
    return self.problems_per_step * max(1, self.states_per_problem)

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'max_groups_waiting',
        self.max_groups_waiting >= self.groups_per_step,
        f'must be at least the {self.groups_per_step} groups that a step waits '
        'for',
      ),
    )


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
  max_attempts: Positive  # At a rollout, or at loading weights.
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
  """The model that scores proofs, and what it is shown."""

  base_url: Annotated[  # Of an OpenAI-compatible endpoint.
    str,
    Rule(
      lambda url: url.startswith(('http://', 'https://')),
      'an address that begins with http:// or https://',
    ),
  ]
  api_key_env: str  # The environment variable with the key; '': no key.
  model: Name
  effort: Literal['', 'low', 'medium', 'high']  # '': not sent.
  temperature: NonNegativeFloat
  max_tokens: Positive  # Of a reply, with the thinking before it.
  template: Literal[  # What it is asked (grading/rubrics.py).
    'simple',
    'opc',
    'proofbench',
    'proofbench_strict',
    'gimo',
    'imo_proofbench',
  ]
  with_reference: bool  # Whether the judge sees the reference proof.
  replicas: Positive  # Verdicts per proof, which `aggregate` makes one.
  aggregate: Literal['median', 'minimum']  # Of an even number, the lower one.
  connect_secs: PositiveFloat
  deadline_secs: PositiveFloat  # Of one call, to the last byte.
  max_attempts: Positive  # Calls for a reply.
  max_draws: Positive  # Replies for one that can be read.
  patience_secs: PositiveFloat  # That a grade waits for a judge that is down.
  max_concurrency: Positive  # Calls in flight, at most.
  tokens_per_minute: NonNegative  # In and out; 0: no limit.
  max_failures: Positive  # In a row, until the judge counts as down.
  cooldown_secs: PositiveFloat  # Until it is tried again, at first.
  usd_per_million_prompt: NonNegativeFloat  # Price of a million tokens in,
  usd_per_million_completion: NonNegativeFloat  # and of a million out.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SolutionsConfig:
  """Solutions that people have graded."""

  paths: Paths  # jsonl, csv or parquet.
  source: Literal[  # Whose columns they have (grading/solutions.py).
    'graded',
    'proofbench',
    'imo_gradingbench',
    'matharena',
    'olympiads',
    'qedbench',
  ]
  columns: tuple[str, ...]  # FIELD=COLUMN, where one is called otherwise.
  malformed: Literal['skip', 'refuse']  # A line that cannot be read.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
  """How a judge is compared with people."""

  replicas: Positive  # Grades of each solution, for how far they vary.
  own_solvers: tuple[str, ...]  # Solvers of the judge's own family.
  num_resamples: Positive  # Of the problems, for the intervals.
  seed: NonNegative  # Of the resampling.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
  """What a score is worth in training."""

  # Of the scores 0 to 7, in sevenths of the full reward.
  points: Annotated[
    tuple[int, ...],
    Rule(
      lambda points: (
        len(points) == 8
        and points[0] >= 0
        and points[-1] <= 7
        and sorted(points) == [*points]
      ),
      'eight numbers from 0 to 7 that never fall, one for each score',
    ),
  ]
  # The reward is multiplied by this for every token of the completion.
  discount: Annotated[
    float, Rule(lambda x: 0 < x <= 1, 'above 0 and at most 1')
  ]
  # Over the last so many tokens before the limit the reward falls by 1; 0: no.
  overlong_buffer_tokens: NonNegative
  # A completion that reached the limit: graded as it is, worth 0, or no
  # rollout.
  truncated: Literal['graded', 'zero', 'invalid']

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
  """The policy gradient: advantage, clipped ratio, extra terms, divisor."""

  advantage: Literal['mean_baseline', 'leave_one_out', 'z_score', 'max_rl']
  z_score_eps: NonNegativeFloat  # Added to the deviation; 0 but for z_score.
  # The deviation's: 0, or 1 for that of a sample; 0 but for z_score.
  z_score_ddof: Annotated[int, Rule(lambda n: n in (0, 1), '0 or 1')]
  kind: Literal['ppo', 'reinforce', 'cispo', 'gspo']
  clip_low: NonNegativeFloat  # The ratio's interval is [1 - clip_low,
  clip_high: NonNegativeFloat  # 1 + clip_high].
  dual_clip: NonNegativeFloat  # Of ppo and gspo, above 1; 0: none.
  # The ratio is that to the sampler's policy; or, with a correction, that to
  # the policy at the start of the step, and tokens are weighted by the ratio of
  # this one to the sampler's: truncated to, or masked outside of, [low, high].
  correction: Literal['none', 'truncate', 'mask']
  correction_low: NonNegativeFloat  # 0 without a correction.
  correction_high: NonNegativeFloat  # 0 without a correction.
  # Whether a token counts 1 / the length of its completion, so that long
  # completions have no more weight than short ones.
  sequence_mean: bool
  entropy_coef: NonNegativeFloat
  kl_coef: NonNegativeFloat  # The reference policy is not loaded when 0.
  kl_estimator: Literal['k1', 'k2', 'k3']
  # The sum over tokens is divided by the number of sequences or of tokens in
  # the global batch, or by `normalizer_constant` tokens for each sequence.
  normalizer: Literal['sequences', 'tokens', 'constant']
  normalizer_constant: NonNegativeFloat  # 0 but for that.

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'normalizer_constant',
        (self.normalizer == 'constant') == (self.normalizer_constant > 0),
        "must be above 0 with loss.normalizer = 'constant', and 0 otherwise "
        f'(it is {self.normalizer!r})',
      ),
      (
        'kl_coef',
        self.kl_coef == 0 or self.kl_estimator != 'k1',
        "must be 0 with loss.kl_estimator = 'k1', whose gradient vanishes in "
        "the mean; 'k2' and 'k3' are penalties",
      ),
      (
        'z_score_eps',
        self.advantage == 'z_score' or not self.z_score_eps,
        f"must be 0 with loss.advantage = {self.advantage!r}; 'z_score' reads "
        'it',
      ),
      (
        'z_score_ddof',
        self.advantage == 'z_score' or not self.z_score_ddof,
        f"must be 0 with loss.advantage = {self.advantage!r}; 'z_score' reads "
        'it',
      ),
      (
        'dual_clip',
        not self.dual_clip
        or (self.dual_clip > 1 and self.kind in ('ppo', 'gspo')),
        "must be 0, or above 1 with loss.kind = 'ppo' or 'gspo' (it is "
        f'{self.kind!r})',
      ),
      (
        'correction_high',
        self.correction_low < self.correction_high
        if self.correction != 'none'
        else self.correction_low == self.correction_high == 0,
        'must be above loss.correction_low with a correction, and both 0 '
        f'without (loss.correction is {self.correction!r})',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
  """What one attempt at one problem may take; 0: no limit."""

  max_tokens: NonNegative  # Of all its completions together.
  max_usd: NonNegativeFloat  # At the prices below.
  # From its first call on, or from a restart; what is not done is given up.
  max_secs: NonNegativeFloat
  usd_per_million_prompt: NonNegativeFloat
  usd_per_million_completion: NonNegativeFloat

  def __post_init__(self):
    schema.check_fields(self)
    prices = self.usd_per_million_prompt + self.usd_per_million_completion
    rule = 'needs a price above 0, or else it limits nothing'
    schema.require(self, ('max_usd', not self.max_usd or prices > 0, rule))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SingleConfig:
  """One completion."""

  solve: Name  # A template (qed/data/templates.py), as in all scaffolds.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BestOfNConfig:
  """Independent proofs, of which a verifier's marks choose one."""

  num_solutions: Positive
  num_verifications: Positive  # Of each.
  solve: Name  # The templates: of a proof,
  verify: Name  # and of its mark.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RsaConfig:
  """Recursive self-aggregation: rounds of merging, then a selection."""

  # The selection knows its candidates by letter.
  num_solutions: Annotated[int, Rule(lambda n: 1 <= n <= 26, 'from 1 to 26')]
  num_rounds: NonNegative
  block_size: Positive  # Different solutions that are merged into one.
  # Two at a time until one is left, or all in one call.
  selection: Literal['knockout', 'single']
  solve: Name  # The templates: of a first solution,
  merge: Name  # of one made from a block,
  select: Name  # and of a choice between some.

  def __post_init__(self):
    schema.check_fields(self)
    rule = f'must be at most num_solutions = {self.num_solutions}'
    fits = self.block_size <= self.num_solutions
    schema.require(self, ('block_size', fits, rule))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelfcheckConfig:
  """A proof that is verified and corrected until it passes."""

  num_passes: Positive  # In a row, for a proof to be accepted.
  max_failures: Positive  # In a row, until it is given up.
  max_iterations: Positive
  solve: Name  # The templates: of a draft,
  improve: Name  # of the proof that is made of it,
  verify: Name  # of a report on a proof,
  confirm: Name  # of whether a report is good,
  correct: Name  # and of a proof that answers a report.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekMathConfig:
  """Proofs that are verified several times, and the best of them refined."""

  num_solutions: Positive  # At first, and that a round refines.
  num_verifications: Positive  # Of each proof.
  num_analyses: Positive  # Verifications that a refinement is shown.
  num_rounds: NonNegative  # Of refinement, at most.
  # Templates of data/texts, or texts with their slots:
  solve: Name  # problem
  verify: Name  # problem, proof
  refine: Name  # problem, proof, analyses

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'num_analyses',
        self.num_analyses <= self.num_verifications,
        f'must be at most num_verifications = {self.num_verifications}',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NomosConfig:
  """Proofs that are scored, sorted by their conclusion, and compared."""

  num_solutions: Positive
  min_perfect: Positive  # So many proofs with all points, and only such stay.
  max_kept: Positive  # Proofs that stay after scoring.
  # Templates of data/texts, or texts with their slots:
  solve: Name  # problem
  score: Name  # problem, proof
  consolidate: Name  # problem, submissions
  compare: Name  # problem, first, second

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriterConfig:
  """A model that reads and writes for curation."""

  base_url: str  # Of an OpenAI-compatible chat endpoint; '': there is none.
  model: str  # By which it is asked.
  api_key_env: str  # The environment variable with its key; '': no key.
  effort: Literal['', 'low', 'medium', 'high']  # '': not sent.
  sends_seed: bool  # Some endpoints refuse a request that has one.
  sampling: SamplingConfig
  connect_secs: PositiveFloat
  deadline_secs: PositiveFloat  # Of one call.
  max_attempts: Positive
  max_concurrency: Positive  # Calls in flight, at most.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourcesConfig:
  """Where problems come from; of equal ones, the first source's is kept."""

  olympiads: tuple[str, ...]  # Each: jsonl, csv or parquet files.
  aops: tuple[str, ...]
  fineproofs_rl: tuple[str, ...]
  fineproofs_sft: tuple[str, ...]
  imobench: tuple[str, ...]
  own: tuple[str, ...]
  licenses: tuple[str, ...]  # SOURCE=LICENSE, for the data card.
  malformed: Literal['skip', 'refuse']  # A line that cannot be read.

  def __post_init__(self):
    schema.check_fields(self)
    names = [field.name for field in dataclasses.fields(self)][:6]
    used = [name for name in names if getattr(self, name)]
    known = [line.partition('=')[0] for line in self.licenses]
    schema.require(
      self,
      ('own', bool(used), 'there is no file of any source to read'),
      (
        'licenses',
        set(used) <= set(known) <= set(names),
        f'must say SOURCE=LICENSE of {used}, and of no other than {names}',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FiltersConfig:
  """What is no proof problem for a model that reads text."""

  min_statement_chars: NonNegative  # White space not counted.
  min_answer_chars: Positive  # Of an answer that is looked for in a statement.
  min_solution_words: NonNegative
  # Words of deduction ('hence', 'suppose') among the words of a solution.
  min_deduction_share: Share
  easy_contests: tuple[str, ...]  # Words of an origin or a tag.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatesConfig:
  """When two problems of the set are one; runs are of words and formulas."""

  shingle_size: Positive  # Words and formulas in a run.
  sketch_size: Positive  # Runs that stand for a statement.
  min_shared: Positive  # Of these, in common, for two to be compared.
  max_common: Positive  # Statements with a run; of more, it is a phrase.
  min_ratio: Share  # Of letters in common, as rapidfuzz's ratio.
  min_overlap: Share  # Of runs in common, in all runs.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecontaminationConfig:
  """When a problem is that of a benchmark, or too young."""

  benchmarks: Paths  # jsonl, csv or parquet.
  min_ratio: Share  # Of letters in common, less what is boilerplate;
  min_renamed_ratio: Share  # the same with all variables called alike.
  # A word or formula of a larger part of all benchmark problems is boilerplate,
  common_share: Share
  boilerplate_weight: Fraction  # which counts less by this.
  min_overlap: Share  # Of telling runs of words and formulas in common.
  min_content: Share  # Of uncommon words and formulas in common,
  min_content_chars: Positive  # if they have so many letters together.
  shingle_size: Positive  # Words and formulas in a run.
  min_shingles: Positive  # Fewer runs than these are counted as these.
  review_margin: Share  # So far below a bound, a person should look.
  last_year: Positive  # Problems that are dated later are left out.
  cleared: tuple[str, ...]  # Ids that a person has looked at and lets pass.
  num_threads: Positive

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
  """A model reads each problem with its solution and comments."""

  template: Name  # problem, solution, origin, comments
  # The flags of which one is enough to drop a problem.
  drop_flags: Annotated[
    tuple[str, ...],
    Rule(
      lambda flags: (
        {*flags}
        <= {'incomplete', 'gaps', 'wrong', 'disagreement', 'computational'}
      ),
      'of incomplete, gaps, wrong, disagreement, computational',
    ),
  ]
  max_draws: Positive  # Replies for one that can be read.
  writer: WriterConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RubricsConfig:
  """A model writes the marking schemes that problems lack."""

  template: Name  # problem, solution
  repair_template: Name  # problem, solution, rubric, faults
  max_repairs: NonNegative  # Of a rubric that is not well formed.
  writer: WriterConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DifficultyConfig:
  """The base model tries each problem, and the judge grades it."""

  prompt: Name  # problem
  num_rollouts: Positive  # Of each problem.
  min_graded_frac: Share  # Of these, or the problem is left out.
  pass_score: Annotated[int, Rule(lambda n: 1 <= n <= 7, 'from 1 to 7')]
  writer: WriterConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
  """Which difficulties are worth practising on."""

  max_mean_reward: Share  # Of the base model; 1: no bound.
  min_pass_rate: Share  # Of its attempts; 0 keeps those that never pass.
  max_pass_rate: Share
  num_bins: Positive  # Of mean reward, for the curriculum.
  # From its peak, which lies in the harder half, a bin may hold at most this
  # part of the next harder one; 0: the histogram is left as it is.
  tail_decay: Share

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
  """A strong model's proofs, to imitate."""

  prompt: Name  # problem
  num_solutions: Positive  # Of each problem.
  writer: WriterConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefixesConfig:
  """Beginnings of reference proofs, for problems that are never solved."""

  template: Name  # problem, prefix
  num_parts: Positive  # That a proof is cut into,
  max_parts: Positive  # of which so many are given away at most.
  num_rollouts: Positive  # At each beginning.

  def __post_init__(self):
    schema.check_fields(self)
    rule = f'must be below prefixes.num_parts = {self.num_parts}'
    schema.require(self, ('max_parts', self.max_parts < self.num_parts, rule))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SolverConfig:
  """The model that solves, and others for some of its roles."""

  # An endpoint that is sent messages; a server that is sent token ids (`qed
  # serve`, vLLM); or weights in this process, with our own engine.
  kind: Literal['chat', 'ids', 'local']
  base_url: str  # Of an endpoint or server, which ends in /v1; '': local.
  model: str  # By which it is asked; '': the only one that is there.
  api_key_env: str  # The environment variable with its key; '': no key.
  effort: Literal['', 'low', 'medium', 'high']  # Of a chat; '': not sent.
  sends_seed: bool  # Some chat endpoints refuse requests with a seed.
  path: str  # Checkpoint or folder with the weights or tokenizer; '': a chat.
  chat_style: Literal['thinking', 'instruct', 'base']
  # ROLE=MODEL@URL, chat endpoints for the roles of a scaffold that they play;
  # all else is as above.
  roles: tuple[str, ...]
  connect_secs: PositiveFloat
  deadline_secs: PositiveFloat  # Of one call, to the last byte.
  max_attempts: Positive
  max_concurrency: Positive  # Calls in flight, at most, of all problems.
  # Of local weights:
  dtype: Literal['bfloat16', 'float32']
  max_prompt_tokens: Positive  # A call with a longer prompt fails.
  engine: EngineConfig

  def __post_init__(self):
    schema.check_fields(self)
    names = [role.partition('=')[0] for role in self.roles]
    schema.require(
      self,
      (
        'base_url',
        bool(self.base_url) == (self.kind != 'local'),
        "must be given, unless solver.kind = 'local' (it is "
        f'{self.kind!r}), and then not',
      ),
      (
        'base_url',
        not self.base_url or self.base_url.startswith(('http://', 'https://')),
        'must begin with http:// or https://',
      ),
      (
        'path',
        bool(self.path) == (self.kind != 'chat'),
        "must be given, unless solver.kind = 'chat' (it is "
        f'{self.kind!r}), and then not',
      ),
      (
        'roles',
        all(re.fullmatch('[a-z]+=[^@]+@https?://.+', x) for x in self.roles)
        and len({*names}) == len(names),
        'each must be ROLE=MODEL@URL, and no role be there twice',
      ),
    )


ScaffoldName = Literal[
  'single',
  'best_of_n',
  'reasoning_cache',
  'rsa',
  'selfcheck',
  'deepseek_math',
  'nomos',
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScaffoldsConfig:
  """Every scaffold by its name; a run uses one of them."""

  single: SingleConfig
  best_of_n: BestOfNConfig
  reasoning_cache: ReasoningCacheConfig
  rsa: RsaConfig
  selfcheck: SelfcheckConfig
  deepseek_math: DeepseekMathConfig
  nomos: NomosConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
  """The problems of an evaluation, and how often each is tried."""

  name: Literal[  # The format of the file (evals/benchmarks.py).
    'imo_proofbench',
    'imo_answerbench',
    'proofbench',
    'fineproofs_rl_test',
    'matharena_usamo_2025',
    'matharena_imo_2025',
    'matharena_imc_2025',
    'matharena_miklos_2025',
    'matharena_putnam_2025',
    'matharena_usamo_2026',
    'own_proofs',
    'own_answers',
  ]
  path: Name  # Its file; `qed fetch` downloads the public ones.
  split: str  # The problems of this one alone; '': all.
  # The digest that the file's content must have, or its beginning; '': the
  # published one, where it is known; 'any': whatever it is.
  content: str
  max_problems: NonNegative  # The first so many, for a trial; 0: all.
  num_attempts: Positive  # At each problem.
  max_in_flight: Positive  # Attempts under way, each with its calls in memory.
  max_passes: Positive  # Over what failed, until it is left as it is.
  pass_score: Annotated[int, Rule(lambda n: 1 <= n <= 7, 'from 1 to 7')]
  # Of final answers: whether the judge is asked where formulas do not decide.
  second_opinion: bool

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
  """Supervised fine-tuning: what `qed sft` reads."""

  program: Literal['sft']
  model: ModelConfig
  mesh: MeshConfig
  data: SftDataConfig
  packing: PackingConfig
  optim: OptimConfig
  training: TrainingConfig

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      *_training_rules(
        self,
        tokenizer='data.tokenizer',
        max_tokens=self.data.max_tokens,
        num_samples=self.data.samples_per_step,
      ),
      (
        'data.num_epochs',
        bool(self.data.num_epochs) != bool(self.training.total_steps),
        'the length of a run is data.num_epochs or training.total_steps: set '
        'one of the two and leave the other at 0',
      ),
      (
        'training.eval_interval_steps',
        not self.training.eval_interval_steps or self.data.validation_frac > 0,
        'nothing is held out to evaluate on: data.validation_frac is 0',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GrpoConfig:
  """Reinforcement learning on graded proofs: what `qed grpo` reads."""

  program: Literal['grpo']
  model: ModelConfig
  mesh: MeshConfig
  problems: ProblemsConfig
  rollout: RolloutConfig
  cache: ReasoningCacheConfig
  summarizer: SummarizerConfig
  replay: ReplayConfig
  sampling: SamplingConfig
  sampler: SamplerConfig
  engine: EngineConfig
  judge: JudgeConfig
  reward: RewardConfig
  loss: LossConfig
  packing: PackingConfig
  optim: OptimConfig
  training: TrainingConfig
  evaluation: EvaluationConfig
  health: HealthConfig

  @property
  def max_request_tokens(self) -> int:
    """Prompt and completion of the longest request to a sampler."""
    completion = self.sampling.max_tokens
    if self.evaluation.paths:
      completion = max(completion, self.evaluation.max_tokens)
    longest = self.problems.max_prompt_tokens + completion
    if self.rollout.states_per_problem and self.summarizer.source == 'policy':
      return max(longest, self.max_summary_request_tokens)
    return longest

  @property
  def max_summary_request_tokens(self) -> int:
    """Prompt and completion of the longest request for a summary."""
    return self.summarizer.max_prompt_tokens + self.cache.summary.max_tokens

  def __post_init__(self):
    schema.check_fields(self)
    untruncated = (
      'RL samples with top_p = 1 and top_k = 0, since the loss compares '
      'log-probabilities of the whole distribution'
    )
    schema.require(
      self,
      *_training_rules(
        self,
        tokenizer='problems.tokenizer',
        max_tokens=self.problems.max_prompt_tokens + self.sampling.max_tokens,
        num_samples=self.rollout.groups_per_step * self.rollout.group_size,
      ),
      *_cache_rules(self),
      ('sampling.top_p', self.sampling.top_p == 1, untruncated),
      ('sampling.top_k', self.sampling.top_k == 0, untruncated),
      (
        'sampling.temperature',
        self.sampling.temperature > 0,
        'must be above 0, since greedy rollouts of one prompt are all the same',
      ),
      (
        'reward.overlong_buffer_tokens',
        self.reward.overlong_buffer_tokens < self.sampling.max_tokens,
        f'must be below sampling.max_tokens = {self.sampling.max_tokens}',
      ),
      (
        'training.total_steps',
        self.training.total_steps > 0,
        'must be at least 1',
      ),
      (
        'training.eval_interval_steps',
        bool(self.training.eval_interval_steps) == bool(self.evaluation.paths),
        'evaluation needs both an interval and evaluation.paths, or neither',
      ),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRunConfig:
  """How far a judge agrees with people: what `qed judge` reads."""

  program: Literal['judge']
  judge: JudgeConfig
  solutions: SolutionsConfig
  agreement: AgreementConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SolveConfig:
  """A model with a scaffold on one problem: what `qed solve` reads."""

  program: Literal['solve']
  scaffold: ScaffoldName
  seed: NonNegative  # Of every call, with its place.
  solver: SolverConfig
  sampling: SamplingConfig
  budget: BudgetConfig
  scaffolds: ScaffoldsConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRunConfig:
  """A model with a scaffold on a benchmark: what `qed evaluate` reads."""

  program: Literal['evaluate']
  # What tables call the model; the name of a published one puts its figures
  # beside (reporting/published.py).
  model_name: Name
  scaffold: ScaffoldName
  seed: NonNegative  # Of every call, with the attempt and its place.
  benchmark: BenchmarkConfig
  solver: SolverConfig
  sampling: SamplingConfig
  budget: BudgetConfig  # Of one attempt.
  scaffolds: ScaffoldsConfig
  judge: JudgeConfig

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CurateConfig:
  """From raw problems to a training set: what `qed curate` reads."""

  program: Literal['curate']
  # Those that ask a model, after the ones that do not; in their order.
  model_stages: ModelStages
  sources: SourcesConfig
  filters: FiltersConfig
  duplicates: DuplicatesConfig
  decontamination: DecontaminationConfig
  quality: QualityConfig
  rubrics: RubricsConfig
  difficulty: DifficultyConfig
  selection: SelectionConfig
  teacher: TeacherConfig
  prefixes: PrefixesConfig
  judge: JudgeConfig

  def __post_init__(self):
    schema.check_fields(self)
    stages = self.model_stages
    schema.require(
      self,
      *(
        (
          f'{name}.writer.base_url',
          bool(getattr(self, name).writer.base_url) or name not in stages,
          f'the stage {name!r} of model_stages needs the endpoint of a model',
        )
        for name in ('quality', 'rubrics', 'difficulty', 'teacher')
      ),
      *(
        (
          'model_stages',
          name not in stages or 'difficulty' in stages,
          f"{name!r} needs 'difficulty' before it",
        )
        for name in ('selection', 'prefixes')
      ),
    )


def _cache_rules(run: GrpoConfig) -> tuple[tuple[str, bool, str], ...]:
  """What states of a reasoning cache need of the sections together."""
  num_states, cache = run.rollout.states_per_problem, run.cache
  if not num_states:
    return (
      (
        'replay.max_summaries',
        run.replay.max_summaries == 0,
        'must be 0 with rollout.states_per_problem = 0: there are no summaries',
      ),
    )
  return (
    (
      'rollout.states_per_problem',
      num_states <= cache.num_turns + 1,
      f'must be at most {cache.num_turns + 1}: so many states are there of '
      f'cache.num_turns = {cache.num_turns}',
    ),
    (
      'problems.prompt',
      run.problems.prompt == cache.reason_prompt,
      f'must be cache.reason_prompt = {cache.reason_prompt!r}, which the first '
      'turn is drawn with, too',
    ),
    (
      'problems.max_prompt_tokens',
      run.problems.max_prompt_tokens > cache.summary.max_tokens,
      'must have room for a problem and a summary of cache.summary.max_tokens '
      f'= {cache.summary.max_tokens}',
    ),
  )


def _training_rules(
  run: SftConfig | GrpoConfig,
  *,
  tokenizer: str,
  max_tokens: int,
  num_samples: int,
) -> tuple[tuple[str, bool, str], ...]:
  """What every training run needs of its sections together.

  Args:
    run: the whole run.
    tokenizer: the path of the field with the tokenizer's folder.
    max_tokens: of the longest sample.
    num_samples: of a step.
  """
  packing, mesh, training = run.packing, run.mesh, run.training
  # First-fit opens a row only if no other has room, so that many samples of
  # any length up to the longest find a place.
  samples_per_row = packing.row_length // max(max_tokens - 1, 1)
  rows = packing.num_rows * packing.microbatch_counts[-1]
  return (
    (
      tokenizer,
      bool(run.model.path or operator.attrgetter(tokenizer)(run)),
      'random weights come without a tokenizer: name its folder',
    ),
    (
      'packing.row_length',
      samples_per_row > 0,
      f'must be at least {max_tokens - 1}: a sample has up to {max_tokens} '
      'tokens and is never divided over rows',
    ),
    (
      'packing.microbatch_counts',
      rows * samples_per_row >= num_samples or not samples_per_row,
      f'the largest times packing.num_rows is {rows} rows, which may not hold '
      f'the {num_samples} samples of a step ({samples_per_row} of the longest '
      'in a row)',
    ),
    (
      'packing.num_rows',
      mesh.data == -1 or packing.num_rows % mesh.data == 0,
      f'must be a multiple of mesh.data = {mesh.data}',
    ),
    (
      'packing.row_length',
      mesh.context == -1 or packing.row_length % mesh.context == 0,
      f'must be a multiple of mesh.context = {mesh.context}',
    ),
    (
      'optim.warmup_steps',
      not training.total_steps or run.optim.warmup_steps < training.total_steps,
      f'must be below training.total_steps = {training.total_steps}',
    ),
  )


RUNS = {
  'curate': CurateConfig,
  'sft': SftConfig,
  'grpo': GrpoConfig,
  'judge': JudgeRunConfig,
  'solve': SolveConfig,
  'evaluate': EvaluateRunConfig,
}

RunConfig = (
  CurateConfig
  | SftConfig
  | GrpoConfig
  | JudgeRunConfig
  | SolveConfig
  | EvaluateRunConfig
)


def build(values: Mapping[str, Any]) -> RunConfig:
  """The dataclasses of a config dictionary.

  Args:
    values: a ConfigDict of experiments/, or a parsed config.json; its entry
      `program` names one of `RUNS`.

  Raises:
    ConfigError: everything that is wrong with it: fields that are unknown (with
      the nearest that exists), missing, None, of the wrong type or out of
      bounds, and combinations that exclude each other.
  """
  program = values.get('program')
  if program not in list(RUNS):
    raise ConfigError([f'program = {program!r}: expected one of {list(RUNS)}'])
  return schema.build(RUNS[program], values)
