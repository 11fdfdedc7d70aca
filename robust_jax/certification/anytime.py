"""Which radius is certified by now? It may be asked at any moment, and grows with the draws."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import numpy as np

from robust_jax.certification import bounds, noise_sources, rules
from robust_jax.types import Count, Index, NonNegative, Positive, Probability


class State(NamedTuple):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anytime:
  """A lower bound of the radius that holds, at one alpha an image, at every moment: a `Rule`.

  p_lower is the largest of the bounds so far: `bounds.confidence_sequence_lower` at alpha_anytime
  at each look and, at the cap of n draws, the Clopper-Pearson bound at alpha_cap = cap_share *
  alpha; alpha_anytime is the rest of alpha. p_lower exceeds the probability of the class, at any
  look, with probability at most alpha. The radius is sigma * Phi^-1(p_lower).

  Drawing for an image ends where the radius could hardly grow: where it would be at most
  1 + tolerance times as large after n draws even if the rest of them hit with the upper end of the
  confidence sequence at futility, 1 - confidence_sequence_lower(misses, draws, futility). With 0 it
  ends at the cap, or where no radius at all is in sight. This decides how large a radius is, never
  whether it is true.

  Attributes:
    sigma, n0, n, alpha, first_look, look_growth, choose, batch_size, noise: as in `RadiusGrid`.
    cap_share: share of alpha that the bound at the cap has.
    tolerance: growth of the radius, as a fraction of it, that is not worth the draws.
    futility: probability that the upper end is below the probability of the class at any look.

  Raises:
    ValueError: a field outside its range, or n draws that cannot certify any radius at alpha_cap.

  Reference: Robbins 1970, Ann. Math. Stat. 41; Darling and Robbins 1967, PNAS 58 (confidence
    sequences).
  """

  stops_early: ClassVar[bool] = True

  sigma: Positive
  n0: Index = 100
  n: Count = 100_000
  alpha: Probability = 0.001
  cap_share: Probability = 0.8
  tolerance: NonNegative = 0.05
  futility: Probability = 0.05
  first_look: Count = 100
  look_growth: rules.AtLeastOne = 1.1
  choose: rules.Choice = 'majority'
  batch_size: Count = 1000
  noise: noise_sources.Noise = 'gaussian'

  def __post_init__(self):
    rules.check_fields(self)
    # Computed now, so that a wrong field raises here.
    _ = self.source, self.num_selecting, self.looks, rules.reach(self)

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
    """Error probability of the confidence sequence, over all looks together."""
    return rules.split_alpha(self)[1]

  def start(self, batch):
    zeros = np.zeros(batch, np.int64)
    return State(np.zeros(batch), np.ones(batch, bool), zeros, zeros)

  def look(self, state, hits, draws):
    image = np.flatnonzero(state.drawing)
    hits, draws, k, n = rules.check_counts(state, image, hits, draws, self.n)
    p_lower = np.maximum(
      state.p_lower[image], bounds.confidence_sequence_lower(k, n, self.alpha_anytime)
    )
    p_lower = np.where(n == self.n, np.maximum(p_lower, self._cap_lower(k)), p_lower)
    upper = 1 - bounds.confidence_sequence_lower(n - k, n, self.futility)
    hopeful = self._cap_lower(k + np.floor((self.n - n) * upper).astype(np.int64))
    sigma = rules.drawn_sigma(self.sigma)
    best = bounds.certified_radius(hopeful, sigma)
    worth = best > (1 + self.tolerance) * bounds.certified_radius(p_lower, sigma)
    return State(rules.replaced(state.p_lower, image, p_lower),
                 rules.replaced(state.drawing, image, worth), hits, draws)

  def undecided(self, state):
    """[batch] bool: images that are still worth draws."""
    return state.drawing

  def conclude(self, state, rivals=None):
    """What is certified by now; a class whose p_lower is below 1/2 abstains."""
    del rivals
    certain = state.p_lower >= 0.5
    radius = bounds.certified_radius(state.p_lower, rules.drawn_sigma(self.sigma))
    return rules.Conclusion(certain, np.where(certain, radius, 0.0), state.p_lower)

  def settings(self):
    return {'alpha_cap': self.alpha_cap, 'alpha_anytime': self.alpha_anytime}

  def _cap_lower(self, k):
    """Lower bound of the probability from k hits in all n draws: the larger one of the two."""
    return np.maximum(
      bounds.confidence_sequence_lower(k, self.n, self.alpha_anytime),
      bounds.clopper_pearson_lower(k, self.n, self.alpha_cap),
    )
