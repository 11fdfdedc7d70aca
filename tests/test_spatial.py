"""Rotations and translations: by SciPy's interpolation, and the worst of all by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from robust_jax import losses
from robust_jax.attacks import spatial
from robust_jax.attacks.spatial import transform

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 7, 5, 2)).astype(np.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(70, 3)), jnp.float32)
NETWORK = jax.tree_util.Partial(lambda w, x: jnp.tanh(x.reshape(len(x), -1) - 0.5) @ w, WEIGHTS)
LABELS = np.asarray(NETWORK(IMAGES).argmax(-1))
SMALL = dict(max_angle=20., max_shift=1.5, num_angles=5, num_shifts=3)


def moved(image, angle, down, across):
  turned = ndimage.rotate(image, angle, reshape=False, order=1, mode='grid-constant')
  return ndimage.shift(turned, (down, across, 0), order=1, mode='grid-constant')


@pytest.mark.parametrize('angle, down, across', [
    (0, 0, 0), (30, 0, 0), (-17.5, 0, 0), (0, 1.25, -2), (90, 0, 0), (180, 0, 3)])
def test_images_are_turned_and_moved_as_by_scipy(angle, down, across):
  image = IMAGES[:1, 1:6]  # Square: a quarter turn keeps all of it.
  found = transform(image, *(jnp.full(1, float(value)) for value in (angle, down, across)))
  np.testing.assert_allclose(found[0], moved(image[0], angle, down, across), atol=2e-6)


def test_the_worst_of_the_grid_by_brute_force():
  found = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=1., **SMALL)
  grid = itertools.product(np.linspace(-20, 20, 5), (-1.5, 0, 1.5), (-1.5, 0, 1.5))
  every = np.stack([transform(IMAGES, *(jnp.full(6, value) for value in place))
                    for place in grid])
  loss = np.stack([losses.cross_entropy(NETWORK(x), LABELS) for x in every])
  broken = np.stack([NETWORK(x).argmax(-1) != LABELS for x in every])
  np.testing.assert_array_equal(found.success, broken.any(axis=0))
  among = np.where(broken | ~broken.any(axis=0), loss, -np.inf)
  np.testing.assert_allclose(found.objective, among.max(axis=0), rtol=1e-5)
  np.testing.assert_allclose(found.images, every[among.argmax(axis=0), np.arange(6)], atol=1e-6)
  assert found.success.any()


def test_shares_targets_and_what_is_misclassified():
  share = np.array([0, 0, 0.5, 0.5, 1, 1], np.float32)
  found = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=share, **SMALL)
  np.testing.assert_allclose(found.images[:2], IMAGES[:2], atol=1e-6)
  assert not found.success[:2].any()
  alone = spatial(KEY, NETWORK, IMAGES[2:3], LABELS[2:3], epsilon=0.5, **SMALL)
  np.testing.assert_allclose(found.images[2:3], alone.images, atol=1e-6)
  targets = (LABELS + 1) % 3
  aimed = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=1., targets=targets, **SMALL)
  np.testing.assert_array_equal(aimed.success, NETWORK(aimed.images).argmax(-1) == targets)
  wrong = spatial(KEY, NETWORK, IMAGES, targets, epsilon=1., **SMALL)
  assert wrong.success.all()
  np.testing.assert_array_equal(wrong.images, IMAGES)


def test_random_ones_and_a_smoothed_classifier():
  few = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=1., num_samples=2)
  more = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=1., num_samples=30)
  assert (more.success >= few.success).all() and (more.success | (
      more.objective >= few.objective)).all()
  noise = jnp.zeros((1, *IMAGES.shape))
  same = spatial(KEY, NETWORK, IMAGES, LABELS, epsilon=1., num_samples=2, noise=noise)
  np.testing.assert_array_equal(same.images, few.images)
  assert not np.array_equal(
      few.images, spatial(jax.random.key(1), NETWORK, IMAGES, LABELS, epsilon=1.,
                          num_samples=2).images)


@pytest.mark.parametrize('wrong, message', [
    (dict(epsilon=1.5), 'epsilon .*at most 1, .*1.5'), (dict(num_angles=0), 'num_angles .*0'),
    (dict(max_shift=-1.), 'max_shift .*-1'), (dict(max_angle=np.nan), 'max_angle .*nan'),
    (dict(images=IMAGES.reshape(6, 7, 10)), r'images .*\(6, 7, 10\)')])
def test_wrong_arguments(wrong, message):
  with pytest.raises(ValueError, match=message):
    spatial(KEY, NETWORK, **dict(images=IMAGES, labels=LABELS, epsilon=1.) | wrong)
