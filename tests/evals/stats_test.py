"""Statistics against closed forms, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from qed.evals import stats

NAN = math.nan


def test_percent_is_of_seven_points():
  assert stats.percent(7) == 100
  assert stats.percent(2.8) == pytest.approx(40.0)


class TestMeans:
  """Values of a problem and of an attempt."""

  SCORES = np.array([[7, 0, 7], [1, 6, NAN], [0, 0, 0], [NAN, NAN, NAN]])

  def test_a_missing_grade_is_no_zero(self):
    values = stats.problem_means(self.SCORES)
    np.testing.assert_allclose(values, [14 / 3, 3.5, 0, NAN])

  def test_problems_weigh_the_same_however_many_attempts_were_graded(self):
    found = stats.estimate(stats.problem_means(self.SCORES))
    assert found.value == pytest.approx((14 / 3 + 3.5 + 0) / 3)
    assert found.num_problems == 3

  def test_attempts_are_runs_of_their_own(self):
    np.testing.assert_allclose(
      stats.attempt_means(self.SCORES), [8 / 3, 2, 3.5]
    )

  def test_the_spread_has_ddof_1(self):
    # Runs of means 2, 3 and 7: deviations -2, -1, 3 from 4.
    scores = np.array([[1, 2, 7], [3, 4, 7]])
    assert stats.spread(scores) == pytest.approx(math.sqrt(14 / 2))

  def test_one_attempt_has_no_spread(self):
    assert math.isnan(stats.spread(np.array([[3.0], [4.0]])))

  def test_nothing_graded_is_nan_without_a_warning(self):
    found = stats.estimate(stats.problem_means(np.full((2, 2), NAN)))
    assert found.num_problems == 0
    assert math.isnan(found.value)
    assert math.isnan(found.low)

  @pytest.mark.parametrize('shape', [(3,), (2, 2, 2)])
  def test_another_shape_is_refused(self, shape):
    with pytest.raises(ValueError, match=r'\[num_problems, num_attempts\]'):
      stats.problem_means(np.zeros(shape))


class TestBestOf:
  """best-of-k and pass@k are means over all subsets of k attempts."""

  @pytest.mark.parametrize('k', [1, 2, 3, 4, 5])
  def test_best_of_k_is_the_mean_over_subsets(self, k):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 8, (6, 5)).astype(float)
    expected = [
      np.mean([max(subset) for subset in itertools.combinations(row, k)])
      for row in scores
    ]
    np.testing.assert_allclose(stats.problem_best(scores, k), expected)

  @pytest.mark.parametrize(('n', 'c', 'k'), [(5, 2, 1), (8, 3, 4), (4, 1, 4)])
  def test_pass_at_k_has_its_closed_form(self, n, c, k):
    scores = np.array([[7.0] * c + [5.0] * (n - c)])
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    np.testing.assert_allclose(stats.problem_pass(scores, k, 6.0), expected)

  def test_pass_at_1_is_the_share_of_passes(self):
    scores = np.array([[6, 7, 5, 0], [7, 7, 7, 7]])
    np.testing.assert_allclose(stats.problem_pass(scores, 1, 6.0), [0.5, 1])

  def test_the_lowest_pass_is_a_pass(self):
    assert stats.problem_pass(np.array([[6.0]]), 1, 6.0) == 1

  def test_best_of_1_is_the_mean(self):
    scores = np.array([[1.0, 4.0, 7.0]])
    np.testing.assert_allclose(stats.problem_best(scores, 1), 4.0)

  def test_fewer_graded_attempts_than_k_have_no_part(self):
    scores = np.array([[7, NAN, NAN], [1, 2, NAN], [0, 0, 0]])
    np.testing.assert_allclose(stats.problem_best(scores, 2), [NAN, 2, 0])
    np.testing.assert_allclose(
      stats.problem_pass(scores, 2, 2.0), [NAN, 1.0, 0.0]
    )

  def test_pass_at_k_is_unbiased(self):
    """From 4 draws of Bernoulli(0.3), pass@2 is 1 - 0.7^2 in the mean."""
    values = [
      (0.3 ** sum(bits) * 0.7 ** (4 - sum(bits)))
      * stats.problem_pass(7.0 * np.array([bits]), 2, 7.0)[0]
      for bits in itertools.product([0, 1], repeat=4)
    ]
    assert sum(values) == pytest.approx(1 - 0.7**2)

  @pytest.mark.parametrize('n', range(1, 13))
  def test_rounding_leads_to_no_score_above_the_scale(self, n):
    for k in range(1, n + 1):
      best = stats.problem_best(np.full((2, n), 7.0), k)
      assert stats.estimate(best).value == 7

  def test_a_k_below_one_is_refused(self):
    with pytest.raises(ValueError, match='at least 1'):
      stats.problem_best(np.zeros((1, 1)), 0)


class TestInterval:
  """The bootstrap interval of a mean over problems."""

  @pytest.mark.parametrize('df', [1, 2, 3, 5, 11, 59, 144])
  def test_the_quantile_of_student_is_right(self, df):
    expected = scipy.stats.t.ppf(0.975, df)
    assert stats._student(df) == pytest.approx(expected, rel=2e-3)

  @pytest.mark.parametrize('n', [6, 20, 60, 145])
  def test_of_symmetric_data_it_is_as_wide_as_students(self, n):
    values = 3.5 + 1.2 * scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    found = stats.estimate(values, num_resamples=40_000)
    half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert found.value == pytest.approx(3.5)
    assert found.low == pytest.approx(3.5 - half, abs=0.06 * half)
    assert found.high == pytest.approx(3.5 + half, abs=0.06 * half)

  def test_it_is_of_problems_and_not_of_attempts(self):
    """Repeating every attempt tells nothing new about other problems."""
    scores = np.random.default_rng(0).integers(0, 8, (60, 1)).astype(float)
    once = stats.estimate(stats.problem_means(scores))
    often = stats.estimate(stats.problem_means(np.repeat(scores, 9, axis=1)))
    assert often == once

  def test_it_stays_on_the_scale(self):
    values = np.array([7.0] * 11 + [0.0])
    found = stats.estimate(values)
    assert 0 <= found.low < found.value < found.high <= 7

  def test_where_all_agree_it_is_the_exact_one(self):
    """60 zeros are as likely as 2.5 % if 6 % of the problems are solved."""
    zeros = stats.estimate(np.zeros(60), high=1.0)
    assert (zeros.value, zeros.low) == (0, 0)
    assert (1 - zeros.high) ** 60 == pytest.approx(0.025)
    ones = stats.estimate(np.ones(60), high=1.0)
    assert (ones.value, ones.high) == (1, 1)
    assert ones.low**60 == pytest.approx(0.025)
    between = stats.estimate(np.full(10, 3.5))
    assert between.low == pytest.approx(3.5 * 0.025**0.1)
    assert between.high == pytest.approx(7 - 3.5 * 0.025**0.1)

  def test_one_problem_has_none(self):
    found = stats.estimate(np.array([3.0, NAN]))
    assert (found.value, found.num_problems) == (3.0, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)

  def test_a_seed_repeats_it_and_another_moves_it_little(self):
    values = np.random.default_rng(1).uniform(0, 7, 60)
    first = stats.estimate(values, seed=3)
    assert stats.estimate(values, seed=3) == first
    other = stats.estimate(values, seed=4)
    assert other.low != first.low
    assert other.low == pytest.approx(first.low, abs=0.05)

  def test_values_off_the_scale_are_refused(self):
    with pytest.raises(ValueError, match='from 0'):
      stats.estimate(np.array([1.0, 8.0]))

  def test_by_label_keeps_the_order(self):
    values = np.array([1.0, 7.0, 3.0, 5.0])
    found = stats.by_label(values, ['b', 'a', 'b', 'a'])
    assert [*found] == ['b', 'a']
    assert found['b'].value == 2
    assert found['a'].value == 6


def simulated(rng, mean, num_problems):
  """Scores of 0, 1, 6 and 7 at 3 attempts, of problems easy and hard.

  With p the share of good attempts, a problem is drawn from Beta(a, b) of that
  mean, and an attempt is worth 7 or 6 (of 5, 4 are 7), else 1 or 0 (of 10, 3
  are 1).

  Returns:
    Scores [num_problems, 3] and their expectation.
  """
  share = rng.beta(0.8 * mean, 0.8 * (1 - mean), num_problems)
  is_good = rng.random((num_problems, 3)) < share[:, None]
  dice = rng.random((num_problems, 3))
  good, bad = np.where(dice < 0.8, 7, 6), np.where(dice < 0.3, 1, 0)
  expected = mean * (0.8 * 7 + 0.2 * 6) + (1 - mean) * 0.3
  return np.where(is_good, good, bad).astype(float), expected


def coverage(draw, *, rounds, **options):
  """The share of intervals that hold the truth."""
  hits = 0
  for seed in range(rounds):
    values, truth = draw(np.random.default_rng(seed))
    found = stats.estimate(values, num_resamples=1000, seed=seed, **options)
    hits += found.low <= truth <= found.high
  return hits / rounds


def drawn_scores(mean, num_problems):
  def draw(rng):
    scores, truth = simulated(rng, mean, num_problems)
    return stats.problem_means(scores), truth

  return draw


def test_coverage_at_60_problems():
  """A quick look; the slow test looks closer."""
  share = coverage(drawn_scores(0.4, 60), rounds=400)
  assert 0.92 <= share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize('num_problems', [30, 60])
@pytest.mark.parametrize('mean', [0.25, 0.4, 0.6])
def test_coverage_of_the_mean(mean, num_problems):
  """4,000 rounds: the share itself is known to 0.7 %."""
  share = coverage(drawn_scores(mean, num_problems), rounds=4000)
  assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize('mean', [0.2, 0.4, 0.7])
def test_coverage_of_pass_at_2(mean):
  def draw(rng):
    share = rng.beta(2 * mean, 2 * (1 - mean), 60)
    scores = 7.0 * (rng.random((60, 4)) < share[:, None])
    # E[1 - (1 - p)^2] under Beta(2m, 2 (1 - m)): 2 E[p] - E[p^2].
    square = mean * (2 * mean + 1) / 3
    return stats.problem_pass(scores, 2, 7.0), 2 * mean - square

  share = coverage(draw, rounds=4000, high=1.0)
  assert 0.93 <= share <= 0.97


@pytest.mark.slow
def test_coverage_of_a_paired_difference():
  hits = 0
  rounds = 4000
  for seed in range(rounds):
    rng = np.random.default_rng(seed)
    hard = rng.beta(0.8, 1.2, 60)
    runs = []
    for gain in (0.2, 0.0):
      share = hard + gain * (1 - hard)
      runs.append(7.0 * (rng.random((60, 3)) < share[:, None]))
    found = stats.compare(
      *map(stats.problem_means, runs), num_resamples=1000, seed=seed
    ).difference
    hits += found.low <= 7 * 0.2 * 0.6 <= found.high
  assert 0.93 <= hits / rounds <= 0.97


class TestCompare:
  """Two runs over the same problems."""

  def test_pairing_takes_the_difficulty_out(self):
    """Problems differ far more than the runs do."""
    rng = np.random.default_rng(0)
    b = rng.uniform(0, 5, 60)
    a = b + rng.uniform(0.5, 1.5, 60)
    found = stats.compare(a, b)
    alone = stats.estimate(a)
    assert found.difference.value == pytest.approx((a - b).mean())
    width = found.difference.high - found.difference.low
    assert width < 0.3 * (alone.high - alone.low)
    assert found.p_value < 0.001

  def test_wins_and_ties_are_counted_and_gaps_left_out(self):
    a = np.array([7.0, 1.0, 3.0, NAN, 2.0, 0.1 + 0.2])
    b = np.array([0.0, 6.0, 3.0, 5.0, NAN, 0.3])
    found = stats.compare(a, b)
    assert found.difference.num_problems == 4
    assert (found.num_better, found.num_equal, found.num_worse) == (1, 2, 1)
    assert found.difference.value == pytest.approx(0.5)

  def test_the_other_way_round_has_the_other_sign(self):
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 8, (2, 40)).astype(float)
    ab, ba = stats.compare(a, b), stats.compare(b, a)
    assert ab.difference.value == -ba.difference.value
    assert ab.p_value == ba.p_value
    assert ab.num_better == ba.num_worse

  def test_the_p_value_is_that_of_all_signs(self):
    """Of 2^5 ways to sign 1, 2, 3, 4, 5, two reach a sum of 15."""
    a = np.arange(1.0, 6.0)
    found = stats.compare(a, np.zeros(5), num_resamples=200_000)
    assert found.p_value == pytest.approx(2 / 32, rel=0.05)

  def test_a_p_value_is_never_less_than_the_signs_that_were_drawn_can_say(self):
    found = stats.compare(np.full(40, 7.0), np.zeros(40), num_resamples=99)
    assert found.p_value == 1 / 100

  def test_equal_runs_do_not_differ(self):
    values = np.array([1.0, 2.0, 7.0])
    found = stats.compare(values, values)
    assert found.p_value == 1
    assert found.difference.value == 0
    assert found.difference.low < 0 < found.difference.high

  def test_runs_of_other_problems_are_refused(self):
    with pytest.raises(ValueError, match='same problems'):
      stats.compare(np.zeros(3), np.zeros(4))
