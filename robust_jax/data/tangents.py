"""Tangent directions of the data at each training image, on the host."""

import functools
from pathlib import Path

import numpy as np

from robust_jax.data import lazy
from robust_jax.errors import UserError

# What the directions of one batch, which go to the devices with it, may need: 1 GiB.
BATCH_BYTES = 2**30
# Floats of a block of distances.
_BLOCK = 2**24


class Tangents:
  """k orthonormal directions at each training image: those in which its neighbours differ most.

  Local PCA: the first k principal directions of the image and its nearest neighbours in l2 among
  the training images of its class. Kept are the neighbours' numbers alone, [num_train, neighbours]
  int32; a batch's directions are computed when it is read, so that [num_train, d, k] floats (MNIST
  with k=10: 1.9 GB) are never held. Finding the neighbours takes num_train^2 d / classes
  multiplications (MNIST: seconds).

  Args:
    dataset: the training split, in memory.
    num_directions: k.
    num_neighbors: at least k.
  """

  def __init__(self, dataset, *, num_directions, num_neighbors):
    self._images = dataset.images
    self._neighbors = nearest_neighbors(
        np.asarray(dataset.images), np.asarray(dataset.labels), num_neighbors)
    self._num_directions = num_directions

  def __getitem__(self, index):
    """[len(index), d, k] float32 for the images at `index`."""
    cloud = self._images[np.concatenate([index[:, None], self._neighbors[index]], axis=1)]
    cloud = cloud.reshape(*cloud.shape[:2], -1).astype(np.float32) / 255
    return principal_directions(cloud, self._num_directions)


def load(dataset, batch_size, *, num_directions, num_neighbors, file=None):
  """What is indexed by numbers of training images and gives their directions [number, d, k].

  Args:
    dataset: the training split.
    batch_size: images of a batch.
    num_directions: k.
    num_neighbors: neighbours whose differences are analysed; see `Tangents`.
    file: None, or a .npy file [num_train, d, k] with orthonormal columns, which is mapped, not
      read, and takes the place of local PCA. d runs over height, width, channel.

  Raises:
    UserError: sizes that do not fit together or are too large, or images that are not in memory.
  """
  images = dataset.images
  d, k = int(np.prod(dataset.image_shape)), num_directions
  if 4 * batch_size * d * k > BATCH_BYTES:
    raise UserError(f'config.data.tangents is {k}: a batch of {batch_size} with {d} pixels needs '
                    f'{4 * batch_size * d * k / 2**30:.3g} GiB; up to {BATCH_BYTES / 2**30:g} GiB '
                    f'are allowed, which are {BATCH_BYTES // (4 * batch_size * d)} directions')
  if file is not None:
    path = Path(file).expanduser()
    # A file that is written anew is read anew.
    found = path.stat() if path.exists() else None
    return _mapped(path, (len(images), d, k), found and (found.st_ino, found.st_mtime_ns))
  if isinstance(images, lazy.LazyArray) and not images.keeps:
    raise UserError(f'config.data.tangents is {k}, but {dataset.name!r} is decoded on the way or '
                    'has extra examples; a dataset that fits into memory, without any, or '
                    'config.data.tangents_file, is allowed')
  if k > d:
    raise UserError(f'config.data.tangents is {k}; 1 to {d}, the pixels, are allowed')
  smallest = int(np.unique(dataset.labels, return_counts=True)[1].min())
  if not k <= num_neighbors < smallest:
    raise UserError(f'config.data.tangent_neighbors is {num_neighbors}; from {k} '
                    f'(config.data.tangents) to {smallest - 1}, the other images of the smallest '
                    'class, are allowed')
  return Tangents(dataset, num_directions=k, num_neighbors=num_neighbors)


def nearest_neighbors(images, labels, number):
  """The numbers of the nearest images of the same class in l2, [num_train, number] int32.

  Sorted by number, not by distance. An image is no neighbour of itself; its copies are.

  Args:
    images: [num_train, ...].
    labels: [num_train] int.
    number: fewer than the images of any class.
  """
  found = np.empty((len(images), number), np.int32)
  for label in np.unique(labels):
    own = np.flatnonzero(labels == label)
    rows = images[own].reshape(len(own), -1).astype(np.float32) / 255
    squares = np.sum(rows**2, axis=-1)
    size = max(_BLOCK // len(own), 1)
    for first in range(0, len(own), size):
      block = np.arange(first, min(first + size, len(own)))
      distances = squares - 2 * rows[block] @ rows.T
      distances[np.arange(len(block)), block] = np.inf
      nearest = np.argpartition(distances, number - 1, axis=-1)[:, :number]
      found[own[block]] = np.sort(own[nearest], axis=-1)
  return found


def principal_directions(cloud, number):
  """The first principal directions of each cloud of points.

  Args:
    cloud: [batch, points, d] float.
    number: k, fewer than the points and at most d.

  Returns:
    [batch, d, k] float32, orthonormal columns; where the points span fewer dimensions, the others
    are filled up with any.
  """
  centred = cloud - cloud.mean(axis=1, keepdims=True)
  directions = np.linalg.svd(centred, full_matrices=False)[2][:, :number]
  return np.ascontiguousarray(np.swapaxes(directions, 1, 2), dtype=np.float32)


@functools.cache
def _mapped(file, shape, version):
  del version
  try:
    array = np.load(file, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError) as error:
    raise UserError(f'config.data.tangents_file is {str(file)!r}, which cannot be read ({error}); '
                    'a .npy file of floats is allowed') from error
  if array.shape != shape or array.dtype.kind != 'f':
    raise UserError(f'config.data.tangents_file is {str(file)!r}, an array {array.shape} of '
                    f'{array.dtype}; floats of shape {shape} are allowed')
  for part in np.array_split(np.arange(len(array)), max(array.nbytes // BATCH_BYTES, 1)):
    basis = np.asarray(array[part[0]:part[-1] + 1], np.float32)
    products = np.swapaxes(basis, 1, 2) @ basis
    if not np.allclose(products, np.eye(shape[2]), atol=1e-3):
      raise UserError(f'config.data.tangents_file is {str(file)!r}, whose columns are not '
                      'orthonormal; orthonormal directions of each image are allowed')
  return array
