"""Data: every example once an epoch, the same batches however they are asked for."""

import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from robust_jax import data
from robust_jax.data import digits
from robust_jax.errors import UserError


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tfds'))


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


def assert_same(batches, others):
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others):
    for leaf, other_leaf in zip(batch, other):
      np.testing.assert_array_equal(leaf, other_leaf)


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


@pytest.mark.parametrize(('name', 'split', 'folder', 'words'), [
  ('nist', 'train', '.', ["config.data.name is 'nist'", 'cifar10, digits, mnist']),
  ('mnist', 'train', '.', ["'mnist' is not prepared", 'download_and_prepare']),
  ('mnist', 'train', 'missing', ['config.data.data_dir is', 'missing', 'is not prepared']),
  ('digits', 'train', 'file', ['config.data.data_dir is', 'file', 'Not a directory']),
])
def test_mistakes_are_told_in_one_line(tmp_path, name, split, folder, words):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError) as error:
    data.load(name, split, data_dir=str(tmp_path / folder))
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_a_missing_split_is_named(data_dir):
  with pytest.raises(UserError, match=r"split 'validation'.*'train', 'test'"):
    data.load('digits', 'validation', data_dir=data_dir)


def test_a_damaged_file_is_named(tmp_path):
  digits.prepare(str(tmp_path))
  file, = tmp_path.glob('digits/*/digits-test*')
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(UserError, match='config.data.data_dir is .* cannot be read'):
    data.load('digits', 'test', data_dir=str(tmp_path))


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


# Training batches.


@pytest.mark.parametrize(('num', 'batch_size'), [(50, 16), (48, 16), (5, 16)])
def test_every_example_counts_once_an_epoch(num, batch_size):
  dataset = make_dataset(num)
  steps = data.steps_per_epoch(dataset, batch_size)
  assert steps == int(np.ceil(num / batch_size))
  orders = []
  batches = list(data.train_batches(dataset, batch_size=batch_size, seed=3, num_steps=2 * steps))
  for epoch in (batches[:steps], batches[steps:]):
    index = np.concatenate([batch.index for batch in epoch])
    mask = np.concatenate([batch.mask for batch in epoch])
    images = np.concatenate([batch.images for batch in epoch])
    labels = np.concatenate([batch.labels for batch in epoch])
    counted = mask == 1
    assert counted.sum() == num
    assert set(mask) <= {0, 1}
    np.testing.assert_array_equal(np.sort(index[counted]), np.arange(num))
    np.testing.assert_array_equal(index[~counted], num)
    np.testing.assert_array_equal(
      images[counted], dataset.images[index[counted]].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(labels[counted], dataset.labels[index[counted]])
    # What fills the last batch up are images of the dataset, not black ones.
    known = {(image / np.float32(255)).tobytes() for image in dataset.images}
    assert all(image.tobytes() in known for image in images[~counted])
    orders.append(index[counted])
  assert not np.array_equal(*orders)
  for batch in batches:
    assert [leaf.dtype for leaf in batch] == [np.float32, np.int32, np.int32, np.float32]
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
  dataset = make_dataset(50)
  make = lambda **kwargs: list(data.train_batches(
    dataset, batch_size=16, num_steps=8, seed=1, augment=augment, **kwargs))
  hosts = [make(host=host, num_hosts=4) for host in range(4)]
  joined = [type(parts[0])(*map(np.concatenate, zip(*parts))) for parts in zip(*hosts)]
  assert_same(joined, make())
  with pytest.raises(UserError, match='16.*3 hosts'):
    make(num_hosts=3)


@pytest.mark.parametrize(('augment', 'mirrored'), [('crop', {0}), ('crop_flip', {0, 1})])
def test_augmented_images_are_crops_of_the_padded_image(augment, mirrored):
  dataset = make_dataset(20, shape=(7, 6, 2))
  seen = set()
  for batch in data.train_batches(
      dataset, batch_size=20, num_steps=10, seed=0, augment=augment):
    for image, index in zip(batch.images, batch.index):
      original = dataset.images[index] / np.float32(255)
      padded = np.zeros((15, 14, 2), np.float32)
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


# Evaluation batches.


def test_eval_batches_are_in_order_and_padded_with_black():
  dataset = make_dataset(50)
  batches = list(data.eval_batches(dataset, batch_size=16))
  assert len(batches) == 4
  whole = type(batches[0])(*map(np.concatenate, zip(*batches)))
  np.testing.assert_array_equal(whole.index, [*range(50), *[50] * 14])
  np.testing.assert_array_equal(whole.mask, [1] * 50 + [0] * 14)
  np.testing.assert_array_equal(whole.images[:50], dataset.images / np.float32(255))
  np.testing.assert_array_equal(whole.images[50:], 0)
  np.testing.assert_array_equal(whole.labels[:50], dataset.labels)
  assert [leaf.dtype for leaf in whole] == [np.float32, np.int32, np.int32, np.float32]


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
