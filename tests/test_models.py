"""Models against NumPy evaluations of their published descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.lib.stride_tricks import sliding_window_view

from robust_jax import keys, models
from robust_jax.errors import UserError
from robust_jax.models import layers, resnet

# NumPy's layers, in float64.


def numpy_conv(x, layer, pad, stride=1):
  kernel = np.asarray(layer['kernel'], np.float64)
  x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  windows = sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
  return np.einsum('bijchw,hwco->bijo', windows, kernel) + np.asarray(layer.get('bias', 0))


def numpy_pool(x):
  rows, columns = x.shape[1] // 2, x.shape[2] // 2
  out = np.empty((x.shape[0], rows, columns, x.shape[3]))
  for row in range(rows):
    for column in range(columns):
      out[:, row, column] = x[:, 2 * row:2 * row + 2, 2 * column:2 * column + 2].max((1, 2))
  return out


def numpy_dense(x, layer):
  return x @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])


def numpy_norm(x, params, stats, train, updated):
  """BatchNorm; `updated` receives the new running statistics."""
  mean, var = np.asarray(stats['mean']), np.asarray(stats['var'])
  if train:
    old_mean, old_var = mean, var
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    updated['mean'] = 0.9 * old_mean + 0.1 * mean
    updated['var'] = 0.9 * old_var + 0.1 * var
  return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params['scale']) + np.asarray(params['bias'])


def numpy_resnet(x, params, stats, num_blocks, train):
  """Logits and new running statistics of the ResNet of depth 6 num_blocks + 2."""
  updated = {'norm': {}}
  x = numpy_conv(x, params['conv'], (1, 1))
  x = np.maximum(numpy_norm(x, params['norm'], stats['norm'], train, updated['norm']), 0)
  for stage in (1, 2, 3):
    for block in range(1, num_blocks + 1):
      name = f'stage{stage}_block{block}'
      layer, old, new = params[name], stats[name], {key: {} for key in stats[name]}
      updated[name] = new
      stride = 2 if stage > 1 and block == 1 else 1
      out = numpy_conv(x, layer['conv1'], (1, 1), stride)
      out = np.maximum(numpy_norm(out, layer['norm1'], old['norm1'], train, new['norm1']), 0)
      out = numpy_conv(out, layer['conv2'], (1, 1))
      out = numpy_norm(out, layer['norm2'], old['norm2'], train, new['norm2'])
      if stride == 2:
        x = numpy_conv(x, layer['shortcut'], (0, 0), 2)
        x = numpy_norm(x, layer['shortcut_norm'], old['shortcut_norm'], train,
                       new['shortcut_norm'])
      x = np.maximum(out + x, 0)
  return numpy_dense(x.mean((1, 2)), params['logits']), updated


def random_like(tree, seed):
  """Positive random numbers in the shapes of `tree`: BatchNorm that is not the identity."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), tree)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).random((8, 8, 8, 3), np.float32)


@pytest.fixture(scope='module')
def small_resnet():
  """ResNet-8 on 8x8 images, with random statistics, BatchNorm scales and biases."""
  model = resnet.ResNet(5, num_blocks=1)
  variables = models.init(keys.root(0), model, (8, 8, 3))
  randomised = random_like(variables['params'], 1)
  params = jax.tree.map_with_path(
    lambda path, leaf, other: other if 'norm' in str(path) else leaf,
    variables['params'], randomised)
  return model, {'params': params, 'batch_stats': random_like(variables['batch_stats'], 2)}


# Architectures.


@pytest.mark.parametrize(('name', 'shape', 'count'), [
  ('lenet', (28, 28, 1), 431_080),
  ('cnn', (28, 28, 1), 3_274_634),  # Madry et al.'s
  ('mlp', (28, 28, 1), 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
  ('resnet20', (32, 32, 3), 272_474),  # He et al.: 0.27M, here with two shortcut convolutions
  ('resnet110', (32, 32, 3), 1_730_714),  # 1.7M
])
def test_parameter_counts_and_logits(name, shape, count):
  model = models.create(name, 10)
  inputs = jnp.zeros((2, *shape))
  variables = jax.eval_shape(lambda key: model.init(key, inputs, train=False), keys.root(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count
  logits = jax.eval_shape(lambda v: model.apply(v, inputs, train=False), variables)
  assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)


def test_hyper_parameters_reach_the_model():
  variables = models.init(keys.root(0), models.create('mlp', 3, hidden=(4, 5)), (2, 2, 1))
  shapes = {name: layer['kernel'].shape for name, layer in variables['params'].items()}
  assert shapes == {'dense1': (4, 4), 'dense2': (4, 5), 'logits': (5, 3)}
  assert variables['batch_stats'] == {}


def test_an_unknown_model_is_a_user_error():
  with pytest.raises(UserError, match="model.name is 'vgg'; .*lenet, mlp, resnet110"):
    models.create('vgg', 10)


def test_lenet_equals_numpy():
  model = models.create('lenet', 10)
  inputs = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
  variables = models.init(keys.root(1), model, (28, 28, 1))
  params = variables['params']
  x = inputs.astype(np.float64)
  for name in ('conv1', 'conv2'):
    x = numpy_pool(np.maximum(numpy_conv(x, params[name], (0, 0)), 0))
  assert x.shape == (2, 4, 4, 50)
  expected = numpy_dense(np.maximum(numpy_dense(x.reshape(2, -1), params['dense']), 0),
                         params['logits'])
  np.testing.assert_allclose(models.logits_fn(model, variables)(inputs), expected, atol=1e-5)


def test_cnn_equals_numpy_on_odd_sizes():
  model = models.create('cnn', 4, widths=(3, 2), kernel_size=3, dense=6)
  inputs = np.random.default_rng(0).random((2, 7, 6, 2), np.float32)
  variables = models.init(keys.root(1), model, (7, 6, 2))
  params = variables['params']
  x = inputs.astype(np.float64)
  for name in ('conv1', 'conv2'):
    x = numpy_pool(np.maximum(numpy_conv(x, params[name], (1, 1)), 0))
  assert x.shape == (2, 1, 1, 2)
  expected = numpy_dense(np.maximum(numpy_dense(x.reshape(2, -1), params['dense']), 0),
                         params['logits'])
  np.testing.assert_allclose(models.logits_fn(model, variables)(inputs), expected, atol=1e-5)


def test_resnet_equals_numpy_with_stored_statistics(small_resnet, images):
  model, variables = small_resnet
  expected, _ = numpy_resnet(images, variables['params'], variables['batch_stats'], 1, train=False)
  logits = jax.jit(models.logits_fn(model, variables))(images)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


# Training mode.


@pytest.fixture(scope='module')
def numpy_training(small_resnet, images):
  """Logits and statistics of the whole batch, normalised by (x - 0.4) / 0.2."""
  _, variables = small_resnet
  return numpy_resnet((images - 0.4) / 0.2, variables['params'], variables['batch_stats'], 1,
                      train=True)


def assert_statistics_close(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
               found, expected)


def test_train_logits_use_and_update_batch_statistics(small_resnet, images, numpy_training):
  model, variables = small_resnet
  train_logits = jax.jit(models.network(model, mean=0.4, std=0.2).train_logits)
  logits, batch_stats = train_logits(
    variables['params'], variables['batch_stats'], images, keys.per_example(keys.root(0), 8))
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, numpy_training[0], rtol=1e-3, atol=1e-3)
  assert_statistics_close(batch_stats, numpy_training[1])


def test_statistics_are_those_of_all_devices(small_resnet, images, numpy_training):
  if jax.device_count() < 2:
    pytest.skip('needs two devices')
  model, variables = small_resnet
  train_logits = jax.pmap(
    models.network(model, mean=0.4, std=0.2, axis_name='devices').train_logits,
    axis_name='devices', in_axes=(None, None, 0, 0), devices=jax.devices()[:2])
  logits, batch_stats = train_logits(
    variables['params'], variables['batch_stats'], images.reshape(2, 4, 8, 8, 3),
    keys.per_example(keys.root(0), 8).reshape(2, 4))
  np.testing.assert_allclose(logits.reshape(8, -1), numpy_training[0], rtol=1e-3, atol=1e-3)
  for device in (0, 1):
    assert_statistics_close(jax.tree.map(lambda leaf: leaf[device], batch_stats),  # noqa: B023
                            numpy_training[1])


def test_a_model_without_batchnorm_trains_without_statistics(images):
  model = models.create('mlp', 5)
  variables = models.init(keys.root(0), model, images.shape[1:])
  network = models.network(model, mean=0.5, std=(0.1, 0.2, 0.3), axis_name='devices')
  logits, batch_stats = network.train_logits(variables['params'], {}, images, None)
  assert batch_stats == {}
  np.testing.assert_allclose(logits, network.eval_logits(variables)(images), rtol=1e-5)


# logits_fn.


def test_normalisation_is_inside(images):
  model = models.create('mlp', 5, hidden=())
  variables = models.init(keys.root(0), model, images.shape[1:])
  mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
  expected = numpy_dense(((images - np.array(mean)) / np.array(std)).reshape(8, -1),
                         variables['params']['logits'])
  logits = models.logits_fn(model, variables, mean=mean, std=std)(images)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_new_variables_compile_nothing(images):
  traced = []

  @jax.jit
  def apply(logits_fn, images):
    traced.append(images.shape)
    return logits_fn(images)

  outputs = []
  for seed in (0, 1):
    model = models.create('mlp', 5, hidden=(6,))  # an equal module, made anew
    variables = models.init(keys.root(seed), model, images.shape[1:])
    outputs.append(apply(models.logits_fn(model, variables, mean=[0.1, 0.2, 0.3], std=1), images))
    apply(models.network(model, mean=(0.1, 0.2, 0.3)).eval_logits(variables), images)
  assert len(traced) == 1
  assert not np.allclose(*outputs)


# Pooling.


@pytest.mark.parametrize('shape', [(2, 6, 4, 3), (2, 7, 5, 3)])
def test_max_pool_equals_flax_where_nothing_ties(shape):
  x = jax.random.normal(keys.root(0), shape)
  reference = lambda x: nn.max_pool(x, (2, 2), (2, 2))
  np.testing.assert_array_equal(layers.max_pool(x), reference(x))
  gradient = lambda pool: jax.grad(lambda x: (pool(x) ** 3).sum())(x)
  np.testing.assert_allclose(gradient(layers.max_pool), gradient(reference), rtol=1e-6)
  # d2/dx2 of the sum of max^3 along v is 6 max v at the maximum, by forward over reverse.
  v = jax.random.normal(keys.root(1), shape)
  _, second = jax.jvp(jax.grad(lambda x: (layers.max_pool(x) ** 3).sum()), (x,), (v,))
  _, slope = jax.vjp(reference, x)
  at_maximum, = slope(jnp.ones_like(reference(x)))
  np.testing.assert_allclose(second, 6 * x * v * at_maximum, rtol=1e-5, atol=1e-6)


def test_max_pool_gives_the_gradient_of_ties_to_the_first():
  x = jnp.tile(jnp.array([[0.0, 2.0], [2.0, 2.0]]), (2, 2)).reshape(1, 4, 4, 1)
  gradient = lambda pool: jax.grad(lambda x: pool(x).sum())(x)
  np.testing.assert_array_equal(gradient(layers.max_pool)[0, :2, :2, 0], [[0, 1], [0, 0]])
  np.testing.assert_array_equal(
    gradient(layers.max_pool), gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2))))


def test_max_pool_under_vmap():
  x = jax.random.normal(keys.root(0), (3, 2, 4, 4, 1))
  gradient = jax.grad(lambda x: (layers.max_pool(x) ** 2).sum())
  np.testing.assert_array_equal(jax.vmap(gradient)(x), jnp.stack([gradient(row) for row in x]))


# Initialisation.


def test_pytorch_initialisation_of_lenet():
  params = models.init(keys.root(0), models.create('lenet', 10), (28, 28, 1))['params']
  for name, fan_in in {'conv1': 25, 'conv2': 500, 'dense': 800, 'logits': 500}.items():
    bound = 1 / np.sqrt(fan_in)
    for leaf in params[name].values():
      assert np.abs(leaf).max() <= bound
      assert np.ptp(leaf) > bound  # spread out: not zeros, and no narrower
    kernel = params[name]['kernel']
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.15)


def test_initialisation_of_resnet():
  model = resnet.ResNet(5, num_blocks=1)
  variables = models.init(keys.root(0), model, (8, 8, 3))
  block = variables['params']['stage3_block1']
  kernel = np.asarray(block['conv2']['kernel'])
  assert set(block['conv2']) == {'kernel'}
  std = np.sqrt(2 / (9 * 64))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.03)
  assert np.abs(kernel).max() > 3 * std  # not truncated
  np.testing.assert_array_equal(block['norm1']['scale'], 1)
  np.testing.assert_array_equal(block['norm1']['bias'], 0)
  np.testing.assert_array_equal(variables['batch_stats']['norm']['mean'], 0)
  np.testing.assert_array_equal(variables['batch_stats']['norm']['var'], 1)
