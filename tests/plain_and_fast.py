"""A training, an attack and a certification, as arrays: `python plain_and_fast.py FILE.npz`."""

import functools
import sys

import jax
import numpy as np

from robust_jax import attacks, certification, keys, models, training
from robust_jax.devices import parallel
from robust_jax.models.cnn import CNN
from robust_jax.models.resnet import ResNet
from robust_jax.training import methods
from robust_jax.types import Batch

NETWORKS = {
    'cnn': CNN(3, (4, 6), 3, 8, 'SAME', normalise=True, axis_name=parallel.AXIS),
    'resnet': ResNet(3, (1, 1), width=4, axis_name=parallel.AXIS)}


def data():
  """16 noisy 8x8 images of 3 classes, which brighten a third of the image each."""
  rng = np.random.default_rng(0)
  labels = np.arange(16, dtype=np.int32) % 3
  images = rng.uniform(0.2, 0.5, (16, 8, 8, 1)).astype(np.float32)
  for image, label in zip(images, labels):
    image[:, 3 * label:3 * label + 2] += 0.4
  return images, labels


def compute(name):
  """{quantity: array} of a network of NETWORKS, on two devices."""
  devices, model, (images, labels) = jax.devices()[:2], NETWORKS[name], data()
  network = models.network(model, mean=0.4, std=0.3, axis_name=parallel.AXIS)
  optimizer = training.OPTIMIZERS['sgd'](0.1, momentum=0.9)
  step = parallel.map_train_step(
      functools.partial(training.train_step, network=network, optimizer=optimizer,
                        method=methods.standard, steps_per_epoch=10, axis_name=parallel.AXIS),
      devices)
  state = parallel.replicate(
      training.create_state(models.init(keys.root(0), model, images.shape[1:]), optimizer), devices)
  batch = Batch(images, labels, np.arange(16, dtype=np.int32), np.ones(16, np.float32))
  for _ in range(6):
    state, sums = step(state, batch, keys.root(1))
  logits_fn = network.eval_logits(state.variables)
  attacked = jax.jit(lambda images: attacks.pgd_attack(
      keys.root(2), logits_fn, images, labels, norm='l2', epsilon=0.5, num_steps=5).images)(images)
  certificate = certification.certify(
      keys.root(3), logits_fn, images, sigma=0.1, n0=20, n=100, alpha=0.01, batch_size=40,
      count=certification.sharded_count(devices))
  leaves = jax.tree_util.tree_leaves_with_path(state.variables)
  return {'loss': sums['loss'], 'attacked': attacked, 'counts': certificate.counts,
          **{jax.tree_util.keystr(path): leaf for path, leaf in leaves}}


def main(path):
  np.savez(path, **{f'{name} {quantity}': array for name in NETWORKS
                    for quantity, array in compute(name).items()})


if __name__ == '__main__':
  sys.exit(main(sys.argv[1]))
