"""ImageNet of 8, 16, 32 or 64 pixels, from its published archives, as TFDS has it.

The archives have ten files of training images and one of validation images, pickles of Python or
.npz: `data` [number, 3 * size**2] uint8, all of red first, and `labels` from 1 on, in an order of
the classes that is not ImageNet's. TFDS keeps that order, and so do we. Images stay in the order of
the files, which is not TFDS's.

Reference: Chrabaszcz et al., A downsampled variant of ImageNet as an alternative to the CIFAR
datasets, 2017.
"""

import concurrent.futures
import functools
import io
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from robust_jax.data import archives, arrays, decode, tfds_files
from robust_jax.errors import UserError

NAMES = tuple(f'imagenet_resized/{size}x{size}' for size in (8, 16, 32, 64))
VERSION = '0.1.0'
# Files of the archives, without .npz.
_FILES = {'train': [f'train_data_batch_{number}' for number in range(1, 11)],
          'validation': ['val_data']}
NUM_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_PART = 1024


def prepare(name, source, data_dir):
  """Writes `data_dir`/NAME/0.1.0: a file of images, as PNG, for each file of the archives.

  One file of the archives is in memory at a time. What is in pickles is not executed.

  Args:
    name: one of `NAMES`.
    source: an archive, or a folder with the archives Imagenet64_train_part1.zip,
      Imagenet64_train_part2.zip and Imagenet64_val.zip, or of other sizes Imagenet32_train.zip and
      so on; or with _npz in their names; or with what is in them.
    data_dir: the folder of prepared TFDS datasets.

  Returns:
    A line on what was written.

  Raises:
    UserError: archives that are not there, damaged or of another size or number of images; what is
      in the way; a folder that cannot be written.
  """
  size, source = int(name.rpartition('x')[2]), Path(source).expanduser()
  folder = Path(data_dir).expanduser() / name
  done, new = folder / VERSION, folder / f'incomplete.{VERSION}'
  if done.exists():
    raise UserError(f'{done} is there already; take another --output, or remove it')
  if not source.exists():
    raise UserError(f'--source must be a file or folder of {name}, got {source}, which does not '
                    'exist')
  try:
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    lengths = _write_shards(new, size, source)
    identity = DatasetIdentity('imagenet_resized', tfds.core.Version(VERSION), str(new), '',
                               config_name=f'{size}x{size}')
    names = tfds.core.tfds_path('image_classification/imagenet_resized_labels.txt').read_text()
    tfds_files.write_info(new, identity, {
        'image': tfds.features.Image(shape=(size, size, 3)),
        'label': tfds.features.ClassLabel(names=names.split())}, lengths)
    new.rename(done)
  except OSError as error:
    raise UserError(f'{new} cannot be written ({error.strerror or error})') from error
  numbers = ' and '.join(f'{sum(each):,} {split}' for split, each in lengths.items())
  return (f'{done}: {numbers} images; --config.data.name={name} '
          f'--config.data.data_dir={Path(data_dir).expanduser()} takes it')


def _write_shards(folder, size, source):
  """Writes a file for each of the archives'; returns {split: number of images in each}."""
  places = {file: (split, number) for split, files in _FILES.items()
            for number, file in enumerate(files)}
  wanted = {f'{file}{end}' for file in places for end in ('', '.npz')}
  lengths = {split: [0] * len(files) for split, files in _FILES.items()}
  paths = [source, *sorted(source.glob(f'Imagenet{size}_*.zip'))] if source.is_dir() else [source]
  read = functools.partial(_read, size=size)
  for path in paths:
    for name, content in archives.contents(path, wanted):
      split, number = places[name.removesuffix('.npz')]
      if lengths[split][number]:
        continue
      images, labels = archives.parsed(read, [content], path, [name])
      file_adapters.ArrayRecordFileAdapter.write_examples(
          folder / f'imagenet_resized-{split}.array_record-{number:05}-of-{len(_FILES[split]):05}',
          ((None, record) for record in _records(images, labels)))
      lengths[split][number] = len(labels)
  for split, numbers in lengths.items():
    missing = [file for file, number in zip(_FILES[split], numbers) if not number]
    if missing or sum(numbers) != NUM_IMAGES[split]:
      raise UserError(f'{source} must have {NUM_IMAGES[split]:,} {split} images of {size}x{size}, '
                      f'got {sum(numbers):,}{"; without " if missing else ""}{", ".join(missing)}')
  return lengths


def _read(contents, size):
  """([number, size, size, 3] uint8, labels from 0 on) of the one file."""
  (content,) = contents
  if content[:2] == b'PK':
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      batch = {name: file[name] for name in ('data', 'labels')}
  else:
    batch = archives.text_keys(archives.unpickle(content))
  images = archives.from_planes(batch['data'], size)
  labels = arrays.as_labels(np.asarray(batch['labels']) - 1, 1000, 'labels, less 1')
  arrays.check_lengths(images, labels)
  return images, labels


def _records(images, labels):
  """Iterates over serialised tf.train.Examples."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for first in range(0, len(labels), _PART):
      yield from pool.map(_record, images[first:first + _PART], labels[first:first + _PART])


def _record(image, label):
  png = io.BytesIO()
  decode.from_array(image).save(png, 'PNG')
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(png.getvalue())
  feature['label'].int64_list.value.append(int(label))
  return example.SerializeToString(deterministic=True)
