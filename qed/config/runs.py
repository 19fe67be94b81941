"""What each program reads: its sections, and what they need together."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, Literal

from qed import schema
from qed.config.curation import (
  DecontaminationConfig,
  DifficultyConfig,
  DuplicatesConfig,
  FiltersConfig,
  ModelStages,
  PrefixesConfig,
  QualityConfig,
  RubricsConfig,
  SelectionConfig,
  SourcesConfig,
  TeacherConfig,
)
from qed.config.fields import (
  Name,
  NonNegative,
)
from qed.config.grading import (
  AgreementConfig,
  JudgeConfig,
  RewardConfig,
  SolutionsConfig,
)
from qed.config.rollout import (
  EngineConfig,
  EvaluationConfig,
  GuidanceConfig,
  HealthConfig,
  ProblemsConfig,
  ReasoningCacheConfig,
  ReplayConfig,
  RolloutConfig,
  SamplerConfig,
  SamplingConfig,
  SummarizerConfig,
)
from qed.config.scaffolds import (
  BenchmarkConfig,
  BudgetConfig,
  ScaffoldName,
  ScaffoldsConfig,
  SolverConfig,
)
from qed.config.training import (
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PackingConfig,
  SftDataConfig,
  TrainingConfig,
)
from qed.schema import ConfigError


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
  guidance: GuidanceConfig
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
      (
        'guidance.paths',
        bool(self.guidance.paths) == bool(self.rollout.guided_per_problem),
        'guided groups need both beginnings of proofs and '
        'rollout.guided_per_problem, or neither',
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
