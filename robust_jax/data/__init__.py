"""Data: TFDS's files or a folder of images, without TensorFlow, to batches of types.Batch.

`load` finds out everything about a dataset from its files. What the files do not say, such as the
input normalisation, is given to it, or is one entry of `DATASETS`.
"""

from robust_jax.data import extra
from robust_jax.data.batches import Augmentation, eval_batches, steps_per_epoch, take, train_batches
from robust_jax.data.datasets import DATASETS, Dataset, load
from robust_jax.data.held_out import hold_out
from robust_jax.data.tangents import load as load_tangents

__all__ = [
  'DATASETS', 'Augmentation', 'Dataset', 'eval_batches', 'extra', 'hold_out', 'load',
  'load_tangents', 'steps_per_epoch', 'take', 'train_batches',
]
