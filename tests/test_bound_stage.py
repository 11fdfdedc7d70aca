"""The bound stage where least margins are known: its log, its verification, its page."""

import dataclasses
import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from launch import flags
from launch import run as launcher
from robust_jax import analysis, bounds, report, stages, workdir
from robust_jax.config import experiment, sections
from robust_jax.errors import CrossingError, MismatchError, UserError
from robust_jax.report import run as report_run
from robust_jax.stages import shards, weights
from robust_jax.stages.bound import check as check_bound
from robust_jax.stages.bound import check_crossings
from robust_jax.stages.verify import verify

SHAPE = (4, 4, 1)
# The sign of each pixel's weight in a linear classifier, and how far the images are from its
# boundary in l2; in linf that is a quarter. Image 3 is misclassified.
NORMAL = np.where(np.arange(16) % 3, 1, -1).reshape(SHAPE).astype(np.float32) / 4
DISTANCES = np.array([0.3, -0.4, 0.06, 0.15, 0.5])
LABELS = np.array([0, 1, 0, 1, 0], np.int32)
IMAGES = (0.5 + DISTANCES.reshape(-1, 1, 1, 1) * NORMAL).astype(np.float32)
EPSILONS = (0.01, 0.05, 0.09)


def half_space(normal, images):
  side = jnp.sum((images - 0.5) * normal, axis=(1, 2, 3))
  return 20 * jnp.stack([side, -side], axis=-1)


def relu_net(weights, images):
  hidden = jax.nn.relu((images.reshape(len(images), -1) - 0.5) @ weights[0] + 0.1)
  return jax.nn.relu(hidden @ weights[1]) @ weights[2] + jnp.array([0.6, 0.])


LINEAR = jax.tree_util.Partial(half_space, NORMAL)
RNG = np.random.default_rng(0)
NET = jax.tree_util.Partial(relu_net, [RNG.normal(size=size).astype(np.float32) / 2 for size in (
    (16, 24), (24, 24), (24, 2))])


def make_run(folder, devices=2, bound=None, labels=LABELS, **changes):
  """The Run of the images above, of a classifier that `load` and `load_net` have."""
  file = folder / 'line.npz'
  np.savez(file, train_images=IMAGES, train_labels=labels, test_images=IMAGES, test_labels=labels)
  config = base.get_config(dict(
      data=dict(name=str(file)), attack=base.attack('pgd', norm='linf', num_steps=5),
      evaluation=dict(epsilons=EPSILONS[1:], stride=1),
      bound={'epsilons': EPSILONS, 'batch_size': 4, 'num_steps': 5, **(bound or {})}),
      model=base.model('mlp'), **changes)
  return experiment.build(sections.resolve(config), jax.devices()[:devices])


def load(run, folder):
  return weights.Classifier(LINEAR, {'checkpoint_step': None, 'classifier_sha256': 'known'}, None)


def load_net(run, folder):
  return load(run, folder)._replace(logits_fn=NET)


@pytest.fixture
def linear(monkeypatch):
  monkeypatch.setattr(weights, 'load', load)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(run, a workdir with its bounds)."""
  folder = tmp_path_factory.mktemp('bound')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights, 'load', load)
    run = make_run(folder)
    workdir.describe(run, folder, ['--some', 'words'])
    stages.run_stage('bound', run, folder)
  return run, folder


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made[1], tmp_path / 'copy')


def read(folder):
  return analysis.read_bound(folder / 'bound.jsonl')


def timeless(folder):
  return [{name: value for name, value in json.loads(line).items() if name != 'seconds'}
          for line in (folder / 'bound.jsonl').read_text().splitlines()]


def change(folder, image, number, /, **values):
  """Changes the line of an image and of the radius of this number."""
  path = folder / 'bound.jsonl'
  entries = [json.loads(line) for line in path.read_text().splitlines()]
  [entry for entry in entries if entry.get('idx') == image][number].update(values)
  path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))


def test_every_image_has_a_line_a_radius_with_both_sides_of_its_least_margin(made):
  log = read(made[1])
  assert log.idx.tolist() == list(range(5)) and log.epsilons.tolist() == [*EPSILONS]
  side = np.where(LABELS == 0, DISTANCES, -DISTANCES)
  exact = 40 * (side[:, None] - 4 * np.array(EPSILONS))
  right = side > 0
  np.testing.assert_array_equal(log.predict == LABELS, right)
  np.testing.assert_array_equal(log.verdict, np.where(exact > 0, 'verified', 'falsified'))
  # The attack finds the corner of the ball, and the bound is of it, but for rounding.
  np.testing.assert_allclose(log.margin[right], exact[right], atol=1e-3)
  computed = right[:, None] & np.isfinite(log.lower)
  np.testing.assert_allclose(log.lower[computed], exact[computed], atol=1e-2)
  assert (log.lower <= log.margin).all()
  # The first radius that is not verified is the last that is bounded.
  assert np.isfinite(log.lower[2]).tolist() == [True, True, False]
  assert not np.isfinite(log.lower[3]).any() and log.by[3].tolist() == ['clean'] * 3
  assert log.by[2].tolist() == ['bound', 'attack', 'attack']
  assert not analysis.bound_crossings(log).any() and check_crossings(made[1]) is None
  np.testing.assert_allclose(analysis.verified_radius(log), [0.05, 0.09, 0.01, 0, 0.09])
  for share in analysis.robust_interval(log):
    np.testing.assert_allclose(share, [0.8, 0.6, 0.4])
  facts = workdir.stages(made[1])['bound']
  assert facts['num_images'] == 5 and facts['origin']['classifier_sha256'] == 'known'


def test_what_was_interrupted_goes_on_to_the_same_lines(made, copy, linear, capsys):
  lines = (copy / 'bound.jsonl').read_text().splitlines(keepends=True)
  for kept in (lines[:3], [*lines[:7], lines[7][:20]], lines[:1], [lines[0][:20]]):
    (copy / 'bound.jsonl').write_text(''.join(kept))
    if len(kept) == 3:  # Two lines of three are no image.
      assert len(read(copy).idx) == 0
    stages.STAGES['bound'](made[0], copy)
    assert timeless(copy) == timeless(made[1])
  assert 'accuracy 80.0%, verified 80.0% (PGD 80.0%) at 0.01' in capsys.readouterr().out


def test_other_settings_are_refused_and_lose_nothing(made, copy, linear):
  before = (copy / 'bound.jsonl').read_text()
  other = make_run(copy, bound={'epsilons': (0.02,), 'method': 'ibp'})
  with pytest.raises(UserError, match=r'method is "ibp" but "crown" in the log'):
    stages.STAGES['bound'](other, copy)
  assert (copy / 'bound.jsonl').read_text() == before
  with pytest.raises(UserError, match='the bound stage ran with another config.*bound.method'):
    sections.check_workdir(copy, other.config)
  sections.check_workdir(copy, made[0].config)


def test_on_one_device_and_in_l2_the_same_verdicts(linear, tmp_path):
  epsilons = (0.05, 0.2, 0.45)
  for devices, bound in ((1, {'norm': 'l2'}), (2, {'norm': 'l2', 'method': 'alpha',
                                                   'alpha_steps': 2, 'num_images': 3})):
    folder = tmp_path / str(devices)
    folder.mkdir()
    stages.STAGES['bound'](make_run(folder, devices, {**bound, 'epsilons': epsilons}), folder)
    log = read(folder)
    side = np.where(LABELS == 0, DISTANCES, -DISTANCES)[:len(log.idx)]
    assert len(log.idx) == bound.get('num_images', 5)
    np.testing.assert_array_equal(log.verified, side[:, None] > np.array(epsilons))


class Exact(NamedTuple):
  verdict: str
  example: np.ndarray
  margin: float
  seconds: float


def test_the_exact_verifier_goes_on_with_what_is_open(tmp_path, monkeypatch):
  monkeypatch.setattr(weights, 'load', load_net)
  labels = np.array([0, 0, 0, 0, 1], np.int32)
  others = RNG.uniform(size=(64, *SHAPE)).astype(np.float32)
  radii = {'epsilons': (0.0005, 0.004, 0.008, 0.05), 'method': 'ibp'}
  stages.STAGES['bound'](make_run(tmp_path, bound=radii, labels=labels), tmp_path)
  before = read(tmp_path)
  open_ = before.verdict == 'unknown'
  assert open_[:4, 1:3].all() and before.verified[:, 0].any() and before.falsified[:, 3].any()
  assert (before.lower <= before.margin).all() and not analysis.bound_crossings(before).any()
  asked = []

  def exact(logits_fn, image, label, epsilon, *, norm, time_limit):
    asked.append((label, epsilon, time_limit))
    if len(asked) == 1:
      return Exact('unknown', None, -1., 60.)
    if epsilon < 0.008:
      return Exact('verified', None, 1e-6, 20.)
    # Any image of the other class stands for one within the ball.
    return Exact('falsified', others[np.argmax(np.array(NET(others))[:, 1])], -1., 1.)

  monkeypatch.setattr(bounds, 'exact', exact, raising=False)
  other = tmp_path / 'exact'
  other.mkdir()
  run = make_run(other, bound={**radii, 'exact': True}, labels=labels)
  stages.STAGES['bound'](run, other)
  log = read(other)
  # The time of an image is that of all its radii; without time, or knowing, it is left.
  first = np.flatnonzero(open_.any(axis=1))[0]
  np.testing.assert_array_equal(log.verdict[first], before.verdict[first])
  rest = np.arange(5) != first
  expected = np.where(log.epsilons < 0.008, 'verified', 'falsified')[None]
  np.testing.assert_array_equal(
      log.verdict[rest], np.where(open_, expected, before.verdict)[rest])
  assert (log.by[rest][open_[rest]] == 'exact').all()
  assert all(limit in (60., 40., 20.) for _, _, limit in asked)
  assert (log.seconds[rest] > 1).any() and not analysis.bound_crossings(log).any()
  # A second time the first image is decided, which is no difference; then it is the other way.
  workdir.write_json(other / 'stages.json', {'bound': {'status': 'done'}})
  verify(run, other)
  assert workdir.read_json(other / 'verify_bound.json')['problems'] == {}
  table = report_run.tables(report.load(other))['bound'][1]
  assert [row[-1] for row in table.rows] == [None, '0', '3', '0', '0']
  monkeypatch.setattr(bounds, 'exact', lambda *a, **k: Exact('verified', None, 1., 1.))
  with pytest.raises(MismatchError, match='bound.jsonl: .* images are not as logged'):
    verify(run, other)


def test_a_false_bound_is_an_alarm(linear, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bounds, 'crown', lambda f, x, *args, **kwargs: jnp.ones((len(x), 2)))
  run = make_run(tmp_path, bound={'num_steps': 6})
  workdir.describe(run, tmp_path, [])
  stages.STAGES['bound'](run, tmp_path)
  assert read(tmp_path).verdict[2].tolist() == ['verified', 'falsified', 'falsified']
  with pytest.raises(CrossingError, match='image 0 is bounded by a margin of at least 1 within '
                     'linf 0.09, where an attack has found -2.4 or less .2 of such images.'):
    check_crossings(tmp_path)
  page = report.build(tmp_path).read_text()
  assert 'An attack is within a verified radius' in page and 'of images 0, 2' in page


def test_a_margin_below_the_bound_is_one_too_before_it_is_negative(copy):
  change(copy, 4, 0, lower=19.)
  with pytest.raises(CrossingError, match='image 4 is bounded by a margin of at least 19 within '
                     'linf 0.01, where an attack has found 18.4 or less .1 of such images.: one'):
    check_crossings(copy)


def attack_log(folder, sha='known', epsilon=0.05, broken=1, **attack):
  """An attack log of the same images, in which one more than image 3 is broken."""
  header = {'attack': {'name': 'autoattack', 'norm': 'linf', **attack}, 'epsilons': [epsilon],
            'smoothed': False, 'checkpoint_step': None, 'classifier_sha256': sha}
  rows = [{'idx': i, 'label': int(label), 'clean': int(label) if i != 3 else 0, 'adversarial': [
      int(label) if i not in (3, broken) else 1 - int(label)]} for i, label in enumerate(LABELS)]
  (folder / 'attack.jsonl').write_text(''.join(
      json.dumps(row) + '\n' for row in [{'header': header}, *rows]))


def test_an_attack_of_the_attack_stage_counts_where_it_is_of_the_same_balls(copy):
  for other in ({'sha': 'other'}, {'norm': 'l2'}, {'order': 'ball_only'}, {'epsilon': 0.3}):
    attack_log(copy, **other)
    assert check_crossings(copy) is None
  attack_log(copy)
  with pytest.raises(CrossingError, match='image 1 .*within linf 0.05'):
    check_crossings(copy)
  log, attack = read(copy), analysis.read_attack(copy / 'attack.jsonl')
  assert np.argwhere(analysis.bound_crossings(log, attack)).tolist() == [[1, 1], [1, 2]]


def test_the_launcher_reports_before_it_ends_with_the_alarm(made, copy, monkeypatch):
  change(copy, 4, 0, lower=19.)
  ran = []
  monkeypatch.setattr(experiment, 'build', lambda *_, **__: made[0])
  monkeypatch.setattr(stages, 'check', lambda *_: None)
  monkeypatch.setattr(stages, 'run_stage', lambda stage, *_: ran.append(stage))
  (copy / 'line.npz').unlink()
  with pytest.raises(CrossingError, match='image 4'):
    launcher.run_stages(made[0].config, copy, {'bound', 'report'}, (), 0, [])
  assert ran == ['bound', 'report']


# Verification.


def test_what_is_as_logged_is_verified(made, copy, linear, capsys):
  verify(made[0], copy)
  assert 'verify: 5 of 5 images bounded and attacked again are as logged' in capsys.readouterr().out
  record = workdir.read_json(copy / 'verify_bound.json')
  assert record['images'] == record['made_again'] == 5 and not record['problems']
  verify(dataclasses.replace(made[0], verify=sections.VerifySettings(sample=2)), copy)
  assert workdir.read_json(copy / 'verify_bound.json')['made_again'] == 2
  page = ' '.join(report.build(copy).read_text().split())
  assert '2 of 5 images were bounded and attacked again: all are as logged' in page


@pytest.mark.parametrize(('edit', 'message'), [
    ((0, 2, dict(verdict='verified', by='bound')), 'epsilon 0.09: verified by bound does not foll'),
    ((0, 2, dict(verdict='verified', by='exact', adversarial=0)), 'verified by exact does not fol'),
    ((0, 2, dict(verdict='verified', by='exact', lower=0.5)), 'verified by exact does not fol'),
    ((0, 1, dict(verdict='unknown', by=None)), 'epsilon 0.05: unknown by None does not follow'),
    ((0, 0, dict(lower=9.)), 'epsilon 0.01: lower 9.0 is logged, 10.3'),
    ((1, 1, dict(margin=9.)), 'epsilon 0.05: margin 9.0 is logged'),
    ((2, 1, dict(adversarial=0, lower=0.1, verdict='verified', by='bound')), 'adversarial 0 is lo'),
    ((4, range(3), dict(predict=1, adversarial=1, verdict='falsified', by='clean')), 'predict 1'),
    ((4, range(3), dict(label=1, verdict='falsified', by='clean')), 'label: 1 is logged; the data'),
    ((4, range(3), dict(idx=7)), 'not among the images of config.bound'),
    ((4, range(3), None), 'image 4: it is missing, and the bound stage is done')])
def test_an_edited_line_is_seen(edit, message, made, copy, linear, capsys):
  idx, numbers, values = edit
  if values is None:
    lines = (copy / 'bound.jsonl').read_text().splitlines(keepends=True)
    (copy / 'bound.jsonl').write_text(''.join(lines[:-3]))
  else:
    for number in numbers if isinstance(numbers, range) else (numbers,):
      # Changing the index leaves one line less of this image.
      change(copy, idx, 0 if 'idx' in values else number, **values)
  with pytest.raises(MismatchError, match='bound.jsonl: [12] of [45] images are not as logged'):
    verify(made[0], copy)
  assert message in capsys.readouterr().out
  assert workdir.read_json(copy / 'verify_bound.json')['problems']


def test_a_log_of_other_parameters_is_refused(made, copy, monkeypatch):
  monkeypatch.setattr(weights, 'load', lambda *args: load(*args)._replace(
      origin={'checkpoint_step': None, 'classifier_sha256': 'another'}))
  with pytest.raises(MismatchError, match='other parameters: classifier_sha256'):
    verify(made[0], copy)
  (copy / 'bound.jsonl').unlink()
  with pytest.raises(UserError, match=r'no certify.jsonl; run .*bound stage'):
    verify(made[0], copy)


# The page.


def test_the_page_has_what_lies_between_bound_and_attack(copy):
  attack_log(copy, broken=2)
  page = report.build(copy).read_text()
  assert 'id="bounds"' in page and 'within a verified radius' not in page
  assert 'proved, by CROWN, that the network gives' in page
  rows = (copy / 'tables' / 'bound.csv').read_text().splitlines()
  assert rows[0] == 'ℓ∞ ε,PGD (%),AutoAttack (%),verified (%),95% interval,not decided (%),images'
  assert [row.split(',')[:4] for row in rows[1:]] == [
      ['0', '80.0', '80.0', '80.0'], ['0.01', '80.0', '', '80.0'],
      ['0.05', '60.0', '60.0', '60.0'], ['0.09', '40.0', '', '40.0']]
  for text in ('not decided', 'under PGD', 'under AutoAttack', 'verified'):
    assert text in (copy / 'figures' / 'bound.svg').read_text()
  summary = report.summary(copy)
  assert 'Verified accuracy, ℓ∞ ε = 0.09 40.0%' in ' '.join(summary.split())
  assert 'Clean accuracy' in summary
  # Of other balls it is no part of the table, and without bounds there is none.
  attack_log(copy, norm='l2')
  report.build(copy)
  assert 'AutoAttack' not in (copy / 'tables' / 'bound.csv').read_text()
  (copy / 'bound.jsonl').unlink()
  (copy / 'verify_bound.json').unlink(missing_ok=True)
  page = report.build(copy).read_text()
  assert 'Deterministic' not in page and 'Verified' not in page


def test_what_is_open_is_shaded_and_counted(copy):
  for number in (1, 2):
    change(copy, 4, number, lower=-1., verdict='unknown', by=None)
  contents = report.load(copy)
  chart = report_run.figures(contents)['bound']
  band, pgd, verified = chart.drawn
  assert band.band and (band.interval[0] == verified.y).all() and (band.interval[1] == pgd.y).all()
  np.testing.assert_allclose(pgd.y - verified.y, [0, 0, 0.2, 0.2])
  assert [row[-2] for row in report_run.tables(contents)['bound'][1].rows] == [
      '0.0', '0.0', '20.0', '20.0']


def test_beside_the_sandwich_there_is_the_network_without_noise(copy):
  path = copy / 'bound.jsonl'
  path.write_text(path.read_text().replace('"norm":"linf"', '"norm":"l2"'))
  header = {'sandwich': {'num_noise': 4, 'num_steps': 2, 'halvings': 1}, 'n': 100, 'alpha': 0.001,
            'certified_alpha': 0.001, 'num_classes': 2}
  lines = [{'header': header}, *({
      'idx': i, 'label': int(LABELS[i]), 'predict': int(LABELS[i]), 'certified': 0.1,
      'adversarial': 0.3, 'tests': []} for i in (0, 1, 2))]
  (copy / 'sandwich.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  report.build(copy)
  table = (copy / 'tables' / 'sandwich.csv').read_text()
  assert '"without noise, right: median verified ℓ₂ radius",0.050' in table
  line, = [line for line in report_run.figures(report.load(copy))['sandwich_accuracy'].drawn
           if line.name == 'without noise, verified (5 images)']
  np.testing.assert_allclose(line.y, [0.8, 0.8, 0.6, 0.4])


def test_runs_are_compared_by_what_is_verified(copy, tmp_path):
  other = shutil.copytree(copy, tmp_path / 'other')
  change(other, 4, 2, lower=-1., verdict='unknown', by=None)
  text = (other / 'config.json').read_text()
  (other / 'config.json').write_text(text.replace('"momentum": 0.9', '"momentum": 0.8'))
  _, text = report.compare([copy, other], tmp_path / 'compare.html')
  words = text.split()
  assert 'verified ℓ∞ 0.09' in text and '40.0*' in words and '20.0' in words and 'clean' in words
  other_method = (other / 'bound.jsonl').read_text().replace('"crown"', '"ibp"')
  (other / 'bound.jsonl').write_text(other_method)
  _, text = report.compare([copy, other], tmp_path / 'compare.html')
  assert '0.09 by IBP' in ' '.join(text.split())


# What cannot be.


@pytest.mark.parametrize(('bound', 'message'), [
    ({'epsilons': (-0.1,)}, r'config.bound.epsilons must be a tuple .* in \(0, inf\).*-0.1'),
    ({'epsilons': (0.1, float('nan'))}, 'config.bound.epsilons must be a tuple'),
    ({'epsilons': ()}, 'config.bound.epsilons must be one radius or more'),
    ({'epsilons': (8.,)}, r'config.bound.epsilons must be at most 1 in linf.*did you mean 8/255'),
    ({'norm': 'l2', 'exact': True}, "bound.exact must be False for the norm 'l2'.*got True"),
    ({'norm': 'l3'}, 'config.bound.norm must be one of'),
    ({'method': 'magic'}, 'config.bound.method must be one of .*crown'),
    ({'time_limit': 0.}, 'config.bound.time_limit'), ({'restarts': 0}, 'config.bound.restarts')])
def test_mistakes_are_one_line(bound, message, tmp_path):
  with pytest.raises(UserError, match=message):
    make_run(tmp_path, bound=bound)


def test_radii_are_those_of_the_attack_and_some_below_unless_given(tmp_path):
  default = {'epsilons': None, 'num_images': 2}
  run = make_run(tmp_path, bound=default)
  assert run.bound.epsilons == (0.0125, 0.025, 0.05, 0.09) and run.bound.norm == 'linf'
  assert (run.bound.stride, run.bound.num_images) == (1, 2)
  with pytest.raises(UserError, match="bound.epsilons must be given for config.bound.norm 'l1'"):
    make_run(tmp_path, bound={**default, 'norm': 'l1'})


def test_a_network_that_has_no_bounds_is_named_before_it_is_trained(tmp_path):
  run = make_run(tmp_path)
  coarse = {**run.config, 'model': {'name': 'resnet50', 'dtype': 'bfloat16'}}
  with pytest.raises(UserError, match="config.model.dtype must be float32 .* got 'bfloat16'"):
    check_bound(dataclasses.replace(run, config=coarse))

  assert check_bound(run) is None

  class Sorts:
    def eval_logits(self, variables):
      return lambda images: jnp.sort(images.reshape(len(images), -1))[:, :2]

  class Curved:
    def eval_logits(self, variables):
      return lambda images: jnp.tanh(images.reshape(len(images), -1)[:, :2])

  exact = dataclasses.replace(run, bound=run.bound._replace(exact=True))
  assert check_bound(exact) is None
  assert check_bound(dataclasses.replace(run, network=Curved())) is None
  with pytest.raises(UserError, match='--stages=bound: logits_fn must be piecewise linear .*tanh'):
    check_bound(dataclasses.replace(exact, network=Curved()))
  with pytest.raises(UserError, match='--stages=bound: .*sort'):
    check_bound(dataclasses.replace(run, network=Sorts()))


def test_of_a_smoothed_classifier_it_is_said_what_is_bounded(tmp_path):
  run = make_run(tmp_path, sigma=0.25)
  assert any('what is bounded is the network itself' in line for line in run.remarks({'bound'}))
  assert not any('bounded' in line for line in run.remarks({'certify'}))


@pytest.mark.parametrize(('edit', 'message'), [
    (dict(idx=1.5), 'idx, label'), (dict(margin='low'), 'margin and lower'),
    (dict(lower=np.inf), 'margin and lower'), (dict(epsilon=None), 'epsilon and seconds'),
    (dict(seconds='a'), 'epsilon and seconds'),
    (dict(verdict='proved'), 'verdict must be'), (dict(by='magic'), 'verdict must be'),
    (dict(epsilon=0.02), 'epsilon must be 0.05'), (dict(label=0), 'those of the line before')])
def test_malformed_lines_are_named(edit, message, copy):
  change(copy, 1, 1, **edit)
  with pytest.raises(UserError, match=f'bound.jsonl:6: .*{message}'):
    read(copy)


def test_what_is_no_bound_log_and_what_lacks_lines(copy):
  path = copy / 'bound.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join([*lines[:3], *lines[4:]]))
  with pytest.raises(UserError, match='image 0 must have a line for each of 3 radii, got 2'):
    read(copy)
  path.write_text('{"header":{"epsilons":[1]}}\n')
  with pytest.raises(UserError, match='bound.jsonl:1: must be a header with epsilons, norm and'):
    read(copy)
  path.write_text(lines[0])
  log = read(copy)
  assert log.verdict.shape == (0, 3) and np.isnan(analysis.robust_interval(log)).all()
  assert analysis.bound_crossings(log).shape == (0, 3) and check_crossings(copy) is None


# Shards, and what follows from what.


def test_shards_are_one_log(made, linear, tmp_path):
  for number in range(2):
    part = dataclasses.replace(made[0], shard=(number, 2))
    folder = shards.folder(tmp_path, part.shard)
    folder.mkdir(parents=True)
    workdir.describe(part, folder, [])
    stages.run_stage('bound', part, folder)
  assert shards.merge(tmp_path) == [f'{tmp_path}/bound.jsonl: 5 images of 2 shards']
  ours, theirs = read(tmp_path), read(made[1])
  assert ours.idx.tolist() == theirs.idx.tolist() and (ours.verdict == theirs.verdict).all()
  first = shards.folder(tmp_path, (0, 2)) / 'bound.jsonl'
  whole = first.read_text()
  first.write_text(''.join(whole.splitlines(keepends=True)[:-1]))
  with pytest.raises(UserError, match='0-of-2/bound.jsonl must have 3 images, got 2'):
    shards.merge(tmp_path)
  first.write_text(whole)
  shutil.copy(first, shards.folder(tmp_path, (1, 2)))
  with pytest.raises(UserError, match='image 0 is in 0-of-2 too'):
    shards.merge(tmp_path)


def test_it_is_asked_for_by_name_and_redone_with_its_training():
  words = ['launch', '--stages=bound', '--redo=bound', '--config.bound.method=ibp']
  given = flags.parse([*words, '--config.bound.epsilons=(1/255, 8/255)'])
  assert given.config.bound.method == 'ibp' and given.stages == given.redo == ['bound']
  assert given.config.bound.epsilons == (1 / 255, 8 / 255)
  assert 'bound' not in stages.DEFAULT and 'bound' in stages.with_followers(['train'])
  assert stages.with_followers(['certify']) == {'certify', 'sandwich'}
