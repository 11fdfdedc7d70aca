"""Datasets: TFDS's array_record files, decoded once into memory, without TensorFlow."""

import io
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from robust_jax.data import digits
from robust_jax.errors import UserError


class Dataset(NamedTuple):
  """One split of a dataset, in memory.

  Attributes:
    name: an entry of `DATASETS`.
    split: the TFDS split.
    images: [num_examples, height, width, channel] uint8.
    labels: [num_examples] int32.
    class_names: a name for each class.
    mean: a number, or one for each channel, in [0, 1] pixel units: the input normalisation
      (images - mean) / std that networks on this dataset apply.
    std: likewise.
  """

  name: str
  split: str
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  mean: float | tuple[float, ...]
  std: float | tuple[float, ...]

  @property
  def num_examples(self):
    return len(self.images)

  @property
  def num_classes(self):
    return len(self.class_names)

  @property
  def image_shape(self):
    """(height, width, channel)."""
    return self.images.shape[1:]


class Source(NamedTuple):
  """What this project adds to a TFDS dataset of features `image` and `label`.

  Attributes:
    mean: input normalisation, as in `Dataset`.
    std: likewise.
    prepare: data_dir -> None, writes the dataset without TensorFlow; None where TFDS has to.
  """

  mean: float | tuple[float, ...] = 0.0
  std: float | tuple[float, ...] = 1.0
  prepare: Callable[[str], None] | None = None


DATASETS = {
  'cifar10': Source(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
  'digits': Source(prepare=digits.prepare),
  'mnist': Source(),
}


def load(name, split, *, data_dir=None):
  """Reads one split of a dataset into memory.

  Args:
    name: an entry of `DATASETS`.
    split: 'train', 'test' or a part of one in TFDS's notation, such as 'train[:90%]'; an
      example's index is its position in what is named.
    data_dir: the folder of prepared TFDS datasets; None for TFDS's own default, which is
      $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Returns:
    Dataset.

  Raises:
    UserError: the dataset or split does not exist, is not prepared in `data_dir`, or cannot be
      read. `digits` is prepared on first use.
  """
  if name not in DATASETS:
    raise UserError(
      f'config.data.name is {name!r}; it must be one of {", ".join(sorted(DATASETS))}')
  source = DATASETS[name]
  data_dir = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  where = f'config.data.data_dir is {data_dir!r}'
  if source.prepare is None and not any(
      pathlib.Path(data_dir, name).glob('*/dataset_info.json')):
    raise UserError(
      f'{where}, where {name!r} is not prepared; prepare it there, in an environment that also has '
      'tensorflow and importlib_resources, with python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
      '.download_and_prepare()"')
  try:
    if source.prepare is not None:
      source.prepare(data_dir)
    records = tfds.data_source(
      name, split=split, data_dir=data_dir, download=False,
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return _decode(name, split, records, source)
  # What TFDS and array_record raise on a missing split, another file format or a damaged file.
  except (OSError, ValueError, RuntimeError, IndexError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{where}, from which {name!r}, split {split!r}, cannot be read: {reason}') from error


def _decode(name, split, records, source):
  features = records.dataset_info.features
  images = np.empty((len(records), *features['image'].shape), np.uint8)
  labels = np.empty(len(records), np.int32)
  # tfds decodes an example in 180 microseconds, two thirds of which is not the image.
  for index, record in enumerate(records.__getitems__(list(range(len(records))))):
    feature = tf_example_pb2.Example.FromString(record).features.feature
    with Image.open(io.BytesIO(feature['image'].bytes_list.value[0])) as image:
      images[index] = np.asarray(image).reshape(images.shape[1:])
    labels[index] = feature['label'].int64_list.value[0]
  return Dataset(name=name, split=split, images=images, labels=labels,
                 class_names=tuple(features['label'].names), mean=source.mean, std=source.std)
