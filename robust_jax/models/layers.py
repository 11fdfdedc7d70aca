"""Layers that the families share, each applied inside a compact module.

The published figures come from PyTorch networks: padding, BatchNorm and initialisation are
PyTorch's. Every layer computes in `dtype` and keeps its parameters and statistics in float32.
"""

import math
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax import backend, keys
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


def ibp_normal(fan_in):
  """N(0, 2 pi / fan_in^2), not truncated, and biases as those of `uniform`.

  Of a layer after a ReLU, the expected width of an interval is then that of its inputs, where
  `uniform` widens it with the root of fan_in.

  Reference:
    Shi et al., Fast Certified Robust Training with Short Warmup, 2021. They keep the last layer as
    it is, and so do the models here.
  """
  return nn.initializers.normal(math.sqrt(2 * math.pi) / fan_in), uniform(fan_in)[1]


def conv(images, features, *, name, kernel_size=3, stride=1, padding=None, bias=False, pool=1,
         relu=False, groups=1, initialise=uniform, dtype='float32'):
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
    pool: side of the windows of `max_pool`, in pixels; 1 for none.
    relu: whether ReLU follows, after the pool, with which it commutes.
    groups: of channels that are convolved by themselves, as many as there are in a depthwise one.
    initialise: fan_in -> (kernel_init, bias_init).
    dtype: what it computes in.

  Returns:
    [batch, height', width', features] in `dtype`.
  """
  kernel_init, bias_init = initialise(kernel_size**2 * images.shape[-1] // groups)
  settings = dict(
      features=features, kernel_size=(kernel_size, kernel_size), strides=(stride, stride),
      padding=padding or ((kernel_size // 2, kernel_size // 2),) * 2, use_bias=bias,
      kernel_init=kernel_init, bias_init=bias_init, dtype=jnp.dtype(dtype), name=name)
  cpu = backend.layers()
  if cpu and groups == 1:
    return cpu.Conv(pool=pool, relu=relu, **settings)(images)
  x = nn.Conv(feature_group_count=groups, **settings)(images)
  x = max_pool(x, pool) if pool > 1 else x
  return nn.relu(x) if relu else x


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
    raise ValueError(f'activation must be relu, swish or None, got {activation!r}')
  settings = dict(use_running_average=not train, momentum=momentum, epsilon=epsilon,
                  axis_name=axis_name, name=name)
  if cpu := backend.layers():
    x = cpu.BatchNorm(use_affine=affine, relu=activation == 'relu', **settings)(images, added)
  else:
    # The fast variance, E x^2 - (E x)^2, loses its digits where the mean is many deviations.
    x = nn.BatchNorm(use_scale=affine, use_bias=affine, dtype=jnp.float32, use_fast_variance=False,
                     **settings)(images)
    x = x if added is None else x + added
    x = nn.relu(x) if activation == 'relu' else x
  x = x.astype(dtype)
  return nn.swish(x) if activation == 'swish' else x


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


def max_pool(images, size=2):
  """The maximum of every size x size window, stride `size`; rows and columns left over are dropped.

  Where entries of a window tie, the first, row by row, has all of the gradient, as in PyTorch.

  Args:
    images: [batch, height, width, channel].
    size: side of the windows, in pixels.

  Returns:
    [batch, height // size, width // size, channel].
  """
  if cpu := backend.layers():
    return cpu.max_pool(images, size)
  return nn.max_pool(images, (size, size), (size, size))
