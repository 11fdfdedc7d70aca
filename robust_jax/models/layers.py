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


def max_pool(images):
  """The maximum of every 2x2 window, stride 2; an odd last row or column is dropped.

  Equal to `flax.linen.max_pool(images, (2, 2), (2, 2))`, whose gradient is a select-and-scatter
  and slow on CPU. Where several entries of a window attain the maximum the gradient is shared
  among them equally (select-and-scatter: all of it to the first).

  Args:
    images: [batch, height, width, channel].

  Returns:
    [batch, height // 2, width // 2, channel].
  """
  batch, height, width, channel = images.shape
  rows, columns = height // 2, width // 2
  windows = images[:, :2 * rows, :2 * columns].reshape(batch, rows, 2, columns, 2, channel)
  return windows.max(axis=(2, 4))
