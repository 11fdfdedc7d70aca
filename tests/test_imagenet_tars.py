"""ImageNet from tar files in the original layout, small ones, as TFDS itself would write it."""

import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_imagenet
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from robust_jax import data
from robust_jax.data import __main__ as command
from robust_jax.data import decode, imagenet, imagenet_tars
from robust_jax.errors import UserError

RNG = np.random.default_rng(0)
SYNSETS = [*imagenet.names()]
CLASSES = [0, 5, 999]
TRAIN, VAL = (split.tar for split in imagenet_tars.SPLITS.values())


def encoded(kind):
  height, width = RNG.integers(20, 60, 2)
  mode, form = {'grey': ('L', 'JPEG'), 'cmyk': ('CMYK', 'JPEG'), 'png': ('P', 'PNG')}.get(
      kind, ('RGB', 'JPEG'))
  values = np.kron(RNG.integers(0, 256, (3, 3, 3), np.uint8), np.ones((20, 20, 1), np.uint8))
  file = io.BytesIO()
  Image.fromarray(values[:height, :width]).convert(mode).save(file, form)
  return file.getvalue()


# Not in the order of their names, as the published tars are not.
IMAGES = {f'{SYNSETS[label]}_{number}.JPEG': (label, encoded(kind)) for label in CLASSES
          for number, kind in ((10026, 'rgb'), (7, 'grey'), (33, {0: 'cmyk', 5: 'png'}.get(label)))}
LABELS = [65, 970, 230, 809, 516]  # Of the challenge's first five, as in Caffe's val.txt.
VALIDATION = {f'ILSVRC2012_val_{number:08}.JPEG': encoded('rgb') for number in (3, 1, 5, 4, 2)}


def tar_of(files):
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode='w', format=tarfile.USTAR_FORMAT) as archive:
    for name, each in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(each)
      archive.addfile(member, io.BytesIO(each))
  return content.getvalue()


def train_tar(images=IMAGES):
  return tar_of({f'{SYNSETS[label]}.tar': tar_of(
      {name: content for name, (other, content) in images.items() if other == label})
      for label in CLASSES})


@pytest.fixture
def raw(tmp_path, monkeypatch):
  """A folder with both tars."""
  folder = tmp_path / 'raw'
  folder.mkdir()
  (folder / TRAIN).write_bytes(train_tar())
  (folder / VAL).write_bytes(tar_of(VALIDATION))
  for split, images, shards in (('train', len(IMAGES), 3), ('validation', len(VALIDATION), 2)):
    monkeypatch.setitem(imagenet_tars.SPLITS, split, imagenet_tars.SPLITS[split]._replace(
        num_images=images, num_shards=shards))
  return folder


def prepare(raw, data_dir):
  return imagenet_tars.prepare(raw / TRAIN, raw / VAL, data_dir)


def records(data_dir):
  builder = tfds.core.read_only_builder.builder_from_directory(
      data_dir / 'imagenet2012' / imagenet_tars.VERSION)
  return {split: [tf_example_pb2.Example.FromString(record) for record in builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)]
      for split in ('train', 'validation')}


def test_the_files_are_those_that_tfds_writes(raw, tmp_path):
  assert '9 train and 5 validation images' in prepare(raw, tmp_path / 'ours')

  def features(name, label, content):
    return {'image': io.BytesIO(content), 'label': label, 'file_name': name}

  ours, theirs = (tmp_path / name / 'imagenet2012' / '5.1.0' for name in ('ours', 'theirs'))
  tiny_imagenet.write_tfds(
      tmp_path / 'theirs', 'imagenet2012', {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label': tfds.features.ClassLabel(names=SYNSETS), 'file_name': tfds.features.Text()}, {
          'train': {name: features(name, label, imagenet_tars._as_jpeg(content))
                    for name, (label, content) in IMAGES.items()},
          'validation': {name: features(name, LABELS[int(name[-10:-5]) - 1], content)
                         for name, content in VALIDATION.items()}},
      version='5.1.0', supervised_keys=('image', 'label'), num_shards=1)
  assert records(tmp_path / 'ours') == records(tmp_path / 'theirs')
  for file in ('features.json', 'label.labels.txt'):
    assert (ours / file).read_text() == (theirs / file).read_text()
  assert sorted(path.name for path in ours.glob('*.array*')) == [
      f'imagenet2012-{split}.array_record-{at:05}-of-{number:05}'
      for split, number in (('train', 3), ('validation', 2)) for at in range(number)]


def test_it_is_read_by_tfds_and_here(raw, tmp_path):
  prepare(raw, tmp_path)
  source = tfds.data_source('imagenet2012', data_dir=tmp_path, split='train', decoders={
      'image': tfds.decode.SkipDecoding()})
  train = data.load('imagenet2012', 'train', data_dir=str(tmp_path), image_size=16)
  test = data.load('imagenet2012', 'test', data_dir=str(tmp_path), image_size=16)
  assert [*train.labels] == [each['label'] for each in source]
  assert sorted(test.labels) == sorted(LABELS) and len(test.images[:]) == 5
  for each, image in zip(source, train.images[:]):
    name = each['file_name'].decode()
    label, content = IMAGES[name]
    assert each['label'] == label
    # CMYK and PNG go through a JPEG of quality 100.
    expected = decode.centre_crop(decode.decode(content, 3), 16)
    changed = name in (f'{SYNSETS[0]}_33.JPEG', f'{SYNSETS[5]}_33.JPEG')
    assert np.abs(image.astype(int) - expected).mean() <= 8 * changed, name
  assert 'tensorflow' not in sys.modules


def test_what_was_written_stays_when_it_goes_on(raw, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  whole = train_tar()
  broken, (label, content) = next(iter(IMAGES)), next(iter(IMAGES.values()))
  (raw / TRAIN).write_bytes(train_tar({**IMAGES, broken: (label, bytes(len(content)))}))
  with pytest.raises(UserError, match=f'{TRAIN}: {broken}: the image cannot be decoded'):
    prepare(raw, tmp_path)
  new = tmp_path / 'imagenet2012' / 'incomplete.5.1.0'
  with pytest.raises(UserError, match='data prepare imagenet2012'):
    data.load('imagenet2012', 'train', data_dir=str(tmp_path))
  (new / 'a.1.part').write_text('of one that was killed')
  kept = {path.name: path.stat().st_ino for path in new.glob('*-of-*') if path.suffix != '.part'}
  (raw / TRAIN).write_bytes(whole)
  prepare(raw, '.')
  done = new.parent / '5.1.0'
  assert kept.items() <= {path.name: path.stat().st_ino for path in done.iterdir()}.items()
  assert len([*done.iterdir()]) == 5 + 3 and not new.exists()
  prepare(raw, tmp_path / 'again')
  assert records(tmp_path) == records(tmp_path / 'again')


def cut(content):
  return content[:len(content) // 2]


@pytest.mark.parametrize('file, content, message', [
    (TRAIN, lambda: cut(train_tar()), f'{TRAIN} cannot be read'),
    (VAL, lambda: cut(tar_of(VALIDATION)), f'{VAL} cannot be read'),
    (VAL, lambda: b'<html>', f'{VAL} cannot be read'),
    (TRAIN, lambda: train_tar(dict([*IMAGES.items()][1:])), f'{TRAIN} must have 9 images, got 8'),
    (TRAIN, lambda: tar_of(VALIDATION), f'{TRAIN} must be a tar of tars .*got ILSVRC2012_val'),
    (VAL, train_tar, f'{VAL} must have 5 images, got 3')])
def test_a_tar_that_is_something_else_is_named(file, content, message, raw, tmp_path, capsys):
  (raw / file).write_bytes(content())
  with pytest.raises(SystemExit) as ended:
    command.main(['prepare', 'imagenet2012', f'--source={raw}', f'--output={tmp_path}/out'])
  assert ended.value.code == 2 and not (tmp_path / 'out').exists()
  with pytest.raises(UserError, match=message):
    raise UserError(capsys.readouterr().err.splitlines()[-1])


def test_what_is_in_the_way_is_named(raw, tmp_path):
  new = tmp_path / 'imagenet2012' / 'incomplete.5.1.0'
  new.mkdir(parents=True)
  (new / 'source.json').write_text('{}')
  with pytest.raises(UserError, match='was begun from other tar files'):
    prepare(raw, tmp_path)
  new.rename(new.parent / '5.1.0')
  with pytest.raises(UserError, match='5.1.0 is there already'):
    prepare(raw, tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    prepare(raw, tmp_path / 'file')
  (raw / VAL).unlink()
  with pytest.raises(UserError, match=f'{VAL} must be a file'):
    prepare(raw, tmp_path / 'new')


def test_a_tar_of_other_bytes_is_warned_of(raw, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(imagenet_tars.SPLITS, 'train', imagenet_tars.SPLITS['train']._replace(
      num_bytes=(raw / TRAIN).stat().st_size))
  prepare(raw, tmp_path)
  warnings = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
  assert len(warnings) == 2
  assert f'{VAL} is not the file that was published: it has' in warnings[0]
  assert f'{TRAIN} is not the file that was published: its MD5' in warnings[1]


def test_the_command_of_the_launcher_has_its_flags():
  words = [sys.executable, '-m', 'launch.prepare_imagenet']
  shown = subprocess.run([*words, '--help'], capture_output=True, text=True, check=True).stdout
  assert 'TRAIN.tar VAL.tar' in ' '.join(shown.split()) and '--data_dir DIR' in shown
