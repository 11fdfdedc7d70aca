"""Data: every example once an epoch, the same batches however they are asked for."""

import io
import math
import os
import shutil
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_imagenet
from PIL import Image
from sklearn.datasets import load_digits

from robust_jax import data
from robust_jax.config import sections
from robust_jax.data import decode, digits, tfds_files
from robust_jax.errors import UserError


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='module')
def imagenet_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('imagenet'))
  tiny_imagenet.write(folder, num_train=30, num_validation=12)
  return folder


@pytest.fixture(scope='module')
def real_data_dir():
  if 'ROBUST_JAX_TEST_DATA' not in os.environ:
    pytest.skip('ROBUST_JAX_TEST_DATA names no folder with tfds/mnist and tfds/cifar10')
  return os.path.join(os.environ['ROBUST_JAX_TEST_DATA'], 'tfds')


def make_dataset(num, shape=(6, 5, 3)):
  images = np.random.default_rng(0).integers(0, 256, (num, *shape), dtype=np.uint8)
  return data.Dataset(name='made', split='train', images=images,
                      labels=(np.arange(num) % 7).astype(np.int32),
                      class_names=tuple('abcdefg'), mean=0.0, std=1.0)


def joined(batches):
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def assert_same(batches, others):
  assert len(batches) == len(others) > 0
  jax.tree.map(np.testing.assert_array_equal, batches, others)


def picture(seed, height, width, channels=3):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image):
  file = io.BytesIO()
  image.save(file, 'PNG')
  file.seek(0)
  return file


def write_folder(root, sizes=((8, 6), (8, 6)), suffix='png'):
  """train/{cat,dog}/ and test/{cat,dog}/ of an image of each size (height, width)."""
  for split in ('train', 'test'):
    for label, name in enumerate(('cat', 'dog')):
      (root / split / name).mkdir(parents=True)
      for number, (height, width) in enumerate(sizes):
        seed = (split == 'test', label, number)
        picture(seed, height, width).save(root / split / name / f'{number}.{suffix}')
  return str(root)


# Reading.


def test_digits_are_those_of_scikit_learn(data_dir):
  train = data.load('digits', 'train', data_dir=data_dir)
  test = data.load('digits', 'test', data_dir=data_dir)
  assert (train.num_examples, test.num_examples) == (1442, 355)
  assert train.image_shape == (8, 8, 1)
  assert train.images.dtype == np.uint8
  assert train.class_names == tuple('0123456789')
  assert (train.mean, train.std) == (0.0, 1.0)
  bundled = load_digits()
  expected = sorted((np.round(image * 255 / 16).astype(np.uint8).tobytes(), label)
                    for image, label in zip(bundled.images, bundled.target))
  found = sorted((image.tobytes(), label) for split in (train, test)
                 for image, label in zip(split.images, split.labels))
  assert found == expected
  share = np.bincount(test.labels) / np.bincount(bundled.target)
  assert np.all((share > 0.19) & (share <= 0.2))
  assert 'tensorflow' not in sys.modules


def test_a_part_of_a_split(data_dir):
  whole = data.load('digits', 'train', data_dir=data_dir)
  part = data.load('digits', 'train[100:200]', data_dir=data_dir)
  np.testing.assert_array_equal(part.images, whole.images[100:200])
  np.testing.assert_array_equal(part.labels, whole.labels[100:200])


def test_the_second_of_two_preparing_processes_uses_what_the_first_wrote(tmp_path, monkeypatch):
  generate = digits.Digits._generate_examples
  overtaken = []

  def generate_overtaken(self, split):
    if not overtaken:
      overtaken.append(True)
      digits.prepare(str(tmp_path))
    return generate(self, split)

  monkeypatch.setattr(digits.Digits, '_generate_examples', generate_overtaken)
  digits.prepare(str(tmp_path))
  assert overtaken
  assert [path.name for path in (tmp_path / 'digits').iterdir()] == ['1.0.0']
  assert data.load('digits', 'test', data_dir=str(tmp_path)).num_examples == 355


def refused(message, function, *args, **kwargs):
  """Whether the call raises a UserError of one line."""
  with pytest.raises(UserError, match=message) as raised:
    function(*args, **kwargs)
  return '\n' not in str(raised.value)


@pytest.mark.parametrize(('name', 'folder', 'message'), [
  ('nist', '.', "config.data.name .*got 'nist'; did you mean mnist"),
  ('cifar-100', '.', 'did you mean cifar100'),
  ('cifar11', '.', r'did you mean cifar10\?'),
  ('kmnst', '.', r'did you mean kmnist\?'),
  ('imagenet', '.', 'did you mean imagenet2012'),
  ('oxford_flower102', '.', 'did you mean oxford_flowers102'),
  ('nothing like it', '.', "cifar10, cifar100, digits, imagenet2012, mnist, folder, FILE.npz,"),
  ('cifar100', '.', "'cifar100' is not prepared.*prepare cifar100 .*data.name=cifar100.npz"),
  ('mnist', '.', "'mnist' is not prepared.*prepare mnist .*data.name=mnist.npz"),
  ('cifar10:3.0.2', '.', "'cifar10:3.0.2' is not prepared.*download_and_prepare"),
  ('imagenet2012', '.', "'imagenet2012' is not prepared.*data prepare imagenet2012"),
  ('arrays', '.', r"'arrays'; .*\.npz"),
  ('mine.npy', '.', r"'mine.npy'; .*\.npz"),
  ('tests', '.', 'data.name=folder --config.data.data_dir=tests'),
  ('mnist', 'missing', 'config.data.data_dir is .*missing.* is not prepared'),
  ('digits', 'file', 'config.data.data_dir is .*file.*Not a directory'),
])
def test_mistakes_are_one_line(tmp_path, name, folder, message):
  (tmp_path / 'file').touch()
  assert refused(message, data.load, name, 'train', data_dir=str(tmp_path / folder))


def test_another_spelling_is_no_other_dataset(data_dir):
  # TFDS itself takes Digits for digits, without the constants that go by the name.
  assert refused("data.name .*'Digits'; did you mean digits", data.load, 'Digits', 'test',
                 data_dir=data_dir)


def test_a_missing_split_is_named(data_dir):
  assert refused("split 'validation'.*train, test", data.load, 'digits', 'validation',
                 data_dir=data_dir)


@pytest.mark.parametrize(('file', 'change', 'message'), [
  ('dataset_info.json', lambda old: old.replace(b'array_record', b'tfrecord'),
   "'train' cannot be read: .*TFRECORD.*file_format="),
  ('dataset_info.json', lambda old: old[:200], "'imagenet2012' cannot be read: Failed to load"),
  ('features.json', lambda old: old[:200], "'imagenet2012' cannot be read: Expecting"),
  ('imagenet2012-train.array_record-00001-of-00002', lambda old: old[:1000], 'cannot be read'),
  ('imagenet2012-train.array_record-00001-of-00002',
   lambda old: old.replace(b'JFIF', b'JFIG'), r"'train', example \d+ cannot be read: .*Corrupted"),
])
def test_a_damaged_file_is_named(imagenet_dir, tmp_path, file, change, message):
  path = shutil.copytree(imagenet_dir, tmp_path / 'copy') / 'imagenet2012' / '5.1.0' / file
  path.write_bytes(change(path.read_bytes()))
  assert refused(f'config.data.data_dir is .*copy.*{message}', lambda: data.take(
    data.load('imagenet2012', 'train', data_dir=str(tmp_path / 'copy')), range(30)))


@pytest.mark.parametrize(('name', 'shape', 'mean'), [
  ('mnist', (28, 28, 1), (0.1307,)), ('cifar10', (32, 32, 3), (0.4914, 0.4822, 0.4465))])
def test_real_data(real_data_dir, name, shape, mean):
  test = data.load(name, 'test', data_dir=real_data_dir)
  assert test.images.shape == (10000, *shape)
  assert set(np.bincount(test.labels)) <= set(range(850, 1150))
  # The published means are those of the training images.
  np.testing.assert_allclose(test.images.mean((0, 1, 2)) / 255, mean, atol=0.005)
  decoded = tfds.data_source(name, split='test', data_dir=real_data_dir, download=False)
  for index in (0, 1, 9999):
    np.testing.assert_array_equal(test.images[index], decoded[index]['image'])
    assert test.labels[index] == decoded[index]['label']


def test_every_dataset_is_read_by_what_its_files_say(tmp_path):
  """Odd keys, two labels, grey and coloured images of different sizes, no normalisation."""
  pictures = [picture(seed, 20 + seed, 30, channels=1 if seed % 2 else 3) for seed in range(4)]
  tiny_imagenet.write_tfds(
    tmp_path, 'fish', {
      'kind': tfds.features.ClassLabel(names=['salmon', 'trout', 'eel']),
      'sea': tfds.features.ClassLabel(num_classes=2),
      'photo': tfds.features.Image(shape=(None, None, 3)),
      'author': tfds.features.Text(),
    }, {'valid': [
      {'kind': seed % 3, 'sea': 0, 'photo': png(image), 'author': 'me'}
      for seed, image in enumerate(pictures)]},
    supervised_keys=('photo', 'kind'))
  fish = data.load('fish', 'test', data_dir=str(tmp_path), image_size=14)
  assert fish.split == 'valid' and fish.class_names == ('salmon', 'trout', 'eel')
  assert (fish.mean, fish.std, fish.image_shape) == (0.0, 1.0, (14, 14, 3))
  found = sorted((fish.labels[i], fish.images[i].tobytes()) for i in range(4))
  assert found == sorted((seed % 3, decode.centre_crop(image.convert('RGB'), 14).tobytes())
                         for seed, image in enumerate(pictures))
  grey = data.load('fish', 'valid', data_dir=str(tmp_path), image_size=14, channels=1,
                   mean=(0.5,), std=(0.25,))
  assert grey.images[:].shape == (4, 14, 14, 1) and (grey.mean, grey.std) == ((0.5,), (0.25,))
  for name, split, options, message in [
      ('fish', 'test', {}, "config.data.image_size .*'fish'.* got None"),
      ('fish', 'test', {'image_size': 14, 'channels': 2}, 'config.data.channels .*1 or 3, got 2'),
      ('fish', 'test', {'image_size': 14, 'std': (1.0, 1.0)},
       r'config.data.std .*3, got \(1.0, 1.0\)'),
      ('fish', 'test[:0]', {'image_size': 14}, "'fish', split 'valid.:0.' has no example"),
      ('fsh', 'train', {}, "did you mean fish")]:
    assert refused(message, data.load, name, split, data_dir=str(tmp_path), **options)


def test_what_is_no_image_classification_is_refused(tmp_path):
  tiny_imagenet.write_tfds(
    tmp_path, 'words', {'text': tfds.features.Text(),
                        'label': tfds.features.ClassLabel(num_classes=2)},
    {'train': [{'text': 'a', 'label': 0}]})
  assert refused("'words', .*got label ClassLabel, text Text", data.load, 'words', 'train',
                 data_dir=str(tmp_path))


def test_images_of_floats_in_a_png_of_four_channels_are_refused(tmp_path):
  """As TFDS keeps them: their bytes would be read as RGBA."""
  tiny_imagenet.write_tfds(
    tmp_path, 'depth', {'image': tfds.features.Image(shape=(4, 4, 1)),
                        'label': tfds.features.ClassLabel(num_classes=2)},
    {'train': [{'image': png(picture(0, 4, 4, 1)), 'label': 0}]})
  file, = tmp_path.rglob('features.json')
  assert file.read_text().count('"uint8"') == 1
  file.write_text(file.read_text().replace('"uint8"', '"float32"'))
  assert refused("'depth', .*8 or 16 bits, got float32", data.load, 'depth', 'train',
                 data_dir=str(tmp_path))


def test_a_tiny_imagenet_in_the_files_of_the_real_one(imagenet_dir):
  train = data.load('imagenet2012', 'train', data_dir=imagenet_dir, image_size=16)
  test = data.load('imagenet2012', 'test', data_dir=imagenet_dir, image_size=16)
  assert data.load('imagenet2012', 'test', data_dir=imagenet_dir).image_shape == (224, 224, 3)
  assert (train.num_examples, test.num_examples, test.split) == (30, 12, 'validation')
  assert train.num_classes == 1000 and train.class_names[7] == 'n00000007'
  assert train.mean == (0.485, 0.456, 0.406) and train.std == (0.229, 0.224, 0.225)
  assert not test.images.keeps and test.images.shape == (12, 16, 16, 3)
  # TFDS finds the stock dataset in these files, and decodes the same pixels.
  decoded = tfds.data_source('imagenet2012', split='validation', data_dir=imagenet_dir,
                             download=False)
  assert len({example['image'].shape for example in decoded}) > 6
  for index, example in enumerate(decoded):
    np.testing.assert_array_equal(
      test.images[index], decode.centre_crop(Image.fromarray(example['image']), 16))
    assert test.labels[index] == example['label']
  np.testing.assert_array_equal(np.bincount(train.labels)[::100], [3] * 10)
  part = data.load('imagenet2012', 'test[25%:50%]', data_dir=imagenet_dir, image_size=16)
  assert part.split == 'validation[25%:50%]'
  np.testing.assert_array_equal(part.images, test.images[3:6])
  np.testing.assert_array_equal(part.labels, test.labels[3:6])
  settings = sections.DataSettings('imagenet2012', imagenet_dir, image_size=16,
                                        train_split='train[:10]', mean=(0.5,))
  assert settings.load('train').num_examples == 10 and settings.load('test').mean == (0.5,)
  assert 'tensorflow' not in sys.modules


def test_images_without_labels_are_refused(imagenet_dir, monkeypatch):
  monkeypatch.setitem(data.DATASETS, 'imagenet2012', data.DATASETS['mnist'])
  dataset = data.load('imagenet2012', 'test', data_dir=imagenet_dir, image_size=16)
  assert dataset.split == 'test'
  assert refused("'test', example 0: .*label .*0..999, got -1", data.take, dataset, [0])


@pytest.mark.parametrize('keeps, how', [(False, {'in_memory_bytes': 1442 * 64 - 1}),
                                        (True, {'at_once': False})])
def test_images_decoded_on_the_way_are_those_in_memory(keeps, how, data_dir):
  kept = data.load('digits', 'train', data_dir=data_dir)
  lazies = data.load('digits', 'train', data_dir=data_dir, **how)
  assert isinstance(kept.images, np.ndarray) and lazies.images.keeps == keeps
  assert lazies.images.shape == (1442, 8, 8, 1) and len(lazies.images) == lazies.num_examples
  np.testing.assert_array_equal(kept.labels[5:9], lazies.labels[5:9])
  assert lazies.labels[-1] == kept.labels[-1]
  for indices in (3, -1, slice(4, 20, 3), [2, 2, 1400], np.arange(1442) < 5, []):
    np.testing.assert_array_equal(kept.images[indices], lazies.images[indices])
    np.testing.assert_array_equal(kept.labels[indices], lazies.labels[indices])
  for augment in ('none', 'crop_flip', 'resized_crop'):
    assert_same(*(list(data.train_batches(dataset, batch_size=300, seed=1, num_steps=2,
                                          augment=augment)) for dataset in (kept, lazies)))
  assert_same(*(list(data.eval_batches(dataset, batch_size=500, stride=3))
                for dataset in (kept, lazies)))
  np.testing.assert_array_equal(kept.images, np.asarray(lazies.images))


@pytest.mark.parametrize('how', [{'in_memory_bytes': 0}, {'at_once': False}, {}])
@pytest.mark.parametrize('share, number', [(0.1, 144), (300, 300), (1., 1)])
def test_images_are_held_out_always_the_same(how, share, number, data_dir):
  whole = data.load('digits', 'train', data_dir=data_dir, **how)
  rest, held_out = data.hold_out(whole, share)
  assert (rest.num_examples, held_out.num_examples) == (1442 - number, number)
  rows = lambda dataset: [*map(bytes, np.asarray(dataset.images))]
  assert sorted(rows(rest) + rows(held_out)) == sorted(rows(whole))
  again = data.hold_out(data.load('digits', 'train', data_dir=data_dir), share)[1]
  np.testing.assert_array_equal(again.images, held_out.images)
  np.testing.assert_array_equal(again.labels, held_out.labels)
  if number > 100:  # At random: of every class.
    assert np.bincount(held_out.labels, minlength=10).min() > number / 20
  assert_same(*(list(data.train_batches(
      dataset, batch_size=64, seed=1, num_steps=2, augment='resized_crop')) for dataset in (
          rest, data.hold_out(data.load('digits', 'train', data_dir=data_dir), share)[0])))
  settings = sections.DataSettings('digits', data_dir, validation=share)
  for use, expected in (('train', rest), ('validation', held_out)):
    np.testing.assert_array_equal(settings.load(use).labels, expected.labels)
  assert settings.load('test').num_examples == 355


@pytest.mark.parametrize('share', [0., 1442, 2000., 1.5, 1e-6])
def test_what_cannot_be_held_out_is_refused(share, data_dir):
  assert refused(rf'config.data.validation .*1442 .*got {share:g}', data.hold_out,
                 data.load('digits', 'train', data_dir=data_dir), share)


def test_runs_decode_images_when_they_are_asked_for(data_dir):
  settings = sections.DataSettings('digits', data_dir)
  extra = data.extra.load('digits', data_dir=data_dir, like=settings.load('train'))
  for dataset in (settings.load('train'), settings.load('test'), extra):
    assert dataset.images.keeps


def test_an_image_is_decoded_once_and_kept(data_dir, monkeypatch):
  whole = data.load('digits', 'test', data_dir=data_dir, pad=2)
  decoded = []
  original = decode.decode
  monkeypatch.setattr(decode, 'decode',
                      lambda *args: decoded.append(args) or original(*args))
  some = data.load('digits', 'test', data_dir=data_dir, pad=2, at_once=False)
  assert not decoded and some.image_shape == (12, 12, 1)
  for indices, number in (([5, 3, 5], 2), (3, 2), (slice(3, 6), 3), ([], 3), ([300, 4], 4)):
    np.testing.assert_array_equal(some.images[indices], whole.images[indices])
    assert len(decoded) == number
  some.images[3:6][:] = 0
  np.testing.assert_array_equal(some.images[3:6], whole.images[3:6])
  np.testing.assert_array_equal(np.asarray(some.images), whole.images)
  assert len(decoded) == len(whole.images)


@pytest.mark.parametrize(('num_shards', 'hard', 'expected'), [
  (2, 4096, 1024), (1000, 4096, 2256), (100_000, 4096, 4096), (1000, -1, 2256)])
def test_every_file_of_a_split_may_stay_open(num_shards, hard, expected, data_dir, monkeypatch):
  """ImageNet's 1,024 files are more than the soft limit of most systems."""
  digits.prepare(data_dir)
  limits = [(1024, hard)]
  monkeypatch.setattr(tfds_files.resource, 'getrlimit', lambda kind: limits[-1])
  monkeypatch.setattr(tfds_files.resource, 'setrlimit', lambda kind, pair: limits.append(pair))
  monkeypatch.setattr(tfds.core.SplitInfo, 'num_shards', num_shards // 2)  # of two splits
  data.load('digits', 'test', data_dir=data_dir, at_once=False)
  assert limits[-1] == (expected, hard)


# A folder of images.


def test_a_folder_is_read_class_by_class(tmp_path):
  root = write_folder(tmp_path)
  (tmp_path / 'train' / 'dog' / 'more').mkdir()
  picture(9, 8, 6, channels=1).save(tmp_path / 'train' / 'dog' / 'more' / 'a.JPG', 'PNG')
  (tmp_path / 'train' / 'dog' / 'notes.txt').touch()
  (tmp_path / 'train' / 'dog' / '._0.png').touch()
  train = data.load('folder', 'train', data_dir=root)
  assert train.class_names == ('cat', 'dog') and train.labels.tolist() == [0, 0, 1, 1, 1]
  assert isinstance(train.images, np.ndarray) and train.image_shape == (8, 6, 3)
  for index, seed in enumerate([(False, 0, 0), (False, 0, 1), (False, 1, 0), (False, 1, 1)]):
    np.testing.assert_array_equal(train.images[index], np.asarray(picture(seed, 8, 6)))
  np.testing.assert_array_equal(train.images[4], np.asarray(picture(9, 8, 6, 1).convert('RGB')))
  assert data.load('folder', 'train', data_dir=root, channels=1).image_shape == (8, 6, 1)
  test = data.load('folder', 'test', data_dir=root)
  assert test.labels.tolist() == [0, 0, 1, 1]
  (tmp_path / 'test').rename(tmp_path / 'val')
  renamed = data.load('folder', 'test', data_dir=root)
  assert renamed.split == 'val'
  np.testing.assert_array_equal(renamed.images, test.images)


def test_hidden_folders_are_passed_over_and_other_files_are_said(tmp_path, capsys):
  root = write_folder(tmp_path)
  whole = data.load('folder', 'train', data_dir=root)
  assert not capsys.readouterr().err
  for name in ('train/.ipynb_checkpoints', 'train/cat/.ipynb_checkpoints', 'train/cat/.thumbs/a'):
    (tmp_path / name).mkdir(parents=True)
    picture(3, 8, 6).save(tmp_path / name / '0-checkpoint.png')
  (tmp_path / 'train' / 'dog' / 'again').symlink_to('..')
  for name in ('cat/a.heic', 'dog/b.HEIC', 'cat/notes', 'dog/.DS_Store', 'readme.txt'):
    (tmp_path / 'train' / name).touch()
  found = data.load('folder', 'train', data_dir=root)
  np.testing.assert_array_equal(found.images, whole.images)
  line, = capsys.readouterr().err.splitlines()
  assert '/train: ' in line
  assert line.endswith('left out: 2 .heic, 1 in no class, 1 without a suffix')


def test_one_accented_letter_is_two_characters(tmp_path):
  """As file systems of macOS have it; the class is the same, and in the same place."""
  root = write_folder(tmp_path)
  orders = []
  for name in ('\u00e9l\u00e8ve', 'e\u0301le\u0300ve'):
    (tmp_path / 'train' / 'dog').rename(tmp_path / 'train' / name)
    (tmp_path / 'test' / 'dog').rename(tmp_path / 'test' / '\u00e9l\u00e8ve')
    orders.append([data.load('folder', split, data_dir=root).class_names
                   for split in ('train', 'test')])
    (tmp_path / 'train' / name).rename(tmp_path / 'train' / 'dog')
    (tmp_path / 'test' / '\u00e9l\u00e8ve').rename(tmp_path / 'test' / 'dog')
  assert orders == 2 * [2 * [('cat', '\u00e9l\u00e8ve')]]


@pytest.mark.parametrize('names', [('caf\u00e9', 'cafe\u0301'), ('owl', 'owl ')])
def test_two_classes_that_look_alike_are_refused(names, tmp_path):
  root = write_folder(tmp_path)
  for name in names:
    shutil.copytree(tmp_path / 'train' / 'cat', tmp_path / 'train' / name)
  assert refused(f'train .*look alike, got .*{ascii(names[0])[1:-1]}'.replace('\\', '.'),
                 data.load, 'folder', 'train', data_dir=root)


def test_one_class_is_no_classification(tmp_path):
  root = write_folder(tmp_path)
  for split in ('train', 'test'):
    shutil.rmtree(tmp_path / split / 'dog')
  assert refused('two classes or more, got 1', data.load, 'folder', 'train', data_dir=root)


def test_a_folder_of_images_that_differ_in_size(tmp_path):
  root = write_folder(tmp_path, sizes=((20, 30), (31, 21)))
  test = data.load('folder', 'test', data_dir=root, image_size=12)
  assert test.image_shape == (12, 12, 3)
  np.testing.assert_array_equal(
    test.images[3], decode.centre_crop(picture((True, 1, 1), 31, 21), 12))
  assert refused('config.data.image_size .*got None', data.load, 'folder', 'test', data_dir=root)


def remove(root, files):
  for path in root.glob(files):
    path.unlink()


@pytest.mark.parametrize(('mistake', 'split', 'folder', 'message'), [
  (None, 'train', None, 'config.data.data_dir .*train/CLASS/IMAGE.* got None'),
  (None, 'train', 'none', 'config.data.data_dir .*got .*none'),
  (lambda root: (root / 'train').rename(root / 'training'), 'test', '.',
   'config.data.data_dir .*train/CLASS'),
  (None, 'dev', '.', "test, train, got 'dev'"),
  (None, 'train[:9]', '.', "test, train, got 'train.:9.'"),
  (lambda root: (root / 'test' / 'cat').rename(root / 'test' / 'cow'), 'test', '.',
   "test/cow: 'cow' .* 2 classes in .*train"),
  (lambda root: remove(root, 'train/cat/*'), 'train', '.', 'train/cat: no images .*.bmp'),
  (lambda root: remove(root, 'test/*/*'), 'test', '.', 'test: no images'),
  (lambda root: (root / 'test/dog/1.png').write_bytes(png(picture(0, 8, 6)).getvalue()[:90]),
   'test', '.', r'test/dog/1.png: .*cannot be decoded \('),
  (lambda root: (root / 'test/dog/1.png').write_bytes(b'no image'), 'test', '.',
   r'test/dog/1.png: .*cannot be decoded \(cannot identify'),
])
def test_mistakes_in_a_folder_are_one_line(tmp_path, mistake, split, folder, message):
  write_folder(tmp_path)
  if mistake:
    mistake(tmp_path)
  assert refused(message, data.load, 'folder', split,
                 data_dir=folder and str(tmp_path / folder))


@pytest.mark.parametrize('augment', ['none', 'resized_crop'])
def test_a_damaged_image_ends_the_batches_with_its_name(tmp_path, augment):
  root = write_folder(tmp_path, sizes=((30, 40), (40, 30)))
  file = tmp_path / 'train' / 'dog' / '1.png'
  file.write_bytes(file.read_bytes()[:300])
  dataset = data.load('folder', 'train', data_dir=root, image_size=14)
  for batches in (data.train_batches(dataset, batch_size=4, seed=0, num_steps=1, augment=augment),
                  data.eval_batches(dataset, batch_size=4)):
    assert refused('train/dog/1.png: .*cannot be decoded', list, batches)


# Images.


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16'])
@pytest.mark.parametrize('channels', [1, 3])
def test_images_of_every_mode_are_converted(mode, channels):
  image = picture(0, 5, 4).convert('L' if mode == 'I;16' else mode)
  if mode == 'I;16':
    image = Image.fromarray((np.asarray(image).astype(np.uint16) << 8) + 77)
  file = io.BytesIO()
  image.save(file, 'TIFF')
  found = decode.to_array(decode.decode(file.getvalue(), channels))
  assert found.shape == (5, 4, channels) and found.dtype == np.uint8
  opened = Image.open(file)
  if mode == 'I;16':
    opened = picture(0, 5, 4).convert('L')
  np.testing.assert_array_equal(found[..., 0], np.asarray(opened.convert('RGB'))[..., 0]
                                if channels == 3 else np.asarray(opened.convert('L')))


def test_pixels_of_32_bits_are_refused():
  file = io.BytesIO()
  Image.fromarray(np.ones((4, 4), np.float32)).save(file, 'TIFF')
  with pytest.raises(decode.ERRORS, match="mode 'F'"):
    decode.decode(file.getvalue(), 1)


def resized(values, height, width):
  """Bilinear resizing with antialiasing in float64: triangles as wide as the scale."""

  def weights(size, new):
    scale = size / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres) / max(scale, 1)
    kernel = np.maximum(1 - distance, 0)
    return kernel / kernel.sum(axis=1, keepdims=True)

  rows = np.tensordot(weights(values.shape[0], height), values.astype(np.float64), (1, 0))
  return np.tensordot(weights(values.shape[1], width), rows, (1, 1)).swapaxes(0, 1)


@pytest.mark.parametrize(('height', 'width', 'size'), [
  (300, 500, 224), (500, 333, 224), (256, 256, 224), (100, 37, 224), (60, 80, 32), (9, 200, 33)])
def test_evaluation_keeps_the_middle_of_the_resized_image(height, width, size):
  """Resize(256) and CenterCrop(224) of torchvision, for a PIL image."""
  image = picture(1, height, width)
  short = {224: 256, 32: 37, 33: 38}[size]
  if height < width:
    new_height, new_width = short, math.floor(short * width / height)
  else:
    new_height, new_width = math.floor(short * height / width), short
  top, left = round((new_height - size) / 2), round((new_width - size) / 2)
  found = decode.centre_crop(image, size)
  pil = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(found, pil[top:top + size, left:left + size])
  expected = resized(np.asarray(image), new_height, new_width)[top:top + size, left:left + size]
  assert np.abs(found - expected).max() <= 1.01


def torchvision_box(width, height, draws):
  """torchvision.transforms.RandomResizedCrop.get_params with the given uniform draws."""
  for u in draws:
    target = (0.08 + 0.92 * u[0]) * width * height
    ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[1])
    w, h = int(round(math.sqrt(target * ratio))), int(round(math.sqrt(target / ratio)))
    if 0 < w <= width and 0 < h <= height:
      return math.floor(u[2] * (width - w + 1)), math.floor(u[3] * (height - h + 1)), w, h
  w, h = width, height
  if width / height < 3 / 4:
    h = int(round(w / (3 / 4)))
  elif width / height > 4 / 3:
    w = int(round(h * (4 / 3)))
  return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize(('width', 'height'), [
  (500, 375), (100, 100), (40, 90), (400, 30), (2, 90)])
def test_random_boxes_follow_torchvisions_rule(width, height):
  rng = np.random.default_rng(0)
  boxes = []
  for _ in range(1000):
    draws = rng.random((decode.CROP_TRIES, 4))
    boxes.append(decode.crop_box(width, height, draws))
    assert boxes[-1] == torchvision_box(width, height, draws)
  left, top, w, h = np.transpose(boxes)
  assert min(left) >= 0 and min(top) >= 0
  assert max(left + w) <= width and max(top + h) <= height


def test_random_boxes_are_as_wide_spread_as_they_should_be():
  """On a large square, where rounding is nothing: areas of 0.08 to 1, ratios of 3/4 to 4/3."""
  rng = np.random.default_rng(0)
  boxes = np.array([decode.crop_box(4000, 4000, rng.random((10, 4))) for _ in range(4000)])
  left, top, width, height = boxes.T
  area, ratio = width * height / 4000**2, width / height
  assert 0.0799 < area.min() < 0.085 and 0.98 < area.max() < 1.0001
  assert 0.749 < ratio.min() < 0.755 and 1.325 < ratio.max() < 1.335
  # Areas below 3/4 always fit, so that there they are uniform, and log-ratios too.
  small = area < 0.74
  assert abs(np.mean(area[small]) - 0.41) < 0.01
  assert abs(np.mean(np.log(ratio[small]))) < 0.01
  assert abs(np.std(np.log(ratio[small])) - math.log(16 / 9) / math.sqrt(12)) < 0.01
  for start, room in ((left, 4000 - width), (top, 4000 - height)):
    assert abs(np.mean(start[small] / room[small]) - 0.5) < 0.02


@pytest.mark.parametrize(('channels', 'mirrored'), [(1, False), (3, True)])
def test_a_resized_crop_is_a_part_of_the_image(channels, mirrored):
  image = picture(2, 50, 70, channels)
  draws = np.random.default_rng(3).random((10, 4))
  left, top, width, height = decode.crop_box(70, 50, draws)
  part = decode.to_array(image)[top:top + height, left:left + width]
  found = decode.resized_crop(image, (20, 16), draws, mirrored)
  expected = resized(part, 20, 16)[:, ::-1] if mirrored else resized(part, 20, 16)
  assert found.shape == (20, 16, channels) and found.dtype == np.uint8
  assert np.abs(found - expected).max() <= 1.01
  other = decode.resized_crop(image, (20, 16), draws, not mirrored)
  np.testing.assert_array_equal(other, found[:, ::-1])


# Training batches.


@pytest.mark.parametrize(('num', 'batch_size'), [(50, 16), (48, 16), (5, 16)])
def test_every_example_counts_once_an_epoch(num, batch_size):
  dataset = make_dataset(num)
  steps = data.steps_per_epoch(dataset, batch_size)
  assert steps == int(np.ceil(num / batch_size))
  batches = list(data.train_batches(dataset, batch_size=batch_size, seed=3, num_steps=2 * steps))
  known = {(image / np.float32(255)).tobytes() for image in dataset.images}
  orders = []
  for epoch in map(joined, (batches[:steps], batches[steps:])):
    counted = epoch.mask == 1
    order = epoch.index[counted]
    assert set(epoch.mask) <= {0, 1}
    np.testing.assert_array_equal(np.sort(order), np.arange(num))
    np.testing.assert_array_equal(epoch.index[~counted], num)
    np.testing.assert_array_equal(
      epoch.images[counted], dataset.images[order].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(epoch.labels[counted], dataset.labels[order])
    # What fills the last batch up are images of the dataset, not black ones.
    assert all(image.tobytes() in known for image in epoch.images[~counted])
    orders.append(order)
  assert not np.array_equal(*orders)
  for batch in batches:
    assert [leaf.dtype for leaf in batch[:4]] == [np.float32, np.int32, np.int32, np.float32]
    assert batch.images.shape == (batch_size, *dataset.image_shape)


def test_a_resumed_run_sees_the_same_batches():
  dataset = make_dataset(50)
  make = lambda **kwargs: list(data.train_batches(
    dataset, batch_size=16, num_steps=12, augment='crop_flip', **kwargs))
  whole = make(seed=1)
  assert len(whole) == 12
  assert_same(whole[5:], make(seed=1, start_step=5))
  assert make(seed=1, start_step=12) == []
  assert not np.array_equal(whole[0].index, make(seed=2)[0].index)


@pytest.mark.parametrize('augment', ['none', 'crop_flip'])
def test_hosts_share_the_batches_of_one_host(augment):
  make = lambda **kwargs: list(data.train_batches(
    make_dataset(50), batch_size=16, num_steps=8, seed=1, augment=augment, **kwargs))
  hosts = [make(host=host, num_hosts=4) for host in range(4)]
  assert_same([joined(parts) for parts in zip(*hosts)], make())
  assert refused('config.train.batch_size .*3 hosts.*16', make, num_hosts=3)


@pytest.mark.parametrize(('augment', 'mirrored'), [('crop', {0}), ('crop_flip', {0, 1})])
def test_augmented_images_are_crops_of_the_padded_image(augment, mirrored):
  dataset = make_dataset(20, shape=(7, 6, 3))
  seen = set()
  for batch in data.train_batches(
      dataset, batch_size=20, num_steps=10, seed=0, augment=augment):
    for image, index in zip(batch.images, batch.index):
      original = dataset.images[index] / np.float32(255)
      padded = np.zeros((15, 14, 3), np.float32)
      padded[4:11, 4:10] = original
      crops = {padded[top:top + 7, left:left + 6][:, ::1 - 2 * flip].tobytes(): (top, left, flip)
               for top in range(9) for left in range(9) for flip in (0, 1)}
      seen.add(crops[image.tobytes()])
  for found, expected in zip(map(set, zip(*seen)), (set(range(9)), set(range(9)), mirrored)):
    assert found == expected


def test_augmentation_differs_between_epochs():
  dataset = make_dataset(16)
  first, second = data.train_batches(dataset, batch_size=16, num_steps=2, seed=0, augment='crop')
  by_index = [batch.images[np.argsort(batch.index)] for batch in (first, second)]
  assert np.mean(np.all(by_index[0] == by_index[1], axis=(1, 2, 3))) < 0.5


@pytest.mark.parametrize('augment', ['none', 'crop_flip', 'resized_crop'])
def test_batches_of_lazy_images_depend_on_seed_and_step_alone(imagenet_dir, augment, monkeypatch):
  """Not on where a run is resumed, on the hosts, on the threads or on when an image is read."""
  dataset = data.load('imagenet2012', 'train', data_dir=imagenet_dir, image_size=16)
  make = lambda **kwargs: list(data.train_batches(
    dataset, batch_size=8, num_steps=6, **{'seed': 1, 'augment': augment, **kwargs}))
  whole = make()
  assert sorted(np.concatenate([batch.index for batch in whole[:4]])) == [*range(30), 30, 30]
  for batch in whole:
    real = batch.index < 30
    np.testing.assert_array_equal(batch.labels[real], dataset.labels[batch.index[real]])
    assert batch.images.dtype == np.float32 and batch.images.shape == (8, 16, 16, 3)
  assert_same(whole[4:], make(start_step=4))
  hosts = [make(host=host, num_hosts=2) for host in range(2)]
  assert_same([joined(parts) for parts in zip(*hosts)], whole)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'cpu_count', lambda: 5)
    assert_same(make(), whole)
  assert not np.array_equal(make(seed=2)[0].images, whole[0].images)


def test_resized_crops_are_of_the_original_image(imagenet_dir):
  """At the first step of a run, drawn for the image's place in the batch."""
  dataset = data.load('imagenet2012', 'train', data_dir=imagenet_dir, image_size=16)
  batch = next(data.train_batches(
    dataset, batch_size=8, seed=5, num_steps=1, augment='resized_crop'))
  originals = tfds.data_source('imagenet2012', split='train', data_dir=imagenet_dir, download=False)
  found = []

  def crop(image, row):
    expected = Image.fromarray(originals[int(batch.index[row])]['image'])
    assert image.size == expected.size
    found.append(row)
    return decode.centre_crop(image, 16)

  dataset.images.map_originals(batch.index, crop)
  assert sorted(found) == list(range(8))
  # The stripes of an upright crop are not those of the middle of the image.
  assert all(np.abs(batch.images - dataset.images[batch.index] / 255).max(axis=(1, 2, 3)) > 0.05)
  mean = [np.asarray(originals[int(index)]['image']).mean() / 255 for index in batch.index]
  np.testing.assert_allclose(batch.images.mean((1, 2, 3)), mean, atol=0.1)


# Evaluation batches.


def test_eval_batches_are_in_order_and_padded_with_black():
  dataset = make_dataset(50)
  batches = list(data.eval_batches(dataset, batch_size=16))
  assert len(batches) == 4
  whole = joined(batches)
  np.testing.assert_array_equal(whole.index, [*range(50), *[50] * 14])
  np.testing.assert_array_equal(whole.mask, [1] * 50 + [0] * 14)
  np.testing.assert_array_equal(whole.images[:50], dataset.images / np.float32(255))
  np.testing.assert_array_equal(whole.images[50:], 0)
  np.testing.assert_array_equal(whole.labels[:50], dataset.labels)
  assert [leaf.dtype for leaf in whole[:4]] == [np.float32, np.int32, np.int32, np.float32]


@pytest.mark.parametrize(('options', 'expected'), [
  ({'stride': 20}, [0, 20, 40]),
  ({'stride': 20, 'num_images': 2}, [0, 20]),
  ({'stride': 7, 'start': 14, 'num_images': 3}, [14, 21, 28]),
  ({'start': 49, 'num_images': 5}, [49]),
  ({'start': 50}, []),
])
def test_eval_batches_of_some_images(options, expected):
  dataset = make_dataset(50)
  batches = list(data.eval_batches(dataset, batch_size=2, **options))
  found = [int(index) for batch in batches for index in batch.index[batch.mask == 1]]
  assert found == expected
