"""The attack stage on hand-made runs: what is padded, and what is logged of odd gradients."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_jax import analysis, attacks, certification, data, keys, smoothing, stages
from robust_jax.attacks import checks
from robust_jax.config import sections
from robust_jax.errors import UserError
from robust_jax.stages import attack as run_attack
from robust_jax.stages import images as stage_images
from robust_jax.stages import weights
from robust_jax.workdir import checkpoint


def distance(images):
  """Logits whose difference is the distance from a grey image: no gradient there."""
  rows = images.reshape(len(images), -1)
  return jnp.stack([jnp.linalg.norm(rows - 0.5, axis=-1), 0.4 + 0 * rows[:, 0]], -1)


def attacked(monkeypatch, folder, pixels, attack, name='pgd', sigma=0., **fields):
  """The rows of attack.jsonl after the stage attacked the images [num, ...] with labels 0."""
  monkeypatch.setattr(weights, 'load', lambda run, workdir: (
      jax.tree_util.Partial(distance), {}, None))
  settings = sections.EvaluationSettings(epsilons=(0.2, 0.1), stride=1, gallery=0, num_noise=4,
                                         n=100)
  run = SimpleNamespace(
      evaluation=settings, attack=attack, attacked_sigma=sigma, devices=jax.devices()[:2],
      key=lambda use: jax.random.key(0), shard=(0, 1),
      test_data=data.Dataset(
          name='grey', split='test', images=pixels, labels=np.zeros(len(pixels), np.int32),
          class_names=('far', 'near'), mean=(0.,), std=(1.,)),
      config={'attack': {'name': name, **fields}, 'seed': 0, 'evaluation': settings._asdict(),
              'certify': {'batch_size': 50}})
  run_attack(run, folder)
  return [json.loads(line) for line in (folder / 'attack.jsonl').read_text().splitlines()][1:]


@pytest.mark.parametrize('num_images, batch_size, num_devices, rows, batches', [
    (15, 64, 2, 16, 1), (15, 64, 1, 15, 1), (65, 64, 1, 33, 2), (500, 64, 2, 64, 8),
    (1, 64, 8, 8, 1), (64, 64, 2, 64, 1), (100, 64, 4, 52, 2), (0, 64, 2, 0, 0)])
def test_batches_are_even_and_hardly_padded(num_images, batch_size, num_devices, rows, batches):
  size = stage_images.even_size(num_images, batch_size, num_devices)
  assert size == rows <= batch_size and size % num_devices == 0
  assert size * batches - num_images < max(batches, 1) * num_devices


@pytest.mark.parametrize('name', ['pgd', 'lbfgs'])
def test_no_more_is_attacked_than_the_devices_need(name, monkeypatch, tmp_path):
  sizes = []

  def counting(key, logits_fn, images, labels, **kwargs):
    sizes.append(len(images))
    return attacks.no_attack(key, logits_fn, images, labels, epsilon=kwargs['epsilon'])

  pixels = np.full((5, 2, 2, 1), 0.5, np.float32)
  rows = attacked(monkeypatch, tmp_path, pixels, counting, name)
  # Three rows on each of two devices; on the host the images alone.
  assert set(sizes) == ({3} if name == 'pgd' else {5})
  assert [row['idx'] for row in rows] == list(range(5))


def test_what_had_no_finite_gradient_is_logged(monkeypatch, tmp_path):
  pixels = np.random.default_rng(0).uniform(size=(5, 2, 2, 1)).astype(np.float32)
  pixels[2] = 0.5
  attack = functools.partial(attacks.pgd_attack, norm='l2', num_steps=2, random_start=False)
  rows = attacked(monkeypatch, tmp_path, pixels, attack)
  assert [row.get('undefined') for row in rows] == [None, None, [True, True], None, None]
  log = analysis.read_attack(tmp_path / 'attack.jsonl')
  assert analysis.undefined_images(log) == 1 and log.undefined[2].all()


@pytest.mark.parametrize('attack', [
    functools.partial(attacks.pgd_attack, norm='l2', num_steps=3),
    functools.partial(attacks.ddn, init_norm=0.1),
    functools.partial(attacks.apgd_attack, norm='l2', num_steps=5)], ids=['pgd', 'ddn', 'apgd'])
def test_a_smoothed_classifier_is_attacked_through_draws_and_judged_by_others(
    attack, monkeypatch, tmp_path):
  # Pixels whose noise moves them across the boundary, at a distance of 0.4 from grey.
  pixels = 0.5 + 0.22 * np.random.default_rng(0).choice([-1, 1], size=(5, 2, 2, 1))
  pixels = pixels.astype(np.float32)
  rows = attacked(monkeypatch, tmp_path, pixels, attack, sigma=0.1)
  key, index, labels = jax.random.key(0), np.arange(5), np.zeros(5, np.int32)
  logits_fn, own_keys = jax.tree_util.Partial(distance), keys.fold_in(key, index)
  noise = smoothing.sample_noise(keys.fold_in(own_keys, 1), pixels, sigma=0.1, num_noise=4)
  judge = functools.partial(certification.judge, key, logits_fn, labels=labels, sigma=0.1, n=100,
                            batch_size=50, example_ids=index, in_box=False)
  found = [pixels, *(attack(keys.fold_in(own_keys, 0), logits_fn, pixels, labels, epsilon=epsilon,
                            noise=noise).images for epsilon in (0.2, 0.1))]
  votes = [judge(x).votes.tolist() for x in found]
  assert [row['votes'] for row in rows] == [list(of_one) for of_one in zip(*votes)]
  clean, far, near = np.array([row['votes'] for row in rows])[:, :, 0].sum(axis=0)
  assert far <= near < clean  # DDN's smallest perturbation is within both radii.


def test_transfer_from_another_network(monkeypatch, tmp_path):
  other = lambda x: 5 * distance(x)
  network = SimpleNamespace(eval_logits=lambda variables: jax.tree_util.Partial(other))
  monkeypatch.setattr(checkpoint, 'load', lambda folder: (network, {}, {}))
  monkeypatch.setattr(sections, 'EvaluationSettings', functools.partial(
      sections.EvaluationSettings, transfer_from='runs/other'))
  pixels = np.full((3, 2, 2, 1), 0.8, np.float32)

  def attack(key, logits_fn, images, labels, *, epsilon, noise=None):
    # What is attacked is the other network.
    return attacks.no_attack(key, logits_fn, images, labels, epsilon=epsilon)._replace(
        images=jnp.where(logits_fn(images)[:, 1, None, None, None] > 1, 0.5, images))

  rows = attacked(monkeypatch, tmp_path, pixels, attack)
  header = json.loads((tmp_path / 'attack.jsonl').read_text().splitlines()[0])['header']
  assert header['transfer_from'] == 'runs/other'
  assert [row['clean'] for row in rows] == [0, 0, 0]
  assert [row['adversarial'] for row in rows] == [[1, 1]] * 3
  monkeypatch.setattr(checkpoint, 'load', lambda folder: (
      SimpleNamespace(eval_logits=lambda variables: lambda x: x[:, 0, 0, :]), {}, {}))
  with pytest.raises(UserError, match="transfer_from is 'runs/other', .*logits float32.2, 2."):
    attacked(monkeypatch, tmp_path / 'again', pixels, attack)



@pytest.mark.parametrize('far, message', [
    (lambda x, epsilon: x + 3 * epsilon, r"'mine:attack' .*\[0, 1\], got .* to 1.15"),
    (lambda x, epsilon: x - 0.5 * epsilon, "'mine:attack' .* l1 0.2 .* got 0.4"),
])
def test_an_attack_of_ones_own_stays_in_the_set(far, message, monkeypatch, tmp_path):
  def attack(key, logits_fn, images, labels, *, epsilon, noise=None):
    return attacks.no_attack(key, logits_fn, images, labels)._replace(images=far(images, epsilon))

  pixels = np.full((4, 2, 2, 1), 0.55, np.float32)
  settings = {'name': 'mine:attack', 'norm': 'l1'}
  with pytest.raises(UserError, match=message):
    attacked(monkeypatch, tmp_path, pixels, attack, **settings)


def test_what_was_found_is_a_line(monkeypatch, tmp_path, capsys):
  attacked(monkeypatch, tmp_path, np.full((4, 2, 2, 1), 0.9, np.float32), attacks.no_attack, 'none')
  assert 'attack: none, 4 images; accuracy 100.0%, 100.0% at 0.2' in capsys.readouterr().out


@pytest.mark.parametrize('sigma', [0., 0.25])
def test_the_check_stage_examines_the_images_of_the_attack_stage(
    sigma, monkeypatch, tmp_path, capsys):
  asked = {}

  def examine(key, logits_fn, images, labels, **settings):
    asked.update(settings, images=images, shape=jax.eval_shape(logits_fn, images).shape)
    lines = [checks.Check('gradients', False, 'no gradient', '40.0%'),
             checks.Check('noise', True, 'above noise', '0.0%')]
    return checks.Examination(lines, {'steps': (np.arange(2), np.ones(2))},
                              {'silent_success': np.zeros(2)}, np.array([True, False]))

  monkeypatch.setattr(checks, 'examine', examine)
  monkeypatch.setattr(weights, 'load', lambda run, workdir: (
      jax.tree_util.Partial(distance), {'step': 3}, None))
  pixels = np.linspace(0, 1, 7 * 4, dtype=np.float32).reshape(7, 2, 2, 1)
  evaluation = sections.EvaluationSettings(epsilons=(0.1, 0.2, 0.3), stride=3, num_noise=5)
  run = SimpleNamespace(
      evaluation=evaluation, check=sections.CheckSettings(num_images=2), attacked_sigma=sigma,
      shard=(0, 1),
      key=lambda use: jax.random.key(0), config={'attack': {'norm': 'linf'}},
      test_data=data.Dataset(
          name='grey', split='test', images=pixels, labels=np.zeros(7, np.int32),
          class_names=('far', 'near'), mean=(0.,), std=(1.,)))
  stages.STAGES['check'](run, tmp_path)
  np.testing.assert_array_equal(asked['images'], pixels[[0, 3]])
  assert asked['epsilon'] == 0.2 and asked['norm'] == 'linf' and asked['shape'] == (2, 2)
  assert (asked['noise'] is None) if not sigma else asked['noise'].shape == (5, 2, 2, 2, 1)
  record = json.loads((tmp_path / 'check.json').read_text())
  assert record['step'] == 3 and record['checks'][0]['passed'] is False
  assert record['images'][1] == {'idx': 3, 'label': 0, 'robust': False, 'silent_success': 0.}
  printed = capsys.readouterr().out
  assert "check 'gradients': no gradient: 40.0%" in printed and '1 of 2 checks passed' in printed
