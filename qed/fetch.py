"""Downloads the public files of benchmarks and checks them.

  qed fetch NAME... [--to=data]

  qed fetch imo_proofbench imo_answerbench
  qed fetch proofbench --to=data

A file whose bytes or content are known is refused if it has others; of any
other, the number of problems is checked and its digest is told. Parquet files
need pyarrow: pip install 'qed[hf]'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from qed import cli, schema
from qed.evals import sources


def main(argv: Sequence[str]) -> int:
  """Downloads what the command line names."""
  values = flags.FlagValues()
  flags.DEFINE_string('to', 'data', 'the folder of the files', values)
  usage = f'{__doc__.strip()}\n\nNames: {", ".join(sources.SOURCES)}'
  names = cli.parse_flags(argv, values, usage=usage, arguments=('NAME...',))
  for name in names:
    if name not in sources.SOURCES:
      raise app.UsageError(
        f'there is no benchmark {name!r} to download; '
        + schema.suggest(name, sources.SOURCES)
      )
  for name in names:
    try:
      path, benchmark = sources.fetch(name, values['to'].value)
    except (sources.DownloadError, ImportError) as error:
      raise app.UsageError(str(error)) from error
    verdict = 'as published'
    if benchmark.is_published is None:
      verdict = 'the published one was never at hand to compare with'
    print(
      f'{path}: {len(benchmark.items)} problems; digest {benchmark.digest}, '
      f'{verdict}; terms: {sources.SOURCES[name].licence}',
      flush=True,
    )
  return cli.DONE


if __name__ == '__main__':
  sys.exit(cli.run(main))
