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

  def __post_init__(self):
    schema.check_fields(self)
    schema.require(
      self,
      (
        'max_groups_waiting',
        self.max_groups_waiting >= self.problems_per_step,
        'must be at least rollout.problems_per_step = '
        f'{self.problems_per_step}, which a step waits for',
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
        num_samples=self.rollout.problems_per_step * self.rollout.group_size,
      ),
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


RUNS = {'sft': SftConfig, 'grpo': GrpoConfig, 'judge': JudgeRunConfig}


def build(
  values: Mapping[str, Any],
) -> SftConfig | GrpoConfig | JudgeRunConfig:
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
