r"""Times the whole GRPO loop against TRL's GRPOTrainer, on CPU.

  python3 -m venv trl_env
  trl_env/bin/pip install torch==2.13.0 trl transformers datasets accelerate
  .venv/bin/python -m bench.grpo_step --trl_python trl_env/bin/python \
    [--rounds 2] [--steps 6] [--max_tokens 64] [--out grpo_step.json]

TRL has an environment of its own, since nothing here needs it and it needs
PyTorch; throw it away afterwards. Measured with trl 1.16.0.

Both sides train the demo's random Qwen3 in float32 on the same problems: a step
draws 8 completions of up to --max_tokens tokens for each of 8 prompts, has them
rewarded by a rule on their ids that takes no time, and updates the weights
once, on what these weights drew. Ours is `qed grpo` with rollout.max_lag = 0,
everything that it writes and checks included; only the judge is replaced. TRL's
is what one writes first: its trainer, with the model's own generate.

Nothing ends a completion but its budget, so that both sides write and train on
equally many tokens. Each runs in a process of its own, in alternating rounds. A
step is timed from the end of the one before; the first of a round compile or
warm up and do not count. The ratio is that of the median steps.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import tempfile

NUM_PROMPTS, GROUP_SIZE = 8, 8
NUM_WARM_UP_STEPS = 2
TEMPERATURE = 0.8
MAX_VOCAB_SIZE = 400
MAX_PROMPT_TOKENS = 64


def write_material(
  folder: pathlib.Path, num_steps: int, max_tokens: int
) -> None:
  """Problems (also as TRL reads them), a random model, and the settings."""
  import jax
  import numpy as np

  from qed.data import problems as files
  from qed.data import tokenizer
  from qed.miniature import model, problems
  from qed.models import hf, qwen3

  chains = problems.draw_distinct(
    NUM_PROMPTS * num_steps, (3, 4), np.random.default_rng(0)
  )
  drawn = [problems.problem(chain) for chain in chains]
  files.write_jsonl(folder / 'problems.jsonl', drawn)
  # What `problems.chat_style = 'base'` makes of a statement.
  texts = [f'{problem.statement}\n\n' for problem in drawn]
  (folder / 'prompts.jsonl').write_text(
    ''.join(json.dumps({'text': text}) + '\n' for text in texts),
    encoding='utf-8',
  )
  words = tokenizer.train_sentencepiece(texts, max_vocab_size=MAX_VOCAB_SIZE)
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
  settings = {
    'num_threads': os.cpu_count(),
    'num_prompts': NUM_PROMPTS,
    'group_size': GROUP_SIZE,
    'max_tokens': max_tokens,
    'temperature': TEMPERATURE,
    'num_steps': num_steps,
  }
  (folder / 'settings.json').write_text(json.dumps(settings), 'utf-8')


def make_config(folder: pathlib.Path, num_steps: int, max_tokens: int):
  """The miniature's config at the sizes of this comparison."""
  from experiments import base, miniature_rl
  from qed import config

  values = {
    'model.path': str(folder / 'model'),
    'problems.paths': (str(folder / 'problems.jsonl'),),
    'problems.chat_style': 'base',
    'problems.max_prompt_tokens': MAX_PROMPT_TOKENS,
    'rollout.problems_per_step': NUM_PROMPTS,
    'rollout.group_size': GROUP_SIZE,
    'rollout.max_groups_in_flight': NUM_PROMPTS,
    'sampling.temperature': TEMPERATURE,
    'sampling.max_tokens': max_tokens,
    'engine.num_slots': NUM_PROMPTS * GROUP_SIZE,
    'engine.prefill_buckets': (MAX_PROMPT_TOKENS,),
    'optim.peak_lr': 1e-6,
    # One row a sample: attention over a longer one, mostly masked, costs more
    # than the padding.
    'packing.num_rows': 8,
    'packing.row_length': MAX_PROMPT_TOKENS + max_tokens,
    'packing.microbatch_counts': (1, 2, 3, 4, 5, 6, 7, 8),
    'training.total_steps': num_steps,
    'training.checkpoint_interval_steps': num_steps,
    'training.eval_interval_steps': 0,
    'evaluation.paths': (),
    'evaluation.max_tokens': max_tokens,
  }
  return config.build(base.override(miniature_rl.get_config(), values))


@contextlib.asynccontextmanager
async def open_sampler(run, params, version):
  """The sampler of the config, for which no token is the last."""
  from qed import samplers

  async with samplers.open_sampler(run, params, version) as sampler:
    draw = sampler.sample

    async def sample(prompt, params, *, group):
      params = dataclasses.replace(params, stop_token_ids=())
      return await draw(prompt, params, group=group)

    sampler.sample = sample
    yield sampler


@contextlib.asynccontextmanager
async def open_grader(run):
  """The rule by which the other side rewards, too."""
  del run
  from qed import preparation
  from qed.types import Grade

  async def grade(problem, completion, max_tokens, prefix):
    del problem, max_tokens, prefix
    score = 7 * int(completion.token_ids.sum() % 2)
    grade = Grade(score=score, status='ok', feedback='', judge='', usage={})
    return grade, score / 7

  async def wait_ready():
    pass

  yield preparation.Grader(grade, wait_ready)


def time_qed(folder: pathlib.Path, num_steps: int, max_tokens: int) -> dict:
  """The seconds of each step, and the mean length of all completions."""
  from qed import cli, grpo
  from qed.training import metrics

  with tempfile.TemporaryDirectory() as workdir:
    code = grpo.train(
      make_config(folder, num_steps, max_tokens),
      workdir,
      open_sampler=open_sampler,
      open_grader=open_grader,
    )
    if code != cli.DONE:
      raise SystemExit(f'our side ended with code {code}')
    records = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
  return {
    'secs': [records[step]['secs/step'] for step in sorted(records)],
    'mean_length': statistics.mean(
      records[step]['length/mean'] for step in records
    ),
  }


def num_prompt_tokens(folder: pathlib.Path) -> int:
  """Of all prompts together."""
  from qed.data import tokenizer

  words = tokenizer.load(folder / 'tokenizer')
  lines = (folder / 'prompts.jsonl').read_text('utf-8').splitlines()
  return sum(len(words.encode(json.loads(line)['text'])) for line in lines)


def time_trl(folder: pathlib.Path, python: str, prompt_tokens: int) -> dict:
  """The same of the other side, and its versions."""
  script = pathlib.Path(__file__).with_name('trl_grpo.py')
  done = subprocess.run(
    [python, script, folder], stdout=subprocess.PIPE, text=True, check=True
  )
  found = json.loads(done.stdout.splitlines()[-1])
  # TRL counts a prompt once for each of its completions.
  tokens = found['completion_tokens'] - GROUP_SIZE * prompt_tokens
  num_completions = len(found['secs']) * NUM_PROMPTS * GROUP_SIZE
  return {**found, 'mean_length': tokens / num_completions}


def summarize(rounds: list[dict]) -> dict:
  """Times of the steps that count, lengths of all."""
  secs = [x for row in rounds for x in row['secs'][NUM_WARM_UP_STEPS:]]
  length = statistics.mean(row['mean_length'] for row in rounds)
  median = statistics.median(secs)
  # Every token is generated once and trained on once.
  return {
    'median_step_secs': median,
    'mean_length': length,
    'tokens_per_sec': 2 * NUM_PROMPTS * GROUP_SIZE * length / median,
    'all_secs': [row['secs'] for row in rounds],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--trl_python', required=True, help='of the environment with TRL'
  )
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--steps', type=int, default=6, help='per round')
  parser.add_argument('--max_tokens', type=int, default=64)
  parser.add_argument('--out', help='a JSON file')
  args = parser.parse_args()
  num_steps = NUM_WARM_UP_STEPS + args.steps
  spawn = multiprocessing.get_context('spawn')
  found = {'qed': [], 'trl': []}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with spawn.Pool(1) as pool:
      pool.apply(write_material, (folder, num_steps, args.max_tokens))
      prompt_tokens = pool.apply(num_prompt_tokens, (folder,))
    for _ in range(args.rounds):
      with spawn.Pool(1) as pool:
        found['qed'].append(
          pool.apply(time_qed, (folder, num_steps, args.max_tokens))
        )
      found['trl'].append(time_trl(folder, args.trl_python, prompt_tokens))
  sides = {side: summarize(rounds) for side, rounds in found.items()}
  ours, theirs = sides['qed'], sides['trl']
  if not ours['mean_length'] == theirs['mean_length'] == args.max_tokens:
    raise SystemExit(f'the two sides wrote different amounts: {sides}')
  result = {
    'cores': os.cpu_count(),
    'num_prompts': NUM_PROMPTS,
    'group_size': GROUP_SIZE,
    'max_tokens': args.max_tokens,
    'versions': {name: found['trl'][0][name] for name in ('trl', 'torch')},
    **sides,
    'speedup': theirs['median_step_secs'] / ours['median_step_secs'],
  }
  if args.out:
    text = json.dumps(result, indent=2)
    pathlib.Path(args.out).write_text(text + '\n', encoding='utf-8')
  for side, row in sides.items():
    print(
      f'{side}: {row["median_step_secs"]:.2f} s a step, completions of '
      f'{row["mean_length"]:.1f} tokens, {row["tokens_per_sec"]:,.0f} tokens/s'
    )
  print(f'speed-up {result["speedup"]:.2f}')


if __name__ == '__main__':
  main()
