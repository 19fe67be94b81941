"""What `qed grpo` reads before its first step, and what it finds to go on with.

Everything that is wrong with given files and values is told here, before a
device has work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from qed.config import ConfigError, GrpoConfig
from qed.rollout import prompts
from qed.types import Completion, Grade, Problem, TrainState

# jax takes seconds to import, and a wrong config is to be told in one.
if TYPE_CHECKING:
  import optax
  from jax.sharding import Mesh

  from qed.data.tokenizer import Tokenizer
  from qed.models import specs
  from qed.training.checkpoints import Checkpointer

# What may differ from one start of a run to the next: where things lie, how the
# same numbers are computed, and when to give up.
_MAY_CHANGE = (
  'model.path',
  'model.remat',
  'model.attention',
  'mesh',
  'problems.paths',
  'problems.tokenizer',
  'rollout.driver',
  'rollout.max_groups_in_flight',
  'rollout.max_groups_waiting',
  'rollout.deadline_secs',
  'sampler',
  'engine',
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
  'packing.num_rows',
  'packing.microbatch_counts',
  'training.logprob_chunk_size',
  'training.checkpoint_interval_steps',
  'training.max_checkpoints',
  'training.eval_interval_steps',
  'training.max_skipped_steps',
  'training.wandb_project',
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

  # (problem, completion, tokens it could have had) -> grade, reward.
  grade: Callable[
    [Problem, Completion, int], Awaitable[tuple[Grade, float | None]]
  ]
  wait_ready: Callable[[], Awaitable[None]]  # Returns when it is there.


def prepare(config: GrpoConfig, workdir: pathlib.Path) -> Run:
  """Reads everything but weights."""
  import jax

  from qed.data import tokenizer
  from qed.models import sharding
  from qed.training import checkpoints, initial, metrics, optimizer, rundir

  if jax.process_count() > 1:
    raise ValueError(
      f'expected one process, got {jax.process_count()}: the trainer of '
      '`qed grpo` does not run on several hosts yet; samplers may '
      "(sampler.placement = 'remote')"
    )
  metrics.check_wandb(config.training.wandb_project)
  for line in rundir.start(
    workdir, dataclasses.asdict(config), may_change=_MAY_CHANGE
  ):
    print(f'since the run began: {line}')
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  _check_mesh(config, mesh)
  model = initial.read_config(config.model.path, config.model.variant)
  tokenizer_dir = config.problems.tokenizer or initial.hf_folder(
    config.model.path
  )
  words = tokenizer.load(tokenizer_dir)
  if words.vocab_size > model.vocab_size:
    raise ValueError(
      f'problems.tokenizer: expected ids below the {model.vocab_size} rows of '
      f'the embedding, got {words.vocab_size} ids in {tokenizer_dir}'
    )
  practice = _load_problems(config, config.problems.paths, words)
  print(f'to practise on: {practice}')
  held_out = None
  if config.evaluation.paths:
    held_out = _load_problems(
      config, config.evaluation.paths, words, is_filtered=False
    )
    print(f'held out: {held_out}')
    _check_held_out(practice, held_out)
  for selection in filter(None, (practice, held_out)):
    _check_rubrics(config, selection)
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


def _check_mesh(config: GrpoConfig, mesh: Mesh) -> None:
  """Checks what the config alone cannot know when a size is -1."""
  for field, value, axis in (
    ('num_rows', config.packing.num_rows, 'data'),
    ('row_length', config.packing.row_length, 'context'),
  ):
    if value % mesh.shape[axis]:
      raise ConfigError(
        [
          f'packing.{field} = {value}: must be a multiple of the '
          f'{mesh.shape[axis]} devices of mesh.{axis}'
        ]
      )


def _load_problems(
  config: GrpoConfig,
  paths: Sequence[str],
  words: Tokenizer,
  *,
  is_filtered: bool = True,
) -> prompts.Selection:
  from qed.data import chat, problems, templates
  from qed.types import Message

  given = config.problems

  def make_prompt(problem):
    content = templates.render(given.prompt, problem=problem.statement)
    return chat.make_prompt(
      words,
      problem.problem_id,
      [Message(role='user', content=content)],
      style=given.chat_style,
    )

  found, report = problems.load_problems(*paths, malformed=given.malformed)
  print(report)
  return prompts.select(
    found,
    make_prompt,
    max_prompt_tokens=given.max_prompt_tokens,
    min_difficulty=given.min_difficulty if is_filtered else 0.0,
    max_difficulty=given.max_difficulty if is_filtered else 1.0,
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


def restore_or_start(
  run: Run, checkpointer: Checkpointer
) -> tuple[TrainState, Account]:
  """The newest state that is whole, or one at step 0."""
  from qed.training import initial, metrics, steps

  digest = prompts.digest(run.practice)
  restored = checkpointer.restore_latest_valid(
    steps.abstract_state(run.model, run.tx, run.mesh)
  )
  if restored:
    account = Account(**restored.extra)
    if account.data_digest != digest:
      raise ConfigError(
        [
          f'problems.paths: {run.workdir} practised on other problems than '
          'these files give now; bring those back, or use another --workdir'
        ]
      )
    print(f'restored step {restored.step} from {checkpointer.directory}')
    return restored.state, account
  record = run.workdir / 'metrics.jsonl'
  num_recorded = max(metrics.read(record), default=0) if record.exists() else 0
  # One save may have been in progress and another not have begun.
  if num_recorded > 2 * run.config.training.checkpoint_interval_steps:
    raise ConfigError(
      [
        f'{checkpointer.directory} has no checkpoint, though {record} has '
        f'{num_recorded} steps; bring it back, or use another --workdir'
      ]
    )
  print(f'no checkpoint in {checkpointer.directory}: this is step 0')
  params = initial.read_params(
    run.config.model.path, run.model, run.mesh, seed=run.config.training.seed
  )
  state = steps.init_state(params, run.model, run.tx, run.mesh)
  return state, Account(data_digest=digest)


@contextlib.asynccontextmanager
async def open_judge(run: Run) -> AsyncIterator[Grader]:
  """The judge of the config, with its verdicts in the run directory."""
  from qed.data import chat
  from qed.grading import rewards
  from qed.grading.judge import Judge
  from qed.grading.verdicts import Verdicts
  from qed.llm.http import Endpoint, Http, api_key

  judge = run.config.judge
  endpoint = Endpoint(
    base_url=judge.base_url,
    model=judge.model,
    api_key=api_key(judge.api_key_env),
    connect_secs=judge.connect_secs,
    deadline_secs=judge.deadline_secs,
    max_attempts=judge.max_attempts,
    max_connections=judge.max_concurrency,
  )
  with Verdicts(run.workdir / 'verdicts.sqlite') as store:
    async with Http(endpoint) as http:
      asked = Judge(http.ask, judge, store)

      async def grade(problem, completion, max_tokens):
        proof = completion.text
        if run.config.problems.chat_style == 'thinking':
          _, proof = chat.split_thinking(proof)
        verdict = await asked.grade(problem, proof)
        return verdict, rewards.reward(
          completion,
          verdict,
          max_tokens=max_tokens,
          **dataclasses.asdict(run.config.reward),
        )

      yield Grader(grade, asked.wait_ready)
