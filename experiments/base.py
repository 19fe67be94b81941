"""Defaults of every program, and the two ways to depart from them.

Each function returns a ConfigDict with every value visible; there are no
defaults elsewhere. What a field means is said at its dataclass in
qed/config.py; here stands why it has its value. Published values are those of
the QED-Nano report, configuration files and model card.

An experiment is a file beside this one: a question in its docstring and
`ARMS = {name: {dotted.path: value}}`, of which the first is empty.
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def sft() -> ConfigDict:
  """Qwen3-4B-Thinking-2507 imitates proofs of DeepSeek-Math-V2."""
  config = ConfigDict()
  config.program = 'sft'
  config.model = dict(
    path='checkpoints/qwen3-4b-thinking-2507',  # Written by `qed import`.
    variant='qwen3-4b-2507',
    dtype='bfloat16',
    remat='attention',  # A third of the memory of saving the projections too.
    attention='auto',
  )
  config.mesh = dict(data=-1, context=1, tensor=1)
  config.data = dict(
    paths=('data/fineproofs-sft/unique.jsonl',),  # One proof per problem.
    tokenizer='',
    chat_style='thinking',
    prompt='prove',
    samples_per_step=32,
    num_epochs=5,
    max_tokens=45_056,  # Published as 45k.
    overlong='drop',
    malformed='refuse',
    # 620 published steps are 3,968 of 4,281 proofs in an epoch.
    validation_frac=0.07,
  )
  # One row for each sample, so that any 32 fit; with fewer devices, fewer rows
  # and more microbatches.
  config.packing = dict(num_rows=32, row_length=45_056, microbatch_counts=(1,))
  config.optim = dict(
    peak_lr=3e-5,
    schedule='cosine',
    warmup_steps=0,
    warmup_frac=0.1,
    beta1=0.9,  # This and what follows is not published for SFT; the values
    beta2=0.999,  # are those of the RL stage, but for the clip.
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
  )
  config.training = dict(
    seed=0,
    total_steps=0,
    logprob_chunk_size=1024,
    checkpoint_interval_steps=31,  # A quarter of an epoch.
    max_checkpoints=2,
    eval_interval_steps=31,
    max_skipped_steps=3,
    wandb_project='',
  )
  return config


def grpo() -> ConfigDict:
  """GRPO on proof problems, rewarded by a rubric-following judge."""
  config = ConfigDict()
  config.program = 'grpo'
  config.model = dict(
    path='checkpoints/sft',  # What `qed sft` ended with.
    variant='qwen3-4b-2507',
    dtype='bfloat16',
    remat='attention',
    attention='auto',
  )
  config.mesh = dict(data=-1, context=1, tensor=1)
  config.problems = dict(
    paths=('data/fineproofs-rl/train.jsonl',),
    tokenizer='',
    chat_style='thinking',
    prompt='prove',
    max_prompt_tokens=1_024,
    malformed='refuse',
    min_difficulty=0.0,  # Described as filtered; the released code does not.
    max_difficulty=1.0,
    min_pass_rate=0.0,
    max_pass_rate=1.0,
  )
  config.rollout = dict(
    problems_per_step=64,
    group_size=16,  # 2 to 3 % of the problems are then left without a success.
    max_lag=5,  # The paper's bound; the released configuration has none.
    driver='scheduler',
    max_groups_in_flight=256,
    max_groups_waiting=128,
    deadline_secs=7_200.0,
    zero_signal='keep',  # As published: they still have the entropy bonus.
    mask_truncated=False,
  )
  config.sampling = dict(
    temperature=0.8,
    top_p=1.0,
    top_k=0,
    max_tokens=49_152,  # The paper rounds to 50,000.
  )
  config.sampler = dict(
    placement='remote',
    data=-1,
    tensor=1,
    urls=('http://localhost:8001/v1',),
    model='policy',
    api_key_env='',
    connect_secs=10.0,
    load_secs=600.0,
    max_attempts=4,
    max_weight_versions=3,
  )
  config.engine = dict(
    num_slots=64,
    page_size=128,
    # 10,240 tokens a slot on average: 94 GB of cache in bfloat16, as much as
    # eight chips of 16 GB hold besides the weights.
    num_pages=5_120,
    steps_per_chunk=8,
    prefill_buckets=(256, 1_024, 4_096),
    kv_dtype='bfloat16',
  )
  config.judge = dict(
    base_url='http://localhost:8000/v1',
    api_key_env='',
    model='openai/gpt-oss-20b',
    effort='medium',
    temperature=1.0,
    max_tokens=81_920,
    template='proofbench_strict',
    with_reference=False,
    replicas=1,
    aggregate='median',
    connect_secs=10.0,
    deadline_secs=900.0,
    max_attempts=4,  # Published as 3 and a score of 0, not as no score.
    max_draws=2,
    patience_secs=3600.0,
    max_concurrency=512,  # 8 copies with 64 sequences each.
    tokens_per_minute=0,
    max_failures=32,
    cooldown_secs=10.0,
    usd_per_million_prompt=0.0,  # A server of our own.
    usd_per_million_completion=0.0,
  )
  config.reward = dict(
    points=(0, 1, 2, 3, 4, 5, 6, 7),
    discount=1.0,
    overlong_buffer_tokens=0,
    truncated='graded',
  )
  config.loss = dict(
    advantage='mean_baseline',
    z_score_eps=0.0,
    z_score_ddof=0,
    kind='ppo',
    # A ratio in [-3, 5]: the lower bound never binds, and the upper only for
    # positive advantages. As published; see the arm `clip_higher`.
    clip_low=4.0,
    clip_high=4.0,
    dual_clip=0.0,
    correction='none',  # The ratio covers the sampler's rounding and its lag.
    correction_low=0.0,
    correction_high=0.0,
    sequence_mean=False,
    entropy_coef=1e-4,
    kl_coef=0.0,
    kl_estimator='k3',
    normalizer='sequences',  # The sum over tokens / 1,024 rollouts.
    normalizer_constant=0.0,
  )
  # A row takes the longest prompt and completion; most batches need fewer than
  # one row for each of the 1,024 rollouts.
  config.packing = dict(
    num_rows=32, row_length=50_176, microbatch_counts=(16, 20, 24, 28, 32)
  )
  config.optim = dict(
    peak_lr=1e-6,
    schedule='constant',
    warmup_steps=0,
    warmup_frac=0.0,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    # Published as 0.3, of a gradient that DeepSpeed had divided by 64 more.
    clip_norm=19.2,
  )
  config.training = dict(
    seed=0,
    total_steps=150,
    logprob_chunk_size=1024,
    checkpoint_interval_steps=5,
    max_checkpoints=2,
    eval_interval_steps=0,
    max_skipped_steps=3,
    wandb_project='',
  )
  config.evaluation = dict(
    paths=(),
    num_attempts=1,
    temperature=0.8,  # What follows is as published.
    top_p=0.95,
    top_k=20,
    max_tokens=49_152,
  )
  config.health = dict(
    stall_secs=7_200.0,  # The longest rollout takes most of an hour.
    inspect_interval_steps=10,
    max_inspected_groups=2,
    max_mismatch=0.1,
    min_entropy=0.01,
    max_ungraded_frac=0.2,
    patience_steps=2,
    max_dropped_groups=256,
  )
  return config


def judging() -> ConfigDict:
  """The judge that trains, compared with people on MathArena's contests."""
  config = ConfigDict()
  config.program = 'judge'
  config.judge = grpo().judge
  config.solutions = dict(
    paths=('data/matharena-gradingbench/train.parquet',),
    source='matharena',
    columns=(),
    malformed='refuse',
  )
  config.agreement = dict(
    replicas=1,
    own_solvers=(),
    num_resamples=2_000,
    seed=0,
  )
  return config


def override(config: ConfigDict, arm: Mapping[str, Any]) -> ConfigDict:
  """A locked copy of `config` with the values of an arm.

  Args:
    config: what a function above returns.
    arm: dotted path -> value of the same type; an int may stand for a float.

  Raises:
    ValueError: a path does not exist; the nearest one is named.
    TypeError: a value has another type than the one that it replaces.
  """
  copy = config.copy_and_resolve_references().lock()
  defaults = _flatten(copy)
  for path, value in arm.items():
    if path not in defaults:
      near = difflib.get_close_matches(path, defaults, n=1)
      raise ValueError(
        f'{path!r} is not a field of the config; '
        + (f'did you mean {near[0]!r}?' if near else f'there are {[*defaults]}')
      )
    kind = type(defaults[path])
    if type(value) is not kind and (type(value), kind) != (int, float):
      raise TypeError(
        f'{path} = {value!r}: expected {kind.__name__}, as in '
        f'{defaults[path]!r}, got {type(value).__name__}'
      )
  copy.update_from_flattened_dict(arm)
  return copy


def product(*axes: tuple[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
  """Arms for every combination of values of some fields, named after them.

  Args:
    *axes: (dotted path, values); the values of the last vary fastest.

  Returns:
    For ('optim.peak_lr', [2e-6]), ('rollout.group_size', [8, 16]):
    {'peak_lr=2e-06,group_size=8':
       {'optim.peak_lr': 2e-06, 'rollout.group_size': 8}, ...}

  Raises:
    ValueError: two combinations would have the same name.
  """
  arms = {}
  for values in itertools.product(*(values for _, values in axes)):
    arm = {path: value for (path, _), value in zip(axes, values, strict=True)}
    name = ','.join(
      f'{path.rpartition(".")[2]}={value}' for path, value in arm.items()
    )
    if name in arms:
      raise ValueError(f'two arms would be called {name!r}')
    arms[name] = arm
  return arms


def _flatten(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """Dotted path -> value, without the sections themselves."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat
