"""Layers that the families share: pooling with a fast gradient, and PyTorch's initialisation.

The published figures come from PyTorch networks, whose layers start from U(-b, b) with
b = 1 / sqrt(fan_in), kernels and biases alike; Flax's own default is wider and has zero biases.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

uniform_kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
"""U(-b, b) with b = 1 / sqrt(fan_in)."""


def uniform_bias(fan_in):
  """The initialiser U(-b, b) with b = 1 / sqrt(fan_in) of a bias, whose shape lacks fan_in."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def conv(images, features, *, kernel_size, padding, name):
  """A convolution of stride 1 with a bias, inside a compact module; PyTorch's initialisation."""
  fan_in = kernel_size**2 * images.shape[-1]
  return nn.Conv(features, (kernel_size, kernel_size), padding=padding, name=name,
                 kernel_init=uniform_kernel, bias_init=uniform_bias(fan_in))(images)


def dense(inputs, features, *, name):
  """A dense layer inside a compact module; PyTorch's initialisation."""
  return nn.Dense(features, name=name, kernel_init=uniform_kernel,
                  bias_init=uniform_bias(inputs.shape[-1]))(inputs)


@jax.custom_jvp
def max_pool(images):
  """The maximum of every 2x2 window, stride 2; an odd last row or column is dropped.

  `flax.linen.max_pool(images, (2, 2), (2, 2))` in its values and its gradient (where entries of a
  window tie, all of it goes to the first, row by row, as in PyTorch), but differentiated by
  comparisons: its own select-and-scatter is slow on CPU (LeNet's input gradient: 960 images/s
  for 1,470 on one core). A custom JVP leaves forward mode, vmap and second derivatives possible.

  Args:
    images: [batch, height, width, channel].

  Returns:
    [batch, height // 2, width // 2, channel].
  """
  return nn.max_pool(images, (2, 2), (2, 2))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
  images, = primals
  tangent, = tangents
  maximum = max_pool(images)
  first, second, third, _ = (corner == maximum for corner in _corners(images))
  return maximum, jnp.select([first, second, third], _corners(tangent)[:3], _corners(tangent)[3])


def _corners(images):
  """The four entries of every 2x2 window: upper left, upper right, lower left, lower right."""
  rows, columns = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
  return [images[:, row:rows:2, column:columns:2] for row in (0, 1) for column in (0, 1)]
