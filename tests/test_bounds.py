"""Certification statistics against scipy, exact rational arithmetic and closed forms."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from robust_jax.certification import bounds

PAIRS = [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (51, 100), (99, 100), (99_990, 100_000)]


@pytest.mark.parametrize('alpha', [1e-9, 0.001, 0.05, 0.5, 0.9])
@pytest.mark.parametrize(('k', 'n'), PAIRS)
def test_clopper_pearson_equals_scipy(k, n, alpha):
  lower = stats.binomtest(k, n, alternative='greater').proportion_ci(1 - alpha, 'exact').low
  upper = stats.binomtest(k, n, alternative='less').proportion_ci(1 - alpha, 'exact').high
  # scipy's root search stops at 2e-12, and 1 - alpha has lost digits at alpha = 1e-9.
  rtol = 1e-7 if alpha < 1e-6 else 0
  assert bounds.clopper_pearson_lower(k, n, alpha) == pytest.approx(lower, rel=rtol, abs=4e-12)
  assert bounds.clopper_pearson_upper(k, n, alpha) == pytest.approx(upper, rel=rtol, abs=4e-12)


def exact_tail(k, n, p):
  """P(Binomial(n, p) >= k) in rational arithmetic."""
  p = Fraction(float(p))
  return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize('alpha', [1e-12, 0.001, 0.3])
def test_clopper_pearson_inverts_the_binomial_tail(alpha):
  n = 25
  k = np.arange(n + 1)
  lower = bounds.clopper_pearson_lower(k, n, alpha)
  upper = bounds.clopper_pearson_upper(k, n, alpha)
  for i in range(1, n + 1):
    assert float(exact_tail(i, n, lower[i])) == pytest.approx(alpha, rel=1e-10)
  # Well conditioned in 1 - p near p = 1 only through misses and hits exchanged.
  np.testing.assert_allclose(upper, 1 - lower[::-1], rtol=0, atol=1e-15)
  assert lower[0] == 0
  assert upper[n] == 1
  assert np.all(np.diff(lower) > 0)
  assert np.all(np.diff(upper) > 0)


@pytest.mark.parametrize('alpha', [0.001, 0.05])
def test_lower_bound_is_above_the_proportion_with_probability_at_most_alpha(alpha):
  n = 30
  lower = bounds.clopper_pearson_lower(np.arange(n + 1), n, alpha)
  # Just below a bound is where coverage is worst.
  for p in np.concatenate([np.linspace(0.01, 0.99, 50), np.nextafter(lower[1:], 0)]):
    false = stats.binom.pmf(np.arange(n + 1), n, p)[lower > p].sum()
    assert false <= alpha * (1 + 1e-9)


def test_float64_at_the_count_where_float32_is_too_high():
  k, n, alpha = 99_990, 100_000, 0.001
  p = bounds.clopper_pearson_lower(k, n, alpha)
  assert p.dtype == np.float64
  # P(Binomial(n, 1 - p) <= n - k) summed term by term.
  q = 1 - p
  terms = [
    math.exp(math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)
             + j * math.log(q) + (n - j) * math.log1p(-q))
    for j in range(n - k + 1)
  ]
  assert math.fsum(terms) == pytest.approx(alpha, rel=1e-7)


def test_published_constants():
  p = bounds.clopper_pearson_lower(100_000, 100_000, 0.001)
  assert p == pytest.approx(0.001 ** (1 / 100_000), rel=1e-15)
  assert p == pytest.approx(0.99993092, abs=5e-9)
  assert bounds.certified_radius(p, 1.0) == pytest.approx(3.81146, abs=5e-6)
  assert bounds.certified_radius(p, 0.5) == pytest.approx(1.90573, abs=5e-6)


@pytest.mark.parametrize('alpha', [1e-12, 0.001, 0.5])
def test_unanimous_counts_have_a_closed_form(alpha):
  n = np.array([1, 2, 100, 100_000, 10**9])
  np.testing.assert_allclose(
    bounds.clopper_pearson_lower(n, n, alpha), np.exp(np.log(alpha) / n), rtol=1e-13
  )
  np.testing.assert_allclose(
    bounds.clopper_pearson_upper(0 * n, n, alpha), -np.expm1(np.log(alpha) / n), rtol=1e-12
  )


def test_arrays_broadcast_and_scalars_stay_scalar():
  k = np.array([[3], [9]])
  n = np.array([10, 20, 30])
  assert bounds.clopper_pearson_lower(k, n, 0.05).shape == (2, 3)
  assert bounds.binomial_test(k, n).shape == (2, 3)
  assert bounds.clopper_pearson_lower(9, 20, 0.05) == (
    bounds.clopper_pearson_lower(k, n, 0.05)[1, 1]
  )
  assert np.ndim(bounds.clopper_pearson_upper(3, 10, 0.05)) == 0
  assert np.ndim(bounds.certified_radius(0.9, 0.5)) == 0
  assert bounds.clopper_pearson_lower(np.int32(3), np.int32(10), 0.05) == (
    bounds.clopper_pearson_lower(3, 10, 0.05)
  )


def test_radius_formulas():
  p = np.array([0.5001, 0.6, 0.9, 0.999, 1 - 1e-12])
  sigma = np.array([[0.12], [1.0]])
  np.testing.assert_allclose(
    bounds.certified_radius(p, sigma), sigma * stats.norm.ppf(p), rtol=1e-12
  )
  p_upper = np.array([0.4, 0.3, 0.05, 1e-4, 1e-13])
  np.testing.assert_allclose(
    bounds.certified_radius(p, sigma, p_upper),
    sigma / 2 * (stats.norm.ppf(p) - stats.norm.ppf(p_upper)), rtol=1e-12,
  )
  np.testing.assert_allclose(
    bounds.certified_radius(p[:4], 0.5, 1 - p[:4]), bounds.certified_radius(p[:4], 0.5), rtol=1e-9
  )


def test_radius_is_zero_where_nothing_is_certified():
  np.testing.assert_array_equal(bounds.certified_radius([0.0, 0.3, 0.5], 0.5), 0)
  np.testing.assert_array_equal(bounds.certified_radius([0.3, 0.2, 0.0], 0.5, [0.3, 0.6, 0.0]), 0)
  # With a runner-up, a class certifies below one half.
  assert bounds.certified_radius(0.4, 0.5, 0.3) > 0
  assert bounds.certified_radius(0.99, 0.0) == 0


def test_radius_is_finite_at_probabilities_0_and_1():
  largest = stats.norm.ppf(np.nextafter(1.0, 0.0))
  assert bounds.certified_radius(1.0, 2.0) == pytest.approx(2 * largest)
  assert bounds.certified_radius(1.0, 2.0, 0.0) == pytest.approx(2 * largest)
  assert bounds.certified_radius(1e-20, 2.0, 1e-30) == 0


@pytest.mark.parametrize('n', [1, 2, 9, 24])
def test_binomial_test_equals_scipy(n):
  p = bounds.binomial_test(np.arange(n + 1), n)
  expected = [stats.binomtest(k, n, 0.5).pvalue for k in range(n + 1)]
  np.testing.assert_allclose(p, expected, rtol=1e-12)


def test_binomial_test_closed_forms():
  n = np.array([1, 10, 1000])
  np.testing.assert_allclose(bounds.binomial_test(n, n), 2.0 ** (1 - n), rtol=1e-12)
  assert bounds.binomial_test(50, 100) == 1
  assert bounds.binomial_test(50_700, 100_000) == pytest.approx(
    stats.binomtest(50_700, 100_000).pvalue, rel=1e-10
  )


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: bounds.clopper_pearson_lower(3, 2, 0.1), 'k .*, got 3'),
  (lambda: bounds.clopper_pearson_upper([1, -1], 2, 0.1), 'k .*, got -1'),
  (lambda: bounds.clopper_pearson_lower(0, 0, 0.1), 'n .*, got 0'),
  (lambda: bounds.clopper_pearson_lower(0.5, 2, 0.1), 'k .* float64'),
  (lambda: bounds.clopper_pearson_lower(1, 2, 0.0), 'alpha .*, got 0.0'),
  (lambda: bounds.clopper_pearson_upper(1, 2, 1.0), 'alpha .*, got 1.0'),
  (lambda: bounds.clopper_pearson_upper(1, 2, math.nan), 'alpha .*, got nan'),
  (lambda: bounds.certified_radius(0.9, -0.5), 'sigma .*, got -0.5'),
  (lambda: bounds.certified_radius(0.9, math.nan), 'sigma .*, got nan'),
  (lambda: bounds.certified_radius(1.1, 0.5), 'p_lower .*, got 1.1'),
  (lambda: bounds.certified_radius(0.9, 0.5, -0.1), 'p_upper .*, got -0.1'),
  (lambda: bounds.binomial_test(1, 0), 'n .*, got 0'),
  (lambda: bounds.log_e_value(3, 2, 0.0), 'k .*, got 3'),
  (lambda: bounds.log_e_value(0, 0, 0.0), 'n .*, got 0'),
  (lambda: bounds.log_e_value(1, 2, 38.0), 'score .*, got 38.0'),
  (lambda: bounds.log_e_value(1, 2, math.nan), 'score .*, got nan'),
  (lambda: bounds.confidence_sequence_lower(0.5, 2, 0.1), 'k .* float64'),
  (lambda: bounds.confidence_sequence_lower(1, 2, 0.0), 'alpha .*, got 0.0'),
])
def test_invalid_input_is_named_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
