"""The sandwich on classifiers whose radii are known: certificate < exact distance < attack."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base
from launch import run as launcher
from robust_jax import analysis, attacks, certification, keys, report, smoothing, stages, workdir
from robust_jax.attacks import confirmed
from robust_jax.certification import log as certify_log
from robust_jax.config import experiment, sections
from robust_jax.errors import CrossingError, UserError
from robust_jax.stages import weights
from robust_jax.stages.sandwich import check_crossings, sandwich

SIGMA = 0.25
# A unit direction of 4x4 images, and where the images lie along it: of both signs of the label.
SHAPE = (4, 4, 1)
NORMAL = np.where(np.arange(16) % 3, 1, -1).reshape(SHAPE).astype(np.float32) / 4
DISTANCES = np.array([0.3, -0.4, 0.6, 0.15, 0.5, 0.002])
LABELS = np.array([0, 1, 0, 0, 1, 0], np.int32)  # Image 4 is misclassified, image 5 undecided.
IMAGES = (0.5 + DISTANCES.reshape(-1, 1, 1, 1) * NORMAL).astype(np.float32)


def half_space(normal, images):
  """Class 0 where <normal, x - 1/2> > 0: the smoothed classifier's distance is that product."""
  side = jnp.sum((images - 0.5) * normal, axis=(1, 2, 3))
  return 20 * jnp.stack([side, -side], axis=-1)


LINEAR = jax.tree_util.Partial(half_space, NORMAL)


def search(images=IMAGES[:4], labels=LABELS[:4], candidates=None, **settings):
  if candidates is None:  # The mirror image: twice as far as the boundary.
    side = np.sum((images - 0.5) * NORMAL, axis=(1, 2, 3), keepdims=True)
    candidates = images - 2 * side * NORMAL
  settings = {'sigma': SIGMA, 'n': 2000, 'batch_size': 500, 'halvings': 6, **settings}
  return attacks.smallest(keys.root(0), LINEAR, images, labels, candidates, **settings)


def test_a_linear_classifier_is_between_certificate_and_attack():
  certificate = certification.certify(keys.root(1), LINEAR, IMAGES[:4], sigma=SIGMA, n=2000,
                                      alpha=0.001, batch_size=500)
  found, exact = search(), np.abs(DISTANCES[:4])
  np.testing.assert_array_equal(certificate.prediction, LABELS[:4])
  assert (certificate.radius < exact).all() and (exact < found.radius).all()
  # 2,000 draws show a probability below 0.45, which is 0.13 sigma beyond the boundary.
  assert (found.radius < exact + 0.2 * SIGMA).all()
  np.testing.assert_allclose(confirmed._norms(found.images - IMAGES[:4]), found.radius)
  assert found.images.min() >= 0 and found.images.max() <= 1
  level = confirmed.level(0.001, 6)
  for tests, radius in zip(found.tests, found.radius):
    radii, votes = np.array(tests)[:, 0], np.array(tests)[:, 2:].astype(int)
    assert len(tests) == 7
    assert radii[confirmed.beaten(votes, alpha=level, num_classes=2)].min() == radius


@pytest.mark.parametrize('attack', ['ddn', 'pgd', 'apgd'])
def test_any_attack_gives_the_direction(attack):
  images, labels = IMAGES[:4], LABELS[:4]
  noise = smoothing.sample_noise(keys.root(2), images, sigma=SIGMA, num_noise=64)
  settings = {'ddn': {'epsilon': 4.}, 'pgd': {'epsilon': 1., 'norm': 'l2'},
              'apgd': {'epsilon': 1., 'norm': 'l2', 'num_steps': 10}}[attack]
  candidates = attacks.ATTACKS[attack](keys.root(3), LINEAR, images, labels, noise=noise,
                                       **settings)
  found, exact = search(candidates=np.asarray(candidates.images)), np.abs(DISTANCES[:4])
  assert (exact < found.radius).all() and (found.radius < exact + 0.3 * SIGMA).all()


def test_without_noise_one_draw_decides():
  found, exact = search(sigma=0.), np.abs(DISTANCES[:4])
  assert (exact <= found.radius + 1e-6).all() and (found.radius <= exact * (1 + 2**-4)).all()
  assert all(test[1] == 1 for tests in found.tests for test in tests)


def test_where_nothing_is_found_nothing_is_claimed():
  # Nothing to look for; a direction along the boundary; the wrong way.
  side = np.zeros(SHAPE, np.float32)
  side[0, 1], side[0, 2] = 0.2, -0.2
  candidates = IMAGES[:3] + np.stack([0 * side, side, 0.5 * NORMAL])
  found = search(IMAGES[:3], LABELS[:3], candidates)
  assert np.isinf(found.radius).all()
  np.testing.assert_array_equal(found.images, IMAGES[:3])
  assert [len(tests) for tests in found.tests] == [0, 1, 1]
  # What looks robust after a tenth of the draws is not drawn further.
  assert found.tests[2][0][1] == 200


def test_every_point_has_draws_of_its_own_and_those_of_the_image():
  asked = []

  def spying(key, logits_fn, images, ids, start, num, **kwargs):
    asked.append((np.array(ids), np.array(start), np.array(num)))
    return certification.count(key, logits_fn, images, ids, start, num, **kwargs)

  ids = np.array([7, 3, 11, 5])
  found = search(example_ids=ids, n=100, batch_size=50, count=spying)
  for i in range(4):
    draws = [np.arange(start[i], start[i] + num[i]) for _, start, num in asked]
    whole = np.concatenate(draws)
    assert len(np.unique(whole)) == len(whole) == sum(test[1] for test in found.tests[i])
  alone = search(IMAGES[2:3], LABELS[2:3], example_ids=ids[2:3], n=100, batch_size=50)
  assert alone.tests[0] == found.tests[2]


def test_false_claims_are_as_rare_as_alpha_says():
  # The image is on the boundary wherever it is moved to: any claim is false.
  images = np.full((2000, *SHAPE), 0.5, np.float32)
  candidates = images.copy()
  candidates[:, 0, 1:3, 0] += 0.2 * np.array([1, -1], np.float32)
  found = search(images, np.zeros(2000, int), candidates, n=60, alpha=0.5, halvings=2,
                 batch_size=5000)
  false = np.isfinite(found.radius).sum()
  assert stats.binom.sf(false - 1, 2000, 0.5) > 1e-6 and false > 0


def test_points_for_integer_noise_are_of_8_bits():
  images = np.round(IMAGES[:2] * 255) / np.float32(255)
  found = search(images, LABELS[:2], images + NORMAL * np.array([-1, 1]).reshape(2, 1, 1, 1),
                 noise='integer', n=500)
  assert np.isfinite(found.radius).all()
  np.testing.assert_allclose(found.images * 255, np.round(found.images * 255), atol=1e-4)


@pytest.mark.parametrize(('change', 'message'), [
    ({'candidates': IMAGES[:2]}, r'candidates .*\(4, 4, 4, 1\)'),
    ({'candidates': IMAGES[:4] + 1}, r'candidates must be in \[0, 1\]'),
    ({'alpha': 1.}, 'alpha .*1.0'), ({'sigma': -0.1}, 'sigma .*-0.1'), ({'n': 0}, 'n .*0'),
    ({'halvings': -1}, 'halvings .*-1'), ({'labels': np.array([0, 1, 0, 2])}, 'labels .*2')])
def test_mistakes_are_one_line(change, message):
  with pytest.raises(ValueError, match=message):
    search(**change)


# The stage.


def make_run(folder, **changes):
  """The Run of the images above, and of a classifier that needs no training."""
  file = folder / 'line.npz'
  np.savez(file, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)
  config = base.get_config(dict(
      data=dict(name=str(file)), sigma=SIGMA, evaluation=dict(num_noise=16, n=1000, stride=1),
      certify=dict(n0=50, n=2000, batch_size=500),
      sandwich=dict(num_steps=10, num_noise=32)), model=base.model('mlp'), **changes)
  return experiment.build(sections.resolve(config), jax.devices()[:2])


def load(run, folder):
  return weights.Classifier(LINEAR, {'checkpoint_step': None, 'classifier_sha256': 'known'}, None)


@pytest.fixture
def linear(monkeypatch):
  monkeypatch.setattr(weights, 'load', load)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(run, a workdir with its certificates and its sandwich)."""
  folder = tmp_path_factory.mktemp('sandwich')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights, 'load', load)
    run = make_run(folder)
    stages.STAGES['certify'](run, folder)
    sandwich(run, folder)
  return run, folder


@pytest.fixture
def copy(made, tmp_path):
  """A copy of that workdir."""
  return shutil.copytree(made[1], tmp_path / 'copy')


def test_the_stage_finds_both_radii_of_every_image(made):
  log = analysis.read_sandwich(made[1] / 'sandwich.jsonl')
  certified = certify_log.read(made[1] / 'certify.jsonl')
  order = np.argsort(log.idx)
  assert log.idx[order].tolist() == list(range(6))
  np.testing.assert_array_equal(log.certified[order], certified.radius[np.argsort(certified.idx)])
  adversarial, exact = log.adversarial[order], np.abs(DISTANCES)
  right = [0, 1, 2, 3]
  assert (log.certified[order][right] < exact[right]).all()
  assert (exact[right] < adversarial[right]).all()
  # Misclassified already, by its certificate; and one on which the classifier abstains.
  assert log.predict[order].tolist() == [0, 1, 0, 0, 0, -1]
  assert adversarial[4] == 0 and 0 < adversarial[5] < 0.5 * SIGMA
  assert not analysis.crossings(log).any() and check_crossings(made[1]) is None
  assert len(analysis.radius_ratios(log)) == 4 and (analysis.radius_ratios(log) > 1).all()


def test_what_was_interrupted_goes_on_to_the_same_lines(made, copy, linear, capsys):
  lines = (copy / 'sandwich.jsonl').read_text().splitlines(keepends=True)
  (copy / 'sandwich.jsonl').write_text(''.join(lines[:4]) + lines[4][:20])
  sandwich(made[0], copy)
  assert sorted((copy / 'sandwich.jsonl').read_text().splitlines(keepends=True)) == sorted(lines)
  assert 'sandwich: 6 images, 6 with a confirmed' in capsys.readouterr().out


def plant(folder, image, **values):
  """Changes the certificate of an image, as a certifier with a mistake would have it."""
  path = folder / 'certify.jsonl'
  entries = [json.loads(line) for line in path.read_text().splitlines()]
  for entry in entries:
    if entry.get('idx') == image:
      entry.update(values)
  path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))


def test_an_attack_within_a_false_certificate_is_an_alarm(made, copy, linear, capsys):
  plant(copy, 2, radius=0.9)
  (copy / 'sandwich.jsonl').unlink()
  sandwich(made[0], copy)
  out = capsys.readouterr().out
  assert '1 within a certificate' in out and 'alarm: image 2: adversarial at l2 0.6' in out
  with pytest.raises(CrossingError, match='image 2 has .* certified radius 0.9') as error:
    check_crossings(copy)
  assert error.value.exit_status == 5
  log = analysis.read_sandwich(copy / 'sandwich.jsonl')
  assert log.idx[analysis.crossings(log)].tolist() == [2]


def overstate(folder, which=''):
  """Makes certified radii of class 0 in the sandwich log ten times as large and more."""
  path, line = folder / 'sandwich.jsonl', f'{which}"label":0,"predict":0,"certified":'
  path.write_text(path.read_text().replace(line, f'{line}9'))


def test_the_launcher_reports_before_it_ends_with_the_alarm(made, copy, monkeypatch):
  overstate(copy, '"idx":2,')
  ran = []
  monkeypatch.setattr(experiment, 'build', lambda *_, **__: made[0])
  monkeypatch.setattr(stages, 'check', lambda *_: None)
  monkeypatch.setattr(stages, 'run_stage', lambda stage, *_: ran.append(stage))
  workdir.write_json(copy / 'config.json', made[0].config)
  (copy / 'line.npz').unlink()
  with pytest.raises(CrossingError, match='image 2'):
    launcher.run_stages(made[0].config, copy, {'sandwich', 'report'}, (), 0, [])
  assert ran == ['sandwich', 'report']
  launcher.run_stages(made[0].config, copy, {'report'}, (), 0, [])


def test_what_it_needs_is_said_before_hours_are_spent(made, copy, linear, capsys):
  run = made[0]
  (copy / 'sandwich.jsonl').unlink()
  plant(copy, 3, idx=300)
  with pytest.raises(UserError, match='lacks 1 of 6 images, 3 for one'):
    sandwich(run, copy)
  (copy / 'certify.jsonl').unlink()
  with pytest.raises(UserError, match='has no certify.jsonl; run the certify stage first'):
    stages.check_sandwich(run, copy, {'sandwich'})
  stages.check_sandwich(run, copy, {'certify', 'sandwich'})
  other = make_run(copy, sigma=0.)
  stages.check_sandwich(other, copy, {'sandwich'})
  assert sandwich(other, copy) == {} and 'sandwich: skipped' in capsys.readouterr().out


def test_certificates_of_other_settings_are_refused(made, copy, linear):
  (copy / 'sandwich.jsonl').unlink()
  other = make_run(copy, seed=3)
  with pytest.raises(UserError, match='seed is 3 but 0 in the log'):
    sandwich(other, copy)


def test_what_follows_from_a_stage_is_redone_with_it():
  assert stages.with_followers(['certify']) == {'certify', 'sandwich'}
  assert stages.with_followers(['attack', 'report']) == {'attack', 'report'}
  assert stages.with_followers(['train']) == {*stages.KEPT}
  assert workdir.OUTPUTS['sandwich'] == ('sandwich.jsonl',)


# The log, and the page.


def test_all_at_once_radii_only_grow(made):
  log = analysis.read_sandwich(made[1] / 'sandwich.jsonl')
  path = made[1] / 'certify.jsonl'
  certified = analysis.simultaneous(certify_log.read(path), certify_log.read_votes(path))
  joint = analysis.sandwich_at_once(log, certified)
  assert joint.header['alpha'] == log.header['alpha'] / 6
  assert joint.header['certified_alpha'] == 0.001 / 6
  assert (joint.adversarial >= log.adversarial).all() and (joint.certified <= log.certified).all()
  assert (joint.certified < log.certified).any()
  assert joint.adversarial[log.idx == 4] == 0
  # At the log's own alpha the votes give the radii that the search ended with.
  same = analysis.sandwich_at_once(log._replace(header={**log.header, 'alpha': 0.006}))
  np.testing.assert_array_equal(same.adversarial, log.adversarial)
  with pytest.raises(UserError, match='idx'):
    analysis.sandwich_at_once(log, certified._replace(idx=certified.idx + 1))


@pytest.mark.parametrize(('change', 'message'), [
    ({'idx': 1.5}, 'idx, label and predict'), ({'certified': -1.}, 'radii'),
    ({'adversarial': 'far'}, 'radii'), ({'tests': [[1, 2, 3]]}, 'tests'),
    ({'tests': [[0.5, 10, 9, 9]]}, 'tests'), ({'tests': None}, 'tests')])
def test_malformed_lines_are_named(change, message, copy):
  path = copy / 'sandwich.jsonl'
  first, second, *_ = path.read_text().splitlines()
  path.write_text(f'{first}\n{json.dumps({**json.loads(second), **change})}\n')
  with pytest.raises(UserError, match=f'sandwich.jsonl:2: .*{message}'):
    analysis.read_sandwich(path)


def test_empty_logs_and_others_files(copy):
  path = copy / 'sandwich.jsonl'
  lines = path.read_text().splitlines()
  path.write_text(lines[0] + '\n')
  log = analysis.read_sandwich(path)
  assert len(analysis.radius_ratios(log)) == len(analysis.crossings(log)) == 0
  path.write_text('\n'.join([*lines, lines[-1]]) + '\n')
  with pytest.raises(UserError, match='more than once'):
    analysis.read_sandwich(path)
  path.write_text('{"header":{"epsilons":[1]}}\n')
  with pytest.raises(UserError, match='sandwich.jsonl:1: must be a header with sandwich'):
    analysis.read_sandwich(path)


def test_the_page_has_both_radii_and_names_the_images_of_an_alarm(copy):
  page = report.build(copy).read_text()
  assert 'id="sandwich"' in page and 'An attack is within' not in page
  rows = (copy / 'tables' / 'sandwich_images.csv').read_text().splitlines()
  assert len(rows) == 7 and rows[0].startswith('image,class,certified class')
  table = (copy / 'tables' / 'sandwich.csv').read_text()
  assert 'within a certificate,0,0' in table and 'misclassified already,1,1' in table
  assert 'Adversarial / certified' in report.summary(copy)
  assert (copy / 'figures' / 'sandwich.svg').exists()
  overstate(copy)
  page = report.build(copy).read_text()
  assert 'An attack is within a certificate' in page and 'of images 0, 2, 3' in page
