"""The experiment of Shaham et al. on digits: the set, the tables and the curves, made again."""

import csv
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags, sweep
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
  configs = flags.parse(['launch', '--config=configs/shaham.py', '--sweep', *SMALL]).sweep.configs
  for number, config in enumerate(configs):
    run = experiment.build(config, jax.devices()[:2])
    place = path / f'{number:03d}'
    place.mkdir()
    workdir.describe(run, place, [])
    stages.run_stage('train', run, place)
  workdir.write_json(path / report.SWEEP, {
      'runs': [{'workdir': f'{number:03d}', 'point': {}} for number in range(len(configs))]})
  return path


@pytest.fixture(scope='module')
def result(folder):
  page, summary = shaham.compare(folder, 2)
  return summary, page, shaham.load(folder, 2)


def batches(nets):
  return list(shaham.images.batches(nets[0].run.test_data, chosen(nets[0].run)[2], 64, pad=True))


def adversarial_set(nets):
  return shaham.adversarial_set(nets, batches(nets))


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
  found = adversarial_set(result[2])
  f = jax.jit(baseline.logits_fn)
  assert (jnp.argmax(f(found.clean), -1) == found.labels).all()
  predicted = jnp.argmax(f(found.images), -1)
  np.testing.assert_array_equal(predicted, found.predicted[:, 0])
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
  found = adversarial_set(nets)
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
      test_data=dataclasses.replace(net.run.test_data, std=(0.25,)))) for net in nets]
  table = shaham.accuracy_table(nets, batches(nets), adversarial_set(nets))
  assert table.columns[-2:] == ['published test %', 'published A %']
  assert table.rows[3][-2:] == ['99.33', '79.96'] and table.rows[0][-1] == '0.00'
  curves = shaham.curve_table(nets, nets[1:], {net.name: np.zeros((4, 9)) for net in nets})
  assert curves.columns[2] == 'epsilon / std' and curves.rows[4][:3] == ['l1', '1', '4']


def test_nan_is_no_class(result):
  nan = jax.tree_util.Partial(lambda x: jnp.full((len(x), 10), jnp.nan))
  broken = result[2][1]._replace(logits_fn=nan)
  nets = [result[2][0], broken]
  table = shaham.accuracy_table(nets, batches(nets), adversarial_set(nets))
  assert table.rows[1][1:3] == ['0.00', '0.00']
  assert (shaham.own_curves(nets, broken, batches(nets))[1] == 0).all()


def test_other_sweeps_are_refused(folder, tmp_path):
  runs = json.loads((folder / report.SWEEP).read_text())['runs']
  for entry in runs:
    (tmp_path / entry['workdir']).symlink_to(folder / entry['workdir'])
  workdir.write_json(tmp_path / report.SWEEP, {'runs': runs[1:]})
  with pytest.raises(UserError, match='baseline.* l1, l2, linf'):
    shaham.compare(tmp_path, 2)


def test_the_launcher_trains_the_sweep_and_makes_the_study(monkeypatch, capsys, tmp_path):
  given = flags.parse(['launch', '--config=configs/shaham.py', '--sweep', f'--workdir={tmp_path}'])
  assert given.stages == ['train'] and given.sweep.study is shaham
  assert len(given.sweep.points) == 4
  monkeypatch.setattr(shaham, 'compare', lambda folder, devices: (folder / 'page', f'on {devices}'))
  run = lambda status: sweep.run(given.sweep, tmp_path, {'train'}, num_devices=2,
                                 launcher=(sys.executable, '-c', f'raise SystemExit({status})'))
  assert run(0) == 0
  assert f'on 2\nreport: {tmp_path}/page' in capsys.readouterr().out
  assert run(1) == 1
  assert 'report: ' not in capsys.readouterr().out
  # Other stages run where they are asked for; a single network is a run like any other.
  words = ['launch', '--config=configs/shaham.py']
  assert flags.parse([*words, '--sweep', '--stages=train,attack']).stages == ['train', 'attack']
  assert flags.parse(words).stages == [*stages.DEFAULT]


@pytest.mark.parametrize('points, message', [
    ("{'seed': 1}", "point 0.* 'smoothadv'"),
    ("{'method': method('standard')}, {'method': method('gaussian')}", "point 1.* 'gaussian'"),
    ("{'method': method('standard')}", 'got baseline'),
])
def test_other_sweeps_are_refused_before_they_are_trained(points, message, tmp_path):
  path = tmp_path / 'other.py'
  path.write_text('from configs.base import method\nfrom configs.digits import smoothadv\n'
                  f"STUDY = 'shaham'\nget_config = smoothadv\nsweep = lambda: [{points}]\n")
  with pytest.raises(UserError, match=message):
    flags.parse(['launch', f'--config={path}', '--sweep'])


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_published_hyper_parameters(name):
  parsed = flags.parse(['launch', f'--config=configs/shaham.py:{name}', '--sweep'])
  config, configs = parsed.config, parsed.sweep.configs
  std = config.data.std[0]
  radii = {c['method'].get('attack', {}).get('norm'): c['epsilon'] / std for c in configs}
  del radii[None]
  expected = {'mnist': {'l1': 2., 'l2': 2., 'linf': 0.2}, 'cifar10': {'l2': 0.2}}
  np.testing.assert_allclose(list(radii.values()), list(expected[name].values()))
  assert list(radii) == list(expected[name])
  assert config.method.clean_share == 0 and config.method.attack.order == 'ball_only'
  assert configs[0]['method']['name'] == 'standard'
