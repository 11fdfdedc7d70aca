"""Certificates that hold all at once: alpha shared among the images of a log."""

import numpy as np

from robust_jax.certification import fixed, noise_sources
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
    log: [num_images], of which the settings name, n, n0, sigma, alpha, bound, noise and
      noise_loss are used.
    votes: of the same images.
    path: of the log, for errors.

  Returns:
    The log with other predict, radius and correct, and alpha / num_images as its alpha.

  Raises:
    UserError: another certifier, a setting that is missing or out of range, or counts that are not
      those of the settings, or do not give the radii of the log at its own alpha.
  """
  _check(log, votes, path)
  settings = log.settings
  noise = settings.get('noise', 'gaussian')
  certify = lambda alpha: fixed.certificate(
      votes.counts0, votes.counts, alpha=alpha,
      **{name: settings[name] for name in ('sigma', 'n', 'bound')})
  own = certify(noise_sources.counted_alpha(settings['alpha'], noise))
  other = np.flatnonzero((own.prediction != log.predict)
                         | ~np.isclose(own.radius, log.radius, atol=1e-6))
  if len(other):
    i = other[0]
    raise UserError(f'{path}: idx {log.idx[i]} must have class {own.prediction[i]} and radius '
                    f'{own.radius[i]:.6g}, which its counts give, got {log.predict[i]} and '
                    f'{log.radius[i]:.6g}')
  alpha = settings['alpha'] / len(log.idx)
  # What the draws of an image may be off by does not shrink with alpha.
  lost = 0. if noise == 'gaussian' else settings.get('noise_loss')
  if type(lost) is not float or not 0 <= lost < alpha:
    raise UserError(f'{path}: the setting noise_loss must be in [0, {alpha:.3g}), alpha over the '
                    f'number of images, got {lost!r}')
  new = certify(alpha - lost)
  return log._replace(predict=new.prediction, radius=new.radius,
                      correct=new.prediction == log.label, settings={**settings, 'alpha': alpha})


def _check(log, votes, path):
  """Refuses other certifiers, settings out of range, and more votes than draws."""
  settings = log.settings
  if settings.get('name') != 'fixed':
    raise UserError(f"{path}: the certifier must be 'fixed', whose counts give certificates at any "
                    f'alpha, got {settings.get("name")!r}')
  for name, good, valid in (
      ('n', lambda value: type(value) is int and value >= 1, 'an integer >= 1'),
      ('n0', lambda value: type(value) is int and value >= 1, 'an integer >= 1'),
      ('alpha', lambda value: type(value) is float and 0 < value < 1, 'in (0, 1)'),
      ('sigma', lambda value: type(value) in (int, float) and 0 < value < np.inf, 'in (0, inf)'),
      ('bound', lambda value: value in ('one_vs_rest', 'runner_up'), 'one_vs_rest or runner_up'),
      ('noise', lambda value: value in (None, 'gaussian', 'integer'), 'gaussian or integer')):
    if not good(settings.get(name)):
      raise UserError(f'{path}: the setting {name} must be {valid}, got {settings.get(name)!r}')
  for name, counts, num in (('n0', votes.counts0, settings['n0']),
                            ('n', votes.counts, settings['n'])):
    more = np.flatnonzero(counts.sum(axis=-1) > num)
    if len(more):
      raise UserError(f'{path}: idx {log.idx[more[0]]} must have at most {num} votes, the setting '
                      f'{name}, got {counts[more[0]].sum()}')
