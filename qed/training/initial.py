"""The model that a run starts from: that of a folder, or a random one."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from qed.models import hf_files, sharding, specs
from qed.training import checkpoints


def hf_folder(path: str | os.PathLike[str]) -> epath.Path:
  """Where config.json and the tokenizer of a model are.

  Args:
    path: a Hugging Face folder, or a checkpoint directory.
  """
  folder = epath.Path(path)
  return folder if (folder / 'config.json').exists() else folder / 'hf'


def read_config(path: str, variant: str) -> specs.Config:
  """The architecture of the weights in `path`; of `variant` where it is ''.

  Args:
    path: a Hugging Face folder, a checkpoint directory, or ''.
    variant: a key of `specs.VARIANTS`, or '' for whatever is in `path`.

  Raises:
    ValueError: there is no such model, or it is not of that architecture.
  """
  if not path:
    return specs.VARIANTS[variant]
  model = hf_files.read_config(hf_folder(path))
  expected = specs.VARIANTS[variant] if variant else model
  faults = [
    f'{field.name} is {getattr(model, field.name)} and not '
    f'{getattr(expected, field.name)}'
    for field in dataclasses.fields(model)
    if field.name not in ('carried', 'initializer_range')
    and getattr(model, field.name) != getattr(expected, field.name)
  ]
  if faults:
    raise ValueError(
      f'expected {path} to have the architecture of {variant}, but '
      f'{"; ".join(faults)}; set model.variant to what it is, or to none'
    )
  return model


def read_params(
  path: str, model: specs.Config, mesh: Mesh, *, seed: int
) -> dict[str, Any]:
  """float32 weights on the mesh: those of `path`, or random where it is ''.

  Args:
    path: as for `read_config`.
    model: what it returned.
    mesh: where they go.
    seed: of random weights, which are the same on every mesh.

  Raises:
    ValueError: the weights are not whole.
  """
  if path:
    params, _ = checkpoints.load_model(path, mesh=mesh, dtype=jnp.float32)
    return params
  places = sharding.param_shardings(model, mesh)
  draw = jax.jit(specs.init, static_argnums=0, out_shardings=places)
  return draw(model, jax.random.key(seed))
