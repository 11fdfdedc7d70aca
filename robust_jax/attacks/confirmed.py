"""The smallest adversarial perturbation of a smoothed classifier that fresh draws confirm.

Any attack gives a direction. Along it the probability of the label falls, and a bisection looks for
the shortest perturbation of which n draws that no attack has seen show another class ahead.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from robust_jax import inputs, keys, schema
from robust_jax.certification import noise_sources
from robust_jax.certification.judge import beaten, label_votes
from robust_jax.certification.sampling import PREDICT, count
from robust_jax.types import Count, Index, NonNegative, Probability

# The part of the draws of a point after which it is looked at for the first time.
_FIRST = 0.1
_LEVELS = 255


class Confirmed(NamedTuple):
  """What was confirmed of each image, NumPy.

  Attributes:
    images: [batch, ...], adversarial examples; the images themselves where there is none.
    radius: [batch] float64, the l2 norm of their perturbations; inf where there is none.
    tests: for each image, [[radius, draws, votes of the label, votes of the most frequent other
      class], ...] of every point that was judged.
  """

  images: Any
  radius: Any
  tests: list


@schema.checked
def smallest(
    key, logits_fn, images, labels, candidates, *, sigma: NonNegative, n: Count = 1000,
    alpha: Probability = 0.001, halvings: Index = 5, batch_size: Count = 1000,
    noise: noise_sources.Noise = 'gaussian', example_ids=None, count=count):
  """Bisects the line from each image through its candidate: x(t) = clip(x + t (x' - x), 0, 1).

  The first point is sigma beyond the candidate x' (with noise, x' is the candidate of few draws,
  and so at best of probability 1/2); where it is not confirmed, the image is given up. Then points
  halve the interval between the last one that was confirmed and the last one that was not.

  A point is adversarial as `certification.judge` has it. Each has draws of its own, and is looked
  at after a tenth of them, when most are decided, and after all n. Either look has alpha / (2
  (halvings + 1)), so that by the union bound the probability that anything is claimed of an image
  that is false is at most alpha, whichever points the draws of others have led to. What looks
  robust after the first tenth (the label ahead by more than a standard deviation) is not drawn
  further.

  Args:
    key: one key, the root of the draws.
    logits_fn: images -> [batch, classes] logits.
    images: [batch, ...] float32 in [0, 1].
    labels: [batch] int.
    candidates: [batch, ...] float32 in [0, 1], what an attack has found; where it is the image,
      there is nothing to look for.
    sigma: standard deviation of the noise, pixel units; 0: one draw decides.
    n: draws a point.
    alpha: probability that the adversarial example of an image is none.
    halvings: of the interval; the radius is then known to (|x' - x| + sigma) / 2^halvings.
    batch_size, example_ids, count: as in `certification.certify`.
    noise: as in `certification.Fixed`; points are rounded to 8 bits for 'integer'.

  Returns:
    Confirmed.

  Raises:
    ValueError: an argument out of range.
  """
  images = np.asarray(inputs.images(images))
  candidates = np.asarray(inputs.images(candidates, name='candidates'))
  if candidates.shape != images.shape:
    raise ValueError(f'candidates must have the shape of the images, {images.shape}, got '
                     f'{candidates.shape}')
  num_classes = inputs.num_classes(
      logits_fn, jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), np.float32))
  labels = np.asarray(inputs.labels(labels, len(images), num_classes=num_classes))
  ids = np.arange(len(images)) if example_ids is None else np.asarray(
      inputs.labels(example_ids, len(images), name='example_ids'))
  source = noise_sources.make(noise, sigma)
  key, base = jax.random.fold_in(keys.as_key(key), PREDICT), source.base(logits_fn)
  looks = [max(int(_FIRST * n), 1), n] if sigma > 0 else [1]
  each = level(alpha, halvings, noise)

  def point(t):
    x = np.clip(images + _column(t, images) * (candidates - images), 0, 1)
    return np.round(x * _LEVELS) / np.float32(_LEVELS) if noise == 'integer' else x

  def judged(number, x, open_):
    """([batch] bool, [batch, 2] votes, [batch] draws) of the points of the images `open_`."""
    votes, drawn = np.zeros((len(images), 2), int), np.zeros(len(images), int)
    counts, found = 0, np.zeros(len(images), bool)
    for look in looks:
      num = np.where(open_, look - drawn, 0)
      counts = counts + np.asarray(count(
          key, base, x, ids, number * n + drawn, num, sigma=sigma, batch_size=batch_size,
          noise_fn=source.noise_fn))
      drawn += num
      votes = label_votes(counts, labels)
      if sigma > 0:
        found |= open_ & beaten(votes, alpha=each, num_classes=num_classes)
      else:
        found |= open_ & (votes[:, 1] > 0)
      own, other = votes.T
      open_ = open_ & ~found & (own - other <= np.sqrt(own + other))
    return found, votes, drawn

  length = _norms(candidates - images)
  low = np.zeros(len(images))
  high = np.where(length > 0, 1 + sigma / np.where(length > 0, length, 1), 0)
  best, radius, tests = images.copy(), np.full(len(images), np.inf), [[] for _ in images]
  open_ = length > 0
  for number in range(halvings + 1):
    if not open_.any():
      break
    t = high if number == 0 else (low + high) / 2
    x = point(t)
    found, votes, drawn = judged(number, x, open_)
    sizes = _norms(x - images)
    for i in np.flatnonzero(open_):
      tests[i].append([float(sizes[i]), int(drawn[i]), *map(int, votes[i])])
    if number == 0:
      open_ = found
    low, high = np.where(found, low, t), np.where(found, t, high)
    best[found], radius[found] = x[found], sizes[found]
  return Confirmed(best, radius, tests)


def level(alpha, halvings, noise=None):
  """The error probability of one look at a point of `smallest`; arguments as there."""
  return noise_sources.counted_alpha(alpha, noise or 'gaussian') / (2 * (halvings + 1))


def _norms(perturbations):
  """l2 norms, [batch] float64."""
  return np.linalg.norm(perturbations.reshape(len(perturbations), -1).astype(np.float64), axis=-1)


def _column(t, images):
  return t.astype(np.float32).reshape((-1,) + (1,) * (images.ndim - 1))
