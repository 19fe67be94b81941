"""Time and memory of `qed import` and `qed export` at the real size.

  python bench/import_export.py [--variant=qwen3-4b-2507] [--workdir=DIR]

Writes random bfloat16 weights as Hugging Face shards, imports and exports them,
each in a process of its own, compares every byte, and prints one json object.
Peak RSS is the kernel's figure for the process; GB are 10**9 bytes. DIR (a
temporary folder by default) needs three times the size of the weights; nothing
is left in it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from qed.models import specs

SHARD_BYTES = 2_000_000_000


def hf_shapes(config: specs.Config) -> dict[str, tuple[int, ...]]:
  """The tensors of a Qwen3 folder, written out."""
  width, mlp, size = (
    config.hidden_size,
    config.intermediate_size,
    config.head_dim,
  )
  queries = config.num_attention_heads * size
  keys = config.num_key_value_heads * size
  layer = {
    'input_layernorm': (width,),
    'self_attn.q_proj': (queries, width),
    'self_attn.k_proj': (keys, width),
    'self_attn.v_proj': (keys, width),
    'self_attn.o_proj': (width, queries),
    'self_attn.q_norm': (size,),
    'self_attn.k_norm': (size,),
    'post_attention_layernorm': (width,),
    'mlp.gate_proj': (mlp, width),
    'mlp.up_proj': (mlp, width),
    'mlp.down_proj': (width, mlp),
  }
  shapes = {'model.embed_tokens.weight': (config.vocab_size, width)}
  if not config.tie_word_embeddings:
    shapes['lm_head.weight'] = (config.vocab_size, width)
  for i in range(config.num_hidden_layers):
    for name, shape in layer.items():
      shapes[f'model.layers.{i}.{name}.weight'] = shape
  return {**shapes, 'model.norm.weight': (width,)}


def write_random(folder: pathlib.Path, config: specs.Config) -> int:
  """Writes a folder shard by shard; returns the bytes of its tensors."""
  rng = np.random.default_rng(0)
  shards, used = [[]], 0
  for name, shape in hf_shapes(config).items():
    size = 2 * int(np.prod(shape))
    if used + size > SHARD_BYTES and shards[-1]:
      shards.append([])
      used = 0
    shards[-1].append((name, shape))
    used += size
  weight_map, total = {}, 0
  for i, shard in enumerate(shards, 1):
    file = f'model-{i:05d}-of-{len(shards):05d}.safetensors'
    tensors = {}
    for name, shape in shard:
      bits = rng.integers(0, 2**16, shape, np.uint16)
      # Any sign and mantissa, and magnitudes from 2**-7 to 2**-3.
      tensors[name] = (bits & 0x81FF | 0x3C00).view(ml_dtypes.bfloat16)
      total += tensors[name].nbytes
    safetensors.numpy.save_file(tensors, folder / file, {'format': 'pt'})
    weight_map |= dict.fromkeys(tensors, file)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  (folder / 'config.json').write_text(
    json.dumps({**config.to_hf(), 'torch_dtype': 'bfloat16'})
  )
  return total


def measure(total: int, *arguments: str) -> dict[str, float]:
  """Runs `qed` in a process of its own; its time and its peak memory."""
  program = 'import sys; from qed import cli; sys.exit(cli.main())'
  begin = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, '-c', program, *arguments], stdout=sys.stderr
  )
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f'qed {" ".join(arguments)}: {process.returncode}')
  secs = time.monotonic() - begin
  return {
    'secs': round(secs, 1),
    'gb_per_sec': round(total / secs / 1e9, 3),
    'cpu_secs': round(usage.ru_utime + usage.ru_stime, 1),
    'peak_rss_gb': round(usage.ru_maxrss * 1024 / 1e9, 2),
  }


def find_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file of every tensor, by the safetensors library."""
  places = {}
  for file in folder.glob('*.safetensors'):
    with safetensors.safe_open(file, 'np') as f:
      places |= dict.fromkeys(f.keys(), file)
  return places


def is_bit_equal(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two folders have the same tensors, to the bit."""
  places = find_tensors(a), find_tensors(b)
  if places[0].keys() != places[1].keys():
    return False
  for name in places[0]:
    tensors = []
    for place in places:
      with safetensors.safe_open(place[name], 'np') as f:
        tensors.append(f.get_tensor(name))
    x, y = tensors
    if (x.dtype, x.shape) != (y.dtype, y.shape):
      return False
    if not np.array_equal(x.view(np.uint16), y.view(np.uint16)):
      return False
  return True


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--variant', default='qwen3-4b-2507')
  parser.add_argument('--workdir')
  flags = parser.parse_args()
  config = specs.VARIANTS[flags.variant]
  with tempfile.TemporaryDirectory(dir=flags.workdir) as folder:
    source, checkpoint, target = (
      pathlib.Path(folder) / name for name in ('hf', 'checkpoint', 'out')
    )
    source.mkdir()
    total = write_random(source, config)
    print(
      json.dumps(
        {
          'variant': flags.variant,
          'num_params': config.num_params,
          'weights_gb': round(total / 1e9, 3),
          'num_cores': os.cpu_count(),
          'import': measure(total, 'import', str(source), str(checkpoint)),
          'export': measure(
            total,
            'export',
            '--max_shard_bytes=3000000000',
            str(checkpoint),
            str(target),
          ),
          'is_bit_equal': is_bit_equal(source, target),
        },
        indent=2,
      )
    )


if __name__ == '__main__':
  main()
