"""The two kinds of noise that a certifier can name, and all that depends on which one it is.

'gaussian' draws float32 (`sampling.gaussian_noise`), 'integer' whole numbers for 8-bit images
(module `integer_noise`, which says why).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from robust_jax import inputs
from robust_jax.certification import integer_noise, sampling

Noise = Literal['gaussian', 'integer']

# The share of alpha that integer noise may spend on being drawn with finitely many bits.
INTEGER_SHARE = 0.01


class Source(NamedTuple):
  """A source of noise for a fixed sigma.

  Attributes:
    noise_fn: (key, shape, sigma) -> [*shape], for `sampling.count`.
    base: logits_fn -> logits_fn, the classifier that is smoothed, of the one that is given.
    check: (images, n, alpha) -> None; raises ValueError where images [batch, ...] are not on the
      grid of this noise, or alpha is too small for n draws (`check_alpha`).
  """

  noise_fn: Callable[..., Any]
  base: Callable[..., Any]
  check: Callable[..., None]


def make(noise: Noise, sigma) -> Source:
  """The source of that name for N(0, sigma^2).

  Raises:
    ValueError: another name, or a sigma out of range (`integer_noise.thresholds`).
  """
  if noise == 'gaussian':
    return Source(sampling.gaussian_noise, lambda logits_fn: logits_fn, lambda *_: None)
  if noise != 'integer':
    raise ValueError(f"noise must be 'gaussian' or 'integer', got {noise!r}")

  def check(images, n, alpha):
    integer_noise.check_images(images)
    check_alpha(alpha, noise, sigma=sigma, n=n, pixels=images[0].size)

  return Source(integer_noise.noise(sigma), integer_noise.on_grid, check)


def loss(noise: Noise, *, sigma, n, pixels):
  """Largest probability that the n draws of an image differ from those of exact noise.

  0 for 'gaussian', whose certificates take float32 draws as exact.
  """
  return 0. if noise == 'gaussian' else n * pixels * integer_noise.discrepancy(sigma)


def check_alpha(alpha, noise: Noise, *, sigma, n, pixels):
  """Raises ValueError where the `loss` is more than what integer noise may spend of alpha."""
  lost = loss(noise, sigma=sigma, n=n, pixels=pixels)
  if lost > INTEGER_SHARE * alpha:
    raise ValueError(f'alpha must be at least {lost / INTEGER_SHARE:.3g} for {n} draws of {pixels} '
                     f"pixels with noise='integer', got {alpha}")


def counted_alpha(alpha, noise: Noise):
  """The part of alpha for the bounds on the counts: all of it, or 0.99 alpha for integer noise.

  The other hundredth covers draws that differ from exact integer noise (`check_alpha`).

  Raises:
    ValueError: alpha outside (0, 1).
  """
  inputs.check('alpha', alpha, 0 < alpha < 1, 'in (0, 1)')
  return alpha if noise == 'gaussian' else (1 - INTEGER_SHARE) * alpha
