"""One image file under attack: what is written is in the ball, and what is said of it is true."""

import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import special

from configs import external, photo
from launch import run as launcher
from robust_jax import report, stages
from robust_jax.config import experiment, sections
from robust_jax.data import image_file
from robust_jax.errors import UserError

# The module, whose name is that of its stage.
attack_image = importlib.import_module('robust_jax.stages.attack_image')
NAMES = ('ant', 'bee', 'cat', 'Dog')
SHAPE = (6, 6, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(108, 4)).astype(np.float32)


def logits(images):
  """A linear classifier."""
  return images.reshape(len(images), -1) @ WEIGHTS


@pytest.fixture
def photograph(tmp_path):
  """The pixels of a photograph, in tmp_path/photo.png."""
  pixels = np.random.default_rng(1).integers(40, 216, SHAPE).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'photo.png')
  return pixels


def made(tmp_path, norm='linf', **fields):
  """A Run with the classifier `logits` and the image photo.png."""
  np.savez(tmp_path / 'data.npz', test_images=np.zeros((4, *SHAPE), np.uint8),
           test_labels=np.arange(4), class_names=NAMES)
  config = external.get_config()
  config.model.function = f'{__name__}:logits'
  config.data.name = str(tmp_path / 'data.npz')
  config.attack.norm = norm
  config.evaluation.epsilons = (0.05,)
  config.attack_image.file = str(tmp_path / 'photo.png')
  for name, value in fields.items():
    section, _, name = name.rpartition('__')
    config[section or 'attack_image'][name] = value
  return experiment.build(sections.resolve(config), jax.devices()[:1])


def written(folder, kind):
  return np.asarray(Image.open(folder / f'photo_{kind}.png'))


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.1), ('l2', 1.2), ('l1', 8.)])
def test_what_is_said_is_true_of_the_files(norm, epsilon, photograph, tmp_path, capsys):
  label = int(logits(photograph[None] / np.float32(255)).argmax())
  target = (label + 1) % 4
  run = made(tmp_path, norm, target=NAMES[target].upper(), epsilon=epsilon, num_steps=20)
  stages.run_stage('attack_image', run, tmp_path)
  folder = tmp_path / 'attack_image'
  record = json.loads((folder / 'photo.json').read_text())
  assert (record['label'], record['target']) == (NAMES[label], NAMES[target])
  np.testing.assert_array_equal(written(folder, 'original'), photograph)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  for image in record['images']:
    pixels = written(folder, image['kind'])
    assert pixels.dtype == np.uint8
    distance = np.linalg.norm((pixels.astype(float) - photograph).ravel() / 255, order)
    assert distance <= epsilon * (1 + 1e-5)
    np.testing.assert_allclose(image['distance'], distance, rtol=1e-5)
    found = special.log_softmax(logits(pixels[None] / np.float32(255))[0].astype(float))
    assert image['predicted'] == NAMES[found.argmax()]
    assert [name for name, _ in image['probable']] == [NAMES[k] for k in np.argsort(-found)]
    np.testing.assert_allclose(image['probable'][0][1], np.exp(found.max()), rtol=1e-4)
  _, untargeted, targeted = record['images']
  assert untargeted['adversarial'] and untargeted['predicted'] != NAMES[label]
  assert targeted['adversarial'] and targeted['predicted'] == NAMES[target]
  clean = special.log_softmax(logits(photograph[None] / np.float32(255))[0].astype(float))
  for image, of in ((untargeted, label), (targeted, target)):
    assert len(image['loss']) == 21
    np.testing.assert_allclose(image['loss'][0], -clean[of], rtol=1e-3)
  assert untargeted['loss'][-1] > untargeted['loss'][0]
  assert targeted['loss'][-1] < targeted['loss'][0]
  page = (folder / 'photo.html').read_text()
  assert 'photo.png under attack' in page and page.count('data:image/png') == 6
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(':')[0] for line in lines] == [
      'photo_original.png', 'photo_untargeted.png', 'photo_targeted.png', 'page']


def test_an_attack_that_fails_is_said_to(photograph, tmp_path, capsys):
  run = made(tmp_path, epsilon=1e-6)
  stages.run_stage('attack_image', run, tmp_path)
  image = json.loads((tmp_path / 'attack_image/photo.json').read_text())['images'][1]
  assert not image['adversarial'] and image['distance'] == 0
  np.testing.assert_array_equal(written(tmp_path / 'attack_image', 'untargeted'), photograph)
  assert 'not adversarial' in capsys.readouterr().out
  (tmp_path / 'config.json').write_text('{}')
  assert '<a href="attack_image/photo.html">photo</a>' in report.build(tmp_path).read_text()


def test_a_smoothed_classifier_is_judged_by_votes(photograph, tmp_path):
  run = made(tmp_path, 'l2', epsilon=0.5, num_steps=5, evaluation__sigma=0.1,
             evaluation__num_noise=4, evaluation__n=100, certify__batch_size=100)
  stages.run_stage('attack_image', run, tmp_path)
  record = json.loads((tmp_path / 'attack_image/photo.json').read_text())
  assert record['sigma'] == 0.1
  for image in record['images']:
    shares = np.array([share for _, share in image['probable']])
    np.testing.assert_allclose(100 * shares, np.rint(100 * shares), atol=1e-9)
    assert np.isclose(shares.sum(), 1)


@pytest.mark.parametrize('fields, message', [
    ({'file': 'none.png'}, 'attack_image.file must be an image .*none.png.*no such file'),
    ({'file': '.'}, 'attack_image.file must be an image'),
    ({'file': __file__}, 'attack_image.file must be an image .*cannot identify'),
    ({'file': 'no_such_package:a.png'}, 'file is .*package no_such_package is not installed'),
    ({'file': None}, 'attack_image.file must be an image, got None'),
    ({'label': 'bees'}, "label must be .* 4 classes, .*'ant' or 'Dog', got 'bees'; .* bee"),
    ({'target': '4'}, "target must be .* got '4'"),
    ({'label': 'ant', 'target': '0'}, "target must be another class than the label, got '0'"),
])
def test_mistakes_are_one_line(fields, message, photograph, tmp_path):
  run = made(tmp_path, **fields)
  with pytest.raises(UserError, match=message) as raised:
    stages.check(run, tmp_path, ['attack_image'])
  assert '\n' not in str(raised.value)


def test_the_target_is_not_what_the_classifier_says(photograph, tmp_path):
  label = NAMES[int(logits(photograph[None] / np.float32(255)).argmax())]
  with pytest.raises(UserError, match=f"target must be another class than the label, got '{label}"):
    stages.run_stage('attack_image', made(tmp_path, target=label), tmp_path)


def test_a_radius_that_no_box_has(photograph, tmp_path):
  with pytest.raises(UserError, match='attack_image.epsilon must be at most 1 in linf, .* got 2'):
    made(tmp_path, epsilon=2.)


@pytest.mark.parametrize('limit, value, message', [
    ('_MOST_PIXELS', 35, '6x6 are more than'), ('_MOST_BYTES', 35, 'larger than'),
    ('_MOST_ELONGATED', 0.5, '6x6 are too narrow')])
def test_huge_files_are_not_read(limit, value, message, photograph, tmp_path, monkeypatch):
  monkeypatch.setattr(image_file, limit, value)
  with pytest.raises(UserError, match=message):
    image_file.read(tmp_path / 'photo.png', SHAPE)


def test_files_are_cut_turned_and_converted(photograph, tmp_path):
  path = tmp_path / 'photo.png'
  np.testing.assert_array_equal(
      image_file.read(path, (8, 8, 3), pad=1), np.pad(photograph, ((1, 1), (1, 1), (0, 0))))
  assert image_file.read(path, (4, 4, 1)).shape == (4, 4, 1)
  assert image_file.read(path, (3, 5, 3)).shape == (3, 5, 3)
  turned = Image.Exif()
  turned[0x0112] = 6  # The camera was held upright.
  Image.fromarray(photograph).save(path, exif=turned)
  np.testing.assert_array_equal(image_file.read(path, SHAPE), np.rot90(photograph, -1))


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_rounding_stays_in_the_ball_and_uses_it(norm):
  rng = np.random.default_rng(2)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  for epsilon in (0.4 / 255, 2 / 255, 2.6 / 255, 0.1, 2.):
    original = rng.integers(0, 256, 300).astype(np.uint8)
    change = rng.normal(size=300)
    change *= epsilon / np.linalg.norm(change, order)
    found = np.clip(original / 255 + change, 0, 1).astype(np.float32)
    levels = attack_image.to_levels(original, found, norm=norm, epsilon=epsilon)
    moved = levels.astype(float) - original
    assert levels.dtype == np.uint8
    assert np.linalg.norm(moved / 255, order) <= epsilon * (1 + 1e-5)
    assert np.all(moved * (255 * found - original) >= 0)
    assert np.all(np.abs(moved - (255. * found - original)) < 1)
    clipped = np.linalg.norm(found - original / 255, order) < 0.999 * epsilon
    if norm != 'linf' and not clipped and epsilon > 1 / 255:
      # One more level would leave the ball.
      room = (255 * epsilon)**order - np.sum(np.abs(moved)**order)
      assert room < 1 if norm == 'l1' else room <= 2 * np.abs(moved).max() + 1


def test_whole_levels_stay_as_they_are():
  original = np.arange(0, 250, dtype=np.uint8)
  moved = (original + np.uint8(3)).astype(np.float32) / np.float32(255)
  levels = attack_image.to_levels(original, moved, norm='linf', epsilon=3 / 255)
  np.testing.assert_array_equal(levels, original + 3)


@pytest.mark.parametrize('words, expected', [
    (['--stages=attack'], {'attack_image'}), (['--stages=attack,report'], {'attack', 'report'}),
    (['--stages=attack', '--redo=attack'], {'attack'})])
def test_the_attack_stage_of_a_file_is_this_one(words, expected, monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(launcher, 'run_stages', lambda config, folder, wanted, *rest:
                      asked.append(wanted))
  launcher.main(['launch', '--config=configs/photo.py', f'--workdir={tmp_path}', *words])
  assert asked == [expected]


def test_imagenet_need_not_be_there(tmp_path):
  config = sections.resolve(photo.get_config())
  config['data']['data_dir'] = str(tmp_path)
  run = experiment.build(config, jax.devices()[:1], images=False)
  assert run.test_data.num_classes == 1000 and run.test_data.image_shape == (224, 224, 3)
  with pytest.raises(UserError, match='not prepared'):
    experiment.build(config, jax.devices()[:1])


@pytest.mark.slow
def test_a_dalmatian_is_an_airliner(tmp_path):
  run = experiment.build(sections.resolve(photo.get_config()), jax.devices()[:1], images=False)
  try:
    stages.check(run, tmp_path, ['attack_image'])
  except UserError as error:
    pytest.skip(str(error))  # Without the packages of the extra 'demo'.
  stages.run_stage('attack_image', run, tmp_path)
  record = json.loads((tmp_path / 'attack_image/imagenet_16_251.json').read_text())
  original, untargeted, targeted = record['images']
  assert original['predicted'] == record['label'] == 'dalmatian'
  assert untargeted['adversarial'] and untargeted['probability_of_label'] < 1e-6
  assert targeted['probable'][0][0] == 'airliner' and targeted['probable'][0][1] > 0.9
  assert max(untargeted['distance'], targeted['distance']) <= 2.001 / 255
