r"""POPE against plain GRPO, in miniature, on problems that are never solved.

  qed demo
  .venv/bin/python -m bench.pope --demo runs/demo [--out pope.json]

The model is the demo's after SFT, taught for longer by a teacher that errs in
seven lines of ten: proofs of up to six steps, half of them from a given
beginning on, as POPE takes a model for granted that does what it is told. It
is then right in about three lines of ten, and hardly ever in six.

Problems of six steps of which none of 32 attempts was right are practised.
The shortest beginnings of their proofs are chosen as by `qed curate`
(curation/prefixes.py), and then `qed grpo` goes on from the same weights, for
the same number of steps and rollouts in every arm and for some seeds:

  pope      for each problem a group with the beginning and one without
  plain     groups without, of twice as many problems in a step
  guided    groups with the beginning alone, likewise
  partial   as plain, but paid for score / 7 where the others are for success

All are evaluated without beginnings, by 16 attempts at each of the problems
that were practised and of others of the same kind. `solved` is the share of
problems with a success in any of the 16. Intervals are over problems
(evals/stats.py), of means over seeds.
"""

import argparse
import asyncio
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
import types

import numpy as np

from bench import difficulty
from bench.difficulty import MAX_PROMPT_TOKENS, MAX_TOKENS, PASS_SCORE

GUIDED_PROMPT = '{{problem}}\n{{prefix}}'
ERROR_RATE = 0.7
NUM_STEPS = 6  # Of a chain; the lessons have up to as many.
GROUPS_PER_STEP, GROUP_SIZE = 16, 8
LEARNING_RATE = 3e-4
_GUIDED = {
  'rollout.guided_per_problem': 1,
  'guidance.prompt': GUIDED_PROMPT,
  'guidance.pass_score': PASS_SCORE,
}
ARMS = {
  'pope': {**_GUIDED, 'rollout.problems_per_step': GROUPS_PER_STEP // 2},
  'plain': {},
  'guided': {**_GUIDED, 'rollout.unguided_per_problem': 0},
  'partial': {'reward.points': tuple(range(8))},
}
FILES = ('practised', 'held_out')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much of everything."""

  teaching_steps: int
  grpo_steps: int
  num_problems: int  # That are practised, and held out.
  num_screened: int  # Attempts of which all must fail.
  num_attempts: int  # At an evaluation, and behind a beginning.


def write_lessons(path: pathlib.Path, seed: int) -> None:
  """Proofs of the teacher; every other one from a beginning on."""
  from qed.data import guidance
  from qed.data import problems as files
  from qed.miniature import problems, teacher

  rng = np.random.default_rng(seed)
  traces = []
  for index, trace in enumerate(
    teacher.traces(
      8_000,
      num_steps=range(1, NUM_STEPS + 1),
      error_rate=ERROR_RATE,
      seed=seed + 1,
      num_names=problems.FEW_NAMES,
    )
  ):
    lines = trace.proof.split('\n')
    if index // NUM_STEPS % 2 and len(lines) > 2:
      cut = int(rng.integers(1, len(lines) - 1))
      trace = dataclasses.replace(
        trace,
        statement=guidance.question(
          trace.statement, '\n'.join(lines[:cut]), GUIDED_PROMPT
        ),
        proof='\n'.join(lines[cut:]),
      )
    traces.append(trace)
  files.write_jsonl(path, traces)


def teach(demo: pathlib.Path, workdir: pathlib.Path, num_steps: int) -> None:
  """Goes on with the demo's SFT."""
  from experiments import base, miniature_sft
  from qed import cli, config, sft

  workdir.mkdir(parents=True, exist_ok=True)
  write_lessons(workdir / 'lessons.jsonl', seed=0)
  values = {
    'model.path': str(demo / 'sft/checkpoints'),
    'data.paths': (str(workdir / 'lessons.jsonl'),),
    'data.max_tokens': 256,
    'training.total_steps': num_steps,
    'training.checkpoint_interval_steps': num_steps,
    'optim.peak_lr': 2e-3,
    'packing.microbatch_counts': (1, 2, 3),
  }
  settings = config.build(base.override(miniature_sft.get_config(), values))
  if sft.train(settings, str(workdir / 'sft')) != cli.DONE:
    raise SystemExit('the teaching was stopped')


def write_problems(
  path: pathlib.Path, workdir: pathlib.Path, sizes: Sizes
) -> dict:
  """Problems that are never solved, and beginnings for half of them."""
  from qed.curation import prefixes
  from qed.data import problems as files
  from qed.miniature import problems

  wanted = 2 * sizes.num_problems
  chains = problems.draw_distinct(
    wanted + wanted // 4,
    [NUM_STEPS],
    np.random.default_rng(8),
    num_names=problems.FEW_NAMES,
  )
  settings = types.SimpleNamespace(
    template=GUIDED_PROMPT,
    num_parts=NUM_STEPS,
    max_parts=NUM_STEPS - 1,
    num_rollouts=sizes.num_attempts,
  )

  async def work(model, grade):
    tried = await difficulty.estimated(
      map(difficulty.item, chains), model, grade, sizes.num_screened
    )
    unsolved = [x for x in tried if max(x.scores) < PASS_SCORE][:wanted]
    practised = unsolved[: sizes.num_problems]
    chosen = [
      prefix
      async for prefix in prefixes.choose(
        practised, model, grade, settings, pass_score=PASS_SCORE
      )
    ]
    return tried, unsolved, chosen

  with difficulty.opened(path) as model:
    tried, unsolved, chosen = asyncio.run(
      difficulty.with_judge(functools.partial(work, model), workdir)
    )
  if len(unsolved) < wanted:
    raise SystemExit(f'{len(unsolved)} of {wanted} problems are unsolved')
  count = sizes.num_problems
  parts = (unsolved[:count], unsolved[count:])
  for name, part in zip(FILES, parts, strict=True):
    files.write_jsonl(workdir / f'{name}.jsonl', [x.problem() for x in part])
  rows = [json.dumps(dataclasses.asdict(prefix)) for prefix in chosen]
  (workdir / 'prefixes.jsonl').write_text('\n'.join(rows) + '\n')
  return {
    'num_tried': len(tried),
    'num_solved': sum(max(x.scores) >= PASS_SCORE for x in tried),
    'mean_reward': float(np.mean([x.difficulty for x in tried])),
    'lines_given': [x.prefix.count('\n') + 1 for x in chosen],
    'num_without_success': sum(not x.num_successes for x in chosen),
  }


def make_config(
  start: pathlib.Path, workdir: pathlib.Path, url: str, arm: str, seed, sizes
):
  """The demo's settings of `qed grpo`, for an arm."""
  from experiments import base, miniature_rl
  from qed import config

  values = {
    'model.path': str(start),
    'problems.paths': (str(workdir / f'{FILES[0]}.jsonl'),),
    'problems.max_prompt_tokens': MAX_PROMPT_TOKENS,
    'evaluation.paths': (),
    'training.eval_interval_steps': 0,
    'judge.base_url': url,
    'reward.points': (0, 0, 0, 0, 0, 0, 0, 7),
    'rollout.problems_per_step': GROUPS_PER_STEP,
    'rollout.group_size': GROUP_SIZE,
    'sampling.max_tokens': MAX_TOKENS,
    'engine.num_slots': GROUPS_PER_STEP * GROUP_SIZE,
    'engine.prefill_buckets': (80, MAX_PROMPT_TOKENS),
    'packing.row_length': 288,
    'packing.microbatch_counts': (2, 3, 4, 5, 6, 8, 12, 16),
    # At the demo's 1e-3 the few groups with a signal lead to a collapse.
    'optim.peak_lr': LEARNING_RATE,
    'training.seed': seed,
    'training.total_steps': sizes.grpo_steps,
    'training.checkpoint_interval_steps': sizes.grpo_steps,
    **ARMS[arm],
  }
  if 'rollout.guided_per_problem' in values:
    values['guidance.paths'] = (str(workdir / 'prefixes.jsonl'),)
  return config.build(base.override(miniature_rl.get_config(), values))


def practise(
  start: pathlib.Path, workdir: pathlib.Path, arm: str, seed: int, sizes: Sizes
) -> dict:
  """A run of `qed grpo`, and what its model solves without beginnings."""
  from qed import cli, grpo
  from qed.miniature import judge_server
  from qed.training import metrics, rundir

  path = workdir / f'{arm}-{seed}.json'
  if path.exists():
    return json.loads(path.read_text(encoding='utf-8'))
  began = time.monotonic()
  with (
    tempfile.TemporaryDirectory() as run_dir,
    judge_server.start() as judge,
  ):
    settings = make_config(start, workdir, judge.url, arm, seed, sizes)
    if grpo.train(settings, run_dir) != cli.DONE:
      raise SystemExit(f'{arm}, seed {seed}: the run was stopped')
    records = metrics.read(pathlib.Path(run_dir) / 'metrics.jsonl')
    trained_secs = time.monotonic() - began
    scores = evaluate(
      pathlib.Path(run_dir) / 'checkpoints', workdir, sizes.num_attempts
    )
  shown = ('reward/mean', 'groups/zero_signal', 'entropy')
  found = {
    'arm': arm,
    'seed': seed,
    'scores': scores,
    'curves': {
      name: [records[step].get(name) for step in sorted(records)]
      for name in {name for record in records.values() for name in record}
      if name in shown or name.startswith(('guided/', 'unguided/'))
    },
    'rollouts': sum(record['rollouts/count'] for record in records.values()),
    'trained_secs': trained_secs,
    'secs': time.monotonic() - began,
  }
  rundir.write_json(path, found)
  return found


def evaluate(
  path: pathlib.Path, workdir: pathlib.Path, num_attempts: int
) -> dict:
  """Scores [problems, attempts] of both files, without beginnings."""
  from qed.data.problems import load_problems
  from qed.miniature import problems

  files = {}
  for name in FILES:
    rows, _ = load_problems(workdir / f'{name}.jsonl', malformed='refuse')
    chains = [problems.parse(row.statement) for row in rows]
    files[name] = [difficulty.item(chain) for chain in chains]

  async def work(grade):
    return {
      name: [
        list(found.scores)
        for found in await difficulty.estimated(
          items, model, grade, num_attempts
        )
      ]
      for name, items in files.items()
    }

  with (
    difficulty.opened(path) as model,
    tempfile.TemporaryDirectory() as scratch,
  ):
    return asyncio.run(difficulty.with_judge(work, pathlib.Path(scratch)))


def summarize(runs: list[dict], before: dict) -> dict:
  """By arm, file and measure: an interval, each seed's mean, against plain."""
  from qed.evals import stats

  arms = {'before': [before]}
  for run in runs:
    arms.setdefault(run['arm'], []).append(run['scores'])
  values = {}
  for arm, scores in arms.items():
    for name in FILES:
      passes = np.array([s[name] for s in scores]) >= PASS_SCORE
      values[arm, name, 'solved'] = passes.any(axis=2).astype(float)
      values[arm, name, 'pass_rate'] = passes.mean(axis=2)
  found = {}
  for (arm, name, what), by_seed in values.items():
    means = by_seed.mean(axis=0)
    row = dataclasses.asdict(stats.estimate(means, high=1.0))
    row['seeds'] = by_seed.mean(axis=1).tolist()
    plain = values.get(('plain', name, what))
    if arm != 'plain' and plain is not None:
      compared = stats.compare(means, plain.mean(axis=0), span=1.0)
      row['less_plain'] = dataclasses.asdict(compared)
    found[f'{arm}/{name}/{what}'] = row
  return found


def show(found: dict) -> None:
  """Prints the table."""
  for what in ('solved', 'pass_rate'):
    print(f'\n{what}, unguided' + ' ' * 8 + '95 % interval  each seed')
    for key, row in found.items():
      arm, name, of = key.split('/')
      if of != what:
        continue
      seeds = ' '.join(f'{x:.3f}' for x in row['seeds'])
      line = (
        f'  {arm:8} {name:10} {row["value"]:.3f}   '
        f'{row["low"]:.3f} to {row["high"]:.3f}  {seeds}'
      )
      if 'less_plain' in row:
        gain = row['less_plain']['difference']
        line += (
          f'   less plain {gain["value"]:+.3f} '
          f'[{gain["low"]:+.3f}, {gain["high"]:+.3f}]'
        )
      print(line)


def prepare(demo: pathlib.Path, workdir: pathlib.Path, sizes: Sizes) -> dict:
  """Teaches, chooses problems and beginnings, and evaluates before the rest."""
  from qed.training import rundir

  path = workdir / 'prepared.json'
  if path.exists():
    return json.loads(path.read_text(encoding='utf-8'))
  began = time.monotonic()
  teach(demo, workdir, sizes.teaching_steps)
  taught_secs = time.monotonic() - began
  start = workdir / 'sft/checkpoints'
  chosen = write_problems(start, workdir, sizes)
  made = {
    'chosen': chosen,
    'before': evaluate(start, workdir, sizes.num_attempts),
    'teaching_secs': taught_secs,
    'secs': time.monotonic() - began,
  }
  rundir.write_json(path, made)
  return made


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--demo', type=pathlib.Path, required=True)
  parser.add_argument('--arms', nargs='+', default=[*ARMS][:2], choices=ARMS)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--jobs', type=int, default=2, help='runs at a time')
  parser.add_argument('--teaching_steps', type=int, default=1_500)
  parser.add_argument('--grpo_steps', type=int, default=60)
  parser.add_argument('--num_problems', type=int, default=40)
  parser.add_argument('--num_screened', type=int, default=32)
  parser.add_argument('--num_attempts', type=int, default=16)
  parser.add_argument(
    '--workdir', type=pathlib.Path, help='kept, and what is done there counts'
  )
  parser.add_argument('--out', type=pathlib.Path, help='a JSON file')
  args = parser.parse_args()
  names = [field.name for field in dataclasses.fields(Sizes)]
  sizes = Sizes(**{name: getattr(args, name) for name in names})
  spawn = multiprocessing.get_context('spawn')
  with tempfile.TemporaryDirectory() as scratch:
    workdir = args.workdir or pathlib.Path(scratch)
    for arm in args.arms:  # A mistake is told before anything is trained.
      make_config(workdir, workdir, 'http://localhost', arm, 0, sizes)
    with spawn.Pool(1) as pool:
      made = pool.apply(prepare, (args.demo, workdir, sizes))
    print(made['chosen'], f'{made["secs"]:.0f} s', flush=True)
    places = [
      (workdir / 'sft/checkpoints', workdir, arm, seed, sizes)
      for seed in range(args.seeds)
      for arm in args.arms
    ]
    with spawn.Pool(args.jobs, maxtasksperchild=1) as pool:
      runs = pool.starmap(practise, places, chunksize=1)
  found = summarize(runs, made['before'])
  for run in runs:
    print(
      f'{run["arm"]}, seed {run["seed"]}: {run["rollouts"]:.0f} rollouts, '
      f'{run["secs"]:.0f} s'
    )
  show(found)
  if args.out:
    result = {
      'cores': os.cpu_count(),
      'sizes': dataclasses.asdict(sizes),
      'prepared': made,
      'runs': runs,
      'found': found,
    }
    args.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
