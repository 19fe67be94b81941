"""Does training on states of a reasoning cache pay where turns are many?

  qed grpo --config=experiments/miniature_rc.py --workdir=runs/rc
  qed grpo --config=experiments/miniature_rc.py:plain --workdir=runs/rl

The files it names are written by `qed demo --full`, which runs both beside
a judge, `python -m qed.miniature.judge_server --port 8000`.

Half of the problems are too long for the budget of one completion: `plain` has
no signal from them, and the baseline has some from the states that later turns
start from. Both have the same problems, and as many rollouts in a step.

Cost: about five minutes each on two CPU cores. Figures 4 to 6 of the report, in
shape.
"""

from ml_collections import ConfigDict

from experiments import base, miniature_rl

ARMS = {
  'baseline': {},
  'plain': {
    'problems.prompt': '{{problem}}\n',
    'rollout.states_per_problem': 0,
    'rollout.problems_per_step': 16,
  },
  'summarizer=frozen': {
    'summarizer.source': 'frozen',
    'summarizer.path': 'runs/demo-full/sft/checkpoints',
  },
}
REASON_PROMPT = '{{problem}}\n{{summary_verbatim}}'


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  config = base.override(
    miniature_rl.get_config(),
    {
      'model.path': 'runs/demo-full/sft/checkpoints',
      'problems.paths': ('runs/demo-full/practice.jsonl',),
      'problems.chat_style': 'thinking',
      'problems.prompt': REASON_PROMPT,
      'problems.max_prompt_tokens': 88,
      'rollout.problems_per_step': 8,
      'rollout.states_per_problem': 2,
      # Room for three steps, or for two and the proof.
      'sampling.max_tokens': 34,
      'cache.num_turns': 2,
      'cache.reason_prompt': REASON_PROMPT,
      'cache.summarize_prompt': (
        'Sum up.\n{{problem}}\n{{summary_verbatim}}\n{{reasoning_verbatim}}'
      ),
      'cache.summary.temperature': 0.5,
      'cache.summary.top_p': 1.0,
      'cache.summary.top_k': 0,
      'cache.summary.max_tokens': 12,
      'summarizer.chat_style': 'thinking',
      'summarizer.max_prompt_tokens': 128,
      'engine.prefill_buckets': (64, 88, 128),
      'packing.row_length': 264,
      # Few states have a signal: those that a wrong value led to have none, nor
      # those from which all that is left is to say it. At 1e-3 it collapses.
      'optim.peak_lr': 5e-4,
      'training.total_steps': 40,
      'evaluation.paths': ('runs/demo-full/held_out.jsonl',),
      'evaluation.max_tokens': 34,
    },
  )
  return base.override(config, ARMS[arm])
