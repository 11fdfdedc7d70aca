"""A folder of images: SPLIT/CLASS/IMAGE, as torchvision's ImageFolder reads it."""

import os
import pathlib

import numpy as np
from PIL import Image

from robust_jax.data import decode as image_rules
from robust_jax.data import lazy
from robust_jax.errors import UserError

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def splits(data_dir):
  """The folders in `data_dir`.

  Raises:
    UserError: there is no `data_dir`, or it has no folder 'train'.
  """
  layout = 'a folder with train/CLASS/IMAGE and test/CLASS/IMAGE is needed'
  try:
    found = _folders(pathlib.Path(data_dir))
  except (OSError, TypeError) as error:
    raise UserError(f'config.data.data_dir is {data_dir!r}; {layout}') from error
  if 'train' not in found:
    raise UserError(f'config.data.data_dir is {data_dir!r}, where there is no folder train; '
                    f'{layout}')
  return found


class Folder:
  """The images of a split: class by class in the order of their names, the files in each likewise.

  Args:
    data_dir: the folder with 'train', whose folders are the classes.
    split: the name of a folder there.

  Attributes:
    shape: (height, width, None) of the images; None where they differ.
    class_names: the names of the folders of 'train', in order.
    labels: [num_examples] int32.

  Raises:
    UserError: no such split, no image, or classes that 'train' does not have.
  """

  def __init__(self, data_dir, split):
    root = pathlib.Path(data_dir)
    self._train = root / 'train'
    if split not in splits(data_dir):
      raise UserError(f'config.data.data_dir is {data_dir!r}, split {split!r}; one of the folders '
                      f'there, {", ".join(splits(data_dir))}, is allowed, and no part of one')
    self.class_names = tuple(_folders(root / 'train'))
    unknown = sorted({*_folders(root / split)} - {*self.class_names})
    if unknown:
      raise UserError(f'{root / split / unknown[0]}: there is no class {unknown[0]!r} in '
                      f'{root / "train"}; its {len(self.class_names)} classes are allowed')
    self._files, labels = [], []
    for label, name in enumerate(self.class_names):
      files = _images(root / split / name)
      if not files and split == 'train':
        raise UserError(f'{root / split / name} holds no image; one file at least that ends in '
                        f'{", ".join(SUFFIXES)} is needed')
      self._files += files
      labels += [label] * len(files)
    if not self._files:
      raise UserError(f'{root / split} holds no image; files CLASS/IMAGE that end in '
                      f'{", ".join(SUFFIXES)} are needed')
    self.labels = np.asarray(labels, np.int32)

  @property
  def shape(self):
    """(height, width, None) where every image has the size of the first of 'train'."""
    first = _size(next(file for name in self.class_names for file in _images(self._train / name)))
    for begin in range(0, len(self), 1024):
      files = self._files[begin:begin + 1024]
      same = np.zeros(len(files), bool)

      def work(part, files=files, same=same):
        for number in part:
          same[number] = _size(files[number]) == first

      lazy.in_threads(work, len(files))
      if not same.all():
        return None, None, None
    return first[1], first[0], None

  def __len__(self):
    return len(self._files)

  def place(self, index):
    """Where an example is, for messages."""
    return self._files[index]

  def read(self, indices):
    """Iterates over the encoded images at `indices`."""
    for index in indices:
      try:
        with open(self._files[index], 'rb') as file:
          encoded = file.read()
      except OSError as error:
        raise UserError(f'{self._files[index]} cannot be read ({error.strerror})') from error
      yield encoded


def _size(file):
  """(width, height), from the head of the file."""
  try:
    with Image.open(file) as image:
      return image.size
  except image_rules.BROKEN as error:
    raise image_rules.broken(file, error) from error


def _folders(folder):
  return sorted(entry.name for entry in os.scandir(folder)
                if entry.is_dir() and not entry.name.startswith('.'))


def _images(folder):
  """Paths of the images in a folder and the folders in it, in order; none if it is not there."""
  found = []
  for parent, _, names in os.walk(folder, followlinks=True):
    found += [os.path.join(parent, name) for name in names
              if name.lower().endswith(SUFFIXES) and not name.startswith('.')]
  return sorted(found)
