"""Integer noise against rational arithmetic, exact probabilities and known radii."""

import bisect
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from robust_jax import keys
from robust_jax.certification import (
    Anytime,
    RadiusGrid,
    certify,
    certify_by_rule,
    count,
    integer_noise,
)

COARSE, FINE = (0.12, 255), (0.5, 255 * 4)
GRIDS = pytest.mark.parametrize(('sigma', 'steps'), [COARSE, (1.0, 255), FINE, (0.001, 255)])


def machin_pi(digits=70):
  """pi as a Fraction, 16 arctan(1/5) - 4 arctan(1/239)."""
  terms = lambda n: range(int(digits / math.log10(n**2)) + 2)
  arctan = lambda n: sum(
    Fraction((-1) ** i, (2 * i + 1) * n ** (2 * i + 1)) for i in terms(n))
  return 16 * arctan(5) - 4 * arctan(239)


def rational_erfc(x):
  """erfc of a Fraction to 1e-50, from the alternating series of erf."""
  term, total, n = x, Fraction(0), 0
  scale = 10**110
  x_squared = x * x
  while abs(term) > Fraction(1, 10**70) or n < x_squared:
    total += Fraction(round(term * scale / (2 * n + 1)), scale)
    n += 1
    term = Fraction(round(-term * x_squared / n * scale), scale)
  root_pi = Fraction(math.isqrt(int(machin_pi() * 10**120)), 10**60)
  return 1 - 2 * total / root_pi


@GRIDS
def test_thresholds_are_the_nearest_integers(sigma, steps):
  levels = integer_noise.thresholds(sigma, steps)
  exact_sigma = Fraction(float(np.float32(sigma)))
  root_two = Fraction(math.isqrt(2 * 10**120), 10**60)
  last = len(levels)
  for k in sorted({1, 2, last // 3, last // 2, last, last + 1} - {0}):
    exact = 2**63 * rational_erfc((k - Fraction(1, 2)) / (steps * exact_sigma * root_two))
    level = levels[k - 1] if k <= last else 0
    assert abs(level - exact) <= Fraction(1, 2) + Fraction(1, 10**20)
  k = np.arange(1, last + 1)
  expected = 2.0**63 * special.erfc((k - 0.5) / (steps * float(exact_sigma) * math.sqrt(2)))
  np.testing.assert_allclose(np.array(levels, float), expected, rtol=1e-12, atol=1)
  assert np.all(np.diff(np.array(levels, object)) <= 0)
  assert levels[-1] > 0
  assert integer_noise.discrepancy(sigma, steps) == (last + 1) / 2**64


def test_discrepancy_bounds_the_distance_of_the_distributions():
  sigma, steps = 0.01, 255
  levels = [*integer_noise.thresholds(sigma, steps), *([0] * 10)]
  root_two = Fraction(math.isqrt(2 * 10**120), 10**60)
  scale = steps * Fraction(float(np.float32(sigma))) * root_two
  tails = [rational_erfc((k - Fraction(1, 2)) / scale) for k in range(1, len(levels) + 1)]
  drawn, exact = ([Fraction(1), *values] for values in
                  ([Fraction(level, 2**63) for level in levels], tails))
  masses = [[a - b for a, b in zip(values, values[1:])] for values in (drawn, exact)]
  distance = sum(abs(one - other) for one, other in zip(*masses)) / 2
  assert 0 < distance <= Fraction(integer_noise.discrepancy(sigma, steps))


def test_bisection_is_exact_at_every_threshold():
  for sigma, steps in (COARSE, (1.0, 255), (0.001, 255)):
    levels = integer_noise.thresholds(sigma, steps)
    table = np.zeros(1 << len(levels).bit_length(), np.uint64)
    table[1:1 + len(levels)] = levels
    values = sorted({min(max(level + by, 0), 2**63 - 1) for level in levels for by in (-1, 0, 1)} |
                    {0, 2**63 - 1})
    ascending = sorted(levels)
    expected = [len(levels) - bisect.bisect_right(ascending, value) for value in values]
    words = np.array([divmod(value, 2**32) for value in values], np.uint32)
    magnitude = jax.jit(functools.partial(integer_noise.magnitude, table=table))
    found = magnitude(*words.T)
    np.testing.assert_array_equal(found, expected)
    assert found[0] == len(levels)
    if (sigma, steps) == COARSE:
      assert len(levels) / (steps * sigma) > 9.1, 'beyond the 5.42 of float32 noise'


def drawn(sigma, steps, rows, pixels, seed=0):
  """[rows, pixels] integers of the noise source."""
  row_keys = keys.per_example(keys.root(seed), rows)
  noise_fn = integer_noise.noise(sigma, steps)
  values = jax.jit(jax.vmap(lambda key: noise_fn(key, (pixels,), np.float32(sigma))))(row_keys)
  assert values.dtype == jnp.float32
  numbers = np.rint(np.asarray(values, np.float64) * steps)
  np.testing.assert_allclose(values, numbers / steps, rtol=2**-22)
  return numbers.astype(int)


@pytest.mark.parametrize(('sigma', 'steps'), [COARSE, FINE])
def test_distribution(sigma, steps):
  numbers = drawn(sigma, steps, 500, 2000)
  # Bins of neighbouring integers, of at least 50 expected draws each.
  edges = np.unique(np.rint(steps * sigma * special.ndtri(np.linspace(0, 1, 202)[1:-1]))) + 0.5
  p = np.diff(special.ndtr(np.concatenate([[-np.inf], edges / (steps * np.float32(sigma)),
                                           [np.inf]])))
  observed = np.bincount(np.searchsorted(edges, numbers.ravel()), minlength=len(p))
  assert observed.sum() == numbers.size
  assert stats.chisquare(observed, p * numbers.size).pvalue > 1e-6
  # Neighbouring pixels and rows are uncorrelated.
  for one, other in ((numbers[:, 1:], numbers[:, :-1]), (numbers[1:], numbers[:-1])):
    z = (one * other).mean() / one.std() / other.std() * math.sqrt(one.size)
    assert abs(z) < 5


def test_draws_depend_on_the_key_alone():
  noise_fn = integer_noise.noise(*COARSE)
  draw = lambda key: noise_fn(key, (6, 5), np.float32(0.12))
  row_keys = keys.per_example(keys.root(3), 7)
  loop = np.stack([draw(key) for key in row_keys])
  np.testing.assert_array_equal(jax.jit(jax.vmap(draw))(row_keys), loop)
  with jax.threefry_partitionable(False):
    np.testing.assert_array_equal(jax.jit(lambda key: draw(key))(row_keys[4]), loop[4])
  assert integer_noise.noise(*COARSE) is noise_fn
  assert len(np.unique(loop.reshape(7, -1), axis=0)) == 7


def test_the_classifier_is_given_a_function_of_the_integer_sum():
  sigma, steps = 1.0, 255
  most = len(integer_noise.thresholds(sigma, steps))
  numbers = np.arange(-most, most + 1)
  noise = numbers.astype(np.float32) * np.float32(1 / steps)
  images = np.arange(256, dtype=np.float32) / np.float32(255)
  seen = jax.jit(integer_noise.on_grid(lambda images: images))(images[:, None] + noise)
  sums = np.arange(256)[:, None] + numbers
  bits = np.asarray(seen).view(np.uint32)
  order = np.zeros(256 + 2 * most, np.uint32)
  order[sums.ravel() + most] = bits.ravel()
  np.testing.assert_array_equal(bits, order[sums + most])
  np.testing.assert_allclose(seen, sums / steps, rtol=2**-23)
  # Added in float32 alone, equal sums have several values.
  plain = (images[:, None] + noise).view(np.uint32)
  order[sums.ravel() + most] = plain.ravel()
  assert (plain != order[sums + most]).any()


def above(level):
  """Class 0 where the first pixel is at least `level` 255ths."""
  def logits(level, images):
    first = jnp.rint(255 * images.reshape(len(images), -1)[:, 0])
    return jnp.stack([first - level + 0.5, jnp.zeros_like(first)], axis=-1)
  return jax.tree_util.Partial(logits, np.float32(level))


def test_false_certificates_are_as_rare_as_promised():
  # F = f o round changes class half a step below the level.
  num, n, alpha, sigma = 2000, 230, 0.05, 0.12
  images = np.full((num, 1), np.float32(128) / np.float32(255))
  radius = 10.5 / 255
  found = certify(keys.root(4), above(118), images, sigma=sigma, n0=31, n=n, alpha=alpha,
                  batch_size=10_000, noise='integer')
  false = (found.prediction == 1) | (found.radius > radius)
  p = special.ndtr(radius / sigma)
  lower = stats.beta.ppf(alpha, np.arange(1, n + 1), n - np.arange(1, n + 1) + 1)
  rate = stats.binom.pmf(np.arange(1, n + 1), n, p)[lower > p].sum()
  assert 0.02 < rate <= alpha
  assert stats.binom.ppf(1e-6, num, rate) <= false.sum() <= stats.binom.isf(1e-6, num, rate)
  share = found.counts[:, 0].mean() / n
  assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / (num * n)))


def test_certificate_is_that_of_the_counts_at_less_alpha():
  images = np.full((2, 3, 4), 0.2, np.float32)
  settings = {'sigma': 0.5, 'n': 500, 'batch_size': 64, 'noise': 'integer'}
  found = certify(keys.root(0), above(-10_000), images, alpha=0.001, **settings)
  np.testing.assert_array_equal(found.counts, [[500, 0]] * 2)
  np.testing.assert_allclose(found.p_lower, 0.00099 ** (1 / 500), rtol=1e-12)
  np.testing.assert_allclose(found.radius, 0.5 * special.ndtri(found.p_lower), rtol=1e-9)
  # What the draws may be off by has to fit into the hundredth.
  least = 100 * 500 * 12 * integer_noise.discrepancy(0.5)
  certify(keys.root(0), above(-10_000), images, alpha=1.01 * least, **settings)
  with pytest.raises(ValueError, match='alpha .* 3.8e-11 for 500 draws of 12 pixels'):
    certify(keys.root(0), above(0), images, alpha=0.99 * least, **settings)


@pytest.mark.parametrize('make', [RadiusGrid, Anytime])
def test_rules_draw_integers_too(make):
  # A class of 64ths of the last bit would see float32's rounding; here it sees whole numbers.
  images = np.full((3, 5), np.float32(100) / np.float32(255))
  settings = {'sigma': 0.12, 'n': 400, 'n0': 20, 'batch_size': 32}
  rule = make(**settings, noise='integer')
  assert rule.alpha_cap == pytest.approx(0.8 * 0.00099, rel=1e-12)
  assert rule.alpha_cap + rule.alpha_anytime == pytest.approx(0.00099, rel=1e-12)
  seen = []

  def spying_count(key, logits_fn, images, *args, noise_fn, **kwargs):
    assert noise_fn is integer_noise.noise(0.12)
    seen.append(np.asarray(logits_fn(np.float32([[100.3 / 255] * 5]))))
    return count(key, logits_fn, images, *args, noise_fn=noise_fn, **kwargs)

  found = certify_by_rule(keys.root(0), above(100), images, rule, count=spying_count)
  np.testing.assert_array_equal(seen, [above(100)(np.float32([[100 / 255] * 5]))] * len(seen))
  fixed = certify(keys.root(0), above(100), images, **settings, noise='integer')
  np.testing.assert_array_equal(found.counts0, fixed.counts0)
  with pytest.raises(ValueError, match='pixels .* 1/255'):
    certify_by_rule(keys.root(0), above(0), images + np.float32(0.001), rule)


def test_noise_of_another_sigma_votes_for_nothing():
  counts = count(keys.root(0), integer_noise.on_grid(above(0)), np.zeros((1, 2)), [0], 0, 50,
                 sigma=0.25, batch_size=16, noise_fn=integer_noise.noise(0.5))
  np.testing.assert_array_equal(counts, [[0, 0]])


@pytest.mark.parametrize(('change', 'message'), [
  ({'sigma': 0.0}, 'sigma .*, got 0.0'),
  ({'sigma': 500.0}, 'sigma .*, got 500.0'),
  ({'images': np.full((1, 2), 0.3001, np.float32)}, 'pixels .* 1/255 .*, got 0.3000'),
  ({'images': np.full((1, 2), -1 / 255)}, r'\[0, 1\]'),
  ({'images': np.full((1, 2), np.nan)}, r'\[0, 1\]'),
  ({'noise': 'uniform'}, "noise .*, got 'uniform'"),
])
def test_invalid_input_is_named_in_one_line(change, message):
  settings = {'images': np.zeros((1, 2), np.float32), 'sigma': 0.5, 'n': 20, 'batch_size': 16,
              'noise': 'integer'}
  settings |= change
  with pytest.raises(ValueError, match=message) as error:
    certify(keys.root(0), above(0), settings.pop('images'), **settings)
  assert '\n' not in str(error.value)


def test_another_grid_has_whole_255ths():
  with pytest.raises(ValueError, match='steps .*, got 100'):
    integer_noise.thresholds(0.5, 100)
