"""What a Hugging Face folder has beside its weights, and how one comes to be.

The config, the tokenizer's files and the model card; and a new folder that
appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from qed.models import specs

Path = str | os.PathLike[str]

# What is copied byte for byte beside the weights, where it is there.
_COPIED = (
  'tokenizer*.json',
  'tokenizer.model',
  'vocab.*',
  'merges.txt',
  'added_tokens.json',
  'special_tokens_map.json',
  'chat_template.*',
  'generation_config.json',
  'LICENSE*',
)
# Entries of a provenance that Hugging Face knows as metadata of a card.
_CARD_METADATA = ('base_model', 'datasets', 'language', 'license')
_CARD = """
# {title}

A dense Qwen3 of {num_params:,} weights in {num_layers} layers. It is an
ordinary transformers model:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(THIS_FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(THIS_FOLDER)

## Where it comes from

{facts}

`provenance.json` says all that is known.
"""


class FolderError(ValueError):
  """A folder that is no whole model, or that may not be written."""


def write_model_files(
  folder: Path,
  config: specs.Config,
  *,
  dtype=jnp.bfloat16,
  tokenizer_dir: Path | None = None,
) -> None:
  """Writes what a Hugging Face folder has beside the weights and the card.

  config.json has the old and the new name of what transformers renamed (rope
  base, dtype). generation_config.json is that of `tokenizer_dir`; without one
  it has the special token ids that the config carries.

  Raises:
    FolderError: `tokenizer_dir` has no tokenizer.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  hf, name = config.to_hf(), np.dtype(dtype).name
  _write_json(
    folder / 'config.json', {**hf, 'dtype': name, 'torch_dtype': name}
  )
  _write_json(
    folder / 'generation_config.json',
    {key: value for key, value in hf.items() if key.endswith('_token_id')},
  )
  if tokenizer_dir is None:
    return
  source = epath.Path(tokenizer_dir)
  files = {file for name in _COPIED for file in source.glob(name)}
  if not files:
    raise FolderError(
      f'{source}: expected a tokenizer (tokenizer_config.json and what belongs '
      'to it), found none'
    )
  for file in sorted(files):
    (folder / file.name).write_bytes(file.read_bytes())


def read_config(path: Path) -> specs.Config:
  """The model that config.json in the folder `path` describes.

  Raises:
    FolderError: there is none, it is not json, or it asks for arithmetic that
      the model does not have.
  """
  file = epath.Path(path) / 'config.json'
  try:
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
      raise TypeError(f'expected a json object, got {content!r}')
    return specs.Config.from_hf(content)
  except (FileNotFoundError, NotADirectoryError):
    raise FolderError(
      f'expected a folder with config.json, found none in {path}'
    ) from None
  except (ValueError, TypeError) as error:
    raise FolderError(f'{file}: {error}') from error


@contextlib.contextmanager
def new_folder(
  path: Path, *, force: bool = False
) -> Iterator[pathlib.Path | None]:
  """A temporary sibling of `path` that takes its name once the body is done.

  With several processes all must enter. The first one gets a folder, the others
  None, and none leaves before the folder has its name. What a killed run left
  behind has another name and is in nobody's way.

  Raises:
    FolderError: `path` exists, and `force` is not set or it holds no model.
  """
  path = pathlib.Path(path).absolute()
  is_writer = jax.process_index() == 0
  refusal = _refusal(path, force) if is_writer else ''
  if jax.process_count() > 1:
    is_refused = multihost_utils.broadcast_one_to_all(np.int32(bool(refusal)))
    refusal = refusal or ('refused by process 0' if is_refused else '')
  if refusal:
    raise FolderError(f'{path} {refusal}')
  if is_writer:
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.partial')
    temporary.mkdir(parents=True)
    try:
      yield temporary
      replaced = temporary.with_suffix('.replaced')
      if path.exists():
        path.rename(replaced)
      temporary.rename(path)
      shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise
  else:
    yield None
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'new_folder {path}')


def _refusal(path: pathlib.Path, force: bool) -> str:
  """Why `path` may not be written, or nothing."""
  if not path.exists():
    return ''
  if not force:
    return 'exists; choose another folder, or replace it with force'
  # A mistyped path with force must not cost somebody's home folder.
  if any((path / name).is_file() for name in ('config.json', 'hf/config.json')):
    return ''
  return 'exists and holds no model, so that not even force replaces it'


def write_card(
  folder: Path, title: str, config: specs.Config, provenance: Mapping[str, Any]
) -> None:
  """Writes provenance.json, and README.md as Hugging Face's model card."""
  import huggingface_hub  # Slow to import, and only a writer needs it.

  folder = pathlib.Path(folder)
  _write_json(folder / 'provenance.json', provenance)
  metadata = huggingface_hub.ModelCardData(
    library_name='transformers',
    pipeline_tag='text-generation',
    **{key: provenance[key] for key in _CARD_METADATA if key in provenance},
  )
  text = _CARD.format(
    title=title,
    num_params=config.num_params,
    num_layers=config.num_hidden_layers,
    facts='\n'.join(
      f'* {key}: {value}'
      for key, value in provenance.items()
      if not isinstance(value, Mapping)
    ),
  )
  card = huggingface_hub.ModelCard(f'---\n{metadata.to_yaml()}\n---\n{text}')
  card.save(folder / 'README.md')


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
