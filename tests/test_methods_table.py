"""The table of training methods: its rows, its figures made again from the logs, what fails."""

import csv
import json
import statistics
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from configs import base, digits
from launch import flags, sweep
from robust_jax.config import experiment
from robust_jax.errors import UserError
from robust_jax.training.methods import METHODS

# Of two networks trained for a few steps; the third row lacks its labels.
SMALL = ['--config=configs/methods.py:vat,smoothadv,self_training,seeds=2',
         '--config.model.name=linear', '--config.train.num_steps=30', '--config.train.log_every=5',
         '--config.evaluation.num_images=96', '--config.certify.n=500',
         '--config.certify_images.num_images=96', '--config.extra.labels=nowhere.tsv']
STAGES = {'train', 'attack', 'certify'}


def read(*words):
  return flags.parse(['launch', '--sweep', *words]).sweep


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('methods')
  assert sweep.run(read(*SMALL), path, STAGES, num_devices=2) == 1
  return path


def rows_of(path):
  with open(path, encoding='utf-8') as file:
    return list(csv.DictReader(file))


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def figures(place):
  """{column: figure} of one run, from its logs alone."""
  header, *attacked = lines_of(place / 'attack.jsonl')
  assert header['header']['smoothed'] is False and header['header']['attack']['norm'] == 'l2'
  assert header['header']['attack']['num_steps'] == 20 and len(attacked) == 96
  label = np.array([line['label'] for line in attacked])
  clean = np.array([line['clean'] for line in attacked]) == label
  under = np.array([line['adversarial'] for line in attacked]) == label[:, None]
  certified = [line for line in lines_of(place / 'certify.jsonl') if 'idx' in line]
  assert len(certified) == 96
  radius, right = [], []
  for line in certified:
    chosen = int(np.argmax(line['counts0']))
    p = stats.beta.ppf(0.001, line['counts'][chosen], 501 - line['counts'][chosen])
    right.append(chosen == line['label'] and p >= 0.5)
    radius.append(0.25 * stats.norm.ppf(p) if right[-1] else 0.)
  radius, right = np.array(radius), np.array(right)
  speeds = [line['images_per_second'] for line in lines_of(place / 'metrics.jsonl')
            if line['split'] == 'train' and line['images_per_second']]
  return {'clean': 100 * clean.mean(), 'PGD ℓ₂ 0.25': 100 * (clean & under[:, 0]).mean(),
          'PGD ℓ₂ 0.5': 100 * (clean & under.all(1)).mean(), 'certified 0': 100 * right.mean(),
          'certified 0.25': 100 * (right & (radius >= 0.25)).mean(),
          'certified 0.5': 100 * (right & (radius >= 0.5)).mean(), 'ACR': radius.mean(),
          # 1,442 images in batches of 64.
          's / epoch': 23 * 64 / statistics.median(speeds)}


def test_figures_are_those_of_the_logs(folder):
  rows = rows_of(folder / 'sweep.csv')
  assert [row['config'] for row in rows] == ['vat', 'smoothadv']
  for number, row in enumerate(rows):
    runs = [figures(folder / f'00{2 * number + seed}') for seed in range(2)]
    assert list(row)[2:] == list(runs[0]) and row['n'] == '2'
    for column in runs[0]:
      values = [run[column] for run in runs]
      half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / np.sqrt(2)
      decimals = {'ACR': 3, 's / epoch': 2}.get(column, 1)
      shown = [float(part) for part in row[column].split(' ± ')]
      np.testing.assert_allclose(shown, [np.mean(values), half], atol=0.51 * 10.**-decimals)
  assert float(rows[0]['clean'].split()[0]) > 50


def test_what_fails_is_no_row_and_the_others_are_in_every_format(folder):
  page = (folder / 'sweep.html').read_text()
  for words in ('<b>PGD ℓ₂</b>', 'Certified accuracy', 'href="sweep.csv"', '004', '005'):
    assert words in page, words
  for end in ('md', 'tex'):
    text = (folder / f'sweep.{end}').read_text()
    assert 'smoothadv' in text and 'self' not in text
  assert [(row['config'], row['seed']) for row in rows_of(folder / 'sweep_runs.csv')] == [
      ('vat', '0'), ('vat', '1'), ('smoothadv', '0'), ('smoothadv', '1')]
  image = np.asarray(Image.open(folder / 'sweep.png').convert('L'))
  assert image.shape[1] > 1500 and np.ptp(image) > 200


def test_every_row_is_judged_alike(folder):
  configs = [json.loads((folder / f'00{i}' / 'config.json').read_text()) for i in range(4)]
  for section in ('attack', 'evaluation', 'certify', 'certify_images'):
    assert all(config[section] == configs[0][section] for config in configs)
  assert [config['method']['name'] for config in configs] == ['vat'] * 2 + ['smoothadv'] * 2
  assert [config['seed'] for config in configs] == [0, 1, 0, 1]
  assert [config['sigma'] for config in configs] == [0, 0, 0.25, 0.25]
  assert {config['train']['num_epochs'] for config in configs} == {20}
  assert (configs[0]['evaluation']['sigma'], configs[0]['certify']['sigma']) == (0, 0.25)


def test_the_same_command_goes_on_with_what_is_not_finished(folder, capfd):
  before, lost = (folder / 'sweep.csv').read_text(), folder / '001'
  records = json.loads((lost / 'stages.json').read_text())
  del records['certify']
  (lost / 'stages.json').write_text(json.dumps(records))
  for name in ('certify.jsonl', 'certify.tsv'):
    (lost / name).unlink()
  assert sweep.run(read(*SMALL), folder, STAGES, num_devices=2) == 1
  printed = capfd.readouterr()
  assert (folder / 'sweep.csv').read_text() == before
  assert printed.out.count('done already') == 3 + 2  # Runs, and the stages of the one.
  assert printed.out.count('certify: 96 images') == 1 and (lost / 'certify.jsonl').exists()
  assert '[2/6] ' in printed.out and 'configs/methods.py:vat, seed=1' in printed.out
  # Of each seed, by its own process.
  assert printed.err.count('error: config.extra.labels ') == 2
  assert printed.err.count('error: 2 of 6 runs failed: ') == 1
  for i in (4, 5):
    assert f'{folder}/00{i} (exit status 2)' in printed.err


def test_other_settings_are_refused_before_anything_runs(folder):
  with pytest.raises(UserError, match='certify stage .*config.certify.n .*500.*300'):
    sweep.run(read(*SMALL, '--config.certify.n=300'), folder, STAGES)


def test_rows_are_points_of_sweeps_but_for_seeds():
  points, configs, study = read('--config=configs/methods.py', '--config.train.num_epochs=7.0')
  assert study is None
  assert [point['seed'] for point in points] == [0, 1, 2] * (len(points) // 3)
  rows = [{field: str(value) for field, value in point.items() if field != 'seed'}
          for point in points[::3]]
  names = [row['config'] for row in rows]
  assert {*names} == {f'configs/methods.py:{name}' for name in base.experiments(vars(digits))}
  assert len(rows) - len({*names}) == 3  # The l1, l2 and linf networks of robust.
  assert all(config['train']['num_epochs'] == 7 for config in configs)
  # A method without an experiment on digits would be missing in the table.
  assert {config['method']['name'] for config in configs} == {*METHODS}
  docs = Path('docs/methods.md').read_text(encoding='utf-8')
  for name in names:
    assert f'`{name.partition(":")[2]}`' in docs, name


@pytest.mark.parametrize('rows, words, message', [
    ('vatt', [], "'vatt' .*did you mean vat"),
    ('trades,vatt', [], "'vatt' .*did you mean vat"),
    ('seeds=0', [], "seeds .*'0'"),
    ('seeds=many', [], "seeds .*'many'"),
    ('trades,vat', ['--config.train.batch_size=0'], 'config.train.batch_size .*0'),
    ('trades,vat', ['--config.train.num_epoch=3'], 'config.train.num_epoch .*num_epochs'),
    ('vat', ['--config.seed=3'], '--config.seed '),
    ('robust', ['--config.epsilon=0.3'], '--config.epsilon '),
])
def test_mistakes_are_one_line(rows, words, message):
  with pytest.raises(UserError, match=message) as caught:
    read(f'--config=configs/methods.py:{rows}', *words)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('own, sigma', [(None, 0.25), (0., 0.), (0.5, 0.5)])
def test_the_attacked_noise_is_that_of_certification_unless_set(own, sigma):
  config = read('--config=configs/methods.py:gaussian').configs[0]
  config['evaluation']['sigma'] = own
  run = experiment.build(config, jax.devices()[:2])
  assert run.sigma == 0.25 and run.attacked_sigma == sigma
  assert run.attack.keywords['sigma'] == sigma
