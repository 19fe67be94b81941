"""An evaluation in one object: scores with intervals, tokens, shares, money.

What is in it, besides the identity of the evaluation and of the judge:

  num_problems, num_attempts  that are asked for
  num_graded     attempts with a grade; num_failed had no solution, num_missing
                 were not made, num_incomplete are graded but had failed calls
  statuses       of the grades
  score          mean over problems, in points of 7 and as `percent` of them
  spread         of the attempts' means, ddof 1, in points and percent
  best_of, pass_at   by k
  splits, categories, levels   scores of parts
  tokens         of an attempt, in the mean; truncated: the share of calls that
                 ended at their limit; no_proof: of attempts without a text
  counts         what scaffolds count, such as verdicts that nobody could read
  usd            of the solver and of the judge
  problem_scores problem -> the score of every attempt, null where there is none
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qed.evals import stats
from qed.evals.benchmarks import Item
from qed.evals.records import Record

# Of Calls.usage; everything else there is a count.
_TOKENS = (
  'prompt_tokens',
  'completion_tokens',
  'reasoning_tokens',
  'answer_tokens',
)
_CALLS = ('calls', 'truncated')


def summarize(
  items: Sequence[Item],
  found: Mapping[tuple[str, int], Record],
  *,
  num_attempts: int,
  pass_score: float,
  solver_prices: tuple[float, float],
  judge_prices: tuple[float, float],
) -> dict[str, Any]:
  """What an evaluation came to, as JSON takes it: NaN is None.

  Args:
    items: the problems of the benchmark.
    found: (problem_id, attempt) -> record, of one judge.
    num_attempts: at each problem.
    pass_score: the lowest score that is a pass.
    solver_prices: usd of a million prompt tokens and of a million others,
    judge_prices: and those of the judge.
  """
  keys = [
    [(item.problem.problem_id, number) for number in range(num_attempts)]
    for item in items
  ]
  made = [found[key] for row in keys for key in row if key in found]
  solved = [record for record in made if record.status != 'failed']
  scores = score_array(keys, found)
  means = stats.problem_means(scores)
  spread = stats.spread(scores)
  ks = range(1, num_attempts + 1)
  usages = [record.usage for record in solved]
  judged = [record.judge_usage for record in solved]
  result = {
    'num_problems': len(items),
    'num_attempts': num_attempts,
    'num_graded': int(np.isfinite(scores).sum()),
    'num_failed': len(made) - len(solved),
    'num_missing': scores.size - len(made),
    'num_incomplete': sum(u.get('failed', 0) > 0 for u in usages),
    'statuses': dict(Counter(record.status for record in made)),
    'score': _points(stats.estimate(means)),
    'attempt_means': [*stats.attempt_means(scores)],
    'spread': {'value': spread, 'percent': stats.percent(spread)},
    'best_of': {
      str(k): _points(stats.estimate(stats.problem_best(scores, k))) for k in ks
    },
    'pass_score': pass_score,
    'pass_at': {
      str(k): _bounds(
        stats.estimate(stats.problem_pass(scores, k, pass_score), high=1.0)
      )
      for k in ks
    },
    'tokens': _tokens(usages),
    'truncated': _share(_sum(usages, 'truncated'), _sum(usages, 'calls')),
    'no_proof': _share(sum(not r.has_text for r in solved), len(solved)),
    'counts': _counts(usages),
    'usd': {
      'solver': _usd(usages, solver_prices),
      'judge': _usd(judged, judge_prices),
    },
    'secs': _share(sum(record.secs for record in made), len(made)),
    'problem_scores': {
      item.problem.problem_id: [*row]
      for item, row in zip(items, scores, strict=True)
    },
  }
  for name, label in (
    ('splits', 'split'),
    ('categories', 'category'),
    ('levels', 'level'),
  ):
    labels = [getattr(item, label) for item in items]
    if len({*labels}) > 1:
      parts = stats.by_label(means, labels)
      result[name] = {
        part or 'other': _points(value) for part, value in parts.items()
      }
  return _finite(result)


def score_array(
  keys: Iterable[Sequence[tuple[str, int]]],
  found: Mapping[tuple[str, int], Record],
) -> np.ndarray:
  """Scores [num_problems, num_attempts], NaN where there is no grade."""
  return np.array(
    [
      [
        math.nan
        if key not in found or found[key].score is None
        else float(found[key].score)
        for key in row
      ]
      for row in keys
    ]
  )


def problem_means(summary: Mapping[str, Any]) -> dict[str, float]:
  """Problem -> mean score of its attempts, NaN without one: of a summary."""
  rows = [
    [math.nan if score is None else score for score in row]
    for row in summary['problem_scores'].values()
  ]
  means = stats.problem_means(np.array(rows, np.float64))
  return dict(zip(summary['problem_scores'], map(float, means), strict=True))


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> stats.Comparison:
  """Summary A less summary B, over the problems that both have.

  Raises:
    ValueError: their problems, or their judges, are not the same, so that the
      difference would be of something else.
  """
  for name in ('benchmark', 'content', 'judge'):
    ours, theirs = a['identity'][name], b['identity'][name]
    if ours != theirs:
      raise ValueError(
        f'expected two evaluations with the same {name}, got {ours!r} and '
        f'{theirs!r}'
      )
  first, second = problem_means(a), problem_means(b)
  common = [problem for problem in first if problem in second]
  return stats.compare(
    np.array([first[problem] for problem in common]),
    np.array([second[problem] for problem in common]),
  )


def _points(found: stats.Estimate) -> dict[str, Any]:
  """An estimate in points, with the same in percent of 7."""
  bounds = _bounds(found)
  return bounds | {
    'percent': {
      name: stats.percent(bounds[name]) for name in ('value', 'low', 'high')
    }
  }


def _bounds(found: stats.Estimate) -> dict[str, Any]:
  return {
    'value': found.value,
    'low': found.low,
    'high': found.high,
    'n': found.num_problems,
  }


def _tokens(usages: Sequence[Mapping[str, int]]) -> dict[str, float]:
  """Of an attempt, in the mean; `total` counts what was read and written."""
  means = {
    name.removesuffix('_tokens'): _share(_sum(usages, name), len(usages))
    for name in _TOKENS
  }
  return means | {
    'total': means['prompt'] + means['completion'],
    'calls': _share(_sum(usages, 'calls'), len(usages)),
  }


def _counts(usages: Sequence[Mapping[str, int]]) -> dict[str, int]:
  names = dict.fromkeys(name for usage in usages for name in usage)
  return {
    name: _sum(usages, name) for name in names if name not in _TOKENS + _CALLS
  }


def _usd(
  usages: Sequence[Mapping[str, int]], prices: tuple[float, float]
) -> float:
  prompt, completion = prices
  return (
    _sum(usages, 'prompt_tokens') * prompt
    + _sum(usages, 'completion_tokens') * completion
  ) / 1e6


def _sum(usages: Iterable[Mapping[str, int]], name: str) -> int:
  return sum(usage.get(name, 0) for usage in usages)


def _share(part: float, whole: float) -> float:
  return part / whole if whole else math.nan


def _finite(value: Any) -> Any:
  """The value with None for numbers that JSON does not have."""
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {name: _finite(item) for name, item in value.items()}
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return value
