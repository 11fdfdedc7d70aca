"""Datasets: TFDS's array_record files, folders of images or arrays, without TensorFlow."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from robust_jax.data import arrays, digits, folder, imagenet, lazy, tfds_files
from robust_jax.data.archives import LAYOUTS
from robust_jax.errors import UserError

# Images of one size are decoded once and kept where they need no more than this: 2 GiB.
IN_MEMORY_BYTES = 2**31
# What 'test' stands for: the first of these that a dataset has.
_TEST_SPLITS = ('test', 'validation', 'val', 'valid')


class Mixture(NamedTuple):
  """How the last examples of a Dataset are mixed with those before them (see `extra.mix`).

  Attributes:
    num_examples: the number of these extra examples.
    share: the fraction of a batch that they make.
    weight: of the loss of an extra example; that of any other is 1.
  """

  num_examples: int
  share: float
  weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """One split of a dataset; its length is the number of examples.

  Attributes:
    name: as TFDS names the dataset, 'folder', or the name of a file .npz without its folder.
    split: the split that was read.
    images: [num_examples, height, width, channel] of 1 or 3 channels: uint8 in 0..255, or
      floating-point in [0, 1] and taken as it is; an array, or a LazyArray, which decodes what is
      asked for. Batches of anything else are refused.
    labels: [num_examples] int: an array, or a LazyArray, which reads what is asked for.
    class_names: a name for each class.
    mean: a number, or one for each channel, in [0, 1] pixel units: the input normalisation
      (images - mean) / std that networks on this dataset apply.
    std: likewise.
    mixture: how the last examples are mixed with the others; None if there are no extra ones.
  """

  name: str
  split: str
  images: np.ndarray | lazy.LazyArray
  labels: np.ndarray | lazy.LazyArray
  class_names: tuple[str, ...]
  mean: float | tuple[float, ...]
  std: float | tuple[float, ...]
  mixture: Mixture | None = None

  def __len__(self):
    return len(self.images)

  @property
  def num_examples(self):
    return len(self)

  @property
  def num_classes(self):
    return len(self.class_names)

  @property
  def image_shape(self):
    """(height, width, channel)."""
    return self.images.shape[1:]


class Preset(NamedTuple):
  """What the files of a TFDS dataset do not say.

  Attributes:
    mean: input normalisation, as in `Dataset`.
    std: likewise.
    image_size: the usual number of pixels, where images differ in size.
    test_split: what 'test' stands for; None for the first of `_TEST_SPLITS` in the dataset.
    prepare: data_dir -> None, writes the dataset without TensorFlow; None where TFDS has to.
    class_names: () -> the names of the classes, where they are known without the files.
  """

  mean: float | tuple[float, ...] = 0.0
  std: float | tuple[float, ...] = 1.0
  image_size: int | None = None
  test_split: str | None = None
  prepare: Callable[[str], None] | None = None
  class_names: Callable[[], tuple[str, ...]] | None = None


DATASETS = {
  'cifar10': Preset(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
  'cifar100': Preset(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
  'digits': Preset(prepare=digits.prepare),
  # Its test split has no labels.
  'imagenet2012': Preset(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image_size=224,
                         test_split='validation', class_names=lambda: tuple(imagenet.names())),
  'mnist': Preset(),
}


def load(name, split, *, data_dir=None, image_size=None, channels=None, mean=None, std=None,
         pad=0, at_once=True, in_memory_bytes=IN_MEMORY_BYTES):
  """Opens one split of a dataset.

  Images of one size that need at most `in_memory_bytes` are decoded once and kept. Others are
  decoded whenever they are asked for, and cut to `image_size`: the short side is resized to
  image_size * 256 / 224 (bilinear, with antialiasing) and the middle kept.

  Args:
    name: a TFDS dataset, 'cifar100' or 'imagenet_resized/32x32', prepared in `data_dir`;
      'folder', which reads `data_dir`/SPLIT/CLASS/IMAGE; or a file .npz, see `arrays.read`.
    split: 'train', 'test' (which also stands for the split validation, val or valid of a dataset
      that has no test split with labels), another split, or, but for folders, a part of one, such
      as 'train[:90%]'; an example's index is its position in what is named.
    data_dir: the folder of prepared TFDS datasets; None for TFDS's own default, which is
      $TFDS_DATA_DIR or ~/tensorflow_datasets. Of 'folder', the folder that holds 'train'.
    image_size: height and width of the images; None for their own, which then is one. Those of a
      file .npz are not resized.
    channels: 1 or 3, to which every image is converted; None for the dataset's own (folder: 3).
      Those of a file .npz are not converted.
    mean: input normalisation, one number or one for each channel; None for that in the file .npz
      or in `DATASETS`, which is 0 for most.
    std: likewise; 1 for most.
    pad: black pixels added on every side of images that are in memory.
    at_once: whether images that are kept are decoded now, and are an array; otherwise each is
      decoded, and its label read, when it is first asked for, and damage is found only then.
    in_memory_bytes: the most that decoded images may need.

  Returns:
    Dataset.

  Raises:
    UserError: the dataset or split does not exist, is not prepared in `data_dir`, is no image
      classification, or cannot be read. `digits` is prepared on first use.
  """
  if name.endswith('.npz'):
    return _load_file(name, split, image_size, channels, mean, std, pad)
  preset = DATASETS.get(name, Preset())
  if name == 'folder':
    data_dir = data_dir and os.path.expanduser(data_dir)
    split = _resolve_test(split, folder.splits(data_dir), preset)
    records = folder.ImageFolder(data_dir, split)
  else:
    data_dir = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    if data_dir.startswith('~'):
      raise UserError(f'config.data.data_dir must be a folder, got {data_dir!r} where there is no '
                      'home folder ($HOME)')
    if preset.prepare is not None:
      try:
        preset.prepare(data_dir)
      except OSError as error:
        raise UserError(f'config.data.data_dir is {data_dir!r}, where {name!r} cannot be prepared: '
                        f'{error}') from error
    builder = tfds_files.find(name, data_dir, known=(*DATASETS, 'folder'), published=LAYOUTS)
    if builder.name != name.partition('/')[0].partition(':')[0]:
      # TFDS takes MNIST for mnist, which would then have no constants, and be another dataset.
      raise UserError(f'config.data.name must be as TFDS writes it, got {name!r}; did you mean '
                      f'{builder.name}?')
    split = _resolve_test(split, builder.info.splits, preset)
    records = tfds_files.TfdsSplit(builder, name, data_dir, split)

  shape, resize = _image_shape(name, records.shape, image_size or preset.image_size, channels)
  images, labels = lazy.encoded_images(records, shape, resize), records.labels
  if not resize and np.prod(images.shape, dtype=np.int64) <= in_memory_bytes:
    images = lazy.kept_images(images, pad)
    if at_once:
      images, labels = images[:], labels[:]
  elif pad:
    raise UserError(f'config.data.pad must be 0, as {name!r} is not kept in memory, got {pad}')
  return _dataset(name, split, images, labels, records.class_names,
                  preset.mean if mean is None else mean, preset.std if std is None else std)


def from_arrays(images, labels, *, class_names=None, name='arrays', split='train', mean=0.,
                std=1.):
  """The Dataset of images and labels that are in memory.

  The dtype of the images decides what their values mean, and nothing else does.

  Args:
    images: [num_examples, height, width, channel] of 1 (grey) or 3 (RGB) channels, or
      [num_examples, height, width] of grey ones: uint8 in 0..255, or floating-point in [0, 1],
      taken as they are.
    labels: [num_examples] int, from 0 on.
    class_names: a name for each class; None for their numbers, up to the largest label. Two splits
      of which one may lack the last class need names.
    name: of the dataset, for messages.
    split: likewise.
    mean: input normalisation, one number or one for each channel, in [0, 1] pixel units.
    std: likewise, positive.

  Returns:
    Dataset.

  Raises:
    UserError (a ValueError): images or labels that are something else, such as values outside of
      their range, channels that come first or one-hot labels; or numbers that do not match.
  """
  class_names = None if class_names is None else tuple(class_names)
  images = arrays.as_images(images)
  labels = arrays.as_labels(labels, class_names and len(class_names))
  arrays.check_lengths(images, labels)
  return _dataset(name, split, images, labels, class_names or int(labels.max()) + 1, mean, std)


def without_images(name, *, image_size=None, channels=None, mean=None, std=None):
  """What is known of a dataset's test split without its files, as a Dataset of no examples.

  Args:
    name, image_size, channels, mean, std: as of `load`.

  Returns:
    Dataset; None of a dataset whose classes only its files have. Known are those of imagenet2012.
  """
  preset = DATASETS.get(name, Preset())
  if preset.class_names is None:
    return None
  shape, _ = _image_shape(name, (None, None, 3), image_size or preset.image_size, channels)
  return _dataset(name, preset.test_split or 'test', np.zeros((0, *shape), np.uint8),
                  np.zeros(0, np.int32), preset.class_names(),
                  preset.mean if mean is None else mean, preset.std if std is None else std)


def _load_file(name, split, image_size, channels, mean, std, pad):
  """The Dataset of a file .npz."""
  found = arrays.read(name, split, resolve=functools.partial(_resolve_test, preset=Preset()))
  height, width, depth = found.images.shape[1:]
  for field, value, own in (('image_size', image_size, height if height == width else None),
                            ('channels', channels, depth)):
    if value not in (None, own):
      raise UserError(f'config.data.{field} must be None for {name!r}, whose images are '
                      f'{height}x{width}x{depth}, got {value}')
  border = (pad, pad)
  images = np.pad(found.images, ((0, 0), border, border, (0, 0))) if pad else found.images
  mean, std = (found.normalisation.get(field, default) if value is None else value
               for field, value, default in (('mean', mean, 0.), ('std', std, 1.)))
  return _dataset(os.path.basename(name), found.split, images, found.labels,
                  found.class_names or found.num_classes, mean, std)


def _dataset(name, split, images, labels, classes, mean, std):
  """The Dataset of checked images and labels; `classes` are names, or their number."""
  class_names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
  if len(class_names) < 2:
    raise UserError(f'{name!r}, split {split!r}, must be of two classes or more, got '
                    f'{len(class_names)}')
  return Dataset(name=name, split=split, images=images, labels=labels, class_names=class_names,
                 mean=_per_channel('mean', mean, images.shape[-1]),
                 std=_per_channel('std', std, images.shape[-1]))


def _resolve_test(split, splits, preset):
  """The split, with 'test' replaced by what it stands for."""
  name, part = re.fullmatch(r'(\w*)(.*)', split, re.DOTALL).groups()
  if name == 'test':
    name = preset.test_split or next((each for each in _TEST_SPLITS if each in splits), name)
  return name + part


def _image_shape(name, encoded_shape, image_size, channels):
  """((height, width, channel) of a dataset's images, whether they have to be cut to size)."""
  if channels is None:
    channels = encoded_shape[2] if encoded_shape[2] in (1, 3) else 3
  if channels not in (1, 3):
    raise UserError(f'config.data.channels must be 1 or 3, got {channels}')
  if image_size is not None:
    size = (image_size, image_size)
    return (*size, channels), encoded_shape[:2] != size
  if None in encoded_shape[:2]:
    raise UserError('config.data.image_size must be a number of pixels, such as 224, as the images '
                    f'of {name!r} differ in size, got None')
  return (*encoded_shape[:2], channels), False


def _per_channel(field, value, channels):
  numbers = np.asarray(value, float)
  if numbers.size not in (1, channels):
    raise UserError(f'config.data.{field} must be one number or {channels}, got {value}')
  if not np.isfinite(numbers).all() or (field == 'std' and not (numbers > 0).all()):
    raise UserError(f'config.data.{field} must be {"positive" if field == "std" else "finite"}, '
                    f'got {value}')
  return value
