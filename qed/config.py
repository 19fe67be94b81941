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

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
  """How much is sampled for a step, and how old it may be."""

  problems_per_step: Positive
  # Rollouts of one prompt; an advantage compares at least two.
  group_size: Annotated[int, Rule(lambda n: n > 1, 'at least 2')]
  # In optimiser steps; 0: synchronous, -1: unbounded.
  max_lag: Annotated[int, Rule(lambda n: n >= -1, 'at least 0, or -1')]
  driver: Literal['scheduler', 'jetstream']  # What drives the engine.

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
  model: Name
  effort: Literal['', 'low', 'medium', 'high']  # '': not sent.
  temperature: NonNegativeFloat
  template: Name  # A rubric template of data/texts.
  with_reference: bool  # Whether the judge sees the reference proof.

  __post_init__ = schema.check_fields


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
  """The policy gradient: advantage, clipped ratio, extra terms, divisor."""

  advantage: Literal['mean_baseline', 'leave_one_out', 'z_score', 'max_rl']
  kind: Literal['ppo', 'reinforce', 'cispo', 'gspo']
  clip_low: NonNegativeFloat  # The ratio's interval is [1 - clip_low,
  clip_high: NonNegativeFloat  # 1 + clip_high].
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
  judge: JudgeConfig
  loss: LossConfig
  packing: PackingConfig
  optim: OptimConfig
  training: TrainingConfig

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
        'training.total_steps',
        self.training.total_steps > 0,
        'must be at least 1',
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


RUNS = {'sft': SftConfig, 'grpo': GrpoConfig}


def build(values: Mapping[str, Any]) -> SftConfig | GrpoConfig:
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
