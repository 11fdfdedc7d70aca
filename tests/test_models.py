"""Models against NumPy evaluations of their published descriptions."""

import functools
import inspect
from itertools import pairwise

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.lib.stride_tricks import sliding_window_view

from robust_jax import backend, keys, losses, models, schema
from robust_jax.errors import UserError
from robust_jax.models import cnn, densenet, layers, preact_resnet, resnet, vgg

# NumPy's layers, in float64.


def numpy_conv(x, layer, pad, stride=1):
  kernel = np.asarray(layer['kernel'], np.float64)
  x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  windows = sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::stride, ::stride]
  return np.einsum('bijchw,hwco->bijo', windows, kernel) + np.asarray(layer.get('bias', 0))


def numpy_pool(x, size=2, stride=None, pad=(0, 0), reduce=np.max):
  """Windows that do not fit are dropped; np.max pads with -inf, np.mean with zeros."""
  x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-np.inf if reduce is np.max else 0)
  stride = stride or size
  return reduce(sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride], (-2, -1))


def numpy_dense(x, layer):
  return x @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])


def numpy_norm(x, params, stats, train=False, updated=None, epsilon=1e-5):
  """BatchNorm; `updated` receives the new running statistics."""
  mean, var = np.asarray(stats['mean']), np.asarray(stats['var'])
  if train:
    old_mean, old_var = mean, var
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    updated['mean'] = 0.9 * old_mean + 0.1 * mean
    updated['var'] = 0.9 * old_var + 0.1 * var
  x = (x - mean) / np.sqrt(var + epsilon)
  return x * np.asarray(params['scale']) + np.asarray(params['bias']) if params else x


def relu(x):
  return np.maximum(x, 0)


def swish(x):
  return x / (1 + np.exp(-x))


def numpy_layers(variables, train=False, updated=None, **kwargs):
  """conv, norm and dense of a module's variables by name; `updated` as of `numpy_norm`, by name."""
  params, stats = variables['params'], variables['batch_stats']

  def norm(x, name):
    new = updated.setdefault(name, {}) if train else None
    return numpy_norm(x, params.get(name), stats[name], train, new, **kwargs)

  return (lambda x, name, pad=(1, 1), stride=1: numpy_conv(x, params[name], pad, stride),
          norm, lambda x, name: numpy_dense(x, params[name]))


def block_of(variables, name):
  return {kind: tree.get(name, {}) for kind, tree in variables.items()}


def numpy_cnn(x, variables, pad, pools=(2, 2), updated=None):
  """In training mode with `updated`."""
  conv, norm, dense = numpy_layers(variables, updated is not None, updated)
  if 'norm' in variables['batch_stats']:
    x = norm(x, 'norm')
  for number, size in enumerate(pools, start=1):
    x = numpy_pool(relu(conv(x, f'conv{number}', pad)), size)
  return dense(relu(dense(x.reshape(len(x), -1), 'dense')), 'logits')


def numpy_resnet(x, variables, train=False):
  """Logits and new running statistics of ResNet-8."""
  updated = {}
  conv, norm, dense = numpy_layers(variables, train, updated)
  x = relu(norm(conv(x, 'conv'), 'norm'))
  for stage in (1, 2, 3):
    name = f'stage{stage}_block1'
    conv, norm, _ = numpy_layers(block_of(variables, name), train, updated.setdefault(name, {}))
    stride = 2 if stage > 1 else 1
    out = relu(norm(conv(x, 'conv1', stride=stride), 'norm1'))
    out = norm(conv(out, 'conv2'), 'norm2')
    if stride == 2:
      x = norm(conv(x, 'shortcut', (0, 0), 2), 'shortcut_norm')
    x = relu(out + x)
  return dense(x.mean((1, 2)), 'logits'), updated


def numpy_bottleneck_resnet(x, variables):
  """Two stages of one bottleneck each, after the stem for large images."""
  conv, norm, dense = numpy_layers(variables)
  x = relu(norm(conv(x, 'conv', (3, 3), 2), 'norm'))
  x = numpy_pool(x, 3, 2, (1, 1))
  for stage, stride in ((1, 1), (2, 2)):
    conv, norm, _ = numpy_layers(block_of(variables, f'stage{stage}_block1'))
    out = relu(norm(conv(x, 'conv1', (0, 0)), 'norm1'))
    out = relu(norm(conv(out, 'conv2', (1, 1), stride), 'norm2'))
    out = norm(conv(out, 'conv3', (0, 0)), 'norm3')
    x = relu(out + norm(conv(x, 'shortcut', (0, 0), stride), 'shortcut_norm'))
  return dense(x.mean((1, 2)), 'logits')


def numpy_preact_resnet(x, variables, num_blocks=(1, 1, 1), form='zagoruyko', activation=relu):
  conv, norm, dense = numpy_layers(variables)
  x = conv(x, 'conv')
  for stage, blocks in enumerate(num_blocks):
    for block in range(blocks):
      inner = block_of(variables, f'stage{stage + 1}_block{block + 1}')
      inner_conv, inner_norm, _ = numpy_layers(inner)
      stride = 2 if stage and not block else 1
      pad = (0, 1) if form == 'deepmind' and stride == 2 else (1, 1)
      start = activation(inner_norm(x, 'norm1'))
      out = activation(inner_norm(inner_conv(start, 'conv1', pad, stride), 'norm2'))
      out = inner_conv(out, 'conv2')
      if form == 'mcdonnell' and stride == 2:
        pooled = numpy_pool(x, 3, 2, (1, 1), np.mean)
        x = np.concatenate([pooled, np.zeros_like(pooled)], axis=-1)
      elif 'shortcut' in inner['params']:
        x = inner_conv(start, 'shortcut', (0, 0), stride)
      x = x + out
  if 'norm' in variables['batch_stats']:
    x = activation(norm(x, 'norm'))
  if form == 'mcdonnell':
    return norm(conv(x, 'logits', (0, 0)), 'logits_norm').mean((1, 2))
  return dense(x.mean((1, 2)), 'logits')


def numpy_densenet(x, variables, bottleneck=False):
  conv, norm, dense = numpy_layers(variables)
  x = conv(x, 'conv')
  for block in (1, 2, 3):
    for number in (1, 2):
      inner_conv, inner_norm, _ = numpy_layers(block_of(variables, f'block{block}_layer{number}'))
      out = inner_conv(relu(inner_norm(x, 'norm1')), 'conv1', (0, 0) if bottleneck else (1, 1))
      if bottleneck:
        out = inner_conv(relu(inner_norm(out, 'norm2')), 'conv2')
      x = np.concatenate([x, out], axis=-1)
    if block < 3:
      x = conv(relu(norm(x, f'transition{block}_norm')), f'transition{block}', (0, 0))
      x = numpy_pool(x, reduce=np.mean)
  return dense(relu(norm(x, 'norm')).mean((1, 2)), 'logits')


def numpy_vgg(x, variables):
  conv, norm, _ = numpy_layers(variables, epsilon=1e-3)
  _, dense_norm, dense = numpy_layers(variables)
  for stage, convs in enumerate((2, 2, 3, 3, 3), start=1):
    for number in range(1, convs + 1):
      x = relu(norm(conv(x, f'stage{stage}_conv{number}'), f'stage{stage}_norm{number}'))
    x = numpy_pool(x, pad=(0, x.shape[1] % 2))
  x = dense(x.reshape(len(x), -1), 'dense')
  return dense(relu(dense_norm(x, 'norm')), 'logits')


def variable_shapes(model, image_shape):
  """{'params', 'batch_stats'} as jax.ShapeDtypeStruct, which compiles nothing."""
  variables = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False), keys.root(0))
  return {'batch_stats': {}, **variables}


def random_variables(model, image_shape, seed=0):
  """Variables in the model's shapes: kernels N(0, 2 / fan_in), all else in [0.5, 1.5]."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if 'kernel' in str(path[-1]):
      return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return rng.uniform(0.5, 1.5, leaf.shape)

  return jax.tree.map_with_path(lambda *args: jnp.asarray(draw(*args), jnp.float32),
                                variable_shapes(model, image_shape))


def jit(function):
  """jax.jit for small arguments, with which a compilation takes longer than the run."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def evaluate(function, *args):
  return jit(function)(*args)


def train(network, variables, images, key):
  """(logits, new batch statistics)."""
  return evaluate(network.train_logits, variables['params'], variables['batch_stats'], images, key)


def equations(jaxpr):
  """All equations of a jaxpr, those of inner jaxprs included."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from equations(inner)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).random((8, 8, 8, 3), np.float32)


@pytest.fixture(scope='module')
def small_resnet():
  """ResNet-8 on 8x8 images, with random statistics, BatchNorm scales and biases."""
  model = resnet.ResNet(5, num_blocks=(1, 1, 1))
  return model, random_variables(model, (8, 8, 3))


# Architectures.


MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
VGG_WIDTHS = (3, 64, 64, 128, 128, *[256] * 3, *[512] * 6)


@pytest.mark.parametrize(('name', 'kwargs', 'shape', 'count'), [
  ('linear', {}, MNIST, 7_850),
  ('mlp', {}, MNIST, 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
  ('cnn', {}, MNIST, 3_274_634),
  ('lenet', {}, MNIST, 431_080),
  ('madry_cnn', {}, MNIST, 3_274_634),
  # Convolutions, then 2 x 2 x 64 features into the dense layer, from 32 and from 28 pixels.
  ('shaham_cnn', {}, (32, 32, 1), 26 * 32 + 801 * 64 + 257 * 200 + 201 * 10),
  ('shaham_cnn', {}, MNIST, 105_506),
  # Gowal et al.'s small: 4x4 convolutions to 13 and 10 pixels, and two dense layers.
  ('ibp_cnn', {}, MNIST, 17 * 16 + 257 * 32 + 3201 * 100 + 101 * 10),
  # Convolutions with biases and BN; a dense layer with BN; logits.
  ('cnn7', {}, CIFAR, sum((9 * fan_in + 3) * width for fan_in, width in pairwise(
      (3, 64, 64, 128, 128, 128))) + (128 * 16 * 16 + 3) * 512 + 513 * 10),
  ('vgg', {}, CIFAR, sum((9 * fan_in + 3) * width for fan_in, width in pairwise(VGG_WIDTHS))
   + 515 * 512 + 513 * 10),
  ('resnet20', {}, CIFAR, 272_474),  # He et al.: 0.27M, here with two shortcut convolutions
  # ResNet-20's and 6 blocks more in each stage, a block of w channels being 18 w^2 + 4 w.
  ('resnet56', {}, CIFAR, 272_474 + 6 * sum(18 * w**2 + 4 * w for w in (16, 32, 64))),
  ('resnet110', {}, CIFAR, 1_730_714),  # 1.7M
  ('resnet18', {}, IMAGENET, 11_689_512),  # torchvision's
  ('resnet18', {'stem': 'cifar'}, CIFAR, 11_173_962),  # kuangliu's
  ('resnet50', {}, IMAGENET, 25_557_032),  # torchvision's
  ('resnet50', {'stem': 'cifar'}, CIFAR, 23_520_842),  # kuangliu's
  ('preact_resnet18', {}, CIFAR, 11_171_146 + 2 * 512),
  ('preact_resnet18', {'final_norm': False}, CIFAR, 11_171_146),  # kuangliu's
  ('preact_resnet18', {'form': 'wong', 'final_norm': False}, CIFAR, 11_171_146),
  # Three shortcuts of 3x3 rather than 1x1.
  ('preact_resnet18', {'form': 'deepmind'}, CIFAR,
   11_172_170 + 8 * (64 * 128 + 128 * 256 + 256 * 512)),
  ('wide_resnet', {}, CIFAR, 36_479_194),  # Zagoruyko & Komodakis: 36.5M
  ('wide_resnet', {'depth': 40, 'width': 4}, CIFAR, 8_949_210),  # 8.9M
  ('wide_resnet', {'form': 'deepmind', 'activation': 'swish'}, CIFAR, 36_479_194),
  ('wrn_28_10', {}, CIFAR, 36_479_194),
  ('wrn_34_10', {}, CIFAR, 46_160_474),  # 46.2M
  # Stem; 5 blocks a stage without scales, biases and shortcut convolutions; 1x1 and its BN.
  ('wrn_32_10', {}, CIFAR, 27 * 160 + 10 * 9 * 160**2 + 9 * (160 + 9 * 320) * 320
   + 9 * (320 + 9 * 640) * 640 + 640 * 10 + 2 * 10),
  ('densenet', {}, CIFAR, 1_019_722),  # Huang et al.: 1.0M
  ('densenet', {'depth': 100, 'bottleneck': True}, CIFAR, 769_162),  # 0.8M
  ('efficientnet_lite0', {}, IMAGENET, 4_652_008),  # 4.7M
])
def test_parameter_counts_and_logits(name, kwargs, shape, count):
  num_classes = 1000 if shape == IMAGENET else 10
  model = models.create(name, num_classes, **kwargs)
  logits, variables = jax.eval_shape(
    lambda key: model.init_with_output(key, jnp.zeros((2, *shape)), train=False), keys.root(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count
  assert (logits.shape, logits.dtype) == ((2, num_classes), jnp.float32)


def test_every_model_is_counted():
  mark, = test_parameter_counts_and_logits.pytestmark
  assert {case[0] for case in mark.args[1]} == set(models.MODELS) - {'external'}


@pytest.mark.parametrize('name', models.MODELS)
def test_defaults_fit_their_annotations(name):
  fields = schema.fields(models.MODELS[name])
  assert set(fields) == set(inspect.signature(models.MODELS[name]).parameters) - {'num_classes'}
  for field, (hint, default) in fields.items():
    schema.check_value(field, default, hint)


def test_hyper_parameters_reach_the_model():
  variables = models.init(keys.root(0), models.create('mlp', 3, hidden=(4, 5)), (2, 2, 1))
  shapes = {name: layer['kernel'].shape for name, layer in variables['params'].items()}
  assert shapes == {'dense1': (4, 4), 'dense2': (4, 5), 'logits': (5, 3)}
  assert variables['batch_stats'] == {}


@pytest.mark.parametrize(('name', 'kwargs', 'message'), [
  ('vit', {}, "model.name .*linear, .*wide_resnet.*, got 'vit'"),
  ('wide_resnet', {'depth': 32}, r'model.depth .*6n\+4 .*got 32'),
  ('wide_resnet', {'depth': 4}, r'model.depth .*6n\+4 .*got 4'),
  ('wide_resnet', {'depth': 28, 'form': 'mcdonnell'}, r'model.depth .*6n\+2 .*got 28'),
  ('densenet', {'depth': 41}, r'model.depth .*3n\+4 .*got 41'),
  ('densenet', {'depth': 43, 'bottleneck': True}, r'model.depth .*6n\+4 .*got 43'),
])
def test_an_unknown_model_or_depth_is_a_user_error(name, kwargs, message):
  with pytest.raises(UserError, match=message):
    models.create(name, 10, **kwargs)


def test_pixels_of_0_to_255_are_no_images():
  model = models.create('mlp', 3, hidden=(4,))
  variables = models.init(keys.root(0), model, (2, 2, 1))
  logits_fn = models.network(model).eval_logits(variables)
  with pytest.raises(ValueError, match='images .*uint8.*255'):
    logits_fn(np.full((1, 2, 2, 1), 255, np.uint8))
  assert np.isfinite(logits_fn(np.ones((1, 2, 2, 1), np.float16))).all()


@pytest.mark.parametrize(('name', 'size'), [('lenet', 15), ('shaham_cnn', 21)])
def test_images_that_leave_no_pixel_are_a_user_error(name, size):
  model = models.create(name, 10)
  variable_shapes(model, (size + 1, size + 1, 1))
  with pytest.raises(UserError, match='images are too small'):
    variable_shapes(model, (size, size, 1))


@pytest.mark.parametrize(('name', 'kwargs', 'shape', 'pad'), [
  ('lenet', {}, MNIST, (0, 0)),
  ('cnn', {'widths': (3, 2), 'kernel_size': 3, 'dense': 6}, (7, 6, 2), (1, 1))])
def test_plain_networks_equal_numpy(name, kwargs, shape, pad):
  model = models.create(name, 10, **kwargs)
  inputs = np.random.default_rng(0).random((2, *shape), np.float32)
  variables = random_variables(model, shape)
  np.testing.assert_allclose(evaluate(models.logits_fn(model, variables), inputs),
                             numpy_cnn(inputs.astype(np.float64), variables, pad),
                             rtol=1e-5, atol=1e-5)


WIDE = {'depth': 10, 'width': 2}
SMALL_NETWORKS = {
  'resnet': (resnet.ResNet(5, (1, 1, 1)), lambda *args: numpy_resnet(*args)[0]),
  'bottlenecks': (resnet.ResNet(5, (1, 1), width=2, bottleneck=True, large_images=True),
                  numpy_bottleneck_resnet),
  'zagoruyko': (models.create('wide_resnet', 5, **WIDE), numpy_preact_resnet),
  'deepmind': (models.create('wide_resnet', 5, **WIDE, form='deepmind', activation='swish'),
               functools.partial(numpy_preact_resnet, form='deepmind', activation=swish)),
  'mcdonnell': (models.create('wide_resnet', 5, depth=8, width=1, form='mcdonnell'),
                functools.partial(numpy_preact_resnet, form='mcdonnell')),
  'preact': (preact_resnet.PreActResNet(5, (2, 2), stem=4, width=4, final_norm=False),
             functools.partial(numpy_preact_resnet, num_blocks=(2, 2))),
  'densenet': (densenet.DenseNet(5, num_layers=2, growth=3), numpy_densenet),
  'densenet_bc': (densenet.DenseNet(5, num_layers=2, growth=3, bottleneck=True),
                  functools.partial(numpy_densenet, bottleneck=True)),
  'vgg': (vgg.VGG(5, width=2), numpy_vgg),
}


@pytest.mark.parametrize('name', SMALL_NETWORKS)
def test_small_networks_equal_numpy_with_stored_statistics(name):
  model, numpy_logits = SMALL_NETWORKS[name]
  inputs = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
  variables = random_variables(model, inputs.shape[1:])
  logits = evaluate(models.logits_fn(model, variables), inputs)
  expected = numpy_logits(inputs, variables)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_shaham_cnn_equals_numpy_in_training():
  model = cnn.CNN(4, (3, 2), 5, 6, 'VALID', pools=(3, 2), normalise=True)
  inputs = np.random.default_rng(0).random((3, 23, 22, 2), np.float32)
  variables, updated = random_variables(model, inputs.shape[1:]), {}
  expected = numpy_cnn(inputs, variables, (0, 0), (3, 2), updated)
  logits, batch_stats = train(models.network(model), variables, inputs, keys.root(0))
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  assert_statistics_close(batch_stats, updated)


# Training mode.


@pytest.fixture(scope='module')
def numpy_training(small_resnet, images):
  """Logits and statistics of the whole batch, normalised by (x - 0.4) / 0.2."""
  _, variables = small_resnet
  return numpy_resnet((images - 0.4) / 0.2, variables, train=True)


def assert_statistics_close(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
               found, expected)


def test_train_logits_use_and_update_batch_statistics(small_resnet, images, numpy_training):
  model, variables = small_resnet
  logits, batch_stats = train(models.network(model, mean=0.4, std=0.2), variables, images,
                              keys.per_example(keys.root(0), 8))
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


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('devices', [1, 2])
def test_statistics_far_from_zero_equal_those_in_float64(plain, devices, monkeypatch):
  """E x^2 - (E x)^2 in float32 has no digit left where the mean is 1000 standard deviations."""
  if jax.device_count() < devices:
    pytest.skip('needs two devices')
  if plain:
    monkeypatch.setenv(backend.SWITCH, 'plain')
  rng, spread = np.random.default_rng(0), np.array([0.5, 1., 2.])
  images = (1000 + spread * rng.normal(size=(devices, 4, 6, 5, 3))).astype(np.float32)
  images[-1] += 3  # Another device's images lie elsewhere.
  exact = images.astype(np.float64)
  mean, var = exact.mean((0, 1, 2, 3)), exact.var((0, 1, 2, 3))

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, images):
      return layers.norm(images, name='norm', train=True, axis_name='devices')

  variables = {'params': {'norm': {'scale': np.ones(3), 'bias': np.zeros(3)}},
               'batch_stats': {'norm': {'mean': np.zeros(3), 'var': np.zeros(3)}}}
  out, stats = jax.pmap(lambda x: Norm().apply(variables, x, mutable=['batch_stats']),
                        axis_name='devices', devices=jax.devices()[:devices])(images)
  stats = jax.tree.map(lambda leaf: 10 * leaf[0], stats['batch_stats']['norm'])
  np.testing.assert_allclose(stats['mean'], mean, rtol=1e-6)
  np.testing.assert_allclose(stats['var'], var, rtol=1e-4)
  np.testing.assert_allclose(out, (exact - mean) / np.sqrt(var + 1e-5), atol=1e-3)


def test_a_model_without_batchnorm_trains_without_statistics(images):
  model = models.create('mlp', 5)
  variables = models.init(keys.root(0), model, images.shape[1:])
  network = models.network(model, mean=0.5, std=(0.1, 0.2, 0.3), axis_name='devices')
  logits, batch_stats = network.train_logits(variables['params'], {}, images, None)
  assert batch_stats == {}
  np.testing.assert_allclose(logits, network.eval_logits(variables)(images), rtol=1e-5)


# Dropout: the mask of an example depends on its own key alone.


def test_dropout_keeps_the_expectation():
  inputs = np.ones((4, 50, 50, 2), np.float32)
  dropout = jit(lambda key, number: layers.dropout(
    inputs, 0.3, keys.per_example(key, len(inputs)), number))
  dropped, other_layer = (np.asarray(dropout(keys.root(0), number)) for number in (1, 2))
  np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
  np.testing.assert_allclose(dropped.mean((1, 2, 3)), 1, atol=4 * np.sqrt(0.3 / 0.7 / 5000))
  masks = [*dropped, *other_layer]  # of four examples in two layers: all independent
  for number, mask in enumerate(masks):
    for other in masks[:number]:
      # Two independent masks agree with probability 0.7^2 + 0.3^2.
      np.testing.assert_allclose((mask == other).mean(), 0.58, atol=5 * np.sqrt(0.25 / 5000))
  assert layers.dropout(inputs, 0.3, None, 1) is inputs
  assert layers.dropout(inputs, 0, keys.root(0), 1) is inputs


@pytest.fixture(scope='module')
def dropping():
  """A network with dropout, its variables, eight images and their keys."""
  model = preact_resnet.PreActResNet(5, (1,), stem=3, width=4, dropout=0.5)
  inputs = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
  return (model, random_variables(model, inputs.shape[1:]), inputs,
          keys.per_example(keys.root(0), 8))


@pytest.fixture(scope='module')
def dropping_training(dropping):
  model, variables, inputs, key = dropping
  train_logits = jit(models.network(model).train_logits)
  return train_logits, *train_logits(variables['params'], variables['batch_stats'], inputs, key)


def test_masks_do_not_depend_on_the_place_in_a_batch(dropping, dropping_training):
  _, variables, inputs, key = dropping
  train_logits, logits, batch_stats = dropping_training
  order = np.random.default_rng(1).permutation(8)
  call = lambda inputs, key: train_logits(
    variables['params'], variables['batch_stats'], inputs, key)
  other_logits, other_stats = call(inputs[order], key[order])
  np.testing.assert_allclose(other_logits, logits[order], rtol=1e-3, atol=1e-3)
  assert_statistics_close(other_stats, batch_stats)
  same_images_other_masks, _ = call(inputs[order], key)
  assert np.abs(same_images_other_masks - logits[order]).max() > 0.05


def test_masks_and_statistics_do_not_depend_on_devices(dropping, dropping_training):
  model, variables, inputs, key = dropping
  _, logits, batch_stats = dropping_training
  # A vmapped axis stands for two devices.
  train_logits = jax.vmap(models.network(model, axis_name='devices').train_logits,
                          in_axes=(None, None, 0, 0), axis_name='devices')
  both_logits, both_stats = evaluate(
    train_logits, variables['params'], variables['batch_stats'], inputs.reshape(2, 4, 8, 8, 3),
    key.reshape(2, 4))
  np.testing.assert_allclose(both_logits.reshape(8, -1), logits, rtol=1e-3, atol=1e-3)
  for device in (0, 1):
    assert_statistics_close(jax.tree.map(lambda leaf: leaf[device], both_stats),  # noqa: B023
                            batch_stats)


def test_nothing_is_dropped_in_evaluation(dropping):
  model, variables, inputs, _ = dropping
  without = model.clone(dropout=0.0)
  np.testing.assert_array_equal(evaluate(models.logits_fn(model, variables), inputs),
                                evaluate(models.logits_fn(without, variables), inputs))


# Rematerialisation and precision.


def test_remat_changes_neither_parameters_nor_gradients(dropping):
  model, variables, inputs, key = dropping

  def gradients(model):
    def loss(params, images):
      logits, batch_stats = models.network(model).train_logits(
        params, variables['batch_stats'], images, key)
      return (logits ** 2).mean(), batch_stats
    return evaluate(jax.grad(loss, (0, 1), has_aux=True), variables['params'], inputs)

  plain, remat = gradients(model), gradients(model.clone(remat=True))
  assert jax.tree.structure(plain) == jax.tree.structure(remat)
  for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(remat)):
    assert np.isfinite(one).all() and np.abs(one).max() > 0
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize('model', [
  resnet.ResNet(5, (1, 1)), resnet.ResNet(5, (1, 1), bottleneck=True, large_images=True),
  preact_resnet.PreActResNet(5, (1, 1), 4, 4), densenet.DenseNet(5, 2, 3)],
  ids=lambda model: type(model).__name__)
def test_remat_keeps_the_tree_of_variables(model):
  shapes = lambda model: variable_shapes(model, (8, 8, 3))
  variables = shapes(model)
  assert variables == shapes(model.clone(remat=True))
  for remat in (False, True):
    jaxpr = jax.make_jaxpr(models.network(model.clone(remat=remat)).train_logits)(
      variables['params'], variables['batch_stats'], jnp.zeros((2, 8, 8, 3)), keys.root(0))
    names = [eqn.primitive.name for eqn in equations(jaxpr.jaxpr)]
    blocks = sum('_block' in name or '_layer' in name for name in variables['params'])
    assert names.count('remat2') + names.count('checkpoint') == remat * blocks


@pytest.mark.parametrize('name', ['cnn', *SMALL_NETWORKS])
def test_bfloat16_leaves_variables_and_logits_in_float32(name):
  model, _ = SMALL_NETWORKS.get(name) or (models.create('cnn', 5), None)
  model = model.clone(dtype='bfloat16')
  variables = variable_shapes(model, (12, 12, 3))
  jaxpr, results = jax.make_jaxpr(models.network(model).train_logits, return_shape=True)(
    variables['params'], variables['batch_stats'], jnp.zeros((2, 12, 12, 3)), keys.root(0))
  assert {leaf.dtype for leaf in jax.tree.leaves([variables, results])} == {jnp.dtype('float32')}
  convolutions = [eqn.outvars[0].aval.dtype for eqn in equations(jaxpr.jaxpr)
                  if eqn.primitive.name == 'conv_general_dilated']
  # McDonnell's logits are a convolution, in float32.
  assert set(convolutions[:-1]) == {jnp.dtype('bfloat16')}


def test_bfloat16_is_near_float32(small_resnet, images, numpy_training):
  model, variables = small_resnet
  network = models.network(model.clone(dtype='bfloat16'), mean=0.4, std=0.2)
  logits, batch_stats = train(network, variables, images, keys.root(0))
  expected, expected_stats = numpy_training
  error = np.abs(logits - expected).max() / np.abs(expected).max()
  assert 1e-6 < error < 0.03
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.03, atol=0.03),
               batch_stats, expected_stats)


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


@pytest.mark.parametrize('name', ['lenet', 'resnet20'])
def test_images_that_are_not_finite_have_nan_logits(name):
  model = models.create(name, 10)
  images = np.random.default_rng(0).random((16, 20, 20, 1), np.float32)
  logits_fn = models.logits_fn(model, models.init(keys.root(0), model, images.shape[1:]))
  broken = images.copy()
  broken[2, 3, 4], broken[5], broken[9, 0, 0], broken[10, 7, 7] = np.nan, np.nan, np.inf, -np.inf
  logits, expected = evaluate(logits_fn, broken), np.array(evaluate(logits_fn, images))
  expected[[2, 5, 9, 10]] = np.nan
  np.testing.assert_array_equal(logits, expected)
  np.testing.assert_array_equal(losses.predicted(logits) == -1, np.isnan(expected[:, 0]))
  trained, _ = train(models.network(model), logits_fn.args[0], broken, keys.root(0))
  assert np.isnan(np.asarray(trained)[[2, 5, 9, 10]]).all()


# ReLU.


@pytest.mark.parametrize(('shift', 'bias'), [
    (0.0, False), (0.0, True), (0.75, True), (-0.75, True), (1e30, True)])
def test_relu_of_a_convolution_at_its_edges(shift, bias):
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, images):
      return layers.conv(images, 1, kernel_size=1, bias=bias, relu=True, name='conv')

  params = {'conv': {'kernel': np.ones((1, 1, 1, 1), np.float32),
                     'bias': np.full(1, shift, np.float32)}}
  x = np.array([-np.inf, -1e38, -0.75, -1e-30, -0.0, 0.0, 1e-30, 0.75, 1e38, np.inf], np.float32)
  relu = lambda params, x: Layer().apply({'params': params}, x.reshape(-1, 1, 1, 1)).ravel()
  total = x + np.float32(shift)
  np.testing.assert_array_equal(evaluate(relu, params, x), np.maximum(total, 0))
  gradient = evaluate(jax.grad(lambda *of: relu(*of)[1:-1].sum(), (0, 1)), params, x)
  inside = (total > 0)[1:-1]  # where it is 0 the gradient is 0, as PyTorch's
  np.testing.assert_array_equal(gradient[1][1:-1], inside)
  if bias:
    np.testing.assert_array_equal(gradient[0]['conv']['bias'], [inside.sum()])


def test_clipped_entries_are_zero_without_scale_and_bias():
  """Compiled as in use: a sum that is fused with the product before it need not cancel."""
  x = np.random.default_rng(0).normal(size=(16, 8, 8, 16)).astype(np.float32)
  statistics = {'mean': x.mean((0, 1, 2)), 'var': x.var((0, 1, 2))}

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, images):
      return layers.norm(images, name='norm', train=False, affine=False, activation='relu')

  relu = jax.jit(lambda x: Norm().apply({'batch_stats': {'norm': statistics}}, x))
  expected = (x - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5)
  far = np.abs(expected) > 1e-5  # from where rounding decides
  gradient = jax.jit(jax.grad(lambda x: relu(x).sum()))(x)
  np.testing.assert_array_equal((relu(x) > 0)[far], (expected > 0)[far])
  np.testing.assert_array_equal((gradient > 0)[far], (expected > 0)[far])


def test_an_unknown_activation_is_refused():
  with pytest.raises(ValueError, match="activation .*'gelu'"):
    layers.norm(jnp.zeros((1, 2)), name='norm', train=False, activation='gelu')


# Pooling.


@pytest.mark.parametrize(('shape', 'size'), [((2, 6, 4, 3), 2), ((2, 7, 5, 3), 2),
                                             ((2, 7, 6, 3), 3)])
def test_max_pool_equals_flax_where_nothing_ties(shape, size):
  x, v = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
  pool = lambda x: layers.max_pool(x, size)
  reference = lambda x: nn.max_pool(x, (size, size), (size, size))
  np.testing.assert_array_equal(pool(x), reference(x))
  gradient = lambda pool: evaluate(jax.grad(lambda x: (pool(x) ** 3).sum()), x)
  np.testing.assert_allclose(gradient(pool), gradient(reference), rtol=1e-6)
  # d2/dx2 of the sum of max^3 along v is 6 max v at the maximum, by forward over reverse.
  cubed = jax.grad(lambda x: (pool(x) ** 3).sum())
  _, second = evaluate(lambda x, v: jax.jvp(cubed, (x,), (v,)), x, v)
  at_maximum = evaluate(jax.grad(lambda x: reference(x).sum()), x)
  np.testing.assert_allclose(second, 6 * x * v * at_maximum, rtol=1e-5, atol=1e-6)


def test_max_pool_gives_the_gradient_of_ties_to_the_first():
  x = jnp.tile(jnp.array([[0.0, 2.0], [2.0, 2.0]]), (2, 2)).reshape(1, 4, 4, 1)
  gradient = lambda pool: evaluate(jax.grad(lambda x: pool(x).sum()), x)
  np.testing.assert_array_equal(gradient(layers.max_pool)[0, :2, :2, 0], [[0, 1], [0, 0]])
  np.testing.assert_array_equal(
    gradient(layers.max_pool), gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2))))


def test_max_pool_under_vmap():
  x = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 1)).astype(np.float32)
  gradient = jax.grad(lambda x: (layers.max_pool(x) ** 2).sum())
  one_by_one = jit(gradient)
  np.testing.assert_array_equal(evaluate(jax.vmap(gradient), x), [one_by_one(row) for row in x])


# Initialisation.


def test_pytorch_initialisation_of_lenet():
  params = models.init(keys.root(0), models.create('lenet', 10), (16, 16, 1))['params']
  for name, fan_in in {'conv1': 25, 'conv2': 500, 'dense': 50, 'logits': 500}.items():
    bound = 1 / np.sqrt(fan_in)
    for leaf in params[name].values():
      assert np.abs(leaf).max() <= bound
      assert np.ptp(leaf) > bound  # spread out: not zeros, and no narrower
    kernel = params[name]['kernel']
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.15)


def test_initialisation_of_madry_cnn():
  params = models.init(keys.root(0), models.create('madry_cnn', 10), (8, 8, 1))['params']
  for layer in params.values():
    np.testing.assert_array_equal(layer['bias'], np.float32(0.1))
    assert np.abs(layer['kernel']).max() <= 0.2
  # A normal truncated at two standard deviations has 0.8796 of its standard deviation.
  np.testing.assert_allclose(np.std(params['dense']['kernel']), 0.08796, rtol=0.01)


def test_initialisation_of_wide_resnet():
  def params(**kwargs):
    model = models.create('wide_resnet', 5, depth=10, width=4, **kwargs)
    # Of the parameters only those that are used are drawn.
    return lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)['params']

  kernel = evaluate(lambda key: params()(key)['stage3_block1']['conv2']['kernel'], keys.root(0))
  np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 256)), rtol=0.01)
  deepmind = params(form='deepmind')
  kernel, logits = evaluate(
    lambda key: (deepmind(key)['stage3_block1']['conv1']['kernel'], deepmind(key)['logits']),
    keys.root(0))
  np.testing.assert_allclose(np.std(kernel), 0.8796 / np.sqrt(9 * 128), rtol=0.01)
  assert not any(leaf.any() for leaf in logits.values())


def test_initialisation_of_resnet():
  model = resnet.ResNet(5, num_blocks=(1,), width=64)
  variables = models.init(keys.root(0), model, (8, 8, 3))
  block = variables['params']['stage1_block1']
  kernel = np.asarray(block['conv2']['kernel'])
  assert set(block['conv2']) == {'kernel'}
  std = np.sqrt(2 / (9 * 64))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.03)
  assert np.abs(kernel).max() > 3 * std  # not truncated
  np.testing.assert_array_equal(block['norm1']['scale'], 1)
  np.testing.assert_array_equal(block['norm1']['bias'], 0)
  np.testing.assert_array_equal(variables['batch_stats']['norm']['mean'], 0)
  np.testing.assert_array_equal(variables['batch_stats']['norm']['var'], 1)


@pytest.mark.parametrize(('train', 'activation', 'shortcut'), [
    (False, None, False), (True, None, True), (False, 'relu', True), (True, 'relu', False),
    (True, 'relu', True), (True, 'swish', True)])
def test_batch_norm_has_the_derivatives_of_its_formula(train, activation, shortcut):
  x, added = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
  variables = {'params': {'norm': {'scale': jnp.array([.5, -2.]), 'bias': jnp.array([1., 3.])}},
               'batch_stats': {'norm': {'mean': jnp.array([.1, -.2]), 'var': jnp.array([2., .3])}}}

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, images, added):
      return layers.norm(images, name='norm', train=train, added=added, activation=activation)

  def ours(x, params, added):
    out, _ = Norm().apply({**variables, 'params': params}, x, added if shortcut else None,
                          mutable=['batch_stats'])
    return out

  def formula(x, params, added):
    stored = variables['batch_stats']['norm']
    mean = x.mean((0, 1, 2)) if train else stored['mean']
    var = x.var((0, 1, 2)) if train else stored['var']
    out = (x - mean) / jnp.sqrt(var + 1e-5) * params['norm']['scale'] + params['norm']['bias']
    out = out + added if shortcut else out
    return {None: lambda z: z, 'relu': jax.nn.relu, 'swish': jax.nn.swish}[activation](out)

  weights, towards = jax.random.normal(jax.random.key(1), (2, *x.shape))

  def derivatives(norm):
    of_images = lambda x: norm(x, variables['params'], added)
    gradient = jax.grad(lambda *of: jnp.sum(weights * norm(*of) ** 2), (0, 1, 2))
    gradient_at = lambda x: gradient(x, variables['params'], added)
    return (gradient_at(x), jax.jvp(of_images, (x,), (towards,)),
            jax.jvp(gradient_at, (x,), (towards,)))

  jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4),
               derivatives(ours), derivatives(formula))
