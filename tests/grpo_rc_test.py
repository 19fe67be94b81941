"""`qed grpo` from states of a reasoning cache, and again after it was stopped.

What it is run with is in grpo_rig: a tiny real model, drawn from by plain
forward passes, and a rule about ids for a judge.
"""

import random

import pytest
from absl import app

from qed import cli, grpo
from tests import grpo_rig
from tests.grpo_rig import (
  PHASES,
  PROMPT_TOKENS,
  Parts,
  assert_ledger_closes,
  batches,
  cache,
  in_phase,
  lines,
  make_config,
  read_metrics,
  rollouts,
  slow,
  sudden_death,
  terminate,
  tiny,
  train,
)

__all__ = ['cache', 'in_phase', 'tiny']  # Fixtures.

NUM_STEPS = 3
PROMPT = '{{problem}}\n{{summary_verbatim}}'
CACHED = {
  'rollout.problems_per_step': 2,
  'rollout.states_per_problem': 2,
  'rollout.group_size': 2,
  'problems.prompt': PROMPT,
  'cache.num_turns': 2,
  'cache.reason_prompt': PROMPT,
  'cache.summarize_prompt': (
    '{{problem}}\n{{summary_verbatim}}\n{{reasoning_verbatim}}\nNotes:'
  ),
  'cache.summary.max_tokens': 6,
  'summarizer.max_prompt_tokens': PROMPT_TOKENS,
  'packing.microbatch_counts': (2,),
  'training.total_steps': NUM_STEPS,
  'training.checkpoint_interval_steps': 1,
  'training.eval_interval_steps': 0,
  'evaluation.paths': (),
  'health.inspect_interval_steps': 0,
}


def train_cached(tiny, workdir, parts=None, **changes):
  return train(tiny, workdir, parts, **{**CACHED, **changes})


@pytest.fixture(scope='module')
def straight(cache, tiny, tmp_path_factory):
  """A synchronous run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  assert train_cached(tiny, workdir) == cli.DONE
  return workdir


def states(workdir):
  """By visit and index; the last line of each counts."""
  return {(row['visit'], row['index']): row for row in lines(workdir, 'states')}


def assert_same_run(found, expected):
  """Bit for bit, but for what was made and generated twice."""
  grpo_rig.assert_same_run(found, expected, 'states/')
  assert states(found) == states(expected)


def assert_books_close(workdir):
  """Every token of rollouts.jsonl and states.jsonl is in the ledger."""
  unrolled = sum(row['num_tokens'] for row in lines(workdir, 'states'))
  book = assert_ledger_closes(workdir, num_unrolled=unrolled)
  assert book['dropped']['unrolling'] == unrolled > 0


def test_groups_start_from_states_of_the_policy_as_it_is(straight):
  rows, made = rollouts(straight), states(straight)
  assert sorted({group for group, _ in rows}) == [*range(4 * NUM_STEPS)]
  for (group, _), row in rows.items():
    step = group // 4
    assert {*row['versions']} == {step}
    visit = group // 2
    (state,) = [
      state
      for (number, _), state in made.items()
      if number == visit and state['turn'] == row['turn']
    ]
    assert state['problem_id'] == row['problem_id']
    assert state['version'] == step
    assert row['kind'] == ('cached' if state['summary'] else 'plain')
  for visit in range(2 * NUM_STEPS):
    turns = {
      row['turn'] for (group, _), row in rows.items() if group // 2 == visit
    }
    assert len(turns) == 2  # Without replacement.
  assert_books_close(straight)


def test_the_metrics_tell_turns_apart(straight):
  records = read_metrics(straight)
  turns = {row['turn'] for row in rollouts(straight).values()}
  assert turns == {0, 1, 2}
  for turn in turns:
    assert any(f'reward/by_turn/{turn}' in r for r in records.values())
  assert sum(r['states/made'] for r in records.values()) == sum(
    row['index'] > 0 for row in lines(straight, 'states')
  )


@pytest.mark.parametrize('phase', ['generate', slow('grade'), slow('train')])
def test_a_run_that_was_told_to_stop_ends_like_one_that_was_not(
  straight, tiny, tmp_path, in_phase, phase
):
  parts = Parts()
  in_phase(parts, phase, 1, terminate)
  assert train_cached(tiny, tmp_path, parts) == cli.RESTART
  assert_books_close(tmp_path)
  assert train_cached(tiny, tmp_path) == cli.DONE
  assert_same_run(tmp_path, straight)
  assert_books_close(tmp_path)


def test_a_run_that_was_killed_ends_like_one_that_was_not(
  straight, tiny, tmp_path, in_phase
):
  parts = Parts()
  with sudden_death() as die:
    in_phase(parts, 'grade', 2, die)
    train_cached(tiny, tmp_path, parts)
  assert train_cached(tiny, tmp_path) == cli.DONE
  assert_same_run(tmp_path, straight)
  assert_books_close(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_an_asynchronous_run_with_a_replay_consumes_each_state_once(
  tiny, tmp_path, in_phase, seed
):
  chance = random.Random(seed)
  changes = {
    'rollout.max_lag': 2,
    'rollout.zero_signal': 'refill',
    'replay.max_summaries': 1,
    'training.total_steps': 5,
  }
  parts = Parts()
  in_phase(parts, chance.choice(PHASES), chance.randrange(1, 4), terminate)
  code = train_cached(tiny, tmp_path, parts, **changes)
  while code == cli.RESTART:
    code = train_cached(tiny, tmp_path, **changes)
  used = [group for step in batches(tmp_path).values() for group in step]
  assert len(used) == len({*used}) == 5 * 4
  assert_books_close(tmp_path)
  records = read_metrics(tmp_path)
  assert all(0 <= r['lag/max'] <= 2 for r in records.values())
  starts = [row for row in states(tmp_path).values() if row['index'] == 0]
  assert any(row['turn'] > 0 for row in starts)  # Some went on.


@pytest.mark.slow
@pytest.mark.parametrize('source', ['policy', 'frozen'])
def test_our_engine_draws_turns_and_summaries(cache, tiny, tmp_path, source):
  changes = {
    **CACHED,
    'training.total_steps': 2,
    'summarizer.source': source,
    'summarizer.path': str(tiny / 'model') if source == 'frozen' else '',
  }
  parts = Parts()
  run = make_config(tiny, **changes)
  code = grpo.train(run, str(tmp_path), open_grader=parts.open_grader)
  assert code == cli.DONE
  rows = [row for row in lines(tmp_path, 'states') if row['index']]
  assert rows
  for row in rows:
    by_policy = row['summary_tokens'] if source == 'policy' else 0
    assert row['num_tokens'] == row['reasoning_tokens'] + by_policy
  assert_books_close(tmp_path)
  for record in read_metrics(tmp_path).values():
    assert record['ratio/mean'] == pytest.approx(1, abs=1e-5)


def test_a_template_without_its_slots_is_told_before_anything_runs(
  tiny, tmp_path
):
  with pytest.raises(app.UsageError, match='summary'):
    train_cached(
      tiny, tmp_path, **{'cache.summarize_prompt': '{{problem}} alone'}
    )
