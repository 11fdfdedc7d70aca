"""Means over training runs or images, and differences of means, with their uncertainty.

Every interval is `mean ± half-width` by Student's t, 95% unless told otherwise. The half-width is
NaN where a single value says nothing about the spread.
"""

import numpy as np
from scipy import special


def mean_interval(values, *, confidence=0.95):
  """The mean of independent values and the half-width of its interval.

  half-width = t * s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of
  freedom, s the standard deviation with n - 1 in the denominator.

  Args:
    values: [n], such as the accuracies of n training runs that differ in their seed.
    confidence: the probability with which the interval holds.

  Returns:
    (mean, half-width); NaN for both without values, for the half-width with one.
  """
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return (float(values[0]) if len(values) else np.nan), np.nan
  spread = np.std(values, ddof=1) / np.sqrt(len(values))
  return float(np.mean(values)), float(_quantile(len(values) - 1, confidence) * spread)


def paired_difference(first, second, *, confidence=0.95):
  """mean(first - second) of values measured on the same images, and its half-width.

  What makes an image hard for both cancels, so the interval is narrower than that of two separate
  samples. It is about the choice of images, with both networks as they are; for means over
  hundreds of images.

  Args:
    first: [num_images] values of one network, such as 0 and 1 for wrong and right.
    second: [num_images] of the other, the same images in the same order.
    confidence: see `mean_interval`.

  Returns:
    (mean difference, half-width).
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape:
    raise ValueError(f'{first.shape} and {second.shape} values; the same images are allowed')
  return mean_interval(first - second, confidence=confidence)


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
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if not len(first) or not len(second):
    return np.nan, np.nan
  difference = float(np.mean(first) - np.mean(second))
  if min(len(first), len(second)) < 2:
    return difference, np.nan
  a, b = (np.var(values, ddof=1) / len(values) for values in (first, second))
  if a + b == 0:
    return difference, 0.0
  freedom = (a + b) ** 2 / (a ** 2 / (len(first) - 1) + b ** 2 / (len(second) - 1))
  return difference, float(_quantile(freedom, confidence) * np.sqrt(a + b))


def _quantile(freedom, confidence):
  return special.stdtrit(freedom, (1 + confidence) / 2)
