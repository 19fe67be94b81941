"""What do turns and other scaffolds make of a model that learnt in miniature?

  qed evaluate --config=experiments/miniature_scaffolds.py:rsa --workdir=DIR

`qed demo --full` writes the files that it names, and evaluates all of it: the
reasoning cache, of one to six turns, on problems that are too long for one
completion, and every scaffold with the same budget of tokens on problems that
are not. `python -m qed.miniature.judge_server --port 8000` grades.

The prompts are those that the teacher of `qed demo --full` answers: a word that
says what to do, and then what it is about.

Cost: half a minute each on two CPU cores. Figures 4 to 6 of the report, in
shape.
"""

from ml_collections import ConfigDict

from experiments import base, miniature_rc

ARMS = {
  'baseline': {},
  'best_of_n': {'scaffold': 'best_of_n'},
  'reasoning_cache': {'scaffold': 'reasoning_cache'},
  'rsa': {'scaffold': 'rsa'},
  'selfcheck': {'scaffold': 'selfcheck'},
  'deepseek_math': {'scaffold': 'deepseek_math'},
  'nomos': {'scaffold': 'nomos'},
}

_SOLVE = '{{problem}}\n'
_CHECK = 'Check.\n{{problem}}\n{{proof_verbatim}}'
_RATE = 'Rate.\n{{problem}}\n{{proof_verbatim}}'
_MEND = 'Mend.\n{{problem}}\n{{proof_verbatim}}\n'


def get_config(arm: str = 'baseline') -> ConfigDict:
  """The config of one arm."""
  cache = miniature_rc.get_config().cache
  config = base.override(
    base.evaluation(),
    {
      'model_name': 'miniature',
      'solver.kind': 'local',
      'solver.base_url': '',
      'solver.path': 'runs/demo-full/rc/checkpoints',
      'solver.max_concurrency': 128,
      'solver.dtype': 'float32',
      'solver.max_prompt_tokens': 320,
      'solver.engine.num_slots': 128,
      'solver.engine.page_size': 32,
      'solver.engine.num_pages': 0,
      'solver.engine.prefill_buckets': (64, 128, 320),
      'solver.engine.kv_dtype': 'float32',
      'sampling.temperature': 1.0,
      'sampling.top_p': 1.0,
      'sampling.top_k': 0,
      'sampling.max_tokens': 44,
      # About thirty completions.
      'budget.max_tokens': 1_200,
      'benchmark.name': 'own_proofs',
      'benchmark.path': 'runs/demo-full/held_out.jsonl',
      'benchmark.content': 'any',
      'benchmark.num_attempts': 1,
      'benchmark.max_in_flight': 64,
      'judge.base_url': 'http://localhost:8000/v1',
      'judge.api_key_env': '',
      'judge.model': 'miniature',
      'judge.max_tokens': 256,
      'judge.template': 'proofbench_strict',
      'judge.with_reference': False,
      'scaffolds.single.solve': _SOLVE,
      'scaffolds.best_of_n.num_verifications': 1,
      'scaffolds.best_of_n.num_solutions': 14,
      'scaffolds.best_of_n.solve': _SOLVE,
      'scaffolds.best_of_n.verify': _CHECK,
      'scaffolds.reasoning_cache.num_turns': 6,
      'scaffolds.reasoning_cache.reason_prompt': cache.reason_prompt,
      'scaffolds.reasoning_cache.summarize_prompt': cache.summarize_prompt,
      'scaffolds.rsa.solve': _SOLVE,
      'scaffolds.rsa.merge': 'Merge.\n{{problem}}\n{{candidates_verbatim}}',
      'scaffolds.rsa.select': 'Choose.\n{{problem}}\n{{candidates_verbatim}}',
      'scaffolds.selfcheck.num_passes': 3,
      'scaffolds.selfcheck.solve': _SOLVE,
      'scaffolds.selfcheck.improve': _MEND,
      'scaffolds.selfcheck.verify': _CHECK,
      'scaffolds.selfcheck.confirm': 'Confirm.\n{{report_verbatim}}',
      'scaffolds.selfcheck.correct': _MEND + '{{report_verbatim}}',
      'scaffolds.deepseek_math.solve': _SOLVE,
      'scaffolds.deepseek_math.verify': _RATE,
      'scaffolds.deepseek_math.refine': _MEND,
      'scaffolds.nomos.num_solutions': 8,
      'scaffolds.nomos.min_perfect': 4,
      'scaffolds.nomos.max_kept': 4,
      'scaffolds.nomos.solve': _SOLVE,
      'scaffolds.nomos.score': _CHECK,
      'scaffolds.nomos.consolidate': (
        'Keep.\n{{problem}}\n{{submissions_verbatim}}'
      ),
      'scaffolds.nomos.compare': (
        'Compare.\n{{problem}}\n{{first_verbatim}}\n\n{{second_verbatim}}'
      ),
    },
  )
  config = base.override(
    config,
    {
      f'scaffolds.reasoning_cache.summary.{name}': value
      for name, value in cache.summary.items()
    },
  )
  return base.override(config, ARMS[arm])
