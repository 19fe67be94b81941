"""`qed import` and `qed export`: between Hugging Face folders and checkpoints.

Both run on the CPU of one host, hold the weights once and one tensor more, and
make a folder that appears only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags

from qed import cli

_IMPORT_USAGE = """\
Turns a Hugging Face folder into a checkpoint that training starts from.

  qed import [--FLAG=VALUE ...] HF_DIR CHECKPOINT_DIR

HF_DIR has config.json and the weights of any dense Qwen3 in safetensors, in one
file or in shards with an index. CHECKPOINT_DIR receives the weights as step 0,
and in hf/ the config, and the tokenizer's files byte for byte.

  qed import ~/models/Qwen3-4B-Thinking-2507 checkpoints/qwen3-4b-thinking-2507
"""

_EXPORT_USAGE = """\
Turns a checkpoint into a folder that transformers and vLLM load.

  qed export [--FLAG=VALUE ...] CHECKPOINT_DIR HF_DIR

CHECKPOINT_DIR was written by `qed import` or by a training run, of which only
the weights are read. Imported weights keep their type, so that import and
export give the same bytes; a run's float32 master weights are rounded to the
type that the run's hf/config.json names.

  qed export runs/sft/checkpoints exports/my-prover
"""

_DTYPES = ('bfloat16', 'float16', 'float32')


def import_main(argv: Sequence[str]) -> None:
  """A Hugging Face folder -> a checkpoint."""
  values = _flags('of the weights in CHECKPOINT_DIR; as in HF_DIR if not given')
  names = ('HF_DIR', 'CHECKPOINT_DIR')
  arguments = cli.parse_flags(
    argv, values, usage=_IMPORT_USAGE, arguments=names
  )
  source, target = map(pathlib.Path, arguments)
  if not (source / 'config.json').is_file():
    raise app.UsageError(f'{source}: expected a folder with config.json')
  _check_target(target, values)

  _use_cpu()
  from qed.models import hf, hf_files
  from qed.training import checkpoints

  has_tokenizer = any(source.glob('tokenizer*'))
  if not has_tokenizer:
    print(f'{source} has no tokenizer, so that {target} will have none')
  with _user_errors(), hf_files.new_folder(target, force=values.force) as new:
    with _timed(f'read {source}'):
      params, config = hf.load(source, dtype=values.dtype)
    dtype = params['embedding'].dtype
    with _timed(f'wrote {config.num_params:,} weights ({dtype}) to {target}'):
      checkpoints.write_model_files(
        new,
        config,
        tokenizer_dir=source if has_tokenizer else None,
        dtype=dtype,
      )
      checkpoints.save_params(new, params)


def export_main(argv: Sequence[str]) -> None:
  """A checkpoint -> a Hugging Face folder."""
  values = _export_flags()
  names = ('CHECKPOINT_DIR', 'HF_DIR')
  arguments = cli.parse_flags(
    argv, values, usage=_EXPORT_USAGE, arguments=names
  )
  source, target = map(pathlib.Path, arguments)
  if not (source / 'hf' / 'config.json').is_file():
    inner = source / 'checkpoints'
    hint = f'; did you mean {inner}?' if (inner / 'hf').is_dir() else ''
    raise app.UsageError(
      f'{source}: expected a checkpoint directory, with hf/config.json{hint}'
    )
  _check_target(target, values)

  _use_cpu()
  from qed.models import hf
  from qed.training import checkpoints

  is_run = checkpoints.is_training(source)
  dtype = values.dtype or (_intended_dtype(source) if is_run else None)
  with _user_errors():
    with _timed(f'read {source}'):
      params, config, step = checkpoints.restore_params(
        source, dtype=dtype, step=values.step
      )
    dtype = params['embedding'].dtype
    with _timed(f'wrote {config.num_params:,} weights ({dtype}) to {target}'):
      hf.save(
        target,
        params,
        config,
        tokenizer_dir=source / 'hf',
        max_shard_bytes=values.max_shard_bytes,
        force=values.force,
        provenance=_provenance(source, step, is_run, values),
      )


def _flags(dtype_help: str) -> flags.FlagValues:
  """The flags that both programs have."""
  values = flags.FlagValues()
  flags.DEFINE_enum('dtype', None, _DTYPES, dtype_help, flag_values=values)
  flags.DEFINE_bool(
    'force', False, 'replace a model that is there', flag_values=values
  )
  return values


def _export_flags() -> flags.FlagValues:
  values = _flags('of the tensors; as said above if not given')
  flags.DEFINE_integer(
    'step',
    None,
    'of the run; the newest one if not given',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_shard_bytes',
    5_000_000_000,
    'of tensors in one file',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_string(
    'base_model',
    None,
    'for the model card: what training began with, by its name on the Hub',
    flag_values=values,
  )
  flags.DEFINE_string(
    'license',
    None,
    'for the model card, such as apache-2.0',
    flag_values=values,
  )
  return values


def _check_target(target: pathlib.Path, values: flags.FlagValues) -> None:
  if target.exists() and not values.force:
    raise app.UsageError(f'{target} exists; --force replaces it')


def _use_cpu() -> None:
  """Leaves accelerators alone: all that is done here is to move bytes."""
  import jax

  jax.config.update('jax_platforms', 'cpu')


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
  """Faults of a given folder are the user's to mend, not bugs."""
  from qed.models import hf_files
  from qed.training import checkpoints

  try:
    yield
  except (hf_files.FolderError, checkpoints.CheckpointError) as error:
    raise app.UsageError(str(error)) from error


@contextlib.contextmanager
def _timed(text: str) -> Iterator[None]:
  begin = time.monotonic()
  yield
  print(f'{text} in {time.monotonic() - begin:.1f} s', flush=True)


def _intended_dtype(source: pathlib.Path) -> str:
  return json.loads((source / 'hf' / 'config.json').read_bytes())['dtype']


def _provenance(
  source: pathlib.Path, step: int, is_run: bool, values: flags.FlagValues
) -> dict[str, Any]:
  """What is known of where the weights come from."""
  facts: dict[str, Any] = {
    name: values[name].value
    for name in ('base_model', 'license')
    if values[name].value
  }
  if not is_run:
    return facts
  facts['step'] = step
  # A run directory keeps its resolved config above its checkpoints.
  for folder in source.absolute().parents[:2]:
    if (folder / 'config.json').is_file():
      facts['run'] = json.loads((folder / 'config.json').read_bytes())
      break
  return facts
