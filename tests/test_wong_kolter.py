"""Bounds of Wong and Kolter against their algorithm in NumPy, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from robust_jax import bounds

DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}


def compiled(function):
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def layers(seed, sizes=(4, 9, 8, 3)):
  """[(W, b)] of a network of ReLUs, W [out, in]."""
  draw = np.random.default_rng(seed)
  return [(draw.normal(size=(after, before)).astype(np.float32) * 2 / np.sqrt(before),
           draw.normal(size=after).astype(np.float32) / 3)
          for before, after in zip(sizes, sizes[1:])]


def network(weights, x):
  for w, b in weights[:-1]:
    x = nn.relu(x @ w.T + b)
  return x @ weights[-1][0].T + weights[-1][1]


def dual(weights, ends, c, x, epsilon, norm):
  """J of Wong and Kolter 2018, equation 5, of the first layers: at most <c, their output>."""
  nu, total = -c, 0.
  for number in range(len(weights) - 1, -1, -1):
    w, b = weights[number]
    total -= nu @ b
    hat = w.T @ nu
    if number == 0:
      return total - x @ hat - epsilon * np.linalg.norm(hat, DUAL[norm])
    lower, upper = ends[number - 1]
    crossing = (lower < 0) & (upper > 0)
    slope = np.where(crossing, upper / np.where(crossing, upper - lower, 1), upper > 0)
    nu = slope * hat
    total += np.sum(np.where(crossing, lower * np.maximum(nu, 0), 0))
  return None


def algorithm_1(weights, c, x, epsilon, norm):
  """The bounds of all layers, one after the other, and that of <c, logits>."""
  weights = [(w.astype(float), b.astype(float)) for w, b in weights]
  ends = []
  for depth in range(1, len(weights)):
    unit = np.eye(len(weights[depth - 1][1]))
    of = lambda c: dual(weights[:depth], ends, c, x, epsilon, norm)  # noqa: B023
    ends.append((np.array([of(e) for e in unit]), -np.array([of(-e) for e in unit])))
  return dual(weights, ends, c, x, epsilon, norm), ends


@pytest.mark.parametrize('norm', DUAL)
def test_it_is_algorithm_1(norm):
  """In the middle of the box, which the paper does not cut balls to."""
  x = np.random.default_rng(0).uniform(0.45, 0.55, (3, 4)).astype(np.float32)
  epsilon = np.float32([0, 0.03, 0.4])
  run = compiled(lambda weights: bounds.crown(
      jax.tree_util.Partial(network, weights), x, epsilon, norm=norm, labels=np.array([0, 1, 2]),
      method='wong_kolter'))
  crossed = 0
  for seed in (0, 1):
    weights = layers(seed)
    found = np.asarray(run(weights))
    for label, (image, size) in enumerate(zip(x.astype(float), epsilon.astype(float))):
      for other in range(3):
        row = np.eye(3)[label] - np.eye(3)[other]
        expected, ends = algorithm_1(weights, row, image, size, norm)
        np.testing.assert_allclose(found[label, other], expected, rtol=1e-4, atol=5e-4)
        assert found[label, other] <= expected + 1e-12 or label == other
        crossed += sum(((low < 0) & (high > 0)).sum() for low, high in ends)
  assert crossed > 30


@pytest.mark.parametrize('norm', [pytest.param('linf', marks=pytest.mark.slow),
                                  pytest.param('l2', marks=pytest.mark.slow), 'l1'])
def test_gradients_are_finite_and_of_the_bounds_also_where_all_ends_are_equal(norm):
  x = np.random.default_rng(1).uniform(size=(3, 4)).astype(np.float32)
  weights = layers(2, (4, 5, 5, 3))
  weights[0][0][:2] = 0  # Units without a spread, one of them at its kink.
  weights[0][1][:2] = 0, 0.3

  def total(scale, epsilon):
    net = jax.tree_util.Partial(network, [(w * scale, b) for w, b in weights])
    return bounds.crown(net, x, epsilon, norm=norm, labels=np.array([0, 1, 2]),
                        method='wong_kolter').sum()

  run = compiled(jax.value_and_grad(total, (0, 1)))
  for size in (0., 0.1):
    epsilon = jnp.full(3, size)
    value, (of_scale, of_epsilon) = run(jnp.float32(1), epsilon)
    assert np.isfinite(value) and np.isfinite(of_scale) and np.isfinite(of_epsilon).all()
    assert of_scale != 0 and (of_epsilon < 0).all()
  ends = [run(jnp.float32(1 + step), epsilon)[0] for step in (-5e-4, 5e-4)]
  np.testing.assert_allclose(of_scale, (ends[1] - ends[0]) / 1e-3, rtol=0.02)


def test_kinks_have_parallel_lines_and_other_functions_are_refused():
  x = np.full((1, 4), 0.5, np.float32)
  (w, b), (v, d) = layers(3, (4, 6, 3))
  leaky = jax.tree_util.Partial(lambda x: nn.leaky_relu(x @ w.T + b, 0.2) @ v.T + d)
  found = bounds.crown(leaky, x, 0.3, labels=np.array([0]), method='wong_kolter')
  middle, radius = w @ x[0] + b, 0.3 * np.abs(w).sum(1)
  low, high = middle - radius, middle + radius
  above = np.clip(high / (high - low), 0, 1)
  slope = 0.2 + 0.8 * above
  # f(z) - slope z is between 0, at the kink, and its value at the lower end.
  most = np.where((low < 0) & (high > 0), (0.2 - slope) * low, 0)
  row = v[0] - v[1]
  linear = (row * slope) @ w
  expected = (linear @ x[0] - 0.3 * np.abs(linear).sum() + (row * slope) @ b
              + (np.minimum(row, 0) * most).sum() + d[0] - d[1])
  np.testing.assert_allclose(found[0, 1], expected, atol=5e-4)
  for function, name in ((nn.tanh, 'tanh'), (nn.softplus, 'softplus')):
    with pytest.raises(ValueError, match=f"must not be 'wong_kolter' .* got {name}") as error:
      bounds.crown(lambda x: function(x @ w.T + b) @ v.T, x, 0.3, labels=np.array([0]),  # noqa: B023
                   method='wong_kolter')
    assert '\n' not in str(error.value)
