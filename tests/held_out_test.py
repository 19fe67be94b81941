"""Evaluations beside the training: when they begin, and what is reported."""

import asyncio
import json
import types

import pytest

from qed import held_out


def make_run(tmp_path, *, interval=2, total_steps=5):
  training = types.SimpleNamespace(
    eval_interval_steps=interval, total_steps=total_steps
  )
  return types.SimpleNamespace(
    config=types.SimpleNamespace(training=training), workdir=tmp_path
  )


@pytest.fixture
def evaluated(monkeypatch):
  """The steps that held-out problems were tried for."""
  steps = []

  async def evaluate(run, sampler, grader, stages, step):
    steps.append(step)
    return {'step': step, 'score_mean': step / 10, 'scores': {}}

  monkeypatch.setattr(held_out, 'evaluate', evaluate)
  return steps


def make_evaluations(run, wait_for=None):
  async def at_once(version):
    pass

  return held_out.Evaluations(
    run, None, None, None, wait_for=wait_for or at_once
  )


async def test_problems_are_tried_at_every_interval_and_in_the_end(
  tmp_path, evaluated
):
  evaluations = make_evaluations(make_run(tmp_path))
  assert evaluations.report() == {}
  for step in range(6):
    evaluations.begin(step)
    await evaluations.task
  assert evaluated == [0, 2, 4, 5]
  assert evaluations.report() == {'eval/step': 5, 'eval/score_mean': 0.5}
  assert evaluations.report() == {}
  assert sorted(held_out.on_file(tmp_path)) == [0, 2, 4, 5]
  never = make_evaluations(make_run(tmp_path, interval=0))
  never.begin(5)
  assert never.task is None


async def test_what_is_on_file_is_not_tried_again(tmp_path, evaluated):
  row = {'step': 2, 'score_mean': 0.75, 'scores': {}}
  (tmp_path / 'evaluations.jsonl').write_text(json.dumps(row) + '\n')
  evaluations = make_evaluations(make_run(tmp_path))
  evaluations.begin(2)
  await evaluations.task
  assert evaluated == []
  assert evaluations.report()['eval/score_mean'] == 0.75


async def test_one_evaluation_at_a_time_and_of_the_weights_that_it_names(
  tmp_path, evaluated, capsys
):
  asked, there = [], asyncio.Event()

  async def wait_for(version):
    asked.append(version)
    await there.wait()

  evaluations = make_evaluations(make_run(tmp_path), wait_for)
  evaluations.begin(2)
  await asyncio.sleep(0)
  evaluations.begin(4)
  assert 'step 4: not evaluated' in capsys.readouterr().out
  assert (asked, evaluated) == ([2], [])
  there.set()
  await evaluations.task
  assert evaluated == [2]
