"""ResNets (v1, post-activation): those of depth 6n+2 for CIFAR-sized images, ResNet-18 and -50.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools
from collections.abc import Callable
from typing import Literal

from flax import linen as nn

from robust_jax.models import layers

Stem = Literal['imagenet', 'cifar']


class BasicBlock(nn.Module):
  """relu(BN(conv3x3(relu(BN(conv3x3(x))))) + shortcut(x)).

  The shortcut is the identity or, where the shape changes, a strided 1x1 convolution and BN.

  Attributes:
    conv: layers.conv but for its images, features and name.
    norm: layers.norm but for its images, activation, shortcut and name.
    width: channels.
    stride: stride of the first convolution.
  """

  conv: Callable
  norm: Callable
  width: int
  stride: int

  @nn.compact
  def __call__(self, x):
    out = self.conv(x, self.width, stride=self.stride, name='conv1')
    out = self.norm(out, activation='relu', name='norm1')
    out = self.conv(out, self.width, name='conv2')
    return self.norm(out, added=_shortcut(self, x, self.width), activation='relu', name='norm2')


class Bottleneck(nn.Module):
  """relu(BN(conv1x1(relu(BN(conv3x3(relu(BN(conv1x1(x)))))))) + shortcut(x)).

  The stride is the 3x3 convolution's ("v1.5", as in torchvision; He et al. have it in the first
  1x1). Attributes as of `BasicBlock`; the last convolution has 4 `width` channels.
  """

  conv: Callable
  norm: Callable
  width: int
  stride: int

  @nn.compact
  def __call__(self, x):
    out = self.conv(x, self.width, kernel_size=1, name='conv1')
    out = self.norm(out, activation='relu', name='norm1')
    out = self.conv(out, self.width, stride=self.stride, name='conv2')
    out = self.norm(out, activation='relu', name='norm2')
    out = self.conv(out, 4 * self.width, kernel_size=1, name='conv3')
    return self.norm(out, added=_shortcut(self, x, 4 * self.width), activation='relu',
                     name='norm3')


def _shortcut(block, x, features):
  if block.stride == 1 and x.shape[-1] == features:
    return x
  x = block.conv(x, features, kernel_size=1, stride=block.stride, name='shortcut')
  return block.norm(x, name='shortcut_norm')


class ResNet(nn.Module):
  """Stem; stages of residual blocks; global average pool; dense.

  The first stage has `width` channels; every further one twice as many, and half the resolution.

  Attributes:
    num_blocks: blocks of each stage.
    width: channels of the stem and of the first stage.
    bottleneck: blocks are bottlenecks of 1x1, 3x3 and 1x1 convolutions.
    large_images: the stem is conv7x7 of stride 2, BN, ReLU and 3x3 max-pool of stride 2, rather
      than conv3x3, BN, ReLU.
  """

  num_classes: int
  num_blocks: tuple[int, ...]
  width: int = 16
  bottleneck: bool = False
  large_images: bool = False
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes]."""
    conv = functools.partial(layers.conv, initialise=layers.fan_out_normal, dtype=self.dtype)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
    if self.large_images:
      x = conv(images, self.width, kernel_size=7, stride=2, name='conv')
      x = norm(x, activation='relu', name='norm')
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    else:
      x = norm(conv(images, self.width, name='conv'), activation='relu', name='norm')
    block_type = Bottleneck if self.bottleneck else BasicBlock
    block_type = nn.remat(block_type) if self.remat else block_type
    for stage, blocks in enumerate(self.num_blocks):
      for block in range(blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = block_type(conv, norm, self.width * 2**stage, stride,
                       name=f'stage{stage + 1}_block{block + 1}')(x)
    return layers.dense(layers.average(x), self.num_classes, name='logits')


def resnet20(num_classes, *, dtype: layers.Dtype = 'float32', remat: bool = False):
  """ResNet-20 for CIFAR-sized images: 272,474 parameters at 10 classes.

  conv3x3-16, BN, ReLU; three stages, of 16, 32 and 64 channels, of 3 basic blocks each; global
  average pool; dense. Shortcuts that change the shape are 1x1 convolutions with BN, as in the
  networks of the smoothing papers (He et al. pad with zeros).

  Reference:
    He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
  """
  return ResNet(num_classes, (3,) * 3, dtype=dtype, remat=remat)


def resnet56(num_classes, *, dtype: layers.Dtype = 'float32', remat: bool = False):
  """ResNet-56: `resnet20` with 9 basic blocks a stage; 855,770 parameters at 10 classes."""
  return ResNet(num_classes, (9,) * 3, dtype=dtype, remat=remat)


def resnet110(num_classes, *, dtype: layers.Dtype = 'float32', remat: bool = False):
  """ResNet-110: `resnet20` with 18 basic blocks a stage; 1,730,714 parameters at 10 classes.

  The network of Cohen et al. 2019 and Salman et al. 2019 on CIFAR-10.
  """
  return ResNet(num_classes, (18,) * 3, dtype=dtype, remat=remat)


def resnet50(num_classes, *, stem: Stem = 'imagenet', dtype: layers.Dtype = 'float32',
             remat: bool = False):
  """ResNet-50: 25,557,032 parameters at 1000 classes.

  conv7x7-64 of stride 2, BN, ReLU, 3x3 max-pool of stride 2; stages of 3, 4, 6 and 3 bottlenecks
  that put out 256, 512, 1024 and 2048 channels; global average pool; dense. torchvision's
  network, layer by layer, and its initialisation.

  Args:
    stem: 'imagenet', as above; 'cifar', conv3x3-64, BN, ReLU for CIFAR-sized images, as in
      Engstrom et al. 2019 (23,520,842 parameters at 10 classes).

  Reference:
    He et al., Deep Residual Learning for Image Recognition, 2016, table 1; torchvision.models,
    resnet50; github.com/MadryLab/robustness, cifar_models.
  """
  return ResNet(num_classes, (3, 4, 6, 3), width=64, bottleneck=True,
                large_images=stem == 'imagenet', dtype=dtype, remat=remat)


def resnet18(num_classes, *, stem: Stem = 'imagenet', dtype: layers.Dtype = 'float32',
             remat: bool = False):
  """ResNet-18: 11,689,512 parameters at 1000 classes.

  As `resnet50`, with stages of 2 basic blocks each, of 64, 128, 256 and 512 channels; of
  11,173,962 parameters with the stem 'cifar' and 10 classes.
  """
  return ResNet(num_classes, (2, 2, 2, 2), width=64, large_images=stem == 'imagenet', dtype=dtype,
                remat=remat)
