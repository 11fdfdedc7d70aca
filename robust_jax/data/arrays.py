"""Images and labels as arrays, in memory or in a file .npz; nothing about them is guessed.

Images are [num_examples, height, width, channel] of 1 (grey) or 3 (RGB) channels. Their dtype says
what their values mean: uint8 is 0..255, floating-point numbers are in [0, 1] and taken as they are.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from robust_jax import inputs
from robust_jax.errors import UserError
from robust_jax.terminal import say_once

# What the arrays of a split are called in a file; the second is Keras's way.
_NAMES = (('{}_images', '{}_labels'), ('x_{}', 'y_{}'))
# A file with one split, which is 'train'.
_ONE_SPLIT = (('images', 'labels'), ('image', 'label'))
_LAYOUT = 'train_images, train_labels, test_images and test_labels'


def scaled(images):
  """Checked images as float32 in [0, 1]: uint8 divided by 255, others as they are."""
  if images.dtype == np.uint8:
    return np.divide(images, np.float32(255), dtype=np.float32)
  return images.astype(np.float32, copy=False)


def check_images(images, place='images'):
  """Raises UserError unless `images` are as the module says: dtype, shape and values."""
  if not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
    raise UserError(f'{place} must be uint8 in 0..255 or floating-point numbers in [0, 1], got '
                    f'{images.dtype}')
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise UserError(f'{place} must have the shape [num_examples, height, width, channel] of 1 or 3 '
                    f'channels, got {images.shape}{_shape_hint(images.shape)}')
  if images.dtype == np.uint8 or not images.size:
    return
  try:
    inputs.images(images, name=place)
  except ValueError as error:
    hint = '; 0..255 is for uint8' if images.max() > 2 else ''
    raise UserError(f'{error}{hint}') from None


def check_labels(labels, num_classes=None, place='labels', index=None):
  """Raises UserError unless `labels` are [num_examples] integers from 0 to num_classes - 1.

  Args:
    labels: the array.
    num_classes: None for any number.
    place: what they are called in the message.
    index: [num_examples], the positions in a dataset that the message names; None: those in labels.
  """
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(f'{place} must be one integer an image, of shape [num_examples], got '
                    f'{labels.dtype} of shape {labels.shape}{_label_hint(labels)}')
  wrong = np.flatnonzero((labels < 0) | (labels >= (num_classes or 2**31)))
  if len(wrong):
    example = wrong[0] if index is None else index[wrong[0]]
    raise UserError(f'{place}: the label of example {example} must be in '
                    f'0..{num_classes - 1 if num_classes else ""}, got {labels[wrong[0]]}')


def check_lengths(images, labels, place='labels'):
  """Raises UserError unless there are as many labels as images."""
  if len(images) != len(labels):
    raise UserError(f'{place} must be {len(images)}, one for each image, got {len(labels)}')


def _shape_hint(shape):
  if len(shape) == 4 and shape[1] in (1, 3):
    return '; channels come last: numpy.moveaxis(images, 1, -1)'
  return ''


def _label_hint(labels):
  if labels.ndim == 2 and labels.shape[1] == 1:
    return '; labels[:, 0] is'
  if labels.ndim == 2:
    return '; of one-hot labels labels.argmax(-1) is'
  return ''


def as_images(values, place='images'):
  """Checked images of what may be an array; grey ones may come without their channel axis.

  Args:
    values: [num_examples, height, width, channel], or [num_examples, height, width] of grey ones.
    place: what they are called in an error message.

  Returns:
    [num_examples, height, width, channel] uint8, or float32 in [0, 1].

  Raises:
    UserError: they are something else; see `check_images`.
  """
  images = np.asarray(values)
  images = images[..., None] if images.ndim == 3 else images
  check_images(images, place)
  if not images.size:
    raise UserError(f'{place} must be one or more, got an array of shape {images.shape}')
  return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def as_labels(values, num_classes=None, place='labels'):
  """Checked labels of what may be an array, [num_examples] int32; see `check_labels`."""
  labels = np.asarray(values)
  check_labels(labels, num_classes, place)
  return labels.astype(np.int32)


class Split(NamedTuple):
  """A split of a file.

  Attributes:
    split: its name, or the part of one that was read.
    images: as from `as_images`.
    labels: as from `as_labels`; None where the file has none, and none were needed.
    class_names: a name for each class; None where the file has none.
    num_classes: as many as the names or, without them, as the largest label of all splits asks for;
      None without labels.
    normalisation: {'mean' or 'std': a number for each channel}, what the file has of them.
  """

  split: str
  images: np.ndarray
  labels: np.ndarray | None
  class_names: tuple[str, ...] | None
  num_classes: int | None
  normalisation: dict[str, tuple[float, ...]]


def read(path, split, *, needs_labels=True, resolve=lambda split, splits: split):
  """Reads a split of a file of arrays, as `numpy.savez` writes it.

  Args:
    path: the file .npz. Its arrays are SPLIT_images and SPLIT_labels (or x_SPLIT and y_SPLIT, as
      Keras has them) for each split, 'train' and 'test' mostly; or images and labels, which are
      the split 'train'. It may have class_names, and mean and std, the input normalisation.
    split: one of these, or a part such as 'train[:80%]', as TFDS writes it.
    needs_labels: whether a split without labels is refused.
    resolve: (split, the names of the splits) -> the split that it stands for.

  Returns:
    `Split`.

  Raises:
    UserError: no such file or split, or arrays that are not as they should be.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise UserError(f'{path} must be a .npz file of arrays {_LAYOUT}, as python -m '
                    'robust_jax.data prepare writes it; it does not exist in '
                    f'{path.absolute().parent}')
  if not zipfile.is_zipfile(path):
    raise UserError(f'{path} must be a .npz file of arrays; it is something else, or cut off')
  try:
    with np.load(path, allow_pickle=False) as file:
      return _read(file, path, split, needs_labels, resolve)
  except UserError:
    raise
  except Exception as error:  # Of zipfile, zlib and NumPy: many kinds.
    raise UserError(f'{path} cannot be read: {" ".join(str(error).split())}') from error


def _read(file, path, split, needs_labels, resolve):
  there = ', '.join(file.files) or 'none'
  found = _splits(file.files)
  if not found:
    raise UserError(f'{path} must have arrays {_LAYOUT}, or images and labels, got {there}')
  split = resolve(split, tuple(found))
  class_names = _class_names(file, path)
  # Of all splits, so that each has the same classes; and they are small.
  labels = {name: as_labels(file[keys[1]], class_names and len(class_names), f'{path}: {keys[1]}')
            for name, keys in found.items() if keys[1] in file.files}
  num_classes = (len(class_names) if class_names else
                 max((values.max(initial=-1) + 1 for values in labels.values()), default=None))
  if num_classes and not class_names:
    missing = np.setdiff1d(np.arange(num_classes), np.concatenate([*labels.values()]))
    if len(missing):
      say_once(f'warning: {path}: no image has the label {missing[0]}, and there are {num_classes} '
               f'classes, as labels go up to {num_classes - 1}', 'stderr')
  images, chosen = [], []
  for name, part in _parts(path, split, found):
    whole = as_images(file[found[name][0]], f'{path}: {found[name][0]}')
    if name in labels:
      check_lengths(whole, labels[name], f'{path}: {found[name][1]}')
      chosen.append(_rows(part, labels[name], path))
    elif needs_labels:
      raise UserError(f'{path} must have an array {found[name][1]}, got {there}')
    images.append(_rows(part, whole, path))
  return Split(split, _joined(images), _joined(chosen) if len(chosen) == len(images) else None,
               class_names, num_classes and int(num_classes),
               {name: tuple(np.asarray(file[name], float).ravel().tolist())
                for name in ('mean', 'std') if name in file.files})


def _splits(names):
  """{split: (name of its images, of its labels)} among the names of a file's arrays."""
  found = {}
  for images, labels in _NAMES:
    pattern = re.escape(images).replace(re.escape('{}'), r'(\w+)')
    for name in names:
      if match := re.fullmatch(pattern, name):
        found.setdefault(match[1], (name, labels.format(match[1])))
  for images, labels in () if found else _ONE_SPLIT:
    if images in names:
      found.setdefault('train', (images, labels))
  return found


def _class_names(file, path):
  if 'class_names' not in file.files:
    return None
  names = file['class_names']
  if names.ndim != 1 or names.dtype.kind != 'U' or not len(names):
    raise UserError(f'{path}: class_names must be one string a class, got {names.dtype} of shape '
                    f'{names.shape}')
  return tuple(names.tolist())


def _parts(path, split, found):
  """[(name of a split, the TFDS instruction for a part of it)] of a text as 'train[:80%]'."""
  parts = []
  for text in split.split('+'):
    name, part = re.fullmatch(r'\s*(\w*)(.*)', text, re.DOTALL).groups()
    if name not in found:
      raise UserError(f'{path} has the splits {", ".join(found)}, not {text!r}; '
                      "config.data.train_split and test_split may name parts, as 'train[:80%]'")
    parts.append((name, name + part))
  return parts


def _rows(part, values, path):
  """The rows of a split that a part of it has."""
  name = re.match(r'\w+', part)[0]
  info = tfds.core.SplitInfo(name=name, shard_lengths=[len(values)], num_bytes=0)
  try:
    (rows,) = tfds.core.ReadInstruction.from_spec(part).to_absolute({name: info})
  except (ValueError, AssertionError) as error:
    raise UserError(f'{path}, split {part!r}: {" ".join(str(error).split())}') from error
  chosen = values[rows.from_:rows.to]
  if not len(chosen):
    raise UserError(f'{path}, split {part!r} has no examples')
  return chosen


def _joined(arrays):
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
