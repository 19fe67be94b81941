"""What decides a score: digests that tell one evaluation from another.

Two evaluations with equal digests of content, checkpoint and configuration draw
the same solutions; two grades with the same digest of the judge may stand in
one column. Where things are and how fast they go is in none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from qed.data import templates
from qed.evals.benchmarks import Benchmark, Kind
from qed.evals.records import Identity, digest

# Parts of the config of which a solution depends on every value.
_DECISIVE = ('seed', 'scaffold', 'sampling', 'budget')


def needs_judge(config: Any, kind: Kind) -> bool:
  """Whether a model has a part in the grades."""
  return kind == 'proof' or config.benchmark.second_opinion


def identify(config: Any, benchmark: Benchmark, checkpoint: str) -> Identity:
  """The digests that every record of a run holds.

  Args:
    config: a `qed.config.EvaluateRunConfig`.
    benchmark: its problems.
    checkpoint: what tells the weights, or the model at an endpoint, apart.
  """
  values = dataclasses.asdict(config)
  scaffold = values['scaffolds'][config.scaffold]
  decisive = {name: values[name] for name in _DECISIVE}
  decisive['style'] = config.solver.chat_style
  decisive['roles'] = [role.partition('@')[0] for role in config.solver.roles]
  # A limit on money depends on prices, and no other value does.
  if not config.budget.max_usd:
    decisive['budget'] = {
      name: decisive['budget'][name] for name in ('max_tokens', 'max_secs')
    }
  decisive['section'] = {
    name: _spelt_out(value) for name, value in scaffold.items()
  }
  return Identity(
    benchmark=benchmark.name,
    content=benchmark.digest,
    checkpoint=checkpoint,
    config=digest(decisive),
    judge=digest(_judge_content(config, benchmark.kind)),
    judge_name=judge_name(config, benchmark.kind),
  )


def judge_name(config: Any, kind: Kind) -> str:
  """What tables call whoever grades."""
  given = config.judge
  model = ' '.join(filter(None, (given.model, given.effort)))
  if kind == 'answer':
    return f'formulas, {model}' if needs_judge(config, kind) else 'formulas'
  replicas = f', {given.aggregate} of {given.replicas}'
  return f'{model}, {given.template}{replicas if given.replicas > 1 else ""}'


def _judge_content(config: Any, kind: Kind) -> dict[str, Any]:
  """All that a grade depends on besides the proof."""
  if not needs_judge(config, kind):
    return {'kind': kind}
  names = ['model', 'effort', 'temperature', 'max_tokens', 'max_draws']
  texts = ['judge_system', 'judge_answer']
  if kind == 'proof':
    names += ['template', 'with_reference', 'replicas', 'aggregate']
    texts = ['judge_system', f'judge_{config.judge.template}']
    if config.judge.with_reference:
      texts.append('judge_reference')
  return {
    'kind': kind,
    **{name: getattr(config.judge, name) for name in names},
    'texts': {name: templates.text(name) for name in texts},
  }


def _spelt_out(value: Any) -> Any:
  """The text of a template in place of its name."""
  if isinstance(value, str):
    with contextlib.suppress(ValueError):
      return templates.text(value)
  return value
