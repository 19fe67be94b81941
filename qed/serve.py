r"""Serves a model, by our engine, as OpenAI's API.

  qed serve --checkpoint=DIR --port=N [--FLAG=VALUE ...]
  qed serve --checkpoint=DIR --port=N --config=FILE[:ARM] --weights_dir=DIR

DIR is a checkpoint of `qed import` or of a run, or a Hugging Face folder. The
server answers /v1/completions (token ids, log-probs and policy versions, too),
/v1/chat/completions, /v1/models, /health and /metrics.

As a sampler of `qed grpo` it takes the sizes and the driver from the config of
that run, and its weights from there: POST {"version": N} to /v1/weights.

  qed serve --checkpoint=checkpoints/sft --port=8001
  qed serve --checkpoint=checkpoints/sft --port=8001 \
    --config=experiments/rl_main.py --weights_dir=runs/rl/weights

It listens to this machine alone unless --host says otherwise. If QED_API_KEY is
in the environment, all but /health ask for it. SIGTERM ends it with exit code
0: requests that are running may finish within --shutdown_secs, and what is left
is aborted and answered as far as it came.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from qed import cli
from qed.config import GrpoConfig
from qed.data import tokenizer

# jax takes seconds to import, and a wrong command line is to be told in one.
if TYPE_CHECKING:
  from jax.sharding import Mesh
  from starlette.applications import Starlette

  from qed.models import specs
  from qed.rollout.engine import Engine

_API_KEY = 'QED_API_KEY'
_LOOPBACK = ('127.0.0.1', '::1', 'localhost')
_DTYPES = ('bfloat16', 'float32')
# Where neither a flag nor a config says otherwise: one accelerator.
_SIZES = {
  'data': 1,
  'tensor': 1,
  'num_slots': 16,
  'max_length': 8_192,
  'page_size': 128,
  'num_pages': 0,
  'steps_per_chunk': 8,
  'prefill_buckets': (128, 512, 2_048),
  'kv_dtype': 'bfloat16',
  'dtype': 'bfloat16',
  'chat_style': 'thinking',
  'driver': 'scheduler',
}
_POLL_SECS = 0.1
_KEEP_ALIVE_SECS = 75
_FLUSH_SECS = 10  # For answers whose samples were aborted.


def main(argv: Sequence[str]) -> int:
  """Checks the command line, loads the model, and serves until a signal."""
  values = _flags()
  config = None
  if any(word.lstrip('-').partition('=')[0] == 'config' for word in argv):
    config = cli.parse_config(argv, values, run=GrpoConfig, usage=__doc__)
  else:
    cli.parse_flags(argv, values, usage=__doc__)
  for name in ('checkpoint', 'port'):
    if values[name].value is None:
      raise app.UsageError(f'--{name} is missing')
  cli.check_paths(('--checkpoint', values.checkpoint))
  with _listen(values.host, values.port) as listener:
    return _serve(values, _sizes(values, config), listener)


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()

  def text(name, default, about):
    flags.DEFINE_string(name, default, about, flag_values=values)

  def number(name, default, about, low=1, high=None):
    flags.DEFINE_integer(name, default, about, low, high, flag_values=values)

  def choice(name, options):
    about = f'{_SIZES[name]} if neither this nor a config says'
    flags.DEFINE_enum(name, None, options, about, flag_values=values)

  text('checkpoint', None, 'a checkpoint directory or a Hugging Face folder')
  number('port', None, 'where to listen; 0: any that is free', 0, 65_535)
  text('host', '127.0.0.1', 'the address to listen at; 0.0.0.0: all')
  text('weights_dir', '', 'weights/ of a run, for POST /v1/weights; none: no')
  text('tokenizer', '', 'its folder; that of the checkpoint if not given')
  text('model_name', 'policy', 'by which clients ask for it')
  for name, about in (
    ('data', 'devices that slots are divided over'),
    ('tensor', 'devices that heads are divided over'),
    ('num_slots', 'requests that are decoded at the same time'),
    ('max_length', 'tokens of a prompt and its completion'),
    ('page_size', 'tokens of a page of the cache'),
    ('steps_per_chunk', 'tokens of each slot between looks at the host'),
  ):
    number(name, None, f'{about}; {_SIZES[name]} if no config says', -1)
  choice('kv_dtype', (*_DTYPES, 'int8'))
  choice('dtype', _DTYPES)
  choice('chat_style', ('thinking', 'instruct', 'base'))
  choice('driver', ('scheduler', 'jetstream'))
  number('max_samples', 128, 'of one request')
  number('max_in_flight', 4_096, 'samples that wait or run')
  number('max_body_bytes', 4_000_000, 'of one request')
  number('body_secs', 30, 'until the body of a request is complete')
  number('shutdown_secs', 30, 'that requests may take after SIGTERM', 0)
  return values


def _sizes(
  values: flags.FlagValues, config: GrpoConfig | None
) -> dict[str, Any]:
  """What flags say, then the config of a run, then nobody."""
  sizes = dict(_SIZES)
  if config is not None:
    engine, sampler = config.engine, config.sampler
    sizes |= {
      name: getattr(engine, name) for name in sizes if hasattr(engine, name)
    }
    sizes |= {
      'data': sampler.data,
      'tensor': sampler.tensor,
      'max_length': config.max_request_tokens,
      'dtype': config.model.dtype,
      'chat_style': config.problems.chat_style,
      'driver': config.rollout.driver,
    }
  given = {
    name: values[name].value
    for name in sizes
    if name in values and values[name].value is not None
  }
  return sizes | given


def _listen(host: str, port: int) -> socket.socket:
  """Takes the port before the minutes that a model needs."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.socket(family, socket.SOCK_STREAM)
  listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listener.bind((host, port))
  except OSError as error:
    listener.close()
    raise app.UsageError(
      f'--host={host} --port={port}: {error.strerror}; choose another'
    ) from error
  return listener


def _serve(
  values: flags.FlagValues, sizes: Mapping[str, Any], listener: socket.socket
) -> int:
  import uvicorn

  from qed.models import hf_files
  from qed.rollout import drivers
  from qed.training import checkpoints, initial

  try:
    words = tokenizer.load(
      values.tokenizer or initial.hf_folder(values.checkpoint)
    )
    mesh = _mesh(sizes)
    params, model, version = _load(values, mesh, sizes['dtype'])
    engine = _engine(model, sizes, mesh)
  except (
    ValueError, FileNotFoundError,
    hf_files.FolderError, checkpoints.CheckpointError,
  ) as error:  # fmt: skip
    raise app.UsageError(str(error)) from error
  print(f'compiling for {sizes}', flush=True)
  engine.warm_up(params)
  scheduler = drivers.start(sizes['driver'], engine, params, version=version)
  del params  # The scheduler lets go of them when others come.
  try:
    application = _application(values, sizes, scheduler, engine, words)
    config = uvicorn.Config(
      application,
      log_level='warning',
      lifespan='off',
      timeout_keep_alive=_KEEP_ALIVE_SECS,
      timeout_graceful_shutdown=values.shutdown_secs + _FLUSH_SECS,
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    if host not in _LOOPBACK and not os.environ.get(_API_KEY):
      print(f'anybody who reaches {host} may use this: {_API_KEY} is not set')
    print(f'serving {values.model_name} at http://{host}:{port}/v1', flush=True)
    asyncio.run(
      _until_stopped(
        server, application, scheduler, listener, values.shutdown_secs
      )
    )
  finally:
    scheduler.close(0.0)
  if scheduler.failure is not None:
    raise scheduler.failure
  return cli.DONE


def _load(
  values: flags.FlagValues, mesh: Mesh | None, dtype: str
) -> tuple[Any, specs.Config, int]:
  """The newest weights of the run, or those of the checkpoint, as version 0.

  A server that is started again goes on with what others draw with: the run
  tells of weights once.
  """
  from qed.rollout import weights
  from qed.training import checkpoints, initial

  folder = values.weights_dir
  for version in reversed(weights.versions(folder) if folder else []):
    model = initial.read_config(values.checkpoint, '')
    try:
      params = weights.load(
        folder, version, config=model, mesh=mesh, dtype=dtype
      )
    except weights.VersionError as error:
      print(f'not these weights: {error}', flush=True)
    else:
      print(f'going on with version {version} of the weights', flush=True)
      return params, model, version
  return *checkpoints.load_model(values.checkpoint, mesh=mesh, dtype=dtype), 0


def _mesh(sizes: Mapping[str, Any]) -> Mesh | None:
  """The devices to use; None: the first one."""
  import jax

  from qed.models import sharding

  data, tensor = sizes['data'], sizes['tensor']
  if (data, tensor) == (1, 1):
    return None
  devices = jax.devices()
  if -1 not in (data, tensor):
    devices = devices[: data * tensor]
  return sharding.make_mesh(data=data, tensor=tensor, devices=devices)


def _engine(
  model: specs.Config, sizes: Mapping[str, Any], mesh: Mesh | None
) -> Engine:
  from qed.rollout import engine

  fields = dataclasses.fields(engine.Layout)
  layout = {field.name: sizes[field.name] for field in fields}
  if not layout['num_pages']:
    num_parts = 1 if mesh is None else mesh.shape['data']
    pages_per_slot = -(-layout['max_length'] // layout['page_size'])
    layout['num_pages'] = layout['num_slots'] * pages_per_slot + num_parts
    # Every part has as many, the one that is never given out among them.
    layout['num_pages'] += -layout['num_pages'] % num_parts
  return engine.Engine(
    model, engine.Layout(**layout), mesh=mesh, dtype=sizes['dtype']
  )


def _application(
  values: flags.FlagValues,
  sizes: Mapping[str, Any],
  scheduler: Any,
  engine: Engine,
  words: tokenizer.Tokenizer,
) -> Starlette:
  from qed.rollout import engine as engines
  from qed.rollout import http_api, http_requests, weights

  folder = pathlib.Path(values.weights_dir)

  def load(version):
    return weights.load(
      folder,
      version,
      config=engine.config,
      mesh=engine.mesh,
      dtype=sizes['dtype'],
    )

  settings = http_api.Settings(
    model=values.model_name,
    chat_style=sizes['chat_style'],
    limits=http_requests.Limits(
      max_length=engine.layout.max_length,
      vocab_size=engine.config.vocab_size,
      max_samples=values.max_samples,
      max_stop_tokens=engines.MAX_STOP_TOKENS,
      max_in_flight=values.max_in_flight,
      max_body_bytes=values.max_body_bytes,
      body_secs=values.body_secs,
    ),
    api_key=os.environ.get(_API_KEY, ''),
    load=load if values.weights_dir else None,
    list_versions=lambda: (
      weights.versions(folder) if values.weights_dir else []
    ),
  )
  return http_api.app(scheduler, words, settings)


async def _until_stopped(
  server: Any,
  application: Starlette,
  scheduler: Any,
  listener: socket.socket,
  shutdown_secs: float,
) -> None:
  """Serves until a signal or a failure; then requests may finish, or not."""

  def stop(*_):
    server.should_exit = True

  # The server raises a signal that it caught once more when it is done.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
  serving = asyncio.ensure_future(server.serve(sockets=[listener]))
  while not (server.should_exit or serving.done() or scheduler.failure):
    await asyncio.sleep(_POLL_SECS)
  stop()
  api = application.state.api
  api.stop_accepting()
  await asyncio.wait([serving], timeout=shutdown_secs)
  api.abort()
  await serving


if __name__ == '__main__':
  sys.exit(cli.run(main))
