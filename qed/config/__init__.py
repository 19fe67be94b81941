"""Every value a run can be given: one frozen dataclass per config section.

A config dictionary (experiments/) has one entry per section, and a section is
exactly the keyword arguments of its dataclass here. Nothing has a default:
defaults live in experiments/base.py alone. `build` turns a dictionary into
dataclasses and reports everything that is wrong with it in one error.

No field is ever None: '' stands for "not given" where a text may be absent,
and 0 or -1 for what the field's comment says.
"""

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
  WriterConfig,
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
  HealthConfig,
  ProblemsConfig,
  ReasoningCacheConfig,
  ReplayConfig,
  RolloutConfig,
  SamplerConfig,
  SamplingConfig,
  SummarizerConfig,
)
from qed.config.runs import (
  RUNS,
  CurateConfig,
  EvaluateRunConfig,
  GrpoConfig,
  JudgeRunConfig,
  RunConfig,
  SftConfig,
  SolveConfig,
  build,
)
from qed.config.scaffolds import (
  BenchmarkConfig,
  BestOfNConfig,
  BudgetConfig,
  DeepseekMathConfig,
  NomosConfig,
  RsaConfig,
  ScaffoldName,
  ScaffoldsConfig,
  SelfcheckConfig,
  SingleConfig,
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

__all__ = [
  'RUNS',
  'AgreementConfig',
  'BenchmarkConfig',
  'BestOfNConfig',
  'BudgetConfig',
  'ConfigError',
  'CurateConfig',
  'DecontaminationConfig',
  'DeepseekMathConfig',
  'DifficultyConfig',
  'DuplicatesConfig',
  'EngineConfig',
  'EvaluateRunConfig',
  'EvaluationConfig',
  'FiltersConfig',
  'GrpoConfig',
  'HealthConfig',
  'JudgeConfig',
  'JudgeRunConfig',
  'LossConfig',
  'MeshConfig',
  'ModelConfig',
  'ModelStages',
  'NomosConfig',
  'OptimConfig',
  'PackingConfig',
  'PrefixesConfig',
  'ProblemsConfig',
  'QualityConfig',
  'ReasoningCacheConfig',
  'ReplayConfig',
  'RewardConfig',
  'RolloutConfig',
  'RsaConfig',
  'RubricsConfig',
  'RunConfig',
  'SamplerConfig',
  'SamplingConfig',
  'ScaffoldName',
  'ScaffoldsConfig',
  'SelectionConfig',
  'SelfcheckConfig',
  'SftConfig',
  'SftDataConfig',
  'SingleConfig',
  'SolutionsConfig',
  'SolveConfig',
  'SolverConfig',
  'SourcesConfig',
  'SummarizerConfig',
  'TeacherConfig',
  'TrainingConfig',
  'WriterConfig',
  'build',
]
