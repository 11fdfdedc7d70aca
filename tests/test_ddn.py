"""DDN: against a NumPy implementation, closed forms, and the invariants of every attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, smoothing
from robust_jax.attacks import objectives, threat_models
from robust_jax.config import sections
from robust_jax.config.sections import component

KEY = jax.random.key(3)


@functools.cache
def jitted(**kwargs):
  return jax.jit(functools.partial(attacks.ddn, **kwargs))


def away(x):
  """Class 1 everywhere but at the grey image itself."""
  moved = jnp.sum(jnp.abs(x - 0.5), (1, 2, 3)) > 1e-6
  return jnp.stack([jnp.where(moved, -1., 1.) + 1e-6 * x.sum((1, 2, 3)), jnp.zeros(len(x))], -1)


def numpy_ddn(objective_gradient, misclassified, image, *, epsilon, init_norm, gamma, num_steps,
              rounding):
  """DDN of one flat image in float64, written down step by step."""
  best, best_size = np.zeros_like(image), np.inf
  delta, rho = np.zeros_like(image), init_norm
  farthest = np.sqrt(np.sum(np.maximum(image, 1 - image) ** 2))
  for t in range(1, num_steps + 1):
    wrong = misclassified(image + delta)
    if wrong and np.sqrt(np.sum(delta**2)) < best_size:
      best, best_size = delta.copy(), np.sqrt(np.sum(delta**2))
    if t == num_steps:
      break
    g = objective_gradient(image + delta)
    delta = delta + (0.01 + 0.99 * (1 + np.cos(np.pi * t / num_steps)) / 2) * g / np.sqrt(g @ g)
    rho = min(rho * (1 - gamma if wrong else 1 + gamma), farthest)
    moved = image + rho * delta / np.sqrt(delta @ delta)
    if rounding != 'none':
      moved = np.rint(255 * moved) / 255
    delta = np.minimum(np.maximum(moved, 0), 1) - image
  if np.isfinite(best_size) and best_size > epsilon:
    best = best * epsilon / best_size
    if rounding == 'nearest':
      best = np.rint(best * 255) / 255
    if rounding == 'inside':
      best = numpy_inside(best, epsilon)
  return np.minimum(np.maximum(image + best, 0), 1)


def numpy_inside(delta, epsilon):
  """Towards zero, then a level back wherever the norm allows, the least rounded pixels first."""
  size = np.abs(delta) * 255
  turn = np.arange(size.size) * 2654435769 % 2**32 / 2**32
  rest = size - np.floor(size) + 1e-3 * turn
  levels = np.floor(size)
  for pixel in np.argsort(-rest):
    more = levels + (np.arange(size.size) == pixel)
    if rest[pixel] <= 0.5 or np.sqrt(np.sum(more**2)) / 255 > epsilon:
      break
    levels = more
  return np.sign(delta) * levels / 255


def smoothed_judges(fn, label, noise):
  """(gradient of J, majority vote) of one flat image in float64, noise [m, pixels]."""
  weights = {name: np.asarray(value, np.float64) for name, value in fn.args[0].items()}

  def network(x):
    hidden = np.tanh(x @ weights['w1'])
    return hidden, hidden @ weights['w2']

  def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()

  def gradient(x):
    total, mean = np.zeros_like(x), 0.
    for n in noise:
      hidden, z = network(x + n)
      p = softmax(z)
      inner = weights['w2'] @ (p[label] * (np.eye(4)[label] - p))
      total += weights['w1'] @ ((1 - hidden**2) * inner)
      mean += p[label]
    return -total / mean  # of -log mean p

  def misclassified(x):
    votes = np.bincount([network(x + n)[1].argmax() for n in noise], minlength=4)
    return votes.argmax() != label

  return gradient, misclassified


@pytest.mark.parametrize('rounding', ['inside', 'nearest', 'none'])
@pytest.mark.parametrize('sigma', [0., 0.3])
def test_ddn_equals_the_numpy_one(sigma, rounding, mlp_fn, images, labels):
  images = jnp.round(images * 255) / 255
  labels = jnp.argmax(mlp_fn(images), -1).at[4].add(-1)  # The last one is misclassified as it is.
  settings = dict(init_norm=0.7, gamma=0.1, num_steps=6, rounding=rounding)
  noise = smoothing.sample_noise(KEY, images, sigma=sigma, num_noise=5) if sigma else None
  epsilon = np.array([0.1, 0.3, 0.5, 2., 0.15])
  result = jitted(**settings)(KEY, mlp_fn, images, labels, epsilon=epsilon, noise=noise)
  flat = np.asarray(images, np.float64).reshape(5, -1)
  draws = np.zeros((1, 5, 12)) if noise is None else np.asarray(noise, np.float64).reshape(5, 5, -1)
  for i in range(5):
    gradient, wrong = smoothed_judges(mlp_fn, int(labels[i]), draws[:, i])
    expected = numpy_ddn(gradient, wrong, flat[i], epsilon=epsilon[i], **settings)
    np.testing.assert_allclose(np.ravel(result.images[i]), expected, atol=3e-6)
  # Something was found, something cut down, so that the comparison says something.
  sizes = threat_models.norms(result.images - images, 'l2')
  assert sizes[4] == 0 and (sizes > 0.01).sum() >= 3 and result.success.sum() >= 2


def test_the_smallest_perturbation_of_a_linear_model():
  # Two classes, margin w.x + b, far from the box: the distance is |margin| / ||w||.
  w = np.array([0.5, -1., 2., 0.25, 1.5, -0.75], np.float32)
  x = jnp.full((3, 2, 3, 1), 0.5)
  bias = jnp.asarray([-0.9, -0.7, -1.2])  # margins 0.35, 0.55, 0.05 at 0.5 sum(w) = 1.25
  fn = lambda x: jnp.stack([x.reshape(len(x), -1) @ w + bias, jnp.zeros(len(x))], -1)
  distance = (1.25 + np.asarray(bias)) / np.linalg.norm(w)
  result = attacks.ddn(KEY, fn, x, jnp.zeros(3, int), epsilon=10., num_steps=200, init_norm=1.,
                       gamma=0.05, rounding='none')
  found = threat_models.norms(result.images - x, 'l2')
  assert result.success.all()
  assert (found >= distance * (1 - 1e-5)).all() and (found <= distance * 1.06 + 1e-3).all()
  # Along the gradient, not merely of its length.
  expected = -w / np.linalg.norm(w)
  for delta in np.asarray(result.images - x).reshape(3, -1):
    np.testing.assert_allclose(delta / np.linalg.norm(delta), expected, atol=1e-2)


@pytest.mark.parametrize('epsilon', [0.5, 2.])
def test_perturbations_of_about_a_grey_level_are_not_rounded_away(epsilon):
  # As large as an ImageNet image.
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.integers(1, 255, (2, 224, 224, 3)) / 255, jnp.float32)
  w = jnp.asarray(rng.normal(size=224 * 224 * 3), jnp.float32)
  clean = images.reshape(2, -1)
  fn = lambda x: jnp.stack([1e-3 + (x.reshape(2, -1) - clean) @ w, jnp.zeros(2)], -1)
  result = attacks.ddn(KEY, fn, images, jnp.zeros(2, int), epsilon=epsilon, num_steps=2,
                       init_norm=0.)
  delta = np.asarray(result.images - images, np.float64).reshape(2, -1)
  size = np.linalg.norm(delta, axis=-1)
  assert result.success.all()
  assert (size >= 0.95 * epsilon).all() and (size <= epsilon * (1 + 1e-5)).all()
  np.testing.assert_allclose(delta * 255, np.rint(delta * 255), atol=1e-4)


def test_the_sphere_reaches_no_farther_than_the_box():
  # rho begins at 5, and the farthest corner is at sqrt(12) / 2: a corner is tested. To shrink from
  # there leads off it; to shrink from 5 would lead to the corner again.
  images = jnp.full((2, 3, 4, 1), 0.5)
  result = attacks.ddn(KEY, away, images, jnp.zeros(2, int), epsilon=10., num_steps=3,
                       init_norm=5., gamma=0.1, rounding='none')
  np.testing.assert_allclose(threat_models.norms(result.images - images, 'l2'),
                             0.9 * np.sqrt(3), rtol=1e-4)


def test_no_perturbation_is_tested_first(linear_fn, images, labels):
  wrong = (jnp.argmax(linear_fn(images), -1) + 1) % 4
  result = attacks.ddn(KEY, linear_fn, images, wrong, epsilon=3., num_steps=5)
  np.testing.assert_array_equal(result.images, images)
  assert result.success.all()
  right = jnp.argmax(linear_fn(images), -1)
  with pytest.raises(ValueError, match='num_steps .* 1'):  # That would be all.
    attacks.ddn(KEY, linear_fn, images, right, epsilon=3., num_steps=1)
  two = attacks.ddn(KEY, linear_fn, images, right, epsilon=3., num_steps=2, init_norm=0.)
  assert two.success.all()


def test_where_nothing_is_found_nothing_is_changed(linear_fn, images):
  right = jnp.argmax(linear_fn(images), -1)
  result = attacks.ddn(KEY, linear_fn, images, right, epsilon=1e-3, num_steps=3, init_norm=0.)
  np.testing.assert_array_equal(result.images, images)
  assert not result.success.any()


def test_at_a_zero_gradient_the_direction_is_drawn():
  # Constant logits: a gradient of zero, and class 0 everywhere.
  constant = jax.tree_util.Partial(lambda x: jnp.zeros((len(x), 3)) + 0 * x.sum())
  images = jnp.full((4, 3, 4, 1), 0.5)
  attack = jitted(num_steps=6, init_norm=0.5)
  right = attack(KEY, constant, images, jnp.zeros(4, int), epsilon=1.)
  np.testing.assert_array_equal(right.images, images)
  # The direction shows where a ball of radius 0.4 around the image is class 0 and the rest class
  # 1, with logits that are constant in both.
  ball = jax.tree_util.Partial(lambda x: jnp.stack([jnp.zeros(len(x)), jnp.where(
      jnp.sum((x - 0.5) ** 2, (1, 2, 3)) > 0.16, 1., -1.)], -1))
  found = attack(KEY, ball, images, jnp.zeros(4, int), epsilon=1.)
  delta = np.asarray(found.images - images).reshape(4, -1)
  assert np.isfinite(delta).all() and found.success.all()
  assert (np.linalg.norm(delta, axis=-1) > 0.4).all()
  assert np.abs(np.corrcoef(delta)[0, 1:]).max() < 0.9
  np.testing.assert_array_equal(found.images, attack(KEY, ball, images, jnp.zeros(4, int),
                                                     epsilon=1.).images)


def test_finite_at_saturated_logits(linear_fn, images, labels):
  steep = lambda x: 1e3 * linear_fn(x)
  noise = smoothing.sample_noise(KEY, images, sigma=0.25, num_noise=3)
  for draws in (None, noise):
    result = attacks.ddn(KEY, steep, images, labels, epsilon=0.5, noise=draws, num_steps=3)
    assert np.isfinite(result.images).all() and np.isfinite(result.objective).all()


def test_success_on_the_smoothed_classifier_is_the_majority_vote(mlp_fn, images, labels):
  noise = smoothing.sample_noise(KEY, images, sigma=0.5, num_noise=7)
  result = attacks.ddn(KEY, mlp_fn, images, labels, epsilon=0.6, noise=noise, num_steps=4)
  victim = smoothing.victim(mlp_fn, noise)
  np.testing.assert_array_equal(result.success, victim.predict(result.images) != labels)
  np.testing.assert_allclose(
      result.objective, victim.objective(objectives.cross_entropy, labels)(result.images),
      rtol=1e-4)


def test_the_authors_choices_of_the_norm():
  # Class 1 everywhere but at the image itself: after T - 1 = 4 successes but the first, rho is
  # what is left of the start.
  images = jnp.full((2, 3, 4, 1), 0.5)
  label = jnp.zeros(2, int)
  epsilon = jnp.asarray([0.5, 1.5])
  training = attacks.ddn(KEY, away, images, label, epsilon=epsilon, num_steps=5, init_norm=0.,
                         rounding='none')
  np.testing.assert_allclose(threat_models.norms(training.images - images, 'l2'),
                             epsilon * 1.05 * 0.95**3, rtol=1e-4)
  evaluation = attacks.ddn(KEY, away, images, label, epsilon=epsilon, num_steps=5, gamma=0.,
                           rounding='none')
  gamma = 1 - (3 / 510 / np.asarray(epsilon)) ** (1 / 5)
  np.testing.assert_allclose(threat_models.norms(evaluation.images - images, 'l2'),
                             (1 + gamma) * (1 - gamma) ** 3, rtol=1e-3)


def test_bad_arguments_are_named(linear_fn, images, labels):
  for kwargs, message in ((dict(rounding='up'), "rounding .*'up'"),
                          (dict(norm='linf'), "norm .*'linf'"),
                          (dict(num_steps=0), 'num_steps .*0')):
    with pytest.raises(ValueError, match=message):
      attacks.ddn(KEY, linear_fn, images, labels, epsilon=0.1, **kwargs)


def test_ddn_is_a_component():
  # Rony et al.'s own, throughout.
  config = component('attack', 'ddn', num_steps=2)
  assert (config.init_norm, config.gamma, config.rounding) == (1., 0.05, 'inside')
  assert component('attack', 'ddn', init_norm=0., gamma=0.).gamma == 0
  assert sections.TABLES['attack']['ddn'] is attacks.ddn


@pytest.mark.parametrize('rounding', ['inside', 'nearest', 'none'])
def test_an_infinite_radius_leaves_the_smallest_perturbation_as_it_is(rounding, mlp_fn, images,
                                                                      labels):
  attack = functools.partial(attacks.ddn, KEY, mlp_fn, images, labels, num_steps=8,
                             rounding=rounding)
  result, far = attack(epsilon=np.inf), attack(epsilon=100.)
  jax.tree.map(np.testing.assert_array_equal, result, far)
  size = threat_models.norms(result.images - images, 'l2')
  assert result.success.all() and size.max() > 0
  # Within a radius that cuts some of them short the others are the same.
  radius = jnp.median(size)
  kept = attack(epsilon=radius).images == result.images
  np.testing.assert_array_equal(kept.reshape(5, -1).all(-1), size <= radius)


@pytest.mark.parametrize('kwargs', [{'init_norm': 0.}, {'gamma': 0.}])
def test_an_infinite_radius_gives_neither_a_first_norm_nor_a_rate(kwargs, mlp_fn, images, labels):
  with pytest.raises(ValueError, match='epsilon .*finite.*inf'):
    attacks.ddn(KEY, mlp_fn, images, labels, epsilon=np.inf, **kwargs)
