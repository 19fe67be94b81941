r"""Sampling ahead of the trainer against taking turns, under a slow judge.

  .venv/bin/python -m bench.async_sync [--max_lags 0 1] [--out async.json]

`qed grpo` on the miniature's problems with the demo's model, untrained, and the
miniature's judge, whose answers take a lognormal time with a long tail (median
0.25 s; one in a hundred takes 5 s). Only chance ends a completion, so that the
lengths have a long tail, too. Every max_lag gets the same prompts and seeds, in
a process of its own; sampler and trainer share the one device.

What is measured is the time between two steps in the middle of the run, per
token that was trained: at the beginning programs compile while samplers run
ahead, and at the end there is nothing to run ahead for. `speedup` is that of
the first max_lag, for equally many tokens, over this one's. On a machine with
few cores sampling and training compete for them; what is won there is the time
in which everybody waited for the judge.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import tempfile

PROBLEMS_PER_STEP, GROUP_SIZE = 8, 4
MAX_PROMPT_TOKENS, MAX_TOKENS = 64, 192
# Two of these tokens end a completion; without a limit it would have 160.
VOCAB_SIZE = 320
LATENCY_SECS, LATENCY_SIGMA = 0.25, 1.3


def write_material(folder: pathlib.Path, num_problems: int) -> None:
  """Problems and a random model."""
  import jax
  import numpy as np

  from qed.data import problems as files
  from qed.data import tokenizer
  from qed.miniature import model, problems
  from qed.models import hf, qwen3

  chains = problems.draw_distinct(
    num_problems, (3, 4), np.random.default_rng(0)
  )
  drawn = [problems.problem(chain) for chain in chains]
  files.write_jsonl(folder / 'problems.jsonl', drawn)
  words = tokenizer.train_sentencepiece(
    [problem.statement for problem in drawn], max_vocab_size=VOCAB_SIZE
  )
  words.save(folder / 'tokenizer')
  config = qwen3.Config.from_hf(
    {
      **model.CONFIG,
      'vocab_size': words.vocab_size,
      'eos_token_id': words.eos_id,
      'pad_token_id': words.pad_id,
    }
  )
  hf.save(
    folder / 'model',
    qwen3.init(config, jax.random.key(0)),
    config,
    tokenizer_dir=folder / 'tokenizer',
  )


def make_config(
  folder: pathlib.Path, judge_url: str, max_lag: int, num_steps: int
):
  """The miniature's config at the sizes of this comparison."""
  from experiments import base, miniature_rl
  from qed import config

  num_rollouts = PROBLEMS_PER_STEP * GROUP_SIZE
  values = {
    'model.path': str(folder / 'model'),
    'problems.paths': (str(folder / 'problems.jsonl'),),
    'problems.chat_style': 'base',
    'problems.max_prompt_tokens': MAX_PROMPT_TOKENS,
    'rollout.problems_per_step': PROBLEMS_PER_STEP,
    'rollout.group_size': GROUP_SIZE,
    'rollout.max_lag': max_lag,
    'rollout.max_groups_in_flight': (max_lag + 1) * PROBLEMS_PER_STEP,
    'rollout.max_groups_waiting': (max_lag + 1) * PROBLEMS_PER_STEP,
    'sampling.max_tokens': MAX_TOKENS,
    'engine.num_slots': num_rollouts,
    'engine.page_size': 64,
    'engine.prefill_buckets': (MAX_PROMPT_TOKENS,),
    'judge.base_url': judge_url,
    'judge.deadline_secs': 120.0,
    # Its window begins with a quarter, which is to be no limit here.
    'judge.max_concurrency': 4 * num_rollouts * (max_lag + 1),
    'packing.row_length': MAX_PROMPT_TOKENS + MAX_TOKENS,
    'packing.microbatch_counts': (4,),
    'optim.peak_lr': 1e-5,
    'training.total_steps': num_steps,
    'training.checkpoint_interval_steps': num_steps,
    'training.eval_interval_steps': 0,
    'evaluation.paths': (),
    'evaluation.max_tokens': MAX_TOKENS,
    'health.max_ungraded_frac': 1.0,
  }
  return config.build(base.override(miniature_rl.get_config(), values))


def measure(
  folder: pathlib.Path, max_lag: int, num_skipped: int, num_steps: int
) -> dict:
  """Figures of the steps in the middle, and the ledger of the whole run.

  Args:
    folder: of `write_material`.
    max_lag: of the run.
    num_skipped: steps at either end that do not count.
    num_steps: of the run.
  """
  from qed import cli, grpo
  from qed.miniature import judge_server
  from qed.training import metrics

  behavior = judge_server.Behavior(
    latency_secs=LATENCY_SECS, latency_sigma=LATENCY_SIGMA
  )
  workdir = folder / f'lag_{max_lag}'
  with judge_server.start(behavior) as judge:
    config = make_config(folder, judge.url, max_lag, num_steps)
    code = grpo.train(config, str(workdir))
  if code != cli.DONE:
    raise SystemExit(f'max_lag {max_lag} ended with code {code}')
  records = metrics.read(workdir / 'metrics.jsonl')
  first, last = num_skipped, num_steps - num_skipped
  chosen = [records[step] for step in range(first + 1, last + 1)]
  secs = sum(record['secs/step'] for record in chosen)
  trained = records[last]['tokens/trained'] - records[first]['tokens/trained']
  book = json.loads((workdir / 'ledger.json').read_text(encoding='utf-8'))

  def mean(name):
    return sum(r[name] * r['secs/step'] for r in chosen) / secs

  return {
    'max_lag': max_lag,
    'steps': len(chosen),
    'secs': secs,
    'trained_tokens': trained,
    'secs_per_million_tokens': secs / trained * 1e6,
    'idle_trainer': mean('idle/trainer'),
    'idle_sampler': mean('idle/sampler'),
    'lag_mean': mean('lag/mean'),
    'lag_max': max(record['lag/max'] for record in chosen),
    'stale_share': book['stale'] / book['generated'],
    'mean_length': mean('length/mean'),
    'truncated': mean('rollouts/truncated'),
    'ledger': book,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--max_lags', type=int, nargs='+', default=[0, 1])
  parser.add_argument('--steps', type=int, default=5, help='that count')
  parser.add_argument('--out', help='a JSON file')
  args = parser.parse_args()
  num_skipped = max(args.max_lags) + 1
  num_steps = args.steps + 2 * num_skipped
  spawn = multiprocessing.get_context('spawn')
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with spawn.Pool(1) as pool:
      pool.apply(write_material, (folder, PROBLEMS_PER_STEP * num_steps))
    for max_lag in args.max_lags:
      with spawn.Pool(1) as pool:
        rows.append(
          pool.apply(measure, (folder, max_lag, num_skipped, num_steps))
        )
  for row in rows:
    row['speedup'] = (
      rows[0]['secs_per_million_tokens'] / row['secs_per_million_tokens']
    )
  result = {
    'cores': os.cpu_count(),
    'latency_secs': LATENCY_SECS,
    'latency_sigma': LATENCY_SIGMA,
    'problems_per_step': PROBLEMS_PER_STEP,
    'group_size': GROUP_SIZE,
    'max_tokens': MAX_TOKENS,
    'runs': rows,
  }
  if args.out:
    text = json.dumps(result, indent=2)
    pathlib.Path(args.out).write_text(text + '\n', encoding='utf-8')
  for row in rows:
    print(
      f'max_lag {row["max_lag"]}: {row["secs"]:.1f} s for '
      f'{row["trained_tokens"]:,.0f} tokens, speed-up {row["speedup"]:.2f}; '
      f'idle: trainer {row["idle_trainer"]:.0%}, sampler '
      f'{row["idle_sampler"]:.0%}; stale {row["stale_share"]:.1%}; '
      f'lag {row["lag_mean"]:.1f} (at most {row["lag_max"]:.0f})'
    )


if __name__ == '__main__':
  main()
