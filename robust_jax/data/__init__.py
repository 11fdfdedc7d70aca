"""Data: TFDS's files, without TensorFlow, to batches of types.Batch.

A new dataset of features `image` and `label` is one entry of `DATASETS`.
"""

from robust_jax.data.batches import eval_batches, steps_per_epoch, take, train_batches
from robust_jax.data.sources import DATASETS, Dataset, load

__all__ = [
  'DATASETS', 'Dataset', 'eval_batches', 'load', 'steps_per_epoch', 'take', 'train_batches',
]
