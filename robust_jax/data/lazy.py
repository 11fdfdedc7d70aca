"""Arrays whose rows are read and decoded when they are asked for, by threads."""

import concurrent.futures
import functools
import os

import numpy as np

from robust_jax.data import decode
from robust_jax.errors import UserError

# Examples that a thread takes at a time, at most.
_PART = 1024
# Smaller images are decoded in less time than threads need to take turns.
_PIXELS = 64 * 64


class LazyArray:
  """Looks like an array, but computes its rows [number, ...] when they are asked for.

  It is indexed with anything that indexes a NumPy array's first axis; `numpy.asarray` computes all
  rows.

  Args:
    compute: indices [k] int -> rows [k, ...].
    shape: of the array.
    dtype: likewise.
    keep: whether rows stay in memory, so that each is computed once.
    map_originals: (indices, function) -> rows, as the function of that name; None where the rows
      are the originals.

  Attributes:
    keeps: whether rows stay in memory, here or in the array that this is a part of.
  """

  def __init__(self, compute, shape, dtype, *, keep=False, map_originals=None):
    self.shape, self.ndim, self.dtype = tuple(shape), len(shape), np.dtype(dtype)
    self.keeps, self.map_originals = keep, map_originals
    self._compute = compute
    self._rows = np.zeros(shape, dtype) if keep else None
    self._is_known = np.zeros(shape[0], bool)

  def put(self, indices, rows):
    """Rows that are known without a computation."""
    self._rows[indices] = rows
    self._is_known[indices] = True

  def __getitem__(self, indices):
    indices = np.arange(len(self))[indices]
    flat = indices.ravel()
    if self._rows is not None:
      missing = np.unique(flat[~self._is_known[flat]])
      if len(missing):
        self.put(missing, self._compute(missing))
      rows = self._rows.take(flat, axis=0)
    else:
      rows = self._compute(flat)
    return rows.reshape((*indices.shape, *self.shape[1:]))[()]  # A number of a single label.

  def __len__(self):
    return self.shape[0]

  def __array__(self, dtype=None, copy=None):
    del copy
    return self[:].astype(dtype or self.dtype, copy=False)

  def __repr__(self):
    return f'LazyArray(shape={self.shape}, dtype={self.dtype})'


def encoded_images(records, shape, resize):
  """Images of a split that are decoded, and cut to size as for evaluation, at each request.

  Args:
    records: the encoded images: `len(records)`; `records.read(indices)` iterates over their
      bytes; `records.place(index)` names one in an error message.
    shape: (height, width, channel) of every image.
    resize: False where the encoded images have that height and width.

  Returns:
    LazyArray [num_examples, height, width, channel] of uint8. It raises UserError on an image that
    cannot be read, or has another size where `resize` is False.
  """
  height, width, channels = shape

  def decoded(index, encoded):
    try:
      image = decode.decode(encoded, channels)
    except decode.ERRORS as error:
      raise decode.broken(records.place(index), error) from error
    if not resize and image.size != (width, height):
      raise UserError(f'{records.place(index)}: the image has {image.width}x{image.height} pixels, '
                      f'others {width}x{height}; set config.data.image_size')
    return image

  def map_each(indices, function):
    images = np.empty((len(indices), *shape), np.uint8)

    def work(part):
      for place, encoded in zip(part, records.read(indices[part.start:part.stop])):
        images[place] = function(decoded(indices[place], encoded), place)

    in_threads(work, len(indices), resize or height * width >= _PIXELS)
    return images

  def for_evaluation(image, place):
    del place
    return decode.centre_crop(image, height) if resize else decode.to_array(image)

  return LazyArray(lambda indices: map_each(indices, for_evaluation), (len(records), *shape),
                   np.uint8, map_originals=map_each)


def kept_images(images, pad=0):
  """The LazyArray that keeps `images`, so that a run decodes them during its first epoch.

  Args:
    images: a LazyArray [num_examples, height, width, channel].
    pad: black pixels added on every side.
  """
  number, height, width, channels = images.shape
  border = (pad, pad)
  return LazyArray(lambda indices: np.pad(images[indices], ((0, 0), border, border, (0, 0))),
                   (number, height + 2 * pad, width + 2 * pad, channels), images.dtype, keep=True)


def concatenate(first, second):
  """The LazyArray of the rows of `first`, then of `second`, without a copy of either."""
  first_length, row_shape = len(first), first.shape[1:]

  def gather(indices, rows_of):
    """rows_of: (part, its indices, their places in `indices`) -> rows."""
    rows = np.empty((len(indices), *row_shape), first.dtype)
    for part, is_part, start in ((first, indices < first_length, 0),
                                 (second, indices >= first_length, first_length)):
      places = np.flatnonzero(is_part)
      if len(places):
        rows[places] = rows_of(part, indices[places] - start, places)
    return rows

  def map_each(indices, function):
    return gather(indices, lambda images, part_indices, places: map_originals(
        images, part_indices, lambda image, place: function(image, places[place])))

  def compute(indices):
    return gather(indices, lambda part, part_indices, _: part[part_indices])

  return LazyArray(compute, (first_length + len(second), *row_shape), first.dtype,
                   map_originals=map_each)


def part(array, indices):
  """The rows at `indices` [number] int of an array or a LazyArray, of the latter without a copy."""
  if not isinstance(array, LazyArray):
    return array[indices]
  originals = array.map_originals and (
      lambda chosen, function: array.map_originals(indices[chosen], function))
  found = LazyArray(lambda chosen: array[indices[chosen]], (len(indices), *array.shape[1:]),
                    array.dtype, map_originals=originals)
  found.keeps = array.keeps
  return found


def map_originals(images, indices, function):
  """Images made of the originals, before these are cut to size for evaluation.

  Args:
    images: an array [num_examples, height, width, channel] of uint8, or a LazyArray.
    indices: [number] int.
    function: (PIL.Image, its place in indices) -> [height, width, channel] uint8; called in
      several threads.

  Returns:
    [number, height, width, channel] uint8.
  """
  if getattr(images, 'map_originals', None):
    return images.map_originals(indices, function)
  rows = images[indices]

  def work(part):
    for place in part:
      rows[place] = function(decode.from_array(rows[place]), place)

  in_threads(work, len(indices), images.shape[1] * images.shape[2] >= _PIXELS)
  return rows


def in_threads(work, number, worth_it=True):
  """Calls `work` with parts of range(number), in threads if `worth_it` (Pillow frees the GIL).

  Raises what the first part raises that fails.
  """
  num_threads = os.cpu_count() or 1
  size = min(max(number // (4 * num_threads), 1), _PART) if worth_it else _PART
  parts = [range(first, min(first + size, number)) for first in range(0, number, size)]
  list((_executor(num_threads).map if worth_it else map)(work, parts))


@functools.cache
def _executor(num_threads):
  return concurrent.futures.ThreadPoolExecutor(num_threads, 'decode')
