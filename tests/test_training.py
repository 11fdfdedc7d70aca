"""Methods, optimisers, schedules and the step, against NumPy and against each other."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from flax import linen as nn

from robust_jax import attacks, keys, losses, models, smoothing, training
from robust_jax.devices import parallel
from robust_jax.devices.choose import host_device_count
from robust_jax.training import methods, schedules
from robust_jax.training.methods import passes
from robust_jax.types import MethodOutput, Progress

KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
PGD = functools.partial(attacks.pgd_attack, random_start=False, norm='l2', num_steps=2)


@pytest.fixture(scope='module')
def batch():
  return tiny_training.random_batch(16)


@pytest.fixture(scope='module')
def linear():
  """A linear network without BatchNorm: (network, params)."""
  model = models.create('mlp', 3, hidden=())
  return models.network(model), models.init(KEY, model, (4, 4, 1))['params']


@pytest.fixture(scope='module')
def small_net():
  """A network with BatchNorm: (network, variables)."""
  model, variables = tiny_training.small_net(KEY)
  return models.network(model), variables


run_method = functools.partial(tiny_training.run_method, progress=PROGRESS, key=KEY)


def test_gaussian_without_noise_is_standard(linear, batch):
  plain, gradient = run_method(methods.standard, *linear, batch)
  noisy, noisy_gradient = run_method(functools.partial(methods.gaussian, sigma=0.), *linear, batch)
  np.testing.assert_allclose(noisy.loss, plain.loss, rtol=1e-6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), noisy_gradient, gradient)
  logits = linear[0].eval_logits({'params': linear[1], 'batch_stats': {}})(batch.images)
  np.testing.assert_allclose(plain.loss, losses.cross_entropy(logits, batch.labels), rtol=1e-5)


def test_smoothadv_without_noise_is_adversarial_training(linear, batch):
  kwargs = dict(epsilon=0.5, attack=PGD)
  smoothed, gradient = run_method(
      functools.partial(methods.smoothadv, sigma=0., num_noise=2, **kwargs), *linear, batch)
  plain, plain_gradient = run_method(functools.partial(methods.adversarial, **kwargs), *linear,
                                     batch)
  np.testing.assert_allclose(smoothed.loss, plain.loss, rtol=1e-4)
  np.testing.assert_allclose(smoothed.metrics['accuracy'], plain.metrics['accuracy'])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient,
               plain_gradient)


def test_adversarial_training_with_epsilon_zero_is_standard(linear, batch):
  plain, _ = run_method(methods.standard, *linear, batch)
  for method in (functools.partial(methods.adversarial, clean_share=0.),
                 functools.partial(methods.adversarial, clean_share=0.3)):
    output, _ = run_method(functools.partial(method, attack=PGD, epsilon=0.), *linear, batch)
    np.testing.assert_allclose(output.loss, plain.loss, rtol=1e-5)


@pytest.mark.parametrize('train_noise', ['all', 'first'])
@pytest.mark.parametrize('loss', ['mean', 'plugin'])
def test_smoothadv_loss_has_its_formula(loss, train_noise, linear, batch):
  # The inner maximisation is replaced by a fixed shift, which also records the noise it is given.
  seen = []

  def shift(key, logits_fn, images, labels, *, epsilon, noise):
    jax.debug.callback(lambda n: seen.append(n), noise)
    return attacks.no_attack(key, logits_fn, images + epsilon, labels, noise=noise)

  network, params = linear
  output, _ = run_method(
      functools.partial(methods.smoothadv, attack=shift, epsilon=0.1, sigma=0.5, num_noise=3,
                        loss=loss, train_noise=train_noise), network, params, batch)
  jax.effects_barrier()
  noise = seen[0][:1] if train_noise == 'first' else seen[0]
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  log_probs = np.stack([-losses.cross_entropy(logits_fn(batch.images + 0.1 + n), batch.labels)
                        for n in noise]).astype(np.float64)
  expected = -log_probs.mean(0) if loss == 'mean' else -np.log(np.exp(log_probs).mean(0))
  np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
  np.testing.assert_allclose(np.std(seen[0]), 0.5, rtol=0.1)


def test_gradient_is_that_at_the_fixed_adversarial_image(linear, batch):
  network, params = linear
  output, gradient = run_method(
      functools.partial(methods.adversarial, attack=PGD, epsilon=0.5), network, params, batch)
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  attack_keys = keys.fold_in(keys.fold_in(KEY, batch.index), 0)
  fixed = PGD(attack_keys, logits_fn, batch.images, batch.labels, epsilon=0.5).images
  _, expected = run_method(methods.standard, network, params, batch._replace(images=fixed))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient,
               expected)
  clean, _ = run_method(methods.standard, network, params, batch)
  assert np.mean(output.loss) > np.mean(clean.loss)


def test_attack_leaves_batch_statistics_alone(small_net, batch):
  network, variables = small_net
  shifted = batch._replace(images=batch.images + 0.25)
  attack = lambda key, f, x, y, epsilon: attacks.no_attack(key, f, x + 0.25, y)
  output, _ = run_method(functools.partial(methods.adversarial, attack=attack, epsilon=1.), network,
                         variables['params'], batch, variables['batch_stats'])
  expected, _ = run_method(methods.standard, network, variables['params'], shifted,
                           variables['batch_stats'])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), output.batch_stats,
               expected.batch_stats)
  conv = nn.Conv(4, (3, 3)).apply({'params': variables['params']['conv']}, shifted.images)
  np.testing.assert_allclose(output.batch_stats['norm']['mean'], 0.1 * conv.mean((0, 1, 2)),
                             rtol=1e-4, atol=1e-6)


def test_batch_norm_sees_all_noisy_copies_together(small_net, batch):
  network, variables = small_net
  seen = []
  spy = network._replace(train_logits=lambda p, s, x, k: (
      seen.append((x.shape, k.shape)), network.train_logits(p, s, x, k))[1])
  run_method(functools.partial(methods.smoothadv, attack=attacks.no_attack, epsilon=0., sigma=0.1,
                               num_noise=3), spy, variables['params'], batch,
             variables['batch_stats'])
  assert seen[0] == ((48, 4, 4, 1), (48,))


def test_epsilon_warm_up():
  # min(epsilon, (e + 1) epsilon / warm-up).
  values = [float(schedules.warm_up(1.5, jnp.asarray(e), 3)) for e in range(5)]
  np.testing.assert_allclose(values, [0.5, 1., 1.5, 1.5, 1.5])
  assert float(schedules.warm_up(1.5, jnp.asarray(0), 0)) == 1.5


def test_methods_report_the_warmed_up_epsilon(linear, batch):
  late = Progress(jnp.asarray(30), jnp.asarray(1), jnp.asarray(1.5))
  output, _ = run_method(
      functools.partial(methods.adversarial, attack=PGD, epsilon=0.4, epsilon_warmup_epochs=4),
      *linear, batch, progress=late)
  np.testing.assert_allclose(output.metrics['epsilon'], 0.2)


def test_learning_rate_schedules():
  common = dict(steps_per_epoch=10, num_epochs=8, learning_rate=0.4)
  step = schedules.step(**common, boundaries=(2, 5), factor=0.1)
  np.testing.assert_allclose([step(s) for s in (0, 19, 20, 49, 50, 79)],
                             [.4, .4, .04, .04, .004, .004], rtol=1e-6)
  cosine = schedules.cosine(**common, warmup_epochs=2, final_fraction=0.)
  np.testing.assert_allclose([cosine(s) for s in (0, 9, 19, 20, 50, 80)],
                             [.02, .2, .4, .4, .2, 0.], atol=1e-6)
  linear = schedules.linear(**common, warmup_epochs=2, final_fraction=0.1)
  np.testing.assert_allclose([linear(s) for s in (0, 9, 19, 20, 50, 80)],
                             [.02, .2, .4, .4, .22, .04], atol=1e-6)
  constant = schedules.constant(**common, warmup_epochs=1)
  np.testing.assert_allclose([constant(s) for s in (0, 4, 9, 10, 70)], [.04, .2, .4, .4, .4])


@pytest.mark.parametrize('decay_all', [True, False])
@pytest.mark.parametrize('decoupled', [True, False])
@pytest.mark.parametrize('nesterov', [True, False])
def test_sgd_is_torchs(nesterov, decoupled, decay_all):
  optimizer = training.OPTIMIZERS['sgd'](
      0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov, decoupled=decoupled,
      decay_all=decay_all)
  start = {'kernel': np.array([[1., -2.]]), 'scale': np.array([3.])}
  params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), start)
  state = optimizer.init(params)
  w, v = dict(start), dict.fromkeys(start, 0.)
  for step in range(3):
    g = {name: 0.5 * (step + 1) * np.sign(value) for name, value in start.items()}
    for name in w:
      decay = 0.01 * w[name] if decay_all or name == 'kernel' else 0.
      gradient = g[name] + (0. if decoupled else decay)
      v[name] = 0.9 * v[name] + gradient
      direction = gradient + 0.9 * v[name] if nesterov else v[name]
      w[name] = w[name] - 0.1 * (direction + (decay if decoupled else 0.))
    updates, state = optimizer.update(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, w)


def test_adamw_is_torchs():
  optimizer = training.OPTIMIZERS['adam'](0.01, weight_decay=0.1, decoupled=True)
  w, m, v = np.array([1., -2.]), 0., 0.
  params = {'w': jnp.asarray(w, jnp.float32)}
  state = optimizer.init(params)
  for step in range(1, 4):
    g = np.array([0.5, -1.]) * step
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    w = w - 0.01 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) + 0.1 * w)
    updates, state = optimizer.update({'w': jnp.asarray(g, jnp.float32)}, state, params)
    params = {'w': params['w'] + updates['w']}
  np.testing.assert_allclose(params['w'], w, rtol=1e-5)


@pytest.mark.parametrize('norm, factor', [(1., 1 / 5), (50., 1.)])
def test_the_whole_gradient_is_clipped_before_the_decay(norm, factor):
  optimizer = training.OPTIMIZERS['sgd'](1., momentum=0., weight_decay=0.5, clip_norm=norm)
  params = {'a': jnp.asarray([2.]), 'b': jnp.asarray([0.])}
  gradient = {'a': jnp.asarray([3.]), 'b': jnp.asarray([4.])}
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(updates['a'], [-3 * factor - 1.], rtol=1e-6)
  np.testing.assert_allclose(updates['b'], [-4 * factor], rtol=1e-6)


def jitted_step(network, optimizer, method, **kwargs):
  return jax.jit(functools.partial(training.train_step, network=network, optimizer=optimizer,
                                   method=method, steps_per_epoch=5, **kwargs))


def mapped_step(network, optimizer, method, num_devices):
  return parallel.map_train_step(
      functools.partial(training.train_step, network=network, optimizer=optimizer, method=method,
                        steps_per_epoch=5, axis_name=parallel.AXIS), jax.devices()[:num_devices])


def one_step(network, variables, batch, memory=None, **kwargs):
  optimizer = training.OPTIMIZERS['sgd'](0.1)

  def gaussian(*arguments):
    output = methods.gaussian(*arguments, sigma=0.2)
    seen = {name: arguments[4].aux[name] + 1 for name in memory or {}}
    return output._replace(memory=seen)

  step = jitted_step(network, optimizer, gaussian, **kwargs)
  return step(training.create_state(variables, optimizer, memory=memory), batch, KEY)


def test_a_second_step_compiles_nothing(small_net, batch):
  network, variables = small_net
  devices, optimizer = jax.devices()[:2], training.OPTIMIZERS['sgd'](0.1)
  chex.clear_trace_counter()
  method = functools.partial(chex.assert_max_traces(methods.gaussian, n=1), sigma=0.2)
  step = mapped_step(network, optimizer, method, 2)
  state = parallel.replicate(training.create_state(variables, optimizer), devices)
  for number in range(3):
    state, _ = step(state, batch._replace(labels=(batch.labels + number) % 3), KEY)
  assert int(state.step) == 3


def test_logits_that_are_nan_are_no_class():
  logits = jnp.full((4, 3), jnp.nan).at[3].set(jnp.asarray([0., 2., 1.]))
  labels = jnp.asarray([0, 1, 2, 1])
  np.testing.assert_array_equal(passes.accuracy(logits, labels), [0, 0, 0, 1])
  copies = jnp.stack([logits, logits.at[0].set(jnp.asarray([2., 1., 0.]))])
  np.testing.assert_array_equal(passes.accuracy(copies, labels), [0.5, 0, 0, 1])


@pytest.mark.parametrize('parts', [2, 16])
def test_accumulated_parts_make_the_step_of_the_whole(parts, linear, batch):
  network, params = linear
  variables = {'params': params, 'batch_stats': {}}
  masked = batch._replace(mask=batch.mask.at[3].set(0.))
  memory = {'seen': jnp.arange(40.)}
  whole, sums = one_step(network, variables, masked, memory)
  accumulated, found = one_step(network, variables, masked, memory, accumulation=parts)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
               (accumulated, found), (whole, sums))


def test_a_gradient_that_is_not_finite_shows_in_the_loss(linear, batch):
  network, params = linear

  def method(key, network, params, batch_stats, batch, progress):
    output = methods.standard(key, network, params, batch_stats, batch, progress)
    # 0, with a derivative of infinity times 0.
    return output._replace(loss=output.loss + jnp.sqrt(0 * params['logits']['kernel'].sum()))

  optimizer = training.OPTIMIZERS['sgd'](0.1)
  step = jitted_step(network, optimizer, method)
  state = training.create_state({'params': params, 'batch_stats': {}}, optimizer)
  _, sums = step(state, batch, KEY)
  assert np.isnan(sums['loss']) and sums['count'] == 16


def test_accumulation_threads_the_batch_statistics(small_net, batch):
  network, variables = small_net
  state, _ = one_step(network, variables, batch, accumulation=2)
  expected = variables['batch_stats']
  method = functools.partial(methods.gaussian, sigma=0.2)
  step_keys = keys.fold_in(KEY, 0)
  for rows in (slice(0, 8), slice(8, 16)):
    half = jax.tree.map(lambda x, rows=rows: x[rows], batch)
    output = method(keys.fold_in(step_keys, half.index), network, variables['params'], expected,
                    half, PROGRESS)
    expected = output.batch_stats
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), state.batch_stats,
               expected)


def test_accumulation_has_to_divide(linear, batch):
  with pytest.raises(ValueError, match='accumulation .*16 rows.* got 3'):
    one_step(linear[0], {'params': linear[1], 'batch_stats': {}}, batch, accumulation=3)


@pytest.mark.parametrize('field, name, called', [
    ('loss', '', 'loss'), ('metrics', 'accuracy', r"metrics\['accuracy'\]"),
    ('memory', 'seen', r"memory\['seen'\]")])
def test_what_is_not_one_number_an_example_is_refused(field, name, called, linear, batch):
  def method(*arguments):
    output = methods.standard(*arguments)._replace(memory={'seen': jnp.zeros(16)})
    values = getattr(output, field)
    wrong = jnp.mean(values) if field == 'loss' else {**values, name: jnp.mean(values[name])}
    return output._replace(**{field: wrong})

  step = jitted_step(linear[0], training.OPTIMIZERS['sgd'](0.1), method)
  state = training.create_state({'params': linear[1], 'batch_stats': {}},
                                training.OPTIMIZERS['sgd'](0.1), memory={'seen': jnp.zeros(40)})
  with pytest.raises(ValueError, match=rf'{called} must have shape \(16,\).* got \(\)'):
    jax.eval_shape(step, state, batch, KEY)


def test_memory_without_new_values_is_refused(linear, batch):
  optimizer = training.OPTIMIZERS['sgd'](0.1)
  state = training.create_state({'params': linear[1], 'batch_stats': {}}, optimizer,
                                memory={'seen': jnp.zeros(40)})
  with pytest.raises(ValueError, match=r"memory .*\['seen'\].* got \[\]"):
    jax.eval_shape(jitted_step(linear[0], optimizer, methods.standard), state, batch, KEY)


def test_the_average_follows_parameters_and_statistics(small_net, batch):
  network, variables = small_net
  optimizer = training.OPTIMIZERS['sgd'](0.1)
  step = jitted_step(network, optimizer, methods.standard, ema_decay=0.15)
  state = training.create_state(variables, optimizer, ema=True)
  expected = jax.tree.map(np.float64, dict(variables))
  for t in range(3):
    state, _ = step(state, batch, KEY)
    decay = min(0.15, (1 + t) / (10 + t))
    now = {'params': state.params, 'batch_stats': state.batch_stats}
    expected = jax.tree.map(lambda e, w, d=decay: d * e + (1 - d) * np.float64(w), expected, now)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.ema,
               expected)
  assert state.variables is state.ema
  mean = state.ema['batch_stats']['norm']['mean']
  assert np.abs(mean - state.batch_stats['norm']['mean']).max() > 1e-4


def test_label_smoothing_reaches_every_method(linear, batch):
  network, params = linear
  logits = network.eval_logits({'params': params, 'batch_stats': {}})(batch.images)
  expected = losses.cross_entropy(logits, batch.labels, label_smoothing=0.2)
  attacked = dict(attack=attacks.no_attack, epsilon=0.)
  for method in (methods.standard, functools.partial(methods.gaussian, sigma=0.),
                 functools.partial(methods.adversarial, **attacked),
                 functools.partial(methods.adversarial, clean_share=0.5, **attacked),
                 functools.partial(methods.smoothadv, sigma=0., **attacked),
                 functools.partial(methods.smoothadv, sigma=0., loss='plugin', **attacked)):
    output, _ = run_method(functools.partial(method, label_smoothing=0.2), network, params, batch)
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)


@pytest.mark.parametrize('name', methods.METHODS)
def test_one_key_is_a_key_for_each_example(name, linear, batch):
  network, params = linear
  if methods.needs(name).tangents:
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16, 2)))[0]
    batch = batch._replace(aux={'tangents': jnp.asarray(basis, jnp.float32)})
  if methods.needs(name).targets:
    batch = batch._replace(aux={'targets': jnp.full((16, 3), 1 / 3)})
  random_pgd = functools.partial(PGD, random_start=True,
                                 loss=methods.needs(name).attack_loss or 'cross_entropy')
  values = dict(attack=random_pgd, epsilon=0.5, sigma=0.3, order='beside', num_projections=2)
  takes = inspect.signature(methods.METHODS[name]).parameters
  memory = {value: jnp.full(16, 0.1) for value in methods.needs(name).memory}
  batch = batch._replace(aux={**batch.aux, **memory})

  def loss(key):
    return jax.jit(functools.partial(
        methods.METHODS[name], network=network, params=params, batch_stats={}, batch=batch,
        progress=PROGRESS,
        **{name: value for name, value in values.items() if name in takes}))(key).loss

  np.testing.assert_array_equal(loss(KEY), loss(keys.per_example(KEY, 16)))
  draws = name not in ('standard', 'tangent', 'tangent_penalty', 'ibp', 'crown_ibp', 'wong_kolter')
  assert np.any(loss(KEY) != loss(jax.random.key(6))) == draws


def test_padding_counts_for_nothing(linear, batch):
  network, params = linear
  optimizer = training.OPTIMIZERS['sgd'](0.1)
  step = jitted_step(network, optimizer, functools.partial(methods.gaussian, sigma=0.3))
  state = training.create_state({'params': params, 'batch_stats': {}}, optimizer)
  half = jax.tree.map(lambda x: x[:8], batch)
  padded = batch._replace(images=batch.images.at[8:].set(7.), mask=batch.mask.at[8:].set(0.))
  expected, sums = step(state, half, KEY)
  found, padded_sums = step(state, padded, KEY)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found.params,
               expected.params)
  assert float(padded_sums['count']) == 8
  np.testing.assert_allclose(padded_sums['loss'], sums['loss'], rtol=1e-5)


def count_visits(key, network, params, batch_stats, batch, progress):
  """A method with memory: how often each example was seen."""
  output = methods.standard(key, network, params, batch_stats, batch, progress)
  return MethodOutput(output.loss, output.batch_stats, output.metrics,
                      {'visits': batch.aux['visits'] + 1})


@pytest.mark.parametrize('num_devices', [1, 4])
def test_memory_is_kept_per_example(num_devices, linear, batch):
  network, params = linear
  optimizer = training.OPTIMIZERS['sgd'](0.1)
  step = mapped_step(network, optimizer, count_visits, num_devices)
  state = training.create_state({'params': params, 'batch_stats': {}}, optimizer,
                                memory={'visits': jnp.zeros(40)})
  padded = batch._replace(index=batch.index.at[-1].set(40), mask=batch.mask.at[-1].set(0.))
  state, _ = step(state, batch, KEY)
  state, _ = step(state, padded, KEY)
  expected = np.zeros(40)
  expected[batch.index] = 2
  expected[batch.index[-1]] = 1
  np.testing.assert_array_equal(state.memory['visits'], expected)


def train_20_steps(num_devices, variables, batch):
  network = models.network(tiny_training.SmallNet(), axis_name=parallel.AXIS)
  optimizer = training.OPTIMIZERS['sgd'](0.1)
  method = functools.partial(
      methods.smoothadv, epsilon=0.3, sigma=0.2, num_noise=2, epsilon_warmup_epochs=2,
      attack=functools.partial(PGD, random_start=True))
  step = mapped_step(network, optimizer, method, num_devices)
  state, history = training.create_state(variables, optimizer), []
  for _ in range(20):
    state, sums = step(state, batch, KEY)
    history.append(float(sums['loss'] / sums['count']))
  return state, history


def test_same_run_on_one_two_and_eight_devices(small_net, batch):
  _, variables = small_net
  one, history = train_20_steps(1, variables, batch)
  assert history[-1] < history[0]
  for num_devices in (2, 8):
    state, found = train_20_steps(num_devices, variables, batch)
    np.testing.assert_allclose(found, history, rtol=2e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
                 state.batch_stats, one.batch_stats)
    # What claims to be replicated must be the same on every device, bit for bit.
    for leaf in jax.tree.leaves(state):
      shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
      assert len(shards) == num_devices
      for shard in shards[1:]:
        np.testing.assert_array_equal(shard, shards[0])


def test_a_batch_that_does_not_divide_is_refused():
  step = parallel.map_train_step(lambda state, batch, key: (state, {}), jax.devices()[:4])
  with pytest.raises(ValueError, match='rows .* 4.* got 10'):
    step({}, jnp.zeros((10, 2)), KEY)


def test_simulated_devices_have_one_call_under_way():
  """Many with collectives end the process: they wait for each other in threads that they share."""
  long = lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y @ y / jnp.linalg.norm(y @ y), x)
  devices = jax.devices()[:2]
  state = parallel.replicate(jnp.eye(200), devices)
  step = parallel.map_train_step(
      lambda state, batch, key: (long(state), {'sum': jax.lax.psum(batch.sum(), parallel.AXIS)}),
      devices)
  state, _ = step(state, np.ones(2), KEY)
  state, sums = step(state, np.ones(2), KEY)
  assert state.is_ready() and sums['sum'].is_ready() and sums['sum'] == 2


def test_host_device_count_is_a_divisor_within_the_cores():
  assert [host_device_count([256, 64], cores) for cores in (1, 2, 3, 8)] == [1, 2, 2, 8]
  assert host_device_count([50, 512], 5) == 2
  assert host_device_count([7], 4) == 1


def test_noise_is_shared_by_attack_and_loss(linear, batch):
  # With the same draws, one step of SmoothAdv must raise the very loss that is trained on.
  network, params = linear
  kwargs = dict(sigma=0.3, num_noise=4, loss='plugin')
  attacked, _ = run_method(functools.partial(methods.smoothadv, attack=PGD, epsilon=0.4, **kwargs),
                           network, params, batch)
  still, _ = run_method(functools.partial(methods.smoothadv, attack=PGD, epsilon=0., **kwargs),
                        network, params, batch)
  assert (attacked.loss >= still.loss - 1e-5).all()
  noise = smoothing.sample_noise(keys.fold_in(keys.fold_in(KEY, batch.index), 1), batch.images,
                                 sigma=0.3, num_noise=4)
  logits_fn = network.eval_logits({'params': params, 'batch_stats': {}})
  smoothed = smoothing.mean_logits(smoothing.victim(logits_fn, noise).logits(batch.images))
  np.testing.assert_allclose(still.loss, losses.cross_entropy(smoothed, batch.labels), rtol=1e-4)
