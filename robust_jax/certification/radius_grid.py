"""Is the radius at least r, for each r of a grid? Draws only until each is decided."""

import bisect
import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import special

from robust_jax.certification import bounds, noise_sources, rules
from robust_jax.types import Count, Index, NonNegative, Positive, Probability


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadiusGrid:
  """A test of 'the radius is at least r' for each r of a grid, at one alpha an image: a `Rule`.

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

  Attributes:
    sigma: standard deviation of the noise, pixel units.
    radii: grid of l2 radii, pixel units, in any order; 0 is added to them. None: 0.25, 0.5, ...,
      as far as n draws can certify.
    n0: draws an image that choose the class; unused where the label does.
    n: the cap, draws an image.
    alpha: probability that a certificate is false, an image.
    cap_share: share of alpha that the bound at the cap has.
    futility: probability of giving up a radius that the class has.
    indifference: probability of giving up a radius that the cap would accept.
    first_look: draws between looks at first; see `rules.look_schedule`.
    look_growth: ratio of the draws of one look to those of the look before.
    choose: whose class is certified, that of the 'majority' of the n0 draws or the 'label'. With
      the label every certificate says that the smoothed classifier is right, and an image on which
      it is wrong abstains.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    noise: 'gaussian' or 'integer', as in `certify`.

  Raises:
    ValueError: a field outside its range, radii that are not distinct numbers, or that n draws
      cannot certify at alpha_cap: above sigma * Phi^-1(alpha_cap^(1/n)), all draws hits.

  Reference: Wald 1945 (sequential tests); Lan, Simon and Halperin 1982, Sequential Analysis 1
    (indifference: stochastic curtailment); Marcus, Peritz and Gabriel 1976, Biometrika 63 (nested
    hypotheses tested in order).
  """

  stops_early: ClassVar[bool] = True

  sigma: Positive
  radii: tuple[NonNegative, ...] | None = None
  n0: Index = 100
  n: Count = 100_000
  alpha: Probability = 0.001
  cap_share: Probability = 0.8
  futility: Probability = 0.05
  indifference: rules.BelowOne = 0.0
  first_look: Count = 100
  look_growth: rules.AtLeastOne = 1.1
  choose: rules.Choice = 'majority'
  batch_size: Count = 1000
  noise: noise_sources.Noise = 'gaussian'

  def __post_init__(self):
    rules.check_fields(self)
    # Computed now, so that a wrong field raises here.
    _ = self.source, self.num_selecting, self.looks, self.cap_hits

  @functools.cached_property
  def source(self):
    return noise_sources.make(self.noise, self.sigma)

  @property
  def num_selecting(self):
    return rules.num_selecting(self)

  @functools.cached_property
  def looks(self):
    return rules.look_schedule(self.n, first_look=self.first_look, look_growth=self.look_growth)

  @property
  def alpha_cap(self):
    """Error probability of the Clopper-Pearson bound at the cap."""
    return rules.split_alpha(self)[0]

  @property
  def alpha_anytime(self):
    """Error probability of the e-values, over all looks together."""
    return rules.split_alpha(self)[1]

  @functools.cached_property
  def grid(self):
    """[num_radii] float64, the radii in increasing order from 0, pixel units."""
    limit = rules.reach(self)
    if self.radii is None:
      return 0.25 * np.arange(1 + limit // 0.25)
    radii = np.asarray(self.radii)
    if radii.ndim != 1 or radii.dtype.kind not in 'iuf':
      raise ValueError(f'radii must be a list of numbers, got {radii.tolist()}')
    radii = radii.astype(np.float64)
    for radius in radii:
      if not 0 <= radius < math.inf:
        raise ValueError(f'radii must be in [0, inf), got {radius}')
      if (radii == radius).sum() > 1:
        raise ValueError(f'radii must be distinct, got {radius} more than once')
    grid = np.union1d(radii, 0.0)
    if grid[-1] > limit:
      self._refuse(grid[-1], limit)
    return grid

  @functools.cached_property
  def scores(self):
    """[num_radii] float64, radii / sigma: radius r is certified by p > p0 = Phi(r / sigma)."""
    return self.grid / rules.drawn_sigma(self.sigma)

  @functools.cached_property
  def cap_hits(self):
    """[num_radii] int64, the least number of hits that rejects at the cap."""
    n = self.n

    def rejects(k, score):
      return (bounds.clopper_pearson_lower(k, n, self.alpha_cap) >= special.ndtr(score)
              or bounds.log_e_value(k, n, score) >= -math.log(self.alpha_anytime))

    hits = np.array([
      bisect.bisect_left(range(n + 1), True, key=lambda k, score=score: rejects(k, score))
      for score in self.scores
    ])
    if hits[-1] > n:  # At the limit itself, within rounding.
      self._refuse(self.grid[-1], self.grid[-1])
    return hits

  @functools.cached_property
  def cap_p(self):
    """[num_radii] float64, the p at which the cap accepts with probability 1 - indifference."""
    # P(Binomial(n, p) >= k) = I_p(k, n - k + 1).
    return special.betaincinv(self.cap_hits, self.n - self.cap_hits + 1, 1 - self.indifference)

  def start(self, batch):
    undecided = np.zeros((batch, len(self.grid)), bool)
    zeros = np.zeros(batch, np.int64)
    return State(undecided, undecided, zeros, zeros)

  def look(self, state, hits, draws):
    image = np.flatnonzero(self.undecided(state))
    hits, draws, k, n = rules.check_counts(state, image, hits, draws, self.n)
    k, n = k[:, None], n[:, None]
    rejected = state.rejected[image] | (
      bounds.log_e_value(k, n, self.scores) >= -math.log(self.alpha_anytime)
    ) | (k >= self.cap_hits)
    futile = bounds.log_e_value(n - k, n, -self.scores) >= -math.log(self.futility)
    # At the cap no draws remain: what is not rejected fails here.
    futile |= _tail(self.cap_hits - k, self.n - n, self.cap_p) <= self.indifference
    failed = np.logical_or.accumulate(state.failed[image] | (futile & ~rejected), axis=-1)
    return State(rules.replaced(state.rejected, image, rejected),
                 rules.replaced(state.failed, image, failed), hits, draws)

  def undecided(self, state):
    """[batch] bool: images with a radius that is neither rejected nor given up."""
    return ~(state.rejected | state.failed).all(axis=-1)

  def conclude(self, state, rivals=None):
    """The largest r of the grid that is rejected with every smaller one.

    p_lower = Phi(r / sigma): with probability 1 - alpha the class has a larger probability. Where
    not even radius 0 is rejected the image abstains, with p_lower = 0.
    """
    del rivals
    leading = np.logical_and.accumulate(state.rejected, axis=-1).sum(axis=-1)
    certain = leading > 0
    last = np.maximum(leading - 1, 0)
    return rules.Conclusion(certain, np.where(certain, self.grid[last], 0.0),
                            np.where(certain, special.ndtr(self.scores[last]), 0.0))

  def settings(self):
    return {'alpha_cap': self.alpha_cap, 'alpha_anytime': self.alpha_anytime,
            'radii': self.grid.tolist(), 'cap_hits': self.cap_hits.tolist()}

  def _refuse(self, radius, limit):
    raise ValueError(f'radii must be less than {limit:.4f}, all that n={self.n} draws can certify '
                     f'at alpha_cap={self.alpha_cap:g}, got {radius}')


def _tail(least, n, p):
  """P(Binomial(n, p) >= least), for any integers least and n >= 0."""
  inside = special.betainc(np.maximum(least, 1), np.maximum(n - least + 1, 1), p)
  return np.where(least <= 0, 1.0, np.where(least > n, 0.0, inside))
