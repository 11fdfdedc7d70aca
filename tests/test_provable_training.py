"""Training for deterministic certificates, against NumPy's evaluations, formulas and attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from robust_jax import attacks, bounds, keys, losses, models
from robust_jax.models import layers
from robust_jax.training import methods, optimizers, schedules
from robust_jax.training.methods import passes, provable
from robust_jax.types import AttackResult, Progress
from tests import tiny_training

KEY = jax.random.key(3)
LATE = Progress(jnp.int32(90), jnp.int32(9), jnp.float32(9.))


def at(passed):
  return LATE._replace(passed=jnp.float32(passed))


class Dense(nn.Module):
  """Two hidden layers, ReLU: small enough for NumPy."""

  @nn.compact
  def __call__(self, images):
    x = images.reshape(len(images), -1)
    for number, width in enumerate((7, 6), start=1):
      x = nn.relu(nn.Dense(width, bias_init=nn.initializers.normal(0.5), name=f'dense{number}')(x))
    return nn.Dense(3, bias_init=nn.initializers.normal(0.5), name='logits')(x)


@pytest.fixture(scope='module')
def dense():
  model = Dense()
  return models.network(model), model.init(KEY, jnp.zeros((1, 4, 4, 1)))['params']


@pytest.fixture(scope='module')
def normed():
  """With BatchNorm, whose stored statistics are not those of any batch."""
  model, variables = tiny_training.small_net(KEY)
  stats = jax.tree.map(lambda x: x + 0.3, variables['batch_stats'])
  return models.network(model), variables['params'], stats


BATCH = tiny_training.random_batch(9)


def numpy_intervals(params, lower, upper):
  """Intervals ahead of both ReLUs and of the last hidden layer, in float64."""
  ahead = []
  low, high = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (lower, upper))
  for name in ('dense1', 'dense2'):
    kernel = np.asarray(params[name]['kernel'], np.float64)
    up, down = np.maximum(kernel, 0), np.minimum(kernel, 0)
    low, high = (low @ up + high @ down + np.asarray(params[name]['bias']),
                 high @ up + low @ down + np.asarray(params[name]['bias']))
    ahead.append((low, high))
    low, high = np.maximum(low, 0), np.maximum(high, 0)
  return ahead, (low, high)


def numpy_margins(params, lower, upper, labels, crown=False):
  ahead, (low, high) = numpy_intervals(params, lower, upper)
  kernel = np.asarray(params['logits']['kernel'], np.float64)
  bias = np.asarray(params['logits']['bias'], np.float64)
  found = np.zeros((len(labels), 3))
  for i, y in enumerate(labels):
    for j in range(3):
      a, b = kernel[:, y] - kernel[:, j], bias[y] - bias[j]
      if not crown:
        found[i, j] = np.maximum(a, 0) @ low[i] + np.minimum(a, 0) @ high[i] + b
        continue
      for name, ends in (('dense2', ahead[1]), ('dense1', ahead[0])):
        for k, (bottom, top) in enumerate(zip(ends[0][i], ends[1][i])):
          slope = 1. if bottom >= 0 else 0. if top <= 0 else top / (top - bottom)
          shift = -slope * bottom if bottom < 0 < top else 0.
          if a[k] >= 0:  # From below; the nearer of x and 0.
            slope, shift = (float(top >= -bottom), 0.) if bottom < 0 < top else (slope, shift)
          b, a[k] = b + a[k] * shift, a[k] * slope
        b = b + a @ np.asarray(params[name]['bias'], np.float64)
        a = np.asarray(params[name]['kernel'], np.float64) @ a
      box = [np.asarray(x[i], np.float64).ravel() for x in (lower, upper)]
      found[i, j] = np.maximum(a, 0) @ box[0] + np.minimum(a, 0) @ box[1] + b
  return found


def box(epsilon):
  images = np.asarray(BATCH.images)
  return np.clip(images - epsilon, 0, 1), np.clip(images + epsilon, 0, 1)


def test_margins_are_those_of_numpy_and_of_the_sound_bounds(dense):
  network, params = dense
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  # Traced, in two branches, and as numbers.
  mixed = jax.jit(lambda *of, beta: bounds.margins(logits_fn, *of, BATCH.labels, beta=beta))
  pure = jax.jit(lambda *of: [bounds.margins(logits_fn, *of, BATCH.labels, beta=beta)[0]
                              for beta in (0., 1.)])
  for epsilon in (0., 0.1, 0.7):
    lower, upper = box(epsilon)
    both = pure(lower, upper)
    for found, crown in zip(both, (False, True)):
      expected = numpy_margins(params, lower, upper, BATCH.labels, crown=crown)
      np.testing.assert_allclose(found, expected, atol=3e-5, rtol=3e-5)
    for beta in (0., 0.3):
      found, kinks = mixed(lower, upper, beta=jnp.float32(beta))
      np.testing.assert_allclose(found, (1 - beta) * both[0] + beta * both[1], atol=1e-5)
    for kink, (low, high) in zip(kinks, numpy_intervals(params, lower, upper)[0], strict=True):
      np.testing.assert_allclose(kink.lower, low, atol=1e-5)
      np.testing.assert_allclose(kink.upper, high, atol=1e-5)
  # No margins for rounding: a little above the sound ones, and no more.
  for method, best in (('ibp', both[0]), ('crown_ibp', np.maximum(*both))):
    sound = bounds.crown(logits_fn, BATCH.images, epsilon, labels=BATCH.labels, method=method)
    assert (best >= sound - 1e-6).all() and (best <= sound + 1e-3).all()


def test_the_gradient_is_that_of_the_formula(dense):
  network, params = dense

  def by_formula(params):
    low, high = (jnp.asarray(x).reshape(len(x), -1) for x in box(0.1))
    for name in ('dense1', 'dense2'):
      middle = (low + high) / 2 @ params[name]['kernel'] + params[name]['bias']
      radius = (high - low) / 2 @ jnp.abs(params[name]['kernel'])
      low, high = nn.relu(middle - radius), nn.relu(middle + radius)
    rows = jnp.eye(3)[BATCH.labels][:, None] - jnp.eye(3)
    row = rows @ params['logits']['kernel'].T
    least = (row @ ((low + high) / 2)[..., None] - jnp.abs(row) @ ((high - low) / 2)[..., None])
    return jnp.sum(jnp.sin(least[..., 0] + rows @ params['logits']['bias']))

  def found(params):
    logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
    return jnp.sum(jnp.sin(bounds.margins(logits_fn, *box(0.1), BATCH.labels)[0]))

  for mine, other in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(params))
                           for f in (found, by_formula)), strict=True):
    np.testing.assert_allclose(mine, other, atol=2e-5)


NETS = {
    'small': ('ibp_cnn', dict(size='small'), (12, 12, 1)),
    'cnn7': ('cnn7', dict(width=3, dense=9), (8, 8, 1)),
    'cnn': ('cnn', dict(widths=(4, 5), kernel_size=3, dense=8), (8, 8, 1)),
}


@pytest.mark.parametrize('name', [
    'small', 'cnn7', pytest.param('cnn', marks=pytest.mark.slow)])
def test_no_attack_goes_below_the_margins_and_single_images_have_the_same(name):
  model_name, fields, shape = NETS[name]
  model = models.create(model_name, 4, **fields)
  variables = models.init(KEY, model, shape)
  rng = np.random.default_rng(5)
  variables['batch_stats'] = jax.tree.map(
      lambda x: jnp.asarray(rng.uniform(0.2, 1, x.shape), jnp.float32), variables['batch_stats'])
  logits_fn = models.network(model).eval_logits(variables)
  images = jnp.asarray(rng.uniform(size=(6, *shape)), jnp.float32)
  labels, epsilon = jnp.arange(6) % 4, 0.04
  lower, upper = jnp.clip(images - epsilon, 0, 1), jnp.clip(images + epsilon, 0, 1)
  margins = jax.jit(lambda *of: [bounds.margins(logits_fn, *of, beta=beta)[0] for beta in (0., 1.)])
  found = margins(lower, upper, labels)
  points = [lower + (upper - lower) * rng.uniform(size=images.shape) for _ in range(20)]
  points += [jnp.where(rng.uniform(size=images.shape) < 0.5, lower, upper) for _ in range(20)]
  points.append(jax.jit(functools.partial(
      attacks.pgd_attack, norm='linf', num_steps=10, epsilon=epsilon))(
          KEY, logits_fn, images, labels).images)
  for logits in jax.jit(jax.vmap(logits_fn))(jnp.stack(points)):
    margin = jnp.take_along_axis(logits, labels[:, None], 1) - logits
    for least in found:
      assert (margin >= least - 1e-5).all()
  if name == 'cnn':
    sound = bounds.crown(logits_fn, images, epsilon, labels=labels, method='crown_ibp')
    np.testing.assert_allclose(np.maximum(*found), sound, atol=2e-3)
    alone = [margins(lower[i:i + 1], upper[i:i + 1], labels[i:i + 1])[1] for i in range(6)]
    np.testing.assert_allclose(np.concatenate(alone), found[1], atol=1e-5)


def test_a_network_that_mixes_up_the_batch_is_refused():
  twisted = lambda x: nn.relu(x.reshape(len(x), -1).T).T
  with pytest.raises(ValueError, match=r'batch the first axis, got an array of shape \(16, 9\)'):
    bounds.margins(twisted, *box(0.1), BATCH.labels)


def test_the_statistics_of_the_batch_are_constants_and_the_stored_ones_are_updated(normed):
  network, params, stats = normed
  logits, updated, own, logits_fn = jax.jit(lambda: passes.batch_classifier(
      network, params, stats, BATCH.images, KEY))()
  expected, expected_stats = network.train_logits(params, stats, BATCH.images, KEY)
  np.testing.assert_allclose(logits, expected, atol=1e-6)
  for mine, other in zip(*map(jax.tree.leaves, (updated, expected_stats)), strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-6)
  np.testing.assert_allclose(logits_fn(BATCH.images), expected, atol=1e-5)
  # One function of each image: another batch does not change it.
  np.testing.assert_allclose(logits_fn(BATCH.images[:2]), expected[:2], atol=1e-5)
  convolved = np.asarray(nn.Conv(4, (3, 3)).apply({'params': params['conv']}, BATCH.images))
  np.testing.assert_allclose(own['norm']['mean'], convolved.mean((0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(own['norm']['var'], convolved.var((0, 1, 2)), atol=1e-6)


def test_gradients_flow_through_the_statistics(normed):
  network, params, stats = normed

  def fixed(params):
    return passes.batch_classifier(network, params, stats, BATCH.images, KEY)[3](
        BATCH.images)[:, 0].sum()

  def trained(params):
    return network.train_logits(params, stats, BATCH.images, KEY)[0][:, 0].sum()

  for mine, other in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(params))
                           for f in (fixed, trained)), strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-4)


def test_statistics_of_another_kind_are_refused(normed):
  network, params, _ = normed
  with pytest.raises(ValueError, match=r"'mean' and 'var' .*\['norm'\]\['sigma'\]"):
    passes.batch_classifier(network, params, {'norm': {'sigma': jnp.ones(4)}}, BATCH.images, KEY)


def move(shift):
  """An attack that moves every pixel by shift epsilon."""
  def attack(key, logits_fn, images, labels, *, epsilon):
    moved = jnp.clip(images + shift * epsilon, 0, 1)
    return AttackResult(moved, jnp.zeros(len(images), bool), jnp.zeros(len(images)))
  return attack


def method_of(net, name, **fields):
  """The method as a function (passed, batch, **what is traced of its fields) -> (output, gradient).
  """
  network, params, *stats = net

  def call(passed, batch=BATCH, **traced):
    def loss(params):
      output = methods.METHODS[name](
          keys.fold_in(KEY, batch.index), network, params, *(stats or [{}]), batch, at(passed),
          **fields, **traced)
      return output.loss.mean(), output
    gradient, output = jax.grad(loss, has_aux=True)(params)
    return output, gradient

  return jax.jit(call)


def run(name, net, passed=9., batch=BATCH, **fields):
  return method_of(net, name, **fields)(passed, batch)


def parts_of(net):
  """Of the formulas: the losses of clean images, of margins (box, beta), of logits, margins."""
  network, params, *stats = net
  clean, _, _, logits_fn = jax.jit(
      lambda: passes.batch_classifier(network, params, *(stats or [{}]), BATCH.images, KEY))()
  cross_entropy = lambda z: losses.cross_entropy(z, BATCH.labels)
  margins = jax.jit(lambda lower, upper, beta: bounds.margins(
      logits_fn, lower, upper, BATCH.labels, beta=beta)[0])
  worst = lambda *box, beta=0.: cross_entropy(-margins(*box, beta))
  return cross_entropy(clean), worst, lambda x: cross_entropy(logits_fn(x)), margins


def test_the_losses_are_their_formulas(normed):
  net, (clean, worst, loss_of, margins) = normed, parts_of(normed)
  # Half of the way: radius 0.1, kappa 0.7, beta 0.5.
  ramp = dict(epsilon=0.2, warmup_epochs=2., ramp_epochs=4., kappa_end=0.4)
  found, _ = run('ibp', net, 4., **ramp)
  np.testing.assert_allclose(found.loss, 0.7 * clean + 0.3 * worst(*box(0.1)), atol=1e-5)
  np.testing.assert_allclose(found.metrics['epsilon'], 0.1, rtol=1e-6)
  np.testing.assert_array_equal(
      found.metrics['verified'],
      np.asarray(bounds.certified(margins(*box(0.1), 0.), BATCH.labels), float))
  found, _ = run('crown_ibp', net, 4., **ramp)
  np.testing.assert_allclose(found.loss, 0.7 * clean + 0.3 * worst(*box(0.1), beta=0.5), atol=1e-5)
  attacked = np.clip(np.asarray(BATCH.images) + 0.2, 0, 1)
  found, _ = run('sabr', net, epsilon=0.2, size=0.25, attack=move(1))
  middle = BATCH.images + np.minimum(attacked - BATCH.images, 0.15)
  lower, upper = np.clip(middle - 0.05, 0, 1), np.clip(middle + 0.05, 0, 1)
  assert (lower >= BATCH.images - 0.2).all() and (upper <= BATCH.images + 0.2 + 1e-6).all()
  np.testing.assert_allclose(found.loss, worst(lower, upper), atol=1e-5)
  found, _ = run('mtl_ibp', net, epsilon=0.1, alpha=0.3, attack=move(1), attack_scale=2.)
  np.testing.assert_allclose(found.loss, 0.3 * worst(*box(0.1)) + 0.7 * loss_of(attacked),
                             atol=1e-5)


METHODS = {'ibp': dict(regularizer=0.5), 'crown_ibp': {}, 'wong_kolter': {},
           'sabr': dict(attack=move(-1)), 'mtl_ibp': dict(attack=move(-1))}


@pytest.mark.parametrize('name', [
    'ibp', 'crown_ibp', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'wong_kolter', 'sabr', 'mtl_ibp'))])
def test_gradients_are_finite_and_at_radius_0_those_of_clean_images(name, dense, normed):
  net = dense if name == 'wong_kolter' else normed
  method = method_of(net, name, warmup_epochs=1., ramp_epochs=2., **METHODS[name])
  at_the_ends = BATCH._replace(images=jnp.round(BATCH.images).at[0].set(0))
  # Before the ramp, on the way, and where the box is all of [0, 1].
  for epsilon, passed in ((0.1, 0.), (0.1, 1.5), (1., 9.)):
    output, gradient = method(passed, at_the_ends, epsilon=jnp.float32(epsilon))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((output.loss, gradient)))
    assert any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
  if name == 'ibp':  # With a regulariser, which is another loss.
    return
  output, gradient = method(0., epsilon=0.1)
  plain, expected = run('standard', net, 0.)
  np.testing.assert_allclose(output.loss, plain.loss, atol=1e-3 if name == 'wong_kolter' else 1e-5)
  for mine, other in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-3 if name == 'wong_kolter' else 1e-4)


@pytest.mark.slow
def test_wong_and_kolters_loss_is_that_of_their_bound(dense):
  network, params = dense
  found, _ = run('wong_kolter', dense, 3., epsilon=0.1, warmup_epochs=1., ramp_epochs=4.)
  bound = bounds.crown(network.eval_logits({'params': params, 'batch_stats': {}}), BATCH.images,
                       0.05, labels=BATCH.labels, method='wong_kolter')
  np.testing.assert_allclose(found.loss, losses.cross_entropy(-bound, BATCH.labels), atol=1e-5)


def test_the_ramp():
  passed = np.array([0, 1, 1.4, 2, 3, 5, 9], np.float32)
  linear = [schedules.ramp(x, 1., 4.) for x in passed]
  np.testing.assert_allclose(linear, np.clip((passed - 1) / 4, 0, 1), atol=1e-7)
  assert [float(schedules.ramp(x, 1., 0.)) for x in (0.9, 1., 2.)] == [0, 1, 1]
  u = np.linspace(0, 1, 401)
  smooth = np.array([schedules.ramp(x, 0., 1., 'smooth') for x in u], np.float64)
  assert smooth[0] == 0 and smooth[-1] == 1
  early = u <= 0.25
  factor = smooth[100] / 0.25**4
  np.testing.assert_allclose(smooth[early], factor * u[early]**4, atol=1e-6)
  slope = (1 - smooth[100]) / 0.75
  np.testing.assert_allclose(smooth[~early], 1 - slope * (1 - u[~early]), atol=1e-6)
  np.testing.assert_allclose(4 * factor * 0.25**3, slope, rtol=1e-4)  # No kink.
  with pytest.raises(ValueError, match="ramp must be one of linear, smooth, got 'steep'"):
    schedules.ramp(0., 0., 1., 'steep')


def numpy_penalties(lower, upper, width):
  """Shi et al.'s two, as their code has them, of one layer."""
  middle = (lower + upper) / 2
  tight = max(0.5 - width / ((upper - lower) / 2).mean(), 0) / 0.5
  on, off = lower > 0, upper < 0
  ratios = [(middle * on).mean() / -(middle * off).mean(),
            ((middle - middle.mean())**2 * on).sum() / ((middle - middle.mean())**2 * off).sum()]
  return tight, sum(max(0.5 - min(r, 1 / r), 0) / 0.5 for r in ratios)


def test_the_regularizer_is_that_of_its_authors(dense):
  _, params = dense
  rows = 5
  batch = BATCH._replace(mask=jnp.asarray([1.] * rows + [0.] * 4))
  fields = dict(epsilon=0.04, ramp_epochs=2., kappa_end=0.4)
  plain, _ = run('ibp', dense, 1., batch, **fields)
  regularized = method_of(dense, 'ibp', **fields, regularizer=3.)
  found, gradient = regularized(1., batch)
  lower, upper = (np.asarray(x[:rows], np.float64) for x in box(0.02))
  layers_of = numpy_intervals(params, lower, upper)[0]
  expected = [numpy_penalties(low, high, (upper - lower).mean() / 2) for low, high in layers_of]
  assert np.count_nonzero(expected) > 2
  np.testing.assert_allclose(found.loss - plain.loss, 3 * 0.5 * np.sum(expected) / 2, rtol=1e-3)
  # It has ended with the ramp.
  late, late_plain = regularized(2., batch)[0], run('ibp', dense, 2., batch, **fields)[0]
  np.testing.assert_allclose(late.loss, late_plain.loss, rtol=1e-6)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  with pytest.raises(ValueError, match='without ReLU, got 0.5'):
    linear = models.create('linear', 3)
    run('ibp', (models.network(linear), models.init(KEY, linear, (4, 4, 1))['params']),
        epsilon=0.1, regularizer=0.5)


@pytest.mark.parametrize('lower, upper', [
    ([1., 2.], [3., 4.]), ([-3., -2.], [-2., -1.]), ([-1., -1.], [1., 1.]), ([0., 0.], [0., 0.])])
def test_layers_all_on_or_off_have_a_penalty_without_gradient(lower, upper):
  ends = [jnp.asarray([x]) for x in (lower, upper)]
  value, gradient = jax.value_and_grad(
      lambda ends: provable.balance(*ends, jnp.ones((1, 1))))(ends)
  assert value == 2 and all((g == 0).all() for g in gradient)


def test_l1_is_added_to_the_gradient():
  params = {'kernel': jnp.asarray([[1., -2.], [0., 3.]]), 'bias': jnp.asarray([1., -1.])}
  gradient = jax.tree.map(jnp.zeros_like, params)
  for decay_all in (True, False):
    step = optimizers.sgd(0.5, momentum=0., l1=0.1, decay_all=decay_all)
    updates, _ = step.update(gradient, step.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)['kernel'],
                               [[0.95, -1.95], [0., 2.95]], rtol=1e-6)
    np.testing.assert_allclose(updates['bias'], [-0.05, 0.05] if decay_all else 0., atol=1e-8)
  adam = optimizers.adam(0.5, l1=0.1)
  updates, _ = adam.update(gradient, adam.init(params), params)
  np.testing.assert_allclose(updates['kernel'], [[-0.5, 0.5], [0., -0.5]], atol=1e-5)


def test_the_initialisation_keeps_the_width_of_intervals():
  kernel = layers.ibp_normal(400)[0](KEY, (400, 4000))
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 * np.pi) / 400, rtol=0.01)
  # The mean of |w| is sqrt(2 / pi) deviations, so 400 of them make 2; a ReLU leaves half.
  np.testing.assert_allclose(np.abs(kernel).sum(0).mean(), 2, rtol=0.01)


@pytest.mark.parametrize('name, fields, shape, number', [
    ('ibp_cnn', dict(size='small'), (28, 28, 1), 329_606),
    ('ibp_cnn', dict(size='medium'), (28, 28, 1), 893_418),
    ('ibp_cnn', dict(size='large'), (28, 28, 1), 13_257_290),
    # 471 thousand, 1.2 and 17 million in the paper.
    ('ibp_cnn', dict(size='small'), (32, 32, 3), 470_918),
    ('ibp_cnn', dict(size='medium'), (32, 32, 3), 1_188_906),
    ('ibp_cnn', dict(size='large'), (32, 32, 3), 17_190_602),
    ('cnn7', {}, (28, 28, 1), 13_259_338),
    ('cnn7', {}, (32, 32, 3), 17_192_650),
])
def test_the_networks_have_as_many_parameters_as_they_say(name, fields, shape, number):
  variables = models.shapes(models.create(name, 10, **fields), shape)
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == number


def test_attacks_see_the_statistics_of_the_batch(normed):
  seen = []

  def attack(key, logits_fn, images, labels, *, epsilon):
    seen.append(logits_fn)
    return move(1)(key, logits_fn, images, labels, epsilon=epsilon)

  network, params, stats = normed
  def trained():
    methods.mtl_ibp(keys.fold_in(KEY, BATCH.index), network, params, stats, BATCH, LATE,
                    epsilon=0.1, attack=attack)
    return seen[0](BATCH.images), network.train_logits(params, stats, BATCH.images, KEY)[0]

  np.testing.assert_allclose(*jax.jit(trained)(), atol=1e-5)
