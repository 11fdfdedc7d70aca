"""Extra examples in training batches at a share and a weight, and pseudo-labels for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from robust_jax import data, models, stages, training
from robust_jax import workdir as workdirs
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.devices import parallel
from robust_jax.errors import UserError
from robust_jax.stages import weights as stage_weights
from robust_jax.stages.label import NUM_NOISE, predict
from robust_jax.training import methods
from robust_jax.types import Batch
from robust_jax.workdir import checkpoint

KEY = jax.random.key(2)
RNG = np.random.default_rng(4)


def dataset(number, name='some', seed=0, labels=None):
  images = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 1)).astype(np.uint8)
  labels = np.arange(number) % 3 if labels is None else labels
  return data.Dataset(name, 'train', images, labels.astype(np.int32), ('a', 'b', 'c'), 0., 1.)


def mixture(first=50, second=23, share=0.25, weight=0.5):
  return data.extra.mix(dataset(first), dataset(second, seed=1), share=share, weight=weight)


def batches_of(mixed, **kwargs):
  return [Batch(*batch) for batch in data.train_batches(
      mixed, **{'batch_size': 16, 'seed': 3, 'num_steps': 15, **kwargs})]


def test_every_batch_has_its_share_spread_evenly():
  mixed = mixture()
  assert mixed.num_examples == 73 and data.steps_per_epoch(mixed, 16) == 5  # ceil(50 / 12)
  found = batches_of(mixed)
  for batch in found:
    extra = (batch.index >= 50) & (batch.index < 73)
    assert extra.sum() == 4 and len(set(batch.index[extra])) == 4
    np.testing.assert_array_equal(extra.reshape(4, 4).sum(-1), 1)
    np.testing.assert_array_equal(batch.mask[extra], 0.5)
    # What is at an index is the example of that index.
    both = np.concatenate([dataset(50).images, dataset(23, seed=1).images])
    labels = np.concatenate([dataset(50).labels, dataset(23).labels])
    real = batch.mask > 0
    np.testing.assert_allclose(batch.images[real] * 255, both[batch.index[real]], atol=1e-3)
    np.testing.assert_array_equal(batch.labels[real], labels[batch.index[real]])
    np.testing.assert_array_equal(batch.index[~real], 73)
  for epoch in range(3):
    ones = np.concatenate([b.index[b.mask == 1] for b in found[5 * epoch:5 * epoch + 5]])
    assert sorted(ones) == list(range(50))
  passes = [np.concatenate([b.index[b.mask == 0.5] for b in found[first:first + 5]])
            for first in (0, 5, 10)]
  for indices in passes:
    assert len(set(indices)) == 20
  assert not np.array_equal(passes[0], passes[1])


def test_batches_depend_on_the_step_alone_and_not_on_hosts():
  mixed = mixture()
  whole = batches_of(mixed, augment='crop_flip')
  for batch, again in zip(whole[7:], batches_of(mixed, augment='crop_flip', start_step=7)):
    jax.tree.map(np.testing.assert_array_equal, batch, again)
  halves = [batches_of(mixed, augment='crop_flip', host=host, num_hosts=2) for host in (0, 1)]
  for batch, *parts in zip(whole, *halves):
    jax.tree.map(lambda x, a, b: np.testing.assert_array_equal(x, np.concatenate([a, b])), batch,
                 *parts)


def test_the_original_images_of_both_datasets_are_cropped():
  batch = batches_of(mixture(), augment='resized_crop', num_steps=2)[0]
  assert batch.images.shape == (16, 4, 4, 1) and batch.images.std() > 0.05


def test_a_weight_of_zero_is_padding():
  for batch in batches_of(mixture(weight=0.)):
    assert (batch.index[batch.mask == 0] == 73).all() and (batch.mask == 0).sum() >= 4


@pytest.mark.parametrize('share, second', [(0.01, 23), (0.99, 23), (0.5, 7)])
def test_shares_that_make_no_batch_are_named(share, second):
  with pytest.raises(UserError, match=f'config.extra.share .*{share}'):
    data.steps_per_epoch(mixture(second=second, share=share), 16)


# The step.


@pytest.fixture(scope='module')
def linear():
  model = models.create('mlp', 3, hidden=())
  return models.network(model), models.init(KEY, model, (4, 4, 1))


def remember(key, network, params, batch_stats, batch, progress):
  """Standard training that stores twice an example's index plus what was stored before."""
  output = methods.standard(key, network, params, batch_stats, batch, progress)
  return output._replace(memory={'seen': batch.aux['seen'] + 2. * batch.index})


def step_on(linear, batch, method=methods.standard, num_devices=1, memory=None, accumulation=1):
  network, variables = linear
  optimizer = training.OPTIMIZERS['sgd'](0.1, momentum=0., weight_decay=0.)
  step = parallel.map_train_step(
      functools.partial(training.train_step, network=network, optimizer=optimizer, method=method,
                        steps_per_epoch=5, axis_name=parallel.AXIS, accumulation=accumulation),
      jax.devices()[:num_devices])
  state = training.create_state(variables, optimizer, memory=memory)
  return step(parallel.replicate(state, jax.devices()[:num_devices]), batch, KEY)


def test_the_gradient_is_that_of_the_weighted_mean(linear):
  batch = batches_of(mixture(weight=0.25))[4]  # It has padding, too.
  assert sorted(set(batch.mask.tolist())) == [0., 0.25, 1.]
  state, sums = step_on(linear, batch)
  w = np.asarray(linear[1]['params']['logits']['kernel'], np.float64)
  x = np.asarray(batch.images, np.float64).reshape(16, -1)
  z = x @ w + np.asarray(linear[1]['params']['logits']['bias'])
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  loss = -np.log(p[np.arange(16), batch.labels])
  mean = (batch.mask * loss).sum() / batch.mask.sum()
  gradient = x.T @ (batch.mask[:, None] * (p - np.eye(3)[batch.labels])) / batch.mask.sum()
  np.testing.assert_allclose(state.params['logits']['kernel'], w - 0.1 * gradient, rtol=1e-4,
                             atol=1e-6)
  # Metrics count examples: the loss is the mean that is minimised, accuracy that of all alike.
  count = (batch.mask > 0).sum()
  assert float(sums['count']) == count
  np.testing.assert_allclose(sums['loss'] / sums['count'], mean, rtol=1e-5)
  right = ((z.argmax(-1) == batch.labels) & (batch.mask > 0)).sum()
  np.testing.assert_allclose(sums['accuracy'], right)


def test_a_weight_of_one_is_one_larger_dataset(linear):
  batch = batches_of(mixture(weight=1.))[0]
  state, sums = step_on(linear, batch)
  plain, plain_sums = step_on(linear, batch._replace(mask=np.ones(16, np.float32)))
  jax.tree.map(np.testing.assert_array_equal, (state.params, sums), (plain.params, plain_sums))


@pytest.mark.parametrize('num_devices, accumulation', [(2, 1), (8, 1), (1, 4), (2, 2)])
def test_the_same_step_on_any_devices_and_in_parts(num_devices, accumulation, linear):
  batch = batches_of(mixture())[4]
  method = functools.partial(methods.gaussian, sigma=0.3)
  expected = step_on(linear, batch, method)
  found = step_on(linear, batch, method, num_devices, accumulation=accumulation)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
               (found[0].params, found[1]), (expected[0].params, expected[1]))


@pytest.mark.parametrize('num_devices', [1, 4])
def test_memory_has_a_place_for_every_extra_example(num_devices, linear):
  mixed = mixture()
  batch = batches_of(mixed)[4]
  state, _ = step_on(linear, batch, remember, num_devices,
                     memory={'seen': jnp.ones(mixed.num_examples)})
  expected = np.ones(73)
  expected[batch.index[batch.mask > 0]] += 2. * batch.index[batch.mask > 0]
  np.testing.assert_array_equal(state.memory['seen'], expected)


# Files.


@pytest.fixture
def like():
  return dataset(10, name='digits')


def save_npz(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


TWO = {'images': np.zeros((2, 4, 4, 1), np.uint8), 'labels': np.array([0, 1])}
IMAGES, LABELS = dataset(6, seed=5).images, np.array([0, 2, 1, 1, 0, 2])


@pytest.mark.parametrize('arrays', [
    {'images': IMAGES, 'labels': LABELS}, {'image': IMAGES[..., 0], 'label': LABELS.astype('u1')},
    {'x_train': IMAGES, 'y_train': LABELS, 'x_test': IMAGES[:1], 'y_test': LABELS[:1]},
    {'train_images': IMAGES, 'train_labels': LABELS, 'class_names': ['a', 'b', 'c']}])
def test_images_in_a_file(arrays, tmp_path, like):
  found = data.extra.load(save_npz(tmp_path / 'extra.npz', **arrays), like=like)
  np.testing.assert_array_equal(found.images, IMAGES)
  np.testing.assert_array_equal(found.labels, LABELS)
  assert found.labels.dtype == np.int32 and found.class_names == like.class_names


@pytest.mark.parametrize('floats_first', [True, False])
def test_floating_point_images_are_taken_as_they_are_among_others(floats_first):
  first, second = dataset(12), dataset(8, seed=1)
  floats = np.random.default_rng(9).random((12, 4, 4, 1), np.float32)
  expected = np.concatenate([floats, second.images / np.float32(255)])
  mixed = [dataclasses.replace(first, images=floats), second]
  if not floats_first:
    mixed, expected = mixed[::-1], np.roll(expected, 8, axis=0)
  mixed = data.extra.mix(*mixed, share=0.5, weight=1.)
  np.testing.assert_array_equal(data.take(mixed, range(20)).images, expected)
  for batch in batches_of(mixed, num_steps=2):
    real = batch.mask > 0
    np.testing.assert_array_equal(batch.images[real], expected[batch.index[real]])


@pytest.mark.parametrize('name, text', [
    ('l.npy', None), ('l.txt', '2\n0\n1\n2\n'),
    ('l.tsv', 'label\tsure\tidx\n0\t.9\t1\n2\t.8\t0\n2\t.7\t3\n1\t.6\t2\n')])
def test_labels_in_a_file_replace_those_of_the_images(name, text, tmp_path, like):
  path = save_npz(tmp_path / 'images.npz', images=IMAGES[:4])
  if text is None:
    np.save(tmp_path / name, np.array([2, 0, 1, 2], np.int64))
  else:
    (tmp_path / name).write_text(text)
  found = data.extra.load(path, labels=str(tmp_path / name), like=like)
  np.testing.assert_array_equal(found.labels, [2, 0, 1, 2])


@pytest.mark.parametrize('arrays, message', [
    ({'images': np.zeros((2, 5, 4, 1), np.uint8)}, r'images .*\(4, 4, 1\) .*got \(5, 4, 1\)'),
    ({'images': np.zeros((2, 4, 4, 1), np.int32)}, 'images .* got int32'),
    ({'images': np.full((2, 4, 4, 1), 1.5)}, r'images .*\[0, 1\], got .*1.5'),
    ({'images': np.full((2, 4, 4, 1), np.nan)}, r'images .*\[0, 1\], got .*nan'),
    ({'images': np.zeros(3)}, r'images .*got \(3,\)'),
    ({'labels': np.array([0, 1, 1])}, 'labels must be 2.* got 3'),
    ({'labels': np.array([0, 3])}, 'label of example 1 .*0..2, got 3'),
    ({'labels': np.array([-1, 0])}, 'label of example 0 .*got -1'),
    ({'labels': np.array([0.5, 0.])}, r'labels .*got float64 of shape \(2,\)'),
    ({'labels': np.array(['a', 'b'], object)}, 'cannot be read: Object arrays'),
    ({'labels': None}, 'labels, got images'),
])
def test_mistakes_in_a_file_are_one_line(arrays, message, tmp_path, like):
  arrays = {name: array for name, array in {**TWO, **arrays}.items() if array is not None}
  with pytest.raises(UserError, match=rf'extra\.npz.*{message}') as raised:
    data.extra.load(save_npz(tmp_path / 'extra.npz', **arrays), like=like)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name, content, message', [
    ('l.txt', '0\n', 'labels must be 2.* got 1'),
    ('l.txt', '0\none\n', 'cannot be read as labels: invalid literal'),
    ('l.csv', '0,1', '.npy, .txt or .tsv'),
    ('l.tsv', '0\t1\n', 'columns idx and label'),
    ('l.tsv', '', 'columns idx and label'),
    ('l.tsv', 'idx\tlabel\n0\t1\n0\t1\n', 'idx 0 to 1'),
    ('l.tsv', 'idx\tlabel\n0\t1\n1\n', '2 columns'),
    ('l.npy', 'no array', 'cannot be read as labels'),
    ('l.npy', [0], '^config.extra.labels is .*got 1'),
    ('l.npy', [0, 7], '^config.extra.labels is .*example 1 .*got 7'),
    ('gone.txt', None, '^config.extra.labels is .*label'),
])
def test_mistakes_in_labels_are_one_line(name, content, message, tmp_path, like):
  path = save_npz(tmp_path / 'images.npz', images=TWO['images'])
  if isinstance(content, str):
    (tmp_path / name).write_text(content)
  elif content:
    np.save(tmp_path / name, np.array(content))
  with pytest.raises(UserError, match=message) as raised:
    data.extra.load(path, labels=str(tmp_path / name), like=like)
  assert '\n' not in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize('name, message', [
    ('gone.npz', 'config.extra: .*gone.npz .*does not exist'),
    ('broken.npz', 'config.extra: .*broken.npz .*cut off'),
    ('nosuch', 'config.extra: .*nosuch'),
    ('digits', 'config.extra.name .*classes .*config.extra.labels'),
    ('named.npz', 'config.extra.name .*named.npz.*classes .*config.extra.labels'),
])
def test_a_dataset_that_cannot_be_used_is_one_line(name, message, tmp_path, like):
  (tmp_path / 'broken.npz').write_text('nothing')
  save_npz(tmp_path / 'named.npz', **TWO, class_names=['a', 'c', 'b'])
  with pytest.raises(UserError, match=message):
    data.extra.load(str(tmp_path / name) if name.endswith('npz') else name,
                    data_dir=str(tmp_path), like=like)


# Experiments.


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('tfds')


def make_run(data_dir, num_devices=1, method=None, **fields):
  config = base.get_config()
  config.sigma = 0.25
  config.data.update(data_dir=str(data_dir), train_split='train[:300]')
  config.model = component('model', 'linear')
  config.method = method or component('method', 'gaussian')
  config.train.update(batch_size=64, num_epochs=4., num_steps=8, checkpoint_every=4, log_every=4)
  with config.ignore_type():
    config.update_from_flattened_dict(
        {name.replace('__', '.'): value for name, value in fields.items()})
  return experiment.build(sections.resolve(config), jax.devices()[:num_devices])


def train(run, folder):
  folder.mkdir(exist_ok=True)
  workdirs.describe(run, folder, [])
  stages.run_stage('train', run, folder)
  return checkpoint.load(folder)[1]


def test_self_training_from_pseudo_labels(data_dir, tmp_path, capsys):
  teacher, labels = tmp_path / 'teacher', tmp_path / 'labels.tsv'
  variables = train(make_run(data_dir), teacher)
  label(make_run(data_dir), teacher, labels, split='train[300:]', num_noise=0)
  assert '1142 labels; ' in capsys.readouterr().out
  # They are the teacher's predictions.
  rest = data.load('digits', 'train[300:]', data_dir=str(data_dir))
  weights = variables['params']['logits']
  logits = rest.images.reshape(1142, -1) / 255. @ weights['kernel'] + weights['bias']
  found = data.extra.read_labels(labels)
  assert (found == logits.argmax(-1)).mean() > 0.999
  wrong = np.flatnonzero(found != rest.labels)
  assert len(wrong)
  fields = dict(extra__name='digits', extra__split='train[300:]', extra__labels=str(labels),
                extra__share=0.5, extra__weight=0.5)
  with pytest.raises(UserError, match=r'labels of digits train\[:1142\] .*labels of '
                                      r'digits train\[300:\]'):
    len(make_run(data_dir, **{**fields, 'extra__split': 'train[:1142]'}).train_data.labels)
  run = make_run(data_dir, **fields)
  assert run.train_data.num_examples == 1442 and run.steps_per_epoch == 10
  assert run.train_data.labels[300 + wrong[0]] == found[wrong[0]] != rest.labels[wrong[0]]
  whole = train(run, tmp_path / 'whole')
  # Interrupted after half of the steps, on two devices, it comes to the same.
  halves = tmp_path / 'halves'
  train(make_run(data_dir, 2, **fields, train__num_steps=4), halves)
  record = workdirs.stages(halves)
  record['train']['status'] = 'running'
  workdirs.write_json(halves / 'stages.json', record)
  resumed = train(make_run(data_dir, 2, **fields), halves)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), resumed, whole)
  undisturbed = train(make_run(data_dir, 2, **fields), tmp_path / 'undisturbed')
  jax.tree.map(np.testing.assert_array_equal, resumed, undisturbed)


def test_other_pseudo_labels_on_resume_are_refused(data_dir, tmp_path):
  labels = tmp_path / 'labels.npy'
  truth = np.asarray(data.load('digits', 'test', data_dir=str(data_dir)).labels)
  np.save(labels, truth)
  fields = dict(extra__name='digits', extra__split='test', extra__labels=str(labels),
                extra__share=0.5)
  stages.STAGES['train'](make_run(data_dir, **fields, train__num_steps=4), tmp_path)
  np.save(labels, (truth + 1) % 10)
  with pytest.raises(UserError, match="a training on 355 examples of 'digits' .*--redo=train"):
    stages.STAGES['train'](make_run(data_dir, **fields), tmp_path)
  np.save(labels, truth)
  assert stages.STAGES['train'](make_run(data_dir, **fields), tmp_path) == {'last_step': 8}


def label(run, folder, output, **settings):
  """The file that the label stage writes."""
  settings = run.label._replace(output=str(output), **settings)
  stages.run_stage('label', dataclasses.replace(run, label=settings), folder)
  return output.read_text()


def test_pseudo_labels_by_the_vote_of_noisy_copies(data_dir, tmp_path):
  run = make_run(data_dir, 2)
  train(run, tmp_path / 'teacher')
  of = lambda name, **settings: label(run, tmp_path / 'teacher', tmp_path / name, split='test',
                                      **settings)
  assert of('a.tsv', num_noise=9) == of('b.tsv', num_noise=9)
  votes = data.extra.read_labels(tmp_path / 'a.tsv')
  of('c.tsv', num_noise=0)
  plain = data.extra.read_labels(tmp_path / 'c.tsv')
  assert len(plain) == 355 and 0 < (votes != plain).mean() < 0.5
  # Without a number, a teacher that was trained with noise votes.
  assert of('d.tsv') == of('e.tsv', num_noise=NUM_NOISE)
  # On one device the labels are the same.
  run = make_run(data_dir)
  assert of('f.tsv', num_noise=9) == (tmp_path / 'a.tsv').read_text()


@pytest.mark.parametrize('fields', [
    {'method': component('method', 'standard')},  # Certified with noise, but trained without.
    {'method': component('method', 'gaussian', sigma=0.25), 'sigma': 0.},  # The other way round.
])
def test_no_vote_unless_trained_and_certified_with_noise(fields, data_dir, tmp_path):
  run = make_run(data_dir, **fields)
  train(run, tmp_path / 'teacher')
  silent, zero = (label(run, tmp_path / 'teacher', tmp_path / f'{name}.tsv', split='test',
                        num_noise=number) for name, number in (('a', None), ('b', 0)))
  assert silent == zero


def test_labels_by_a_function_of_ones_own():
  some = dataset(10)
  found = predict(lambda x: x.reshape(len(x), -1)[:, :3], some, batch_size=4)
  np.testing.assert_array_equal(found, some.images.reshape(10, -1)[:, :3].argmax(-1))


def test_an_image_whose_logits_are_nan_is_named(data_dir, tmp_path, monkeypatch):
  first = lambda x: x.reshape(len(x), -1)[:, 2:12]
  logits_fn = lambda x: jnp.where(first(x)[:, :1] > 0.5, jnp.nan, first(x))
  monkeypatch.setattr(stage_weights, 'load', lambda run, folder: stage_weights.Classifier(
      jax.tree_util.Partial(logits_fn), {}, 0.))
  run = make_run(data_dir)
  bad = np.flatnonzero(first(run.test_data.images[:])[:, 0] > 127)[0]
  with pytest.raises(UserError, match=f'image {bad} of .*NaN'):
    label(run, tmp_path, tmp_path / 'labels.tsv', split='test', num_noise=0)
  assert not (tmp_path / 'labels.tsv').exists()


@pytest.mark.parametrize('fields, message', [
    ({}, 'config.label.output .*None'),
    ({'label__output': 'labels.csv'}, 'config.label.output .*labels.csv'),
    ({'label__output': 'a.tsv', 'label__num_noise': 3, 'sigma': 0.}, 'config.label.num_noise .* 3'),
    ({'label__output': 'a.tsv', 'label__num_noise': -1}, 'config.label.num_noise .* -1'),
])
def test_mistakes_in_labelling_are_found_before_training(fields, message, data_dir, tmp_path):
  with pytest.raises(UserError, match=message):
    stages.check(make_run(data_dir, **fields), tmp_path, {'train', 'label'})


def test_the_images_must_be_of_the_networks_shape(data_dir, tmp_path):
  run = make_run(data_dir)
  train(run, tmp_path / 'teacher')
  padded = make_run(data_dir, data__pad=2)
  run = dataclasses.replace(run, data=padded.data)
  with pytest.raises(UserError, match=r'config.label.name: .*\(8, 8, 1\).*\(12, 12, 1\)'):
    label(run, tmp_path / 'teacher', tmp_path / 'labels.tsv')


def test_a_share_needs_a_name_and_is_below_one(data_dir):
  for fields in ({'extra__share': 0.5}, {'extra__name': 'digits', 'extra__share': 1.}):
    with pytest.raises(UserError, match=f'config.extra.share .*{fields["extra__share"]}'):
      make_run(data_dir, **fields)
  assert make_run(data_dir, extra__name='digits').train_data.num_examples == 300


def test_extra_images_are_padded_like_the_others(data_dir):
  run = make_run(data_dir, data__pad=2, extra__name='digits', extra__split='test',
                 extra__share=0.5)
  assert run.train_data.image_shape == (12, 12, 1) and run.train_data.num_examples == 655
  assert not run.train_data.images[640][:2].any() and run.train_data.images[640].any()


@pytest.mark.parametrize('how', [{}, {'in_memory_bytes': 0}, {'at_once': False}])
def test_images_may_be_decoded_on_the_way(how, data_dir):
  parts = [data.load('digits', split, data_dir=str(data_dir), **how)
           for split in ('test[:20]', 'test[20:50]')]
  mixed = data.extra.mix(*parts, share=0.5, weight=1.)
  whole = data.load('digits', 'test[:50]', data_dir=str(data_dir))
  assert mixed.num_examples == 50 and mixed.image_shape == (8, 8, 1)
  order = np.random.default_rng(0).permutation(50)
  np.testing.assert_array_equal(mixed.images[order], whole.images[order])
  np.testing.assert_array_equal(mixed.labels[order], whole.labels[order])
  np.testing.assert_array_equal(mixed.images[18:22], whole.images[18:22])
  assert mixed.labels[30] == whole.labels[30]
  for batch in batches_of(mixed, num_steps=2):
    np.testing.assert_array_equal(batch.labels, whole.labels[batch.index])
