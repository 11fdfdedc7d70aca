"""Flax's Conv and BatchNorm with what follows them, in as few passes over memory as XLA can do.

XLA:CPU sums over all axes but a short last one several times slower than over rows, and a sum is
what the gradient of a per-channel vector is too. So such arithmetic is done on rows of
[width * channel] numbers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax.cpu import onednn
from robust_jax.cpu.pooling import max_pool


class Conv(nn.Module):
  """relu(max_pool(conv(images)) + bias): `flax.linen.Conv`, its attributes and its parameters.

  The bias is added after the max-pool, on fewer entries, which is the same but that it cannot make
  entries tie by rounding.

  Attributes:
    pool: side of the max-pool's windows, in pixels; 1 for none.
    relu: whether there is a ReLU.
  """

  features: int
  kernel_size: tuple[int, int]
  strides: tuple[int, int]
  padding: str | tuple
  use_bias: bool
  kernel_init: Callable
  bias_init: Callable
  dtype: jnp.dtype
  pool: int
  relu: bool

  @nn.compact
  def __call__(self, images):
    kernel = self.param('kernel', self.kernel_init,
                        (*self.kernel_size, images.shape[-1], self.features))
    padding = self.padding
    if isinstance(padding, str):
      padding = jax.lax.padtype_to_pads(images.shape[1:3], self.kernel_size, self.strides, padding)
    out = onednn.conv(images.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides,
                      padding=padding)
    if self.pool > 1:
      out = max_pool(out, self.pool)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
      out = _shift(_rows(out), bias, self.relu).reshape(out.shape)
    elif self.relu:
      out = nn.relu(out)
    return out


class BatchNorm(nn.Module):
  """relu(BN(images) + added): `flax.linen.BatchNorm`, its attributes and its variables.

  Attributes:
    use_affine: whether there are a scale and a bias.
    relu: whether there is a ReLU.
  """

  use_running_average: bool
  momentum: float
  epsilon: float
  axis_name: str | None
  use_affine: bool
  relu: bool

  @nn.compact
  def __call__(self, images, added):
    """[batch, ..., channel], and a shortcut of that shape or None -> float32 of that shape."""
    channels = images.shape[-1:]
    stored_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    stored_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    x = _rows(images).astype(jnp.float32)
    if self.use_running_average:
      mean, var = stored_mean.value, stored_var.value
    else:
      mean, var = _moments(x, *channels)
      if self.axis_name is not None and not self.is_initializing():
        mean, var = _over_devices(mean, var, self.axis_name)
      if not self.is_initializing():
        for stored, new in ((stored_mean, mean), (stored_var, var)):
          stored.value = self.momentum * stored.value + (1 - self.momentum) * new
    factor = jax.lax.rsqrt(var + self.epsilon)
    if self.use_affine:
      factor *= self.param('scale', nn.initializers.ones, channels)
    shift = -mean * factor
    if self.use_affine:
      shift += self.param('bias', nn.initializers.zeros, channels)
    x *= _per_row(factor, x)
    if added is not None:
      x += _rows(added).astype(jnp.float32)
    return _shift(x, shift, self.relu).reshape(images.shape)


def _rows(images):
  """[batch, ..., width, channel] -> [batch * ..., width * channel]; [batch, channel] as it is."""
  if images.ndim == 2:
    return images
  return images.reshape(math.prod(images.shape[:-2]), math.prod(images.shape[-2:]))


def _per_row(vector, rows):
  """A vector [channel] as it applies to each of the `_rows`: [width * channel]."""
  return jnp.tile(vector, rows.shape[-1] // len(vector))


def _channel_mean(rows, channels):
  """The mean over everything but channels: [rows, width * channels] -> [channels]."""
  return rows.mean(axis=0).reshape(-1, channels).mean(axis=0)


def _moments(rows, channels):
  """Mean and variance over everything but channels, in one pass: E x = s + E d and
  Var x = E d^2 - (E d)^2, where d = x - s.

  The shift s, the mean of the first row, makes both exact to float32 where the mean is many
  standard deviations, as E x^2 - (E x)^2 is not.
  """
  shift = jax.lax.stop_gradient(_channel_mean(rows[:1], channels))
  apart = rows - _per_row(shift, rows)
  mean = _channel_mean(apart, channels)
  return shift + mean, jnp.maximum(_channel_mean(jnp.square(apart), channels) - jnp.square(mean), 0)


def _over_devices(mean, var, axis_name):
  """Mean and variance over all devices, of those of each, which have equal parts of the batch.

  As two sums: XLA:CPU refuses the mean over gathered devices in ResNet-50's train step.
  """
  whole = jax.lax.pmean(mean, axis_name)
  return whole, jax.lax.pmean(var + jnp.square(mean - whole), axis_name)


def _shift(rows, shift, relu):
  """rows + shift, of [channel], and its ReLU if that follows."""
  return _shifted_relu(rows, shift) if relu else rows + _per_row(shift, rows)


@jax.custom_jvp
def _shifted_relu(rows, shift):
  """relu(rows + shift), shift of [channel].

  As max(rows, -shift) + shift, and its gradient by its result: so XLA:CPU makes one pass of it and
  of what comes before, where it would write out rows + shift for the gradient, and the zeros of
  max(..., 0) for every pixel.
  """
  # As a number of its own: were a product fused into the sum, 0 would be its rounding error.
  shift = jax.lax.optimization_barrier(shift)
  return jnp.maximum(rows, _per_row(-shift, rows)) + _per_row(shift, rows)


@_shifted_relu.defjvp
def _shifted_relu_jvp(primals, tangents):
  rows, _ = primals
  d_rows, d_shift = tangents
  result = _shifted_relu(*primals)
  return result, jnp.where(result > 0, d_rows + _per_row(d_shift, rows), 0)
