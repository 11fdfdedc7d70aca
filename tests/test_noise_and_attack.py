"""The orders of combining noise and attack, DDN and the gradient-free attack in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training

from robust_jax import attacks, keys, models, smoothing
from robust_jax.stages.metrics import Metrics
from robust_jax.training import methods
from robust_jax.types import Progress

KEY = jax.random.key(8)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
PGD = functools.partial(attacks.pgd_attack, random_start=False, norm='l2', num_steps=2,
                        step_ratio=2.)
ORDERS = ['beside', 'attack_then_noise', 'noise_then_attack']
MODEL = models.create('mlp', 3, hidden=(8,))
NETWORK = models.network(MODEL)
PARAMS = models.init(KEY, MODEL, (4, 4, 1))['params']


@pytest.fixture(scope='module')
def batch():
  return tiny_training.random_batch(6)


def method_of(order, **kwargs):
  """The method of an order, by its place in the authors' list."""
  if order == 'noise_then_attack':
    return functools.partial(methods.smoothadv, num_noise=1, **kwargs)
  return functools.partial(methods.noisy_adversarial, order=order, **kwargs)


def run(method, batch, params=PARAMS, key=KEY):
  """The method's output, and the gradient of its mean loss."""
  return tiny_training.run_method(method, NETWORK, params, batch, progress=PROGRESS, key=key)


def numpy_loss(params, images, labels):
  """Cross-entropy of the network in float64."""
  w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  hidden = np.asarray(images, np.float64).reshape(len(images), -1) @ w['dense1']['kernel']
  hidden = np.maximum(hidden + w['dense1']['bias'], 0)
  z = hidden @ w['logits']['kernel'] + w['logits']['bias']
  return np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1) - z[
      np.arange(len(z)), labels]


def noise_of(batch, sigma, num_noise=1):
  example_keys = keys.fold_in(keys.fold_in(KEY, batch.index), 1)
  return smoothing.sample_noise(example_keys, batch.images, sigma=sigma, num_noise=num_noise)


@pytest.mark.parametrize('order', ORDERS)
def test_each_order_has_its_formula(order, batch):
  output, gradient = run(method_of(order, attack=PGD, epsilon=0.4, sigma=0.3, **(
      {'noise_share': 0.3} if order == 'beside' else {})), batch)
  noise = noise_of(batch, 0.3)
  attack = functools.partial(PGD, KEY, NETWORK.eval_logits({'params': PARAMS, 'batch_stats': {}}),
                             batch.images, batch.labels, epsilon=0.4)
  attacked = attack(noise=noise if order == 'noise_then_attack' else None).images

  def expected(params):
    if order == 'beside':
      return (0.7 * numpy_loss(params, attacked, batch.labels)
              + 0.3 * numpy_loss(params, batch.images + noise[0], batch.labels))
    return numpy_loss(params, attacked + noise[0], batch.labels)

  np.testing.assert_allclose(output.loss, expected(PARAMS), rtol=1e-4)
  # The attacked images are held fixed: the gradient is that of the formula at them.
  direction = jax.tree.map(
      lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), PARAMS)
  up, down = (jax.tree.map(lambda w, d, s=s: np.asarray(w, np.float64) + s * d, PARAMS, direction)
              for s in (1e-4, -1e-4))
  slope = (expected(up) - expected(down)).mean() / 2e-4
  found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
  np.testing.assert_allclose(found, slope, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize('order', ORDERS)
def test_without_noise_the_orders_are_adversarial_training(order, batch):
  found, gradient = run(method_of(order, attack=PGD, epsilon=0.4, sigma=0.), batch)
  plain, plain_gradient = run(functools.partial(
      methods.adversarial, attack=PGD, epsilon=0.4,
      clean_share=0.5 if order == 'beside' else 0.), batch)
  np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-4)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient,
               plain_gradient)


@pytest.mark.parametrize('order', ORDERS)
def test_without_attack_the_orders_are_gaussian_augmentation(order, batch):
  noisy = batch._replace(images=batch.images + noise_of(batch, 0.3)[0])
  expected, _ = run(methods.standard, noisy)  # gaussian, but for where the draws come from
  share = {'noise_share': 1.} if order == 'beside' else {}
  found, _ = run(method_of(order, attack=PGD, epsilon=0., sigma=0.3, **share), batch)
  np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize('order', ORDERS)
def test_the_radius_warms_up(order, batch):
  # In epoch 0, the first of four.
  found, _ = run(method_of(order, attack=PGD, epsilon=1.2, sigma=0.3, epsilon_warmup_epochs=4),
                 batch)
  expected, _ = run(method_of(order, attack=PGD, epsilon=0.3, sigma=0.3), batch)
  np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4)
  np.testing.assert_allclose(found.metrics['epsilon'], 0.3, rtol=1e-6)


@pytest.mark.parametrize('share', [0., 1.])
def test_the_ends_of_the_share(share, batch):
  found, _ = run(functools.partial(methods.noisy_adversarial, order='beside', attack=PGD,
                                   epsilon=0.4, sigma=0.3, noise_share=share), batch)
  if share:
    expected, _ = run(methods.standard, batch._replace(
        images=batch.images + noise_of(batch, 0.3)[0]))
  else:
    expected, _ = run(functools.partial(methods.adversarial, attack=PGD, epsilon=0.4), batch)
  np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize('order', ORDERS)
def test_an_examples_loss_does_not_depend_on_its_place(order, batch):
  method = method_of(order, attack=functools.partial(PGD, random_start=True), epsilon=0.4,
                     sigma=0.3)
  together, _ = run(method, batch)
  shuffle = jnp.asarray([4, 2, 0, 5, 1, 3])
  apart, _ = run(method, jax.tree.map(lambda x: x[shuffle], batch))
  np.testing.assert_allclose(apart.loss, together.loss[shuffle], rtol=1e-4)


@pytest.mark.parametrize('order', ORDERS)
def test_finite_at_saturated_logits(order, batch):
  output, gradient = run(method_of(order, attack=PGD, epsilon=0.4, sigma=0.3), batch,
                         params=jax.tree.map(lambda leaf: 1e3 * leaf, PARAMS))
  for leaf in jax.tree.leaves((output.loss, gradient)):
    assert np.isfinite(leaf).all()


def test_smoothadv_with_ddn_trains_on_what_ddn_finds(batch):
  ddn = functools.partial(attacks.ddn, num_steps=2, init_norm=0.)
  late = Progress(jnp.asarray(0), jnp.asarray(1), jnp.asarray(1.))
  method = functools.partial(methods.smoothadv, attack=ddn, epsilon=1.2, sigma=0.3, num_noise=2,
                             epsilon_warmup_epochs=4)
  output = method(keys.fold_in(KEY, batch.index), NETWORK, PARAMS, {}, batch, late)
  noise = noise_of(batch, 0.3, 2)
  # A step's sphere has the radius that the warm-up has come to: norm0 = epsilon = 0.6.
  attacked = attacks.ddn(KEY, NETWORK.eval_logits({'params': PARAMS, 'batch_stats': {}}),
                         batch.images, batch.labels, epsilon=0.6, noise=noise, num_steps=2,
                         init_norm=0.6, gamma=0.05).images
  expected = np.mean([numpy_loss(PARAMS, attacked + n, batch.labels) for n in noise], axis=0)
  np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
  moved = np.linalg.norm(np.reshape(attacked - batch.images, (6, -1)), axis=-1)
  assert (moved > 0.5).any() and (moved <= 0.6 + 1e-5).all()


def test_the_gradient_free_attack_never_differentiates_the_network(batch):
  @jax.custom_jvp
  def opaque(x):
    return x

  @opaque.defjvp
  def _(primals, tangents):
    raise AssertionError('differentiated')

  network = NETWORK._replace(eval_logits=lambda variables: jax.tree_util.Partial(
      lambda f, x: opaque(f(x)), NETWORK.eval_logits(variables)))
  method = functools.partial(
      methods.smoothadv, epsilon=0.5, sigma=0.3, num_noise=8,
      attack=functools.partial(PGD, smoothed_objective='gradient_free', sigma=0.3))
  output = method(keys.fold_in(KEY, batch.index), network, PARAMS, {}, batch, PROGRESS)
  assert np.isfinite(output.loss).all()
  with pytest.raises(AssertionError, match='differentiated'):
    functools.partial(method, attack=PGD)(
        keys.fold_in(KEY, batch.index), network, PARAMS, {}, batch, PROGRESS)


def test_training_goes_on_and_says_where_an_attack_had_no_gradient(batch):
  # The norm of what comes in has no gradient at a black image; those of the parameters are finite.
  network = NETWORK._replace(eval_logits=lambda variables: jax.tree_util.Partial(
      lambda f, x: f(x) * (1 + jnp.linalg.norm(x.reshape(len(x), -1), axis=-1, keepdims=True)),
      NETWORK.eval_logits(variables)))
  batch = batch._replace(images=batch.images.at[1].set(0.))
  one_step = functools.partial(PGD, num_steps=1, random_start=False)
  for method in (methods.adversarial, functools.partial(methods.smoothadv, sigma=0., num_noise=1)):
    method = functools.partial(method, attack=one_step, epsilon=0.3)
    output = jax.jit(lambda batch, method=method: method(
        keys.fold_in(KEY, batch.index), network, PARAMS, {}, batch, PROGRESS))(batch)
    assert np.isfinite(output.loss).all()
    np.testing.assert_array_equal(output.metrics['undefined_attacks'], [0, 1, 0, 0, 0, 0])


def test_a_line_of_metrics_tells_of_attacks_without_a_gradient_where_there_are_any(tmp_path):
  metrics = Metrics(tmp_path, 0, None)
  for undefined, told in ((0., None), (3., 0.3)):
    metrics.add({'loss': 10., 'undefined_attacks': undefined, 'count': 10.})
    assert metrics.flush(1, 0.1).get('undefined_attacks') == told
