"""What a stage judges and a training starts from: trained here, loaded, or a function."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden import seeded
from PIL import Image

from configs import base
from robust_jax import data, models, stages, training
from robust_jax import workdir as workdirs
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.errors import UserError
from robust_jax.models import resnet, torch_weights
from robust_jax.report import contents
from robust_jax.stages import weights
from robust_jax.training import evaluate
from robust_jax.workdir import checkpoint

GOLDEN = Path(__file__).parent / 'golden'
INFO = {'num_classes': 10, 'image_shape': [8, 8, 1], 'mean': 0., 'std': 1.}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('tfds')


def make_run(data_dir, model=None, **fields):
  """A run of a small MLP on digits; `fields` are dotted fields of its config, with __ for dots."""
  config = base.get_config()
  config.data.data_dir = str(data_dir)
  config.model = model or component('model', 'mlp', hidden=(6,))
  config.optimizer.momentum = 0.
  config.train.update(batch_size=64, checkpoint_every=2, num_steps=4)
  with config.ignore_type():
    config.update_from_flattened_dict(
        {name.replace('__', '.'): value for name, value in fields.items()})
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def save(run, folder, *, seed=0, step=3, done=True, accuracy=None, **info):
  """A workdir as a training of `run` would leave it."""
  optimizer = run.optimizer()
  variables = models.init(jax.random.key(seed), run.model, run.test_data.image_shape)
  state = training.create_state(variables, optimizer)._replace(step=np.int32(step))
  with checkpoint.manager(folder, keep_best=accuracy is not None) as checkpoints:
    checkpoint.save(checkpoints, state, {**INFO, 'model': run.config['model'], **info},
                    accuracy=accuracy)
  workdirs.write_json(folder / 'stages.json', {
      'train': {'status': 'done' if done else 'running', 'last_step': step, 'config': run.config}})
  return variables


def logits(run, folder):
  logits_fn, origin, _ = weights.load(run, folder)
  return np.asarray(logits_fn(np.full((1, 8, 8, 1), 0.5, np.float32))), origin


def test_weights_of_a_workdir_are_judged_until_something_is_trained(data_dir, tmp_path):
  other, folder = tmp_path / 'other', tmp_path / 'here'
  folder.mkdir()
  run = make_run(data_dir, weights=str(other))
  expected_variables = save(run, other, seed=1, training_noise=0.25)
  stages.check(run, folder, {'certify'})
  found, origin = logits(run, folder)
  expected = models.logits_fn(run.model, expected_variables)(np.full((1, 8, 8, 1), 0.5, np.float32))
  np.testing.assert_array_equal(found, expected)
  jax.tree.map(np.testing.assert_array_equal, weights.initial_variables(run), expected_variables)
  assert origin['checkpoint_step'] is None and len(origin['classifier_sha256']) == 64
  assert weights.load(run, folder).training_noise == 0.25
  # The finished certificates of these weights do not stand beside another training.
  record = {'status': 'done', 'origin': origin, 'config': run.config}
  workdirs.write_json(folder / 'stages.json', {'certify': record})
  (folder / 'certify.jsonl').touch()  # Without it the stage has no results, and runs.
  weights.check_same_classifier(run, folder, 'certify')
  save(run, folder, seed=2)
  records = workdirs.stages(folder)
  workdirs.write_json(folder / 'stages.json', {**records, 'certify': record})
  now, trained = logits(run, folder)
  assert weights.load(run, folder).training_noise is None
  assert trained['checkpoint_step'] == 3 and np.abs(now - expected).max() > 1e-3
  with pytest.raises(UserError, match='certify stage .* another classifier .*--redo=certify'):
    stages.run_stage('certify', run, folder)


def test_an_unfinished_training_is_not_judged(data_dir, tmp_path):
  run = make_run(data_dir, weights=str(tmp_path / 'other'))
  save(run, tmp_path / 'other', done=False)
  with pytest.raises(UserError, match='config.weights .*other.* not finished'):
    weights.load(run, tmp_path)
  save(run, tmp_path / 'other')
  save(run, tmp_path, done=False)
  with pytest.raises(UserError, match='no finished training'):
    stages.check(run, tmp_path, {'attack'})
  stages.check(run, tmp_path, {'train', 'attack'})


@pytest.mark.parametrize('info, message', [
    ({'num_classes': 3}, 'num_classes 10, got 3'),
    ({'image_shape': [4, 4, 1]}, r'image_shape \[8, 8, 1\], got \[4, 4, 1\]'),
    ({'model': {'name': 'mlp', 'hidden': [5]}}, "model .*, got .*'hidden': .5"),
    ({'std': [0.25]}, 'config.data.mean and config.data.std'),
    ({'class_names': list('1032456789')}, r"class_names \['0', '1', .*, got \['1', '0'"),
])
def test_weights_that_do_not_fit_are_refused(info, message, data_dir, tmp_path):
  run = make_run(data_dir, weights=str(tmp_path))
  save(run, tmp_path, **info)
  with pytest.raises(UserError, match=message):
    weights.initial_variables(run)


def test_weights_have_to_be_there_until_they_have_been_used(data_dir, tmp_path):
  run = make_run(data_dir, weights=str(tmp_path / 'gone.pth'))
  for wanted in ({'train'}, {'certify'}):
    with pytest.raises(UserError, match='config.weights .*gone.pth'):
      stages.check(run, tmp_path, wanted)
  save(run, tmp_path)
  stages.check(run, tmp_path, {'certify'})


def test_a_function_is_judged_as_it_is(data_dir, tmp_path, monkeypatch):
  (tmp_path / 'own_function.py').write_text(
      'import jax.numpy as jnp\n'
      'def logits(x): return jnp.stack([x.mean((1, 2, 3))] * 10, -1) * jnp.arange(10)\n')
  monkeypatch.syspath_prepend(tmp_path)
  model = component('model', 'external', function='own_function:logits')
  run = make_run(data_dir, model, data__mean=(0.5,))
  assert not run.trainable
  assert stages.STAGES['train'](run, tmp_path) == {}
  stages.check(run, tmp_path, {'certify'})
  found, origin = logits(run, tmp_path)
  np.testing.assert_allclose(found[0], 0.5 * np.arange(10))  # Not normalised.
  before = origin['classifier_sha256']
  (tmp_path / 'own_function.py').write_text('# Edited.\n')
  assert logits(run, tmp_path)[1]['classifier_sha256'] != before


def test_the_best_checkpoint_is_judged_where_it_was_asked_for(data_dir, tmp_path):
  with pytest.raises(UserError, match="config.checkpoint must be 'last' .* got 'best'"):
    make_run(data_dir, checkpoint='best')
  run = make_run(data_dir, checkpoint='best', train__keep_best=True)
  variables = models.init(jax.random.key(0), run.model, (8, 8, 1))
  with checkpoint.manager(tmp_path, keep=1, keep_best=True) as checkpoints:
    for step, accuracy in [(1, 0.9), (2, 0.5)]:
      state = training.create_state(variables, run.optimizer())._replace(step=np.int32(step))
      checkpoint.save(checkpoints, state, {**INFO, 'model': run.config['model']},
                      accuracy=accuracy)
  workdirs.write_json(tmp_path / 'stages.json', {'train': {'status': 'done', 'last_step': 2}})
  assert weights.load(run, tmp_path)[1]['checkpoint_step'] == 1
  last = dataclasses.replace(run, config={**run.config, 'checkpoint': 'last'})
  assert weights.load(last, tmp_path)[1]['checkpoint_step'] == 2


def test_the_best_checkpoint_is_chosen_by_images_that_are_held_out(data_dir, tmp_path, monkeypatch):
  run = make_run(data_dir, checkpoint='best', train__keep_best=True, data__validation=0.2,
                 train__num_steps=3, train__eval_every_epochs=0.05)
  tested, original = {'validation': [0.9, 0.2, 0.1], 'test': [0.1, 0.2, 0.9]}, []

  def accuracy(key, logits_fn, batches, **kwargs):
    images = np.concatenate([batch.images[batch.mask > 0] for batch in batches])
    split = 'test' if len(images) == 355 else 'validation'
    original.append((split, len(images)))
    return {'loss': 1., 'accuracy': tested[split].pop(0)}

  monkeypatch.setattr(evaluate, 'loss_and_accuracy', accuracy)
  train(run, tmp_path)
  assert original == 3 * [('validation', 288), ('test', 355)] and run.steps_per_epoch == 19
  assert checkpoint.load(tmp_path, step='best')[2]['step'] == 1
  judged = contents.load(tmp_path)
  assert (judged.tested['step'], judged.tested['accuracy']) == (1, 0.1)
  assert not judged.chosen_by_test


def test_the_test_split_chooses_no_checkpoint(data_dir, tmp_path, capsys):
  run = make_run(data_dir, checkpoint='best', train__keep_best=True)
  with pytest.raises(UserError, match='config.data.validation must be more than 0'):
    train(run, tmp_path)
  # What was trained when it did is judged all the same, and it is said.
  save(run, tmp_path / 'old', accuracy=0.9)
  weights.load(run, tmp_path / 'old')
  assert 'chosen by accuracy on the test split' in capsys.readouterr().err
  workdirs.write_json(tmp_path / 'old/config.json', run.config)
  (tmp_path / 'old/metrics.jsonl').write_text(''.join(
      f'{{"split": "test", "step": {step}, "accuracy": {accuracy}}}\n'
      for step, accuracy in ((1, 0.9), (2, 0.9), (3, 0.8))))
  judged = contents.load(tmp_path / 'old')
  assert judged.chosen_by_test and judged.tested['step'] == 2


def test_of_a_folder_of_images_the_place_is_the_name(data_dir):
  config = make_run(data_dir).config
  elsewhere = {**config, 'data': {**config['data'], 'data_dir': '/elsewhere'}}
  assert sections.changed_fields(config, elsewhere, 'certify') == []
  config, elsewhere = ({**c, 'data': {**c['data'], 'name': 'folder'}} for c in (config, elsewhere))
  assert 'config.data.data_dir' in sections.changed_fields(config, elsewhere, 'certify')[0]


# Fine-tuning with config.new_head: a new last layer, all else as loaded.


def train(run, folder):
  folder.mkdir(exist_ok=True)
  stages.check(run, folder, {'train'})
  workdirs.describe(run, folder, [])
  stages.run_stage('train', run, folder)
  return checkpoint.load(folder)[1]


@pytest.fixture(scope='module')
def pretrained(data_dir, tmp_path_factory):
  """The workdir of a network trained on the ten classes of digits."""
  folder = tmp_path_factory.mktemp('runs') / 'ten'
  train(make_run(data_dir), folder)
  return folder


@pytest.fixture(scope='module')
def three_digits(data_dir, tmp_path_factory):
  """A folder of images of the digits 3, 5 and 8."""
  folder = tmp_path_factory.mktemp('three')
  for split in ('train', 'test'):
    digits = data.load('digits', split, data_dir=str(data_dir))
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
  run = fine_tuning(three_digits, pretrained)
  found = weights.initial_variables(run)
  out = capsys.readouterr().out
  assert out.count('\n') == 1
  assert 'last layer of 10 classes; a new one of 3 is initialised (config.new_head)' in out
  loaded = checkpoint.load(pretrained)[1]
  jax.tree.map(np.testing.assert_array_equal, found['params']['dense1'],
               loaded['params']['dense1'])
  assert found['params']['logits']['kernel'].shape == (6, 3)
  fresh = models.init(run.key('init'), run.model, (8, 8, 1))
  jax.tree.map(np.testing.assert_array_equal, found['params']['logits'],
               fresh['params']['logits'])


def test_a_resumed_run_reads_no_weights(pretrained, three_digits, tmp_path, capsys):
  weights = shutil.copytree(pretrained, tmp_path / 'weights')
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
  before = checkpoint.load(pretrained)[1]['params']['dense1']['kernel']
  assert np.abs(whole['params']['dense1']['kernel'] - before).max() > 1e-3


def test_the_same_number_of_classes_may_have_a_new_head_too(data_dir, pretrained):
  run = make_run(data_dir, weights=str(pretrained), new_head=True)
  found, loaded = weights.initial_variables(run), checkpoint.load(pretrained)[1]
  new, old = (tree['params']['logits']['kernel'] for tree in (found, loaded))
  assert np.abs(new - old).max() > 0
  kept = weights.initial_variables(make_run(data_dir, weights=str(pretrained)))
  jax.tree.map(np.testing.assert_array_equal, kept, loaded)


def test_where_new_head_is_needed_or_wrong(data_dir, pretrained, three_digits, tmp_path):
  run = make_run(three_digits, data__name='folder', data__channels=1, weights=str(pretrained))
  with pytest.raises(UserError, match='num_classes 3, got 10 .*config.new_head=True'):
    weights.initial_variables(run)
  with pytest.raises(UserError, match='config.new_head.*config.weights'):
    make_run(data_dir, new_head=True)
  # A last layer that nobody trained judges nothing.
  with pytest.raises(UserError, match='--stages=certify: .*config.new_head=True'):
    stages.check(fine_tuning(three_digits, pretrained), tmp_path, {'certify'})
  wider = fine_tuning(three_digits, pretrained, model__hidden=(7,))
  with pytest.raises(UserError, match='config.weights must have model'):
    weights.initial_variables(wider)


@pytest.fixture
def resnet8(monkeypatch):
  """Makes a run of the network of golden/torch_zip.pth, which has mean and std of its own."""
  monkeypatch.setitem(models.MODELS, 'resnet8',
                      lambda num_classes: resnet.ResNet(num_classes, (1, 1, 1), width=4))

  def make(num_classes=5, labels=(0, 1, 2), mean=(0.1,), **fields):
    rng = np.random.default_rng(0)
    dataset = data.Dataset(
        'any', 'test', rng.integers(0, 256, (len(labels), 8, 8, 3), np.uint8),
        np.array(labels, np.int32), tuple('abcde'[:num_classes]), mean=mean, std=(0.5,))
    monkeypatch.setattr(data, 'load', lambda *args, **kwargs: dataset)
    return make_run('', component('model', 'resnet8'), data__name='any',
                    **{'weights': str(GOLDEN / 'torch_zip.pth'), **fields})

  return make


def test_pytorch_weights_with_another_head(resnet8, capsys):
  own = dict(mean=(0.4, 0.5, 0.6), data__mean=(0.4, 0.5, 0.6), data__std=(0.25, 0.5, 0.2))
  path = GOLDEN / 'torch_zip.pth'
  run = resnet8(3, **own, new_head=True)
  run = dataclasses.replace(
      run, test_data=dataclasses.replace(run.test_data, std=own['data__std']))
  found = weights.initial_variables(run)
  assert 'last layer of 5 classes; a new one of 3' in capsys.readouterr().out
  whole = torch_weights.load(path, resnet.ResNet(3, (1, 1, 1), width=4), (8, 8, 3)).variables
  assert found['params'].pop('logits')['kernel'].shape == (16, 3)
  del whole['params']['logits']
  jax.tree.map(np.testing.assert_array_equal, found, whole)
  with pytest.raises(UserError, match='num_classes 3, got 5 .*config.new_head=True'):
    weights.initial_variables(resnet8(3))


def test_pytorch_weights_are_judged_with_the_normalisation_of_their_file(resnet8, tmp_path):
  run, images = resnet8(), seeded.images((2, 8, 8, 3))
  workdirs.describe(run, tmp_path, [])
  expected = json.loads((GOLDEN / 'torch_resnet8.json').read_text())
  judged = weights.load(run, tmp_path)
  np.testing.assert_allclose(judged.logits_fn(images), expected, rtol=1e-5, atol=1e-5)
  # And so they are opened from the folder that has judged them.
  network, variables, info = workdirs.load(tmp_path)
  np.testing.assert_allclose(network.eval_logits(variables)(images), expected, rtol=1e-5, atol=1e-5)
  assert info['sha256'] == judged.origin['classifier_sha256']
  assert (info['step'], info['mean'], info['class_names']) == (
      None, pytest.approx([0.4, 0.5, 0.6]), list('abcde'))
  for function in (weights.initial_variables, lambda run: weights.load(run, tmp_path)):
    with pytest.raises(UserError, match='config.data.mean and config.data.std must be those of'):
      function(resnet8(data__mean=(0.1,)))


def test_weights_without_a_normalisation_have_the_datasets_and_say_so(resnet8, tmp_path, capsys):
  arrays = torch_weights.read(GOLDEN / 'torch.safetensors')
  file = tmp_path / 'bare.safetensors'
  safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()
                               if name.startswith('1.')}, file)
  run, images = resnet8(weights=str(file), mean=(0.4, 0.5, 0.6)), seeded.images((2, 8, 8, 3))
  run = dataclasses.replace(
      run, test_data=dataclasses.replace(run.test_data, std=(0.25, 0.5, 0.2)))
  expected = json.loads((GOLDEN / 'torch_resnet8.json').read_text())
  for _ in range(2):
    found = weights.load(run, tmp_path).logits_fn(images)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert re.fullmatch(r'.*bare.safetensors says nothing of .*, mean \(0.4, 0.5, 0.6\), std .*\n',
                      capsys.readouterr().out)


def test_judged_weights_are_announced_as_such(resnet8):
  summary = resnet8().summary(trained=False)
  assert 'weights of ' in summary and 'torch_zip.pth' in summary and 'training' not in summary


def test_which_network_of_a_file(resnet8, tmp_path):
  weights.load(resnet8(weights_part='1.module'), tmp_path)
  for part in ('ema', '1.mod'):
    with pytest.raises(UserError, match=f"config.weights_part must be None, .* got '{part}'"):
      weights.load(resnet8(weights_part=part), tmp_path)
  with pytest.raises(UserError, match="weights_part must be None without config.weights, got 'a'"):
    make_run('', weights_part='a')


def test_a_function_that_was_judged_is_opened(data_dir, tmp_path, monkeypatch):
  (tmp_path / 'judged_function.py').write_text(
      'import jax.numpy as jnp\n'
      'def logits(x): return jnp.stack([x.mean((1, 2, 3))] * 10, -1) * jnp.arange(10)\n')
  monkeypatch.syspath_prepend(tmp_path)
  run = make_run(data_dir, component('model', 'external', function='judged_function:logits'))
  (tmp_path / 'run').mkdir()
  workdirs.describe(run, tmp_path / 'run', [])
  network, variables, info = workdirs.load(tmp_path / 'run')
  found = network.eval_logits(variables)(np.full((1, 8, 8, 1), 0.5, np.float32))
  np.testing.assert_allclose(found[0], 0.5 * np.arange(10))
  assert info['num_classes'] == 10


@pytest.mark.parametrize(('order', 'message'), [
    ([0, 1, 2, 3, 4], None),
    ([1, 0, 2, 3, 4], r'\d+ of \d+ .* class 0 \(a\) are taken for class 1 \(b\); .* class 1 .* 0'),
    ([1, 2, 3, 4, 0], r'0% of 100 test images are right, which is chance; .*order of any')])
def test_classes_in_another_order_are_said(order, message, resnet8, capsys):
  run = resnet8(labels=np.arange(200) % 5)
  images = run.test_data.images.copy()
  images[:, 0, 0, 0] = np.arange(200) % 5  # Each image shows its class.
  run = dataclasses.replace(
      run, test_data=dataclasses.replace(run.test_data, images=images))
  weights.check_classes(run, jax.tree_util.Partial(
      lambda x: jax.nn.one_hot(jnp.array(order)[(x[:, 0, 0, 0] * 255 + 0.5).astype(int)], 5)))
  found = capsys.readouterr().err
  assert (message is None and not found) or re.search(message, found)


@pytest.mark.parametrize('name', sorted(set(models.MODELS) - {'external'}))
def test_every_network_has_its_head(name):
  """And nothing else knows the number of classes."""
  side = 32 if 'resnet50' not in name else 64
  shapes, other = (
      jax.eval_shape(functools.partial(models.create(name, num_classes).init, train=False),
                     jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
      for num_classes in (7, 8))
  assert shapes['params'][models.HEAD]['kernel'].shape[-1] == 7
  same = jax.tree_util.tree_map_with_path(
      lambda path, a, b: a.shape == b.shape or path[1].key.startswith(models.HEAD), shapes, other)
  assert all(jax.tree.leaves(same))
