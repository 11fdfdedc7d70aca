"""The network as ONNX has its logits; VNN-LIB questions are the ones that are meant."""

import csv
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from robust_jax import models, stages
from robust_jax.config import experiment, sections
from robust_jax.errors import MismatchError, UserError
from robust_jax.stages import onnx_model, weights
from robust_jax.stages.export import compare, vnnlib, write_questions
from tests import test_network_bounds as networks
from tests.test_network_bounds import slow

SHAPE = (8, 8, 1)


def needs_packages():
  for name in ('onnx', 'onnxruntime'):
    pytest.importorskip(name, reason=f"{name} is of the extra 'export'")


def half(images):
  """Class 1 where the first pixel is brighter than 0.5."""
  flat = images.reshape(len(images), -1)
  return jnp.concatenate([0.5 - flat[:, :1], flat[:, :1] - 0.5, flat[:, 1:9] - 9], axis=1)


HALF = weights.Classifier(half, {}, 0.)


def make_run(tmp_path, monkeypatch, **settings):
  """A run on arrays whose first pixels are known, classified by `half`."""
  images = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), np.uint8)
  images[:, 0, 0, 0] = [0, 255] * 6
  labels = np.array([0, 1] * 6)
  labels[4] = 1  # Misclassified.
  labels[5:] = np.arange(5, 12) % 2
  np.savez(tmp_path / 'mine.npz', train_images=images, train_labels=np.arange(12) % 10,
           test_images=images, test_labels=labels)
  config = base.get_config(
      data=dict(name=str(tmp_path / 'mine.npz')), attack=dict(norm='linf'), export=settings,
      evaluation=dict(epsilons=(0.05, 0.1, 0.2), stride=1), model=base.model('linear'))
  monkeypatch.setattr(weights, 'load', lambda run, workdir: HALF)
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def parse(text):
  """(ends of X [pixels, 2], {(j, y)} of the alternatives Y_j >= Y_y, names that are declared)."""
  text = re.sub(';.*', '', text)
  declared = re.findall(r'\(declare-const ([XY]_\d+) Real\)', text)
  ends = {}
  for sign, number, value in re.findall(r'\(assert \(([<>])= X_(\d+) ([-\d.]+)\)\)', text):
    ends.setdefault(int(number), {})[sign] = float(value)
  (alternatives,) = re.findall(r'\(assert \(or((?:\s*\(and \(>= Y_\d+ Y_\d+\)\))+)\s*\)\)', text)
  pairs = re.findall(r'Y_(\d+) Y_(\d+)', alternatives)
  assert text.count('(') == text.count(')')
  return (np.array([[ends[i]['>'], ends[i]['<']] for i in range(len(ends))]),
          {(int(j), int(y)) for j, y in pairs}, declared)


def test_a_question_is_the_box_and_the_other_classes():
  image = np.float32([0, 0.05, 0.5, 1 / 3, 1, 1e-7]).reshape(1, 3, 2)
  ends, pairs, declared = parse(vnnlib(image, 2, 0.1, 4, title='mine'))
  pixels = image.reshape(-1).astype(float)
  np.testing.assert_array_equal(ends[:, 0], np.maximum(pixels - 0.1, 0))
  np.testing.assert_array_equal(ends[:, 1], np.minimum(pixels + 0.1, 1))
  assert pairs == {(0, 2), (1, 2), (3, 2)}
  assert declared == [*(f'X_{i}' for i in range(6)), *(f'Y_{j}' for j in range(4))]


def rows(folder):
  with open(folder / 'export' / 'instances.csv', encoding='utf-8') as file:
    return list(csv.reader(file))


def test_questions_are_of_the_first_images_that_are_right(tmp_path, monkeypatch):
  run = make_run(tmp_path, monkeypatch, num_images=6, timeout=7.)
  assert write_questions(run, tmp_path, HALF) == (6, 5)
  found = rows(tmp_path)
  assert found == [['model.onnx', f'vnnlib/{idx}_0.1.vnnlib', '7'] for idx in (0, 1, 2, 3, 5)]
  for _, name, _ in found:
    ends, pairs, _ = parse((tmp_path / 'export' / name).read_text())
    idx = int(name.split('/')[1].split('_')[0])
    pixels = np.asarray(run.test_data.images[idx], float).reshape(-1) / 255
    assert (np.abs(ends.mean(1) - pixels) <= 0.05 + 1e-6).all() and len(pairs) == 9
    assert {y for _, y in pairs} == {idx % 2}


def test_what_bounds_have_left_open_is_asked(tmp_path, monkeypatch):
  run = make_run(tmp_path, monkeypatch)
  entries = [{'header': {'norm': 'linf'}}] + [
      {'idx': idx, 'label': idx % 2, 'verdict': verdict, 'epsilon': epsilon}
      for idx, verdict, epsilon in ((0, 'verified', 0.1), (1, 'unknown', 0.1), (1, 'unknown', 0.2),
                                    (3, 'falsified', 0.1), (6, 'unknown', 1 / 255))]
  log = tmp_path / 'bound.jsonl'
  log.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
  (tmp_path / 'export' / 'vnnlib').mkdir(parents=True)
  (tmp_path / 'export' / 'vnnlib' / 'old.vnnlib').touch()
  assert write_questions(run, tmp_path, HALF) == (3, 3)
  names = ['vnnlib/1_0.1.vnnlib', 'vnnlib/1_0.2.vnnlib', 'vnnlib/6_0.00392156863.vnnlib']
  assert [name for _, name, _ in rows(tmp_path)] == names
  assert sorted(path.name for path in (tmp_path / 'export' / 'vnnlib').iterdir()) == [
      name.split('/')[1] for name in names]
  log.write_text(log.read_text().replace('linf', 'l2'))
  with pytest.raises(UserError, match="must be in linf for --stages=export, got 'l2'"):
    write_questions(run, tmp_path, HALF)
  with pytest.raises(MismatchError, match='of other parameters: classifier_sha256 is 1 but None'):
    write_questions(run, tmp_path, HALF._replace(origin={'classifier_sha256': 1}))


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"needs no_such_package, .*pip install -e '.\[export\]'"):
    onnx_model.package('no_such_package')
  run = make_run(tmp_path, monkeypatch)
  run.config['attack']['norm'] = 'l2'
  with pytest.raises(UserError, match="config.export.epsilon must be a radius in linf.*'l2', got"):
    write_questions(run, tmp_path, HALF)
  run = make_run(tmp_path, monkeypatch, epsilon=0.01)
  run.config['attack']['norm'] = 'l2'
  assert write_questions(run, tmp_path, HALF)[1] and '0.01' in rows(tmp_path)[0][1]


# The model.


@pytest.mark.parametrize('name', [
    name if name in ('convolutional', 'residual', 'mixed', 'activations') else slow(name)
    for name in networks.NETS])
def test_the_model_has_the_logits_of_the_network(name):
  needs_packages()
  get = networks.weights()
  net = jax.jit(lambda x: networks.NETS[name](x, get))
  model = onnx_model.make(net, networks.SHAPE)
  assert compare(model, net, np.asarray(networks.images(7))) < 1e-4
  assert [value.name for value in model.graph.input] == ['images_nhwc']
  if name == 'leaky':
    assert 'LeakyRelu' in {node.op_type for node in model.graph.node}
  if name in ('relu', 'convolutional'):
    assert 'Relu' in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(('name', 'settings', 'shape'), [
    slow('mlp', dict(hidden=(8,)), (6, 6, 1)), ('cnn', dict(widths=(2,), dense=4), (6, 6, 1)),
    slow('wide_resnet', dict(depth=10, width=1, activation='swish'), (8, 8, 3)),
    slow('densenet', dict(depth=7, growth=2), (8, 8, 3)),
    slow('resnet20', {}, (32, 32, 3)), slow('lenet', {}, (28, 28, 1))])
def test_models_can_be_written(name, settings, shape, monkeypatch):
  needs_packages()
  model = models.create(name, 3, **settings)
  variables = models.init(jax.random.key(0), model, shape)
  logits_fn = models.logits_fn(model, variables, mean=0.4, std=0.3)
  monkeypatch.setenv('ROBUST_JAX_CPU', 'plain')
  found = onnx_model.make(logits_fn, shape)
  assert not {'Where', 'IsNaN', 'Shape'} & {node.op_type for node in found.graph.node}
  monkeypatch.delenv('ROBUST_JAX_CPU')
  images = np.random.default_rng(0).random((5, *shape), np.float32)
  assert compare(found, logits_fn, images) < 1e-4


def test_the_stage_writes_all_of_it(tmp_path, monkeypatch, capsys):
  needs_packages()
  run = make_run(tmp_path, monkeypatch, num_images=6)
  (tmp_path / 'run').mkdir()
  stages.STAGES['export'](run, tmp_path / 'run')
  assert 'none of 1 misclassified images' in capsys.readouterr().out
  import onnxruntime
  session = onnxruntime.InferenceSession(str(tmp_path / 'run' / 'export' / 'model.onnx'))
  images = np.asarray(run.test_data.images[:3], np.float32) / 255
  found, = session.run(['logits'], {'images_nhwc': images})
  np.testing.assert_allclose(found, half(images), atol=1e-5)
  assert len(rows(tmp_path / 'run')) == 5
  wrong = onnx_model.make(lambda x: half(x) + 1e-2, SHAPE)
  with pytest.raises(MismatchError, match='logits of model.onnx must be within 0.0001'):
    compare(wrong, half, images)
  unknown = lambda run, workdir: weights.Classifier(lambda x: jnp.sort(half(x)), {}, 0.)
  monkeypatch.setattr(weights, 'load', unknown)
  with pytest.raises(UserError, match='cannot be written as ONNX: the primitive sort is not') as e:
    stages.STAGES['export'](run, tmp_path / 'run')
  assert '\n' not in str(e.value)
