"""AWP and SAM: the gradient of a step at weights that raise the loss, against NumPy in float64."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_training

from launch import flags
from robust_jax import attacks, keys, models, training
from robust_jax.config import experiment, sections
from robust_jax.devices import parallel
from robust_jax.errors import UserError
from robust_jax.training import methods
from robust_jax.types import Progress

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
FGSM = functools.partial(attacks.fgsm, norm='l2', order='ball_only')
METHODS = {'standard': methods.standard,
           'adversarial': functools.partial(methods.adversarial, attack=FGSM, epsilon=0.3)}
ASCENTS = {'awp': functools.partial(training.awp, gamma=0.3),
           'sam': functools.partial(training.sam, rho=0.5)}


@pytest.fixture(scope='module')
def batch():
  batch = tiny_training.random_batch(16)
  return batch._replace(mask=batch.mask.at[3].set(0.).at[7].set(2.5))


@pytest.fixture(scope='module')
def linear():
  """A linear network: (module, variables)."""
  model = models.create('mlp', 3, hidden=())
  return model, dict(models.init(KEY, model, (4, 4, 1)))


def take_step(model, variables, batch, *, method, num_devices=1, epoch=0, **kwargs):
  """(state, sums) of one step of SGD with weight decay."""
  optimizer = training.OPTIMIZERS['sgd'](0.5, momentum=0., weight_decay=0.1)
  step = parallel.map_train_step(
      functools.partial(
          training.train_step, network=models.network(model, axis_name=parallel.AXIS),
          method=method, optimizer=optimizer, steps_per_epoch=5, axis_name=parallel.AXIS,
          **kwargs), jax.devices()[:num_devices])
  state = training.create_state(variables, optimizer)
  return step(state._replace(step=jnp.asarray(5 * epoch, jnp.int32)), batch, KEY)


def gradient_of(x, labels, mask, kernel, bias):
  """Of a linear classifier in float64: (in the parameters, weighted; in the images; losses)."""
  log_probs = scipy.special.log_softmax(x @ kernel + bias, axis=-1)
  wrong = np.exp(log_probs) - np.eye(3)[labels]
  shares = wrong * mask[:, None] / mask.sum()
  return (x.T @ shares, shares.sum(0)), wrong @ kernel.T, -log_probs[np.arange(len(x)), labels]


@pytest.mark.parametrize('method, ascent, kwargs', [
    ('standard', 'awp', {}), ('adversarial', 'awp', {}), ('adversarial', 'awp', {'num_devices': 2}),
    ('adversarial', 'sam', {}), ('adversarial', 'sam', {'accumulation': 4})])
def test_a_step_has_its_formula(method, ascent, kwargs, linear, batch):
  state, sums = take_step(*linear, batch, method=METHODS[method], weight_ascent=ASCENTS[ascent],
                          **kwargs)
  (layer, params), = linear[1]['params'].items()
  kernel, bias = (np.asarray(params[name], np.float64) for name in ('kernel', 'bias'))
  x, labels, mask = (np.asarray(value, np.float64).reshape(16, -1).squeeze() for value in (
      batch.images, batch.labels, batch.mask))
  labels = labels.astype(int)
  if method == 'adversarial':  # Of the network at w, in both passes.
    _, of_images, _ = gradient_of(x, labels, mask, kernel, bias)
    x = x + 0.3 * of_images / np.linalg.norm(of_images, axis=-1, keepdims=True)
  (of_kernel, of_bias), _, _ = gradient_of(x, labels, mask, kernel, bias)
  if ascent == 'awp':
    raised = kernel + 0.3 * np.linalg.norm(kernel) * of_kernel / np.linalg.norm(of_kernel), bias
  else:
    length = np.sqrt((of_kernel**2).sum() + (of_bias**2).sum())
    raised = kernel + 0.5 * of_kernel / length, bias + 0.5 * of_bias / length
  (of_kernel, of_bias), _, losses = gradient_of(x, labels, mask, *raised)
  found = state.params[layer]
  np.testing.assert_allclose(found['kernel'], kernel - 0.5 * (of_kernel + 0.1 * kernel), rtol=1e-4,
                             atol=1e-5)
  np.testing.assert_allclose(found['bias'], bias - 0.5 * (of_bias + 0.1 * bias), rtol=1e-4,
                             atol=1e-5)
  np.testing.assert_allclose(sums['loss'] / sums['count'], (mask * losses).sum() / mask.sum(),
                             rtol=1e-4)


def test_the_lengths_are_those_of_layers_or_of_all():
  rng = np.random.default_rng(0)
  params, gradient = ({'kernel': jnp.asarray(rng.normal(size=(3, 3, 2, 5)), jnp.float32),
                       'bias': jnp.asarray(rng.normal(size=5), jnp.float32)} for _ in range(2))
  length = lambda x: float(jnp.linalg.norm(x.ravel()))
  v = training.awp(params, gradient, gamma=0.01)
  np.testing.assert_allclose(length(v['kernel']), 0.01 * length(params['kernel']), rtol=1e-5)
  assert not v['bias'].any()
  v = training.sam(params, gradient, rho=0.05)
  np.testing.assert_allclose(np.hypot(length(v['kernel']), length(v['bias'])), 0.05, rtol=1e-5)
  np.testing.assert_allclose(v['bias'] / v['bias'][0], gradient['bias'] / gradient['bias'][0],
                             rtol=1e-5)
  zero = jax.tree.map(jnp.zeros_like, gradient)
  for v in (training.awp(params, zero, gamma=0.01), training.sam(params, zero, rho=0.05)):
    assert not any(leaf.any() for leaf in jax.tree.leaves(v))


@pytest.mark.slow
def test_it_can_begin_later(linear, batch):
  kwargs = dict(method=METHODS['adversarial'], epoch=2)
  plain, _ = take_step(*linear, batch, **kwargs)
  before, _ = take_step(*linear, batch, weight_ascent=ASCENTS['awp'], ascent_start_epoch=3,
                        **kwargs)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), before.params,
               plain.params)
  begun, _ = take_step(*linear, batch, weight_ascent=ASCENTS['awp'], ascent_start_epoch=2,
                       **kwargs)
  assert max(np.abs(a - b).max() for a, b in zip(
      jax.tree.leaves(begun.params), jax.tree.leaves(plain.params))) > 1e-2


@pytest.mark.parametrize('accumulation', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_images_are_attacked_once(accumulation, linear, batch):
  traced = []

  def attack(*args, **kwargs):
    traced.append(1)
    return FGSM(*args, **kwargs)

  method = functools.partial(methods.adversarial, attack=attack, epsilon=0.3)
  take_step(*linear, batch, method=method, weight_ascent=ASCENTS['awp'],
            accumulation=accumulation)
  assert len(traced) == 1


@pytest.mark.parametrize('name', [
    'standard', pytest.param('jacobian_penalty', marks=pytest.mark.slow)])
def test_statistics_and_penalties_are_of_the_second_pass_alone(name, batch):
  # A penalty reads the network in evaluation mode, whose gradient must not be lost.
  model, variables = tiny_training.small_net(KEY)
  network, batch = models.network(model), batch._replace(mask=jnp.ones(16))
  method = {'standard': methods.standard,
            'jacobian_penalty': functools.partial(methods.jacobian_penalty, weight=0.1)}[name]
  state, _ = take_step(model, variables, batch, method=method, weight_ascent=ASCENTS['awp'])

  @jax.jit
  def gradient(params):
    def loss(params):
      output = method(keys.fold_in(keys.fold_in(KEY, 0), batch.index), network, params,
                      variables['batch_stats'], batch, PROGRESS)
      return jnp.mean(output.loss), output.batch_stats
    return jax.grad(loss, has_aux=True)(params)

  params = variables['params']
  raised = jax.tree.map(jnp.add, params, ASCENTS['awp'](params, gradient(params)[0]))
  expected, statistics = gradient(raised)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(lambda new, w, g: close(new, w - 0.5 * (g + 0.1 * w)), state.params, params,
               expected)
  jax.tree.map(close, state.batch_stats, statistics)


def test_a_step_whose_first_gradient_is_not_finite_is_bad(linear, batch):
  def method(key, network, params, batch_stats, batch, progress):
    output = methods.standard(key, network, params, batch_stats, batch, progress)
    is_first = isinstance(network.attacked, list)
    return output._replace(loss=output.loss * (jnp.nan if is_first else 1.))

  kwargs = dict(method=method, weight_ascent=ASCENTS['sam'])
  assert np.isnan(take_step(*linear, batch, **kwargs)[1]['loss'])
  state, sums = take_step(*linear, batch, skip_bad=True, **kwargs)
  assert sums['skipped_steps'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, linear[1]['params'])


@pytest.mark.parametrize('words, message', [
    (['awp', '--config.train.sam=0.1'], 'train.sam must be 0 with config.train.awp, got 0.1'),
    (['pgd', '--config.train.ascent_start_epoch=3'], 'train.ascent_start_epoch must be 0 without')])
def test_what_does_not_go_together_is_one_line(words, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  config = flags.parse(['launch', f'--config=configs/digits.py:{words[0]}', *words[1:]]).config
  with pytest.raises(UserError, match=f'^config.{message}'):
    experiment.build(sections.resolve(config), jax.devices()[:2])
