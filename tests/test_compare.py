"""Several runs side by side: the figures against NumPy and SciPy, and what is not compared."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from test_report import KINDS, Page, no_files, write_workdir  # noqa: F401

from robust_jax import analysis, report
from robust_jax.analysis import Best
from robust_jax.analysis import __main__ as command_line
from robust_jax.analysis.comparison import Column
from robust_jax.certification import log
from robust_jax.errors import UserError
from robust_jax.report import comparison, comparison_page, contents, groups


def make(path, *, smoothed=True, method='smoothadv', num_noise=4, certify=None, **more):
  """A made-up run of a few seconds' training."""
  sections = {'method': {'name': method, 'num_noise': num_noise}}
  if certify:
    sections['certify'] = {'name': 'fixed', 'n': 10_000, 'alpha': 0.001, 'sigma': None} | certify
  kind = KINDS['smoothed' if smoothed else 'unsmoothed']
  return write_workdir(path, **{**kind, 'num_images': 120, 'num_epochs': 2, **more},
                       sections=sections)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Three seeds of a config, and three of a better one."""
  root = tmp_path_factory.mktemp('runs')
  return [make(root / f'{name}{seed}', num_noise=num_noise, seed=seed + 10 * num_noise,
               better=better)
          for name, num_noise, better in (('a', 4, 0.0), ('b', 8, 0.15)) for seed in range(3)]


def panel_of(*paths):
  panel, = comparison.compare(contents.load_all(paths))
  return panel


def column(panel, title, name='figures'):
  """{label: cell} of a column of a table."""
  table = comparison.tables(panel)[name][1]
  i = table.columns.index(title)
  return {row[0]: row[i] for row in table.rows}


def logs(paths):
  return [log.read(path / 'certify.jsonl') for path in paths]


def attacks(paths):
  return [analysis.read_attack(path / 'attack.jsonl') for path in paths]


def test_figures_are_means_with_student_intervals(runs):
  panel = panel_of(*runs)
  assert [(group.label, len(group.runs)) for group in panel.groups] == [
      ('a', 3), ('b', 3)]
  expected = {
      'clean': lambda i: [100 * analysis.certified_accuracy(one, [0])[0] for one in logs(runs)[i]],
      'certified 0.5': lambda i: [100 * analysis.certified_accuracy(one, [0.5])[0]
                                  for one in logs(runs)[i]],
      'ACR': lambda i: [analysis.average_certified_radius(one) for one in logs(runs)[i]],
      'PGD ℓ₂ 0.75': lambda i: [100 * analysis.robust_accuracy(one)[2] for one in attacks(runs)[i]],
  }
  for title, figures in expected.items():
    for label, i in (('a', slice(0, 3)), ('b', slice(3, 6))):
      values = figures(i)
      low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
      decimals = 3 if title == 'ACR' else 1
      assert column(panel, title)[label] == (
          f'{np.mean(values):.{decimals}f} ± {(high - low) / 2:.{decimals}f}')
  # 50 steps of 64 images an epoch, at 810 to 900 images a second.
  seconds = float(column(panel, 's / epoch')['a'].split(' ± ')[0])
  assert 3.5 < seconds < 4


def best(panel, title):
  return [label for label, cell in column(panel, title).items() if isinstance(cell, Best)]


def test_the_best_of_a_column_is_marked(runs):
  panel = panel_of(*runs)
  assert best(panel, 'ACR') == ['b'] and best(panel, 's / epoch') == []
  values = [[np.zeros(4) for _ in group.runs] for group in panel.groups]
  equal = panel._replace(columns=[Column('ACR', values)])
  assert best(equal, 'ACR') == []
  values[-1][0] = np.ones(4)
  assert best(equal, 'ACR') == ['b']
  alone = panel_of(*runs[:3])
  tables = comparison.tables(alone)
  assert not any(best(alone, title) for title in tables['figures'][1].columns[1:])
  assert comparison.title([alone]) == '3 runs of one config on digits'
  assert alone.groups[0].label == 'a' and list(tables) == ['figures', 'runs']


def test_differences_over_runs_are_welch_and_over_images_paired(runs):
  values = [analysis.average_certified_radius(one) for one in logs(runs)]
  test = stats.ttest_ind(values[3:], values[:3], equal_var=False)
  interval = test.confidence_interval()
  cells = column(panel_of(*runs), 'ACR', 'differences')
  assert cells == {'b': f'{np.mean(values[3:]) - np.mean(values[:3]):+.3f} ± '
                   f'{(interval.high - interval.low) / 2:.3f}'}
  panel = panel_of(runs[0], runs[3])
  assert column(panel, 'interval over', 'differences') == {'b0': 'images'}
  first, second = logs([runs[0], runs[3]])
  right = [one.correct & (one.radius >= 0.5) for one in (first, second)]
  assert column(panel, 'certified 0.5', 'differences')['b0'] == (
      '{:+.1f} [{:+.1f}, {:+.1f}]'.format(
          *(100 * value for value in analysis.paired_difference(*right[::-1]))))
  # Against a single run, the mean over seeds is compared image by image.
  panel = panel_of(runs[0], *runs[3:])
  each = [one.correct * one.radius for one in logs([runs[0], *runs[3:]])]
  interval = stats.ttest_rel(np.mean(each[1:], axis=0), each[0]).confidence_interval()
  assert column(panel, 'ACR', 'differences')['b'] == (
      f'{np.mean(each[1:]) - np.mean(each[0]):+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]')


def test_figures_are_on_the_images_that_all_runs_have(runs, tmp_path):
  fewer = make(tmp_path / 'fewer', num_noise=8, seed=3, num_images=80)
  panel = panel_of(runs[0], fewer)
  first, second = logs([runs[0], fewer])
  cells = column(panel, 'ACR')
  assert cells['a0'] == f'{np.mean((first.correct * first.radius)[:80]):.3f}'
  assert cells['fewer'].startswith(f'{analysis.average_certified_radius(second):.3f}')
  assert any('Of 80 and 120 certified images, certified accuracies and ACR are on the 80' in note
             for note in panel.notes)
  assert not any('Clean accuracy' in note for note in panel.notes)
  lines = (fewer / 'attack.jsonl').read_text().splitlines(keepends=True)
  (fewer / 'attack.jsonl').write_text(''.join(lines[:41]))
  panel = panel_of(runs[0], fewer)
  assert any('Of 40 and 120 attacked images, accuracies under attack are on the 40' in note
             for note in panel.notes)
  assert 'Clean accuracy is on 80 images.' in panel.notes
  # Without a common image nothing is compared.
  rewrite(fewer / 'certify.jsonl', lambda row: row | {'idx': row['idx'] + 1000})
  panel = panel_of(runs[0], fewer)
  assert any('no certified image in common' in note for note in panel.notes)
  assert best(panel, 'ACR') == []
  assert 'ACR' not in comparison.tables(panel)['differences'][1].columns
  assert 'PGD ℓ₂ 1' in comparison.tables(panel)['differences'][1].columns
  rewrite(fewer / 'certify.jsonl', lambda row: row | {'idx': row['idx'] - 1000, 'label': 3,
                                                      'correct': int(row['predict'] == 3)})
  with pytest.raises(UserError, match='labels of certified images'):
    panel_of(runs[0], fewer)


def rewrite(path, change):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(''.join(
      json.dumps(change(line) if 'idx' in line else line) + '\n' for line in lines))


def test_runs_on_other_datasets_are_apart(runs, tmp_path):
  other = make(tmp_path / 'other', dataset='mnist')
  panels = comparison.compare(contents.load_all([runs[0], other, runs[3]]))
  assert [(panel.dataset, len(panel.groups)) for panel in panels] == [('digits', 2), ('mnist', 1)]
  page, printed = report.compare([runs[0], other, runs[3]], tmp_path / 'apart.html')
  text = Page(page.read_text()).text
  assert 'The runs are on different datasets, which are not compared' in text
  assert 'Figures on digits' in text and 'Figures on mnist' in text
  assert {path.name for path in tmp_path.glob('apart*')} == {'apart.html', *(
      f'apart_{name}.{end}' for name in ('digits', 'mnist')
      for end in ('csv', 'md', 'tex', 'png')), *(
          f'apart_{name}_{chart}.{end}' for name in ('digits', 'mnist')
          for chart in ('certified', 'probability', 'attack') for end in ('svg', 'pdf'))}
  assert '3 runs on digits and mnist' in printed and 'mnist. One training run each' in printed


def test_other_draws_are_shown_but_not_compared(runs, tmp_path):
  more = make(tmp_path / 'more', certify={'n': 100_000})
  panel = panel_of(runs[0], more)
  assert [group.label for group in panel.groups] == ['a0', 'more']
  assert any('The certificates differ in n (10,000 and 100,000)' in note for note in panel.notes)
  assert best(panel, 'certified 0.5') == []
  assert 'certified 0.5' not in comparison.tables(panel)['differences'][1].columns
  (more / 'attack.jsonl').unlink()
  assert 'differences' not in comparison.tables(panel_of(runs[0], more))


def with_grid(folder, radii):
  """Turns the log of a run into that of a certifier that has decided these radii."""
  path = folder / 'certify.jsonl'
  header, *rows = map(json.loads, path.read_text().splitlines())
  header['header']['settings'] |= {'name': 'sequential', 'radii': radii}
  for row in rows:
    row['radius'] = max(radius for radius in [0., *radii] if radius <= row['radius'])
  path.write_text(''.join(json.dumps(row) + '\n' for row in [header, *rows]))
  return folder


def test_only_what_a_grid_has_decided_is_shown(runs, tmp_path):
  one = with_grid(make(tmp_path / 'one', num_noise=8), [64 / 255, 128 / 255])
  other = with_grid(make(tmp_path / 'other', num_noise=2), [0.25, 0.5, 1.5])
  both = contents.load_all([one, other])
  radii = comparison.radii([run.certified for run in both])
  np.testing.assert_allclose(radii, [0.25, 64 / 255, 0.5, 128 / 255, 1.5], atol=1e-9)
  panel = panel_of(runs[0], one, other)
  accuracy = 100 * np.mean(both[0].certified.correct & (both[0].certified.radius >= 128 / 255))
  assert 0 < accuracy < 100
  shown = column(panel, 'certified 0.501961')
  assert shown['one'] == f'{accuracy:.1f}' and shown['other'] is None
  assert column(panel, 'certified 1.5')['one'] is None, 'nothing is known'
  assert column(panel, 'certified 0.25')['one'] is None, 'only a bound is known'
  assert all(column(panel, 'certified 0.25')[name] is not None for name in ('a0', 'other'))
  assert any('the ACR is a lower bound' in note for note in panel.notes)
  # A log without a grid has round radii, however few another one has decided.
  alone = with_grid(make(tmp_path / 'alone', num_noise=8), [2.])
  assert {0.25, 0.5, 2.} <= set(comparison.radii(
      [run.certified for run in contents.load_all([runs[0], alone])]))


@pytest.mark.usefixtures('no_files')
def test_nothing_certified_has_an_axis_all_the_same(runs, tmp_path):
  folders = [make(tmp_path / name, num_noise=m, better=-9.) for name, m in (('a', 2), ('b', 4))]
  page, _ = report.compare(folders, tmp_path / 'compare.html')
  chart = re.search(r'<svg[^>]*>(?:(?!</svg>).)*of the perturbation(?:(?!</svg>).)*</svg>',
                    page.read_text(), re.DOTALL)
  assert chart and '>0.00</text>' in chart.group(0) or '>0</text>' in chart.group(0)


def test_another_attack_is_another_column(runs, tmp_path):
  other = make(tmp_path / 'other', num_noise=8)
  lines = (other / 'attack.jsonl').read_text().splitlines()
  header = json.loads(lines[0])
  header['header']['attack']['num_steps'] = 40
  header['header']['epsilons'][-1] = 2.0
  (other / 'attack.jsonl').write_text('\n'.join([json.dumps(header), *lines[1:]]) + '\n')
  panel = panel_of(runs[0], other)
  assert column(panel, 'PGD ℓ₂, num_steps=20 1')['other'] is None
  assert column(panel, 'PGD ℓ₂, num_steps=40 2')['a0'] is None
  assert list(panel.attacks) == ['PGD ℓ₂, num_steps=20', 'PGD ℓ₂, num_steps=40']
  # Of different attacks other radii are no matter.
  assert not any('measured different radii' in note for note in panel.notes)
  header['header']['attack']['num_steps'] = 20
  (other / 'attack.jsonl').write_text('\n'.join([json.dumps(header), *lines[1:]]) + '\n')
  assert any('measured different radii' in note for note in panel_of(runs[0], other).notes)


def test_attacks_on_one_classifier_are_rows(tmp_path):
  paths = [make(tmp_path / f'steps{steps}', better=better)
           for steps, better in ((5, 0.1), (80, 0.), (10, 0.05))]
  for path, steps, norm in zip(paths, (5, 80, 10), ('l2', 'l2', 'linf')):
    edit(path / 'config.json', lambda config, steps=steps: config['attack'].update(num_steps=steps))
    header, *lines = (path / 'attack.jsonl').read_text().splitlines()
    header = json.loads(header)
    header['header']['attack'].update(num_steps=steps, norm=norm)
    header['header'].update(classifier_sha256='a', checkpoint_step=7)
    (path / 'attack.jsonl').write_text('\n'.join([json.dumps(header), *lines]) + '\n')
  panel = panel_of(*paths)
  assert list(panel.attacks) == ['attack ℓ₂', 'attack ℓ∞']
  # By norm, as radii of different norms have nothing in common; the largest is the weakest attack.
  for title, logs_of in (('attack ℓ₂ 0.75', paths[:2]), ('attack ℓ∞ 0.75', paths[2:])):
    expected = {path.name: f'{100 * analysis.robust_accuracy(one)[2]:.1f}'
                for path, one in zip(logs_of, attacks(logs_of))}
    assert {label: cell for label, cell in column(panel, title).items() if cell} == expected
    assert best(panel, title) == []
  # Other parameters, or other noise: other columns.
  for name, value in (('classifier_sha256', 'b'), ('classifier_sha256', None), ('sigma', 0.5)):
    shutil.copytree(paths[0], tmp_path / name / str(value))
    other = tmp_path / name / str(value) / 'attack.jsonl'
    header, rest = other.read_text().split('\n', 1)
    header = json.loads(header)
    header['header'][name] = value
    other.write_text(json.dumps(header) + '\n' + rest)
    assert list(panel_of(other.parent, paths[1]).attacks) == [
        'PGD ℓ₂, num_steps=5', 'PGD ℓ₂, num_steps=80']


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


@pytest.mark.usefixtures('no_files')
def test_missing_and_unfinished_stages(runs, tmp_path):
  plain = make(tmp_path / 'plain', smoothed=False, method='standard')
  half = make(tmp_path / 'half', num_noise=8, seed=9)
  record = json.loads((half / 'stages.json').read_text())
  record['certify']['status'] = record['train']['status'] = 'running'
  (half / 'stages.json').write_text(json.dumps(record))
  (tmp_path / 'empty').mkdir()
  panel = panel_of(runs[0], plain, runs[3], half, tmp_path / 'empty')
  assert f'{tmp_path}/empty: nothing is measured yet; it is left out.' in panel.notes
  assert any(note.startswith(f'{half}: the certify stage is not finished') for note in panel.notes)
  cells = column(panel, 'ACR')
  assert cells['plain'] is None
  assert cells['b0 … half'].endswith(' (n=1)')
  # Every run was attacked, so clean accuracy is that of the attacked images for all.
  attack, = attacks([plain])
  assert column(panel, 'clean')['plain'].startswith(
      f'{100 * analysis.clean_accuracy(attack):.1f}')
  assert column(panel, 'PGD ℓ∞ 8/255')['plain']
  for name in ('metrics.jsonl', 'attack.jsonl', 'certify.jsonl', 'certify.tsv', 'run.json',
               'config.json', 'stages.json'):
    content = (half / name).read_bytes()
    (half / name).unlink()
    page, printed = report.compare([runs[0], half], tmp_path / 'compare.html')
    Page(page.read_text())
    assert 'nan' not in printed
    (half / name).write_bytes(content)
  with pytest.raises(UserError, match='nothing is measured yet'):
    report.compare([tmp_path / 'empty'])


def test_rows_of_a_sweep_are_named_by_their_experiments(tmp_path):
  """As in the table of methods: plain networks are attacked, their smoothed versions certified."""
  points = [('trades', 'configs/digits.py:trades', {'num_noise': 4}),
            ('robust-1', 'configs/digits.py:robust', {'num_noise': 1}),
            ('robust-2', 'configs/digits.py:robust', {'num_noise': 2}),
            ('shaham', 'configs/shaham.py', {'num_noise': 4})]
  runs = []
  for name, config, fields in points:
    for seed in range(2):
      folder = make(tmp_path / f'{name}{seed}', method=name, seed=seed, **fields)
      lines = (folder / 'attack.jsonl').read_text().replace('"smoothed": true', '"smoothed": false')
      (folder / 'attack.jsonl').write_text(lines)
      runs.append({'workdir': folder.name, 'point': {'config': config, 'seed': seed}})
  (tmp_path / 'sweep.json').write_text(json.dumps({'runs': runs}))
  panel = panel_of(tmp_path)
  assert [group.label for group in panel.groups] == [
      'trades', 'robust, robust-1, num_noise=1', 'robust, robust-2, num_noise=2', 'shaham']
  assert all(len(group.runs) == 2 for group in panel.groups)
  assert [each.title for each in panel.columns] == [
      'clean', 'PGD ℓ₂ 0.25', 'PGD ℓ₂ 0.5', 'PGD ℓ₂ 0.75', 'PGD ℓ₂ 1', 'certified 0',
      'certified 0.25', 'certified 0.5', 'certified 0.75', 'ACR', 's / epoch']
  both = [tmp_path / f'shaham{seed}' for seed in range(2)]
  for title, values in (
      ('clean', [analysis.clean_accuracy(one) for one in attacks(both)]),
      ('certified 0', [analysis.certified_accuracy(one, 0.) for one in logs(both)])):
    mean, half = analysis.mean_interval(100 * np.array(values))
    assert column(panel, title)['shaham'].rstrip('*') == f'{mean:.1f} ± {half:.1f}'
  page, printed = report.compare([tmp_path])
  assert page == tmp_path / 'sweep.html' and 'robust, robust-1' in printed
  assert 'is the network itself; certified is its smoothed' in page.read_text()
  with Image.open(tmp_path / 'sweep.png') as image:
    assert image.width > 2000
  assert {f'sweep{name}' for name in ('.csv', '.md', '.tex', '_runs.csv', '_certified.svg',
                                      '_certified.pdf', '_attack.svg')} <= {
      path.name for path in tmp_path.iterdir()}


def test_only_training_metrics(runs, tmp_path):
  paths = []
  for seed in range(2):
    paths.append(make(tmp_path / str(seed), seed=seed))
    for name in ('attack.jsonl', 'certify.jsonl', 'certify.tsv'):
      (paths[-1] / name).unlink()
  panel = panel_of(*paths)
  assert [each.title for each in panel.columns] == ['test', 's / epoch']
  page, _ = report.compare(paths, tmp_path / 'compare.html')
  assert 'id="robustness"' not in page.read_text() and 'id="training"' in page.read_text()


def test_accuracies_under_other_noise_are_not_compared(tmp_path):
  def panel(*smoothed):
    paths = [make(tmp_path / f'{number}{is_smoothed}', smoothed=is_smoothed, seed=number,
                  method=f'method{number}') for number, is_smoothed in enumerate(smoothed)]
    for number, path in enumerate(paths):
      for name in ('attack.jsonl', 'certify.jsonl', 'certify.tsv'):
        (path / name).unlink(missing_ok=True)
      lines = (path / 'metrics.jsonl').read_text().splitlines()
      rows = [json.loads(line) for line in lines]
      rows[-1]['accuracy'] -= number / 10
      (path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return panel_of(*paths), paths

  mixed, paths = panel(True, False)
  noisy, clean = (panel(kind, kind)[0] for kind in (True, False))
  assert mixed.columns[0].title == 'test' and len(column(mixed, 'test')) == 2
  assert best(mixed, 'test') == [] and len(best(noisy, 'test')) == len(best(clean, 'test')) == 1
  assert 'differences' not in comparison.tables(mixed) and 'differences' in comparison.tables(clean)
  _, printed = report.compare(paths, tmp_path / 'compare.html')
  assert re.search('note: .*test.* sigma 0.25: .* no noise: ', printed)
  assert any('sigma 0.25' in note for note in noisy.notes) and not clean.notes


def test_seeds_of_exactly_one_figure_are_noted(runs, tmp_path):
  paths = [shutil.copytree(runs[0], tmp_path / str(seed)) for seed in range(2)]
  for seed, path in enumerate(paths):
    config = json.loads((path / 'config.json').read_text())
    (path / 'config.json').write_text(json.dumps({**config, 'seed': seed}))
  equal = panel_of(*paths)
  assert '± 0.0' in next(iter(column(equal, 'clean').values()))
  assert sum('±' in note for note in equal.notes) == 1
  assert not any('±' in note for note in panel_of(*runs).notes + panel_of(runs[0], runs[3]).notes)


def test_long_and_unlike_training_curves(tmp_path):
  paths = [make(tmp_path / str(seed), seed=seed, num_images=10, num_epochs=100)
           for seed in range(2)]
  for path, every in zip(paths, (1, 3)):  # One is logged at every third of the steps.
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    kept = [line for line in lines if json.loads(line)['split'] == 'test'
            or json.loads(line)['step'] % (10 * every) == 0]
    (path / 'metrics.jsonl').write_text('\n'.join(kept[:len(kept) * 2 // every]) + '\n')
  page, _ = report.compare(paths, tmp_path / 'compare.html')
  source = page.read_text()
  assert source.count('class="key c0">0 … 1 (2 runs)</span>') == 7
  # Without a step in common there is no mean, and one of the thin lines has the name.
  (paths[1] / 'metrics.jsonl').write_text(
      (paths[1] / 'metrics.jsonl').read_text().replace('"epoch": ', '"epoch": 1000'))
  source = report.compare(paths, tmp_path / 'compare.html')[0].read_text()
  assert source.count('class="key c0 thin">0 … 1 (2 runs)</span>') == 4
  assert len(source) < 200_000


# Groups and their labels.


def label_all(*configs):
  runs = [contents.Contents(contents.Path(f'runs/{i}'), config, {}, {}, {}, swept=True)
          for i, config in enumerate(configs)]
  return [group.label for group in groups.group(runs)]


def test_labels_are_what_differs():
  base = {'seed': 0, 'sigma': 0.25, 'epsilon': 8 / 255, 'data': {'data_dir': 'x'},
          'method': {'name': 'smoothadv', 'num_noise': 2}, 'attack': {'num_steps': 20},
          'train': {'num_steps': 0, 'log_every': 5}}
  change = lambda **parts: {**base, **{
      name: {**base[name], **value} if isinstance(value, dict) else value
      for name, value in parts.items()}}
  assert label_all(base) == ['smoothadv']
  assert label_all(base, change(seed=1, data={'data_dir': 'y'}, train={'log_every': 9})) == [
      'smoothadv']
  assert label_all(base, change(sigma=0.5), change(sigma=0.5, epsilon=0.5)) == [
      'sigma=0.25, epsilon=8/255', 'sigma=0.5, epsilon=8/255', 'sigma=0.5, epsilon=0.5']
  assert label_all(base, change(method={'name': 'gaussian', 'num_noise': 1}),
                   change(method={'num_noise': 4})) == [
      'smoothadv, num_noise=2', 'gaussian, num_noise=1', 'smoothadv, num_noise=4']
  # A method's own fields say nothing beside its name.
  assert label_all(base, {**base, 'method': {'name': 'mart', 'beta': 6.}}) == ['smoothadv', 'mart']
  # Two fields of one name are told apart by their sections.
  assert label_all(base, change(attack={'num_steps': 40})) == [
      'attack.num_steps=20', 'attack.num_steps=40']
  # The same seed twice is no mean over seeds, and without configs there is nothing to tell.
  assert label_all(base, base, change(sigma=1.)) == ['0', '1', 'sigma=1']
  assert label_all({}, {}, base) == ['0', '1', 'smoothadv']


@pytest.mark.parametrize('names, label', [
    (['gauss'], 'gauss'), (['gauss_0', 'gauss_1'], 'gauss'), (['sigma=0.25'], 'sigma=0.25'),
    (['000', '001', '002'], '000 … 002'), (['a', 'b'], 'a … b')])
def test_runs_have_the_names_of_their_folders(names, label):
  runs = [contents.Contents(contents.Path(f'runs/{name}'), {'seed': seed, 'sigma': 0.5}, {}, {}, {})
          for seed, name in enumerate(names)]
  found, = groups.group(runs)
  assert found.label == label
  other = runs[0]._replace(path=contents.Path('others/x'), config={'sigma': 1.})
  assert [group.label for group in groups.group([*runs, other])] == [label, 'x']
  # The same name twice is told apart by the whole path.
  again = other._replace(path=contents.Path(f'others/{label}'))
  assert len({group.label for group in groups.group([*runs, again])}) == 2


def test_the_seeds_of_a_sweep_have_the_name_of_its_folder_where_theirs_is_taken():
  config = {'method': {'name': 'smoothadv'}, 'sigma': 0.5}
  runs = [contents.Contents(contents.Path(f'runs/seeds/00{seed}'), {**config, 'seed': seed}, {}, {},
                            {}, swept=True) for seed in range(3)]
  other = contents.Contents(contents.Path('runs/smoothadv'), {**config, 'sigma': 1.}, {}, {}, {})
  assert [group.label for group in groups.group([*runs, other])] == ['seeds', 'smoothadv']


# The page and the command.


def test_page_is_whole_and_asks_for_nothing_else(runs, tmp_path):
  report.build(runs[0])
  page, printed = report.compare(runs, tmp_path / 'compare.html')
  source = page.read_text()
  assert not re.search(r'https?://|url\(|@import|<script', source) and len(source) < 400_000
  parsed = Page(source)
  assert len(parsed.ids) == len(set(parsed.ids))
  assert [one for one in parsed.ids if '-' not in one] == [
      'main', 'figures', 'robustness', 'training', 'fields', 'soundness', 'runs']
  for address in parsed.addresses:
    assert address.startswith('data:') or address[1:] in parsed.ids or (
        tmp_path / address).is_file(), address
  assert not re.search(r'\b(nan|inf)\b', parsed.text)
  best = [attrs for tag, attrs in parsed.tags if tag == 'td' and 'best' in attrs['class']]
  rows = list(csv.reader((tmp_path / 'compare.csv').read_text().splitlines()))
  assert len(best) > 5 and len(rows) == 3 and rows[0][:3] == ['config', 'n', 'clean']
  assert all(cell in parsed.text for row in rows for cell in row)
  assert r'\textbf{' in (tmp_path / 'compare.tex').read_text()
  assert '**' in (tmp_path / 'compare.md').read_text() and '*' in printed
  # A thick line for each config, a thin one for each run, in each of six charts.
  panel = panel_of(*runs)
  for chart in comparison_page.robustness_charts(panel) + comparison_page.training_charts(panel):
    assert [line.thin for line in chart.lines] == [True] * 6 + [False] * 2
    assert [name for name, _ in chart.legend] == ['a (3 runs)', 'b (3 runs)']


def test_names_cannot_break_the_page(runs, tmp_path):
  bad = '<script>alert(1)</script>"&$title'
  hostile = make(tmp_path / '<b>"run', method=bad, dataset=bad)
  page, _ = report.compare([runs[0], hostile, make(tmp_path / 'b', method=bad, seed=1)],
                           tmp_path / 'a"<i>.html')
  parsed = Page(page.read_text())
  assert not [tag for tag, _ in parsed.tags if tag in ('script', 'b"run', 'i')]
  assert bad in parsed.text and '$title' in parsed.text


def test_many_configs_share_one_legend_and_look_different(tmp_path):
  paths = [make(tmp_path / str(i), num_noise=i, num_images=10) for i in range(1, 11)]
  page, _ = report.compare(paths, tmp_path / 'compare.html')
  parsed = Page(page.read_text())
  charts = comparison_page.robustness_charts(panel_of(*paths))
  assert all(len({line.style for line in chart.lines}) == 10 for chart in charts)
  keys = [attrs['class'] for tag, attrs in parsed.tags if 'key ' in attrs.get('class', '')]
  assert len(keys) == 10 + 2 * 10  # Beside the table, and above both groups of charts.


@pytest.mark.usefixtures('no_files')
def test_the_command(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  command_line.main(['runs', str(runs[1])])
  assert f'report: {runs[1]}/report.html' in capsys.readouterr().out
  command_line.main(['runs', str(runs[0]), str(runs[3])])
  assert 'report: compare.html' in capsys.readouterr().out
  assert (tmp_path / 'compare.html').exists() and (tmp_path / 'compare.csv').exists()
  folder = runs[0].parent
  (folder / 'sweep.json').write_text(json.dumps({'runs': [
      {'workdir': path.name, 'point': {}} for path in runs]}))
  command_line.main(['runs', str(folder)])
  printed = capsys.readouterr().out
  assert '6 runs of 2 configs on digits' in printed and f'report: {folder}/sweep.html' in printed
  # A folder of runs that is no sweep's stands for all of them too.
  (folder / 'sweep.json').rename(tmp_path / 'sweep.json')
  command_line.main(['runs', str(folder), '--output=some.html'])
  assert '6 runs of 2 configs' in capsys.readouterr().out
  (tmp_path / 'sweep.json').rename(folder / 'sweep.json')
  # A run that is named twice, once by its sweep, is there once.
  command_line.main(['runs', str(runs[0]), str(folder), '--output=all.html'])
  assert '6 runs of 2 configs' in capsys.readouterr().out
  (tmp_path / 'empty').mkdir()
  for words, message in (
      (['empty'], 'no run in'),
      (['absent'], 'no such folder'), ([str(runs[0]), 'absent'], 'no such folder'),
      ([str(runs[0]), '--output=x.html'], '--output needs several'),
      ([str(runs[0]), str(runs[1]), '--output=no/where.html'], '--output: no/where.html')):
    with pytest.raises(SystemExit) as caught:
      command_line.main(['runs', *words])
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and message in printed and printed.count('\n') == 1
  (folder / 'sweep.json').write_text('{}')
  with pytest.raises(UserError, match='sweep.json'):
    report.compare([folder])
  (folder / 'sweep.json').unlink()
