"""Times a whole evaluation that waits for nothing but its models.

  .venv/bin/python -m bench.evaluate --benchmark proofbench_v2.csv [--out F]

60 problems of IMO-ProofBench x 3 attempts through RSA (39 calls each), with a
model and a judge that answer after 20 ms, and every tenth attempt at a call
failing (a call has four, so that about one of 10,000 fails for good). What is
measured is everything else: the scaffold, the journal of calls, records, traces
and verdicts, and how near the bound on calls in flight it stays.

An attempt with failed calls is incomplete and is tried again; what it has on
record is not asked again. At the end every attempt is graded, and nothing was
paid for twice.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import re
import resource
import tempfile
import time

import numpy as np

from experiments import base
from qed import config
from qed.evals import benchmarks, identity, records, runner, summary
from qed.grading.judge import Judge
from qed.grading.verdicts import Verdicts
from qed.llm.bounded import Bounded
from qed.llm.journal import Journal, Journaled
from qed.llm.wire import Reply
from qed.scaffolds import calls, rsa
from qed.types import Completion

ATTEMPTS = 4  # At a call.
PROOF = 'By the previous step, the left side is at most the right side. '


class Failed(Exception):
  """A call that brought nothing."""


class ScriptedModel:
  """An Llm that writes a proof or a verdict after so many seconds."""

  def __init__(self, secs: float, fail_share: float, proof_chars: int):
    self._secs, self._fail_share = secs, fail_share
    self._proof = PROOF * (proof_chars // len(PROOF))
    self._rng = random.Random(0)
    self.answered: collections.Counter = collections.Counter()
    self.num_failed = self.num_lost = 0  # Attempts, and whole calls.

  async def sample(self, prompt, params, *, n=1):
    """Tries several times, as the client of an endpoint does."""
    for _ in range(ATTEMPTS):
      await asyncio.sleep(self._secs)
      if self._rng.random() >= self._fail_share:
        break
      self.num_failed += 1
    else:
      self.num_lost += 1
      raise Failed('injected')
    text = '\n'.join(message.content for message in prompt.messages)
    self.answered[text, params.seed] += 1
    answer = f'{self._proof} Draft {params.seed}.'
    if '<verdict>' in text:
      answer = '<verdict>A</verdict>'
    completion = Completion(
      token_ids=np.zeros(0, np.int32),
      logprobs=np.zeros(0, np.float32),
      versions=np.zeros(0, np.int32),
      text=f'Some thoughts.</think>\n\n{answer}',
      finish_reason='stop',
      usage={
        'prompt_tokens': len(text) // 3,
        'completion_tokens': len(answer) // 3,
      },
    )
    return [completion] * n


class ScriptedJudge:
  """Answers as `qed.llm.http.Http.ask`, with a score that the proof decides."""

  def __init__(self, secs: float, fail_share: float):
    self._secs, self._fail_share = secs, fail_share
    self._rng = random.Random(1)
    self.answered: collections.Counter = collections.Counter()
    self.num_failed = 0

  async def __call__(self, messages, *, temperature, max_tokens, effort):
    """One attempt; the judge's client makes more."""
    await asyncio.sleep(self._secs)
    if self._rng.random() < self._fail_share:
      self.num_failed += 1
      return Reply(kind='server_error', detail='injected')
    text = messages[-1].content
    self.answered[text] += 1
    draft = int(re.findall(r'Draft (\d+)', text)[-1])
    return Reply(
      kind='answer',
      text=f'<score>{(0, 1, 6, 7)[draft % 4]}</score>',
      finish_reason='stop',
      prompt_tokens=2_000,
      completion_tokens=300,
    )


def peak_mib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def evaluate(args, folder: pathlib.Path) -> dict[str, object]:
  values = base.evaluation()
  values.scaffold = 'rsa'
  values.benchmark.path = str(args.benchmark)
  values.judge.max_concurrency = args.concurrency
  values.judge.patience_secs = 600.0
  # Calls that fail by chance say nothing about the judge's health.
  values.judge.max_failures = 1_000_000
  run = config.build(values)
  bench = benchmarks.load(run.benchmark.name, args.benchmark)
  model = ScriptedModel(args.secs, args.fail_share, args.proof_chars)
  judge = ScriptedJudge(args.secs, args.fail_share)
  bounded = Bounded(model, args.concurrency)
  found = identity.identify(run, bench, 'scripted')
  with (
    Journal(folder / 'calls.sqlite') as journal,
    Verdicts(folder / 'verdicts.sqlite') as verdicts,
    records.Records(folder / 'records.jsonl', found) as store,
  ):
    llm = Journaled(bounded, journal, 'scripted')
    grader = Judge(judge, run.judge, verdicts)

    async def solve(problem, attempt):
      setup = calls.Setup(
        scaffold=run.scaffolds.rsa,
        sampling=run.sampling,
        budget=run.budget,
        style='thinking',
        attempt=attempt,
        failures=(Failed,),
      )
      return await rsa.solve(problem, llm, setup)

    began, cpu = time.perf_counter(), time.process_time()
    await runner.evaluate(
      bench.items,
      solve=solve,
      grade=grader.grade,
      records=store,
      num_attempts=run.benchmark.num_attempts,
      max_in_flight=args.in_flight,
      max_passes=args.passes,
      failures=(calls.CallError,),
    )
    secs = time.perf_counter() - began
    cpu_secs = time.process_time() - cpu
    entry = summary.summarize(
      bench.items,
      store.of_judge(found.judge),
      num_attempts=run.benchmark.num_attempts,
      pass_score=run.benchmark.pass_score,
      solver_prices=(0.0, 0.0),
      judge_prices=(0.0, 0.0),
    )
    busy = sum(model.answered.values()) + model.num_failed
    return {
      'cores': os.cpu_count(),
      'secs': secs,
      'cpu_secs': cpu_secs,
      'calls': busy,
      'calls_failed': model.num_failed,
      'calls_lost': model.num_lost,
      'paid_twice': sum(n - 1 for n in model.answered.values()),
      'recalled': llm.num_recalled,
      'verdicts': sum(judge.answered.values()),
      'verdicts_failed': judge.num_failed,
      'verdicts_paid_twice': sum(n - 1 for n in judge.answered.values()),
      'most_running': bounded.most_running,
      # Little's law: calls in flight, in the mean over the whole run.
      'mean_running': busy * args.secs / secs,
      'peak_mib': peak_mib(),
      'graded': entry['num_graded'],
      'incomplete': entry['num_incomplete'],
      'calls_of_an_attempt': entry['tokens']['calls'],
      'records_mib': _mib(folder / 'records.jsonl'),
      'journal_mib': _mib(folder / 'calls.sqlite'),
    }


def _mib(path: pathlib.Path) -> float:
  return path.stat().st_size / 2**20


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--benchmark', type=pathlib.Path, required=True)
  parser.add_argument('--secs', type=float, default=0.02)
  parser.add_argument('--fail-share', type=float, default=0.1)
  parser.add_argument('--concurrency', type=int, default=64)
  parser.add_argument('--in-flight', type=int, default=64)
  parser.add_argument('--passes', type=int, default=100)
  parser.add_argument('--proof-chars', type=int, default=6_000)
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  before = peak_mib()
  with tempfile.TemporaryDirectory() as folder:
    result = asyncio.run(evaluate(args, pathlib.Path(folder)))
  result['before_mib'] = before
  if args.out:
    args.out.write_text(json.dumps(result, indent=2) + '\n')
  print(
    f'{result["calls"]} calls and {result["verdicts"]} verdicts in '
    f'{result["secs"]:.1f} s ({result["cpu_secs"]:.1f} s of CPU); in flight '
    f'{result["most_running"]} at most, {result["mean_running"]:.1f} in the '
    f'mean, of {args.concurrency}; memory {before:.0f} MiB before, '
    f'{result["peak_mib"]:.0f} MiB at most'
  )
  print(
    f'{result["graded"]} attempts graded, {result["incomplete"]} incomplete; '
    f'{result["calls_failed"]} calls ({result["calls_lost"]} for good) and '
    f'{result["verdicts_failed"]} verdicts failed; paid twice: '
    f'{result["paid_twice"]} calls, {result["verdicts_paid_twice"]} verdicts'
  )


if __name__ == '__main__':
  main()
