"""L-BFGS adversarials against closed forms of a linear classifier, and through the launcher."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, losses, smoothing

KEY = jax.random.key(2)


@pytest.fixture(scope='module')
def two_classes():
  """z_1 - z_0 = 4 (sum(x) - 6) for 3x4x1 images: its distance is abs(sum(x) - 6) / sqrt(12)."""
  weights = jnp.stack([-2 * jnp.ones(12), 2 * jnp.ones(12)], axis=1)
  return jax.tree_util.Partial(
      lambda w, x: x.reshape(len(x), -1) @ w + jnp.asarray([12., -12.]), weights)


@pytest.fixture(scope='module')
def grey():
  images = np.stack([np.full((3, 4, 1), level, np.float32) for level in (0.3, 0.6, 0.45)])
  return images, np.array([0, 1, 0])


def test_it_is_the_closest_point_of_a_linear_classifier(two_classes, grey):
  images, labels = grey
  result = attacks.lbfgs_attack(KEY, two_classes, images, labels, epsilon=10.)
  assert result.success.all()
  norm = np.linalg.norm((result.images - images).reshape(3, -1), axis=-1)
  distance = np.abs(images.reshape(3, -1).sum(-1) - 6) / np.sqrt(12)
  # Across the boundary, and hardly farther.
  assert (norm >= distance - 1e-4).all() and (norm <= 1.1 * distance + 0.02).all()
  np.testing.assert_array_equal(jnp.argmax(two_classes(result.images), -1) != labels,
                                result.success)
  expected = -losses.cross_entropy(two_classes(result.images), 1 - labels)
  np.testing.assert_allclose(result.objective, expected, rtol=1e-4)


def test_ball_and_box_hold_and_success_is_judged_there(two_classes, grey):
  images, labels = grey
  epsilon = np.array([0., 0.2, 1.], np.float32)
  result = attacks.lbfgs_attack(KEY, two_classes, images, labels, epsilon=epsilon)
  norm = np.linalg.norm((result.images - images).reshape(3, -1), axis=-1)
  assert (norm <= epsilon + 1e-5).all()
  assert (result.images >= 0).all() and (result.images <= 1).all()
  np.testing.assert_array_equal(result.images[0], images[0])
  # The second needs 0.35.
  np.testing.assert_array_equal(result.success, [False, False, True])
  np.testing.assert_allclose(norm[1], 0.2, rtol=1e-3)


def test_the_box_binds(grey):
  # Only one pixel counts, which is at the box's end: nothing can be done.
  logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0], 2 - 1.5 * x[:, 0, 0, 0]], axis=-1)
  images = np.ones((1, 3, 4, 1), np.float32)
  result = attacks.lbfgs_attack(KEY, logits_fn, images, np.array([0]), epsilon=5.)
  assert result.success.all() and result.images.min() >= 0
  blind = attacks.lbfgs_attack(KEY, lambda x: 0 * x.reshape(len(x), -1)[:, :2] + jnp.asarray(
      [1e3, 0.]), images, np.array([0]), epsilon=5.)
  assert not blind.success.any()
  np.testing.assert_array_equal(blind.images, images)


def test_batch_is_a_loop_and_misclassified_images_stay(mlp_fn, images, labels):
  together = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=3., num_constants=4)
  clean = jnp.argmax(mlp_fn(images), -1)
  assert (clean != labels).any()
  for i in range(5):
    one = slice(i, i + 1)
    alone = attacks.lbfgs_attack(KEY, mlp_fn, images[one], labels[one], epsilon=3., num_constants=4)
    np.testing.assert_allclose(alone.images[0], together.images[i], atol=1e-4)
    if clean[i] != labels[i]:
      np.testing.assert_array_equal(together.images[i], images[i])


def test_more_constants_come_closer(mlp_fn, images, labels):
  labels = jnp.argmax(mlp_fn(images), -1)

  def norms(num_constants):
    result = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=10.,
                                  num_constants=num_constants)
    assert result.success.all()
    return np.linalg.norm((result.images - images).reshape(5, -1), axis=-1)

  few, many = norms(4), norms(12)
  assert (many <= few + 1e-6).all()
  pgd = jax.jit(functools.partial(attacks.pgd_attack, norm='l2', num_steps=30))(
      KEY, mlp_fn, images, labels, epsilon=0.9 * many.astype(np.float32))
  assert pgd.success.sum() <= 1  # What is closer by a tenth, PGD does not find either.


def test_targets_are_reached(mlp_fn, images, labels):
  logits = np.asarray(mlp_fn(images))
  for kwargs in ({'targets': (labels + 1) % 4}, {'target_class': 'least_likely'}):
    result = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=10., **kwargs)
    is_label = np.asarray(labels)[:, None] == np.arange(4)
    targets = kwargs.get('targets', np.argmin(np.where(is_label, np.inf, logits), -1))
    reached = jnp.argmax(mlp_fn(result.images), -1) == targets
    np.testing.assert_array_equal(result.success, reached)
    assert reached.sum() >= 4


def test_smoothed_and_without_noise_alike(mlp_fn, images, labels):
  still = jnp.zeros((2, *images.shape))
  plain = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=2., num_constants=3)
  smoothed = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=2., num_constants=3,
                                  noise=still)
  np.testing.assert_allclose(smoothed.images, plain.images, atol=1e-3)
  noise = smoothing.sample_noise(KEY, images, sigma=0.3, num_noise=8)
  noisy = attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=9., noise=noise)
  np.testing.assert_array_equal(
      noisy.success, smoothing.victim(mlp_fn, noise).predict(noisy.images) != labels)
  assert noisy.success.all()


def test_it_says_that_it_cannot_be_compiled(mlp_fn, images, labels):
  with pytest.raises(ValueError, match='lbfgs'):
    jax.jit(lambda x: attacks.lbfgs_attack(KEY, mlp_fn, x, labels, epsilon=1.).images)(images)
  with pytest.raises(ValueError, match="target_class .*'all'"):
    attacks.lbfgs_attack(KEY, mlp_fn, images, labels, epsilon=1., target_class='all')


def test_a_run_is_attacked_with_it(tmp_path):
  from launch import flags
  from robust_jax import stages, workdir
  from robust_jax.config import experiment, sections
  config = flags.parse([
      'launch', '--config=configs/digits.py:robust', '--config.train.num_steps=20',
      '--config.attack.name=lbfgs', '--config.attack.num_constants=3',
      '--config.evaluation.epsilons=(0.5,)', '--config.evaluation.num_images=6',
      '--config.evaluation.batch_size=6']).config
  run = experiment.build(sections.resolve(config), jax.devices()[:2])
  workdir.describe(run, tmp_path, [])
  for stage in ('train', 'attack'):
    stages.run_stage(stage, run, tmp_path)
  header, *rows = map(json.loads, (tmp_path / 'attack.jsonl').read_text().splitlines())
  assert header['header']['attack']['name'] == 'lbfgs' and len(rows) == 6
