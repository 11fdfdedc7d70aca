"""The exact verifier against vertices of regions, grids, and the network itself."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from robust_jax import bounds
from robust_jax.bounds import program
from robust_jax.bounds.program import build, holds, minimum
from tests import test_network_bounds as networks

ROW = np.array([1., -1.])


def of_one_layer(activation, weights, x):
  w, b, v, c = weights
  return activation(x @ w + b) @ v + c


def one_layer(seed, width=8):
  """Weights of 2 pixels -> width -> 2."""
  draw = np.random.default_rng(seed)
  return [draw.normal(size=shape).astype(np.float32)
          for shape in ((2, width), (width,), (width, 2), (2,))]


def least_at_vertices(net, weights, image, epsilon, norm):
  """The least margin of `of_one_layer` in two dimensions, in float64.

  It is linear between the lines at which a unit has its kink: the minimum is where two of them, or
  of the edges of ball and box, meet.
  """
  w, b = (np.asarray(x, float) for x in weights[:2])
  x, y = image.astype(float)
  edges = [(1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1)]
  if norm == 'linf':
    edges += [(1, 0, x - epsilon), (1, 0, x + epsilon), (0, 1, y - epsilon), (0, 1, y + epsilon)]
  else:
    edges += [(s, t, s * x + t * y + epsilon) for s in (1, -1) for t in (1, -1)]
  lines = [*edges, *zip(*w, -b)]
  points = []
  for one, other in itertools.combinations(lines, 2):
    matrix = np.array([one[:2], other[:2]], float)
    if abs(np.linalg.det(matrix)) > 1e-9:
      points.append(np.linalg.solve(matrix, [one[2], other[2]]))
  points = np.array(points)
  moved = np.abs(points - [x, y])
  size = moved.max(1) if norm == 'linf' else moved.sum(1)
  points = points[(size <= epsilon + 1e-9) & ((points >= -1e-9) & (points <= 1 + 1e-9)).all(1)]
  with jax.enable_x64(True):
    z = np.asarray(net(jnp.asarray(points)))
  return (z @ ROW).min(), (z @ -ROW).min()


@pytest.mark.parametrize('activation', [
    nn.relu, functools.partial(nn.leaky_relu, negative_slope=.2),
    *(pytest.param(function, marks=pytest.mark.slow)
      for function in (jnp.abs, lambda x: jnp.clip(x, -0.3, 10.)))])
def test_one_layer_in_two_dimensions_has_its_minimum_at_a_vertex(activation):
  differ = 0
  for seed, epsilon, norm in ((0, 0.1, 'linf'), (1, 0.3, 'linf'), (2, 0.2, 'l1'), (3, 0.6, 'l1')):
    weights = one_layer(seed)
    if activation(-1.) == -0.3:
      weights[1] = weights[1] + 0.3  # Kinks at 0 in `least_at_vertices`.
    image = np.random.default_rng(seed).uniform(size=2).astype(np.float32)
    net = jax.tree_util.Partial(functools.partial(of_one_layer, activation), weights)
    shifted = [weights[0], weights[1] + (0.3 if activation(-1.) == -0.3 else 0)]
    expected = least_at_vertices(
        lambda x: of_one_layer(activation, [np.float64(w) for w in weights], x),  # noqa: B023
        shifted, image, epsilon, norm)
    problem = build(net, image, epsilon, norm=norm)
    for row, value in zip((ROW, -ROW), expected):
      relaxed, least = (minimum(problem, row, relaxed=relax)[0] for relax in (True, False))
      np.testing.assert_allclose(least, value, atol=1e-3)
      assert relaxed <= least + 1e-5 and least <= value
      sign, _ = minimum(problem, row, sign_only=True)
      assert sign <= value and (sign > 0) == (value > 0.02)
      differ += relaxed < least - 1e-3
  assert differ


@pytest.mark.parametrize('name, norm', [
    ('convolutional', 'l1'),
    *(pytest.param(name, norm, marks=pytest.mark.slow) for name, norm in (
        ('residual', 'linf'), ('relu', 'linf'), ('leaky', 'l1'), ('relu6', 'linf'),
        ('convolutional', 'linf')))])
def test_the_network_has_the_margin_of_the_bound_at_the_point_that_is_found(name, norm):
  get = networks.weights()
  net = jax.tree_util.Partial(lambda x: networks.NETS[name](x, get))
  image, epsilon = np.asarray(networks.images()[1]), 0.02 * networks.SCALE[norm]
  problem = build(net, image, epsilon, norm=norm)
  assert problem.binary.any()
  tried = networks.random_points(image[None], epsilon, norm, 2000)[:, 0]
  logits = np.asarray(jax.jit(net)(tried))
  for row in np.array([[1., -1, 0], [0, 1, -1]]):
    least, point = minimum(problem, row)
    np.testing.assert_allclose(
        networks.double(networks.NETS[name], get, point.reshape(1, *image.shape))[0] @ row, least,
        atol=2e-3)
    assert least <= (logits @ row).min()


def two_ways(x):
  """z_0 - z_1 = abs(x_0 - 0.5): it is 0, and not less, in the middle."""
  return jnp.stack([jnp.abs(x[:, 0] - 0.5), 0 * x[:, 1]], axis=1)


def test_verdicts():
  net = jax.tree_util.Partial(networks.of_two_layers, networks.two_layers(34))
  image = np.random.default_rng(34).uniform(size=3).astype(np.float32)
  label = int(np.argmax(net(image[None])[0]))
  lower = lambda epsilon: float(bounds.crown(net, image[None], epsilon,
                                             labels=np.array([label]))[0, 1 - label])
  problem = lambda epsilon: minimum(build(net, image, epsilon), np.eye(2)[label] - np.eye(2)[
      1 - label])[0]
  # Between the radius of CROWN and the exact one.
  edge = {}
  for name, of in (('crown', lower), ('exact', problem)):
    low, high = 0., 1.
    for _ in range(12):
      middle = (low + high) / 2
      low, high = (middle, high) if of(middle) > 0 else (low, middle)
    edge[name] = low
  assert edge['crown'] < edge['exact'] - 2e-3
  within = (edge['crown'] + edge['exact']) / 2
  found = bounds.exact(net, image, label, within)
  assert found.verdict == 'verified' and found.example is None and found.margin > 0
  assert bounds.exact(net, image, label, within, max_binaries=0).margin <= found.margin
  relaxed = bounds.exact(net, image, label, within, relaxed=True)
  assert relaxed.margin <= found.margin and relaxed.verdict in ('verified', 'unknown')
  late = bounds.exact(net, image, label, within, time_limit=1e-9)
  assert late.verdict == 'unknown' and late.margin == pytest.approx(lower(within), abs=1e-6)
  for target in (None, 1 - label):
    beyond = bounds.exact(net, image, label, min(edge['exact'] + 0.01, 1), target=target)
    assert beyond.verdict == 'falsified' and beyond.margin < 0 and beyond.seconds > 0
    moved = np.abs(beyond.example.astype(float) - image)
    assert moved.max() <= edge['exact'] + 0.01
    z = np.asarray(net(beyond.example[None]))[0]
    assert z.argmax() != label and z[label] - z[1 - label] == beyond.margin


def test_what_the_attack_misses_the_solver_finds():
  weights = one_layer(3, 6)
  net = jax.tree_util.Partial(functools.partial(of_one_layer, nn.relu), weights)
  image = np.float32([0.3, 0.6])
  label = int(np.argmax(net(image[None])[0]))
  verdicts = set()
  for norm, epsilon in (('linf', 0.02), ('linf', 0.9), ('l1', 1.8)):
    found = bounds.exact(net, image, label, epsilon, norm=norm, num_steps=0)
    if found.verdict == 'falsified':
      moved = np.abs(found.example.astype(float) - image)
      assert (moved.max() if norm == 'linf' else moved.sum()) <= epsilon
      assert found.example.min() >= 0 and found.example.max() <= 1
      assert np.argmax(net(found.example[None])[0]) != label
    verdicts.add(found.verdict)
  assert verdicts == {'verified', 'falsified'}


def test_a_margin_of_zero_is_neither_verified_nor_falsified():
  image = np.float32([0.6, 0.5])
  found = bounds.exact(two_ways, image, 0, 0.2)
  assert found.verdict == 'unknown' and -1e-3 < found.margin <= 0
  assert bounds.exact(two_ways, image, 0, 0.05).verdict == 'verified'


def test_a_program_without_the_image_itself_has_no_say(monkeypatch):
  """Of one that contradicts itself nothing is concluded from there being no point."""
  weights, image = one_layer(3, 6), np.float32([0.3, 0.6])
  net = jax.tree_util.Partial(functools.partial(of_one_layer, nn.relu), weights)
  label = int(np.argmax(net(image[None])[0]))
  assert holds(build(net, image, 0.9), image)

  def contradicting(*args, **settings):
    right = build(*args, **settings)
    chosen = np.flatnonzero(right.binary)[:1]
    lower, upper = right.lower.copy(), right.upper.copy()
    lower[chosen] = upper[chosen] = 0.5
    return right._replace(lower=lower, upper=upper)

  monkeypatch.setattr(program, 'build', contradicting)
  assert not holds(contradicting(net, image, 0.9), image)
  assert bounds.exact(net, image, label, 0.9, num_steps=0).verdict != 'verified'


@pytest.mark.parametrize('scale', [1e-6, 1e-7, 1e-12])
def test_small_values_inside_are_no_proof(scale):
  """The function stays the same; what the solver sees may be below its tolerances."""
  draw = np.random.default_rng(5)
  w0, w1, b1, w2 = (draw.normal(size=shape) * size for shape, size in (
      ((6, 10), 0.6), ((10, 10), 0.5), ((10,), 0.2), ((10, 2), 0.7)))
  image = draw.uniform(0.3, 0.7, size=6).astype(np.float32)
  b0 = -image @ w0 - 0.05  # Off at the image: there is no gradient.

  def net(weights, x):
    w0, b0, w1, b1, w2, b2 = weights
    return nn.relu(nn.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2

  make = lambda scale, b2: jax.tree_util.Partial(net, [np.float32(value) for value in (
      w0 * scale, b0 * scale, w1, b1 * scale, w2 / scale, b2)])
  least, point = minimum(build(make(1., np.zeros(2)), image, 0.3), ROW)
  b2 = np.array([-least - 0.02, 0])
  small = make(scale, b2)
  logits = np.asarray(small(np.float32(point)[None])[0])
  assert logits[0] < logits[1] and np.abs(point - image).max() < 0.3 + 1e-6
  bound, _ = minimum(build(small, image, 0.3), ROW)
  assert -0.1 < bound < logits[0] - logits[1] + 1e-3
  assert bounds.exact(small, image, 0, 0.3).verdict != 'verified'


def test_what_has_no_bounds_is_unknown():
  net = lambda x: jnp.stack([jnp.where(jnp.isfinite(x[:, 0] * 1e38 * 10), x[:, 0], -1.),
                             0 * x[:, 1]], axis=1)
  assert bounds.exact(net, np.float32([0.6, 0.5]), 0, 0.1).verdict != 'verified'


@pytest.mark.parametrize('change, says', [
    (dict(norm='l2'), "norm must be one of linf, l1, got 'l2'"),
    (dict(label=2), r'label must be in \[0, 1\], got 2'),
    (dict(target=0), 'target must not be the label, got 0 for both'),
    (dict(target=5), r'target must be in \[0, 1\], got 5'),
    (dict(epsilon=-1.), 'epsilon must be finite and at least 0, got -1'),
    (dict(epsilon=np.float32([0.1])), r'epsilon must be a number, got shape \(1,\)'),
    (dict(time_limit=0), 'time_limit must be a number in .0, inf., got 0'),
    (dict(num_steps=-1), 'num_steps must be an integer in .0, inf., got -1'),
    (dict(max_binaries=-1), 'max_binaries must be an integer in .0, inf., got -1'),
    (dict(image=np.float32([0.1, 2.])), r'image must be in \[0, 1\], got values'),
    (dict(logits_fn=lambda x: jnp.tanh(two_ways(x))), 'must be piecewise linear .* got tanh'),
    (dict(logits_fn=lambda x: two_ways(x) * two_ways(x)[:, ::-1]), 'piecewise linear .* got mul'),
    (dict(logits_fn=lambda x: jnp.sort(two_ways(x))), 'the primitive sort is not covered')])
def test_arguments_out_of_range_are_named(change, says):
  arguments = dict(logits_fn=two_ways, image=np.float32([0.6, 0.5]), label=0, epsilon=0.1) | change
  with pytest.raises(ValueError, match=says) as error:
    bounds.exact(**arguments)
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_the_comparison_of_bounds_is_in_order_and_sees_a_mistake(monkeypatch, capsys):
  from benchmarks import bounds as comparison
  name = 'dense, ReLU'
  monkeypatch.setattr(comparison, 'NETWORKS', {name: comparison.NETWORKS[name]})
  monkeypatch.setattr(comparison, 'NUM_IMAGES', 2)
  monkeypatch.setattr(comparison, 'METHODS', ('ibp', 'crown'))
  monkeypatch.setattr(comparison, 'ORDER', (('ibp', 'crown'), ('crown', 'LP'), ('LP', 'exact')))
  monkeypatch.setattr(comparison, 'COLUMNS', ('ibp', 'crown', 'LP', 'exact', 'attack'))
  assert not comparison.main()
  assert '| 0 of ' in capsys.readouterr().out
  right = minimum
  monkeypatch.setattr(comparison.program, 'minimum', lambda *args, **settings: (
      right(*args, **settings)[0] + 0.5, None))
  assert comparison.main()
  assert 'points cross a bound' in capsys.readouterr().out
