"""Certificates that hold all at once: alpha shared among the images of a log."""

import numpy as np

from robust_jax.certification import bounds, sources
from robust_jax.certification.log import Log, Votes
from robust_jax.errors import UserError


def simultaneous(log: Log, votes: Votes, *, path='log') -> Log:
  """The log as certified at alpha / num_images: no certificate of it is false, but with alpha.

  A log says of each image that its certificate is false with probability at most alpha. By the
  union bound (Bonferroni) the probability that any of its num_images ones is false is at most the
  sum of theirs, alpha if each has alpha / num_images, whatever the images have in common. Every
  image of the log counts, those on which the classifier abstained too. The draws are those of the
  log: they were counted for a class that other draws had selected, at any alpha. Radii shrink.

  Only the `fixed` certifier bounds the counts by Clopper-Pearson at the end of a number of draws
  set beforehand. One that stops on the way has spent its alpha while it looked, and its last
  counts give no certificate at another one.

  Args:
    log: [num_images], of which the settings name, n, n0, sigma, alpha, bound and noise are used.
    votes: of the same images.
    path: of the log, for errors.

  Returns:
    The log with other predict, radius and correct, and alpha / num_images as its alpha.

  Raises:
    UserError: another certifier, a setting that is missing or out of range, or counts that are not
      those of the settings, or do not give the radii of the log at its own alpha.
  """
  settings = log.settings
  if settings.get('name') != 'fixed':
    raise UserError(f'{path}: the certifier is {settings.get("name")!r}; a log of \'fixed\' is '
                    'allowed, whose counts give certificates at any alpha')
  for name, good, allowed in (
      ('n', lambda value: type(value) is int and value >= 1, 'an integer >= 1'),
      ('n0', lambda value: type(value) is int and value >= 1, 'an integer >= 1'),
      ('alpha', lambda value: type(value) is float and 0 < value < 1, '(0, 1)'),
      ('sigma', lambda value: type(value) in (int, float) and 0 < value < np.inf, '(0, inf)'),
      ('bound', lambda value: value in ('one_vs_rest', 'runner_up'), 'one_vs_rest or runner_up'),
      ('noise', lambda value: value in (None, 'gaussian', 'integer'), 'gaussian or integer')):
    if not good(settings.get(name)):
      raise UserError(f'{path}: the setting {name} is {settings.get(name)!r}; {allowed} is allowed')
  for name, counts, num in (('n0', votes.counts0, settings['n0']),
                            ('n', votes.counts, settings['n'])):
    more = np.flatnonzero(counts.sum(axis=-1) > num)
    if len(more):
      raise UserError(f'{path}: idx {log.idx[more[0]]} has {counts[more[0]].sum()} votes; the '
                      f'setting {name}, {num}, or fewer are allowed')
  _check(log, _certify(votes, settings, settings['alpha']), path)
  alpha = settings['alpha'] / len(log.idx)
  predict, radius = _certify(votes, settings, alpha)
  return log._replace(predict=predict, radius=radius, correct=predict == log.label,
                      settings={**settings, 'alpha': alpha})


def _certify(votes, settings, alpha):
  """(predict, radius), [num_images] each, as `certification.certify` has them at this alpha."""
  n = settings['n']
  alpha = sources.counted_alpha(alpha, settings.get('noise', 'gaussian'))
  # The noise was drawn with float32(sigma).
  sigma = min(settings['sigma'], float(np.float32(settings['sigma'])))
  selected = votes.counts0.argmax(axis=-1)
  image = np.arange(len(selected))
  hits = votes.counts[image, selected]
  if settings['bound'] == 'one_vs_rest':
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha)
    certain, radius = p_lower >= 0.5, bounds.certified_radius(p_lower, sigma)
  else:
    others = votes.counts.copy()
    others[image, selected] = 0
    # Draws that voted for no class (NaN logits) are a rival too.
    rival = np.maximum(others.max(axis=-1), n - votes.counts.sum(axis=-1))
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha / 2)
    p_upper = np.minimum(bounds.clopper_pearson_upper(rival, n, alpha / 2), 1 - p_lower)
    certain, radius = p_lower >= p_upper, bounds.certified_radius(p_lower, sigma, p_upper)
  return np.where(certain, selected, -1), np.where(certain, radius, 0.)


def _check(log, certificates, path):
  predict, radius = certificates
  other = np.flatnonzero((predict != log.predict) | ~np.isclose(radius, log.radius, atol=1e-6))
  if len(other):
    i = other[0]
    raise UserError(f'{path}: idx {log.idx[i]} has class {log.predict[i]} and radius '
                    f'{log.radius[i]:.6g}, its counts give {predict[i]} and {radius[i]:.6g}; '
                    'certificates that follow from the counts are allowed')
