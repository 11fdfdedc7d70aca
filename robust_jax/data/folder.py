"""A folder of images: SPLIT/CLASS/IMAGE, as torchvision's ImageFolder reads it."""

import os
import pathlib

import numpy as np
from PIL import Image

from robust_jax.data import decode, lazy
from robust_jax.errors import UserError

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def splits(data_dir):
  """The names of the folders in `data_dir`.

  Raises:
    UserError: there is no `data_dir`, or it has no folder 'train'.
  """
  try:
    names = _folders(pathlib.Path(data_dir))
  except (OSError, TypeError):
    names = []
  if 'train' not in names:
    raise UserError('config.data.data_dir must be a folder with train/CLASS/IMAGE and '
                    f'test/CLASS/IMAGE, got {data_dir!r}')
  return names


class ImageFolder:
  """The images of a split: class by class in the order of their names, the files in each likewise.

  Args:
    data_dir: the folder with 'train', whose folders are the classes.
    split: the name of a folder in it.

  Attributes:
    shape: (height, width, None) of the images; None where they differ.
    class_names: the names of the folders of 'train', in order.
    labels: [num_examples] int32.

  Raises:
    UserError: no such split, no image, or classes that 'train' does not have.
  """

  def __init__(self, data_dir, split):
    names = splits(data_dir)
    if split not in names:
      raise UserError(f'config.data.data_dir is {data_dir!r}, where the split must be one of the '
                      f'folders {", ".join(names)}, got {split!r}')
    self._train, folder = pathlib.Path(data_dir, 'train'), pathlib.Path(data_dir, split)
    self.class_names = tuple(_folders(self._train))
    unknown = sorted({*_folders(folder)} - {*self.class_names})
    if unknown:
      raise UserError(f'{folder / unknown[0]}: {unknown[0]!r} is none of the '
                      f'{len(self.class_names)} classes in {self._train}')
    files = [_images(folder / name) for name in self.class_names]
    empty = [folder / name for name, images in zip(self.class_names, files) if not images]
    if len(empty) == len(files) or (empty and split == 'train'):
      raise UserError(f'{folder if len(empty) == len(files) else empty[0]}: no images (files that '
                      f'end in {", ".join(SUFFIXES)})')
    self._files = [file for images in files for file in images]
    self.labels = np.repeat(np.arange(len(files), dtype=np.int32), [*map(len, files)])

  @property
  def shape(self):
    """(height, width, None) where every image has the size of the first of 'train'."""
    first = _size(next(file for name in self.class_names for file in _images(self._train / name)))
    for start in range(0, len(self), 1024):
      files = self._files[start:start + 1024]
      is_same = np.zeros(len(files), bool)

      def compare(part, files=files, is_same=is_same):
        for number in part:
          is_same[number] = _size(files[number]) == first

      lazy.in_threads(compare, len(files))
      if not is_same.all():
        return None, None, None
    return first[1], first[0], None

  def __len__(self):
    return len(self._files)

  def place(self, index):
    """The file of an example, for error messages."""
    return self._files[index]

  def read(self, indices):
    """Iterates over the encoded images at `indices`."""
    for index in indices:
      try:
        yield pathlib.Path(self._files[index]).read_bytes()
      except OSError as error:
        raise UserError(f'{self._files[index]} cannot be read ({error.strerror})') from error


def _size(file):
  """(width, height), from the head of the file."""
  try:
    with Image.open(file) as image:
      return image.size
  except decode.ERRORS as error:
    raise decode.broken(file, error) from error


def _folders(folder):
  return sorted(entry.name for entry in os.scandir(folder)
                if entry.is_dir() and not entry.name.startswith('.'))


def _images(folder):
  """Paths of the images in a folder and its subfolders, in order; none if there is no folder."""
  return sorted(os.path.join(parent, name)
                for parent, _, names in os.walk(folder, followlinks=True) for name in names
                if name.lower().endswith(SUFFIXES) and not name.startswith('.'))
