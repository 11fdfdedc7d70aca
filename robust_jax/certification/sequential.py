"""Statistics of certificates that stop drawing as soon as they can: host, float64, integer counts.

Two questions, the same four steps each. `plan` fixes everything that has to be fixed before the
first counted draw; `start` is the state before it; `look` takes the counts so far; `conclude` says
at any moment what is certified.

- `make_plan`, `start`, `look`, `undecided`, `conclude`: is the radius at least r, for each r of
  a grid?
- `make_anytime_plan`, `anytime_start`, `anytime_look`, `anytime_undecided`, `anytime_conclude`:
  which radius is certified by now? It may be asked whenever a run is stopped, and grows with the
  draws.

Both are about one class an image, fixed before the first counted draw: the most frequent of n0
separate draws, or, where the question is certified accuracy, the true label. The statistics are
the same. `hits` counts the draws of that class and `draws` all of them: one with NaN logits is
drawn and hits nothing. sigma has to be at most that of the noise.

An image that is decided keeps its state whatever later looks say, so that its certificate depends
on its own draws and the plan, not on the images beside it.
"""

import bisect
import math
from typing import Annotated, NamedTuple

import numpy as np
from scipy import special

from robust_jax.certification import bounds
from robust_jax.types import Count, Interval, NonNegative, Positive, Probability

AtLeastOne = Annotated[float, Interval(1)]
BelowOne = Annotated[float, Interval(0, 1, open_high=True)]


class Plan(NamedTuple):
  """What is tested, and when; see `make_plan`.

  Attributes:
    radii: [num_radii] float64, increasing from 0, pixel units.
    scores: [num_radii] float64, radii / sigma: radius r is certified by p > p0 = Phi(r / sigma).
    n: the cap, draws an image.
    alpha_anytime: error probability of the e-values, over all looks together.
    alpha_cap: error probability of the Clopper-Pearson bound at the cap.
    futility: probability of giving up a radius that the class has.
    indifference: probability of giving up a radius that the cap would accept.
    looks: [num_looks] int64, increasing to n: the draws after which the counts are looked at.
    cap_hits: [num_radii] int64, the least number of hits that rejects at the cap.
    cap_p: [num_radii] float64, the probability at which the cap accepts with probability
      1 - indifference.
  """

  radii: np.ndarray
  scores: np.ndarray
  n: int
  alpha_anytime: float
  alpha_cap: float
  futility: float
  indifference: float
  looks: np.ndarray
  cap_hits: np.ndarray
  cap_p: np.ndarray


class State(NamedTuple):
  """What is known of each image after some looks.

  Attributes:
    rejected: [batch, num_radii] bool, 'the radius is smaller' is rejected; once and for all.
    failed: [batch, num_radii] bool, given up; with a radius all larger ones are.
    hits: [batch] int64, hits at the last look before the image was decided.
    draws: [batch] int64, draws at that look.
  """

  rejected: np.ndarray
  failed: np.ndarray
  hits: np.ndarray
  draws: np.ndarray


class Conclusion(NamedTuple):
  """What is certified of each image.

  Attributes:
    certain: [batch] bool; where False the classifier abstains.
    radius: [batch] float64, the certified l2 radius in pixel units; 0 where it abstains.
    p_lower: [batch] float64, lower confidence bound of the probability of the class.
  """

  certain: np.ndarray
  radius: np.ndarray
  p_lower: np.ndarray


def look_schedule(n: Count, *, first_look: Count = 100, look_growth: AtLeastOne = 1.1):
  """Numbers of draws after which to look: multiples of first_look below n, and n.

  Each is the last times look_growth, rounded up to the next multiple; look_growth = 1 takes
  every multiple. An image is drawn at most about look_growth times as long as it needs.

  Returns:
    [num_looks] int64, increasing.

  Raises:
    ValueError: n or first_look below 1, look_growth below 1 or not finite.
  """
  _check_fields(n=(n, n >= 1, 'at least 1'), first_look=(first_look, first_look >= 1, 'at least 1'),
                look_growth=(look_growth, 1 <= look_growth < math.inf, '[1, inf)'))
  looks, multiple = [], 1
  while multiple * first_look < n:
    looks.append(multiple * first_look)
    multiple = max(multiple + 1, math.ceil(multiple * look_growth))
  return np.array([*looks, n], np.int64)


def make_plan(
  *,
  sigma: Positive,
  radii: tuple[NonNegative, ...] = (0.25, 0.5, 0.75, 1.0),
  n: Count = 100_000,
  alpha: Probability = 0.001,
  cap_share: Probability = 0.8,
  futility: Probability = 0.05,
  indifference: BelowOne = 0.0,
  first_look: Count = 100,
  look_growth: AtLeastOne = 1.1,
):
  """A test of 'the radius is at least r' for each r of a grid, at one alpha an image.

  Radius r is certified by rejecting p <= p0 = Phi(r / sigma), p the probability of the class. It
  is rejected at any look where E_n >= 1/alpha_anytime (`bounds.log_e_value`), and at the cap of n
  draws also where the Clopper-Pearson bound at alpha_cap reaches p0, or before that as soon as the
  hits so far suffice for it; alpha_cap = cap_share * alpha, alpha_anytime the rest. The certified
  radius is the largest one that is rejected with every smaller one, 0 always among them (the class
  keeps, at radius 0; else the image abstains). A certificate is false only if the smallest false
  radius is rejected, which has probability at most alpha_anytime + alpha_cap = alpha: the number
  of radii and looks costs nothing.

  Drawing for a radius, and for all larger ones, ends without a certificate by either of two
  rules. Neither is needed for the error probability, and neither raises it:

  - futility: the e-value of p < p0, hits and misses exchanged, reaches 1/futility. A radius that
    the class has is given up so with probability at most futility.
  - indifference: the cap accepts from cap_hits on; cap_p is the p at which it does so with
    probability 1 - indifference. A radius is given up where, at p = cap_p, the rest of the draws
    reached cap_hits with probability at most indifference. 0 gives up only what even a hit
    in every remaining draw could not save, and loses nothing. Otherwise, of the probability that
    the cap accepts a radius, at most indifference is lost at p <= cap_p and at most
    2 * indifference at p > cap_p, whatever p is: at p <= cap_p the chance left is smaller than at
    cap_p, and for p > cap_p the probability of being neither given up nor refused is at least
    that at cap_p, 1 - 2 * indifference. This is said of each radius by itself.

  Args:
    sigma: standard deviation of the noise, pixel units.
    radii: grid of l2 radii, pixel units, in any order; 0 is added to them.
    n: the cap, draws an image.
    alpha: probability that a certificate is false, an image.
    cap_share: share of alpha that the bound at the cap has.
    futility: probability of giving up a radius that the class has.
    indifference: probability of giving up a radius that the cap would accept.
    first_look: draws between looks at first; see `look_schedule`.
    look_growth: ratio of the draws of one look to those of the look before.

  Returns:
    Plan.

  Raises:
    ValueError: a field outside its range, radii that are not distinct numbers, or that n draws
      cannot certify at alpha_cap: above sigma * Phi^-1(alpha_cap^(1/n)), all draws hits.

  Reference: Wald 1945 (sequential tests); Lan, Simon and Halperin 1982, Sequential Analysis 1
    (indifference: stochastic curtailment); Marcus, Peritz and Gabriel 1976, Biometrika 63 (nested
    hypotheses tested in order).
  """
  _check_fields(
    **_shared_fields(sigma, n, alpha, cap_share, futility),
    indifference=(indifference, 0 <= indifference < 1, '[0, 1)'),
  )
  looks = look_schedule(n, first_look=first_look, look_growth=look_growth)
  alpha_cap = cap_share * alpha
  alpha_anytime = alpha - alpha_cap
  radii = _grid(radii)
  _check_reach(radii[-1], sigma, n, alpha_cap)
  scores = radii / sigma

  def rejects(k, score):
    return (bounds.clopper_pearson_lower(k, n, alpha_cap) >= special.ndtr(score)
            or bounds.log_e_value(k, n, score) >= -math.log(alpha_anytime))

  cap_hits = np.array([
    bisect.bisect_left(range(n + 1), True, key=lambda k, score=score: rejects(k, score))
    for score in scores
  ])
  if cap_hits[-1] > n:  # At the limit itself, within rounding.
    _beyond(radii[-1], radii[-1], n, alpha_cap)
  # P(Binomial(n, p) >= k) = I_p(k, n - k + 1).
  cap_p = special.betaincinv(cap_hits, n - cap_hits + 1, 1 - indifference)
  return Plan(radii, scores, n, alpha_anytime, alpha_cap, futility, indifference, looks, cap_hits,
              cap_p)


def start(plan, batch):
  """The state of a batch of images before the first draw."""
  undecided = np.zeros((batch, len(plan.radii)), bool)
  zeros = np.zeros(batch, np.int64)
  return State(undecided, undecided, zeros, zeros)


def look(plan, state, hits, draws):
  """The state after looking at the counts of all draws so far.

  The error probability holds whenever and however often this is called: plan.looks is what the
  cost was planned for. Decided images are passed over, whatever their counts.

  Args:
    plan: Plan.
    state: State, that of the last look.
    hits: [batch] integer, draws of the class so far.
    draws: integer, broadcast to [batch], draws so far, NaN logits included; at most plan.n.

  Returns:
    State.

  Raises:
    ValueError: counts that are not integers with 0 <= hits <= draws <= plan.n, or that do not go on
      from those of the state.
  """
  image = np.flatnonzero(undecided(state))
  hits, draws, k, n = _counts(state, image, hits, draws, plan.n)
  k, n = k[:, None], n[:, None]
  rejected = state.rejected[image] | (
    bounds.log_e_value(k, n, plan.scores) >= -math.log(plan.alpha_anytime)
  ) | (k >= plan.cap_hits)
  futile = bounds.log_e_value(n - k, n, -plan.scores) >= -math.log(plan.futility)
  # At the cap no draws remain: what is not rejected fails here.
  futile |= _tail(plan.cap_hits - k, plan.n - n, plan.cap_p) <= plan.indifference
  failed = np.logical_or.accumulate(state.failed[image] | (futile & ~rejected), axis=-1)
  return State(
    _replaced(state.rejected, image, rejected), _replaced(state.failed, image, failed), hits, draws
  )


def undecided(state):
  """[batch] bool: images with a radius that is neither rejected nor given up."""
  return ~(state.rejected | state.failed).all(axis=-1)


def conclude(plan, state):
  """What is certified; it may be asked before every image is decided.

  radius is the largest r of the grid that is rejected with every smaller one, and p_lower =
  Phi(r / sigma): with probability 1 - alpha the class has a larger probability. Where not even
  radius 0 is rejected the image abstains, with p_lower = 0.

  Returns:
    Conclusion.
  """
  leading = np.logical_and.accumulate(state.rejected, axis=-1).sum(axis=-1)
  certain = leading > 0
  last = np.maximum(leading - 1, 0)
  return Conclusion(
    certain, np.where(certain, plan.radii[last], 0.0),
    np.where(certain, special.ndtr(plan.scores[last]), 0.0),
  )


class AnytimePlan(NamedTuple):
  """How a radius is bounded, and when drawing for it ends; see `make_anytime_plan`.

  Attributes:
    sigma: standard deviation of the noise, pixel units.
    n: the cap, draws an image.
    alpha_anytime: error probability of the confidence sequence, over all looks together.
    alpha_cap: error probability of the Clopper-Pearson bound at the cap.
    tolerance: growth of the radius, as a fraction of it, that is not worth the draws.
    futility: probability of underrating what more draws could give.
    looks: [num_looks] int64, increasing to n: the draws after which the counts are looked at.
  """

  sigma: float
  n: int
  alpha_anytime: float
  alpha_cap: float
  tolerance: float
  futility: float
  looks: np.ndarray


class AnytimeState(NamedTuple):
  """What is known of each image after some looks.

  Attributes:
    p_lower: [batch] float64, the largest lower bound so far of the probability of the class.
    drawing: [batch] bool, False once more draws are not worth while.
    hits: [batch] int64, hits at the last look while drawing.
    draws: [batch] int64, draws at that look.
  """

  p_lower: np.ndarray
  drawing: np.ndarray
  hits: np.ndarray
  draws: np.ndarray


def make_anytime_plan(
  *,
  sigma: Positive,
  n: Count = 100_000,
  alpha: Probability = 0.001,
  cap_share: Probability = 0.8,
  tolerance: NonNegative = 0.05,
  futility: Probability = 0.05,
  first_look: Count = 100,
  look_growth: AtLeastOne = 1.1,
):
  """A lower bound of the radius that holds, at one alpha an image, at every moment.

  p_lower is the largest of the bounds so far: `bounds.confidence_sequence_lower` at alpha_anytime
  at each look and, at the cap of n draws, the Clopper-Pearson bound at alpha_cap = cap_share *
  alpha; alpha_anytime is the rest of alpha. p_lower exceeds the probability of the class, at any
  look, with probability at most alpha. The radius is sigma * Phi^-1(p_lower).

  Drawing for an image ends where the radius could hardly grow: where it would be at most
  1 + tolerance times as large after n draws even if the rest of them hit with the upper end of the
  confidence sequence at futility, 1 - confidence_sequence_lower(misses, draws, futility). With 0 it
  ends at the cap, or where no radius at all is in sight. This decides how large a radius is, never
  whether it is true.

  Args:
    sigma: standard deviation of the noise, pixel units.
    n: the cap, draws an image.
    alpha: probability that a certificate is false, at whatever look, an image.
    cap_share: share of alpha that the bound at the cap has.
    tolerance: growth of the radius, as a fraction of it, that is not worth the draws.
    futility: probability that the upper end is below the probability of the class at any look.
    first_look: draws between looks at first; see `look_schedule`.
    look_growth: ratio of the draws of one look to those of the look before.

  Returns:
    AnytimePlan.

  Raises:
    ValueError: a field outside its range, or n draws that cannot certify any radius at alpha_cap.

  Reference: Robbins 1970, Ann. Math. Stat. 41; Darling and Robbins 1967, PNAS 58 (confidence
    sequences).
  """
  _check_fields(
    **_shared_fields(sigma, n, alpha, cap_share, futility),
    tolerance=(tolerance, 0 <= tolerance < math.inf, '[0, inf)'),
  )
  looks = look_schedule(n, first_look=first_look, look_growth=look_growth)
  alpha_cap = cap_share * alpha
  _check_reach(0.0, sigma, n, alpha_cap)
  return AnytimePlan(sigma, n, alpha - alpha_cap, alpha_cap, tolerance, futility, looks)


def anytime_start(plan, batch):
  """The state of a batch of images before the first draw."""
  del plan
  zeros = np.zeros(batch, np.int64)
  return AnytimeState(np.zeros(batch), np.ones(batch, bool), zeros, zeros)


def anytime_look(plan, state, hits, draws):
  """The state after looking at the counts of all draws so far.

  Arguments and errors as in `look`; the bound holds whenever and however often it is called.

  Returns:
    AnytimeState.
  """
  image = np.flatnonzero(state.drawing)
  hits, draws, k, n = _counts(state, image, hits, draws, plan.n)
  at_cap = n == plan.n
  p_lower = np.maximum(
    state.p_lower[image], bounds.confidence_sequence_lower(k, n, plan.alpha_anytime)
  )
  p_lower = np.where(at_cap, np.maximum(p_lower, _cap_lower(plan, k)), p_lower)
  upper = 1 - bounds.confidence_sequence_lower(n - k, n, plan.futility)
  hopeful = _cap_lower(plan, k + np.floor((plan.n - n) * upper).astype(np.int64))
  best = bounds.certified_radius(hopeful, plan.sigma)
  worth = best > (1 + plan.tolerance) * bounds.certified_radius(p_lower, plan.sigma)
  return AnytimeState(
    _replaced(state.p_lower, image, p_lower), _replaced(state.drawing, image, worth), hits, draws,
  )


def anytime_undecided(state):
  """[batch] bool: images that are still worth draws."""
  return state.drawing


def anytime_conclude(plan, state):
  """What is certified by now; a class whose p_lower is below 1/2 abstains.

  Returns:
    Conclusion, with p_lower the bound that the radius comes from.
  """
  certain = state.p_lower >= 0.5
  radius = bounds.certified_radius(state.p_lower, plan.sigma)
  return Conclusion(certain, np.where(certain, radius, 0.0), state.p_lower)


def _cap_lower(plan, k):
  """Lower bound of the probability from k hits in all n draws: the larger one of the two."""
  return np.maximum(
    bounds.confidence_sequence_lower(k, plan.n, plan.alpha_anytime),
    bounds.clopper_pearson_lower(k, plan.n, plan.alpha_cap),
  )


def _check_fields(**fields):
  """Raises ValueError, in one line, at the first field (value, is allowed, what is allowed)."""
  for name, (value, allowed, where) in fields.items():
    if not allowed:
      raise ValueError(f'{name}={value}; {where} is allowed')


def _shared_fields(sigma, n, alpha, cap_share, futility):
  return {
    'sigma': (sigma, 0 < sigma < math.inf, '(0, inf)'),
    'n': (n, n >= 1, 'at least 1'),
    'alpha': (alpha, 0 < alpha < 1, '(0, 1)'),
    'cap_share': (cap_share, 0 < cap_share < 1, '(0, 1)'),
    'futility': (futility, 0 < futility < 1, '(0, 1)'),
  }


def _grid(radii):
  """The radii in increasing order, with 0."""
  radii = np.asarray(radii)
  if radii.ndim != 1 or radii.dtype.kind not in 'iuf':
    raise ValueError(f'radii={radii.tolist()}; a list of numbers is allowed')
  radii = radii.astype(np.float64)
  for radius in radii:
    if not 0 <= radius < math.inf:
      raise ValueError(f'radii has {radius}; [0, inf) is allowed')
    if (radii == radius).sum() > 1:
      raise ValueError(f'radii has {radius} more than once; distinct radii are allowed')
  return np.union1d(radii, 0.0)


def _check_reach(radius, sigma, n, alpha_cap):
  """Raises ValueError where not even n hits in n draws certify the radius at alpha_cap."""
  least = math.ceil(math.log(alpha_cap) / math.log(0.5))
  if n < least:
    raise ValueError(f'n={n}; at least {least} is allowed, to certify a class at alpha_cap='
                     f'{alpha_cap:g}')
  limit = bounds.certified_radius(bounds.clopper_pearson_lower(n, n, alpha_cap), sigma)
  if radius > limit:
    _beyond(radius, limit, n, alpha_cap)


def _beyond(radius, limit, n, alpha_cap):
  raise ValueError(f'radii has {radius}; less than {limit:.4f} is allowed, all that n={n} draws '
                   f'can certify at alpha_cap={alpha_cap:g}')


def _counts(state, image, hits, draws, cap):
  """The counts for the next state, and those of the chosen images, checked."""
  hits, draws = np.asarray(hits), np.asarray(draws)
  for name, values in (('hits', hits), ('draws', draws)):
    if values.dtype.kind not in 'iu':
      raise ValueError(f'{name} has dtype {values.dtype}; an integer dtype is allowed')
  if hits.shape != state.hits.shape:
    raise ValueError(f'hits has shape {hits.shape}; {state.hits.shape} is allowed')
  draws = np.broadcast_to(draws, hits.shape)
  k, n = hits[image].astype(np.int64), draws[image].astype(np.int64)
  new_hits, new_draws = k - state.hits[image], n - state.draws[image]
  for name, values, allowed, where in (
    ('draws', n, (n >= 1) & (n <= cap), f'1, ..., {cap}'),
    ('hits', k, (k >= 0) & (k <= n), '0, ..., draws'),
    ('draws', n, new_draws >= 0, 'at least as many as at the last look'),
    ('hits', k, (new_hits >= 0) & (new_hits <= new_draws),
     'what the last look had and at most one a draw since'),
  ):
    if not allowed.all():
      raise ValueError(f'{name}={values[~allowed][0]}; {where} is allowed')
  return _replaced(state.hits, image, k), _replaced(state.draws, image, n), k, n


def _replaced(values, index, new):
  values = values.copy()
  values[index] = new
  return values


def _tail(least, n, p):
  """P(Binomial(n, p) >= least), for any integers least and n >= 0."""
  inside = special.betainc(np.maximum(least, 1), np.maximum(n - least + 1, 1), p)
  return np.where(least <= 0, 1.0, np.where(least > n, 0.0, inside))
