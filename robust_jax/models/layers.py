"""Layers that the families share, each applied inside a compact module.

The published figures come from PyTorch networks: padding, BatchNorm and initialisation are
PyTorch's. Every layer computes in `dtype` and keeps its parameters and statistics in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax import keys
from robust_jax.cpu import onednn
from robust_jax.errors import UserError
from robust_jax.types import Interval

Dtype = Literal['float32', 'bfloat16']
"""What a network computes in; parameters, BatchNorm statistics and logits are float32."""
Activation = Literal['relu', 'swish']
Rate = Annotated[float, Interval(0, 1, open_high=True)]
"""The probability that dropout drops an entry."""

# An initialisation maps a layer's fan_in to the initialisers of its kernel and its bias.


def uniform(fan_in):
  """U(-b, b) with b = 1 / sqrt(fan_in), kernels and biases alike: PyTorch's default."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init, init


def fan_out_normal(fan_in):
  """N(0, 2 / fan_out), not truncated (He et al. 2015), and zero biases."""
  del fan_in
  return nn.initializers.variance_scaling(2, 'fan_out', 'normal'), nn.initializers.zeros


def conv(images, features, *, name, kernel_size=3, stride=1, padding=None, bias=False, pool=1,
         relu=False, initialise=uniform, dtype='float32'):
  """A square convolution, and a max-pool and ReLU if they follow.

  Args:
    images: [batch, height, width, channel].
    features: channels of the result.
    name: of the layer's parameters.
    kernel_size: side of the kernel, in pixels.
    stride: in pixels.
    padding: 'SAME' or 'VALID'; None pads kernel_size // 2 on every side, as PyTorch's networks
      do at any stride, where 'SAME' pads (0, 1) at stride 2.
    bias: whether there is one.
    pool: side of the windows of `max_pool`, in pixels; 1 for none. The bias is added after it,
      which is the same, on fewer entries (but that it cannot make entries tie by rounding).
    relu: whether ReLU follows, after the pool, with which it commutes.
    initialise: fan_in -> (kernel_init, bias_init).
    dtype: what it computes in.

  Returns:
    [batch, height', width', features] in `dtype`.
  """
  kernel_init, bias_init = initialise(kernel_size**2 * images.shape[-1])
  padding = padding or ((kernel_size // 2, kernel_size // 2),) * 2
  return _Conv(features, kernel_size, stride, padding, bias, pool, relu, kernel_init, bias_init,
               dtype, name=name)(images)


class _Conv(nn.Module):
  """`flax.linen.Conv` in its parameters; see `conv`."""

  features: int
  kernel_size: int
  stride: int
  padding: str | tuple
  bias: bool
  pool: int
  relu: bool
  kernel_init: Callable
  bias_init: Callable
  dtype: str

  @nn.compact
  def __call__(self, images):
    size, strides = (self.kernel_size,) * 2, (self.stride,) * 2
    kernel = self.param('kernel', self.kernel_init, (*size, images.shape[-1], self.features))
    padding = self.padding
    if isinstance(padding, str):
      padding = jax.lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    out = onednn.conv(images.astype(self.dtype), kernel.astype(self.dtype), strides=strides,
                      padding=padding)
    if self.pool > 1:
      out = max_pool(out, self.pool)
    if self.bias:
      bias = self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
      out = _shift(_rows(out), bias, self.relu).reshape(out.shape)
    elif self.relu:
      out = nn.relu(out)
    return out


# XLA:CPU sums over all axes but a short last one several times slower than over rows, and a sum
# is what the gradient of a per-channel vector is too. So such arithmetic is done on rows of
# [width, channel] pixels.


def _rows(images):
  """[batch, ..., width, channel] -> [batch * ..., width * channel]; [batch, channel] as it is."""
  if images.ndim == 2:
    return images
  return images.reshape(math.prod(images.shape[:-2]), math.prod(images.shape[-2:]))


def _per_row(vector, rows):
  """A vector [channel] as it applies to each of the `_rows`: [width * channel]."""
  return jnp.tile(vector, rows.shape[-1] // len(vector))


@jax.custom_jvp
def _scale(rows, factor):
  """rows * factor, of [channel].

  The factor that its gradient multiplies by is kept apart from this one, because XLA:CPU would
  otherwise write it down for every pixel, to have it for both.
  """
  return rows * _per_row(factor, rows)


@_scale.defjvp
def _scale_jvp(primals, tangents):
  rows, factor = primals
  d_rows, d_factor = tangents
  apart = jax.lax.optimization_barrier(factor)
  return _scale(rows, factor), d_rows * _per_row(apart, rows) + rows * _per_row(d_factor, rows)


def _shift(rows, shift, relu):
  """rows + shift, of [channel], and its ReLU if that follows."""
  return _shifted_relu(rows, shift) if relu else rows + _per_row(shift, rows)


@jax.custom_jvp
def _shifted_relu(rows, shift):
  """relu(rows + shift), shift of [channel].

  As max(rows, -shift) + shift, and its gradient by its result: so XLA:CPU makes one pass of it and
  of what comes before, where it would write down rows + shift for the gradient, and the zeros of
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


def _channel_mean(rows, channels):
  """The mean over everything but channels: [rows, width * channels] -> [channels]."""
  return rows.mean(axis=0).reshape(-1, channels).mean(axis=0)


def dense(inputs, features, *, name, initialise=uniform, dtype='float32'):
  """A dense layer with a bias: [batch, features_in] -> [batch, features] in `dtype`.

  Raises:
    UserError: there are no inputs, because convolutions and pools left nothing of the image.
  """
  if not inputs.shape[-1]:
    raise UserError('the images are too small for this network: its convolutions and pools leave '
                    'no pixel')
  kernel_init, bias_init = initialise(inputs.shape[-1])
  return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, dtype=jnp.dtype(dtype),
                  name=name)(inputs)


def norm(images, *, name, train, axis_name=None, affine=True, added=None, activation=None,
         momentum=0.9, epsilon=1e-5, dtype='float32'):
  """activation(BN(images) + added), with BatchNorm over all axes but the last.

  With `train` the statistics of `images`, over all devices of `axis_name`, normalise, and update
  the stored ones as momentum old + (1 - momentum) new (the variance is the biased one, where
  PyTorch stores the unbiased).

  Args:
    images: [batch, ..., channel].
    name: of the layer's parameters and statistics.
    train: whether to use batch statistics.
    axis_name: the mapped axis over which they are averaged, or None.
    affine: whether a learned scale and bias follow.
    added: a shortcut, shaped as `images`; None for none.
    activation: 'relu' or 'swish'; None for none.
    momentum: weight of the stored statistics in their update.
    epsilon: added to the variance.
    dtype: of the result; the arithmetic is float32.

  Returns:
    [batch, ..., channel] in `dtype`.

  Raises:
    ValueError: there is no such activation.
  """
  if activation not in (None, *get_args(Activation)):
    raise ValueError(f'activation is {activation!r}; relu, swish or None is allowed')
  return _BatchNorm(train, axis_name, affine, activation, momentum, epsilon, dtype,
                    name=name)(images, added)


class _BatchNorm(nn.Module):
  """`flax.linen.BatchNorm` in its variables; see `norm`."""

  train: bool
  axis_name: str | None
  affine: bool
  activation: Activation | None
  momentum: float
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, images, added):
    channels = images.shape[-1:]
    stored_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    stored_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    x = _rows(images).astype(jnp.float32)
    if self.train:
      mean, square = _channel_mean(x, *channels), _channel_mean(jnp.square(x), *channels)
      if self.axis_name is not None and not self.is_initializing():
        mean, square = jax.lax.pmean(jnp.stack([mean, square]), self.axis_name)
      var = jnp.maximum(square - jnp.square(mean), 0)
      if not self.is_initializing():
        for stored, new in ((stored_mean, mean), (stored_var, var)):
          stored.value = self.momentum * stored.value + (1 - self.momentum) * new
    else:
      mean, var = stored_mean.value, stored_var.value
    factor = jax.lax.rsqrt(var + self.epsilon)
    if self.affine:
      factor *= self.param('scale', nn.initializers.ones, channels)
    shift = -mean * factor
    if self.affine:
      shift += self.param('bias', nn.initializers.zeros, channels)
    x = _scale(x, factor)
    if added is not None:
      x += _rows(added).astype(jnp.float32)
    x = _shift(x, shift, self.activation == 'relu').astype(self.dtype).reshape(images.shape)
    return nn.swish(x) if self.activation == 'swish' else x


def dropout(inputs, rate, key, number):
  """Zeroes each entry with probability `rate` and divides the others by 1 - rate.

  The mask of an example depends on its own key alone, so neither its place in a batch nor the
  number of devices changes it.

  Args:
    inputs: [batch, ...].
    rate: in [0, 1).
    key: [batch] keys; None for none to be dropped, in evaluation.
    number: of this layer in its network, which no other layer has.

  Returns:
    [batch, ...].
  """
  if rate == 0 or key is None:
    return inputs
  draw = lambda one: jax.random.bernoulli(one, 1 - rate, inputs.shape[1:])
  kept = jax.vmap(draw)(keys.fold_in(key, number))
  return jnp.where(kept, inputs / (1 - rate), 0)


def average(images):
  """Global average pool: [batch, height, width, channel] -> [batch, channel] float32."""
  return images.astype(jnp.float32).mean(axis=(1, 2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(images, size=2):
  """The maximum of every size x size window, stride `size`; rows and columns left over are dropped.

  `flax.linen.max_pool` in its values and its gradient (where entries of a window tie, all of it
  goes to the first, row by row, as in PyTorch), but differentiated by comparisons: its own
  select-and-scatter is slow on CPU (LeNet's input gradient: 960 images/s for 1,470 on one core). A
  custom JVP leaves forward mode, vmap and second derivatives possible.

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
  chosen = jnp.where(_first_of(images, maximum, size), _windows(tangent, size), 0)
  return maximum, chosen.sum((2, 4))


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
  """[batch, rows, size, columns, size, channel], without rows and columns left over."""
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  whole = images[:, :rows * size, :columns * size]
  return whole.reshape(batch, rows, size, columns, size, channels)
