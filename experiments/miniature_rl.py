"""Does the whole loop learn: do a noisy teacher's proofs become right ones?

  qed grpo --config=experiments/miniature_rl.py --workdir=runs/demo/grpo

The files it names are written by `qed demo`, which also runs this, beside a
judge: `python -m qed.miniature.judge_server --port 8000`.

Cost: a few minutes on two CPU cores. No table of the report. The arms with a
lag let sampling and training overlap; `uncorrected` leaves the ratio out.
"""

from ml_collections import ConfigDict

from experiments import base

ARMS = {
  'baseline': {},
  'max_lag=1': {'rollout.max_lag': 1},
  'max_lag=4': {'rollout.max_lag': 4},
  'max_lag=16': {'rollout.max_lag': 16},
  'max_lag=16,uncorrected': {
    'rollout.max_lag': 16,
    'loss.kind': 'cispo',
    'loss.clip_low': 0.0,
    'loss.clip_high': 0.0,
  },
}


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  config = base.override(
    base.grpo(),
    {
      'model.path': 'runs/demo/sft/checkpoints',
      'model.variant': '',
      'model.dtype': 'float32',
      'model.remat': 'none',
      'mesh.data': 1,
      'problems.paths': ('runs/demo/practice.jsonl',),
      'problems.chat_style': 'instruct',
      'problems.prompt': '{{problem}}',
      'problems.max_prompt_tokens': 80,
      'rollout.problems_per_step': 16,
      'rollout.group_size': 8,
      'rollout.max_lag': 0,
      'rollout.max_groups_in_flight': 32,
      'rollout.max_groups_waiting': 32,
      'rollout.deadline_secs': 120.0,
      'sampling.temperature': 1.0,
      'sampling.max_tokens': 72,
      'sampler.placement': 'shared',
      'sampler.data': 1,
      'sampler.tensor': 1,  # Two heads are not worth dividing.
      'sampler.urls': (),
      'engine.num_slots': 128,
      'engine.page_size': 32,
      'engine.num_pages': 0,
      'engine.steps_per_chunk': 8,
      'engine.prefill_buckets': (80,),
      'engine.kv_dtype': 'float32',
      'judge.model': 'miniature',
      'judge.effort': '',
      'judge.max_tokens': 256,
      'judge.deadline_secs': 20.0,
      'judge.patience_secs': 60.0,
      'judge.max_concurrency': 64,
      'loss.entropy_coef': 0.0,
      'loss.normalizer': 'tokens',
      'packing.num_rows': 8,
      'packing.row_length': 256,
      'packing.microbatch_counts': (1, 2, 3, 4, 5, 6, 8, 16),
      'optim.peak_lr': 1e-3,
      'optim.beta2': 0.95,
      'optim.clip_norm': 1.0,
      'training.total_steps': 50,
      'training.logprob_chunk_size': 4096,
      'training.checkpoint_interval_steps': 20,
      'training.eval_interval_steps': 10,
      'evaluation.paths': ('runs/demo/held_out.jsonl',),
      'evaluation.num_attempts': 4,
      'evaluation.temperature': 1.0,
      'evaluation.top_p': 1.0,
      'evaluation.top_k': 0,
      'evaluation.max_tokens': 72,
      'health.stall_secs': 300.0,
      'health.inspect_interval_steps': 20,
      'health.max_mismatch': 0.5,
      # Most tokens of a proof are certain from the beginning.
      'health.min_entropy': 0.0,
    },
  )
  return base.override(config, ARMS[arm])
