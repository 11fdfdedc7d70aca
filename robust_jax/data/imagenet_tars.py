"""ImageNet's two tar files as the array_record files that TFDS makes of them, without TensorFlow.

Nothing is unpacked: the heads in the tars say where each image is, and processes copy the images
of one file each, in TFDS's order. A file is there as a whole or not at all, and stays.
"""

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import os
import sys
import tarfile
import threading
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import file_adapters, hashing
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from robust_jax.data import archives, decode, imagenet, tfds_files
from robust_jax.errors import UserError

NAME, VERSION = 'imagenet2012', '5.1.0'


class Published(NamedTuple):
  """What is known of a split: its tar file, images, and the files that TFDS makes of it."""

  tar: str
  num_bytes: int
  md5: str
  num_images: int
  num_shards: int


SPLITS = {
    'train': Published('ILSVRC2012_img_train.tar', 147_897_477_120,
                       '1d675b47d978889d74fa0da5fadfb00e', 1_281_167, 1024),
    'validation': Published('ILSVRC2012_img_val.tar', 6_744_924_160,
                            '29b22e2961454d5413ddabcf34fc5622', 50_000, 64)}


class Member(NamedTuple):
  """An image in a tar file."""

  name: str
  offset: int
  num_bytes: int
  label: int


def prepare(train, validation, data_dir):
  """Writes `data_dir`/imagenet2012/5.1.0; what was interrupted goes on.

  Every image is a JPEG as it was published, but those in CMYK and the PNG, which become JPEGs of
  quality 100, as TFDS has them. The labels of the validation images are those that come with TFDS.

  Args:
    train: ILSVRC2012_img_train.tar, a tar of one tar of images for each class.
    validation: ILSVRC2012_img_val.tar, a tar of images.
    data_dir: the folder of prepared TFDS datasets.

  Returns:
    A line on what was written.

  Raises:
    UserError: a tar that is damaged, cut off or has not all the images; what is in the way; a
      folder that cannot be written. A tar that is not the published one is warned of only.
  """
  tars = {'train': Path(train).expanduser(), 'validation': Path(validation).expanduser()}
  folder = Path(data_dir).expanduser() / NAME
  done, new = folder / VERSION, folder / f'incomplete.{VERSION}'
  if done.exists():
    raise UserError(f'{done} is there already; take another --data_dir, or remove it')
  for split, tar in tars.items():
    if not tar.is_file():
      raise UserError(f'{SPLITS[split].tar} must be a file, got {tar}')
    if (size := tar.stat().st_size) != SPLITS[split].num_bytes:
      _warn(tar, f'it has {size:,} bytes, not {SPLITS[split].num_bytes:,}')
  members = {split: _members(split, tar) for split, tar in tars.items()}
  try:
    new.mkdir(parents=True, exist_ok=True)
    _check_same(new / 'source.json', {
        split: hashlib.sha256(repr(each).encode()).hexdigest() for split, each in members.items()})
    _write_shards(new, tars, members)
    _write_info(new, members)
    for file in (*new.glob('*.part'), new / 'source.json'):
      file.unlink()
    new.rename(done)
  except OSError as error:
    raise UserError(f'{new} cannot be written ({error.strerror or error}); the same command goes '
                    'on') from error
  numbers = ' and '.join(f'{len(each):,} {split}' for split, each in members.items())
  return f'{done}: {numbers} images; --config.data.data_dir={folder.parent} takes it'


def _warn(tar, reason):
  print(f'warning: {tar} is not the file that was published: {reason}', file=sys.stderr)


def _members(split, tar):
  """The images of a split, in TFDS's order: by the hashes of their names."""
  published, synsets = SPLITS[split], {name: at for at, name in enumerate(imagenet.names())}
  members = []
  try:
    with tar.open('rb') as file:
      if split == 'train':
        for name, offset, _ in tqdm(_files(file), desc=tar.name, unit='class'):
          if (synset := Path(name).stem) not in synsets:
            raise UserError(f'{tar} must be a tar of tars n01440764.tar and so on, got {name}')
          file.seek(offset)
          members += [Member(*image, synsets[synset]) for image in _files(file)]
      else:
        labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text()
        members = [Member(*image, synsets[synset])
                   for image, synset in zip(sorted(_files(file)), labels.split())]
  except (OSError, tarfile.TarError) as error:
    raise UserError(f'{tar} cannot be read ({error}); it may be cut off or damaged') from error
  if len(members) != published.num_images:
    raise UserError(f'{tar} must have {published.num_images:,} images, got {len(members):,}; it '
                    'may be cut off or damaged')
  hasher = hashing.Hasher(split)
  return sorted(members, key=lambda member: hasher.hash_key(member.name))


def _files(file):
  """[(name, place in the file, bytes)] of the files in the tar that begins here."""
  with tarfile.open(fileobj=file, mode='r:') as archive:
    return [(Path(each.name).name, each.offset_data, each.size)
            for each in archive if each.isfile()]


def _check_same(file, sums):
  """Files that were kept have to be of the same images."""
  if not file.exists():
    file.write_text(json.dumps(sums))
  elif file.read_text() != json.dumps(sums):
    raise UserError(f'{file.parent} was begun from other tar files; remove it, or give those')


def _shards(split, members):
  """Iterates over (name of a file, its images)."""
  number, start = SPLITS[split].num_shards, 0
  for index, end in enumerate(shard_utils.get_shard_boundaries(len(members), number)):
    yield f'{NAME}-{split}.array_record-{index:05}-of-{number:05}', members[start:end]
    start = end


def _write_shards(folder, tars, members):
  """Writes the files that are not there, and compares tars with their MD5 meanwhile."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload([__name__])
  with concurrent.futures.ProcessPoolExecutor(
      mp_context=context, initializer=_end_with_parent) as pool:
    sums = {pool.submit(archives.md5, tar): split for split, tar in tars.items()
            if tar.stat().st_size == SPLITS[split].num_bytes}
    tasks = {pool.submit(_write_shard, folder / name, tars[split], part): len(part)
             for split in members for name, part in _shards(split, members[split])
             if not (folder / name).exists()}
    total = sum(map(len, members.values()))
    try:
      with tqdm(desc=NAME, unit='image', total=total, initial=total - sum(tasks.values())) as bar:
        for task in concurrent.futures.as_completed(tasks):
          task.result()
          bar.update(tasks[task])
      for task, split in sums.items():
        if task.result() != SPLITS[split].md5:
          _warn(tars[split], f'its MD5 is {task.result()}, not {SPLITS[split].md5}')
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _end_with_parent():
  """Workers would wait for ever for a parent that was killed."""
  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _write_shard(path, tar, members):
  """Writes one file of images [number] `Member`."""
  part = Path(f'{path}.{os.getpid()}.part')
  with tar.open('rb') as file:
    file_adapters.ArrayRecordFileAdapter.write_examples(
        part, ((None, _record(file, member)) for member in members))
  os.replace(part, path)


def _record(file, member):
  """The record of an image: a serialised tf.train.Example."""
  file.seek(member.offset)
  encoded = file.read(member.num_bytes)
  try:
    encoded = _as_jpeg(encoded)
  except decode.ERRORS as error:
    raise decode.broken(f'{file.name}: {member.name}', error) from error
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature['image'].bytes_list.value.append(encoded)
  feature['label'].int64_list.value.append(member.label)
  feature['file_name'].bytes_list.value.append(member.name.encode())
  return example.SerializeToString(deterministic=True)


def _as_jpeg(encoded):
  """A grey or RGB JPEG as it is, others as one of quality 100."""
  with Image.open(io.BytesIO(encoded)) as image:
    if encoded.startswith(b'\xff\xd8') and image.mode in ('L', 'RGB'):
      return encoded
  jpeg = io.BytesIO()
  decode.decode(encoded, 3).save(jpeg, 'JPEG', quality=100)
  return jpeg.getvalue()


def _write_info(folder, members):
  identity = DatasetIdentity(NAME, tfds.core.Version(VERSION), str(folder), '')
  tfds_files.write_info(folder, identity, {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=[*imagenet.names()]),
      'file_name': tfds.features.Text(),
  }, {split: [len(part) for _, part in _shards(split, members[split])] for split in members})
