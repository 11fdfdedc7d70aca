"""Certificates of a classifier that chooses its noise, against one known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import certification

KEY = jax.random.key(0)
SIGMAS = (0.25, 0.1)


def half_space(pixel, at):
  """Logits of the classes x <= at and x > at of a pixel; smoothed, it is the same classifier."""
  return lambda images: jnp.stack([at - images[:, 0, pixel, 0], images[:, 0, pixel, 0] - at], -1)


CHOOSE = half_space(0, 0.5)
CLASSIFY = (half_space(1, 0.3), half_space(1, 0.7))


def image(*pixels):
  return np.asarray(pixels, np.float32).reshape(1, -1, 1)


def smoothed(points):
  """The class of [n, 2] points by the rule that is certified, in closed form."""
  return points[:, 1] > np.where(points[:, 0] > 0.5, 0.7, 0.3)


def certified(images, **settings):
  settings = dict(choose_sigma=0.3, sigmas=SIGMAS, n=20_000, batch_size=500) | settings
  return certification.certify_dual(KEY, CHOOSE, CLASSIFY, np.stack(images), **settings)


@pytest.fixture(scope='module')
def grid():
  points = np.stack(np.meshgrid(*[np.linspace(0.02, 0.98, 9)] * 2), axis=-1).reshape(-1, 2)
  return points, certified([image(*point) for point in points], n=5000)


def test_radii_are_near_those_of_the_two_half_spaces(grid):
  points, found = grid
  choice = np.abs(points[:, 0] - 0.5)
  of_class = np.abs(points[:, 1] - np.where(points[:, 0] > 0.5, 0.7, 0.3))
  known = found.prediction >= 0
  assert known.mean() > 0.7
  np.testing.assert_array_equal(found.prediction[known], smoothed(points)[known])
  np.testing.assert_array_equal(found.choice[known], (points[:, 0] > 0.5)[known])
  exact = np.minimum(choice, of_class)
  assert (found.radius <= exact).all()
  # Where n and alpha do not limit it, nearly all of it is found.
  near = known & (choice < 0.3) & (of_class < 0.1)
  assert near.sum() > 5 and (found.radius[near] > exact[near] - 0.03).all()


def broken(points, prediction, radius):
  """Certificates with a point of another class inside, of a ring and a fan of 60 directions."""
  angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
  ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  wrong = 0
  for point, label, length in zip(points, prediction, radius):
    around = [point + share * length * ring for share in (0.25, 0.5, 0.75, 0.999)]
    wrong += label >= 0 and (smoothed(np.concatenate(around)) != label).any()
  return wrong


def test_no_image_within_the_radius_has_another_class(grid):
  points, found = grid
  assert broken(points, found.prediction, found.radius) == 0


def test_the_class_radius_alone_is_no_certificate(grid):
  points, found = grid
  assert broken(points, found.prediction, found.class_radius) > 5


def test_it_is_two_certificates_with_draws_of_their_own():
  images, ids = np.stack([image(0.3, 0.4), image(0.8, 0.2), image(0.6, 0.9)]), np.array([7, 3, 5])
  found = certified(images, alpha=0.01, choose_share=0.2, example_ids=ids)
  first, second = jax.random.split(KEY)
  settings = dict(n=20_000, batch_size=500)
  choice = certification.certify(first, CHOOSE, images, sigma=0.3, alpha=0.002, example_ids=ids,
                                 **settings)
  np.testing.assert_array_equal(found.choice, choice.prediction)
  np.testing.assert_array_equal(found.choice_radius, choice.radius)
  for rows, number in (([0], 0), ([1, 2], 1)):
    of_class = certification.certify(second, CLASSIFY[number], images[rows], alpha=0.008,
                                     sigma=SIGMAS[number], example_ids=ids[rows], **settings)
    np.testing.assert_array_equal(found.prediction[rows], of_class.prediction)
    np.testing.assert_array_equal(found.class_radius[rows], of_class.radius)
  np.testing.assert_array_equal(found.radius, np.minimum(found.choice_radius, found.class_radius))


def test_where_one_of_the_two_abstains_nothing_is_certified():
  found = certified([image(0.5, 0.5), image(0.1, 0.3), image(0.1, 0.9)])
  np.testing.assert_array_equal(found.choice, [-1, 0, 0])
  np.testing.assert_array_equal(found.prediction, [-1, -1, 1])
  np.testing.assert_array_equal(found.radius > 0, [False, False, True])
  assert found.choice_radius[1] > 0


@pytest.mark.parametrize('change, says', [
    (dict(sigmas=(0.1,)), r'sigmas must be 2 numbers, .* got \[0.1\]'),
    (dict(sigmas=0.1), r'sigmas must be 2 numbers, .* got 0.1'),
    (dict(sigmas=(0.1, -0.2)), 'sigma must be .*-0.2'),
    (dict(choose_sigma=0.), 'choose_sigma must be .*0'),
    (dict(choose_share=1.), 'choose_share must be .*1'),
    (dict(alpha=0.), 'alpha must be .*0'), (dict(n=2.5), 'n must be an integer .*2.5')])
def test_wrong_arguments_are_named(change, says):
  with pytest.raises(ValueError, match=says):
    certified([image(0.9, 0.1)], **change)


def test_as_many_choices_as_noises():
  with pytest.raises(ValueError, match='choose_fn must have 3 logits, as many as sigmas, got 2'):
    certification.certify_dual(KEY, CHOOSE, (*CLASSIFY, CHOOSE), image(0.1, 0.2)[None],
                               choose_sigma=0.1, sigmas=(0.1, 0.2, 0.3))
