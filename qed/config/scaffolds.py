"""Sections about scaffolds, what solves with them, and benchmarks."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

from qed import schema
from qed.config.fields import (
  Name,
  NonNegative,
  NonNegativeFloat,
  Positive,
  PositiveFloat,
)
from qed.config.rollout import (
  EngineConfig,
  ReasoningCacheConfig,
)
from qed.schema import Rule


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
