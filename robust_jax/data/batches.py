"""Batches of a dataset: shuffled and augmented for training, in order for evaluation.

A training batch is a pure function of (seed, step): a resumed run needs nothing but its step, and
the number of hosts changes neither the examples nor their augmentation.
"""

import functools
from typing import Literal

import grain
import jax
import numpy as np

from robust_jax.data import arrays, decode, lazy
from robust_jax.errors import UserError
from robust_jax.types import Batch

CROP_PADDING = 4
Augmentation = Literal['none', 'crop', 'crop_flip', 'resized_crop']
# Two threads read ahead, so that the threads which decode large images (`lazy.in_threads`) have the
# next batch to go on with while the last images of one are waited for, and it is divided by 255.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def steps_per_epoch(dataset, batch_size):
  """Steps in which every example of `dataset` counts once: ceil(num_examples / batch_size).

  Extra examples of a mixture, and their places in the batches, are left out.

  Raises:
    UserError: the share of extra examples leaves none, or none of the others, in a batch.
  """
  num_extra = _num_extra(dataset.mixture, batch_size)
  return -(-(dataset.num_examples - _extra_examples(dataset)) // (batch_size - num_extra))


def _extra_examples(dataset):
  return dataset.mixture.num_examples if dataset.mixture else 0


def _num_extra(mixture, batch_size):
  """The number of extra examples in a batch."""
  if mixture is None:
    return 0
  num_extra = round(mixture.share * batch_size)
  most = min(batch_size - 1, mixture.num_examples)
  if not 0 < num_extra <= most:
    raise UserError(f'config.extra.share must give 1 to {most} examples in a batch of {batch_size} '
                    f'({mixture.num_examples} are there), got {mixture.share}: {num_extra}')
  return num_extra


def train_batches(dataset, *, batch_size, seed, num_steps, start_step=0,
                  augment: Augmentation = 'none', tangents=None, targets=None, host=0,
                  num_hosts=1):
  """Iterates over the batches of steps start_step, ..., num_steps - 1 of a run.

  Epoch e = step // steps_per_epoch goes through the dataset in a fresh random order, each example
  once; no batch straddles two epochs. The last batch of an epoch is filled up with other images
  of the epoch, so that batch statistics see a full batch, at mask 0 and index num_examples.

  Each batch of a mixture (see `extra.mix`) has round(share * batch_size) extra examples, evenly
  among the others, with their weight as mask. They come in one random order after the other; what
  does not fill a batch at the end of an order is left out, so that no batch has an example twice.
  An epoch is one pass through the others.

  A whole batch is one Grain element, gathered and augmented at once: an element per image costs
  seven times as much.

  Args:
    dataset: a Dataset.
    batch_size: examples in a batch, over all hosts.
    seed: of the order and the augmentation.
    num_steps: steps of the whole run; the iterator ends there.
    start_step: the first step, not 0 when a run is resumed.
    augment: 'crop' pads by 4 black pixels on every side and crops at random; 'crop_flip' also
      mirrors left to right, half of the time. 'resized_crop' resizes a random part of the
      original image (`decode.crop_box`) and mirrors likewise.
    tangents: None, or what maps indices [batch] to tangent directions [batch, d, k]; see
      `tangents.load`. They go into batch.aux; being those of the images as they are, they exclude
      augmentation.
    targets: None, or [num_examples, classes] probabilities, which go into batch.aux; see
      `targets.load`.
    host: which host this is, 0 .. num_hosts - 1.
    num_hosts: hosts that share each batch: consecutive blocks of batch_size / num_hosts.

  Returns:
    An iterator of types.Batch (NumPy) of batch_size / num_hosts examples each; it reads ahead in a
    thread.

  Raises:
    UserError: num_hosts does not divide batch_size, tangents of augmented images, or a
      'resized_crop' of images that are not uint8. The iterator raises it on images or labels that
      are not as in `Dataset`.
  """
  if tangents is not None and augment != 'none':
    raise UserError("config.data.augment must be 'none' with config.data.tangents, got "
                    f'{augment!r}')
  if augment == 'resized_crop' and dataset.images.dtype != np.uint8:
    raise UserError("config.data.augment must not be 'resized_crop' for images that are not uint8, "
                    f'got those of {dataset.name!r}, {dataset.images.dtype}')
  if batch_size % num_hosts:
    raise UserError(f'config.train.batch_size must be a multiple of the {num_hosts} hosts, got '
                    f'{batch_size}')
  rows = slice(host * batch_size // num_hosts, (host + 1) * batch_size // num_hosts)
  choose = _choice(dataset, batch_size, seed)

  def make_batch(step, rng):
    # Augmentation is drawn for the batch of all hosts, of which each keeps its rows.
    shifts = rng.integers(0, 2 * CROP_PADDING, (batch_size, 2), endpoint=True)[rows]
    flips = rng.integers(0, 1, batch_size, endpoint=True)[rows]
    index, mask = (values[rows] for values in choose(int(step)))
    if augment == 'resized_crop':
      draws = rng.random((batch_size, decode.CROP_TRIES, 4))[rows]
      images = lazy.map_originals(dataset.images, index, lambda image, row: (
        decode.resized_crop(image, dataset.image_shape[:2], draws[row], flips[row])))
    else:
      images = dataset.images[index]
    if augment in ('crop', 'crop_flip'):
      images = _crop_flip(images, shifts, flips if augment == 'crop_flip' else 0 * flips)
    batch = _batch(dataset, images, index, mask)
    return batch._replace(aux={
        name: np.asarray(values[index], np.float32)
        for name, values in (('tangents', tangents), ('targets', targets)) if values is not None})

  steps = grain.MapDataset.range(num_steps).seed(seed).random_map(make_batch)
  # Sliced after random_map, whose generator depends on the step in the whole run.
  return iter(steps[start_step:].to_iter_dataset(_READ))


def _choice(dataset, batch_size, seed):
  """The function step -> ([batch_size] index, [batch_size] mask) of a run, over all hosts."""
  epoch_steps = steps_per_epoch(dataset, batch_size)
  num_extra, extra_examples = _num_extra(dataset.mixture, batch_size), _extra_examples(dataset)
  num_first, first_examples = batch_size - num_extra, dataset.num_examples - extra_examples
  # Evenly, so that every device and part of a batch has about its share.
  extra_before = np.arange(batch_size + 1) * num_extra // batch_size
  is_extra = np.diff(extra_before) > 0

  @functools.lru_cache(maxsize=2)
  def epoch_order(epoch):
    order = np.random.default_rng((seed, epoch)).permutation(first_examples)
    return np.resize(order, (epoch_steps, num_first))  # continues with the first ones again

  @functools.lru_cache(maxsize=1)
  def extra_order(number):
    # SeedSequence takes (seed, number, 0) for (seed, number).
    order = np.random.default_rng((seed, number, 1)).permutation(extra_examples)
    return first_examples + order

  def choose(step):
    epoch, epoch_step = divmod(step, epoch_steps)
    index, mask = np.empty(batch_size, np.int64), np.empty(batch_size, np.float32)
    index[~is_extra] = epoch_order(epoch)[epoch_step]
    mask[~is_extra] = epoch_step * num_first + np.arange(num_first) < first_examples
    if num_extra:
      number, place = divmod(step, extra_examples // num_extra)
      index[is_extra] = extra_order(number)[place * num_extra:(place + 1) * num_extra]
      mask[is_extra] = dataset.mixture.weight
    return index, mask

  return choose


def eval_batches(dataset, *, batch_size, start=0, stride=1, num_images=None):
  """Iterates over images start, start + stride, ... in the order of the dataset.

  Args:
    dataset: a Dataset.
    batch_size: examples in a batch; the last is filled up with black images at mask 0.
    start: index of the first image.
    stride: distance between indices.
    num_images: at most so many images; None for all.

  Returns:
    An iterator of types.Batch (NumPy); it reads ahead in a thread.
  """
  indices = np.arange(start, dataset.num_examples, stride)[:num_images]
  firsts = grain.MapDataset.range(0, len(indices), batch_size)
  return iter(firsts.map(
    lambda first: take(dataset, indices[first:first + batch_size], batch_size),
  ).to_iter_dataset(_READ))


def take(dataset, indices, batch_size=None):
  """The batch of the examples at `indices`, filled up with black images at mask 0.

  Args:
    dataset: a Dataset.
    indices: [batch_size or fewer] int, positions in the dataset.
    batch_size: examples in the batch; as many as indices if None.

  Returns:
    types.Batch (NumPy).
  """
  indices = np.asarray(indices)
  batch_size = len(indices) if batch_size is None else batch_size
  batch = _batch(dataset, dataset.images[indices], indices, np.ones(len(indices)))
  missing = batch_size - len(indices)
  padding = Batch(np.zeros((missing, *dataset.image_shape), np.float32),
                  np.zeros(missing, np.int32),
                  np.full(missing, dataset.num_examples, np.int32),
                  np.zeros(missing, np.float32))
  return jax.tree.map(lambda *values: np.concatenate(values), batch, padding)


def _batch(dataset, images, index, mask):
  place = f'of {dataset.name!r}, split {dataset.split!r}'
  arrays.check_lengths(dataset.images, dataset.labels, f'labels {place}')
  labels = dataset.labels[index]
  # Each batch, as a Dataset may have been made of any arrays, larger than memory too.
  arrays.check_images(images, f'images {place}')
  arrays.check_labels(labels, dataset.num_classes, f'labels {place}', index)
  return Batch(
    images=arrays.scaled(images),
    labels=labels.astype(np.int32, copy=False),
    index=np.where(mask > 0, index, dataset.num_examples).astype(np.int32),
    mask=mask.astype(np.float32))


def _crop_flip(images, shifts, flips):
  """Crops of the padded images at `shifts` [batch, 2], mirrored where `flips` [batch]."""
  height, width = images.shape[1:3]
  border = (CROP_PADDING, CROP_PADDING)
  padded = np.pad(images, ((0, 0), border, border, (0, 0)))
  cropped = np.empty_like(images)
  for number, ((top, left), flip) in enumerate(zip(shifts, flips)):
    crop = padded[number, top:top + height, left:left + width]
    cropped[number] = crop[:, ::-1] if flip else crop
  return cropped
