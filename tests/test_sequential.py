"""Sequential certification against quadrature, rational arithmetic and exact enumeration.

The error probabilities come from `false_certificates`, an exact dynamic program, which is itself
compared here with an enumeration of every path of draws.
"""

import inspect
import itertools
import math
from fractions import Fraction

import false_certificates
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from robust_jax import schema
from robust_jax.certification import Anytime, RadiusGrid, bounds, rules

SCORES = [0.0, 0.25, 1.2815515655446004, 3.090232306167813, 7.034483825301132]  # 1 - p0 to 1e-12
COUNTS = [(0, 1), (1, 1), (0, 5), (3, 5), (50, 100), (98, 100), (100, 100), (600, 1000),
          (1000, 1000), (5990, 6000)]


def e_value_by_quadrature(k, n, score):
  """log of the average of (q/p0)^k ((1-q)/(1-p0))^(n-k) over q > p0, prior (q (1-q))^(-1/2)."""
  p0, above = special.ndtr(score), special.ndtr(-score)
  # 1 - q = (1 - p0) t^2 takes the singularity of the prior at q = 1 away.
  log_ratio = lambda t: (k * math.log1p(above * (1 - t * t) / p0)
                         + (2 * (n - k) * math.log(t) if n > k else 0.0))
  prior = lambda t: (1 - above * t * t) ** -0.5
  peak = min(1.0, math.sqrt((n - k) / n / above))
  top = log_ratio(peak) if peak > 0 else log_ratio(0.0)
  width = 10 / math.sqrt(n)
  breaks = sorted({min(1.0, max(0.0, t)) for t in (0, peak - width, peak, peak + width, 1)})
  total, mass = (
    sum(integrate.quad(f, a, b, epsabs=0, epsrel=1e-11, limit=200)[0]
        for a, b in itertools.pairwise(breaks))
    for f in (lambda t: math.exp(log_ratio(t) - top) * prior(t), prior)
  )
  return top + math.log(total) - math.log(mass)


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize(('k', 'n'), COUNTS)
def test_e_value_equals_quadrature(k, n, score):
  value, expected = bounds.log_e_value(k, n, score), e_value_by_quadrature(k, n, score)
  if value == -np.inf:  # Underflow, which may happen where there is no evidence anyway.
    assert k / n < special.ndtr(score)
    assert expected < 0
  else:
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-8)


def whole_mixture(k, n, p):
  """Exact average over q in (0, 1) of the likelihood ratio of q to p, prior Beta(1/2, 1/2)."""
  p = Fraction(float(p))
  beta = Fraction(math.factorial(2 * k) * math.factorial(2 * (n - k)),
                  4**n * math.factorial(k) * math.factorial(n - k) * math.factorial(n))
  return beta / (p**k * (1 - p) ** (n - k))


def log(ratio):
  """log of a Fraction, of any size, to 1e-12."""
  shift = ratio.numerator.bit_length() - ratio.denominator.bit_length()
  return math.log(ratio / Fraction(2) ** shift) + shift * math.log(2)


@pytest.mark.parametrize('p0', [0.5, 0.625, 0.875, 0.9990234375])
def test_the_e_values_above_and_below_make_the_rational_whole(p0):
  score = special.ndtri(p0)
  weight_above, weight_below = stats.beta.sf(p0, 0.5, 0.5), stats.beta.cdf(p0, 0.5, 0.5)
  for k, n in [(0, 1), (1, 1), (2, 7), (30, 40), (199, 200), (1500, 2000)]:
    parts = np.logaddexp(np.log(weight_above) + bounds.log_e_value(k, n, score),
                         np.log(weight_below) + bounds.log_e_value(n - k, n, -score))
    exact = log(whole_mixture(k, n, p0))
    assert parts == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert parts <= exact


def test_at_even_counts_and_one_half_each_side_is_rational():
  for k in (1, 5, 50, 1000):
    exact = log(whole_mixture(k, 2 * k, 0.5))
    value = bounds.log_e_value(k, 2 * k, 0.0)
    assert value == pytest.approx(exact, abs=1e-8)
    assert value <= exact


@pytest.mark.parametrize('score', SCORES)
def test_the_e_value_is_a_supermartingale(score):
  p0, above = special.ndtr(score), special.ndtr(-score)
  first = [np.exp(bounds.log_e_value(k, 1, score)) for k in (0, 1)]
  assert above * first[0] + p0 * first[1] == pytest.approx(1, rel=1e-9)
  for n in range(1, 40):
    k = np.arange(n + 1)
    now, miss, hit = (np.exp(bounds.log_e_value(*counts, score))
                      for counts in ((k, n), (k, n + 1), (k + 1, n + 1)))
    finite = miss > 0  # no underflow
    assert finite.any()
    for p in (0.0, 0.3, 0.9 * p0, p0):
      mean = (above if p == p0 else 1 - p) * miss + p * hit
      assert np.all(mean[finite] <= now[finite] * (1 + 1e-9))
    np.testing.assert_allclose(mean[finite], now[finite], rtol=1e-9)


def test_e_value_at_the_ends():
  assert bounds.log_e_value(0, 10_000, 3.0) == -np.inf
  assert bounds.log_e_value(0, 10**9, 0.0) == -np.inf
  n = np.array([1, 10, 1000, 10**9])
  unanimous = bounds.log_e_value(n, n, 0.0)
  assert np.all(np.diff(unanimous) > 0)
  assert np.all(unanimous <= n * np.log(2))
  assert np.isfinite(bounds.log_e_value(10**9, 10**9, 37.0))
  assert bounds.log_e_value([[1], [2]], 3, np.zeros(4)).shape == (2, 4)
  assert np.ndim(bounds.log_e_value(1, 2, 0.0)) == 0
  assert bounds.log_e_value(np.int32(1), np.int32(2), np.float32(0)).dtype == np.float64


@pytest.mark.parametrize('alpha', [1e-9, 0.001, 0.3])
def test_confidence_sequence_solves_its_definition(alpha):
  for k, n in [(1, 1), (1, 7), (5, 10), (60, 100), (99, 100), (990, 1000), (99_990, 100_000)]:
    def log_ratio(p, k=k, n=n):
      return (special.betaln(k + 0.5, n - k + 0.5) - math.log(math.pi) - k * math.log(p)
              - special.xlog1py(n - k, -p) + math.log(alpha))
    root = optimize.brentq(log_ratio, 1e-300, k / n, xtol=1e-15, rtol=1e-14)
    assert bounds.confidence_sequence_lower(k, n, alpha) == pytest.approx(root, rel=1e-9)
  assert bounds.confidence_sequence_lower(0, 10, alpha) == 0
  n = np.array([1, 2, 100, 10**9])
  closed = np.exp((special.betaln(n + 0.5, 0.5) - np.log(np.pi) + np.log(alpha)) / n)
  np.testing.assert_allclose(bounds.confidence_sequence_lower(n, n, alpha), closed, rtol=1e-12,
                             atol=1e-17)


def test_confidence_sequence_is_never_above_the_exact_bound():
  k = np.arange(1, 26)
  for alpha, n in itertools.product((0.001, 0.3), (25, 60)):
    for i, p in zip(k, bounds.confidence_sequence_lower(k, n, alpha)):
      assert whole_mixture(int(i), n, p) >= 1 / Fraction(alpha)
  lower = bounds.confidence_sequence_lower(k, 60, 0.001)
  assert np.all(np.diff(lower) > 0)
  assert np.all(lower < bounds.clopper_pearson_lower(k, 60, 0.001))


def test_looks():
  schedule = rules.look_schedule
  np.testing.assert_array_equal(schedule(5, first_look=1, look_growth=1.0), [1, 2, 3, 4, 5])
  np.testing.assert_array_equal(schedule(100, first_look=30, look_growth=2.0), [30, 60, 100])
  np.testing.assert_array_equal(schedule(10, first_look=100), [10])
  looks = schedule(100_000, first_look=100, look_growth=1.1)
  assert looks[-1] == 100_000
  assert np.all(looks[:-1] % 100 == 0)
  assert np.all(np.diff(looks) > 0)
  assert np.all(np.diff(looks) <= np.maximum(100, 0.1 * looks[:-1] + 100))
  assert len(looks) < 60


def test_plan():
  plan = RadiusGrid(sigma=0.5, radii=(0.5, 0.25), n=2000, alpha=0.01, cap_share=0.25)
  np.testing.assert_array_equal(plan.grid, [0, 0.25, 0.5])
  np.testing.assert_array_equal(plan.scores, [0, 0.5, 1])
  assert plan.alpha_cap == 0.0025
  assert plan.alpha_anytime + plan.alpha_cap == 0.01
  k = np.arange(2001)[:, None]
  accepted = (bounds.clopper_pearson_lower(k, 2000, 0.0025) >= stats.norm.cdf(plan.scores)) | (
    bounds.log_e_value(k, 2000, plan.scores) >= -math.log(0.0075))
  np.testing.assert_array_equal(plan.cap_hits, accepted.argmax(axis=0))
  np.testing.assert_array_equal(RadiusGrid(sigma=1.0, radii=()).grid, [0])
  np.testing.assert_array_equal(RadiusGrid(sigma=1.0, radii=[0, 1]).grid, [0, 1])


def test_a_radius_is_allowed_up_to_the_limit_of_the_cap():
  n, alpha = 5000, 0.002
  limit = 0.5 * stats.norm.ppf(0.001 ** (1 / n))
  fields = dict(sigma=0.5, n=n, alpha=alpha, cap_share=0.5)
  plan = RadiusGrid(radii=(limit - 1e-6,), **fields)
  assert plan.cap_hits[-1] == n
  with pytest.raises(ValueError, match=f'less than {limit:.4f}, all that n=5000 draws'):
    RadiusGrid(radii=(limit + 1e-6,), **fields)


def paths(n):
  """[2^n, n] every sequence of n draws, 1 a hit."""
  return np.array(list(itertools.product((0, 1), repeat=n)))


@pytest.mark.parametrize('fields', [
  dict(first_look=1, look_growth=1.0), dict(first_look=2, look_growth=1.5),
  dict(first_look=1, look_growth=1.0, indifference=0.3, futility=0.4, cap_share=0.1),
])
def test_the_dynamic_program_equals_every_path(fields):
  plan = RadiusGrid(sigma=1.0, radii=(0.2, 0.5), n=12, alpha=0.3, **fields)
  draws = paths(12)
  state = plan.start(len(draws))
  for n in plan.looks:
    state = plan.look(state, draws[:, :n].sum(axis=1), n)
  assert not plan.undecided(state).any()
  conclusion = plan.conclude(state)
  level = np.where(conclusion.certain, np.searchsorted(plan.grid, conclusion.radius) + 1, 0)
  rule = false_certificates.plan_rule(plan)
  for p in (0.3, 0.5, 0.7, 0.95):
    weight = np.prod(np.where(draws, p, 1 - p), axis=1)
    outcome = false_certificates.outcome(rule, p)
    np.testing.assert_allclose(
      outcome.certified, np.bincount(level, weight, minlength=4), rtol=0, atol=1e-12)
    assert outcome.draws == pytest.approx((weight * state.draws).sum(), rel=1e-12)
  assert set(level) == {0, 1, 2, 3}


@pytest.mark.parametrize('p0', false_certificates.P0S)
@pytest.mark.parametrize('alpha', false_certificates.ALPHAS)
@pytest.mark.parametrize(('schedule', 'n'), [
  ('every draw', 500), ('every 100', 6000), ('geometric', 6000)])
def test_false_certificates_of_one_radius(schedule, n, alpha, p0):
  fields = false_certificates.SCHEDULES[schedule]
  if (0.8 * alpha) ** (1 / n) < p0:
    with pytest.raises(ValueError, match='radii .*, got'):
      false_certificates.plan_at(p0, n, alpha, **fields)
    return
  plan = false_certificates.plan_at(p0, n, alpha, **fields)
  false = false_certificates.false_certificate(plan)
  assert np.all(false <= alpha)
  # No vacuous bound: most of alpha is used where the counts are fine enough for it.
  if p0 <= 0.9 and n == 6000:
    assert false[-1] > 0.7 * alpha
  rule = false_certificates.plan_rule(plan, heed_failures=False)
  for p in (0.0, 0.5 * p0, p0 - 0.01 * (1 - p0)):
    assert false_certificates.outcome(rule, p).certified[-1] <= false[-1]


def test_false_certificates_after_every_of_6000_draws():
  fields = false_certificates.SCHEDULES['every draw']
  plan = false_certificates.plan_at(0.5, 6000, 0.001, **fields)
  assert 0.0009 < false_certificates.false_certificate(plan).max() <= 0.001


@pytest.mark.parametrize('alpha', false_certificates.ALPHAS)
@pytest.mark.parametrize('cap_share', [0.1, 0.5, 0.99])
def test_false_certificates_of_a_grid(alpha, cap_share):
  plan = RadiusGrid(sigma=0.5, radii=np.arange(0, 1.3, 0.25), n=6000, alpha=alpha,
                              cap_share=cap_share)
  assert np.all(false_certificates.false_certificate(plan) <= alpha)


@pytest.mark.parametrize('p', false_certificates.P0S)
@pytest.mark.parametrize('alpha', false_certificates.ALPHAS)
def test_false_bounds_at_any_time(alpha, p):
  for n, schedule in ((200, 'every draw'), (6000, 'geometric')):
    fields = false_certificates.SCHEDULES[schedule]
    plan = Anytime(sigma=1.0, n=n, alpha=alpha, **fields)
    assert false_certificates.false_anytime(plan, p) <= alpha


@pytest.mark.parametrize('name', false_certificates.MISTAKES)
def test_mistakes_are_caught(name):
  p, rule = false_certificates.MISTAKES[name]()
  alpha = false_certificates.ALPHA
  assert false_certificates.outcome(rule, p).certified[1] > alpha * (1 + 1e-6)


def test_what_the_mistakes_are_mistaken_about():
  alpha = false_certificates.ALPHA
  p, rule = false_certificates.binding_futility(heed=True)
  assert false_certificates.outcome(rule, p).certified[1] <= alpha
  _, rule = false_certificates.whole_mixture()
  assert false_certificates.outcome(rule, false_certificates.P0).certified[1] <= alpha
  p, _ = false_certificates.float32_bound()
  assert bounds.clopper_pearson_lower(99_990, 100_000, alpha) < p


def test_power():
  plan = RadiusGrid(sigma=0.5, radii=(0.5,))
  rule = false_certificates.plan_rule(plan)
  assert plan.n == 100_000
  for p, least, most_draws in ((0.9, 0.999, 1000), (0.86, 0.999, 10_000), (0.847, 0.95, 90_000)):
    certified, draws = false_certificates.outcome(rule, p)
    assert certified[-1] > least
    assert draws < most_draws
  # And far below, it is given up soon.
  assert false_certificates.outcome(rule, 0.8).draws < 1500


def test_a_radius_is_given_up_at_the_futility_level():
  plan = RadiusGrid(sigma=1.0, radii=(0.5,), n=10_000, futility=0.02)
  k = np.arange(501)
  state = plan.look(plan.start(501), k, 500)
  evidence = bounds.log_e_value(500 - k[:, None], 500, -plan.scores)
  np.testing.assert_array_equal(state.failed, evidence >= math.log(50))
  assert set(state.failed.sum(axis=1)) == {0, 1, 2}


def test_futility_gives_up_a_true_radius_rarely():
  looks = rules.look_schedule(2000, first_look=5, look_growth=1.0)
  for score in (0.0, 1.0, 2.5):
    gives_up = lambda k, n, score=score: bounds.log_e_value(n - k, n, -score) >= math.log(20)
    rule = false_certificates.single(looks, gives_up)
    for p in (special.ndtr(score), special.ndtr(score + 0.1)):
      assert false_certificates.outcome(rule, p).certified[1] <= 0.05


@pytest.mark.parametrize('indifference', [0.0, 0.01, 0.1, 0.3])
def test_indifference_loses_what_it_says(indifference):
  fields = dict(sigma=1.0, radii=(1.0,), n=2000, alpha=0.01, futility=1e-200, first_look=20)
  plan = RadiusGrid(indifference=indifference, **fields)
  rule = false_certificates.plan_rule(plan)
  patient = false_certificates.plan_rule(plan, heed_failures=False)
  at_cap_p = stats.binom.sf(plan.cap_hits[-1] - 1, 2000, plan.cap_p[-1])
  assert at_cap_p == pytest.approx(1 - indifference, rel=1e-9)
  lost_most = 0
  for p in np.linspace(0.8, 0.92, 25):
    cap = stats.binom.sf(plan.cap_hits[-1] - 1, 2000, p)
    outcome, other = (false_certificates.outcome(r, p) for r in (rule, patient))
    lost = other.certified[-1] - outcome.certified[-1]
    allowed = indifference * (1 if p <= plan.cap_p[-1] else 2)
    assert cap - outcome.certified[-1] <= allowed + 1e-12
    assert outcome.draws <= other.draws * (1 + 1e-12)
    lost_most = max(lost_most, lost)
  assert lost_most <= 2 * indifference + 1e-12
  assert (lost_most > 1e-12) == (indifference > 0)
  far = [false_certificates.outcome(r, 0.82).draws for r in (rule, patient)]
  assert far[0] < (0.95 if indifference == 0 else 0.75) * far[1]


def counts(plan, *looks, batch=1):
  """The state after looks (hits, draws) of a batch of equal images."""
  state = plan.start(batch)
  for hits, draws in looks:
    state = plan.look(state, np.full(batch, hits), draws)
  return state


def test_rejections_are_latched():
  plan = RadiusGrid(sigma=1.0, radii=(0.5, 1.0), n=1000)
  np.testing.assert_array_equal(counts(plan, (75, 90)).rejected, [[True, False, False]])
  state = counts(plan, (48, 50))
  np.testing.assert_array_equal(state.rejected, [[True, True, False]])
  state = plan.look(state, np.array([75]), 90)
  np.testing.assert_array_equal(state.rejected, [[True, True, False]])
  # At the cap neither radius would be accepted by itself.
  state = plan.look(state, np.array([500]), 1000)
  np.testing.assert_array_equal(state.rejected, [[True, True, False]])
  np.testing.assert_array_equal(state.failed, [[False, False, True]])
  conclusion = plan.conclude(state)
  assert conclusion.radius == 0.5
  assert conclusion.p_lower == stats.norm.cdf(0.5)


def test_failing_a_radius_fails_all_larger():
  plan = RadiusGrid(sigma=1.0, radii=(0.5, 1.0, 1.5), n=10_000)
  state = counts(plan, (620, 1000))  # above the 0.5 of radius 0, below the 0.69 of radius 0.5
  np.testing.assert_array_equal(state.rejected, [[True, False, False, False]])
  np.testing.assert_array_equal(state.failed, [[False, True, True, True]])
  assert not plan.undecided(state)
  np.testing.assert_array_equal(counts(plan, (0, 500)).failed, np.full((1, 4), True))
  given_up = plan.start(1)._replace(failed=np.array([[False, True, False, False]]))
  after = plan.look(given_up, np.array([8]), 10)
  np.testing.assert_array_equal(after.failed, [[False, True, True, True]])


def test_a_radius_counts_with_every_smaller_one_only():
  plan = RadiusGrid(sigma=1.0, radii=(0.5, 1.0))
  state = plan.start(4)._replace(rejected=np.array(
    [[False, True, True], [True, False, True], [True, True, False], [True, True, True]]))
  conclusion = plan.conclude(state)
  np.testing.assert_array_equal(conclusion.certain, [False, True, True, True])
  np.testing.assert_array_equal(conclusion.radius, [0, 0, 0.5, 1])
  np.testing.assert_allclose(conclusion.p_lower, [0, 0.5, stats.norm.cdf(0.5), stats.norm.cdf(1)])


def test_hits_that_suffice_for_the_cap_suffice_before():
  plan = RadiusGrid(sigma=1.0, radii=(), n=100, alpha=0.5, cap_share=0.999999)
  least = plan.cap_hits[0]
  assert bounds.log_e_value(least, 98, 0.0) < -math.log(plan.alpha_anytime)
  assert counts(plan, (least, 98)).rejected
  assert not counts(plan, (least - 1, 98)).rejected


def test_an_image_is_decided_by_its_own_draws():
  plan = RadiusGrid(sigma=0.5, radii=(0.25, 0.5), n=3000)
  p = np.repeat([0.3, 0.6, 0.7, 0.86, 0.99], 40)
  draws = np.random.default_rng(0).uniform(size=(len(p), plan.n)) < p[:, None]
  together = plan.start(len(p))
  for n in plan.looks:
    together = plan.look(together, draws[:, :n].sum(axis=1), n)
  assert len(np.unique(together.draws)) > 5
  for i in range(0, len(p), 13):
    alone = plan.start(1)
    for n in plan.looks:
      if plan.undecided(alone).any():
        alone = plan.look(alone, draws[i:i + 1, :n].sum(axis=1), n)
    for ours, theirs in zip(alone, together):
      np.testing.assert_array_equal(ours[0], theirs[i])
  assert not plan.undecided(together).any()
  conclusion = plan.conclude(together)
  np.testing.assert_array_equal(conclusion.p_lower[~conclusion.certain], 0)
  np.testing.assert_array_equal(conclusion.radius[~conclusion.certain], 0)
  certain = conclusion.certain
  np.testing.assert_array_equal(
    conclusion.p_lower[certain], stats.norm.cdf(conclusion.radius[certain] / 0.5))
  assert set(conclusion.radius[certain]) == {0.0, 0.25, 0.5}


def test_every_image_is_decided_at_the_cap():
  plan = RadiusGrid(sigma=1.0, radii=(0.5, 1.0), n=500, alpha=0.01)
  hits = np.arange(501)
  state = plan.look(plan.start(501), hits, 500)
  assert not plan.undecided(state).any()
  level = plan.conclude(state).radius
  for r, least in zip(plan.grid[1:], plan.cap_hits[1:]):
    np.testing.assert_array_equal(level >= r, hits >= least)


def test_one_draw_and_nothing_drawn():
  plan = RadiusGrid(sigma=1.0, radii=(), n=1, alpha=0.9)
  state = plan.start(2)
  assert plan.undecided(state).all()
  assert not plan.conclude(state).certain.any()
  state = plan.look(state, np.array([0, 1]), 1)
  np.testing.assert_array_equal(plan.conclude(state).certain, [False, True])
  assert plan.look(plan.start(0), np.zeros(0, int), 1).hits.shape == (0,)


def test_anytime_bound_is_a_running_maximum_and_takes_the_cap():
  plan = Anytime(sigma=0.5, n=1000, alpha=0.01, tolerance=0.0)
  state = plan.start(1)
  assert plan.conclude(state) == (False, 0.0, 0.0)
  expected = 0.0
  for k, n in ((95, 100), (186, 200), (260, 300), (900, 1000)):
    state = plan.look(state, np.array([k]), n)
    expected = max(expected, bounds.confidence_sequence_lower(k, n, plan.alpha_anytime))
    if n == 1000:
      expected = max(expected, bounds.clopper_pearson_lower(900, 1000, plan.alpha_cap))
      assert expected == bounds.clopper_pearson_lower(900, 1000, plan.alpha_cap)
    certain, radius, p_lower = plan.conclude(state)
    assert certain
    assert p_lower == expected
    assert radius == bounds.certified_radius(expected, 0.5)
    assert plan.undecided(state) == (n < 1000)


def test_anytime_ends_where_little_can_be_gained():
  p = np.array([0.2, 0.7, 0.9, 0.99])
  draws = {}
  for tolerance in (0.0, 0.05, 0.3):
    plan = Anytime(sigma=1.0, n=50_000, tolerance=tolerance)
    state = plan.start(len(p))
    for n in plan.looks:
      state = plan.look(state, np.floor(p * n).astype(int), n)
    draws[tolerance] = state.draws
    certain, radius, _ = plan.conclude(state)
    np.testing.assert_array_equal(certain, [False, True, True, True])
    most = bounds.certified_radius(
      bounds.clopper_pearson_lower((p * 50_000).astype(int), 50_000, plan.alpha_cap), 1.0)
    assert np.all(radius * (1 + tolerance) >= most)
    assert not plan.undecided(state).any()
  assert np.all(draws[0.0][1:] == 50_000)
  assert np.all(draws[0.05][1:] < 50_000)
  assert np.all(draws[0.3][1:] < draws[0.05][1:])
  assert all(first[0] == 100 for first in draws.values())


@pytest.mark.parametrize('make', [RadiusGrid, Anytime])
def test_arguments_are_config_fields_with_defaults_in_range(make):
  fields = schema.fields(make)
  assert set(fields) == set(inspect.signature(make).parameters)
  for name, field in fields.items():
    if field.default is not inspect.Parameter.empty:
      schema.check_value(name, field.default, field.hint)


@pytest.mark.parametrize(('make', 'fields', 'message'), [
  (RadiusGrid, dict(sigma=0.0), 'sigma .*, got 0.0'),
  (RadiusGrid, dict(sigma=math.nan), 'sigma .*, got nan'),
  (RadiusGrid, dict(n=0), 'n .*, got 0'),
  (RadiusGrid, dict(n=5), 'n .* 11 .* alpha_cap=0.0008, got 5'),
  (RadiusGrid, dict(alpha=0.0), 'alpha .*, got 0.0'),
  (RadiusGrid, dict(alpha=1.0), 'alpha .*, got 1.0'),
  (RadiusGrid, dict(alpha=math.nan), 'alpha .*, got nan'),
  (RadiusGrid, dict(cap_share=1.0), 'cap_share .*, got 1.0'),
  (RadiusGrid, dict(futility=0.0), 'futility .*, got 0.0'),
  (RadiusGrid, dict(indifference=1.0), 'indifference .*, got 1.0'),
  (RadiusGrid, dict(first_look=0), 'first_look .*, got 0'),
  (RadiusGrid, dict(look_growth=0.9), 'look_growth .*, got 0.9'),
  (RadiusGrid, dict(radii=(0.5, -0.25)), r'radii .*\[0, inf\) .*, got \(0.5, -0.25\)'),
  (RadiusGrid, dict(radii=np.array([0.5, -0.25])), 'radii .*, got -0.25'),
  (RadiusGrid, dict(radii=np.array([math.nan])), 'radii .*, got nan'),
  (RadiusGrid, dict(radii=(0.5, 0.25, 0.5)), 'radii .* distinct, got 0.5'),
  (RadiusGrid, dict(radii=('a', 0.5)), r"radii .*, got \('a', 0.5\)"),
  (RadiusGrid, dict(radii=0.5), 'radii .*, got 0.5'),
  (RadiusGrid, dict(radii=(0.5, 2.0), n=1000), 'radii .* 1.2.* n=1000 draws .*, got 2.0'),
  (RadiusGrid, dict(n0=0), 'n0 .*, got 0'),
  (RadiusGrid, dict(batch_size=0), 'batch_size .*, got 0'),
  (RadiusGrid, dict(choose='best'), "choose .*, got 'best'"),
  (Anytime, dict(n0=0), 'n0 .*, got 0'),
  (Anytime, dict(tolerance=-0.1), 'tolerance .*, got -0.1'),
  (Anytime, dict(alpha=2.0), 'alpha .*, got 2.0'),
  (Anytime, dict(n=3), 'n .* 11 .*, got 3'),
])
def test_fields_out_of_range_are_named_in_one_line(make, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    make(**{'sigma': 0.5, **fields})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(('hits', 'draws', 'message'), [
  ([60.0], 100, 'hits .* float64'),
  ([60], 100.0, 'draws .* float64'),
  ([60, 61], 100, r'hits .*, got \(2,\)'),
  ([60], 0, 'draws .*, got 0'),
  ([60], 1001, 'draws .*, got 1001'),
  ([101], 100, 'hits .*, got 101'),
  ([-1], 100, 'hits .*, got -1'),
  ([40], 70, 'draws .* last look, got 70'),
  ([30], 100, 'hits .* last look .*, got 30'),
  ([75], 100, 'hits .* last look .*, got 75'),
])
def test_counts_that_cannot_be_are_refused(hits, draws, message):
  plan = RadiusGrid(sigma=1.0, radii=(0.5,), n=1000)
  anytime = Anytime(sigma=1.0, n=1000)
  state = counts(plan, (48, 80))
  with pytest.raises(ValueError, match=message) as error:
    plan.look(state, np.array(hits), draws)
  assert '\n' not in str(error.value)
  state = anytime.look(anytime.start(1), np.array([48]), 80)
  with pytest.raises(ValueError, match=message):
    anytime.look(state, np.array(hits), draws)
