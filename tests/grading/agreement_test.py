"""The references here are written out in plain Python, or are SciPy's."""

import itertools
import math
import statistics

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from qed.grading import agreement
from qed.grading.solutions import GradedSolution
from qed.types import Problem

pytestmark = pytest.mark.timeout(30)


def solution(problem, human, n=0, **fields) -> GradedSolution:
  scores = human if isinstance(human, tuple) else (human,)
  return GradedSolution(
    item_id=f'{problem}/{n}',
    problem=Problem(problem_id=problem, statement='s'),
    proof=fields.pop('proof', f'proof {n}'),
    human_scores=tuple(map(float, scores)),
    source='graded',
    **fields,
  )


def values(solutions, scores, **options) -> dict[str, float]:
  options.setdefault('num_resamples', 10)
  metrics = agreement.measure(solutions, scores, **options)
  return {metric.name: metric.value for metric in metrics}


# Two problems; judge less people: +1, +3, -1 and 0, 0.
SMALL = [
  solution('a', 0, 1),
  solution('a', 3, 2),
  solution('a', 7, 3),
  solution('b', 7, 4),
  solution('b', 2, 5),
]
JUDGED = np.array([[1.0], [6], [6], [7], [2]])


class TestByHand:
  def test_each_metric_of_a_small_example(self):
    found = values(SMALL, JUDGED)
    # Errors +1, +3, -1 less their mean 1 are 0, 2, -2: a mean of 4/3; b: 0.
    expected = {
      'advantage MAE': (4 / 3 + 0) / 2,
      'advantage MAE, failures as 0': (4 / 3 + 0) / 2,
      'MAE': 5 / 5,
      'RMSE': math.sqrt(11 / 5),
      'bias': 3 / 5,
      'within 1 point': 4 / 5,
      # Bands of people 0 1 3 3 1 and of the judge 1 2 2 3 1.
      'band accuracy': 2 / 5,
      # a: (1, 6), (1, 6) agree, (6, 6) has <= where people have <=; b: agrees.
      'pair agreement': 1.0,
      # a: two pairs in order, one tied: 2 / sqrt(3 * 2).
      'Kendall tau-b': (2 / math.sqrt(6) + 1) / 2,
      'Spearman rho': (math.sqrt(3) / 2 + 1) / 2,
      'false pass': 0 / 3,
      'false fail': 1 / 2,
      'pass inflation': (1 - 2) / 5,
      'failed': 0.0,
    }
    assert found == pytest.approx(expected)

  def test_a_failed_verdict_is_left_out_and_counted(self):
    scores = JUDGED.copy()
    scores[1] = math.nan
    found = values(SMALL, scores)
    assert found['failed'] == 1 / 5
    assert found['MAE'] == 2 / 4
    assert found['bias'] == 0.0
    # Left out, the errors of a are +1, -1; as a 0, they are +1, -3, -1.
    assert found['advantage MAE'] == (1 + 0) / 2
    assert found['advantage MAE, failures as 0'] == pytest.approx(4 / 3 / 2)

  def test_problems_count_alike_in_the_advantage_and_solutions_in_the_mae(self):
    many = [solution('a', 0, n) for n in range(8)]
    few = [solution('b', 0, 8), solution('b', 0, 9)]
    scores = np.array([[0.0]] * 8 + [[0.0], [4.0]])
    found = values(many + few, scores)
    assert found['advantage MAE'] == (0 + 2) / 2
    assert found['MAE'] == 4 / 10

  def test_a_problem_with_one_solution_has_no_advantage(self):
    found = values([*SMALL, solution('c', 0, 6)], [*JUDGED, [7.0]])
    assert found['advantage MAE'] == pytest.approx(4 / 3 / 2)
    assert 'advantage MAE' not in values(SMALL[:1], JUDGED[:1])

  def test_the_edges_of_the_bands(self):
    bands = {0: [0, 0.4], 1: [0.5, 1, 3, 3.4], 2: [3.5, 4, 6, 6.4], 3: [6.5, 7]}
    for band, members in bands.items():
      for other, score in ((0, 0.0), (1, 2.0), (2, 5.0), (3, 7.0)):
        items = [solution('a', member, n) for n, member in enumerate(members)]
        found = values(items, np.full([len(items), 1], score))
        assert found['band accuracy'] == (band == other)

  def test_a_pass_is_nine_tenths(self):
    found = values(
      [solution('a', 6.3, 1), solution('a', 6.2, 2)], [[6.0], [7.0]]
    )
    assert (found['false fail'], found['false pass']) == (1.0, 1.0)

  def test_several_people_are_averaged(self):
    found = values([solution('a', (3, 4), 1)], [[5.0]])
    assert found['bias'] == 1.5

  def test_replicas_are_averaged_as_metrics_not_as_scores(self):
    # The mean verdict would be right; either verdict is off by 1.
    found = values([solution('a', 3)], [[2.0, 4.0]])
    assert found['MAE'] == 1.0
    assert found['bias'] == 0.0
    assert found['replica SD'] == pytest.approx(math.sqrt(2))

  def test_the_rubric_delta_pairs_a_proof_under_both_rubrics(self):
    def under(kind, human, proof='x'):
      return solution('a', human, kind, rubric_kind=kind, proof=proof)

    items = [
      under('expert', 7),
      under('course', 3),
      under('expert', 0, proof='unpaired'),
    ]
    found = values(items, [[6.0], [5.0], [7.0]])
    assert found['rubric delta, judge'] == 1.0
    assert found['rubric delta, people'] == 4.0
    assert 'rubric delta, judge' not in values(SMALL, JUDGED)

  def test_the_domain_gap_is_a_difference_of_biases(self):
    items = [
      solution('a', 1, 1, domain='Graph Theory'),
      solution('b', 1, 2, domain='Analysis'),
      solution('c', 1, 3, domain='Abstract Algebra'),
    ]
    found = values(items, [[4.0], [2.0], [7.0]])
    assert found['domain gap'] == 3.0 - 1.0

  def test_self_preference_needs_to_know_the_family(self):
    items = [
      solution('a', 1, 1, solver='mine'),
      solution('a', 1, 2, solver='yours'),
      solution('a', 1, 3),
    ]
    scores = [[4.0], [2.0], [7.0]]
    assert values(items, scores, own_solvers=['mine'])['self-preference'] == 2.0
    assert 'self-preference' not in values(items, scores)

  @pytest.mark.parametrize('shape', [(5,), (4, 1), (5, 0)])
  def test_scores_of_another_shape_are_refused(self, shape):
    with pytest.raises(ValueError, match=r'\[5, num_replicas\]'):
      agreement.measure(SMALL, np.zeros(shape))


SCORES = st.lists(
  st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=9
)


class TestAgainstReferences:
  @hypothesis.given(SCORES)
  def test_advantage_mae(self, pairs):
    human, judged = zip(*pairs, strict=True)
    found = agreement.advantage_mae(
      np.array(human, float), np.array(judged, float)
    )
    if len(pairs) < 2:
      assert math.isnan(found)
      return
    a = [g - statistics.fmean(judged) for g in judged]
    b = [r - statistics.fmean(human) for r in human]
    expected = statistics.fmean(abs(x - y) for x, y in zip(a, b, strict=True))
    assert found == pytest.approx(expected, abs=1e-12)

  @hypothesis.given(SCORES)
  def test_pair_agreement(self, pairs):
    human, judged = map(np.array, zip(*pairs, strict=True))
    agreeing = [
      (g <= h) == (r <= s)
      for (r, g), (s, h) in itertools.combinations(pairs, 2)
    ]
    found = agreement.pair_agreement(human, judged)
    if agreeing:
      assert found == pytest.approx(statistics.fmean(agreeing))
    else:
      assert math.isnan(found)

  @hypothesis.given(SCORES)
  def test_rank_correlations(self, pairs):
    human, judged = (np.array(x, float) for x in zip(*pairs, strict=True))
    tau = agreement.kendall_tau_b(human, judged)
    rho = agreement.spearman_rho(human, judged)
    if len(set(human)) < 2 or len(set(judged)) < 2:
      assert math.isnan(tau)
      assert math.isnan(rho)
      return
    assert tau == pytest.approx(scipy.stats.kendalltau(human, judged)[0])
    assert rho == pytest.approx(scipy.stats.spearmanr(human, judged)[0])


def population(rng, num_problems, *, low=2, high=5) -> list[GradedSolution]:
  """Four solutions each, with scores that leave room for noise."""
  return [
    solution(f'p{p}', int(rng.integers(low, high + 1)), n)
    for p in range(num_problems)
    for n in range(4)
  ]


class TestKnownJudge:
  """Bias and noise are put in, and have to come out."""

  BIAS = 1
  NOISE = (-1, 0, 1)  # Equally likely: a standard deviation of sqrt(2/3).

  def judged(self, items, rng, num_replicas):
    human = np.array([item.human_score for item in items])
    noise = rng.choice(self.NOISE, [len(items), num_replicas])
    scores = human[:, None] + self.BIAS + noise
    assert scores.min() >= 0
    assert scores.max() <= 7
    return scores

  def test_bias_and_noise_are_recovered_within_their_intervals(self):
    rng = np.random.default_rng(0)
    items = population(rng, 80)
    metrics = {
      metric.name: metric
      for metric in agreement.measure(items, self.judged(items, rng, 4))
    }
    four = itertools.product(self.NOISE, repeat=4)
    truth = {
      'bias': self.BIAS,
      'replica SD': math.sqrt(2 / 3),
      'MAE': statistics.fmean(abs(self.BIAS + n) for n in self.NOISE),
      'RMSE': math.sqrt(self.BIAS**2 + 2 / 3),
      'within 1 point': 2 / 3,
      # Of four errors, less their own mean.
      'advantage MAE': statistics.fmean(
        statistics.fmean(abs(e - statistics.fmean(es)) for e in es)
        for es in four
      ),
    }
    for name, value in truth.items():
      metric = metrics[name]
      assert metric.low < value < metric.high, name
      assert metric.high - metric.low < 0.3, name
      assert metric.num_problems == 80

  @pytest.mark.parametrize('shift', [-2, 1, 2])
  def test_a_constant_shift_is_bias_and_no_advantage_error(self, shift):
    items = population(np.random.default_rng(1), 30)
    human = np.array([item.human_score for item in items])
    found = values(items, human[:, None] + shift)
    assert found['bias'] == shift
    assert found['advantage MAE'] == pytest.approx(0, abs=1e-12)
    assert found['Kendall tau-b'] == pytest.approx(1)
    assert found['pair agreement'] == 1

  def test_a_shift_of_each_problem_is_no_advantage_error_either(self):
    items = population(np.random.default_rng(2), 30)
    human = np.array([item.human_score for item in items])
    shift = np.repeat(np.random.default_rng(3).integers(-2, 3, 30), 4)
    found = values(items, (human + shift)[:, None])
    assert found['advantage MAE'] == pytest.approx(0, abs=1e-12)
    assert found['MAE'] > 0.5

  def test_a_perfect_judge_is_perfect(self):
    items = population(np.random.default_rng(4), 20, low=0, high=7)
    human = np.array([item.human_score for item in items])
    found = values(items, human[:, None])
    zero = ('MAE', 'RMSE', 'bias', 'false pass', 'false fail', 'failed')
    assert all(found[name] == 0 for name in zero)
    assert found['band accuracy'] == found['within 1 point'] == 1


class TestIntervals:
  def test_they_are_those_of_problems_and_not_of_solutions(self):
    """All solutions of a problem share its error: 12 problems, not 240."""
    rng = np.random.default_rng(5)
    errors = rng.choice([-1, 1], 12)
    items = [solution(f'p{p}', 3, n) for p in range(12) for n in range(20)]
    scores = 3.0 + np.repeat(errors, 20)[:, None]
    bias = next(m for m in agreement.measure(items, scores) if m.name == 'bias')
    # The standard error is 1 / sqrt(12) = 0.29; of 240 it would be 0.065.
    assert 0.8 < bias.high - bias.low < 1.3

  def test_they_cover_the_truth_as_often_as_they_say(self):
    rng = np.random.default_rng(6)
    covered = 0
    for repeat in range(100):
      items = [solution(f'p{p}', 3, n) for p in range(30) for n in range(2)]
      shared = np.repeat(rng.choice([-1, 0, 1], 30), 2)
      scores = 3.0 + shared + rng.choice([-1, 0, 1], 60)
      bias = next(
        metric
        for metric in agreement.measure(
          items, scores[:, None], num_resamples=100, seed=repeat
        )
        if metric.name == 'bias'
      )
      covered += bias.low <= 0 <= bias.high
    assert 0.87 <= covered / 100 <= 0.99

  def test_one_problem_has_none(self):
    for metric in agreement.measure(SMALL[:3], JUDGED[:3]):
      assert math.isnan(metric.low)
      assert math.isnan(metric.high)
      assert metric.num_problems == 1

  def test_a_seed_gives_the_same_and_another_another(self):
    first = agreement.measure(SMALL, JUDGED, seed=1)
    assert first == agreement.measure(SMALL, JUDGED, seed=1)
    items = population(np.random.default_rng(7), 20)
    scores = np.random.default_rng(8).integers(0, 8, [80, 1])
    assert agreement.measure(items, scores, seed=1) != (
      agreement.measure(items, scores, seed=2)
    )

  def test_metrics_that_cannot_be_taken_are_left_out_without_a_warning(self):
    items = [solution('a', 3, 1), solution('b', 3, 2)]
    found = values(items, [[math.nan], [math.nan]])
    assert found == {'failed': 1.0}


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  hnp.arrays(float, (6, 2), elements=st.sampled_from([0, 3, 7, math.nan])),
  st.lists(st.sampled_from('abc'), min_size=6, max_size=6),
  st.permutations(range(6)),
)
def test_the_order_of_the_solutions_does_not_matter_but_to_pairs(
  scores, problems, order
):
  items = [solution(problem, n % 8, n) for n, problem in enumerate(problems)]
  before = values(items, scores)
  after = values([items[i] for i in order], scores[list(order)])
  for found in (before, after):
    found.pop('pair agreement', None)  # It compares i with a later j.
  assert before == pytest.approx(after)
