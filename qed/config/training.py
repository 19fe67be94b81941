"""Sections about the model and its training."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from qed import schema
from qed.config.fields import (
  AxisSize,
  Fraction,
  Name,
  NonNegative,
  NonNegativeFloat,
  Paths,
  Positive,
  PositiveFloat,
)
from qed.schema import Rule


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
