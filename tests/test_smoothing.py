"""The smoothed classifier: its noise, its copies and their votes against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from robust_jax import keys, losses, smoothing
from robust_jax.attacks import objectives

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


def test_logits_of_the_mean_probabilities(mlp_fn, images, noise):
  expected = logsumexp(numpy_log_probs(mlp_fn, images, noise), axis=0) - np.log(len(noise))
  logits = smoothing.victim(mlp_fn, noise).logits(images)
  np.testing.assert_allclose(smoothing.mean_logits(logits), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(smoothing.mean_logits(logits[:1]), logits[0])


def test_a_smoothed_classifier_predicts_by_vote(mlp_fn, images, noise):
  predictions = np.stack([np.argmax(mlp_fn(images + n), -1) for n in noise])
  expected = [np.bincount(column, minlength=4).argmax() for column in predictions.T]
  np.testing.assert_array_equal(smoothing.victim(mlp_fn, noise).predict(images), expected)


@pytest.mark.parametrize('votes, winner', [
    ([2, 2, 0], 2), ([2, 0, 1], 0), ([1, 0], 0), ([None, None, None], -1), ([None, None, 1], -1),
    ([None, 1, 1], 1), ([None, 1], 1), ([0], 0), ([None], -1)])
def test_nan_votes_for_no_class(votes, winner):
  logits = np.stack([np.full(3, np.nan) if vote is None else np.eye(3)[vote] for vote in votes])
  assert smoothing.majority(jnp.asarray(logits[:, None], jnp.float32)).tolist() == [winner]


def test_without_noise_a_victim_is_the_classifier(mlp_fn, images):
  for victim in (smoothing.victim(mlp_fn), smoothing.victim(mlp_fn, jnp.zeros((1, *images.shape)))):
    assert victim.num_copies == 1
    np.testing.assert_array_equal(smoothing.mean_logits(victim.logits(images)), mlp_fn(images))
    np.testing.assert_array_equal(victim.predict(images), losses.predicted(mlp_fn(images)))


def test_a_victim_is_a_pytree_and_its_objectives_too(mlp_fn, images, labels, noise):
  @jax.jit
  @chex.assert_max_traces(n=1)
  def value(objective, images):
    return objective(images)

  for draws in (noise, 2 * noise):
    objective = smoothing.victim(mlp_fn, draws).objective(objectives.margin, labels)
    np.testing.assert_allclose(value(objective, images), objective(images), rtol=1e-4)


def test_noise_of_another_shape_is_refused(mlp_fn, images, noise):
  with pytest.raises(ValueError, match='noise .*shape'):
    smoothing.victim(mlp_fn, noise[:, :1]).logits(images)
  one = slice(1, 2)
  np.testing.assert_allclose(
      smoothing.victim(mlp_fn, noise).rows(one).logits(images[one]),
      smoothing.victim(mlp_fn, noise).logits(images)[:, one], rtol=1e-5)
