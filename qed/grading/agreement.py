"""How far a judge agrees with people, in points of 0..7.

Every metric is a quotient of sums over problems, and its 95 % interval comes
from drawing whole problems again (a percentile bootstrap): solutions of one
problem share its difficulty and its rubric, and are no independent evidence.
With few problems such an interval is too narrow; ten is few.

A verdict that failed takes part in no metric but `failed` and, since the
QED-Nano report counts it as 0, the one named after that. With several
replicas, each counts as a judge of its own and the metrics are averaged, as
training sees one verdict at a time.

Definitions: appendix A of the QED-Nano report (advantage MAE, bands, pair
agreement), ProofBench (arXiv 2510.13888: MAE, bias, Kendall's tau) and QEDBench
(arXiv 2602.20629: pass, inflation, rubric delta, domain gap).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from qed.grading.solutions import GradedSolution

PASS_SCORE = 0.9 * 7
# The lowest score of each band but the first: {0}, {1..3}, {4..6}, {7}. A mean
# of several graders belongs to the band of the nearest whole score.
_BAND_EDGES = (0.5, 3.5, 6.5)
# Of QEDBench's domains; algebra is neither.
DISCRETE_DOMAINS = (
  'algorithms',
  'combinatorics',
  'discrete math',
  'graph theory',
  'number theory',
)
CONTINUOUS_DOMAINS = ('analysis', 'complex analysis', 'ode', 'probability')


# Metric -> the quotient that it is, or the two whose difference it is.
_TERMS = {
  'advantage MAE': ('advantage',),
  'advantage MAE, failures as 0': ('advantage_zero',),
  'MAE': ('absolute',),
  'RMSE': ('squared',),
  'bias': ('bias',),
  'within 1 point': ('within',),
  'band accuracy': ('band',),
  'pair agreement': ('pairs',),
  'Kendall tau-b': ('tau',),
  'Spearman rho': ('rho',),
  'false pass': ('false_pass',),
  'false fail': ('false_fail',),
  'pass inflation': ('inflation',),
  'failed': ('failed',),
  'replica SD': ('variance',),
  'rubric delta, judge': ('delta_judge',),
  'rubric delta, people': ('delta_human',),
  'domain gap': ('bias_discrete', 'bias_continuous'),
  'self-preference': ('bias_own', 'bias_others'),
}
_ROOTS = ('RMSE', 'replica SD')


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
  """One line of the table."""

  name: str
  value: float
  low: float  # Of the 95 % interval; NaN where there is but one problem.
  high: float
  num_problems: int  # That have a part in it.


# The sums of one metric over a problem's solutions: numerator, denominator.
_Sums = tuple[float, float]


def measure(
  solutions: Sequence[GradedSolution],
  scores: np.ndarray,
  *,
  own_solvers: Sequence[str] = (),
  num_resamples: int = 2000,
  seed: int = 0,
) -> list[Metric]:
  """Compares a judge's scores with those of people.

  Args:
    solutions: n of them.
    scores: float [n, num_replicas], 0..7; NaN where the verdict failed.
    own_solvers: solvers of the judge's own family, to see whether it prefers
      them.
    num_resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The metrics that can be taken of these solutions: no rank agreement where
    no problem has two that differ, no rubric delta where there is one rubric.

  Raises:
    ValueError: the shapes do not match, or there is nothing.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or len(scores) != len(solutions) or not scores.size:
    raise ValueError(
      f'expected scores of the shape [{len(solutions)}, num_replicas], one row '
      f'for each solution, got {scores.shape}'
    )
  groups = _groups(solutions)
  rng = np.random.default_rng(seed)
  weights = rng.multinomial(
    len(groups), np.full(len(groups), 1 / len(groups)), size=num_resamples
  )
  sums = _sums(solutions, scores, groups, own_solvers)
  metrics = []
  for name, terms in _TERMS.items():
    parts = [sums[term] for term in terms]
    transform = np.sqrt if name in _ROOTS else np.asarray
    metric = _metric(name, parts, weights, transform)
    if math.isfinite(metric.value):
      metrics.append(metric)
  return metrics


def _groups(solutions: Sequence[GradedSolution]) -> list[np.ndarray]:
  """The indices of each problem's solutions."""
  members: dict[str, list[int]] = {}
  for index, solution in enumerate(solutions):
    members.setdefault(solution.problem.problem_id, []).append(index)
  return [np.array(indices) for indices in members.values()]


def _metric(
  name: str,
  parts: Sequence[np.ndarray],
  weights: np.ndarray,
  transform: Callable[[np.ndarray], np.ndarray],
) -> Metric:
  """The value and the interval of one metric.

  Args:
    name: of the metric.
    parts: one or two arrays [num_problems, 2] of sums; of two, the second
      quotient is subtracted from the first.
    weights: int [num_resamples, num_problems]: how often each was drawn.
    transform: of the quotient.
  """

  def values(weights: np.ndarray) -> np.ndarray:
    totals = [weights @ part for part in parts]
    with np.errstate(invalid='ignore'):  # Nothing was drawn: 0 / 0 is NaN.
      first, *second = [total[:, 0] / total[:, 1] for total in totals]
    return transform(first - sum(second))

  # Of a difference, a problem has a part in it if it has one in either.
  has_part = np.any([part[:, 1] > 0 for part in parts], axis=0)
  low = high = math.nan
  resampled = values(weights)
  resampled = resampled[np.isfinite(resampled)]
  if has_part.sum() > 1 and resampled.size:
    low, high = np.percentile(resampled, [2.5, 97.5])
  return Metric(
    name=name,
    value=float(values(np.ones([1, weights.shape[1]]))[0]),
    low=float(low),
    high=float(high),
    num_problems=int(has_part.sum()),
  )


def _sums(
  solutions: Sequence[GradedSolution],
  scores: np.ndarray,
  groups: Sequence[np.ndarray],
  own_solvers: Sequence[str],
) -> dict[str, np.ndarray]:
  """Quotient -> float [num_problems, 2], its sums over each problem."""
  human = np.array([solution.human_score for solution in solutions])
  subsets = _subsets(solutions, own_solvers)
  pairs = _rubric_pairs(solutions)
  rows = []
  for indices in groups:
    row = _sums_of_items(human[indices], scores[indices])
    row |= _sums_of_ranks(human[indices], scores[indices])
    for name, chosen in subsets.items():
      part = indices[chosen[indices]]
      row[name] = _sums_of_items(human[part], scores[part])['bias']
    own = [pair for pair in pairs if pair[0] in indices]
    row |= _sums_of_pairs(own, human, scores)
    rows.append(row)
  return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _sums_of_items(human: np.ndarray, scores: np.ndarray) -> dict[str, _Sums]:
  """What each verdict says by itself; human [n], scores [n, num_replicas]."""
  ok = np.isfinite(scores)
  reference = np.broadcast_to(human[:, None], scores.shape)[ok]
  judged = scores[ok]
  difference = judged - reference
  passed, should_pass = judged >= PASS_SCORE, reference >= PASS_SCORE
  same_band = np.digitize(judged, _BAND_EDGES) == np.digitize(
    reference, _BAND_EDGES
  )
  count = len(judged)
  repeated = ok.sum(axis=1) > 1
  variances = [
    np.var(row[np.isfinite(row)], ddof=1) for row in scores[repeated]
  ]
  return {
    'bias': (difference.sum(), count),
    'absolute': (np.abs(difference).sum(), count),
    'squared': (np.square(difference).sum(), count),
    'within': ((np.abs(difference) <= 1).sum(), count),
    'band': (same_band.sum(), count),
    'false_pass': ((passed & ~should_pass).sum(), (~should_pass).sum()),
    'false_fail': ((~passed & should_pass).sum(), should_pass.sum()),
    'inflation': (passed.sum() - should_pass.sum(), count),
    'failed': ((~ok).sum(), ok.size),
    'variance': (sum(variances), len(variances)),
  }


def _sums_of_ranks(human: np.ndarray, scores: np.ndarray) -> dict[str, _Sums]:
  """What the verdicts on one problem say together.

  Each is the mean over the replicas for which it is defined, with the
  denominator 1, so that problems count alike however many solutions they have.
  """
  functions = {
    'advantage': advantage_mae,
    'pairs': pair_agreement,
    'tau': kendall_tau_b,
    'rho': spearman_rho,
  }
  sums = {}
  for name, function in functions.items():
    values = []
    for replica in scores.T:
      ok = np.isfinite(replica)
      values.append(function(human[ok], replica[ok]))
    sums[name] = _mean_of_finite(values)
  sums['advantage_zero'] = _mean_of_finite(
    [advantage_mae(human, replica) for replica in np.nan_to_num(scores).T]
  )
  return sums


def _mean_of_finite(values: Sequence[float]) -> _Sums:
  finite = [value for value in values if math.isfinite(value)]
  return (float(np.mean(finite)), 1.0) if finite else (0.0, 0.0)


def advantage_mae(human: np.ndarray, judged: np.ndarray) -> float:
  """How far the advantages that GRPO would use are off, for one problem.

  mean |(judged - mean judged) - (human - mean human)|, so that a judge who is
  equally lenient with all solutions of a problem has 0. NaN below two.
  """
  if len(human) < 2:
    return math.nan
  error = judged - human
  return float(np.abs(error - error.mean()).mean())


def pair_agreement(human: np.ndarray, judged: np.ndarray) -> float:
  """Share of pairs i < j with (judged_i <= judged_j) == (human_i <= human_j).

  The report's "local consistency". NaN below two.
  """
  i, j = np.triu_indices(len(human), 1)
  if not len(i):
    return math.nan
  return float(np.mean((judged[i] <= judged[j]) == (human[i] <= human[j])))


def kendall_tau_b(human: np.ndarray, judged: np.ndarray) -> float:
  """Kendall's rank correlation with its correction for ties.

  NaN where either has no two different scores.
  """
  i, j = np.triu_indices(len(human), 1)
  a, b = np.sign(human[i] - human[j]), np.sign(judged[i] - judged[j])
  scale = np.sum(a * a) * np.sum(b * b)
  return float(np.sum(a * b) / math.sqrt(scale)) if scale else math.nan


def spearman_rho(human: np.ndarray, judged: np.ndarray) -> float:
  """Spearman's rank correlation; equal scores share their mean rank.

  NaN where either has no two different scores.
  """
  a, b = (_ranks(values) for values in (human, judged))
  a, b = a - a.sum() / max(len(a), 1), b - b.sum() / max(len(b), 1)
  scale = np.sum(a * a) * np.sum(b * b)
  return float(np.sum(a * b) / math.sqrt(scale)) if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
  """Twice the mean ranks: how many are below, less how many are above."""
  return np.sign(values[:, None] - values[None, :]).sum(axis=1)


def _subsets(
  solutions: Sequence[GradedSolution], own_solvers: Sequence[str]
) -> dict[str, np.ndarray]:
  """Name of a bias -> bool [n], the solutions that it is taken over."""
  domains = [solution.domain.lower() for solution in solutions]
  solvers = [solution.solver for solution in solutions]
  return {
    'bias_discrete': np.isin(domains, DISCRETE_DOMAINS),
    'bias_continuous': np.isin(domains, CONTINUOUS_DOMAINS),
    'bias_own': np.isin(solvers, list(own_solvers)),
    'bias_others': ~np.isin(solvers, ['', *own_solvers]),
  }


def _rubric_pairs(
  solutions: Sequence[GradedSolution],
) -> list[tuple[int, int]]:
  """Indices of proofs that were graded by the expert and the course rubric."""
  indices: dict[tuple[str, str, str], dict[str, int]] = {}
  for index, solution in enumerate(solutions):
    key = (solution.problem.problem_id, solution.solver, solution.proof)
    indices.setdefault(key, {})[solution.rubric_kind] = index
  return [
    (kinds['expert'], kinds['course'])
    for kinds in indices.values()
    if {'expert', 'course'} <= kinds.keys()
  ]


def _sums_of_pairs(
  pairs: Sequence[tuple[int, int]], human: np.ndarray, scores: np.ndarray
) -> dict[str, _Sums]:
  """Expert less course score, of the judge and of people."""
  expert, course = np.array(pairs, int).reshape(-1, 2).T
  judged = scores[expert] - scores[course]
  judged = judged[np.isfinite(judged)]
  people = human[expert] - human[course]
  return {
    'delta_judge': (judged.sum(), len(judged)),
    'delta_human': (people.sum(), len(people)),
  }
