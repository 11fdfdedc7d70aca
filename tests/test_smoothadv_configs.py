"""The configs of SmoothAdv's variants: what each one changes, and what it is refused with."""

from pathlib import Path

import jax
import numpy as np
import pytest

from launch import flags
from robust_jax import attacks, data
from robust_jax.config import experiment, sections
from robust_jax.errors import UserError
from robust_jax.training import methods

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
  """Datasets of the right shapes without a file."""

  def load(name, split, **kwargs):
    del kwargs
    shape = {'digits': (8, 8, 1), 'cifar10': (32, 32, 3), 'imagenet2012': (224, 224, 3)}[name]
    return data.Dataset(name, split, np.zeros((100, *shape), np.uint8), np.zeros(100, np.int32),
                        tuple('0123456789'), data.DATASETS[name].mean, data.DATASETS[name].std)

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(data, 'load', load)


def build(name, *words):
  config = flags.parse(['launch', f'--config=configs/{name}', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


def test_ddn_begins_at_the_warmed_up_epsilon():
  for name, epsilon, steps in (('digits.py:smoothadv_ddn', 0.5, 4),
                               ('imagenet.py:smoothadv_ddn', 2., 2)):
    run = build(name)
    inner = run.method.keywords['attack']
    assert run.method.func is methods.smoothadv and inner.func is attacks.ddn
    assert inner.keywords == {'norm': 'l2', 'num_steps': steps, 'init_norm': 0., 'gamma': 0.05,
                              'rounding': 'inside'}
    assert run.method.keywords['epsilon'] == epsilon
    assert run.method.keywords['epsilon_warmup_epochs'] > 0


def test_ddn_as_the_attack_of_the_evaluation():
  run = build('digits.py:smoothadv', '--config.attack.name=ddn', '--config.attack.gamma=0.0')
  assert run.attack.func is attacks.ddn
  assert run.attack.keywords == {'norm': 'l2', 'num_steps': 20, 'init_norm': 1., 'gamma': 0.,
                                 'rounding': 'inside'}
  with pytest.raises(UserError, match="config.attack.norm must be one of l2, got 'linf'"):
    build('cifar10.py:pgd', '--config.attack.name=ddn')


def test_the_gradient_free_attack_gets_the_noise():
  run = build('digits.py:smoothadv_gradient_free', '--config.sigma=0.375')
  inner = run.method.keywords['attack'].keywords
  assert inner['smoothed_objective'] == 'gradient_free' and inner['sigma'] == 0.375
  with pytest.raises(UserError, match='config.method.attack: sigma .*0.0'):
    build('digits.py:smoothadv_gradient_free', '--config.sigma=0.0')


@pytest.mark.parametrize('data_name', ['digits', 'cifar10'])
def test_the_four_orders(data_name):
  names = ['noise_beside_attack', 'attack_then_noise', 'noise_then_attack', 'smoothadv']
  runs = [build(f'{data_name}.py:{name}') for name in names]
  assert [run.method.func for run in runs] == [methods.noisy_adversarial] * 2 + [
      methods.smoothadv] * 2
  assert [run.method.keywords['order'] for run in runs[:2]] == ['beside', 'attack_then_noise']
  assert runs[2].method.keywords['num_noise'] == 1 < runs[3].method.keywords['num_noise']
  # Alike but for the order: attack, radius, noise, warm-up and batch.
  for run in runs[:2]:
    for name in ('epsilon', 'sigma', 'epsilon_warmup_epochs'):
      assert run.method.keywords[name] == runs[2].method.keywords[name]
    assert run.method.keywords['attack'].keywords == runs[2].method.keywords['attack'].keywords
    assert run.config['train'] == runs[2].config['train']


def test_an_attack_of_the_base_classifier_is_checked_as_one():
  # Without noise in the attack there is nothing that Stein's lemma could estimate from.
  words = ('--config.method.attack.smoothed_objective=gradient_free', '--config.method.num_noise=2')
  build('digits.py:noise_then_attack', *words)
  with pytest.raises(UserError, match='config.method.attack: num_noise .*1'):
    build('digits.py:attack_then_noise', words[0])


def test_fine_tuning():
  run = build('cifar10.py:smoothadv_finetune')
  assert run.config['new_head'] and run.config['weights'] and run.train.num_epochs == 30.
  assert run.method.keywords['epsilon_warmup_epochs'] == 0
  np.testing.assert_allclose([run.learning_rate()(step) for step in (0, 5, 50)], 0.001)


def test_self_training_mixes_what_it_names(monkeypatch):
  seen = []

  def load(name, *, like, **kwargs):
    seen.append({'name': name, **kwargs})
    return like

  monkeypatch.setattr(data.extra, 'load', load)
  run = build('digits.py:self_training', '--config.data.data_dir=/there')
  assert run.train_data.num_examples == 200 and run.steps_per_epoch == 4  # 100 by halves of 64
  assert run.train_data.mixture == (100, 0.5, 0.5)
  assert seen[0]['name'] == 'digits' and seen[0]['split'] == 'train[300:]'
  assert seen[0]['labels'].endswith('.tsv') and seen[0]['data_dir'] == '/there'
  changed = dict(run.config, extra=dict(run.config['extra'], weight=1.))
  assert sections.changed_fields(run.config, changed, 'train') == [
      'config.extra.weight: 0.5 there, 1.0 now']
  assert not sections.changed_fields(run.config, changed, 'certify')
