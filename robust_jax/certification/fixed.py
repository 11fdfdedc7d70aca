"""The same number of draws for every image, and one look at them."""

import dataclasses
import functools
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from robust_jax.certification import bounds, noise_sources, rules
from robust_jax.types import Certificate, Count, Positive, Probability


class State(NamedTuple):
  """What is known of each image.

  Attributes:
    hits: [batch] int64, hits at the last look.
    draws: [batch] int64, draws at that look.
  """

  hits: np.ndarray
  draws: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
  """A lower bound of the radius from n draws, k of them of the class: a `Rule`.

  The class is the most frequent of n0 separate draws.
  - one_vs_rest: p_A = Clopper-Pearson lower bound of k at alpha, radius sigma * Phi^-1(p_A);
    abstains where p_A < 1/2.
  - runner_up: p_A at alpha/2, p_B = Clopper-Pearson upper bound at alpha/2 of the largest other
    count, at most 1 - p_A; radius (sigma / 2) * (Phi^-1(p_A) - Phi^-1(p_B)); abstains where
    p_A < p_B. (The upper bound grows with the count, so the largest one bounds every class.)
  A bound exactly at its limit (p_A = 1/2, p_A = p_B) keeps the class, with radius 0. Draws with
  NaN logits hit no class; they are among the n, and a rival class of their own.

  Attributes:
    sigma: standard deviation of the noise, pixel units.
    n0: draws an image that select the class.
    n: draws an image that bound its probability.
    alpha: probability that a certificate is false, an image.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    bound: which bound gives the radius.
    noise: 'gaussian', or for 8-bit images 'integer', which floating point cannot break: class and
      radius then hold for the classifier and the images of module
      `integer_noise`, with the bounds above at 0.99 alpha.

  Raises:
    ValueError: a field outside its range.

  Reference: Cohen, Rosenfeld and Kolter 2019, theorem 1 and section 3.2.2 (CERTIFY).
  """

  stops_early: ClassVar[bool] = False

  sigma: Positive
  n0: Count = 100
  n: Count = 100_000
  alpha: Probability = 0.001
  batch_size: Count = 1000
  bound: Literal['one_vs_rest', 'runner_up'] = 'one_vs_rest'
  noise: noise_sources.Noise = 'gaussian'

  def __post_init__(self):
    rules.check_fields(self)
    _ = self.source  # Made now, so that a sigma that is too large raises here.

  @functools.cached_property
  def source(self):
    return noise_sources.make(self.noise, self.sigma)

  @property
  def num_selecting(self):
    return self.n0

  @property
  def looks(self):
    return np.array([self.n])

  def start(self, batch):
    zeros = np.zeros(batch, np.int64)
    return State(zeros, zeros)

  def look(self, state, hits, draws):
    image = np.flatnonzero(self.undecided(state))
    return State(*rules.check_counts(state, image, hits, draws, self.n)[:2])

  def undecided(self, state):
    """[batch] bool: images with fewer than n draws."""
    return state.draws < self.n

  def conclude(self, state, rivals=None):
    """What n draws certify; those that are still to come count as misses."""
    return conclude(state.hits, rivals, sigma=self.sigma, n=self.n, bound=self.bound,
                    alpha=noise_sources.counted_alpha(self.alpha, self.noise))

  def settings(self):
    return {}


def conclude(hits, rivals, *, sigma, n, alpha, bound):
  """What is certified by `hits` of n draws, with `rivals` of the most frequent other class.

  Args:
    hits: [batch] integer.
    rivals: [batch] integer (`rules.most_of_another`); unused for the bound 'one_vs_rest'.
    sigma, n, bound: as in `Fixed`.
    alpha: probability that a certificate is false, an image.

  Returns:
    Conclusion.
  """
  sigma = rules.drawn_sigma(sigma)
  if bound == 'one_vs_rest':
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha)
    certain = p_lower >= 0.5
    radius = bounds.certified_radius(p_lower, sigma)
  else:
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha / 2)
    p_upper = np.minimum(bounds.clopper_pearson_upper(rivals, n, alpha / 2), 1 - p_lower)
    certain = p_lower >= p_upper
    radius = bounds.certified_radius(p_lower, sigma, p_upper)
  return rules.Conclusion(certain, np.where(certain, radius, 0.0), p_lower)


def certificate(counts0, counts, *, sigma, n, alpha, bound):
  """The `Certificate` of counts, both [batch, classes]; other arguments as in `conclude`."""
  selected = counts0.argmax(axis=-1)
  hits = np.take_along_axis(counts, selected[:, None], axis=-1)[:, 0]
  certain, radius, p_lower = conclude(hits, rules.most_of_another(counts, selected, n),
                                      sigma=sigma, n=n, alpha=alpha, bound=bound)
  return Certificate(np.where(certain, selected, -1), radius, p_lower, counts0, counts)
