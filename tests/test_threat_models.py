"""Perturbation sets against brute force: projections by a solver, steps by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from robust_jax.attacks import threat_models

NORMS = sorted(threat_models.NORMS)
ORDERS = ['ball_then_box', 'box_then_ball']
DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}


def ball_projection(delta, epsilon, norm):
  """The closest point of the ball, found in float64 without any of the project's formulas."""
  delta = np.asarray(delta, np.float64)
  if norm == 'linf':
    return np.clip(delta, -epsilon, epsilon)
  if norm == 'l2':
    return delta * min(1, epsilon / max(np.linalg.norm(delta), 1e-300))
  if np.abs(delta).sum() <= epsilon:
    return delta
  excess = lambda level: np.maximum(np.abs(delta) - level, 0).sum() - epsilon
  level = optimize.brentq(excess, 0, np.abs(delta).max())
  return np.sign(delta) * np.maximum(np.abs(delta) - level, 0)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('norm', NORMS)
def test_projection_in_both_orders(norm, order, images):
  rng = np.random.default_rng(3)
  epsilon = np.array([0., 0.1, 0.5, 1., 30.], np.float32)
  far = np.asarray(images) + rng.normal(size=images.shape)
  projected = threat_models.NORMS[norm](epsilon, order=order).project(
      jnp.asarray(far, jnp.float32), images)
  for x, point, eps, found in zip(np.asarray(images, np.float64), far, epsilon, projected):
    if order == 'ball_then_box':
      expected = np.clip(x + ball_projection((point - x).ravel(), eps, norm).reshape(x.shape), 0, 1)
    else:
      expected = x + ball_projection((np.clip(point, 0, 1) - x).ravel(), eps, norm).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_projection_keeps_points_of_the_set(norm, images):
  threat_model = threat_models.NORMS[norm](0.3)
  inside = threat_model.random(jax.random.key(0), images)
  np.testing.assert_allclose(threat_model.project(inside, images), inside, atol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_steepest_reaches_the_dual_norm(norm):
  gradient = jnp.asarray(np.random.default_rng(4).normal(size=(6, 3, 4, 1)), jnp.float32)
  step = threat_models.NORMS[norm](1.).steepest(jax.random.key(0), gradient)
  np.testing.assert_allclose(threat_models.norms(step, norm), 1, rtol=1e-6)
  ascent = np.sum(np.asarray(gradient * step).reshape(6, -1), -1)
  np.testing.assert_allclose(
      ascent, np.linalg.norm(np.asarray(gradient).reshape(6, -1), ord=DUAL[norm], axis=-1), 1e-5)


def test_l1_step_changes_top_k_pixels():
  gradient = jnp.asarray([[3., -5., 1., 0.5], [0., 0., 2., 0.]])
  one = threat_models.l1(1.).steepest(jax.random.key(0), gradient)
  np.testing.assert_array_equal(one, [[0, -1, 0, 0], [0, 0, 1, 0]])
  two = threat_models.l1(1., top_k=2).steepest(jax.random.key(0), gradient)
  np.testing.assert_array_equal(two[0], [0.5, -0.5, 0, 0])
  all_of_them = threat_models.l1(1., top_k=9).steepest(jax.random.key(0), gradient)
  np.testing.assert_array_equal(all_of_them[0], [0.25, -0.25, 0.25, 0.25])


@pytest.mark.parametrize('scale', [1e-40, 1e-25, 1., 1e25])
@pytest.mark.parametrize('norm', NORMS)
def test_steps_are_finite_for_tiny_and_huge_gradients(norm, scale):
  gradient = jnp.asarray([[1., -2., 3.]]) * scale
  step = threat_models.NORMS[norm](1.).steepest(jax.random.key(0), gradient)
  assert np.isfinite(step).all()
  if scale > 1e-30:  # Below, float32 gradients may be flushed to zero.
    expected = threat_models.NORMS[norm](1.).steepest(jax.random.key(0), gradient / scale)
    np.testing.assert_allclose(step, expected, rtol=1e-5)


def test_zero_gradient_step():
  zero = jnp.zeros((4, 3, 4, 1))
  for norm in ('linf', 'l1'):
    np.testing.assert_array_equal(
        threat_models.NORMS[norm](1.).steepest(jax.random.key(0), zero), zero)
  step = threat_models.l2(1.).steepest(jax.random.key(0), zero)
  np.testing.assert_allclose(threat_models.norms(step, 'l2'), 1, rtol=1e-6)
  assert len({tuple(np.ravel(row)) for row in np.asarray(step)}) == 4, 'directions must differ'
  mixed = zero.at[1].set(jnp.arange(12.).reshape(3, 4, 1))
  some = threat_models.l2(1.).steepest(jax.random.key(0), mixed)
  np.testing.assert_array_equal(some[0], step[0])
  np.testing.assert_allclose(some[1], mixed[1] / np.linalg.norm(mixed[1]), rtol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_random_start_is_uniform_in_the_ball(norm):
  # In d dimensions the norm over epsilon of a uniform point has the distribution u^d.
  images = jnp.full((20_000, 1, 3, 1), 0.5)
  delta = threat_models.NORMS[norm](0.4).random(jax.random.key(5), images) - images
  radius = np.sort(np.asarray(threat_models.norms(delta, norm))) / 0.4
  assert radius[-1] <= 1 + 1e-6
  empirical = np.arange(1, len(radius) + 1) / len(radius)
  assert np.abs(radius**3 - empirical).max() < 1.95 / np.sqrt(len(radius))  # KS, p = 0.001
  np.testing.assert_allclose(np.mean(delta, axis=0), 0, atol=0.01)


@pytest.mark.parametrize('norm', NORMS)
def test_random_start_of_radius_zero_is_the_image(norm, images):
  start = threat_models.NORMS[norm](0.).random(jax.random.key(0), images)
  np.testing.assert_array_equal(start, images)


def test_top_k_below_one_is_refused():
  with pytest.raises(ValueError, match='top_k .*0'):
    threat_models.l1(1., top_k=0)
