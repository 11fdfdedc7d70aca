"""Extra examples in every training batch, for semi-supervised and self-training.

They may be pseudo-labelled or generated images; `share` is the fraction of a batch that they make.
"""

from pathlib import Path

import numpy as np

from robust_jax.data import datasets, lazy
from robust_jax.errors import UserError

_TITLE = '# labels of'


def load(name, *, split='train', labels=None, data_dir=None, image_size=None, channels=None,
         pad=0, like):
  """The extra examples, as a Dataset of the images and classes of another.

  Args:
    name: a dataset, as `datasets.load` takes it; or a file .npz with arrays `images`,
      [num_examples, height, width, channel] or [num_examples, height, width], uint8, or
      floating-point in [0, 1], which is rounded to 1/255, and `labels`, [num_examples] int.
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
  if name.endswith('.npz'):
    images, values = _read_images(Path(name), needs_labels=labels is None)
  else:
    try:
      dataset = datasets.load(name, split, data_dir=data_dir, image_size=image_size,
                              channels=channels, pad=pad, at_once=False)
    except UserError as error:
      raise UserError(f'config.extra: {error}') from error
    _check_classes(dataset, labels, like)
    images, values = dataset.images, dataset.labels
  if images.shape[1:] != like.image_shape:
    raise UserError(f'config.extra.name is {name!r}: its images must have the shape '
                    f'{like.image_shape} of those of {like.name!r}, got {images.shape[1:]}')
  place = f'config.extra.name is {name!r}'
  if labels is not None:
    place, values = f'config.extra.labels is {labels!r}', read_labels(labels)
  if len(values) != len(images):
    raise UserError(f'{place}: it must have {len(images)} labels, one for each image of '
                    f'{name if name.endswith(".npz") else f"{name} {split}"!r}, got {len(values)}')
  if isinstance(values, np.ndarray):  # Others are a dataset's own, read with its images.
    wrong = np.flatnonzero((values < 0) | (values >= like.num_classes))
    if len(wrong):
      raise UserError(f'{place}: the label of example {wrong[0]} must be in '
                      f'0..{like.num_classes - 1}, got {values[wrong[0]]}')
    values = values.astype(np.int32)
  return like._replace(name=name, split=split, images=images, labels=values)


def _check_classes(dataset, labels, like):
  """Raises UserError where `labels` are of other examples, or without them the classes differ."""
  file_title = labels and _first_line(labels)
  if file_title and file_title.startswith(_TITLE) and file_title != title(dataset):
    raise UserError(f'config.extra.labels must be {title(dataset)[2:]} (config.extra.name and '
                    f'split), got {labels!r} with {file_title[2:]}')
  if labels is None and dataset.class_names != like.class_names:
    raise UserError(f'config.extra.name is {dataset.name!r}, whose classes are not those of '
                    f'{like.name!r}: set config.extra.labels to a file of labels')


def title(dataset):
  """The first line of a .tsv file of labels: which examples they are of."""
  return f'{_TITLE} {dataset.name} {dataset.split}'


def _first_line(path):
  try:
    with Path(path).open(encoding='utf-8', errors='replace') as file:
      return file.readline().rstrip('\n')
  except OSError:  # Which `read_labels` reports.
    return ''


def read_labels(path):
  """The labels in a file .npy, .txt or .tsv, see `load`: [num_examples] int.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  path = Path(path)
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
  return dataset._replace(
      images=lazy.concatenate(dataset.images, extra.images),
      labels=lazy.concatenate(dataset.labels, extra.labels),
      mixture=datasets.Mixture(extra.num_examples, share, weight))


def _read_images(path, *, needs_labels):
  try:
    with np.load(path, allow_pickle=False) as file:
      images = _array(file, 'images', 'image')
      labels = _array(file, 'labels', 'label') if needs_labels else None
  except Exception as error:  # zipfile.BadZipFile is no OSError.
    raise UserError(f'config.extra.name is {str(path)!r}, which cannot be read: '
                    f'{" ".join(str(error).split())}') from error
  images = images[..., None] if images.ndim == 3 else images
  if images.ndim != 4:
    raise UserError(f'{path}: images must have the shape [num_examples, height, width, channel], '
                    f'got {images.shape}')
  if np.issubdtype(images.dtype, np.floating):
    if not ((images >= 0) & (images <= 1)).all():
      raise UserError(f'{path}: floating-point images must be in [0, 1], got values in '
                      f'[{images.min()}, {images.max()}]')
    images = np.rint(images * 255).astype(np.uint8)
  if images.dtype != np.uint8:
    raise UserError(f'{path}: images must be uint8, or floating-point numbers in [0, 1], got '
                    f'{images.dtype}')
  if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
    raise UserError(f'{path}: labels must be one integer an image, got {labels.dtype} '
                    f'{labels.shape}')
  return images, labels


def _array(file, *names):
  """The array of the first of `names` in an .npz file."""
  name = next((name for name in names if name in file.files), None)
  if name is None:
    raise ValueError(f'it needs an array {names[0]}, got {", ".join(file.files) or "none"}')
  return file[name]


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
