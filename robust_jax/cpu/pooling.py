"""Max-pooling whose gradient is a comparison instead of XLA's select-and-scatter."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(images, size):
  """`flax.linen.max_pool` of size x size windows, stride `size`, with a faster gradient.

  The same values and gradient: where entries of a window tie, the first, row by row, has all of it.
  Being a custom JVP it leaves forward mode, vmap and second derivatives possible.

  Args:
    images: [batch, height, width, channel].
    size: side of the windows, in pixels.

  Returns:
    [batch, height // size, width // size, channel].
  """
  return nn.max_pool(images, (size, size), (size, size))


@max_pool.defjvp
def _max_pool_jvp(size, primals, tangents):
  images, = primals
  tangent, = tangents
  maximum = max_pool(images, size)
  passed = jnp.where(_first_of(images, maximum, size), _windows(tangent, size), 0)
  return maximum, passed.sum((2, 4))


def _first_of(images, maximum, size):
  """Whether an entry is the first of its window to have the maximum, as `_windows`."""
  windows = _windows(images, size)
  places = jnp.arange(size**2).reshape(size, 1, size, 1)
  first = jnp.full(maximum.shape, size**2 - 1)
  for place in reversed(range(size**2 - 1)):
    row, column = divmod(place, size)
    first = jnp.where(windows[:, :, row, :, column] == maximum, place, first)
  return first[:, :, None, :, None] == places


def _windows(images, size):
  """[batch, rows, size, columns, size, channel], without the rows and columns left over."""
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  whole = images[:, :rows * size, :columns * size]
  return whole.reshape(batch, rows, size, columns, size, channels)
