"""VGG with BatchNorm and dropout, for CIFAR-sized images.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from robust_jax.models import layers
from robust_jax.types import Count


class VGG(nn.Module):
  """Stages of [conv3x3, BN, ReLU, dropout] that end in a max-pool; dense, BN, ReLU; dense.

  Attributes:
    width: channels of the first stage.
  """

  num_classes: int
  width: int = 64
  dtype: layers.Dtype = 'float32'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train, key=None):
    """Images [batch, height, width, channel] -> logits [batch, classes] float32."""
    conv = functools.partial(layers.conv, bias=True, initialise=layers.fan_out_normal,
                             dtype=self.dtype)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
    x = images
    for stage, (convs, factor) in enumerate([(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)], start=1):
      for number in range(1, convs + 1):
        x = conv(x, factor * self.width, name=f'stage{stage}_conv{number}')
        x = norm(x, epsilon=1e-3, activation='relu', name=f'stage{stage}_norm{number}')
        if number < convs:
          x = layers.dropout(x, 0.3 if stage == 1 else 0.4, key, 10 * stage + number)
      x = _ceil_pool(x)
    x = layers.dropout(x.reshape(x.shape[0], -1), 0.5, key, 1)
    x = layers.dense(x, 8 * self.width, dtype=self.dtype, name='dense')
    x = layers.dropout(norm(x, activation='relu', name='norm'), 0.5, key, 2)
    return layers.dense(x, self.num_classes, name='logits')


def _ceil_pool(images):
  """2x2 max-pool of stride 2 that keeps an odd last row or column."""
  odd = ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0))
  return layers.max_pool(jnp.pad(images, odd, constant_values=-jnp.inf))


def vgg(num_classes, *, width: Count = 64, dtype: layers.Dtype = 'float32'):
  """VGG-16 with BatchNorm and dropout: 14,991,946 parameters at 32x32x3 and 10 classes.

  Five stages of 2, 2, 3, 3, 3 x [conv3x3, BN, ReLU] with 1, 2, 4, 8, 8 times `width` channels,
  each followed by a 2x2 max-pool; dropout 0.3 (first stage) or 0.4 after every convolution but the
  stage's last; dropout 0.5, dense of 8 times `width`, BN, ReLU, dropout 0.5, dense.

  Args:
    width: channels of the first stage.

  Reference:
    Zagoruyko, 92.45% on CIFAR-10 in Torch, torch.ch/blog, 2015 (github.com/szagoruyko/cifar.torch,
    vgg_bn_drop); the CIFAR-10 network of Shaham et al. 2015.
  """
  return VGG(num_classes, width, dtype=dtype)
