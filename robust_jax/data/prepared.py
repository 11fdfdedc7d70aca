"""Datasets that TFDS has prepared as array_record files, read without TensorFlow.

They are found and described by their files alone, so that every prepared dataset can be read,
those of other people's builders as well.
"""

import difflib
import pathlib
import resource

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format, message
from tensorflow_datasets.proto import tf_example_pb2

from robust_jax.data import lazy
from robust_jax.errors import UserError

# What TFDS and array_record raise on a missing split, another file format or a damaged file.
ERRORS = (OSError, ValueError, RuntimeError, IndexError, AssertionError, json_format.Error,
          message.Error)
# array_record reads one record faster alone, many records faster together.
_MANY = 256
_UNKNOWN = np.iinfo(np.int32).min


def find(name, data_dir, known=()):
  """The TFDS builder of a prepared dataset.

  Args:
    name: as TFDS names it: 'cifar100', 'imagenet_resized/32x32', 'mnist:3.0.1'.
    data_dir: the folder of prepared datasets.
    known: names that are suggested first where there is no such dataset.

  Returns:
    A builder that reads; of the newest version if none is named.

  Raises:
    UserError: it is not prepared in `data_dir`, does not exist, or its files are damaged.
  """
  dataset = name.partition(':')[0].partition('/')[0]
  where = f'config.data.data_dir is {data_dir!r}'
  try:
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  except ERRORS as error:
    if dataset and pathlib.Path(data_dir, dataset).is_dir():
      raise unreadable(f'{where}: {name!r}', error) from error
  public = tfds.list_builders(with_community_datasets=False)
  folders = _folders(pathlib.Path(data_dir))
  if dataset in (*public, *known, *folders):
    configs = _folders(pathlib.Path(data_dir, dataset))
    there = f' (there is {", ".join(configs)})' if configs else ''
    raise UserError(
      f'{where}, where {name!r} is not prepared{there}; prepare it there, in an environment that '
      'also has tensorflow and importlib_resources, with python -c "import tensorflow_datasets as '
      f"tfds; tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
      '.download_and_prepare()"')
  near = ([other for other in known if dataset and other.startswith(dataset.lower())][:1]
          or difflib.get_close_matches(dataset.lower(), [*known, *folders, *public], 1))
  hint = f'; did you mean {near[0]}?' if near else ''
  raise UserError(f'config.data.name is {name!r}; it must be one of {", ".join(known)}, '
                  f'another TFDS dataset, or one prepared in {data_dir}{hint}')


def _folders(folder):
  try:
    return sorted(path.name for path in folder.iterdir()
                  if path.is_dir() and not path.name.startswith(('.', 'incomplete'))
                  and path.name != 'downloads')
  except OSError:
    return []


def unreadable(place, error):
  """The UserError that names what is at `place` where TFDS or array_record has raised `error`."""
  return UserError(f'{place}, cannot be read: {" ".join(str(error).split())}')


class Prepared:
  """The examples of a split.

  Args:
    builder: from `find`, with the same name and data_dir.
    name: of the dataset.
    data_dir: the folder of prepared datasets.
    split: a TFDS split or a part of one.

  Attributes:
    shape: (height, width, channel) of the images; None where they differ.
    class_names: a name for each class; its number where the files have no names.
    labels: [num_examples] int32, an array or what looks like one.

  Raises:
    UserError: no image classification, no such split, an empty one, or files that cannot be read.
  """

  def __init__(self, builder, name, data_dir, split):
    self._place = f'config.data.data_dir is {data_dir!r}: {name!r}, split {split!r}'
    features = builder.info.features
    self._image_key, self._label_key = _keys(builder.info, name)
    _check_split(builder.info, self._place, split)
    self.shape = tuple(features[self._image_key].shape)
    self.class_names = tuple(map(str, features[self._label_key].names))
    _allow_open_files(sum(each.num_shards for each in builder.info.splits.values()))
    try:
      empty = not builder.info.splits[split].num_examples
      self._source = None if empty else builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (NotImplementedError, *ERRORS) as error:
      raise unreadable(self._place, error) from error
    if empty:
      raise UserError(f'{self._place}, has no example; one at least is needed')
    self.labels = _Labels(self)

  def __len__(self):
    return len(self._source)

  def place(self, index):
    """Where an example is, for messages."""
    return f'{self._place}, example {index}'

  def read(self, indices):
    """Iterates over the encoded images at `indices` [number] int; the labels become known."""
    indices = [int(index) for index in indices]
    for index, record in zip(indices, self._records(indices)):
      try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        label = feature[self._label_key].int64_list.value[0]
        encoded = feature[self._image_key].bytes_list.value[0]
      except ERRORS as error:
        raise unreadable(self.place(index), error) from error
      if not 0 <= label < len(self.class_names):
        raise UserError(f'{self.place(index)}: its label is {label}; '
                        f'0..{len(self.class_names) - 1} are allowed (config.data.test_split '
                        'names another split than one without labels)')
      self.labels.known[index] = label
      yield encoded

  def _records(self, indices):
    if len(indices) >= _MANY:
      try:
        yield from self._source.__getitems__(indices)
      except ERRORS as error:
        raise unreadable(self._place, error) from error
      return
    for index in indices:
      try:
        yield self._source[index]
      except ERRORS as error:
        raise unreadable(self.place(index), error) from error


class _Labels(lazy.ArrayLike):
  """Looks like an array [num_examples] of int32; a label is known once its record is read.

  A record holds an image and its label, and is read for the image anyway. `known` holds the labels
  of the records that have been read.
  """

  dtype = np.dtype(np.int32)

  def __init__(self, records):
    self._records = records
    self.known = np.full(len(records), _UNKNOWN, np.int32)
    self.shape = self.known.shape

  def __getitem__(self, indices):
    unknown = np.arange(len(self))[indices]
    unknown = np.atleast_1d(unknown)[np.atleast_1d(self.known[indices]) == _UNKNOWN]

    def work(part):
      for _ in self._records.read(unknown[part.start:part.stop]):
        pass

    lazy.in_threads(work, len(unknown))
    return self.known[indices].copy()


def _keys(info, name):
  """The keys of the image and of the class, among the features of a dataset."""
  kinds = {'Image': tfds.features.Image, 'ClassLabel': tfds.features.ClassLabel}
  features = dict(info.features) if hasattr(info.features, 'keys') else {}
  found = {kind: [key for key, feature in features.items() if type(feature) is cls]
           for kind, cls in kinds.items()}
  keys = info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else ()
  for pair in (keys, ('image', 'label'), [each[0] for each in found.values() if len(each) == 1]):
    if len(pair) == 2 and pair[0] in found['Image'] and pair[1] in found['ClassLabel']:
      return tuple(pair)
  described = ', '.join(sorted(f'{key} {type(each).__name__}' for key, each in features.items()))
  raise UserError(f'config.data.name is {name!r}, no image classification: its features are '
                  f'{described or info.features}; an Image and a ClassLabel are needed')


def _check_split(info, place, split):
  named = {part.partition('[')[0].strip() for part in split.split('+')}
  if not named <= {*info.splits, 'all'}:
    raise UserError(f'{place}: there is no such split; one of {", ".join(info.splits)}, or a part '
                    f'such as {next(iter(info.splits)) + "[:90%]"!r}, is allowed')


def _allow_open_files(number):
  """Each file of a split stays open; ImageNet's 1,024 are more than many systems allow at first."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = 2 * number + 256
  if soft != resource.RLIM_INFINITY and soft < wanted:
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
