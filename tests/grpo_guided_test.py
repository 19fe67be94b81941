"""`qed grpo` with guided groups, and again after it was stopped.

What it is run with is in grpo_rig: a tiny real model, drawn from by plain
forward passes, and a rule about ids for a judge.
"""

import asyncio
import contextlib
import json
import types

import numpy as np
import pytest
from absl import app

from qed import cli, preparation
from qed.data import packing
from qed.miniature import judge_server, problems
from qed.types import Completion
from tests.grpo_rig import (
  NUM_STEPS,
  Parts,
  assert_ledger_closes,
  assert_same_run,
  batches,
  cache,
  in_phase,
  make_config,
  read_metrics,
  rollouts,
  slow,
  terminate,
  tiny,
  train,
)

__all__ = ['cache', 'in_phase', 'tiny']  # Fixtures.

PROMPT = '{{problem}}\nIt begins: {{prefix}}'
HELD_OUT = {'p20', 'p21'}
# Of one problem to practise there is none.
PREFIXES = {f'p{n}': f'{n} is a number, and so' for n in (0, 1, 2, 3, 20, 21)}
GUIDED = {
  'rollout.problems_per_step': 1,
  'rollout.guided_per_problem': 1,
  'guidance.prompt': PROMPT,
  'training.checkpoint_interval_steps': 1,
  'training.eval_interval_steps': NUM_STEPS,
  'health.inspect_interval_steps': 0,
}


class GuidedParts(Parts):
  """Remembers what was drawn, and what graded behind which beginning."""

  def __init__(self):
    super().__init__()
    self.drawn, self.graded = [], []

  @contextlib.asynccontextmanager
  async def open_sampler(self, run, params, version):
    async with super().open_sampler(run, params, version) as sampler:
      sample = sampler.sample

      async def note(prompt, params, *, group):
        self.drawn.append((group, prompt))
        return await sample(prompt, params, group=group)

      sampler.sample = note
      yield sampler

  @contextlib.asynccontextmanager
  async def open_grader(self, run):
    async with super().open_grader(run) as grader:

      async def grade(problem, completion, max_tokens, prefix):
        self.graded.append((problem.problem_id, completion.text, prefix))
        return await grader.grade(problem, completion, max_tokens, prefix)

      yield grader._replace(grade=grade)


def write_prefixes(folder, prefixes):
  path = folder / 'prefixes.jsonl'
  rows = [
    {'problem_id': name, 'prefix': text} for name, text in prefixes.items()
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def train_guided(tiny, workdir, parts=None, **changes):
  path = write_prefixes(tiny, PREFIXES)
  settings = {**GUIDED, 'guidance.paths': (str(path),)}
  return train(tiny, workdir, parts, **(settings | changes))


@pytest.fixture(scope='module')
def run(cache, tiny, tmp_path_factory):
  """A run that nobody interrupted: (folder, parts, samples of each step)."""
  workdir = tmp_path_factory.mktemp('guided')
  parts, trained = GuidedParts(), []
  pack = packing.pack_grpo

  def keep(samples, *arguments):
    trained.append(samples)
    return pack(samples, *arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packing, 'pack_grpo', keep)
    assert train_guided(tiny, workdir, parts) == cli.DONE
  return workdir, parts, trained


def test_half_of_the_groups_have_a_beginning_and_the_journal_says_which(run):
  workdir, _, _ = run
  kinds = {}
  for (group, _), row in rollouts(workdir).items():
    kinds.setdefault(group, set()).add((row['problem_id'], row['kind']))
  assert sorted(kinds) == list(range(2 * NUM_STEPS))
  for first in range(0, 2 * NUM_STEPS, 2):
    ((problem, kind),), ((same, other),) = kinds[first], kinds[first + 1]
    assert (same, other) == (problem, 'plain')
    assert kind == ('guided' if problem in PREFIXES else 'plain')
  assert batches(workdir) == {
    step: [2 * step - 2, 2 * step - 1] for step in range(1, NUM_STEPS + 1)
  }


def test_the_judge_is_told_the_beginning_that_the_prompt_has(run, tiny):
  workdir, parts, _ = run
  practised = {
    (row['problem_id'], row['text'], row['kind'])
    for row in rollouts(workdir).values()
  }
  graded = {
    (problem, text, 'guided' if prefix else 'plain')
    for problem, text, prefix in parts.graded
    if problem not in HELD_OUT
  }
  assert graded == practised
  for problem, _, prefix in parts.graded:
    assert prefix in ('', PREFIXES.get(problem))


def test_no_token_of_a_beginning_is_trained_on(run):
  workdir, parts, trained = run
  words = parts.sampler.run.words
  rows = rollouts(workdir)
  num_guided = 0
  for step, samples in enumerate(trained, start=1):
    members = [(g, m) for g in batches(workdir)[step] for m in range(3)]
    for (group, member), sample in zip(members, samples, strict=True):
      row = rows[group, member]
      ids = sample.token_ids.tolist()
      assert ids == row['prompt_token_ids'] + row['token_ids']
      start = len(row['prompt_token_ids'])
      assert sample.loss_mask.tolist() == [n >= start for n in range(len(ids))]
      if row['kind'] == 'guided':
        num_guided += 1
        beginning = PREFIXES[row['problem_id']]
        assert beginning in words.decode(ids[:start])
  assert num_guided >= 4


def test_evaluation_has_no_beginning_even_of_a_problem_that_could(run):
  _, parts, _ = run
  assert {*PREFIXES} >= HELD_OUT
  held_out = [prompt for group, prompt in parts.drawn if group < 0]
  assert {prompt.problem_id for prompt in held_out} == HELD_OUT
  assert {prompt.kind for prompt in held_out} == {'plain'}
  given = {prefix for name, _, prefix in parts.graded if name in HELD_OUT}
  assert given == {''}


def test_metrics_tell_the_kinds_apart(run):
  workdir, _, _ = run
  rows = rollouts(workdir)
  for step, values in read_metrics(workdir).items():
    groups = batches(workdir)[step]
    for kind, number in (('guided', groups[0]), ('unguided', groups[1])):
      mine = [rows[number, member] for member in range(3)]
      if kind == 'guided' and mine[0]['kind'] == 'plain':
        assert f'{kind}/reward_mean' not in values
        assert values['unguided/groups'] == 2
        break
      rewards = [row['reward'] for row in mine]
      assert values[f'{kind}/reward_mean'] == pytest.approx(sum(rewards) / 3)
      drawn = [x for row in mine for x in row['logprobs']]
      assert values[f'{kind}/entropy'] == pytest.approx(
        -sum(drawn) / len(drawn)
      )


@pytest.mark.parametrize('phase', ['grade', slow('train'), slow('checkpoint')])
def test_a_guided_run_that_was_stopped_ends_like_one_that_was_not(
  run, tiny, tmp_path, in_phase, phase
):
  parts = Parts()
  in_phase(parts, phase, 1, terminate)
  assert train_guided(tiny, tmp_path, parts) == cli.RESTART
  assert train_guided(tiny, tmp_path) == cli.DONE
  workdir, _, _ = run
  assert_same_run(tmp_path, workdir)
  assert_ledger_closes(tmp_path)


def test_a_run_cannot_go_on_with_other_beginnings(run, tiny, tmp_path):
  workdir, _, _ = run
  path = write_prefixes(tmp_path, {**PREFIXES, 'p1': 'Another'})
  with pytest.raises(app.UsageError, match='on other data'):
    train_guided(tiny, workdir, **{'guidance.paths': (str(path),)})


def test_beginnings_of_other_problems_are_refused(tiny, tmp_path):
  path = write_prefixes(tmp_path, {'p77': 'So'})
  with pytest.raises(app.UsageError, match='beginnings of proofs'):
    train_guided(tiny, tmp_path, **{'guidance.paths': (str(path),)})


@pytest.mark.parametrize('style', ['instruct', 'thinking'])
def test_the_judge_reads_beginning_and_rest_as_one_proof(tiny, tmp_path, style):
  """The exact judge, asked over HTTP; half of the proof would earn half."""
  chain = problems.draw(4, np.random.default_rng(0))
  problem = problems.problem(chain)
  first, rest = problem.reference.split('\n', 1)
  thinking = 'Hm.\n</think>\n\n' if style == 'thinking' else ''

  async def grade(url, *texts):
    settings = make_config(
      tiny,
      **{
        'problems.chat_style': style,
        'judge.base_url': url,
        'judge.effort': '',
        'judge.max_tokens': 256,
      },
    )
    run = types.SimpleNamespace(config=settings, workdir=tmp_path)
    async with preparation.open_judge(run) as grader:
      return [
        await grader.grade(problem, completion(text), 100, prefix)
        for text, prefix in texts
      ]

  with judge_server.start() as server:
    (whole, reward), (half, _), (unfinished, _) = asyncio.run(
      grade(
        server.url,
        (thinking + rest, first),
        (thinking + rest, ''),
        ('Hm.' if thinking else '', first),
      )
    )
  assert (whole.score, reward) == (7, 1.0)
  assert half.score == 0
  # Without a proof there is nothing to grade; of an empty one, what was given.
  assert unfinished.score == (0 if thinking else chain.points[0] - 1)


def completion(text):
  ids = np.zeros(1, np.int32)
  return Completion(
    token_ids=ids,
    logprobs=np.zeros(1, np.float32),
    versions=ids,
    text=text,
    finish_reason='stop',
  )
