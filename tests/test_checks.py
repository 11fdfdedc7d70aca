"""Checks of an evaluation: broken defences are caught, each by name, and a plain network is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import smoothing
from robust_jax.attacks import checks

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIDE, CLASSES, BATCH = 6, 3, 24
# Each class has a pattern of its own, which a linear layer reads off 48 features.
LABELS = np.arange(BATCH) % CLASSES
PATTERNS = RNG.choice([-1., 1.], (CLASSES, SIDE**2))
ROWS = 0.5 + 0.15 * PATTERNS[LABELS] + 0.03 * RNG.normal(size=(BATCH, SIDE**2))
IMAGES = ROWS.reshape(BATCH, SIDE, SIDE, 1).astype(np.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(SIDE**2, 48)) / SIDE, jnp.float32)


EPSILON = 0.08
SETTINGS = dict(epsilon=EPSILON, num_steps=100, restarts=3, num_queries=300)


def features(images, activation=jnp.tanh):
  return activation(4 * (images.reshape(len(images), -1) - 0.5) @ HIDDEN)


def network(images, activation=jnp.tanh):
  return features(images, activation) @ LAST


LAST = jnp.asarray(np.linalg.lstsq(
    np.asarray(features(IMAGES)), 8. * np.eye(CLASSES)[LABELS], rcond=0.05)[0], jnp.float32)


def winners(hidden):
  """The four largest entries, others 0 (k-winners-take-all)."""
  kth = jax.lax.top_k(hidden, 4)[0][:, -1:]
  return jnp.where(hidden >= kth, hidden, 0)


def shattered(images):
  """Waves on the logits that no image sees and every gradient does."""
  waves = jnp.sin(3e3 * images.reshape(len(images), -1)) @ HIDDEN
  return network(images) + 0.2 * waves @ LAST


DEFENCES = {
    'none': network,
    'quantised input': lambda x: network(jnp.round(8 * x) / 8),
    'saturated logits': lambda x: 1e3 * network(x),
    'temperature 1e-3': lambda x: network(x) / 1e-3,
    'k-winners': lambda x: network(x, winners),
    'gradient shattering': shattered,
}


def defended(number, images):
  # All are compiled at once.
  return jax.lax.switch(number, list(DEFENCES.values()), images)


def defended_by(name):
  return jax.tree_util.Partial(defended, list(DEFENCES).index(name))


def warnings(found):
  return {check.name for check in found.checks if not check.passed}


@pytest.mark.parametrize('name, caught_by', [
    ('none', set()), ('quantised input', {'gradients', 'larger radius'}),
    ('saturated logits', {'gradients', 'larger radius'}),
    ('temperature 1e-3', {'gradients', 'larger radius'}),
    ('k-winners', {'smooth'}), ('gradient shattering', {'black box', 'larger radius', 'smooth'}),
])
def test_broken_defences_are_caught(name, caught_by):
  found = checks.examine(KEY, defended_by(name), IMAGES, LABELS, **SETTINGS)
  assert caught_by <= warnings(found) and bool(warnings(found)) == bool(caught_by), found.checks
  for values, accuracies in found.curves.values():
    assert len(values) == len(accuracies) and (np.diff(values) > 0).all()
    assert ((accuracies >= 0) & (accuracies <= 1)).all()
  for values in found.indicators.values():
    assert values.shape == (BATCH,) and ((values >= 0) & (values <= 1)).all()
  assert found.curves['epsilon'][0][-1] == 1 and found.curves['epsilon'][1][0] == 1
  assert found.robust.mean() <= found.curves['restarts'][1][-1]


def test_random_answers_are_caught():
  rng = np.random.default_rng(0)
  random = smoothing.victim(lambda x: network(x + rng.normal(size=x.shape)))
  assert not checks._repeats(random, IMAGES)
  assert checks._repeats(smoothing.victim(lambda x: network(x) * np.nan), IMAGES)


def test_adversarial_images_of_another_network():
  settings = SETTINGS | dict(num_steps=20, restarts=1, num_queries=20)
  found = checks.examine(KEY, defended_by('saturated logits'), IMAGES, LABELS,
                         surrogate=defended_by('none'), **settings | dict(epsilon=0.12))
  # The same network but for a factor: what breaks one breaks the other.
  assert 'transfer' in warnings(found) and not found.indicators['transfer_failure'].any()
  found = checks.examine(KEY, defended_by('none'), IMAGES, LABELS,
                         surrogate=jax.tree_util.Partial(lambda x: -network(x)), **settings)
  assert 'transfer' not in warnings(found)


def test_a_smoothed_classifier_in_l2():
  noise = 0.05 * jax.random.normal(KEY, (3, *IMAGES[:4].shape))
  found = checks.examine(KEY, defended_by('none'), IMAGES[:4], LABELS[:4], noise=noise, norm='l2',
                         epsilon=0.3, num_steps=12, restarts=1, num_queries=10)
  radii, accuracies = found.curves['epsilon']
  assert radii[-1] == 6 and accuracies[0] == 1 and accuracies[-1] == 0
  assert len(found.curves['steps'][0]) == 13 and len(found.curves['restarts'][0]) == 1


def test_instability_of_a_linear_classifier():
  weights = np.random.default_rng(1).normal(size=(4, 2))
  images = np.random.default_rng(2).uniform(size=(500, 2, 2, 1)).astype(np.float32)
  linear = smoothing.victim(lambda x: x.reshape(len(x), -1) @ weights)
  labels = np.asarray(linear.predict(images))
  found = checks._instability(jax.random.split(KEY, 500), linear, images, labels)
  # Its margin changes by <w, u>, u uniform in [-4/255, 4/255]^4.
  w = weights[:, 0] - weights[:, 1]
  margin = np.abs(images.reshape(500, -1) @ w)
  change = np.abs(np.random.default_rng(3).uniform(-4, 4, (100_000, 4)) / 255 @ w).mean()
  far = margin > 5 * change
  np.testing.assert_allclose(np.mean(found[far] * margin[far]), change, rtol=0.03)
  np.testing.assert_allclose(found[far], change / margin[far], rtol=0.8)


def test_still_rising():
  steps = np.arange(40.)[:, None]
  loss = np.concatenate([
      np.minimum(steps, 20), steps, 0 * steps, -steps, np.where(steps > 35, np.nan, steps),
      np.where(steps == 30, 9, np.minimum(steps, 10)), np.exp(-steps)], axis=1)
  np.testing.assert_array_equal(checks._still_rising(loss),
                                [False, True, False, False, True, False, False])


@pytest.mark.parametrize('wrong, message', [
    (dict(epsilon=0.), 'epsilon .*0.0'), (dict(epsilon=np.nan), 'epsilon .*nan'),
    (dict(labels=LABELS + 3), 'labels'), (dict(norm='l3'), 'norm .*l3')])
def test_wrong_arguments(wrong, message):
  arguments = dict(images=IMAGES, labels=LABELS, **SETTINGS) | wrong
  with pytest.raises(ValueError, match=message):
    checks.examine(KEY, defended_by('none'), **arguments)
