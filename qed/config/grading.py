"""Sections about judges, and what their scores are worth."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from qed import schema
from qed.config.fields import (
  Name,
  NonNegative,
  NonNegativeFloat,
  Paths,
  Positive,
  PositiveFloat,
)
from qed.schema import Rule


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
