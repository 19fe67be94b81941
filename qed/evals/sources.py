"""Where the public files of benchmarks are, and how they get onto this machine.

What is downloaded is checked twice: its bytes, where their digest is known, and
its content (`benchmarks.load`). No file is part of this package; the terms of
each are said beside its address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import pathlib
import urllib.error
import urllib.request

from qed.evals import benchmarks

_CHUNK_BYTES = 1 << 16
_IMOBENCH = (
  'https://raw.githubusercontent.com/google-deepmind/superhuman/main/imobench'
)
# The branch on which the Hub keeps every dataset as parquet.
_HUB = (
  'https://huggingface.co/datasets/{dataset}/resolve/refs%2Fconvert%2Fparquet/'
  'default/{split}/0000.parquet'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
  """One public file."""

  url: str
  file: str  # What it is called here; the suffix says the format.
  sha256: str = ''  # Of the bytes; '': not known here.
  licence: str = 'see the page of the dataset'


def _hub(dataset: str, file: str, split: str = 'train') -> Source:
  return Source(url=_HUB.format(dataset=dataset, split=split), file=file)


SOURCES = {
  'imo_proofbench': Source(
    url=f'{_IMOBENCH}/proofbench_v2.csv',
    file='imo_proofbench_v2.csv',
    sha256='aa8b813dbd4068137e3d165e5da228f6e0e1cc85a91c37883e1791b954e43af0',
    licence='CC-BY 4.0 (Luong et al., EMNLP 2025)',
  ),
  'imo_answerbench': Source(
    url=f'{_IMOBENCH}/answerbench_v2.csv',
    file='imo_answerbench_v2.csv',
    sha256='275877a9d988d85278fad3a5f8a41d7f83393a60bf259531ec0a5161e6b21cf9',
    licence='CC-BY 4.0 (Luong et al., EMNLP 2025)',
  ),
  'proofbench': _hub('lm-provers/ProofBench', 'proofbench.parquet'),
  'fineproofs_rl_test': _hub(
    'lm-provers/FineProofs-RL-test', 'fineproofs_rl_test.parquet', 'test'
  ),
} | {
  name: _hub(name.replace('matharena_', 'MathArena/', 1), f'{name}.parquet')
  for name in benchmarks.FORMATS
  if name.startswith('matharena_')
}


class DownloadError(Exception):
  """A file that cannot be had, or is not the one that it should be."""


def fetch(
  name: str,
  folder: str | pathlib.Path,
  *,
  source: Source | None = None,
  timeout_secs: float = 60.0,
) -> tuple[pathlib.Path, benchmarks.Benchmark]:
  """Downloads the file of a benchmark, unless it is there, and reads it.

  A file appears under its name once it has been checked.

  Args:
    name: of `SOURCES`.
    folder: created if need be.
    source: another place; None: the published one.
    timeout_secs: that the server may be silent.

  Returns:
    The path of the file, and the benchmark in it.

  Raises:
    DownloadError: the file cannot be had, or is not the benchmark. A file of
      that name that was there before is left as it is.
    ImportError: a parquet file without pyarrow.
  """
  if source is None:
    if name not in SOURCES:
      raise DownloadError(
        f'expected a benchmark with a public file, one of {[*SOURCES]}, got '
        f'{name!r}'
      )
    source = SOURCES[name]
  path = pathlib.Path(folder) / source.file
  if path.exists():
    return path, _read(name, path, source.url)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Its suffix tells readers the format.
  partial = path.with_name(f'partial-{path.name}')
  try:
    found = _download(source.url, partial, timeout_secs)
    if source.sha256 and found != source.sha256:
      raise DownloadError(
        f'{source.url}: expected bytes with the SHA-256 {source.sha256}, got '
        f'{found}: the file has changed since'
      )
    benchmark = _read(name, partial, source.url)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
  return path, benchmark


def _download(url: str, path: pathlib.Path, timeout_secs: float) -> str:
  """Writes what is at an address; returns its SHA-256."""
  sha256 = hashlib.sha256()
  num_bytes = 0
  try:
    request = urllib.request.Request(url, headers={'User-Agent': 'qed'})
    with urllib.request.urlopen(request, timeout=timeout_secs) as reply:
      announced = reply.headers.get('Content-Length')
      with path.open('wb') as file:
        while chunk := reply.read(_CHUNK_BYTES):
          sha256.update(chunk)
          num_bytes += len(chunk)
          file.write(chunk)
  except (OSError, http.client.HTTPException) as error:
    hint = ''
    if isinstance(error, urllib.error.HTTPError):
      error.close()
      if error.code in (401, 403):
        hint = '; is its page in a browser asking to accept terms?'
    raise DownloadError(f'{url}: {error}{hint}') from error
  if announced and num_bytes != int(announced):
    raise DownloadError(
      f'{url}: expected {announced} bytes, got {num_bytes}: the connection '
      'broke off'
    )
  return sha256.hexdigest()


def _read(name: str, path: pathlib.Path, url: str) -> benchmarks.Benchmark:
  try:
    return benchmarks.load(name, path)
  except ValueError as error:
    raise DownloadError(
      f'what {url} gives is not the benchmark: {error}'
    ) from error
