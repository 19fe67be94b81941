"""Where `qed grpo` draws its rollouts: in this process, or at `qed serve`.

Either way a sampler draws one completion at a time of a prompt's ids, and goes
on with new weights in the middle of what it is drawing; every token says which
version drew it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qed.llm import wire
from qed.types import Completion, Prompt, SamplingParams

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from qed.config import GrpoConfig, SamplerConfig
  from qed.llm.http import Http
  from qed.models import specs
  from qed.preparation import Run
  from qed.rollout.engine import Engine

_FIRST_WAIT_SECS, _MAX_WAIT_SECS = 1.0, 30.0


class Sampler(Protocol):
  """What draws rollouts."""

  async def sample(
    self, prompt: Prompt, params: SamplingParams, *, group: int
  ) -> Completion:
    """Draws a completion; one that could not be finished says 'abort'."""
    ...

  async def update(self, params: Any, version: int) -> None:
    """Returns once everything is drawn with these weights.

    Args:
      params: a copy of the weights that is the sampler's from now on.
      version: the step that made them.
    """
    ...


def publish(run: Run, params: Any, version: int) -> None:
  """Writes a version of the weights where remote samplers find it.

  With several processes all must call.
  """
  from qed.rollout import weights

  weights.publish(
    pathlib.Path(run.workdir) / 'weights',
    params,
    run.model,
    version,
    max_versions=run.config.sampler.max_weight_versions,
    dtype=run.config.model.dtype,
  )


@contextlib.asynccontextmanager
async def open_sampler(
  run: Run, params: Any, version: int
) -> AsyncIterator[Sampler]:
  """The sampler of the config, drawing with the given weights.

  Args:
    run: its config says which.
    params: weights on the trainer's mesh.
    version: theirs.
  """
  if run.config.sampler.placement == 'remote':
    async with contextlib.AsyncExitStack() as stack:
      sampler = await stack.enter_async_context(_open_remote(run))
      await sampler.update(params, version)
      yield sampler
    return
  from qed.rollout import drivers

  config, mesh = run.config, make_mesh(run)
  params = _move(run, params, mesh)
  engine = make_engine(
    config, run.model, mesh, max_length=config.max_request_tokens
  )
  await asyncio.to_thread(engine.warm_up, params)
  scheduler = drivers.start(
    config.rollout.driver, engine, params, version=version
  )
  try:
    yield Local(run, scheduler, mesh)
  finally:
    await asyncio.to_thread(scheduler.close, 0.0)


class Local:
  """Our engine in this process, on the trainer's devices or others."""

  def __init__(self, run: Run, scheduler: Any, mesh: Mesh):
    """Takes over a scheduler."""
    self._run, self._scheduler, self._mesh = run, scheduler, mesh

  async def sample(
    self, prompt: Prompt, params: SamplingParams, *, group: int
  ) -> Completion:
    """Draws a completion."""
    stream = self._scheduler.submit(
      prompt.token_ids,
      params,
      group=group,
      deadline_secs=self._run.config.rollout.deadline_secs,
    )
    try:
      completion = await stream.completion()
    except asyncio.CancelledError:
      stream.cancel()
      raise
    return dataclasses.replace(
      completion, text=_text(self._run, completion.token_ids)
    )

  async def update(self, params: Any, version: int) -> None:
    """Swaps the weights between two chunks."""
    params = _move(self._run, params, self._mesh)
    await asyncio.wrap_future(self._scheduler.update_weights(params, version))


class Remote:
  """Any number of `qed serve`, or what speaks like it."""

  def __init__(self, run: Run, servers: list[Http]):
    """Takes servers over; `update` comes before anything else."""
    self._run, self._servers = run, servers
    self._version = 0

  async def sample(
    self, prompt: Prompt, params: SamplingParams, *, group: int
  ) -> Completion:
    """Draws a completion; while no server answers, it waits."""
    from qed.llm import patience

    # A group stays together, since its members share the prompt.
    server = self._servers[group % len(self._servers)]
    version = self._version
    (completion,) = await patience.until_answered(
      lambda: server.sample(prompt, params, group=str(group)), who='sampler'
    )
    # A server that does not say what drew a token began with this version.
    versions = completion.versions
    return dataclasses.replace(
      completion,
      text=_text(self._run, completion.token_ids),
      versions=np.where(versions == wire.NO_VERSION, version, versions),
    )

  async def update(self, params: Any, version: int) -> None:
    """Writes the weights out, unless that is done; has every server load them.

    Args:
      params: a copy of the weights, or None where they are published.
      version: the step that made them.
    """
    if params is not None:
      await asyncio.to_thread(publish, self._run, params, version)
    sampler = self._run.config.sampler
    await asyncio.gather(
      *(_load_weights(url, version, sampler) for url in sampler.urls)
    )
    self._version = version


async def _load_weights(url: str, version: int, sampler: SamplerConfig) -> None:
  """Has a server go on with a version; waits for one that does not answer.

  Raises:
    OSError: it refused as often as `max_attempts` says.
  """
  headers = {'Content-Type': 'application/json'}
  if sampler.api_key_env:
    headers['Authorization'] = f'Bearer {os.environ[sampler.api_key_env]}'
  request = urllib.request.Request(
    f'{url.rstrip("/")}/weights',
    data=json.dumps({'version': version}).encode(),
    headers=headers,
  )

  def ask() -> None:
    with urllib.request.urlopen(request, timeout=sampler.load_secs):
      pass

  num_refusals, wait_secs = 0, _FIRST_WAIT_SECS
  while True:
    try:
      return await asyncio.to_thread(ask)
    except urllib.error.HTTPError as error:
      num_refusals += 1
      detail = f'{error}: {error.read(500)!r}'
      if num_refusals == sampler.max_attempts:
        raise OSError(
          f'{request.full_url}: expected it to load version {version} of the '
          f'weights, got {detail} ({num_refusals} attempts)'
        ) from error
    except OSError as error:
      detail = str(error)
    print(f'sampler: {request.full_url}: {detail}; trying again', flush=True)
    await asyncio.sleep(wait_secs)
    wait_secs = min(2 * wait_secs, _MAX_WAIT_SECS)


@contextlib.asynccontextmanager
async def _open_remote(run: Run) -> AsyncIterator[Remote]:
  from qed.llm.http import Endpoint, Http, api_key

  sampler, rollout = run.config.sampler, run.config.rollout
  async with contextlib.AsyncExitStack() as stack:
    servers = [
      await stack.enter_async_context(
        Http(
          Endpoint(
            base_url=url,
            model=sampler.model,
            api_key=api_key(sampler.api_key_env),
            connect_secs=sampler.connect_secs,
            deadline_secs=rollout.deadline_secs,
            max_attempts=sampler.max_attempts,
            max_connections=rollout.max_groups_in_flight * rollout.group_size,
          )
        )
      )
      for url in sampler.urls
    ]
    yield Remote(run, servers)


def make_engine(
  config: GrpoConfig, model: specs.Config, mesh: Mesh, *, max_length: int
) -> Engine:
  """An engine of the config, for a model.

  Args:
    config: of the run.
    model: what draws.
    mesh: of its weights.
    max_length: of a prompt and its completion, in tokens.
  """
  import jax.numpy as jnp

  from qed.rollout import engine

  layout = engine.make_layout(
    max_length=max_length,
    num_parts=mesh.shape['data'],
    **dataclasses.asdict(config.engine),
  )
  dtype = jnp.dtype(config.model.dtype)
  return engine.Engine(model, layout, mesh=mesh, dtype=dtype)


def make_mesh(run: Run) -> Mesh:
  """The devices of what draws in this process.

  Raises:
    ValueError: the trainer has left none.
  """
  import jax

  from qed.models import sharding

  sampler = run.config.sampler
  if sampler.placement != 'separate':
    devices = list(run.mesh.devices.flat)
  else:
    taken = {*run.mesh.devices.flat}
    devices = [device for device in jax.devices() if device not in taken]
    if not devices:
      raise ValueError(
        "sampler.placement = 'separate': expected devices that the trainer has "
        f'left, got none of {jax.device_count()}; make the mesh of the trainer '
        'smaller (mesh.data, mesh.context, mesh.tensor)'
      )
  return sharding.make_mesh(
    data=sampler.data, tensor=sampler.tensor, devices=devices
  )


def _move(run: Run, params: Any, mesh: Mesh) -> Any:
  """Lays weights out on the sampler's mesh."""
  import jax

  from qed.models import sharding

  return jax.device_put(params, sharding.param_shardings(run.model, mesh))


def _text(run: Run, token_ids: np.ndarray) -> str:
  """What was written, without the stop token."""
  is_stopped = len(token_ids) and token_ids[-1] in run.words.stop_token_ids
  return run.words.decode(token_ids[:-1] if is_stopped else token_ids)
