"""`qed grpo` from problems to weights, and again after it was stopped anywhere.

What it is run with is in grpo_rig: a tiny real model, drawn from by plain
forward passes, and a rule about ids for a judge.
"""

import asyncio
import contextlib
import inspect
import json
import pathlib
import random
import re

import numpy as np
import pytest
from absl import app

from qed import (
  cli,
  collecting,
  config,
  grpo,
  held_out,
  learner,
  policy,
  preparation,
  recording,
  samplers,
  schema,
  unrolling,
)
from qed.grading import verdicts
from qed.llm import http
from qed.miniature import judge_server
from qed.rollout import health
from qed.training import checkpoints, metrics, steps
from tests.grpo_rig import (
  NUM_PROBLEMS,
  NUM_STEPS,
  PHASES,
  Parts,
  assert_ledger_closes,
  assert_same_run,
  batches,
  cache,
  in_phase,
  lines,
  make_config,
  make_grade,
  read_metrics,
  read_state,
  rollouts,
  slow,
  straight,
  sudden_death,
  terminate,
  tiny,
  train,
  write_chains,
  write_problems,
)

__all__ = ['cache', 'in_phase', 'straight', 'tiny']  # Fixtures.
REPOSITORY = pathlib.Path(__file__).parents[1]


def test_a_run_leaves_what_it_promises(straight, tiny):
  content = json.loads((straight / 'config.json').read_text())
  assert config.build(content['config']) == make_config(tiny)
  assert checkpoints.steps(straight / 'checkpoints') == [2, 4]
  assert batches(straight) == {
    step: [2 * step - 2, 2 * step - 1] for step in range(1, NUM_STEPS + 1)
  }
  rows = rollouts(straight)
  assert sorted(rows) == [
    (group, member) for group in range(8) for member in range(3)
  ]
  # The versions of every token are those of the step that used it.
  assert all(
    {*row['versions']} == {group // 2} for (group, _), row in rows.items()
  )
  ids = {row['problem_id'] for row in lines(straight, 'problems')}
  assert ids == {row['problem_id'] for row in rows.values()}
  assert len(lines(straight, 'problems')) == len(ids)
  book = assert_ledger_closes(straight)
  assert book['generated'] == book['trained']
  summary = json.loads((straight / 'summary.json').read_text())
  assert summary['steps'] == NUM_STEPS
  assert summary['ledger'] == book
  assert summary['evaluation']['step'] == NUM_STEPS


def test_every_epoch_practises_every_problem_once(straight):
  rows = rollouts(straight)
  order = [rows[group, 0]['problem_id'] for group in range(8)]
  assert sorted(order[:NUM_PROBLEMS]) == [f'p{n}' for n in range(NUM_PROBLEMS)]
  assert len({*order[NUM_PROBLEMS:]}) == 3


def test_an_evaluation_is_of_the_weights_that_it_names(straight):
  found = lines(straight, 'evaluations')
  assert [row['step'] for row in found] == [0, 2, 4]
  for row in found:
    assert row['version_min'] == row['version_max'] == row['step']
    assert sorted(row['scores']) == ['p20', 'p21']
    scores = [score for scores in row['scores'].values() for score in scores]
    assert row['score_mean'] == pytest.approx(np.mean(scores) / 7)
  shown = {
    step: values['eval/step']
    for step, values in read_metrics(straight).items()
    if 'eval/step' in values
  }
  assert shown == {1: 0, 3: 2}


def test_what_was_inspected_is_what_the_trainer_makes_of_the_tokens(straight):
  rows = rollouts(straight)
  found = lines(straight, 'inspected')
  assert {row['step'] for row in found} == {1, 2, 3, 4}
  for row in found:
    rollout = rows[row['group_id'], row['rollout']]
    np.testing.assert_allclose(
      row['trainer_logprobs'], rollout['logprobs'], atol=1e-5
    )
    assert len(row['tokens']) == len(rollout['token_ids'])


def test_a_complete_run_is_left_as_it_is(straight, tiny):
  names = ('metrics', 'rollouts', 'batches', 'evaluations')
  before = [(straight / f'{name}.jsonl').read_bytes() for name in names]
  assert train(tiny, straight) == cli.DONE
  assert before == [(straight / f'{name}.jsonl').read_bytes() for name in names]


@pytest.fixture(scope='module')
def real(cache, tiny, tmp_path_factory):
  """The same with our own engine, in this process."""
  workdir = tmp_path_factory.mktemp('real')
  assert (
    grpo.train(make_config(tiny), str(workdir), open_grader=Parts().open_grader)
    == cli.DONE
  )
  return workdir


@pytest.mark.parametrize('sampler', ['straight', 'real'])
def test_a_step_without_a_lag_is_on_policy(sampler, request):
  """Ratio 1, KL 0, nothing clipped: sampler and trainer agree."""
  records = metrics.read(request.getfixturevalue(sampler) / 'metrics.jsonl')
  assert len(records) == NUM_STEPS
  for record in records.values():
    assert record['lag/max'] == 0
    assert record['ratio/mean'] == pytest.approx(1, abs=1e-5)
    assert record['ratio/p1'] == pytest.approx(1, abs=1e-5)
    assert record['ratio/p99'] == pytest.approx(1, abs=1e-5)
    assert record['mismatch/max'] < 1e-5
    assert record['mismatch/kl'] == pytest.approx(0, abs=1e-9)
    assert record['clip_frac'] == 0
    assert record['ess'] == pytest.approx(1, abs=1e-6)
    assert record['optim/grad_norm'] > 1e-3


@pytest.mark.slow
def test_the_reference_policy_is_the_one_that_the_run_began_with(
  cache, tiny, tmp_path
):
  changes = {'loss.kl_coef': 0.1, 'training.total_steps': 2}
  assert train(tiny, tmp_path, **changes) == cli.DONE
  records = read_metrics(tmp_path)
  assert records[1]['kl'] == pytest.approx(0, abs=1e-9)
  assert records[2]['kl'] > 1e-4


# Stopped, and started again.


@pytest.mark.parametrize(
  'phase', ['generate', slow('grade'), 'train', slow('publish'), 'checkpoint']
)
def test_a_synchronous_run_that_was_told_to_stop_ends_like_one_that_was_not(
  straight, tiny, tmp_path, in_phase, phase
):
  parts = Parts()
  in_phase(parts, phase, 2, terminate)
  assert train(tiny, tmp_path, parts) == cli.RESTART
  assert not (tmp_path / 'summary.json').exists()
  assert_ledger_closes(tmp_path)
  assert train(tiny, tmp_path) == cli.DONE
  assert_same_run(tmp_path, straight)
  book = assert_ledger_closes(tmp_path)
  assert book == assert_ledger_closes(straight)


@pytest.mark.parametrize('phase', ['grade', slow('train'), 'checkpoint'])
def test_a_synchronous_run_that_was_killed_ends_like_one_that_was_not(
  straight, tiny, tmp_path, in_phase, phase
):
  parts = Parts()
  with sudden_death() as die:
    in_phase(parts, phase, {'checkpoint': 2}.get(phase, 3), die)
    train(tiny, tmp_path, parts)
  assert train(tiny, tmp_path) == cli.DONE
  assert_same_run(tmp_path, straight)
  assert_ledger_closes(tmp_path)


@pytest.mark.parametrize('seed', [0, 1])
def test_an_asynchronous_run_consumes_each_prompt_once(
  tiny, tmp_path, in_phase, seed
):
  chance = random.Random(seed)
  changes = {'rollout.max_lag': 2, 'rollout.zero_signal': 'refill'}
  parts = Parts()
  in_phase(parts, chance.choice(PHASES), chance.randrange(1, 4), terminate)
  code = train(tiny, tmp_path, parts, **changes)
  while code == cli.RESTART:
    code = train(tiny, tmp_path, **changes)
  used = [group for step in batches(tmp_path).values() for group in step]
  assert len(used) == len({*used}) == 2 * NUM_STEPS
  book = assert_ledger_closes(tmp_path)
  assert book['in_flight'] == 0 or book['in_flight'] < book['generated'] / 2
  records = read_metrics(tmp_path)
  assert len(records) == NUM_STEPS
  assert all(0 <= values['lag/max'] <= 2 for values in records.values())


@pytest.mark.parametrize('phase', ['grade', slow('train')])
def test_our_engine_too_goes_on_bit_for_bit(
  real, tiny, tmp_path, in_phase, phase
):
  parts, settings = Parts(), make_config(tiny)
  in_phase(parts, phase, 2, terminate)
  for code in (cli.RESTART, cli.DONE):
    assert (
      grpo.train(settings, str(tmp_path), open_grader=parts.open_grader) == code
    )
  assert_same_run(tmp_path, real)


def test_a_run_whose_samplers_do_not_come_can_be_stopped(cache, tiny, tmp_path):
  @contextlib.asynccontextmanager
  async def open_sampler(run, params, version):
    asyncio.get_running_loop().call_later(0.2, terminate)
    await asyncio.Event().wait()
    yield

  settings = make_config(tiny)
  code = grpo.train(settings, str(tmp_path), open_sampler=open_sampler)
  assert code == cli.RESTART
  assert not (tmp_path / 'batches.jsonl').exists()


# Ill.


def test_a_stage_that_hangs_is_named_and_the_run_can_go_on(
  straight, tiny, tmp_path, capsys
):
  async def hang(problem, completion):
    await asyncio.Event().wait()

  parts = Parts()
  parts.before_grade = hang
  code = train(tiny, tmp_path, parts, **{'health.stall_secs': 4.0})
  assert code == cli.RESTART
  text = capsys.readouterr().out
  assert "stage 'grade' has not moved for" in text
  assert 'has waited longest' in text
  assert checkpoints.steps(tmp_path / 'checkpoints') == [0]
  assert train(tiny, tmp_path) == cli.DONE
  assert read_state(tmp_path) == read_state(straight)
  told = re.search('^complete: .*', capsys.readouterr().out, re.MULTILINE)[0]
  assert "'score_mean'" in told
  assert "'scores'" not in told
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['evaluation']['scores']


def test_too_many_proofs_without_a_grade_end_the_run_with_the_reason(
  tiny, tmp_path
):
  async def forget(problem, completion):
    return make_grade(None) if completion.token_ids[0] % 3 == 0 else None

  parts = Parts()
  parts.before_grade = forget
  changes = {'health.max_ungraded_frac': 0.01, 'health.patience_steps': 0}
  with pytest.raises(health.HealthError, match='max_ungraded_frac'):
    train(tiny, tmp_path, parts, **changes)
  assert checkpoints.steps(tmp_path / 'checkpoints') == [1]
  assert_ledger_closes(tmp_path)
  changes['health.max_ungraded_frac'] = 1.0
  assert train(tiny, tmp_path, **changes) == cli.DONE


def test_groups_of_no_use_end_the_run_with_its_state_saved(tiny, tmp_path):
  async def forget(problem, completion):
    return make_grade(None) if completion.versions[0] else None

  parts = Parts()
  parts.before_grade = forget
  changes = {'health.max_dropped_groups': 3}
  with pytest.raises(health.HealthError, match='max_dropped_groups = 3'):
    train(tiny, tmp_path, parts, **changes)
  assert checkpoints.steps(tmp_path / 'checkpoints') == [1]
  assert_ledger_closes(tmp_path)


def test_a_run_that_stopped_itself_says_so_in_a_paragraph(monkeypatch, capsys):
  """What was measured, the limit, the state, the remedy; and no traceback."""

  def stop(config, workdir):
    raise health.HealthError('step 7: entropy = 0', remedy='a lower rate')

  monkeypatch.setattr(grpo, 'train', stop)
  monkeypatch.setattr(cli, 'check_paths', lambda *paths: None)
  source = str(REPOSITORY / 'experiments' / 'rl_main.py')
  argv = ['qed grpo', f'--config={source}', '--workdir=somewhere']
  assert cli.run(grpo.main, argv) == cli.USAGE
  text = capsys.readouterr().err
  for part in ('step 7: entropy = 0', 'a lower rate', 'somewhere/checkpoints'):
    assert part in text
  assert len(text.splitlines()) == 1


# Refused before anything runs.


def test_problems_that_are_held_out_are_not_practised_on(tiny, tmp_path):
  changes = {'evaluation.paths': (str(tiny / 'problems.jsonl'),)}
  with pytest.raises(app.UsageError, match='5 that are: p0, p1'):
    train(tiny, tmp_path, **changes)


def test_a_run_cannot_go_on_with_other_problems(straight, tiny, tmp_path):
  write_problems(tmp_path / 'others.jsonl', range(1, 6))
  changes = {'problems.paths': (str(tmp_path / 'others.jsonl'),)}
  with pytest.raises(app.UsageError, match='on other data'):
    train(tiny, straight, **changes)


def test_every_field_of_the_config_is_read():
  """A field is read by name, or with the whole of its section."""
  modules = (
    *(grpo, preparation, policy, learner, samplers),
    *(held_out, unrolling, collecting, recording),
  )
  source = ''.join(pathlib.Path(m.__file__).read_text() for m in modules)
  source += inspect.getsource(config.RolloutConfig.groups_per_step.fget)
  source += inspect.getsource(steps.Compute.from_config)
  source += inspect.getsource(http.Endpoint.from_config)
  # What may change from one start to the next is a list of names alone.
  source = re.sub(r'_MAY_CHANGE = \(.*?\n\)', '', source, flags=re.DOTALL)
  named = {*re.findall(r'\.(\w+)', source)}
  whole = {*re.findall(r'asdict\((?:\w+\.)*_?config\.(\w+)\)', source)}
  # Handed on whole.
  whole |= {'judge', 'loss', 'sampling', 'evaluation', 'cache'}
  unread = {
    path
    for path in schema.paths(config.GrpoConfig)
    if '.' in path
    and path.split('.')[0] not in whole
    and path.split('.')[1] not in named
  }
  assert unread == set()


# With a judge behind HTTP.


@pytest.mark.parametrize(
  ('placement', 'max_lag', 'fault_rate'),
  [('shared', 0, 0.0), ('separate', 1, 0.3)],
)
def test_engine_judge_and_cache_work_together(
  cache, tmp_path, placement, max_lag, fault_rate
):
  """Chains of arithmetic, our engine, and the exact judge behind its API."""
  folder = write_chains(tmp_path)
  behavior = judge_server.Behavior(fault_rate=fault_rate, slow_secs=1.0)
  with judge_server.start(behavior) as server:
    settings = make_config(
      folder,
      **{
        'rollout.max_lag': max_lag,
        'sampler.placement': placement,
        'judge.base_url': server.url,
        'judge.effort': '',
        'judge.max_tokens': 256,
        'judge.deadline_secs': 2.0,
        'judge.max_concurrency': 8,
        'judge.cooldown_secs': 0.2,
        'training.total_steps': 2,
        'training.eval_interval_steps': 0,
        'evaluation.paths': (),
        'health.max_ungraded_frac': 1.0,
      },
    )
    assert grpo.train(settings, str(tmp_path / 'run')) == cli.DONE
  rows = rollouts(tmp_path / 'run')
  assert len(rows) >= 12
  assert any(row['grade']['judge'] for row in rows.values())
  assert all(
    row['reward'] == row['grade']['score'] / 7
    for row in rows.values()
    if row['grade']['status'] == 'ok'
  )
  assert_ledger_closes(tmp_path / 'run')
  with verdicts.Verdicts(tmp_path / 'run' / 'verdicts.sqlite') as store:
    book = store.ledger({})
  assert book.answered > 0
  assert book.calls == book.answered + sum(book.failed.values()) + book.open
  # Nothing is asked twice: a second start finds all of it done.
  assert grpo.train(settings, str(tmp_path / 'run')) == cli.DONE
