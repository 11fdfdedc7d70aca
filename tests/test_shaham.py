"""The experiment of Shaham et al. on digits: the set, the tables and the curves, made again."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from launch import shaham as command
from robust_jax import attacks, keys, report, stages, workdir
from robust_jax.config import experiment
from robust_jax.errors import UserError
from robust_jax.studies import shaham

SMALL = ['--config.train.num_steps=60', '--config.evaluation.stride=3',
         '--config.model.widths=(4, 8)', '--config.model.dense=16']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The sweep on digits, with little training."""
  path = tmp_path_factory.mktemp('sweep')
  points = flags.parse(
      ['launch', '--config=configs/shaham.py', '--sweep', *SMALL]).points
  for number, (_, config) in enumerate(points):
    run = experiment.build(config, jax.devices()[:2])
    place = path / f'{number:03d}'
    place.mkdir()
    workdir.describe(run, place, [])
    stages.run_stage('train', run, place)
  workdir.write_json(path / report.SWEEP, {
      'runs': [{'workdir': f'{number:03d}', 'point': {}} for number in range(len(points))]})
  return path


@pytest.fixture(scope='module')
def result(folder):
  summary, page = shaham.compare(folder, jax.devices()[:2])
  return summary, page, shaham.load(folder, jax.devices()[:2])


def rows_of(folder, name):
  with open(folder / 'shaham' / f'{name}.csv', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def chosen(run):
  index = np.arange(0, run.test_data.num_examples, 3)
  return (run.test_data.images[index] / np.float32(255)).astype(np.float32), (
      run.test_data.labels[index]), index


def test_the_set_is_one_step_adversarials_that_fool_the_baseline(result):
  baseline, *robust = result[2]
  assert [net.name for net in robust] == ['l1', 'l2', 'linf']
  found = shaham.adversarial_set(baseline, robust, list(shaham._test_batches(baseline.run)))
  f = jax.jit(baseline.logits_fn)
  assert (jnp.argmax(f(found.clean), -1) == found.labels).all()
  predicted = jnp.argmax(f(found.images), -1)
  np.testing.assert_array_equal(predicted, found.predicted)
  assert (predicted != found.labels).all()
  delta = (found.images - found.clean).reshape(len(found.labels), -1)
  flips, epsilon = found.norms == 'l1', {net.name: net.epsilon for net in robust}
  assert flips.any() and (np.sum(np.abs(delta[flips]) > 1e-6, -1) == 1).all()
  np.testing.assert_allclose(np.abs(delta[flips]).max(-1), epsilon['l1'], rtol=1e-5)
  np.testing.assert_allclose(
      np.linalg.norm(delta[found.norms == 'l2'], axis=-1), epsilon['l2'], rtol=1e-4)
  # None is left out: made again, image by image of the test split.
  images, labels, index = chosen(baseline.run)
  for net in robust:
    attacked = attacks.fgsm_attack(
        keys.fold_in(baseline.run.key('attack'), index), baseline.logits_fn, images, labels,
        epsilon=net.epsilon, norm=net.name, order='ball_only').images
    expected = (jnp.argmax(f(images), -1) == labels) & (jnp.argmax(f(attacked), -1) != labels)
    np.testing.assert_array_equal(index[expected], found.index[found.norms == net.name])


def test_the_table_has_the_accuracies(folder, result):
  summary, _, nets = result
  rows = rows_of(folder, 'accuracy')
  assert [row['network'] for row in rows] == [
      'baseline', 'robust, l1 1', 'robust, l2 0.75', 'robust, linf 0.1']
  assert rows[0]['A %'] == rows[0]['A, l1 %'] == rows[0]['A, linf %'] == '0.00'
  images, labels, _ = chosen(nets[0].run)
  found = shaham.adversarial_set(nets[0], nets[1:], list(shaham._test_batches(nets[0].run)))
  for net, row in zip(nets, rows):
    right = np.mean(np.argmax(net.logits_fn(images), -1) == labels)
    assert row['test %'] == f'{100 * right:.2f}'
    right = np.argmax(net.logits_fn(found.images), -1) == found.labels
    assert row['A %'] == f'{100 * right.mean():.2f}'
    assert row['A, l2 %'] == f'{100 * right[found.norms == "l2"].mean():.2f}'
  assert f'{len(found.labels)} adversarials' in summary
  assert 'published' not in ''.join(rows[0])


def test_the_curves_are_of_own_adversarials(folder, result):
  nets = result[2]
  images, labels, index = chosen(nets[0].run)
  rows = rows_of(folder, 'accuracy_against_epsilon')
  for norm in nets[1:]:
    own = [row for row in rows if row['norm'] == norm.name]
    assert len(own) == len(shaham.FACTORS)
    for row in (own[0], own[4], own[8]):
      for net in nets[:3]:
        attacked = attacks.fgsm_attack(
            keys.fold_in(net.run.key('attack'), index), net.logits_fn, images, labels,
            epsilon=float(row['epsilon']), norm=norm.name, order='ball_only').images
        expected = 100 * np.mean(np.argmax(net.logits_fn(attacked), -1) == labels)
        assert abs(float(row[f'{net.name} %']) - expected) < 1


def test_the_page_and_the_drawings_are_there(folder, result):
  page = result[1].read_text()
  for words in ('Accuracy on the test split', 'Accuracy against epsilon', 'A single pixel changes',
                'robust, linf 0.1'):
    assert words in page
  for norm in ('l1', 'l2', 'linf'):
    drawing = (folder / 'shaham' / f'{norm}.svg').read_text()
    assert f'{norm} epsilon' in drawing and 'baseline' in drawing


def test_published_rows_and_standardised_radii(result, monkeypatch):
  nets = result[2]
  nets = [net._replace(run=experiment.dataclasses.replace(
      net.run, data=net.run.data._replace(name='mnist'),
      test_data=net.run.test_data._replace(std=(0.25,)))) for net in nets]
  batches = list(shaham._test_batches(nets[0].run))
  found = shaham.adversarial_set(nets[0], nets[1:], batches)
  classify = lambda f, x: np.argmax(f(x), -1)
  table = shaham.accuracy_table(nets, batches, found, classify)
  assert table.columns[-2:] == ['published test %', 'published A %']
  assert table.rows[3][-2:] == ['99.33', '79.96'] and table.rows[0][-1] == '0.00'
  curves = shaham._curve_table(nets, nets[1:], {net.name: np.zeros((4, 9)) for net in nets})
  assert curves.columns[2] == 'epsilon / std' and curves.rows[4][:3] == ['l1', '1', '4']


def test_other_sweeps_are_refused(folder, tmp_path):
  runs = json.loads((folder / report.SWEEP).read_text())['runs']
  for entry in runs:
    (tmp_path / entry['workdir']).symlink_to(folder / entry['workdir'])
  workdir.write_json(tmp_path / report.SWEEP, {'runs': runs[1:]})
  with pytest.raises(UserError, match='its networks are l1, l2, linf; one baseline and one for'):
    shaham.load(tmp_path, jax.devices()[:2])


def test_the_command_trains_the_sweep_and_compares(monkeypatch, capsys, tmp_path):
  calls = []
  monkeypatch.setattr(command.sweep, 'run', lambda folder, points, configs, wanted, redo, **_: (
      calls.append((folder, len(points), wanted)), 0)[1])
  monkeypatch.setattr(command, 'choose_devices', lambda number, sizes: [])
  monkeypatch.setattr(command.shaham, 'compare', lambda folder, devices: ('the table', 'page'))
  assert command.main(['shaham', f'--workdir={tmp_path}']) == 0
  assert calls == [(tmp_path, 4, {'train'})]
  assert 'the table' in capsys.readouterr().out
  monkeypatch.setattr(command.sweep, 'run', lambda *args, **kwargs: 1)
  assert command.main(['shaham', f'--workdir={tmp_path}']) == 1


@pytest.mark.parametrize('words, message', [
    (['--config=configs/smoothadv_digits.py'], r"sweep\(\) point 0: its method is 'smoothadv'"),
    (['--stages=attack'], 'command line: --stages is no flag of this experiment'),
    (['--config={sweep}'], r"sweep\(\) point 1: its method is 'gaussian'; 'standard', and 'adv"),
])
def test_other_sweeps_are_refused_before_they_are_trained(words, message, monkeypatch, tmp_path):
  def train(*args, **kwargs):
    raise AssertionError('it is trained')

  sweep = tmp_path / 'gaussian.py'
  sweep.write_text('from configs.digits import robust as get_config\n'
                   'from configs.base import component\n'
                   "sweep = lambda: [{'method': component('method', name, **kwargs)} for name, "
                   "kwargs in (('standard', {}), ('gaussian', {'sigma': 0.5}))]\n")
  monkeypatch.setattr(command.sweep, 'run', train)
  with pytest.raises(UserError, match=message):
    command.main(['shaham', f'--workdir={tmp_path / "runs"}',
                  *[word.format(sweep=sweep) for word in words]])


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_published_hyper_parameters(name):
  parsed = flags.parse(['launch', f'--config=configs/shaham.py:{name}', '--sweep'])
  config, points = parsed.config, parsed.points
  std = config.data.std[0]
  radii = {c['method'].get('attack', {}).get('norm'): c['epsilon'] / std for _, c in points}
  del radii[None]
  expected = {'mnist': {'l1': 2., 'l2': 2., 'linf': 0.2}, 'cifar10': {'l2': 0.2}}
  np.testing.assert_allclose(list(radii.values()), list(expected[name].values()))
  assert list(radii) == list(expected[name])
  assert config.method.clean_share == 0 and config.method.attack.order == 'ball_only'
  assert points[0][1]['method']['name'] == 'standard'
