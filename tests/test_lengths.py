"""Radii, steps and noise of a config that can only be meant in grey levels do not run."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from launch import flags
from robust_jax.config import experiment, lengths, sections
from robust_jax.errors import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.getbasetemp() / 'tfds'))


def build(*words):
  config = flags.parse(['launch', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


@pytest.mark.parametrize('name, field, value, limit, meant', [
    # Digits have 64 pixels: half the box is 0.5 in linf, 4 in l2, 32 in l1.
    ('pgd', 'epsilon', '8', '0.5 in linf', '8/255 = 0.0314'),
    ('pgd', 'epsilon', '0.51', '0.5 in linf', None),
    ('smoothadv', 'epsilon', '8', '4 in l2', '8/255'),
    ('smoothadv', 'epsilon', '2000', '4 in l2', None),
    ('smoothadv', 'method.epsilon', '128', '4 in l2', '128/255 = 0.502'),
    ('vat', 'epsilon', '5', '4 in l2', '5/255'),
    ('iaat', 'method.warmup_epsilon', '8', '0.5 in linf', '8/255'),
    ('iaat', 'method.gamma', '1.9', '0.5 in linf', '1.9/255'),
    ('pgd', 'evaluation.epsilons', '(0.1,8)', '1 in linf', '8/255'),
    ('smoothadv', 'evaluation.epsilons', '(8.1,)', '8 in l2', '8.1/255'),
    ('pgd', 'attack.step_size', '2.', '1 in linf', '2/255'),
    ('pgd', 'method.attack.min_step_size', '2', '1 in linf', '2/255'),
    ('smoothadv', 'sigma', '64', '4 of noise', '64/255 = 0.251'),
    ('smoothadv', 'certify.sigma', '12', '4 of noise', '12/255'),
    ('smoothadv', 'evaluation.sigma', '12', '4 of noise', '12/255'),
])
def test_a_length_beyond_what_the_box_allows_is_refused(name, field, value, limit, meant):
  hint = fr'; did you mean {meant}' if meant else '$'
  number = value.strip('(),').split(',')[-1].rstrip('.')
  path = re.escape(f'config.{field}')
  with pytest.raises(UserError, match=fr'{path} must be at most {limit}, .* got {number}{hint}'):
    build(f'--config=configs/digits.py:{name}', f'--config.{field}={value}')


def test_what_the_box_allows_is_run():
  run = build('--config=digits:pgd', '--config.evaluation.epsilons=(0.5,1)', '--config.epsilon=0.5')
  assert not run.remarks({'attack'})
  # Along the gradient as it is, a factor of it is no length.
  build('--config=digits:pgd', '--config.attack.direction=gradient',
        '--config.attack.step_size=50.')


def test_l2_radii_that_no_one_published_are_remarked(monkeypatch):
  monkeypatch.setattr(lengths, '_UNUSUAL_L2', 3.)
  line, = build('--config=digits:smoothadv', '--config.epsilon=3.5').remarks({'train'})
  assert 'config.epsilon is 3.5 in l2' in line and '3.5/255' in line


def test_fewer_images_than_were_asked_for_are_remarked():
  run = build('--config=digits', '--config.evaluation.stride=500',
              '--config.evaluation.num_images=2', '--config.certify_images.num_images=400')
  attacked, certified = run.remarks({'attack', 'certify'})
  assert 'evaluation.num_images is 2, of which there are 1' in attacked and '500' in attacked
  assert 'certify_images.num_images is 400, of which there are 355' in certified
  assert run.remarks({'train'}) == []


def test_a_radius_of_training_that_no_attack_has_is_remarked():
  words = ['--config=digits:pgd', '--config.epsilon=0.12']
  line, = build(*words).remarks({'train', 'attack'})
  assert '0.12' in line and 'evaluation.epsilons' in line
  for more in ([], ['--config.attack.norm=l2'], ['--config.evaluation.epsilons=(0.1,0.12)']):
    assert not build(*words, *more).remarks({'attack'} if more else {'train'})


@pytest.mark.parametrize('words', [
    ('consistency',), ('gaussian',), ('consistency', '--config.epsilon=0.3'),
    ('smoothadv', '--config.epsilon=0.', '--config.method.attack.name=none')])
def test_training_within_no_radius_names_none(words):
  run = build(f'--config=digits:{words[0]}', *words[1:])
  assert run.training_epsilon == 0 and not run.remarks({'attack'})
  assert 'epsilon' not in run.summary() and 'sigma 0.25' in run.summary()


def test_steps_beyond_the_last_epoch_are_remarked():
  line, = build('--config=digits', '--config.train.num_steps=400',
                '--config.train.num_epochs=1').remarks({'train'})
  assert 'train.num_steps is 400' in line and 'train.num_epochs=1 end after 23' in line


def test_a_batch_larger_than_the_training_images_is_remarked(tmp_path):
  images = np.zeros((4, 8, 8), np.uint8)
  np.savez(tmp_path / 'few.npz', train_images=images, train_labels=np.arange(4) % 2,
           test_images=images, test_labels=np.arange(4) % 2)
  few = ['--config=digits:pgd', f'--config.data.name={tmp_path / "few.npz"}']
  line, = build(*few, '--config.train.batch_size=6').remarks({'train'})
  assert re.search(r'config.train.batch_size is 6.* there are 4\b', line)
  assert not build(*few, '--config.train.batch_size=6').remarks({'attack'})
  assert not build(*few, '--config.train.batch_size=4').remarks({'train'})
  # A quarter of the rows are for extra images: 1,350 are left for the 1,442 of the split.
  assert not build('--config=digits:pgd', '--config.train.batch_size=1800',
                   '--config.extra.name=digits', '--config.extra.split=train',
                   '--config.extra.share=0.25').remarks({'train'})


def test_ddn_that_cannot_reach_the_radius_is_remarked():
  words = ['--config=digits:smoothadv', '--config.attack.name=ddn', '--config.attack.num_steps=20',
           '--config.evaluation.epsilons=(0.5,4)']
  assert any('no farther than 2.65' in line for line in build(*words).remarks({'attack'}))
  assert not build(*words, '--config.attack.init_norm=0.').remarks({'attack'})


def test_images_of_one_class_are_remarked(monkeypatch):
  run = build('--config=digits:smoothadv', '--config.evaluation.num_images=8',
              '--config.evaluation.stride=1')
  assert not run.remarks({'attack'})
  test = run.test_data
  monkeypatch.setitem(run.__dict__, 'test_data', sorted_by_class(test))
  line, = run.remarks({'attack'})
  assert 'config.evaluation' in line and '1 of 10' in line
  run = build('--config=digits:smoothadv', '--config.evaluation.num_images=50',
              '--config.evaluation.stride=1')
  monkeypatch.setitem(run.__dict__, 'test_data', sorted_by_class(test))
  line, = run.remarks({'attack'})
  assert '2 of 10' in line and 'stride' in line
  # All of the split are behind the stride; a class is too rare for it.
  every = build('--config=digits:smoothadv', '--config.evaluation.num_images=0',
                '--config.evaluation.stride=60')
  monkeypatch.setitem(every.__dict__, 'test_data', sorted_by_class(test))
  assert not every.remarks({'attack'})


def sorted_by_class(dataset):
  return dataclasses.replace(dataset, labels=np.sort(dataset.labels[:]))


def test_the_radius_of_another_training_is_not_remarked():
  words = ['--config=digits:pgd', '--config.epsilon=0.03']
  assert any('config.evaluation.epsilons' in line for line in build(*words).remarks({'attack'}))
  assert not build(*words, '--config.weights=runs/other').remarks({'attack'})
