"""Certificates of 8-bit images that hold in floating-point arithmetic: integer noise.

The theorem of randomized smoothing is about x + N with real numbers. The sum of two float32 is
rounded, and how depends on both: a classifier that looks at the last bits can tell an image from
the noise, and is certified a radius that it does not have (Voracek and Hein 2022). Here nothing is
rounded. Images and noise are integers in units of 1 / steps, so their sum is one, and the
classifier sees a function of the sum alone.

What is certified. Let Z be the images whose pixels are multiples of 1 / steps (8-bit images for
steps = 255, whatever their pixels' range), f the classifier on Z, N ~ N(0, sigma^2 I), round(z)
the element of Z nearest to z, and

  g(x) = argmax_c P(f(x + round(N)) = c)        for x in Z.

For x in Z, x + round(N) = round(x + N). So g is the ordinary smoothed classifier, with real
Gaussian noise, of F = f o round, which is defined for all real images; the theorem holds for F as
for any function. Hence, with probability at least 1 - alpha, g(x + d) is the certified class for
every d with |d|_2 <= radius and x + d in Z: the radius is sigma * Phi^-1(p_lower), as ever, and the
rounding costs nothing. It does say nothing of a perturbed image that is not in Z, which g does not
take: rounding it to Z first may move it by up to sqrt(pixels) / (2 * steps) more. Perturbations of
an image file are in Z for steps = 255; a multiple of 255 has finer ones.

What is drawn. A pixel of steps * round(N) is K with a fair sign and P(|K| >= k) = p_k =
2 Phi(-(k - 1/2) / (steps * sigma)). It is drawn from 64 bits, one of them the sign, the others an
integer u: |K| = #{k >= 1 : u < T_k}, T_k = p_k * 2^63 rounded to an integer (`thresholds`). Drawn
from a real uniform number, with p_k in place of T_k / 2^63, |K| would differ only where that number
is between the two for some k: with probability at most 2^-64 for each T_k > 0, and once more for
all further k (`discrepancy`). So the n draws of an image are those of g but for an event of
probability at most n * pixels * discrepancy, whatever is computed from them: 2e-8 for 100,000 draws
of CIFAR-10 at sigma 0.5. That may be up to a hundredth of alpha, and a hundredth is taken off it
(see `noise_sources`).

What remains to be believed: that threefry's bits are as good as random ones, and that f is one
function (the logits of a pass of one shape, on one machine; see `sampling`).

Reference: Voracek and Hein 2022, "Sound randomized smoothing in floating-point arithmetics".
"""

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from robust_jax import inputs, smoothing
from robust_jax.keys import random_words

_BITS = 63
_PI = decimal.Decimal('3.14159265358979323846264338327950288419716939937510582097494459')
# Sums of float32 recover an integer below this with room to spare; see `on_grid`.
_LARGEST = 2**20


def thresholds(sigma, steps=255):
  """T_k = 2^63 * 2 Phi(-(k - 1/2) / (steps * sigma)), to the nearest integer, for k = 1, 2, ...

  P(|K| >= k) for K = steps * N(0, sigma^2) rounded to the nearest integer, in units of 2^-63; up to
  the last one that is not 0, 9.1 sigma. Evaluated to 50 digits.

  Args:
    sigma: standard deviation of the noise, pixel units; its float32 value is used.
    steps: integers a pixel unit.

  Returns:
    tuple of int, decreasing.

  Raises:
    ValueError: sigma is not positive, steps no multiple of 255, or noise that with an image of
      [0, 1] would exceed 2^20 steps.
  """
  inputs.check('sigma', sigma, 0 < sigma < math.inf, 'in (0, inf)')
  inputs.check('steps', steps, steps >= 1 and steps % 255 == 0, 'a positive multiple of 255')
  most = (_LARGEST / steps - 1) / 9.2
  inputs.check('sigma', sigma, sigma <= most, f'at most {most:g} at steps={steps}')
  return _thresholds(float(np.float32(sigma)), int(steps))


@functools.cache
def _thresholds(sigma, steps):
  with decimal.localcontext() as context:
    context.prec = 60
    scale = 8 * (steps * decimal.Decimal(sigma)) ** 2
    found = []
    while not found or found[-1]:
      squared = (2 * len(found) + 1) ** 2 / scale
      found.append(int((2**_BITS * _erfc_of_root(squared)).to_integral_value()))
  return tuple(found[:-1])


def _erfc_of_root(squared):
  """erfc(x) of x^2: 1 - 2x / sqrt(pi) exp(-x^2) sum_n (2 x^2)^n / (1 * 3 * ... * (2n + 1))."""
  term = total = decimal.Decimal(1)
  odd = 1
  while term > total * decimal.Decimal('1e-58'):
    odd += 2
    term *= 2 * squared / odd
    total += term
  return 1 - 2 * (squared / _PI).sqrt() * (-squared).exp() * total


def discrepancy(sigma, steps=255):
  """Bound of the total variation distance, a pixel, between the drawn noise and round(N).

  (1 + number of thresholds) * 2^-64. Arguments and errors as in `thresholds`.
  """
  return (1 + len(thresholds(sigma, steps))) * 2.0 ** -(_BITS + 1)


@functools.cache
def noise(sigma, steps=255):
  """A noise source for `sampling.count`: N(0, sigma^2) rounded to multiples of 1 / steps.

  The same function for the same arguments, so that nothing compiles twice. For another sigma than
  its own it gives NaN, which vote for no class. Arguments and errors as in `thresholds`.

  Returns:
    (key, shape, sigma) -> [*shape] float32, integers divided by steps.
  """
  levels = thresholds(sigma, steps)
  # One 0, which is below no u, and more to a power of two.
  table = np.zeros(1 << len(levels).bit_length(), np.uint64)
  table[1:1 + len(levels)] = levels
  own_sigma = np.float32(sigma)

  def integer_noise(key, shape, sigma):
    first, second = random_words(key, math.prod(shape))
    count = magnitude(first & 0x7FFFFFFF, second, table).astype(jnp.float32)
    signed = jnp.where(first >> 31 == 0, count, -count)
    scale = jnp.where(sigma == own_sigma, jnp.float32(1 / steps), jnp.nan)
    return (signed * scale).reshape(shape)

  return integer_noise


def magnitude(high, low, table):
  """#{k >= 1 : u < table[k]} for u = 2^32 * high + low: by bisection.

  That of the high words finds all k but those whose high word is the same as that of u, about one
  pixel in a million has any; a loop then adds them until the next level is not above u.

  Args:
    high, low: [num] uint32.
    table: [2^m] uint64, NumPy: table[0] is not read, the others do not increase.

  Returns:
    [num] int32.
  """
  levels = np.append(table, np.uint64(0))  # The count may be the last index of the table.
  highs, lows = (jnp.asarray(words.astype(np.uint32))
                 for words in (levels >> 32, levels & 0xFFFFFFFF))
  value = lambda array, index: array.at[index].get(mode='promise_in_bounds')

  def halve(i, found):
    middle = found + (len(table) >> (i + 1))
    return jnp.where(high < value(highs, middle), middle, found)

  def is_below(index):
    same = (high == value(highs, index)) & (low < value(lows, index))
    return same | (high < value(highs, index))

  def add(state):
    found, more = state
    found = found + more.astype(jnp.int32)
    return found, is_below(found + 1)

  found = jax.lax.fori_loop(0, len(table).bit_length() - 1, halve, jnp.zeros(high.shape, jnp.int32))
  return jax.lax.while_loop(lambda state: state[1].any(), add, (found, is_below(found + 1)))[0]


def on_grid(logits_fn, steps=255):
  """The classifier of the nearest integers: logits_fn(rint(steps * images) / steps).

  For images and noise that are float32 multiples of 1 / steps, of fewer than 2^20 steps in all, the
  float32 sum is within 0.4 of the integer sum, so that what logits_fn is given depends on the
  integer sum alone.

  Args:
    logits_fn: images -> [batch, classes] logits.
    steps: integers a pixel unit.

  Returns:
    A pytree, images -> logits; it compiles again where logits_fn or steps would.
  """
  logits_fn = smoothing.as_pytree(logits_fn)
  return jax.tree_util.Partial(_rounded(steps), logits_fn)


@functools.cache
def _rounded(steps):
  def rounded_logits(logits_fn, images):
    # Integers proper have one zero; what is not finite stays so.
    numbers = jnp.rint(images * steps).astype(jnp.int32).astype(jnp.float32)
    return logits_fn(jnp.where(jnp.isfinite(images), numbers / steps, jnp.nan))

  return rounded_logits


def check_images(images, steps=255):
  """Raises ValueError, in one line, where a pixel is outside [0, 1] or off the grid."""
  pixels = np.asarray(images, np.float64)
  inputs.check('pixels', pixels, (pixels >= 0) & (pixels <= 1), 'in [0, 1]')
  distance = np.abs(pixels * steps - np.rint(pixels * steps))
  inputs.check('pixels', pixels, distance <= steps * 2.0**-24,
               f'multiples of 1/{steps} in float32')
