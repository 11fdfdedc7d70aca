"""What attacks ascend, against NumPy in float64, closed forms and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from robust_jax import losses, smoothing
from robust_jax.attacks import objectives

KEY = jax.random.key(8)
SIGMA = 0.3


@pytest.fixture(scope='module')
def noise(images):
  return smoothing.sample_noise(jax.random.key(7), images, sigma=SIGMA, num_noise=6)


def numpy_log_probs(logits_fn, images, noise):
  return np.stack([log_softmax(np.asarray(logits_fn(images + n), np.float64), -1) for n in noise])


def test_objectives_have_their_formulas(mlp_fn, images, labels, noise):
  victim, rows, y = smoothing.victim(mlp_fn, noise), np.arange(5), np.asarray(labels)
  other, moved = (y + 1) % 4, jnp.clip(images + 0.1, 0, 1)
  log_probs, log_moved = (numpy_log_probs(mlp_fn, x, noise) for x in (images, moved))
  log_f, log_f_moved = (logsumexp(z, axis=0) - np.log(6) for z in (log_probs, log_moved))
  rivals = np.where(np.arange(4) == y[:, None], -np.inf, log_f).max(-1)
  naive = -log_probs[:, rows, y].mean(0)
  expected = {
      'cross_entropy': ((labels,), -log_f[rows, y]),
      'margin': ((labels,), rivals - log_f[rows, y]),
      'logit_gap': ((labels, other), log_f[rows, other] - log_f[rows, y]),
      'kl': ((victim.logits(moved),), np.sum(np.exp(log_f_moved) * (log_f_moved - log_f), -1)),
      'naive': ((labels,), naive),
  }
  for name, (args, value) in expected.items():
    objective = victim.objective(getattr(objectives, name), *args)
    np.testing.assert_allclose(objective(images), value, rtol=1e-4, atol=1e-5, err_msg=name)
  assert (-log_f[rows, y] <= naive).all(), 'Jensen'
  for loss in (objectives.cross_entropy, objectives.margin, objectives.naive):
    np.testing.assert_array_equal(victim.objective(loss, labels, other)(images),
                                  -victim.objective(loss, other)(images))


@pytest.mark.parametrize('zero_draws', [0, 1])
def test_of_one_copy_they_are_the_losses(zero_draws, mlp_fn, images, labels):
  victim = smoothing.victim(mlp_fn, jnp.zeros((1, *images.shape)) if zero_draws else None)
  logits, other = mlp_fn(images), labels[::-1]
  cross_entropy = losses.cross_entropy(logits, labels)
  for loss, args, expected in (
      (objectives.cross_entropy, (labels,), cross_entropy),
      (objectives.naive, (labels,), cross_entropy),
      (objectives.margin, (labels,), losses.margin(logits, labels)),
      (objectives.kl, (victim.logits(images + 1),),
       losses.kl_divergence(mlp_fn(images + 1), logits)),
      (objectives.logit_gap, (labels, other), losses.targeted_logit_gap(logits, labels, other))):
    np.testing.assert_array_equal(victim.objective(loss, *args)(images), expected)


@pytest.mark.parametrize('targeted', [False, True])
def test_the_gradient_free_objective_has_its_formula(targeted, mlp_fn, images, labels):
  noise = smoothing.sample_noise(KEY, images, sigma=0.4, num_noise=7)
  targets = (labels + 1) % 4 if targeted else None
  objective = objectives.gradient_free(smoothing.victim(mlp_fn, noise), labels, targets, sigma=0.4)
  found = jax.grad(lambda x: objective(x).sum())(images)
  probs = np.stack([jax.nn.softmax(mlp_fn(images + n)) for n in noise]).astype(np.float64)

  def formula(classes):
    of_label = probs[:, np.arange(5), classes]
    ascent = -np.einsum('mb,mbhwc->bhwc', of_label, np.asarray(noise, np.float64))
    return -np.log(of_label.mean(0)), ascent / of_label.sum(0)[:, None, None, None] / 0.4**2

  value, expected = formula(labels)
  if targeted:
    value, expected = (-part for part in formula(targets))
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(objective(images), value, rtol=1e-4)


def test_the_gradient_free_direction_becomes_the_gradient_as_draws_are_added():
  # Two classes, logits (w.x, 0): E sigma(w.(x + n)) is an integral over one normal variable, and
  # its gradient is along w.
  w = np.array([1.5, -2., 0.5, 1.], np.float64)
  fn = lambda x: jnp.stack([x.reshape(len(x), -1) @ jnp.asarray(w, jnp.float32),
                            jnp.zeros(len(x))], -1)
  x, sigma = np.array([0.2, 0.6, 0.4, 0.7]), 0.5
  points, shares = np.polynomial.hermite_e.hermegauss(80)
  p = 1 / (1 + np.exp(-(w @ x + sigma * np.linalg.norm(w) * points)))
  exact = -w * (shares @ (p * (1 - p))) / (shares @ p)  # of -log E F_0
  image, label = jnp.asarray(x, jnp.float32).reshape(1, 2, 2, 1), jnp.zeros(1, int)
  errors = []
  for num_noise in (100, 10_000, 200_000):
    noise = smoothing.sample_noise(KEY, image, sigma=sigma, num_noise=num_noise)
    objective = objectives.gradient_free(smoothing.victim(fn, noise), label, sigma=sigma)
    found = np.ravel(jax.grad(lambda x, objective=objective: objective(x).sum())(image))
    errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
  assert errors[0] < 1 and errors[1] < 0.1 and errors[2] < 0.02, errors
  assert errors[2] < errors[1] < errors[0]


def test_smoothadv_gradient_by_finite_differences(mlp_fn, images, labels, noise):
  objective = smoothing.victim(mlp_fn, noise).objective(objectives.cross_entropy, labels)
  gradient = jax.grad(lambda x: objective(x).sum())(images)
  direction = jnp.asarray(np.random.default_rng(0).normal(size=images.shape), jnp.float32)
  step = 1e-2
  numeric = (objective(images + step * direction) - objective(images - step * direction)) / 2 / step
  analytic = jnp.sum((gradient * direction).reshape(5, -1), -1)
  np.testing.assert_allclose(analytic, numeric, rtol=2e-2, atol=2e-3)


def test_gradient_free_estimate_has_the_right_scale():
  # F(x)_1 = sigmoid(w x) in one dimension: the smoothed probability by quadrature.
  w, sigma, m = 2., 0.5, 400_000
  fn = lambda x: jnp.stack([jnp.zeros(len(x)), w * x[:, 0]], -1)
  x, label = jnp.asarray([[0.3]]), jnp.asarray([1])
  noise = smoothing.sample_noise(jax.random.key(0), x, sigma=sigma, num_noise=m)
  objective = objectives.gradient_free(smoothing.victim(fn, noise), label, sigma=sigma)
  estimate = jax.grad(lambda x: objective(x).sum())(x)
  nodes, weights = np.polynomial.hermite_e.hermegauss(80)
  weights = weights / weights.sum()
  p = 1 / (1 + np.exp(-w * (0.3 + sigma * nodes)))
  exact = -np.sum(weights * w * p * (1 - p)) / np.sum(weights * p)
  np.testing.assert_allclose(estimate, [[exact]], rtol=0.02)
  with_gradient = jax.grad(
      lambda x: smoothing.victim(fn, noise).objective(objectives.cross_entropy, label)(x).sum())(x)
  np.testing.assert_allclose(with_gradient, [[exact]], rtol=0.01)


def test_saturated_logits_keep_value_and_gradient(images, labels):
  # Gaps of 1,000: a mean of float32 probabilities would be 0 and its log infinite.
  weights = jnp.zeros((12, 4)).at[0, 0].set(1000.)
  fn = lambda x: (x.reshape(len(x), -1) + 1) @ weights
  noise = jnp.zeros((2,) + images.shape)
  wrong = jnp.ones_like(labels)
  objective = smoothing.victim(fn, noise).objective(objectives.cross_entropy, wrong)
  value, gradient = jax.value_and_grad(lambda x: objective(x).sum())(images)
  np.testing.assert_allclose(value, np.sum(np.asarray(fn(images))[:, 0]), rtol=1e-5)
  np.testing.assert_allclose(gradient[:, 0, 0, 0], 1000, rtol=1e-5)
