"""The table of training methods: its rows, its figures made again from the logs, what fails."""

import csv
import json
import statistics
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from launch import methods as command
from launch import sweep
from robust_jax.config import experiment
from robust_jax.errors import UserError
from robust_jax.training.methods import METHODS
from robust_jax.workdir import interrupts

# Of two networks trained for a few steps; the third config lacks its labels.
SMALL = ['--seeds=2', '--devices=2', '--configs=vat,smoothadv,self_training',
         '--config.model.name=linear', '--config.train.num_steps=30', '--config.train.log_every=5',
         '--config.evaluation.num_images=96', '--config.certify.n=500',
         '--config.certify_images.num_images=96', '--config.extra.labels=nowhere.tsv']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('methods')
  assert command.main(['methods', f'--workdir={path}', *SMALL]) == 1
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
  rows = rows_of(folder / 'table.csv')
  assert [row['config'] for row in rows] == ['vat', 'smoothadv']
  for row in rows:
    runs = [figures(folder / row['config'] / str(seed)) for seed in range(2)]
    assert list(row)[2:] == list(runs[0]) and row['n'] == '2'
    for column in runs[0]:
      values = [run[column] for run in runs]
      half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / np.sqrt(2)
      decimals = {'ACR': 3, 's / epoch': 2}.get(column, 1)
      shown = [float(part) for part in row[column].split(' ± ')]
      np.testing.assert_allclose(shown, [np.mean(values), half], atol=0.51 * 10.**-decimals)
  assert float(rows[0]['clean'].split()[0]) > 50


def test_every_row_is_judged_alike(folder):
  configs = [json.loads((folder / name / str(seed) / 'config.json').read_text())
             for name in ('vat', 'smoothadv') for seed in range(2)]
  for section in ('attack', 'evaluation', 'certify', 'certify_images'):
    assert all(config[section] == configs[0][section] for config in configs)
  assert [config['seed'] for config in configs] == [0, 1, 0, 1]
  assert [config['sigma'] for config in configs] == [0, 0, 0.25, 0.25]
  assert {config['train']['num_epochs'] for config in configs} == {20}
  assert (configs[0]['evaluation']['sigma'], configs[0]['certify']['sigma']) == (0, 0.25)


def test_what_fails_is_named_and_the_others_are_there(folder, capsys):
  page = (folder / 'table.html').read_text()
  for words in ('<b>PGD ℓ₂</b>', 'Certified accuracy', 'href="table.csv"'):
    assert words in page, words
  for end in ('md', 'tex'):
    text = (folder / f'table.{end}').read_text()
    assert 'smoothadv' in text and 'self' not in text
  assert [(row['config'], row['seed']) for row in rows_of(folder / 'table_runs.csv')] == [
      ('vat', '0'), ('vat', '1'), ('smoothadv', '0'), ('smoothadv', '1')]
  image = np.asarray(Image.open(folder / 'table.png').convert('L'))
  assert image.shape[1] > 1500 and np.ptp(image) > 200


def test_the_same_command_goes_on(folder, capfd):
  before = (folder / 'table.csv').read_text()
  lost = folder / 'vat' / '1'
  records = json.loads((lost / 'stages.json').read_text())
  del records['certify']
  (lost / 'stages.json').write_text(json.dumps(records))
  for name in ('certify.jsonl', 'certify.tsv'):
    (lost / name).unlink()
  assert command.main(['methods', f'--workdir={folder}', *SMALL]) == 1
  printed = capfd.readouterr()
  assert printed.out.count('done already') == 3 + 2  # Runs, and the stages of the one.
  assert printed.out.count('certify: 96 images') == 1 and (lost / 'certify.jsonl').exists()
  assert (folder / 'table.csv').read_text() == before
  # Of each seed, by its own process.
  assert printed.err.count("error: config.extra.labels is 'nowhere.tsv', which") == 2
  assert printed.err.count('self_training/0 failed: exit status 2') == 1


def test_other_settings_are_refused_before_anything_runs(folder):
  with pytest.raises(UserError, match='certify stage ran with another config .config.certify.n'):
    command.main(['methods', f'--workdir={folder}', *SMALL, '--config.certify.n=300'])


def test_any_end_of_a_run_costs_that_run_only(tmp_path, capsys, monkeypatch):
  end = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
  monkeypatch.setattr(sweep, 'LAUNCHER', (sys.executable, '-c', end))
  assert command.main(['methods', f'--workdir={tmp_path}', '--configs=vat']) == 1
  error = capsys.readouterr().err
  for seed in range(3):
    assert f'error: {tmp_path}/vat/{seed} failed: exit status -11' in error
  assert not (tmp_path / 'table.html').exists()


def test_an_interruption_ends_them_all(tmp_path, capsys, monkeypatch):
  end = f'raise SystemExit({interrupts.Interrupted.exit_status})'
  monkeypatch.setattr(sweep, 'LAUNCHER', (sys.executable, '-c', end))
  with pytest.raises(interrupts.Interrupted, match='vat/0'):
    command.main(['methods', f'--workdir={tmp_path}', '--configs=vat'])
  assert '[2/3]' not in capsys.readouterr().out


def test_rows_are_points_of_sweeps_but_for_seeds():
  rows = [row for name in command.parse(['methods'])[0].configs
          for row in command.read_rows(name, 2, ['--config.train.num_epochs=7.0'])]
  names = [row.name for row in rows]
  assert len({*names}) == len({row.folders('x')[0] for row in rows}) == len(rows)
  assert {'smoothadv', 'smoothadv_ddn', 'robust, method=standard',
          'robust, norm=l1, epsilon=1.0'} <= {*names}
  for row in rows:
    assert [config['seed'] for config in row.configs] == [0, 1]
    assert row.configs[0]['train']['num_epochs'] == 7
  # A method without a digits config would be missing in the table.
  assert {row.configs[0]['method']['name'] for row in rows} == {*METHODS}


@pytest.mark.parametrize('words, message', [
    (['--configs=vatt'], "--configs has 'vatt'; attack_then_noise, "),
    (['--configs=trade'], '; did you mean trades?'),
    (['--config.train.batch_size=0'], 'config.train.batch_size must be an integer'),
    (['--seeds=0'], '--seeds is 0; 1 or more is allowed'),
    (['--stages=train'], "command line: '--stages=train' is no flag; --workdir"),
    (['--config.train.num_epoch=3'], 'config.train.num_epoch is not a field'),
    (['--configs=vat', '--config.seed=3'], '--config.seed is given, but'),
    (['--configs=robust', '--config.epsilon=0.3'], '--config.epsilon is given, but'),
])
def test_mistakes_are_one_line(words, message, tmp_path):
  with pytest.raises(UserError) as caught:
    command.main(['methods', f'--workdir={tmp_path / "new"}', *words])
  assert message in str(caught.value) and '\n' not in str(caught.value)
  assert not (tmp_path / 'new').exists()


def test_the_page_has_the_markers_and_every_config():
  text = command.DOCS.read_text(encoding='utf-8')
  assert text.count('<!-- measured -->\n') == text.count('<!-- end -->') == 1
  for name in command.parse(['methods'])[0].configs:
    assert f'`{name}`' in text, name


@pytest.mark.parametrize('own, sigma', [(None, 0.25), (0., 0.), (0.5, 0.5)])
def test_the_attacked_noise_is_that_of_certification_unless_set(own, sigma):
  row, = command.read_rows('gaussian', 1, [])
  config = row.configs[0]
  config['evaluation']['sigma'] = own
  run = experiment.build(config, jax.devices()[:2])
  assert run.sigma == 0.25 and run.attacked_sigma == sigma
  assert run.attack.keywords['sigma'] == sigma
