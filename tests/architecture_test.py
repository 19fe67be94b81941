"""Who may import whom, enforced by reading the sources.

The tables below are the rules; `faults` applies them to one file.
"""

import ast
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
FOLDERS = ('qed', 'experiments', 'launch', 'bench', 'tests')

# Part of qed -> the parts that it may import besides itself. A part is a
# folder, or one of the modules at the top; every other module at the top is a
# program and may import everything.
MAY_IMPORT = {
  'types': (),
  'schema': (),
  'config': ('types', 'schema'),
  'data': ('types',),
  'models': ('types',),
  'algos': ('types',),
  'llm': ('types',),
  'curation': ('types', 'data'),
  'grading': ('types', 'data'),
  'scaffolds': ('types', 'data'),
  'evals': ('types', 'data'),
  'reporting': ('types', 'data'),
  'miniature': ('types', 'data'),
  'rollout': ('types', 'models', 'data'),
  'training': ('types', 'models', 'algos'),
  'planning': ('types', 'models', 'algos', 'training'),
}
PROGRAM = 'a program'

# Reading and writing Hugging Face folders: models/hf.py and what it is made of.
HUGGING_FACE = (
  'qed/models/hf.py',
  'qed/models/hf_files.py',
  'qed/models/shards.py',
)

# Package from outside -> the files and folders that may import it.
DOORS = {
  'transformers': ('qed/data/tokenizer.py',),
  'tokenizers': ('qed/data/tokenizer.py',),
  'sentencepiece': ('qed/data/tokenizer.py',),
  'safetensors': (*HUGGING_FACE, 'qed/rollout/weights.py'),
  'huggingface_hub': HUGGING_FACE,
  'orbax': ('qed/training/checkpoints.py',),
  'jetstream': ('qed/rollout/jetstream.py',),
  'openai': ('qed/llm/http.py',),
  'httpx2': ('qed/llm/http.py',),
  'ml_collections': (PROGRAM, 'experiments/', 'launch/'),
  'absl': (PROGRAM, 'launch/'),
  'xmanager': ('launch/',),
  'torch': (),
  'tensorflow': (),
}
# Tests and benchmarks compare with other implementations.
NO_DOORS = ('tests/', 'bench/')

# These folders are pure: only the modules below, no calls that reach outside,
# nothing of the files that are excepted.
PURE = ('qed/algos/', 'qed/models/')
IMPURE = HUGGING_FACE
PURE_IMPORTS = {
  '__future__',
  'collections',
  'dataclasses',
  'enum',
  'flax',
  'functools',
  'itertools',
  'jax',
  'math',
  'ml_dtypes',
  'numpy',
  'operator',
  'qed',
  'tokamax',
  'typing',
}
IMPURE_CALLS = {
  'breakpoint',
  'eval',
  'exec',
  'globals',
  'input',
  'open',
  'print',
  '__import__',
}
DEVICE_LIBRARIES = ('jax', 'flax', 'optax', 'orbax')
VAGUE_NAMES = {'utils', 'util', 'helpers', 'helper', 'common', 'core', 'misc'}


def imported(tree: ast.AST) -> list[str]:
  """Every dotted name that a module imports, inside functions too."""
  names = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      dots = '.' * node.level
      names += [
        f'{dots}{node.module or ""}.{alias.name}' for alias in node.names
      ]
  return names


def part_of(path: str) -> str:
  """The part of qed that a file belongs to."""
  first = path.removeprefix('qed/').partition('/')[0].removesuffix('.py')
  if '/' not in path.removeprefix('qed/') and first not in MAY_IMPORT:
    return PROGRAM
  return first


def within(path: str, places) -> bool:
  """Whether a file is one of the places, or lies in one that is a folder."""
  return any(
    path == place or (place.endswith('/') and path.startswith(place))
    for place in places
  )


def faults(path: str, source: str) -> list[str]:
  """What a file, named from the root of the repository, does wrong."""
  tree = ast.parse(source)
  names = imported(tree)
  found = [f'imports {name}: relative' for name in names if name[0] == '.']
  for part in pathlib.PurePosixPath(path).with_suffix('').parts:
    if part.removesuffix('_test') in VAGUE_NAMES:
      found.append(f'is called {part}: name what it is about')
  if path.startswith('qed/'):
    found += _faults_between_parts(path, names)
  if path.startswith('experiments/'):
    found += [f'imports {n}' for n in names if n.split('.')[0] == 'qed']
  if not within(path, NO_DOORS):
    found += _faults_at_doors(path, names)
  if within(path, PURE) and path not in IMPURE:
    found += _faults_of_purity(tree, names)
  if path.startswith('qed/data/'):
    found += [
      f'imports {n}: data/ is host code'
      for n in names
      if n.split('.')[0] in DEVICE_LIBRARIES
    ]
  return found


def _faults_between_parts(path, names):
  part = part_of(path)
  if part == PROGRAM:
    allowed = None
  elif part in MAY_IMPORT:
    allowed = {part, *MAY_IMPORT[part]}
  else:
    return [f'lies in qed/{part}, which is not in the table MAY_IMPORT']
  found = []
  for name in names:
    package, *rest = name.split('.')
    if package in ('experiments', 'launch', 'bench', 'tests'):
      found.append(f'imports {name}: nothing in qed may')
    elif package == 'qed' and allowed is not None:
      target = rest[0] if rest else '*'
      if target not in allowed:
        found.append(f'imports {name}: {part} may import {sorted(allowed)}')
  return found


def _faults_at_doors(path, names):
  places = [path]
  if path.startswith('qed/') and part_of(path) == PROGRAM:
    places.append(PROGRAM)
  found = []
  for name in names:
    doors = DOORS.get(name.split('.')[0])
    if doors is not None and not any(within(p, doors) for p in places):
      found.append(f'imports {name}: its doors are {list(doors)}')
  return found


def _faults_of_purity(tree, names):
  found = [
    f'imports {name}: not in a pure folder'
    for name in names
    if name.split('.')[0] not in PURE_IMPORTS
  ]
  impure = {file.removesuffix('.py').replace('/', '.') for file in IMPURE}
  found += [
    f'imports {name}: not pure itself'
    for name in names
    if any(f'{name}.'.startswith(f'{module}.') for module in impure)
  ]
  for node in ast.walk(tree):
    if isinstance(node, ast.Global):
      found.append(f'line {node.lineno}: global {", ".join(node.names)}')
    elif (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Name)
      and node.func.id in IMPURE_CALLS
    ):
      found.append(f'line {node.lineno}: calls {node.func.id}')
  return found


SOURCES = sorted(
  path.relative_to(REPOSITORY).as_posix()
  for folder in FOLDERS
  for path in (REPOSITORY / folder).rglob('*.py')
)


def test_there_are_sources():
  assert {'qed/types.py', 'qed/cli.py', 'experiments/base.py'} <= set(SOURCES)


@pytest.mark.parametrize('path', SOURCES)
def test_a_file_keeps_the_rules(path):
  source = (REPOSITORY / path).read_text(encoding='utf-8')
  assert faults(path, source) == []


def test_every_entry_of_the_tables_is_spelt_right():
  for part, others in MAY_IMPORT.items():
    assert set(others) <= set(MAY_IMPORT), part


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    # Between parts.
    ('qed/algos/losses.py', 'from qed.models import qwen3'),
    ('qed/algos/losses.py', 'import qed.training.steps'),
    ('qed/models/qwen3.py', 'from qed import data'),
    ('qed/models/qwen3.py', 'from qed import types, config'),
    ('qed/training/steps.py', 'from qed.data.packing import pack'),
    ('qed/training/steps.py', 'def f():\n  from qed.rollout import engine'),
    ('qed/rollout/engine.py', 'from qed.training import checkpoints'),
    ('qed/scaffolds/rsa.py', 'from qed.llm import http'),
    ('qed/grading/judge.py', 'from qed.models import hf'),
    ('qed/data/samples.py', 'from qed import cli'),
    ('qed/types.py', 'from qed import config'),
    ('qed/config/runs.py', 'from qed import data'),
    ('qed/unheard/of.py', ''),
    ('qed/models/deeper/attention.py', 'from qed.algos import losses'),
    ('qed/data/problems.py', 'from . import samples'),
    ('qed/models/qwen3.py', 'import qed'),
    # Between packages.
    ('qed/demo.py', 'from experiments import base'),
    ('qed/grpo.py', 'import launch.executors'),
    ('experiments/base.py', 'from qed import config'),
    # Doors.
    ('qed/data/samples.py', 'import transformers'),
    ('qed/data/samples.py', 'import tokenizers'),
    ('qed/models/hf.py', 'from transformers import AutoConfig'),
    ('qed/sft.py', 'import orbax.checkpoint as ocp'),
    ('qed/training/steps.py', 'from orbax import checkpoint'),
    ('qed/rollout/engine.py', 'from jetstream.engine import engine_api'),
    ('qed/grading/judge.py', 'import openai'),
    ('qed/training/metrics.py', 'from ml_collections import ConfigDict'),
    ('qed/rollout/scheduler.py', 'from absl import logging'),
    ('qed/sft.py', 'import torch'),
    ('qed/hub.py', 'import safetensors'),
    # Purity.
    ('qed/algos/losses.py', 'import os'),
    ('qed/algos/losses.py', 'import logging'),
    ('qed/models/qwen3.py', 'import time'),
    ('qed/models/qwen3.py', 'from absl import logging'),
    ('qed/models/qwen3.py', 'import random'),
    ('qed/models/qwen3.py', 'def f(x):\n  print(x)'),
    ('qed/models/qwen3.py', 'def f(x):\n  return open(x)'),
    ('qed/algos/losses.py', 'def f():\n  global count'),
    ('qed/models/qwen3.py', 'from qed.models import hf'),
    ('qed/models/qwen3.py', 'from qed.models.hf import load'),
    # Host code.
    ('qed/data/packing.py', 'import jax.numpy as jnp'),
    ('qed/data/packing.py', 'def f():\n  import jax'),
    ('qed/data/packing.py', 'import optax'),
    # Names.
    ('qed/data/utils.py', ''),
    ('qed/training/helpers.py', ''),
    ('qed/common/masks.py', ''),
    ('launch/core.py', ''),
    ('tests/data/utils_test.py', ''),
  ],
)
def test_a_fault_is_found(path, source):
  assert faults(path, source)


@pytest.mark.parametrize(
  ('path', 'source'),
  [
    ('qed/algos/losses.py', 'import jax.numpy as jnp\nfrom qed import types'),
    ('qed/models/qwen3.py', 'from qed.models import attention, specs'),
    ('qed/models/hf.py', 'import os, safetensors, huggingface_hub'),
    ('qed/models/hf.py', 'print(open("x"))'),
    ('qed/rollout/prompts.py', 'from qed.data import chat'),
    ('qed/training/checkpoints.py', 'import orbax.checkpoint as ocp'),
    ('qed/training/steps.py', 'from qed.algos import losses'),
    ('qed/data/tokenizer.py', 'def f():\n  import transformers'),
    ('qed/grpo.py', 'from ml_collections import config_flags\nimport jax'),
    ('qed/grpo.py', 'from qed.rollout import engine\nfrom qed import sft'),
    ('experiments/rl_main.py', 'from experiments import base'),
    ('launch/sft.py', 'from experiments import sft_lr\nfrom qed import cli'),
    ('tests/models/hf_test.py', 'import torch, transformers'),
    ('bench/decode.py', 'import jetstream, torch'),
    ('qed/models/qwen3.py', 'import jax\njax.debug.print("x")'),
  ],
)
def test_what_is_allowed_passes(path, source):
  assert faults(path, source) == []
