"""What tests of training methods share: a batch, a network with BatchNorm, a method run once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from robust_jax import keys
from robust_jax.types import Batch


class SmallNet(nn.Module):
  """Convolution, BatchNorm, dense: the smallest network with batch statistics."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(4, (3, 3), name='conv')(images)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name,
                     name='norm')(x)
    return nn.Dense(3, name='dense')(nn.relu(x).mean((1, 2)))


def small_net(key):
  """(SmallNet, its variables) for 4x4x1 images of 3 classes."""
  model = SmallNet()
  return model, dict(model.init(key, jnp.zeros((1, 4, 4, 1)), train=False))


def random_batch(number):
  """A batch of 4x4x1 images of 3 classes, in no order, from a training set of 40."""
  rng = np.random.default_rng(0)
  return Batch(images=jnp.asarray(rng.uniform(size=(number, 4, 4, 1)), jnp.float32),
               labels=jnp.asarray(rng.integers(0, 3, number), jnp.int32),
               index=jnp.asarray(rng.permutation(40)[:number], jnp.int32), mask=jnp.ones(number))


def run_method(method, network, params, batch, batch_stats=None, *, progress, key):
  """The method's output and the gradient of its mean loss."""

  @jax.jit
  def run(params, batch, progress, key):
    def loss(params):
      output = method(keys.fold_in(key, batch.index), network, params, batch_stats or {}, batch,
                      progress)
      return jnp.mean(output.loss), output
    return jax.grad(loss, has_aux=True)(params)

  gradient, output = run(params, batch, progress, key)
  return output, gradient
