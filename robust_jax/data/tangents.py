"""Tangent directions of the data at each training image, on the host."""

import functools
from pathlib import Path

import numpy as np

from robust_jax.data import arrays, lazy
from robust_jax.errors import UserError

# The most that the directions of one batch, which go to the devices with it, may take: 1 GiB.
_BATCH_BYTES = 2**30
# Distances are computed in blocks of so many floats.
_BLOCK = 2**24


class Tangents:
  """k orthonormal directions at each training image: those in which its neighbours differ most.

  Local PCA: the first k principal directions of the image and its nearest neighbours in l2 among
  the training images of its class. Only the indices of the neighbours are kept, [num_train,
  neighbours] int32; a batch's directions are computed when it is read, since all of them,
  [num_train, d, k] floats, are large (MNIST with k=10: 1.9 GB). Finding the neighbours takes
  num_train^2 d / classes multiplications (MNIST: seconds).

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
    cloud = arrays.scaled(cloud.reshape(*cloud.shape[:2], -1))
    return principal_directions(cloud, self._num_directions)


def load(dataset, batch_size, *, num_directions, num_neighbors, file=None):
  """The tangent directions of the training images: indexed by [number] int, [number, d, k] floats.

  Args:
    dataset: the training split.
    batch_size: images of a batch.
    num_directions: k.
    num_neighbors: neighbours whose differences are analysed; see `Tangents`.
    file: None, or a .npy file [num_train, d, k] with orthonormal columns, used instead of local
      PCA and mapped into memory. d runs over height, width, channel.

  Raises:
    UserError: sizes that do not fit together or are too large, or images that are not in memory.
  """
  images = dataset.images
  d, k = int(np.prod(dataset.image_shape)), num_directions
  if 4 * batch_size * d * k > _BATCH_BYTES:
    raise UserError(f'config.data.tangents must be at most {_BATCH_BYTES // (4 * batch_size * d)} '
                    f'for batches of {batch_size} images of {d} pixels (1 GiB), got {k}')
  if file is not None:
    path = Path(file).expanduser()
    # Part of the cache's key: a file that was written again is read again.
    status = path.stat() if path.exists() else None
    return _mapped(path, (len(images), d, k), status and (status.st_ino, status.st_mtime_ns))
  if isinstance(images, lazy.LazyArray) and not images.keeps:
    raise UserError(f'config.data.tangents={k} needs images in memory without extra examples, or '
                    f'config.data.tangents_file; {dataset.name!r} is not in memory')
  if k > d:
    raise UserError(f'config.data.tangents must be at most {d}, the number of pixels, got {k}')
  smallest = int(np.unique(dataset.labels, return_counts=True)[1].min())
  if not k <= num_neighbors < smallest:
    raise UserError(f'config.data.tangent_neighbors must be from {k} (config.data.tangents) to '
                    f'{smallest - 1} (the other images of the smallest class), got {num_neighbors}')
  return Tangents(dataset, num_directions=k, num_neighbors=num_neighbors)


def nearest_neighbors(images, labels, number):
  """The indices of the nearest images of the same class in l2, [num_train, number] int32.

  Sorted by index, not by distance. An image is no neighbour of itself; its copies are.

  Args:
    images: [num_train, ...].
    labels: [num_train] int.
    number: fewer than the images of any class.
  """
  neighbors = np.empty((len(images), number), np.int32)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    rows = arrays.scaled(images[members].reshape(len(members), -1))
    squares = np.sum(rows**2, axis=-1)
    size = max(_BLOCK // len(members), 1)
    for first in range(0, len(members), size):
      block = np.arange(first, min(first + size, len(members)))
      distances = squares - 2 * rows[block] @ rows.T
      distances[np.arange(len(block)), block] = np.inf
      nearest = np.argpartition(distances, number - 1, axis=-1)[:, :number]
      neighbors[members[block]] = np.sort(members[nearest], axis=-1)
  return neighbors


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
    raise UserError(f'config.data.tangents_file must be a .npy file of floats, got {str(file)!r} '
                    f'({error})') from error
  if array.shape != shape or array.dtype.kind != 'f':
    raise UserError(f'config.data.tangents_file must hold floats of shape {shape}, got '
                    f'{array.dtype} of shape {array.shape} in {str(file)!r}')
  for part in np.array_split(np.arange(len(array)), max(array.nbytes // _BATCH_BYTES, 1)):
    basis = np.asarray(array[part[0]:part[-1] + 1], np.float32)
    products = np.swapaxes(basis, 1, 2) @ basis
    if not np.allclose(products, np.eye(shape[2]), atol=1e-3):
      raise UserError('config.data.tangents_file must hold orthonormal directions of each image, '
                      f'{str(file)!r} does not')
  return array
