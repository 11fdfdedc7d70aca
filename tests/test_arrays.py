"""Images and labels as arrays: taken as their dtype says, or refused by name."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from robust_jax import data
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.data import arrays, tangents
from robust_jax.errors import UserError
from robust_jax.stages import weights as stage_weights
from robust_jax.training import evaluate

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
FLOATS = RNG.random((20, 6, 5, 3), np.float32)
LABELS = np.arange(20) % 4
# What is wrong, as (images, labels), and the message.
WRONG = {
    'floats of 0..255': (BYTES.astype(np.float32), LABELS, r'images .*\[0, 1\], got .*25\d.*uint8'),
    'a little outside': (FLOATS * 1.01 - 0.005, LABELS, r'images .*\[0, 1\], got'),
    'negative': (FLOATS - 0.5, LABELS, r'images .*\[0, 1\], got .* -0\.'),
    'NaN': (np.where(FLOATS > 0.99, np.nan, FLOATS), LABELS, r'images .*\[0, 1\], got .*nan'),
    'int32': (BYTES.astype(np.int32), LABELS, 'images .*uint8 .*got int32'),
    'bool': (BYTES > 127, LABELS, 'images .*uint8 .*got bool'),
    'channels first': (np.moveaxis(BYTES, -1, 1), LABELS, r'images .*\(\d+, 3, 6, 5\).*come last'),
    'two channels': (BYTES[..., :2], LABELS, r'images .*1 or 3 channels.*5, 2\)'),
    'flat': (BYTES.reshape(20, -1), LABELS, r'images .*, 90\)'),
    'one-hot': (BYTES, np.eye(4, dtype=int)[LABELS], r'labels .*, 4\).*one-hot'),
    'a column of labels': (BYTES, LABELS[:, None], r'labels .*, 1\).*labels\[:, 0\]'),
    'labels of floats': (BYTES, LABELS.astype(float), 'labels .*got float64'),
    'a negative label': (BYTES, LABELS - 1, r'labels.* example \d+ .*in 0\.\..*got -1'),
    'fewer labels': (BYTES, LABELS[:7], 'labels .*must be 20.*got 7'),
}


def refused(message, function, *args, **kwargs):
  with pytest.raises(UserError, match=message) as raised:
    function(*args, **kwargs)
  assert '\n' not in str(raised.value)


def first_batch(dataset, **kwargs):
  return next(data.train_batches(dataset, batch_size=20, seed=0, num_steps=1, **kwargs))


def as_read(dataset):
  """The images of a dataset as training and as evaluation see them, in its order."""
  batch = first_batch(dataset)
  evaluated, = data.eval_batches(dataset, batch_size=20)
  np.testing.assert_array_equal(batch.images[np.argsort(batch.index)], evaluated.images)
  assert evaluated.images.dtype == np.float32
  return evaluated.images


@pytest.mark.parametrize('made', [
    lambda images: data.from_arrays(images, LABELS),
    lambda images: data.Dataset('made', 'train', images, LABELS, tuple('abcd'), 0., 1.)])
def test_the_dtype_of_images_decides_what_they_mean(made):
  np.testing.assert_array_equal(as_read(made(BYTES)), BYTES / np.float32(255))
  np.testing.assert_array_equal(as_read(made(FLOATS)), FLOATS)
  np.testing.assert_array_equal(as_read(made(FLOATS.astype(np.float64))), FLOATS)
  # Dark bytes stay dark, and floats that are whole numbers are not taken for bytes.
  np.testing.assert_array_equal(as_read(made(BYTES // 255)), (BYTES // 255) / np.float32(255))
  np.testing.assert_array_equal(as_read(made((BYTES // 128).astype(np.float32))), BYTES // 128)


@pytest.mark.parametrize('images', [FLOATS, BYTES])
def test_augmented_images_are_of_the_same_scale(images):
  dataset = data.from_arrays(images, LABELS)
  found = {tuple(pixel) for pixel in
           first_batch(dataset, augment='crop_flip').images.reshape(-1, 3)}
  assert found <= {(0, 0, 0), *map(tuple, arrays.scaled(images).reshape(-1, 3))}
  if images.dtype == np.uint8:
    assert 0.9 < first_batch(dataset, augment='resized_crop').images.max() <= 1
  else:
    refused("config.data.augment .*'resized_crop'.*float32", first_batch, dataset,
            augment='resized_crop')


def test_grey_images_need_no_channel_axis():
  dataset = data.from_arrays(BYTES[..., 0], LABELS, class_names=['a', 'b', 'c', 'd', 'e'], std=0.5)
  assert dataset.image_shape == (6, 5, 1) and dataset.num_classes == 5 and dataset.std == 0.5
  np.testing.assert_array_equal(dataset.images[..., 0], BYTES[..., 0])
  assert data.from_arrays(BYTES, LABELS).class_names == ('0', '1', '2', '3')


@pytest.mark.parametrize('case', WRONG)
def test_arrays_that_are_something_else_are_refused(case):
  images, labels, message = WRONG[case]
  refused(message, data.from_arrays, images, labels)
  # However they have come into a dataset, and whoever asks for them.
  dataset = data.Dataset('made', 'train', images, labels, tuple('abcd'), 0., 1.)
  refused(message, first_batch, dataset)
  refused(message, data.take, dataset, range(20))
  refused(message, list, data.eval_batches(dataset, batch_size=20))


@pytest.mark.parametrize('more, message', [
    (dict(class_names=('a', 'b', 'c')), r'labels: .*example 3 .*0\.\.2, got 3'),
    (dict(std=0.), 'std .*positive, got 0'), (dict(mean=(0.1, 0.2)), 'mean .*3, got')])
def test_what_does_not_fit_the_arrays_is_refused(more, message):
  refused(message, data.from_arrays, BYTES, LABELS, **more)


def test_nothing_and_one_class_are_no_dataset():
  refused(r'images .*\(0, 6, 5, 3\)', data.from_arrays, BYTES[:0], LABELS[:0])
  refused('two classes.*got 1', data.from_arrays, BYTES, 0 * LABELS)


def test_the_label_of_a_later_example_is_named_by_its_index():
  labels = np.where(np.arange(20) == 17, 9, LABELS)
  dataset = data.Dataset('made', 'train', BYTES, labels, tuple('abcd'), 0., 1.)
  assert len(data.take(dataset, [3, 16]).labels) == 2
  refused(r'example 17 .*0\.\.3, got 9', data.take, dataset, [3, 17])


def test_tangents_are_those_of_the_scaled_images():
  scaled = (BYTES / 255).astype(np.float32)
  same = [tangents.nearest_neighbors(images, LABELS, 2) for images in (BYTES, scaled)]
  np.testing.assert_array_equal(*same)
  found = [data.load_tangents(data.from_arrays(images, LABELS), 4, num_directions=1,
                              num_neighbors=2)[np.arange(3)] for images in (BYTES, scaled)]
  np.testing.assert_array_equal(*found)


# Files.

FILE = {'train_images': BYTES, 'train_labels': LABELS, 'test_images': BYTES[:8],
        'test_labels': LABELS[:8]}


def save(path, **values):
  np.savez(path, **{name: value for name, value in values.items() if value is not None})
  return str(path)


@pytest.mark.parametrize('names', [
    ('train_images', 'train_labels', 'test_images', 'test_labels'),
    ('x_train', 'y_train', 'x_test', 'y_test'),
    ('train_images', 'train_labels', 'validation_images', 'validation_labels')])
def test_a_file_of_arrays_is_a_dataset(names, tmp_path):
  path = save(tmp_path / 'mine.npz', **dict(zip(names, FILE.values())))
  train, test = (data.load(path, split) for split in ('train', 'test'))
  np.testing.assert_array_equal(train.images, BYTES)
  np.testing.assert_array_equal(test.images, BYTES[:8])
  np.testing.assert_array_equal(test.labels, LABELS[:8])
  assert (train.name, train.num_classes, train.mean, train.std) == ('mine.npz', 4, 0., 1.)


def test_what_a_file_says_of_its_images(tmp_path):
  names = ['eel', 'rat', 'owl', 'ape', 'yak']
  path = save(tmp_path / 'mine.npz', **{**FILE, 'train_images': FLOATS}, class_names=names,
              mean=[0.5, 0.4, 0.3], std=[0.2])
  train = data.load(path, 'train', pad=2)
  assert train.class_names == tuple(names)
  assert train.mean == (0.5, 0.4, 0.3) and train.std == (0.2,)
  np.testing.assert_array_equal(train.images[:, 2:-2, 2:-2], FLOATS)
  assert train.image_shape == (10, 9, 3) and not train.images[:, :2].any()
  assert data.load(path, 'train', mean=0.1, channels=3).mean == 0.1
  refused("config.data.channels .*mine.npz.*6x5x3, got 1", data.load, path, 'train', channels=1)
  refused("config.data.image_size .*6x5x3, got 32", data.load, path, 'train', image_size=32)


def test_every_split_of_a_file_has_the_same_classes(tmp_path):
  path = save(tmp_path / 'mine.npz', **{**FILE, 'test_labels': 0 * LABELS[:8]})
  assert data.load(path, 'test').num_classes == 4


@pytest.mark.parametrize('split, rows', [
    ('train[:75%]', range(15)), ('train[15:]', range(15, 20)),
    ('train[:5]+train[-2:]', [0, 1, 2, 3, 4, 18, 19])])
def test_parts_of_a_split_of_a_file(split, rows, tmp_path):
  found = data.load(save(tmp_path / 'one.npz', images=BYTES, labels=LABELS), split)
  np.testing.assert_array_equal(found.images, BYTES[rows])
  np.testing.assert_array_equal(found.labels, LABELS[rows])
  assert found.split == split


@pytest.mark.parametrize('split, change, message', [
    ('test', {'test_images': None, 'test_labels': None}, "splits train, not 'test'.*test_split"),
    ('train', {'train_labels': None}, 'must have an array train_labels, got train_images, test_'),
    ('train', {'train_labels': LABELS[:3]}, 'train_labels must be 20.*got 3'),
    ('test', {'test_images': BYTES[:0], 'test_labels': LABELS[:0]}, r'test_images .*\(0, 6, 5, 3'),
    ('train', {'train_images': np.array([None, 'a'])}, 'cannot be read: Object arrays'),
    ('train', {'class_names': np.array(['a', 'b', 'c'])}, r'labels: .*0\.\.2, got 3'),
    ('train', {'class_names': np.arange(4)}, 'class_names .*got int64'),
    ('train', {'std': [0.]}, 'std .*positive'),
    ('train[50%:20%]', {}, r'train\[50%:20%\].* no examples'),
    ('train[:99]', {}, r"'train\[:99\]': .*20 examples"),
    ('train[', {}, r"'train\['"),
    *((split, {f'{split}_images': images[:20 if split == 'train' else 8],
               f'{split}_labels': labels[:20 if split == 'train' else 8]}, message)
      for split, case in (('train', 'int32'), ('test', 'floats of 0..255'), ('test', 'one-hot'),
                          ('train', 'channels first'), ('train', 'NaN'))
      for images, labels, message in [WRONG[case]])])
def test_mistakes_in_a_file_of_arrays_are_one_line(split, change, message, tmp_path):
  path = save(tmp_path / 'mine.npz', **{**FILE, **change})
  refused(f'(mine.npz.*|config.data.){message}', data.load, path, split)


@pytest.mark.parametrize('content, message', [
    (None, 'does not exist'), (b'no arrays', 'or cut off'),
    (lambda whole: whole[:-30], 'or cut off'),
    (lambda whole: whole[:200] + bytes([255 - whole[200]]) + whole[201:], 'cannot be read')])
def test_a_damaged_file_of_arrays_is_named(content, message, tmp_path):
  path = tmp_path / 'gone.npz'
  if content:
    whole = Path(save(tmp_path / 'whole.npz', **FILE)).read_bytes()
    path.write_bytes(content(whole) if callable(content) else content)
  refused(f'gone.npz.*{message}', data.load, str(path), 'train')


def test_a_file_without_images_is_refused(tmp_path):
  refused('must have arrays train_images.*got pictures', data.load,
          save(tmp_path / 'a.npz', pictures=BYTES), 'train')


# Runs.


@pytest.fixture(scope='module')
def digits_file(tmp_path_factory):
  """Digits as floats between the grey levels, in a file."""
  folder = tmp_path_factory.mktemp('file')
  values = {}
  for split in ('train', 'test'):
    digits = data.load('digits', split, data_dir=str(folder))
    values |= {f'{split}_images': digits.images / np.float32(256),
               f'{split}_labels': digits.labels}
  return folder, save(folder / 'digits.npz', **values)


def make_run(name, **fields):
  config = base.get_config()
  config.sigma = 0.25
  config.model, config.method = component('model', 'linear'), component('method', 'gaussian')
  config.data.update(name=name, **fields)
  config.certify.noise = 'integer'
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def test_a_run_on_a_file(tmp_path, monkeypatch):
  grey = RNG.integers(0, 256, (40, 8, 8), np.uint8)
  levels = save(tmp_path / 'levels.npz', images=arrays.scaled(grey), labels=np.arange(40) % 4)
  run = make_run(levels, train_split='train[:30]', test_split='train[30:]')
  assert run.train_data.num_examples == 30 and run.test_data.num_classes == 4
  assert levels in run.summary() and run.certify
  assert data.load(run.data.name, 'train[30:]', **run.data.reading).num_examples == 10
  # The file may be another one by the time that it is attacked.
  trained = lambda names: lambda *_, **__: (
      run.network, {'params': {}, 'batch_stats': {}},
      {'class_names': names, 'step': 3, 'sha256': ''})
  monkeypatch.setattr(stage_weights, 'finished_step', lambda workdir: 3)
  monkeypatch.setattr(stage_weights.checkpoint, 'load', trained(['0', '1', '2', '3']))
  assert stage_weights.load(run, tmp_path).origin['checkpoint_step'] == 3
  monkeypatch.setattr(stage_weights.checkpoint, 'load', trained(['0', '1', '3', '2']))
  refused('classes 0, 1, 3, 2, .*levels.npz.* has 0, 1, 2, 3 now', stage_weights.load, run,
          tmp_path)
  between = save(tmp_path / 'between.npz', images=grey / np.float32(256), labels=np.arange(40) % 4)
  # Said before anything is trained.
  refused(r"config.certify.noise .*'gaussian'.*between.npz.*multiples of 1/255",
          make_run, between, test_split='train')


def test_accuracy_is_that_of_batches_in_the_box_alone():
  batch = data.take(data.from_arrays(BYTES, LABELS), range(20))
  logits_fn = lambda images: images.reshape(20, -1)[:, :4]
  expected = np.mean(batch.images.reshape(20, -1)[:, :4].argmax(-1) == LABELS)
  assert evaluate.accuracy(logits_fn, [batch]) == pytest.approx(expected)
  for wrong, message in ((batch._replace(images=BYTES), 'images .*uint8'),
                         (batch._replace(images=batch.images * 255), r'images .*\[0, 1\]'),
                         (batch._replace(labels=batch.labels + 1), r'labels .*\[0, 3\], got 4'),
                         (batch._replace(labels=batch.labels[:1]), 'labels .*20')):
    with pytest.raises(ValueError, match=message):
      evaluate.accuracy(logits_fn, [wrong])


def test_a_class_that_no_image_has_is_said(tmp_path, capsys):
  # Labels that begin at 1, as those of Matlab do.
  images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.array([1, 2, 3, 1, 2, 3])
  np.savez(tmp_path / 'mine.npz', train_images=images, train_labels=labels)
  dataset = data.load(str(tmp_path / 'mine.npz'), 'train')
  assert dataset.num_classes == 4
  message = capsys.readouterr().err
  assert 'mine.npz' in message and 'label 0' in message and message.count('\n') == 1


def test_the_length_of_a_dataset_is_that_of_its_examples():
  dataset = data.from_arrays(BYTES, LABELS)
  assert len(dataset) == dataset.num_examples == len(BYTES)
