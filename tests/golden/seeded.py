"""Weights that a name and a shape decide, so that large ones need not be stored."""

import zlib

import numpy as np


def weight(name, shape):
  """The array of a PyTorch parameter or buffer: float32, int64 for num_batches_tracked.

  Activations stay of order 1 through a deep ResNet: kernels have variance 1 / fan_in, and the
  last BatchNorm of a residual branch a small scale. Running statistics are not the identity.
  """
  rng = np.random.RandomState(zlib.crc32(name.encode()))  # its numbers never change
  last = name.rpartition('.')[2]
  if last == 'num_batches_tracked':
    return np.array(1000, np.int64)
  if last == 'running_var' or (last == 'weight' and len(shape) == 1):
    low, high = (0.2, 0.6) if name.endswith(('bn2.weight', 'bn3.weight')) else (0.5, 1.5)
  else:
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
    low, high = -np.sqrt(3 / fan_in), np.sqrt(3 / fan_in)
  return rng.uniform(low, high, shape).astype(np.float32)


def images(shape):
  """Images [batch, height, width, channel] in [0, 1]."""
  return np.random.RandomState(0).uniform(size=shape).astype(np.float32)
