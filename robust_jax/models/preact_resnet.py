"""Pre-activation ResNets: PreActResNet-18 and Wide ResNets.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from robust_jax.errors import UserError
from robust_jax.models import layers
from robust_jax.types import Count

Form = Literal['zagoruyko', 'deepmind', 'mcdonnell']
Form18 = Literal['he', 'wong', 'deepmind']
Shortcut = Literal['activated', 'input', 'input_3x3', 'pool']


def haiku_normal(fan_in):
  """N(0, 1 / fan_in) truncated at two standard deviations, and zero biases: Haiku's default."""
  return nn.initializers.truncated_normal(1 / math.sqrt(fan_in)), nn.initializers.zeros


def zeros(fan_in):
  """Zero kernels and biases."""
  del fan_in
  return nn.initializers.zeros, nn.initializers.zeros


class PreActBlock(nn.Module):
  """conv3x3(dropout(act(BN(conv3x3(out))))) + shortcut, out = act(BN(x)).

  The shortcut is x or, where the shape changes, what `shortcut` says.

  Attributes:
    conv: layers.conv but for its images, features and name.
    norm: layers.norm with act as its activation, but for its images and name.
    width: channels.
    stride: stride of the first convolution.
    shortcut: where the shape changes, a strided 1x1 convolution of `out` ('activated') or of x
      ('input'), a strided 3x3 convolution of x ('input_3x3'), or the 3x3 average pool of x and
      zeros for the further channels ('pool').
    dropout: probability that an entry is dropped.
    number: of this block in its network.
  """

  conv: Callable
  norm: Callable
  width: int
  stride: int
  shortcut: Shortcut
  dropout: float
  number: int

  @nn.compact
  def __call__(self, x, key):
    out = self.norm(x, name='norm1')
    if self.stride == 1 and x.shape[-1] == self.width:
      shortcut = x
    elif self.shortcut == 'pool':
      shortcut = nn.avg_pool(x, (3, 3), (self.stride,) * 2, ((1, 1), (1, 1)))
      shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((0, self.width - x.shape[-1]),))
    else:
      shortcut = self.conv(out if self.shortcut == 'activated' else x, self.width,
                           kernel_size=3 if self.shortcut == 'input_3x3' else 1,
                           stride=self.stride, name='shortcut')
    out = self.conv(out, self.width, stride=self.stride, name='conv1')
    out = self.norm(out, name='norm2')
    out = layers.dropout(out, self.dropout, key, self.number)
    return shortcut + self.conv(out, self.width, name='conv2')


class PreActResNet(nn.Module):
  """conv3x3; stages of pre-activation blocks; BN, activation; global average pool; dense.

  The first stage has `width` channels; every further one twice as many, and half the resolution.

  Attributes:
    num_blocks: blocks of each stage.
    stem: channels of the first convolution.
    width: channels of the first stage.
    activation: 'relu' or 'swish'.
    form: as of `wide_resnet` and `preact_resnet18`.
    shortcut: as of `PreActBlock`.
    initialise: fan_in -> (kernel_init, bias_init) of the convolutions.
    final_norm: whether BN and the activation precede the pool.
    dropout: probability that an entry is dropped, between the convolutions of a block.
  """

  num_classes: int
  num_blocks: tuple[int, ...]
  stem: int
  width: int
  activation: layers.Activation = 'relu'
  form: Form | Form18 = 'zagoruyko'
  shortcut: Shortcut = 'activated'
  initialise: Callable = layers.fan_out_normal
  final_norm: bool = True
  dropout: float = 0.0
  dtype: layers.Dtype = 'float32'
  remat: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train, key=None):
    """Images [batch, height, width, channel] -> logits [batch, classes] float32."""
    deepmind, mcdonnell = self.form == 'deepmind', self.form == 'mcdonnell'
    conv = functools.partial(layers.conv, initialise=self.initialise, dtype=self.dtype,
                             padding='SAME' if deepmind else None)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name, dtype=self.dtype,
                             momentum=0.99 if deepmind else 0.9)
    inner_norm = functools.partial(norm, affine=not mcdonnell, activation=self.activation)
    block_type = nn.remat(PreActBlock) if self.remat else PreActBlock
    x = conv(images, self.stem, name='conv')
    number = 0
    for stage, blocks in enumerate(self.num_blocks):
      for block in range(blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = block_type(conv, inner_norm, self.width * 2**stage, stride, self.shortcut,
                       self.dropout, number, name=f'stage{stage + 1}_block{block + 1}')(x, key)
        number += 1
    if self.final_norm:
      x = inner_norm(x, name='norm')
    if mcdonnell:
      x = conv(x.astype(jnp.float32), self.num_classes, kernel_size=1, dtype='float32',
               name='logits')
      return layers.average(norm(x, dtype='float32', name='logits_norm'))
    return layers.dense(layers.average(x), self.num_classes, name='logits',
                        initialise=zeros if deepmind else layers.uniform)


def preact_resnet18(num_classes, *, activation: layers.Activation = 'relu', form: Form18 = 'he',
                    final_norm: bool = True, dtype: layers.Dtype = 'float32', remat: bool = False):
  """PreActResNet-18 for CIFAR-sized images: 11,172,170 parameters at 10 classes.

  conv3x3-64; stages of 64, 128, 256 and 512 channels, of 2 pre-activation blocks each; BN, ReLU;
  global average pool; dense. PyTorch's default initialisation.

  Args:
    activation: 'relu' or 'swish'.
    form: 'he', as above, whose shortcuts that change the shape are 1x1 convolutions of the input
      after BN and ReLU, as in the code of kuangliu and Rice et al. 2020; 'wong', of the input
      itself, as in that of Wong et al. 2020 and Andriushchenko & Flammarion 2020; 'deepmind', of
      Gowal et al. 2021: 3x3 convolutions of the input itself, and padding, running statistics and
      initialisation as in the Wide ResNet of that form (12,548,426 parameters).
    final_norm: whether BN and the activation precede the pool, as in He et al. and the code of
      Rice et al. and Gowal et al.; that of kuangliu and Wong et al. has neither (11,171,146
      parameters).

  Reference:
    He et al., Identity Mappings in Deep Residual Networks, 2016; github.com/kuangliu/pytorch-cifar;
    Wong et al., Fast is better than free, 2020; Gowal et al., Improving Robustness using Generated
    Data, 2021.
  """
  deepmind = form == 'deepmind'
  return PreActResNet(
      num_classes, (2, 2, 2, 2), stem=64, width=64, activation=activation,
      form='zagoruyko' if form == 'he' else form,
      shortcut={'he': 'activated', 'wong': 'input', 'deepmind': 'input_3x3'}[form],
      initialise=haiku_normal if deepmind else layers.uniform, final_norm=final_norm, dtype=dtype,
      remat=remat)


def wide_resnet(num_classes, *, depth: Count = 28, width: Count = 10,
                activation: layers.Activation = 'relu', form: Form = 'zagoruyko',
                dropout: layers.Rate = 0.0, dtype: layers.Dtype = 'float32', remat: bool = False):
  """WRN-depth-width for CIFAR-sized images; WRN-28-10 has 36,479,194 parameters at 10 classes.

  conv3x3-16; three stages, of 16, 32 and 64 times `width` channels, of (depth - 4) / 6
  pre-activation blocks each; BN, ReLU; global average pool; dense.

  Args:
    depth: 6n+4, or 6n+2 in McDonnell's form, for n blocks a stage.
    width: factor of the channels.
    activation: 'relu' or 'swish'.
    form: 'zagoruyko', as above and as in the code of TRADES and its successors; 'deepmind', which
      pads strided convolutions as SAME, has running statistics of momentum 0.99, and starts as
      Haiku does, with zero logits; 'mcdonnell', which has a stem of 16 times `width` channels, BN
      without scale and bias, average-pooled shortcuts padded with zero channels, and, for the
      dense layer, a 1x1 convolution and BN before the pool.
    dropout: probability that an entry is dropped, between the convolutions of a block.

  Raises:
    UserError: there is no such depth.

  Reference:
    Zagoruyko & Komodakis, Wide Residual Networks, 2016; Gowal et al., Uncovering the Limits of
    Adversarial Training against Norm-Bounded Adversarial Examples, 2020 ('deepmind'); McDonnell,
    Training Wide Residual Networks for Deployment using a Single Bit for Each Weight, 2018, in
    full precision (github.com/szagoruyko/binary-wide-resnet).
  """
  outside = 2 if form == 'mcdonnell' else 4
  num_blocks, rest = divmod(depth - outside, 6)
  if rest or num_blocks < 1:
    raise UserError(f'config.model.depth must be 6n+{outside} for n >= 1 with the form {form!r}, '
                    f'got {depth}')
  return PreActResNet(
      num_classes, (num_blocks,) * 3, stem=16 * width if form == 'mcdonnell' else 16,
      width=16 * width, activation=activation, form=form,
      shortcut='pool' if form == 'mcdonnell' else 'activated',
      initialise=haiku_normal if form == 'deepmind' else layers.fan_out_normal, dropout=dropout,
      dtype=dtype, remat=remat)


def wrn_28_10(num_classes, *, activation: layers.Activation = 'relu',
              dtype: layers.Dtype = 'float32', remat: bool = False):
  """WRN-28-10: 36,479,194 parameters at 10 classes."""
  return wide_resnet(num_classes, depth=28, activation=activation, dtype=dtype, remat=remat)


def wrn_34_10(num_classes, *, activation: layers.Activation = 'relu',
              dtype: layers.Dtype = 'float32', remat: bool = False):
  """WRN-34-10: 46,160,474 parameters at 10 classes."""
  return wide_resnet(num_classes, depth=34, activation=activation, dtype=dtype, remat=remat)


def wrn_32_10(num_classes, *, dtype: layers.Dtype = 'float32', remat: bool = False):
  """WRN-32-10 of instance-adaptive adversarial training: 46,090,740 parameters at 10 classes.

  `wide_resnet` of 5 blocks a stage in McDonnell's form.

  Reference:
    Balaji et al., Instance Adaptive Adversarial Training, 2019.
  """
  return wide_resnet(num_classes, depth=32, form='mcdonnell', dtype=dtype, remat=remat)
