"""Probabilities of the classes for each training image, which another classifier has given."""

from pathlib import Path

import numpy as np

from robust_jax.errors import UserError


def load(dataset, file):
  """The rows of a .npy file, [num_train, classes] float32, as --stages=label writes them.

  Raises:
    UserError: another file, or rows that are no probabilities of so many images and classes.
  """
  shape = (dataset.num_examples, dataset.num_classes)
  try:
    array = np.load(Path(file).expanduser(), allow_pickle=False)
  except (OSError, ValueError) as error:
    raise UserError('config.data.targets_file must be a .npy file of probabilities, got '
                    f'{str(file)!r} ({error})') from error
  if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != 'f':
    got = f'{array.dtype} of shape {array.shape}' if isinstance(array, np.ndarray) else 'an archive'
    raise UserError(f'config.data.targets_file must hold floats of shape {shape}, images and '
                    f'classes, got {got} in {str(file)!r}')
  wrong = np.flatnonzero(~((array >= 0).all(axis=1) & (np.abs(array.sum(axis=1) - 1) < 1e-3)))
  if len(wrong):
    raise UserError('config.data.targets_file must hold probabilities that add up to 1, got '
                    f'{array[wrong[0]].tolist()} in row {wrong[0]} of {str(file)!r}')
  return array.astype(np.float32)
