"""Which classifier a stage judges: trained here, brought as weights, or as a function."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import base
from robust_jax import models, stages, training, workdir
from robust_jax.config import experiment, sections
from robust_jax.config.sections import component
from robust_jax.errors import UserError
from robust_jax.stages import weights
from robust_jax.workdir import checkpoint


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('tfds')


def make_run(data_dir, model=None, **fields):
  """A run of a small MLP on digits; `fields` are dotted fields of its config, with __ for dots."""
  config = base.get_config()
  config.data.data_dir = str(data_dir)
  config.model = model or component('model', 'mlp', hidden=(4,))
  config.certify_images.num_images = 2
  with config.ignore_type():
    config.update_from_flattened_dict(
        {name.replace('__', '.'): value for name, value in fields.items()})
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def save(run, folder, *, seed=0, step=3, done=True, **info):
  """A workdir as a training of `run` would leave it."""
  optimizer = run.optimizer()
  variables = models.init(jax.random.key(seed), run.model, run.test_data.image_shape)
  state = training.create_state(variables, optimizer)._replace(step=np.int32(step))
  with checkpoint.manager(folder) as checkpoints:
    checkpoint.save(checkpoints, state, {
        'model': run.config['model'], 'num_classes': 10, 'image_shape': [8, 8, 1], 'mean': 0.,
        'std': 1., **info})
  workdir.write_json(folder / 'stages.json', {
      'train': {'status': 'done' if done else 'running', 'last_step': step, 'config': run.config}})
  return variables


def logits(run, folder):
  logits_fn, origin, _ = weights.load(run, folder)
  return np.asarray(logits_fn(np.full((1, 8, 8, 1), 0.5, np.float32))), origin


def test_weights_of_a_workdir_are_judged_until_something_is_trained(data_dir, tmp_path):
  other, folder = tmp_path / 'other', tmp_path / 'here'
  folder.mkdir()
  run = make_run(data_dir, weights=str(other))
  brought = save(run, other, seed=1, training_noise=0.25)
  stages.check(run, folder, {'certify'})
  found, origin = logits(run, folder)
  expected = models.logits_fn(run.model, brought)(np.full((1, 8, 8, 1), 0.5, np.float32))
  np.testing.assert_array_equal(found, expected)
  jax.tree.map(np.testing.assert_array_equal, weights.initial_variables(run), brought)
  assert origin['checkpoint_step'] is None and len(origin['classifier_sha256']) == 64
  assert weights.load(run, folder).training_noise == 0.25
  # The finished certificates of these weights do not stand beside another training.
  record = {'status': 'done', 'origin': origin, 'config': run.config}
  workdir.write_json(folder / 'stages.json', {'certify': record})
  weights.check_same_classifier(run, folder, 'certify')
  save(run, folder, seed=2)
  records = workdir.stages(folder)
  workdir.write_json(folder / 'stages.json', {**records, 'certify': record})
  now, trained = logits(run, folder)
  assert weights.load(run, folder).training_noise is None, 'nothing tells'
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
  (tmp_path / 'brought_function.py').write_text(
      'import jax.numpy as jnp\n'
      'def logits(x): return jnp.stack([x.mean((1, 2, 3))] * 10, -1) * jnp.arange(10)\n')
  monkeypatch.syspath_prepend(tmp_path)
  model = component('model', 'external', function='brought_function:logits')
  run = make_run(data_dir, model, data__mean=(0.5,))
  assert not run.trainable
  assert stages.STAGES['train'](run, tmp_path) == {}
  stages.check(run, tmp_path, {'certify'})
  found, origin = logits(run, tmp_path)
  np.testing.assert_allclose(found[0], 0.5 * np.arange(10))  # Not normalised.
  before = origin['classifier_sha256']
  (tmp_path / 'brought_function.py').write_text('# Edited.\n')
  assert logits(run, tmp_path)[1]['classifier_sha256'] != before


def test_the_best_checkpoint_is_judged_where_it_was_asked_for(data_dir, tmp_path):
  with pytest.raises(UserError, match="config.checkpoint must be 'last' .* got 'best'"):
    make_run(data_dir, checkpoint='best')
  run = make_run(data_dir, checkpoint='best', train__keep_best=True)
  variables = models.init(jax.random.key(0), run.model, (8, 8, 1))
  with checkpoint.manager(tmp_path, keep=1, keep_best=True) as checkpoints:
    for step, accuracy in [(1, 0.9), (2, 0.5)]:
      state = training.create_state(variables, run.optimizer())._replace(step=np.int32(step))
      checkpoint.save(checkpoints, state, {
          'model': run.config['model'], 'num_classes': 10, 'mean': 0., 'std': 1.},
          accuracy=accuracy)
  workdir.write_json(tmp_path / 'stages.json', {'train': {'status': 'done', 'last_step': 2}})
  assert weights.load(run, tmp_path)[1]['checkpoint_step'] == 1
  last = dataclasses.replace(run, config={**run.config, 'checkpoint': 'last'})
  assert weights.load(last, tmp_path)[1]['checkpoint_step'] == 2


def test_of_a_folder_of_images_the_place_is_the_name(data_dir):
  config = make_run(data_dir).config
  elsewhere = {**config, 'data': {**config['data'], 'data_dir': '/elsewhere'}}
  assert sections.changed_fields(config, elsewhere, 'certify') == []
  config, elsewhere = ({**c, 'data': {**c['data'], 'name': 'folder'}} for c in (config, elsewhere))
  assert 'config.data.data_dir' in sections.changed_fields(config, elsewhere, 'certify')[0]
