"""CAT-RS against NumPy in float64, and the targets that it learns from."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_training

from launch import flags
from robust_jax import data, keys, models, smoothing, stages, workdir
from robust_jax.config import experiment, sections
from robust_jax.errors import UserError
from robust_jax.stages.label import predict, votes
from robust_jax.training import methods
from robust_jax.training.methods.catrs import worst_noise
from robust_jax.types import Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
CATRS = functools.partial(methods.catrs, epsilon=0.6, sigma=0.3, num_noise=3, num_steps=2)
run = functools.partial(tiny_training.run_method, progress=PROGRESS, key=KEY)


@pytest.fixture(scope='module')
def batch():
  batch = tiny_training.random_batch(16)
  targets = np.random.default_rng(2).dirichlet([0.5] * 3, 16).astype(np.float32)
  targets[:3] = np.eye(3)
  return batch._replace(aux={'targets': jnp.asarray(targets)})


@pytest.fixture(scope='module')
def linear():
  """A linear network, of logits of some size: (network, params)."""
  model = models.create('mlp', 3, hidden=())
  params = models.init(KEY, model, (4, 4, 1))['params']
  return models.network(model), jax.tree.map(lambda w: 3 * w, params)


def parts(linear, batch):
  """(log softmax of rows, its weights, rows of images, targets, noise [3, 16, 16]) in float64."""
  (layer,) = linear[1].values()
  kernel, bias = (np.asarray(layer[name], np.float64) for name in ('kernel', 'bias'))
  noise = smoothing.sample_noise(keys.fold_in(keys.fold_in(KEY, batch.index), 1), batch.images,
                                 sigma=0.3, num_noise=3)
  rows = np.asarray(batch.images, np.float64).reshape(16, -1)
  return (lambda x: scipy.special.log_softmax(x @ kernel + bias, axis=-1), kernel, rows,
          np.asarray(batch.aux['targets'], np.float64),
          np.asarray(noise, np.float64).reshape(3, 16, -1))


def moved_noise(log_probs, kernel, rows, targets, noise, num_steps=2, epsilon=0.6):
  found = noise
  for _ in range(num_steps):
    gradient = (np.exp(log_probs(rows + found)) - targets) @ kernel.T
    found = found + 2 * epsilon / num_steps * gradient / np.linalg.norm(gradient, axis=-1,
                                                                       keepdims=True)
    away = found - noise
    length = np.linalg.norm(away, axis=-1, keepdims=True)
    found = noise + away * np.minimum(1, epsilon / np.maximum(length, 1e-30))
    mean, size = found.mean(-1, keepdims=True), np.sqrt((found**2).mean(-1, keepdims=True))
    found = noise.mean(-1, keepdims=True) + (found - mean) / size * np.sqrt(
        (noise**2).mean(-1, keepdims=True))
  return found


def divergence_of(targets, log_probs):
  return (scipy.special.xlogy(targets, targets) - targets * log_probs).sum(-1)


def test_it_has_its_formula(linear, batch):
  # Half of the images have the label that they are given.
  log_probs, kernel, rows, targets, noise = parts(linear, batch)
  labels = np.where(np.arange(16) < 10, log_probs(rows).argmax(-1), np.asarray(batch.labels))
  batch = batch._replace(labels=jnp.asarray(labels, jnp.int32))
  output, _ = run(functools.partial(CATRS, weight=2.), *linear, batch)
  each = log_probs(rows + noise)
  sure = (each.argmax(-1) == labels).mean(0)
  uniform = np.array([jax.random.uniform(key, (3,))
                      for key in keys.fold_in(keys.fold_in(KEY, batch.index), 3)])
  kept = np.maximum((uniform < sure[:, None]).sum(-1), 1)
  assert {1, 3} <= {*kept} and 0 < (kept == 3).sum() < 16
  losses = np.sort(-each[:, np.arange(16), labels], axis=0)
  low = [losses[:k, i].sum() / 3 for i, k in enumerate(kept)]
  moved = moved_noise(log_probs, kernel, rows, targets, noise)
  high = divergence_of(targets, log_probs(rows + moved)).max(0)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  close(output.metrics['accuracy'], sure)
  close(output.metrics['kept'], kept / 3)
  close(output.metrics['divergence'], np.where(kept == 3, high, 0))
  close(output.loss, low + 2 * np.where(kept == 3, high, 0))


@pytest.mark.parametrize('right', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sure_images_take_part_in_all_and_wrong_ones_in_the_least(right, linear, batch):
  network, params = linear
  sure = network, jax.tree.map(lambda w: 1e2 * w, params)
  log_probs, _, rows, _, noise = parts(sure, batch)
  each = log_probs(rows + noise)
  always = np.ptp(each.argmax(-1), axis=0) == 0
  labels = (each[0].argmax(-1) + (not right)) % 3
  output, gradient = run(functools.partial(CATRS, weight=0.), *sure,
                         batch._replace(labels=jnp.asarray(labels, jnp.int32)))
  losses = -each[:, np.arange(16), labels]
  expected = losses.mean(0) if right else losses.min(0) / 3
  assert always.sum() > 4
  np.testing.assert_allclose(np.asarray(output.loss)[always], expected[always], rtol=1e-3,
                             atol=1e-3)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((output, gradient)))


def test_the_worst_noise_is_as_large_and_leads_away(linear, batch):
  network, params = linear
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  log_probs, kernel, rows, targets, noise = parts(linear, batch)
  find = jax.jit(functools.partial(worst_noise, KEY, logits_fn, batch.images,
                                   batch.aux['targets'], jnp.asarray(noise.reshape(3, 16, 4, 4, 1),
                                                                     jnp.float32), num_steps=4))
  moved, undefined = find(epsilon=0.6)
  moved = np.asarray(moved, np.float64).reshape(3, 16, -1)
  assert not undefined.any()
  np.testing.assert_allclose(moved.mean(-1), noise.mean(-1), atol=1e-5)
  np.testing.assert_allclose(moved.std(-1), np.sqrt((noise**2).mean(-1)), rtol=0.2)
  assert np.linalg.norm(moved - noise, axis=-1).max() < 0.8
  rise = divergence_of(targets, log_probs(rows + moved)) - divergence_of(
      targets, log_probs(rows + noise))
  assert (rise > 0).mean() > 0.9 and rise.mean() > 0.1
  same, _ = find(epsilon=0.)
  # Only what is added and taken away as the mean is changed.
  np.testing.assert_allclose(np.asarray(same).reshape(3, 16, -1), moved_noise(
      log_probs, kernel, rows, targets, noise, 4, 0.), atol=1e-4)
  _, undefined = worst_noise(
      KEY, jax.tree_util.Partial(lambda x: jnp.log(x.reshape(16, -1)[:, :3] - 1e9)), batch.images,
      batch.aux['targets'], jnp.zeros((1, 16, 4, 4, 1)), epsilon=0.6, num_steps=1)
  assert undefined.all()


def test_without_targets_it_is_refused(linear, batch):
  with pytest.raises(ValueError, match='targets_file'):
    CATRS(KEY, *linear, {}, batch._replace(aux={}), PROGRESS)


@pytest.fixture(scope='module')
def dataset():
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1)).astype(np.uint8)
  return data.from_arrays(images, np.array([0, 1, 2, 1]), class_names=('a', 'b', 'c'))


@pytest.mark.parametrize('content, message', [
    (np.full((3, 3), 1 / 3), r'shape \(4, 3\), .*got float64 of shape \(3, 3\)'),
    (np.full((4, 3), 1), r'got int64'),
    (np.full((4, 3), 0.3), r'add up to 1, got \[0.3.* in row 0'),
    (np.tile([1.5, -0.5, 0.], (4, 1)), 'in row 0'),
    (np.full((4, 3), np.nan), 'in row 0'),
    (None, 'must be a .npy file')])
def test_mistakes_in_targets_are_one_line(content, message, dataset, tmp_path):
  file = tmp_path / 'targets.npy'
  if content is not None:
    np.save(file, content)
  with pytest.raises(UserError, match=f'^config.data.targets_file .*{message}') as error:
    data.load_targets(dataset, file)
  assert '\n' not in str(error.value)


def test_targets_follow_their_images(dataset, tmp_path):
  targets = np.random.default_rng(1).dirichlet([1.] * 3, 4)
  np.save(tmp_path / 'targets.npy', targets)
  found = data.load_targets(dataset, tmp_path / 'targets.npy')
  for batch in data.train_batches(dataset, batch_size=3, seed=0, num_steps=4, targets=found,
                                  augment='crop'):
    real = batch.mask > 0
    np.testing.assert_allclose(batch.aux['targets'][real], targets[batch.index[real]], rtol=1e-6)


def test_votes_are_those_of_the_noisy_copies(dataset):
  weights = np.random.default_rng(3).normal(size=(9, 3)).astype(np.float32)
  logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights))
  kwargs = dict(sigma=0.5, num_noise=7, batch_size=2)
  found = votes(logits_fn, dataset, **kwargs)
  noise = smoothing.sample_noise(keys.fold_in(keys.root(0), jnp.arange(4)), jnp.zeros((4, 3, 3, 1)),
                                 sigma=0.5, num_noise=7)
  classes = ((dataset.images / 255 + np.asarray(noise)).reshape(7, 4, 9) @ weights).argmax(-1)
  expected = np.stack([(classes == k).mean(0) for k in range(3)], axis=-1)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(predict(logits_fn, dataset, **kwargs), found.argmax(-1))


def build(*words):
  config = flags.parse(['launch', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


@pytest.mark.slow
def test_from_votes_to_training(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  file = tmp_path / 'votes.npy'
  words = ['--config.model.name=linear', '--config.train.num_steps=25']
  teacher = build('--config=configs/digits.py:gaussian', *words, f'--config.label.output={file}',
                  '--config.label.num_noise=5')
  student = build('--config=configs/digits.py:catrs', *words, f'--config.data.targets_file={file}')
  for name, made in (('teacher', teacher), ('student', student)):
    (tmp_path / name).mkdir()
    workdir.describe(made, tmp_path / name, [])
    stages.run_stage('train', made, tmp_path / name)
    if name == 'teacher':
      stages.run_stage('label', made, tmp_path / name)
      assert '1442 votes, by 5 noisy copies each' in capsys.readouterr().out
  targets = np.load(file)
  assert targets.shape == (1442, 10) and {*np.unique((5 * targets).round(3))} <= {*range(6)}
  right = np.mean(targets.argmax(1) == student.train_data.labels)
  assert right > 0.5
  assert f'the class of {right:.1%} of config.data.targets_file' in capsys.readouterr().out


@pytest.mark.parametrize('words, message', [
    (['gaussian', '--config.method.name=catrs'], '^config.data.targets_file must be a file'),
    (['catrs', '--config.extra.name=digits', '--config.extra.share=0.5'],
     '^config.extra.share must be 0 '),
    (['catrs', '--config.sigma=0.0'], '^config.sigma ')])
def test_what_does_not_go_together_is_one_line(words, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=message) as raised:
    build(f'--config=configs/digits.py:{words[0]}', *words[1:])
  assert '\n' not in str(raised.value)
