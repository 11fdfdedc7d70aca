"""The published archives of small datasets, read as arrays without running what is in them.

CIFAR comes as Python pickles, as binary records and as Matlab files, MNIST and its like as IDX
files, SVHN as Matlab files. Pickles can call any function of Python; this reader knows the few that
make NumPy arrays, and refuses a file that asks for any other.

Reference: cs.toronto.edu/~kriz/cifar.html; yann.lecun.com/exdb/mnist;
ufldl.stanford.edu/housenumbers.
"""

import gzip
import hashlib
import io
import math
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from robust_jax.errors import UserError

_CIFAR_BYTES = 3 * 32 * 32


class Layout(NamedTuple):
  """One form in which a dataset is published.

  Attributes:
    train: names of the files of the training split, in the order of its examples.
    test: likewise.
    read: contents of the files of one split -> (images, labels).
    class_names: the names of the classes or, with `meta`, the function that reads them from it.
    meta: name of the file that has the names of the classes; None without one.
  """

  train: tuple[str, ...]
  test: tuple[str, ...]
  read: Callable
  class_names: Callable | tuple[str, ...]
  meta: str | None = None

  @property
  def files(self):
    """The names of all its files."""
    return [*self.train, *self.test, *([self.meta] if self.meta else ())]


class _ArraysOnly(pickle.Unpickler):
  """An unpickler of containers, numbers, strings and NumPy arrays, and of nothing else."""

  def find_class(self, module, name):
    # NumPy 2 has moved its module.
    if (module.replace('numpy._core', 'numpy.core'), name) == (
        'numpy.core.multiarray', '_reconstruct'):
      return _empty_array
    if (module, name) in (('numpy', 'ndarray'), ('numpy', 'dtype')):
      return getattr(np, name)
    if (module, name) == ('_codecs', 'encode'):  # Bytes as Python 3 writes them in protocol 2.
      return _latin1
    raise UserError(f'asks for {module}.{name}; a pickle of arrays needs nothing of the kind, and '
                    'it was not run')


def _empty_array(kind, shape, dtype):
  if kind is not np.ndarray:
    raise UserError(f'asks for an array of type {kind!r}')
  return np.ndarray(shape, dtype)


def _latin1(text, encoding):
  if encoding != 'latin1':
    raise UserError(f'asks for the encoding {encoding!r}')
  return text.encode('latin1')


def unpickle(content):
  """What a pickle of arrays holds; dicts of Python 2 have bytes as keys and strings.

  Raises:
    UserError: it asks for something else than arrays and Python's own containers.
  """
  return _ArraysOnly(io.BytesIO(content), encoding='bytes').load()


def from_planes(rows, size=32):
  """[num_examples, 3 * size**2] uint8, red plane first, as [num_examples, size, size, 3].

  Raises:
    UserError: rows of another shape or dtype.
  """
  if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * size**2:
    raise UserError(f'images must be uint8 of shape [num_examples, {3 * size**2}], got '
                    f'{rows.dtype} of shape {rows.shape}')
  return rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1)


def _cifar_python(label):
  """Reader of the Python version; `label` is the key of the labels."""

  def read(contents):
    batches = [text_keys(unpickle(content)) for content in contents]
    return (from_planes(np.concatenate([batch['data'] for batch in batches])),
            np.concatenate([np.asarray(batch[label]) for batch in batches]))

  return read


def _python_names(key):
  return lambda content: [_text(name) for name in text_keys(unpickle(content))[key]]


def text_keys(values):
  """A dict of `unpickle` with keys of text."""
  return {_text(name): value for name, value in values.items()}


def _text(value):
  return value.decode('latin1') if isinstance(value, bytes) else value


def _cifar_binary(num_labels):
  """Reader of the binary version: records of so many labels, the last one counts, and an image."""

  def read(contents):
    size = num_labels + _CIFAR_BYTES
    whole = b''.join(contents)
    if any(len(content) % size for content in contents):
      raise UserError(f'its files must be records of {size} bytes, got '
                      f'{", ".join(str(len(content)) for content in contents)} bytes')
    records = np.frombuffer(whole, np.uint8).reshape(-1, size)
    return from_planes(records[:, num_labels:]), records[:, num_labels - 1]

  return read


def _lines(content):
  return content.decode().split()


def _cifar_matlab(label):
  def read(contents):
    batches = [loadmat(io.BytesIO(content)) for content in contents]
    return (from_planes(np.concatenate([batch['data'] for batch in batches])),
            np.concatenate([batch[label] for batch in batches])[:, 0])

  return read


def _matlab_names(key):
  return lambda content: [str(name[0]) for name in loadmat(io.BytesIO(content))[key][:, 0]]


def _svhn(contents):
  (content,) = contents
  found = loadmat(io.BytesIO(content))
  # The digit 0 has the label 10.
  return found['X'].transpose(3, 0, 1, 2), found['y'][:, 0] % 10


def read_idx(content):
  """The array of an IDX file of bytes: two zeros, the type 8, the rank, sizes (big-endian), data.

  Raises:
    UserError: it is no such file, or has another length than it says.
  """
  rank = content[3] if content[:3] == b'\0\0\x08' else None
  if not rank or len(content) < 4 + 4 * rank:
    raise UserError(f'must be an IDX file of bytes, begins with {content[:4]!r}')
  shape = tuple(np.frombuffer(content, '>u4', rank, 4).tolist())
  data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
  if len(data) != math.prod(shape):
    raise UserError(f'must have {math.prod(shape)} bytes after its head of shape {shape}, got '
                    f'{len(data)}')
  return data.reshape(shape)


def _idx(contents):
  images, labels = map(read_idx, contents)
  return images[..., None], labels


def _cifar10(end, read, class_names, meta):
  return Layout(tuple(f'data_batch_{number}{end}' for number in range(1, 6)), (f'test_batch{end}',),
                read, class_names, meta)


def _cifar100(end, read, class_names, meta):
  return Layout((f'train{end}',), (f'test{end}',), read, class_names, meta)


def _mnist(class_names):
  train, test = ((f'{split}-images-idx3-ubyte', f'{split}-labels-idx1-ubyte')
                 for split in ('train', 't10k'))
  return Layout(train, test, _idx, class_names)


_DIGITS = tuple('0123456789')
LAYOUTS = {
    'cifar10': [
        _cifar10('', _cifar_python('labels'), _python_names('label_names'), 'batches.meta'),
        _cifar10('.bin', _cifar_binary(1), _lines, 'batches.meta.txt'),
        _cifar10('.mat', _cifar_matlab('labels'), _matlab_names('label_names'),
                 'batches.meta.mat')],
    'cifar100': [
        _cifar100('', _cifar_python('fine_labels'), _python_names('fine_label_names'), 'meta'),
        _cifar100('.bin', _cifar_binary(2), _lines, 'fine_label_names.txt'),
        _cifar100('.mat', _cifar_matlab('fine_labels'), _matlab_names('fine_label_names'),
                  'meta.mat')],
    'mnist': [_mnist(_DIGITS)],
    'fashion_mnist': [_mnist((
        'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
        'Ankle boot'))],
    'svhn_cropped': [Layout(('train_32x32.mat',), ('test_32x32.mat',), _svhn, _DIGITS)],
}


def read(name, paths):
  """The arrays of a published dataset.

  Args:
    name: a key of `LAYOUTS`.
    paths: files of it, archives (.tar, .tar.gz, .zip) that have them, and folders that are
      searched for both.

  Returns:
    {'train_images', 'train_labels', 'test_images', 'test_labels', 'class_names'}: arrays, in the
    order of the files.

  Raises:
    UserError: a file that is not there, or cannot be read.
  """
  wanted = {file for layout in LAYOUTS[name] for file in layout.files}
  found = {}
  for path in paths:
    for file, content in contents(path, wanted):
      found.setdefault(file, content)
  missing = [[file for file in layout.files if file not in found] for layout in LAYOUTS[name]]
  layout, absent = min(zip(LAYOUTS[name], missing), key=lambda pair: len(pair[1]))
  place = ', '.join(map(str, paths))
  if absent:
    raise UserError(f'{place} must have the files of {name}: {", ".join(layout.files)}; without '
                    f'{", ".join(absent)}')
  arrays = {}
  for split, files in (('train', layout.train), ('test', layout.test)):
    images, labels = parsed(layout.read, [found[file] for file in files], place, files)
    arrays |= {f'{split}_images': images, f'{split}_labels': labels}
  names = layout.class_names
  if layout.meta:
    names = parsed(lambda contents: names(*contents), [found[layout.meta]], place, [layout.meta])
  return arrays | {'class_names': np.array(names)}


def md5(path):
  """The MD5 of a file, as it is published."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def parsed(read, contents, place, files):
  """What `read` makes of the contents that the functions `contents` give.

  Raises:
    UserError: whatever `read` raises, in a line that names `place` and `files`.
  """
  try:
    return read([content() for content in contents])
  except Exception as error:  # Of pickle, zlib and SciPy, or a key that is not there.
    raise _unreadable(f'{place}: {", ".join(files)}', error) from error


def _unreadable(place, error):
  line = ' '.join(str(error).split())
  if not isinstance(error, UserError):
    line = f'cannot be read ({type(error).__name__}: {line})'
  return UserError(f'{place}: {line}')


def contents(path, wanted):
  """Iterates over (name, function that gives the bytes) of the wanted files at a path."""
  if os.path.isdir(path):
    for folder, folders, names in os.walk(path):
      folders[:] = sorted(name for name in folders if not name.startswith('.'))
      for name in sorted(names):
        if _plain(name) in wanted:
          yield _plain(name), _reader(os.path.join(folder, name))
    return
  try:
    if _plain(os.path.basename(path)) in wanted:
      yield _plain(os.path.basename(path)), _reader(path)
    elif tarfile.is_tarfile(path):
      with tarfile.open(path) as archive:
        for member in archive:
          name = os.path.basename(member.name)
          if member.isfile() and _plain(name) in wanted:
            content = _unzipped(archive.extractfile(member).read())
            yield _plain(name), lambda content=content: content
    elif zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
          name = os.path.basename(member)
          if _plain(name) in wanted:
            content = _unzipped(archive.read(member))
            yield _plain(name), lambda content=content: content
    else:
      raise UserError(f'{path} must be a folder, an archive (.tar.gz, .zip) or one of '
                      f'{", ".join(sorted(wanted))}')
  except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
    raise _unreadable(path, error) from error


def _plain(name):
  """The name of a file as published: without .gz, and with the dash that some tools replace."""
  return name.removesuffix('.gz').replace('.idx', '-idx')


def _reader(path):
  def read():
    with open(path, 'rb') as file:
      return _unzipped(file.read())

  return read


def _unzipped(content):
  return gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content
