"""Losses against NumPy in float64, and at the edges of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from robust_jax import losses


@pytest.fixture
def logits():
  return np.random.default_rng(0).normal(size=(6, 5), scale=3).astype(np.float32)


LABELS = np.array([0, 1, 2, 3, 4, 0])


def test_cross_entropy_is_minus_log_softmax(logits):
  expected = -log_softmax(logits.astype(np.float64), axis=-1)[np.arange(6), LABELS]
  np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), LABELS), expected, 1e-5)


def test_label_smoothing_mixes_in_the_uniform_distribution(logits):
  target = np.full((6, 5), 0.3 / 5)
  target[np.arange(6), LABELS] += 0.7
  expected = -(target * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
  found = losses.cross_entropy(jnp.asarray(logits), LABELS, label_smoothing=0.3)
  np.testing.assert_allclose(found, expected, 1e-5)


def test_margin_is_the_best_other_logit_less_the_labels(logits):
  expected = [max(np.delete(row, y)) - row[y] for row, y in zip(logits, LABELS)]
  margin = losses.margin(jnp.asarray(logits), LABELS)
  np.testing.assert_allclose(margin, expected, 1e-6)
  np.testing.assert_array_equal(np.asarray(margin) > 0, logits.argmax(-1) != LABELS)


def test_targeted_gap_is_difference_of_cross_entropies(logits):
  targets = (LABELS + 1) % 5
  gap = losses.targeted_logit_gap(jnp.asarray(logits), LABELS, targets)
  expected = (losses.cross_entropy(logits, jnp.asarray(LABELS))
              - losses.cross_entropy(logits, jnp.asarray(targets)))
  np.testing.assert_allclose(gap, expected, atol=1e-5)


def test_kl_divergence(logits):
  other = logits[::-1]
  log_p, log_q = (log_softmax(z.astype(np.float64), axis=-1) for z in (logits, other))
  expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
  np.testing.assert_allclose(losses.kl_divergence(jnp.asarray(logits), jnp.asarray(other)),
                             expected, 1e-4)
  np.testing.assert_allclose(losses.kl_divergence(logits, logits), 0, atol=1e-6)


@pytest.mark.parametrize('largest', [1e38, 3e38])
def test_cross_entropy_at_the_largest_logits(largest):
  logits = jnp.asarray([[largest, -largest, 0., -largest]])
  loss = lambda z, label: losses.cross_entropy(z, jnp.asarray([label]))[0]
  for label, gap in enumerate([0., 2 * largest, largest, 2 * largest]):
    value, gradient = jax.value_and_grad(loss)(logits, label)
    np.testing.assert_allclose(value, gap if gap < 3.4e38 else np.inf, 1e-6)
    assert np.isfinite(gradient).all()
  assert np.isnan(loss(logits.at[0, 2].set(jnp.nan), 0))


@pytest.mark.parametrize('gap', [50., 200., 1e4])
def test_saturated_logits_stay_finite(gap):
  logits = jnp.asarray([[gap, 0., -gap]])
  for label in range(3):
    y = jnp.asarray([label])
    value, gradient = jax.value_and_grad(lambda z, y=y: losses.cross_entropy(z, y)[0])(logits)
    np.testing.assert_allclose(value, gap * label, rtol=1e-6, atol=1e-6)
    assert np.isfinite(gradient).all()
  kl, gradient = jax.value_and_grad(
      lambda z: losses.kl_divergence(z, jnp.flip(z, -1)).sum())(logits)
  np.testing.assert_allclose(kl, 2 * gap, rtol=1e-5)
  assert np.isfinite(gradient).all()
