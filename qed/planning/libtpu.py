"""The TPU compiler on a machine without a TPU.

Nothing here imports jax, which reads the environment as it is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

_ENVIRONMENT = {
  # Constants that are made while tracing have a home on the host.
  'JAX_PLATFORMS': 'cpu',
  # Do not ask a metadata server for the TPU that is not there.
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  # Two compilations at the same time would end the second one.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class LibtpuMissingError(Exception):
  """The TPU compiler is not installed."""


def prepare() -> None:
  """Makes the compiler usable; call it before jax is imported.

  Raises:
    LibtpuMissingError: it is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise LibtpuMissingError(
      'the TPU compiler (libtpu, 600 MB) is not installed; no TPU is needed to '
      "use it: pip install 'qed[tpu]', in a checkout pip install '.[tpu]'"
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)


def versions() -> dict[str, str]:
  """What decides on a compiled program beside its source."""
  return {
    name: importlib.metadata.version(name)
    for name in ('jax', 'jaxlib', 'libtpu')
  }
