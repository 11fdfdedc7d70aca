"""Examples of a second source in every training batch: pseudo-labels, generated images."""

from pathlib import Path

import numpy as np

from robust_jax.data import datasets, lazy
from robust_jax.errors import UserError

_IMAGES, _LABELS = ('images', 'image'), ('labels', 'label')
_TITLE = '# labels of'


def load(name, *, split='train', labels=None, data_dir=None, image_size=None, channels=None,
         pad=0, like):
  """The extra examples, as a Dataset of the images and classes of another.

  Args:
    name: a dataset, as `datasets.load` takes it; or a file .npz with arrays `images`,
      [num_examples, height, width, channel] or [num_examples, height, width], uint8, or
      floating-point in [0, 1], which is rounded to 1/255, and `labels`, [num_examples] int.
    split: of a dataset.
    labels: a file of labels, which take the place of the source's own: .npy, [num_examples] int;
      .txt, a label a line; .tsv with the columns idx and label, in any order, a line for every
      example, and before them maybe the `title` of a dataset, whose name and split have to be
      these.
    data_dir: as `datasets.load`.
    image_size: likewise.
    channels: likewise.
    pad: likewise; the images of a file are as they are.
    like: the Dataset that they are mixed with.

  Returns:
    Dataset.

  Raises:
    UserError: a source that cannot be read, another image size, other classes, another number of
      labels than of images, a label that is no class, or a file with labels of other images.
  """
  if name.endswith('.npz'):
    images, own = _read_images(Path(name), needs_labels=labels is None)
  else:
    try:
      dataset = datasets.load(name, split, data_dir=data_dir, image_size=image_size,
                             channels=channels, pad=pad, at_once=False)
    except UserError as error:
      raise UserError(f'config.extra: {error}') from error
    images, own = dataset.images, dataset.labels
    told = '' if labels is None else _first_line(labels)
    if told.startswith(_TITLE) and told != title(dataset):
      raise UserError(f'config.extra.labels is {labels!r}, which has {told[2:]}; '
                      f'{title(dataset)[2:]}, as config.extra.name and split say, are allowed')
    if labels is None and dataset.class_names != like.class_names:
      raise UserError(f'config.extra.name is {name!r}, whose classes are not those of '
                      f'{like.name!r}; config.extra.labels, a file of labels, is needed')
  if images.shape[1:] != like.image_shape:
    raise UserError(f'config.extra.name is {name!r}, whose images are {images.shape[1:]}; '
                    f'{like.image_shape}, as those of {like.name!r}, are allowed')
  source = (f'config.extra.name is {name!r}, which' if labels is None else
            f'config.extra.labels is {labels!r}, which')
  values = own if labels is None else read_labels(labels)
  if len(values) != len(images):
    there = name if name.endswith('.npz') else f'{name} {split}'
    raise UserError(f'{source} has {len(values)} labels; {len(images)}, as many as {there!r} has '
                    'images, are allowed')
  if isinstance(values, np.ndarray):  # Others are a dataset's own, read with its images.
    wrong = np.flatnonzero((values < 0) | (values >= like.num_classes))
    if len(wrong):
      raise UserError(f'{source} gives example {wrong[0]} the label {values[wrong[0]]}; '
                      f'0 to {like.num_classes - 1} are allowed')
    values = values.astype(np.int32)
  return like._replace(name=name, split=split, images=images, labels=values)


def title(dataset):
  """The line of a file .tsv that says whose labels it has."""
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
      labels = _read_table(path.read_text(encoding='utf-8'))
    else:
      raise ValueError('.npy, .txt and .tsv are known')
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
      raise ValueError(f'an array {labels.shape} of {labels.dtype}')
  except FileNotFoundError as error:
    raise UserError(f'config.extra.labels is {str(path)!r}, which is not there; python -m '
                    'robust_jax.stages.label WORKDIR makes such a file') from error
  except (OSError, ValueError, EOFError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'{path} cannot be read as labels ({reason}); a file .npy, .txt or .tsv '
                    'of one integer an example is allowed') from error
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
      images=lazy.Joined(dataset.images, extra.images),
      labels=lazy.Joined(dataset.labels, extra.labels),
      mixture=datasets.Mixture(extra.num_examples, share, weight))


def _read_images(path, *, needs_labels):
  try:
    with np.load(path, allow_pickle=False) as file:
      images = file[_present(_IMAGES, file.files)]
      labels = file[_present(_LABELS, file.files)] if needs_labels else None
    # zipfile.BadZipFile is no OSError.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'config.extra.name is {str(path)!r}, which cannot be read ({reason}); a file '
                    '.npz with arrays images and labels is allowed') from error
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4:
    raise UserError(f'{path}: images has the shape {images.shape}; [num_examples, height, width, '
                    'channel] is allowed')
  if np.issubdtype(images.dtype, np.floating):
    if not ((images >= 0) & (images <= 1)).all():
      raise UserError(f'{path}: images has values outside of [0, 1]; those, or uint8, are allowed')
    images = np.rint(images * 255).astype(np.uint8)
  if images.dtype != np.uint8:
    raise UserError(f'{path}: images is of type {images.dtype}; uint8, or floating-point numbers '
                    'in [0, 1], are allowed')
  if labels is not None and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
    raise UserError(f'{path}: labels is an array {labels.shape} of {labels.dtype}; one integer an '
                    'image is allowed')
  return images, labels


def _present(names, there):
  for name in names:
    if name in there:
      return name
  raise ValueError(f'it has {", ".join(there) or "no arrays"}, and no {names[0]}')


def _read_table(text):
  header, *lines = [line.split('\t') for line in text.splitlines()
                    if line.strip() and not line.startswith('#')] or [[]]
  if not {'idx', 'label'} <= set(header):
    raise ValueError('a line with the columns idx and label comes first')
  idx, label = header.index('idx'), header.index('label')
  if any(len(line) != len(header) for line in lines):
    raise ValueError(f'{len(header)} columns are announced')
  found = {int(line[idx]): int(line[label]) for line in lines}
  if sorted(found) != list(range(len(lines))):
    raise ValueError(f'{len(lines)} lines with the idx 0 to {len(lines) - 1}, each once, are '
                     'needed')
  return np.array([found[index] for index in range(len(lines))], np.int64)
