"""Training with one step of attack, and the measure of what may come of it."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_training

from launch import flags
from robust_jax import attacks, keys, models, stages, training, workdir
from robust_jax.attacks import threat_models
from robust_jax.config import experiment, sections
from robust_jax.errors import OverfittingError, UserError
from robust_jax.training import methods
from robust_jax.types import AttackResult, Batch, Network, Progress
from robust_jax.workdir import checkpoint

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(5)
PROGRESS = Progress(jnp.asarray(0), jnp.asarray(0), jnp.asarray(0.))
run = functools.partial(tiny_training.run_method, progress=PROGRESS, key=KEY)


@pytest.fixture(scope='module')
def batch():
  return tiny_training.random_batch(16)


@pytest.fixture(scope='module')
def linear():
  """A linear network: (network, params)."""
  model = models.create('mlp', 3, hidden=())
  params = models.init(KEY, model, (4, 4, 1))['params']
  return models.network(model), jax.tree.map(lambda w: 3 * w, params)


def step_of(linear, start, labels, length):
  """start + length sign(grad CE) of a linear classifier, and the logits there, in float64."""
  (layer,) = linear[1].values()
  kernel, bias = (np.asarray(layer[name], np.float64) for name in ('kernel', 'bias'))
  rows = np.asarray(start, np.float64).reshape(len(start), -1)
  wrong = scipy.special.softmax(rows @ kernel + bias, axis=-1) - np.eye(3)[labels]
  moved = rows + length * np.sign(wrong @ kernel.T)
  return moved, lambda x: x @ kernel + bias


def loss_of(logits, labels):
  return -scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]


def start_of(batch, use, epsilon, *uses):
  """The random start that the method's key gives."""
  key = functools.reduce(keys.fold_in, (use, *uses), keys.fold_in(KEY, batch.index))
  return np.asarray(threat_models.linf(epsilon).random(key, batch.images))


def test_n_fgsm_has_its_formula(linear, batch):
  images, labels = (np.asarray(value) for value in (batch.images, batch.labels))
  method = functools.partial(methods.n_fgsm, epsilon=0.1, noise_ratio=1.5, step_ratio=0.8)
  output, gradient = run(method, *linear, batch)
  noisy = start_of(batch, 0, 0.15, 0)
  moved, logits = step_of(linear, noisy, labels, 0.08)
  moved = np.clip(moved, 0, 1)
  distance = np.abs(moved - images.reshape(16, -1)).max(-1)
  assert (distance > 0.15).all() and distance.max() > 0.2 and (distance <= 0.23 + 1e-6).all()
  np.testing.assert_allclose(output.loss, loss_of(logits(moved), labels), rtol=1e-4, atol=1e-5)
  # The gradient is that at images which are held fixed.
  found = AttackResult(jnp.asarray(moved.reshape(images.shape), jnp.float32), None, None)
  _, expected = run(functools.partial(methods.adversarial, epsilon=0.1,
                                      attack=lambda *args, **kwargs: found), *linear, batch)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient,
               expected)


def test_its_noise_fills_the_larger_ball(batch):
  middle = batch._replace(images=jnp.full_like(batch.images, 0.5))
  noise = start_of(middle, 0, 0.2, 0) - 0.5
  assert 0.19 < np.abs(noise).max() <= 0.2 + 1e-6
  assert np.isclose(noise.std(), 0.2 / np.sqrt(3), rtol=0.1)


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.slow)])
def test_n_fgsm_without_noise_is_fgsm(norm, linear, batch):
  kwargs = dict(epsilon=0.1, epsilon_warmup_epochs=2, clean_share=0.3, label_smoothing=0.1)
  found, gradient = run(functools.partial(methods.n_fgsm, norm=norm, noise_ratio=0., **kwargs),
                        *linear, batch)
  fgsm = functools.partial(attacks.fgsm, norm=norm)
  expected, expected_gradient = run(functools.partial(methods.adversarial, attack=fgsm, **kwargs),
                                    *linear, batch)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, (found, gradient), (expected, expected_gradient))


def build(*words):
  config = flags.parse(['launch', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


def test_rs_fgsm_is_a_step_from_a_random_start(linear, batch, monkeypatch):
  monkeypatch.chdir(ROOT)
  attack = build('--config=configs/digits.py:fast').method.keywords['attack']
  output, _ = run(functools.partial(methods.adversarial, attack=attack, epsilon=0.1), *linear,
                  batch)
  images, labels = (np.asarray(value) for value in (batch.images, batch.labels))
  moved, logits = step_of(linear, start_of(batch, 0, 0.1, 1, 0, 0), labels, 0.125)
  rows = images.reshape(16, -1)
  moved = np.clip(np.clip(moved, rows - 0.1, rows + 0.1), 0, 1)
  np.testing.assert_allclose(output.loss, loss_of(logits(moved), labels), rtol=1e-4, atol=1e-5)


def wavy(params, images):
  """Two logits of a pixel t from 1/2: right at t = 0 and +-0.1, where FGSM ends, wrong between."""
  del params
  t = (images.reshape(len(images)) - 0.5) / 0.1
  margin = 1 - 2 * jnp.sin(jnp.pi * t)**2 - 0.1 * t
  return jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_what_withstands_one_step_alone_is_told(norm):
  network = Network(eval_logits=lambda variables: jax.tree_util.Partial(wavy, variables['params']),
                    train_logits=None)
  rows = Batch(jnp.full((32, 1, 1, 1), 0.5), jnp.zeros(32, jnp.int32), jnp.arange(32),
               jnp.ones(32).at[20:].set(0.))
  state = training.create_state({'params': {}, 'batch_stats': {}},
                                training.OPTIMIZERS['sgd'](0.1))
  measure = jax.jit(functools.partial(training.attacked_accuracy, network=network, norm=norm,
                                      epsilon=0.1))
  _, sums = measure(state, rows, KEY)
  # A random start may be too near to where PGD's steps turn.
  assert sums['fgsm_accuracy'] == sums['count'] == 20 and sums['pgd_accuracy'] <= 2
  # Of label 1 everything is wrong at once, at t = 0.
  _, sums = measure(state, rows._replace(labels=jnp.ones(32, jnp.int32)), KEY)
  assert sums['fgsm_accuracy'] == 0


WORDS = ['--config=configs/digits.py:fast', '--config.train.num_epochs=2.',
         '--config.train.eval_every_epochs=1.', '--config.train.checkpoint_every=5']


@pytest.mark.parametrize('measure', [
    'warn', 'stop', pytest.param('ignore', marks=pytest.mark.slow)])
def test_training_measures_warns_and_stops(measure, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  run = build(*WORDS, f'--config.train.on_overfitting={measure}', '--config.model.name=linear',
              '--config.train.overfitting_gap=0.2')
  # A linear classifier withstands both alike.
  monkeypatch.setattr(
      training, 'attacked_accuracy',
      lambda *args, axis_name, **kwargs: (None, {
          'fgsm_accuracy': jnp.float32(60.), 'pgd_accuracy': jnp.float32(40.),
          'count': jnp.float32(64.)}))
  workdir.describe(run, tmp_path, [])
  if measure == 'stop':
    with pytest.raises(OverfittingError, match=(
        r'step 23: .* 93.8% under FGSM and 62.5% under PGD.* step 20 is kept; '
        '.*on_overfitting=warn goes on')) as error:
      stages.run_stage('train', run, tmp_path)
    assert error.value.exit_status == 3 and '\n' not in str(error.value)
    assert checkpoint.latest_step(tmp_path) == 20
    assert workdir.stages(tmp_path)['train']['status'] == workdir.STOPPED
    return
  stages.run_stage('train', run, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  tested = [line for line in lines if line['split'] == 'train']
  assert len(tested) == 2 and checkpoint.latest_step(tmp_path) == 46
  if measure == 'warn':
    assert all((line['fgsm_accuracy'], line['pgd_accuracy']) == (0.9375, 0.625) for line in tested)
    assert capsys.readouterr().out.count('catastrophic overfitting') == 2
  else:
    assert not any('pgd_accuracy' in line for line in tested)


@pytest.mark.parametrize('words, message', [
    (['n_fgsm', '--config.epsilon=8.0'], r'^config.epsilon must be at most 0.5 in linf.*8/255'),
    (['n_fgsm', '--config.method.norm=l1'], 'config.method.norm must be one of linf, l2'),
    (['vat', '--config.train.on_overfitting=warn'], "^config.train.on_overfitting .*'ignore'"),
    (['smoothadv', '--config.train.on_overfitting=stop'], "'ignore' for config.method.name"),
    (['fast', '--config.epsilon=0.0'], "config.train.on_overfitting must be 'ignore'"),
    (['fast', '--config.train.overfitting_gap=1.5'], 'config.train.overfitting_gap .*1.5'),
])
def test_what_does_not_go_together_is_one_line(words, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=message) as raised:
    build(f'--config=configs/digits.py:{words[0]}', *words[1:])
  assert '\n' not in str(raised.value)
