"""What `qed.config` accepts, what it refuses, and in which words."""

import copy
import dataclasses
import json
import random
import typing

import pytest

from experiments import base
from qed import config, schema
from qed.config import ConfigError, GrpoConfig, SftConfig

DEFAULTS = {
  'curate': base.curation().to_dict(),
  'sft': base.sft().to_dict(),
  'grpo': base.grpo().to_dict(),
  'judge': base.judging().to_dict(),
  'solve': base.solving().to_dict(),
}


def changed(program: str, changes: dict) -> dict:
  """The defaults of a program with some dotted paths set."""
  values = copy.deepcopy(DEFAULTS[program])
  for path, value in changes.items():
    *sections, name = path.split('.')
    section = values
    for key in sections:
      section = section[key]
    section[name] = value
  return values


def problems(values: dict) -> tuple[str, ...]:
  with pytest.raises(ConfigError) as caught:
    config.build(values)
  return caught.value.problems


def leaves(section: dict, prefix: str = '') -> list[tuple[str, object]]:
  """Dotted path and default value of every field that is in a section."""
  found = []
  for name, value in section.items():
    if isinstance(value, dict):
      found += leaves(value, f'{prefix}{name}.')
    elif prefix:
      found.append((prefix + name, value))
  return found


EVERY_FIELD = [
  pytest.param(program, path, value, id=f'{program}-{path}')
  for program in DEFAULTS
  for path, value in leaves(DEFAULTS[program])
]


def test_defaults_become_the_dataclass_of_their_program():
  assert isinstance(config.build(base.sft()), SftConfig)
  assert isinstance(config.build(base.grpo()), GrpoConfig)


@pytest.mark.parametrize('program', DEFAULTS)
def test_values_arrive_unchanged_and_survive_json(program):
  built = config.build(DEFAULTS[program])
  assert dataclasses.asdict(built) == DEFAULTS[program]
  assert (
    config.build(json.loads(json.dumps(dataclasses.asdict(built)))) == built
  )


def test_no_field_has_a_default_and_no_section_can_be_changed():
  for run in config.RUNS.values():
    kinds = [run, *typing.get_type_hints(run).values()]
    for kind in filter(dataclasses.is_dataclass, kinds):
      for field in dataclasses.fields(kind):
        assert field.default is dataclasses.MISSING, (kind, field.name)
        assert field.default_factory is dataclasses.MISSING
  built = config.build(DEFAULTS['sft'])
  with pytest.raises(dataclasses.FrozenInstanceError):
    built.optim.peak_lr = 1.0


@pytest.mark.parametrize(('program', 'path', 'value'), EVERY_FIELD)
def test_none_is_never_a_value(program, path, value):
  del value
  (problem,) = problems(changed(program, {path: None}))
  assert problem.startswith(f'{path} = None: expected ')


@pytest.mark.parametrize(('program', 'path', 'value'), EVERY_FIELD)
def test_a_value_of_another_type_is_refused(program, path, value):
  others = [object(), {}, b'x']
  if not isinstance(value, str):
    others.append(str(value))
  if not isinstance(value, bool):
    others.append(True)
  if not isinstance(value, float):
    others.append(1.0)
  if not isinstance(value, tuple):
    others.append((value,))
  for other in others:
    (problem,) = problems(changed(program, {path: other}))
    assert problem.startswith(f'{path} = '), other
    assert 'expected ' in problem


def test_an_int_becomes_a_float_but_never_the_reverse():
  built = config.build(changed('sft', {'optim.peak_lr': 1}))
  assert type(built.optim.peak_lr) is float
  assert problems(changed('sft', {'training.seed': 2.0})) == (
    'training.seed = 2.0: expected an integer',
  )


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_numbers_are_finite(value):
  (problem,) = problems(changed('sft', {'optim.clip_norm': value}))
  assert problem.endswith('expected a finite number')


def test_the_word_none_is_not_taken_for_a_text():
  (problem,) = problems(changed('sft', {'data.tokenizer': 'None'}))
  assert "the absence of one is ''" in problem


@pytest.mark.parametrize(
  ('path', 'meant'),
  [
    ('optim.peek_lr', 'optim.peak_lr'),  # A letter.
    ('optim.seed', 'training.seed'),  # Another section.
    ('optin', 'optim'),  # A section.
  ],
)
def test_an_unknown_field_names_the_nearest(path, meant):
  assert problems(changed('sft', {path: 1})) == (
    f'{path}: no such field; did you mean {meant}?',
  )


def test_an_unknown_field_that_resembles_nothing_lists_all():
  (problem,) = problems(changed('sft', {'qqq': 1}))
  assert "there are ['program', 'model'" in problem


def test_a_wrong_choice_names_the_nearest_and_the_others():
  (problem,) = problems(changed('sft', {'optim.schedule': 'cosin'}))
  assert problem == (
    "optim.schedule = 'cosin': expected one of 'cosine', 'constant', 'linear'; "
    "did you mean 'cosine'?"
  )


def test_all_problems_are_told_at_once():
  values = changed(
    'sft',
    {
      'optim.peak_lr': 0.0,
      'optim.beta1': 'x',
      'optim.beta': 0.9,
      'mesh.data': 0,
      'extra': 1,
      'data': 3,
    },
  )
  del values['training']['seed']
  starts = [problem.split(' ')[0].strip(':') for problem in problems(values)]
  assert starts == [
    'extra',
    'mesh.data',
    'data',
    'optim.beta',
    'optim.peak_lr',
    'optim.beta1',
    'training.seed',
  ]


@pytest.mark.parametrize('program', [None, 'stf', ['sft'], 3])
def test_an_unknown_program_is_refused(program):
  (problem,) = problems({**DEFAULTS['sft'], 'program': program})
  assert f'expected one of {[*config.RUNS]}' in problem


# Path, values at the edge that are accepted, values beyond that are not.
BOUNDS = {
  'sft': [
    ('mesh.data', [-1, 1], [-2, 0]),
    ('mesh.context', [1], [-2, 0]),
    ('mesh.tensor', [1], [-2, 0]),
    ('packing.num_rows', [1024], [0, -1]),
    ('packing.row_length', [45_055], [0, -1]),
    ('packing.microbatch_counts', [(1, 3), [2]], [(), (0, 1), (2, 1), (1, 1)]),
    ('optim.peak_lr', [1e-12], [0.0, -1e-5]),
    ('optim.warmup_frac', [0.0, 0.999], [-0.1, 1.0]),
    ('optim.beta1', [0.0], [-0.1, 1.0]),
    ('optim.beta2', [0.0], [-0.1, 1.0]),
    ('optim.eps', [1e-12], [0.0]),
    ('optim.weight_decay', [0.0], [-0.1]),
    ('optim.clip_norm', [0.0], [-0.1]),
    ('training.seed', [0, 2**32 - 1], [-1, 2**32]),
    ('training.checkpoint_interval_steps', [1], [0]),
    ('training.logprob_chunk_size', [1], [0]),
    ('training.max_checkpoints', [2], [1]),
    ('training.eval_interval_steps', [0], [-1]),
    ('training.max_skipped_steps', [0], [-1]),
    ('data.paths', [('a', 'b')], [()]),
    ('data.prompt', ['x'], ['']),
    ('data.samples_per_step', [1], [0]),
    ('data.max_tokens', [2], [1]),
    ('data.validation_frac', [0.999], [-0.1, 1.0]),
  ],
  'grpo': [
    ('problems.max_prompt_tokens', [1], [0]),
    ('rollout.problems_per_step', [1], [0]),
    ('rollout.group_size', [2], [1]),
    ('rollout.max_lag', [-1, 0], [-2]),
    ('rollout.states_per_problem', [0], [-1]),
    ('rollout.guided_per_problem', [0], [-1]),
    ('rollout.unguided_per_problem', [1], [-1]),
    ('guidance.prompt', ['x'], ['']),
    ('guidance.pass_score', [1, 7], [0, 8]),
    ('cache.num_turns', [1], [0]),
    ('cache.reason_prompt', ['x'], ['']),
    ('cache.summary.max_tokens', [1], [0]),
    ('summarizer.max_prompt_tokens', [1], [0]),
    ('replay.start_frac', [0.0, 1.0], [-0.1, 1.1]),
    ('replay.max_age_steps', [0], [-1]),
    ('sampling.max_tokens', [1], [0]),
    ('sampling.top_p', [], [0.0, 1.1]),
    ('sampling.top_k', [], [-1]),
    ('judge.base_url', ['https://x'], ['localhost:80', '']),
    ('judge.model', ['x'], ['']),
    ('judge.temperature', [0.0], [-0.1]),
    ('judge.max_tokens', [1], [0]),
    ('judge.replicas', [1], [0]),
    ('judge.connect_secs', [0.1], [0.0]),
    ('judge.deadline_secs', [0.1], [0.0]),
    ('judge.max_attempts', [1], [0]),
    ('judge.max_draws', [1], [0]),
    ('judge.patience_secs', [0.1], [0.0]),
    ('judge.max_concurrency', [1], [0]),
    ('judge.tokens_per_minute', [0], [-1]),
    ('judge.max_failures', [1], [0]),
    ('judge.cooldown_secs', [0.1], [0.0]),
    ('judge.usd_per_million_prompt', [0.0], [-0.1]),
    ('judge.usd_per_million_completion', [0.0], [-0.1]),
    (
      'reward.points',
      [(0, 0, 0, 0, 0, 0, 0, 7), (7,) * 8],
      [(0, 1, 2, 3, 4, 5, 6), (*range(7), 8), (-1, *range(1, 8)), (7, 0) * 4],
    ),
    ('reward.discount', [1.0, 0.999], [0.0, 1.1]),
    ('reward.overlong_buffer_tokens', [0, 49_151], [-1]),
    ('loss.clip_low', [0.0], [-0.1]),
    ('loss.clip_high', [0.0], [-0.1]),
    ('loss.entropy_coef', [0.0], [-0.1]),
    ('loss.z_score_eps', [0.0], [-0.1]),
    ('loss.z_score_ddof', [0], [-1, 2]),
    ('loss.dual_clip', [0.0], [-0.1]),
    ('loss.kl_coef', [0.0, 0.1], [-0.1]),
  ],
  'judge': [
    ('solutions.paths', [('a', 'b')], [()]),
    ('agreement.replicas', [1], [0]),
    ('agreement.num_resamples', [1], [0]),
    ('agreement.seed', [0], [-1]),
  ],
}


@pytest.mark.parametrize(
  ('program', 'path', 'within', 'beyond'),
  [(program, *row) for program, rows in BOUNDS.items() for row in rows],
)
def test_a_bound_accepts_its_edge_and_refuses_what_is_beyond(
  program, path, within, beyond
):
  for value in within:
    config.build(changed(program, {path: value}))
  for value in beyond:
    (problem,) = problems(changed(program, {path: value}))
    assert problem.startswith(f'{path} = {value!r}: must be ')


CACHED = {
  'rollout.problems_per_step': 16,
  'rollout.states_per_problem': 4,
  'problems.prompt': 'cache_reason',
  'problems.max_prompt_tokens': 3_000,
  'packing.row_length': 53_000,
}
GUIDED = {
  'rollout.guided_per_problem': 1,
  'rollout.problems_per_step': 32,
  'guidance.paths': ('prefixes.jsonl',),
}
# What cannot go together, the path that the error names, a word of the rule.
COMBINATIONS = {
  'weights from nowhere': (
    'sft',
    {'model.path': '', 'model.variant': ''},
    'model.path',
    'random',
  ),
  'random weights without a tokenizer': (
    'sft',
    {'model.path': ''},
    'data.tokenizer',
    'folder',
  ),
  'the same in RL': (
    'grpo',
    {'model.path': ''},
    'problems.tokenizer',
    'folder',
  ),
  'two axes for the devices left': (
    'sft',
    {'mesh.tensor': -1},
    'mesh.data',
    '(-1, 1, -1)',
  ),
  'two warm-ups': ('sft', {'optim.warmup_steps': 3}, 'optim.warmup_frac', '0'),
  'a warm-up as long as the run': (
    'grpo',
    {'optim.warmup_steps': 150},
    'optim.warmup_steps',
    'training.total_steps = 150',
  ),
  'two lengths of the run': (
    'sft',
    {'training.total_steps': 10},
    'data.num_epochs',
    'training.total_steps',
  ),
  'no length of the run': (
    'sft',
    {'data.num_epochs': 0},
    'data.num_epochs',
    'training.total_steps',
  ),
  'no length of an RL run': (
    'grpo',
    {'training.total_steps': 0},
    'training.total_steps',
    'at least 1',
  ),
  'a sample longer than a row': (
    'sft',
    {'data.max_tokens': 45_058},
    'packing.row_length',
    'at least 45057',
  ),
  'a rollout longer than a row': (
    'grpo',
    {'sampling.max_tokens': 49_154},
    'packing.row_length',
    'at least 50177',
  ),
  'more samples than rows': (
    'sft',
    {'data.samples_per_step': 33},
    'packing.microbatch_counts',
    '33 samples',
  ),
  'more rollouts than rows': (
    'grpo',
    {'rollout.group_size': 17},
    'packing.microbatch_counts',
    '1088 samples',
  ),
  'rows that the data axis cannot share': (
    'sft',
    {'mesh.data': 5},
    'packing.num_rows',
    'mesh.data = 5',
  ),
  'positions that the context axis cannot share': (
    'sft',
    {'mesh.context': 7},
    'packing.row_length',
    'mesh.context = 7',
  ),
  'an evaluation on nothing': (
    'sft',
    {'data.validation_frac': 0.0},
    'training.eval_interval_steps',
    'validation_frac is 0',
  ),
  'more states than turns lead through': (
    'grpo',
    {**CACHED, 'cache.num_turns': 2},
    'rollout.states_per_problem',
    'at most 3',
  ),
  'a first turn with another prompt': (
    'grpo',
    {**CACHED, 'problems.prompt': 'prove'},
    'problems.prompt',
    "'cache_reason'",
  ),
  'prompts without room for a summary': (
    'grpo',
    {**CACHED, 'problems.max_prompt_tokens': 2_048},
    'problems.max_prompt_tokens',
    'cache.summary.max_tokens = 2048',
  ),
  'a replay of no summaries': (
    'grpo',
    {'replay.max_summaries': 1},
    'replay.max_summaries',
    'states_per_problem = 0',
  ),
  'a frozen summarizer without weights': (
    'grpo',
    {'summarizer.source': 'frozen'},
    'summarizer.path',
    "'frozen'",
  ),
  'an endpoint that nobody asks': (
    'grpo',
    {'summarizer.base_url': 'http://x/v1', 'summarizer.model': 'x'},
    'summarizer.base_url',
    "'policy'",
  ),
  'a constant without its value': (
    'grpo',
    {'loss.normalizer': 'constant'},
    'loss.normalizer_constant',
    'above 0',
  ),
  'a constant that nobody reads': (
    'grpo',
    {'loss.normalizer_constant': 1.0},
    'loss.normalizer_constant',
    "'sequences'",
  ),
  'a penalty without a gradient': (
    'grpo',
    {'loss.kl_coef': 0.1, 'loss.kl_estimator': 'k1'},
    'loss.kl_coef',
    "'k2'",
  ),
  'an eps that nobody reads': (
    'grpo',
    {'loss.z_score_eps': 1e-4},
    'loss.z_score_eps',
    "'mean_baseline'",
  ),
  'a ddof that nobody reads': (
    'grpo',
    {'loss.z_score_ddof': 1},
    'loss.z_score_ddof',
    "'mean_baseline'",
  ),
  'a dual clip inside the clip': (
    'grpo',
    {'loss.dual_clip': 1.0},
    'loss.dual_clip',
    'above 1',
  ),
  'a dual clip that nobody reads': (
    'grpo',
    {'loss.dual_clip': 3.0, 'loss.kind': 'cispo'},
    'loss.dual_clip',
    "'cispo'",
  ),
  'a correction without its bounds': (
    'grpo',
    {'loss.correction': 'mask'},
    'loss.correction_high',
    'above loss.correction_low',
  ),
  'bounds without a correction': (
    'grpo',
    {'loss.correction_high': 2.0},
    'loss.correction_high',
    "'none'",
  ),
  'guided groups without beginnings': (
    'grpo',
    GUIDED | {'guidance.paths': ()},
    'guidance.paths',
    'or neither',
  ),
  'beginnings for no group': (
    'grpo',
    {'guidance.paths': ('prefixes.jsonl',)},
    'guidance.paths',
    'or neither',
  ),
  'problems without groups': (
    'grpo',
    {'rollout.unguided_per_problem': 0},
    'rollout.unguided_per_problem',
    'they are 0 and 0',
  ),
  'guided groups that start from states': (
    'grpo',
    CACHED | GUIDED,
    'rollout.unguided_per_problem',
    'they are 1 and 1',
  ),
  'more groups with guided ones than may wait': (
    'grpo',
    GUIDED | {'rollout.max_groups_waiting': 63},
    'rollout.max_groups_waiting',
    'the 64 groups',
  ),
  'RL from a truncated distribution': (
    'grpo',
    {'sampling.top_p': 0.95},
    'sampling.top_p',
    'whole distribution',
  ),
  'RL from the best tokens': (
    'grpo',
    {'sampling.top_k': 20},
    'sampling.top_k',
    'whole distribution',
  ),
  'a penalty over more tokens than a completion has': (
    'grpo',
    {'reward.overlong_buffer_tokens': 49_152},
    'reward.overlong_buffer_tokens',
    'sampling.max_tokens = 49152',
  ),
  'RL from greedy rollouts': (
    'grpo',
    {'sampling.temperature': 0.0},
    'sampling.temperature',
    'above 0',
  ),
  'an endpoint without an address': (
    'solve',
    {'solver.base_url': ''},
    'solver.base_url',
    "solver.kind = 'local'",
  ),
  'an address that is none': (
    'solve',
    {'solver.base_url': 'localhost:8001/v1'},
    'solver.base_url',
    'http://',
  ),
  'weights at an address': (
    'solve',
    {'solver.kind': 'local', 'solver.path': 'folder'},
    'solver.base_url',
    "solver.kind = 'local'",
  ),
  'token ids without a tokenizer': (
    'solve',
    {'solver.kind': 'ids'},
    'solver.path',
    "solver.kind = 'chat'",
  ),
  'a chat with a tokenizer': (
    'solve',
    {'solver.path': 'folder'},
    'solver.path',
    "solver.kind = 'chat'",
  ),
  'a role without a model': (
    'solve',
    {'solver.roles': ('verifier=http://localhost/v1',)},
    'solver.roles',
    'ROLE=MODEL@URL',
  ),
  'a role that two models play': (
    'solve',
    {'solver.roles': ('merger=a@http://x/v1', 'merger=b@http://x/v1')},
    'solver.roles',
    'twice',
  ),
  'more analyses than verifications': (
    'solve',
    {'scaffolds.deepseek_math.num_analyses': 5},
    'scaffolds.deepseek_math.num_analyses',
    'num_verifications = 4',
  ),
}


@pytest.mark.parametrize('name', COMBINATIONS)
def test_an_impossible_combination_says_which_rule_it_breaks(name):
  program, changes, path, word = COMBINATIONS[name]
  (problem,) = problems(changed(program, changes))
  assert problem.startswith(f'{path} = ')
  assert word in problem


def test_every_possible_neighbor_of_these_combinations_is_accepted():
  for program, changes in (
    ('sft', {'model.path': '', 'data.tokenizer': 'folder'}),
    ('sft', {'model.variant': ''}),
    ('sft', {'mesh.data': 4, 'mesh.context': 8, 'mesh.tensor': -1}),
    ('sft', {'optim.warmup_frac': 0.0, 'optim.warmup_steps': 3}),
    ('sft', {'data.num_epochs': 0, 'training.total_steps': 10}),
    ('sft', {'data.max_tokens': 45_057}),
    ('sft', {'data.validation_frac': 0.0, 'training.eval_interval_steps': 0}),
    ('grpo', {'optim.warmup_steps': 149}),
    ('grpo', {'sampling.max_tokens': 49_153}),
    ('grpo', {'loss.normalizer': 'constant', 'loss.normalizer_constant': 9.0}),
    ('grpo', {'loss.kl_coef': 0.1, 'loss.kl_estimator': 'k2'}),
    (
      'grpo',
      {
        'loss.advantage': 'z_score',
        'loss.z_score_eps': 1e-4,
        'loss.z_score_ddof': 1,
      },
    ),
    ('grpo', GUIDED),
    ('grpo', GUIDED | {'rollout.unguided_per_problem': 0}),
    ('grpo', {'loss.dual_clip': 3.0, 'loss.kind': 'gspo'}),
    ('grpo', {'loss.correction': 'truncate', 'loss.correction_high': 2.0}),
    ('grpo', {'loss.sequence_mean': True}),
    ('solve', {'solver.kind': 'ids', 'solver.path': 'folder'}),
    (
      'solve',
      {
        'solver.kind': 'local',
        'solver.path': 'folder',
        'solver.base_url': '',
      },
    ),
    (
      'solve',
      {'solver.roles': ('merger=a/b@http://x/v1', 'verifier=c@https://y/v1')},
    ),
    ('solve', {'scaffolds.deepseek_math.num_analyses': 4}),
  ):
    config.build(changed(program, changes))


def test_what_the_config_lets_pass_always_fits_into_the_rows():
  from qed.data import packing

  generator = random.Random(0)
  accepted = 0
  for _ in range(200):
    max_tokens, num_rows = generator.randint(2, 40), generator.randint(1, 4)
    shape = {
      'num_rows': num_rows,
      'row_length': generator.randint(1, 120),
      'microbatch_counts': (1, generator.randint(2, 4)),
    }
    num_samples = generator.randint(1, 40)
    values = changed(
      'sft',
      {
        'packing': shape,
        'data.max_tokens': max_tokens,
        'data.samples_per_step': num_samples,
      },
    )
    try:
      config.build(values)
    except ConfigError:
      continue
    accepted += 1
    lengths = generator.choices(range(1, max_tokens), k=num_samples)
    for positions in (lengths, [max_tokens - 1] * num_samples):
      rows = packing.first_fit(positions, shape['row_length'])
      assert len(rows) <= num_rows * shape['microbatch_counts'][-1]
  assert accepted > 30


def test_choices_are_those_of_the_code_that_reads_them():
  from qed import solving
  from qed.grading import rubrics, solutions
  from qed.models import attention, qwen3

  choices = typing.get_type_hints(config.ModelConfig)
  assert set(typing.get_args(choices['variant'])) == {'', *qwen3.VARIANTS}
  assert set(typing.get_args(choices['remat'])) == set(qwen3.REMAT)
  kernels = {'auto', *attention.IMPLEMENTATIONS}
  assert set(typing.get_args(choices['attention'])) == kernels
  judged = typing.get_type_hints(config.JudgeConfig)['template']
  assert typing.get_args(judged) == rubrics.PROOF_TEMPLATES
  sources = typing.get_type_hints(config.SolutionsConfig)['source']
  assert typing.get_args(sources) == tuple(solutions.FORMATS)
  names = [field.name for field in dataclasses.fields(config.ScaffoldsConfig)]
  assert {*typing.get_args(config.ScaffoldName)} == {*solving.SCAFFOLDS}
  assert {*names} == {*solving.SCAFFOLDS}


def test_packing_is_described_in_the_words_of_the_packer():
  from qed.data import packing

  names = [field.name for field in dataclasses.fields(config.PackingConfig)]
  assert names == [
    field.name for field in dataclasses.fields(packing.BatchShape)
  ]


def test_every_field_is_described():
  described = schema.describe(SftConfig)
  assert described['optim.peak_lr'] == 'a number, above 0'
  assert described['optim.schedule'].startswith("one of 'cosine'")
  assert described['data.paths'] == 'a list of texts, at least one file'
  assert set(described) == {
    'program',
    *(path for path, _ in leaves(DEFAULTS['sft'])),
  }
