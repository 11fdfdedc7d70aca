"""A folder of images: SPLIT/CLASS/IMAGE, as torchvision's ImageFolder reads it.

Hidden files and folders, whose names begin with a dot, are passed over.
"""

import collections
import os
import pathlib
import sys
import unicodedata

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

  Names of classes are the same whether an accented letter is one character or two (macOS), in
  which folders of the same name may differ. Files that are no images by their names are left out,
  and those in no class; a line on stderr says how many.

  Args:
    data_dir: the folder with 'train', whose folders are the classes.
    split: the name of a folder in it.

  Attributes:
    shape: (height, width, None) of the images; None where they differ.
    class_names: the names of the folders of 'train', in order, composed (NFC).
    labels: [num_examples] int32.

  Raises:
    UserError: no such split, no image, classes that 'train' does not have, or two that look alike.
  """

  def __init__(self, data_dir, split):
    names = splits(data_dir)
    if split not in names:
      raise UserError(f'config.data.data_dir is {data_dir!r}, where the split must be one of the '
                      f'folders {", ".join(names)}, got {split!r}')
    train, folder = pathlib.Path(data_dir, 'train'), pathlib.Path(data_dir, split)
    classes, found = _classes(train), _classes(folder)
    self.class_names = tuple(sorted(classes))
    unknown = sorted({*found} - {*classes})
    if unknown:
      raise UserError(f'{found[unknown[0]]}: {unknown[0]!r} is none of the {len(classes)} classes '
                      f'in {train}')
    self._train = [classes[name] for name in self.class_names]
    others = collections.Counter()
    files = [_images(found.get(name, folder / name), others) for name in self.class_names]
    empty = [folder / name for name, images in zip(self.class_names, files) if not images]
    if len(empty) == len(files) or (empty and split == 'train'):
      raise UserError(f'{folder if len(empty) == len(files) else empty[0]}: no images (files that '
                      f'end in {", ".join(SUFFIXES)})')
    others['in no class'] = sum(entry.is_file() and not entry.name.startswith('.')
                                for entry in os.scandir(folder))
    if others.total():
      listed = ', '.join(f'{number} {kind}' for kind, number in sorted(others.items()) if number)
      print(f'data: {folder}: files that are no images by their names or of no class are left out: '
            f'{listed}', file=sys.stderr)
    self._files = [file for images in files for file in images]
    self.labels = np.repeat(np.arange(len(files), dtype=np.int32), [*map(len, files)])

  @property
  def shape(self):
    """(height, width, None) where every image has the size of the first of 'train'."""
    first = _size(next(file for folder in self._train for file in _images(folder)))
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


def _classes(folder):
  """{name as a reader sees it: folder} of the folders in a folder."""
  classes = {}
  for entry in _folders(folder):
    name = unicodedata.normalize('NFC', entry).strip()
    if name in classes:
      raise UserError(f'{folder} must not have two classes that look alike, got '
                      f'{ascii(classes[name].name)} and {ascii(entry)}')
    classes[name] = folder / entry
  return classes


def _images(folder, others=None):
  """Paths of the images in a folder and its subfolders, in order; none if there is no folder.

  Args:
    folder: its path.
    others: a Counter, to which the suffixes of the other files are added.
  """
  files = []
  for parent, folders, names in os.walk(folder, followlinks=True):
    here = os.path.join(os.path.realpath(parent), '')
    # A link to a folder above would bring every image again and again.
    folders[:] = [name for name in folders if not name.startswith('.') and not here.startswith(
        os.path.join(os.path.realpath(os.path.join(parent, name)), ''))]
    for name in names:
      if name.startswith('.'):
        continue
      if name.lower().endswith(SUFFIXES):
        files.append(os.path.join(parent, name))
      elif others is not None:
        others[os.path.splitext(name)[1].lower() or 'without a suffix'] += 1
  return sorted(files)
