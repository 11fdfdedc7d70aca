"""What cannot be trained is refused before anything is written that claims the workdir."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from launch import flags
from robust_jax import attacks, data, stages, workdir
from robust_jax.config import experiment, sections
from robust_jax.data import lazy
from robust_jax.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
  monkeypatch.chdir(ROOT)


def build(config, *words):
  config = flags.parse(['launch', f'--config=configs/{config}', *words]).config
  return experiment.build(sections.resolve(config), jax.devices()[:2])


@pytest.mark.parametrize('words, message', [
    (['digits.py:tangent', '--config.extra.name=digits', '--config.extra.share=0.5'],
     "config.extra.share must be 0 .*'tangent'.* got 0.5"),
    (['digits.py:tangent', '--config.data.augment=crop'],
     "config.data.augment must be 'none' .*'tangent'.* got 'crop'"),
    (['digits.py:smoothadv_gradient_free', '--config.method.num_noise=1'],
     'config.method.attack: num_noise .*1'),
    (['digits.py:smoothadv', '--config.attack.smoothed_objective=gradient_free',
      '--config.evaluation.num_noise=1'], 'config.attack: num_noise .*1'),
    (['digits.py:iaat', '--config.method.attack.name=none'],
     "config.method.attack.name .*'iaat'.* got 'none'"),
    (['digits.py:iaat_smoothadv', '--config.method.attack.name=none'],
     "config.method.attack.name .*'iaat_smoothadv'.* got 'none'"),
    (['digits.py:smoothadv_ddn', '--config.method.attack.num_steps=1'],
     r'config.method.attack.num_steps .*\[2, inf\).* got 1'),
    (['digits.py:pgd', '--config.method.attack.restarts=3',
      '--config.method.attack.random_start=False'],
     'config.method.attack: restarts .*3'),
    (['digits.py:trades', '--config.method.attack.restarts=2'],
     'config.method.attack: restarts .*2'),
    (['digits.py:trades', '--config.method.attack.loss=cross_entropy'],
     "config.method.attack.loss must be 'kl' .*'trades'.* got 'cross_entropy'"),
    (['digits.py:trades', '--config.method.attack.name=fgsm'],
     "config.method.attack.name must be 'pgd' with loss 'kl' .* got 'fgsm'"),
    (['digits.py:smoothadv', '--config.method.name=trades'],
     "config.method.attack.loss must be 'kl' .*'trades'.* got 'cross_entropy'"),
    (['digits.py:smoothadv', '--config.attack.loss=margin',
      '--config.attack.smoothed_objective=naive'], "config.attack: .*'margin'.*'naive'"),
    (['digits.py:smoothadv', '--config.method.attack.loss=kl',
      '--config.method.attack.target=random'], "config.method.attack: loss .*'kl'"),
    (['digits.py:smoothadv', '--config.evaluation.epsilons=()'],
     'config.evaluation.epsilons .* got '),
    (['digits.py:smoothadv', '--config.certify_images.images_per_call=1000000'],
     'config.certify and'),
    (['digits.py:smoothadv_gradient_free', '--config.sigma=0.0'],
     'config.method.attack: sigma .*0.0'),
    # Without noise in the attack there is nothing that Stein's lemma could estimate from.
    (['digits.py:attack_then_noise', '--config.method.attack.smoothed_objective=gradient_free'],
     'config.method.attack: num_noise .*1'),
    (['cifar10.py:pgd', '--config.attack.name=ddn'],
     "config.attack.norm must be one of l2, got 'linf', kept from pgd: .* --config.attack.norm="),
])
def test_what_does_not_go_together_is_one_line(words, message):
  with pytest.raises(UserError, match=message) as raised:
    build(*words)
  assert '\n' not in str(raised.value)


def test_tangents_of_joined_images_are_refused():
  dataset = data.load('digits', 'test')
  for images in (lazy.concatenate(dataset.images, dataset.images[:5]),
                 data.load('digits', 'test', in_memory_bytes=0).images):
    with pytest.raises(UserError, match='config.data.tangents=2 .*digits'):
      data.load_tangents(dataclasses.replace(dataset, images=images), 8, num_directions=2,
                         num_neighbors=5)


def test_tangents_of_images_that_are_decoded_on_the_way(tmp_path):
  whole, kept = (data.load('digits', 'test', data_dir=str(tmp_path), at_once=at_once)
                 for at_once in (True, False))
  directions = [data.load_tangents(dataset, 8, num_directions=2, num_neighbors=5)
                for dataset in (whole, kept)]
  some = np.array([3, 200, 7])
  np.testing.assert_array_equal(*(each[some] for each in directions))


def test_a_split_whose_first_image_is_damaged_is_refused(tmp_path):
  for split in ('train', 'test'):
    for name in 'ab':
      (tmp_path / split / name).mkdir(parents=True)
      for number in range(8):
        Image.new('L', (8, 8), number).save(tmp_path / split / name / f'{number}.png')
  words = ['digits.py:pgd', '--config.data.name=folder', f'--config.data.data_dir={tmp_path}',
           '--config.train.batch_size=8']
  place = tmp_path / 'run'
  place.mkdir()
  (tmp_path / 'train' / 'a' / '0.png').write_bytes(b'no image')
  with pytest.raises(UserError, match="0.png.*: the image cannot be decoded"):
    stages.run_stage('train', build(*words), place)
  assert not workdir.stages(place) and not list(place.glob('checkpoints*'))
  (tmp_path / 'test' / 'a' / '0.png').write_bytes(b'no image')
  with pytest.raises(UserError, match="0.png.*: the image cannot be decoded"):
    build(*words)


@pytest.mark.parametrize('words, message', [
    (['digits.py:tangent', '--config.data.tangent_neighbors=1000'], 'tangent_neighbors .*1000'),
    (['digits.py:pgd', '--config.weights={folder}/damaged.pth'], 'damaged.pth'),
])
def test_a_refusal_in_the_train_stage_leaves_the_workdir_free(words, message, tmp_path):
  (tmp_path / 'damaged.pth').write_text('nothing')
  run = build(*[word.format(folder=tmp_path) for word in words])
  place = tmp_path / 'run'
  place.mkdir()
  workdir.describe(run, place, [])
  with pytest.raises(UserError, match=message):
    stages.run_stage('train', run, place)
  assert not (place / 'checkpoints').exists()
  sections.check_workdir(place, build('digits.py:pgd', '--config.seed=7').config)


def test_weights_that_are_a_folder_of_images_are_refused(tmp_path):
  (tmp_path / 'images' / 'a').mkdir(parents=True)
  run = build('digits.py:pgd', f'--config.weights={tmp_path}/images')
  for wanted in (['train'], ['attack']):
    with pytest.raises(UserError, match='config.weights must be a workdir or .*images.*folder'):
      stages.weights.check(run, tmp_path / 'run', wanted)


NOTES = [
    "train: 'adversarial' trains without noise; config.sigma 0.25 is that of the tests, attacks "
    'and certificates\n',
    "train: 'gaussian' trains within no radius; config.epsilon 0.5 is not used\n",
    "train: 'consistency' trains within no radius; config.epsilon 0.5 is not used\n"]


@pytest.mark.parametrize('words, note', [
    (['digits.py:pgd', '--config.sigma=0.25'], 0),
    (['digits.py:gaussian', '--config.epsilon=0.5'], 1),
    (['digits.py:consistency', '--config.epsilon=0.5'], 2),
    (['digits.py:pgd'], None), (['digits.py:gaussian'], None), (['digits.py:smoothadv'], None),
])
def test_a_sigma_or_epsilon_that_training_does_not_use_is_told(words, note, tmp_path, capsys):
  stages.STAGES['train'](build(*words, '--config.train.num_steps=1'), tmp_path)
  printed = capsys.readouterr().out
  assert [number for number, line in enumerate(NOTES) if line in printed] == (
      [] if note is None else [note])
  assert printed.count(' trains with') == (note is not None)


def test_a_method_that_attacks_can_take_the_place_of_one_that_does_not():
  words = ['digits.py:macer', '--config.attack.num_steps=7', '--config.method.name=smoothadv']
  inner = build(*words).method.keywords['attack']
  assert inner.func is attacks.pgd_attack and inner.keywords['norm'] == 'l2'
  assert inner.keywords['num_steps'] == 20  # As in the config file.
  inner = build(*words, '--config.method.attack.name=ddn',
                '--config.method.attack.num_steps=3').method.keywords['attack']
  assert inner.func is attacks.ddn and inner.keywords['num_steps'] == 3
  inner = build(*words, '--config.method.attack.step_size=0.5').method.keywords['attack']
  assert inner.keywords['step_size'] == 0.5
