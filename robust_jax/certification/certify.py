"""Prediction and certification of the smoothed classifier g(x) = argmax_c P(f(x + noise) = c)."""

from typing import Literal

import jax
import numpy as np

from robust_jax import keys
from robust_jax.certification import bounds, noise_sources
from robust_jax.certification.sampling import count
from robust_jax.types import Certificate, Count, NonNegative, Positive, Probability

# Folded into the key, so that the draws that select a class never bound its probability. Far
# above any training step, so that no draw of a certificate was ever trained on.
SELECT = 2**31 - 1
ESTIMATE = 2**31 - 2
PREDICT = 2**31 - 3

# Draws that `certify` asks for at a time, over all images.
_ROWS = 2**17


def _example_ids(example_ids, images):
  return np.arange(len(images)) if example_ids is None else np.asarray(example_ids)


def _with_no_class(counts, num):
  """[batch, classes + 1]: the last column counts the draws that voted for no class (NaN)."""
  return np.concatenate([counts, num - counts.sum(axis=-1, keepdims=True)], axis=-1)


def certify(
  key,
  logits_fn,
  images,
  *,
  sigma: Positive,
  n0: Count = 100,
  n: Count = 100_000,
  alpha: Probability = 0.001,
  batch_size: Count = 1000,
  bound: Literal['one_vs_rest', 'runner_up'] = 'one_vs_rest',
  noise: noise_sources.Noise = 'gaussian',
  example_ids=None,
  count=count,
):
  """Class and l2 radius of the smoothed classifier, true with probability 1 - alpha an image.

  The class c is the most frequent of n0 draws. Among n fresh draws, k of them c:
  - one_vs_rest: p_A = Clopper-Pearson lower bound of k at alpha, radius sigma * Phi^-1(p_A);
    abstains where p_A < 1/2.
  - runner_up: p_A at alpha/2, p_B = Clopper-Pearson upper bound at alpha/2 of the largest other
    count, at most 1 - p_A; radius (sigma / 2) * (Phi^-1(p_A) - Phi^-1(p_B)); abstains where
    p_A < p_B. (The upper bound grows with the count, so the largest one bounds every class.)
  A bound exactly at its limit (p_A = 1/2, p_A = p_B) keeps the class, with radius 0. Draws with
  NaN logits hit no class; they are among the n, and a rival class of their own.

  Args:
    key: one key, the root of the certification.
    logits_fn: images -> [batch, classes] logits.
    images: [batch, ...] float32, pixel units.
    sigma: standard deviation of the noise, pixel units.
    n0: draws an image that select the class.
    n: draws an image that bound its probability.
    alpha: probability that a certificate is false, an image.
    batch_size: rows of one forward pass; a part of what is certified (see sampling).
    bound: which bound gives the radius.
    noise: 'gaussian', or for 8-bit images 'integer', which floating point cannot break: class and
      radius then hold for the classifier and the images of module `integer`, with the bounds above
      at 0.99 alpha.
    example_ids: [batch] int, which with the key decide the noise; 0, ..., batch - 1 if None.
    count: what counts votes: `sampling.count` or one that shares its passes among devices.

  Returns:
    types.Certificate, NumPy; prediction -1 and radius 0 where it abstains.

  Raises:
    ValueError: sigma is not positive, alpha outside (0, 1), counts that int32 cannot hold, or with
      integer noise pixels other than 0, 1/255, ..., 1 or an alpha too small for it.

  Reference: Cohen, Rosenfeld and Kolter 2019, theorem 1 and section 3.2.2 (CERTIFY).
  """
  if not sigma > 0:
    raise ValueError(f'sigma={sigma}; (0, inf) is allowed')
  if not 0 < alpha < 1:
    raise ValueError(f'alpha={alpha}; (0, 1) is allowed')
  if bound not in ('one_vs_rest', 'runner_up'):
    raise ValueError(f"bound={bound!r}; 'one_vs_rest' or 'runner_up' is allowed")
  example_ids = _example_ids(example_ids, images)
  source = noise_sources.make(noise, sigma)
  source.check(images, n, alpha)
  base = source.base(logits_fn)

  # In parts: a signal waits for the end of one.
  part = max(_ROWS // max(len(images), 1), 1)

  def votes(phase, num):
    phase_key = jax.random.fold_in(keys.as_key(key), phase)
    return sum(np.asarray(count(
      phase_key, base, images, example_ids, start, min(part, num - start),
      sigma=sigma, batch_size=batch_size, noise_fn=source.noise_fn,
    )) for start in range(0, max(num, 1), part))

  counts0 = votes(SELECT, n0)
  counts = votes(ESTIMATE, n)
  return conclude(counts0, counts, sigma=sigma, n=n,
                  alpha=noise_sources.counted_alpha(alpha, noise), bound=bound)


def conclude(counts0, counts, *, sigma, n, alpha, bound):
  """The certificate that follows from counts at alpha, both [batch, classes], as in `certify`."""
  # The noise was drawn with float32(sigma): a larger sigma would overstate the radius.
  sigma = min(sigma, float(np.float32(sigma)))
  selected = counts0.argmax(axis=-1)
  hits = np.take_along_axis(counts, selected[:, None], axis=-1)[:, 0]
  if bound == 'one_vs_rest':
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha)
    p_upper = 1 - p_lower
    certain = p_lower >= 0.5
    radius = bounds.certified_radius(p_lower, sigma)
  else:
    others = _with_no_class(counts, n)
    np.put_along_axis(others, selected[:, None], 0, axis=-1)
    p_lower = bounds.clopper_pearson_lower(hits, n, alpha / 2)
    p_upper = bounds.clopper_pearson_upper(others.max(axis=-1), n, alpha / 2)
    p_upper = np.minimum(p_upper, 1 - p_lower)
    certain = p_lower >= p_upper
    radius = bounds.certified_radius(p_lower, sigma, p_upper)
  return Certificate(
    prediction=np.where(certain, selected, -1),
    radius=np.where(certain, radius, 0.0),
    p_lower=p_lower,
    counts0=counts0,
    counts=counts,
  )


def predict(
  key,
  logits_fn,
  images,
  *,
  sigma: NonNegative,
  n: Count = 1000,
  alpha: Probability = 0.001,
  batch_size: Count = 1000,
  example_ids=None,
  count=count,
):
  """Class of the smoothed classifier, or -1 where n draws cannot tell it from the runner-up.

  Two-sided binomial test, at alpha, of the two largest counts: a class other than g(x) is
  returned with probability at most alpha. Without noise (sigma = 0) every draw is the same, so
  one is taken, and the class is that of the base classifier. Draws with NaN logits count as a
  class of their own, in whose favour the answer is -1.

  Args:
    key, logits_fn, images, batch_size, example_ids, count: as in `certify`; the draws are others.
    sigma: standard deviation of the noise, pixel units.
    n: draws an image.
    alpha: probability of a wrong class, an image.

  Returns:
    [batch] int, NumPy.

  Raises:
    ValueError: sigma is negative, alpha outside (0, 1), or counts that int32 cannot hold.

  Reference: Cohen, Rosenfeld and Kolter 2019, section 3.2.1 (PREDICT).
  """
  if not sigma >= 0:
    raise ValueError(f'sigma={sigma}; [0, inf) is allowed')
  if not 0 < alpha < 1:
    raise ValueError(f'alpha={alpha}; (0, 1) is allowed')
  num = n if sigma > 0 else 1
  counts = np.asarray(count(
    jax.random.fold_in(keys.as_key(key), PREDICT), logits_fn, images,
    _example_ids(example_ids, images), 0, num, sigma=sigma, batch_size=batch_size,
  ))
  counts = _with_no_class(counts, num)
  top, runner_up = np.argsort(-counts, axis=-1, kind='stable')[:, :2].T
  image = np.arange(len(counts))
  hits, misses = counts[image, top], counts[image, runner_up]
  certain = np.full(len(counts), True)
  if sigma > 0:
    certain = bounds.binomial_test(hits, hits + misses) <= alpha
  certain &= top < counts.shape[-1] - 1
  return np.where(certain, top, -1)
