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


def joint_projection(delta, x, epsilon, norm):
  """The same for ball and box around x: by the Lagrange multiplier of the ball, in float64."""
  if norm == 'linf':
    return np.clip(np.clip(delta, -epsilon, epsilon), -x, 1 - x)

  def inside(level):
    shrunk = delta / (1 + level) if norm == 'l2' else np.sign(delta) * np.maximum(
        np.abs(delta) - level, 0)
    return np.clip(shrunk, -x, 1 - x)

  excess = lambda level: np.linalg.norm(inside(level), ord=int(norm[1])) - epsilon
  if excess(0) <= 0:
    return inside(0)
  return inside(optimize.brentq(excess, 0, 1e9, xtol=1e-14) if epsilon else np.inf)


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
def test_joint_projection_is_the_closest_point_of_ball_and_box(norm, images):
  rng = np.random.default_rng(3)
  epsilon = np.array([0., 0.1, 0.5, 1., 30.], np.float32)
  far = np.asarray(images) + rng.normal(size=images.shape)
  projected = threat_models.NORMS[norm](epsilon, order='joint').project(
      jnp.asarray(far, jnp.float32), images)
  for x, point, eps, found in zip(np.asarray(images, np.float64), far, epsilon, projected):
    expected = x + joint_projection((point - x).ravel(), x.ravel(), eps, norm).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_joint_projection_in_l1_beats_a_solver_and_random_points():
  # min ||z - y||^2 over |z - x|_1 <= 2 in the box, as a quadratic programme in z - x = p - q.
  rng = np.random.default_rng(5)
  x, y = rng.uniform(size=8), rng.normal(0.5, 1, size=8)
  problem = optimize.minimize(
      lambda v: np.sum((x + v[:8] - v[8:] - y) ** 2), np.zeros(16), method='SLSQP',
      bounds=[(0, 1 - each) for each in x] + [(0, each) for each in x],
      constraints={'type': 'ineq', 'fun': lambda v: 2 - v.sum()}, options={'ftol': 1e-12})
  found = threat_models.l1(2.).project(jnp.asarray(y, jnp.float32)[None],
                                       jnp.asarray(x, jnp.float32)[None])[0]
  np.testing.assert_allclose(found, x + problem.x[:8] - problem.x[8:], atol=1e-4)
  assert np.sum((found - y) ** 2) <= problem.fun + 1e-5


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


def test_l1_step_goes_where_the_box_lets_it():
  # The largest entry is at its end of the box, the next has 0.3 to go, the third 0.9.
  image = jnp.asarray([[1., 0.3, 0.1, 0.5]])
  gradient = jnp.asarray([[9., -3., 2., 1.]])

  def ascend(length, order='ball_then_box', **kwargs):
    threat_model = threat_models.l1(9., order=order, **kwargs)
    moved = threat_model.ascend(jax.random.key(0), image, gradient, length)
    return (threat_model.project(moved, image) if order == 'joint' else moved) - image

  np.testing.assert_allclose(ascend(0.2), [[0, -0.2, 0, 0]], atol=1e-6)
  np.testing.assert_allclose(ascend(1.), [[0, -0.3, 0.7, 0]], atol=1e-6)
  np.testing.assert_allclose(ascend(9.), [[0, -0.3, 0.9, 0.5]], atol=1e-6)
  np.testing.assert_allclose(ascend(1., top_k=2), [[0, -0.3, 0.5, 0.2]], atol=1e-6)
  np.testing.assert_allclose(ascend(1., 'joint'), [[0, -0.3, 0.7, 0]], atol=1e-6)
  np.testing.assert_allclose(ascend(1., 'ball_only'), [[1, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize('scale', [1e-40, 1e-25, 1., 1e25, 1e38])
@pytest.mark.parametrize('norm', NORMS)
def test_steps_are_finite_for_tiny_and_huge_gradients(norm, scale):
  gradient = jnp.asarray([[1., -2., 3.]]) * scale
  step = threat_models.NORMS[norm](1.).steepest(jax.random.key(0), gradient)
  assert np.isfinite(step).all()
  if scale > 1e-30:  # Below, float32 gradients may be flushed to zero.
    expected = threat_models.NORMS[norm](1.).steepest(jax.random.key(0),
                                                      jnp.asarray([[1., -2., 3.]]))
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


@pytest.mark.parametrize('norm', NORMS)
def test_a_step_of_no_gradient_is_none(norm):
  for bad in (jnp.nan, jnp.inf):
    gradient = jnp.asarray([[1., bad, 2.], [1., 2., 3.]])
    step = threat_models.NORMS[norm](1.).steepest(jax.random.key(0), gradient)
    assert np.isfinite(step[1]).all()
    if norm == 'l2' or bad is jnp.nan:  # Else a sign is what it is.
      assert np.isnan(step[0]).any(), 'and no random direction'


def test_an_unknown_order_is_refused():
  with pytest.raises(ValueError, match="order .*'box'"):
    threat_models.make('l1', 1., order='box')


def test_top_k_below_one_is_refused():
  with pytest.raises(ValueError, match='top_k .*0'):
    threat_models.l1(1., top_k=0)
