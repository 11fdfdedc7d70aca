"""Certificates of a batch of images, by the smoothed classifier.

g(x) = argmax_c P(f(x + noise) = c).
"""

from typing import Literal

import numpy as np

from robust_jax import inputs
from robust_jax.certification import noise_sources
from robust_jax.certification.fixed import Fixed
from robust_jax.certification.sampling import count
from robust_jax.certification.stream import Example, certify_stream
from robust_jax.types import Count, Positive, Probability


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

  As `certify_by_rule` with the rule `Fixed`, which says how.

  Args:
    key: one key, the root of the certification.
    logits_fn: images -> [batch, classes] logits.
    images: [batch, ...] float32, pixel units.
    sigma, n0, n, alpha, batch_size, bound, noise: as in `Fixed`.
    example_ids: [batch] int, which with the key decide the noise; 0, ..., batch - 1 if None.
    count: what counts votes: `sampling.count` or one that shares its passes among devices.

  Returns:
    types.Certificate, NumPy; prediction -1 and radius 0 where it abstains.

  Raises:
    ValueError: a field outside its range, counts that int32 cannot hold, or with integer noise
      pixels other than 0, 1/255, ..., 1 or an alpha too small for it.

  Reference: Cohen, Rosenfeld and Kolter 2019, theorem 1 and section 3.2.2 (CERTIFY).
  """
  images = inputs.images(images)
  rule = Fixed(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size, bound=bound,
               noise=noise)
  return certify_by_rule(key, logits_fn, images, rule, example_ids=example_ids, pool=len(images),
                         count=count)


def certify_by_rule(key, logits_fn, images, rule, *, labels=None, example_ids=None, pool=50,
                    count=count):
  """Certificates of a batch of images by a rule; see `stream.certify_stream`.

  Args:
    key, logits_fn, rule, pool, count: as there.
    images: [batch, ...] float32, pixel units.
    labels: [batch] int, where the rule tests the label.
    example_ids: [batch] int, which with the key decide the noise; 0, ..., batch - 1 if None.

  Returns:
    types.Certificate or, by a rule that stops early, `stream.StoppedCertificate`, NumPy.
  """
  images = inputs.images(images)
  ids = np.arange(len(images)) if example_ids is None else np.asarray(
    inputs.labels(example_ids, len(images), name='example_ids'))
  labels = [None] * len(images) if labels is None else inputs.labels(labels, len(images))

  def count_by_place(key, logits_fn, images, places, *args, **kwargs):
    return count(key, logits_fn, images, ids[places], *args, **kwargs)

  examples = map(Example, range(len(images)), labels, np.asarray(images))
  rounds = [each for each in certify_stream(key, logits_fn, examples, rule, count=count_by_place,
                                            pool=min(pool, len(images))) if each.certificate]
  order = np.argsort(np.concatenate([each.index for each in rounds]))
  kind = type(rounds[0].certificate)
  columns = zip(*(each.certificate for each in rounds))
  return kind(*(np.concatenate(column)[order] if isinstance(column[0], np.ndarray) else
                [sum(column, [])[i] for i in order] for column in columns))
