"""Rules by which an image is certified from counts that are looked at on the way.

The statistics are those of `sequential`; a `Rule` adds what the drawing needs to know. `stream`
draws by a rule.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from robust_jax.certification import bounds, noise_sources, sequential
from robust_jax.certification.sequential import AtLeastOne, BelowOne
from robust_jax.types import Count, Index, NonNegative, Positive, Probability

Choice = Literal['majority', 'label']


class Rule(NamedTuple):
  """How images are certified; everything is fixed before the first draw.

  Attributes:
    sigma: standard deviation of the noise, pixel units; at most that which is drawn.
    n0: draws that choose the class, 0 where it is the label.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    source: of the noise.
    alpha: probability that a certificate is false, an image; the plan's may be less.
    plan: of the statistics, with its `looks`.
    start, look, undecided, conclude: its functions, as in `sequential`.
  """

  sigma: float
  n0: int
  batch_size: int
  source: noise_sources.Source
  alpha: float
  plan: sequential.Plan | sequential.AnytimePlan
  start: Callable[..., Any]
  look: Callable[..., Any]
  undecided: Callable[..., np.ndarray]
  conclude: Callable[..., sequential.Conclusion]

  @property
  def most_draws(self):
    """The most draws of an image between two looks, or to choose its class."""
    return max(self.n0, int(np.diff(self.plan.looks, prepend=0).max()))

  def settings(self):
    """What a log says of the plan besides the arguments that it was made from: plain values."""
    derived = {'alpha_cap': self.plan.alpha_cap, 'alpha_anytime': self.plan.alpha_anytime}
    if isinstance(self.plan, sequential.Plan):
      derived |= {'radii': self.plan.radii.tolist(), 'cap_hits': self.plan.cap_hits.tolist()}
    return derived


def sequential_rule(
  *,
  sigma: Positive,
  radii: tuple[NonNegative, ...] | None = None,
  n0: Index = 100,
  n: Count = 100_000,
  alpha: Probability = 0.001,
  cap_share: Probability = 0.8,
  futility: Probability = 0.05,
  indifference: BelowOne = 0.0,
  first_look: Count = 100,
  look_growth: AtLeastOne = 1.1,
  choose: Choice = 'majority',
  batch_size: Count = 1000,
  noise: noise_sources.Noise = 'gaussian',
) -> Rule:
  """Which radii of a grid the smoothed classifier has; draws only until each is decided.

  The class is the most frequent of n0 separate draws or, where the question is certified accuracy
  at these radii, the true label, which costs no draws: then every certificate says that the
  smoothed classifier is right, and an image on which it is wrong abstains.

  Args:
    sigma: standard deviation of the noise, pixel units.
    radii: grid of l2 radii, pixel units; None: 0.25, 0.5, ..., as far as n draws can certify.
    n0: draws an image that choose the class; unused where the label does.
    n: the cap, draws an image.
    alpha: probability that a certificate is false, an image.
    cap_share, futility, indifference, first_look, look_growth: see `sequential.make_plan`.
    choose: whose class is certified, that of the 'majority' or the 'label'.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    noise: 'gaussian' or 'integer', as in `certify`.

  Returns:
    Rule.

  Raises:
    ValueError: in one line that begins with the argument that is not allowed.
  """
  source, sigma = noise_sources.make(noise, sigma), _drawn_sigma(sigma)
  counted = noise_sources.counted_alpha(alpha, noise)
  if radii is None:
    most = bounds.clopper_pearson_lower(n, n, cap_share * counted)
    radii = 0.25 * np.arange(1, 1 + bounds.certified_radius(most, sigma) // 0.25)
  plan = sequential.make_plan(
    sigma=sigma, radii=radii, n=n, alpha=counted, cap_share=cap_share, futility=futility,
    indifference=indifference, first_look=first_look, look_growth=look_growth,
  )
  return _rule(plan, sigma, n0, choose, batch_size, source, alpha, sequential.start,
               sequential.look, sequential.undecided, sequential.conclude)


def anytime_rule(
  *,
  sigma: Positive,
  n0: Index = 100,
  n: Count = 100_000,
  alpha: Probability = 0.001,
  cap_share: Probability = 0.8,
  tolerance: NonNegative = 0.05,
  futility: Probability = 0.05,
  first_look: Count = 100,
  look_growth: AtLeastOne = 1.1,
  choose: Choice = 'majority',
  batch_size: Count = 1000,
  noise: noise_sources.Noise = 'gaussian',
) -> Rule:
  """A radius that holds at every moment; draws only while it could still grow by the tolerance.

  Args:
    sigma, n0, n, alpha, choose, batch_size, noise: as in `sequential_rule`.
    cap_share, tolerance, futility, first_look, look_growth: see `sequential.make_anytime_plan`.

  Returns:
    Rule.

  Raises:
    ValueError: in one line that begins with the argument that is not allowed.
  """
  source, sigma = noise_sources.make(noise, sigma), _drawn_sigma(sigma)
  plan = sequential.make_anytime_plan(
    sigma=sigma, n=n, alpha=noise_sources.counted_alpha(alpha, noise), cap_share=cap_share,
    tolerance=tolerance, futility=futility,
    first_look=first_look, look_growth=look_growth,
  )
  return _rule(plan, sigma, n0, choose, batch_size, source, alpha, sequential.anytime_start,
               sequential.anytime_look, sequential.anytime_undecided, sequential.anytime_conclude)


def replay(rule, looks):
  """The states [batch] of images after their looks, for each [[draws, hits], ...].

  Raises:
    ValueError: counts that cannot be.
  """
  state = rule.start(rule.plan, len(looks))
  # Copies, as the fields of a state may share their arrays.
  state = type(state)(*map(np.array, state))
  for number in range(max(map(len, looks), default=0)):
    image = np.array([i for i, each in enumerate(looks) if len(each) > number])
    draws, hits = np.array([looks[i][number] for i in image]).T
    before = type(state)(*(column[image] for column in state))
    for column, new in zip(state, rule.look(rule.plan, before, hits, draws)):
      column[image] = new
  return state


def _rule(plan, sigma, n0, choose, batch_size, source, alpha, *functions):
  if choose not in ('majority', 'label'):
    raise ValueError(f"choose={choose!r}; 'majority' or 'label' is allowed")
  if n0 < 1 and choose == 'majority':
    raise ValueError(f"n0={n0}; at least 1, or choose='label', is allowed")
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size}; at least 1 is allowed')
  return Rule(sigma, 0 if choose == 'label' else n0, batch_size, source, alpha,
              plan, *functions)


def _drawn_sigma(sigma):
  """The noise is drawn with float32(sigma): a larger sigma would overstate the radius."""
  return min(sigma, float(np.float32(sigma)))
