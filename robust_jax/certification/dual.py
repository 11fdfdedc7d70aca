"""Dual randomized smoothing: each image is classified under a noise that is chosen for it.

h is the smoothed classifier of `choose_fn`, whose classes are noises: h(x) = k says that x is
classified by G_k, the smoothed classifier of logits_fns[k] under noise sigma_k, so that
g(x) = G_{h(x)}(x). Where h is certified within R_h of x and G_{h(x)} within R_G, every image nearer
than both has the same choice, hence the same G, and of that the same class: g is certified within
min(R_h, R_G). Of R_G alone it is not: beyond R_h another G may be asked.

Both certificates are of draws, and each may be false. The draws of the second are others than those
of the first, so that given the choice it is false with probability alpha_G at most, whatever was
chosen, and both hold but with probability alpha_h + alpha_G.

Reference: Sun, Mao and Vechev, Dual Randomized Smoothing: Beyond Global Noise Variance, 2025.
"""

from typing import NamedTuple

import jax
import numpy as np

from robust_jax import inputs, keys, schema
from robust_jax.certification import sampling
from robust_jax.certification.certify import certify
from robust_jax.types import Array, Count, Positive, Probability


class DualCertificate(NamedTuple):
  """Certificates of a batch, NumPy.

  Attributes:
    prediction: [batch] int, -1 where the choice or the class abstains.
    radius: [batch] float64, the certified l2 radius in pixel units; 0 where it abstains.
    choice: [batch] int, the noise's number; -1 where the choice abstains.
    choice_radius, class_radius: [batch] float64, those of the two, of which radius is the smaller.
  """

  prediction: Array
  radius: Array
  choice: Array
  choice_radius: Array
  class_radius: Array


@schema.checked
def certify_dual(key, choose_fn, logits_fns, images, *, choose_sigma: Positive, sigmas,
                 n0: Count = 100, n: Count = 100_000, alpha: Probability = 0.001,
                 choose_share: Probability = 0.5, batch_size: Count = 1000, example_ids=None,
                 count=sampling.count):
  """Class and l2 radius of g(x) = G_{h(x)}(x), true with probability 1 - alpha an image.

  Two calls of `certify`, the second by the classifier that the first has chosen.

  Args:
    key: one key, the root of the certification.
    choose_fn: images -> [batch, len(sigmas)] logits, trained under noise choose_sigma.
    logits_fns: a function images -> [batch, classes] logits for each noise; one that is trained for
      all of them may be given several times.
    images: [batch, ...] float32, pixel units.
    choose_sigma: standard deviation of the noise under which is chosen, pixel units. The radius is
      at most what it can certify: about 3.8 of it at the default n and alpha.
    sigmas: the standard deviations, pixel units, as many as logits_fns.
    n0, n, batch_size: as in `Fixed`, for each of the two.
    alpha: probability that an image's certificate is false.
    choose_share: the part of alpha that the choice has.
    example_ids: [batch] int, which with the key decide the noise; 0, ..., batch - 1 if None.
    count: as of `certify`.

  Returns:
    DualCertificate.

  Raises:
    ValueError: an argument out of range; sigmas, logits_fns and the logits of choose_fn are not as
      many.

  Reference: Sun, Mao and Vechev 2025.
  """
  images, sigmas = np.asarray(inputs.images(images)), np.asarray(sigmas)
  if sigmas.ndim != 1 or len(sigmas) != len(logits_fns):
    raise ValueError(f'sigmas must be {len(logits_fns)} numbers, as many as logits_fns, got '
                     f'{sigmas.tolist()}')
  choices = inputs.num_classes(choose_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32))
  if choices != len(sigmas):
    raise ValueError(f'choose_fn must have {len(sigmas)} logits, as many as sigmas, got {choices}')
  ids = np.arange(len(images)) if example_ids is None else np.asarray(
      inputs.labels(example_ids, len(images), name='example_ids'))
  settings = dict(n0=n0, n=n, batch_size=batch_size, count=count)
  choose_key, class_key = jax.random.split(keys.as_key(key))
  chosen = certify(choose_key, choose_fn, images, sigma=choose_sigma, example_ids=ids,
                   alpha=choose_share * alpha, **settings)
  prediction, class_radius = np.full(len(images), -1), np.zeros(len(images))
  for number in set(chosen.prediction.tolist()) - {-1}:
    rows = chosen.prediction == number
    found = certify(class_key, logits_fns[number], images[rows], sigma=float(sigmas[number]),
                    example_ids=ids[rows], alpha=(1 - choose_share) * alpha, **settings)
    prediction[rows], class_radius[rows] = found.prediction, found.radius
  return DualCertificate(prediction, np.minimum(chosen.radius, class_radius), chosen.prediction,
                         chosen.radius, class_radius)
