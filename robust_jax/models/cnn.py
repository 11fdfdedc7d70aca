"""Plain convolutional networks of [convolution, ReLU, 2x2 max-pool] stages: CNN and LeNet."""

from flax import linen as nn

from robust_jax.models import layers
from robust_jax.types import Count


class CNN(nn.Module):
  """[convolution, ReLU, 2x2 max-pool] for every entry of `widths`, dense, ReLU, dense.

  Attributes:
    num_classes: number of logits.
    widths: channels of the convolutions.
    kernel_size: side of the convolutions, in pixels.
    dense: width of the hidden dense layer.
    padding: 'SAME' or 'VALID', of the convolutions.
  """

  num_classes: int
  widths: tuple[int, ...]
  kernel_size: int
  dense: int
  padding: str

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, height, width, channel] -> logits [batch, classes]; `train`: no effect."""
    del train
    x = images
    for number, width in enumerate(self.widths, start=1):
      x = layers.conv(x, width, kernel_size=self.kernel_size, padding=self.padding,
                      name=f'conv{number}')
      # ReLU and max commute; this order works on a quarter of the entries.
      x = nn.relu(layers.max_pool(x))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(layers.dense(x, self.dense, name='dense'))
    return layers.dense(x, self.num_classes, name='logits')


def cnn(num_classes, *, widths: tuple[Count, ...] = (32, 64), kernel_size: Count = 5,
        dense: Count = 1024):
  """Stages of convolution (SAME), ReLU and 2x2 max-pool, then two dense layers.

  The defaults make the network that Madry et al. train on MNIST.

  Args:
    num_classes: number of logits.
    widths: channels of the convolutions, one stage each.
    kernel_size: side of the convolutions, in pixels.
    dense: width of the hidden dense layer.

  Returns:
    The module.

  Reference:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018.
  """
  return CNN(num_classes, tuple(widths), kernel_size, dense, 'SAME')


def lenet(num_classes):
  """LeNet as the smoothing literature uses it on MNIST: 431,080 parameters at 28x28x1.

  5x5 conv 20 (VALID), ReLU, 2x2 max-pool; 5x5 conv 50 (VALID), ReLU, 2x2 max-pool; dense 500,
  ReLU; dense `num_classes`.

  Args:
    num_classes: number of logits.

  Returns:
    The module.

  Reference:
    Zhai et al., MACER, 2020; Jeong & Shin, Consistency Regularization for Certified Robustness
    of Smoothed Classifiers, 2020 (their MNIST network).
  """
  return CNN(num_classes, (20, 50), 5, 500, 'VALID')
