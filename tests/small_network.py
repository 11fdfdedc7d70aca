"""A network with BatchNorm that compiles at once: --config.model.name=small_network:Net."""

from flax import linen as nn


class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Dense(16)(images.reshape(len(images), -1))
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(self.num_classes)(x)
