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


def find(name, data_dir, known=(), published=()):
  """The TFDS builder of a prepared dataset.

  Args:
    name: as TFDS names it: 'cifar100', 'imagenet_resized/32x32', 'mnist:3.0.1'.
    data_dir: the folder of prepared datasets.
    known: names that are suggested first where there is no such dataset.
    published: names of datasets that `python -m robust_jax.data` prepares.

  Returns:
    A builder that reads; of the newest version if none is named.

  Raises:
    UserError: it is not prepared in `data_dir`, does not exist, or its files are damaged.
  """
  dataset = name.partition(':')[0].partition('/')[0]
  location = f'config.data.data_dir is {data_dir!r}'
  try:
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  except ERRORS as error:
    if dataset and pathlib.Path(data_dir, dataset).is_dir():
      raise unreadable(f'{location}: {name!r}', error) from error
  public = tfds.list_builders(with_community_datasets=False)
  prepared = _folders(pathlib.Path(data_dir))
  if dataset in (*public, *known, *prepared):
    versions = ', '.join(_folders(pathlib.Path(data_dir, dataset)))
    where = f'{location}, where {name!r} is not prepared{versions and f" (only {versions})"}'
    if name in published:
      raise UserError(f'{where}; python -m robust_jax.data prepare {name} writes {name}.npz, which '
                      f'--config.data.name={name}.npz takes; no TensorFlow is needed')
    if name == 'imagenet2012':
      raise UserError(f'{where}; python -m robust_jax.data prepare imagenet2012 --source=FOLDER '
                      f'--output={data_dir} writes it from ILSVRC2012_img_train.tar and '
                      'ILSVRC2012_img_val.tar in FOLDER; no TensorFlow is needed')
    if dataset == 'imagenet_resized':
      raise UserError(f'{where}; python -m robust_jax.data prepare {name} --source=FOLDER '
                      f'--output={data_dir} writes it from the archives of image-net.org in '
                      'FOLDER; no TensorFlow is needed')
    raise UserError(
      f'{where}; prepare it in an environment that also has tensorflow and importlib_resources, '
      'with python -c "import '
      f"tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={data_dir!r}, "
      'file_format=\'array_record\').download_and_prepare()"')
  similar = ([other for other in known if dataset and other.startswith(dataset.lower())][:1]
             or _nearest(dataset.lower(), [*known, *published, *prepared], public))
  hint = f'; did you mean {similar[0]}?' if similar else ''
  if name == 'arrays' or (not hint and pathlib.Path(name).suffix):
    hint = '; arrays are read from a file, whose name ends in .npz'
  elif pathlib.Path(f'{name}.npz').expanduser().is_file():
    hint = f'; did you mean {name}.npz?'
  elif pathlib.Path(name).expanduser().is_dir():
    hint = f'; a folder of images is --config.data.name=folder --config.data.data_dir={name}'
  raise UserError(f'config.data.name must be one of {", ".join(known)}, FILE.npz, another TFDS '
                  f'dataset, or one prepared in {data_dir}, got {name!r}{hint}')


def _nearest(dataset, ours, others):
  """[the nearest name], one of ours unless another is nearer by more than a letter's worth."""
  ratio = lambda name: difflib.SequenceMatcher(None, name, dataset).ratio()
  near = difflib.get_close_matches(dataset, ours, 1)
  other = difflib.get_close_matches(dataset, others, 1)
  if near and other and ratio(other[0]) > ratio(near[0]) + 0.05:
    return other
  return near or other


def _folders(folder):
  try:
    return sorted(path.name for path in folder.iterdir()
                  if path.is_dir() and not path.name.startswith(('.', 'incomplete'))
                  and path.name != 'downloads')
  except OSError:
    return []


def unreadable(place, error):
  """The UserError for what is at `place`, on which TFDS or array_record has raised `error`."""
  return UserError(f'{place} cannot be read: {" ".join(str(error).split())}')


def write_info(folder, identity, features, lengths):
  """Writes what describes the array_record files of images and classes in a folder.

  Args:
    folder: pathlib.Path.
    identity: tfds.core.dataset_info.DatasetIdentity, name and version of the dataset.
    features: {name: feature} of an example, 'image' and 'label' among them.
    lengths: {split: the number of examples in each of its files}.
  """
  info = tfds.core.DatasetInfo(
      builder=identity, features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'), homepage='https://image-net.org/')
  info.set_file_format('array_record')
  splits = []
  for split, numbers in lengths.items():
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=identity.name, split=split, filetype_suffix='array_record')
    splits.append(tfds.core.SplitInfo(
        name=split, shard_lengths=numbers, filename_template=template,
        num_bytes=sum(path.stat().st_size for path in folder.glob(
            f'{identity.name}-{split}.array_record-*'))))
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(folder)


class TfdsSplit:
  """The examples of a split.

  Args:
    builder: from `find`, with the same name and data_dir.
    name: of the dataset.
    data_dir: the folder of prepared datasets.
    split: a TFDS split or a part of one.

  Attributes:
    shape: (height, width, channel) of the images; None where they differ.
    class_names: a name for each class; its number where the files have no names.
    labels: LazyArray [num_examples] of int32. As a record holds an image and its label, a label is
      known once its image is read.

  Raises:
    UserError: no image classification, no such split, an empty one, or files that cannot be read.
  """

  def __init__(self, builder, name, data_dir, split):
    self._location = f'config.data.data_dir is {data_dir!r}: {name!r}, split {split!r}'
    features, splits = builder.info.features, builder.info.splits
    self._image_key, self._label_key = _keys(builder.info, name)
    dtype = np.dtype(features[self._image_key].np_dtype)
    if dtype not in (np.uint8, np.uint16):  # Floats come as the bytes of a PNG of four channels.
      raise UserError(f'config.data.name is {name!r}, whose images must be of 8 or 16 bits, got '
                      f'{dtype}')
    if not {part.partition('[')[0].strip() for part in split.split('+')} <= {*splits, 'all'}:
      raise UserError(f'{self._location} must be one of {", ".join(splits)}, or a part such as '
                      f'{next(iter(splits)) + "[:90%]"!r}')
    self.shape = tuple(features[self._image_key].shape)
    self.class_names = tuple(map(str, features[self._label_key].names))
    _allow_open_files(sum(info.num_shards for info in splits.values()))
    try:
      num_examples = splits[split].num_examples
      self._records = num_examples and builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (NotImplementedError, *ERRORS) as error:
      raise unreadable(self._location, error) from error
    if not num_examples:
      raise UserError(f'{self._location} has no examples')
    self.labels = lazy.LazyArray(self._read_labels, (len(self),), np.int32, keep=True)

  def __len__(self):
    return len(self._records)

  def place(self, index):
    """Where an example is, for error messages."""
    return f'{self._location}, example {index}'

  def read(self, indices):
    """Iterates over the encoded images at `indices` [number] int."""
    for index, encoded, label in self._examples(indices):
      self.labels.put(index, label)
      yield encoded

  def _read_labels(self, indices):
    labels = np.empty(len(indices), np.int32)

    def work(part):
      labels[part.start:part.stop] = [
        label for _, _, label in self._examples(indices[part.start:part.stop])]

    lazy.in_threads(work, len(indices))
    return labels

  def _examples(self, indices):
    """Iterates over (index, encoded image, label)."""
    indices = [int(index) for index in indices]
    for index, record in zip(indices, self._read_records(indices)):
      try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        label = feature[self._label_key].int64_list.value[0]
        encoded = feature[self._image_key].bytes_list.value[0]
      except ERRORS as error:
        raise unreadable(self.place(index), error) from error
      if not 0 <= label < len(self.class_names):
        raise UserError(f'{self.place(index)}: its label must be in 0..{len(self.class_names) - 1},'
                        f' got {label}; a split without labels is not config.data.test_split')
      yield index, encoded, label

  def _read_records(self, indices):
    if len(indices) >= _MANY:
      try:
        yield from self._records.__getitems__(indices)
      except ERRORS as error:
        raise unreadable(self._location, error) from error
      return
    for index in indices:
      try:
        yield self._records[index]
      except ERRORS as error:
        raise unreadable(self.place(index), error) from error


def _keys(info, name):
  """The keys of the image and of the class, among the features of a dataset."""
  features = dict(info.features) if hasattr(info.features, 'keys') else {}
  images, classes = ([key for key, feature in features.items() if type(feature) is kind]
                     for kind in (tfds.features.Image, tfds.features.ClassLabel))
  only_pair = (*images, *classes) if len(images) == len(classes) == 1 else ()
  for pair in (info.supervised_keys or (), ('image', 'label'), only_pair):
    if len(pair) == 2 and pair[0] in images and pair[1] in classes:
      return tuple(pair)
  described = ', '.join(sorted(f'{key} {type(each).__name__}' for key, each in features.items()))
  raise UserError(f'config.data.name is {name!r}, which is no image classification: it needs an '
                  f'Image and a ClassLabel, got {described or info.features}')


def _allow_open_files(number):
  """Raises the limit of open files: each file of a split stays open, of ImageNet 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  needed = 2 * number + 256
  if soft != resource.RLIM_INFINITY and soft < needed:
    needed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
