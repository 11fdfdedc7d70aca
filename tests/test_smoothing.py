"""The smoothed classifier and its objectives against NumPy, closed forms and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from robust_jax import keys, losses, smoothing

SIGMA = 0.3


@pytest.fixture(scope='module')
def noise(images):
  return smoothing.sample_noise(jax.random.key(7), images, sigma=SIGMA, num_noise=6)


def numpy_log_probs(logits_fn, images, noise):
  return np.stack([log_softmax(np.asarray(logits_fn(images + n), np.float64), -1) for n in noise])


def test_noise_is_gaussian_and_float32():
  draws = smoothing.sample_noise(jax.random.key(0), jnp.zeros((50, 10, 10, 1), jnp.bfloat16),
                                 sigma=0.5, num_noise=20)
  assert draws.dtype == jnp.float32 and draws.shape == (20, 50, 10, 10, 1)
  ordered = np.sort(np.ravel(draws))
  empirical = np.arange(1, ordered.size + 1) / ordered.size
  assert np.abs(norm.cdf(ordered / 0.5) - empirical).max() < 1.95 / np.sqrt(ordered.size)
  assert len(np.unique(ordered)) > 0.9 * ordered.size


def test_noise_belongs_to_the_example_and_the_draw(images):
  key = jax.random.key(3)
  six = smoothing.sample_noise(key, images, sigma=1., num_noise=6)
  np.testing.assert_array_equal(
      six[:2], smoothing.sample_noise(key, images, sigma=1., num_noise=2))
  example_keys = keys.per_example(key, 5)
  alone = smoothing.sample_noise(example_keys[3:4], images[3:4], sigma=1., num_noise=6)
  np.testing.assert_array_equal(alone[:, 0], six[:, 3])
  by_hand = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 3), 4), (3, 4, 1))
  np.testing.assert_array_equal(six[4, 3], by_hand)


def test_sigma_may_differ_per_example(images):
  sigma = jnp.asarray([0., 1., 2., 3., 4.])
  unit = smoothing.sample_noise(jax.random.key(0), images, sigma=1., num_noise=2)
  scaled = smoothing.sample_noise(jax.random.key(0), images, sigma=sigma, num_noise=2)
  np.testing.assert_allclose(scaled, unit * sigma[None, :, None, None, None], rtol=1e-6)


def test_smoothed_log_probs(mlp_fn, images, noise):
  expected = logsumexp(numpy_log_probs(mlp_fn, images, noise), axis=0) - np.log(len(noise))
  np.testing.assert_allclose(
      smoothing.smoothed_log_probs(mlp_fn, images, noise), expected, rtol=1e-4, atol=1e-5)


def test_vote(mlp_fn, images, noise):
  predictions = np.stack([np.argmax(mlp_fn(images + n), -1) for n in noise])
  expected = [np.bincount(column, minlength=4).argmax() for column in predictions.T]
  np.testing.assert_array_equal(smoothing.vote(mlp_fn, images, noise), expected)


def test_objectives_have_their_formulas(mlp_fn, images, labels, noise):
  log_probs = numpy_log_probs(mlp_fn, images, noise)[:, np.arange(5), np.asarray(labels)]
  smoothadv = np.log(6) - logsumexp(log_probs, axis=0)
  np.testing.assert_allclose(
      smoothing.smoothadv_objective(mlp_fn, labels, noise)(images), smoothadv, 1e-4)
  np.testing.assert_allclose(
      smoothing.naive_objective(mlp_fn, labels, noise)(images), -log_probs.mean(0), 1e-4)
  np.testing.assert_allclose(
      smoothing.gradient_free_objective(mlp_fn, labels, noise, sigma=SIGMA)(images), smoothadv,
      1e-4)
  assert (smoothadv <= -log_probs.mean(0)).all(), 'Jensen'


def test_smoothadv_gradient_by_finite_differences(mlp_fn, images, labels, noise):
  objective = smoothing.smoothadv_objective(mlp_fn, labels, noise)
  gradient = jax.grad(lambda x: objective(x).sum())(images)
  direction = jnp.asarray(np.random.default_rng(0).normal(size=images.shape), jnp.float32)
  step = 1e-2
  numeric = (objective(images + step * direction) - objective(images - step * direction)) / 2 / step
  analytic = jnp.sum((gradient * direction).reshape(5, -1), -1)
  np.testing.assert_allclose(analytic, numeric, rtol=2e-2, atol=2e-3)


def test_all_objectives_agree_for_one_draw_without_noise(mlp_fn, images, labels):
  zero = jnp.zeros((1,) + images.shape)
  expected = losses.cross_entropy(mlp_fn(images), labels)
  for make in (smoothing.smoothadv_objective, smoothing.naive_objective):
    np.testing.assert_allclose(make(mlp_fn, labels, zero)(images), expected, rtol=1e-6)


def test_gradient_free_estimate_has_the_right_scale():
  # F(x)_1 = sigmoid(w x) in one dimension: the smoothed probability by quadrature.
  w, sigma, m = 2., 0.5, 400_000
  fn = lambda x: jnp.stack([jnp.zeros(len(x)), w * x[:, 0]], -1)
  x, label = jnp.asarray([[0.3]]), jnp.asarray([1])
  noise = smoothing.sample_noise(jax.random.key(0), x, sigma=sigma, num_noise=m)
  objective = smoothing.gradient_free_objective(fn, label, noise, sigma=sigma)
  estimate = jax.grad(lambda x: objective(x).sum())(x)
  nodes, weights = np.polynomial.hermite_e.hermegauss(80)
  weights = weights / weights.sum()
  p = 1 / (1 + np.exp(-w * (0.3 + sigma * nodes)))
  exact = -np.sum(weights * w * p * (1 - p)) / np.sum(weights * p)
  np.testing.assert_allclose(estimate, [[exact]], rtol=0.02)
  with_gradient = jax.grad(
      lambda x: smoothing.smoothadv_objective(fn, label, noise)(x).sum())(x)
  np.testing.assert_allclose(with_gradient, [[exact]], rtol=0.01)


def test_saturated_logits_keep_value_and_gradient(images, labels):
  # Gaps of 1,000: a mean of float32 probabilities would be 0 and its log infinite.
  weights = jnp.zeros((12, 4)).at[0, 0].set(1000.)
  fn = lambda x: (x.reshape(len(x), -1) + 1) @ weights
  noise = jnp.zeros((2,) + images.shape)
  wrong = jnp.ones_like(labels)
  objective = smoothing.smoothadv_objective(fn, wrong, noise)
  value, gradient = jax.value_and_grad(lambda x: objective(x).sum())(images)
  np.testing.assert_allclose(value, np.sum(np.asarray(fn(images))[:, 0]), rtol=1e-5)
  np.testing.assert_allclose(gradient[:, 0, 0, 0], 1000, rtol=1e-5)
