"""Multilayer perceptrons.

What all models have in common, such as `dtype` and `remat`, is explained in `robust_jax.models`.
"""

from flax import linen as nn

from robust_jax.models import layers
from robust_jax.types import Count


class MLP(nn.Module):
  """[dense, ReLU] for every entry of `hidden`, then a dense layer.

  Attributes:
    hidden: widths of the hidden layers.
  """

  num_classes: int
  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, images, *, train):
    """Images [batch, ...] -> logits [batch, classes]; `train` changes nothing."""
    del train
    x = images.reshape(images.shape[0], -1)
    for number, width in enumerate(self.hidden, start=1):
      x = nn.relu(layers.dense(x, width, name=f'dense{number}'))
    return layers.dense(x, self.num_classes, name='logits')


def linear(num_classes):
  """The linear classifier W x + b of the flattened image: 10 x 785 parameters at 28x28x1.

  Its margins and its worst cases have closed forms, which makes it a check of attacks.
  """
  return MLP(num_classes, ())


def mlp(num_classes, *, hidden: tuple[Count, ...] = (256, 256)):
  """A multilayer perceptron on the flattened image.

  Args:
    hidden: widths of the hidden layers; () makes it a linear classifier.
  """
  return MLP(num_classes, tuple(hidden))
