"""Bounds by lines of the image, against NumPy's of dense networks and points that try to cross."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from test_network_bounds import check, gain, images, spec, weights

from robust_jax import bounds
from robust_jax.bounds import forward

PIXELS, WIDTHS, CLASSES = 72, (9, 7), 3


def layers(seed):
  get = weights(seed)
  sizes = (PIXELS, *WIDTHS, CLASSES)
  return [(2 * get(2 * i, *shape), get(2 * i + 1, shape[1]))
          for i, shape in enumerate(zip(sizes, sizes[1:]))]


def net(layers, x):
  x = x.reshape(len(x), -1)
  for w, b in layers[:-1]:
    x = nn.relu(x @ w + b)
  return x @ layers[-1][0] + layers[-1][1]


def numpy_forward(layers, image, epsilon, norm, row):
  """The bound of <row, logits>: every neuron between lines of the pixels, one layer at a time."""
  image = np.asarray(image, np.float64).reshape(-1)
  least = lambda a, c: a @ image + c - gain(a, image, epsilon, norm)
  box = np.maximum(image - epsilon, 0), np.minimum(image + epsilon, 1)
  below = above = np.eye(PIXELS), np.zeros(PIXELS)  # Of neurons: slopes [neurons, pixels], shifts.
  *inner, (last, shift) = [(np.float64(w), np.float64(b)) for w, b in layers]
  for w, b in [*inner, (last @ row[:, None], shift @ row)]:
    pos, neg = np.maximum(w, 0).T, np.minimum(w, 0).T
    below, above = ([pos @ x + neg @ y for x, y in zip(*pair)]
                    for pair in ((below, above), (above, below)))
    below[1], above[1] = below[1] + b, above[1] + b
    low = np.array([least(a, c) for a, c in zip(*below)])
    high = -np.array([least(-a, -c) for a, c in zip(*above)])
    low = np.maximum(low, pos @ box[0] + neg @ box[1] + b)
    high = np.minimum(high, pos @ box[1] + neg @ box[0] + b)
    # Of a ReLU between low < 0 < high: its chord above, and x or 0 below, whichever is nearer.
    mixed = (low < 0) & (high > 0)
    chord = np.where(mixed, high / np.where(mixed, high - low, 1), low >= 0)
    under = np.where(mixed, high >= -low, chord)
    below = under[:, None] * below[0], under * below[1]
    above = chord[:, None] * above[0], chord * above[1] - np.where(mixed, chord * low, 0)
    box = np.maximum(low, 0), np.maximum(high, 0)
  return low.item()


def both(norm, epsilon):
  """Bounds of a dense network, and NumPy's."""
  of_layers, x, labels = layers(3), images(seed=3), np.array([0, 1, 2, 1])
  anew = lambda layers, x: net(layers, x)  # Or it would not be traced again.
  found = bounds.crown(jax.tree_util.Partial(anew, of_layers), x, np.array(epsilon), norm=norm,
                       labels=labels, method='forward', chunk=5)
  expected = [[numpy_forward(of_layers, *of_one, norm, row) if row.any() else 0 for row in rows]
              for *of_one, rows in zip(x, epsilon, spec(labels))]
  return np.asarray(found), np.array(expected)


@pytest.mark.parametrize('norm, epsilon', [
    ('linf', [0., 0.01, 0.05, 0.3]), ('l2', [0., 0.1, 0.4, 1.]), ('l1', [0., 0.3, 1., 5.])])
def test_it_is_the_textbook_s_on_dense_networks(norm, epsilon):
  found, expected = both(norm, epsilon)
  assert (found <= expected + 1e-5).all()
  np.testing.assert_allclose(found, expected, atol=6e-3)


@pytest.mark.parametrize('name', [
    'residual', pytest.param('convolutional', marks=pytest.mark.slow)])
def test_no_point_crosses(name):
  worst, found, _ = check(name, 'linf', ['ibp', 'forward'], attack=False)
  assert worst <= 0
  assert (found['forward'] >= found['ibp'] - 1e-6).all()
  assert (found['forward'] > found['ibp'] + 1e-3).any()


def test_gradients_are_those_of_the_bounds():
  of_layers, x = layers(3), images(seed=3)
  total = jax.jit(lambda of_layers: bounds.crown(
      jax.tree_util.Partial(net, of_layers), x, 0.05, labels=np.zeros(4, int),
      method='forward').sum())
  at_w = jax.grad(total)(of_layers)
  draw = np.random.default_rng(0)
  for number in range(2):
    move = draw.normal(size=at_w[number][0].shape).astype(np.float32) * 1e-3
    moved = [[(w + by * move if i == number else w, b) for i, (w, b) in enumerate(of_layers)]
             for by in (1, -1)]
    slope = (total(moved[0]) - total(moved[1])) / 2
    np.testing.assert_allclose(np.sum(at_w[number][0] * move), slope, rtol=0.05)


@pytest.mark.parametrize('scale', [1e9, 1e12])
def test_nothing_is_rounded_inward_where_a_pixel_is_just_below_0(scale):
  """relu(scale relu(-x) - scale relu(-x) + 1), of which coefficients have only roundings."""
  x, label = np.full((1, 1, 1, 1), -1e-6, np.float32), np.array([0])

  def of_pixel(x):
    y = nn.relu(x.reshape(len(x), 1) @ np.array([[-1., -1.]], np.float32))
    z = nn.relu(y @ np.array([[scale], [-scale]], np.float32) + 1)
    return np.zeros(2, np.float32) + z * np.array([1., 0.], np.float32)

  lower = bounds.crown(of_pixel, x, 0., labels=label, method='forward')
  assert lower[0, 1] <= 1 and of_pixel(x)[0, 0] >= 1


def test_a_planted_mistake_is_seen(monkeypatch):
  """The line below comes from lines below, whatever the signs of weights."""
  right = forward._through_affine
  monkeypatch.setattr(forward, '_through_affine',
                      lambda rule, inputs: right(rule._replace(rising=True), inputs))
  found, expected = both('linf', [0., 0.01, 0.05, 0.25])
  assert (found > expected + 0.01).any()
