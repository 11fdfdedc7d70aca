"""Deterministic smoothing of 8-bit images, certified in l1: no draws, no probability of error.

Splitting noise shows the classifier no pixel, but the middle of the cell of [0, 1] that it lies in:
cells are 2 lambda wide, lambda = sqrt(3) sigma, and where they begin differs from pass to pass.
Pixel j is split at s_j = ((t_j + o) mod L + 1/2) / 255 in pass o = 0, ..., L - 1, L = floor(510
lambda), and every further L / 255; t_j is drawn once, from a seed that belongs to the classifier.
The smoothed classifier is g(x) = argmax_c n_c, n_c the number of passes in which f says c, the
smallest c of equals.

Between two neighbouring levels of a pixel there is a split in one pass of L, whatever t_j. So
images at an l1 distance of d / 255 look the same in all passes but d, and each of those may take a
vote from one class and give it to another: g(x) is the class of all 8-bit images within d / 255, as
long as 2 d <= n_top - n_second, less one where the second class is the smaller number, which wins a
draw. All of this is of integers; what remains to be believed is that f is one function: the logits
of passes of one shape, on one machine.

Reference: Levine and Feizi, Improved, Deterministic Smoothing for l1 Certified Robustness, 2021
(section 4; DSSN).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robust_jax import inputs, keys, schema, smoothing
from robust_jax.certification import integer_noise
from robust_jax.types import Array, Count, Index, Positive


class SplitCertificate(NamedTuple):
  """Certificates of a batch, NumPy.

  Attributes:
    prediction: [batch] int; -1 where no pass voted, for NaN in all logits.
    radius: [batch] float64, the certified l1 radius in pixel units, of 8-bit images.
    counts: [batch, classes] int, passes that voted for each class; one with a NaN votes for none.
  """

  prediction: Array
  radius: Array
  counts: Array


def num_passes(sigma, steps=255):
  """L: levels between two splits of a pixel, and passes of an image.

  Raises:
    ValueError: sigma that is less than half a level, or no number.
  """
  inputs.check('sigma', sigma, 0 < sigma < math.inf, 'above 0')
  # Of a sigma that means a whole number of levels, float64 may be just below.
  number = math.floor(2 * math.sqrt(3) * sigma * steps * (1 + 1e-12))
  inputs.check('sigma', sigma, number >= 1, f'at least {1 / (2 * math.sqrt(3) * steps):.3g}')
  return number


def template(seed, shape, num):
  """t: an image [*shape] of integers below num, from an integer seed; see the module."""
  return jax.random.randint(keys.root(seed), shape, 0, num)


def split(images, offsets, template, num, steps=255):
  """Images as the passes see them: the middle of each pixel's cell, cut to [0, 1].

  Args:
    images: [batch, ...] float32, multiples of 1 / steps in [0, 1].
    offsets: [batch] int, the pass of each image.
    template: [...] int, below num.
    num: L, from `num_passes`.
    steps: levels of a pixel less one.

  Returns:
    [batch, ...] float32.
  """
  level = jnp.round(images * steps).astype(jnp.int32)
  offsets = jnp.reshape(offsets, (-1,) + (1,) * (images.ndim - 1))
  # In halves of a level, as splits are between two.
  first = 2 * ((template + offsets) % num) + 1
  upper = first - 2 * num * ((first - 2 * level) // (2 * num))
  lower = jnp.clip(upper - 2 * num, 0, 2 * steps)
  return (lower + jnp.clip(upper, 0, 2 * steps)).astype(jnp.float32) / (4 * steps)


@schema.checked
def certify_splitting(logits_fn, images, *, sigma: Positive, seed: Index = 0,
                      batch_size: Count = 220):
  """Class and l1 radius of the classifier smoothed by splitting noise; exact.

  Args:
    logits_fn: [batch_size, ...] -> [batch_size, classes]; a row's logits depend on that row only.
    images: [batch, ...] float32, multiples of 1/255 in [0, 1], as 8-bit images are.
    sigma: standard deviation of a pixel's split, pixel units; the network is trained with it, on
      images of `split` with random offsets. An image takes floor(883.3 sigma) passes, and the
      largest radius is half of them over 255.
    seed: of the template, an integer; a part of the classifier, the same in training.
    batch_size: rows of one forward pass; a part of what is certified, as in `certify`.

  Returns:
    SplitCertificate.

  Raises:
    ValueError: images that are not 8-bit, or an argument out of range.

  Reference: Levine and Feizi 2021, section 4.
  """
  images = inputs.images(images)
  integer_noise.check_images(images)
  num = num_passes(sigma)
  counts = np.asarray(_count(smoothing.as_pytree(logits_fn), jnp.asarray(images),
                             template(seed, images.shape[1:], num), num=num,
                             batch_size=batch_size))
  return certificate(counts)


def certificate(counts, steps=255):
  """The `SplitCertificate` of the votes [batch, classes] of all passes."""
  counts = np.asarray(counts)
  top = counts.argmax(axis=-1)
  others = counts.astype(np.int64)
  np.put_along_axis(others, top[:, None], -1, axis=-1)
  second = others.argmax(axis=-1)
  gap = counts.max(axis=-1) - others.max(axis=-1) - (second < top)
  return SplitCertificate(np.where(counts.any(axis=-1), top, -1), gap // 2 / steps, counts)


@functools.partial(jax.jit, static_argnames=('num', 'batch_size'))
def _count(logits_fn, images, template, *, num, batch_size):
  classes = inputs.num_classes(
      logits_fn, jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), images.dtype))

  def of_image(image):
    def run_pass(number, counts):
      offsets = number * batch_size + jnp.arange(batch_size)
      rows = jnp.broadcast_to(image, (batch_size, *image.shape))
      logits = logits_fn(split(rows, offsets, template, num))
      votes = (offsets < num) & ~jnp.isnan(logits).any(axis=-1)
      return counts.at[logits.argmax(axis=-1)].add(votes.astype(jnp.int32))
    return lax.fori_loop(0, -(-num // batch_size), run_pass, jnp.zeros(classes, jnp.int32))

  return lax.map(of_image, images)
