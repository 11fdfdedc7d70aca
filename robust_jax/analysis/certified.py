"""What a certification log says: certified accuracy, the average radius, abstention, cost.

Every function takes a `certification.log.Log` (or several) and gives NumPy float64; an empty log
gives NaN, never zero.
"""

import itertools

import numpy as np
from scipy import special

from robust_jax.certification import fixed, noise_sources

# Two radii of a grid are further apart; what a caller computes may be off by rounding.
_ALIKE = 1e-9


def decided_radii(log):
  """[num_radii], ascending: the grid that the certifier has decided; None where it had none."""
  radii = log.settings.get('radii')
  return np.sort(np.asarray(radii, np.float64)) if radii else None


def is_decided(log, radii):
  """[...] bool, for radii [...]: whether the certifier has decided them; all, without a grid."""
  radii, grid = np.asarray(radii, np.float64), decided_radii(log)
  if grid is None:
    return np.full(radii.shape, True)
  return (np.abs(radii[..., None] - grid) <= _ALIKE).any(axis=-1)


def certified_images(log, radius):
  """Which images are correct with a certified radius of at least r.

  Args:
    log: the log of one model.
    radius: r, in the units of the log.

  Returns:
    [num_images] bool; None beyond the largest radius of a grid that was decided, of which nothing
    is known. Between two radii of a grid the larger one decides.
  """
  return None if _is_beyond(log, radius) else log.correct & _at_least(log, radius)


def _is_beyond(log, radii):
  """Whether the log says nothing of radii [...]."""
  grid = decided_radii(log)
  return np.asarray(radii) > (np.inf if grid is None else grid[-1] + _ALIKE)


def _at_least(log, radii):
  """[..., num_images] bool, for radii [...]."""
  slack = 0. if decided_radii(log) is None else _ALIKE
  return log.radius >= np.asarray(radii, np.float64)[..., None] - slack


def certified_accuracy(log, radii):
  """The fraction of images that are correct with a certified radius of at least r.

  Args:
    log: the log of one model.
    radii: [...], in the units of the log.

  Returns:
    [...] in [0, 1], NaN where `certified_images` is None. At r = 0 it is the accuracy of the
    smoothed classifier.
  """
  radii = np.asarray(radii, np.float64)
  if not len(log.radius):
    return np.full(radii.shape, np.nan)
  accuracy = np.mean(log.correct & _at_least(log, radii), axis=-1)
  return np.where(_is_beyond(log, radii), np.nan, accuracy)


def average_certified_radius(log):
  """ACR = mean(correct * radius): a wrong or abstained image counts as radius 0.

  Of a grid of radii that was decided it is a lower bound: each is rounded down to one of them.

  Reference: Zhai et al. 2020, MACER, section 5.
  """
  return float(np.mean(log.correct * log.radius)) if len(log.radius) else np.nan


def certified_probability(log, sigma=None):
  """p_A = Phi(R / sigma), the lower bound of the label's probability under noise that R stands for.

  Its empirical distribution over the images says more than the average certified radius, to which a
  few easy images add much, as Phi^-1 grows without end, and hard ones nothing.

  Args:
    log: the log of one model.
    sigma: the noise, in the units of the radii; None for that of the log's settings.

  Returns:
    [num_images] in {0} and [1/2, 1): 0 where the answer is wrong or the classifier abstains.

  Reference: Sun et al., Average certified radius is a poor metric for randomized smoothing, 2024.
  """
  sigma = log.settings['sigma'] if sigma is None else sigma
  return np.where(log.correct, special.ndtr(log.radius / sigma), 0.)


def largest_radius(log):
  """The radius of n draws that all fall on one class: no image can have a larger one.

  None where that is not known: for a table without settings, and certifiers other than `fixed`.
  """
  settings = log.settings
  if settings.get('name', 'fixed') != 'fixed' or not {'n', 'alpha', 'sigma'} <= settings.keys():
    return None
  alpha = noise_sources.counted_alpha(settings['alpha'], settings.get('noise', 'gaussian'))
  return float(fixed.conclude(
      np.array([settings['n']]), np.array([0]), sigma=settings['sigma'], n=settings['n'],
      alpha=alpha, bound=settings.get('bound', 'one_vs_rest')).radius[0])


def abstention_rate(log):
  """The fraction of images on which the smoothed classifier abstained."""
  return float(np.mean(log.predict < 0)) if len(log.predict) else np.nan


def envelope(logs, radii):
  """The best certified accuracy over several models, at each radius for itself.

  This is what published tables show. No single model attains it.

  Args:
    logs: a sequence of logs; those without rows are left out.
    radii: [num_radii].

  Returns:
    [num_radii]; NaN where nothing is known of any.
  """
  none = np.full(np.shape(radii), np.nan)
  return np.fmax.reduce([none, *(certified_accuracy(log, radii) for log in logs)])


def mean_draws(votes):
  """Draws an image, those that chose its class included; None without votes."""
  if votes is None:
    return None
  return np.mean(votes.counts0.sum(axis=-1) + votes.counts.sum(axis=-1))


def acr_text(log, at_least='≥ '):
  """The average certified radius; of a grid of radii, which round it down, after `at_least`.

  None without images.
  """
  if not len(log.idx):
    return None
  return f'{at_least if decided_radii(log) is not None else ""}{average_certified_radius(log):.3f}'


def round_radii(logs, most=8) -> list[float]:
  """Radii for a table: the grid that all logs have decided; else 0, 0.25, 0.5, ...

  These go up to the largest radius certified in `most` steps at most, for which the distance grows
  to 0.5, 1, 2.5, ...; it is smaller than 0.25 where no radius of 0.5 is certified.
  """
  grids = {tuple(log.settings.get('radii') or ()) for log in logs}
  if len(grids) == 1 and 0 < len(min(grids)) <= most + 1:
    return sorted(min(grids))
  largest = max(log.radius[log.correct].max(initial=0.) for log in logs)
  steps = (factor * 10.**power for power in itertools.count(-6) for factor in (1, 2.5, 5))
  step = next(step for step in steps
              if largest <= most * step and (step >= 0.25 or largest < 0.5))
  return [round(i * step, 9) for i in range(int(largest / step + 1e-9) + 1)]
