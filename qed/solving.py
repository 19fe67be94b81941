"""The model that solves, opened, and the scaffolds by their names.

What `qed solve` and `qed evaluate` have in common. Calls go through

  Journaled -> Bounded -> Chat                     an endpoint for chat
  Journaled -> Bounded -> Rendered -> Http         a server that takes token ids
  Journaled -> Bounded -> Rendered -> Local        our engine, in this process

so that what is on record waits for nobody, and one bound is that of all
problems.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import app

from qed.config import ConfigError, SamplingConfig, SolverConfig
from qed.data import chat, tokenizer
from qed.llm import http
from qed.llm.bounded import Bounded
from qed.llm.chat import Chat, Rendered
from qed.llm.journal import Journal, Journaled
from qed.scaffolds import (
  best_of_n,
  deepseek_math,
  nomos,
  prompts,
  reasoning_cache,
  rsa,
  selfcheck,
  single,
)
from qed.scaffolds.calls import SOLVER
from qed.types import Llm

# jax takes seconds to import, and only local weights need it.
if TYPE_CHECKING:
  from qed.models import specs

SCAFFOLDS = {
  'single': single.solve,
  'best_of_n': best_of_n.solve,
  'reasoning_cache': reasoning_cache.solve,
  'rsa': rsa.solve,
  'selfcheck': selfcheck.solve,
  'deepseek_math': deepseek_math.solve,
  'nomos': nomos.solve,
}
# Scaffold -> the slots that each of its templates is offered.
_SLOTS = {
  'single': single.SLOTS,
  'best_of_n': best_of_n.SLOTS,
  'rsa': rsa.SLOTS,
  'selfcheck': selfcheck.SLOTS,
  'deepseek_math': deepseek_math.SLOTS,
  'nomos': nomos.SLOTS,
}
_CLOSE_SECS = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
  """Models that can be asked, and how to read what they say.

  Attributes:
    llm: of every role that has a model of its own, and of 'solver'.
    style: of the answers of each, as `scaffolds.calls.Setup` has it.
    stop_token_ids: that end a completion; none for an endpoint.
    identity: of the models: equal ones give equal answers to equal calls.
    failures: what a call may raise that is no bug.
  """

  llm: Mapping[str, Journaled]
  style: Mapping[str, chat.ChatStyle]
  stop_token_ids: tuple[int, ...]
  identity: str
  failures: tuple[type[Exception], ...]
  bounds: tuple[Bounded, ...]

  @property
  def num_paid(self) -> int:
    """Completions that were drawn."""
    return sum(llm.num_paid for llm in self.llm.values())

  @property
  def num_recalled(self) -> int:
    """Completions that were on record."""
    return sum(llm.num_recalled for llm in self.llm.values())

  @property
  def most_running(self) -> int:
    """Calls in flight at the same time, at most, of one model."""
    return max(bound.most_running for bound in self.bounds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
  """One model, before its calls are bounded and recorded."""

  llm: Llm
  name: str  # Different for models that answer differently.
  style: chat.ChatStyle
  stop_token_ids: tuple[int, ...] = ()
  failures: tuple[type[Exception], ...] = (http.Failure,)


def check(name: str, section: Any) -> None:
  """Refuses templates that a scaffold cannot fill in.

  Args:
    name: of the scaffold.
    section: of the config, its own.

  Raises:
    ConfigError: a template does not exist, or has other slots.
  """
  try:
    if name == 'reasoning_cache':
      reasoning_cache.check(section)
    else:
      prompts.check(section, _SLOTS[name])
  except ValueError as error:
    raise ConfigError([f'scaffolds.{name}.{error}']) from error


@contextlib.asynccontextmanager
async def opened(
  config: SolverConfig,
  *,
  sampling: SamplingConfig,
  workdir: str | os.PathLike[str],
) -> AsyncIterator[Opened]:
  """Opens the models of a config, with their calls on record in a folder.

  Args:
    config: of the models.
    sampling: the completions of local weights have at most its tokens.
    workdir: calls.sqlite in it is the record.

  Raises:
    UsageError: an endpoint cannot be reached or asked, or there are no weights,
      no tokenizer or no record in what is called so.
  """
  async with contextlib.AsyncExitStack() as stack:
    models = {SOLVER: await _open_solver(config, sampling, stack)}
    for role in config.roles:
      name, _, other = role.partition('=')
      model, _, url = other.partition('@')
      played = dataclasses.replace(
        config, kind='chat', path='', base_url=url, model=model, roles=()
      )
      models[name] = await _open_chat(played, stack)
    try:
      path = pathlib.Path(workdir) / 'calls.sqlite'
      journal = stack.enter_context(Journal(path))
    except ValueError as error:
      raise app.UsageError(str(error)) from error
    bounds = {
      role: Bounded(model.llm, config.max_concurrency)
      for role, model in models.items()
    }
    names = sorted(f'{role}={model.name}' for role, model in models.items())
    yield Opened(
      llm={
        role: Journaled(bounds[role], journal, model.name)
        for role, model in models.items()
      },
      style={role: model.style for role, model in models.items()},
      stop_token_ids=models[SOLVER].stop_token_ids,
      identity=' '.join(names),
      failures=tuple({x: 0 for m in models.values() for x in m.failures}),
      bounds=tuple(bounds.values()),
    )


async def _open_solver(
  config: SolverConfig,
  sampling: SamplingConfig,
  stack: contextlib.AsyncExitStack,
) -> _Model:
  if config.kind == 'chat':
    return await _open_chat(config, stack)
  words = _load_tokenizer(config.path)
  if config.kind == 'ids':
    client, model = await _open_client(config, stack)
    llm, weights, failures = client, model, (http.Failure,)
  else:
    # A prompt that is longer than the engine takes raises a ValueError.
    failures = (ValueError,)
    llm, weights = _open_engine(config, sampling, words, stack)
  encode = functools.partial(chat.encode_chat, words, style=config.chat_style)
  think_end = words.special_ids.get(tokenizer.THINK_END)
  return _Model(
    llm=Rendered(llm, encode, think_end),
    name=f'{weights} {config.chat_style}',
    style=config.chat_style,
    stop_token_ids=words.stop_token_ids,
    failures=failures,
  )


async def _open_chat(
  config: SolverConfig, stack: contextlib.AsyncExitStack
) -> _Model:
  client, model = await _open_client(config, stack)
  return _Model(
    llm=Chat(client, effort=config.effort, sends_seed=config.sends_seed),
    name=f'{model} {config.effort}'.strip(),
    style=config.chat_style,
  )


async def _open_client(
  config: SolverConfig, stack: contextlib.AsyncExitStack
) -> tuple[http.Http, str]:
  """An endpoint that answers, and the name to ask it by."""
  try:
    endpoint = http.Endpoint.from_config(config)
  except ValueError as error:
    raise app.UsageError(f'solver.api_key_env: {error}') from error

  def client(model: str) -> http.Http:
    return http.Http(dataclasses.replace(endpoint, model=model))

  where = f'solver.base_url = {config.base_url!r}'
  try:
    async with client(config.model) as asked:
      names = await asked.models()
  except http.Failure as failure:
    # Some endpoints list no models and still answer.
    if failure.kind == 'connect' or not config.model:
      raise app.UsageError(f'{where}: {failure}') from failure
    names = []
  if not config.model and len(names) != 1:
    raise app.UsageError(
      f'{where}: expected one model, got {len(names)}: {", ".join(names[:9])}; '
      'choose with --model or solver.model'
    )
  model = config.model or names[0]
  return await stack.enter_async_context(client(model)), model


def _load_tokenizer(path: str) -> tokenizer.Tokenizer:
  folder = pathlib.Path(path)
  if not (folder / 'tokenizer_config.json').exists():
    folder = folder / 'hf'  # Of a checkpoint.
  try:
    return tokenizer.load(folder)
  except (ValueError, FileNotFoundError) as error:
    raise app.UsageError(f'solver.path = {path!r}: {error}') from error


def _open_engine(
  config: SolverConfig,
  sampling: SamplingConfig,
  words: tokenizer.Tokenizer,
  stack: contextlib.AsyncExitStack,
) -> tuple[Llm, str]:
  """Weights in this process, and a digest of them."""
  import jax.numpy as jnp

  from qed.llm.local import Local
  from qed.rollout import engine, scheduler
  from qed.training import checkpoints, initial

  max_length = config.max_prompt_tokens + sampling.max_tokens
  dtype = jnp.dtype(config.dtype)
  try:
    carried = dict(initial.read_config(config.path, '').carried)
    most = carried.get('max_position_embeddings', max_length)
    if max_length > most:
      raise ValueError(
        f'expected a model of {max_length} positions, got one of {most}; lower '
        f'solver.max_prompt_tokens = {config.max_prompt_tokens} or '
        f'sampling.max_tokens = {sampling.max_tokens}'
      )
    params, model = checkpoints.load_model(config.path, dtype=dtype)
    layout = engine.make_layout(
      max_length=max_length, **dataclasses.asdict(config.engine)
    )
  except (ValueError, FileNotFoundError) as error:
    raise app.UsageError(f'solver.path = {config.path!r}: {error}') from error
  draws = engine.Engine(model, layout, dtype=dtype)
  print(f'compiling for {max_length} tokens', flush=True)
  draws.warm_up(params)
  driver = scheduler.Scheduler(draws, params)
  stack.callback(driver.close, _CLOSE_SECS)
  return Local(driver, words.decode), _digest(params, model)


def _digest(params: Any, model: specs.Config) -> str:
  """Sixteen hexadecimal digits that depend on every weight."""
  import jax

  from qed.training.fingerprints import fingerprint

  prints = [
    (jax.tree_util.keystr(path), fingerprint(x))
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  ]
  content = f'{model}{prints}'
  return hashlib.sha256(content.encode()).hexdigest()[:16]
