"""Fine-tuning from weights with another number of classes: a new last layer, all else as loaded."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from robust_jax import data, models, stages
from robust_jax import workdir as workdirs
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.errors import UserError
from robust_jax.models import resnet, torch_weights
from robust_jax.stages import weights
from robust_jax.workdir import checkpoint

GOLDEN = Path(__file__).parent / 'golden'


def make_run(data_dir, model=None, **fields):
  """A run of a small MLP; `fields` are dotted fields of its config, with __ for dots."""
  config = base.get_config()
  config.data.data_dir = str(data_dir)
  config.model = model or component('model', 'mlp', hidden=(6,))
  config.optimizer.momentum = 0.
  config.train.update(batch_size=64, checkpoint_every=2, num_steps=4)
  with config.ignore_type():
    config.update_from_flattened_dict(
        {name.replace('__', '.'): value for name, value in fields.items()})
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def train(run, folder):
  folder.mkdir(exist_ok=True)
  stages.check(run, folder, {'train'})
  workdirs.describe(run, folder, [])
  stages.run_stage('train', run, folder)
  return checkpoint.load(folder)[1]


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """(folder of digits, workdir of a network trained on its ten classes)."""
  data_dir, folder = tmp_path_factory.mktemp('tfds'), tmp_path_factory.mktemp('runs') / 'ten'
  train(make_run(data_dir), folder)
  return data_dir, folder


@pytest.fixture(scope='module')
def three_digits(pretrained, tmp_path_factory):
  """A folder of images of the digits 3, 5 and 8."""
  folder = tmp_path_factory.mktemp('three')
  for split in ('train', 'test'):
    digits = data.load('digits', split, data_dir=str(pretrained[0]))
    for label in (3, 5, 8):
      (folder / split / str(label)).mkdir(parents=True)
      for index in np.flatnonzero(digits.labels == label)[:40]:
        Image.fromarray(digits.images[index][..., 0]).save(
            folder / split / str(label) / f'{index}.png')
  return folder


def fine_tuning(three_digits, weights, **fields):
  return make_run(three_digits, data__name='folder', data__channels=1, weights=str(weights),
                  new_head=True, **fields)


def test_all_but_the_last_layer_is_as_loaded(pretrained, three_digits, capsys):
  run = fine_tuning(three_digits, pretrained[1])
  found = weights.initial_variables(run)
  out = capsys.readouterr().out
  assert out.count('\n') == 1
  assert 'last layer of 10 classes; a new one of 3 is initialised (config.new_head)' in out
  loaded = checkpoint.load(pretrained[1])[1]
  jax.tree.map(np.testing.assert_array_equal, found['params']['dense1'],
               loaded['params']['dense1'])
  assert found['params']['logits']['kernel'].shape == (6, 3)
  fresh = models.init(run.key('init'), run.model, (8, 8, 1))
  jax.tree.map(np.testing.assert_array_equal, found['params']['logits'],
               fresh['params']['logits'])


def test_a_resumed_run_reads_no_weights(pretrained, three_digits, tmp_path, capsys):
  weights = tmp_path / 'weights'
  shutil.copytree(pretrained[1], weights)
  longer = dict(train__num_steps=8, train__num_epochs=8.)
  whole = train(fine_tuning(three_digits, weights, **longer), tmp_path / 'whole')
  workdir = tmp_path / 'halves'
  train(fine_tuning(three_digits, weights, train__num_steps=4, train__num_epochs=8.), workdir)
  capsys.readouterr()
  shutil.rmtree(weights)
  # As if the first half had been interrupted.
  record = workdirs.stages(workdir)
  record['train']['status'] = 'running'
  workdirs.write_json(workdir / 'stages.json', record)
  halves = train(fine_tuning(three_digits, weights, **longer), workdir)
  out = capsys.readouterr().out
  assert 'goes on from step 4' in out and 'last layer' not in out
  jax.tree.map(np.testing.assert_array_equal, halves, whole)
  # Every layer is trained, not the new one alone.
  before = checkpoint.load(pretrained[1])[1]['params']['dense1']['kernel']
  assert np.abs(whole['params']['dense1']['kernel'] - before).max() > 1e-3


def test_the_same_number_of_classes_may_have_a_new_head_too(pretrained):
  data_dir, folder = pretrained
  run = make_run(data_dir, weights=str(folder), new_head=True)
  found, loaded = weights.initial_variables(run), checkpoint.load(folder)[1]
  new, old = (tree['params']['logits']['kernel'] for tree in (found, loaded))
  assert np.abs(new - old).max() > 0
  kept = weights.initial_variables(make_run(data_dir, weights=str(folder)))
  jax.tree.map(np.testing.assert_array_equal, kept, loaded)


def test_what_the_field_does_not_allow(pretrained, three_digits, tmp_path):
  data_dir, folder = pretrained
  run = make_run(three_digits, data__name='folder', data__channels=1, weights=str(folder))
  with pytest.raises(UserError, match='num_classes 3, got 10 .*config.new_head=True'):
    weights.initial_variables(run)
  with pytest.raises(UserError, match='config.new_head.*config.weights'):
    make_run(data_dir, new_head=True)
  # A last layer that nobody trained judges nothing.
  with pytest.raises(UserError, match='--stages=certify: .*config.new_head=True'):
    stages.check(fine_tuning(three_digits, folder), tmp_path, {'certify'})
  wider = fine_tuning(three_digits, folder, model__hidden=(7,))
  with pytest.raises(UserError, match='config.weights must have model'):
    weights.initial_variables(wider)


def test_pytorch_weights_with_another_head(monkeypatch, capsys):
  path = GOLDEN / 'torch_zip.pth'

  def resnet8(num_classes):
    return resnet.ResNet(num_classes, (1, 1, 1), width=4)

  def load(name, split, **kwargs):
    del name, kwargs
    return data.Dataset('any', split, np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int32),
                        ('a', 'b', 'c'), mean=(0.4, 0.5, 0.6), std=(0.25, 0.5, 0.2))

  monkeypatch.setitem(models.MODELS, 'resnet8', resnet8)
  monkeypatch.setattr(data, 'load', load)
  settings = dict(data__name='any', weights=str(path), model=component('model', 'resnet8'))
  found = weights.initial_variables(make_run('', **settings, new_head=True))
  assert 'last layer of 5 classes; a new one of 3' in capsys.readouterr().out
  whole = torch_weights.convert(torch_weights.read(path), resnet8(5), (8, 8, 3))
  assert found['params'].pop('logits')['kernel'].shape == (16, 3)
  del whole['params']['logits']
  jax.tree.map(np.testing.assert_array_equal, found, whole)
  with pytest.raises(UserError, match='num_classes 3, got 5 .*config.new_head=True'):
    weights.initial_variables(make_run('', **settings))


@pytest.mark.parametrize('name', sorted(set(models.MODELS) - {'external'}))
def test_every_network_has_its_head(name):
  model = models.create(name, 7)
  side = 32 if 'resnet50' not in name else 64
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), np.zeros((1, side, side, 3), np.float32), train=False))
  assert shapes['params'][models.HEAD]['kernel'].shape[-1] == 7
  # Nothing else knows the number of classes.
  other = jax.eval_shape(lambda: model.clone(num_classes=8).init(
      jax.random.key(0), np.zeros((1, side, side, 3), np.float32), train=False))
  same = jax.tree_util.tree_map_with_path(
      lambda path, a, b: a.shape == b.shape or path[1].key.startswith(models.HEAD), shapes, other)
  assert all(jax.tree.leaves(same))
