"""Data: TFDS's files, folders of images or arrays, without TensorFlow, to batches of types.Batch.

`load` finds out everything about a dataset from its files, `from_arrays` from arrays in memory.
What they do not say, such as the input normalisation, is given to it, or is one entry of
`DATASETS`.
"""

from robust_jax.data import extra
from robust_jax.data.batches import Augmentation, eval_batches, steps_per_epoch, take, train_batches
from robust_jax.data.datasets import DATASETS, Dataset, from_arrays, load, without_images
from robust_jax.data.held_out import hold_out
from robust_jax.data.tangents import load as load_tangents
from robust_jax.data.targets import load as load_targets

__all__ = [
  'DATASETS', 'Augmentation', 'Dataset', 'eval_batches', 'extra', 'from_arrays', 'hold_out',
  'load', 'load_tangents', 'load_targets', 'steps_per_epoch', 'take', 'train_batches',
  'without_images',
]
