"""`qed grpo` from problems to weights, and again after it was stopped anywhere.

The model is tiny and real; what draws from it here is a plain forward pass over
the whole sequence, and what grades is a rule about ids, so that a run takes
seconds and its parts can be made slow, wrong or dead at will.
"""

import asyncio
import collections
import contextlib
import inspect
import json
import os
import pathlib
import random
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import app
from jax.experimental.compilation_cache import compilation_cache

from experiments import base
from qed import (
  cli,
  config,
  grpo,
  held_out,
  learner,
  policy,
  preparation,
  samplers,
  schema,
  unrolling,
)
from qed.data import problems as files
from qed.data import templates, tokenizer
from qed.grading import verdicts
from qed.miniature import judge_server, problems
from qed.models import hf, qwen3, specs
from qed.rollout import health
from qed.training import checkpoints, metrics
from qed.types import Completion, Grade

REPOSITORY = pathlib.Path(__file__).parents[1]
NUM_STEPS = 4
NUM_PROBLEMS = 5
MAX_TOKENS = 8
PROMPT_TOKENS = 180


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """A compilation cache, since every start compiles the same programs.

  It is the same for all files that use this rig.
  """
  path = str(tmp_path_factory.getbasetemp() / 'compiled')
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in zip(names, (path, 0, -1), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A folder with a model, its tokenizer and a few problems."""
  folder = tmp_path_factory.mktemp('tiny')
  write_problems(folder / 'problems.jsonl', range(NUM_PROBLEMS))
  write_problems(folder / 'held_out.jsonl', range(20, 22))
  texts = [f'Prove that {a} + 1 = {a + 1}. It is counted.' for a in range(30)]
  words = tokenizer.train_sentencepiece(
    [templates.text('prove'), *texts], max_vocab_size=440
  )
  words.save(folder / 'tokenizer')
  model = make_model()
  hf.save(
    folder / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=folder / 'tokenizer',
  )
  return folder


def make_model():
  return specs.Config(
    vocab_size=448,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  )


def write_problems(path, numbers):
  rows = [
    {
      'problem_id': f'p{a}',
      'statement': f'Prove that {a} + 1 = {a + 1}.',
      'rubric': 'Counting (7 points)',
    }
    for a in numbers
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def make_config(tiny, **changes):
  values = {
    'model.path': str(tiny / 'model'),
    'model.variant': '',
    'model.dtype': 'float32',
    'model.remat': 'none',
    'mesh.data': 1,
    'problems.paths': (str(tiny / 'problems.jsonl'),),
    'problems.chat_style': 'instruct',
    'problems.max_prompt_tokens': PROMPT_TOKENS,
    'rollout.problems_per_step': 2,
    'rollout.group_size': 3,
    'rollout.max_lag': 0,
    'rollout.max_groups_in_flight': 8,
    'rollout.max_groups_waiting': 8,
    'sampling.max_tokens': MAX_TOKENS,
    'sampler.placement': 'shared',
    'sampler.data': 1,
    'sampler.tensor': 1,
    'sampler.urls': (),
    'model.attention': 'dense',
    'engine.num_slots': 8,
    'engine.page_size': 64,
    'engine.num_pages': 0,
    'engine.steps_per_chunk': 4,
    'engine.prefill_buckets': (PROMPT_TOKENS,),
    'engine.kv_dtype': 'float32',
    'packing.num_rows': 2,
    'packing.row_length': 600,
    'packing.microbatch_counts': (1,),
    'optim.peak_lr': 1e-2,
    'training.total_steps': NUM_STEPS,
    'training.checkpoint_interval_steps': 2,
    'evaluation.max_tokens': MAX_TOKENS,
    'health.max_mismatch': 0.0,
    'health.min_entropy': 0.0,
    'health.inspect_interval_steps': 1,
    'health.max_inspected_groups': 1,
    'health.stall_secs': 600.0,
    'evaluation.paths': (str(tiny / 'held_out.jsonl'),),
    'training.eval_interval_steps': 2,
    **changes,
  }
  return config.build(base.override(base.grpo(), values))


class Plain:
  """Draws from the policy by a forward pass over the whole sequence."""

  def __init__(self, run, params, version):
    self.run, self.params, self.version = run, params, version
    self.drawn = collections.Counter()  # Group -> completions.

    @jax.jit
    def logits(params, tokens, last):
      ones = jnp.ones_like(tokens)
      positions = jnp.arange(tokens.shape[1])[None]
      hidden = qwen3.apply(
        params, tokens, positions, ones, config=run.model, dtype=jnp.float32
      )
      return qwen3.logits(params, hidden[:, last][:, None], config=run.model)

    self.logits = logits

  async def sample(self, prompt, params, *, group):
    rng = np.random.default_rng(params.seed)
    ids, logprobs, versions, reason = list(prompt.token_ids), [], [], 'length'
    tokens = np.zeros((1, PROMPT_TOKENS + MAX_TOKENS), np.int32)
    for _ in range(params.max_tokens):
      await asyncio.sleep(0)
      tokens[0, : len(ids)] = ids
      scores = np.asarray(
        self.logits(self.params, tokens, len(ids) - 1), np.float64
      )[0, 0]
      scores = scores / params.temperature
      scores -= np.log(np.exp(scores - scores.max()).sum()) + scores.max()
      token = int(rng.choice(len(scores), p=np.exp(scores)))
      ids.append(token)
      logprobs.append(scores[token])
      versions.append(self.version)
      if token in params.stop_token_ids or token % 7 == 0:
        reason = 'stop'
        break
    self.drawn[group] += 1
    return Completion(
      token_ids=np.array(ids[len(prompt.token_ids) :], np.int32),
      logprobs=np.array(logprobs, np.float32),
      versions=np.array(versions, np.int32),
      text=self.run.words.decode(ids[len(prompt.token_ids) :]),
      finish_reason=reason,
    )

  async def update(self, params, version):
    self.params, self.version = params, version


class Parts:
  """The sampler and the grader of a run, with hooks to disturb them."""

  def __init__(self):
    self.sampler = None
    self.num_grades = 0
    self.before_sample = self.before_grade = self.before_update = None

  @contextlib.asynccontextmanager
  async def open_sampler(self, run, params, version):
    self.sampler = Plain(run, params, version)
    sample, update = self.sampler.sample, self.sampler.update

    async def disturbed(prompt, params, *, group):
      if self.before_sample:
        await self.before_sample(group)
      return await sample(prompt, params, group=group)

    async def disturbed_update(params, version):
      if self.before_update:
        await self.before_update(version)
      await update(params, version)

    self.sampler.sample, self.sampler.update = disturbed, disturbed_update
    yield self.sampler

  @contextlib.asynccontextmanager
  async def open_grader(self, run):
    async def grade(problem, completion, max_tokens, prefix=''):
      self.num_grades += 1
      if self.before_grade:
        grade = await self.before_grade(problem, completion)
        if grade:
          return grade
      score = int(np.sum(completion.token_ids % 2)) % 8
      return make_grade(score)

    async def wait_ready():
      pass

    yield preparation.Grader(grade, wait_ready)


def make_grade(score):
  status = 'unparseable' if score is None else 'ok'
  grade = Grade(score=score, status=status, feedback='', judge='', usage={})
  return grade, None if score is None else score / 7


def train(tiny, workdir, parts=None, **changes):
  parts = parts or Parts()
  return grpo.train(
    make_config(tiny, **changes),
    str(workdir),
    open_sampler=parts.open_sampler,
    open_grader=parts.open_grader,
  )


def lines(workdir, name):
  path = workdir / f'{name}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def straight(cache, tiny, tmp_path_factory):
  """A synchronous run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  assert train(tiny, workdir) == cli.DONE
  return workdir


def read_metrics(workdir, *without):
  """Every metric that does not depend on the clock."""
  without = ('time/', 'secs/', 'idle/', *without)
  return {
    step: {k: v for k, v in values.items() if not k.startswith(without)}
    for step, values in metrics.read(workdir / 'metrics.jsonl').items()
  }


def read_state(workdir, step=NUM_STEPS):
  """The fingerprints of every array of a checkpoint."""
  manifest = workdir / 'checkpoints' / str(step) / 'manifest' / 'metadata'
  return json.loads(manifest.read_text())['arrays']


def batches(workdir):
  """The groups of every step; the last line of a step counts."""
  return {row['step']: row['groups'] for row in lines(workdir, 'batches')}


def rollouts(workdir):
  """By group and member; the last line of each counts."""
  return {
    (row['group_id'], row['rollout']): row for row in lines(workdir, 'rollouts')
  }


def assert_ledger_closes(workdir):
  book = json.loads((workdir / 'ledger.json').read_text())
  used = book['trained'] + book['stale'] + sum(book['dropped'].values())
  assert book['generated'] == used + book['in_flight']
  rows = lines(workdir, 'rollouts')
  assert book['generated'] == sum(len(row['token_ids']) for row in rows)
  return book


def assert_same_run(found, expected):
  """Bit for bit, but for what was generated twice."""
  assert read_metrics(found, 'tokens/') == read_metrics(expected, 'tokens/')
  assert read_state(found) == read_state(expected)
  assert batches(found) == batches(expected)
  assert rollouts(found) == rollouts(expected)
  assert lines(found, 'evaluations') == lines(expected, 'evaluations')


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


class Death(Exception):
  """Takes the process away at once, as SIGKILL does: nothing is saved."""


@pytest.fixture
def in_phase(monkeypatch):
  """Does something once, in a phase of a step."""

  def plan(parts, phase, step, action):
    pending = [action]

    def act():
      if pending:
        pending.pop()()

    if phase == 'generate':

      async def before_sample(group):
        if group == 2 * step + 1:
          act()

      parts.before_sample = before_sample
    elif phase == 'grade':

      async def before_grade(problem, completion):
        if completion.versions[0] == step:
          act()

      parts.before_grade = before_grade
    elif phase == 'publish':

      async def before_update(version):
        if version == step:
          act()

      parts.before_update = before_update
    else:
      owner, name = {
        'train': (policy.Trainer, 'update'),
        'checkpoint': (checkpoints.Checkpointer, 'save'),
      }[phase]
      method = getattr(owner, name)

      def disturbed(self, first, *arguments):
        at = self.num_done if phase == 'train' else first
        if at == step:
          act()
        return method(self, first, *arguments)

      monkeypatch.setattr(owner, name, disturbed)

  return plan


PHASES = ['generate', 'grade', 'train', 'publish', 'checkpoint']


def slow(phase):
  return pytest.param(phase, marks=pytest.mark.slow)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


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
  straight, tiny, tmp_path, in_phase, phase, monkeypatch
):
  def die():
    async def save_nothing(self):
      pass

    monkeypatch.setattr(grpo.Loop, '_save', save_nothing)
    raise Death

  parts = Parts()
  in_phase(parts, phase, {'checkpoint': 2}.get(phase, 3), die)
  with pytest.raises(Death):
    train(tiny, tmp_path, parts)
  monkeypatch.undo()
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
    *(grpo, preparation, policy, learner),
    *(samplers, held_out, unrolling),
  )
  source = ''.join(pathlib.Path(m.__file__).read_text() for m in modules)
  source += inspect.getsource(config.RolloutConfig.groups_per_step.fget)
  named = {*re.findall(r'\.(\w+)', source)}
  whole = {*re.findall(r'asdict\((?:\w+\.)*config\.(\w+)\)', source)}
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


def write_chains(folder):
  """A model, its tokenizer and problems of the miniature."""
  rng = np.random.default_rng(0)
  chains = [problems.draw(2, rng) for _ in range(6)]
  found = {p.problem_id: p for p in map(problems.problem, chains)}
  files.write_jsonl(folder / 'problems.jsonl', found.values())
  texts = [p.statement + p.reference for p in found.values()]
  words = tokenizer.train_sentencepiece(
    [templates.text('prove'), *texts], max_vocab_size=440
  )
  words.save(folder / 'tokenizer')
  model = make_model()
  hf.save(
    folder / 'model',
    specs.init(model, jax.random.key(0)),
    model,
    tokenizer_dir=folder / 'tokenizer',
  )
  return folder
