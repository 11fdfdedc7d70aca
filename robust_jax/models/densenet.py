"""DenseNets for CIFAR-sized images.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from robust_jax.errors import UserError
from robust_jax.models import layers
from robust_jax.types import Count


class DenseLayer(nn.Module):
  """One layer of a dense block: conv3x3(relu(BN(x))), x the concatenation of all before it.

  As a bottleneck conv3x3(relu(BN(conv1x1(relu(BN(x)))))), with 4 growth channels in between.

  Attributes:
    conv: layers.conv but for its images, features and name.
    norm: layers.norm but for its images, activation and name.
    growth: channels of the result.
    bottleneck: whether it has the 1x1 convolution.
  """

  conv: Callable
  norm: Callable
  growth: int
  bottleneck: bool

  @nn.compact
  def __call__(self, features):
    # Concatenate here: with remat, the quadratic number of copies is not kept.
    x = self.norm(jnp.concatenate(features, axis=-1), activation='relu', name='norm1')
    if self.bottleneck:
      x = self.conv(x, 4 * self.growth, kernel_size=1, name='conv1')
      x = self.norm(x, activation='relu', name='norm2')
      return self.conv(x, self.growth, name='conv2')
    return self.conv(x, self.growth, name='conv1')


class DenseNet(nn.Module):
  """conv3x3; three dense blocks with transitions between; BN, ReLU; global average pool; dense.

  A transition is BN, ReLU, conv1x1 and a 2x2 average pool.

  Attributes:
    num_layers: dense layers of each block.
    growth: channels that a dense layer adds.
    bottleneck: dense layers are bottlenecks, the stem has 2 growth rather than 16 channels, and
      transitions halve the number of channels.
  """

  num_classes: int
  num_layers: int
  growth: int
  bottleneck: bool = False
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes] float32."""
    conv = functools.partial(layers.conv, initialise=layers.fan_out_normal, dtype=self.dtype)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
    layer_type = nn.remat(DenseLayer) if self.remat else DenseLayer
    x = conv(images, 2 * self.growth if self.bottleneck else 16, name='conv')
    for block in (1, 2, 3):
      features = [x]
      for number in range(1, self.num_layers + 1):
        features.append(layer_type(conv, norm, self.growth, self.bottleneck,
                                   name=f'block{block}_layer{number}')(features))
      x = jnp.concatenate(features, axis=-1)
      if block < 3:
        x = norm(x, activation='relu', name=f'transition{block}_norm')
        x = conv(x, x.shape[-1] // (2 if self.bottleneck else 1), kernel_size=1,
                 name=f'transition{block}')
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x = layers.average(norm(x, activation='relu', name='norm'))
    return layers.dense(x, self.num_classes, name='logits')


def densenet(num_classes, *, depth: Count = 40, growth: Count = 12, bottleneck: bool = False,
             dtype: layers.Dtype = 'float32', remat: bool = False):
  """DenseNet of depth 3n+4, or DenseNet-BC of depth 6n+4, for CIFAR-sized images.

  DenseNet-40 of growth 12, the default, has 1,019,722 parameters at 10 classes; DenseNet-BC-100 of
  growth 12 has 769,162.

  Args:
    depth: convolutions and the dense layer: n dense layers in each of three blocks.
    growth: channels k that a dense layer adds.
    bottleneck: whether it is DenseNet-BC: 1x1 convolutions to 4k channels before the 3x3, a stem
      of 2k rather than 16 channels, and transitions that halve the number of channels.

  Raises:
    UserError: there is no such depth.

  Reference:
    Huang et al., Densely Connected Convolutional Networks, 2017.
  """
  convolutions = 6 if bottleneck else 3
  num_layers, rest = divmod(depth - 4, convolutions)
  if rest or num_layers < 1:
    raise UserError(f'config.model.depth must be {convolutions}n+4 for n >= 1, got {depth}')
  return DenseNet(num_classes, num_layers, growth, bottleneck, dtype=dtype, remat=remat)
