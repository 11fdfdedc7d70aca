"""Bounds of networks against closed forms, linear programs, and points that try to cross them."""


import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from scipy import optimize

from robust_jax import bounds, models
from robust_jax.attacks import pgd, threat_models
from robust_jax.bounds import program, propagate, rules

SHAPE, CLASSES = (6, 6, 2), 3
EPSILON = jnp.array([0., 0.01, 0.05, 0.3])
# Radii of about the same strength in other norms.
SCALE = {'linf': 1., 'l2': 4., 'l1': 10.}


def slow(*arguments):
  return pytest.param(*arguments, marks=pytest.mark.slow)


def weights(seed=0, scale=1.):
  """name, shape -> the same random array each time, of about the size of an initialisation."""
  def get(number, *shape):
    draw = np.random.default_rng([seed, number]).normal(size=shape)
    return (scale * draw / np.sqrt(max(np.prod(shape[:-1]), 1))).astype(np.float32)
  return get


def head(x, get):
  return x.reshape(len(x), -1) @ get(90, x[0].size, CLASSES) + get(91, CLASSES)


def dense(activation):
  def net(x, get):
    x = x.reshape(len(x), -1) @ get(0, x[0].size, 8) * 2 + get(1, 8)
    x = activation(x) @ get(2, 8, 7) * 2 + get(3, 7)
    return head(activation(x), get)
  return net


def activations(x, get):
  """One layer of each."""
  x = x.reshape(len(x), -1) @ get(0, x[0].size, 6) * 2
  for number, activation in enumerate((lambda x: nn.leaky_relu(x, 0.1), jnp.tanh, nn.softplus,
                                       nn.swish, nn.sigmoid), start=1):
    x = activation(x) @ get(number, 6, 6) * 2
  return head(x, get)


def conv(x, kernel, stride=1, padding='SAME', groups=1):
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding,
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                      feature_group_count=groups)


def norm(x, get, number):
  """BatchNorm with statistics, as Flax writes it."""
  channels = x.shape[-1]
  variables = {'batch_stats': {'mean': get(number, channels), 'var': get(number + 1, channels)**2},
               'params': {'scale': get(number + 2, channels), 'bias': get(number + 3, channels)}}
  return nn.BatchNorm(use_running_average=True).apply(variables, x)


def convolutional(x, get):
  x = nn.relu(norm(conv(x, get(0, 3, 3, 2, 4), 2, ((1, 0), (2, 1))), get, 10))
  x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
  return head(nn.avg_pool(nn.relu(conv(x, get(1, 2, 2, 2, 4), groups=2)), (2, 2)), get)


def residual(x, get):
  x = conv((x - 0.4) / 0.3, get(0, 3, 3, 2, 3))
  x = nn.relu(x + conv(nn.relu(norm(x, get, 10)), get(1, 3, 3, 3, 3)))
  shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((1, 0),))
  x = jnp.concatenate([nn.max_pool(x, (2, 2), (2, 2)), shortcut], axis=-1)
  return head(jnp.maximum(x[..., :3], -x[..., 3:6]).mean((1, 2)), get)


def mixed(x, get):
  """Primitives that no other network here has."""
  x = conv(x, get(0, 3, 3, 2, 3), 2)
  low = jnp.minimum(jnp.abs(x), 0.5 * x**2 + 0.1)
  high = jnp.clip(x[:, ::-1], -0.3, 0.4) * jnp.where(x < 0.1, -0.2 * x, 2 * x - 0.22)
  return head(low.max(1) - high.min(1) + (x**3)[:, 1], get)


NETS = {
  'relu': dense(nn.relu), 'leaky': dense(lambda x: nn.leaky_relu(x, 0.1)), 'tanh': dense(jnp.tanh),
  'sigmoid': dense(nn.sigmoid), 'softplus': dense(nn.softplus), 'swish': dense(nn.swish),
  'elu': dense(nn.elu), 'gelu': dense(nn.gelu), 'relu6': dense(nn.relu6),
  'erf': dense(jax.lax.erf), 'convolutional': convolutional, 'residual': residual, 'mixed': mixed,
  'activations': activations}
QUICK = ('convolutional', 'mixed', 'activations')


def images(count=4, seed=0):
  x = np.random.default_rng(seed).uniform(size=(count, *SHAPE)).astype(np.float32)
  x[0, :2] = np.round(x[0, :2])  # Pixels at the ends of their box.
  return jnp.asarray(x)


def spec(labels):
  unit = np.eye(CLASSES, dtype=np.float32)
  return unit[labels][:, None] - unit


def optimised(function, *arguments):
  """Compiled as it is outside of tests: only then XLA rounds products and sums together."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 3})(*arguments)


def compiled(function, *arguments):
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})(*arguments)


def random_points(x, epsilon, norm, count=300):
  """[count, batch, ...] of the balls, most of them at their ends."""
  draw = np.random.default_rng(3)
  shape = (count, *x.shape)
  if norm == 'linf':
    moved = draw.choice([-1, 0.3, 1], size=shape)
  else:
    share = draw.choice([.03, .2, 1], (count,) + (1,) * x.ndim)
    moved = draw.normal(size=shape) * (draw.uniform(size=shape) < share)
    length = np.linalg.norm(moved.reshape(count, len(x), -1), ord=int(norm[1]), axis=-1)
    moved /= np.maximum(length, 1e-9)[..., None, None, None]
  return np.clip(x + moved * np.reshape(epsilon, (-1, 1, 1, 1)), 0, 1).astype(np.float32)


def attacked_points(logits_fn, x, epsilon, norm):
  """[rows, batch, ...] that PGD finds against each row."""
  model = threat_models.make(norm, epsilon)

  def against(row):
    objective = lambda x: -logits_fn(x) @ row
    return pgd(jax.random.key(1), objective, x, model, step_size=epsilon / 4, num_steps=12).images

  return jax.lax.map(against, jnp.concatenate([spec(np.zeros(1, int))[0, 1:], np.eye(CLASSES)]))


def crossing(values, lower, upper=None):
  """How far values [number, batch, rows] are outside of their bounds [batch, rows]."""
  below = (lower - values).max()
  return below if upper is None else max(below, (values - upper).max())


def double(net, get, x):
  """Logits in float64: [..., classes]."""
  with jax.enable_x64(True):
    flat = jnp.asarray(np.asarray(x, np.float64).reshape(-1, *SHAPE))
    return np.asarray(net(flat, lambda *key: get(*key).astype(np.float64))).reshape(
        *x.shape[:-3], CLASSES)


def check(name, norm, methods, seed=0, attack=True):
  """The largest crossing of all bounds of a network, float32 and float64, and these bounds."""
  net, get, x = NETS[name], weights(seed), images(seed=seed)
  logits_fn = jax.tree_util.Partial(lambda x: net(x, get))
  labels, epsilon = np.zeros(len(x), int), EPSILON * SCALE[norm]

  def all_bounds(x, epsilon, tried):
    found = {method: bounds.crown(logits_fn, x, epsilon, norm=norm, labels=labels, method=method,
                                  num_steps=3) for method in methods}
    box = propagate.box(x, epsilon.reshape(-1, 1, 1, 1))
    found_points = attacked_points(logits_fn, x, epsilon, norm) if attack else tried[:0]
    tried = jnp.concatenate([tried, found_points, x[None]])
    return found, bounds.ibp(logits_fn, *box), tried, jax.lax.map(logits_fn, tried)

  found, (low, high), tried, logits = optimised(all_bounds, x, epsilon,
                                                random_points(x, epsilon, norm))
  worst = -np.inf
  for values in (np.asarray(logits, np.float64), double(net, get, tried)):
    margins = np.einsum('brc,nbc->nbr', spec(labels), values)
    worst = max(worst, crossing(values, low, high),
                *(crossing(margins, lower) for lower in found.values()))
  return worst, {method: np.asarray(lower) for method, lower in found.items()}, (low, high)


@pytest.mark.parametrize('name', [
    name if name in QUICK else slow(name) for name in NETS])
def test_no_point_crosses(name):
  norm = list(SCALE)[list(NETS).index(name) % 3]
  # Intervals alone of those whose other bounds the slow test below attacks.
  methods = [] if name in ('activations', 'mixed') else ['crown']
  worst, found, (low, high) = check(name, norm, methods, attack=bool(methods))
  assert worst <= 0
  # At epsilon 0 there is only rounding, of which the bounds make little.
  assert (high - low)[0].max() < 2e-3
  for lower in found.values():
    np.testing.assert_array_equal(lower[:, 0], 0)  # The row of the label.


def test_bounds_of_linear_networks_are_exact():
  get, x = weights(2), images(seed=2)
  net = jax.tree_util.Partial(lambda x: head((x - 0.3) / 0.7, get))
  labels = np.array([0, 1, 2, 1])
  rows = np.einsum('brc,nc->brn', spec(labels), np.asarray(get(90, 72, CLASSES), np.float64)) / 0.7
  flat = np.asarray(x, np.float64).reshape(4, -1)
  at_image = np.einsum('brc,bc->br', spec(labels), double(
      lambda x, get: head((x - 0.3) / 0.7, get), get, x))
  for norm in SCALE:
    epsilon = np.asarray(EPSILON) * SCALE[norm] * 2  # The box is met.
    exact = np.array([[value - gain(row, image, size, norm) for value, row in zip(*of_image)]
                      for *of_image, image, size in zip(at_image, rows, flat, epsilon)])
    found = compiled(functools.partial(bounds.crown, net, norm=norm, labels=labels), x, epsilon)
    assert (found <= exact).all()
    np.testing.assert_allclose(found, exact, atol=2e-3 if norm == 'l2' else 3e-4)


def gain(row, image, epsilon, norm):
  """max <-row, d> over norm(d) <= epsilon, 0 <= image + d <= 1, in float64."""
  size, room = np.abs(row), np.where(row > 0, image, 1 - image)
  if norm == 'linf':
    return size @ np.minimum(room, epsilon)
  if norm == 'l1':
    order = np.argsort(-size)
    before = np.cumsum(room[order]) - room[order]
    return size[order] @ np.clip(epsilon - before, 0, room[order])
  moved = lambda step: np.minimum(step * size, room)
  if not size.any() or np.linalg.norm(room) <= epsilon:
    return size @ room
  step = optimize.brentq(lambda step: np.linalg.norm(moved(step)) - epsilon, 0, 1e6)
  return size @ moved(step)


def two_layers(seed=0, width=5):
  """Weights of 3 pixels -> width -> width -> 2."""
  draw = np.random.default_rng(seed)
  shapes = [(3, width), (width,), (width, width), (width,), (width, 2), (2,)]
  return [draw.normal(size=shape).astype(np.float32) for shape in shapes]


def of_two_layers(w, x):
  return nn.relu(nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]) @ w[4] + w[5]


def test_bounds_are_below_the_linear_program_and_that_is_below_the_exact_minimum():
  names, row = ('ibp', 'crown_ibp', 'crown', 'forward', 'wong_kolter'), np.array([1., -1.])

  def all_bounds(w, x, epsilon):
    net = jax.tree_util.Partial(of_two_layers, w)
    return [bounds.crown(net, x, epsilon, labels=np.zeros(2, int), method=method)[:, 1]
            for method in names]

  run = jax.jit(all_bounds, compiler_options={'xla_backend_optimization_level': 0})
  for seed, epsilon in ((0, 0.05), (1, 0.1), (2, 0.2), (3, 0.4)):
    w = two_layers(seed)
    x = np.random.default_rng(seed).uniform(size=(2, 3)).astype(np.float32)
    for number, image in enumerate(x):
      found = {name: float(lower[number]) for name, lower in zip(names, run(w, x, epsilon))}
      problem = program.build(jax.tree_util.Partial(of_two_layers, w), image, epsilon)
      relaxed, least = (program.minimum(problem, row, relaxed=relax)[0] for relax in (True, False))
      # The programs are lowered by the solver's tolerances.
      assert found['ibp'] <= found['crown_ibp'] <= found['crown'] <= relaxed + 1e-4
      assert found['ibp'] <= found['forward'] <= relaxed + 1e-4
      assert found['wong_kolter'] <= relaxed + 1e-4 <= least + 2e-4
      grid = np.stack(np.meshgrid(*[np.linspace(max(c - epsilon, 0), min(c + epsilon, 1), 21)
                                    for c in image]), axis=-1).reshape(-1, 3)
      z = np.asarray(of_two_layers(w, grid))
      assert least <= (z[:, 0] - z[:, 1]).min()


def test_one_hidden_layer_in_one_dimension_is_as_close_as_lines_allow():
  """f(x) = sum_i v_i relu(w_i x + b_i): the minimum over all kinks and ends is exact."""
  draw = np.random.default_rng(0)
  w, b, v = draw.normal(size=(3, 6)).astype(np.float32)
  net = jax.tree_util.Partial(lambda x: jnp.stack([nn.relu(x * w + b) @ v, 0 * x[:, 0]], axis=1))
  x, epsilon = np.float32([[0.2], [0.5], [0.8]]), np.float32([0.02, 0.2, 1.])
  found = compiled(lambda x: bounds.crown(net, x, epsilon, labels=np.zeros(3, int), num_steps=50,
                                          method='alpha'), x)[:, 1]
  for centre, size, lower in zip(x[:, 0], epsilon, found):
    ends = np.clip([centre - size, centre + size], 0, 1)
    places = np.clip(np.concatenate([ends, -b / w]), *ends)
    least = (np.maximum(places[:, None] * w + b, 0) @ v).min()
    assert lower <= least
    if size == epsilon[0]:  # Hardly a kink within.
      np.testing.assert_allclose(lower, least, atol=0.02)


# What would be wrong, planted: (name, where, what replaces it).


def wrong_lines(x, *args, sign=-1):
  found = rules_kink(0., (0., 0.), (1., 0.)).lines(x)
  return found._replace(upper_slope=sign * found.upper_slope)


rules_kink = rules.kink


def plant_slope(monkeypatch):
  def kink(*args, **settings):
    right = rules_kink(*args, **settings)
    return right._replace(lines=wrong_lines)
  monkeypatch.setattr(rules, 'kink', kink)


def plant_level(monkeypatch):
  """The upper line of ReLU is lowered instead of raised."""
  def kink(*args, **settings):
    right = rules_kink(*args, **settings)

    def lines(x, share=None):
      found = right.lines(x)
      return found._replace(upper_shift=-found.upper_shift)
    return right._replace(lines=lines)
  monkeypatch.setattr(rules, 'kink', kink)


def plant_scale(monkeypatch):
  """BatchNorm's factors have no sign."""
  right = rules.RULES['mul']

  def mul(inputs, params, primitive, emit):
    return right([x if isinstance(x, rules.Slot) else jnp.abs(x) for x in inputs], params,
                 primitive, emit)
  monkeypatch.setitem(rules.RULES, 'mul', mul)


def plant_spread(monkeypatch):
  """The radius of a convolution's input goes through the kernel, not its absolute value."""
  right = rules.RULES['conv_general_dilated']
  monkeypatch.setitem(rules.RULES, 'conv_general_dilated', lambda inputs, params, primitive, emit:
                      right(inputs, params, primitive, lambda rule, slots: emit(
                          rule._replace(spread=rule.apply), slots)))


def plant_padding(monkeypatch):
  """Windows of a max-pool end at the edge of the image."""
  right = rules.RULES['reduce_window_max']

  def pool(inputs, params, primitive, emit):
    padding = tuple((low + high, 0) for low, high in params['padding'])
    return right(inputs, params | {'padding': padding}, primitive, emit)
  monkeypatch.setitem(rules.RULES, 'reduce_window_max', pool)


@pytest.mark.parametrize(('plant', 'name', 'methods'), [
    (plant_slope, 'relu', ['crown_ibp']), slow(plant_level, 'relu', ['crown_ibp']),
    slow(plant_scale, 'residual', []), (plant_spread, 'residual', []),
    (plant_padding, 'convolutional', [])])
def test_planted_mistakes_are_seen(plant, name, methods, monkeypatch):
  plant(monkeypatch)
  worst, *_ = check(name, 'linf', methods, attack=False)
  assert worst > 1e-4


def normed(x):
  """A network with a remat and a custom derivative."""
  return head(jax.checkpoint(twice)(nn.relu(x)), weights(7))


@jax.custom_vjp
def twice(x):
  return 2 * x


twice.defvjp(lambda x: (twice(x), None), lambda _, cotangent: (cotangent,))


@pytest.mark.parametrize('norm', [slow('linf'), 'l2', slow('l1')])
def test_gradients_are_finite_and_of_the_bounds_also_at_epsilon_0(norm):
  x, labels = images(), np.zeros(4, int)

  def total(w, epsilon):
    net = jax.tree_util.Partial(lambda w, x: normed(x * w), w)
    box = propagate.box(x, epsilon.reshape(-1, 1, 1, 1))
    lower = bounds.crown(net, x, epsilon, norm=norm, labels=labels, method='crown_ibp')
    return lower.sum() + sum((end**2).sum() for end in bounds.ibp(net, *box))

  gradient = jax.jit(jax.value_and_grad(total, (0, 1)),
                     compiler_options={'xla_backend_optimization_level': 0})
  for w, epsilon in ((1.3, EPSILON), (0.7, jnp.zeros(4))):
    _, (of_w, of_epsilon) = gradient(jnp.float32(w), epsilon)
    assert np.isfinite(of_w) and np.isfinite(of_epsilon).all() and of_w != 0
  ends = [gradient(jnp.float32(1.3 + step), EPSILON)[0] for step in (-1e-2, 1e-2)]
  np.testing.assert_allclose(gradient(jnp.float32(1.3), EPSILON)[1][0],
                             (ends[1] - ends[0]) / 2e-2, rtol=0.02)


def test_rows_that_are_folded_are_as_close_as_the_last_layer_allows():
  """Of a linear network, the interval of <c, z> is exact, and that of z is not of use to it."""
  x, get = images(), weights(3)
  net = jax.tree_util.Partial(lambda x: head(x, get))
  same = np.float32([[1, -1, 0], [0, 0, 0]])
  low, high = bounds.ibp(net, x - 0.1, x + 0.1, spec=same)
  kernel = get(90, 72, CLASSES).astype(np.float64)
  middle = double(lambda x, get: head(x, get), get, x) @ same.T
  radius = 0.1 * np.abs(kernel @ same.T).sum(0)
  np.testing.assert_allclose(low, middle - radius, atol=2e-4)
  np.testing.assert_allclose(high, middle + radius, atol=2e-4)
  assert (low <= middle - radius + 1e-7).all() and (high >= middle + radius - 1e-7).all()


@pytest.mark.parametrize('curve, ends', [
    (compound, (-80, 80) if name == 'softplus' else (-30, 30))
    for name, compounds in rules.COMPOUNDS.items() for compound in compounds] + [
    ((function, rules.RULES[name]([], {'y': 3}, None, lambda rule, slots: rule)), ends)
    for name, function, ends in (
        ('tanh', jnp.tanh, (-20, 20)), ('logistic', nn.sigmoid, (-40, 40)),
        ('erf', jax.lax.erf, (-5, 5)), ('erfc', jax.lax.erfc, (-5, 5)),
        ('exp', jnp.exp, (-20, 10)), ('log', jnp.log, (1e-3, 9)),
        ('log1p', jnp.log1p, (-0.99, 9)), ('expm1', jnp.expm1, (-20, 5)),
        ('sqrt', jnp.sqrt, (0, 9)), ('rsqrt', jax.lax.rsqrt, (1e-2, 9)),
        ('square', jnp.square, (-4, 4)), ('abs', jnp.abs, (-4, 4)),
        ('integer_pow', lambda x: x**3, (-3, 3)))])
def test_lines_and_hulls_of_curves_hold_on_a_grid(curve, ends):
  function, rule = curve
  draw = np.random.default_rng(0)
  lower, upper = np.sort(draw.uniform(*ends, size=(2, 300)).astype(np.float32), axis=0)
  upper[::3] = lower[::3] + (upper[::3] - lower[::3]) * 1e-4  # Narrow ones.
  upper[0] = lower[0]
  x = rules.Interval(lower[None], upper[None])
  hull, lines = rule.hull(x), rule.lines(x)
  with jax.enable_x64(True):
    places = lower + np.linspace(0, 1, 2001)[:, None] * (upper.astype(np.float64) - lower)
    values = np.asarray(function(jnp.asarray(places)))
  assert (values >= hull.lower).all() and (values <= hull.upper).all()
  assert (values >= np.float64(lines.lower_slope) * places + lines.lower_shift).all()
  assert (values <= np.float64(lines.upper_slope) * places + lines.upper_shift).all()


def test_slots_of_one_value_share_the_walk_and_constants_are_computed():
  """x - x is 0 for lines, which see that both are one, and not for intervals."""
  x = images()
  net = jax.tree_util.Partial(lambda x: head(x - jnp.flip(jnp.flip(x, 1), 1), weights()))
  lower = bounds.crown(net, x, 0.1, labels=np.zeros(4, int), method='crown_ibp')
  at_zero = np.asarray(net(0 * x))
  np.testing.assert_allclose(lower, at_zero[:, :1] - at_zero, atol=1e-4)


def of_models():
  return [('mlp', dict(hidden=(8,)), (6, 6, 1)), ('cnn', dict(widths=(2,), dense=4), (6, 6, 1)),
          slow('wide_resnet', dict(depth=10, width=1, activation='swish'), (8, 8, 3)),
          slow('densenet', dict(depth=7, growth=2), (8, 8, 3)),
          slow('shaham_cnn', {}, (22, 22, 1))]


@pytest.mark.parametrize(('name', 'settings', 'shape'), of_models())
def test_models_are_bounded_in_the_layers_of_this_device_and_in_plain_ones(
    name, settings, shape, monkeypatch):
  model = models.create(name, 3, **settings)
  variables = models.init(jax.random.key(0), model, shape)
  variables = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(1).random(x.shape), variables)
  variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
  x = jnp.asarray(np.random.default_rng(0).random((2, *shape), np.float32))
  logits_fn = models.logits_fn(model, variables, mean=0.4, std=0.3)
  low, high = compiled(lambda x: bounds.ibp(logits_fn, x, x), x)
  monkeypatch.setenv('ROBUST_JAX_CPU', 'plain')
  plain = model.apply(variables, (x - 0.4) / 0.3, train=False)
  assert (low <= plain).all() and (plain <= high).all()
  assert (low <= logits_fn(x)).all() and (logits_fn(x) <= high).all()
  assert (high - low).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(('change', 'says'), [
    (dict(labels=None), 'labels or spec must be given, one of them, got neither'),
    (dict(spec=np.eye(CLASSES)), 'labels or spec must be given, one of them, got both'),
    (dict(labels=np.array([0, 1, 2, 3])), r'labels must be in \[0, 2\], got 3'),
    (dict(epsilon=-0.1), 'epsilon must be finite and at least 0, got -0.1'),
    (dict(epsilon=np.nan), 'epsilon must be finite and at least 0, got nan'),
    (dict(epsilon=1.5), 'epsilon must be at most 1 in linf'),
    (dict(norm='l3'), "norm must be one of linf, l2, l1, got 'l3'"),
    (dict(method='best'),
     "method must be one of crown, crown_ibp, forward, alpha, ibp, wong_kolter, got 'best'"),
    (dict(num_steps=0), r'num_steps must be an integer in \[1, inf\), got 0'),
    (dict(step_size=0.), r'step_size must be a number in \(0, inf\), got 0.0'),
    (dict(labels=None, spec=np.eye(4)), r'spec must have shape \(rows, 3\) or \(4, rows, 3\)'),
    (dict(labels=None, spec=np.full((3, 3), np.inf)), 'spec must be finite, got'),
    (dict(labels=None, spec='a'), "spec must be of numbers, got 'a'"),
    (dict(labels=None, spec=np.zeros((0, 3))), r'spec must have shape .*\(0, 3\)'),
    (dict(epsilon='0.1'), "epsilon must be of numbers, got '0.1'"),
    (dict(epsilon=None), 'epsilon must be of numbers, got None'),
    (dict(epsilon=0.1j), 'epsilon must be of numbers, got 0.1j'),
    (dict(images=np.zeros((4, *SHAPE), np.uint8)), 'images must be .* divided by 255'),
    (dict(images=np.zeros((4, *SHAPE), bool)), 'images must be .*, got bool$'),
    (dict(images=np.full((4, *SHAPE), 2.)), r'images must be in \[0, 1\]')])
def test_arguments_out_of_range_are_named(change, says):
  arguments = dict(images=images(), epsilon=0.1, labels=np.zeros(4, int)) | change
  with pytest.raises(ValueError, match=says) as error:
    bounds.crown(lambda x: head(x, weights()), **arguments)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(('net', 'says'), [
    (lambda x: head(x, weights()) + jax.random.normal(jax.random.key(0), (len(x), CLASSES)),
     'deterministic to be bounded, but draws random numbers'),
    (lambda x: jnp.sort(head(x, weights()), 1), 'the primitive sort is not covered for float32'),
    (lambda x: head(x, weights()) / x.sum((1, 2, 3))[:, None],
     'a divisor that depends on the image'),
    (lambda x: head(x.astype(jnp.bfloat16).astype(jnp.float32), weights()),
     'must compute in float32 to be bounded, got bfloat16'),
    (lambda x: head(jnp.where((x > 0.1) & (x < 0.2), x, 0), weights()), 'the primitive and is not'),
    (lambda x: jnp.ones((len(x), CLASSES)), 'must depend on the images'),
    (lambda x: head(x - x.mean(0), weights()), 'of each image by itself'),
    (lambda x: head(np.asarray(x), weights()), 'logits_fn must be a function that JAX can trace'),
    (lambda x: head(x if x.sum() > 0 else -x, weights()), 'without branches on values'),
    (lambda x: head(x, weights())[0], 'logits_fn must return floating point logits')])
def test_networks_without_bounds_are_refused_in_one_line(net, says):
  for call in (lambda: bounds.ibp(net, images(), images()),
               lambda: bounds.crown(net, images(), 0.1, labels=np.zeros(4, int))):
    with pytest.raises(ValueError, match=says) as error:
      call()
    assert '\n' not in str(error.value)


def test_ibp_refuses_ends_in_the_wrong_order_and_says_nothing_of_them_under_jit():
  net, x = jax.tree_util.Partial(lambda x: head(x, weights())), images()
  with pytest.raises(ValueError, match='upper must be at least lower, got'):
    bounds.ibp(net, x, x - 0.1)
  for name, ends in (('lower', (x * np.nan, x)), ('upper', (x, x * np.inf))):
    with pytest.raises(ValueError, match=f'{name} must be finite, got'):
      bounds.ibp(net, *ends)
  with pytest.raises(ValueError, match='upper must have the shape of lower'):
    bounds.ibp(net, x, x[:2])
  wrong = x.at[1, 0, 0, 0].add(-0.1)
  low, high = compiled(lambda low, high: bounds.ibp(net, low, high), x, wrong)
  assert (np.isneginf(low).all(1) == [False, True, False, False]).all()
  assert (np.isposinf(high).all(1) == [False, True, False, False]).all()
  labels, epsilon = np.array([0, 3, 0, 0]), np.float32([0.1, 0.1, -1, np.nan])
  bound = lambda x, labels, epsilon: bounds.crown(net, x, epsilon, labels=labels)
  lower = compiled(bound, x, labels, epsilon)
  assert not bounds.certified(lower, np.array([0, 2, 0, 0]))[1:].any()
  of_bytes = compiled(bound, x.at[1:].multiply(255), np.zeros(4, int), np.float32([0.1] * 4))
  assert (of_bytes[1:] == -np.inf).any(1).all() and np.isfinite(of_bytes[0]).all()
  assert (lower[1:] == -np.inf).any(1).all() and np.isfinite(lower[0]).all()


def test_what_cancels_in_the_pieces_of_a_kink_widens_it():
  net = jax.tree_util.Partial(lambda x: head(jnp.where(x > 0.5, (x + 1e6) - 1e6, 0.5), weights()))
  low, high = bounds.ibp(net, images(), images())
  for values in (net(images()), double(lambda x, get: net(x), None, images())):
    assert (low <= values).all() and (values <= high).all()


@pytest.mark.parametrize(('lower', 'labels', 'says'), [
    (np.ones((2, 3)), [0, 3], r'labels must be in \[0, 2\], got 3'),
    (np.ones((2, 3)), [0], r'labels must be integers of shape \(2,\)'),
    (np.ones((2, 3)), [0., 1.], 'labels must be integers'),
    (np.ones(3), [0], r'lower must have shape \[batch, classes\], got \(3,\)')])
def test_certified_refuses_what_are_no_margins_and_labels(lower, labels, says):
  with pytest.raises(ValueError, match=says):
    bounds.certified(lower, np.array(labels))


# Of two values that depend on the image; gelu and silu are curves where jax.nn computes them.
PRODUCTS = {
  'hard_swish': nn.hard_swish, 'x tanh x': lambda x: x * jnp.tanh(x),
  'x erf x': lambda x: x * jax.lax.erf(x), 'x sigmoid 2x': lambda x: x * nn.sigmoid(2 * x),
  'gelu': nn.gelu, 'exact gelu': lambda x: nn.gelu(x, approximate=False)}


@pytest.mark.parametrize('name', [
    name if name in ('hard_swish', 'gelu') else slow(name) for name in PRODUCTS])
def test_no_point_crosses_where_two_values_are_multiplied(name):
  """Two planes below a product are equally good: slope and shift have to be of the same one."""
  draw = np.random.default_rng(len(name))
  kernels = [draw.normal(size=shape).astype(np.float32) * 1.5 / np.sqrt(shape[0])
             for shape in ((8, 16), (16, 16), (16, 3))]

  def logits_fn(x):
    return PRODUCTS[name](PRODUCTS[name](x @ kernels[0]) @ kernels[1]) @ kernels[2]

  x = draw.uniform(size=(24, 8)).astype(np.float32)
  epsilon = draw.uniform(0.01, 0.1, 24).astype(np.float32)
  tried = np.clip(x + epsilon[:, None] * draw.uniform(-1, 1, (400, 24, 8)), 0, 1)
  labels = np.asarray(logits_fn(x).argmax(1))
  found = np.asarray(jax.jit(jax.vmap(logits_fn))(tried.astype(np.float32)))
  margins = np.take_along_axis(found, labels[None, :, None], 2) - found
  for method in ('crown_ibp', 'crown', 'forward'):
    lower = np.asarray(optimised(functools.partial(
        bounds.crown, logits_fn, labels=labels, method=method), x, epsilon))
    assert (margins >= lower - 1e-6).all() and np.isfinite(lower).all()


def test_certified_looks_at_all_classes_but_the_label():
  lower = jnp.array([[0., 1., 2.], [0., 1., 0.], [1., 0., -1.], [3., 0., 1.]])
  np.testing.assert_array_equal(bounds.certified(lower, np.array([0, 0, 1, 1])),
                                [True, False, False, True])


@pytest.mark.slow
def test_chunks_and_batches_change_only_rounding():
  net, labels = jax.tree_util.Partial(of_two_layers, two_layers()), np.zeros(4, int)
  x = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
  whole = compiled(lambda x: bounds.crown(net, x, EPSILON, labels=labels), x)
  part = jax.jit(lambda x, epsilon: bounds.crown(net, x, epsilon, labels=labels[:1], chunk=3),
                 compiler_options={'xla_backend_optimization_level': 0})
  parts = [part(x[i:i + 1], EPSILON[i]) for i in range(4)]
  np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_no_point_crosses_any_bound_in_other_norms(name):
  for shift in (1, 2):
    norm = list(SCALE)[(list(NETS).index(name) + shift) % 3]
    worst, found, _ = check(name, norm, ('ibp', 'crown_ibp', 'forward', 'alpha'), seed=shift)
    assert worst <= 0
    for method in ('crown_ibp', 'forward'):
      assert (found[method] >= found['ibp'] - 1e-6).all()
    assert (found['alpha'] >= found['crown_ibp'] - 1e-6).all()


def against(score, level):
  """Two logits of an image of one pixel: score(x), and a level."""
  return lambda x: jnp.stack([score(x.reshape(len(x))), jnp.full(len(x), level)], axis=-1)


@pytest.mark.parametrize('score, level', [
    (lambda x: jnp.where(jnp.isfinite(jnp.exp(200 * x)), x, -5.), 0.),  # Of 0.6, exp is inf.
    (lambda x: jnp.where(jnp.isfinite(x * 1e38 * 10), x, -1.), 0.),
    (lambda x: jnp.where(jnp.isnan(lax.rsqrt(x - 0.5)), 0., lax.rsqrt(x - 0.5)), 0.5),
    (lambda x: jax.nn.relu(lax.rsqrt(x - 0.5)), 0.5)])
@pytest.mark.parametrize('method', ['ibp', 'crown_ibp', 'crown', 'forward'])
def test_what_is_not_finite_proves_nothing(score, level, method):
  image = jnp.full((1, 1, 1, 1), 0.6)
  lower = bounds.crown(against(score, level), image, 0.2, labels=jnp.array([0]), method=method)
  assert lower[0, 1] == -np.inf and not bounds.certified(lower, jnp.array([0])).any()


@pytest.mark.parametrize('epsilon', [-1., np.nan])
def test_padding_is_no_entry_of_a_window_whose_entries_are_unknown(epsilon):
  pool = lambda x: lax.reduce_window(x - 0.7, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1),
                                     ((0, 0), (1, 1), (1, 1), (0, 0)))
  net = against(lambda x: pool(x.reshape(-1, 1, 1, 1)).reshape(len(x)), -0.5)
  lower = jax.jit(lambda images, epsilon: bounds.crown(
      net, images, epsilon, labels=jnp.array([0])))(jnp.full((1, 1, 1, 1), 0.5), epsilon)
  assert lower[0, 1] == -np.inf


def test_coarser_products_and_integers_are_not_covered():
  image = jnp.full((1, 1, 1, 1), 0.5)
  coarse = lambda x: lax.dot_general(
      x.reshape(1, 1), jnp.ones((1, 2)), (((1,), (0,)), ((), ())),
      precision=lax.DotAlgorithmPreset.BF16_BF16_F32)
  wraps = lambda x: (-jnp.where(x.reshape(1, 1) > 0.45, jnp.uint8(200), jnp.uint8(100)) * jnp.ones(
      (1, 2), jnp.uint8)).astype(float)
  for net, said in ((coarse, 'BF16_BF16_F32'), (wraps, 'uint8')):
    with pytest.raises(ValueError, match=f'not covered for .*{said}'):
      bounds.crown(net, image, 0.1, labels=jnp.array([0]))
