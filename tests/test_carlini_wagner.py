"""Carlini & Wagner: what foolbox finds, closed forms, and what is asked for besides."""

import functools

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import attacks, losses, smoothing
from robust_jax.attacks import threat_models

KEY = jax.random.key(5)
GOLDEN = np.load(golden_attacks.FILE)
IMAGES, LABELS, TARGETS = (jnp.asarray(GOLDEN[name]) for name in ('images', 'labels', 'targets'))
NETWORK = jax.tree_util.Partial(
    functools.partial(golden_attacks.network, np=jnp),
    {name: jnp.asarray(GOLDEN[f'weights/{name}']) for name in ('first', 'bias', 'second')})
attack = functools.partial(attacks.carlini_wagner, KEY, NETWORK, IMAGES, LABELS,
                           **golden_attacks.CARLINI_WAGNER)
size = lambda result: threat_models.norms(result.images - IMAGES, 'l2')


@pytest.mark.parametrize('kind', golden_attacks.CARLINI_WAGNER_KINDS)
def test_it_finds_what_the_published_package_finds(kind):
  targeted, confidence = golden_attacks.CARLINI_WAGNER_KINDS[kind]
  result = attack(epsilon=np.inf, abort_early=False, confidence=confidence,
                  targets=TARGETS if targeted else None)
  np.testing.assert_allclose(result.images, GOLDEN[f'carlini_wagner/{kind}'], atol=1e-4)
  np.testing.assert_array_equal(result.success, size(result) > 0)
  assert result.success.sum() >= 6


def test_the_radius_only_says_which_count():
  anywhere = attack(epsilon=np.inf)
  epsilon = jnp.median(size(anywhere))
  result = attack(epsilon=epsilon)
  np.testing.assert_array_equal(result.success, size(anywhere) <= epsilon)
  np.testing.assert_array_equal(result.images, jnp.where(
      result.success[:, None, None, None], anywhere.images, IMAGES))


def test_the_misclassified_have_the_confidence_that_is_asked_for():
  for confidence in (0., 0.5):
    result = attack(epsilon=np.inf, confidence=confidence)
    np.testing.assert_allclose(result.objective, losses.margin(NETWORK(result.images), LABELS),
                               atol=1e-5)
    assert result.success.all() and (result.objective >= confidence).all()


def test_of_a_linear_model_it_finds_the_closest_point():
  # Away from the box: the distance to the hyperplane z_0 = z_1.
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)), jnp.float32)
  fn = jax.tree_util.Partial(lambda w, x: (x - 0.5) @ w, weights)
  images = jnp.asarray(np.random.default_rng(1).uniform(0.4, 0.6, size=(6, 30)), jnp.float32)
  labels = fn(images).argmax(-1)
  result = attacks.carlini_wagner(KEY, fn, images, labels, epsilon=np.inf, num_steps=300,
                                  initial_constant=0.1)
  closest = jnp.abs(fn(images) @ jnp.asarray([1., -1])) / jnp.linalg.norm(weights[:, 0] -
                                                                          weights[:, 1])
  found = threat_models.norms(result.images - images, 'l2')
  assert result.success.all()
  assert (found >= closest * (1 - 1e-4)).all() and (found <= 1.01 * closest + 5e-4).all()


def test_what_is_misclassified_already_stays():
  wrong = (LABELS + 1) % golden_attacks.CLASSES
  result = attacks.carlini_wagner(KEY, NETWORK, IMAGES, wrong, epsilon=0.)
  np.testing.assert_array_equal(result.images, IMAGES)
  assert result.success.all()


def test_the_smoothed_classifier_is_attacked_through_its_draws():
  noise = smoothing.sample_noise(KEY, IMAGES, sigma=0.1, num_noise=5)
  result = attack(epsilon=np.inf, noise=noise)
  victim = smoothing.victim(NETWORK, noise)
  np.testing.assert_array_equal(result.success, victim.predict(result.images) != LABELS)
  assert result.success.all()


@pytest.mark.parametrize('kwargs, message', [
    (dict(norm='linf'), "norm .*'linf'"), (dict(num_steps=0), 'num_steps .*0'),
    (dict(num_constants=0), 'num_constants .*0'), (dict(confidence=-1.), 'confidence .*-1'),
    (dict(initial_constant=0.), 'initial_constant .*0'), (dict(learning_rate=0.), 'learning_rate'),
])
def test_bad_arguments_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    attack(epsilon=0.1, **kwargs)
