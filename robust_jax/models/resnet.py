"""The ResNets of depth 6n+2 for CIFAR-sized images, as the smoothing literature trains them."""

import functools

from flax import linen as nn

from robust_jax.models import layers

fan_out_normal = nn.initializers.variance_scaling(2, 'fan_out', 'normal')
"""N(0, 2 / fan_out), not truncated (He et al. 2015)."""


class BasicBlock(nn.Module):
  """relu(BN(conv3x3(relu(BN(conv3x3(x))))) + shortcut(x)).

  The shortcut is the identity or, where the shape changes, a strided 1x1 convolution and BN.

  Attributes:
    conv: nn.Conv but for its features, kernel size, strides and padding.
    norm: nn.BatchNorm but for its name.
    width: channels.
    stride: stride of the first convolution.
  """

  conv: functools.partial
  norm: functools.partial
  width: int
  stride: int

  @nn.compact
  def __call__(self, x):
    # Padding (1, 1) on both sides, as PyTorch pads; SAME would pad (0, 1) at stride 2.
    conv3x3 = functools.partial(self.conv, self.width, (3, 3), padding=((1, 1), (1, 1)))
    out = nn.relu(self.norm(name='norm1')(conv3x3(strides=self.stride, name='conv1')(x)))
    out = self.norm(name='norm2')(conv3x3(name='conv2')(out))
    if self.stride != 1 or x.shape[-1] != self.width:
      x = self.conv(self.width, (1, 1), strides=self.stride, padding='VALID', name='shortcut')(x)
      x = self.norm(name='shortcut_norm')(x)
    return nn.relu(out + x)


class ResNet(nn.Module):
  """conv3x3-16, BN, ReLU; three stages of basic blocks; global average pool; dense.

  Attributes:
    num_classes: number of logits.
    num_blocks: blocks n of each of the stages of 16, 32 and 64 channels; the depth is 6n+2.
    axis_name: the mapped axis over which batch statistics are averaged, or None.
  """

  num_classes: int
  num_blocks: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes].

    With `train` the statistics of `images` normalise, and update `batch_stats` as
    0.9 old + 0.1 new (the variance is the biased one, where PyTorch stores the unbiased).
    """
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=fan_out_normal)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9,
                             epsilon=1e-5, axis_name=self.axis_name)
    x = conv(16, (3, 3), padding=((1, 1), (1, 1)), name='conv')(images)
    x = nn.relu(norm(name='norm')(x))
    for stage, width in enumerate((16, 32, 64), start=1):
      for block in range(1, self.num_blocks + 1):
        stride = 2 if stage > 1 and block == 1 else 1
        x = BasicBlock(conv, norm, width, stride, name=f'stage{stage}_block{block}')(x)
    return layers.dense(x.mean(axis=(1, 2)), self.num_classes, name='logits')


def resnet20(num_classes):
  """ResNet-20 for CIFAR-sized images: about 0.27 million parameters.

  Three stages of 3 basic blocks; shortcuts that change the shape are 1x1 convolutions with BN, as
  in the networks of the smoothing papers (He et al. pad with zeros).

  Args:
    num_classes: number of logits.

  Returns:
    The module.

  Reference:
    He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
  """
  return ResNet(num_classes, num_blocks=3)


def resnet110(num_classes):
  """ResNet-110 for CIFAR-sized images: about 1.73 million parameters; see `resnet20`.

  The network of Cohen et al. 2019 and Salman et al. 2019 on CIFAR-10: 18 basic blocks a stage.

  Args:
    num_classes: number of logits.

  Returns:
    The module.

  Reference:
    He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
  """
  return ResNet(num_classes, num_blocks=18)
