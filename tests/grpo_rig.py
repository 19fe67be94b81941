"""Runs of `qed grpo` that take seconds, for every test of it.

The model is tiny and real; what draws from it here is a plain forward pass over
the whole sequence, and what grades is a rule about ids, so that the parts of a
run can be made slow, wrong or dead at will.
"""

import asyncio
import collections
import contextlib
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import base
from qed import cli, config, grpo, policy, preparation
from qed.data import problems as files
from qed.miniature import problems
from qed.models import qwen3
from qed.training import checkpoints, metrics
from qed.types import Completion, Grade
from tests import tiny_model

NUM_STEPS = 4
NUM_PROBLEMS = 5
MAX_TOKENS = 8
PROMPT_TOKENS = 180
PHASES = ['generate', 'grade', 'train', 'publish', 'checkpoint']


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """A compilation cache, since every start compiles the same programs.

  It is the same for all files that use this rig.
  """
  path = str(tmp_path_factory.getbasetemp() / 'compiled')
  with tiny_model.compiled_in(path):
    yield path


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A folder with a model, its tokenizer and a few problems."""
  folder = tmp_path_factory.mktemp('tiny')
  write_problems(folder / 'problems.jsonl', range(NUM_PROBLEMS))
  write_problems(folder / 'held_out.jsonl', range(20, 22))
  texts = [f'Prove that {a} + 1 = {a + 1}. It is counted.' for a in range(30)]
  tiny_model.write(folder, texts)
  return folder


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


def write_chains(folder):
  """A model, its tokenizer and problems of the miniature."""
  rng = np.random.default_rng(0)
  chains = [problems.draw(2, rng) for _ in range(6)]
  found = {p.problem_id: p for p in map(problems.problem, chains)}
  files.write_jsonl(folder / 'problems.jsonl', found.values())
  tiny_model.write(folder, [p.statement + p.reference for p in found.values()])
  return folder


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


@pytest.fixture(scope='module')
def straight(cache, tiny, tmp_path_factory):
  """A synchronous run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  assert train(tiny, workdir) == cli.DONE
  return workdir


# What a run leaves.


def lines(workdir, name):
  path = workdir / f'{name}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_metrics(workdir, *without):
  """Every metric that does not depend on the clock."""
  without = ('time/', 'secs/', 'idle/', *without)
  return {
    step: {k: v for k, v in values.items() if not k.startswith(without)}
    for step, values in metrics.read(workdir / 'metrics.jsonl').items()
  }


def read_state(workdir):
  """The fingerprints of every array of the last checkpoint."""
  folder = workdir / 'checkpoints'
  manifest = folder / str(checkpoints.steps(folder)[-1]) / 'manifest/metadata'
  return json.loads(manifest.read_text())['arrays']


def batches(workdir):
  """The groups of every step; the last line of a step counts."""
  return {row['step']: row['groups'] for row in lines(workdir, 'batches')}


def rollouts(workdir):
  """By group and member; the last line of each counts."""
  return {
    (row['group_id'], row['rollout']): row for row in lines(workdir, 'rollouts')
  }


def assert_ledger_closes(workdir, *, num_unrolled=0):
  """Every token that was written is booked, those of turns among them."""
  book = json.loads((workdir / 'ledger.json').read_text())
  used = book['trained'] + book['stale'] + sum(book['dropped'].values())
  assert book['generated'] == used + book['in_flight']
  rows = lines(workdir, 'rollouts')
  written = sum(len(row['token_ids']) for row in rows)
  assert book['generated'] == written + num_unrolled
  return book


def assert_same_run(found, expected, *without):
  """Bit for bit, but for what was generated twice, and metrics `without`."""
  without = ('tokens/', *without)
  assert read_metrics(found, *without) == read_metrics(expected, *without)
  assert read_state(found) == read_state(expected)
  assert batches(found) == batches(expected)
  assert rollouts(found) == rollouts(expected)
  if (expected / 'evaluations.jsonl').exists():
    assert lines(found, 'evaluations') == lines(expected, 'evaluations')


# How a run is disturbed.


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


def slow(phase):
  return pytest.param(phase, marks=pytest.mark.slow)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


class _Death(Exception):
  """Takes the process away at once, as SIGKILL does: nothing is saved."""


@contextlib.contextmanager
def sudden_death():
  """Yields what ends a run like that; it has to be called."""
  with pytest.MonkeyPatch.context() as patch:

    def die():
      async def save_nothing(self):
        pass

      patch.setattr(grpo.Loop, '_save', save_nothing)
      raise _Death

    with pytest.raises(_Death):
      yield die
