"""What `qed grpo` reads before its first step.

Everything that is wrong with given files and values is told here, before a
device has work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from qed import startup
from qed.config import ConfigError, GrpoConfig
from qed.data import guidance
from qed.rollout import guided, prompts
from qed.scaffolds import reasoning_cache
from qed.types import (
  CacheState,
  Completion,
  Grade,
  Message,
  Problem,
  Prompt,
)

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  import optax
  from jax.sharding import Mesh

  from qed.data.tokenizer import Tokenizer
  from qed.models import specs

# What may differ from one start of a run to the next.
_MAY_CHANGE = (
  *startup.MAY_CHANGE,
  'problems.paths',
  'problems.tokenizer',
  'rollout.driver',
  'rollout.max_groups_in_flight',
  'rollout.max_groups_waiting',
  'rollout.deadline_secs',
  'guidance.paths',
  'sampler',
  'engine',
  'summarizer.base_url',
  'summarizer.api_key_env',
  'summarizer.connect_secs',
  'summarizer.deadline_secs',
  'summarizer.max_attempts',
  'summarizer.max_concurrency',
  'judge.base_url',
  'judge.api_key_env',
  'judge.connect_secs',
  'judge.deadline_secs',
  'judge.max_attempts',
  'judge.patience_secs',
  'judge.max_concurrency',
  'judge.tokens_per_minute',
  'judge.max_failures',
  'judge.cooldown_secs',
  'judge.usd_per_million_prompt',
  'judge.usd_per_million_completion',
  'evaluation',
  'health',
)


class Run(NamedTuple):
  """What is the same at every step."""

  config: GrpoConfig
  workdir: pathlib.Path
  mesh: Mesh
  model: specs.Config
  tx: optax.GradientTransformationExtraArgs
  words: Tokenizer
  practice: prompts.Selection
  held_out: prompts.Selection | None


@dataclasses.dataclass(slots=True, kw_only=True)
class Account:
  """What a checkpoint keeps beside the state."""

  data_digest: str
  num_skipped: int = 0
  secs: float = 0.0
  ill_steps: dict[str, int] = dataclasses.field(default_factory=dict)
  collector: dict[str, Any] = dataclasses.field(default_factory=dict)


class Grader(NamedTuple):
  """Who grades proofs."""

  # (problem, completion, tokens it could have had, the beginning of a proof
  # that it goes on from) -> grade of the whole proof, reward.
  grade: Callable[
    [Problem, Completion, int, str], Awaitable[tuple[Grade, float | None]]
  ]
  wait_ready: Callable[[], Awaitable[None]]  # Returns when it is there.


def prepare(config: GrpoConfig, workdir: pathlib.Path) -> Run:
  """Reads everything but weights."""
  import jax

  from qed.models import sharding
  from qed.training import checkpoints, initial, metrics, optimizer, rundir

  _check_processes(config, jax.process_count())
  metrics.check_wandb(config.training.wandb_project)
  for line in rundir.start(
    workdir, dataclasses.asdict(config), may_change=_MAY_CHANGE
  ):
    startup.say(f'since the run began: {line}')
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  startup.check_mesh(config.packing, mesh)
  model = initial.read_config(config.model.path, config.model.variant)
  tokenizer_dir = config.problems.tokenizer or initial.hf_folder(
    config.model.path
  )
  words = startup.load_tokenizer(
    tokenizer_dir, model, field='problems.tokenizer'
  )
  practice = _load_problems(config, config.problems.paths, words)
  startup.say(f'to practise on: {practice}')
  held_out = None
  if config.evaluation.paths:
    held_out = _load_problems(
      config, config.evaluation.paths, words, is_filtered=False
    )
    startup.say(f'held out: {held_out}')
    _check_held_out(practice, held_out)
  for selection in filter(None, (practice, held_out)):
    _check_rubrics(config, selection)
  practice = _with_guidance(config, practice, words)
  tx = optimizer.make(
    num_steps=config.training.total_steps,
    model=model,
    **dataclasses.asdict(config.optim),
  )
  checkpoints.write_model_files(
    workdir / 'checkpoints',
    model,
    tokenizer_dir=tokenizer_dir,
    dtype=config.model.dtype,
  )
  return Run(config, workdir, mesh, model, tx, words, practice, held_out)


def _check_processes(config: GrpoConfig, count: int) -> None:
  """Refuses what draws in this process where it is one of several."""
  if count == 1:
    return
  problems, placement = [], config.sampler.placement
  if placement != 'remote':
    problems.append(
      f'sampler.placement = {placement!r}: the {count} processes of a trainer '
      "have no sampler in them; start `qed serve`, take 'remote', and name the "
      'addresses in sampler.urls'
    )
  if config.rollout.states_per_problem and config.summarizer.path:
    problems.append(
      f"summarizer.source = 'frozen': the {count} processes of a trainer have "
      "no summarizer in them; take 'policy', or 'endpoint' and a `qed serve` "
      'of its own'
    )
  if problems:
    raise ConfigError(problems)


def _load_problems(
  config: GrpoConfig,
  paths: Sequence[str],
  words: Tokenizer,
  *,
  is_filtered: bool = True,
) -> prompts.Selection:
  from qed.data import problems

  given = config.problems
  room = given.max_prompt_tokens
  if config.rollout.states_per_problem:
    reasoning_cache.check(config.cache)
    room -= config.cache.summary.max_tokens  # Which later prompts have.

  def make_prompt(problem):
    return state_prompt(config, words, reasoning_cache.first_state(problem))

  found, report = problems.load_problems(*paths, malformed=given.malformed)
  startup.say(report)
  return prompts.select(
    found,
    make_prompt,
    max_prompt_tokens=room,
    min_difficulty=given.min_difficulty if is_filtered else 0.0,
    max_difficulty=given.max_difficulty if is_filtered else 1.0,
  )


def _with_guidance(
  config: GrpoConfig, practice: prompts.Selection, words: Tokenizer
) -> prompts.Selection:
  """A copy of each problem for each of its groups; some are guided."""
  from qed.data import chat

  given, prefixes = config.guidance, {}
  if given.paths:
    prefixes, report = guidance.load(
      *given.paths, malformed=config.problems.malformed
    )
    startup.say(report)

  def make_prompt(problem, prefix):
    content = guidance.question(problem.statement, prefix, given.prompt)
    return chat.make_prompt(
      words,
      problem.problem_id,
      (Message(role='user', content=content),),
      style=config.problems.chat_style,
      kind='guided',
    )

  mixed = guided.mix(
    practice,
    prefixes,
    make_prompt,
    guided_per_problem=config.rollout.guided_per_problem,
    unguided_per_problem=config.rollout.unguided_per_problem,
    max_prompt_tokens=config.problems.max_prompt_tokens,
  )
  if prefixes:
    startup.say(f'guided: {mixed}')
  return mixed.selection


def state_prompt(
  config: GrpoConfig, words: Tokenizer, state: CacheState
) -> Prompt:
  """What the policy is given of a problem, or in a turn of a cache.

  Without a cache there is no other state than the first.
  """
  from qed.data import chat, templates

  if config.rollout.states_per_problem:
    messages = reasoning_cache.reason_messages(config.cache, state)
  else:
    content = templates.render(
      config.problems.prompt, problem=state.problem.statement
    )
    messages = (Message(role='user', content=content),)
  return chat.make_prompt(
    words,
    state.problem.problem_id,
    messages,
    style=config.problems.chat_style,
    kind='cached' if state.summary else 'plain',
    turn=state.turn,
  )


def _check_rubrics(config: GrpoConfig, selection: prompts.Selection) -> None:
  """Refuses problems that the judge's template has no rubric for."""
  from qed.grading import rubrics

  for problem in selection.problems:
    rubrics.render(
      config.judge.template,
      problem,
      'A proof.',
      with_reference=config.judge.with_reference,
    )


def _check_held_out(
  practice: prompts.Selection, held_out: prompts.Selection
) -> None:
  """Refuses to practise on what is held out."""
  known = {' '.join(problem.statement.split()) for problem in practice.problems}
  both = [
    problem.problem_id
    for problem in held_out.problems
    if ' '.join(problem.statement.split()) in known
  ]
  if both:
    raise ValueError(
      f'evaluation.paths: expected problems that are not in problems.paths, '
      f'got {len(both)} that are: {", ".join(both[:5])}'
    )


@contextlib.asynccontextmanager
async def open_judge(run: Run) -> AsyncIterator[Grader]:
  """The judge of the config, with its verdicts in the run directory."""
  from qed import judge
  from qed.data import chat
  from qed.grading import rewards

  record = run.workdir / 'verdicts.sqlite'
  async with judge.opened(run.config.judge, record) as asked:

    async def grade(problem, completion, max_tokens, prefix):
      proof = completion.text
      if run.config.problems.chat_style == 'thinking':
        _, proof = chat.split_thinking(proof)
      proof = guidance.whole_proof(prefix, proof)
      verdict = await asked.grade(problem, proof)
      return verdict, rewards.reward(
        completion,
        verdict,
        max_tokens=max_tokens,
        **dataclasses.asdict(run.config.reward),
      )

    yield Grader(grade, asked.wait_ready)
