"""The whole recipe in miniature: a model learns to prove, on two CPU cores.

  qed demo [--full] [--workdir=runs/demo] [--seed=0]

Chains of modular arithmetic -> proofs of a teacher that errs -> a tokenizer and
a tiny random Qwen3 -> `qed sft` -> `qed grpo`, rewarded by a judge that is
asked over HTTP -> held-out problems before and after -> `qed export` -> the
exported folder, loaded by a new process, writes a proof -> `qed report`.
With --full, another kind of chains, and what comes after: qed/demo_full.py.
Started again with the same workdir, it goes on where it was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from qed import cli, grpo, hub, report, sft

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / 'experiments'
_NUM_TRACES, _NUM_PRACTICE, _NUM_HELD_OUT = 16_000, 2_000, 64
# Of the chains. Longer ones than the teacher's would earn nothing, and give
# reinforcement learning no signal.
_TEACHER_STEPS, _PRACTICE_STEPS = (1, 2, 3, 4), (3, 4)
_ERROR_RATE = 0.2  # Of a line of the teacher.


def main(argv: Sequence[str]) -> int:
  """Runs every stage and prints what came of it."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir',
    '',
    'the folder; runs/demo, or runs/demo-full, if not given',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'full',
    False,
    'what comes after: reasoning cache and scaffolds',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seed',
    0,
    'of problems, teacher, weights and sampling',
    lower_bound=0,
    flag_values=values,
  )
  cli.parse_flags(argv, values, usage=__doc__)
  is_full, seed = values['full'].value, values['seed'].value
  workdir = pathlib.Path(
    values['workdir'].value or ('runs/demo-full' if is_full else 'runs/demo')
  )
  # Of all starts with this folder; an interrupted stage counts what it took.
  clock = workdir / 'seconds.json'
  secs = json.loads(clock.read_text()) if clock.exists() else {}

  def timed(stage, function, *arguments):
    print(f'\n== {stage}', flush=True)
    began = time.monotonic()
    try:
      return function(*arguments)
    finally:
      secs[stage] = secs.get(stage, 0.0) + time.monotonic() - began
      workdir.mkdir(parents=True, exist_ok=True)
      clock.write_text(json.dumps(secs), encoding='utf-8')

  if is_full:
    from qed import demo_full

    return demo_full.run(workdir, seed, timed)
  if not (workdir / 'traces.jsonl').exists():
    timed('teacher proofs and a random model', _write_material, workdir, seed)
  for stage, train in (('sft', _sft), ('grpo', _grpo)):
    code = timed(stage, train, workdir, seed)
    if code != cli.DONE:
      return code
  folder = workdir / 'exported'
  timed(
    'export',
    hub.export_main,
    ['qed export', '--force', str(workdir / 'grpo/checkpoints'), str(folder)],
  )
  statement, proof, score = timed(
    'a proof by the exported model, in a new process', _prove_anew, workdir
  )
  print(f'\n{statement}\n\n{proof}\n\n{score}/7')
  summary = _summary(workdir, secs)
  page = report.write([workdir], workdir / 'report', 32)
  _print_table(summary)
  print(f'\n{page}')
  return cli.DONE


def _write_material(workdir: pathlib.Path, seed: int) -> None:
  """Problems, the model folder (random weights, tokenizer), then traces."""
  import numpy as np

  from qed.data import problems as files
  from qed.miniature import model, problems, teacher

  rng = np.random.default_rng(seed)
  chains = problems.draw_distinct(
    _NUM_HELD_OUT + _NUM_PRACTICE, _PRACTICE_STEPS, rng
  )
  drawn = [problems.problem(chain) for chain in chains]
  held_out, practice = drawn[:_NUM_HELD_OUT], drawn[_NUM_HELD_OUT:]
  kept_apart = {problem.statement for problem in held_out}
  traces = [
    trace
    for trace in teacher.traces(
      _NUM_TRACES, num_steps=_TEACHER_STEPS, error_rate=_ERROR_RATE, seed=seed
    )
    if trace.statement not in kept_apart
  ]
  workdir.mkdir(parents=True, exist_ok=True)
  files.write_jsonl(workdir / 'practice.jsonl', practice)
  files.write_jsonl(workdir / 'held_out.jsonl', held_out)

  write_model(
    workdir,
    [f'{trace.statement}\n{trace.proof}' for trace in traces[::40]],
    seed=seed,
    max_vocab_size=model.MAX_VOCAB_SIZE,
  )
  files.write_jsonl(workdir / 'traces.jsonl', traces)


def write_model(
  workdir: pathlib.Path,
  texts: Sequence[str],
  *,
  seed: int,
  max_vocab_size: int,
  mixes_scripts: bool = False,
) -> None:
  """Writes the folders model (random weights) and tokenizer.

  Args:
    workdir: where they go.
    texts: what the tokenizer learns from.
    seed: of the weights.
    max_vocab_size: as in `tokenizer.train_sentencepiece`, and
    mixes_scripts: likewise.
  """
  import jax

  from qed.data import tokenizer
  from qed.miniature import model
  from qed.models import hf, qwen3

  # Chat headers become whole words too.
  words = tokenizer.train_sentencepiece(
    ['user\n', 'assistant\n'] * 100 + [*texts],
    max_vocab_size=max_vocab_size,
    mixes_scripts=mixes_scripts,
  )
  words.save(workdir / 'tokenizer')
  config = qwen3.Config.from_hf(
    {
      **model.CONFIG,
      'vocab_size': words.vocab_size,
      'eos_token_id': words.eos_id,
      'pad_token_id': words.pad_id,
    }
  )
  hf.save(
    workdir / 'model',
    qwen3.init(config, jax.random.key(seed)),
    config,
    tokenizer_dir=workdir / 'tokenizer',
    force=True,
  )


def _sft(workdir: pathlib.Path, seed: int) -> int:
  return sft.main(
    [
      'qed sft',
      f'--config={EXPERIMENTS / "miniature_sft.py"}',
      f'--config.model.path={workdir / "model"}',
      f'--config.data.paths={workdir / "traces.jsonl"}',
      f'--config.training.seed={seed}',
      f'--workdir={workdir / "sft"}',
    ]
  )


def _grpo(workdir: pathlib.Path, seed: int) -> int:
  from qed.miniature import judge_server

  with judge_server.start() as judge:
    return grpo.main(
      [
        'qed grpo',
        f'--config={EXPERIMENTS / "miniature_rl.py"}',
        f'--config.model.path={workdir / "sft/checkpoints"}',
        f'--config.problems.paths={workdir / "practice.jsonl"}',
        f'--config.evaluation.paths={workdir / "held_out.jsonl"}',
        f'--config.judge.base_url={judge.url}',
        f'--config.training.seed={seed}',
        f'--workdir={workdir / "grpo"}',
      ]
    )


def _prove_anew(workdir: pathlib.Path) -> tuple[str, str, int]:
  """`prove` of the first held-out problem, in a process of its own."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(prove, (workdir / 'exported', workdir / 'held_out.jsonl'))


def prove(
  folder: pathlib.Path, problems_path: pathlib.Path
) -> tuple[str, str, int]:
  """A greedy proof of the first problem of a file.

  Args:
    folder: a Hugging Face folder.
    problems_path: a jsonl file of chains.

  Returns:
    (statement, proof, score 0..7).
  """
  import asyncio

  import jax.numpy as jnp

  from qed.data import chat, tokenizer
  from qed.data.problems import load_problems
  from qed.llm.local import Local
  from qed.miniature import checker, problems
  from qed.models import hf
  from qed.rollout import engine
  from qed.rollout.scheduler import Scheduler
  from qed.types import Message, SamplingParams

  params, config = hf.load(folder, dtype=jnp.float32)
  words = tokenizer.load(folder)
  (problem, *_), _ = load_problems(problems_path, malformed='refuse')
  prompt = chat.make_prompt(
    words,
    problem.problem_id,
    [Message(role='user', content=problem.statement)],
    style='instruct',
  )
  max_tokens = 96
  layout = engine.make_layout(
    max_length=len(prompt.token_ids) + max_tokens,
    num_pages=0,
    num_slots=1,
    page_size=64,
    steps_per_chunk=8,
    prefill_buckets=(64,),
    kv_dtype='float32',
  )
  scheduler = Scheduler(engine.Engine(config, layout, dtype='float32'), params)
  try:
    greedy = SamplingParams(
      temperature=0.0,
      top_p=1.0,
      top_k=0,
      max_tokens=max_tokens,
      stop_token_ids=words.stop_token_ids,
      seed=0,
    )
    (completion,) = asyncio.run(
      Local(scheduler, words.decode).sample(prompt, greedy)
    )
  finally:
    scheduler.close(1.0)
  chain = problems.parse(problem.statement)
  return (
    problem.statement,
    completion.text,
    checker.score(chain, completion.text),
  )


def _summary(workdir: pathlib.Path, secs: dict[str, float]) -> dict:
  """Writes summary.json: held-out scores of both stages, and the times."""
  from qed import held_out

  evaluations = held_out.on_file(workdir / 'grpo')
  summary = {
    'sft': interval(evaluations[min(evaluations)]['scores']),
    'grpo': interval(evaluations[max(evaluations)]['scores']),
    'seconds': sum(secs.values()),
    'stage_seconds': secs,
  }
  (workdir / 'summary.json').write_text(
    json.dumps(summary, indent=2) + '\n', encoding='utf-8'
  )
  return summary


def interval(scores: dict[str, list[int | None]]) -> dict[str, float]:
  """Mean score / 7, with a 95 % bootstrap interval over problems."""
  import numpy as np

  means = np.array(
    [
      np.mean([score for score in row if score is not None]) / 7
      for row in scores.values()
      if any(score is not None for score in row)
    ]
  )
  rng = np.random.default_rng(0)
  resampled = rng.choice(means, (10_000, len(means))).mean(axis=1)
  low, high = np.quantile(resampled, [0.025, 0.975])
  return {
    'mean': float(means.mean()),
    'low': float(low),
    'high': float(high),
    'n': len(means),
  }


def _print_table(summary: dict) -> None:
  print('\nheld-out problems   score / 7   95 % interval')
  for stage in ('sft', 'grpo'):
    row = summary[stage]
    print(
      f'after {stage:<14}{row["mean"]:>9.3f}   '
      f'{row["low"]:.3f} to {row["high"]:.3f}'
    )
  for stage, secs in summary['stage_seconds'].items():
    print(f'{secs:6.0f} s  {stage}')
  print(f'{summary["seconds"]:6.0f} s  together')


if __name__ == '__main__':
  sys.exit(cli.run(main))
