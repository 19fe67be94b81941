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
    states_per_problem=0,
    guided_per_problem=0,
    unguided_per_problem=1,
    group_size=16,  # 2 to 3 % of the problems are then left without a success.
    max_lag=5,  # The paper's bound; the released configuration has none.
    driver='scheduler',
    max_groups_in_flight=256,
    max_groups_waiting=128,
    deadline_secs=7_200.0,
    zero_signal='keep',  # As published: they still have the entropy bonus.
    mask_truncated=False,
  )
  config.guidance = dict(paths=(), prompt='guided', pass_score=6)
  config.cache = _reasoning_cache()
  config.summarizer = dict(
    source='policy',
    path='',
    chat_style='instruct',
    max_prompt_tokens=53_504,  # Problem, old summary, reasoning and the rest.
    base_url='',
    model='',
    api_key_env='',
    effort='',
    connect_secs=10.0,
    deadline_secs=600.0,
    max_attempts=4,
    max_concurrency=128,
  )
  config.replay = dict(
    max_summaries=0,
    start_frac=1.0,
    max_age_steps=0,
    max_turn=0,
  )
  config.sampling = dict(
    temperature=0.8,
    top_p=1.0,
    top_k=0,
    max_tokens=49_152,  # The paper rounds to 50,000.
  )
  config.sampler = dict(
    placement='remote',
    # Heads over all devices, which 1, 2, 4 and 8 can share (Qwen3-4B has 8 key
    # and value heads); of 16, let data be 2 and tensor 8. Over `data` weights
    # are gathered at every step: for 8 chips of v6e, 64 slots of 1,024 tokens,
    # `qed plan` has 36,093 to 47,359 tokens/s with tensor=8, and 1,430 to
    # 11,330 with data=8, whose memory holds less than half of the pages.
    data=1,
    tensor=-1,
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


def grpo_rc() -> ConfigDict:
  """GRPO that starts from the states of a reasoning cache.

  As in the report from the SFT model; the released configuration has published
  weights, for which there is an arm in rc_init.py.
  """
  config = grpo()
  config.problems.prompt = config.cache.reason_prompt
  # Problem, summary and the words around them.
  config.problems.max_prompt_tokens = 3_840
  # 64 groups as in plain GRPO: two of the four states of each problem.
  config.rollout.problems_per_step = 32
  config.rollout.states_per_problem = 2
  # Of the published model, whose thinking mode would think before it sums up.
  config.summarizer.source = 'endpoint'
  config.summarizer.base_url = 'http://localhost:8002/v1'
  config.summarizer.model = 'Qwen/Qwen3-4B-Instruct-2507'
  config.packing.row_length = 53_248  # Published as 53,000.
  return config


def _reasoning_cache() -> dict[str, Any]:
  """Three turns, in training as at test time."""
  return dict(
    num_turns=3,
    mode='replace',
    reason_prompt='cache_reason',
    summarize_prompt='cache_summarize',
    summary=dict(
      temperature=0.7,
      top_p=0.8,
      top_k=20,
      max_tokens=2_048,
    ),
  )


def _scaffolds() -> dict[str, Any]:
  """What each scaffold does with more than one completion."""
  return dict(
    single=dict(solve='prove'),
    best_of_n=dict(
      # 40 calls, as RSA has 39; the paper compares with none of this kind.
      num_solutions=8,
      num_verifications=4,
      solve='prove',
      verify='scaffold_best_of_n_verify',
    ),
    rsa=dict(
      # Those of the main result: 8 + 24 + 7 = 39 calls. Its own paper has 16
      # solutions, blocks of 4 and 9 rounds, and ends with a random solution.
      num_solutions=8,
      num_rounds=3,
      block_size=3,
      selection='knockout',
      solve='prove',
      merge='scaffold_rsa_merge',
      select='scaffold_rsa_select',
    ),
    selfcheck=dict(
      # As published by Huang and Yang, but for their restarts.
      num_passes=5,
      max_failures=10,
      max_iterations=30,
      solve='prove',
      improve='scaffold_selfcheck_improve',
      verify='scaffold_selfcheck_verify',
      confirm='scaffold_selfcheck_confirm',
      correct='scaffold_selfcheck_correct',
    ),
    deepseek_math=dict(
      # QED-Nano's: at most 60 calls. The paper of DeepSeekMath-V2 has 64
      # proofs, 64 verifications, 8 analyses and 15 rounds.
      num_solutions=4,
      num_verifications=4,
      num_analyses=2,
      num_rounds=2,
      solve='scaffold_deepseek_math_solve',
      verify='scaffold_deepseek_math_verify',
      refine='scaffold_deepseek_math_refine',
    ),
    nomos=dict(
      # QED-Nano's: at most 44 calls. The original stops at 4 perfect solutions
      # and keeps 8.
      num_solutions=16,
      min_perfect=8,
      max_kept=12,
      solve='prove',
      score='scaffold_nomos_score',
      consolidate='scaffold_nomos_consolidate',
      compare='scaffold_nomos_compare',
    ),
  )


def _solver() -> dict[str, Any]:
  """A model behind a server for chat."""
  return dict(
    kind='chat',
    base_url='http://localhost:8001/v1',
    model='',
    api_key_env='',
    effort='',
    sends_seed=True,
    path='',
    chat_style='thinking',
    roles=(),
    connect_secs=10.0,
    deadline_secs=7_200.0,  # For 49,152 tokens at 7 a second.
    max_attempts=4,
    max_concurrency=64,
    dtype='bfloat16',
    max_prompt_tokens=65_536,  # A problem and a few long proofs.
    engine=dict(
      num_slots=16,
      page_size=128,
      # 131,072 tokens, one longest call and something: 19 GB of cache for
      # Qwen3-4B in bfloat16.
      num_pages=1_024,
      steps_per_chunk=8,
      prefill_buckets=(256, 1_024, 4_096),
      kv_dtype='bfloat16',
    ),
  )


def solving() -> ConfigDict:
  """One problem, with the scaffold and the sampling of the main result."""
  config = ConfigDict()
  config.program = 'solve'
  config.scaffold = 'rsa'
  config.scaffolds = dict(reasoning_cache=_reasoning_cache(), **_scaffolds())
  config.solver = _solver()
  config.sampling = dict(  # As published for evaluation.
    temperature=0.8, top_p=0.95, top_k=20, max_tokens=49_152
  )
  config.budget = dict(
    max_tokens=0,
    max_usd=0.0,
    max_secs=0.0,
    usd_per_million_prompt=0.0,
    usd_per_million_completion=0.0,
  )
  config.seed = 0
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


def evaluation() -> ConfigDict:
  """QED-Nano without a scaffold on IMO-ProofBench, graded as in the report."""
  config = solving()
  config.program = 'evaluate'
  config.model_name = 'QED-Nano'
  config.scaffold = 'single'
  config.solver.model = 'lm-provers/QED-Nano'
  config.benchmark = dict(
    name='imo_proofbench',
    path='data/imo_proofbench_v2.csv',
    split='',
    content='',
    max_problems=0,
    num_attempts=3,
    max_in_flight=64,  # As many as calls, for the last calls of RSA go alone.
    max_passes=3,
    pass_score=6,  # Almost: what people count as solved.
    second_opinion=True,
  )
  config.judge = grpo().judge
  config.judge.update(
    base_url='https://generativelanguage.googleapis.com/v1beta/openai',
    api_key_env='GEMINI_API_KEY',
    model='gemini-3-pro-preview',
    effort='',
    max_tokens=130_000,
    template='imo_proofbench',  # For the other benchmarks proofbench_strict.
    with_reference=True,
    max_concurrency=32,
    usd_per_million_prompt=2.0,
    usd_per_million_completion=12.0,
  )
  return config


def curation() -> ConfigDict:
  """Raw problems of forums and contests -> problems to practise on."""
  config = ConfigDict()
  config.program = 'curate'
  config.model_stages = (
    'quality',
    'rubrics',
    'difficulty',
    'selection',
    'teacher',
    'prefixes',
  )
  config.sources = dict(
    # Official solutions before those of a forum.
    olympiads=('data/olympiads/train.parquet',),
    aops=('data/aops/train.parquet',),
    fineproofs_rl=(),
    fineproofs_sft=(),
    imobench=(),
    own=(),
    licenses=('olympiads=see its card', 'aops=see its card'),
    malformed='skip',
  )
  # Of this and the next two sections nothing is published.
  config.filters = dict(
    min_statement_chars=30,
    min_answer_chars=6,
    min_solution_words=25,
    min_deduction_share=0.008,
    easy_contests=(
      'AMC',
      'AMC 8',
      'AMC 10',
      'AMC 12',
      'AHSME',
      'AJHSME',
      'MATHCOUNTS',
      'Kangaroo',
      'UK JMC',
      'BmMT',
    ),
  )
  config.duplicates = dict(
    shingle_size=3,
    sketch_size=24,
    min_shared=3,
    max_common=24,
    min_ratio=0.9,
    min_overlap=0.75,
  )
  # Set on IMO-Bench with planted copies: bench/decontaminate.py.
  config.decontamination = dict(
    benchmarks=(
      'data/imobench/proofbench_v2.csv',
      'data/imobench/answerbench_v2.csv',
      'data/proofbench/train.parquet',
    ),
    min_ratio=0.77,
    min_renamed_ratio=0.88,
    common_share=0.03,
    boilerplate_weight=0.7,
    min_overlap=0.6,
    min_content=0.8,
    min_content_chars=40,
    shingle_size=3,
    min_shingles=8,
    review_margin=0.04,
    last_year=2024,  # As published.
    cleared=(),
    num_threads=1,
  )
  config.quality = dict(
    template='curate_quality',
    # Published: "difficulty" and "computational" were too noisy to use.
    drop_flags=('incomplete', 'gaps', 'wrong', 'disagreement'),
    max_draws=2,
    writer=_writer('gpt-5-nano', 'https://api.openai.com/v1', 'OPENAI_API_KEY'),
  )
  config.quality.writer.effort = 'low'  # Published as minimal.
  gemini = 'https://generativelanguage.googleapis.com/v1beta/openai'
  config.rubrics = dict(
    template='curate_rubric',
    repair_template='curate_rubric_repair',
    max_repairs=2,
    writer=_writer('gemini-3-pro-preview', gemini, 'GEMINI_API_KEY'),
  )
  config.difficulty = dict(
    prompt='prove',
    num_rollouts=128,
    min_graded_frac=0.48,  # The released file has 62 of 128 at the least.
    pass_score=6,
    writer=_writer('Qwen/Qwen3-4B-Thinking-2507', 'http://localhost:8001/v1'),
  )
  config.difficulty.writer.sampling.temperature = 0.8  # As in training.
  config.difficulty.writer.sampling.max_tokens = 49_152
  config.difficulty.writer.max_concurrency = 512
  config.selection = dict(
    max_mean_reward=0.8,  # The published bound is not known.
    min_pass_rate=1e-9,  # At least one success, as published.
    max_pass_rate=1.0,
    num_bins=10,
    tail_decay=0.85,
  )
  config.teacher = dict(
    prompt='{{problem}}',  # Published: nothing but the problem.
    num_solutions=2,
    writer=_writer('deepseek-ai/DeepSeek-Math-V2', 'http://localhost:30000/v1'),
  )
  config.teacher.writer.sampling.max_tokens = 124_928
  config.teacher.writer.deadline_secs = 7_200.0
  config.teacher.writer.max_concurrency = 256
  # POPE: prefixes up to a quarter of the proof.
  config.prefixes = dict(
    template='guided',
    num_parts=16,
    max_parts=4,
    num_rollouts=16,
  )
  config.judge = grpo().judge
  return config


def _writer(model: str, base_url: str, api_key_env: str = '') -> dict[str, Any]:
  """A model behind an endpoint, sampled as it comes."""
  return dict(
    base_url=base_url,
    model=model,
    api_key_env=api_key_env,
    effort='',
    sends_seed=not api_key_env,  # Our own servers take it.
    sampling=dict(temperature=1.0, top_p=1.0, top_k=0, max_tokens=65_536),
    connect_secs=10.0,
    deadline_secs=3_600.0,
    max_attempts=4,
    max_concurrency=32,
  )


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
