"""Images of a split that are decoded when they are asked for, by threads."""

import concurrent.futures
import functools
import os

import numpy as np

from robust_jax.data import decode as image_rules
from robust_jax.errors import UserError

# Examples that a thread takes at a time, at most.
_PART = 1024
# Smaller images are decoded in less time than threads need to take turns.
_PIXELS = 64 * 64


class ArrayLike:
  """What an array does besides being indexed, of what has shape, dtype and `__getitem__`."""

  def __repr__(self):
    return f'{type(self).__name__}(shape={self.shape})'

  @property
  def ndim(self):
    return len(self.shape)

  def __len__(self):
    return self.shape[0]

  def __array__(self, dtype=None, copy=None):
    del copy
    return self[:].astype(dtype or self.dtype, copy=False)


class LazyImages(ArrayLike):
  """Looks like an array [num_examples, height, width, channel] of uint8, but holds no image.

  Indexing with anything that indexes a NumPy array's first axis reads and decodes those images,
  cut to size as for evaluation. Nothing is kept.

  Args:
    records: the encoded images: `len(records)`; `records.read(indices)` iterates over their
      bytes; `records.place(index)` names one in an error message.
    shape: (height, width, channel) of every image.
    resize: False where the encoded images have that height and width.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, records, shape, resize):
    self._records = records
    self._resize = resize
    self.shape = (len(records), *shape)

  def __getitem__(self, indices):
    indices = np.arange(len(self))[indices]
    if indices.ndim == 0:
      return self[indices[None]][0]
    if self._resize:
      return self.map(indices, lambda image, _: image_rules.centre_crop(image, self.shape[1]))
    return self.map(indices, lambda image, _: image_rules.to_array(image))

  def map(self, indices, function):
    """Images made of the originals, before they are cut to size.

    Args:
      indices: [number] int.
      function: (PIL.Image, its place in indices) -> [height, width, channel] uint8; called in
        several threads.

    Returns:
      [number, height, width, channel] uint8.

    Raises:
      UserError: an image cannot be read, or has another size where `resize` is False.
    """
    made = np.empty((len(indices), *self.shape[1:]), np.uint8)

    def work(part):
      for number, encoded in zip(part, self._records.read(indices[part.start:part.stop])):
        made[number] = function(self._decode(indices[number], encoded), number)

    in_threads(work, len(indices), self._resize or self.shape[1] * self.shape[2] >= _PIXELS)
    return made

  def _decode(self, index, encoded):
    height, width, channels = self.shape[1:]
    try:
      image = image_rules.decode(encoded, channels)
    except image_rules.BROKEN as error:
      raise image_rules.broken(self._records.place(index), error) from error
    if not self._resize and image.size != (width, height):
      raise UserError(f'{self._records.place(index)}: {image.width}x{image.height} pixels; '
                      f'{width}x{height} are allowed, or any with config.data.image_size set')
    return image


class KeptImages(ArrayLike):
  """Looks like an array [num_examples, height, width, channel] of uint8, which fills as it is read.

  An image is decoded when it is first asked for, and kept: so training begins at once, and decodes
  the images of its first epoch on the way. `numpy.asarray` decodes all of them.

  Args:
    images: `LazyImages`.
    pad: black pixels added on every side.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, images, pad=0):
    number, height, width, channels = images.shape
    self._images = images
    self._inside = (slice(pad, pad + height), slice(pad, pad + width))
    self._kept = np.zeros((number, height + 2 * pad, width + 2 * pad, channels), np.uint8)
    self._is_kept = np.zeros(number, bool)
    self.shape = self._kept.shape

  def __getitem__(self, indices):
    indices = np.arange(len(self))[indices]
    missing = np.unique(indices[~self._is_kept[indices]])
    if len(missing):
      self._kept[missing, *self._inside] = self._images[missing]
      self._is_kept[missing] = True
    return self._kept.take(indices, axis=0)  # A copy, of a single image too.


class Joined(ArrayLike):
  """Looks like the concatenation of two arrays, without a copy of either.

  Args:
    first: an array [num_examples, ...] or what is indexed like one, such as `LazyImages`.
    second: likewise, alike but for the number of examples.
  """

  def __init__(self, first, second):
    self._parts = (first, second)
    none = first[:0]
    self.dtype = none.dtype
    self.shape = (len(first) + len(second), *none.shape[1:])

  def __getitem__(self, indices):
    indices = np.arange(len(self))[indices]
    if indices.ndim == 0:
      return self[indices[None]][0]
    return self._gather(indices, lambda part, chosen, _: part[chosen])

  def map(self, indices, function):
    """Of images: as `LazyImages.map`."""
    return self._gather(indices, lambda images, chosen, places: map_originals(
        images, chosen, lambda image, number: function(image, places[number])))

  def _gather(self, indices, take):
    made = np.empty((len(indices), *self.shape[1:]), self.dtype)
    border = len(self._parts[0])
    for part, places, start in ((self._parts[0], np.flatnonzero(indices < border), 0),
                                (self._parts[1], np.flatnonzero(indices >= border), border)):
      if len(places):
        made[places] = take(part, indices[places] - start, places)
    return made


def map_originals(images, indices, function):
  """`LazyImages.map`, also of an array [num_examples, height, width, channel] of uint8."""
  if isinstance(images, (LazyImages, Joined)):
    return images.map(indices, function)
  made = images[indices]

  def work(part):
    for number in part:
      made[number] = function(image_rules.from_array(made[number]), number)

  in_threads(work, len(indices), images.shape[1] * images.shape[2] >= _PIXELS)
  return made


def in_threads(work, number, worth_it=True):
  """Calls `work` with parts of range(number), in the threads that decode (Pillow frees the GIL).

  Args:
    work: function of a range, which is a part.
    number: how many examples there are.
    worth_it: False: without threads.

  Raises:
    Whatever `work` raises, of the first part that does.
  """
  executor, num_threads = _executor()
  size = min(max(number // (4 * num_threads), 1), _PART) if worth_it else _PART
  parts = [range(first, min(first + size, number)) for first in range(0, number, size)]
  list((executor.map if worth_it else map)(work, parts))


@functools.cache
def _executor():
  num_threads = os.cpu_count() or 1
  return concurrent.futures.ThreadPoolExecutor(num_threads, 'decode'), num_threads
