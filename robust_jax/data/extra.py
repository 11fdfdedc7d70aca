"""Extra examples in every training batch, for semi-supervised and self-training.

They may be pseudo-labelled or generated images; `share` is the fraction of a batch that they make.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from robust_jax.data import arrays, datasets, lazy
from robust_jax.errors import UserError

_TITLE = '# labels of'


def load(name, *, split='train', labels=None, data_dir=None, image_size=None, channels=None,
         pad=0, like):
  """The extra examples, as a Dataset of the images and classes of another.

  Args:
    name: a dataset, as `datasets.load` takes it; a file .npz may be without labels, then, and
      `images` and `labels` in one are its split 'train'.
    split: of a dataset.
    labels: a file of labels to use instead of the dataset's own: .npy, [num_examples] int; .txt, a
      label a line; .tsv with the columns idx and label, in any order, a line for every example. A
      .tsv file that begins with the `title` of a dataset must be of the same name and split.
    data_dir: as `datasets.load`.
    image_size: likewise.
    channels: likewise.
    pad: likewise; the images of a file are as they are.
    like: the Dataset that they are mixed with.

  Returns:
    Dataset.

  Raises:
    UserError: examples that cannot be read, another image size, other classes, another number of
      labels than of images, a label that is no class, or a file with labels of other images.
  """
  try:
    if name.endswith('.npz'):
      dataset = arrays.read(name, split, needs_labels=labels is None)
    else:
      dataset = datasets.load(name, split, data_dir=data_dir, image_size=image_size,
                              channels=channels, pad=pad, at_once=False)
  except UserError as error:
    raise UserError(f'config.extra: {error}') from error
  _check_classes(name, dataset, labels, like)
  images, values = dataset.images, dataset.labels
  if images.shape[1:] != like.image_shape:
    raise UserError(f'config.extra.name is {name!r}: its images must have the shape '
                    f'{like.image_shape} of those of {like.name!r}, got {images.shape[1:]}')
  place = f'config.extra.name is {name!r}'
  if labels is not None:
    place, values = f'config.extra.labels is {labels!r}', read_labels(labels)
  arrays.check_lengths(images, values, f'{place}: its labels')
  if isinstance(values, np.ndarray):  # Others are a dataset's own, read with its images.
    values = arrays.as_labels(values, like.num_classes, place)
  return dataclasses.replace(like, name=name, split=split, images=images, labels=values)


def _check_classes(name, dataset, labels, like):
  """Raises UserError where `labels` are of other examples, or without them the classes differ."""
  file_title, expected = labels and _first_line(labels), title(name, dataset.split)
  if file_title and file_title.startswith(_TITLE) and file_title != expected:
    raise UserError(f'config.extra.labels must be {expected[2:]} (config.extra.name and split), '
                    f'got {labels!r} with {file_title[2:]}')
  # A file .npz need not name its classes.
  if labels is None and dataset.class_names not in (None, like.class_names):
    raise UserError(f'config.extra.name is {name!r}, whose classes are not those of '
                    f'{like.name!r}: set config.extra.labels to a file of labels')


def title(name, split):
  """The first line of a .tsv file of labels: which examples they are of."""
  return f'{_TITLE} {os.path.basename(name) if name.endswith(".npz") else name} {split}'


def _first_line(path):
  try:
    with Path(path).expanduser().open(encoding='utf-8', errors='replace') as file:
      return file.readline().rstrip('\n')
  except OSError:  # Which `read_labels` reports.
    return ''


def read_labels(path):
  """The labels in a file .npy, .txt or .tsv, see `load`: [num_examples] int.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  path = Path(path).expanduser()
  try:
    if path.suffix == '.npy':
      labels = np.load(path, allow_pickle=False)
    elif path.suffix == '.txt':
      labels = np.array([int(line) for line in path.read_text(encoding='utf-8').split()], np.int64)
    elif path.suffix == '.tsv':
      labels = _parse_table(path.read_text(encoding='utf-8'))
    else:
      raise ValueError('its name must end in .npy, .txt or .tsv')
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
      raise ValueError(f'it must hold one integer an example, got {labels.dtype} {labels.shape}')
  except FileNotFoundError as error:
    raise UserError(f'config.extra.labels is {str(path)!r}, which does not exist; --stages=label '
                    'writes such a file') from error
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f'{path} cannot be read as labels: {" ".join(str(error).split())}') from error
  return labels


def mix(dataset, extra, *, share, weight):
  """A Dataset of both, of which `batches.train_batches` makes mixed batches.

  The extra examples come last: they have the indices from dataset.num_examples on, and so a place
  each in the per-example memory of a method.

  Args:
    dataset: the Dataset that an epoch goes through once.
    extra: a Dataset of images of the same shape, of the same classes.
    share: of the extra examples in a batch, in [0, 1).
    weight: of the loss of an extra example, >= 0.
  """
  images = [dataset.images, extra.images]
  if images[0].dtype != images[1].dtype:
    images = [_scaled(each) for each in images]
  return dataclasses.replace(
      dataset,
      images=lazy.concatenate(*images),
      labels=lazy.concatenate(dataset.labels, extra.labels),
      mixture=datasets.Mixture(extra.num_examples, share, weight))


def _scaled(images):
  """The images as float32 in [0, 1], converted when they are asked for."""
  return lazy.LazyArray(lambda indices: arrays.scaled(images[indices]), images.shape, np.float32)


def _parse_table(text):
  header, *rows = [line.split('\t') for line in text.splitlines()
                   if line.strip() and not line.startswith('#')] or [[]]
  if not {'idx', 'label'} <= set(header):
    raise ValueError('its first line must name the columns idx and label')
  if any(len(row) != len(header) for row in rows):
    raise ValueError(f'every line must have {len(header)} columns')
  idx, label = header.index('idx'), header.index('label')
  labels = {int(row[idx]): int(row[label]) for row in rows}
  if sorted(labels) != list(range(len(rows))):
    raise ValueError(f'its {len(rows)} lines must have the idx 0 to {len(rows) - 1}, each once')
  return np.array([labels[index] for index in range(len(rows))], np.int64)
