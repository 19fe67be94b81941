"""Runs the stages of curation that need no model, and kills them on the way.

  .venv/bin/python -m bench.curate [--rows 100000] [--out curate.json]

Makes a file in the schema of AI-MO/aops: statements from the patterns of
bench/decontaminate.py, with solutions of forum length, and among them pictures,
answers, equal and nearly equal problems, near-copies of the benchmark and lines
that are no JSON. `qed curate` runs over it once without a break, and once
killed (SIGKILL) two times: in the filters, and in the comparison with the
benchmark. Reports rows per second of each stage, the peak of memory, and the
hashes of both results, which must be equal.

The benchmark is IMO-Bench in ../shared/data where it is, and 460 statements
from the patterns otherwise.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from bench import decontaminate

_STEPS = (
  'Suppose that the claim fails for some n, and let n be the least of these.',
  'Then $a_n \\le 2a_{n-1}$, and therefore the sum is at most $2^{n+1}$.',
  'Since the two circles are tangent, the angle at $P$ equals that at $Q$.',
  'By the induction hypothesis the remaining part has a coloring as required.',
  'Hence $p$ divides the left side, which is a contradiction.',
  'Consider the largest element; it has at most $k$ neighbors, because else '
  'two of them would be joined.',
  'Adding these inequalities gives $x+y+z \\ge 3\\sqrt[3]{xyz}$.',
)


def row(number, rng, statements):
  """A line of the file."""
  kind = rng.random()
  if statements and kind < 0.03:
    statement = rng.choice(statements)
  elif statements and kind < 0.05:
    statement = decontaminate.edit_words(rng.choice(statements), rng, 0.03)
  else:
    statement = decontaminate.synthetic(rng)
    if len(statements) < 5_000:
      statements.append(statement)
  if 0.05 < kind < 0.1:
    statement += ' ![figure](https://example.org/a.png)'
  elif 0.1 < kind < 0.12:
    statement += ' Answer: 42'
  solution = ' '.join(rng.choices(_STEPS, k=rng.randint(1, 40)))
  return {
    'problem': statement,
    'solution': solution,
    'candidates': [solution, 'Nice problem, here is another way.'],
    'tags': ['algebra'],
    'metadata': {
      'path': f'Contest_Collections/{rng.choice("ABCDEFG")}/'
      f'{rng.randint(1960, 2026)}/{number}',
      'boxed': False,
      'n_reply': 2,
    },
  }


def write_input(path, num_rows, copies):
  """The file: every 5,000th line is cut off, and copies stand anywhere."""
  rng = random.Random(0)
  statements = []
  places = dict(
    zip(rng.sample(range(num_rows), len(copies)), copies, strict=True)
  )
  with path.open('w', encoding='utf-8') as file:
    for number in range(num_rows):
      found = row(number, rng, statements)
      if number in places:
        found['problem'] = places[number]
      line = json.dumps(found, ensure_ascii=False)
      file.write((line[:200] if number % 5_000 == 4_999 else line) + '\n')


def command(workdir, data, benchmarks):
  return [
    sys.executable,
    '-m',
    'qed.curate',
    '--config=experiments/data_main.py:deterministic',
    f'--workdir={workdir}',
    '--config.sources.olympiads=()',
    f'--config.sources.aops={(str(data),)}',
    "--config.sources.licenses=('aops=none',)",
    f'--config.decontamination.benchmarks={(*map(str, benchmarks),)}',
  ]


def run(arguments, kill_when=lambda: False):
  """(exit code, seconds, peak bytes) of a process; it may be killed."""
  began = time.monotonic()
  process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
  while process.poll() is None:
    if kill_when():
      os.kill(process.pid, signal.SIGKILL)
    try:
      pages = pathlib.Path(f'/proc/{process.pid}/status').read_text()
      peak = int(pages.partition('VmHWM:')[2].split()[0]) * 1024
    except (OSError, IndexError):
      pass
    time.sleep(0.05)
  return process.returncode, time.monotonic() - began, peak


def hashes(workdir):
  """Of everything that must not depend on how often a run was stopped."""
  files = sorted(
    path
    for pattern in ('stages/*/*.jsonl', '*.jsonl', '*.html')
    for path in workdir.glob(pattern)
  )
  return {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in files
  }


def progressed(workdir, stage, num_rows):
  """Whether a stage has done so many rows."""

  def done():
    for path in workdir.glob(f'stages/*_{stage}/progress.json'):
      try:
        return json.loads(path.read_text())['num_in'] >= num_rows
      except (OSError, ValueError):
        return False
    return False

  return done


def measure(folder, num_rows):
  """Everything that is reported."""
  folder = pathlib.Path(folder)
  rng = random.Random(1)
  benchmarks = [
    decontaminate.DATA / name
    for name in ('proofbench_v2.csv', 'answerbench_v2.csv')
  ]
  if all(path.exists() for path in benchmarks):
    problems = decontaminate.load_problems()
    copies = [
      item.statement
      for _, item, _ in decontaminate.plant(problems, rng, num_of_kind=8)
    ]
  else:
    benchmarks, copies = [folder / 'benchmark.jsonl'], []
    lines = [{'statement': decontaminate.synthetic(rng)} for _ in range(460)]
    benchmarks[0].write_text('\n'.join(map(json.dumps, lines)) + '\n')
  data = folder / 'aops.jsonl'
  write_input(data, num_rows, copies)
  whole, broken = folder / 'whole', folder / 'broken'
  code, secs, peak = run(command(whole, data, benchmarks))
  reports = json.loads((whole / 'summary.json').read_text())['stages']
  codes, resumed_secs = [], 0.0
  for kill_when in (
    progressed(broken, 'filter', num_rows // 3),
    progressed(broken, 'decontaminate', num_rows // 4),
    lambda: False,
  ):
    found = run(command(broken, data, benchmarks), kill_when)
    codes.append(found[0])
    resumed_secs += found[1]
  return {
    'rows': num_rows,
    'megabytes': data.stat().st_size / 1e6,
    'exit_code': code,
    'secs': secs,
    'rows_per_sec': num_rows / secs,
    'peak_gib': peak / 2**30,
    'stages': [
      {
        'stage': report['stage'],
        'in': report['num_in'],
        'kept': report['num_kept'],
        'removed': report['removed'],
        'rows_per_sec': report['num_in'] / report['secs'],
      }
      for report in reports
    ],
    'killed_exit_codes': codes,
    'killed_secs': resumed_secs,
    'is_equal': hashes(whole) == hashes(broken),
    'sha256': hashes(whole)['problems.jsonl'],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=100_000)
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    result = measure(folder, arguments.rows)
  text = json.dumps(result, indent=2)
  print(text)
  if arguments.out:
    arguments.out.write_text(text + '\n')


if __name__ == '__main__':
  main()
