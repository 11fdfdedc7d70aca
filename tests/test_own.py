"""Networks, methods and attacks of the user's own, by 'package.module:name'."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from robust_jax import keys, models, schema, workdir
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.errors import UserError

SHAPE = (4, 3, 1)
CODE = '''
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from robust_jax import losses
from robust_jax.types import Attack, AttackResult, Count, MethodOutput, NonNegative, Positive


class Net(nn.Module):
  num_classes: int
  width: Count = 5
  rate: float = 0.5
  kind: Literal['a', 'b'] = 'a'
  act: Callable = nn.relu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    x = self.act(nn.Dense(self.width)(x.reshape(len(x), -1)))
    x = nn.Dropout(self.rate)(x, deterministic=not train)
    x = nn.Dropout(self.rate, deterministic=not train, broadcast_dims=(1,))(x[:, None])[:, 0]
    return nn.Dense(self.num_classes)(x)


class Widths(nn.Module):
  num_classes: int
  widths: tuple[int, ...] = (5,)

  @nn.compact
  def __call__(self, images):
    rows = images.reshape(len(images), -1)
    for width in self.widths:
      rows = nn.relu(nn.Dense(width)(rows))
    return nn.Dense(self.num_classes)(rows)


class Folds(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, images, *, train):
    parts = nn.Dropout(0.5, deterministic=not train)(images.reshape(4 * len(images), -1))
    return nn.Dense(self.num_classes)(parts.reshape(len(images), -1))


class Norm(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x.reshape(len(x), -1)))
    return nn.Dense(self.num_classes)(x)


class Plain(nn.Module):
  takes_pixels = True

  @nn.compact
  def __call__(self, images):
    return nn.Dense(10)(images.reshape(len(images), -1))


def make(num_classes, *, width: Count = 2):
  return Net(num_classes, width)


class NoModule:
  pass


class Other(Plain):
  @nn.compact
  def __call__(self, images):
    self.variable('cache', 'x', jnp.zeros, 3)
    return nn.Dense(10)(images.reshape(len(images), -1))


class Five(Plain):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(5)(images.reshape(len(images), -1))


class Two(Plain):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(10)(images.reshape(len(images), -1)), images


class Flat(Plain):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(10)(images)


class Training(Plain):
  @nn.compact
  def __call__(self, images, training):
    return nn.Dense(10)(images.reshape(len(images), -1))


class AlwaysDrops(Plain):
  @nn.compact
  def __call__(self, images):
    return nn.Dense(10)(nn.Dropout(0.5, deterministic=False)(images.reshape(len(images), -1)))


def method(key, network, params, batch_stats, batch, progress, *, attack: Attack,
           epsilon: NonNegative, temperature: Positive = 2.):
  logits_fn = network.eval_logits({'params': params, 'batch_stats': batch_stats})
  images = attack(key, logits_fn, batch.images, batch.labels, epsilon=epsilon).images
  logits, batch_stats = network.train_logits(params, batch_stats, images, key)
  return MethodOutput(losses.cross_entropy(logits / temperature, batch.labels), batch_stats, {})


def attack(key, logits_fn, images, labels, *, epsilon, noise=None, steps: Count = 3):
  images = jnp.clip(images + epsilon / steps, 0, 1)
  logits = logits_fn(images)
  return AttackResult(images, logits.argmax(-1) != labels, losses.cross_entropy(logits, labels))


def returns_images(key, logits_fn, images, labels, *, epsilon, noise=None):
  return images


def returns_a_loss(key, network, params, batch_stats, batch, progress):
  logits, _ = network.train_logits(params, batch_stats, batch.images, key)
  return logits.mean()


def sums(key, network, params, batch_stats, batch, progress):
  logits, _ = network.train_logits(params, batch_stats, batch.images, key)
  return MethodOutput(logits.mean(), batch_stats, {})


def fails(key, network, params, batch_stats, batch, progress):
  raise RuntimeError('first\\nsecond')


def takes_too_little(key):
  pass


def bare(key, network, params, batch_stats, batch, progress, *, weight=0.5):
  pass


def bare_attack(key, network, params, batch_stats, batch, progress, *, attack):
  pass


def unreadable(key, *, x: 'Nothing' = 1):
  pass


def unknown(key, *, x: dict):
  pass
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  """The module `mine`, in a folder that Python imports from."""
  (tmp_path / 'mine.py').write_text(CODE)
  monkeypatch.syspath_prepend(tmp_path)
  for name in ('mine', 'my_module'):  # Those of other tests, too.
    monkeypatch.delitem(sys.modules, name, raising=False)


def config_of(tmp_path, *words):
  return flags.parse(['launch', '--config=configs/digits.py:pgd', '--config.epsilon=0.1',
                      f'--config.data.data_dir={tmp_path}', *words]).config


def build(tmp_path, *words):
  return experiment.build(sections.resolve(config_of(tmp_path, *words)), jax.devices()[:1])


def test_their_annotated_arguments_are_fields(tmp_path):
  run = build(tmp_path, '--config.model.name=mine:Net', '--config.model.width=7',
              '--config.method.name=mine:method', '--config.method.temperature=3.',
              '--config.method.attack.name=mine:attack', '--config.method.attack.steps=2',
              '--config.attack.name=mine:attack')
  assert run.config['model'] == {'name': 'mine:Net', 'width': 7, 'rate': 0.5, 'kind': 'a'}
  assert (run.model.width, run.model.num_classes) == (7, 10)
  assert run.trainable and run.method.keywords['temperature'] == 3.
  assert run.method.keywords['epsilon'] == 0.1
  assert run.method.keywords['attack'].keywords == {'steps': 2}
  assert run.attack.keywords == {'steps': 3}
  with pytest.raises(UserError, match=r"config.model.kind must be one of a, b, got 'c'"):
    build(tmp_path, '--config.model.name=mine:Net', '--config.model.kind=c')
  # Saved and read again.
  workdir.write_json(tmp_path / 'config.json', run.config)
  assert sections.resolve(sections.saved_config(tmp_path)) == run.config


def test_the_network_of_the_documentation_trains(tmp_path):
  page = (Path(__file__).parents[1] / 'docs/models.md').read_text(encoding='utf-8')
  (tmp_path / 'my_module.py').write_text(re.search(r'```python\n(.*?)```', page, re.DOTALL)[1])
  assert build(tmp_path, '--config.model.name=my_module:Net', '--config.model.width=3').trainable


def test_a_function_that_makes_a_module(tmp_path):
  run = build(tmp_path, '--config.model.name=mine:make', '--config.model.width=4')
  assert run.model == models.create('mine:Net', 10, width=4)


@pytest.mark.parametrize(('words', 'message'), [
    ('model.name=nowhere:Net', "model.name is 'nowhere:Net', but importing nowhere raises ModuleN"),
    ('model.name=mine:Nothing', "model.name is 'mine:Nothing', but mine has no 'Nothing'"),
    ('model.name=mine:NoModule', '.* flax.linen.Module, or a function .*, got the class NoModule'),
    ('model.name=mine:attack', "model.name is 'mine:attack', which raises TypeError: .*required"),
    ('model.name=mine:Five',
     r'.* in evaluation must map .* to logits float32\[2, 10\], got float32\[2, 5\]$'),
    ('model.name=mine:Two', r'.* logits \[batch, classes\], .* got a tuple'),
    ('model.name=mine:Flat',
     r'.* logits \[batch, classes\], .*\(2, 10\), got shape \(2, 8, 8, 10\)'),
    ('model.name=mine:Other', ".* must be 'params' and, .* got 'cache', 'params'"),
    ('model.name=mine:Training', r".* raises TypeError: .*'training' .* model\(images\) or"),
    ('model.name=mine:AlwaysDrops', '.* in evaluation raises InvalidRngError'),
    ('model.name=mine:Folds', r'.* nn.Dropout must have the batch as the first axis'),
    ('method.name=mine:fails',
     "method.name is 'mine:fails', which raises RuntimeError: first .mine.py:[0-9]+.$"),
    ('method.name=mine:returns_a_loss', '.* raises ValueError: it must return a MethodOutput'),
    ('method.name=mine:sums', r'.* MethodOutput.loss must have shape \(2,\)'),
    ('method.name=mine:takes_too_little', ".* 'mine:takes_too_little', which raises TypeError"),
    ('method.name=mine:bare', '.* weight must be annotated .* weight: float'),
    ('method.name=mine:bare_attack', '.* attack must be annotated .* attack: Attack'),
    ('method.name=mine:unreadable', '.* whose annotations cannot be read .*Nothing'),
    ('method.name=mine:unknown', ".* whose x must be annotated as .*, got <class 'dict'>"),
    ('attack.name=mine:returns_images', '.* it must return an AttackResult'),
])
def test_mistakes_are_one_line(words, message, tmp_path):
  with pytest.raises(UserError, match=f'^config.{message}') as raised:
    build(tmp_path, f'--config.{words}')
  assert '\n' not in str(raised.value)


def network_of(name, *, mean=0., std=1., axis_name=None, **kwargs):
  model = models.create(name, 10, **kwargs)
  return (models.network(model, mean=mean, std=std, axis_name=axis_name),
          models.init(keys.root(0), model, SHAPE))


def test_a_module_without_train_that_takes_pixels():
  network, variables = network_of('mine:Plain', mean=0.5, std=0.1)
  images = np.random.default_rng(0).random((3, *SHAPE), np.float32)
  layer = variables['params']['Dense_0']
  expected = images.reshape(3, -1) @ np.asarray(layer['kernel'])
  logits, batch_stats = network.train_logits(variables['params'], {}, images, keys.root(1))
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(network.eval_logits(variables)(images), expected, rtol=1e-5, atol=1e-6)
  assert batch_stats == {}


def test_tuples_of_a_saved_config_are_tuples():
  model = models.create('mine:Widths', 10, widths=[4, 3])
  assert model == models.create('mine:Widths', 10, widths=(4, 3)) and hash(model)


def test_a_model_of_ones_own_has_its_own_defaults(tmp_path):
  # The experiment's cnn has widths too.
  assert build(tmp_path, '--config.model.name=mine:Widths').config['model']['widths'] == [5]


def test_flax_dropout_drops_by_the_examples_keys():
  network, variables = network_of('mine:Net', width=40)
  images = np.ones((6, *SHAPE), np.float32)
  drop = lambda key, rows=slice(None): np.asarray(
      network.train_logits(variables['params'], {}, images[rows], key)[0])
  example_keys = keys.per_example(keys.root(1), 6)
  logits = drop(example_keys)
  assert len(np.unique(logits, axis=0)) > 3
  np.testing.assert_array_equal(drop(example_keys), logits)
  # Neither the place in a batch nor what else is in it changes an example's mask.
  np.testing.assert_allclose(drop(example_keys[::-1]), logits[::-1], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(drop(example_keys[2:4], slice(2)), logits[2:4], rtol=1e-5, atol=1e-6)
  assert np.abs(drop(keys.per_example(keys.root(2), 6)) - logits).max() > 0.01
  evaluated = network.eval_logits(variables)(images)
  np.testing.assert_array_equal(evaluated, np.tile(evaluated[:1], (6, 1)))


def test_flax_dropout_keeps_the_expectation_and_layers_differ():
  network, variables = network_of('mine:Net')
  images = np.random.default_rng(0).random((1, *SHAPE), np.float32).repeat(4000, axis=0)
  logits, _ = network.train_logits(variables['params'], {}, images, keys.root(3))
  # Two layers of rate 0.5: with equal masks the mean would be twice as large.
  expected = network.eval_logits(variables)(images[:1])[0]
  np.testing.assert_allclose(np.mean(logits, axis=0), expected, atol=0.15)


def test_flax_batchnorm_has_the_statistics_of_all_devices():
  if jax.device_count() < 2:
    pytest.skip('needs two devices')
  network, variables = network_of('mine:Norm', axis_name='devices')
  alone, _ = network_of('mine:Norm')
  images = np.random.default_rng(0).random((8, *SHAPE), np.float32)
  example_keys = keys.per_example(keys.root(0), 8)
  expected, stats = alone.train_logits(*variables.values(), images, example_keys)
  logits, found = jax.pmap(
      network.train_logits, axis_name='devices', in_axes=(None, None, 0, 0),
      devices=jax.devices()[:2])(*variables.values(), images.reshape(2, 4, *SHAPE),
                                 example_keys.reshape(2, 4))
  np.testing.assert_allclose(logits.reshape(8, -1), expected, rtol=1e-4, atol=1e-4)
  for device in range(2):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[device], b, rtol=1e-5, atol=1e-6),  # noqa: B023
                 found, stats)


def test_what_a_config_cannot_say_is_no_field():
  fields = schema.fields(models.own.constructor('mine:Net'))
  assert set(fields) == {'width', 'rate', 'kind'}
  assert component('model', 'mine:Net').to_dict() == {
      'name': 'mine:Net', 'width': 5, 'rate': 0.5, 'kind': 'a'}
  assert models.create('mine:Net', 3, rate=0.1).dtype == jnp.float32
