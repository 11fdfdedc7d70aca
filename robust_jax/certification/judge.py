"""What fresh draws say of images that an attack has made: the class, or whether it is adversarial.

The draws that an attack was made through are no evidence: it was fitted to them. These have keys of
their own, and what is claimed of an image is false with probability at most alpha.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from robust_jax import inputs, keys
from robust_jax.certification import bounds, rules
from robust_jax.certification.sampling import PREDICT, count
from robust_jax.types import Count, NonNegative, Probability


class Judgement(NamedTuple):
  """What n draws say of images and their labels, NumPy.

  Attributes:
    verdict: [batch] str: 'adversarial', 'robust' or 'undecided'; see `judge`.
    prediction: [batch] int, as of `predict`.
    votes: [batch, 2] int, the draws of the label, and of the most frequent other class.
  """

  verdict: Any
  prediction: Any
  votes: Any


def judge(
  key,
  logits_fn,
  images,
  labels,
  *,
  sigma: NonNegative,
  n: Count = 1000,
  alpha: Probability = 0.001,
  batch_size: Count = 1000,
  example_ids=None,
  in_box: bool = True,
  count=count,
):
  """Whether the smoothed classifier g gives images another class than their labels.

  With p_c the probability of class c under noise, from n draws an image:

  - adversarial: another class is ahead of the label y, g(x) != y. Of the draws of y and of the most
    frequent other class c, the Clopper-Pearson lower bound of the share of c at alpha / (K - 1) is
    above 1/2, K the number of classes.
  - robust: the lower bound of p_y at alpha is above 1/2, hence g(x) = y.
  - undecided: neither.

  An image whose class is y is called adversarial with probability at most alpha, and any other one
  robust likewise. Adversarial implies that the upper bound of p_y at alpha is below 1/2, and of two
  classes it is the same. Of more, p_y < 1/2 alone would not do: of p = (0.4, 0.3, 0.3) the class is
  the first.

  Args:
    key, logits_fn, images, n, batch_size, example_ids, in_box, count: as in `predict`, whose
      draws these are.
    labels: [batch] int.
    sigma: standard deviation of the noise, pixel units; 0: one draw decides, without any doubt.
    alpha: probability of a false verdict, an image.

  Returns:
    Judgement. Draws with NaN logits are of no class: an image of nothing else is undecided.

  Raises:
    ValueError: as `predict`, or labels that are no classes.

  Reference: Clopper and Pearson 1934; on the class of the largest count Hung and Fithian 2019.
  """
  counts, num = _fresh_counts(key, logits_fn, images, sigma=sigma, n=n, alpha=alpha,
                              batch_size=batch_size, example_ids=example_ids, in_box=in_box,
                              count=count)
  labels = np.asarray(inputs.labels(labels, len(counts), num_classes=counts.shape[-1]))
  votes = label_votes(counts, labels)
  if sigma > 0:
    verdict = verdicts(votes, num, alpha=alpha, num_classes=counts.shape[-1])
  else:
    verdict = np.select([votes[:, 0] > 0, votes[:, 1] > 0], ['robust', 'adversarial'], 'undecided')
  return Judgement(verdict, _predicted(counts, num, sigma, alpha), votes)


def label_votes(counts, labels):
  """[batch, 2]: of counts [batch, classes] those of the labels, and the largest other ones."""
  others = np.array(counts)
  own = np.take_along_axis(others, labels[:, None], axis=-1)[:, 0]
  np.put_along_axis(others, labels[:, None], -1, axis=-1)
  return np.stack([own, others.max(axis=-1)], axis=-1)


def verdicts(votes, n, *, alpha, num_classes):
  """The verdicts of `judge` from votes [..., 2] of n draws: [...] str."""
  robust = bounds.clopper_pearson_lower(np.asarray(votes)[..., 0], n, alpha) > 0.5
  return np.select([beaten(votes, alpha=alpha, num_classes=num_classes), robust],
                   ['adversarial', 'robust'], 'undecided')


def beaten(votes, *, alpha, num_classes):
  """[...] bool: whether votes [..., 2] show another class ahead of the label; see `judge`.

  Given how many draws are of c or of y, those of c are binomial, of probability at most 1/2 unless
  c is ahead; and c is one of num_classes - 1, whichever has the most draws.
  """
  own, other = np.moveaxis(np.asarray(votes), -1, 0)
  together = np.maximum(own + other, 1)
  return bounds.clopper_pearson_lower(other, together, alpha / (num_classes - 1)) > 0.5


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
  in_box: bool = True,
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
    in_box: whether images outside [0, 1] are refused, which attacks without a box leave behind.
    alpha: probability of a wrong class, an image.

  Returns:
    [batch] int, NumPy.

  Raises:
    ValueError: sigma is negative, alpha outside (0, 1), or counts that int32 cannot hold.

  Reference: Cohen, Rosenfeld and Kolter 2019, section 3.2.1 (PREDICT).
  """
  counts, num = _fresh_counts(key, logits_fn, images, sigma=sigma, n=n, alpha=alpha,
                              batch_size=batch_size, example_ids=example_ids, in_box=in_box,
                              count=count)
  return _predicted(counts, num, sigma, alpha)


def _fresh_counts(key, logits_fn, images, *, sigma, n, alpha, batch_size, example_ids, in_box,
                  count):
  """([batch, classes] votes, how many draws they are of)."""
  inputs.check('sigma', sigma, sigma >= 0, 'at least 0')
  inputs.check('alpha', alpha, 0 < alpha < 1, 'in (0, 1)')
  images = inputs.images(images, in_box=in_box)
  ids = np.arange(len(images)) if example_ids is None else np.asarray(
    inputs.labels(example_ids, len(images), name='example_ids'))
  num = n if sigma > 0 else 1
  return np.asarray(count(
    jax.random.fold_in(keys.as_key(key), PREDICT), logits_fn, images, ids, 0, num,
    sigma=sigma, batch_size=batch_size,
  )), num


def _predicted(counts, num, sigma, alpha):
  """The class of `predict` from the votes of num draws."""
  counts = rules.with_no_class(counts, num)
  top, runner_up = np.argsort(-counts, axis=-1, kind='stable')[:, :2].T
  image = np.arange(len(counts))
  hits, misses = counts[image, top], counts[image, runner_up]
  certain = np.full(len(counts), True)
  if sigma > 0:
    certain = bounds.binomial_test(hits, hits + misses) <= alpha
  certain &= top < counts.shape[-1] - 1
  return np.where(certain, top, -1)
