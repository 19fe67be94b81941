"""Sections about the stages of curation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from qed import schema
from qed.config.fields import (
  Fraction,
  Name,
  NonNegative,
  Paths,
  Positive,
  PositiveFloat,
  Share,
)
from qed.config.rollout import (
  SamplingConfig,
)
from qed.schema import Rule

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
