"""EfficientNet-Lite0, a small ImageNet classifier of inverted residual blocks.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from robust_jax.models import layers

# Of each stage: blocks, side of the depthwise kernel, stride of the first block, expansion,
# channels.
_LITE0 = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
          (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


class InvertedResidual(nn.Module):
  """BN(conv1x1(r(BN(depthwise(r(BN(conv1x1(x)))))))), plus x where the shape stays; r is ReLU6.

  Attributes:
    conv: layers.conv but for its images, features and name.
    norm: layers.norm but for its images, activation, shortcut and name.
    width: channels of the result.
    kernel_size: side of the depthwise kernel, in pixels.
    stride: of the depthwise convolution.
    expansion: channels of the depthwise convolution over those of the images; with 1 there is no
      convolution before it.
  """

  conv: Callable
  norm: Callable
  width: int
  kernel_size: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x):
    out, channels = x, self.expansion * x.shape[-1]
    if self.expansion > 1:
      out = self.conv(out, channels, kernel_size=1, name='conv1')
      out = _relu6(self.norm(out, activation='relu', name='norm1'))
    out = self.conv(out, channels, kernel_size=self.kernel_size, stride=self.stride,
                    groups=channels, initialise=layers.uniform, name='conv2')
    out = _relu6(self.norm(out, activation='relu', name='norm2'))
    out = self.conv(out, self.width, kernel_size=1, name='conv3')
    return self.norm(out, added=x if x.shape == out.shape else None, name='norm3')


def _relu6(x):
  """min(x, 6) of what went through a ReLU."""
  return jnp.minimum(x, 6)


class EfficientNetLite(nn.Module):
  """conv3x3 of stride 2; stages of `InvertedResidual`s; conv1x1; global average pool; dense.

  BN and ReLU6 follow the two convolutions. The blocks have one number from the first to the last,
  `stage1_block1` and so on, as in the checkpoints.

  Attributes:
    stages: (blocks, kernel_size, stride of the first block, expansion, width) of each.
  """

  num_classes: int
  stages: tuple[tuple[int, ...], ...] = _LITE0
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes]."""
    conv = functools.partial(layers.conv, padding='SAME', initialise=layers.fan_out_normal,
                             dtype=self.dtype)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name, momentum=0.99,
                             epsilon=1e-3, dtype=self.dtype)
    block_type = nn.remat(InvertedResidual) if self.remat else InvertedResidual
    x = _relu6(norm(conv(images, 32, stride=2, name='conv'), activation='relu', name='norm'))
    blocks = [(width, kernel_size, stride if block == 0 else 1, expansion)
              for count, kernel_size, stride, expansion, width in self.stages
              for block in range(count)]
    for number, block in enumerate(blocks, 1):
      x = block_type(conv, norm, *block, name=f'stage1_block{number}')(x)
    x = _relu6(norm(conv(x, 1280, kernel_size=1, name='last_conv'), activation='relu',
                    name='last_norm'))
    return layers.dense(layers.average(x), self.num_classes, name='logits')


def efficientnet_lite0(num_classes, *, dtype: layers.Dtype = 'float32', remat: bool = False):
  """EfficientNet-Lite0 for images of 224x224: 4,652,008 parameters at 1000 classes.

  Inverted residual blocks with ReLU6 and without squeeze-and-excitation; padding is TensorFlow's
  'SAME', which at stride 2 is (0, 1). The dropout and drop-connect of its authors' training are
  left out. Their weights take images normalised by mean 127/255 and std 128/255.

  Reference:
    Tan & Le, EfficientNet: rethinking model scaling for convolutional neural networks, 2019,
    table 1; github.com/tensorflow/tpu, models/official/efficientnet/lite.
  """
  return EfficientNetLite(num_classes, dtype=dtype, remat=remat)
