"""The recipe in miniature to its end: reasoning cache, turns and scaffolds.

  qed demo --full [--workdir=runs/demo-full] [--seed=0]

Chains whose reasoning is long and whose proofs are a line (qed/miniature/
lessons.py) -> `qed sft` on short chains, then on demonstrations in every role
of a scaffold -> every scaffold with the same budget of tokens, on problems that
fit in a completion -> `qed grpo` from problems, and from states of a reasoning
cache -> both, with one to six turns, on problems that are too long for one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import app

from qed import (
  cli,
  config,
  demo,
  demo_results,
  evaluate,
  grpo,
  sft,
  solving,
)
from qed.config import EvaluateRunConfig

_NUM_FIRST_LESSONS, _NUM_LESSONS = 23_000, 25_000
_NUM_PRACTICE, _NUM_HELD_OUT, _NUM_LONG = 1_200, 64, 96
# A completion has room to reason about three steps, or about two with the
# proof; so the long ones take two, three and three turns.
_MAX_FIRST_STEPS, _MAX_STEPS, _MAX_REVIEWED_STEPS = 4, 8, 3
# Some turn of these has a proof to find, in one completion or behind others.
_PRACTICE_STEPS = (1, 2, 4, 5, 7, 8)
_HELD_OUT_STEPS, _LONG_STEPS = (2,), (4, 6, 8)
_NUM_TURNS = 6
_ERROR_RATE = 0.1  # Of a step of the teacher.
# Of the SFT model, in one completion. Below it, it has not learnt how problem
# and proof hang together, and nothing that follows has a signal.
_MIN_SCORE = 0.1
_MAX_VOCAB_SIZE = 500
# What those practise on that are trained from the SFT model, by arm.
_ARMS = {'rl': 'miniature_rc.py:plain', 'rc': 'miniature_rc.py'}
_EVALUATION = str(demo.EXPERIMENTS / 'miniature_scaffolds.py')
# Of `miniature_scaffolds.py`: the template that each role is asked by.
_TEMPLATES = {
  'reason': 'reasoning_cache.reason_prompt',
  'summarize': 'reasoning_cache.summarize_prompt',
  'verify': 'best_of_n.verify',
  'rate': 'deepseek_math.verify',
  'confirm': 'selfcheck.confirm',
  'correct': 'selfcheck.correct',
  'merge': 'rsa.merge',
  'select': 'rsa.select',
  'compare': 'nomos.compare',
  'consolidate': 'nomos.consolidate',
}


def run(workdir: pathlib.Path, seed: int, timed: Callable[..., Any]) -> int:
  """Runs every stage and prints what came of it.

  Args:
    workdir: of this demo alone; an interrupted one goes on in it.
    seed: of everything.
    timed: (stage, function, *arguments) -> what the function returns.
  """
  if not (workdir / 'traces.jsonl').exists():
    timed('lessons and a random model', _write_material, workdir, seed)
  stages = [
    ('sft: short chains', _sft, 'sft-first', seed),
    ('sft: all roles', _sft, 'sft', seed),
    ('scaffolds', _evaluate, 'sft', _scaffolds),
    *((f'grpo: {name}', _grpo, name, seed) for name in demo_results.TRAINED),
    *(
      (f'turns: {name}', _evaluate, name, _turns)
      for name in demo_results.TRAINED
    ),
  ]
  for stage, function, *arguments in stages:
    code = timed(stage, function, workdir, *arguments)
    if code != cli.DONE:
      return code
    if stage == 'scaffolds':
      _check_signal(workdir)
  found = demo_results.write_summary(workdir, max_turns=_NUM_TURNS)
  page = demo_results.write_page(workdir)
  demo_results.plot(found, page.parent)
  demo_results.print_tables(found)
  print(f'\n{page}')
  return cli.DONE


# What is learnt from.


def _write_material(workdir: pathlib.Path, seed: int) -> None:
  """Problems, the model folder (random weights, tokenizer), then traces."""
  import numpy as np

  from qed.data import problems as files
  from qed.miniature import lessons, problems

  rng = np.random.default_rng(seed)
  workdir.mkdir(parents=True, exist_ok=True)
  held_out = set()
  for name, number, sizes in (
    ('held_out', _NUM_HELD_OUT, _HELD_OUT_STEPS),
    ('long', _NUM_LONG, _LONG_STEPS),
    ('practice', _NUM_PRACTICE, _PRACTICE_STEPS),
  ):
    chains = problems.draw_distinct(number, sizes, rng, is_brief=True)
    chains = [chain for chain in chains if chain not in held_out]
    if name != 'practice':
      held_out |= {*chains}
    files.write_jsonl(
      workdir / f'{name}.jsonl', [problems.problem(chain) for chain in chains]
    )
  scaffolds = _config('sft', workdir, {}).scaffolds

  def demonstrations(number, **settings):
    drawn = lessons.draw(
      number,
      max_reviewed_steps=_MAX_REVIEWED_STEPS,
      error_rate=_ERROR_RATE,
      seed=seed,
      **settings,
    )
    return [
      _trace(chain, lesson, scaffolds)
      for chain, lesson in drawn
      if chain not in held_out
    ]

  first = demonstrations(
    _NUM_FIRST_LESSONS, shares=lessons.FIRST, max_steps=_MAX_FIRST_STEPS
  )
  traces = demonstrations(
    _NUM_LESSONS, shares=lessons.ALL, max_steps=_MAX_STEPS
  )
  demo.write_model(
    workdir,
    [
      f'{trace.prompt_messages[0].content}\n{trace.reasoning}\n{trace.proof}'
      for trace in [*first, *traces][::40]
    ],
    seed=seed,
    max_vocab_size=_MAX_VOCAB_SIZE,
    mixes_scripts=True,
  )
  files.write_jsonl(workdir / 'traces-first.jsonl', first)
  files.write_jsonl(workdir / 'traces.jsonl', traces)


def _trace(chain, lesson, scaffolds: Any):
  """A lesson, asked for as the scaffold does whose role it is."""
  from qed.data.problems import Trace
  from qed.miniature import problems
  from qed.scaffolds import prompts

  section, field = _TEMPLATES[lesson.role].split('.')
  fields = {}
  for slot, value in lesson.fields.items():
    if slot == 'problem':
      fields[slot] = value
    elif isinstance(value, str):
      fields |= prompts.quote(slot, value)
    else:
      fields |= prompts.listed(slot, slot, value)
  template = getattr(getattr(scaffolds, section), field)
  problem = problems.problem(chain)
  return Trace(
    problem_id=problem.problem_id,
    statement=problem.statement,
    reasoning=lesson.reasoning,
    proof=lesson.answer,
    source=f'miniature: {lesson.role}',
    prompt_messages=prompts.user(template, **fields),
  )


# What learns.


def _sft(workdir: pathlib.Path, name: str, seed: int) -> int:
  arm, source, traces = {
    'sft-first': ('short_chains', 'model', 'traces-first.jsonl'),
    'sft': ('roles', 'sft-first/checkpoints', 'traces.jsonl'),
  }[name]
  return sft.main(
    [
      'qed sft',
      f'--config={demo.EXPERIMENTS / "miniature_sft.py"}:{arm}',
      f'--config.model.path={workdir / source}',
      f'--config.data.paths={workdir / traces}',
      f'--config.training.seed={seed}',
      f'--workdir={workdir / name}',
    ]
  )


def _grpo(workdir: pathlib.Path, name: str, seed: int) -> int:
  from qed.miniature import judge_server

  with judge_server.start() as judge:
    return grpo.main(
      [
        'qed grpo',
        f'--config={demo.EXPERIMENTS / _ARMS[name]}',
        f'--config.model.path={workdir / "sft/checkpoints"}',
        f'--config.problems.paths={workdir / "practice.jsonl"}',
        f'--config.evaluation.paths={workdir / "held_out.jsonl"}',
        f'--config.judge.base_url={judge.url}',
        f'--config.training.seed={seed}',
        f'--workdir={workdir / name}',
      ]
    )


# What comes of it.


def _config(
  name: str, workdir: pathlib.Path, changes: Mapping[str, Any]
) -> EvaluateRunConfig:
  """The evaluation of a trained model, with some values of its own."""
  values = cli.load_config(_EVALUATION)
  values.update_from_flattened_dict(
    {
      'model_name': name,
      'solver.path': str(workdir / name / 'checkpoints'),
      'benchmark.path': str(workdir / 'held_out.jsonl'),
      **changes,
    }
  )
  return config.build(values)


def _turns(workdir: pathlib.Path, name: str) -> dict[str, EvaluateRunConfig]:
  """One to six turns of the reasoning cache, on the long problems."""
  trained = cli.load_config(str(demo.EXPERIMENTS / 'miniature_rc.py'))
  return {
    demo_results.turns_name(turns): _config(
      name,
      workdir,
      {
        'scaffold': 'reasoning_cache',
        'sampling.max_tokens': trained.sampling.max_tokens,
        'scaffolds.reasoning_cache.num_turns': turns,
        'benchmark.path': str(workdir / 'long.jsonl'),
        'benchmark.num_attempts': 2,
        'budget.max_tokens': 0,
      },
    )
    # The turns of the longest are those of the others, too, and on record.
    for turns in range(_NUM_TURNS, 0, -1)
  }


def _scaffolds(
  workdir: pathlib.Path, name: str
) -> dict[str, EvaluateRunConfig]:
  """All scaffolds, on problems that fit in a completion.

  They are given the SFT model: after reinforcement learning there is little
  left to gain on these.
  """
  return {
    scaffold: _config(name, workdir, {'scaffold': scaffold})
    for scaffold in solving.SCAFFOLDS
  }


def _check_signal(workdir: pathlib.Path) -> None:
  """Stops here if there is nothing that could be made better."""
  found = demo_results.row(demo_results.entry(workdir, 'sft', 'single'))
  if found['mean'] < _MIN_SCORE:
    raise app.UsageError(
      f'after SFT the mean score is {found["mean"]:.3f} of 1 on problems that '
      f'fit in a completion, and {_MIN_SCORE} is the least that reinforcement '
      'learning can go on from: the model is still on its plateau. What would '
      'do: another --seed with another --workdir, or more steps in '
      'experiments/miniature_sft.py (short_chains)'
    )


def _evaluate(
  workdir: pathlib.Path,
  name: str,
  runs_of: Callable[[pathlib.Path, str], dict[str, EvaluateRunConfig]],
) -> int:
  """Evaluates one model in many ways, each in a run directory of its own."""
  from qed.miniature import judge_server

  folder = demo_results.evaluations_dir(workdir, name)
  runs = runs_of(workdir, name)
  first = next(iter(runs.values()))

  async def measure_all(judge_url: str) -> int:
    async with solving.opened(
      first.solver, sampling=first.sampling, workdir=folder
    ) as model:
      for run_name, given in runs.items():
        judge = dataclasses.replace(given.judge, base_url=judge_url)
        given = dataclasses.replace(given, judge=judge)
        found = await evaluate.measure(
          given, evaluate.load(given), folder / run_name, model
        )
        if found is None:
          return cli.RESTART
        evaluate.write(folder / run_name, found)
    return cli.DONE

  if all((folder / name / 'summary.json').exists() for name in runs):
    return cli.DONE
  with judge_server.start() as judge:
    return asyncio.run(measure_all(judge.url))
