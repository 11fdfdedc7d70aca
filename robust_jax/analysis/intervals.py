"""95% intervals: of accuracies over images, of means over training runs, of differences.

Intervals of means are `mean ± half-width` by Student's t; the half-width is NaN where a single
value says nothing about the spread.
"""

import numpy as np
from scipy import special  # Not scipy.stats, which takes long to import.


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
  tail = (1 - confidence) / 2
  hits = np.rint(accuracy * num_images)
  misses = num_images - hits
  # The quantile is not defined at no hits or no misses, where the bound is 0 or 1.
  low = special.betaincinv(np.maximum(hits, 1), misses + 1, tail)
  high = special.betaincinv(hits + 1, np.maximum(misses, 1), 1 - tail)
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
  """mean(first - second) of values measured on the same images, and its half-width.

  What makes an image hard for both cancels, so the interval is narrower than that of two separate
  samples. It is about the choice of images, with both networks as they are; for means over
  hundreds of images.

  Args:
    first: [num_images] values of one network, such as 0 and 1 for wrong and right.
    second: [num_images] of the other, the same images in the same order.
    confidence: see `mean_interval`.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape:
    raise ValueError(f'values must be of the same images, got {first.shape} and {second.shape}')
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
