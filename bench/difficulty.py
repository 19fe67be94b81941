r"""How well `qed curate` tells how hard problems are, where the truth is known.

  qed demo
  .venv/bin/python -m bench.difficulty --demo runs/demo [--out difficulty.json]

The model is the demo's after SFT. The stage of `qed curate`
(curation/difficulty.py) asks it through an `Llm` for some proofs of each
problem, and the judge's server for their grades. The truth is 256 other proofs
of each problem, scored by the checker itself.

error        Mean of |estimate - truth| of the mean reward, beside what sampling
             alone makes of it
intervals    The share of 95 % intervals that hold the truth: Student's t of the
             mean reward, of problems whose attempts differ, and Wilson's of the
             pass rate
rank         Spearman's correlation of estimates and truths
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import tempfile
import time
import types

import numpy as np

LENGTHS = (1, 2, 3, 4, 5)  # Of the chains; the teacher's have up to 4 steps.
PROMPT = '{{problem}}'
PASS_SCORE = 7
MAX_PROMPT_TOKENS, MAX_TOKENS = 160, 112


class Asked:
  """An `Llm` that is sent messages, over one that is sent ids."""

  def __init__(self, llm, words):
    self._llm, self._words = llm, words

  async def sample(self, prompt, params, *, n=1):
    """Draws `n` completions."""
    from qed.data import chat

    ids = chat.encode_chat(self._words, prompt.messages, style='instruct')
    return await self._llm.sample(
      dataclasses.replace(prompt, token_ids=ids),
      dataclasses.replace(params, stop_token_ids=self._words.stop_token_ids),
      n=n,
    )


@contextlib.contextmanager
def opened(path: pathlib.Path):
  """A model of curation, on our own engine, from a folder of checkpoints."""
  from qed.curation import asking
  from qed.data import tokenizer
  from qed.llm.local import Local
  from qed.rollout import engine, scheduler
  from qed.training import checkpoints, initial

  params, model = checkpoints.load_model(path, dtype='float32')
  words = tokenizer.load(initial.hf_folder(path))
  layout = engine.make_layout(
    max_length=MAX_PROMPT_TOKENS + MAX_TOKENS,
    num_pages=0,
    num_slots=64,
    page_size=32,
    steps_per_chunk=8,
    prefill_buckets=(80, MAX_PROMPT_TOKENS),
    kv_dtype='float32',
  )
  draws = engine.Engine(model, layout, dtype='float32')
  draws.warm_up(params)
  driver = scheduler.Scheduler(draws, params)
  sampling = types.SimpleNamespace(
    temperature=1.0, top_p=1.0, top_k=0, max_tokens=MAX_TOKENS
  )
  try:
    yield asking.Model(
      llm=Asked(Local(driver, words.decode), words),
      name=str(path),
      sampling=sampling,
    )
  finally:
    driver.close(1.0)


def item(chain):
  """A chain as curation knows problems."""
  from qed.curation.records import Item
  from qed.miniature import problems

  problem = problems.problem(chain)
  return Item(
    item_id=problem.problem_id,
    statement=problem.statement,
    solution=problem.reference,
    rubric=problem.rubric,
    source='miniature',
  )


async def with_judge(work, workdir: pathlib.Path):
  """What `work(grade)` returns, with the exact judge asked over HTTP."""
  from experiments import miniature_rl
  from qed import config, judge
  from qed.miniature import judge_server

  with judge_server.start() as server:
    section = config.JudgeConfig(
      **{**miniature_rl.get_config().judge.to_dict(), 'base_url': server.url}
    )
    async with judge.opened(section, workdir / 'verdicts.sqlite') as judging:
      return await work(judging.grade)


async def estimated(items, model, grade, num_attempts: int) -> list:
  """The items with their scores, from the stage of `qed curate`."""
  from qed.curation import difficulty

  settings = types.SimpleNamespace(
    prompt=PROMPT,
    num_rollouts=num_attempts,
    min_graded_frac=1.0,
    pass_score=PASS_SCORE,
    writer=types.SimpleNamespace(max_concurrency=64),
  )
  found = []
  async for outcome in difficulty.estimate(items, model, grade, settings):
    if outcome.reason:
      raise SystemExit(f'{outcome.item.item_id}: {outcome.detail}')
    found.append(outcome.item)
  return found


def measure(
  path: pathlib.Path,
  workdir: pathlib.Path,
  *,
  per_length: int,
  counts: tuple[int, ...],
  num_true: int,
) -> dict:
  """Estimates from so many attempts each, the truths, and how far apart."""
  from qed.miniature import problems

  chains = problems.draw_distinct(
    per_length * len(LENGTHS), LENGTHS, np.random.default_rng(7)
  )

  async def estimates(grade):
    items = [item(chain) for chain in chains]
    return [await estimated(items, model, grade, count) for count in counts]

  with opened(path) as model:
    truths = asyncio.run(_truths(model, chains, num_true))
    found = asyncio.run(with_judge(estimates, workdir))
  return {
    'num_problems': len(chains),
    'num_true': num_true,
    'true_mean_by_length': {
      length: float(np.mean(truths[index :: len(LENGTHS)])) / PASS_SCORE
      for index, length in enumerate(LENGTHS)
    },
    'truths': truths.tolist(),
    'estimates': {
      count: [list(x.scores) for x in items]
      for count, items in zip(counts, found, strict=True)
    },
    'accuracy': {
      count: accuracy(items, truths)
      for count, items in zip(counts, found, strict=True)
    },
  }


async def _truths(model, chains, num_true: int) -> np.ndarray:
  """Scores of many attempts with seeds of their own, by the checker itself."""
  from qed.miniature import checker, problems
  from qed.types import Message, Prompt, SamplingParams

  async def truth(number, chain):
    content = problems.statement(chain)
    drawn = await model.llm.sample(
      Prompt(
        problem_id=str(number),
        messages=(Message(role='user', content=content),),
        token_ids=np.zeros(0, np.int32),
      ),
      SamplingParams(
        **vars(model.sampling), stop_token_ids=(), seed=10_000 + number
      ),
      n=num_true,
    )
    return [
      checker.score(chain, x.text) if x.finish_reason == 'stop' else 0
      for x in drawn
    ]

  return np.array([await truth(*place) for place in enumerate(chains)])


def accuracy(items, truths: np.ndarray) -> dict:
  """How far estimates are from truths, and how often intervals hold them.

  Args:
    items: with their scores and the notes of the stage.
    truths: scores [problems, attempts] of the same problems.
  """
  from scipy import stats

  scores = np.array([x.scores for x in items]) / PASS_SCORE
  n = scores.shape[1]
  means = np.array([x.difficulty for x in items])
  true_means = truths.mean(axis=1) / PASS_SCORE
  errors = np.abs(means - true_means)
  # Of a normal error, the mean size is sqrt(2 / pi) standard deviations.
  expected = math.sqrt(2 / math.pi / n) * truths.std(axis=1) / PASS_SCORE
  deviations = scores.std(axis=1, ddof=1)
  differ = deviations > 0
  halves = stats.t.ppf(0.975, n - 1) * deviations / math.sqrt(n)
  rates = np.array([x.notes['difficulty']['pass_rate'] for x in items])
  true_rates = (truths >= PASS_SCORE).mean(axis=1)
  low, high = np.array([wilson_interval(rate, n) for rate in rates]).T
  return {
    'mean_error': float(errors.mean()),
    'expected_error': float(expected.mean()),
    'max_error': float(errors.max()),
    'pass_rate_error': float(np.abs(rates - true_rates).mean()),
    'rank_correlation': float(stats.spearmanr(means, true_means).statistic),
    'num_differ': int(differ.sum()),
    't_covers': float((errors <= halves)[differ].mean()),
    'wilson_covers': float(((low <= true_rates) & (true_rates <= high)).mean()),
  }


def wilson_interval(share: float, n: int) -> tuple[float, float]:
  """95 % interval of a probability, of which a share of n draws came up."""
  z = 1.959964
  center = (share + z * z / (2 * n)) / (1 + z * z / n)
  half = (z / (1 + z * z / n)) * math.sqrt(
    share * (1 - share) / n + z * z / (4 * n * n)
  )
  # At 0 and 1 the interval ends there, but for rounding.
  return min(center - half, share), max(center + half, share)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--demo', type=pathlib.Path, required=True)
  parser.add_argument('--per_length', type=int, default=8)
  parser.add_argument('--counts', type=int, nargs='+', default=(8, 16, 64))
  parser.add_argument('--num_true', type=int, default=256)
  parser.add_argument('--out', type=pathlib.Path, help='a JSON file')
  args = parser.parse_args()
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as workdir:
    found = measure(
      args.demo / 'sft/checkpoints',
      pathlib.Path(workdir),
      per_length=args.per_length,
      counts=tuple(args.counts),
      num_true=args.num_true,
    )
  found |= {'cores': os.cpu_count(), 'secs': time.monotonic() - began}
  for length, mean in found['true_mean_by_length'].items():
    print(f'{length} steps: mean reward {mean:.3f}')
  print('attempts  error (sampling alone)  worst   rank  t holds  Wilson holds')
  for count, row in found['accuracy'].items():
    print(
      f'{count:8}  {row["mean_error"]:.3f} ({row["expected_error"]:.3f})'
      f'{row["max_error"]:18.3f}{row["rank_correlation"]:7.3f}'
      f'{row["t_covers"]:8.0%} of {row["num_differ"]}'
      f'{row["wilson_covers"]:8.0%} of {found["num_problems"]}'
    )
  print(f'{found["secs"]:.0f} s')
  if args.out:
    args.out.write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
