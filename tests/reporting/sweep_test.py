"""What `qed report` says about a sweep."""

import json
import math
import re

import pytest

from qed import report
from qed.reporting import plots, sweep


def config(program='sft', lr=1e-3, seed=0, **training):
  return {
    'config': {
      'program': program,
      'optim': {'peak_lr': lr},
      'judge': {'base_url': f'http://localhost:{seed + 8000}/v1'},
      'training': {'seed': seed, **training},
    }
  }


def outcome(name='run', metrics=None, summary=None, **about):
  return sweep.outcome(
    name,
    config(**about),
    metrics or {},
    {'steps': 1} if summary is None else summary,
  )


def ended(value, **about):
  return outcome(metrics={1: {'validation/loss': value}}, **about)


# What a run came to.


def test_the_last_held_out_loss_is_the_metric_where_there_is_one():
  metrics = {
    1: {'loss': 9.0, 'validation/loss': 5.0},
    2: {'loss': 8.0, 'validation/loss': 4.0},
    3: {'loss': 7.0},
  }
  found = outcome(metrics=metrics)
  assert (found.metric, found.value) == ('validation/loss', 4.0)
  many = {step: {'validation/loss': float(step)} for step in range(1, 31)}
  assert outcome(metrics=many).value == 30.0


def test_a_training_loss_is_averaged_over_the_last_tenth_of_the_steps():
  metrics = {step: {'loss': float(step)} for step in range(1, 21)}
  found = outcome(metrics=metrics)
  assert found.metric == 'loss, mean of the last 10% of the steps'
  assert found.value == 19.5  # Of 19 and 20.
  few = outcome(metrics={step: {'loss': float(step)} for step in (1, 2, 3)})
  assert few.value == 3.0


def test_reinforcement_learning_is_about_held_out_scores_or_rewards():
  rewards = {1: {'reward/mean': 0.25}, 2: {'reward/mean': 0.5}}
  assert outcome(program='grpo', metrics=rewards).value == 0.5
  scores = {**rewards, 1: {'eval/score_mean': 0.125}}
  found = outcome(program='grpo', metrics=scores)
  assert (found.metric, found.value) == ('eval/score_mean', 0.125)


def test_an_evaluation_is_about_its_score():
  found = outcome(
    program='evaluate',
    summary={'program': 'evaluate', 'score': {'mean': 0.75}},
  )
  assert (found.metric, found.value) == ('score', 0.75)


def test_a_run_that_has_not_ended_has_no_value_and_others_no_metric():
  metrics = {1: {'loss': 2.0}}
  assert outcome(metrics=metrics, summary={}).value is None
  assert outcome(program='curate') is None
  assert outcome(metrics={}) is None


# Which runs are compared.


def test_seeds_are_outcomes_of_one_setting_and_settings_are_in_order():
  (found,) = sweep.find(
    [
      ended(value, lr=lr, seed=seed)
      for (lr, seed), value in {
        (1e-2, 0): 3.0,
        (1e-2, 1): 5.0,
        (1e-3, 0): 1.0,
        (1e-3, 1): 2.0,
      }.items()
    ]
  )
  assert found.fields == ('optim.peak_lr',)
  assert [(s.values, s.outcomes) for s in found.settings] == [
    ((1e-3,), (1.0, 2.0)),
    ((1e-2,), (3.0, 5.0)),
  ]
  assert sweep.rows(found) == (
    ['optim.peak_lr', 'runs', 'mean', 'lowest', 'highest'],
    [['0.001', '2', '1.5', '1', '2'], ['0.01', '2', '4', '3', '5']],
  )


def test_runs_that_differ_in_the_seed_alone_are_no_sweep():
  assert sweep.find([ended(1.0, seed=0), ended(2.0, seed=1)]) == []
  assert sweep.find([ended(1.0)]) == []


def test_programs_are_not_compared_with_each_other():
  others = [
    outcome(program='grpo', metrics={1: {'eval/score_mean': x}}, lr=x)
    for x in (0.25, 0.5)
  ]
  found = sweep.find([ended(1.0, lr=1.0), *others, ended(2.0, lr=2.0)])
  assert [(item.program, len(item.settings)) for item in found] == [
    ('sft', 2),
    ('grpo', 2),
  ]


def test_a_run_that_has_not_ended_is_left_out_and_named():
  running = outcome(
    name='slow', metrics={1: {'validation/loss': 0.5}}, summary={}, lr=9.0
  )
  (found,) = sweep.find([ended(1.0, lr=1.0), running, ended(2.0, lr=2.0)])
  assert len(found.settings) == 2
  assert sweep.note(found).endswith('Not ended, and left out: slow.')


def test_a_run_that_came_to_no_number_spoils_its_mean_and_is_counted():
  (found,) = sweep.find(
    [ended(math.nan, lr=1.0), ended(1.0, lr=1.0, seed=1), ended(2.0, lr=2.0)]
  )
  assert sweep.rows(found)[1][0] == ['1', '2', '-', '1', '1']


# The picture.


def points(svg):
  """How many hollow circles there are."""
  return len(re.findall(r'<use [^>]*fill: #ffffff', svg))


def test_every_run_is_a_point_and_every_value_a_tick():
  (found,) = sweep.find(
    [
      ended(1.0 + seed + lr, lr=lr, seed=seed)
      for lr in (1e-4, 1e-3, 1e-2)
      for seed in range(2)
    ]
  )
  svg = sweep.draw(found)
  assert points(svg) == 6
  for text in ('0.0001', '0.001', '0.01', 'optim.peak_lr', 'validation/loss'):
    assert f'>{text}</text>' in svg


def test_a_second_field_makes_curves_and_words_make_places():
  runs = [
    ended(lr, lr=lr, schedule=schedule)
    for lr in (1.0, 2.0, 3.0)
    for schedule in ('cosine', 'constant')
  ]
  svg = sweep.draw(sweep.find(runs)[0])
  assert points(svg) == 6
  assert '>schedule cosine</text>' in svg
  assert '>schedule constant</text>' in svg
  words = [runs[0], runs[1]]
  svg = sweep.draw(sweep.find(words)[0])
  assert points(svg) == 2
  assert '>cosine</text>' in svg


def test_the_page_of_several_runs_has_the_sweep(tmp_path):
  for lr in (0.5, 0.25):
    folder = tmp_path / f'lr{lr}'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config(lr=lr)))
    (folder / 'summary.json').write_text('{"steps": 1}')
    line = {'step': 1, 'validation/loss': 2 * lr}
    (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  text = report.write([tmp_path], tmp_path / 'page', 0).read_text()
  assert '<h2>Sweep</h2>' in text
  assert '<td>0.25</td><td>1</td><td>0.5</td><td>0.5</td><td>0.5</td>' in text
  alone = report.write([tmp_path / 'lr0.5'], tmp_path / 'one', 0).read_text()
  assert '<h2>Sweep</h2>' not in alone


@pytest.mark.parametrize('values', [(0, 1), (1, 10), (-1, 1)])
def test_any_numbers_can_be_an_axis(values):
  runs = [ended(1.0 + i, lr=x) for i, x in enumerate(values)]
  assert points(sweep.draw(sweep.find(runs)[0])) == 2


def test_runs_of_one_metric_have_their_own_colors():
  panel = plots.Panel(title='', unit='', names=('loss',))
  runs = {f'run{i}': {1: {'loss': 1.0}, 2: {'loss': i + 2.0}} for i in range(6)}
  svg = plots.draw(panel, runs)
  for index, name in enumerate(runs):
    assert f'>{name}: loss</text>' in svg
    assert plots.COLORS[index] in svg
