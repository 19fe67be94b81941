r"""Whether training, or sampling, fits a slice of TPUs, and how fast it is.

  qed plan --config=FILE[:ARM] --topology=GENERATION:AxB[xC] [--FLAG=VALUE ...]

Compiles the very step of `qed sft` or `qed grpo` for hardware that is not
there: no TPU, no weights and no data are needed, only the TPU compiler
(pip install 'qed[tpu]'), 3 GB of memory and a few minutes. What has been
compiled once is remembered.

  qed plan --config=experiments/sft_main.py --topology=v5p:2x4x4
  qed plan --config=experiments/rl_main.py --topology=v6e:8x8 --search
  qed plan --config=experiments/sft_main.py --topology=v5e:8x8 \
    --config.mesh.context=4 --config.packing.num_rows=16 \
    --config.packing.microbatch_counts=1,2
  qed plan --config=experiments/rl_main.py --topology=v6e:2x4 --what=decode

Memory is what the compiler assigns, and FLOPs are counted; times are a model
that no hardware has confirmed, for ranking. The largest of
packing.microbatch_counts is planned, with rows that are full. --what=decode
plans a sampler of `qed grpo` instead: its engine's prefill and generate, the
cache that fits, and what memory bounds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from qed import cli, config
from qed.planning import chips, libtpu, search, tables
from qed.planning.search import Layout

# jax is imported after libtpu has prepared the environment.
if TYPE_CHECKING:
  import jax

  from qed.models import specs
  from qed.planning import decode
  from qed.planning.report import Plan

  RunConfig = config.SftConfig | config.GrpoConfig


def main(argv: Sequence[str]) -> int:
  """Checks the command line, compiles, and prints."""
  values = _flags()
  run = cli.parse_config(argv, values, run=_run_type(argv), usage=__doc__)
  if not values.topology:
    raise app.UsageError(
      '--topology is missing: the slice to plan for, such as v5p:2x4x4'
    )
  if values.what == 'decode' and (run.program != 'grpo' or values.search):
    got = '--search' if values.search else f'one for `qed {run.program}`'
    raise app.UsageError(
      '--what=decode: expected a config for `qed grpo`, whose sampler is '
      f'planned as it is, got {got}'
    )
  try:
    target = chips.parse_slice(values.topology)
    libtpu.prepare()
  except (ValueError, libtpu.LibtpuMissingError) as error:
    raise app.UsageError(str(error)) from error
  if values.what == 'decode':
    _plan_decoding(run, target, values)
    return cli.DONE
  plans = _make_plans(run, target, values)
  _publish(plans, run, target, values)
  return cli.DONE


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string(
    'topology',
    None,
    'the slice, such as v5e:4x4, v6e:16x16, v5p:2x4x4, tpu7x:2x2x1',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'what',
    'train',
    ['train', 'decode'],
    'the step of the config, or the engine of a sampler (of `qed grpo`)',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'search',
    False,
    'try meshes, remat policies and rows per microbatch, and rank those that '
    'fit; often a dozen or two compilations',
    flag_values=values,
  )
  flags.DEFINE_string(
    'json', None, 'a file to write as well', flag_values=values
  )
  flags.DEFINE_integer(
    'tokens_per_epoch',
    None,
    'of the data, to be told the hours of an epoch',
    lower_bound=1,
    flag_values=values,
  )
  cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
  flags.DEFINE_string(
    'cache_dir',
    os.path.join(cache, 'qed', 'plan'),
    'where compiled programs are kept',
    flag_values=values,
  )
  return values


def _run_type(argv: Sequence[str]) -> type:
  """What the config on a command line configures; parse_config checks it."""
  for index, argument in enumerate(argv):
    name, _, source = argument.partition('=')
    if name.lstrip('-') == 'config' and name.startswith('-'):
      source = source or (argv[index + 1 :] or [''])[0]
      program = cli.load_config(source).get('program')
      return config.RUNS.get(program, config.SftConfig)
  return config.SftConfig


def _make_plans(
  run: RunConfig, target: chips.Slice, values: flags.FlagValues
) -> list[Plan]:
  """The plan of the config's own layout, or of all that were searched."""
  devices = _devices(target)
  model = _read_model(run)
  attempt = functools.partial(
    _attempt,
    run=run,
    model=model,
    target=target,
    devices=devices,
    cache_dir=pathlib.Path(values.cache_dir).expanduser(),
  )
  if values.search:
    start = _layout(run, {'data': 1, 'context': 1, 'tensor': run.mesh.tensor})
    meshes = search.candidates(
      start,
      num_devices=len(devices),
      num_heads=model.num_attention_heads,
    )
    plans = search.search(meshes, attempt)
    if plans:
      return plans
    raise app.UsageError(
      f'no mesh of {len(devices)} devices divides the '
      f'{start.num_rows * start.num_microbatches} rows of '
      f'{start.row_length:,} tokens; raise packing.num_rows'
    )
  return [attempt(_layout(run, _mesh_sizes(run, len(devices))))]


def _devices(target: chips.Slice) -> Sequence[jax.Device]:
  from qed.planning import compile as compiler

  try:
    return compiler.devices(target)
  except ValueError as error:
    raise app.UsageError(f'--topology: {error}') from error


def _read_model(run: RunConfig) -> specs.Config:
  """The architecture; weights need not be there if the config names it."""
  from qed.models import specs
  from qed.training import initial

  if run.model.variant:
    return specs.VARIANTS[run.model.variant]
  try:
    return initial.read_config(run.model.path, '')
  except (ValueError, OSError) as error:
    raise app.UsageError(
      f'{error}; to plan without weights, set --config.model.variant'
    ) from error


def _mesh_sizes(run: RunConfig, num_devices: int) -> dict[str, int]:
  """The sizes of the config's mesh on so many devices."""
  from qed.models import sharding

  wanted = dataclasses.asdict(run.mesh)
  known = abs(math.prod(wanted.values()))
  if -1 in wanted.values() and num_devices % known == 0:
    return {
      axis: num_devices // known if size == -1 else size
      for axis, size in wanted.items()
    }
  if known == num_devices:
    return wanted
  mesh = ' x '.join(f'{axis}={wanted[axis]}' for axis in sharding.AXES)
  raise config.ConfigError(
    [f'mesh: {mesh} is not the {num_devices} devices of --topology']
  )


def _layout(run: RunConfig, sizes: dict[str, int]) -> Layout:
  return Layout(
    **{axis: max(1, size) for axis, size in sizes.items()},
    remat=run.model.remat,
    num_rows=run.packing.num_rows,
    row_length=run.packing.row_length,
    num_microbatches=run.packing.microbatch_counts[-1],
  )


def _attempt(
  layout: Layout,
  *,
  run: RunConfig,
  model: specs.Config,
  target: chips.Slice,
  devices: Sequence[jax.Device],
  cache_dir: pathlib.Path,
) -> Plan:
  """Traces, counts and compiles the step of a run in one layout."""
  import jax

  from qed.models import sharding
  from qed.planning import compile as compiler
  from qed.planning import flops, report, roofline, traffic
  from qed.training import metrics

  _say(f'{target.name}: {layout} ...')
  begin = time.monotonic()
  try:
    mesh = sharding.make_mesh(*layout.mesh, devices=devices)
    traced = _trace(layout, run, model, mesh)
  except ValueError as error:  # Sizes that do not divide.
    _say(f'  impossible: {error}')
    return report.Plan(layout=layout, fault=str(error))
  trace_secs = time.monotonic() - begin
  try:
    compiled = compiler.compile_traced(
      traced, mesh, target, cache_dir=cache_dir
    )
  except jax.errors.JaxRuntimeError as error:
    _say(f'  the compiler failed: {error}')
    reason = str(error).partition('\n')[0]
    return report.Plan(layout=layout, fault=f'the compiler failed: {reason}')
  plan = report.Plan(
    layout=layout,
    flops=flops.count(traced.jaxpr),
    trace_secs=trace_secs,
    compiled=compiled,
  )
  if plan.compiled.refusal:
    _say(f'  does not fit: {plan.reason}')
    return plan
  peak, secs = plan.compiled.memory.peak, plan.compiled.secs
  _say(f'  fits: {tables.gib(peak)}; compiled in {secs:.0f} s')
  lengths = [layout.row_length] * layout.num_rows * layout.num_microbatches
  found = traffic.read(plan.compiled.hlo, longest_ring=max(target.shape))
  estimate = roofline.estimate(
    chip=target.chip,
    num_devices=len(devices),
    num_tokens=layout.num_tokens,
    model_flops=metrics.train_flops(model, lengths),
    flops=plan.flops,
    traffic=found,
  )
  return dataclasses.replace(plan, traffic=found, estimate=estimate)


def _trace(
  layout: Layout, run: RunConfig, model: specs.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Traced:
  """Traces the step that the run would compile."""
  from qed.training import optimizer, steps

  # Where epochs decide, the number of steps is not known; it is a constant of
  # the schedule.
  num_steps = run.training.total_steps or run.optim.warmup_steps + 1_000
  tx = optimizer.make(
    num_steps=num_steps, model=model, **dataclasses.asdict(run.optim)
  )
  compute = steps.Compute.from_config(run, mesh)
  settings: dict[str, Any] = dict(
    model=model,
    tx=tx,
    compute=dataclasses.replace(compute, remat=layout.remat),
  )
  with_reference = False
  if run.program == 'grpo':
    settings['objective'] = steps.PolicyLoss.from_config(
      run.loss, temperature=run.sampling.temperature
    )
    with_reference = run.loss.kl_coef > 0
  step = {'sft': steps.sft_step, 'grpo': steps.grpo_step}[run.program]
  state = steps.abstract_state(model, tx, mesh)
  batch = steps.abstract_batch(
    layout.num_microbatches,
    layout.num_rows,
    layout.row_length,
    mesh,
    run.program,
    with_reference=with_reference,
  )
  compiled = steps.compile_step(
    functools.partial(step, **settings), mesh, state
  )
  return compiled.trace(state, batch)


def _plan_decoding(
  run: RunConfig, target: chips.Slice, values: flags.FlagValues
) -> None:
  """Compiles what a sampler of the run would, and says what it could serve."""
  from qed.models import sharding
  from qed.planning import compile as compiler
  from qed.planning import decode, traffic

  devices, model = _devices(target), _read_model(run)
  try:
    mesh = sharding.make_mesh(
      run.sampler.data, 1, run.sampler.tensor, devices=devices
    )
    traced, service = _trace_decoding(run, model, target, mesh)
  except ValueError as error:
    raise app.UsageError(f'sampler and engine: {error}') from error
  programs = {}
  for name, program in traced.items():
    _say(f'{target.name}: {name} ...')
    programs[name] = compiler.compile_traced(
      program,
      mesh,
      target,
      cache_dir=pathlib.Path(values.cache_dir).expanduser(),
    )
  found, rates = None, []
  if not any(program.refusal for program in programs.values()):
    found = decode.fit(service, **programs)
    text = programs['generate'].hlo
    moved = traffic.read(text, longest_ring=max(target.shape))
    for loop in moved.unknown_loops:
      _say(f'generate: the network is not counted in full: {loop}')
    rates = [
      decode.rate(service, found, length, moved.ici_bytes)
      for length in decode.lengths(service.max_length)
    ]
  name = run.model.variant or run.model.path
  tables.show(decode.show(service, name, programs, found, rates))
  _write_json(values, decode.as_json(service, programs, found, rates))


def _trace_decoding(
  run: config.GrpoConfig,
  model: specs.Config,
  target: chips.Slice,
  mesh: jax.sharding.Mesh,
) -> tuple[dict[str, jax.stages.Traced], decode.Service]:
  """The programs of the run's sampler, and what they are for."""
  import jax
  import jax.numpy as jnp

  from qed.models import sharding, specs
  from qed.planning import decode
  from qed.rollout import engine, paged_cache
  from qed.rollout import layout as layouts

  layout = engine.make_layout(
    max_length=run.max_request_tokens,
    num_parts=mesh.shape['data'],
    **dataclasses.asdict(run.engine),
  )
  dtype = jnp.dtype(run.model.dtype)
  params = jax.tree.map(
    lambda spec, place: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=place),
    specs.declare(model),
    sharding.param_shardings(model, mesh),
    is_leaf=specs.is_spec,
  )
  held = [
    math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(params)
  ]
  size = layouts.prefill_sizes(layout)[-1][1]
  prefix = jax.eval_shape(
    lambda: paged_cache.zeros(model, (size,), layout.kv_dtype)
  )
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(prefix))
  sizes = dataclasses.asdict(layout)
  del sizes['prefill_buckets']
  service = decode.Service(
    model=model,
    target=target,
    data=mesh.shape['data'],
    tensor=mesh.shape['tensor'],
    weight_bytes=sum(held) * dtype.itemsize,
    prefix_bytes=whole // mesh.shape['tensor'],
    element_bytes=dtype.itemsize,
    **sizes,
  )
  traced = engine.Engine(model, layout, mesh=mesh, dtype=dtype).trace(params)
  return traced, service


def _publish(
  plans: Sequence[Plan],
  run: RunConfig,
  target: chips.Slice,
  values: flags.FlagValues,
) -> None:
  """Prints the best plan, after a search all of them, and writes --json."""
  from qed.planning import report

  subject = report.Subject(
    program=run.program,
    model=run.model.variant or run.model.path,
    target=target,
    total_steps=run.training.total_steps,
    tokens_per_epoch=values.tokens_per_epoch,
  )
  shown = [report.ranking(plans, subject)] if values.search else []
  tables.show(shown + report.details(report.best(plans), subject))
  _write_json(values, report.as_json(plans, subject))


def _write_json(values: flags.FlagValues, found: dict[str, Any]) -> None:
  """Writes --json, if it was given."""
  if values.json:
    text = json.dumps(found, indent=2)
    pathlib.Path(values.json).write_text(text + '\n', encoding='utf-8')


def _say(text: str) -> None:
  """Progress, beside what is printed."""
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(cli.run(main))
