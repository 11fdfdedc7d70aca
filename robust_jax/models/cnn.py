"""Plain convolutional networks: with max-pools, and those with strides that bounds are trained of.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

import functools
from collections.abc import Callable
from typing import Literal

from flax import linen as nn

from robust_jax.models import layers
from robust_jax.types import Count


def truncated_normal(fan_in):
  """0.1 N(0, 1) truncated at two standard deviations; biases of 0.1 (TensorFlow's tutorial)."""
  del fan_in
  return nn.initializers.truncated_normal(0.1), nn.initializers.constant(0.1)


class CNN(nn.Module):
  """[convolution, ReLU, max-pool] for every entry of `widths`, dense, ReLU, dense.

  Attributes:
    widths: channels of the convolutions.
    kernel_size: side of the convolutions, in pixels.
    dense: width of the hidden dense layer.
    padding: 'SAME' or 'VALID', of the convolutions.
    pools: side and stride of the max-pools, in pixels; 2 each if None.
    normalise: whether BatchNorm without scale and bias precedes the first convolution.
    initialise: fan_in -> (kernel_init, bias_init).
  """

  num_classes: int
  widths: tuple[int, ...]
  kernel_size: int
  dense: int
  padding: str
  pools: tuple[int, ...] | None = None
  normalise: bool = False
  initialise: Callable = layers.uniform
  dtype: layers.Dtype = 'float32'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes] float32."""
    x = images
    if self.normalise:
      x = layers.norm(x, train=train, axis_name=self.axis_name, affine=False, name='norm')
    for number, width in enumerate(self.widths):
      x = layers.conv(x, width, kernel_size=self.kernel_size, padding=self.padding, bias=True,
                      pool=self.pools[number] if self.pools else 2, relu=True,
                      initialise=self.initialise, dtype=self.dtype, name=f'conv{number + 1}')
    x = layers.dense(x.reshape(x.shape[0], -1), self.dense, initialise=self.initialise,
                     dtype=self.dtype, name='dense')
    return layers.dense(nn.relu(x), self.num_classes, initialise=self.initialise, name='logits')


def cnn(num_classes, *, widths: tuple[Count, ...] = (32, 64), kernel_size: Count = 5,
        dense: Count = 1024, dtype: layers.Dtype = 'float32'):
  """Stages of convolution (SAME), ReLU and 2x2 max-pool, then two dense layers.

  Args:
    widths: channels of the convolutions, one stage each.
    kernel_size: side of the convolutions, in pixels.
    dense: width of the hidden dense layer.
  """
  return CNN(num_classes, tuple(widths), kernel_size, dense, 'SAME', dtype=dtype)


def lenet(num_classes, *, dtype: layers.Dtype = 'float32'):
  """LeNet as the smoothing literature uses it on MNIST: 431,080 parameters at 28x28x1.

  5x5 conv 20 (VALID), ReLU, 2x2 max-pool; 5x5 conv 50 (VALID), ReLU, 2x2 max-pool; dense 500,
  ReLU; dense `num_classes`.

  Reference:
    Zhai et al., MACER, 2020; Jeong & Shin, Consistency Regularization for Certified Robustness
    of Smoothed Classifiers, 2020 (their MNIST network).
  """
  return CNN(num_classes, (20, 50), 5, 500, 'VALID', dtype=dtype)


def madry_cnn(num_classes, *, dtype: layers.Dtype = 'float32'):
  """Madry et al.'s network on MNIST: 3,274,634 parameters at 28x28x1.

  5x5 conv 32 (SAME), ReLU, 2x2 max-pool; 5x5 conv 64 (SAME), ReLU, 2x2 max-pool; dense 1024,
  ReLU; dense `num_classes`. `cnn`'s default but for the initialisation, which is theirs: truncated
  normal kernels of standard deviation 0.1, biases of 0.1.

  Reference:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, and
    github.com/MadryLab/mnist_challenge.
  """
  return CNN(num_classes, (32, 64), 5, 1024, 'SAME', initialise=truncated_normal, dtype=dtype)


def shaham_cnn(num_classes, *, dtype: layers.Dtype = 'float32'):
  """Shaham et al.'s network on MNIST: 105,506 parameters at 32x32x1, as they pad the images.

  BatchNorm without scale and bias; 5x5 conv 32 (VALID), ReLU, 3x3 max-pool; 5x5 conv 64 (VALID),
  ReLU, 2x2 max-pool; dense 200, ReLU; dense `num_classes`. Images need at least 22x22 pixels.

  Reference:
    Shaham et al., Understanding Adversarial Training: Increasing Local Stability of Neural Nets
    through Robust Optimization, 2015, section 6.
  """
  return CNN(num_classes, (32, 64), 5, 200, 'VALID', pools=(3, 2), normalise=True, dtype=dtype)


class StridedCNN(nn.Module):
  """Convolutions with strides in place of pools, dense layers; ReLU between all of them.

  Attributes:
    convs: (channels, side of the kernel, stride) of each convolution.
    dense: widths of the hidden dense layers.
    padding: 'VALID', or None for half of the kernel on every side.
    normalise: whether BatchNorm follows every convolution and hidden dense layer.
  """

  num_classes: int
  convs: tuple[tuple[int, int, int], ...]
  dense: tuple[int, ...]
  padding: str | None = None
  normalise: bool = False
  initialise: Callable = layers.uniform
  dtype: layers.Dtype = 'float32'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes] float32."""
    settings = dict(initialise=self.initialise, dtype=self.dtype)
    norm = functools.partial(layers.norm, train=train, axis_name=self.axis_name,
                             activation='relu', dtype=self.dtype)
    x = images
    for number, (width, kernel_size, stride) in enumerate(self.convs, start=1):
      x = layers.conv(x, width, kernel_size=kernel_size, stride=stride, padding=self.padding,
                      bias=True, relu=not self.normalise, name=f'conv{number}', **settings)
      if self.normalise:
        x = norm(x, name=f'norm{number}')
    x = x.reshape(x.shape[0], -1)
    for number, width in enumerate(self.dense, start=1):
      x = layers.dense(x, width, name=f'dense{number}', **settings)
      x = norm(x, name=f'dense_norm{number}') if self.normalise else nn.relu(x)
    return layers.dense(x, self.num_classes, name='logits')


Initialise = Literal['pytorch', 'ibp']
_INITIALISE = {'pytorch': layers.uniform, 'ibp': layers.ibp_normal}
_SIZES = {
    'small': dict(convs=((16, 4, 2), (32, 4, 1)), dense=(100,), padding='VALID'),
    'medium': dict(convs=((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), dense=(512, 512),
                   padding='VALID'),
    'large': dict(convs=((64, 3, 1), (64, 3, 1), (128, 3, 2), (128, 3, 1), (128, 3, 1)),
                  dense=(512,)),
}


def ibp_cnn(num_classes, *, size: Literal['small', 'medium', 'large'] = 'small',
            initialise: Initialise = 'pytorch', dtype: layers.Dtype = 'float32'):
  """The networks on which training with intervals was introduced; ReLU between all layers.

  Convolutions as channels, side of the kernel and, after the slash, the stride:

  - small: 16 4x4/2, 32 4x4, dense 100: 329,606 parameters at 28x28x1;
  - medium: 32 3x3, 32 4x4/2, 64 3x3, 64 4x4/2, dense 512, dense 512: 893,418;
  - large: 64 3x3, 64 3x3, 128 3x3/2, 128 3x3, 128 3x3, dense 512: 13,257,290.

  Args:
    size: of the three; large alone pads, by a pixel on every side.
    initialise: 'pytorch', or 'ibp', with which intervals do not widen with depth (see
      `layers.ibp_normal`).

  Reference:
    Gowal et al., On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
    Models, 2018, table 1.
  """
  return StridedCNN(num_classes, **_SIZES[size], initialise=_INITIALISE[initialise], dtype=dtype)


def cnn7(num_classes, *, width: Count = 64, dense: Count = 512, initialise: Initialise = 'ibp',
         dtype: layers.Dtype = 'float32'):
  """`ibp_cnn` of size large with BatchNorm after all layers but the last: CTBench's cnn_7layer_bn.

  13,259,338 parameters at 28x28x1 and 17,192,650 at 32x32x3, for 10 classes.

  Args:
    width: channels of the first convolution; the last three have twice as many.
    dense: width of the hidden dense layer.
    initialise: see `ibp_cnn`.

  Reference:
    Shi et al., Fast Certified Robust Training with Short Warmup, 2021; Mao et al., CTBench, 2025.
  """
  convs = tuple((factor * width, side, stride)
                for factor, (_, side, stride) in zip((1, 1, 2, 2, 2), _SIZES['large']['convs']))
  return StridedCNN(num_classes, convs, (dense,), normalise=True,
                    initialise=_INITIALISE[initialise], dtype=dtype)
