"""95% intervals: of accuracies over images, of means over training runs, of differences.

Intervals over training runs are `mean ± half-width` by Student's t; the half-width is NaN where a
single value says nothing about the spread. Those over images have two ends.
"""

import numpy as np
from scipy import special  # Not scipy.stats, which takes long to import.

# With fewer values that are not zero, a mean is too far from normal for Student's t.
_FEW = 30


def accuracy_interval(accuracy, num_images, *, confidence=0.95):
  """The Clopper-Pearson interval of an accuracy measured on a sample of images.

  It is about the choice of images: which accuracy of all images from this distribution is
  compatible with this sample. It says nothing about the noise draws of a certificate.

  Args:
    accuracy: [...] fractions k / num_images.
    num_images: the number of images they are fractions of.
    confidence: the probability with which the interval holds, at one accuracy at a time.

  Returns:
    (low, high), each [...]; (0, 1) without images.
  """
  accuracy = np.asarray(accuracy, np.float64)
  if not num_images:
    return np.zeros(accuracy.shape), np.ones(accuracy.shape)
  return _limits(np.rint(accuracy * num_images), num_images, confidence)


def _limits(hits, count, confidence):
  """(low, high) of the share of hits [...] in a sample, which may be the sum of fractions."""
  tail, misses = (1 - confidence) / 2, count - hits
  # The quantile is not defined at no hits or no misses, where the bound is 0 or 1.
  low = special.betaincinv(np.where(hits == 0, 1., hits), misses + 1, tail)
  high = special.betaincinv(hits + 1, np.where(misses == 0, 1., misses), 1 - tail)
  return np.where(hits == 0, 0.0, low), np.where(misses == 0, 1.0, high)


def mean_interval(values, *, confidence=0.95):
  """The mean of independent values and the half-width of its interval, t s / sqrt(n).

  Args:
    values: [n], such as the accuracies of n training runs that differ in their seed.
    confidence: the probability with which the interval holds.

  Returns:
    (mean, half-width); NaN for both without values, for the half-width with one.
  """
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return (float(values[0]) if len(values) else np.nan), np.nan
  error = np.std(values, ddof=1) / np.sqrt(len(values))
  return float(np.mean(values)), float(_quantile(len(values) - 1, confidence) * error)


def paired_difference(first, second, *, confidence=0.95):
  """mean(first - second) of values >= 0 measured on the same images, and its interval.

  What makes an image hard for both cancels, so the interval is narrower than that of two separate
  samples. It is about the choice of images, with both networks as they are.

  Of zeros and ones, such as right and wrong, the difference is p - q with p and q the shares of
  the images that only the first, or only the second, has right. With their Clopper-Pearson limits
  (l, u) it lies in

      p - q - sqrt(a^2 - 2 r a b + b^2), a = p - l_p, b = u_q - q
      p - q + sqrt(a^2 - 2 r a b + b^2), a = u_p - p, b = q - l_q

  where r = -sqrt(p q / ((1 - p) (1 - q))) is the correlation of the two shares (square-and-add,
  Zou & Donner). Enumerated over all p and q it holds at least as often as it says, also
  where the networks agree on every image, where Student's t knows no spread.

  Of other values, such as radii, it is Student's t; but where fewer than 30 images differ the one
  above, with p and q the sums of the gains and of the losses as shares of the largest value.

  Args:
    first: [num_images] values >= 0 of one network.
    second: [num_images] of the other, the same images in the same order.
    confidence: see `mean_interval`.

  Returns:
    (difference, low, high); low and high are NaN where there is less than two images.

  Reference:
    Zou & Donner, Construction of confidence limits about effect measures: a general approach, 2008.
    Newcombe, Improved confidence intervals for the difference between binomial proportions based
    on paired data, 1998.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape:
    raise ValueError(f'values must be of the same images, got {first.shape} and {second.shape}')
  change = first - second
  largest = np.max([first, second], initial=0.)
  are_shares = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
  if len(change) < 2 or not (are_shares or np.count_nonzero(change) < _FEW):
    mean, half = mean_interval(change, confidence=confidence)
    return mean, mean - half, mean + half
  scale = 1. if are_shares or not largest else largest
  gain, loss = (np.maximum(sign * change, 0).sum() / scale for sign in (1, -1))
  return tuple(scale * value for value in _share_difference(gain, loss, len(change), confidence))


def _share_difference(gain, loss, count, confidence):
  """(p - q, low, high) of the shares p = gain / count and q = loss / count of the same images."""
  (p, low_p, high_p), (q, low_q, high_q) = (
      (hits / count, *_limits(hits, count, confidence)) for hits in (gain, loss))
  opposed = np.sqrt(p * q / ((1 - p) * (1 - q))) if p * q else 0.
  root = lambda a, b: float(np.sqrt(a * a + 2 * opposed * a * b + b * b))
  return p - q, p - q - root(p - low_p, high_q - q), p - q + root(high_p - p, q - low_q)


def welch_difference(first, second, *, confidence=0.95):
  """mean(first) - mean(second) of two independent samples, and its half-width.

  The variances may differ (Welch 1947): degrees of freedom (a + b)^2 / (a^2 / (n - 1) + b^2 /
  (m - 1)) with a, b the squared standard errors of the two means.

  Args:
    first: [n], such as the accuracies of n training runs.
    second: [m].
    confidence: see `mean_interval`.

  Returns:
    (difference, half-width); the half-width is NaN where n or m is 1.
  """
  n, m = len(first), len(second)
  if not n or not m:
    return np.nan, np.nan
  difference = float(np.mean(first) - np.mean(second))
  if min(n, m) < 2:
    return difference, np.nan
  a, b = np.var(first, ddof=1) / n, np.var(second, ddof=1) / m
  if a + b == 0:
    return difference, 0.0
  freedom = (a + b) ** 2 / (a ** 2 / (n - 1) + b ** 2 / (m - 1))
  return difference, float(_quantile(freedom, confidence) * np.sqrt(a + b))


def _quantile(freedom, confidence):
  return special.stdtrit(freedom, (1 + confidence) / 2)
